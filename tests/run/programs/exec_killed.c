/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kills a process where an exec by another thread than its first has just ended the others, and
 * nobody has been told of that yet: whoever traces this program, its parent, is stopped meanwhile.
 *
 *     exec_killed ENCLAVE SIGSTRUCT
 */
#include "host.h"

#define WHILE_STOPPED 200000 /* us */

static int go[2];

static void *execute(void *nothing)
{
	char byte;

	if (read(go[0], &byte, 1) == 1)
		execl("/bin/true", "true", NULL);
	_exit(126);
}

int main(int argc, char **argv)
{
	int status = -1;
	pid_t pid;

	begin(argc, argv);
	build(&the_image);
	if (pipe(go))
		fail("pipe");
	pid = fork();
	if (!pid) {
		pthread_t thread;

		pthread_create(&thread, NULL, execute, NULL);
		for (;;)
			pause();
	}
	usleep(WHILE_STOPPED);
	kill(getppid(), SIGSTOP);
	if (write(go[1], "", 1) != 1)
		fail("write");
	usleep(WHILE_STOPPED);
	kill(pid, SIGKILL);
	usleep(WHILE_STOPPED);
	kill(getppid(), SIGCONT);
	if (waitpid(pid, &status, 0) != pid)
		fail("waitpid");
	check_equal("killed", status, SIGKILL);
	return finish();
}
