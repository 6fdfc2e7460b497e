# SPDX-License-Identifier: Apache-2.0
"""The slots of the vDSO image: where a place in a program's own code is led to, and how it goes back.

Owns nothing; which slots of an image are in use is the Mm's. The code is what csrc/vdso/detours.S
describes: a slot leaves the red zone alone, calls the image's function, and ends in the jump back. Those of
ENCLUs lead to csrc/vdso/transitions.S.
"""

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.mm import Mm
    from softsgx.run.vdso import VdsoImage

SLOT_SIZE = 64
# What has room in one of rooms.py beside its own code, which is longest at an EEXIT.
MOVED_WITH_ENCLU_MOST = 128
EXIT_ENTRIES = 256
JUMP_SIZE = 5
_LEA_DOWN = b"\x48\x8d\x64\x24\x80"  # lea -128(%rsp), %rsp
_LEA_UP = b"\x48\x8d\xa4\x24\x80\x00\x00\x00"  # lea 128(%rsp), %rsp
_NOP = b"\x90"
_NOP5 = b"\x0f\x1f\x44\x00\x00"
_CALL, _JMP = 0xE8, 0xE9
_WITH_OPERAND = struct.Struct("<Bi")
_OPERAND = struct.Struct("<i")
_CALL_END = 15
_MOVED_AT = 23
# What is left for the program's own instructions.
MOVED_MOST = SLOT_SIZE - _MOVED_AT - JUMP_SIZE
_REACH = 1 << 31


def jump(at: int, to: int) -> bytes:
    """Assemble a jump of 5 bytes that stands at an address."""
    return _WITH_OPERAND.pack(_JMP, to - (at + JUMP_SIZE))


def path_slot(at: int, mov: bytes, call: int, back: int) -> bytes:
    """Assemble the slot at `at` of a path call, or of a CPUID with a MOV before it.

    `mov` is what stood where the jump is, `call` the image's function, `back` the way back.
    """
    return _slot(at, mov, call, b"", back)


def cpuid_slot(at: int, call: int, moved: bytes, back: int) -> bytes:
    """Assemble the slot of a CPUID with the instructions that moved, already as they have to be there."""
    return _slot(at, _NOP5, call, moved, back)


def moved_to(at: int) -> int:
    """Give where the program's own instructions stand in the slot at `at`."""
    return at + _MOVED_AT


def _slot(at: int, first: bytes, call: int, moved: bytes, back: int) -> bytes:
    calling = _WITH_OPERAND.pack(_CALL, call - (at + _CALL_END))
    body = _LEA_DOWN + first + calling + _LEA_UP + moved
    return body.ljust(SLOT_SIZE - JUMP_SIZE, _NOP) + jump(at + SLOT_SIZE - JUMP_SIZE, back)


def entry_slot(at: int, moved: bytes, behind: int, eenter: int) -> bytes:
    """Assemble the slot at `at` of an EENTER: what was there from its MOV on, and EENTER without a trap.

    `behind` its ENCLU, which is within reach, the program goes on.
    """
    lea = b"\x48\x8d\x05" + _OPERAND.pack(behind - (at + len(moved) + 7))  # lea behind(%rip), %rax
    return moved + lea + _far_jump(eenter)


def exit_slot(
    at: int, moved: bytes, enclu: int, table: int, eexit: int, *, by_fs: bool, shift: int
) -> bytes:
    """Assemble the slot at `at` of an EEXIT: what was there from its MOV on, and EEXIT without a trap.

    No flag is touched until the ThreadRecord is found; where it is not, the ENCLU is next. `table` has the
    negated bases of the enclave's TCSs and, behind them, the addresses of their records.
    """
    base = b"\xf3\x48\x0f\xae" + (b"\xc1" if by_fs else b"\xc9")  # rdfsbase, rdgsbase %rcx
    # rorx $shift, %rcx, %rcx ; movzbl %cl, %ecx
    index = b"\xc4\xe3\xfb\xf0\xc9" + bytes((shift,)) + b"\x0f\xb6\xc9"
    negated = b"\x48\xb8" + table.to_bytes(8, "little")  # movabs $table, %rax
    records = b"\x48\xb8" + (table + 8 * EXIT_ENTRIES).to_bytes(8, "little")
    # mov (%rax, %rcx, 8), %rax ; the base again ; lea (%rax, %rcx), %rcx ; jrcxz over the trap
    find = base + index + negated + b"\x48\x8b\x04\xc8" + base + b"\x48\x8d\x0c\x08\xe3\x0a"
    trap_at = at + len(moved) + len(find)
    trap = b"\xb8\x04\x00\x00\x00" + jump(trap_at + 5, enclu)  # mov $4, %eax
    # mov (%rax, %rcx, 8), %rcx ; mov R_THREAD(%rcx), %rcx ; jrcxz trap
    found = base + index + records + b"\x48\x8b\x0c\xc8\x48\x8b\x49\x58\xe3"
    found += bytes((-(len(trap) + len(found) + 1) & 0xFF,))
    end = trap_at + len(trap) + len(found)
    # lea trap(%rip), %rax ; mov %rax, T_SITE(%rcx)
    named = b"\x48\x8d\x05" + _OPERAND.pack(trap_at - (end + 7)) + b"\x48\x89\x41\x78"
    return moved + find + trap + found + named + _far_jump(eexit)


def _far_jump(to: int) -> bytes:
    return b"\xff\x25\x00\x00\x00\x00" + to.to_bytes(8, "little")  # jmp *0(%rip)


def free_slot(mm: "Mm", vdso: "VdsoImage", near: int) -> int:
    """Give the address of the next free slot that a jump at `near` reaches, or 0."""
    offset = vdso.slots + mm.slots_used * SLOT_SIZE
    at = mm.image + offset
    reachable = -_REACH + SLOT_SIZE <= at - near < _REACH - SLOT_SIZE
    return at if mm.image and offset < vdso.slots_end and reachable else 0
