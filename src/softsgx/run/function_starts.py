# SPDX-License-Identifier: Apache-2.0
"""Where the functions of an ELF file start, and end, as the file itself tells for unwinding and linking.

Four sources, the surest first: the FDE that .eh_frame_hdr's search table leads to (its own range
is believed, not the table's), or where a static program has no such table the FDEs of .eh_frame,
which in a file without section headers is found by its first bytes; function symbols; the table of
a Go program; the entry point.
"""

from bisect import bisect_right
from itertools import islice
from struct import Struct, error, unpack_from

from softsgx.run.cpuid_sites import Elf
from softsgx.run.go_functions import GoFunctions
from softsgx.run.segment_search import addresses_of

_SHDR = Struct("<IIQQQQIIQQ")
_SYM = Struct("<IBBHQQ")
_PT_GNU_EH_FRAME = 0x6474E550
_SHT_SYMTAB = 2
_SHT_DYNSYM = 11
_STT_FUNC = 2
_STT_GNU_IFUNC = 10

# Encodings of pointers in exception frames: the low half is the format, the high half what
# it is relative to.
_FORMATS = {0x0: "<Q", 0x2: "<H", 0x3: "<I", 0x4: "<Q", 0xA: "<h", 0xB: "<i", 0xC: "<q"}
_ABSOLUTE = 0x00
_PC_RELATIVE = 0x10
_OMITTED = 0xFF
_TABLE_OF_DATAREL_SDATA4 = 0x3B
_CIE_LIMIT = 4096
# The first CIE of .eh_frame behind its length, as the start files of every C library have it:
# identifier 0, version 1, an augmentation that says how pointers are encoded.
_FIRST_CIE = b"\0\0\0\0\1zR\0"

_TABLE_LIMIT = 64 << 20
_SECTIONS_LIMIT = 4096
# The entries of .eh_frame that are read one by one: some seconds.
_FRAMES_LIMIT = 1 << 19
_TRIED_LIMIT = 8


class FunctionStarts:
    """The functions of one file; its tables are read when they are first asked for."""

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        self._sections = _sections(elf)
        self._frames = _Frames(elf, self._sections)
        self._symbols: list[tuple[int, int]] | None = None
        self._go: GoFunctions | None = None

    def around(self, address: int, segment_end: int) -> list[tuple[int, int]]:
        """Give start and end of the functions that may hold an address, the surest first."""
        found = []
        frame = self._frames.function(address)
        if frame is not None:
            found.append(frame)
        if self._symbols is None:
            self._symbols = _function_symbols(self._elf, self._sections)
        symbols = self._symbols
        at = bisect_right(symbols, (address, 1 << 64)) - 1
        if at >= 0:
            start, size = symbols[at]
            following = symbols[at + 1][0] if at + 1 < len(symbols) else segment_end
            found.append((start, start + size if size else following))
        found = [(start, end) for start, end in found if start <= address < end <= segment_end]
        if found:
            return found
        if self._go is None:
            self._go = GoFunctions(self._elf, self._sections)
        start, end = self._go.function(address) or (self._elf.entry, segment_end)
        return [(start, end)] if start <= address < end <= segment_end else []


class _Frames:
    """The FDEs of a file, sorted by the start of their functions."""

    def __init__(self, elf: Elf, sections: list[tuple[str, int, int, int, int, int]]) -> None:
        self._elf = elf
        self._encodings: dict[int, int | None] = {}
        self._starts: list[int] = []
        self._fdes: list[int] = []
        self._left = _FRAMES_LIMIT
        try:
            for kind, _, offset, address, _, length, _, _ in elf.segments:
                if kind == _PT_GNU_EH_FRAME:
                    self._load_table(elf.read(offset, min(length, _TABLE_LIMIT)), address)
                    return
            for name, _, address, offset, length, _ in sections:
                if name == ".eh_frame":
                    self._load_frames(elf.read(offset, min(length, _TABLE_LIMIT)), address)
                    return
            if not sections:
                self._search_frames()
        except error:
            self._starts = []

    def function(self, address: int) -> tuple[int, int] | None:
        """Give start and end of the function whose FDE covers this address."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        try:
            found = _fde_range(self._elf, self._fdes[at], self._encodings)
        except error:
            return None
        # The table only leads to the FDE; a table that disagrees with it proves nothing.
        if found is None or found[0] != self._starts[at] or not found[0] <= address < found[1]:
            return None
        return found

    def _load_table(self, header: bytes, address: int) -> None:
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

    # What only looks like the section leads to no end, or to functions that are in no text.
    def _search_frames(self) -> None:
        for at in islice(addresses_of(self._elf, _FIRST_CIE), _TRIED_LIMIT):
            address = at - 4
            try:
                ended = self._load_frames(self._elf.at(address, _TABLE_LIMIT), address)
            except error:
                continue
            if ended and self._starts and all(map(self._elf.executable, self._starts)):
                return
        self._starts = []

    def _load_frames(self, section: bytes, address: int) -> bool:
        """Take the FDEs of a section; tell whether it ends as it should, by a length of 0."""
        found = []
        at = 0
        while at + 8 <= len(section):
            length, cie_distance = unpack_from("<Ii", section, at)
            if length in (0, 0xFFFFFFFF):
                break
            self._left -= 1
            if self._left < 0:
                raise error("more entries than the functions of any program")
            if cie_distance:
                function = _fde_range(self._elf, address + at, self._encodings)
                if function is not None:
                    found.append((function[0], address + at))
            at += 4 + length
        found.sort()
        self._starts = [start for start, _ in found]
        self._fdes = [fde for _, fde in found]
        return section[at : at + 4] == bytes(4)


# Linux Standard Base 5.0, 10.6: CIE and FDE as .eh_frame has them.
def _fde_range(elf: Elf, fde: int, encodings: dict[int, int | None]) -> tuple[int, int] | None:
    frame = elf.at(fde, 32)
    length, cie_distance = unpack_from("<Ii", frame)
    if length == 0xFFFFFFFF or cie_distance == 0:
        return None
    cie = fde + 4 - cie_distance
    if cie not in encodings:
        encodings[cie] = _cie_encoding(elf, cie)
    encoding = encodings[cie]
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
    entry = elf.at(cie, _CIE_LIMIT)
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


# Name, type, address, offset, length and entry size of each section.
def _sections(elf: Elf) -> list[tuple[str, int, int, int, int, int]]:
    if elf.shnum > _SECTIONS_LIMIT:
        return []
    table = elf.read(elf.shoff, elf.shnum * _SHDR.size)
    headers = list(_SHDR.iter_unpack(table[: len(table) - len(table) % _SHDR.size]))
    if elf.shstrndx >= len(headers):
        return []
    names = elf.read(headers[elf.shstrndx][4], min(headers[elf.shstrndx][5], 1 << 20))
    found = []
    for name_at, kind, _, address, offset, length, _, _, _, entry_size in headers:
        name = names[name_at : max(names.find(b"\0", name_at), 0)].decode("latin-1")
        found.append((name, kind, address, offset, length, entry_size))
    return found


# Address and size of every function symbol, sorted, one an address.
def _function_symbols(
    elf: Elf, sections: list[tuple[str, int, int, int, int, int]]
) -> list[tuple[int, int]]:
    sizes: dict[int, int] = {}
    for _, kind, _, offset, length, entry_size in sections:
        if kind not in (_SHT_SYMTAB, _SHT_DYNSYM) or entry_size != _SYM.size:
            continue
        symbols = elf.read(offset, min(length, _TABLE_LIMIT))
        whole = len(symbols) - len(symbols) % _SYM.size
        for _, info, _, section, value, size in _SYM.iter_unpack(symbols[:whole]):
            if info & 0xF in (_STT_FUNC, _STT_GNU_IFUNC) and section != 0:
                sizes[value] = max(size, sizes.get(value, 0))
    return sorted(sizes.items())
