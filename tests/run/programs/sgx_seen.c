/* SPDX-License-Identifier: Apache-2.0 */
/* Prints whether CPUID shows SGX (7:EBX bit 2) and SGX1 (12H.0:EAX bit 0). */
#include <cpuid.h>
#include <stdio.h>

int main(void)
{
	unsigned int a, features, c, d, sgx;

	__cpuid_count(7, 0, a, features, c, d);
	__cpuid_count(0x12, 0, sgx, a, c, d);
	printf("%u %u\n", features >> 2 & 1, sgx & 1);
	return 0;
}
