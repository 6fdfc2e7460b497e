/* SPDX-License-Identifier: Apache-2.0 */
/* An EENTER of the program's own, as runtimes have it: MOV, ENCLU, every register given and noted. */
#ifndef OWN_ENTER_H
#define OWN_ENTER_H

#include "host.h"
#include "transitions.h"

#define ARITHMETIC 0x8d5UL /* OF SF ZF AF PF CF */
#define DIRECTION 0x400UL

struct own {
	uint64_t in[16]; /* RAX is not, and in[RSP] is written: the stack pointer at ENCLU */
	uint64_t flags_in;
	uint64_t out[16]; /* behind the ENCLU */
	uint64_t flags, fsbase, gsbase;
};
_Static_assert(offsetof(struct own, flags_in) == 128, "the assembly below");
_Static_assert(offsetof(struct own, out) == 136, "the assembly below");
_Static_assert(offsetof(struct own, flags) == 264, "the assembly below");

/* A slot of the image must be within reach of it: own_near is such a copy. */
void own_enter(struct own *own);
/* The MOV, the ENCLU, the instruction behind it, and one to be the AEP. */
extern const char own_move[], own_enclu[], own_behind[], own_aep[], own_end[];
asm(".text\n"
    ".globl own_move, own_enclu, own_behind, own_aep, own_end\n"
    "own_enter:\n"
    "	push %rbx\n"
    "	push %rbp\n"
    "	push %r12\n"
    "	push %r13\n"
    "	push %r14\n"
    "	push %r15\n"
    "	push %rdi\n"
    "	mov %rsp, 32(%rdi)\n"
    "	pushq 128(%rdi)\n"
    "	popfq\n"
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
    "own_move:\n"
    "	mov $2, %eax\n"
    "own_enclu:\n"
    "	enclu\n"
    "own_behind:\n"
    "	push %rax\n"
    "	mov 8(%rsp), %rax\n"
    "	popq 136(%rax)\n"
    "	mov %rcx, 144(%rax)\n"
    "	mov %rdx, 152(%rax)\n"
    "	mov %rbx, 160(%rax)\n"
    "	mov %rsp, 168(%rax)\n"
    "	mov %rbp, 176(%rax)\n"
    "	mov %rsi, 184(%rax)\n"
    "	mov %rdi, 192(%rax)\n"
    "	mov %r8, 200(%rax)\n"
    "	mov %r9, 208(%rax)\n"
    "	mov %r10, 216(%rax)\n"
    "	mov %r11, 224(%rax)\n"
    "	mov %r12, 232(%rax)\n"
    "	mov %r13, 240(%rax)\n"
    "	mov %r14, 248(%rax)\n"
    "	mov %r15, 256(%rax)\n"
    "	pushfq\n"
    "	popq 264(%rax)\n"
    "	cld\n"
    "	rdfsbase %rcx\n"
    "	mov %rcx, 272(%rax)\n"
    "	rdgsbase %rcx\n"
    "	mov %rcx, 280(%rax)\n"
    "	pop %rdi\n"
    "	pop %r15\n"
    "	pop %r14\n"
    "	pop %r13\n"
    "	pop %r12\n"
    "	pop %rbp\n"
    "	pop %rbx\n"
    "	ret\n"
    "own_aep:\n"
    "	enclu\n"
    "own_end:\n");

static void (*own_near)(struct own *own);

/* An instruction of that copy. */
__attribute__((unused)) static uint64_t own_at(const char *instruction)
{
	return (uint64_t)own_near + (instruction - (const char *)own_enter);
}

__attribute__((unused)) static void *copy_own_enter(void)
{
	uint64_t near = getauxval(AT_SYSINFO_EHDR) - (64 << 20);
	size_t length = own_end - (const char *)own_enter;
	int file = memfd_create("own_enter", MFD_CLOEXEC);
	void *copy;

	/* A file's text: code that a program makes is left as it is. */
	if (file < 0 || write(file, (const void *)own_enter, length) != (ssize_t)length)
		fail("a file of code");
	copy = mmap((void *)near, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
	if (copy == MAP_FAILED)
		fail("a page of code");
	close(file);
	return copy;
}

/* Words of their own in all registers that are free, there and back, and these arithmetic flags. */
__attribute__((unused)) static void fill(struct own *own, struct turn *turn, uint64_t tcs_address,
					 uint64_t flags)
{
	for (int i = 0; i < 16; i++) {
		own->in[i] = 0x1057000000002200 + i;
		turn->in[i] = 0x5a5a000000001100 + i;
	}
	own->in[RBX] = tcs_address;
	own->in[RCX] = own_at(own_aep);
	own->in[RDI] = (uint64_t)turn;
	own->flags_in = 0x202 | flags;
	turn->flags = 0x202 | (~flags & ARITHMETIC);
	memset(own->out, 0, sizeof(own->out));
	memset(turn->out, 0, sizeof(turn->out));
	turn->a = turn->b = turn->result = 0;
}
#endif
