/* SPDX-License-Identifier: Apache-2.0 */
/*
 * EENTER and EEXIT without ENCLU: what the processor does there in the common
 * case, done in the program (run/fast_path.py has the rest: who may, and what
 * becomes of a thread that stops in here).
 *
 * Whatever is not plainly the common case goes to the ENCLU itself, with every
 * register as it came. A transition happens at one instruction, the store to
 * T_MODE: who stops before it has not begun, who stops behind it is through.
 * Between the labels the supervisor knows which registers are where.
 *
 * The records are arch/thread.py's, the table is run/records.py's. State of a
 * TCS: bit 0 somebody is inside, bit 1 the fast path may be taken, above them
 * the id of who is inside.
 */

#define OPEN		2

/* struct ThreadRecord */
#define T_MODE		0
#define T_SELECTOR	4
#define T_HOST_FSBASE	40
#define T_HOST_GSBASE	48
#define T_AEP		56
#define T_TCS_RECORD	72
#define T_TAKEN		80
#define T_WATCH		84
#define T_RBX		88
#define T_FLAGS		96
#define T_ENTERED	104
#define T_LEFT		112
#define T_SITE		120

/* struct TcsRecord */
#define R_STATE		0
#define R_CSSA		4
#define R_THREAD	88
#define R_ENTRY		96
#define R_FSBASE	104
#define R_GSBASE	112
#define R_URSP		120
#define R_WATCH		128

/* An address space's table: threads by their bases, TCSs by their addresses. */
#define THREADS		512
#define THREAD_SIZE	32
#define TCSS		512
#define TCS_SIZE	16
#define PROBES		4
#define TCSS_AT		((THREADS + PROBES) * THREAD_SIZE)
#define SPREAD		0x61c88647
#define SPREAD_SHIFT	40

/* Below the red zone, where a signal's frame could lie as well. */
#define BEHIND		-136(%rsp)
#define AEP		-144(%rsp)
#define RDX		-152(%rsp)
#define RDI		-160(%rsp)
#define FLAGS		-168(%rsp)
#define TARGET		-176(%rsp)

	/* The arithmetic flags in AX; no other is touched by anything in here. */
	.macro	save_flags
	lahf
	seto	%al
	.endm

	.macro	restore_flags
	addb	$0x7f, %al
	sahf
	.endm

	.macro	hidden name
	.globl	\name
	.hidden	\name
\name:
	.endm

	.text

	/*
	 * EENTER. RAX = the address behind the ENCLU that this stands for, and
	 * RBX, RCX as for the leaf.
	 */
	.balign	64
	hidden	softsgx_eenter
	.cfi_startproc
	.cfi_undefined	%rip
	mov	%rax, BEHIND
	mov	%rcx, AEP
	mov	%rdx, RDX
	mov	%rdi, RDI
	save_flags
	mov	%eax, FLAGS
	hidden	softsgx_eenter_saved
	mov	%rcx, %rax
	sar	$47, %rax
	inc	%rax
	cmp	$1, %rax
	ja	.Ltrap
	mov	softsgx_table(%rip), %rdi
	test	%rdi, %rdi
	jz	.Ltrap

	/* This thread's record: by the two bases, which no other thread of the program has. */
	rdfsbase %rax
	rdgsbase %rcx
	lea	(%rax, %rcx), %rdx
	imul	$SPREAD, %rdx, %rdx
	shr	$SPREAD_SHIFT, %rdx
	and	$THREADS - 1, %edx
	shl	$5, %edx
	add	%rdi, %rdx
	.irp	at, 0, 32, 64, 96
	cmp	%rax, \at(%rdx)
	jne	1f
	cmp	%rcx, \at + 8(%rdx)
	jne	1f
	mov	\at + 16(%rdx), %rdx
	jmp	.Lthread
1:
	.endr
	jmp	.Ltrap

	/* RDX = ThreadRecord. The TCS's record: by the address in RBX. */
.Lthread:
	imul	$SPREAD, %rbx, %rax
	shr	$SPREAD_SHIFT, %rax
	and	$TCSS - 1, %eax
	shl	$4, %eax
	lea	TCSS_AT(%rdi, %rax), %rdi
	.irp	at, 0, 16, 32, 48
	cmp	%rbx, \at(%rdi)
	jne	1f
	mov	\at + 8(%rdi), %rdi
	jmp	.Ltcs
1:
	.endr
	jmp	.Ltrap

	/* RDI = TcsRecord. An enclave with CPUIDs wants the thread's debug registers set for it. */
.Ltcs:
	mov	R_WATCH(%rdi), %eax
	test	%eax, %eax
	jz	1f
	cmp	%eax, T_WATCH(%rdx)
	jne	.Ltrap

	/* What is about to be taken is named first, for whoever has to give it back. */
1:	mov	%rdi, T_TCS_RECORD(%rdx)
	mov	T_TAKEN(%rdx), %ecx
	mov	$OPEN, %eax
	lock cmpxchg %ecx, R_STATE(%rdi)
	jne	.Ltrap

	/* The first of these two may fault. */
	mov	R_URSP(%rdi), %rax
	mov	%rsp, (%rax)
	mov	%rbp, 8(%rax)
	mov	%rdx, R_THREAD(%rdi)
	mov	AEP, %rcx
	mov	%rcx, T_AEP(%rdx)
	mov	R_ENTRY(%rdi), %rax
	mov	%rax, TARGET
	movb	$1, T_SELECTOR(%rdx)
	incq	T_ENTERED(%rdx)
	hidden	softsgx_eenter_counted
	mov	R_FSBASE(%rdi), %rax
	wrfsbase %rax
	mov	R_GSBASE(%rdi), %rax
	wrgsbase %rax
	mov	FLAGS, %eax
	restore_flags
	mov	R_CSSA(%rdi), %eax
	mov	RDI, %rdi
	mov	BEHIND, %rcx
	movl	$1, T_MODE(%rdx)
	hidden	softsgx_eenter_inside
	mov	RDX, %rdx
	jmp	*TARGET

	hidden	softsgx_eenter_trap
.Ltrap:
	mov	BEHIND, %rax
	lea	-3(%rax), %rax
	mov	%rax, TARGET
	mov	FLAGS, %eax
	restore_flags
	mov	AEP, %rcx
	mov	RDX, %rdx
	mov	RDI, %rdi
	mov	$2, %eax
	jmp	*TARGET
	hidden	softsgx_eenter_end
	.cfi_endproc

	/*
	 * EEXIT, from a slot (run/transition_sites.py) that has found the TCS by the
	 * enclave's own base: RCX = ThreadRecord, RBX as for the leaf; RAX and RCX
	 * are dead. No stack: it may be the enclave's.
	 */
	.balign	64
	hidden	softsgx_eexit
	.cfi_startproc
	.cfi_undefined	%rip
	mov	%rbx, T_RBX(%rcx)
	save_flags
	mov	%eax, T_FLAGS(%rcx)
	hidden	softsgx_eexit_saved
	mov	%rbx, %rax
	sar	$47, %rax
	inc	%rax
	cmp	$1, %rax
	ja	.Lnot_canonical
	mov	T_TCS_RECORD(%rcx), %rbx
	incq	T_LEFT(%rcx)
	hidden	softsgx_eexit_counted
	movl	$0, T_MODE(%rcx)
	hidden	softsgx_eexit_outside
	movb	$0, T_SELECTOR(%rcx)
	movq	$0, R_THREAD(%rbx)
	lock andl $OPEN, R_STATE(%rbx)
	mov	T_HOST_GSBASE(%rcx), %rax
	wrgsbase %rax
	mov	T_HOST_FSBASE(%rcx), %rax
	wrfsbase %rax
	mov	T_FLAGS(%rcx), %eax
	restore_flags
	mov	T_RBX(%rcx), %rbx
	mov	T_AEP(%rcx), %rcx
	mov	$4, %eax
	jmp	*%rbx

	/* The leaf shall say so. RCX is lost: EEXIT overwrites it. */
.Lnot_canonical:
	mov	T_FLAGS(%rcx), %eax
	restore_flags
	mov	T_SITE(%rcx), %rcx
	jmp	*%rcx
	hidden	softsgx_eexit_end
	.cfi_endproc

	/* void shut(uint32_t *state): for the supervisor, of which a program may run meanwhile. */
	.balign	16
	hidden	softsgx_shut
	.cfi_startproc
	lock andl $~OPEN, (%rdi)
	ret
	.cfi_endproc

	.section .rodata, "a", @progbits
	/* The address space's table, or 0 while every transition is to trap. */
	.balign	8
	hidden	softsgx_table
	.quad	0

	.section .note.GNU-stack, "", @progbits
