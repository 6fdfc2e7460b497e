# SPDX-License-Identifier: Apache-2.0
"""Which CPUID instructions can be answered in the program: where a jump has room, proven like the site.

A trap costs as much as a hundred system calls, and a dynamic linker executes forty CPUIDs at each
start. A jump has five bytes and CPUID two, so the instructions behind it have to move to the slot
that the jump leads to. They can where each is plain (it neither branches nor, but for one
displacement, depends on where it is) and where nothing else leads into the midst of what moves:

- no branch that its function's control flow reaches;
- no bytes of the whole text that could be such a branch, whatever they really are: a cold part of
  the function lies elsewhere;
- no entry of a jump table, as long as the comparison before the indirect jump lets it be. A function
  whose indirect jump goes by another kind of table is left alone.

Where they cannot, a MOV of five bytes before the CPUID may make room, proven in the same way; the
CPUID itself stays, as UD2.

Loaded once a file, with the decoder. Source: SDM volume 2, "JMP", "Jcc".
"""

from binascii import crc32
from collections.abc import Callable, Iterator
from struct import iter_unpack

from iced_x86 import Code, Decoder, FlowControl, Instruction, OpKind

from softsgx.run.cpuid_sites import Elf
from softsgx.run.gp_instructions import CPUID
from softsgx.run.slots import JUMP_SIZE, MOVED_MOST

_LONGEST = len(CPUID) + MOVED_MOST
# Once a file: some five seconds of looking at its text, three of decoding functions. An image has no
# slots for more sites.
_TEXT_LIMIT = 16 << 20
_LOOKED_AT_LIMIT = 512 << 20
_INSTRUCTIONS_LIMIT = 4 << 20
_SITES = 96
_SHORT = 128
# A compiler lets the default case or the switch itself be the branch's target.
_UNSIGNED = frozenset(
    (
        *(Code.JA_REL8_64, Code.JA_REL32_64, Code.JAE_REL8_64, Code.JAE_REL32_64),
        *(Code.JBE_REL8_64, Code.JBE_REL32_64, Code.JB_REL8_64, Code.JB_REL32_64),
    )
)
_CMP = frozenset(
    (
        *(Code.CMP_AL_IMM8, Code.CMP_EAX_IMM32, Code.CMP_RAX_IMM32, Code.CMP_RM8_IMM8),
        *(Code.CMP_RM32_IMM8, Code.CMP_RM32_IMM32, Code.CMP_RM64_IMM8, Code.CMP_RM64_IMM32),
    )
)
_TABLE_ENTRIES = 1 << 16


# Instead of where a displacement is: the five bytes before CPUID, a MOV to its operand, move.
BEFORE = 0xFF


def encode(length: int, displacement: int, code: bytes) -> int:
    """Encode a detour: bytes from CPUID on, where behind it a displacement is (0 none), a checksum."""
    return length | displacement << 8 | crc32(code) << 32


class Detours:
    """Finds for the sites of one file how much has to move."""

    def __init__(self, elf: Elf, follow: Callable[..., dict[int, int]]) -> None:
        self._elf = elf
        self._follow = follow  # Proof's: what is reached from the starts in a function
        self._left = _SITES
        self._instructions_left = _INSTRUCTIONS_LIMIT
        self._bytes_left = _LOOKED_AT_LIMIT
        ranges = elf.text()
        self._size = sum(end - start for start, end in ranges)
        if self._size > _TEXT_LIMIT:
            self._left = 0
            ranges = []
        self._texts = [(start, elf.read(start, end - start)) for start, end in ranges]

    def at(self, address: int, function: tuple[int, int], reached: dict[int, int]) -> int:
        """Give the encoded detour of a proven site, or 0."""
        if not self._left or self._instructions_left < 0 or self._bytes_left < 0:
            return 0
        self._left -= 1
        return self._behind(address, function, reached) or self._before(address, function, reached)

    def _before(self, address: int, function: tuple[int, int], reached: dict[int, int]) -> int:
        start = address - JUMP_SIZE
        code = self._elf.at(start, JUMP_SIZE + len(CPUID))
        instruction = Decoder(64, code, ip=start).decode()
        if instruction.code != Code.MOV_R32_IMM32 or reached.get(start) != JUMP_SIZE:
            return 0
        # Who comes to CPUID itself, with another operand, finds it there.
        if self._entered(start + 1, address, function, reached):
            return 0
        return encode(JUMP_SIZE, BEFORE, code)

    def _behind(self, address: int, function: tuple[int, int], reached: dict[int, int]) -> int:
        code = self._elf.at(address, _LONGEST)
        decoder = Decoder(64, code, ip=address)
        length = displacement = 0
        while length < JUMP_SIZE:
            instruction = decoder.decode()
            plain = instruction.flow_control == FlowControl.NEXT
            if not plain or abs(reached.get(address + length, 0)) != instruction.len:
                return 0
            if length and instruction.code == Code.CPUID:
                return 0
            if instruction.is_ip_rel_memory_operand:
                offsets = decoder.get_constant_offsets(instruction)
                if displacement or offsets.displacement_size != 4:
                    return 0
                displacement = length + offsets.displacement_offset
            length += instruction.len
        if length > _LONGEST:
            return 0
        if self._entered(address + 1, address + length, function, reached):
            return 0
        return encode(length, displacement, code[:length])

    def _entered(
        self, low: int, high: int, function: tuple[int, int], reached: dict[int, int]
    ) -> bool:
        """Tell whether anything may lead into [low, high) but by falling through."""
        start, end = function
        cases: set[int] = set()
        while True:
            found = self._cases(function, reached)
            if found is None:
                return True
            if found <= cases:
                break
            cases |= found
            reached = self._follow(start, end, *cases)
            if not reached:
                return True
        if any(low <= target < high for target in (*cases, *self._targets(function, reached))):
            return True
        self._bytes_left -= self._size
        # What the function itself executes is known, so its bytes need not be guessed at.
        known = bytearray(end - start)
        for ip, size in reached.items():
            known[ip - start : ip - start + abs(size)] = b"\1" * abs(size)

        def unknown(address: int) -> bool:
            return not (start <= address < end and known[address - start])

        return any(self._branches_into(text, low, high, unknown) for text in self._texts)

    def _instructions(
        self, function: tuple[int, int], reached: dict[int, int]
    ) -> Iterator[Instruction]:
        start, end = function
        self._instructions_left -= len(reached)
        decoder = Decoder(64, self._elf.at(start, end - start), ip=start)
        for ip in reached:
            decoder.position = ip - start
            decoder.ip = ip
            yield decoder.decode()

    def _targets(self, function: tuple[int, int], reached: dict[int, int]) -> list[int]:
        return [
            instruction.near_branch_target
            for instruction in self._instructions(function, reached)
            if instruction.op_count and instruction.op0_kind == OpKind.NEAR_BRANCH64
        ]

    def _cases(self, function: tuple[int, int], reached: dict[int, int]) -> set[int] | None:
        """Give where the function's indirect jumps may lead; None where that cannot be told."""
        start, end = function
        tables: set[int] = set()
        indirect = False
        longest = compared = 0
        for instruction in self._instructions(function, dict(sorted(reached.items()))):
            if instruction.code in _UNSIGNED:
                longest = max(longest, compared)
            elif instruction.code in _CMP:
                # Numbers as CPUID's leaves 8000_0000H on bound no table.
                compared = (instruction.immediate(1) + 1) % (1 << 64)
                compared = compared if compared <= _TABLE_ENTRIES else 0
            elif instruction.rflags_modified:
                compared = 0
            if instruction.flow_control == FlowControl.INDIRECT_BRANCH:
                if instruction.op0_kind != OpKind.REGISTER:
                    return None
                indirect = True
            if instruction.code == Code.LEA_R64_M and instruction.is_ip_rel_memory_operand:
                tables.add(instruction.ip_rel_memory_address)
        if not indirect:
            return set()
        # What compilers make of a switch: 32-bit entries, relative to the table.
        cases: set[int] = set()
        for table in tables:
            entries = self._elf.at(table, 4 * longest)
            self._instructions_left -= len(entries) // 4
            if self._instructions_left < 0:
                return None
            for (entry,) in iter_unpack("<i", entries[: len(entries) & ~3]):
                case = table + entry
                if start <= case < end:
                    cases.add(case)
                elif not self._elf.executable(case):
                    break  # no cold part of the function either: the table has ended
        return cases or None

    def _branches_into(
        self, text: tuple[int, bytes], low: int, high: int, unknown: Callable[[int], bool]
    ) -> bool:
        """Tell whether bytes that could be a branch's displacement would lead into [low, high)."""
        offset, code = text
        where = self._elf.address(offset)
        if where is None:
            return False
        base = where[0]
        # The displacement of a near branch at byte i counts from i + 4, that of a short one from i + 1.
        for at in _near(code, base, low, high):
            opcode = bytes(code[max(at - 2, 0) : at])
            near = opcode[-1:] in {b"\xe8", b"\xe9"} or opcode == b"\xc7\xf8"
            conditional = len(opcode) == 2 and opcode[0] == 0x0F and opcode[1] & 0xF0 == 0x80
            if (near or conditional) and unknown(base + at):
                return True
        first = max(low - _SHORT - base, 1)
        last = min(high + _SHORT - base, len(code))
        for at in range(first, last):
            value = code[at] - 256 if code[at] >= 128 else code[at]
            if low <= base + at + 1 + value < high and unknown(base + at):
                before = code[at - 1]
                if before == 0xEB or 0x70 <= before < 0x80 or 0xE0 <= before < 0xE4:
                    return True
        return False


def _near(code: bytes, base: int, low: int, high: int) -> list[int]:
    import numpy as np  # noqa: PLC0415  (every four bytes of a text)

    found: list[int] = []
    for phase in range(4):
        whole = (len(code) - phase) & ~3
        if whole <= 0:
            continue
        targets = np.frombuffer(code, "<i4", whole // 4, phase).astype("i8")
        targets += base + phase + 4 + 4 * np.arange(len(targets), dtype="i8")
        found += [phase + 4 * int(at) for at in ((targets >= low) & (targets < high)).nonzero()[0]]
    return found
