/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The clock functions of a vDSO, forwarded to the host kernel's own vDSO,
 * which stays mapped in the process and alone can read the kernel's time
 * data.  softsgx_host_table holds one address a function; the supervisor
 * writes it into each process's copy of the image, in the order given here
 * (HOST_FUNCTIONS of run/vdso.py).  An entry that is zero (a host without a
 * vDSO, or one without that function) means the system call.
 */

#define NR_gettimeofday		96
#define NR_time			201
#define NR_clock_gettime	228
#define NR_clock_getres		229
#define NR_getcpu		309

	.macro	forward name, index, number
	.globl	\name
	.type	\name, @function
	.balign	16
\name:
	.cfi_startproc
	mov	softsgx_host_table + 8 * \index(%rip), %rax
	test	%rax, %rax
	jz	1f
	jmp	*%rax
1:	mov	$\number, %eax
	syscall
	ret
	.cfi_endproc
	.size	\name, . - \name
	.endm

	.text
	forward	__vdso_clock_gettime, 0, NR_clock_gettime
	forward	__vdso_gettimeofday, 1, NR_gettimeofday
	forward	__vdso_time, 2, NR_time
	forward	__vdso_clock_getres, 3, NR_clock_getres
	forward	__vdso_getcpu, 4, NR_getcpu

	.section .rodata, "a", @progbits
	.globl	softsgx_host_table
	.hidden	softsgx_host_table
	.balign	8
softsgx_host_table:
	.zero	8 * 5

	.section .note.GNU-stack, "", @progbits
