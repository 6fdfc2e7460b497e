# SPDX-License-Identifier: Apache-2.0
"""The proof that a byte pair is an executed CPUID instruction: starts of functions, and what they reach.

Loaded only for a file that holds such a pair and is seen for the first time. A linear sweep
would be cheaper but takes data in text (a string after a jump, a table after a return) for
instructions, so control flow is followed: what falls through, jumps and branches. Code reached by an
indirect jump alone is not proven.
"""

from bisect import bisect_right
from struct import Struct, error, unpack_from

from iced_x86 import Code, Decoder, FlowControl, OpKind

from softsgx.run.cpuid_sites import Elf

_SHDR = Struct("<IIQQQQIIQQ")
_SYM = Struct("<IBBHQQ")
_PT_GNU_EH_FRAME = 0x6474E550
_SHT_SYMTAB = 2
_SHT_DYNSYM = 11
_STT_FUNC = 2
_STT_GNU_IFUNC = 10

# Encodings of pointers in exception frames: the low half is the format, the high half what it is relative to.
_FORMATS = {0x0: "<Q", 0x2: "<H", 0x3: "<I", 0x4: "<Q", 0xA: "<h", 0xB: "<i", 0xC: "<q"}
_ABSOLUTE = 0x00
_PC_RELATIVE = 0x10
_OMITTED = 0xFF
_TABLE_OF_DATAREL_SDATA4 = 0x3B
_FRAME_LIMIT = 4096

_TABLE_LIMIT = 64 << 20
_SECTIONS_LIMIT = 4096
_FUNCTION_LIMIT = 1 << 20
# Some ten seconds of decoding, once a file; what is left over then is unproven.
_INSTRUCTIONS_LIMIT = 4 << 20
_LONGEST_INSTRUCTION = 15

_NEAR_BRANCH = OpKind.NEAR_BRANCH64
_FALLS_THROUGH = (FlowControl.NEXT, FlowControl.INDIRECT_CALL)
_BRANCHES = (FlowControl.CONDITIONAL_BRANCH, FlowControl.XBEGIN_XABORT_XEND)


class Proof:
    """Tells for the byte pairs of one file whether they are instructions."""

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        self._frames = _FrameTable(elf)
        self._symbols: list[tuple[int, int]] | None = None
        self._budget = _INSTRUCTIONS_LIMIT
        self._function: tuple[int, int] = (0, 0)
        self._reached: dict[int, int] = {}

    def covers(self, offset: int) -> bool:
        """Tell whether control flow from a known function start executes CPUID at this file offset."""
        where = self._elf.address(offset)
        if where is None:
            return False
        address, segment_end = where
        for start, end in self._functions(address, segment_end):
            if (start, end) != self._function:
                self._reached = self._follow(start, end)
                self._function = (start, end)
            if self._is_cpuid(address):
                return True
        return False

    def _is_cpuid(self, address: int) -> bool:
        reached = self._reached
        if reached.get(address) != -2:
            return False
        # Two decodings of the same bytes (a jump past a prefix): patching one would change the other.
        if address + 1 in reached:
            return False
        return not any(
            abs(reached.get(address - back, 0)) > back for back in range(1, _LONGEST_INSTRUCTION)
        )

    # The candidates from the surest on; any one that reaches the pair is a proof.
    def _functions(self, address: int, segment_end: int) -> list[tuple[int, int]]:
        found = []
        frame = self._frames.function(address)
        if frame is not None:
            found.append(frame)
        if self._symbols is None:
            self._symbols = _function_symbols(self._elf)
        symbols = self._symbols
        at = bisect_right(symbols, (address, 1 << 64)) - 1
        if at >= 0:
            start, size = symbols[at]
            following = symbols[at + 1][0] if at + 1 < len(symbols) else segment_end
            end = start + size if size else following
            if address < end <= segment_end:
                found.append((start, end))
        if not found and self._elf.entry <= address:
            found.append((self._elf.entry, segment_end))
        return [each for each in found if each[1] - each[0] <= _FUNCTION_LIMIT]

    # Address -> length of each instruction that is reached; negative for CPUID.
    def _follow(self, start: int, end: int) -> dict[int, int]:
        code = self._elf.at(start, end - start)
        end = start + len(code)
        decoder = Decoder(64, code, ip=start)
        reached: dict[int, int] = {}
        pending = [start]
        budget = self._budget
        while pending:
            ip = pending.pop()
            while start <= ip < end and ip not in reached and budget > 0:
                budget -= 1
                decoder.position = ip - start
                decoder.ip = ip
                instruction = decoder.decode()
                if instruction.code == Code.INVALID:
                    # What was taken for code is data, or cut off: nothing here is certain.
                    self._budget = budget
                    return {}
                length = instruction.len
                reached[ip] = -length if instruction.code == Code.CPUID else length
                flow = instruction.flow_control
                if flow in _FALLS_THROUGH:
                    ip += length
                    continue
                if flow == FlowControl.INTERRUPT and instruction.code != Code.INT3:
                    ip += length
                    continue
                near = instruction.op_count > 0 and instruction.op0_kind == _NEAR_BRANCH
                target = instruction.near_branch_target if near else 0
                if flow == FlowControl.CALL:
                    # A call into the same function may only fetch its return address: then what
                    # follows is data, so it counts as code only if something else reaches it.
                    if start < target < end:
                        pending.append(target)
                        break
                    ip += length
                    continue
                if near:
                    pending.append(target)
                if flow in _BRANCHES:
                    ip += length
                    continue
                break
        self._budget = budget
        return reached if budget > 0 else {}


class _FrameTable:
    """The sorted table of .eh_frame_hdr: starts of functions, and their FDEs."""

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        self._base = 0
        self._starts: list[int] = []
        self._fdes: list[int] = []
        for kind, _, offset, address, _, length, _, _ in elf.segments:
            if kind == _PT_GNU_EH_FRAME:
                try:
                    self._load(elf.read(offset, min(length, _TABLE_LIMIT)), address)
                except error:
                    self._starts = []
                return

    def function(self, address: int) -> tuple[int, int] | None:
        """Give start and end of the function whose FDE covers this address."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        try:
            found = _fde_range(self._elf, self._fdes[at])
        except error:
            return None
        # The table only leads to the FDE; a table that disagrees with it proves nothing.
        if found is None or found[0] != self._starts[at] or not found[0] <= address < found[1]:
            return None
        return found

    def _load(self, header: bytes, address: int) -> None:
        version, frame_encoding, count_encoding, table_encoding = unpack_from("<4B", header)
        if version != 1 or table_encoding != _TABLE_OF_DATAREL_SDATA4:
            return
        at = 4
        if frame_encoding != _OMITTED:
            at += Struct(_FORMATS.get(frame_encoding & 0xF, "<Q")).size
        count_format = _FORMATS.get(count_encoding)
        if count_format is None:
            return
        (count,) = unpack_from(count_format, header, at)
        at += Struct(count_format).size
        count = min(count, (len(header) - at) // 8)
        if count <= 0:
            return
        table = unpack_from(f"<{2 * count}i", header, at)
        self._starts = [address + relative for relative in table[::2]]
        self._fdes = [address + relative for relative in table[1::2]]


# Linux Standard Base 5.0, 10.6: CIE and FDE as .eh_frame has them.
def _fde_range(elf: Elf, fde: int) -> tuple[int, int] | None:
    frame = elf.at(fde, 32)
    length, cie_distance = unpack_from("<Ii", frame)
    if length == 0xFFFFFFFF or cie_distance == 0:
        return None
    encoding = _cie_encoding(elf, fde + 4 - cie_distance)
    if encoding is None or encoding & 0x70 not in (_ABSOLUTE, _PC_RELATIVE):
        return None
    form = _FORMATS.get(encoding & 0xF)
    if form is None:
        return None
    (start,) = unpack_from(form, frame, 8)
    # The length has the format of the start, without what the start is relative to and unsigned.
    (size,) = unpack_from(form.upper(), frame, 8 + Struct(form).size)
    if encoding & 0x70 == _PC_RELATIVE:
        start += fde + 8
    return start, start + size


def _cie_encoding(elf: Elf, cie: int) -> int | None:
    entry = elf.at(cie, _FRAME_LIMIT)
    length, identifier, version = unpack_from("<IIB", entry)
    if length == 0xFFFFFFFF or identifier != 0 or version not in (1, 3):
        return None
    end = entry.find(b"\0", 9)
    if end < 0:
        return None
    augmentation = entry[9:end]
    if not augmentation.startswith(b"z"):
        return _ABSOLUTE if not augmentation else None
    at = _after_leb128(entry, end + 1)  # code alignment
    at = _after_leb128(entry, at)  # data alignment
    at = at + 1 if version == 1 else _after_leb128(entry, at)  # return address register
    at = _after_leb128(entry, at)  # length of the augmentation data
    encoding = _ABSOLUTE
    for letter in augmentation[1:]:
        if letter == ord("R"):
            (encoding,) = unpack_from("<B", entry, at)
            at += 1
        elif letter == ord("L"):
            at += 1
        elif letter == ord("P"):
            (personality,) = unpack_from("<B", entry, at)
            form = _FORMATS.get(personality & 0xF)
            if form is None:
                return None
            at += 1 + Struct(form).size
        else:
            # "S", a signal frame, starts a byte before its function; others are unknown.
            return None
    return encoding


def _after_leb128(entry: bytes, at: int) -> int:
    while unpack_from("<B", entry, at)[0] & 0x80:
        at += 1
    return at + 1


# Address and size of every function symbol, sorted, one an address.
def _function_symbols(elf: Elf) -> list[tuple[int, int]]:
    if elf.shnum > _SECTIONS_LIMIT:
        return []
    sizes: dict[int, int] = {}
    table = elf.read(elf.shoff, elf.shnum * _SHDR.size)
    for at in range(0, len(table) - _SHDR.size + 1, _SHDR.size):
        _, kind, _, _, offset, length, _, _, _, entry_size = _SHDR.unpack_from(table, at)
        if kind not in (_SHT_SYMTAB, _SHT_DYNSYM) or entry_size != _SYM.size:
            continue
        symbols = elf.read(offset, min(length, _TABLE_LIMIT))
        whole = len(symbols) - len(symbols) % _SYM.size
        for _, info, _, section, value, size in _SYM.iter_unpack(symbols[:whole]):
            if info & 0xF in (_STT_FUNC, _STT_GNU_IFUNC) and section != 0:
                sizes[value] = max(size, sizes.get(value, 0))
    return sorted(sizes.items())
