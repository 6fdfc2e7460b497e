/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CPUID answered in the program, and the slots in which all detours of a
 * program's own code run (run/slots.py, which fills them in each process's copy).
 *
 * A path call's slot:			A CPUID's slot:
 *	lea	-128(%rsp), %rsp		lea	-128(%rsp), %rsp
 *	mov	$number, %eax			(5 bytes that do nothing)
 *	call	softsgx_path_call		call	softsgx_answer_cpuid
 *	lea	128(%rsp), %rsp			lea	128(%rsp), %rsp
 *						what stood behind CPUID
 *	jmp	behind the site			jmp	behind that
 *
 * The jump is the last instruction of a slot, whatever fills it up before.
 */

#define RED_ZONE	128
#define SLOTS		96
#define SLOT_SIZE	64
#define JUMP		60	/* its operand, within a slot */

/* struct row of the table: run/vdso.py, and CpuidRow of cpu/model.py */
#define LEAF		0
#define LEAF_MASK	4
#define SUBLEAF		8
#define SUBLEAF_MASK	12
#define KEEP		16	/* of EAX, EBX, ECX, EDX */
#define ADD		32
#define ROW_SIZE	48
#define ROWS		32

	.text

	/* What CPUID does, and nothing else: the flags and all other registers stay. */
	.globl	softsgx_answer_cpuid
	.hidden	softsgx_answer_cpuid
	.balign	16
softsgx_answer_cpuid:
	.cfi_startproc
	pushfq
	.cfi_adjust_cfa_offset	8
	push	%r8
	.cfi_adjust_cfa_offset	8
	.cfi_rel_offset		%r8, 0
	push	%r9
	.cfi_adjust_cfa_offset	8
	.cfi_rel_offset		%r9, 0
	push	%r10
	.cfi_adjust_cfa_offset	8
	.cfi_rel_offset		%r10, 0
	push	%r11
	.cfi_adjust_cfa_offset	8
	.cfi_rel_offset		%r11, 0
	mov	%eax, %r8d
	mov	%ecx, %r9d
	cpuid
	lea	softsgx_cpuid_rows(%rip), %r10
1:	mov	%r8d, %r11d
	xor	LEAF(%r10), %r11d
	test	LEAF_MASK(%r10), %r11d
	jnz	2f
	mov	%r9d, %r11d
	xor	SUBLEAF(%r10), %r11d
	test	SUBLEAF_MASK(%r10), %r11d
	jz	3f
2:	add	$ROW_SIZE, %r10
	jmp	1b
3:	and	KEEP(%r10), %eax
	and	KEEP + 4(%r10), %ebx
	and	KEEP + 8(%r10), %ecx
	and	KEEP + 12(%r10), %edx
	or	ADD(%r10), %eax
	or	ADD + 4(%r10), %ebx
	or	ADD + 8(%r10), %ecx
	or	ADD + 12(%r10), %edx
	pop	%r11
	.cfi_adjust_cfa_offset	-8
	.cfi_restore		%r11
	pop	%r10
	.cfi_adjust_cfa_offset	-8
	.cfi_restore		%r10
	pop	%r9
	.cfi_adjust_cfa_offset	-8
	.cfi_restore		%r9
	pop	%r8
	.cfi_adjust_cfa_offset	-8
	.cfi_restore		%r8
	popfq
	.cfi_adjust_cfa_offset	-8
	ret
	.cfi_endproc

	/*
	 * To an unwinder a slot is a function that was called by the site: its
	 * caller's RIP is the target of the jump (PC & -SLOT_SIZE + SLOT_SIZE +
	 * operand), its caller's RSP is the CFA.
	 */
	.globl	softsgx_slots
	.hidden	softsgx_slots
	.balign	SLOT_SIZE
softsgx_slots:
	.cfi_startproc
	.cfi_def_cfa	%rsp, 0
	.cfi_escape	0x16, 0x10, 19			/* RIP: the value of 19 bytes */
	.cfi_escape	0x80, 0x00			/* the PC */
	.cfi_escape	0x09, 0xc0, 0x1a		/* & -SLOT_SIZE */
	.cfi_escape	0x12, 0x23, JUMP, 0x94, 0x04	/* dup, + JUMP, load 4 bytes */
	.cfi_escape	0x08, 0x20, 0x24, 0x08, 0x20, 0x26	/* << 32, >> 32: their sign */
	.cfi_escape	0x22, 0x23, SLOT_SIZE		/* +, + SLOT_SIZE */
	.rept	SLOTS
	.fill	5, 1, 0xcc
	.cfi_def_cfa_offset	RED_ZONE
	.fill	18, 1, 0xcc
	.cfi_def_cfa_offset	0
	.fill	SLOT_SIZE - 23, 1, 0xcc
	.endr
	.cfi_endproc
	.globl	softsgx_slots_end
	.hidden	softsgx_slots_end
softsgx_slots_end:

	.section .rodata, "a", @progbits
	/* The last row agrees with every leaf and keeps what the processor says. */
	.globl	softsgx_cpuid_rows
	.hidden	softsgx_cpuid_rows
	.balign	16
softsgx_cpuid_rows:
	.long	0, 0, 0, 0, -1, -1, -1, -1, 0, 0, 0, 0
	.fill	(ROWS - 1) * ROW_SIZE, 1, 0
	.globl	softsgx_cpuid_rows_end
	.hidden	softsgx_cpuid_rows_end
softsgx_cpuid_rows_end:

	.section .note.GNU-stack, "", @progbits
