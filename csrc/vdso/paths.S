/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A path call that need not ask: open, stat, access, readlink and their kin
 * of a program, sent here from where it makes them (run/path_sites.py).
 *
 * The site's MOV $number, %eax is replaced by a jump to a slot, which does
 * what the MOV did, calls softsgx_path_call and jumps to behind the site's
 * SYSCALL.  The path decides: one that cannot name a device node is carried
 * out with PATH_DONE in R9, which no path call uses and by which the first
 * filter lets it pass; any other asks the supervisor, as it did before.
 *
 * What a SYSCALL leaves alone is left alone here: every register but RAX, RCX
 * and R11, the flags, and the red zone below the stack pointer.
 */

#define PATH_DONE	0x5347582150415448	/* "SGX!PATH", as run/bpf.py has it */
#define PATH_MAX	4096
#define FIRST_AT	256	/* openat: from here on the path is argument 2 */


	.text

	/* RAX = number of the call */
	.globl	softsgx_path_call
	.hidden	softsgx_path_call
	.balign	16
softsgx_path_call:
	.cfi_startproc
	pushfq
	.cfi_adjust_cfa_offset	8
	push	%r9
	.cfi_adjust_cfa_offset	8
	.cfi_rel_offset		%r9, 0
	mov	%rdi, %rcx
	cmp	$FIRST_AT, %eax
	cmovae	%rsi, %rcx
	lea	PATH_MAX(%rcx), %r11
	push	%r11
	.cfi_adjust_cfa_offset	8
	xor	%r11d, %r11d

	/* A fault of this load is a jump to softsgx_path_ask: the kernel shall judge the pointer. */
	.globl	softsgx_path_load
	.hidden	softsgx_path_load
softsgx_path_load:
	movzbl	(%rcx), %r9d
	shl	$8, %r11d
	or	%r9d, %r11d
	mov	%r11d, %r9d
	shl	$8, %r9d
	cmp	$0x73677800, %r9d	/* "sgx" */
	je	softsgx_path_ask
	test	%r11b, %r11b
	jz	.Lend
	inc	%rcx
	cmp	%rcx, (%rsp)
	jne	softsgx_path_load

	.globl	softsgx_path_ask
	.hidden	softsgx_path_ask
softsgx_path_ask:
	.cfi_remember_state
	lea	8(%rsp), %rsp
	.cfi_adjust_cfa_offset	-8
	pop	%r9
	.cfi_adjust_cfa_offset	-8
	.cfi_restore		%r9
	popfq
	.cfi_adjust_cfa_offset	-8
	syscall
	ret
	.cfi_restore_state

	/*
	 * The whole path is in sight.  "...mem" may be a process's memory.  In a
	 * program that has opened a node some other paths matter too: "" (the
	 * call is about a descriptor) and "...maps".
	 */
.Lend:
	cmp	$0x6d656d00, %r11d	/* "mem" and the end */
	je	softsgx_path_ask
	cmpb	$0, softsgx_path_flag(%rip)
	je	.Ldone
	cmp	$0x61707300, %r11d	/* "aps" and the end */
	je	softsgx_path_ask
	test	%r11d, %r11d
	jz	softsgx_path_ask
.Ldone:
	movabs	$PATH_DONE, %r9
	syscall
	lea	8(%rsp), %rsp
	.cfi_adjust_cfa_offset	-8
	pop	%r9
	.cfi_adjust_cfa_offset	-8
	.cfi_restore		%r9
	popfq
	.cfi_adjust_cfa_offset	-8
	ret
	.cfi_endproc

	.section .rodata, "a", @progbits
	/* Set by the supervisor once the program has opened a node. */
	.globl	softsgx_path_flag
	.hidden	softsgx_path_flag
softsgx_path_flag:
	.byte	0

	.section .note.GNU-stack, "", @progbits
