/* SPDX-License-Identifier: Apache-2.0 */
/* exec of another SGX program: after fork, after vfork, by posix_spawn, and in place. */
#include "host.h"

#include <spawn.h>

extern char **environ;

static void use_an_enclave(const char *stage)
{
	struct enclave enclave = build(&the_image);
	struct op op = { .code = OP_WORK, .a = 5 }, again = op;
	char name[60];

	snprintf(name, sizeof(name), "%s: enters", stage);
	CHECK(name, do_op(&enclave, 0, &op) && do_op(&enclave, 7, &again));
	snprintf(name, sizeof(name), "%s: same result on both TCSs", stage);
	check_equal(name, again.out[0], op.out[0]);
}

int main(int argc, char **argv)
{
	char *next[] = { argv[0], argv[1], argv[2], "second program", NULL };
	char *last[] = { argv[0], argv[1], argv[2], "third program, in place", NULL };
	int status;
	pid_t child;

	begin(argc, argv);
	if (argc > 3) {
		use_an_enclave(argv[3]);
		return finish();
	}
	use_an_enclave("first program");

	child = fork();
	if (!child) {
		execv(argv[0], next);
		_exit(127);
	}
	waitpid(child, &status, 0);
	check_equal("fork and exec", status, 0);

	child = vfork();
	if (!child) {
		execv(argv[0], next);
		_exit(127);
	}
	waitpid(child, &status, 0);
	check_equal("vfork and exec", status, 0);

	if (posix_spawn(&child, argv[0], NULL, NULL, next, environ))
		fail("posix_spawn");
	waitpid(child, &status, 0);
	check_equal("posix_spawn", status, 0);

	use_an_enclave("first program again");
	if (failures)
		return finish();
	execv(argv[0], last);
	fail("execv");
}
