// SPDX-License-Identifier: Apache-2.0

// Prints whether CPUID shows SGX (7:EBX bit 2) and SGX1 (12H.0:EAX bit 0), as Go's assembly and,
// in a build with cgo, as C sees it.
package main

import (
	"fmt"

	"probe/ask"
)

func main() {
	_, features, _, _ := ask.CPUID(7, 0)
	sgx, _, _, _ := ask.CPUID(0x12, 0)
	fmt.Println(features>>2&1, sgx&1, throughC())
}
