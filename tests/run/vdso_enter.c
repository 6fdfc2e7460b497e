// SPDX-License-Identifier: Apache-2.0
// Call __vdso_sgx_enter_enclave of an image mapped here, and play the processor and the kernel at
// its ENCLU: the instruction traps, and the trap's handler does what the next event says.
//
//   vdso_enter IMAGE ENTER ENCLU FIXUP FUNCTION POKE HANDLER EVENTS
//
// ENTER, ENCLU, FIXUP: offsets.  POKE: a byte of the run structure to make 1, or -1.  HANDLER: the
// handler's answers in order ("2,0"), or "none".  EVENTS: "exit", or VECTOR/ERROR/ADDRESS/RAX.
// Prints "what key=value ..." a line: at each ENCLU, at each call of the handler, at the return.

#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

struct run {
	uint64_t tcs;
	uint32_t function;
	uint16_t vector, error;
	uint64_t address, handler, data;
	uint8_t reserved[216];
};

struct outcome {
	uint64_t rax, rbx, rbp, rsp_moved;
};

// What the handler found, in the order in which the assembly below stores it.
struct call {
	uint64_t rdi, rsi, rdx, rcx, r8, r9, run, rsp, rflags;
} seen;

void enter(void *function, struct run *run, uint32_t leaf, struct outcome *outcome);
void handler(void);
uint64_t answer(void);

__asm__(".pushsection .text\n"
	"enter:\n"
	"	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
	"	push %rcx\n"
	"	push %rsi\n"
	"	mov %rdi, %rax\n"
	"	mov %edx, %ecx\n"
	"	mov %rsp, saved_rsp(%rip)\n"
	"	mov $0xb1, %ebx\n"
	"	mov $0xb2, %ebp\n"
	"	mov $0x101, %edi\n"
	"	mov $0x102, %esi\n"
	"	mov $0x103, %edx\n"
	"	mov $0x108, %r8d\n"
	"	mov $0x109, %r9d\n"
	"	call *%rax\n"
	"	cld\n"
	"	mov saved_rsp(%rip), %rcx\n"
	"	sub %rsp, %rcx\n"
	"	mov saved_rsp(%rip), %rsp\n"
	"	pop %rsi\n"
	"	pop %rdx\n"
	"	mov %rax, (%rdx)\n"
	"	mov %rbx, 8(%rdx)\n"
	"	mov %rbp, 16(%rdx)\n"
	"	mov %rcx, 24(%rdx)\n"
	"	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
	"	ret\n"
	// The handler answers with registers of its own choice, as the SDK's does.
	"handler:\n"
	"	mov %rdi, seen(%rip)\n"
	"	mov %rsi, seen+8(%rip)\n"
	"	mov %rdx, seen+16(%rip)\n"
	"	mov %rcx, seen+24(%rip)\n"
	"	mov %r8, seen+32(%rip)\n"
	"	mov %r9, seen+40(%rip)\n"
	"	mov 8(%rsp), %rax\n"
	"	mov %rax, seen+48(%rip)\n"
	"	mov %rsp, seen+56(%rip)\n"
	"	pushfq\n"
	"	popq seen+64(%rip)\n"
	"	push %rbp\n"
	"	mov %rsp, %rbp\n"
	"	and $-16, %rsp\n"
	"	cld\n"
	"	call answer\n"
	"	leave\n"
	"	mov $0x301, %edi\n"
	"	mov $0x302, %esi\n"
	"	mov $0x303, %edx\n"
	"	mov $0x308, %r8d\n"
	"	mov $0x309, %r9d\n"
	"	ret\n"
	".popsection\n");

uint64_t saved_rsp;
static uint64_t enclu, fixup;
static char *answers, *events;

static char *next(char **list)
{
	char *word = strsep(list, ",");
	if (!word) {
		fprintf(stderr, "one turn more than the script has\n");
		exit(3);
	}
	return word;
}

uint64_t answer(void)
{
	printf("handler rdi=%#lx rsi=%#lx rdx=%#lx rcx_depth=%ld r8=%#lx r9=%#lx rsp_mod=%lu df=%lu",
	       seen.rdi, seen.rsi, seen.rdx, (long)(saved_rsp - seen.rcx), seen.r8, seen.r9,
	       seen.rsp % 16, seen.rflags >> 10 & 1);
	struct run *run = (struct run *)seen.run;
	printf(" tcs=%#lx function=%u\n", run->tcs, run->function);
	// The upper half of RAX is not part of an int.
	return 0xabcd00000000 | (uint32_t)atoi(next(&answers));
}

static void trap(int signal, siginfo_t *info, void *context)
{
	greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
	(void)signal;
	(void)info;
	if ((uint64_t)r[REG_RIP] != enclu) {
		fprintf(stderr, "trap at %#llx, not at the ENCLU\n", r[REG_RIP]);
		_exit(3);
	}
	printf("enclu rax=%#llx rbx=%#llx rcx_is_aep=%d rdi=%#llx rsi=%#llx rdx=%#llx r8=%#llx r9=%#llx",
	       r[REG_RAX], r[REG_RBX], (uint64_t)r[REG_RCX] == enclu, r[REG_RDI], r[REG_RSI],
	       r[REG_RDX], r[REG_R8], r[REG_R9]);
	printf(" depth=%lld\n", saved_rsp - r[REG_RSP]);

	char *event = next(&events);
	r[REG_RBX] = r[REG_RCX] = 0xe0;
	r[REG_R12] = r[REG_R13] = r[REG_R14] = r[REG_R15] = 0xe1;
	if (!strcmp(event, "exit")) {
		r[REG_RIP] += 3;
		r[REG_RAX] = 4;
		r[REG_RDI] = 0x201;
		r[REG_RSI] = 0x202;
		r[REG_RDX] = 0x203;
		r[REG_R8] = 0x208;
		r[REG_R9] = 0x209;
		// The enclave leaves something on the host's stack and its direction flag set.
		r[REG_RSP] -= 24;
		r[REG_EFL] |= 1 << 10;
		return;
	}
	r[REG_RIP] = (greg_t)fixup;
	r[REG_RDI] = (greg_t)strtoull(event, &event, 0);
	r[REG_RSI] = (greg_t)strtoull(event + 1, &event, 0);
	r[REG_RDX] = (greg_t)strtoull(event + 1, &event, 0);
	r[REG_RAX] = (greg_t)strtoull(event + 1, &event, 0);
}

int main(int argc, char **argv)
{
	if (argc != 9)
		return 2;
	static uint8_t file[65536];
	FILE *stream = fopen(argv[1], "rb");
	if (!stream)
		return 2;
	size_t size = fread(file, 1, sizeof file, stream);
	fclose(stream);
	uint8_t *image = mmap(NULL, sizeof file, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (image == MAP_FAILED)
		return 2;
	memcpy(image, file, size);
	mprotect(image, sizeof file, PROT_READ | PROT_EXEC);

	enclu = (uint64_t)image + strtoull(argv[3], NULL, 0);
	fixup = (uint64_t)image + strtoull(argv[4], NULL, 0);
	events = argv[8];
	struct run run = {.tcs = 0x7c5000, .function = 77, .vector = 78, .error = 79, .address = 80, .data = 81};
	if (atoi(argv[6]) >= 0)
		((uint8_t *)&run)[atoi(argv[6])] = 1;
	if (strcmp(argv[7], "none")) {
		answers = argv[7];
		run.handler = (uint64_t)handler;
	}

	// #UD without SGX, #GP where the processor has it.
	struct sigaction action = {.sa_sigaction = trap, .sa_flags = SA_SIGINFO};
	sigaction(SIGILL, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);

	struct outcome outcome;
	enter(image + strtoull(argv[2], NULL, 0), &run, (uint32_t)strtoul(argv[5], NULL, 0), &outcome);
	printf("return eax=%d rbx=%#lx rbp=%#lx rsp_moved=%ld function=%u vector=%u error=%#x address=%#lx"
	       " data=%lu events_left=%d\n",
	       (int32_t)outcome.rax, outcome.rbx, outcome.rbp, (long)outcome.rsp_moved, run.function,
	       run.vector, run.error, run.address, run.data, events && *events);
	return 0;
}
