/* SPDX-License-Identifier: Apache-2.0 */
/* A library that asks CPUID itself: loaded by cpuid.c after the program has an enclave. */
#include <cpuid.h>

unsigned int has_sgx(void);

unsigned int has_sgx(void)
{
	unsigned int eax, ebx, ecx, edx;

	__cpuid_count(7, 0, eax, ebx, ecx, edx);
	return ebx >> 2 & 1;
}
