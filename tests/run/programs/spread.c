/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Four threads, each on its own TCS, which count inside: every result is right, whoever interrupts them, and what
 * SIGTRAP does stays as it was. With ENTRIES each enters so often, for a short time.
 */
#include "host.h"

#define THREADS 4
#define TURNS 20000UL
#define ENTRIES 300

static struct enclave enclave;
static int entries = ENTRIES;

static void *count(void *argument)
{
	uintptr_t index = (uintptr_t)argument, wrong = 0;
	uint64_t turns = entries == ENTRIES ? TURNS : 50, sum = 0;

	for (uint64_t i = 0; i < turns; i++)
		sum += i * i;
	for (int n = 0; n < entries; n++) {
		struct op op = { .code = OP_LOOP, .a = turns };

		if (!do_op(&enclave, index, &op) || op.out[0] != sum || op.out[1] != turns)
			wrong++;
	}
	return (void *)wrong;
}

int main(int argc, char **argv)
{
	struct sigaction before, after;
	pthread_t threads[THREADS];
	void *wrong;

	begin(argc, argv);
	if (argc > 3)
		entries = atoi(argv[3]);
	sigaction(SIGTRAP, NULL, &before);
	enclave = build(&the_image);
	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, count, (void *)i))
			fail("pthread_create");
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], &wrong);
		check(!wrong, "every sum is right", "thread %d: %lu wrong", i, (unsigned long)wrong);
	}
	sigaction(SIGTRAP, NULL, &after);
	CHECK("SIGTRAP is as it was", before.sa_handler == after.sa_handler);
	return finish();
}
