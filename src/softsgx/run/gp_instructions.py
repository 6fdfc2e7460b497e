# SPDX-License-Identifier: Apache-2.0
"""Instructions whose #GP a processor with SGX would answer otherwise: by their result, or by #UD.

A program's CPUID where CPUID faulting is in force, and what an enclave may not execute (SDM 38.6.1).
"""

CPUID = b"\x0f\xa2"
UD2 = b"\x0f\x0b"  # what stands for CPUID: as long, and it traps
LONGEST = 15
# INT n; IN, OUT, INS, OUTS in all their forms.
_UD_OPCODES = frozenset(
    bytes([op]) for op in (0xCD, *range(0xE4, 0xE8), *range(0xEC, 0xF0), *range(0x6C, 0x70))
)
_RDPMC = b"\x0f\x33"
# Without LOCK, which is #UD with all of these.
_PREFIXES = bytes((0x66, 0x67, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65, *range(0x40, 0x50)))


def cpuid_length(code: bytes) -> int:
    """Give the length of the CPUID that these bytes begin with, its prefixes included, or 0."""
    opcode = code.lstrip(_PREFIXES)
    return len(code) - len(opcode) + len(CPUID) if opcode.startswith(CPUID) else 0


def illegal_inside(code: bytes) -> bool:
    """Tell whether an instruction that is #GP to a program is #UD inside (SDM 38.6.1)."""
    opcode = code.lstrip(_PREFIXES)
    return opcode[:1] in _UD_OPCODES or opcode[:2] in {_RDPMC, CPUID}
