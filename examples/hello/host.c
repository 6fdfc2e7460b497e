// SPDX-License-Identifier: Apache-2.0
/*
 * The outside of the example: an ordinary Linux program for SGX. It uses libc and the kernel's own
 * header and knows nothing of softsgx; on a machine with SGX it runs by itself.
 *
 *     hello ENCLAVE.elf ENCLAVE.sigstruct [NAME]
 */
#define _GNU_SOURCE
#include <asm/sgx.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hello.h"

#define PAGE 4096ul
#define PAGE_UP(length) (((length) + PAGE - 1) & ~(PAGE - 1))

/* SDM volume 3D: the leaves of ENCLU, ATTRIBUTES, XFRM and SECINFO. */
enum { EENTER = 2, ERESUME = 3, EEXIT = 4 };
#define ATTRIBUTES_MODE64BIT 0x4
#define XFRM_LEGACY 0x3
#define SECINFO_TCS 0x100
#define SECINFO_REG 0x200

struct secs {
	uint64_t size, baseaddr;
	uint32_t ssaframesize, miscselect;
	uint8_t reserved[24];
	uint64_t attributes, xfrm;
	uint8_t rest[4032];
};
_Static_assert(sizeof(struct secs) == PAGE, "SECS is a page");

struct secinfo {
	uint64_t flags;
	uint8_t reserved[56];
} __attribute__((aligned(64)));

struct image {
	const uint8_t *file;
	const Elf64_Phdr *segment;
	int segments;
	uint64_t size; /* of the enclave: a power of two */
};

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
	va_list arguments;

	fflush(stdout);
	fputs("hello: ", stderr);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

/* The whole file, page aligned and followed by zeros to the end of its last page. */
static const uint8_t *map_file(const char *path, size_t at_least)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat status;
	const uint8_t *file;

	if (fd < 0 || fstat(fd, &status))
		die("%s: %s", path, strerror(errno));
	if ((size_t)status.st_size < at_least)
		die("%s: too short", path);
	file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (file == MAP_FAILED)
		die("%s: %s", path, strerror(errno));
	close(fd);
	return file;
}

/* The file was measured and checked when it was signed; a wrong one fails at INIT. */
static struct image read_image(const char *path)
{
	const uint8_t *file = map_file(path, sizeof(Elf64_Ehdr));
	const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
	struct image image = { .file = file, .size = 2 * PAGE };

	if (memcmp(header->e_ident, ELFMAG, SELFMAG) || header->e_type != ET_EXEC)
		die("%s: not an enclave", path);
	image.segment = (const Elf64_Phdr *)(file + header->e_phoff);
	image.segments = header->e_phnum;
	for (int i = 0; i < image.segments; i++)
		while (image.segment[i].p_vaddr + image.segment[i].p_memsz > image.size)
			image.size *= 2;
	return image;
}

/* An enclave lies at a multiple of its size: reserve twice as much and give the rest back. */
static uint8_t *reserve(uint64_t size)
{
	uint8_t *area = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *base = (uint8_t *)(((uintptr_t)area + size - 1) & ~(size - 1));

	if (area == MAP_FAILED)
		die("cannot reserve %#" PRIx64 " bytes: %s", 2 * size, strerror(errno));
	if (base > area)
		munmap(area, (size_t)(base - area));
	munmap(base + size, (size_t)(area + size - base));
	return base;
}

static void create(int fd, const struct image *image, uint8_t *base)
{
	static struct secs secs __attribute__((aligned(PAGE)));
	struct sgx_enclave_create create = { .src = (uintptr_t)&secs };

	secs.size = image->size;
	secs.baseaddr = (uintptr_t)base;
	secs.ssaframesize = 1;
	secs.attributes = ATTRIBUTES_MODE64BIT;
	secs.xfrm = XFRM_LEGACY;
	if (ioctl(fd, SGX_IOC_ENCLAVE_CREATE, &create))
		die("SGX_IOC_ENCLAVE_CREATE: %s", strerror(errno));
	printf("hello: created an enclave of %" PRIu64 " KiB\n", image->size / 1024);
}

static const char *kind(uint64_t secinfo_flags)
{
	if (secinfo_flags & SECINFO_TCS)
		return "TCS: one page a thread";
	return secinfo_flags & PROT_EXEC ? "REG R-X: code" :
	       secinfo_flags & PROT_WRITE ? "REG RW-: data, stacks, SSA frames" :
					    "REG R--: constants";
}

/* Add one segment: pages of zeros with the file's bytes in front. Every page is measured. */
static void add(int fd, const struct image *image, const Elf64_Phdr *segment, uint64_t flags)
{
	struct secinfo secinfo = { .flags = flags };
	uint64_t length = PAGE_UP(segment->p_memsz);
	uint8_t *pages = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			      -1, 0);
	struct sgx_enclave_add_pages add = {
		.src = (uintptr_t)pages,
		.offset = segment->p_vaddr,
		.length = length,
		.secinfo = (uintptr_t)&secinfo,
		.flags = SGX_PAGE_MEASURE,
	};

	if (pages == MAP_FAILED)
		die("no memory for %#" PRIx64 " bytes", length);
	memcpy(pages, image->file + segment->p_offset, segment->p_filesz);
	/* A signal may have ended the call early; count says how far it came. */
	while (add.length) {
		if (ioctl(fd, SGX_IOC_ENCLAVE_ADD_PAGES, &add))
			die("SGX_IOC_ENCLAVE_ADD_PAGES at %#llx: %s",
			    (unsigned long long)add.offset, strerror(errno));
		add.src += add.count;
		add.offset += add.count;
		add.length -= add.count;
	}
	munmap(pages, length);
	printf("hello: added %2" PRIu64 " pages at %#7" PRIx64 "  %s\n", length / PAGE,
	       (uint64_t)segment->p_vaddr, kind(flags));
}

/* The bits of PROT_* are SECINFO's; ELF has another order. */
static int protection(const Elf64_Phdr *segment)
{
	return (segment->p_flags & PF_R ? PROT_READ : 0) |
	       (segment->p_flags & PF_W ? PROT_WRITE : 0) |
	       (segment->p_flags & PF_X ? PROT_EXEC : 0);
}

/* Build the enclave; returns its base. The mapping keeps it alive when the descriptor is closed. */
static uint8_t *build(const struct image *image, const char *sigstruct_path)
{
	static uint8_t sigstruct[PAGE] __attribute__((aligned(PAGE)));
	struct sgx_enclave_init init = { .sigstruct = (uintptr_t)sigstruct };
	int fd = open("/dev/sgx_enclave", O_RDWR | O_CLOEXEC);
	uint8_t *base;
	int first = 1;

	if (fd < 0)
		die("/dev/sgx_enclave: %s", strerror(errno));
	memcpy(sigstruct, map_file(sigstruct_path, 1808), 1808);
	base = reserve(image->size);
	create(fd, image, base);
	for (const Elf64_Phdr *s = image->segment; s < image->segment + image->segments; s++) {
		if (s->p_type != PT_LOAD)
			continue;
		add(fd, image, s, first ? SECINFO_TCS : SECINFO_REG | (uint64_t)protection(s));
		first = 0;
	}
	if (ioctl(fd, SGX_IOC_ENCLAVE_INIT, &init))
		die("SGX_IOC_ENCLAVE_INIT: %s%s", strerror(errno),
		    errno == EPERM ? " (the SIGSTRUCT is not of this enclave)" : "");
	puts("hello: initialized: the signature and the measurement are right");

	for (const Elf64_Phdr *s = image->segment; s < image->segment + image->segments; s++)
		if (s->p_type == PT_LOAD &&
		    mmap(base + s->p_vaddr, PAGE_UP(s->p_memsz), protection(s),
			 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			die("mmap of the enclave: %s", strerror(errno));
	close(fd);
	return base;
}

/* __vdso_sgx_enter_enclave, by the vDSO's own symbol table. */
static vdso_sgx_enter_enclave_t find_vdso_function(void)
{
	const uint8_t *vdso = (const uint8_t *)getauxval(AT_SYSINFO_EHDR);
	const Elf64_Ehdr *header = (const Elf64_Ehdr *)vdso;
	const Elf64_Dyn *dynamic = NULL;
	const Elf64_Sym *symbols = NULL;
	const uint32_t *hash = NULL;
	const char *names = NULL;
	uintptr_t bias = (uintptr_t)vdso;

	if (!vdso)
		die("this system has no vDSO");
	for (int i = 0; i < header->e_phnum; i++) {
		const Elf64_Phdr *segment = (const Elf64_Phdr *)(vdso + header->e_phoff) + i;

		if (segment->p_type == PT_LOAD)
			bias = (uintptr_t)vdso + segment->p_offset - segment->p_vaddr;
		else if (segment->p_type == PT_DYNAMIC)
			dynamic = (const Elf64_Dyn *)(vdso + segment->p_offset);
	}
	for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
		const void *where = (const void *)(bias + dynamic->d_un.d_ptr);

		if (dynamic->d_tag == DT_SYMTAB)
			symbols = where;
		else if (dynamic->d_tag == DT_STRTAB)
			names = where;
		else if (dynamic->d_tag == DT_HASH)
			hash = where;
	}
	/* The second word of the hash table is the number of symbols. */
	for (uint32_t i = 0; symbols && names && hash && i < hash[1]; i++)
		if (!strcmp(names + symbols[i].st_name, "__vdso_sgx_enter_enclave"))
			return (vdso_sgx_enter_enclave_t)(bias + symbols[i].st_value);
	die("the vDSO has no __vdso_sgx_enter_enclave: the kernel is without SGX");
}

/*
 * Call the vDSO's function as its contract asks: it saves RBX and RBP, all the rest is up to the
 * caller, because an exit by an exception leaves R12 to R15 cleared.
 */
int enter(void *rdi, unsigned int function, struct sgx_enclave_run *run,
	  vdso_sgx_enter_enclave_t vdso_function);
asm(".text\n"
    "enter:\n"
    "	push %r12\n"
    "	push %r13\n"
    "	push %r14\n"
    "	push %r15\n"
    "	push %rdx\n"            /* run: the seventh argument, on the stack */
    "	mov %rcx, %rax\n"
    "	mov %esi, %ecx\n"       /* function: the fourth */
    "	xor %esi, %esi\n"
    "	xor %edx, %edx\n"
    "	xor %r8d, %r8d\n"
    "	xor %r9d, %r9d\n"
    "	call *%rax\n"
    "	add $8, %rsp\n"
    "	pop %r15\n"
    "	pop %r14\n"
    "	pop %r13\n"
    "	pop %r12\n"
    "	ret\n");

static void call(uint8_t *tcs, struct hello *hello, vdso_sgx_enter_enclave_t vdso_function)
{
	struct sgx_enclave_run run = { .tcs = (uintptr_t)tcs };
	int status = enter(hello, EENTER, &run, vdso_function);

	if (status || run.function != EEXIT)
		die("entering returned %d, leaf %u, vector %u, error code %#x, address %#llx", status,
		    run.function, run.exception_vector, run.exception_error_code,
		    (unsigned long long)run.exception_addr);
	if (hello->result)
		die("the enclave refused request %" PRIu64, hello->request);
}

int main(int argc, char **argv)
{
	struct hello hello = { .request = HELLO_GREET, .a = 20, .b = 22 };
	vdso_sgx_enter_enclave_t vdso_function;
	struct image image;
	uint8_t *base;

	if (argc != 3 && argc != 4)
		die("usage: hello ENCLAVE.elf ENCLAVE.sigstruct [NAME]");
	snprintf(hello.name, sizeof(hello.name), "%s", argc == 4 ? argv[3] : "world");
	image = read_image(argv[1]);
	base = build(&image, argv[2]);
	vdso_function = find_vdso_function();

	/* The TCS pages are the first ones: both threads of the enclave, one after the other. */
	for (int thread = 0; thread < 2; thread++) {
		call(base + (unsigned int)thread * PAGE, &hello, vdso_function);
		printf("hello: thread %d: \"%s\" %" PRIu64 " + %" PRIu64 " = %" PRIu64
		       ", visit %" PRIu64 "\n",
		       thread, hello.greeting, hello.a, hello.b, hello.sum, hello.visits);
	}
	hello.request = HELLO_MEASUREMENT;
	call(base, &hello, vdso_function);
	printf("hello: the processor reports MRENCLAVE ");
	for (size_t i = 0; i < sizeof(hello.mrenclave); i++)
		printf("%02x", hello.mrenclave[i]);
	putchar('\n');
	return 0;
}
