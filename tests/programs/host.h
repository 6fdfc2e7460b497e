/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the test programs share: building an enclave through /dev/sgx_enclave, entering it through
 * the vDSO or by a bare ENCLU, and reporting. A program is called
 *
 *     PROGRAM ENCLAVE SIGSTRUCT [ARG...]
 *
 * prints a line "ok NAME" or "not ok NAME: REASON" for each thing it shows, "skip REASON" for what
 * this machine cannot show, and exits 0 when nothing failed. The reserve-and-trim, the order of the
 * ioctls and the way the vDSO is found are those of the usual loaders; nothing here knows what runs
 * it.
 */
#ifndef HOST_H
#define HOST_H

#define _GNU_SOURCE
#include <asm/sgx.h>
#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "ops.h"

#define PAGE 4096UL
#define EREPORT 0
#define EGETKEY 1
#define EENTER 2
#define ERESUME 3
#define EEXIT 4

#define VECTOR_DE 0
#define VECTOR_UD 6
#define VECTOR_GP 13
#define VECTOR_PF 14

#define SECINFO_R 1UL
#define SECINFO_W 2UL
#define SECINFO_TCS (1UL << 8)
#define SECINFO_REG (2UL << 8)

#define ATTRIBUTE_DEBUG 2UL
#define ATTRIBUTE_MODE64BIT 4UL
#define ATTRIBUTE_PROVISIONKEY 16UL
#define ATTRIBUTE_EINITTOKENKEY 32UL
#define XFRM_LEGACY 3UL
#define MISC_EXINFO 1U

#define SSA_FRAME 4096
#define GPRSGX (SSA_FRAME - 184)
#define EXINFO (GPRSGX - 16)

/* ---- reporting ---------------------------------------------------------------------------- */

#define SKIPPED 77 /* exit status: what the program is about cannot be shown on this machine */

static int failures;

__attribute__((format(printf, 3, 4), unused)) static bool check(bool good, const char *name,
								  const char *reason, ...)
{
	char text[400];
	va_list list;

	if (good) {
		dprintf(1, "ok %s\n", name);
		return true;
	}
	va_start(list, reason);
	vsnprintf(text, sizeof(text), reason, list);
	va_end(list);
	__atomic_add_fetch(&failures, 1, __ATOMIC_RELAXED);
	dprintf(1, "not ok %s: %s\n", name, text);
	return false;
}

/* Evaluates each argument once: a check may itself enter the enclave. */
#define CHECK(name, condition) check((condition), name, "not (%s)", #condition)

__attribute__((unused)) static bool check_equal(const char *name, uint64_t got, uint64_t wanted)
{
	return check(got == wanted, name, "got %#lx, wanted %#lx", got, wanted);
}

/* One line for a system call that must fail: result -1 and this errno. */
__attribute__((unused)) static bool check_errno(const char *name, long result, int wanted)
{
	int found = errno;

	if (result != -1)
		return check(false, name, "returned %ld, wanted errno %d (%s)", result, wanted,
			     strerror(wanted));
	return check(found == wanted, name, "errno %d (%s), wanted %d (%s)", found,
		     strerror(found), wanted, strerror(wanted));
}

__attribute__((unused)) static bool check_works(const char *name, long result)
{
	return check(result == 0, name, "returned %ld, errno %d (%s)", result, errno,
		     strerror(errno));
}

__attribute__((noreturn, format(printf, 1, 2), unused)) static void fail(const char *reason, ...)
{
	char text[400];
	va_list list;

	va_start(list, reason);
	vsnprintf(text, sizeof(text), reason, list);
	va_end(list);
	dprintf(1, "not ok setup: %s (errno %d, %s)\n", text, errno, strerror(errno));
	_exit(1);
}

__attribute__((unused)) static int finish(void)
{
	dprintf(1, failures ? "failed %d\n" : "finished\n", failures);
	return failures ? 1 : 0;
}

/* Whether the processor has SGX2: then the touch of a hole adds a page, which is not accepted yet. */
__attribute__((unused)) static bool has_sgx2(void)
{
	unsigned int a, b, c, d;

	__cpuid_count(0x12, 0, a, b, c, d);
	return a & 2;
}

/* ---- the enclave image -------------------------------------------------------------------- */

struct secs {
	uint64_t size, base;
	uint32_t ssa_frame_size, miscselect;
	uint8_t reserved1[24];
	uint64_t attributes, xfrm;
	uint8_t rest[4096 - 64];
} __attribute__((aligned(4096)));
_Static_assert(sizeof(struct secs) == 4096, "SECS is a page");

struct secinfo {
	uint64_t flags;
	uint8_t reserved[56];
} __attribute__((aligned(64)));

struct segment {
	uint64_t offset, length, secinfo;
	int prot;
	uint8_t *data;
};

struct image {
	uint8_t *file;
	uint64_t length, size; /* size: of ELRANGE, a power of two */
	struct segment segment[4];
	int segments;
};

struct enclave {
	int fd;
	uint64_t base, size;
	const struct image *image;
};

static uint8_t sigstruct[4096] __attribute__((aligned(4096)));

__attribute__((unused)) static void read_sigstruct(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, sigstruct, 1808) != 1808)
		fail("cannot read the SIGSTRUCT %s", path);
	close(fd);
}

/* Read an enclave; the segments point into an own, writable copy of the file. */
__attribute__((unused)) static struct image read_image(const char *path)
{
	struct image image = { .size = 2 * PAGE };
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	const Elf64_Ehdr *header;
	const Elf64_Phdr *phdr;
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		fail("cannot open the enclave %s", path);
	image.length = st.st_size;
	image.file = mmap(NULL, image.length, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	close(fd);
	if (image.file == MAP_FAILED)
		fail("cannot map the enclave %s", path);
	header = (const Elf64_Ehdr *)image.file;
	phdr = (const Elf64_Phdr *)(image.file + header->e_phoff);
	for (int i = 0; i < header->e_phnum && image.segments < 4; i++) {
		struct segment *segment = &image.segment[image.segments];

		if (phdr[i].p_type != PT_LOAD)
			continue;
		segment->offset = phdr[i].p_vaddr;
		segment->length = phdr[i].p_memsz;
		segment->data = image.file + phdr[i].p_offset;
		segment->prot = (phdr[i].p_flags & PF_R ? PROT_READ : 0) |
				(phdr[i].p_flags & PF_W ? PROT_WRITE : 0) |
				(phdr[i].p_flags & PF_X ? PROT_EXEC : 0);
		/* PROT_* and SECINFO.R, W, X are the same three bits. */
		segment->secinfo = image.segments ? SECINFO_REG | (uint64_t)segment->prot :
						    SECINFO_TCS;
		while (image.size < segment->offset + segment->length)
			image.size *= 2;
		image.segments++;
	}
	return image;
}

/* The offset of a symbol from the enclave's base. */
__attribute__((unused)) static uint64_t symbol(const struct image *image, const char *name)
{
	const Elf64_Ehdr *header = (const Elf64_Ehdr *)image->file;
	const Elf64_Shdr *section = (const Elf64_Shdr *)(image->file + header->e_shoff);

	for (int i = 0; i < header->e_shnum; i++) {
		const Elf64_Sym *sym = (const Elf64_Sym *)(image->file + section[i].sh_offset);
		const char *names;

		if (section[i].sh_type != SHT_SYMTAB)
			continue;
		names = (const char *)image->file + section[section[i].sh_link].sh_offset;
		for (uint64_t n = 0; n < section[i].sh_size / sizeof(*sym); n++)
			if (!strcmp(names + sym[n].st_name, name))
				return sym[n].st_value;
	}
	fail("the enclave has no symbol %s", name);
}

/* ---- building ----------------------------------------------------------------------------- */

/* A free range of size bytes, aligned to size: reserve twice as much, give back the rest. */
__attribute__((unused)) static uint64_t reserve(uint64_t size)
{
	void *area = mmap(NULL, 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t start = (uint64_t)area, base;

	if (area == MAP_FAILED)
		fail("cannot reserve %#lx bytes", 2 * size);
	base = (start + size - 1) & ~(size - 1);
	if (base > start)
		munmap(area, base - start);
	munmap((void *)(base + size), start + size - base);
	return base;
}

/* Whose node: a program of another driver than mainline's says so before it includes this. */
#ifndef SGX_NODE
#define SGX_NODE "/dev/sgx_enclave"
#endif

__attribute__((unused)) static int open_device(void)
{
	int fd = open(SGX_NODE, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fail("cannot open %s", SGX_NODE);
	return fd;
}

__attribute__((unused)) static struct secs enclave_secs(const struct enclave *enclave,
							  uint64_t attributes)
{
	return (struct secs){
		.size = enclave->size,
		.base = enclave->base,
		.ssa_frame_size = 1,
		.miscselect = MISC_EXINFO,
		.attributes = ATTRIBUTE_MODE64BIT | attributes,
		.xfrm = XFRM_LEGACY,
	};
}

__attribute__((unused)) static int create(int fd, const struct secs *secs)
{
	struct sgx_enclave_create argument = { .src = (uint64_t)secs };

	return ioctl(fd, SGX_IOC_ENCLAVE_CREATE, &argument);
}

__attribute__((unused)) static int add_pages(int fd, const void *data, uint64_t offset,
					       uint64_t length, uint64_t flags, bool measured)
{
	struct secinfo secinfo = { .flags = flags };
	struct sgx_enclave_add_pages argument = {
		.src = (uint64_t)data,
		.offset = offset,
		.length = length,
		.secinfo = (uint64_t)&secinfo,
		.flags = measured,
	};

	while (argument.length) {
		if (ioctl(fd, SGX_IOC_ENCLAVE_ADD_PAGES, &argument))
			return -1;
		if (!argument.count) {
			errno = EPROTO; /* no error and no progress: a loader would spin */
			return -1;
		}
		argument.src += argument.count;
		argument.offset += argument.count;
		argument.length -= argument.count;
		argument.count = 0;
	}
	return 0;
}

__attribute__((unused)) static int add_segments(int fd, const struct image *image)
{
	for (int i = 0; i < image->segments; i++) {
		const struct segment *segment = &image->segment[i];

		if (add_pages(fd, segment->data, segment->offset, segment->length,
			      segment->secinfo, true))
			return -1;
	}
	return 0;
}

__attribute__((unused)) static int init(int fd, const void *css)
{
	struct sgx_enclave_init argument = { .sigstruct = (uint64_t)css };

	return ioctl(fd, SGX_IOC_ENCLAVE_INIT, &argument);
}

__attribute__((unused)) static int map_segment(const struct enclave *enclave, int index)
{
	const struct segment *segment = &enclave->image->segment[index];
	void *wanted = (void *)(enclave->base + segment->offset);
	void *found = mmap(wanted, segment->length, segment->prot, MAP_SHARED | MAP_FIXED,
			   enclave->fd, 0);

	return found == wanted ? 0 : -1;
}

__attribute__((unused)) static int map_segments(const struct enclave *enclave)
{
	for (int i = 0; i < enclave->image->segments; i++)
		if (map_segment(enclave, i))
			return -1;
	return 0;
}

/* All the steps; any that fails ends the program. */
__attribute__((unused)) static struct enclave build(const struct image *image)
{
	struct enclave enclave = {
		.fd = open_device(),
		.base = reserve(image->size),
		.size = image->size,
		.image = image,
	};
	struct secs secs = enclave_secs(&enclave, 0);

	if (create(enclave.fd, &secs))
		fail("SGX_IOC_ENCLAVE_CREATE");
	if (add_segments(enclave.fd, image))
		fail("SGX_IOC_ENCLAVE_ADD_PAGES");
	if (init(enclave.fd, sigstruct))
		fail("SGX_IOC_ENCLAVE_INIT");
	if (map_segments(&enclave))
		fail("mapping the enclave");
	return enclave;
}

static inline uint64_t tcs(const struct enclave *enclave, int index)
{
	return enclave->base + enclave->image->segment[0].offset + index * PAGE;
}

static inline uint64_t at_symbol(const struct enclave *enclave, const char *name)
{
	return enclave->base + symbol(enclave->image, name);
}

/* ---- the vDSO ----------------------------------------------------------------------------- */

static inline uint64_t sysv_hash(const char *name)
{
	uint64_t h = 0;

	for (; *name; name++) {
		h = (h << 4) + (uint8_t)*name;
		h ^= (h & 0xf0000000) >> 24;
		h &= 0x0fffffff;
	}
	return h;
}

/* Find a vDSO symbol as the kernel's selftests do: PT_DYNAMIC, then DT_HASH. NULL when absent. */
__attribute__((unused)) static void *vdso_symbol(const char *name)
{
	uint64_t start = getauxval(AT_SYSINFO_EHDR);
	const Elf64_Ehdr *header = (const Elf64_Ehdr *)start;
	const Elf64_Sym *symtab = NULL;
	const Elf32_Word *hash = NULL;
	const char *strtab = NULL;
	uint64_t bias = 0, dynamic = 0;

	if (!start)
		return NULL;
	for (int i = 0; i < header->e_phnum; i++) {
		const Elf64_Phdr *phdr = (const Elf64_Phdr *)(start + header->e_phoff) + i;

		if (phdr->p_type == PT_LOAD && !bias)
			bias = start + phdr->p_offset - phdr->p_vaddr;
		if (phdr->p_type == PT_DYNAMIC)
			dynamic = start + phdr->p_offset;
	}
	for (const Elf64_Dyn *dyn = (const Elf64_Dyn *)dynamic; dyn && dyn->d_tag != DT_NULL; dyn++) {
		uint64_t address = bias + dyn->d_un.d_ptr;

		if (dyn->d_tag == DT_SYMTAB)
			symtab = (const Elf64_Sym *)address;
		else if (dyn->d_tag == DT_STRTAB)
			strtab = (const char *)address;
		else if (dyn->d_tag == DT_HASH)
			hash = (const Elf32_Word *)address;
	}
	if (!symtab || !strtab || !hash)
		return NULL;
	for (Elf32_Word i = hash[2 + sysv_hash(name) % hash[0]]; i; i = hash[2 + hash[0] + i])
		if (!strcmp(strtab + symtab[i].st_name, name))
			return (void *)(bias + symtab[i].st_value);
	return NULL;
}

typedef int (*enter_function)(uint64_t rdi, uint64_t rsi, uint64_t rdx, unsigned int function,
			      uint64_t r8, uint64_t r9, struct sgx_enclave_run *run);

__attribute__((used)) enter_function vdso_enter;

__attribute__((unused)) static void find_vdso(void)
{
	vdso_enter = (enter_function)vdso_symbol("__vdso_sgx_enter_enclave");
	if (!vdso_enter)
		fail("the vDSO has no __vdso_sgx_enter_enclave");
}

/*
 * The vDSO function keeps RBX, RBP and RSP only; this is an ABI-clean call of it. It always calls
 * from the same place of a stack of its own (one for each level of recursion): what one call left
 * interrupted, another may ERESUME, and the enclave leaves with the RSP and RBP it came with.
 */
#define CALL_LEVELS 3
#define CALL_STACK 32768

static __thread uint8_t call_stacks[CALL_LEVELS][CALL_STACK] __attribute__((aligned(16)));
static __thread int call_level;

int call_vdso_on(uint64_t rdi, uint64_t rsi, uint64_t rdx, unsigned int function, uint64_t r8,
		 uint64_t r9, struct sgx_enclave_run *run, void *stack_top);
asm(".text\n"
    "call_vdso_on:\n"
    "	push %rbx\n"
    "	push %r12\n"
    "	push %r13\n"
    "	push %r14\n"
    "	push %r15\n"
    "	mov 48(%rsp), %rax\n"
    "	mov 56(%rsp), %rbx\n"
    "	mov %rsp, -16(%rbx)\n"
    "	lea -24(%rbx), %rsp\n"
    "	push %rax\n"
    "	call *vdso_enter(%rip)\n"
    "	add $16, %rsp\n"
    "	mov (%rsp), %rsp\n"
    "	pop %r15\n"
    "	pop %r14\n"
    "	pop %r13\n"
    "	pop %r12\n"
    "	pop %rbx\n"
    "	ret\n");

__attribute__((unused)) static int call_vdso(uint64_t rdi, uint64_t rsi, uint64_t rdx,
					       unsigned int function, uint64_t r8, uint64_t r9,
					       struct sgx_enclave_run *run)
{
	int result;

	if (call_level == CALL_LEVELS)
		fail("more than %d calls of the vDSO inside each other", CALL_LEVELS);
	call_level++;
	result = call_vdso_on(rdi, rsi, rdx, function, r8, r9, run,
			      call_stacks[call_level - 1] + CALL_STACK);
	call_level--;
	return result;
}

/* EENTER with an opcode; the run record is left for the caller to read. */
__attribute__((unused)) static int enter(struct sgx_enclave_run *run, uint64_t tcs_address,
					   struct op *op)
{
	memset(run, 0, sizeof(*run));
	run->tcs = tcs_address;
	return call_vdso((uint64_t)op, 0, 0, EENTER, 0, 0, run);
}

/* An opcode on one TCS that must end by EEXIT. */
__attribute__((unused)) static bool do_op(const struct enclave *enclave, int index, struct op *op)
{
	struct sgx_enclave_run run;

	return enter(&run, tcs(enclave, index), op) == 0 && run.function == EEXIT;
}

/* After a fault on this TCS: make frame 0 leave, by a nested entry on CSSA 1 and ERESUME. */
__attribute__((unused)) static bool leave_faulted(const struct enclave *enclave, int index)
{
	struct sgx_enclave_run run = { .tcs = tcs(enclave, index) };
	struct op op = { .code = OP_LEAVE };

	return do_op(enclave, index, &op) &&
	       call_vdso(0, 0, 0, ERESUME, 0, 0, &run) == 0 && run.function == EEXIT;
}

/* ---- a bare ENCLU ------------------------------------------------------------------------- */

struct fxsave {
	uint16_t fcw, fsw;
	uint8_t ftw, reserved1;
	uint16_t fop;
	uint64_t fip, fdp;
	uint32_t mxcsr, mxcsr_mask;
	uint8_t st[128];
	uint64_t xmm[16][2];
	uint8_t reserved2[96];
};

/* In the order RAX RCX RDX RBX RSP RBP RSI RDI R8..R15, as in GPRSGX. */
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

struct bare {
	uint64_t in[16];  /* in[RSP] is written: the stack pointer at ENCLU */
	uint64_t out[16];
	uint64_t rflags, fsbase, gsbase;
	uint64_t where; /* 1: behind the ENCLU, by EEXIT; 2: the capturing AEP */
	struct fxsave in_fx __attribute__((aligned(16)));
	struct fxsave out_fx __attribute__((aligned(16)));
};
_Static_assert(offsetof(struct bare, out) == 128, "the assembly below");
_Static_assert(offsetof(struct bare, rflags) == 256, "the assembly below");
_Static_assert(offsetof(struct bare, where) == 280, "the assembly below");
_Static_assert(offsetof(struct bare, in_fx) == 288, "the assembly below");
_Static_assert(offsetof(struct bare, out_fx) == 800, "the assembly below");

/*
 * Load every register, ENCLU, note every register. Three addresses matter: the ENCLU itself, the
 * instruction behind it, and an AEP to choose from: bare_capture notes the registers as an AEX left
 * them, bare_resume is ENCLU and nothing else.
 */
void bare_enclu(struct bare *bare);
extern const char bare_instruction[], bare_behind[], bare_capture[], bare_resume[];
asm(".text\n"
    ".globl bare_instruction, bare_behind, bare_capture, bare_resume\n"
    "bare_enclu:\n"
    "	push %rbx\n"
    "	push %rbp\n"
    "	push %r12\n"
    "	push %r13\n"
    "	push %r14\n"
    "	push %r15\n"
    "	push %rdi\n"
    "	mov %rsp, 32(%rdi)\n"
    "	fxrstor 288(%rdi)\n"
    "	mov 0(%rdi), %rax\n"
    "	mov 8(%rdi), %rcx\n"
    "	mov 16(%rdi), %rdx\n"
    "	mov 24(%rdi), %rbx\n"
    "	mov 40(%rdi), %rbp\n"
    "	mov 48(%rdi), %rsi\n"
    "	mov 64(%rdi), %r8\n"
    "	mov 72(%rdi), %r9\n"
    "	mov 80(%rdi), %r10\n"
    "	mov 88(%rdi), %r11\n"
    "	mov 96(%rdi), %r12\n"
    "	mov 104(%rdi), %r13\n"
    "	mov 112(%rdi), %r14\n"
    "	mov 120(%rdi), %r15\n"
    "	mov 56(%rdi), %rdi\n"
    "bare_instruction:\n"
    "	enclu\n"
    "bare_behind:\n"
    "	push %rax\n"
    "	mov 8(%rsp), %rax\n"
    "	movq $1, 280(%rax)\n"
    "	jmp 1f\n"
    "bare_capture:\n"
    "	push %rax\n"
    "	mov 8(%rsp), %rax\n"
    "	movq $2, 280(%rax)\n"
    "1:	popq 128(%rax)\n"
    "	mov %rcx, 136(%rax)\n"
    "	mov %rdx, 144(%rax)\n"
    "	mov %rbx, 152(%rax)\n"
    "	mov %rsp, 160(%rax)\n"
    "	mov %rbp, 168(%rax)\n"
    "	mov %rsi, 176(%rax)\n"
    "	mov %rdi, 184(%rax)\n"
    "	mov %r8, 192(%rax)\n"
    "	mov %r9, 200(%rax)\n"
    "	mov %r10, 208(%rax)\n"
    "	mov %r11, 216(%rax)\n"
    "	mov %r12, 224(%rax)\n"
    "	mov %r13, 232(%rax)\n"
    "	mov %r14, 240(%rax)\n"
    "	mov %r15, 248(%rax)\n"
    "	pushfq\n"
    "	popq 256(%rax)\n"
    "	cld\n"
    "	rdfsbase %rcx\n"
    "	mov %rcx, 264(%rax)\n"
    "	rdgsbase %rcx\n"
    "	mov %rcx, 272(%rax)\n"
    "	fxsave 800(%rax)\n"
    "	fninit\n"
    "	movl $0x1f80, -8(%rsp)\n"
    "	ldmxcsr -8(%rsp)\n"
    "	pop %rdi\n"
    "	pop %r15\n"
    "	pop %r14\n"
    "	pop %r13\n"
    "	pop %r12\n"
    "	pop %rbp\n"
    "	pop %rbx\n"
    "	ret\n"
    "bare_resume:\n"
    "	enclu\n");

/* A bare record with the default FCW and MXCSR, a word of its own in every register. */
__attribute__((unused)) static struct bare bare_record(unsigned int leaf, uint64_t tcs_address,
							 const void *aep, const struct op *op)
{
	struct bare bare = { .in_fx = { .fcw = 0x37f, .mxcsr = 0x1f80 } };

	for (int i = 0; i < 16; i++) {
		bare.in[i] = 0x1057000000002200 + i;
		bare.in_fx.xmm[i][0] = 0x1057aaaa00000000 + i;
		bare.in_fx.xmm[i][1] = 0x1057bbbb00000000 + i;
	}
	bare.in[RAX] = leaf;
	bare.in[RBX] = tcs_address;
	bare.in[RCX] = (uint64_t)aep;
	bare.in[RDI] = (uint64_t)op;
	return bare;
}

/* ---- signals ------------------------------------------------------------------------------ */

/* What the last handled signal found. */
static struct {
	volatile int count;
	int number, code;
	uint64_t address;
	greg_t regs[NGREG];
	uint32_t mxcsr;
	uint16_t fcw, fsw;
	uint32_t xmm_or; /* all 16 registers ored together */
	uint64_t fsbase;
} caught;

__attribute__((unused)) static void note_signal(int number, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	const struct _libc_fpstate *fp = uc->uc_mcontext.fpregs;

	caught.number = number;
	caught.code = info->si_code;
	caught.address = (uint64_t)info->si_addr;
	memcpy(caught.regs, uc->uc_mcontext.gregs, sizeof(caught.regs));
	caught.mxcsr = fp->mxcsr;
	caught.fcw = fp->cwd;
	caught.fsw = fp->swd;
	caught.xmm_or = 0;
	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 4; j++)
			caught.xmm_or |= fp->_xmm[i].element[j];
	asm volatile("rdfsbase %0" : "=r"(caught.fsbase));
	caught.count++;
}

__attribute__((unused)) static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };

	if (sigaction(number, &action, NULL))
		fail("sigaction(%d)", number);
}

static inline uint64_t read_fsbase(void)
{
	uint64_t base;

	asm volatile("rdfsbase %0" : "=r"(base));
	return base;
}

static inline uint64_t read_gsbase(void)
{
	uint64_t base;

	asm volatile("rdgsbase %0" : "=r"(base));
	return base;
}

/* Ends this process if it hangs: after so many seconds, or as many as somebody knows to be better. */
__attribute__((unused)) static void end_after(unsigned int seconds)
{
	const char *patience = getenv("SOFTSGX_TEST_PATIENCE");

	alarm(patience ? (unsigned int)atoi(patience) : seconds);
}

/*
 * A child that does not outlive its parent. Whoever stops and continues a child has to wait for
 * each stop, and waits for ever where somebody else's SIGCONT has come in between: then its alarm
 * ends it, and a child that only it can tell to end.
 */
__attribute__((unused)) static pid_t fork_bound(void)
{
	pid_t parent = getpid(), pid = fork();

	if (!pid && (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent))
		_exit(1);
	return pid;
}

/* ---- main --------------------------------------------------------------------------------- */

static struct image the_image;

/* The usual start: read both files, find the vDSO. */
__attribute__((unused)) static void begin(int argc, char **argv)
{
	if (argc < 3)
		fail("usage: %s ENCLAVE SIGSTRUCT [ARG...]", argv[0]);
	the_image = read_image(argv[1]);
	read_sigstruct(argv[2]);
	find_vdso();
}

#endif
