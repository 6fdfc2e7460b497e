/* SPDX-License-Identifier: Apache-2.0 */
/* A library for late_library: with SWAP, MOV $imm32 stands where CPUID stands without. */
unsigned int ask(void);
unsigned int number(void);

#define CPUID "ask: push %rbx\nmov $7, %eax\nxor %ecx, %ecx\ncpuid\nmov %ebx, %eax\npop %rbx\nret\n"
/* As long, with the immediate at the same distance. */
#define NUMBER "number: nopw 0(%rax, %rax)\nnop\nnop\nmov $0xa20f, %eax\nnop\nret\n"

#define FUNCTION(name, body)                                                                      \
	".globl " name "\n.type " name ", @function\n.balign 16\n.cfi_startproc\n" body            \
	".cfi_endproc\n.size " name ", . - " name "\n"

#ifdef SWAP
asm(".text\n" FUNCTION("number", NUMBER) FUNCTION("ask", CPUID));
#else
asm(".text\n" FUNCTION("ask", CPUID) FUNCTION("number", NUMBER));
#endif
