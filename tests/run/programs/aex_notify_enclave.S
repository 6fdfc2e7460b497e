/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave with AEX-Notify. An ERESUME comes in at the entry point with the frame above; the handler puts what
 * it goes on with on the stack that was interrupted, below the red zone, makes the frame below the current one by
 * EDECCSSA, and returns to what was interrupted. It may be interrupted itself, at any of its instructions: before
 * EDECCSSA that is an exit of the frame above, which is resumed as ever, and behind it another notification.
 * It is asked for only while the thread is on its own stack: on the host's, the frame of a signal handler would
 * take the place. The handler skips UD2, and as the Intel SDK's does, an EVERIFYREPORT2 that the processor has not.
 */
#include "aex_notify.h"

#define PAGE 4096
#define EEXIT 4
#define EDECCSSA 9
#define EVERIFYREPORT2 8
#define NOTIFIED_UD 0x80000306
#define NOTIFIED_GP 0x8000030d

/* From GS on: one page of numbers, four of stack, one at FS, two SSA frames. */
#define HOST_RSP 0
#define HOST_RBP 8
#define HOST_RCX 16
#define NOTIFIED 24
#define SKIPPED 32
#define IN_THE_END 40
#define ARMED 48
#define STACK_END (5 * PAGE)
#define SSA (6 * PAGE)
#define GPRSGX (SSA + PAGE - 184)
#define EXITINFO 160
#define AEXNOTIFY 167

	.macro tcs index
	.quad 0, 2                      /* STATE, FLAGS: AEXNOTIFY */
	.quad thread\index + SSA        /* OSSA */
	.long 0, 2                      /* CSSA, NSSA */
	.quad entry                     /* OENTRY */
	.quad 0                         /* AEP */
	.quad thread\index + STACK_END  /* OFSBASGX */
	.quad thread\index              /* OGSBASGX */
	.long 0xffffffff, 0xffffffff    /* FSLIMIT, GSLIMIT */
	.fill PAGE - 72, 1, 0
	.endm

	.section .tcs, "aw", @progbits
	.balign PAGE
	.irp i, 0, 1, 2, 3
	tcs \i
	.endr

	.section .thread, "aw", @progbits
	.balign PAGE
	.irp i, 0, 1, 2, 3
thread\i:
	.fill 8 * PAGE, 1, 0
	.endr

	.text
	.globl enclave_entry
enclave_entry:
entry:
	test %rax, %rax
	jne notified
	mov %rsp, %gs:HOST_RSP
	mov %rbp, %gs:HOST_RBP
	mov %rcx, %gs:HOST_RCX
	rdgsbase %rax
	lea STACK_END(%rax), %rsp
	mov %gs:ARMED, %al
	mov %al, %gs:GPRSGX + AEXNOTIFY
	mov (%rdi), %rax
	cmp $NOTIFY_ARM, %rax
	je arm
	cmp $NOTIFY_LOOP, %rax
	je loop
	cmp $NOTIFY_UD2, %rax
	je illegal
	cmp $NOTIFY_COUNTS, %rax
	je counts
	cmp $NOTIFY_LEAF, %rax
	je leaf
leave:
	movb $0, %gs:GPRSGX + AEXNOTIFY
	mov %gs:HOST_RSP, %rsp
	mov %gs:HOST_RBP, %rbp
	mov %gs:HOST_RCX, %rbx
	mov $EEXIT, %eax
	enclu

arm:
	movb $1, %gs:ARMED
	jmp leave

illegal:
	ud2
	movq $1, 32(%rdi)
	jmp leave

leaf:
	mov 8(%rdi), %rax
	mov 16(%rdi), %rbx
	test %rbx, %rbx
	jne 1f
	lea zeros(%rip), %rbx
1:	xor %ecx, %ecx
the_leaf:
	enclu
	movq $0, 40(%rdi)
	setz 40(%rdi)
	mov %rax, 32(%rdi)
	jmp leave

counts:
	mov %gs:NOTIFIED, %rax
	mov %rax, 32(%rdi)
	mov %gs:SKIPPED, %rax
	mov %rax, 40(%rdi)
	mov %gs:IN_THE_END, %rax
	mov %rax, 48(%rdi)
	jmp leave

	/* Every place where a turn's number is kept is added to in another instruction. */
loop:
	mov 8(%rdi), %rcx
	xor %r8d, %r8d
	xor %r9d, %r9d
	pxor %xmm7, %xmm7
	push $0
	movq $0, -8(%rsp)
	std
	stc
1:	inc %r8                         /* CF stays */
	lea (%r9, %r8), %r9
	movq %r8, %xmm3
	paddq %xmm3, %xmm7
	mov -8(%rsp), %rax
	lea (%rax, %r8), %rax
	mov %rax, -8(%rsp)
	pop %rdx
	lea (%rdx, %r8), %rdx
	push %rdx
	dec %rcx                        /* and ZF lives until the branch */
	jnz 1b
	setc 64(%rdi)
	cld
	pop %rdx
	mov %r9, 32(%rdi)
	movq %xmm7, 40(%rdi)
	mov -16(%rsp), %rax
	mov %rax, 48(%rdi)
	mov %rdx, 56(%rdi)
	jmp leave

notified:
	incq %gs:NOTIFIED
	rdgsbase %r15
	lea SSA(%r15), %r14
	lea GPRSGX(%r15), %r13
	cmpl $NOTIFIED_UD, EXITINFO(%r13)
	jne 1f
	movl $0, EXITINFO(%r13)
	addq $2, 136(%r13)
	incq %gs:SKIPPED
1:	cmpl $NOTIFIED_GP, EXITINFO(%r13)
	jne 1f
	lea the_leaf(%rip), %rax
	cmp %rax, 136(%r13)
	jne 1f
	cmpq $EVERIFYREPORT2, 0(%r13)
	jne 1f
	movl $0, EXITINFO(%r13)
	addq $3, 136(%r13)
	orq $0x40, 128(%r13)            /* ZF */
	mov $SKIPPED_LEAF, %eax
	mov %rax, 0(%r13)
1:	mov 136(%r13), %rax
	lea the_end(%rip), %rcx
	sub %rcx, %rax
	cmp $the_end_ends - the_end, %rax
	jae 1f
	incq %gs:IN_THE_END
1:	mov $3, %eax
	xor %edx, %edx
	xrstor64 (%r14)
	mov 32(%r13), %rsp
	lea -128(%rsp), %rsp
	push 136(%r13)                  /* RIP */
	push 128(%r13)                  /* RFLAGS */
	push 0(%r13)                    /* RAX */
	mov 8(%r13), %rcx
	mov 16(%r13), %rdx
	mov 24(%r13), %rbx
	mov 40(%r13), %rbp
	mov 48(%r13), %rsi
	mov 56(%r13), %rdi
	mov 64(%r13), %r8
	mov 72(%r13), %r9
	mov 80(%r13), %r10
	mov 88(%r13), %r11
	mov 96(%r13), %r12
	mov 112(%r13), %r14
	mov 120(%r13), %r15
	mov 104(%r13), %r13
	mov $EDECCSSA, %eax
	enclu
the_end:
	pop %rax
	popfq
	ret $128
the_end_ends:

	.section .rodata
	.balign PAGE
zeros:
	.fill PAGE, 1, 0
	.section .note.GNU-stack, "", @progbits
