/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Enclaves by the ABI of the older drivers: mmap reserves, the address names the enclave, munmap of
 * any part ends it, and it is not inherited.
 */
#include "legacy.h"

#define RWX (PROT_READ | PROT_WRITE | PROT_EXEC)

static int fd;

static bool works(const struct enclave *enclave)
{
	struct op put = { .code = OP_PUT, .a = 0x1234 }, get = { .code = OP_GET };

	return do_op(enclave, 0, &put) && do_op(enclave, 0, &get) && get.out[0] == 0x1234;
}

static long map_of(uint64_t length, int flags, uint64_t at)
{
	return mmap((void *)at, length, PROT_NONE, flags, fd, 0) == MAP_FAILED ? -1 : 0;
}

/* Entering what has ended: a #PF at the ENCLU, of the TCS, which is nobody's any more. */
static void check_ended(const char *name, const struct enclave *enclave)
{
	struct sgx_enclave_run run;
	struct op op = { .code = OP_NOP };
	char text[100];

	snprintf(text, sizeof(text), "%s: entering returns", name);
	check_equal(text, enter(&run, tcs(enclave, 0), &op), 0);
	snprintf(text, sizeof(text), "%s: EENTER faulted", name);
	check_equal(text, run.function, EENTER);
	snprintf(text, sizeof(text), "%s: vector", name);
	check_equal(text, run.exception_vector, VECTOR_PF);
	snprintf(text, sizeof(text), "%s: address", name);
	check_equal(text, run.exception_addr, tcs(enclave, 0));
}

static void mappings(void)
{
	uint64_t at, length = 0x40000;
	void *found;

	check_errno("a page is too little", map_of(PAGE, MAP_SHARED, 0), EINVAL);
	check_errno("no power of two", map_of(3 * PAGE, MAP_SHARED, 0), EINVAL);
	check_errno("private", map_of(length, MAP_PRIVATE, 0), EINVAL);
	check_errno("shared, validated", map_of(length, MAP_SHARED_VALIDATE, 0), EINVAL);
	for (uint64_t size = 2 * PAGE; size <= 1UL << 32; size <<= 6) {
		at = legacy_map(fd, size, PROT_NONE);
		CHECK("a mapping is aligned to its length", at % size == 0);
		CHECK("unmapped", munmap((void *)at, size) == 0);
	}
	at = legacy_map(fd, length - 1, RWX);
	CHECK("a length is rounded to pages", at % length == 0);

	/* MAP_FIXED is no exception: the address is rounded up, over whatever is there. */
	found = mmap(NULL, 4 * length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	at = ((uint64_t)found + length) & -length;
	found = mmap((void *)(at - 3 * PAGE), length, PROT_NONE, MAP_SHARED | MAP_FIXED, fd, 0);
	check_equal("a fixed address is rounded up", (uint64_t)found, at);
	found = mmap((void *)(at - 3 * PAGE), length, PROT_NONE,
		     MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
	check_errno("where something is", found == MAP_FAILED ? -1 : 0, EEXIST);
}

static void by_address(void)
{
	struct enclave first = legacy_build_on(fd, PROT_NONE), second = legacy_build_on(fd, RWX);
	uint64_t nowhere = (uint64_t)reserve(0x10000);
	struct secs secs = enclave_secs(&first, 0);

	CHECK("two enclaves of one descriptor", works(&first) && works(&second));
	check_errno("CREATE of what is created", create(fd, &secs), EINVAL);
	secs.base = nowhere & -secs.size;
	check_errno("CREATE where nothing is mapped", create(fd, &secs), EINVAL);
	check_errno("ADD_PAGE where nothing is mapped", legacy_add(fd, nowhere, &secs, SECINFO_REG, 0),
		    EINVAL);
	check_errno("ADD_PAGE after INIT",
		    legacy_add(fd, first.base + first.size - PAGE, &secs, SECINFO_REG, 0), EINVAL);
	check_works("a second INIT", legacy_init_at(fd, second.base, NULL) == 1808 ? 0 : -1);
	check_works("a second INIT", legacy_init_at(fd, second.base, sigstruct));
	munmap((void *)nowhere, 0x10000);

	/* Only one of them ends. */
	check_works("munmap", munmap((void *)first.base, first.size));
	check_ended("after munmap", &first);
	CHECK("the other one", works(&second));

	/* Without its descriptor an enclave goes on. */
	close(fd);
	fd = legacy_open();
	CHECK("after close", works(&second));
	check_works("munmap", munmap((void *)second.base, second.size));
	check_ended("after munmap", &second);
}

static void parts(void)
{
	uint64_t last = the_image.segment[the_image.segments - 1].offset;
	struct enclave enclave = legacy_build_on(fd, PROT_NONE);

	/* The TCS stays mapped, and is no TCS any more. */
	check_works("munmap of a page that never was", munmap((void *)(enclave.base + enclave.size -
								       PAGE), PAGE));
	check_ended("after a part", &enclave);
	check_errno("ADD_PAGE to what is left", legacy_add(fd, enclave.base + last, sigstruct,
							   SECINFO_REG, 0),
		    strcmp(legacy_driver, "v16") ? EINVAL : EFAULT);
	/* It was initialized, and INIT looks no further. */
	check_works("INIT of what is left", legacy_init_at(fd, enclave.base, sigstruct));
	check_works("the rest", munmap((void *)enclave.base, enclave.size));

	enclave = legacy_build_on(fd, RWX);
	CHECK("before", works(&enclave));
	CHECK("a mapping of something else over it",
	      mmap((void *)(enclave.base + last), PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS |
		   MAP_FIXED, -1, 0) == (void *)(enclave.base + last));
	check_ended("after MAP_FIXED", &enclave);
	CHECK("what was mapped is there", *(volatile char *)(enclave.base + last) == 0);
	check_works("the rest", munmap((void *)enclave.base, enclave.size));

	enclave = legacy_build_on(fd, RWX);
	check_works("mremap to less",
		    mremap((void *)enclave.base, enclave.size, enclave.size / 2, 0) ==
				    (void *)enclave.base ? 0 : -1);
	check_ended("after mremap", &enclave);
	check_works("the rest", munmap((void *)enclave.base, enclave.size));

	/* A munmap that fails ends nothing. */
	enclave = legacy_build_on(fd, PROT_NONE);
	check_errno("munmap of no page", munmap((void *)(enclave.base + 1), PAGE), EINVAL);
	CHECK("after a munmap that failed", works(&enclave));
	check_works("munmap", munmap((void *)enclave.base, enclave.size));
}

static void touches(void)
{
	struct enclave enclave = legacy_build_on(fd, PROT_NONE);
	volatile uint64_t *hole = (uint64_t *)(enclave.base + enclave.size - PAGE);

	check_works("mprotect", mprotect((void *)hole, PAGE, PROT_READ));
	for (int ended = 0; ended < 2; ended++) {
		pid_t child;
		int status;

		if (ended)
			check_works("a part", munmap((void *)(enclave.base + enclave.size / 2), PAGE));
		/* A child of vfork has the same address space, and the enclave with it. */
		child = vfork();
		if (!child) {
			(void)*hole;
			_exit(0);
		}
		waitpid(child, &status, 0);
		check_equal(ended ? "a touch of what is left" : "a touch of a hole", WTERMSIG(status),
			    SIGBUS);
	}
	check_works("the rest", munmap((void *)enclave.base, enclave.size));
}

/* More than SECINFO allows: the mapping may say so, the EPCM does not. */
static void permissions(void)
{
	struct enclave enclave = legacy_build_on(fd, RWX);
	uint64_t code = enclave.base + the_image.segment[1].offset;
	struct op op = { .code = OP_WRITE, .a = code, .b = 1 };
	struct sgx_enclave_run run;

	for (int i = 0; i < 2; i++) {
		check_equal("a write to code", enter(&run, tcs(&enclave, 0), &op), 0);
		check_equal("function", run.function, ERESUME);
		check_equal("vector", run.exception_vector, VECTOR_PF);
		check_equal("error code", run.exception_error_code, 0x8007);
		check_equal("address", run.exception_addr, code);
		CHECK("leave", leave_faulted(&enclave, 0));
		/* mprotect asks nobody either. */
		check_works("mprotect", mprotect((void *)enclave.base, enclave.size, RWX));
	}
	check_works("mprotect to less", mprotect((void *)code, PAGE, PROT_READ));
	check_works("munmap", munmap((void *)enclave.base, enclave.size));
}

static void inheritance(void)
{
	struct enclave enclave = legacy_build_on(fd, PROT_NONE);
	int status;
	pid_t child = fork();

	if (!child) {
		struct enclave own;

		check_ended("in a child", &enclave);
		check_errno("ADD_PAGE in a child", legacy_add(fd, enclave.base, sigstruct, SECINFO_REG,
							       0), EINVAL);
		/* Nothing is there at all. */
		CHECK("the place is free in a child",
		      mmap((void *)enclave.base, enclave.size, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
				      (void *)enclave.base);
		check_works("munmap in a child", munmap((void *)enclave.base, enclave.size));
		own = legacy_build_on(fd, PROT_NONE);
		CHECK("an enclave of the child", works(&own));
		_exit(failures);
	}
	waitpid(child, &status, 0);
	check_equal("the child's status", status, 0);
	CHECK("after fork", works(&enclave));
	check_errno("MADV_DOFORK", madvise((void *)enclave.base, PAGE, MADV_DOFORK), EINVAL);
	check_works("munmap", munmap((void *)enclave.base, enclave.size));
}

int main(int argc, char **argv)
{
	legacy_begin(argc, argv);
	fd = legacy_open();
	mappings();
	by_address();
	parts();
	touches();
	permissions();
	inheritance();
	return finish();
}
