/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave that does what it should not where it is told to; a thread that faults is made to leave by an entry
 * on CSSA 1. With CLEAN it has no instruction that is illegal inside.
 */
#include "linted.h"

#define PAGE 4096
#define EREPORT 0
#define EEXIT 4

/* From GS on: one page of numbers, which is at FS too, two SSA frames. */
#define HOST_RCX 0
#define SSA PAGE
#define SSA_RIP (SSA + PAGE - 184 + 136)

	.section .tcs, "aw", @progbits
	.balign PAGE
	.quad 0, 0                      /* STATE, FLAGS */
	.quad thread + SSA              /* OSSA */
	.long 0, 2                      /* CSSA, NSSA */
	.quad entry                     /* OENTRY */
	.quad 0                         /* AEP */
	.quad thread, thread            /* OFSBASGX, OGSBASGX */
	.long 0xffffffff, 0xffffffff    /* FSLIMIT, GSLIMIT */
	.fill PAGE - 72, 1, 0

	.section .thread, "aw", @progbits
	.balign PAGE
thread:
	.fill 3 * PAGE, 1, 0
	.globl kept
kept:
	.quad 5

	.section .rodata                /* a segment for which the script has a place */
	.quad 0

	.text
	.globl enclave_entry, the_cpuid, the_ereport
enclave_entry:
entry:
	test %rax, %rax
	jne nested
	mov %rcx, %gs:HOST_RCX
	mov (%rdi), %rax
	cmp $LINTED_CPUID, %rax
	je the_cpuid
	cmp $LINTED_EREPORT, %rax
	je report
	cmp $LINTED_UD2, %rax
	je illegal
	cmp $LINTED_JUMP, %rax
	jne leave
	jmp *8(%rdi)
report:
	lea kept + 8(%rip), %rbx
	mov %rbx, %rcx
	mov %rbx, %rdx
	mov $EREPORT, %eax
the_ereport:
	enclu
illegal:
	ud2
the_cpuid:
#ifdef CLEAN
	nop
#else
	cpuid
#endif
leave:
	mov %gs:HOST_RCX, %rbx
	jmp out
nested:
	lea leave(%rip), %rax
	mov %rax, %gs:SSA_RIP
	mov %rcx, %rbx
out:
	mov $EEXIT, %eax
	enclu
