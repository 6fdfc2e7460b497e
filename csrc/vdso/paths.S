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

#define SLOTS		64
#define SLOT_SIZE	32
#define RED_ZONE	128
#define JUMP		24	/* the operand of the slot's last instruction */
#define SLOT_END	28

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
	 * The whole path is in sight.  In a program that has opened a node some
	 * other paths matter too: "" (the call is about a descriptor) and "...maps".
	 */
.Lend:
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

	/*
	 * The slots, which the supervisor fills in each process's copy:
	 *
	 *	lea	-RED_ZONE(%rsp), %rsp	5 bytes
	 *	mov	$number, %eax		5
	 *	call	softsgx_path_call	5
	 *	lea	RED_ZONE(%rsp), %rsp	8
	 *	jmp	site			5
	 *
	 * To an unwinder a slot is a function that was called by the site: its
	 * caller's RIP is the target of the jump (PC & -SLOT_SIZE + SLOT_END +
	 * operand), its caller's RSP is the CFA.
	 */
	.globl	softsgx_path_slots
	.hidden	softsgx_path_slots
	.balign	SLOT_SIZE
softsgx_path_slots:
	.cfi_startproc
	.cfi_def_cfa	%rsp, 0
	.cfi_escape	0x16, 0x10, 19			/* RIP: the value of 19 bytes */
	.cfi_escape	0x80, 0x00			/* the PC */
	.cfi_escape	0x09, 0xe0, 0x1a		/* & -SLOT_SIZE */
	.cfi_escape	0x12, 0x23, JUMP, 0x94, 0x04	/* dup, + JUMP, load 4 bytes */
	.cfi_escape	0x08, 0x20, 0x24, 0x08, 0x20, 0x26	/* << 32, >> 32: their sign */
	.cfi_escape	0x22, 0x23, SLOT_END		/* +, + SLOT_END */
	.rept	SLOTS
	.fill	5, 1, 0xcc
	.cfi_def_cfa_offset	RED_ZONE
	.fill	18, 1, 0xcc
	.cfi_def_cfa_offset	0
	.fill	SLOT_SIZE - 23, 1, 0xcc
	.endr
	.cfi_endproc
	.globl	softsgx_path_slots_end
	.hidden	softsgx_path_slots_end
softsgx_path_slots_end:

	.section .rodata, "a", @progbits
	/* Set by the supervisor once the program has opened a node. */
	.globl	softsgx_path_flag
	.hidden	softsgx_path_flag
softsgx_path_flag:
	.byte	0

	.section .note.GNU-stack, "", @progbits
