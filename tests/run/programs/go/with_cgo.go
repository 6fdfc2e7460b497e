// SPDX-License-Identifier: Apache-2.0

package main

// #include <cpuid.h>
// static unsigned int features(void)
// {
//	unsigned int a, b, c, d;
//	__cpuid_count(7, 0, a, b, c, d);
//	return b;
// }
import "C"

func throughC() uint32 { return uint32(C.features()) >> 2 & 1 }
