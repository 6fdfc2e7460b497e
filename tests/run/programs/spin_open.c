/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread opens files while another one stops all the time: by CPUID (mode "cpuid") or by
 * entering and leaving the enclave (mode "enter").
 *
 *     spin_open ENCLAVE SIGSTRUCT MODE apart TURNS OPENS     each at its own pace
 *     spin_open ENCLAVE SIGSTRUCT MODE together TURNS OPENS  they wait for each other after each
 *                                                            open, meanwhile nothing stops
 */
#include "host.h"

#include <cpuid.h>

static struct enclave enclave;
static long turns, opens;
static bool entering, together;
static volatile int opener_done;
static pthread_barrier_t barrier;

static void turn(void)
{
	struct op nop = { .code = OP_NOP };
	unsigned int a, b, c, d;

	if (entering && !do_op(&enclave, 0, &nop))
		fail("a turn did not enter");
	if (!entering)
		__cpuid_count(0x12, 0, a, b, c, d);
}

static void *spin(void *nothing)
{
	for (long round = 0; together && round < opens; round++) {
		pthread_barrier_wait(&barrier);
		for (long i = 0; i < round % (turns + 1); i++)
			turn();
	}
	/* On until the opener is through, so that each of its calls meets a thread that stops. */
	for (long i = 0; !together && (i < turns || (!opener_done && i < 50 * turns)); i++)
		turn();
	return nothing;
}

static void *open_files(void *nothing)
{
	for (long done = 0; done < opens; done++) {
		int fd;

		if (together)
			pthread_barrier_wait(&barrier);
		fd = open("/proc/self/stat", O_RDONLY);
		if (fd < 0)
			fail("open %ld", done);
		close(fd);
		if (open("/nonexistent/file", O_RDONLY) != -1 || errno != ENOENT)
			fail("open %ld of what does not exist", done);
	}
	opener_done = 1;
	return nothing;
}

int main(int argc, char **argv)
{
	pthread_t spinner, opener;

	begin(argc, argv);
	entering = !strcmp(argv[3], "enter");
	together = !strcmp(argv[4], "together");
	turns = atol(argv[5]);
	opens = atol(argv[6]);
	if (entering)
		enclave = build(&the_image);
	pthread_barrier_init(&barrier, NULL, 2);
	pthread_create(&spinner, NULL, spin, NULL);
	pthread_create(&opener, NULL, open_files, NULL);
	pthread_join(opener, NULL);
	pthread_join(spinner, NULL);
	CHECK("both came to their ends", opener_done);
	return finish();
}
