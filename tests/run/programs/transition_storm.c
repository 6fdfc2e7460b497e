/* SPDX-License-Identifier: Apache-2.0 */
/*
 *     transition_storm ENCLAVE SIGSTRUCT SECONDS BYTES
 *
 * Seven threads go in and out as fast as they can, each by a TCS of its own, while one sends them signals whose
 * handler enters too, and an eighth fills BYTES of the enclave's heap, which may be more than the EPC has. Threads end
 * and begin, and children of a fork enter. Every answer must be right.
 */
#include "host.h"

#include <sched.h>
#include <sys/syscall.h>
#include <time.h>

#define THREADS 7
#define CHILDS_TCS 7
#define TURNS_MOST 20000 /* of one thread's life */

static struct enclave enclave;
static uint64_t heap, bytes;
static volatile bool enough;
static uint64_t wanted[64];
static volatile long turns, nested, wrong;
static volatile pid_t tids[THREADS];
static __thread int own_tcs = -1;
static __thread volatile int deep;

static bool works(int index, int seed)
{
	struct op op = { .code = OP_WORK, .a = seed };

	return do_op(&enclave, index, &op) && op.out[0] == wanted[seed];
}

static void on_signal(int number, siginfo_t *info, void *context)
{
	uint64_t rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];

	if (rip - enclave.base < enclave.size)
		__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
	if (own_tcs < 0 || deep)
		return;
	deep++;
	/* The TCS is free, or interrupted: then this is an entry with the next frame. */
	if (!works(own_tcs, 5))
		__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&nested, 1, __ATOMIC_RELAXED);
	deep--;
}

static void *go_in_and_out(void *argument)
{
	int index = (long)argument;

	own_tcs = index;
	tids[index] = gettid();
	for (int i = 0; i < TURNS_MOST && !enough; i++) {
		if (!works(index, i % 64)) {
			__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
			break;
		}
		__atomic_add_fetch(&turns, 1, __ATOMIC_RELAXED);
	}
	tids[index] = 0;
	own_tcs = -1;
	return NULL;
}

static void *begin_again(void *argument)
{
	pthread_t thread;

	while (!enough) {
		if (pthread_create(&thread, NULL, go_in_and_out, argument))
			fail("a thread");
		pthread_join(thread, NULL);
	}
	return NULL;
}

static void *send_signals(void *nothing)
{
	for (unsigned int i = 0; !enough; i++) {
		pid_t tid = tids[i % THREADS];

		if (tid)
			syscall(SYS_tgkill, getpid(), tid, i % 3 ? SIGUSR1 : SIGUSR2);
		usleep(200);
	}
	return NULL;
}

static void *fill_heap(void *nothing)
{
	for (uint64_t seed = 1; !enough; seed++) {
		struct op fill = { .code = OP_FILL, .a = heap, .b = bytes, .c = seed };
		struct op hash = { .code = OP_HASH, .a = heap, .b = bytes };
		uint64_t word = seed, sum = 0;

		for (uint64_t i = 0; i < bytes / 8; i++)
			sum += word = next_word(word);
		if (!do_op(&enclave, TCS_ONE_FRAME, &fill) || !do_op(&enclave, TCS_ONE_FRAME, &hash) ||
		    hash.out[1] != sum)
			__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS], sender, filler;
	sigset_t both;
	time_t end;

	begin(argc, argv);
	end = time(NULL) + atoi(argv[3]);
	end_after(atoi(argv[3]) + 90);
	bytes = strtoul(argv[4], NULL, 0);
	enclave = build(&the_image);
	heap = at_symbol(&enclave, "heap_begin");
	for (int seed = 0; seed < 64; seed++) {
		struct op op = { .code = OP_WORK, .a = seed };

		if (!do_op(&enclave, 0, &op))
			fail("the first turns");
		wanted[seed] = op.out[0];
	}
	handle(SIGUSR1, on_signal);
	handle(SIGUSR2, on_signal);
	for (long i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, begin_again, (void *)i);
	/* Their own threads only. */
	sigemptyset(&both);
	sigaddset(&both, SIGUSR1);
	sigaddset(&both, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &both, NULL);
	pthread_create(&sender, NULL, send_signals, NULL);
	pthread_create(&filler, NULL, fill_heap, NULL);
	do {
		pid_t child = fork_bound();
		int status = 0;

		if (!child) {
			for (int i = 0; i < 20; i++)
				if (!works(CHILDS_TCS, i))
					_exit(1);
			_exit(0);
		}
		if (waitpid(child, &status, 0) != child || status)
			check(false, "a child", "status %#x", status);
		usleep(300000);
	} while (time(NULL) < end);
	enough = true;
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	pthread_join(sender, NULL);
	pthread_join(filler, NULL);
	check(wrong == 0, "every answer is right", "%ld are not", wrong);
	CHECK("there were turns", turns > THREADS);
	CHECK("handlers entered", nested > 0);
	dprintf(1, "%ld turns, %ld from handlers\n", turns, nested);
	return finish();
}
