/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CPUID in a program that handles SIGSEGV: the handler sees #GP of the program's own only. Prints
 * for the program, a thread and a child: whether SGX is there, and how often the handler was called
 * before and after a load from an address that is not canonical.
 */
#include <cpuid.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static sigjmp_buf back;
static volatile int calls;

static void handler(int number, siginfo_t *info, void *context)
{
	calls += info->si_code == 0x80 ? 1 : 100;
	siglongjmp(back, 1);
}

static unsigned int sgx(void)
{
	unsigned int a, b, c, d;

	__cpuid_count(7, 0, a, b, c, d);
	return b >> 2 & 1;
}

static void *look(void *name)
{
	unsigned int first = sgx();
	int before = calls;

	if (!sigsetjmp(back, 1))
		*(volatile int *)0x8000000000000000;
	printf("%s %u %d %d %u\n", (const char *)name, first, before, calls, sgx());
	fflush(stdout);
	calls = 0;
	return NULL;
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	pthread_t thread;
	int status = 0;

	sigaction(SIGSEGV, &action, NULL);
	look("program");
	pthread_create(&thread, NULL, look, "thread");
	pthread_join(thread, NULL);
	if (!fork()) {
		look("child");
		_exit(0);
	}
	wait(&status);
	return status != 0;
}
