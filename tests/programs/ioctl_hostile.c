/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every ioctl with arguments that a correct program never gives: the documented errno each time,
 * and good enclaves, made before and after, are untouched.
 */
#include "host.h"

#include <sys/statvfs.h>

static uint8_t *unmapped;  /* one page where nothing is mapped */
static uint8_t *read_only; /* one page, PROT_READ */
static uint8_t *edge;      /* the last byte of a mapped page; behind it nothing */
static uint8_t *pages;     /* sixteen writable pages */

static void prepare_memory(void)
{
	pages = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	read_only = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	edge = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unmapped = edge + PAGE;
	munmap(unmapped, PAGE);
	edge += PAGE - 1;
}

static const uint64_t numbers[] = { SGX_IOC_ENCLAVE_CREATE, SGX_IOC_ENCLAVE_ADD_PAGES,
				    SGX_IOC_ENCLAVE_INIT, SGX_IOC_ENCLAVE_PROVISION };

static struct enclave fresh(void)
{
	return (struct enclave){ .fd = open_device(), .base = reserve(the_image.size),
				 .size = the_image.size, .image = &the_image };
}

static struct enclave fresh_created(void)
{
	struct enclave enclave = fresh();
	struct secs secs = enclave_secs(&enclave, 0);

	if (create(enclave.fd, &secs))
		fail("SGX_IOC_ENCLAVE_CREATE");
	return enclave;
}

static bool is_noexec(const char *path)
{
	struct statvfs st;

	return statvfs(path, &st) == 0 && st.f_flag & ST_NOEXEC;
}

static void unknown_commands(void)
{
	/* Of the older drivers, of other sizes, of other devices, and those of SGX2 drivers to come. */
	static const uint64_t unknown[] = { 0x4010a402, 0x401aa401, 0x4018a402, 0x4010a403,
					    0xa404,	0xc028a408, 0x4008a4ff, 0xa4,
					    0,		0xffffffff, 0x5413 /* TIOCGWINSZ */ };
	struct enclave enclave = fresh();
	char name[60];

	for (unsigned int i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
		snprintf(name, sizeof(name), "command %#lx", unknown[i]);
		check_errno(name, ioctl(enclave.fd, unknown[i], pages), ENOTTY);
		snprintf(name, sizeof(name), "command %#lx, NULL", unknown[i]);
		check_errno(name, ioctl(enclave.fd, unknown[i], NULL), ENOTTY);
	}
	close(enclave.fd);
}

static void wrong_descriptors(void)
{
	int null = open("/dev/null", O_RDWR), file = open("/proc/self/exe", O_RDONLY), pipes[2];
	int closed = open_device();
	char name[60];

	if (pipe(pipes))
		fail("pipe");
	close(closed);
	for (int i = 0; i < 4; i++) {
		snprintf(name, sizeof(name), "ioctl %d on a closed descriptor", i);
		check_errno(name, ioctl(closed, numbers[i], pages), EBADF);
		snprintf(name, sizeof(name), "ioctl %d on -1", i);
		check_errno(name, ioctl(-1, numbers[i], pages), EBADF);
		snprintf(name, sizeof(name), "ioctl %d on /dev/null", i);
		check_errno(name, ioctl(null, numbers[i], pages), ENOTTY);
		snprintf(name, sizeof(name), "ioctl %d on a file", i);
		check_errno(name, ioctl(file, numbers[i], pages), ENOTTY);
		snprintf(name, sizeof(name), "ioctl %d on a pipe", i);
		check_errno(name, ioctl(pipes[0], numbers[i], pages), ENOTTY);
	}
	close(null);
	close(file);
	close(pipes[0]);
	close(pipes[1]);
}

static void bad_argument_pointers(void)
{
	struct {
		const char *what;
		void *pointer;
	} bad[] = {
		{ "NULL", NULL },
		{ "1", (void *)1 },
		{ "unmapped", unmapped },
		{ "half over the edge", edge - 3 },
		{ "a kernel address", (void *)0xffff888000000000 },
		{ "not canonical", (void *)0x8000000000000000 },
		{ "-8", (void *)-8 },
	};
	struct enclave enclave = fresh_created(), none = fresh();
	char name[80];

	for (unsigned int i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		snprintf(name, sizeof(name), "CREATE, argument %s", bad[i].what);
		check_errno(name, ioctl(none.fd, SGX_IOC_ENCLAVE_CREATE, bad[i].pointer), EFAULT);
		snprintf(name, sizeof(name), "ADD_PAGES, argument %s", bad[i].what);
		check_errno(name, ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, bad[i].pointer),
			    EFAULT);
		snprintf(name, sizeof(name), "INIT, argument %s", bad[i].what);
		check_errno(name, ioctl(enclave.fd, SGX_IOC_ENCLAVE_INIT, bad[i].pointer), EFAULT);
		snprintf(name, sizeof(name), "PROVISION, argument %s", bad[i].what);
		check_errno(name, ioctl(enclave.fd, SGX_IOC_ENCLAVE_PROVISION, bad[i].pointer),
			    EFAULT);
		snprintf(name, sizeof(name), "CREATE, SECS %s", bad[i].what);
		check_errno(name, create(none.fd, bad[i].pointer), EFAULT);
		snprintf(name, sizeof(name), "INIT, SIGSTRUCT %s", bad[i].what);
		check_errno(name, init(enclave.fd, bad[i].pointer), EFAULT);
	}
	check_errno("CREATE, SECS half mapped", create(none.fd, (void *)(edge - 100)), EFAULT);
	check_errno("INIT, SIGSTRUCT half mapped", init(enclave.fd, edge - 100), EFAULT);
	/* What failed so leaves the descriptor as it was. */
	struct secs secs = enclave_secs(&none, 0);

	check_works("then CREATE", create(none.fd, &secs));
	close(none.fd);
	close(enclave.fd);
}

static void bad_secs(void)
{
	struct enclave enclave = fresh();
	struct secs secs;
	struct {
		const char *what;
		uint64_t offset, value;
		unsigned int bytes;
		int wanted;
	} cases[] = {
		{ "SIZE 0", 0, 0, 8, EINVAL },
		{ "SIZE not a power of two", 0, enclave.size + PAGE, 8, EINVAL },
		{ "SIZE -1", 0, ~0UL, 8, EINVAL },
		{ "SIZE one page", 0, PAGE, 8, EIO },
		{ "BASEADDR not aligned to SIZE", 8, enclave.base + PAGE, 8, EIO },
		{ "BASEADDR not canonical", 8, 0x8000000000000000, 8, EIO },
		{ "SSAFRAMESIZE 0", 16, 0, 4, EIO },
		{ "MISCSELECT unknown", 20, 0x80000000, 4, EIO },
		{ "reserved byte", 30, 1, 1, EIO },
		{ "last reserved byte", 4095, 1, 1, EIO },
		{ "ATTRIBUTES.INIT", 48, 5, 8, EIO },
		{ "ATTRIBUTES unknown", 48, 1UL << 40 | 4, 8, EIO },
		{ "XFRM without SSE", 56, 1, 8, EIO },
		{ "XFRM unknown", 56, 1UL << 62 | 3, 8, EIO },
		{ "XFRM of half of AVX-512", 56, 0x27, 8, EIO },
	};
	char name[80];

	for (unsigned int i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		secs = enclave_secs(&enclave, 0);
		memcpy((uint8_t *)&secs + cases[i].offset, &cases[i].value, cases[i].bytes);
		snprintf(name, sizeof(name), "CREATE, %s", cases[i].what);
		check_errno(name, create(enclave.fd, &secs), cases[i].wanted);
	}
	secs = enclave_secs(&enclave, 0);
	check_works("CREATE, at last a good SECS", create(enclave.fd, &secs));
	check_errno("CREATE twice", create(enclave.fd, &secs), EINVAL);
	close(enclave.fd);
}

struct adding {
	const char *what;
	uint64_t src, offset, length, secinfo, flags;
	int wanted;
};

static void add_cases(void)
{
	struct enclave enclave = fresh_created(), none = fresh();
	struct secinfo good = { .flags = SECINFO_REG | SECINFO_R | SECINFO_W }, bad = good;
	uint64_t src = (uint64_t)pages, ok = (uint64_t)&good;
	struct adding cases[] = {
		{ "src misaligned", src + 8, 0, PAGE, ok, 1, EINVAL },
		{ "src unmapped", (uint64_t)unmapped, 0, PAGE, ok, 1, EFAULT },
		{ "src NULL", 0, 0, PAGE, ok, 1, EFAULT },
		{ "src kernel", 0xffff888000000000, 0, PAGE, ok, 1, EFAULT },
		{ "offset misaligned", src, 8, PAGE, ok, 1, EINVAL },
		{ "offset at the end", src, enclave.size, PAGE, ok, 1, EINVAL },
		{ "offset huge", src, -PAGE, PAGE, ok, 1, EINVAL },
		{ "length 0", src, 0, 0, ok, 1, EINVAL },
		{ "length misaligned", src, 0, PAGE + 1, ok, 1, EINVAL },
		{ "length beyond the end", src, PAGE, enclave.size, ok, 1, EINVAL },
		{ "length huge", src, 0, -PAGE, ok, 1, EINVAL },
		{ "offset plus length wraps", src, 2 * PAGE, -PAGE, ok, 1, EINVAL },
		{ "SECINFO NULL", src, 0, PAGE, 0, 1, EFAULT },
		{ "SECINFO unmapped", src, 0, PAGE, (uint64_t)unmapped, 1, EFAULT },
		{ "SECINFO over the edge", src, 0, PAGE, (uint64_t)edge - 16, 1, EFAULT },
	};
	static const struct {
		const char *what;
		uint64_t flags;
	} secinfos[] = {
		{ "SECINFO type SECS", 0x003 },
		{ "SECINFO type VA", 0x300 },
		{ "SECINFO type TRIM", 0x400 },
		{ "SECINFO type 255", 0xff03 },
		{ "SECINFO W without R", 0x202 },
		{ "SECINFO TCS with R", 0x101 },
		{ "SECINFO TCS with RWX", 0x107 },
		{ "SECINFO PENDING", 0x20b },
		{ "SECINFO reserved bit", 0x10203 },
		{ "SECINFO bit 63", 1UL << 63 | 0x203 },
	};
	char name[80];

	for (unsigned int i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct sgx_enclave_add_pages argument = {
			cases[i].src, cases[i].offset, cases[i].length,
			cases[i].secinfo, cases[i].flags, 0,
		};

		snprintf(name, sizeof(name), "ADD_PAGES, %s", cases[i].what);
		check_errno(name, ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument),
			    cases[i].wanted);
		snprintf(name, sizeof(name), "ADD_PAGES, %s: count 0", cases[i].what);
		check_equal(name, argument.count, 0);
	}
	for (unsigned int i = 0; i < sizeof(secinfos) / sizeof(secinfos[0]); i++) {
		snprintf(name, sizeof(name), "ADD_PAGES, %s", secinfos[i].what);
		check_errno(name, add_pages(enclave.fd, pages, 0, PAGE, secinfos[i].flags, true),
			    EINVAL);
	}
	bad.reserved[55] = 1;
	struct sgx_enclave_add_pages argument = { src, 0, PAGE, (uint64_t)&bad, 1, 0 };

	check_errno("ADD_PAGES, SECINFO reserved byte",
		    ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument), EINVAL);
	check_errno("ADD_PAGES before CREATE",
		    add_pages(none.fd, pages, 0, PAGE, good.flags, true), EINVAL);
	check_errno("INIT before CREATE", init(none.fd, sigstruct), EINVAL);

	/* A TCS whose reserved bytes are not zero: EADD faults. */
	memset(pages, 0xff, PAGE);
	check_errno("ADD_PAGES, TCS of ones",
		    add_pages(enclave.fd, pages, 8 * PAGE, PAGE, SECINFO_TCS, true), EIO);
	memset(pages, 0, PAGE);

	/* Partial progress: the pages before the bad one are in, and count says so. */
	argument = (struct sgx_enclave_add_pages){ src, 0, PAGE, ok, 1, 0 };
	check_works("ADD_PAGES, page 0", ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument));
	check_equal("count is a page", argument.count, PAGE);
	argument = (struct sgx_enclave_add_pages){ src, 0, PAGE, ok, 1, 0 };
	check_errno("ADD_PAGES, page 0 again",
		    ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument), EBUSY);
	check_equal("count is 0", argument.count, 0);
	argument = (struct sgx_enclave_add_pages){ src, 4 * PAGE, PAGE, ok, 0, 0 };
	check_works("ADD_PAGES, page 4", ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument));
	argument = (struct sgx_enclave_add_pages){ src, PAGE, 8 * PAGE, ok, 1, 0 };
	check_errno("ADD_PAGES, pages 1 to 8",
		    ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument), EBUSY);
	check_equal("count is what was done", argument.count, 3 * PAGE);

	/* The source ends in the middle. */
	uint8_t *short_source = mmap(NULL, 4 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	munmap(short_source + 2 * PAGE, 2 * PAGE);
	argument = (struct sgx_enclave_add_pages){ (uint64_t)short_source, 16 * PAGE, 4 * PAGE, ok,
						   1, 0 };
	check_errno("ADD_PAGES, source half unmapped",
		    ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument), EFAULT);
	check_equal("count is the mapped half", argument.count, 2 * PAGE);

	/* A source that could never be mapped executable may not become enclave pages. */
	int noexec = open("/dev/shm/", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	uint8_t *plain = MAP_FAILED;

	if (noexec >= 0 && !ftruncate(noexec, PAGE) && is_noexec("/dev/shm"))
		plain = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, noexec, 0);
	if (plain != MAP_FAILED)
		check_errno("ADD_PAGES, source from a noexec mount",
			    add_pages(enclave.fd, plain, 18 * PAGE, PAGE, good.flags, true), EACCES);
	else
		dprintf(1, "skip ADD_PAGES from a noexec mount: /dev/shm is none\n");
	close(noexec);

	/* An argument that cannot be written back. */
	memset(edge - PAGE + 1, 0, PAGE);
	argument = (struct sgx_enclave_add_pages){ src, 20 * PAGE, PAGE, ok, 1, 0 };
	memcpy(edge - PAGE + 1, &argument, sizeof(argument));
	mprotect(edge - PAGE + 1, PAGE, PROT_READ);
	check_errno("ADD_PAGES, argument read-only",
		    ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, edge - PAGE + 1), EFAULT);
	mprotect(edge - PAGE + 1, PAGE, PROT_READ | PROT_WRITE);

	/* Unknown flags are ignored, as the kernel does. */
	argument = (struct sgx_enclave_add_pages){ src, 24 * PAGE, PAGE, ok, ~0UL, 0 };
	check_works("ADD_PAGES, unknown flags",
		    ioctl(enclave.fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument));
	close(enclave.fd);
	close(none.fd);
}

/* Arguments that are read-only or misaligned and nevertheless good. */
static void odd_but_good(void)
{
	struct enclave enclave = fresh();
	struct secs secs = enclave_secs(&enclave, 0);
	struct sgx_enclave_create *argument = (void *)read_only;
	uint8_t *odd = pages + 3 * PAGE + 1;

	mprotect(read_only, PAGE, PROT_READ | PROT_WRITE);
	memcpy(pages + PAGE + 5, &secs, sizeof(secs));
	argument->src = (uint64_t)pages + PAGE + 5;
	mprotect(read_only, PAGE, PROT_READ);
	check_works("CREATE, read-only argument, misaligned SECS",
		    ioctl(enclave.fd, SGX_IOC_ENCLAVE_CREATE, argument));
	if (add_segments(enclave.fd, &the_image))
		fail("SGX_IOC_ENCLAVE_ADD_PAGES");
	memcpy(odd, sigstruct, 1808);
	check_works("INIT, misaligned SIGSTRUCT", init(enclave.fd, odd));
	CHECK("mapped", map_segments(&enclave) == 0);
	CHECK("it runs", do_op(&enclave, 0, &(struct op){ .code = OP_NOP }));
	check_errno("ADD_PAGES after INIT",
		    add_pages(enclave.fd, pages, enclave.size - PAGE, PAGE,
			      SECINFO_REG | SECINFO_R, true), EINVAL);
	check_errno("CREATE after INIT", create(enclave.fd, &secs), EINVAL);
	close(enclave.fd);
	munmap((void *)enclave.base, enclave.size);
}

static void works(const char *name, const struct enclave *enclave)
{
	struct op op = { .code = OP_GET };

	check(do_op(enclave, 0, &op) && op.out[0] == 0xbeef, name, "kept %#lx", op.out[0]);
}

int main(int argc, char **argv)
{
	struct enclave before, after;

	begin(argc, argv);
	prepare_memory();
	before = build(&the_image);
	do_op(&before, 0, &(struct op){ .code = OP_PUT, .a = 0xbeef });

	unknown_commands();
	works("after unknown commands", &before);
	wrong_descriptors();
	bad_argument_pointers();
	works("after bad pointers", &before);
	bad_secs();
	add_cases();
	works("after bad ADD_PAGES", &before);
	odd_but_good();

	after = build(&the_image);
	do_op(&after, 0, &(struct op){ .code = OP_PUT, .a = 0xbeef });
	works("an enclave made afterwards", &after);
	works("the one made before", &before);
	return finish();
}
