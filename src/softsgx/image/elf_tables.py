# SPDX-License-Identifier: Apache-2.0
"""The tables of an ELF file that enclave loaders go by: headers, segments, sections, relocations, symbols.

They are records of the System V ABI by its offsets, and every one is checked against the file's end before it
is used. pyelftools knows them all and more; but it takes three times as long to import as Python takes to start, and it
follows counts that a hostile file has made up.

Sources: System V ABI, gabi 4.1 chapters 4 and 5; the x86-64 supplement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from softsgx.arch.layout import U8, U16, U32, U64, Record, at, layout, raw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from softsgx.image.file import File

R = TypeVar("R", bound=Record)

MAGIC = b"\x7fELF"
ET_EXEC, ET_DYN = 2, 3
EM_X86_64 = 62
_MACHINES = {3: "EM_386", 40: "EM_ARM", 183: "EM_AARCH64", 243: "EM_RISCV"}
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_TLS = 1, 2, 3, 7
PF_X, PF_W, PF_R = 1, 2, 4
SHT_NOBITS = 8
SHN_UNDEF = 0
DT_NULL, DT_NEEDED, DT_RELA, DT_RELASZ, DT_TEXTREL, DT_JMPREL, DT_PLTRELSZ = 0, 1, 7, 8, 22, 23, 2
# As many program headers as Linux reads; and far more sections than a file has that was linked.
MOST_SEGMENTS = (64 << 10) // 56
_MOST_SECTIONS = 1 << 13
# A linker lets a name be the end of another one; but few are.
_SHARED_NAMES = 4
R_X86_64_NONE, R_X86_64_TPOFF64 = 0, 18


@layout(size=64)
class Ehdr(Record):
    """ELF header."""

    e_ident: bytes = at(0, raw(16))
    e_type: int = at(16, U16)
    e_machine: int = at(18, U16)
    e_version: int = at(20, U32)
    e_entry: int = at(24, U64)
    e_phoff: int = at(32, U64)
    e_shoff: int = at(40, U64)
    e_ehsize: int = at(52, U16)
    e_phentsize: int = at(54, U16)
    e_phnum: int = at(56, U16)
    e_shentsize: int = at(58, U16)
    e_shnum: int = at(60, U16)
    e_shstrndx: int = at(62, U16)


@layout(size=56)
class Phdr(Record):
    """Program header: a segment."""

    p_type: int = at(0, U32)
    p_flags: int = at(4, U32)
    p_offset: int = at(8, U64)
    p_vaddr: int = at(16, U64)
    p_filesz: int = at(32, U64)
    p_memsz: int = at(40, U64)
    p_align: int = at(48, U64)


@layout(size=64)
class Shdr(Record):
    """Section header."""

    sh_name: int = at(0, U32)
    sh_type: int = at(4, U32)
    sh_flags: int = at(8, U64)
    sh_addr: int = at(16, U64)
    sh_offset: int = at(24, U64)
    sh_size: int = at(32, U64)
    sh_link: int = at(40, U32)
    sh_addralign: int = at(48, U64)
    sh_entsize: int = at(56, U64)


@layout(size=24)
class Sym(Record):
    """Symbol."""

    st_name: int = at(0, U32)
    st_info: int = at(4, U8)
    st_shndx: int = at(6, U16)
    st_value: int = at(8, U64)
    st_size: int = at(16, U64)


@layout(size=24)
class Rela(Record):
    """Relocation; r_info is the type in its lower half, the symbol's index in its upper."""

    r_offset: int = at(0, U64)
    r_info: int = at(8, U64)
    r_addend: int = at(16, U64)


@layout(size=16)
class Dyn(Record):
    """Entry of the dynamic segment."""

    d_tag: int = at(0, U64)
    d_val: int = at(8, U64)


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header, and where in the file it is."""

    header_at: int
    header: Phdr


@dataclass(frozen=True, slots=True)
class Section:
    """A section header with its name, and where in the file it is."""

    header_at: int
    name: bytes
    header: Shdr


class Elf:
    """The tables of one 64-bit little-endian x86-64 ELF file."""

    def __init__(self, file: File) -> None:
        """Read the headers; SoftsgxError says what is wrong with them."""
        self.file = file
        ident = file.read(0, min(file.size, Ehdr.SIZE), "ELF header")
        if not ident.startswith(MAGIC) or len(ident) < Ehdr.SIZE:
            file.damaged(0, "not an ELF file, or one cut off in its header")
        self.header = Ehdr.decode(ident)
        if self.header.e_ident[4:6] != b"\x02\x01":
            file.damaged(4, "not a little-endian 64-bit ELF file")
        if self.header.e_machine != EM_X86_64:
            machine = _MACHINES.get(self.header.e_machine, self.header.e_machine)
            file.damaged(0x12, f"machine is {machine}, not EM_X86_64")
        self.segments = self._segments()

    def _segments(self) -> list[Segment]:
        file, header = self.file, self.header
        first, each, count = header.e_phoff, header.e_phentsize, header.e_phnum
        if each < Phdr.SIZE:
            file.damaged(0x36, f"program headers of {each} bytes, not {Phdr.SIZE}")
        if count == 0:
            file.damaged(0x38, "no program headers: link it with the linker, not with -r")
        if count > MOST_SEGMENTS:
            file.damaged(0x38, f"{count} program headers, more than {MOST_SEGMENTS}")
        if first + each * count > file.size:
            file.damaged(
                first, f"{count} program headers do not fit a file of {file.size:#x} bytes"
            )
        table = file.read(first, each * count, "program headers")
        return [
            Segment(first + number * each, Phdr.decode(table, number * each))
            for number in range(count)
        ]

    def sections(self) -> list[Section]:
        """Return the sections with their names; [] where the file has none."""
        file, header = self.file, self.header
        first, each, count = header.e_shoff, header.e_shentsize, header.e_shnum
        if first == 0 or count == 0:
            return []
        if each < Shdr.SIZE:
            file.damaged(0x3A, f"section headers of {each} bytes, not {Shdr.SIZE}")
        if count > _MOST_SECTIONS:
            file.damaged(0x3C, f"{count} section headers, more than {_MOST_SECTIONS}")
        table = file.read(first, each * count, f"the table of {count} section headers")
        headers = [Shdr.decode(table, number * each) for number in range(count)]
        if header.e_shstrndx >= count:
            file.damaged(0x3E, f"the names of sections are in section {header.e_shstrndx}")
        strings = self._strings(headers[header.e_shstrndx], "section names")
        return [
            Section(first + number * each, strings.name(section.sh_name), section)
            for number, section in enumerate(headers)
        ]

    def section(self, name: bytes) -> Section | None:
        """Return the first section of a name."""
        return next((section for section in self.sections() if section.name == name), None)

    def content(self, section: Section) -> bytes:
        """Return a section's bytes."""
        return self._content(section, f"section {section.name.decode(errors='replace')}")

    def _content(self, section: Section, what: str) -> bytes:
        if section.header.sh_type == SHT_NOBITS:
            return b""
        return self.file.read(section.header.sh_offset, section.header.sh_size, what)

    def _strings(self, header: Shdr, what: str) -> Strings:
        return Strings(self.file, header.sh_offset, self._content(Section(0, b"", header), what))

    def dynamic(self) -> dict[int, int]:
        """Return the dynamic segment's entries, of each tag the last; {} without one."""
        for segment in self.segments:
            if segment.header.p_type == PT_DYNAMIC:
                content = self.file.read(
                    segment.header.p_offset, segment.header.p_filesz, "dynamic segment"
                )
                entries = {}
                for entry in records(Dyn, content):
                    if entry.d_tag == DT_NULL:
                        break
                    entries[entry.d_tag] = entry.d_val
                return entries
        return {}

    def symbols(self, name: bytes) -> Iterator[tuple[bytes, Sym]]:
        """Yield names and symbols of a table, .dynsym or .symtab; none where there is no such section."""
        sections = self.sections()
        table = next((section for section in sections if section.name == name), None)
        if table is None:
            return
        if table.header.sh_link >= len(sections):
            self.file.damaged(
                table.header_at, f"its symbols have their names in section {table.header.sh_link}"
            )
        strings = self._strings(sections[table.header.sh_link].header, "names of symbols")
        for symbol in records(Sym, self.content(table)):
            yield strings.name(symbol.st_name), symbol

    def load_segments(self) -> list[Segment]:
        """Return the PT_LOAD segments in the file's order, each with its content inside the file."""
        loads = [s for s in self.segments if s.header.p_type == PT_LOAD]
        for segment in loads:
            header = segment.header
            if header.p_filesz > header.p_memsz:
                self.file.damaged(
                    segment.header_at,
                    f"segment has {header.p_filesz:#x} bytes in the file, {header.p_memsz:#x} in memory",
                )
            if header.p_offset + header.p_filesz > self.file.size:
                self.file.damaged(
                    segment.header_at,
                    f"segment's content, {header.p_filesz:#x} bytes at {header.p_offset:#x}, "
                    f"is cut off: the file has {self.file.size:#x} bytes",
                )
        if not loads:
            self.file.damaged(self.header.e_phoff, "no PT_LOAD segment, so no pages")
        return loads


def records(kind: type[R], content: bytes) -> Iterator[R]:
    """Yield the records of a table; a rest that is none is left out."""
    for offset in range(0, len(content) - kind.SIZE + 1, kind.SIZE):
        yield kind.decode(content, offset)


class Strings:
    """A table of names; together they may not be longer than a few tables, or a small file would fill the memory."""

    __slots__ = ("_at", "_content", "_file", "_left")

    def __init__(self, file: File, at: int, content: bytes) -> None:
        self._file = file
        self._at = at
        self._content = content
        self._left = _SHARED_NAMES * len(content)

    def name(self, offset: int) -> bytes:
        """Return the name at an offset; one that is not there is empty."""
        content = self._content
        if not 0 <= offset < len(content):
            return b""
        end = content.find(b"\0", offset)
        if end < 0:
            return b""
        self._left -= end - offset
        if self._left < 0:
            self._file.damaged(
                self._at + offset, "names that are parts of each other, and too many"
            )
        return content[offset:end]
