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
# Under a hypervisor they may be #GP to a program, on the bare processor they are #UD.
_VMCALLS = frozenset({b"\x0f\x01\xc1", b"\x0f\x01\xd9"})
_INT3 = b"\xcc"
_INT_3 = b"\xcd\x03"  # INT n with 3: as INT3, it is #BP to a program
# Without LOCK, which is #UD with all of these.
_PREFIXES = bytes((0x66, 0x67, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65, *range(0x40, 0x50)))


def cpuid_length(code: bytes) -> int:
    """Give the length of the CPUID that these bytes begin with, its prefixes included, or 0."""
    opcode = code.lstrip(_PREFIXES)
    return len(code) - len(opcode) + len(CPUID) if opcode.startswith(CPUID) else 0


def illegal_inside(code: bytes) -> bool:
    """Tell whether an instruction that is #GP to a program is #UD inside (SDM 38.6.1)."""
    opcode = code.lstrip(_PREFIXES)
    return opcode[:1] in _UD_OPCODES or opcode[:2] in {_RDPMC, CPUID} or opcode[:3] in _VMCALLS


def int3_length(before: bytes) -> int:
    """Give the length of the INT3 that these bytes end with, in either of its forms, or 0."""
    return 1 if before[-1:] == _INT3 else 2 if before[-2:] == _INT_3 else 0
