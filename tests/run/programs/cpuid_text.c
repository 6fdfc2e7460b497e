/* SPDX-License-Identifier: Apache-2.0 */
/* A library whose text holds CPUID, to be mapped by text_mapping. */
#include <cpuid.h>

unsigned int library_leaf(unsigned int leaf);

unsigned int library_leaf(unsigned int leaf)
{
	unsigned int a, b, c, d;

	__cpuid_count(leaf, 0, a, b, c, d);
	return a ^ b ^ c ^ d;
}
