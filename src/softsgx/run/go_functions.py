# SPDX-License-Identifier: Apache-2.0
"""Where the functions of a Go program start and end: the table by which its runtime unwinds, pclntab.

A Go program has no .eh_frame, and a stripped one no symbols, but none can do without this table.
It is found by its section or, where no section has its name, by its first bytes. Since Go 1.18 it
holds offsets in Go's text, whose start its header states or, since Go 1.26, only the module data
that point to it.

Nothing is believed by itself: the entry that the table leads to must state the same start, and the
text that the module data state must span what the table does. Tables stay in the file and are read
where they are asked, so a hostile one costs little.

Sources: Go, src/debug/gosym/pclntab.go (parsePclnTab, funcTab), src/cmd/link/internal/ld/pcln.go,
src/runtime/symtab.go (moduledata, whose first fields are the same from Go 1.16 to 1.26).
"""

from bisect import bisect_right
from collections.abc import Iterator
from struct import error, pack, unpack

from softsgx.run.cpuid_sites import Elf
from softsgx.run.segment_search import addresses_of

# Behind the lowest byte of the magic: the rest of it, two zeros, quantum 1, pointers of 8 bytes.
_HEAD = b"\xff\xff\xff\0\0\1\x08"
_GO_1_2 = 0xFB
_GO_1_16 = 0xFA
_GO_1_18 = 0xF0
_GO_1_20 = 0xF1
_KINDS = (_GO_1_2, _GO_1_16, _GO_1_18, _GO_1_20)
# Some fifty times what the largest programs have.
_COUNT_LIMIT = 1 << 24
# A program has some ten pairs; each question is some twenty reads.
_QUESTIONS_LIMIT = 4096
_SECTION = ".gopclntab"
# struct moduledata: pcHeader, six slices, findfunctab; then these three addresses.
_MINPC_MAXPC_TEXT = 160


class GoFunctions:
    """The functions of a file that Go's linker made; none for any other file."""

    def __init__(self, elf: Elf, sections: list[tuple[str, int, int, int, int, int]]) -> None:
        self._elf = elf
        self._count = 0
        self._questions = _QUESTIONS_LIMIT
        for at in _candidates(elf, sections):
            try:
                self._open(at)
            except error:
                continue
            if self._count:
                return
        self._count = 0

    def function(self, address: int) -> tuple[int, int] | None:
        """Give start and end of the function that holds this address, as the table says."""
        self._questions -= 1
        if not self._count or self._questions < 0:
            return None
        try:
            at = bisect_right(range(self._count), address, key=self._start) - 1
            if at < 0:
                return None
            start, end = self._start(at), self._start(at + 1)
            entry = self._read(self._functions + self._field(2 * at + 1), self._width)
        except error:
            return None
        # Each function's own record begins with its start once more.
        return (start, end) if entry + self._text == start else None

    def _open(self, at: int) -> None:
        kind, head, *words = unpack("<B7s8Q", self._elf.at(at, 72))
        self._count = words[0]
        if head != _HEAD or kind not in _KINDS or self._count > _COUNT_LIMIT:
            raise error("not a table of functions")
        self._width = 8
        self._text = 0
        if kind == _GO_1_2:
            self._table, self._functions = at + 16, at
        elif kind == _GO_1_16:
            self._table = self._functions = at + words[6]
        else:
            self._table = self._functions = at + words[7]
            self._width = 4
            self._text = words[2] or self._stated_text(at, at + words[3])

    def _stated_text(self, header: int, names: int) -> int:
        first, last = self._start(0), self._start(self._count)
        for module in addresses_of(self._elf, pack("<2Q", header, names)):
            low, high, text = unpack("<3Q", self._elf.at(module + _MINPC_MAXPC_TEXT, 24))
            if text and (low - text, high - text) == (first, last):
                return int(text)
        raise error("no module data with this table")

    def _start(self, index: int) -> int:
        return self._text + self._field(2 * index)

    # The table: start of a function and where its record is, one after the other; then the end.
    def _field(self, index: int) -> int:
        return self._read(self._table + index * self._width, self._width)

    def _read(self, address: int, width: int) -> int:
        found: int = unpack("<Q" if width == 8 else "<I", self._elf.at(address, width))[0]
        return found


def _candidates(elf: Elf, sections: list[tuple[str, int, int, int, int, int]]) -> Iterator[int]:
    for name, _, address, _, _, _ in sections:
        if name == _SECTION:
            yield address
            return
    # In a position-independent program the C linker has made it a part of .data.rel.ro.
    for at in addresses_of(elf, _HEAD):
        yield at - 1
