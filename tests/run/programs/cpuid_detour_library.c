// SPDX-License-Identifier: Apache-2.0
// CPUIDs with different things behind them. Each function gets a struct regs, loads RAX and RCX from
// it, executes CPUID and stores what it finds; `where` of each is the CPUID itself.
//
// room: plain instructions, so a jump has room. displaced: one that reads and one that writes by RIP.
// entered: a branch of the function leads right behind CPUID. cold: a branch of another one does.
// led: one does, but a MOV is before CPUID. chosen: a jump table does. beside: a jump table does not. past: a jump table does behind an entry that
// leads to a cold part. bounded: one does whose bound is compared otherwise than another number.
// leaf: a number beside is too large for the bound of a table.

// MOV of three bytes behind CPUID, so that the branch would lead into the jump.
#define LOAD							\
	"	push	%rbx\n"					\
	"	.cfi_adjust_cfa_offset 8\n"			\
	"	push	%r12\n"					\
	"	.cfi_adjust_cfa_offset 8\n"			\
	"	mov	%rdi, %r12\n"				\
	"	mov	0(%rdi), %rax\n"			\
	"	mov	8(%rdi), %rcx\n"			\
	"	mov	$0x5a5a5a5a5a5a5a5a, %r8\n"		\
	"	mov	%r8, -16(%rsp)\n"			\
	"	mov	$11, %r11d\n"				\
	"	mov	$10, %r10d\n"				\
	"	mov	$9, %r9d\n"				\
	"	stc\n"

#define STORE							\
	"	mov	%rax, 16(%r12)\n"			\
	"	mov	%rbx, 24(%r12)\n"			\
	"	mov	%rcx, 32(%r12)\n"			\
	"	mov	%rdx, 40(%r12)\n"			\
	"	setc	48(%r12)\n"				\
	"	cmp	%r8, -16(%rsp)\n"			\
	"	sete	49(%r12)\n"				\
	"	cmp	$11, %r11\n"				\
	"	sete	50(%r12)\n"				\
	"	cmp	$10, %r10\n"				\
	"	sete	51(%r12)\n"				\
	"	cmp	$9, %r9\n"				\
	"	sete	52(%r12)\n"				\
	"	pop	%r12\n"					\
	"	.cfi_adjust_cfa_offset -8\n"			\
	"	pop	%rbx\n"					\
	"	.cfi_adjust_cfa_offset -8\n"			\
	"	ret\n"

#define FUNCTION(name, body)					\
	__asm__(".text\n"					\
		".globl	" #name ", " #name "_where\n"		\
		".type	" #name ", @function\n"			\
		".balign 256\n"					\
		#name ":\n"					\
		".cfi_startproc\n" body ".cfi_endproc\n"	\
		".size	" #name ", . - " #name "\n")

__asm__(".globl led_mov\n");
long detour_data[2] = {0x1234, 0};

FUNCTION(room, LOAD "room_where: cpuid\n	mov %rbx, %rbx\n	nop\n" STORE);
FUNCTION(displaced, LOAD "displaced_where: cpuid\n"
	 "	mov	detour_data@GOTPCREL(%rip), %rsi\n	mov (%rsi), %rdi\n	mov %rdi, 56(%r12)\n" STORE);
FUNCTION(entered, LOAD "	test %rdi, %rdi\n	jz 1f\n	stc\nentered_where: cpuid\n1:	mov %rbx, %rbx\n" STORE);
FUNCTION(cold, LOAD "cold_where: cpuid\ncold_behind:	mov %rbx, %rbx\n" STORE);
FUNCTION(led, LOAD "	mov	%eax, %esi\n	stc\n	cmp $7, %eax\n	stc\n	jne led_where\n"
	 "led_mov: mov $7, %eax\nled_where: cpuid\n1:	mov %rbx, %rbx\n	test %r12, %r12\n	jz 1b\n	stc\n" STORE);
FUNCTION(cold_part, "cold_first:	test %rdi, %rdi\n	jz cold_behind\n	ret\n	.skip 300, 0x90\n");
#define SWITCH(name) CHOICE(name, "	cmp	$1, %esi\n	ja	" #name "_last\n")
#define CHOICE(name, bound)					\
	"	mov	64(%rdi), %esi\n"			\
	bound							\
	"	lea	" #name "_table(%rip), %rdi\n"		\
	"	movslq	(%rdi,%rsi,4), %rsi\n"			\
	"	add	%rdi, %rsi\n"				\
	"	stc\n"						\
	"	jmp	*%rsi\n"				\
	#name "_last:	stc\n"					\
	#name "_where:	cpuid\n"				\
	#name "_behind:	mov	%rbx, %rbx\n"			\
	"	nop\n"

FUNCTION(chosen, LOAD SWITCH(chosen) STORE);
FUNCTION(beside, LOAD SWITCH(beside) STORE);
FUNCTION(past, LOAD CHOICE(past, "	cmp $2, %esi\n	ja past_last\n") STORE);
FUNCTION(bounded, LOAD CHOICE(bounded, "	cmp $0, %rdi\n	ja 1f\n	ud2\n"
				       "1:	cmp $2, %esi\n	jae bounded_last\n") STORE);
FUNCTION(leaf, LOAD CHOICE(leaf, "	cmp $0x40000000, %rdi\n	ja 1f\n	ud2\n"
				 "1:	cmp $1, %esi\n	ja leaf_last\n") STORE);
__asm__(".section .rodata\n"
	".balign 4\n"
	"chosen_table:\n"
	"	.long	chosen_last - chosen_table, chosen_behind - chosen_table\n"
	"beside_table:\n"
	"	.long	beside_last - beside_table, beside_last - beside_table\n"
	"past_table:\n"
	"	.long	past_last - past_table, cold_first - past_table\n"
	"	.long	past_behind - past_table\n"
	"bounded_table:\n"
	"	.long	bounded_last - bounded_table, bounded_behind - bounded_table\n"
	"leaf_table:\n"
	"	.long	leaf_last - leaf_table, leaf_last - leaf_table\n"
	"	.long	leaf_behind - leaf_table\n" // behind the table
	".text\n");
