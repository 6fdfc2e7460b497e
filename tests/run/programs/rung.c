/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opens the node while a child sends whoever traces this program, its parent,
 * SIGURG all the time: a supervisor that has served an ENCLU has a handler for that.
 *
 *     rung ENCLAVE SIGSTRUCT
 */
#include "host.h"

#define TIMES 150

int main(int argc, char **argv)
{
	pid_t supervisor = getppid(), ringer;
	struct op op = { .code = OP_NOP };
	struct enclave enclave;
	int wrong = 0, status;

	begin(argc, argv);
	end_after(18);
	enclave = build(&the_image);
	CHECK("it enters", do_op(&enclave, 0, &op));
	ringer = fork_bound();
	if (!ringer)
		while (!kill(supervisor, SIGURG))
			;
	for (int i = 0; i < TIMES; i++) {
		int fd = open("/dev/sgx_enclave", O_RDWR);

		if (fd < 0 || close(fd))
			wrong = errno;
	}
	check_equal("every open", wrong, 0);
	CHECK("it enters then", do_op(&enclave, 0, &op));
	kill(ringer, SIGKILL);
	waitpid(ringer, &status, 0);
	return finish();
}
