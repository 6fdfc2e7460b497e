// SPDX-License-Identifier: Apache-2.0
// What a trap costs at least: a child runs COUNT illegal instructions, its tracer reads and writes the
// registers at each stop and lets it go on behind the instruction. Prints the child's nanoseconds.
//
//   tracer COUNT
#define _GNU_SOURCE
#include <err.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { UD2_LENGTH = 2 };

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int child(int ready, uint64_t count)
{
	char byte;

	if (read(ready, &byte, 1) != 1)
		return 1;
	__asm__ volatile("ud2");
	uint64_t begin = now();
	for (uint64_t i = 0; i < count; i++)
		__asm__ volatile("ud2" ::: "memory");
	printf("%llu\n", (unsigned long long)(now() - begin));
	return 0;
}

int main(int argc, char **argv)
{
	int ready[2];

	if (argc != 2)
		errx(2, "usage: tracer COUNT");
	if (pipe(ready) != 0)
		err(1, "pipe");
	pid_t pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (pid == 0)
		return child(ready[0], strtoull(argv[1], NULL, 0));
	if (ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_EXITKILL) != 0)
		err(1, "PTRACE_SEIZE");
	if (write(ready[1], "", 1) != 1)
		err(1, "write");
	for (;;) {
		int status;
		struct user_regs_struct registers;

		if (waitpid(pid, &status, __WALL) != pid)
			err(1, "waitpid");
		if (WIFEXITED(status))
			return WEXITSTATUS(status);
		if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGILL)
			errx(1, "unexpected status %#x", (unsigned)status);
		if (ptrace(PTRACE_GETREGS, pid, 0, &registers) != 0)
			err(1, "PTRACE_GETREGS");
		registers.rip += UD2_LENGTH;
		if (ptrace(PTRACE_SETREGS, pid, 0, &registers) != 0)
			err(1, "PTRACE_SETREGS");
		if (ptrace(PTRACE_CONT, pid, 0, 0) != 0)
			err(1, "PTRACE_CONT");
	}
}
