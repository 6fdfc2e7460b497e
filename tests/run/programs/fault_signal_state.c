/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What CPUIDs leave of the state of SIGNAL. "look" executes some and prints the lines SigBlk and
 * SigIgn of /proc/self/status, at its start and after each; the others set the state first.
 *
 *     fault_signal_state look
 *     fault_signal_state ignore|block|both PROGRAM [ARG...]    with that state, executes PROGRAM
 *     fault_signal_state blocking|ignoring                     sets it itself, then looks
 */
#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifndef SIGNAL
#define SIGNAL SIGILL
#endif

static void print(const char *when)
{
	FILE *status = fopen("/proc/self/status", "r");
	char line[256];

	while (status && fgets(line, sizeof(line), status))
		if (!strncmp(line, "SigBlk:", 7) || !strncmp(line, "SigIgn:", 7))
			printf("%s %s", when, line);
	if (status)
		fclose(status);
}

static void look(void)
{
	unsigned int a, b, c, d;

	print("start");
	for (int i = 0; i < 3; i++) {
		__cpuid_count(i ? 0x12 : 0, 0, a, b, c, d);
		print("later");
	}
}

static void set(int ignore, int block)
{
	sigset_t mask;

	if (ignore)
		signal(SIGNAL, SIG_IGN);
	sigemptyset(&mask);
	sigaddset(&mask, SIGNAL);
	if (block)
		sigprocmask(SIG_BLOCK, &mask, NULL);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	if (argc > 2) {
		set(strcmp(mode, "block"), strcmp(mode, "ignore"));
		execvp(argv[2], argv + 2);
		perror(argv[2]);
		return 127;
	}
	if (!strcmp(mode, "blocking"))
		set(0, 1);
	if (!strcmp(mode, "ignoring"))
		set(1, 0);
	look();
	return 0;
}
