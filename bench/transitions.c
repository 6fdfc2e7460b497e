// SPDX-License-Identifier: Apache-2.0
// Entering and leaving an enclave, by mainline's driver and the vDSO.
//
//   transitions ecall IMAGE SIGSTRUCT COUNT           COUNT empty ecalls
//   transitions ocall IMAGE SIGSTRUCT COUNT           COUNT ecalls with an ocall in the middle: two entries, two exits
//   transitions threads IMAGE SIGSTRUCT COUNT THREADS TURNS
//                                                     COUNT empty ecalls of one thread, and of each of so many at once
//
// The first two print what transitions.h says. `threads` prints a line for each turn: nanoseconds of an ecall of the one
// thread, each alone in its turn, and of one of all of them, the time from the first one's begin to the last one's end
// over COUNT. Each thread has a CPU and a TCS.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "loading.h"
#include "transitions.h"

enum { WARM = 100, MOST_THREADS = 64 };

struct caller {
	vdso_sgx_enter_enclave_t enter;
	struct sgx_enclave_run run;
};

uint64_t ocalls;

void host_function(void);

void host_function(void)
{
	ocalls++;
}

int ocall_handler(long rdi, long rsi, long rdx, long rsp, long r8, long r9, struct sgx_enclave_run *run);

// The user handler: RDI is what the enclave left there, and with a leaf in EAX what it finds there.
__asm__("	.text\n"
	"ocall_handler:\n"
	"	cmp	$" TEXT(OCALL) ", %rdi\n"
	"	jne	1f\n"
	"	sub	$8, %rsp\n"
	"	call	host_function\n"
	"	add	$8, %rsp\n"
	"	mov	$" TEXT(RETURN) ", %rdi\n"
	"	mov	$2, %eax\n" // EENTER
	"	ret\n"
	"1:	xor	%eax, %eax\n"
	"	ret\n");

static inline void enter(struct caller *caller, long rdi)
{
	struct sgx_enclave_run *run = &caller->run;
	int code = caller->enter((unsigned long)rdi, 0, 0, EENTER, 0, 0, run);

	if (code != 0 || run->function != EEXIT)
		errx(1, "ecall: %d, function %u, exception %u", code, run->function, run->exception_vector);
}

static void ecall(void *caller)
{
	enter(caller, 0);
}

static void ocall(void *caller)
{
	enter(caller, CALL);
}

// --- threads ---

struct thread {
	// None writes to a line of another one.
	_Alignas(64) pthread_t handle;
	int cpu;
	struct caller caller;
	uint64_t count, begin, end;
	atomic_int *waited_for;
};

static void *run_thread(void *argument)
{
	struct thread *thread = argument;
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET((size_t)thread->cpu, &cpus);
	if (sched_setaffinity(0, sizeof cpus, &cpus) != 0)
		err(1, "sched_setaffinity");
	for (int i = 0; i < WARM; i++)
		ecall(&thread->caller);
	// They begin together; each has its own CPU to wait on.
	atomic_fetch_sub(thread->waited_for, 1);
	while (atomic_load(thread->waited_for) > 0)
		;
	thread->begin = now();
	for (uint64_t i = 0; i < thread->count; i++)
		ecall(&thread->caller);
	thread->end = now();
	return NULL;
}

// Return the nanoseconds of an ecall of `count` threads at once.
static double at_once(struct thread *threads, int count)
{
	atomic_int waited_for = count;
	uint64_t begin = UINT64_MAX, end = 0;

	for (int i = 0; i < count; i++) {
		threads[i].waited_for = &waited_for;
		if (pthread_create(&threads[i].handle, NULL, run_thread, &threads[i]) != 0)
			errx(1, "pthread_create");
	}
	for (int i = 0; i < count; i++) {
		pthread_join(threads[i].handle, NULL);
		begin = threads[i].begin < begin ? threads[i].begin : begin;
		end = threads[i].end > end ? threads[i].end : end;
	}
	return (double)(end - begin) / (double)threads->count;
}

static void time_threads(uint8_t *base, uint64_t each, int count, int turns)
{
	static struct thread threads[MOST_THREADS];
	vdso_sgx_enter_enclave_t function = enter_enclave();
	cpu_set_t cpus;
	int cpu = 0;

	if (sched_getaffinity(0, sizeof cpus, &cpus) != 0 || CPU_COUNT(&cpus) < count)
		errx(1, "%d threads need as many CPUs", count);
	for (int i = 0; i < count; i++, cpu++) {
		while (!CPU_ISSET((size_t)cpu, &cpus))
			cpu++;
		threads[i].cpu = cpu;
		threads[i].count = each;
		threads[i].caller.enter = function;
		threads[i].caller.run.tcs = (uintptr_t)base + (uintptr_t)i * PAGE;
	}
	for (int turn = 0; turn < turns; turn++) {
		double one = at_once(&threads[turn % count], 1);

		printf("%.2f %.2f\n", one, at_once(threads, count));
	}
}

int main(int argc, char **argv)
{
	size_t length, sigstruct_length;

	if (argc < 5)
		errx(2, "usage: transitions ecall|ocall|threads IMAGE SIGSTRUCT COUNT [THREADS TURNS]");
	const uint8_t *image = contents(argv[2], &length);
	uint8_t *base = load(image, length, contents(argv[3], &sigstruct_length));
	const uint64_t count = strtoull(argv[4], NULL, 0);
	struct caller caller = {.enter = enter_enclave(), .run.tcs = (uintptr_t)base};
	if (strcmp(argv[1], "ecall") == 0) {
		measure(ecall, &caller, count);
	} else if (strcmp(argv[1], "ocall") == 0) {
		caller.run.user_handler = (uintptr_t)ocall_handler;
		measure(ocall, &caller, count);
		if (ocalls < count)
			errx(1, "%llu ocalls of %llu", (unsigned long long)ocalls, (unsigned long long)count);
	} else if (strcmp(argv[1], "threads") == 0 && argc == 7) {
		int threads = atoi(argv[5]);

		if (threads < 1 || threads > MOST_THREADS || (size_t)threads > tcs_pages(length))
			errx(2, "%s: %zu TCSs for %d threads", argv[2], tcs_pages(length), threads);
		time_threads(base, count, threads, atoi(argv[6]));
	} else {
		errx(2, "%s: unknown, or too few arguments", argv[1]);
	}
	return 0;
}
