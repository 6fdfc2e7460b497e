/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Children that are forked while somebody else maps and unmaps pages of an enclave: another thread,
 * or a process with the same memory.
 *
 *     fork_unmapping ENCLAVE SIGSTRUCT FORKS [process]
 *
 * Before the enclave there is a hole of at least 4 MiB. A child has the mapping or it has not; in
 * neither case does the hole become a page for the host.
 */
#include "host.h"

#include <sched.h>

static struct enclave enclave;
static volatile bool enough;

static void *remapping(void *argument)
{
	void *at = (void *)enclave.base;

	while (!enough) {
		if (mmap(at, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, enclave.fd,
			 0) != at)
			fail("mmap");
		if (munmap(at, 4 * PAGE))
			fail("munmap");
	}
	return NULL;
}

static int remapping_process(void *argument)
{
	remapping(argument);
	return 0;
}

static void in_child(int number)
{
	_exit(number == SIGBUS ? 40 : 41);
}

int main(int argc, char **argv)
{
	int bound = 0, unmapped = 0, pages = 0, killed = 0;
	bool by_process = argc > 4;
	pthread_t thread;
	pid_t process = 0;

	begin(argc, argv);
	enclave = build(&the_image);
	if (by_process)
		process = clone(remapping_process, malloc(1 << 16) + (1 << 16), CLONE_VM | SIGCHLD,
				NULL);
	if (by_process ? process < 0 : pthread_create(&thread, NULL, remapping, NULL))
		fail("starting the other one");
	for (int i = atoi(argv[3]); i; i--) {
		int status;
		pid_t child = fork();

		if (!child) {
			signal(SIGBUS, in_child);
			signal(SIGSEGV, in_child);
			(void)*(volatile uint64_t *)enclave.base;
			_exit(42);
		}
		if (child < 0 || waitpid(child, &status, 0) != child)
			fail("fork");
		bound += WIFEXITED(status) && WEXITSTATUS(status) == 40;
		unmapped += WIFEXITED(status) && WEXITSTATUS(status) == 41;
		pages += WIFEXITED(status) && WEXITSTATUS(status) == 42;
		killed += WIFSIGNALED(status);
	}
	enough = true;
	if (by_process)
		waitpid(process, NULL, 0);
	else
		pthread_join(thread, NULL);
	check_equal("had the mapping, or had it not", bound + unmapped, atoi(argv[3]));
	check_equal("holes that became pages", pages, 0);
	check_equal("killed", killed, 0);
	return finish();
}
