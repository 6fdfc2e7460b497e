# SPDX-License-Identifier: Apache-2.0
"""An access to enclave memory from outside: it reads all ones, and what it writes is dropped (SDM 38.3).

Owns nothing. The instruction is executed by its own thread, in one step, with the register that its address comes
from pointed at memory of ours that is full of ones; then the register is what it would have become. Each thread has
such memory of its own meanwhile, for what one drops another must not read.
"""

from iced_x86 import (
    Decoder,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
    UsedMemory,
)

from softsgx.run import numbers as n
from softsgx.run import ptrace
from softsgx.run.access import NAMES, start_of
from softsgx.run.delivery import SIGINFO_HEAD, bit, deliver, unforce
from softsgx.run.ptrace import failed
from softsgx.run.tracee import GROUP_STOPS, Tracee

_LONGEST = 15
# An XSAVE area with AMX has 11 KiB; two operands, each with room on both sides.
_ROOM = 16 * 1024
_SIZE = 4 * _ROOM
_LINE = 64
_ALL = (1 << 64) - 1
_STEPPED = (1, 2)  # TRAP_BRKPT after a call of ours, TRAP_TRACE
_HIGH_BYTES = frozenset((Register.AH, Register.BH, Register.CH, Register.DH))
_factory = InstructionInfoFactory()


def touch(tracee: Tracee) -> bool:
    """Carry out the instruction at RIP as if enclave memory were the abort page; the registers are loaded.

    False where its address is not in a register that can be changed: nothing has happened then.
    """
    regs = tracee.regs
    decoder = Decoder(64, tracee.mm.read(regs.rip, _LONGEST), ip=regs.rip)
    if not decoder.can_decode:
        return False
    instruction = decoder.decode()
    moved = _redirected(tracee, instruction)
    mm = tracee.mm
    ones = _ones(tracee) if moved else 0
    if not ones:
        return False
    try:
        _carry_out(tracee, instruction, moved, ones)
    finally:
        mm.abort_pages.append(ones)
    return True


def _carry_out(tracee: Tracee, instruction: Instruction, moved: dict[str, int], ones: int) -> None:
    regs = tracee.regs
    before = regs.copy()
    for number, (name, address) in enumerate(moved.items()):
        middle = ones + (2 * number + 1) * _ROOM
        setattr(regs, name, getattr(regs, name) + middle + address % _LINE - address & _ALL)
    shifts = {name: getattr(regs, name) - getattr(before, name) for name in moved}
    tracee.mm.write(ones, b"\xff" * _SIZE)
    tracee.store_regs()
    info = _step(tracee, before.rip)
    after = tracee.load_regs()
    loaded = {} if info else _loaded(instruction)
    for name, shift in shifts.items():
        now, bits = getattr(after, name), loaded.get(name, 0)
        # A load may have put there what it has read; else it is the program's again.
        kept = getattr(before, name) if bits else now - shift
        setattr(after, name, now & bits | kept & ~bits & _ALL)
    if info:
        signal = SIGINFO_HEAD.unpack_from(info)[0]
        deliver(tracee, signal, info)
        return
    unforce(tracee, n.SIGTRAP)
    tracee.borrowed = False
    tracee.store_regs()
    tracee.go_on()


def _redirected(tracee: Tracee, instruction: Instruction) -> dict[str, int]:
    """Give the registers to be changed, with the addresses that they lead to; none where that is no way."""
    enclaves = tracee.mm.enclaves
    moved: dict[str, int] = {}
    for used in _factory.info(instruction).used_memory():
        address = start_of(used, tracee.regs)
        if address is None or enclaves is None:
            return {}
        size = max(MemorySizeExt.size(used.memory_size), 1)
        if not enclaves.overlapping(address, address + size):
            continue
        name = NAMES.get(used.base)
        if name is None or name == "rip" or moved.get(name, address) != address:
            return {}
        if _is_value_too(instruction, used, name):
            return {}
        moved[name] = address
    return moved


def _operands(instruction: Instruction) -> list[tuple[str, int]]:
    accesses = (
        _factory.info(instruction).op0_access,
        _factory.info(instruction).op1_access,
        _factory.info(instruction).op2_access,
        _factory.info(instruction).op3_access,
    )
    return [
        (NAMES.get(RegisterExt.full_register(instruction.op_register(number)), ""), access)
        for number, access in enumerate(accesses[: instruction.op_count])
        if instruction.op_kind(number) == OpKind.REGISTER
    ]


def _is_value_too(instruction: Instruction, used: UsedMemory, name: str) -> bool:
    # What is only stored is dropped, so that it may be wrong.
    if used.access == OpAccess.WRITE:
        return False
    return any(
        register == name and access != OpAccess.WRITE for register, access in _operands(instruction)
    )


def _loaded(instruction: Instruction) -> dict[str, int]:
    """Give the general registers that an instruction only writes, with the bits that it writes."""
    loaded = {}
    for number in range(instruction.op_count):
        if instruction.op_kind(number) != OpKind.REGISTER:
            continue
        register = instruction.op_register(number)
        name = NAMES.get(RegisterExt.full_register(register), "")
        if (name, OpAccess.WRITE) in _operands(instruction):
            size = RegisterExt.size(register)
            bits = (1 << 8 * size) - 1 if size < 4 else _ALL
            loaded[name] = bits << 8 if register in _HIGH_BYTES else bits
    return loaded


def _ones(tracee: Tracee) -> int:
    """Give memory that stands for the abort page and that no other thread uses; 0 where there is none."""
    mm = tracee.mm
    if mm.abort_pages:
        return mm.abort_pages.pop()
    with tracee.injecting() as injector:
        base = injector.call(
            n.SYS_MMAP,
            0,
            _SIZE,
            n.PROT_READ | n.PROT_WRITE,
            n.MAP_PRIVATE | n.MAP_ANONYMOUS,
            -1,
            0,
        )
    tracee.borrowed = True
    return 0 if failed(base) else base


def _step(tracee: Tracee, rip: int) -> bytes:
    """Let the thread execute one instruction; the siginfo of a fault that it has had instead, or nothing."""
    tid = tracee.tid
    mask = ptrace.get_sigmask(tid)
    # Faults, and the SIGTRAP of the step, are forced anyway.
    ptrace.set_sigmask(tid, _ALL & ~n.FAULT_MASK)
    tracee.borrowing = True
    stopped = False
    info = b""
    try:
        while True:
            ptrace.step(tid)
            status = tracee.wait()
            event, number = status >> 16, (status >> 8) & 0xFF
            if event:
                stopped = stopped or number in GROUP_STOPS
                continue
            info = ptrace.get_siginfo(tid)
            code = SIGINFO_HEAD.unpack_from(info)[2]
            if number != n.SIGTRAP or code not in _STEPPED:
                break
            # Where a call of ours has ended the stop, the first step ends before the instruction.
            if code == _STEPPED[1] or tracee.load_regs().rip != rip:
                info = b""
                break
    finally:
        tracee.borrowing = False
    ptrace.set_sigmask(tid, mask | ptrace.get_sigmask(tid) & bit(n.SIGTRAP))
    if stopped or tracee.must_stop:
        ptrace.interrupt(tid)
    return info
