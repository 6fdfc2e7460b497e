# SPDX-License-Identifier: Apache-2.0
"""Instructions that an enclave must not execute (SDM volume 3D, "Illegal Instructions"), found in its code.

Control flow is followed from where functions begin; an instruction that it reaches is certain. What it does not
reach, as behind an indirect jump or where there are no symbols, is decoded from its beginning to its end: there
data may be taken for code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iced_x86 import Decoder, FlowControl, Formatter, FormatterSyntax, Mnemonic, OpKind, Register

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iced_x86 import Instruction

    from softsgx.image.code import Code

# What becomes of it under softsgx.
_SAME = "the same here"
_EXECUTED = "here it is executed"
_CPUID_HERE = "here #UD at four places of an enclave at most; at others the host's answer, unless CPUID faults"

_ILLEGAL = {
    Mnemonic.CPUID: ("its result is the hypervisor's and the host's to choose", _CPUID_HERE),
    **dict.fromkeys(
        (Mnemonic.SYSCALL, Mnemonic.SYSENTER),
        ("an enclave makes no system calls; it has to leave", _SAME),
    ),
    **dict.fromkeys(
        (
            *(Mnemonic.IN, Mnemonic.INSB, Mnemonic.INSD, Mnemonic.INSW),
            *(Mnemonic.OUT, Mnemonic.OUTSB, Mnemonic.OUTSD, Mnemonic.OUTSW),
        ),
        ("input and output", _SAME),
    ),
    **dict.fromkeys(
        (Mnemonic.SGDT, Mnemonic.SIDT, Mnemonic.SLDT, Mnemonic.STR, Mnemonic.SMSW),
        ("it shows the system's descriptor tables", _EXECUTED),
    ),
    **dict.fromkeys(
        (Mnemonic.GETSEC, Mnemonic.VMCALL, Mnemonic.VMFUNC, Mnemonic.RDPMC),
        ("a hypervisor or the kernel may intercept it", _SAME),
    ),
    **dict.fromkeys(
        (Mnemonic.INT, Mnemonic.INTO), ("a software interrupt would leave without EEXIT", _SAME)
    ),
    Mnemonic.INT3: ("#BP only in a debug enclave that has opted in", _SAME),
    **dict.fromkeys(
        (Mnemonic.IRET, Mnemonic.IRETD, Mnemonic.IRETQ, Mnemonic.RETF),
        ("a far transfer of control", _EXECUTED),
    ),
    **dict.fromkeys(
        (Mnemonic.LDS, Mnemonic.LES, Mnemonic.LFS, Mnemonic.LGS, Mnemonic.LSS),
        ("it loads a segment register", _EXECUTED),
    ),
    **dict.fromkeys(
        (Mnemonic.ENCLS, Mnemonic.ENCLV), ("it is for the kernel, or a hypervisor", _SAME)
    ),
}
# The others are of one byte and an operand at most, of which data is full.
_TELLING = frozenset(
    (
        *(Mnemonic.CPUID, Mnemonic.SYSCALL, Mnemonic.SYSENTER, Mnemonic.RDTSC, Mnemonic.RDTSCP),
        *(Mnemonic.SGDT, Mnemonic.SIDT, Mnemonic.RDPMC, Mnemonic.GETSEC, Mnemonic.INT),
        *(Mnemonic.VMCALL, Mnemonic.VMFUNC, Mnemonic.ENCLS, Mnemonic.ENCLV),
    )
)
_UNTIL_SGX2 = frozenset((Mnemonic.RDTSC, Mnemonic.RDTSCP))
_SEGMENTS = frozenset(
    (Register.CS, Register.DS, Register.ES, Register.FS, Register.GS, Register.SS)
)
_FAR = (OpKind.FAR_BRANCH16, OpKind.FAR_BRANCH32)
_GOES_ON = (
    FlowControl.NEXT,
    FlowControl.INDIRECT_CALL,
    FlowControl.CALL,
    FlowControl.CONDITIONAL_BRANCH,
    FlowControl.XBEGIN_XABORT_XEND,
)


@dataclass(frozen=True, slots=True)
class Illegal:
    """An illegal instruction at an offset from the enclave's base; ``here`` is what softsgx makes of it."""

    offset: int
    symbol: str
    instruction: str
    reason: str
    here: str
    certain: bool


def find(code: Code, *, sgx2: bool = True) -> list[Illegal]:
    """Find the illegal instructions of an enclave's code; without ``sgx2`` RDTSC and RDTSCP are some."""
    formatter = Formatter(FormatterSyntax.GAS)
    found = []
    for start, data in code.parts:
        reached = _follow(
            data, start, [at for at in code.functions if start <= at < start + len(data)]
        )
        seen = dict.fromkeys(reached, True)
        for instruction in (*reached.values(), *_rest(data, start, reached)):
            why = _why(instruction, sgx2=sgx2)
            certain = instruction.ip in seen
            if why is None or not (certain or instruction.mnemonic in _TELLING):
                continue
            found.append(
                Illegal(
                    instruction.ip,
                    code.name(instruction.ip),
                    formatter.format(instruction),
                    *why,
                    certain=certain,
                )
            )
    return sorted(found, key=lambda illegal: illegal.offset)


def explain(data: bytes, address: int) -> tuple[str, str, str] | None:
    """Return the instruction that ``data`` begins with, why it is illegal, and what it is here; None if it is legal."""
    instruction = Decoder(64, data, ip=address).decode()
    why = None if instruction.is_invalid else _why(instruction, sgx2=True)
    return None if why is None else (Formatter(FormatterSyntax.GAS).format(instruction), *why)


def _why(instruction: Instruction, *, sgx2: bool) -> tuple[str, str] | None:
    mnemonic = instruction.mnemonic
    known = _ILLEGAL.get(mnemonic)
    if known is not None:
        return known
    if mnemonic in _UNTIL_SGX2 and not sgx2:
        return "legal from SGX2 on", _EXECUTED
    if mnemonic in (Mnemonic.MOV, Mnemonic.POP) and instruction.op0_register in _SEGMENTS:
        return "it loads a segment register", _EXECUTED
    if instruction.is_call_far_indirect or instruction.is_jmp_far_indirect:
        return "a far transfer of control", _EXECUTED
    if instruction.op_count and instruction.op0_kind in _FAR:
        return "a far transfer of control", _EXECUTED
    return None


def _follow(data: bytes, start: int, functions: list[int]) -> dict[int, Instruction]:
    """Return the instructions that control flow reaches, by their offsets."""
    decoder = Decoder(64, data, ip=start)
    end = start + len(data)
    reached: dict[int, Instruction] = {}
    pending = list(functions)
    while pending:
        at = pending.pop()
        while start <= at < end and at not in reached:
            decoder.position = at - start
            decoder.ip = at
            instruction = decoder.decode()
            if instruction.is_invalid:
                break
            reached[at] = instruction
            flow = instruction.flow_control
            if instruction.op_count and instruction.op0_kind == OpKind.NEAR_BRANCH64:
                pending.append(instruction.near_branch_target)
            if flow not in _GOES_ON and not _is_trap(instruction):
                break
            at += instruction.len
    return reached


def _is_trap(instruction: Instruction) -> bool:
    # A handler may let it go on behind.
    return instruction.flow_control in (
        FlowControl.INTERRUPT,
        FlowControl.EXCEPTION,
    ) and instruction.mnemonic not in (Mnemonic.INT3, Mnemonic.UD2)


def _rest(data: bytes, start: int, reached: dict[int, Instruction]) -> Iterator[Instruction]:
    """Decode what control flow has not reached, piece by piece."""
    at = 0
    for taken in (*sorted(reached), start + len(data)):
        if at < taken - start:
            for instruction in Decoder(64, data[at : taken - start], ip=start + at):
                if not instruction.is_invalid:
                    yield instruction
        if taken in reached:
            at = max(at, taken - start + reached[taken].len)
