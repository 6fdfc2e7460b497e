/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a debugger is tried on: a host function, an enclave, threads, signals, a program that it becomes.
 *
 *     debugged ENCLAVE SIGSTRUCT debug|production [threads|signal|exec]
 *
 * Prints where the enclave's functions and variables are, before `built` is called.
 */
#include "host.h"

static struct enclave enclave;
volatile uint64_t turns, handled, finish_now;

__attribute__((noinline, noclone)) void built(uint64_t base)
{
	turns += base != 0;
}

__attribute__((noinline, noclone)) uint64_t twice(uint64_t value)
{
	turns++;
	return value * 2;
}

/* Opens a node, gives CREATE a bad pointer, closes. */
__attribute__((noinline, noclone)) uint64_t refused_ioctl(void)
{
	int fd = open(SGX_NODE, O_RDWR | O_CLOEXEC), error;

	error = ioctl(fd, SGX_IOC_ENCLAVE_CREATE, NULL) ? errno : 0;
	close(fd);
	return error;
}

static void note(int number)
{
	handled += number;
}

static void *run_thread(void *argument)
{
	while (!finish_now)
		twice((uint64_t)argument);
	return NULL;
}

static struct enclave build_as(const struct image *image, uint64_t attributes)
{
	struct enclave made = { .fd = open_device(), .base = reserve(image->size),
				.size = image->size, .image = image };
	struct secs secs = enclave_secs(&made, attributes);

	if (create(made.fd, &secs) || add_segments(made.fd, image) || init(made.fd, sigstruct) ||
	    map_segments(&made))
		fail("building the enclave");
	return made;
}

int main(int argc, char **argv)
{
	const char *what = argc > 4 ? argv[4] : "";
	struct op put = { .code = OP_PUT, .a = 7 }, get = { .code = OP_GET };
	pthread_t thread[2];

	begin(argc, argv);
	enclave = build_as(&the_image, strcmp(argv[3], "debug") ? 0 : ATTRIBUTE_DEBUG);
	dprintf(1, "enclave_main %#lx\nkept %#lx\nbase %#lx\n", at_symbol(&enclave, "enclave_main"),
		at_symbol(&enclave, "kept"), enclave.base);
	built(enclave.base);
	turns += refused_ioctl() != EFAULT;
	if (!strcmp(what, "threads"))
		for (uintptr_t i = 0; i < 2; i++)
			pthread_create(&thread[i], NULL, run_thread, (void *)(i + 1));
	if (!strcmp(what, "signal")) {
		signal(SIGUSR1, note);
		raise(SIGUSR1);
		dprintf(1, "handled %lu\n", handled);
	}
	CHECK("put", do_op(&enclave, 0, &put));
	CHECK("get", do_op(&enclave, 0, &get));
	dprintf(1, "got %lu\n", get.out[0]);
	dprintf(1, "twice %lu\n", twice(get.out[0]));
	while (!strcmp(what, "threads") && !finish_now)
		usleep(1000);
	finish_now = 1;
	if (!strcmp(what, "threads"))
		for (int i = 0; i < 2; i++)
			pthread_join(thread[i], NULL);
	if (!strcmp(what, "exec"))
		execl(argv[0], argv[0], argv[1], argv[2], argv[3], (char *)NULL);
	return finish();
}
