/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The enclave's threads and its door: two TCS pages, a stack and SSA frames for each, and the code
 * where EENTER arrives and from where EEXIT leaves. Written for the manual's contract alone.
 */

#define PAGE 4096
#define STACK_PAGES 2
#define SSA_FRAMES 2
#define EEXIT 4

/* ---- segment 1: one page a thread, addresses as offsets from the enclave's base ---------------- */

	.macro tcs number
	.quad 0                         /* STATE */
	.quad 0                         /* FLAGS */
	.quad ssa\number                /* OSSA */
	.long 0                         /* CSSA */
	.long SSA_FRAMES                /* NSSA */
	.quad enclave_entry             /* OENTRY */
	.quad 0                         /* AEP */
	.quad thread\number             /* OFSBASGX */
	.quad thread\number             /* OGSBASGX */
	.long 0xffffffff                /* FSLIMIT */
	.long 0xffffffff                /* GSLIMIT */
	.balign PAGE, 0
	.endm

	.section .tcs, "aw", @progbits
	.balign PAGE
	tcs 0
	tcs 1

/* ---- a page a thread that GS points at: its first word says where the stack ends --------------- */

	.macro thread number
	.balign PAGE
thread\number:
	.quad stack_end\number
	.balign PAGE, 0
	.endm

	.section .thread, "aw", @progbits
	thread 0
	thread 1

	.macro stack_and_ssa number
	.balign PAGE
	.skip STACK_PAGES * PAGE
stack_end\number:
ssa\number:
	.skip SSA_FRAMES * PAGE         /* SSAFRAMESIZE is 1: SSA_FRAMES frames of one page */
	.endm

	.section .stacks, "aw", @nobits
	stack_and_ssa 0
	stack_and_ssa 1

/* ---- code ------------------------------------------------------------------------------------- */

	.text
	.globl enclave_entry
/*
 * EENTER arrives here with RAX = CSSA, RBX = the TCS, RCX = where EEXIT is to go; all the other
 * registers are the host's and not to be trusted, the stack pointer among them.
 */
enclave_entry:
	test %rax, %rax
	jnz leave                       /* an exception happened inside: this enclave handles none */

	mov %rsp, %r11
	lea enclave_base(%rip), %rax
	add %gs:0, %rax
	mov %rax, %rsp
	push %r11
	push %rbp
	push %rbx
	push %rcx
	cld                             /* the C code relies on it */
	call enclave_main               /* RDI passes through; RBX, RBP, R12 to R15 come back */
	pop %rcx
	pop %rbx
	pop %rbp
	pop %rsp

leave:
	mov %rcx, %rbx                  /* the target of EEXIT */
	/* Nothing of the enclave leaves in a register. The C code has not touched the vector ones. */
	xor %edx, %edx
	xor %esi, %esi
	xor %edi, %edi
	xor %r8d, %r8d
	xor %r9d, %r9d
	xor %r10d, %r10d
	xor %r11d, %r11d
	mov $EEXIT, %eax
	enclu

	.section .note.GNU-stack, "", @progbits
