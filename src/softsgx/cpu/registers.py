# SPDX-License-Identifier: Apache-2.0
"""The general registers of a logical processor, as a transition sees and changes them."""

RFLAGS_CF = 1 << 0
RFLAGS_PF = 1 << 2
RFLAGS_AF = 1 << 4
RFLAGS_ZF = 1 << 6
RFLAGS_SF = 1 << 7
RFLAGS_TF = 1 << 8
RFLAGS_IF = 1 << 9
RFLAGS_DF = 1 << 10
RFLAGS_OF = 1 << 11
RFLAGS_NT = 1 << 14
RFLAGS_RF = 1 << 16
RFLAGS_AC = 1 << 18
RFLAGS_ID = 1 << 21
# The arithmetic flags, which a leaf with a code clears but for ZF.
RFLAGS_STATUS = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF

GPR_NAMES = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
NAMES = (*GPR_NAMES, "rip", "rflags", "fsbase", "gsbase")


class Registers:
    """16 general registers, RIP, RFLAGS and the two bases: plain unsigned 64-bit ints, all writable."""

    __slots__ = NAMES

    rax: int
    rcx: int
    rdx: int
    rbx: int
    rsp: int
    rbp: int
    rsi: int
    rdi: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int
    fsbase: int
    gsbase: int

    def __init__(self, **values: int) -> None:
        for name in NAMES:
            setattr(self, name, values.pop(name, 2 if name == "rflags" else 0))
        if values:
            raise TypeError(f"not a register: {', '.join(values)}")

    def copy(self) -> "Registers":
        """Return registers of the same values."""
        return Registers(**self.as_dict())

    def as_dict(self) -> dict[str, int]:
        """Return the values by name."""
        return {name: getattr(self, name) for name in NAMES}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value:#x}" for name, value in self.as_dict().items())
        return f"Registers({shown})"
