# SPDX-License-Identifier: Apache-2.0
"""Processors that one can have, with the EPC that they were seen to report (CPUID.12H, sub-leaf 2).

The EPC is smaller than the memory that is reserved for it (PRMRR), which the BIOS chooses: of 128 MiB some
93.5 are left. A machine may be set to less.
"""

from typing import NamedTuple


class Part(NamedTuple):
    """A processor: EPC in bytes, whether it has SGX2, and who reported it."""

    epc: int
    sgx2: bool
    source: str


PARTS = {
    "core-i7-8550u": Part(0x5D80000, False, "github.com/klauspost/cpuid, pull request 34"),
    "xeon-e-2276g": Part(0x5D80000, False, "github.com/ayeks/SGX-hardware, pull request 88"),
    "xeon-w-10885m": Part(0x5D80000, False, "github.com/ayeks/SGX-hardware, pull request 86"),
    "pentium-j5005": Part(0x5E00000, True, "github.com/ayeks/SGX-hardware, pull request 68"),
    "xeon-gold-5315y": Part(0xFE7800000, True, "github.com/ayeks/SGX-hardware, pull request 87"),
}
