/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that opens its memory over and over: a production enclave's stays hidden.
 *
 *     peek_often ENCLAVE SIGSTRUCT OPENS
 */
#include "host.h"

int main(int argc, char **argv)
{
	struct enclave enclave;
	uint64_t word, at;
	int shown = 0, fd, another;

	begin(argc, argv);
	enclave = build(&the_image);
	at = tcs(&enclave, 0) + PAGE;
	for (int i = atoi(argv[3]); i; i--) {
		fd = open("/proc/self/mem", O_RDONLY);
		shown += pread(fd, &word, 8, at) != -1;
		close(fd);
	}
	check_equal("shown", shown, 0);
	fd = open("/dev/null", O_RDONLY);
	another = open("/proc/self/mem", O_RDONLY);
	check_errno("by another number", pread(another, &word, 8, at), EIO);
	if (!fork()) {
		close(fd);
		fd = open("/proc/self/mem", O_RDONLY);
		check_errno("in a child", pread(fd, &word, 8, at), EIO);
		_exit(failures);
	}
	wait(&shown);
	check_equal("the child's failures", shown, 0);
	return finish();
}
