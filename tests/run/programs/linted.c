/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Does what a processor with SGX would punish, as it is told, and prints where: a name and a number in hexadecimal.
 *
 *     linted ENCLAVE SIGSTRUCT WHAT...
 */
#include "host.h"
#include "linted.h"

extern const char __ehdr_start[], the_read[], the_write[], host_ud2[];
asm(".text\nhost_ud2:\n\tud2\n");

static struct enclave enclave;
static uint64_t kept;

static void told(const char *name, uint64_t number)
{
	printf("%s %#lx\n", name, number);
	fflush(stdout);
}

__attribute__((noinline)) static uint64_t peek(uint64_t address)
{
	uint64_t value;

	asm volatile("the_read: mov (%1), %0" : "=r"(value) : "r"(address));
	return value;
}

__attribute__((noinline)) static void poke(uint64_t address)
{
	asm volatile("the_write: movq $7, (%0)" : : "r"(address) : "memory");
}

static void *reader(void *nothing)
{
	told("tid", gettid());
	peek(kept);
	return NULL;
}

static void inside(unsigned long code, uint64_t argument, bool faults)
{
	struct op op = { .code = code, .a = argument };
	struct sgx_enclave_run run;

	if (enter(&run, tcs(&enclave, 0), &op) || (run.function != EEXIT) != faults)
		fail("what is done inside ends otherwise: function %u", run.function);
	if (faults && !leave_faulted(&enclave, 0))
		fail("the frame does not leave");
}

static void arguments(void)
{
	struct enclave other = enclave;
	struct secs secs;
	static uint8_t pages[2 * PAGE] __attribute__((aligned(PAGE)));

	other.fd = open_device();
	other.base = reserve(other.size);
	secs = enclave_secs(&other, 0);
	secs.base += PAGE;
	told("ECREATE", create(other.fd, &secs) && errno == EIO);
	secs.base -= PAGE;
	if (create(other.fd, &secs))
		fail("SGX_IOC_ENCLAVE_CREATE");
	told("source", add_pages(other.fd, pages + 8, 0, PAGE, 0x203, true) && errno == EINVAL);
	told("length", add_pages(other.fd, pages, 0, 100, 0x203, true) && errno == EINVAL);
	/* No matter of alignment. */
	told("offset", add_pages(other.fd, pages, other.size, PAGE, 0x203, true) && errno == EINVAL);
}

static void do_what(const char *what)
{
	struct sgx_enclave_run run;
	struct op op = { 0 };
	pthread_t thread;
	int fds[2], status;

	if (!strcmp(what, "touch")) {
		for (int i = 0; i < 3; i++)
			peek(kept + i);
		poke(kept);
	} else if (!strcmp(what, "thread")) {
		if (pthread_create(&thread, NULL, reader, NULL) || pthread_join(thread, NULL))
			fail("a thread");
	} else if (!strcmp(what, "fork")) {
		if (!fork()) {
			peek(kept);
			_exit(0);
		}
		wait(&status);
	} else if (!strcmp(what, "system-call")) {
		if (pipe(fds))
			fail("pipe");
		told("refused", write(fds[1], (void *)kept, 8) < 0 && errno == EFAULT);
	} else if (!strcmp(what, "cpuid")) {
		inside(LINTED_CPUID, 0, true);
		inside(LINTED_CPUID, 0, true);
	} else if (!strcmp(what, "ereport")) {
		inside(LINTED_EREPORT, 0, true);
	} else if (!strcmp(what, "ud2")) {
		inside(LINTED_UD2, 0, true);
	} else if (!strcmp(what, "jump")) {
		inside(LINTED_JUMP, (uint64_t)host_ud2, true);
	} else if (!strcmp(what, "eenter")) {
		/* Two addresses, one mistake. */
		for (int i = 8; i <= 16; i += 8)
			if (enter(&run, tcs(&enclave, 0) + i, &op) || run.function != EENTER)
				fail("an entry at no TCS ends otherwise");
	} else if (!strcmp(what, "arguments")) {
		arguments();
	} else if (!strcmp(what, "fail")) {
		exit(7);
	} else if (!strcmp(what, "die")) {
		raise(SIGTERM);
	} else if (strcmp(what, "clean")) {
		fail("cannot %s", what);
	}
}

int main(int argc, char **argv)
{
	begin(argc, argv);
	enclave = build(&the_image);
	kept = at_symbol(&enclave, "kept");
	inside(LINTED_LEAVE, 0, false);
	told("pid", getpid());
	told("kept", kept);
	told("base", enclave.base);
	told("cpuid", at_symbol(&enclave, "the_cpuid"));
	told("ereport", at_symbol(&enclave, "the_ereport"));
	told("start", (uint64_t)__ehdr_start);
	told("read", (uint64_t)the_read);
	told("write", (uint64_t)the_write);
	told("ud2", (uint64_t)host_ud2);
	for (int i = 3; i < argc; i++)
		do_what(argv[i]);
	puts("finished");
	return 0;
}
