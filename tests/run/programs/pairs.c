/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes 0F A2 where they are no CPUID, each in code that runs and whose result they decide.
 * Prints the results, then how many pairs its text holds, then whether the one true CPUID, of main,
 * shows SGX. Linked without -pie: one case stores AL to an address of 64 bits.
 */
#include <cpuid.h>
#include <stdint.h>
#include <stdio.h>

#define CASE(name, body)                                                                          \
	asm(".text\n.globl " #name "\n.type " #name ", @function\n" #name ":\n.cfi_startproc\n"   \
	    body "\n.cfi_endproc\n.size " #name ", . - " #name "\n");                             \
	uint64_t name(uint64_t *memory, uint64_t number)

#define STRING(text) #text
#define PAIR ".byte 0x0f, 0xa2\n"
/* What a relative operand of 0A20FH goes over: traps, should anything but its target be reached. */
#define FAR ".skip 0xa20f, 0xcc\n"

asm(".text\n.globl pairs_begin\npairs_begin:\n");

CASE(imm32, "mov $0xa20f, %eax\nret");
CASE(imm32_high, "mov $0xa20f0000, %eax\nret");
CASE(imm64, "movabs $0xa20fa20fa20fa20f, %rax\nret");
CASE(imm16, "xor %eax, %eax\nmov $0xa20f, %ax\nret");
CASE(imm8_behind_modrm, "orb $0xa2, (%rdi)\nmov (%rdi), %rax\nret"); /* 80 0F A2 */
CASE(imm32_behind_sib, "mov $1, %ecx\ndec %ecx\n" /* C7 04 0F A2 00 00 00 */
		       ".byte 0xc7, 0x04, 0x0f, 0xa2, 0, 0, 0\nmov (%rdi), %eax\nret");
CASE(disp32, "lea 0xa20f(%rsi), %rax\nret");
CASE(disp32_of_load, "sub $0xa20f, %rdi\nmov 0xa20f(%rdi), %rax\nret");
CASE(rip_relative, "lea 0xa20f(%rip), %rax\n0: lea 0b(%rip), %rdx\nsub %rdx, %rax\nret");
CASE(call_rel32, "call 1f\n" /* E8 0F A2 00 00 */
		 "add $1, %rax\nret\n.skip 0xa20a, 0xcc\n1: mov $40, %eax\nret");
CASE(jmp_rel32, ".byte 0xe9\n.long 1f - 0f\n0: " FAR "1: mov $50, %eax\nret");
CASE(jcc_rel32, "test %rsi, %rsi\n.byte 0x0f, 0x85\n.long 1f - 0f\n0: " FAR "1: mov $60, %eax\nret");
/* 01 0F; A2 and an address: ADD %ecx, (%rdi), then MOV %al to it. */
CASE(end_and_start, "mov $7, %ecx\nmov $0x33, %eax\nadd %ecx, (%rdi)\n.byte 0xa2\n.quad stored\n"
		    "movzbl stored(%rip), %eax\nadd (%rdi), %rax\nret");
CASE(push_and_start, "mov $0x44, %eax\npush $0xf\n.byte 0xa2\n.quad stored\npop %rax\n"
		     "movzbl stored(%rip), %edx\nadd %rdx, %rax\nret");
CASE(jumped_over, "mov $70, %eax\njmp 0f\n" PAIR PAIR "0: ret");
CASE(string_by_call, "call 0f\n.asciz \"\\017\\242 text\"\n0: pop %rdx\nmovzwl (%rdx), %eax\nret");
CASE(table_in_text, "lea 0f(%rip), %rdx\nmovslq (%rdx, %rsi, 4), %rax\nadd %rdx, %rax\njmp *%rax\n"
		    "0: .long 1f - 0b, 2f - 0b\n1: mov $80, %eax\nret\n.skip 0xa20f - 14, 0xcc\n"
		    "2: mov $81, %eax\nret");
CASE(constants_behind_ret, "lea 0f(%rip), %rdx\nmovzwl (%rdx), %eax\nadd 2(%rdx), %ax\nret\n0: " PAIR PAIR);
/* The same bytes as MOV $imm32 and, one further, as CPUID: both ways are taken. */
CASE(two_decodings, "push %rbx\ntest %rsi, %rsi\n.byte 0x74, 1, 0xb8, 0x0f, 0xa2, 0x90, 0x90\n"
		    "and $0xffff, %eax\ntest %rsi, %rsi\njnz 0f\nmov $90, %eax\n0: pop %rbx\nret");
CASE(behind_prefix, "push %rbx\nxor %eax, %eax\n.byte 0x66, 0x0f, 0xa2\nmov $91, %eax\npop %rbx\nret");

asm(".text\n.globl pairs_end\npairs_end:\n.data\n.globl stored\nstored: .quad 0\n.text\n");

extern const unsigned char pairs_begin[], pairs_end[];

static uint64_t memory[2];

#define SHOW(name, number) (memory[0] = 0x100, printf(STRING(name) " %#lx\n", name(memory, number)))

int main(void)
{
	unsigned int a, features, c, d, pairs = 0;

	SHOW(imm32, 1);
	SHOW(imm32_high, 1);
	SHOW(imm64, 1);
	SHOW(imm16, 1);
	SHOW(imm8_behind_modrm, 1);
	SHOW(imm32_behind_sib, 1);
	SHOW(disp32, 1);
	SHOW(disp32_of_load, 1);
	SHOW(rip_relative, 1);
	SHOW(call_rel32, 1);
	SHOW(jmp_rel32, 1);
	SHOW(jcc_rel32, 1);
	SHOW(end_and_start, 1);
	SHOW(push_and_start, 1);
	SHOW(jumped_over, 1);
	SHOW(string_by_call, 1);
	SHOW(table_in_text, 0);
	SHOW(table_in_text, 1);
	SHOW(constants_behind_ret, 1);
	SHOW(two_decodings, 0);
	SHOW(two_decodings, 1);
	SHOW(behind_prefix, 1);
	for (const unsigned char *at = pairs_begin; at + 1 < pairs_end; at++)
		pairs += at[0] == 0x0f && at[1] == 0xa2;
	printf("pairs %u\n", pairs);
	__cpuid_count(7, 0, a, features, c, d);
	printf("SGX %u\n", features >> 2 & 1);
	return 0;
}
