/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eight threads with ioctls on one descriptor: each call either is done or says EBUSY, no page is
 * added twice, and other enclaves do not notice.
 */
#include "host.h"

#define THREADS 8

static struct enclave enclave;
static pthread_barrier_t barrier;
static int busy, done, odd, present;

static void count(long result)
{
	if (!result)
		__atomic_add_fetch(&done, 1, __ATOMIC_RELAXED);
	else if (errno == EBUSY)
		__atomic_add_fetch(&busy, 1, __ATOMIC_RELAXED);
	else
		__atomic_add_fetch(&odd, 1, __ATOMIC_RELAXED);
}

/* All create: one succeeds, the others find it busy or made. */
static void *creating(void *argument)
{
	struct secs secs = enclave_secs(&enclave, 0);
	long result;

	(void)argument;
	pthread_barrier_wait(&barrier);
	result = create(enclave.fd, &secs);
	if (result && errno == EINVAL)
		__atomic_add_fetch(&present, 1, __ATOMIC_RELAXED);
	else
		count(result);
	return NULL;
}

/* Each adds all pages of the data segment in its turn until every page is there. */
static void *adding(void *argument)
{
	const struct segment *data = &the_image.segment[3];
	struct secinfo secinfo = { .flags = data->secinfo };

	(void)argument;
	pthread_barrier_wait(&barrier);
	for (uint64_t at = 0; at < data->length; at += PAGE) {
		struct sgx_enclave_add_pages add = {
			.src = (uint64_t)data->data + at, .offset = data->offset + at,
			.length = PAGE, .secinfo = (uint64_t)&secinfo, .flags = 0,
		};
		long result = ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &add);

		count(result);
		if (!result != (add.count == PAGE))
			__atomic_add_fetch(&odd, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* All initialise, with a SIGSTRUCT for another measurement: nobody may succeed. */
static void *initialising(void *argument)
{
	long result;

	(void)argument;
	pthread_barrier_wait(&barrier);
	result = init(enclave.fd, sigstruct);
	if (result && errno == EPERM)
		__atomic_add_fetch(&present, 1, __ATOMIC_RELAXED);
	else
		count(result);
	return NULL;
}

static void in_threads(void *(*body)(void *))
{
	pthread_t threads[THREADS];

	busy = done = odd = present = 0;
	pthread_barrier_init(&barrier, NULL, THREADS);
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, body, NULL))
			fail("pthread_create");
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	pthread_barrier_destroy(&barrier);
}

int main(int argc, char **argv)
{
	struct enclave other, late;
	int pages;

	begin(argc, argv);
	other = build(&the_image);
	enclave = (struct enclave){ .fd = open_device(), .base = reserve(the_image.size),
				    .size = the_image.size, .image = &the_image };
	pages = the_image.segment[3].length / PAGE;

	in_threads(creating);
	check_equal("one CREATE succeeded", done, 1);
	check_equal("the others: EBUSY or EINVAL", busy + present, THREADS - 1);
	check_equal("no other errno", odd, 0);

	in_threads(adding);
	/* EBUSY is both "another ioctl" and "that page is there". */
	check(done <= pages, "no page added twice", "%d pages, %d added", pages, done);
	check_equal("every call: done or EBUSY", done + busy, THREADS * pages);
	check_equal("no other errno from ADD_PAGES", odd, 0);

	in_threads(initialising);
	check_equal("no INIT succeeded", done, 0);
	check_equal("INIT: EPERM or EBUSY", present + busy, THREADS);
	check_equal("no other errno from INIT", odd, 0);

	CHECK("another enclave is untouched", do_op(&other, 0, &(struct op){ .code = OP_NOP }));
	close(enclave.fd);
	late = build(&the_image);
	CHECK("a new enclave works", do_op(&late, 0, &(struct op){ .code = OP_NOP }));
	return finish();
}
