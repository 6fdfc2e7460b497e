# SPDX-License-Identifier: Apache-2.0
"""What a faulting instruction was doing: ptrace shows no page-fault error code.

Owns nothing. Imported at the first fault inside an enclave, because the decoder is heavy.
"""

from iced_x86 import (
    Decoder,
    InstructionInfoFactory,
    MemorySizeExt,
    OpAccess,
    Register,
    UsedMemory,
)

from softsgx.run.ptrace import UserRegs
from softsgx.run.tracee import Tracee

_LONGEST = 15
_WRITES = frozenset(
    (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
)
NAMES = {
    getattr(Register, name.upper()): name
    for name in (
        *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
        *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"),
    )
}
_factory = InstructionInfoFactory()


def writes_to(tracee: Tracee, address: int) -> bool:
    """Tell whether the instruction at RIP writes to `address`, or to an operand that holds it."""
    code = tracee.mm.read(tracee.regs.rip, _LONGEST)
    decoder = Decoder(64, code, ip=tracee.regs.rip)
    if not decoder.can_decode:
        return False
    accesses = list(_factory.info(decoder.decode()).used_memory())
    covering = [
        used
        for used in accesses
        if (start := start_of(used, tracee.regs)) is not None
        and start <= address < start + max(MemorySizeExt.size(used.memory_size), 1)
    ]
    # A gather or a string move with REP has addresses that the operands alone do not give.
    return any(used.access in _WRITES for used in covering or accesses)


def start_of(used: UsedMemory, regs: UserRegs) -> int | None:
    """Give the address of a memory operand; None where a register of it is none that ptrace shows."""
    address = used.displacement
    for register, scale in ((used.base, 1), (used.index, used.scale)):
        if int(register) == int(Register.NONE):
            continue
        name = NAMES.get(register)
        if name is None:
            return None
        address += getattr(regs, name) * scale
    if int(used.segment) == int(Register.FS):
        address += regs.fsbase
    elif int(used.segment) == int(Register.GS):
        address += regs.gsbase
    return address & 0xFFFFFFFFFFFFFFFF
