# SPDX-License-Identifier: Apache-2.0
"""What an ELF file calls its bytes: sections and symbols, by offset. A file of another format has no names."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from softsgx.errors import SoftsgxError
from softsgx.image.elf_tables import MAGIC, SHN_UNDEF, Elf
from softsgx.image.file import File

if TYPE_CHECKING:
    from softsgx.image.enclave import Enclave

_SHF_ALLOC = 2
_STT_SECTION, _STT_FILE, _STT_TLS = 3, 4, 6
_MOST_SYMBOLS = 1 << 20


class Names:
    """Sections and symbols of an enclave's file, by the offset from the enclave's base."""

    def __init__(self, path: str, enclave: Enclave) -> None:
        """Read the names; a file whose tables of names are damaged has fewer."""
        self._sections: list[tuple[int, int, str]] = []
        symbols: dict[int, tuple[int, str]] = {}
        try:
            file = File.open(path)
            if file.read(0, min(4, file.size), "its begin") != MAGIC:
                return
            elf = Elf(file)
            base = enclave.image_at
            for section in elf.sections():
                header = section.header
                if header.sh_flags & _SHF_ALLOC and header.sh_size:
                    start = base + header.sh_addr
                    self._sections.append((start, start + header.sh_size, _text(section.name)))
            for table in (b".dynsym", b".symtab"):
                for name, symbol in elf.symbols(table):
                    kind = symbol.st_info & 0xF
                    if (
                        symbol.st_shndx == SHN_UNDEF
                        or not name
                        or (kind in (_STT_SECTION, _STT_FILE, _STT_TLS))
                    ):
                        continue
                    if len(symbols) < _MOST_SYMBOLS:
                        symbols[base + symbol.st_value] = (
                            symbol.st_size,
                            _text(name),
                        )
        except SoftsgxError:
            pass
        finally:
            self._starts = sorted(symbols)
            self._symbols = symbols

    def sections(self, offset: int, length: int) -> list[str]:
        """Return the names of the sections that have bytes there, in the file's order."""
        return [
            name for start, end, name in self._sections if start < offset + length and offset < end
        ]

    def symbol(self, offset: int) -> str:
        """Return an offset as a symbol and what comes behind it, "" where there is none."""
        index = bisect_right(self._starts, offset) - 1
        if index < 0:
            return ""
        start = self._starts[index]
        size, name = self._symbols[start]
        if offset >= start + max(size, 1) and size:
            return ""
        return name + (f"+{offset - start:#x}" if offset > start else "")

    def symbols(self, offset: int, length: int) -> list[str]:
        """Return the symbols that have bytes there, by address."""
        before = self.symbol(offset)
        found = [before.split("+0x")[0]] if before else []
        first = bisect_right(self._starts, offset)
        for start in self._starts[first:]:
            if start >= offset + length:
                break
            found.append(self._symbols[start][1])
        return found

    def place(self, offset: int) -> str:
        """Return section and symbol of an offset in words, "" where it has neither."""
        sections, symbol = ", ".join(self.sections(offset, 1)), self.symbol(offset)
        return " ".join(part for part in (sections, f"<{symbol}>" if symbol else "") if part)


# A name is printed on a terminal, and whoever made the file chose it.
def _text(name: bytes) -> str:
    text = name.decode(errors="replace")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
