/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the supervisor needs in native code; no program can name these.
 */

	.text

	/*
	 * An injected system call runs here, its number in EBX, because an exec or
	 * clone that returns overwrites RAX. The second call, rt_sigreturn with the
	 * argument in R13, is the one that the first filter stops: unlike INT3 it
	 * raises no signal. Position independent: it also stands in for a program's
	 * first instructions.
	 */
	.globl	softsgx_syscall
	.hidden	softsgx_syscall
	.balign	16
softsgx_syscall:
	.cfi_startproc
	.cfi_undefined	%rip
	mov	%ebx, %eax
	syscall
	mov	%rax, %r12
	mov	%r13, %rdi
	mov	$15, %eax
	syscall
	ud2
	.cfi_endproc

	/* void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]): EAX, EBX, ECX, EDX */
	.globl	softsgx_cpuid
	.hidden	softsgx_cpuid
	.balign	16
softsgx_cpuid:
	.cfi_startproc
	push	%rbx
	.cfi_def_cfa_offset	16
	.cfi_offset		%rbx, -16
	mov	%rdx, %r8
	mov	%edi, %eax
	mov	%esi, %ecx
	cpuid
	mov	%eax, (%r8)
	mov	%ebx, 4(%r8)
	mov	%ecx, 8(%r8)
	mov	%edx, 12(%r8)
	pop	%rbx
	.cfi_restore		%rbx
	.cfi_def_cfa_offset	8
	ret
	.cfi_endproc

	/* uint64_t xgetbv(uint32_t index) */
	.globl	softsgx_xgetbv
	.hidden	softsgx_xgetbv
	.balign	16
softsgx_xgetbv:
	.cfi_startproc
	mov	%edi, %ecx
	xgetbv
	shl	$32, %rdx
	or	%rdx, %rax
	ret
	.cfi_endproc

	.section .note.GNU-stack, "", @progbits
