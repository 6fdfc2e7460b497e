// SPDX-License-Identifier: Apache-2.0
// The host program of the enclave benchmarks: an ordinary SGX program of mainline's driver and vDSO.
//
//   host build BLOCK SIGSTRUCT            an enclave of 16 times BLOCK (16 MiB), measured; CREATE to INIT
//   host ecall IMAGE SIGSTRUCT COUNT      COUNT empty ecalls
//   host compute IMAGE SIGSTRUCT TURNS    the loop of IMAGE, inside and outside
//
// Prints nanoseconds; `compute` prints those inside, then those outside.
#define _GNU_SOURCE
#include <asm/sgx.h>
#include <dlfcn.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	BLOCKS = 16,
	BLOCK_SIZE = 16 << 20,
	ENCLAVE_SIZE = 8 * PAGE, // of IMAGE: ELRANGE is a power of two
	LOOP = 0x100,            // as in enclave.S
	FIRST_FRAME = 1,
	EENTER = 2,
	EEXIT = 4,
	ATTRIBUTE_MODE64BIT = 4,
	XFRM_LEGACY = 3,
	SECINFO_R = 1,
	SECINFO_W = 2,
	SECINFO_X = 4,
	SECINFO_TCS = 1 << 8,
	SECINFO_REG = 2 << 8,
};

// Offsets of the SECS, for ECREATE.
enum { SECS_SIZE = 0, SECS_BASEADDR = 8, SECS_SSAFRAMESIZE = 16, SECS_ATTRIBUTES = 48, SECS_XFRM = 56 };

typedef uint64_t loop_t(uint64_t turns, void *page);

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void *contents(const char *path, size_t *size)
{
	struct stat status;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || fstat(fd, &status) != 0)
		err(1, "%s", path);
	*size = (size_t)status.st_size;
	void *at = mmap(NULL, *size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	if (at == MAP_FAILED)
		err(1, "%s", path);
	close(fd);
	return at;
}

// Reserve an address range for ELRANGE, aligned to its size.
static uint8_t *reserve(size_t size)
{
	uint8_t *at = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		err(1, "reserve");
	return (uint8_t *)(((uintptr_t)at + size - 1) & ~(size - 1));
}

static int node(void)
{
	int fd = open("/dev/sgx_enclave", O_RDWR);

	if (fd < 0)
		err(1, "/dev/sgx_enclave");
	return fd;
}

static void create(int fd, uint8_t *base, size_t size)
{
	static _Alignas(PAGE) uint8_t secs[PAGE];
	struct sgx_enclave_create argument = {.src = (uintptr_t)secs};

	*(uint64_t *)(secs + SECS_SIZE) = size;
	*(uint64_t *)(secs + SECS_BASEADDR) = (uintptr_t)base;
	*(uint32_t *)(secs + SECS_SSAFRAMESIZE) = FIRST_FRAME;
	*(uint64_t *)(secs + SECS_ATTRIBUTES) = ATTRIBUTE_MODE64BIT;
	*(uint64_t *)(secs + SECS_XFRM) = XFRM_LEGACY;
	if (ioctl(fd, SGX_IOC_ENCLAVE_CREATE, &argument) != 0)
		err(1, "SGX_IOC_ENCLAVE_CREATE");
}

static void add(int fd, const uint8_t *from, size_t offset, size_t length, uint64_t flags)
{
	static _Alignas(64) uint64_t secinfo[8];
	struct sgx_enclave_add_pages argument = {
		.src = (uintptr_t)from,
		.offset = offset,
		.length = length,
		.secinfo = (uintptr_t)secinfo,
		.flags = SGX_PAGE_MEASURE,
	};

	secinfo[0] = flags;
	if (ioctl(fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument) != 0 || argument.count != length)
		err(1, "SGX_IOC_ENCLAVE_ADD_PAGES at %#zx", offset);
}

static void initialise(int fd, const void *sigstruct)
{
	struct sgx_enclave_init argument = {.sigstruct = (uintptr_t)sigstruct};
	int code = ioctl(fd, SGX_IOC_ENCLAVE_INIT, &argument);

	if (code != 0)
		err(1, "SGX_IOC_ENCLAVE_INIT: %d", code);
}

static void build(const char *block_path, const void *sigstruct)
{
	size_t length;
	const size_t size = (size_t)BLOCKS * BLOCK_SIZE;
	const uint8_t *block = contents(block_path, &length);
	uint8_t *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (length != BLOCK_SIZE)
		errx(1, "%s: %zu bytes, not %d", block_path, length, BLOCK_SIZE);
	if (pages == MAP_FAILED)
		err(1, "pages");
	for (size_t offset = 0; offset < size; offset += BLOCK_SIZE)
		memcpy(pages + offset, block, BLOCK_SIZE);
	uint8_t *base = reserve(size);
	int fd = node();

	uint64_t begin = now();
	create(fd, base, size);
	for (size_t offset = 0; offset < size; offset += BLOCK_SIZE)
		add(fd, pages + offset, offset, BLOCK_SIZE, SECINFO_REG | SECINFO_R | SECINFO_W);
	initialise(fd, sigstruct);
	printf("%llu\n", (unsigned long long)(now() - begin));
}

static uint8_t *load(const uint8_t *image, size_t length, const void *sigstruct)
{
	uint8_t *base = reserve(ENCLAVE_SIZE);
	int fd = node();

	create(fd, base, ENCLAVE_SIZE);
	for (size_t offset = 0; offset < length; offset += PAGE) {
		uint64_t flags = SECINFO_REG | SECINFO_R | SECINFO_W;
		int protection = PROT_READ | PROT_WRITE;

		if (offset == 0) {
			flags = SECINFO_TCS;
		} else if (offset == PAGE) {
			flags = SECINFO_REG | SECINFO_R | SECINFO_X;
			protection = PROT_READ | PROT_EXEC;
		}
		add(fd, image + offset, offset, PAGE, flags);
		if (mmap(base + offset, PAGE, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			err(1, "mmap of the enclave at %#zx", offset);
	}
	initialise(fd, sigstruct);
	return base;
}

static vdso_sgx_enter_enclave_t enter_enclave(void)
{
	void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
	void *symbol = vdso ? dlvsym(vdso, "__vdso_sgx_enter_enclave", "LINUX_2.6") : NULL;
	vdso_sgx_enter_enclave_t function;

	if (symbol == NULL)
		errx(1, "the vDSO has no __vdso_sgx_enter_enclave");
	memcpy(&function, &symbol, sizeof function);
	return function;
}

static uint64_t ecall(vdso_sgx_enter_enclave_t enter, struct sgx_enclave_run *run, uint64_t turns)
{
	uint64_t result = 0;
	int code = enter(turns, 0, (uintptr_t)&result, EENTER, 0, 0, run);

	if (code != 0 || run->function != EEXIT)
		errx(1, "ecall: %d, function %u, exception %u", code, run->function, run->exception_vector);
	return result;
}

static void ecalls(uint8_t *base, uint64_t count)
{
	vdso_sgx_enter_enclave_t enter = enter_enclave();
	struct sgx_enclave_run run = {.tcs = (uintptr_t)base};

	ecall(enter, &run, 0);
	uint64_t begin = now();
	for (uint64_t i = 0; i < count; i++)
		ecall(enter, &run, 0);
	printf("%llu\n", (unsigned long long)(now() - begin));
}

static void compute(const uint8_t *image, uint8_t *base, uint64_t turns)
{
	static _Alignas(PAGE) uint8_t page[PAGE];
	vdso_sgx_enter_enclave_t enter = enter_enclave();
	struct sgx_enclave_run run = {.tcs = (uintptr_t)base};
	uint8_t *code = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	loop_t *loop;

	if (code == MAP_FAILED)
		err(1, "code");
	memcpy(code, image + PAGE, PAGE);
	if (mprotect(code, PAGE, PROT_READ | PROT_EXEC) != 0)
		err(1, "mprotect");
	code += LOOP;
	memcpy(&loop, &code, sizeof loop);

	uint64_t begin = now();
	uint64_t inside = ecall(enter, &run, turns);
	uint64_t between = now();
	uint64_t outside = loop(turns, page);
	uint64_t end = now();
	// Both pages began as zeros, so the two loops did the same work.
	if (inside != outside)
		errx(1, "the loop gives %#llx inside, %#llx outside", (unsigned long long)inside,
		     (unsigned long long)outside);
	printf("%llu %llu\n", (unsigned long long)(between - begin), (unsigned long long)(end - between));
}

int main(int argc, char **argv)
{
	size_t length;

	if (argc < 4)
		errx(2, "usage: host build|ecall|compute FILE SIGSTRUCT [NUMBER]");
	const char *verb = argv[1];
	const void *sigstruct = contents(argv[3], &length);
	if (strcmp(verb, "build") == 0) {
		build(argv[2], sigstruct);
		return 0;
	}
	if (argc < 5)
		errx(2, "%s needs a number", verb);
	const uint8_t *image = contents(argv[2], &length);
	uint8_t *base = load(image, length, sigstruct);
	if (strcmp(verb, "ecall") == 0)
		ecalls(base, strtoull(argv[4], NULL, 0));
	else if (strcmp(verb, "compute") == 0)
		compute(image, base, strtoull(argv[4], NULL, 0));
	else
		errx(2, "unknown verb %s", verb);
	return 0;
}
