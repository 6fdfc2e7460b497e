// SPDX-License-Identifier: Apache-2.0
// Asks to trace: its parent to trace it, its child, and a process that does not exist. Prints the
// errno of each.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

static int failed(long result)
{
	return result == -1 ? errno : 0;
}

int main(void)
{
	pid_t child = fork();

	if (!child) {
		pause();
		_exit(0);
	}
	printf("TRACEME %d\n", failed(ptrace(PTRACE_TRACEME, 0, 0, 0)));
	printf("SEIZE %d\n", failed(ptrace(PTRACE_SEIZE, child, 0, 0)));
	printf("ATTACH %d\n", failed(ptrace(PTRACE_ATTACH, child, 0, 0)));
	printf("outside %d\n", failed(ptrace(PTRACE_SEIZE, 0x3ffffffe, 0, 0)));
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return 0;
}
