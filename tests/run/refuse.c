/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sandbox as a container has it: refuses system calls to a command and all its descendants.
 *
 *     refuse ERRNO|kill|trap NUMBER,... COMMAND [ARGUMENT...]
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 400

int main(int argc, char **argv)
{
	struct sock_filter code[2 * MOST + 2] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0) };
	struct sock_fprog program = { .len = 1, .filter = code };
	unsigned int action;

	if (argc < 4)
		return 2;
	action = !strcmp(argv[1], "kill") ? SECCOMP_RET_KILL_PROCESS :
		 !strcmp(argv[1], "trap") ? SECCOMP_RET_TRAP :
					    SECCOMP_RET_ERRNO | (unsigned int)atoi(argv[1]);
	for (char *word = strtok(argv[2], ","); word; word = strtok(NULL, ",")) {
		struct sock_filter is = BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, atoi(word), 0, 1);
		struct sock_filter refused = BPF_STMT(BPF_RET | BPF_K, action);

		if (program.len > 2 * MOST - 2)
			return 2;
		code[program.len++] = is;
		code[program.len++] = refused;
	}
	code[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	/* Without this only root may install it; a container's own is installed by root. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) {
		perror("refuse");
		return 2;
	}
	execvp(argv[3], argv + 3);
	perror(argv[3]);
	return 127;
}
