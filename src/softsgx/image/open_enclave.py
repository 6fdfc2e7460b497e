# SPDX-License-Identifier: Apache-2.0
"""Enclaves of the Open Enclave SDK: an ELF position-independent file with its properties in the section .oeinfo.

What the loader does, in its order; it writes into the image what depends on the layout, and zeros over the
SIGSTRUCT, before it adds anything:

    ECREATE       SIZE is the power of two that holds everything; SSAFRAMESIZE is 1
    segments      PT_LOAD of the file, then of the one module that it needs, if any, from the next page on
    relocations   .rela.dyn and .rela.plt of both, read only, zeros to the end of a page
    heap          not measured
    threads       for each: a guard page, the stack filled by 0xCC, a guard page, TCS, two SSA frames, a guard page,
                  thread-local storage, a page of thread data

An enclave that is created at address 0 begins at its start address, by which all offsets are larger.

Sources: openenclave/openenclave, host/sgx/loadelf.c, create.c and sgxload.c, of 2021 to 2026 (0.12 and later).
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, replace

from softsgx.arch.layout import U16, U32, U64, Record, at, layout, raw
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_TCS,
    SECINFO_W,
    SECINFO_X,
)
from softsgx.arch.structures import Sigstruct, Tcs
from softsgx.image import elf_tables
from softsgx.image.elf_tables import Elf, Rela, Section
from softsgx.image.enclave import Enclave, signed_or_none
from softsgx.image.file import File
from softsgx.image.stream import (
    MAXIMUM_SIZE,
    Content,
    Fill,
    Image,
    PageRun,
    enclave_size,
    overlay,
    page_up,
    segment_runs,
)

SECTION = b".oeinfo"
FORMAT = "open-enclave"

_CONTROL_PAGES = 4  # TCS, two SSA frames, a guard page
_THREAD_DATA_PAGES = 1
_STACK_FILL = 0xCCCC_CCCC
_MOST_THREADS = 1024
_RELATIVE, _64, _GLOB_DAT, _JUMP_SLOT, _TPOFF64 = 8, 1, 6, 7, elf_tables.R_X86_64_TPOFF64
_RELOCATED_TAGS = (
    3,
    5,
    6,
    7,
    0x6FFF_FEF5,
    0x6FFF_FFF0,
)  # PLTGOT, STRTAB, SYMTAB, RELA, GNU_HASH, VERSYM
_LONGEST_NAME = 255
_WRITTEN_ALWAYS = (b"_enclave_rva", b"_reloc_rva", b"_reloc_size")
_ZERO_BASE = 1 << 1
_WEAK = 2
_RW = SECINFO_REG | SECINFO_R | SECINFO_W
_MASK = 0xFFFF_FFFF_FFFF_FFFF


@layout(size=32)
class Header(Record):
    """The begin of oe_sgx_enclave_properties_t, the content of .oeinfo; ``size`` is of the whole."""

    size: int = at(0, U32)
    enclave_type: int = at(4, U32)
    num_heap_pages: int = at(8, U64)
    num_stack_pages: int = at(16, U64)
    num_tcs: int = at(24, U64)


@layout(size=16)
class OldConfig(Record):
    """What follows the header in enclaves of before KSS."""

    product_id: int = at(0, U16)
    security_version: int = at(2, U16)
    attributes: int = at(8, U64)


@layout(size=64)
class Config(Record):
    """What follows the header; older enclaves end it before ``start_address`` or ``xfrm``."""

    product_id: int = at(0, U16)
    security_version: int = at(2, U16)
    flags: int = at(4, U32)
    family_id: bytes = at(8, raw(16))
    extended_product_id: bytes = at(24, raw(16))
    attributes: int = at(40, U64)
    xfrm: int = at(48, U64)
    start_address: int = at(56, U64)


@layout(size=48)
class ImageInfo(Record):
    """Where things are in the enclave: the loader writes it. SIGSTRUCT and a last word of the properties follow."""

    oeinfo_rva: int = at(0, U64)
    oeinfo_size: int = at(8, U64)
    reloc_rva: int = at(16, U64)
    reloc_size: int = at(24, U64)
    heap_rva: int = at(32, U64)
    enclave_size: int = at(40, U64)


_BEHIND = ImageInfo.SIZE + Sigstruct.SIZE + 8


class _Symbols:
    """The dynamic symbols of a file, in columns: a record for each would be many times its size."""

    def __init__(self, elf: Elf) -> None:
        self.names: list[bytes] = []
        self.values = array("Q")
        self.infos = bytearray()
        self._sections = array("H")
        # Of a name the first.
        self._first: dict[bytes, int] = {}
        for number, (name, symbol) in enumerate(elf.symbols(b".dynsym")):
            self.names.append(name)
            self.values.append(symbol.st_value)
            self.infos.append(symbol.st_info)
            self._sections.append(symbol.st_shndx)
            self._first.setdefault(name, number)

    def __len__(self) -> int:
        return len(self.names)

    def value(self, name: bytes) -> int | None:
        """Return the value of a symbol, None where there is none."""
        number = self._first.get(name)
        return None if number is None else self.values[number]

    def defined(self, name: bytes) -> int | None:
        """Return the value of a symbol that is defined in this file."""
        number = self._first.get(name)
        if number is None or self._sections[number] == elf_tables.SHN_UNDEF:
            return None
        return self.values[number]


@dataclass(slots=True)
class _Module:
    """A file of the enclave and where its image begins; ``relocations`` as they are in it."""

    elf: Elf
    rva: int
    runs: list[PageRun]
    size: int
    sections: dict[bytes, Section]
    symbols: _Symbols
    relocations: bytes = b""


def read(elf: Elf) -> tuple[Enclave, ...]:
    """Read the enclave."""
    section = elf.section(SECTION)
    assert section is not None  # noqa: S101 (by which the caller chose this reader)
    if elf.header.e_type != elf_tables.ET_DYN:
        elf.file.damaged(0x10, f"type is {elf.header.e_type}, not ET_DYN")
    at, rva = section.header.sh_offset, section.header.sh_addr
    header = Header.decode(elf.file.read(at, Header.SIZE, "properties of .oeinfo"))
    config = _config(elf.file, at, header)
    main = _module(elf, 0)
    modules = [main, *_needed(elf, main.size)]
    for name in _WRITTEN_ALWAYS:
        if main.symbols.value(name) is None:
            elf.file.damaged(
                at,
                f"no dynamic symbol {name.decode()}, which the loader writes: of an Open Enclave SDK before 0.12, "
                "or a payload of EGo, which is measured together with EGo's own enclave",
            )
    table = _relocations(modules)
    tls_pages = _tls_pages(main)

    reloc_rva = sum(module.size for module in modules)
    heap_rva = reloc_rva + len(table)
    thread = 2 + header.num_stack_pages + tls_pages + _CONTROL_PAGES + _THREAD_DATA_PAGES
    end = heap_rva + (header.num_heap_pages + header.num_tcs * thread) * PAGE_SIZE
    start = config.start_address if config.flags & _ZERO_BASE else 0
    if end + start > MAXIMUM_SIZE:
        elf.file.damaged(at + 8, f"an enclave of {end:#x} bytes at {start:#x}")

    info_at = header.size - _BEHIND
    info = ImageInfo(rva, header.size, reloc_rva, len(table), heap_rva, enclave_size(end))
    sigstruct_at = at + info_at + ImageInfo.SIZE
    sigstruct = elf.file.read(sigstruct_at, Sigstruct.SIZE, "SIGSTRUCT in .oeinfo")
    written = [
        (rva + info_at, info.encode() + bytes(Sigstruct.SIZE)),
        *_written(modules, info, tls_pages),
    ]
    runs = overlay(main.runs, written)
    for module in modules[1:]:
        runs += [replace(run, offset=run.offset + module.rva) for run in module.runs]
    if table:
        runs.append(
            PageRun(
                reloc_rva,
                len(table),
                SECINFO_REG | SECINFO_R,
                memoryview(table),
                measured=True,
                name="relocations",
            )
        )
    runs += _threads(header, heap_rva, tls_pages, start, elf.header.e_entry)
    if start:
        runs = [replace(run, offset=run.offset + start) for run in runs]
    return (
        Enclave(
            FORMAT,
            Image(enclave_size(end + start), 1, tuple(runs)),
            "",
            signed_or_none(sigstruct),
            sigstruct_at,
            elf.file.name,
            {
                name: value.hex() if isinstance(value := getattr(part, name), bytes) else value
                for part in (header, config)
                for name in part.OFFSETS
            },
            image_at=start,
            place=sigstruct_at,
        ),
    )


def _config(file: File, at: int, header: Header) -> Config:
    length = header.size - Header.SIZE - _BEHIND
    if length not in (16, 24, 56, 64):
        file.damaged(
            at, f"properties of {header.size} bytes, as no Open Enclave SDK is known to write"
        )
    most = MAXIMUM_SIZE // PAGE_SIZE
    for name, limit in (
        ("num_heap_pages", most),
        ("num_stack_pages", most),
        ("num_tcs", _MOST_THREADS),
    ):
        if getattr(header, name) > limit:
            file.damaged(
                at + Header.OFFSETS[name], f"{name} is {getattr(header, name)}, over {limit}"
            )
    content = file.read(at + Header.SIZE, length, "properties of .oeinfo")
    if length < 56:
        old = OldConfig.decode(content)
        return Config.blank().replace(
            product_id=old.product_id,
            security_version=old.security_version,
            attributes=old.attributes,
        )
    config = Config.decode(content.ljust(Config.SIZE, b"\0"))
    if config.start_address % PAGE_SIZE:
        file.damaged(
            at + Header.SIZE + 56, f"start address {config.start_address:#x} is not page aligned"
        )
    return config


def _module(elf: Elf, rva: int) -> _Module:
    runs: list[PageRun] = []
    end = 0
    for segment in elf.load_segments():
        header = segment.header
        if header.p_vaddr + header.p_memsz > MAXIMUM_SIZE:
            elf.file.damaged(
                segment.header_at,
                f"segment ends at {header.p_vaddr + header.p_memsz:#x}, "
                f"the largest enclave at {MAXIMUM_SIZE:#x}",
            )
        if end > header.p_vaddr & -PAGE_SIZE:
            elf.file.damaged(
                segment.header_at,
                f"segment at {header.p_vaddr:#x} overlaps the one before it, which ends at {end:#x}",
            )
        flags = SECINFO_REG
        for bit, permission in (
            (elf_tables.PF_R, SECINFO_R),
            (elf_tables.PF_W, SECINFO_W),
            (elf_tables.PF_X, SECINFO_X),
        ):
            flags |= permission if header.p_flags & bit else 0
        part = elf.file.part(header.p_offset, header.p_filesz)
        runs += segment_runs(part, header.p_vaddr, header.p_memsz, flags)
        end = header.p_vaddr + header.p_memsz
    sections = {section.name: section for section in elf.sections()}
    module = _Module(elf, rva, runs, page_up(end), sections, _Symbols(elf))
    tables = [elf.content(sections[name]) if name in sections else b"" for name in _RELA_SECTIONS]
    # Without .rela.dyn the loader does not look at the other.
    if tables[0]:
        module.relocations = b"".join(tables)
    return module


_RELA_SECTIONS = (b".rela.dyn", b".rela.plt")


# The offset in the thread's storage, so that the enclave needs no symbols.
def _thread_local(module: _Module, entry: Rela) -> Rela:
    if entry.r_info & 0xFFFF_FFFF != _TPOFF64:
        return entry
    index = entry.r_info >> 32
    if index >= len(module.symbols):
        module.elf.file.damaged(0, f"a relocation of symbol {index}, of {len(module.symbols)}")
    return entry.replace(r_addend=module.symbols.values[index])


def _needed(elf: Elf, rva: int) -> list[_Module]:
    """Read the module that lies beside the enclave, which the loader links to it."""
    offset = elf.dynamic().get(elf_tables.DT_NEEDED)
    if offset is None:
        return []
    strings = elf.section(b".dynstr")
    content = b"" if strings is None else elf.content(strings)
    name = content[offset : offset + _LONGEST_NAME].split(b"\0")[0].decode(errors="replace")
    if strings is not None and not name.isprintable():
        elf.file.damaged(
            strings.header.sh_offset, "the module that is needed has no name of a file"
        )
    path = os.path.join(  # noqa: PTH118 (a path as it was given)
        os.path.dirname(elf.file.name),  # noqa: PTH120
        os.path.basename(name),  # noqa: PTH119
    )
    return [_module(Elf(File.open(path)), rva)]


def _relocations(modules: list[_Module]) -> bytes:
    table = bytearray()
    for module, other in zip(modules, modules[::-1], strict=True):
        for found in elf_tables.records(Rela, module.relocations):
            entry = _thread_local(module, found)
            table += (_linked(module, other, entry) if len(modules) > 1 else entry).encode()
    section = modules[1].sections.get(b".dynamic") if len(modules) > 1 else None
    if section is not None:
        module = modules[1]
        entries = elf_tables.records(elf_tables.Dyn, module.elf.content(section))
        for number, dynamic in enumerate(entries):
            if dynamic.d_tag == elf_tables.DT_NULL:
                break
            if dynamic.d_tag in _RELOCATED_TAGS:
                table += Rela(
                    section.header.sh_addr + 16 * number + 8 + module.rva,
                    _RELATIVE,
                    dynamic.d_val + module.rva & _MASK,
                ).encode()
    return bytes(table).ljust(page_up(len(table)), b"\0")


def _linked(module: _Module, other: _Module, entry: Rela) -> Rela:
    kind, index = entry.r_info & 0xFFFF_FFFF, entry.r_info >> 32
    offset = entry.r_offset + module.rva & _MASK
    if kind == _RELATIVE:
        return entry.replace(r_offset=offset, r_addend=entry.r_addend + module.rva & _MASK)
    if kind not in (_64, _GLOB_DAT, _JUMP_SLOT) or index >= len(module.symbols):
        return entry.replace(r_offset=offset)
    addend = entry.r_addend if kind == _64 else 0
    info = entry.r_info & ~0xFFFF_FFFF | _RELATIVE
    name = module.symbols.names[index]
    for where in (module, other):
        value = where.symbols.defined(name)
        if value is not None:
            return Rela(offset, info, where.rva + value + addend & _MASK)
    if module.symbols.infos[index] >> 4 != _WEAK:
        module.elf.file.damaged(
            0, f"symbol {name.decode(errors='replace')!r:.80} is defined nowhere"
        )
    return entry.replace(r_offset=offset, r_info=info)


def _tls(module: _Module) -> tuple[int, int, int, int, int]:
    """Return address, size and alignment of .tdata, size and alignment of .tbss."""
    data, bss = module.sections.get(b".tdata"), module.sections.get(b".tbss")
    address = data.header.sh_addr if data is not None else 0
    align = data.header.sh_addralign if data is not None else 0
    for segment in module.elf.segments:
        header = segment.header
        if header.p_type == elf_tables.PT_TLS and header.p_vaddr == address:
            align = header.p_align
    return (
        address,
        data.header.sh_size if data is not None else 0,
        align,
        bss.header.sh_size if bss is not None else 0,
        bss.header.sh_addralign if bss is not None else 0,
    )


def _tls_pages(module: _Module) -> int:
    _, tdata, tdata_align, tbss, tbss_align = _tls(module)
    size = sum(
        -(-length // max(1, align)) * max(1, align)
        for length, align in ((tdata, tdata_align), (tbss, tbss_align))
    )
    if size > MAXIMUM_SIZE:
        module.elf.file.damaged(0, f"thread-local storage of {size:#x} bytes")
    return page_up(size) // PAGE_SIZE


def _written(modules: list[_Module], info: ImageInfo, tls_pages: int) -> list[tuple[int, bytes]]:
    """Return what the loader writes into variables of the image, each by its address."""
    main = modules[0]
    address, tdata, tdata_align, tbss, tbss_align = _tls(main)
    values = [
        (b"_enclave_rva", main.symbols.value(b"_enclave_rva") or 0),
        (b"_reloc_rva", info.reloc_rva),
        (b"_reloc_size", info.reloc_size),
        (b"_td_from_tcs_offset", (tls_pages + _CONTROL_PAGES) * PAGE_SIZE),
    ]
    if tdata:
        values += [
            (b"_tdata_rva", address),
            (b"_tdata_size", tdata),
            (b"_tdata_align", tdata_align),
        ]
    if tbss:
        values += [(b"_tbss_size", tbss), (b"_tbss_align", tbss_align)]
    written = []
    for name, value in values:
        at = main.symbols.value(name)
        if at is not None:
            written.append((at, value.to_bytes(8, "little")))
    where = main.symbols.value(b"_module_info")
    if len(modules) > 1 and where is not None:
        module = modules[1]
        words = [module.rva]
        for name in (b".init_array", b".fini_array"):
            array = module.sections.get(name)
            words += (
                [0, 0]
                if array is None
                else [module.rva + array.header.sh_addr, array.header.sh_size]
            )
        written.append((where, b"".join(word.to_bytes(8, "little") for word in words)))
    return written


def _threads(header: Header, heap_rva: int, tls_pages: int, base: int, entry: int) -> list[PageRun]:
    runs = []
    at = heap_rva

    def add(
        pages: int,
        name: str,
        *,
        fill: int = 0,
        flags: int = _RW,
        data: Content | None = None,
        measured: bool = True,
    ) -> None:
        nonlocal at
        length = pages * PAGE_SIZE
        if length:
            content = Fill(fill, length) if fill else data
            runs.append(PageRun(at, length, flags, content, measured, name))
        at += length

    add(header.num_heap_pages, "heap", measured=False)
    for number in range(1, header.num_tcs + 1):
        suffix = f", thread {number}"
        at += PAGE_SIZE
        add(header.num_stack_pages, f"stack{suffix}", fill=_STACK_FILL)
        at += PAGE_SIZE
        segment = base + at + (tls_pages + _CONTROL_PAGES) * PAGE_SIZE
        tcs = Tcs.blank().replace(
            ossa=base + at + PAGE_SIZE,
            nssa=2,
            oentry=base + entry & _MASK,
            ofsbasgx=segment,
            ogsbasgx=segment,
            fslimit=0xFFFF_FFFF,
            gslimit=0xFFFF_FFFF,
        )
        add(1, f"TCS{suffix}", flags=SECINFO_TCS, data=memoryview(tcs.encode()))
        add(2, f"SSA{suffix}")
        at += PAGE_SIZE
        add(tls_pages, f"thread-local storage{suffix}")
        add(_THREAD_DATA_PAGES, f"thread data{suffix}")
    return runs
