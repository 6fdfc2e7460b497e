// SPDX-License-Identifier: Apache-2.0
// The host program of the enclave benchmarks: an ordinary SGX program of mainline's driver and vDSO.
//
//   host build BLOCK SIGSTRUCT            an enclave of 16 times BLOCK (16 MiB), measured; CREATE to INIT
//   host compute IMAGE SIGSTRUCT TURNS    the loop of IMAGE, inside and outside
//   host walk IMAGE SIGSTRUCT SIZE STORE [back]
//                                         an enclave of SIZE, all of it data behind IMAGE: touches of evicted pages, in
//                                         order, or so that no page comes behind the one before
//   host grow IMAGE SIGSTRUCT SIZE SMALL  one of SIZE and those of 16 MiB of SIGSTRUCT SMALL by turns: ADD_PAGES, touches
//   host hold IMAGE SIGSTRUCT SIZE        as walk, then waits for its standard input to end
//
// Prints nanoseconds; `compute` prints those inside, then those outside, `walk` those of a page in each stretch
// of pages, `grow` a line each for pages added to the large one and to the small ones, and for pages touched in
// them. STORE is kernel, or what SET_BACKING gives: one, two (memory), file, files (in the working directory).
#define _GNU_SOURCE
#include <stdlib.h>

#include "loading.h"
#include "set_backing.h"

enum {
	BLOCKS = 16,
	BLOCK_SIZE = 16 << 20,
	LOOP = 0x100, // as in enclave.S
	STRETCH = 64, // touches that are timed together: four batches of pages that go out
	SMALL_SIZE = BLOCK_SIZE,
	SMALL_ENCLAVES = 16,
	LARGE_STRETCHES = 8, // for one of a small enclave, so that its pages are forgotten in between
};

typedef uint64_t loop_t(uint64_t turns, void *page);

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

static uint64_t ecall(vdso_sgx_enter_enclave_t enter, struct sgx_enclave_run *run, uint64_t turns)
{
	uint64_t result = 0;
	int code = enter(turns, 0, (uintptr_t)&result, EENTER, 0, 0, run);

	if (code != 0 || run->function != EEXIT)
		errx(1, "ecall: %d, function %u, exception %u", code, run->function, run->exception_vector);
	return result;
}

// --- enclaves larger than the EPC ---

struct large {
	int fd;
	uint8_t *base;
	size_t size, added; // bytes; the image counts as ENCLAVE_SIZE
	size_t at;          // where the next touch is
	int back;           // of a stretch the last page is touched first
};

// Add the pages up to the next multiple of BLOCK_SIZE; return the nanoseconds of one.
static uint64_t grow_large(struct large *large)
{
	static _Alignas(PAGE) uint64_t block[BLOCK_SIZE / 8];
	size_t length = BLOCK_SIZE - large->added % BLOCK_SIZE;

	for (size_t i = 0; i < length; i += PAGE)
		block[i / 8] = (large->added + i) / PAGE;
	uint64_t begin = now();
	add_as(large->fd, (uint8_t *)block, large->added, length, SECINFO_REG | SECINFO_R | SECINFO_W, 0);
	large->added += length;
	return (now() - begin) / (length / PAGE);
}

// Touch the next STRETCH pages, from the first again behind the last; return the nanoseconds of one.
static uint64_t touch(struct large *large)
{
	struct sgx_enclave_run run = {.tcs = (uintptr_t)large->base};
	const uint64_t first = large->at / PAGE;
	vdso_sgx_enter_enclave_t enter = enter_enclave();
	uint64_t sum = 0, begin = now();
	const uint64_t start = (uintptr_t)large->base + large->at + (large->back ? (STRETCH - 1) * PAGE : 0);
	const uint64_t step = large->back ? -(uint64_t)PAGE : PAGE;
	int code = enter(STRETCH, start, (uintptr_t)&sum, EENTER, step, 0, &run);
	uint64_t spent = now() - begin;

	if (code != 0 || run.function != EEXIT)
		errx(1, "touch: %d, function %u, exception %u", code, run.function, run.exception_vector);
	if (sum != STRETCH * first + STRETCH * (STRETCH - 1) / 2)
		errx(1, "the pages from %#llx on hold what was not put there", (unsigned long long)first);
	large->at += STRETCH * PAGE;
	if (large->at + STRETCH * PAGE > large->size)
		large->at = ENCLAVE_SIZE;
	return spent / STRETCH;
}

static int memory_file(const char *name, size_t length)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || unlink(name) != 0 || ftruncate(fd, (off_t)length) != 0)
		err(1, "%s", name);
	return fd;
}

static uint64_t memory(size_t length)
{
	void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		err(1, "memory for a store");
	return (uintptr_t)at;
}

static void set_backing(const struct large *large, const char *store)
{
	const size_t contents = large->size + PAGE, pcmds = (contents / 32 + PAGE - 1) / PAGE * PAGE;
	struct sgx_enclave_set_backing argument = {.contents_fd = -1, .pcmd_fd = -1};
	int separate = strcmp(store, "two") == 0 || strcmp(store, "files") == 0;

	if (strcmp(store, "kernel") == 0)
		return;
	argument.contents_len = separate ? contents : contents + pcmds;
	argument.pcmd_len = separate ? pcmds : 0;
	argument.flags = separate ? SGX_BACKING_SEPARATE : 0;
	if (strcmp(store, "file") == 0 || strcmp(store, "files") == 0) {
		argument.flags |= SGX_BACKING_FD;
		argument.contents_fd = memory_file("contents", argument.contents_len);
		if (separate)
			argument.pcmd_fd = memory_file("pcmds", pcmds);
	} else {
		argument.flags |= SGX_BACKING_VMA;
		argument.contents = memory(argument.contents_len);
		if (separate)
			argument.pcmd = memory(pcmds);
	}
	if (ioctl(large->fd, SGX_IOC_ENCLAVE_SET_BACKING, &argument) != 0)
		err(1, "SGX_IOC_ENCLAVE_SET_BACKING");
}

static struct large begin_large(size_t size, const uint8_t *image, size_t length, const char *store)
{
	struct large large = {.fd = node(), .base = reserve(size), .size = size, .added = ENCLAVE_SIZE};

	create(large.fd, large.base, size);
	set_backing(&large, store);
	large.at = large.added;
	add_image(large.fd, large.base, image, length);
	uint8_t *data = large.base + large.added;
	if (mmap(data, size - large.added, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, large.fd, 0) == MAP_FAILED)
		err(1, "mmap of the enclave");
	return large;
}

static struct large build_large(size_t size, const uint8_t *image, size_t length, const void *sigstruct,
				const char *store)
{
	struct large large = begin_large(size, image, length, store);

	while (large.added < size)
		grow_large(&large);
	initialise(large.fd, sigstruct);
	return large;
}

static void walk(struct large large, int back)
{
	large.back = back;
	// Until each page has been out and in again: then what is touched next was evicted longest ago.
	do
		touch(&large);
	while (large.at != ENCLAVE_SIZE);
	do
		printf("%llu ", (unsigned long long)touch(&large));
	while (large.at != ENCLAVE_SIZE);
	puts("");
}

static void print_line(const uint64_t *costs, size_t count)
{
	for (size_t i = 0; i < count; i++)
		printf("%llu ", (unsigned long long)costs[i]);
	puts("");
}

static void grow(size_t size, const uint8_t *image, size_t length, const void *sigstruct, const void *small_sigstruct)
{
	enum { SMALL_STRETCHES = SMALL_SIZE / PAGE / STRETCH - 1 };
	static uint64_t added[1 << 16], small_added[SMALL_ENCLAVES], touched[LARGE_STRETCHES * SMALL_STRETCHES],
		small_touched[SMALL_STRETCHES];
	struct large large = begin_large(size, image, length, "kernel"), small = {0};
	const size_t blocks = size / BLOCK_SIZE;
	size_t smalls = 0;

	for (size_t block = 0; block < blocks; block++) {
		added[block] = grow_large(&large);
		if (smalls < SMALL_ENCLAVES && block >= blocks / SMALL_ENCLAVES * (smalls + 1) - 1) {
			small = begin_large(SMALL_SIZE, image, length, "kernel");
			small_added[smalls++] = grow_large(&small);
		}
	}
	initialise(large.fd, sigstruct);
	initialise(small.fd, small_sigstruct);
	// The large one's pages push out those of the small one: all are out when they are touched.
	for (size_t i = 0; i < LARGE_STRETCHES * SMALL_STRETCHES; i++)
		touch(&large);
	for (size_t turn = 0; turn < SMALL_STRETCHES; turn++) {
		for (size_t i = 0; i < LARGE_STRETCHES; i++)
			touched[LARGE_STRETCHES * turn + i] = touch(&large);
		small_touched[turn] = touch(&small);
	}
	print_line(added, blocks);
	print_line(small_added, smalls);
	print_line(touched, LARGE_STRETCHES * SMALL_STRETCHES);
	print_line(small_touched, SMALL_STRETCHES);
}

static void hold(void)
{
	char byte;

	puts("held");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
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
	size_t length, small_length;

	if (argc < 4)
		errx(2, "usage: host build|compute|walk|grow|hold FILE SIGSTRUCT [NUMBER [STORE|SIGSTRUCT]]");
	const char *verb = argv[1];
	const void *sigstruct = contents(argv[3], &length);
	if (strcmp(verb, "build") == 0) {
		build(argv[2], sigstruct);
		return 0;
	}
	if (argc < 5)
		errx(2, "%s needs a number", verb);
	const uint8_t *image = contents(argv[2], &length);
	uint64_t number = strtoull(argv[4], NULL, 0);
	if (strcmp(verb, "compute") == 0) {
		compute(image, load(image, length, sigstruct), number);
	} else if (strcmp(verb, "walk") == 0 && argc >= 6) {
		walk(build_large(number, image, length, sigstruct, argv[5]), argc > 6 && strcmp(argv[6], "back") == 0);
	} else if (strcmp(verb, "grow") == 0 && argc == 6) {
		grow(number, image, length, sigstruct, contents(argv[5], &small_length));
	} else if (strcmp(verb, "hold") == 0) {
		build_large(number, image, length, sigstruct, "kernel");
		hold();
	} else {
		errx(2, "%s: unknown, or too few arguments", verb);
	}
	return 0;
}
