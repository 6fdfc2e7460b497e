/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Faults come back from __vdso_sgx_enter_enclave as data, without a signal: function ERESUME when
 * the enclave faulted, EENTER when the entry itself did.
 */
#include "host.h"

static struct sgx_enclave_run run;

#define NAME_OF(buffer, what, text) (snprintf(buffer, sizeof(buffer), "%s: " text, what), buffer)

struct exception {
	const char *name;
	struct op op;
	unsigned int vector, error;
	uint64_t address;
};

static void one(const struct enclave *enclave, struct exception *wanted)
{
	const char *what = wanted->name;
	char name[80];

	check_equal(NAME_OF(name, what, "returns"), enter(&run, tcs(enclave, 0), &wanted->op), 0);
	check_equal(NAME_OF(name, what, "vector"), run.exception_vector, wanted->vector);
	check_equal(NAME_OF(name, what, "error code"), run.exception_error_code, wanted->error);
	check_equal(NAME_OF(name, what, "address"), run.exception_addr, wanted->address);
	if (check_equal(NAME_OF(name, what, "function"), run.function, ERESUME))
		CHECK(NAME_OF(name, what, "leave"), leave_faulted(enclave, 0));
}

static void inside(const struct enclave *enclave)
{
	uint64_t none = (uint64_t)mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t host = (uint64_t)mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t rodata = at_symbol(enclave, "read_only_page");
	uint64_t heap = at_symbol(enclave, "heap_page");
	uint64_t absent = enclave->base + enclave->size - PAGE;
	uint64_t unmapped = absent - PAGE;
	struct op put = { .code = OP_WRITE, .a = heap, .b = 1 };
	struct op look = { .code = OP_READ, .a = rodata };
	struct exception list[] = {
		{ "#DE", { .code = OP_DIVIDE }, VECTOR_DE, 0, 0 },
		{ "#UD", { .code = OP_UD2 }, VECTOR_UD, 0, 0 },
		{ "#GP", { .code = OP_READ, .a = 0x8000000000000000 }, VECTOR_GP, 0, 0 },
		{ "#GP by EREPORT", { .code = OP_REPORT_MISALIGNED }, VECTOR_GP, 0, 0 },
		{ "#PF host read", { .code = OP_READ, .a = none + 8 }, VECTOR_PF, 4, none },
		{ "#PF host write", { .code = OP_WRITE, .a = none + 16 }, VECTOR_PF, 6, none },
		{ "#PF host write, read-only", { .code = OP_WRITE, .a = host + 24 }, VECTOR_PF, 7,
		  host },
		{ "#PF enclave write, read-only", { .code = OP_WRITE, .a = rodata + 32 }, VECTOR_PF,
		  7, rodata },
		{ "#PF absent page", { .code = OP_READ, .a = absent + 40 }, VECTOR_PF,
		  has_sgx2() ? 0x8005 : 4, absent },
		{ "#PF absent page, write", { .code = OP_WRITE, .a = absent + 48 }, VECTOR_PF,
		  has_sgx2() ? 0x8007 : 6,
		  absent },
		{ "#PF no mapping", { .code = OP_READ, .a = unmapped + 56 }, VECTOR_PF, 4,
		  unmapped },
		{ "#PF after mprotect", { .code = OP_WRITE, .a = heap + 64 }, VECTOR_PF, 7, heap },
	};

	/* Present, then read-only: the fault is one of protection. */
	*(volatile char *)host = 1;
	mprotect((void *)host, PAGE, PROT_READ);
	CHECK("touch", do_op(enclave, 0, &put) && do_op(enclave, 0, &look));
	CHECK("mprotect of an enclave page", !mprotect((void *)heap, PAGE, PROT_READ));
	munmap((void *)unmapped, PAGE);
	if (mmap((void *)absent, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, enclave->fd,
		 0) == MAP_FAILED)
		fail("mapping a page that was never added");
	for (unsigned int i = 0; i < sizeof(list) / sizeof(list[0]); i++)
		one(enclave, &list[i]);
}

/* The TCS page's own rights: enclave code may neither read nor write it. */
static void tcs_page(const struct enclave *enclave)
{
	struct op op = { .code = OP_READ, .a = tcs(enclave, 3) };

	check_equal("read of a TCS: returns", enter(&run, tcs(enclave, 0), &op), 0);
	check_equal("read of a TCS: vector", run.exception_vector, VECTOR_PF);
	check_equal("read of a TCS: PFEC.SGX", run.exception_error_code & 0x8000, 0x8000);
	check_equal("read of a TCS: address", run.exception_addr, tcs(enclave, 3));
	check_equal("read of a TCS: function", run.function, ERESUME);
	CHECK("read of a TCS: leave", leave_faulted(enclave, 0));
}

static void entry_faults(const char *what, uint64_t address, unsigned int vector)
{
	struct op op = { .code = OP_NOP };
	char name[80];

	check_equal(NAME_OF(name, what, "returns"), enter(&run, address, &op), 0);
	check_equal(NAME_OF(name, what, "function is EENTER"), run.function, EENTER);
	check_equal(NAME_OF(name, what, "vector"), run.exception_vector, vector);
	if (vector == VECTOR_PF)
		check_equal(NAME_OF(name, what, "page"), run.exception_addr & -PAGE, address);
	else
		check_equal(NAME_OF(name, what, "error code"), run.exception_error_code, 0);
}

static volatile char stop;
static struct op spinning = { .code = OP_SPIN, .a = (uint64_t)&stop };

static void *spin(void *argument)
{
	struct enclave *enclave = argument;

	return (void *)(uintptr_t)do_op(enclave, 5, &spinning);
}

static void busy_tcs(struct enclave *enclave)
{
	pthread_t thread;
	void *good;

	if (pthread_create(&thread, NULL, spin, enclave))
		fail("pthread_create");
	while (!*(volatile unsigned long *)&spinning.out[0])
		usleep(1000);
	entry_faults("busy TCS", tcs(enclave, 5), VECTOR_GP);
	stop = 1;
	pthread_join(thread, &good);
	CHECK("the busy thread ends well", good);
}

static void no_frame_left(const struct enclave *enclave)
{
	struct op ud2 = { .code = OP_UD2 };
	struct sgx_enclave_run resume = { .tcs = tcs(enclave, TCS_ONE_FRAME) };

	CHECK("fault on a TCS with one frame",
	      enter(&run, tcs(enclave, TCS_ONE_FRAME), &ud2) == 0 && run.function == ERESUME);
	entry_faults("CSSA == NSSA", tcs(enclave, TCS_ONE_FRAME), VECTOR_GP);
	CHECK("ERESUME faults again at the same place",
	      call_vdso(0, 0, 0, ERESUME, 0, 0, &resume) == 0 && resume.function == ERESUME &&
		      resume.exception_vector == VECTOR_UD);

	/* Two frames: the second fault takes the last one. */
	CHECK("first fault", enter(&run, tcs(enclave, 6), &ud2) == 0 && run.function == ERESUME);
	CHECK("second fault", enter(&run, tcs(enclave, 6), &ud2) == 0 && run.function == ERESUME);
	entry_faults("both frames used", tcs(enclave, 6), VECTOR_GP);
}

static void not_initialised(void)
{
	struct enclave enclave = { .fd = open_device(), .base = reserve(the_image.size),
				   .size = the_image.size, .image = &the_image };
	struct secs secs = enclave_secs(&enclave, 0);

	if (create(enclave.fd, &secs) || add_segments(enclave.fd, &the_image) ||
	    map_segments(&enclave))
		fail("building without INIT");
	entry_faults("before INIT", tcs(&enclave, 0), VECTOR_GP);
	CHECK("then INIT", init(enclave.fd, sigstruct) == 0);
	CHECK("then it enters", do_op(&enclave, 0, &(struct op){ .code = OP_NOP }));
}

int main(int argc, char **argv)
{
	static char host_page[4096] __attribute__((aligned(4096))) = { 1 };
	struct enclave enclave;

	begin(argc, argv);
	enclave = build(&the_image);
	inside(&enclave);
	tcs_page(&enclave);
	entry_faults("misaligned TCS", tcs(&enclave, 0) + 8, VECTOR_GP);
	entry_faults("TCS address 0", 0, VECTOR_PF);
	entry_faults("TCS in host memory", (uint64_t)host_page, VECTOR_PF);
	entry_faults("TCS is a regular page", at_symbol(&enclave, "heap_page"), VECTOR_PF);
	entry_faults("TCS where nothing was added", enclave.base + enclave.size - PAGE, VECTOR_PF);
	busy_tcs(&enclave);
	no_frame_left(&enclave);
	not_initialised();
	CHECK("and the first enclave still works",
	      do_op(&enclave, 0, &(struct op){ .code = OP_NOP }));
	return finish();
}
