// SPDX-License-Identifier: Apache-2.0

// Package ask executes CPUID, as the runtime's internal/cpu does.
package ask

// CPUID gives EAX, EBX, ECX and EDX.
func CPUID(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)
