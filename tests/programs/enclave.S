/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way into and out of the test enclave, the TCS pages, and the opcodes that need every
 * register. Each TCS has its own area, found by GS: one page of entry records, one page of stack
 * for each CSSA, then the page at FS and the SSA frames.
 */
#include "ops.h"

#define PAGE 4096
#define RECORD 512              /* bytes between the entry records of CSSA 0 and CSSA 1 */
#define EEXIT 4

	.macro tcs index, nssa
	.quad 0                         /* STATE */
	.quad 0                         /* FLAGS */
	.quad thread_ssa\index          /* OSSA */
	.long 0                         /* CSSA */
	.long \nssa                     /* NSSA */
	.quad enclave_entry             /* OENTRY */
	.quad 0                         /* AEP */
	.quad thread_fs\index           /* OFSBASGX */
	.quad thread_gs\index           /* OGSBASGX */
	.long 0xffffffff                /* FSLIMIT */
	.long 0xffffffff                /* GSLIMIT */
	.fill PAGE - 72, 1, 0
	.endm

	.macro thread index
	.globl thread_gs\index
	.globl thread_fs\index
	.globl thread_ssa\index
thread_gs\index:
	.fill PAGE, 1, 0                /* entry records */
	.fill 2 * PAGE, 1, 0            /* stacks of CSSA 0 and CSSA 1 */
thread_fs\index:
	.fill PAGE, 1, 0
thread_ssa\index:
	.fill 2 * PAGE, 1, 0
	.endm

	.section .tcs, "aw", @progbits
	.balign PAGE
	.irp i, 0, 1, 2, 3, 4, 5, 6, 7
	tcs \i, 2
	.endr
	tcs 8, 1

	.section .thread, "aw", @progbits
	.balign PAGE
	.irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8
	thread \i
	.endr

	.text
	.globl enclave_entry
enclave_entry:
	/* RAX is CSSA. LEA makes it the record's offset without touching RFLAGS. */
	lea (, %rax, 8), %rax
	lea (, %rax, 8), %rax
	lea (, %rax, 8), %rax
	mov %rcx, %gs:8*ENTRY_RCX(%rax)
	mov %rdx, %gs:8*ENTRY_RDX(%rax)
	mov %rbx, %gs:8*ENTRY_RBX(%rax)
	mov %rsp, %gs:8*ENTRY_RSP(%rax)
	mov %rbp, %gs:8*ENTRY_RBP(%rax)
	mov %rsi, %gs:8*ENTRY_RSI(%rax)
	mov %rdi, %gs:8*ENTRY_RDI(%rax)
	mov %r8, %gs:8*8(%rax)
	mov %r9, %gs:8*9(%rax)
	mov %r10, %gs:8*10(%rax)
	mov %r11, %gs:8*11(%rax)
	mov %r12, %gs:8*12(%rax)
	mov %r13, %gs:8*13(%rax)
	mov %r14, %gs:8*14(%rax)
	mov %r15, %gs:8*15(%rax)

	/* The stack of CSSA k ends at GS + PAGE + (k + 1) * PAGE. */
	rdgsbase %r15
	lea 2*PAGE(%r15, %rax, 8), %rsp
	lea (%r15, %rax), %r15          /* the record, kept across the C call */
	pushfq
	popq 8*ENTRY_RFLAGS(%r15)
	cld
	shr $9, %rax
	mov %rax, 8*ENTRY_RAX(%r15)
	rdfsbase %rcx
	mov %rcx, 8*ENTRY_FSBASE(%r15)
	rdgsbase %rcx
	mov %rcx, 8*ENTRY_GSBASE(%r15)
	lea enclave_entry(%rip), %rcx
	mov %rcx, 8*ENTRY_RIP(%r15)
	test %rax, %rax
	jne 1f
	mov %gs:USERCALL_RSP, %rax
	test %rax, %rax
	jne usercall_return
1:	mov %r15, %rsi
	/* The next entry's PUSHFQ must not meet what a usercall leaves on this stack. */
	sub $16, %rsp
	call enclave_main

	.globl leave_enclave
leave_enclave:
	mov 8*ENTRY_RSP(%r15), %rsp
	mov 8*ENTRY_RBP(%r15), %rbp
	mov 8*ENTRY_RCX(%r15), %rbx
	xor %ecx, %ecx
	xor %edx, %edx
	xor %esi, %esi
	xor %edi, %edi
	xor %r8d, %r8d
	xor %r9d, %r9d
	xor %r10d, %r10d
	xor %r11d, %r11d
	xor %r12d, %r12d
	xor %r13d, %r13d
	xor %r14d, %r14d
	xor %r15d, %r15d
	mov $EEXIT, %eax
	.globl enclave_eexit
enclave_eexit:
	enclu

	/* Where a rewritten SSA[0].RIP points: forget what was interrupted, leave as CSSA 0 does. */
	.globl leave_frame_0
leave_frame_0:
	rdgsbase %r15
	cld
	jmp leave_enclave

	.macro pattern_registers
	movabs $REG_PATTERN(2), %rdx
	movabs $REG_PATTERN(6), %rsi
	movabs $REG_PATTERN(7), %rdi
	movabs $REG_PATTERN(8), %r8
	movabs $REG_PATTERN(9), %r9
	movabs $REG_PATTERN(10), %r10
	movabs $REG_PATTERN(11), %r11
	movabs $REG_PATTERN(12), %r12
	movabs $REG_PATTERN(13), %r13
	movabs $REG_PATTERN(14), %r14
	.endm

	.macro pattern_xmm
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movdqu pattern_vectors + 16 * \n(%rip), %xmm\n
	.endr
	.endm

	/* void fault_registers(void): does not return. */
	.globl fault_registers
	.globl fault_registers_ud2
fault_registers:
	pattern_xmm
	ldmxcsr pattern_mxcsr(%rip)
	fldcw pattern_fcw(%rip)
	pattern_registers
	movabs $REG_PATTERN(0), %rax
	movabs $REG_PATTERN(1), %rcx
	movabs $REG_PATTERN(3), %rbx
	movabs $REG_PATTERN(4), %rsp
	movabs $REG_PATTERN(5), %rbp
	movabs $REG_PATTERN(15), %r15
	std
	/* ZF, PF and CF: an AEX clears them. */
	cmp %rax, %rax
	stc
fault_registers_ud2:
	ud2

	/* void exit_registers(u64 *record): EEXIT with the pattern where EEXIT leaves it alone. */
	.globl exit_registers
exit_registers:
	mov %rdi, %r15
	pattern_xmm
	mov 8*ENTRY_RSP(%r15), %rsp
	mov 8*ENTRY_RBP(%r15), %rbp
	mov 8*ENTRY_RCX(%r15), %rbx
	pattern_registers
	movabs $REG_PATTERN(15), %r15
	mov $EEXIT, %eax
	stc
	enclu

	/*
	 * struct answer usercall(u64 *record, const u64 parameters[5]): EEXIT with the parameters
	 * in RDI, RSI, RDX, R8 and R9; the next entry on CSSA 0 returns its RSI and RDX. Whichever
	 * thread makes it, and from wherever: the record is then that entry's.
	 */
	.globl usercall
usercall:
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, %gs:USERCALL_RSP
	mov 8*ENTRY_RSP(%rdi), %rsp
	mov 8*ENTRY_RBP(%rdi), %rbp
	mov 8*ENTRY_RCX(%rdi), %rbx
	mov 8*12(%rdi), %r12
	mov 8*13(%rdi), %r13
	mov 8*14(%rdi), %r14
	mov 8*15(%rdi), %r15
	mov 0(%rsi), %rdi
	mov 16(%rsi), %rdx
	mov 24(%rsi), %r8
	mov 32(%rsi), %r9
	mov 8(%rsi), %rsi
	xor %r10d, %r10d
	xor %r11d, %r11d
	mov $EEXIT, %eax
	enclu

	/* From the entry: RAX is USERCALL_RSP, RSI and RDX are still the host's. */
usercall_return:
	movq $0, %gs:USERCALL_RSP
	mov %rax, %rsp
	mov %rsi, %rax
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret

	/* unsigned long divide_by_zero(void) */
	.globl divide_by_zero
	.globl divide_instruction
divide_by_zero:
	xor %edx, %edx
	xor %ecx, %ecx
	mov $1, %eax
divide_instruction:
	div %rcx
	ret

	.globl raise_ud2
	.globl ud2_instruction
raise_ud2:
ud2_instruction:
	ud2
	ret

	/* One instruction each that an enclave may not execute. */
	.globl illegal_int3, illegal_int, illegal_in, illegal_out, illegal_rdpmc
	.globl illegal_syscall, illegal_int80, illegal_cpuid, illegal_int_3, illegal_ins
	.globl illegal_outs, illegal_vmcall, illegal_vmfunc, illegal_encls, illegal_enclv
	.globl illegal_getsec, illegal_enclu
illegal_int3:
	int3
	ret
illegal_int:
	int $0x42
	ret
illegal_in:
	in $0x70, %al
	ret
illegal_out:
	out %al, $0x70
	ret
illegal_syscall:
	syscall
	ret
illegal_int80:
	int $0x80
	ret
illegal_cpuid:
	cpuid
	ret
illegal_rdpmc:
	rdpmc
	ret
illegal_int_3:
	.byte 0xcd, 3                   /* INT n with 3, the longer form of INT3 */
	ret
illegal_ins:
	insb
	ret
illegal_outs:
	rep outsl
	ret
illegal_vmcall:
	vmcall
	ret
illegal_vmfunc:
	vmfunc
	ret
illegal_encls:
	encls
	ret
illegal_enclv:
	enclv
	ret
illegal_getsec:
	getsec
	ret
illegal_enclu:
	.byte 0xf2
	enclu                           /* with a prefix that it may not have */
	ret

	/* unsigned long enclu(leaf, rbx, rcx, rdx, unsigned long *rflags) */
	.globl enclu
	.globl enclu_instruction
enclu:
	push %rbx
	mov %rdx, %r9
	mov %rdi, %rax
	mov %rsi, %rbx
	mov %rcx, %rdx
	mov %r9, %rcx
enclu_instruction:
	enclu
	pushfq
	pop (%r8)
	pop %rbx
	ret

	.section .rodata
	.balign 16
pattern_vectors:
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	.quad 0x7ec7000000000000 + \n, 0x7ec8000000000000 + \n
	.endr
pattern_mxcsr:
	.long PATTERN_MXCSR
pattern_fcw:
	.short PATTERN_FCW
	.section .note.GNU-stack, "", @progbits
