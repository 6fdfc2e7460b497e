# SPDX-License-Identifier: Apache-2.0
"""The functions of an ELF file, by where they stand in it: what an address in a program is called.

Owns nothing but the list. A name is given only to what lies in the function: in a stripped file the nearest
symbol is another function's.

Source: System V ABI.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_FUNCTIONS = ("STT_FUNC", "STT_LOOS")  # the latter is STT_GNU_IFUNC


class Symbols:
    """The functions of a file that is mapped into a program; of none where it is no ELF file."""

    def __init__(self, file: IO[bytes]) -> None:
        from elftools.common.exceptions import ELFError  # noqa: PLC0415
        from elftools.construct.core import ConstructError  # noqa: PLC0415
        from elftools.elf.elffile import ELFFile  # noqa: PLC0415

        self._segments: list[tuple[int, int, int]] = []
        self._functions: list[tuple[int, int, str]] = []
        try:
            elf = ELFFile(file)
            self._segments = [
                (s["p_offset"], s["p_offset"] + s["p_filesz"], s["p_vaddr"])
                for s in elf.iter_segments()
                if s["p_type"] == "PT_LOAD"
            ]
            self._functions = sorted(_functions(elf))
        except (ELFError, ConstructError, UnicodeDecodeError, ValueError, OverflowError, OSError):
            # A damaged file, or one that has changed: nothing of it can be named.
            return

    def locate(self, offset: int) -> tuple[int, str]:
        """Return what an offset in the file is as an address that addr2line takes, and as symbol+offset or ""."""
        address = offset
        for start, end, linear in self._segments:
            if start <= offset < end:
                address = offset - start + linear
                break
        at = bisect_right(self._functions, address, key=lambda function: function[0])
        if not at:
            return address, ""
        start, size, name = self._functions[at - 1]
        # What is written in assembly may have no size: then only its beginning is known to be in it.
        if address >= start + max(size, 1):
            return address, ""
        return address, name + (f"+{address - start:#x}" if address > start else "")


def _functions(elf: Any) -> set[tuple[int, int, str]]:
    return {
        (symbol["st_value"], symbol["st_size"], symbol.name)
        for section in elf.iter_sections()
        if section["sh_type"] in ("SHT_SYMTAB", "SHT_DYNSYM")
        for symbol in section.iter_symbols()
        if symbol["st_info"]["type"] in _FUNCTIONS
        and symbol["st_shndx"] != "SHN_UNDEF"
        and symbol.name
    }
