/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks CHILDREN times with an enclave mapped; each child ends at once. Prints
 * "forked" and waits for the end of its standard input.
 *
 *     fork_often ENCLAVE SIGSTRUCT CHILDREN
 */
#include "host.h"

int main(int argc, char **argv)
{
	char byte;

	begin(argc, argv);
	build(&the_image);
	for (int i = atoi(argv[3]); i; i--) {
		pid_t child = fork();
		int status;

		if (!child)
			_exit(0);
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			fail("child %d of %s ended with %#x", i, argv[3], status);
	}
	dprintf(1, "forked\n");
	return read(0, &byte, 1) ? 1 : 0;
}
