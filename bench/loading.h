/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host programs of the benchmarks share: building an enclave by mainline's driver, finding the vDSO's entry,
 * and the clock.
 */
#ifndef LOADING_H
#define LOADING_H

#include <asm/sgx.h>
#include <dlfcn.h>
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	ENCLAVE_SIZE = 8 * PAGE, // of IMAGE with one TCS: ELRANGE is a power of two
	PAGES_A_TCS = 4,         // in IMAGE: itself, two SSA frames, data; and one page is code
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

static inline uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline void *contents(const char *path, size_t *size)
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
static inline uint8_t *reserve(size_t size)
{
	uint8_t *at = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		err(1, "reserve");
	return (uint8_t *)(((uintptr_t)at + size - 1) & ~(size - 1));
}

static inline int node(void)
{
	int fd = open("/dev/sgx_enclave", O_RDWR);

	if (fd < 0)
		err(1, "/dev/sgx_enclave");
	return fd;
}

static inline void create(int fd, uint8_t *base, size_t size)
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

static inline void add_as(int fd, const uint8_t *from, size_t offset, size_t length, uint64_t flags, uint64_t measure)
{
	static _Alignas(64) uint64_t secinfo[8];
	struct sgx_enclave_add_pages argument = {
		.src = (uintptr_t)from,
		.offset = offset,
		.length = length,
		.secinfo = (uintptr_t)secinfo,
		.flags = measure,
	};

	secinfo[0] = flags;
	if (ioctl(fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument) != 0 || argument.count != length)
		err(1, "SGX_IOC_ENCLAVE_ADD_PAGES at %#zx", offset);
}

static inline void add(int fd, const uint8_t *from, size_t offset, size_t length, uint64_t flags)
{
	add_as(fd, from, offset, length, flags, SGX_PAGE_MEASURE);
}

static inline void initialise(int fd, const void *sigstruct)
{
	struct sgx_enclave_init argument = {.sigstruct = (uintptr_t)sigstruct};
	int code = ioctl(fd, SGX_IOC_ENCLAVE_INIT, &argument);

	if (code != 0)
		err(1, "SGX_IOC_ENCLAVE_INIT: %d", code);
}

static inline size_t tcs_pages(size_t length)
{
	return length / PAGE / PAGES_A_TCS;
}

static inline void add_image(int fd, uint8_t *base, const uint8_t *image, size_t length)
{
	const size_t code = tcs_pages(length) * PAGE;

	for (size_t offset = 0; offset < length; offset += PAGE) {
		uint64_t flags = SECINFO_REG | SECINFO_R | SECINFO_W;
		int protection = PROT_READ | PROT_WRITE;

		if (offset < code) {
			flags = SECINFO_TCS;
		} else if (offset == code) {
			flags = SECINFO_REG | SECINFO_R | SECINFO_X;
			protection = PROT_READ | PROT_EXEC;
		}
		add(fd, image + offset, offset, PAGE, flags);
		if (mmap(base + offset, PAGE, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			err(1, "mmap of the enclave at %#zx", offset);
	}
}

static inline uint8_t *load(const uint8_t *image, size_t length, const void *sigstruct)
{
	size_t size = ENCLAVE_SIZE;

	while (size < length)
		size *= 2;
	uint8_t *base = reserve(size);
	int fd = node();

	create(fd, base, size);
	add_image(fd, base, image, length);
	initialise(fd, sigstruct);
	return base;
}

static inline vdso_sgx_enter_enclave_t enter_enclave(void)
{
	void *vdso = dlopen("linux-vdso.so.1", RTLD_LAZY | RTLD_NOLOAD);
	void *symbol = vdso ? dlvsym(vdso, "__vdso_sgx_enter_enclave", "LINUX_2.6") : NULL;
	vdso_sgx_enter_enclave_t function;

	if (symbol == NULL)
		errx(1, "the vDSO has no __vdso_sgx_enter_enclave");
	memcpy(&function, &symbol, sizeof function);
	return function;
}

#endif
