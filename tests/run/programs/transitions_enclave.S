/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An enclave that notes every register at its entry, and has those that it is told where it leaves or faults.
 * In an instruction that faults RSP and RBP are the enclave's own: RBP is the entry's record, by which it goes on.
 */
#include "transitions.h"

#define PAGE 4096
#define EENTER 2
#define EEXIT 4
#define RECORD 256              /* bytes between the records of two CSSAs, from GS on */
#define OCALL 2048              /* at GS: the record of a turn that waits for its re-entry, else 0 */
#define SSA (5 * PAGE)
#define GPRSGX (PAGE - 184)

	.macro tcs index
	.quad 0, 0                      /* STATE, FLAGS */
	.quad thread\index + SSA        /* OSSA */
	.long 0, 3                      /* CSSA, NSSA */
	.quad enclave_entry             /* OENTRY */
	.quad 0                         /* AEP */
	.quad thread\index + 4 * PAGE   /* OFSBASGX */
	.quad thread\index              /* OGSBASGX */
	.long 0xffffffff, 0xffffffff    /* FSLIMIT, GSLIMIT */
	.fill PAGE - 72, 1, 0
	.endm

	.altmacro
	.macro each macro
	.set i, 0
	.rept TCSS
	\macro %i
	.set i, i + 1
	.endr
	.endm

	/* One page of records, a stack for each CSSA, one at FS, three SSA frames. */
	.macro thread index
thread\index:
	.fill 8 * PAGE, 1, 0
	.endm

	.section .tcs, "aw", @progbits
	.balign PAGE
	each tcs

	.section .thread, "aw", @progbits
	.balign PAGE
	each thread

	/* RDI = the turn, R15 = the record. */
	.macro load_flags
	pushq TURN_FLAGS(%rdi)
	popfq
	.endm

	.macro load_but_last
	mov TURN_IN(%rdi), %rax
	mov TURN_IN + 8(%rdi), %rcx
	mov TURN_IN + 16(%rdi), %rdx
	mov TURN_IN + 48(%rdi), %rsi
	mov TURN_IN + 64(%rdi), %r8
	mov TURN_IN + 72(%rdi), %r9
	mov TURN_IN + 80(%rdi), %r10
	mov TURN_IN + 88(%rdi), %r11
	mov TURN_IN + 96(%rdi), %r12
	mov TURN_IN + 104(%rdi), %r13
	.endm

	.macro load
	load_but_last
	mov TURN_IN + 112(%rdi), %r14
	mov TURN_IN + 120(%rdi), %r15
	mov TURN_IN + 56(%rdi), %rdi
	.endm

	.macro load_to_fault
	load_flags
	mov %r15, %rbp
	mov TURN_IN + 24(%rdi), %rbx
	load
	.endm

	.macro load_to_leave_but_last
	load_flags
	mov 8*1(%r15), %rbx
	mov 8*4(%r15), %rsp
	mov 8*5(%r15), %rbp
	load_but_last
	.endm

	.macro load_to_leave
	load_to_leave_but_last
	mov TURN_IN + 112(%rdi), %r14
	mov TURN_IN + 120(%rdi), %r15
	mov TURN_IN + 56(%rdi), %rdi
	.endm

	.text
	.globl enclave_entry
enclave_entry:
	/* RAX is CSSA. LEA makes it the record's offset without touching RFLAGS. */
	lea (, %rax, 8), %rax
	lea (, %rax, 8), %rax
	lea (, %rax, 4), %rax
	mov %rcx, %gs:8*1(%rax)
	mov %rdx, %gs:8*2(%rax)
	mov %rbx, %gs:8*3(%rax)
	mov %rsp, %gs:8*4(%rax)
	mov %rbp, %gs:8*5(%rax)
	mov %rsi, %gs:8*6(%rax)
	mov %rdi, %gs:8*7(%rax)
	mov %r8, %gs:8*8(%rax)
	mov %r9, %gs:8*9(%rax)
	mov %r10, %gs:8*10(%rax)
	mov %r11, %gs:8*11(%rax)
	mov %r12, %gs:8*12(%rax)
	mov %r13, %gs:8*13(%rax)
	mov %r14, %gs:8*14(%rax)
	mov %r15, %gs:8*15(%rax)
	rdgsbase %r15
	lea (, %rax, 8), %r14
	lea 2 * PAGE(%r15, %r14, 2), %rsp
	lea (%r15, %rax), %r15
	pushfq
	popq 8*16(%r15)
	cld
	shr $8, %rax
	mov %rax, (%r15)
	rdfsbase %rcx
	mov %rcx, 8*17(%r15)
	rdgsbase %rcx
	mov %rcx, 8*18(%r15)
	lea TURN_OUT(%rdi), %rdi
	mov %r15, %rsi
	mov $19, %ecx
	rep movsq
	mov 8*7(%r15), %rdi

	test %rax, %rax
	jne 1f
	xchg %gs:OCALL, %rax
	test %rax, %rax
	jne end_turn
1:	mov (%rdi), %rax
	lea turns(%rip), %rcx
	movslq (%rcx, %rax, 4), %rax
	add %rcx, %rax
	jmp *%rax

	/* Where what was interrupted goes on when it is to end: RBP is its record. */
ended:
	cld
	mov %rbp, %r15
	mov 8*7(%r15), %rdi
end_turn:
	.globl exit_site, exit_long_site, exit_load_site, ocall_site
turn_exit:
	load_to_leave
	mov $EEXIT, %eax
exit_site:
	enclu

	/* As the Intel SDK leaves for an ocall: the MOV does not stand at its ENCLU. */
turn_exit_long:
	load_to_leave_but_last
	.globl exit_long_move
exit_long_move:
	mov $EEXIT, %rax
	mov TURN_IN + 112(%rdi), %r14
	mov zero(%rip), %r15
	lea (%r15, %r14), %r14
	mov TURN_IN + 120(%rdi), %r15
	mov TURN_IN + 56(%rdi), %rdi
exit_long_site:
	enclu

turn_exit_load:
	load_to_leave
	mov leaf(%rip), %eax
exit_load_site:
	enclu

turn_ocall:
	mov %r15, %gs:OCALL
	load_to_leave
	mov $EEXIT, %eax
ocall_site:
	enclu

turn_move_gs:
	rdgsbase %rax
	add $64, %rax
	wrgsbase %rax
	jmp turn_exit

turn_exit_to:
	mov TURN_A(%rdi), %rbx
	test %rbx, %rbx
	cmovz 8*1(%r15), %rbx
	load_flags
	mov 8*4(%r15), %rsp
	mov %r15, %rbp
	load
	mov $EEXIT, %eax
	.globl exit_to_site
exit_to_site:
	enclu

turn_ud2:
	load_to_fault
	ud2
	jmp ended

turn_read:
	mov TURN_A(%rdi), %rax
	mov %rax, TURN_IN(%rdi)
	load_to_fault
	mov (%rax), %rcx
	jmp ended

turn_divide:
	load_to_fault
	divl zero(%rip)
	jmp ended

turn_int3:
	load_to_fault
	int3
	jmp ended

turn_syscall:
	load_to_fault
	syscall
	jmp ended

turn_cpuid:
	load_to_fault
	cpuid
	jmp ended

turn_enter:
	load_to_fault
	mov $EENTER, %eax
	enclu
	jmp ended

turn_skip:
	call frame_below
	lea ended(%rip), %rdx
	mov %rdx, 136(%rcx)
	jmp turn_exit

	/* RCX = GPRSGX of the frame below. */
frame_below:
	rdgsbase %rcx
	mov (%r15), %rax
	shl $12, %rax
	lea SSA - PAGE + GPRSGX(%rcx, %rax), %rcx
	ret

turn_ssa:
	rdgsbase %rcx
	mov TURN_A(%rdi), %rax
	shl $12, %rax
	lea SSA + GPRSGX(%rcx, %rax), %rsi
	mov TURN_B(%rdi), %rdi
	mov $23, %ecx
	rep movsq
	mov 8*7(%r15), %rdi
	jmp turn_exit

turn_spin:
	mov TURN_A(%rdi), %rsi
	mov %r15, %rbp
1:	incq TURN_RESULT(%rdi)
	pause
	cmpb $0, (%rsi)
	je 1b
	movq $1, TURN_RESULT(%rdi)
	jmp turn_exit

turn_loop:
	mov TURN_A(%rdi), %rcx
	xor %eax, %eax
	mov %r15, %rbp
1:	add %rcx, %rax
	dec %rcx
	jnz 1b
	mov %rax, TURN_RESULT(%rdi)
	jmp turn_exit

turn_trap_flag:
	mov %r15, %rbp
	pushfq
	orl $0x100, (%rsp)
	popfq
	nop
	nop
	pushfq
	andl $~0x100, (%rsp)
	popfq
	jmp turn_exit

	.section .rodata
	.balign 4
leaf:	.long EEXIT
zero:	.quad 0
	.macro at place
	.long \place - turns
	.endm
turns:
	.irp what, exit, exit_long, exit_load, ud2, read, divide, int3, syscall, cpuid, skip, ssa
	at turn_\what
	.endr
	.irp what, spin, ocall, loop, move_gs, trap_flag, exit_to, enter
	at turn_\what
	.endr
	.section .note.GNU-stack, "", @progbits
