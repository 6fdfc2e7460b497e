/* SPDX-License-Identifier: Apache-2.0 */
/* A child that asks to be untraced opens the node and maps text as any other one. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int child(void)
{
	int node = open("/dev/sgx_enclave", O_RDWR), text = open("/proc/self/exe", O_RDONLY);

	if (node < 0 || text < 0)
		return 1;
	if (mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, text, 0) == MAP_FAILED)
		return 2;
	if (mmap(NULL, 4096, PROT_NONE, MAP_SHARED, node, 0) == MAP_FAILED)
		return 3;
	return 40;
}

int main(void)
{
	int status;
	pid_t pid = syscall(SYS_clone, CLONE_UNTRACED | SIGCHLD, 0, 0, 0, 0);

	if (!pid)
		_exit(child());
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 1;
	printf("%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
	return 0;
}
