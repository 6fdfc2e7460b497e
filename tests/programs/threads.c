/* SPDX-License-Identifier: Apache-2.0 */
/* Eight threads, each on its own TCS, a thousand entries each: every result is right. */
#include "host.h"

#define THREADS 8
#define ENTRIES 1000

static struct enclave enclave;
static pthread_barrier_t barrier;

/* What the enclave computes for OP_WORK. */
static uint64_t work(uint64_t seed)
{
	uint64_t x = seed;

	for (uint64_t i = 0; i < 64; i++)
		x = (x ^ (seed + i)) * 0x9e3779b97f4a7c15 + i;
	return x;
}

static void *run_thread(void *argument)
{
	uintptr_t index = (uintptr_t)argument, wrong = 0;
	uint64_t fs = read_fsbase();

	pthread_barrier_wait(&barrier);
	for (uint64_t n = 0; n < ENTRIES; n++) {
		struct op op = { .code = OP_WORK, .a = index << 32 | n };

		if (!do_op(&enclave, index, &op) || op.out[0] != work(op.a) ||
		    read_fsbase() != fs)
			wrong++;
	}
	return (void *)wrong;
}

/* More threads than TCSs: who finds it busy gets #GP and tries again; nobody shares it. */
static volatile int refused;

static void *share_thread(void *argument)
{
	uintptr_t index = (uintptr_t)argument, wrong = 0;

	pthread_barrier_wait(&barrier);
	for (uint64_t n = 0; n < 20; n++) {
		struct op op = { .code = OP_WORK, .a = index << 40 | n };
		struct sgx_enclave_run run;

		for (;;) {
			if (enter(&run, tcs(&enclave, 0), &op) != 0)
				wrong++;
			if (run.function == EEXIT)
				break;
			if (run.function != EENTER || run.exception_vector != VECTOR_GP) {
				wrong++;
				break;
			}
			__atomic_add_fetch(&refused, 1, __ATOMIC_RELAXED);
		}
		if (op.out[0] != work(op.a))
			wrong++;
	}
	return (void *)wrong;
}

static void in_threads(const char *what, int count, void *(*body)(void *))
{
	pthread_t threads[THREADS];
	char name[60];
	void *wrong;

	pthread_barrier_init(&barrier, NULL, count);
	for (uintptr_t i = 0; i < (uintptr_t)count; i++)
		if (pthread_create(&threads[i], NULL, body, (void *)i))
			fail("pthread_create");
	for (int i = 0; i < count; i++) {
		pthread_join(threads[i], &wrong);
		snprintf(name, sizeof(name), "%s: thread %d", what, i);
		check(!wrong, name, "%lu wrong results", (unsigned long)wrong);
	}
	pthread_barrier_destroy(&barrier);
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	enclave = build(&the_image);
	in_threads("a TCS each", THREADS, run_thread);
	in_threads("one TCS for three", 3, share_thread);
	return finish();
}
