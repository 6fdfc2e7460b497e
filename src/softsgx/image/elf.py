# SPDX-License-Identifier: Apache-2.0
"""Enclaves as plain ELF files, as the Linux selftests and our examples build them.

The file is a static, position-fixed x86-64 executable, linked at address 0: a virtual address is an
offset from the enclave's base. Its PT_LOAD segments are the pages, in their order:

    segment 1      TCS pages, as the linker laid them out (OSSA, NSSA, OENTRY, ... are filled in);
                   added as PT_TCS without permissions
    all others     PT_REG pages with R, W, X of p_flags; SSA frames, stacks and data are in these

A segment starts at a page boundary; its last page is filled up with zeros, and p_memsz beyond p_filesz
is pages of zeros. Every page is measured. SIZE is the next power of two that holds the last page
(at least 8 KiB). The ELF entry point, sections and symbols are not used: a thread starts at its
TCS's OENTRY. A loader adds each segment from p_vaddr to p_vaddr + p_memsz, rounded up to pages.

    cc -nostdlib -static -no-pie -ffreestanding -fpie -Wl,-T,enclave.lds -Wl,--build-id=none

Reading does not measure: that is softsgx.image.stream.measure(). A file that is written here has its pages at their
offsets from the first one on, by which the loader of the kernel's selftests places them.
"""

from __future__ import annotations

from typing import IO

from softsgx.arch.secinfo import (
    PAGE_SIZE,
    SECINFO_PAGE_TYPE,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_TCS,
    SECINFO_W,
    SECINFO_X,
)
from softsgx.arch.structures import Tcs
from softsgx.errors import SoftsgxError
from softsgx.image import elf_tables
from softsgx.image.elf_tables import Ehdr, Elf, Phdr, Segment
from softsgx.image.enclave import Enclave
from softsgx.image.file import File
from softsgx.image.stream import (
    MAXIMUM_SIZE,
    MAXIMUM_SSAFRAMESIZE,
    Chunks,
    Image,
    PageRun,
    enclave_size,
    page_up,
    segment_runs,
)

FORMAT = "elf"

# What a loader would have to do to these files, and does not: they are not linked at fixed offsets.
_NEEDS_A_DYNAMIC_LINKER = {elf_tables.PT_INTERP: "PT_INTERP", elf_tables.PT_DYNAMIC: "PT_DYNAMIC"}
_PERMISSIONS = (
    (elf_tables.PF_R, SECINFO_R),
    (elf_tables.PF_W, SECINFO_W),
    (elf_tables.PF_X, SECINFO_X),
)
_TYPES = {1: "ET_REL", 3: "ET_DYN", 4: "ET_CORE"}


def read(path: str, ssaframesize: int = 1) -> Image:
    """Read an enclave's pages from an ELF file; SSAFRAMESIZE is the host's choice, in pages.

    SoftsgxError says file, offset and reason if the file is not such an enclave.
    """
    return image(Elf(File.open(path)), ssaframesize)


def decode(content: bytes, name: str, ssaframesize: int = 1) -> Image:
    """Read an enclave's pages from an ELF file's content; `name` is for messages."""
    return image(Elf(File.of(content, name)), ssaframesize)


def enclaves(elf: Elf, ssaframesize: int) -> tuple[Enclave, ...]:
    """Read the one enclave of a file."""
    return (Enclave(FORMAT, image(elf, ssaframesize)),)


def image(elf: Elf, ssaframesize: int) -> Image:
    """Read an enclave's pages."""
    if not 1 <= ssaframesize <= MAXIMUM_SSAFRAMESIZE:
        raise SoftsgxError(
            f"SSAFRAMESIZE is from 1 to {MAXIMUM_SSAFRAMESIZE} pages, {ssaframesize} was given"
        )
    file = elf.file
    if elf.header.e_type != elf_tables.ET_EXEC:
        file.damaged(
            0x10,
            f"type is {_TYPES.get(elf.header.e_type, elf.header.e_type)}, not ET_EXEC; link it with "
            "-static -no-pie at address 0",
        )
    for segment in elf.segments:
        kind = _NEEDS_A_DYNAMIC_LINKER.get(segment.header.p_type)
        if kind is not None:
            file.damaged(
                segment.header_at,
                f"{kind}: an enclave has no dynamic linker; "
                "link it with -static -no-pie at address 0",
            )
    runs: list[PageRun] = []
    end = 0
    for number, segment in enumerate(elf.load_segments()):
        header = segment.header
        _check_segment(file, segment)
        if header.p_vaddr < end:
            file.damaged(
                segment.header_at,
                f"segment at {header.p_vaddr:#x} overlaps the one before it, which ends at {end:#x}",
            )
        secinfo = SECINFO_TCS if number == 0 else _permissions(file, segment)
        part = file.part(header.p_offset, header.p_filesz)
        segment_pages = segment_runs(part, header.p_vaddr, header.p_memsz, secinfo)
        if number == 0:
            _check_tcs_pages(file, segment, segment_pages)
        runs += segment_pages
        end = header.p_vaddr + page_up(header.p_memsz)
    return Image(enclave_size(end), ssaframesize, tuple(runs))


def _check_segment(file: File, segment: Segment) -> None:
    at, header = segment.header_at, segment.header
    if header.p_vaddr % PAGE_SIZE:
        file.damaged(at, f"segment at {header.p_vaddr:#x} does not start at a page boundary")
    if header.p_memsz == 0:
        file.damaged(at, f"segment at {header.p_vaddr:#x} is empty")
    if header.p_vaddr + header.p_memsz > MAXIMUM_SIZE:
        file.damaged(
            at,
            f"segment ends at {header.p_vaddr + header.p_memsz:#x}, "
            f"the largest enclave at {MAXIMUM_SIZE:#x}",
        )


def _permissions(file: File, segment: Segment) -> int:
    p_flags = segment.header.p_flags
    if p_flags & elf_tables.PF_W and not p_flags & elf_tables.PF_R:
        file.damaged(segment.header_at, "segment is writable but not readable")
    flags = SECINFO_REG
    for bit, permission in _PERMISSIONS:
        if p_flags & bit:
            flags |= permission
    return flags


def _check_tcs_pages(file: File, segment: Segment, runs: list[PageRun]) -> None:
    header = segment.header
    if header.p_flags & elf_tables.PF_X:
        file.damaged(
            segment.header_at,
            "the first segment is executable, but it is to hold the TCS pages",
        )
    for run in runs:
        for start in range(0, run.length, PAGE_SIZE):
            at = header.p_offset + run.offset - header.p_vaddr + start
            if run.data is None:
                file.damaged(at, "TCS page without content: NSSA is 0")
            wrong = _wrong_tcs(run.data[start : start + PAGE_SIZE])
            if wrong is not None:
                file.damaged(at + wrong[0], wrong[1])


def _wrong_tcs(page: memoryview) -> tuple[int, str] | None:
    """Return where in a TCS page what is wrong, None if nothing is."""
    if not Tcs.reserved_is_zero(page):
        return 0, "TCS page: reserved bytes are not zero, EADD refuses it"
    tcs = Tcs.decode(page)
    for field in ("ossa", "ofsbasgx", "ogsbasgx"):
        if getattr(tcs, field) % PAGE_SIZE:
            return (
                Tcs.OFFSETS[field],
                f"TCS.{field.upper()} is {getattr(tcs, field):#x}, not page aligned",
            )
    if tcs.nssa == 0:
        return Tcs.OFFSETS["nssa"], "TCS.NSSA is 0: no thread could enter"
    return None


def write(image: Image, out: IO[bytes]) -> None:
    """Write an image as such a file; SoftsgxError names the record that the format cannot say.

    SSAFRAMESIZE is not in the file.
    """
    segments = _segments(image)
    head = page_up(Ehdr.SIZE + len(segments) * Phdr.SIZE)
    first = segments[0][0]
    table = [
        Phdr(
            p_type=elf_tables.PT_LOAD,
            p_flags=_p_flags(flags),
            p_offset=head + offset - first,
            p_vaddr=offset,
            p_filesz=length,
            p_memsz=length,
            p_align=PAGE_SIZE,
        ).encode()
        for offset, length, flags in segments
    ]
    header = Ehdr(
        e_ident=elf_tables.MAGIC + b"\x02\x01\x01" + bytes(9),
        e_type=elf_tables.ET_EXEC,
        e_machine=elf_tables.EM_X86_64,
        e_version=1,
        e_entry=0,
        e_phoff=Ehdr.SIZE,
        e_shoff=0,
        e_ehsize=Ehdr.SIZE,
        e_phentsize=Phdr.SIZE,
        e_phnum=len(segments),
        e_shentsize=0,
        e_shnum=0,
        e_shstrndx=0,
    )
    out.write(header.encode() + b"".join(table))
    for run in image.runs:
        if run.data is not None:
            for offset, content in run.pieces():
                out.seek(head + offset - first)
                out.write(content)
    offset, length, _ = segments[-1]
    # Pages of zeros are holes.
    out.truncate(head + offset + length - first)


def _p_flags(secinfo_flags: int) -> int:
    # A loader maps it as the segment says, and a thread could not enter by a TCS that is mapped for nothing.
    if _is_tcs(secinfo_flags):
        return elf_tables.PF_R | elf_tables.PF_W
    return sum(bit for bit, permission in _PERMISSIONS if secinfo_flags & permission)


def _segments(image: Image) -> list[tuple[int, int, int]]:
    """Return offset, length and SECINFO.FLAGS of what becomes a segment."""
    segments: list[tuple[int, int, int]] = []
    end = 0
    for number, record in enumerate(image.records, 1):
        wrong = _inexpressible(record, end, segments)
        if wrong is not None:
            raise SoftsgxError(f"record {number}, at {record.offset:#x}, is {wrong}")
        assert isinstance(record, PageRun)  # noqa: S101 (for the type checker)
        start, length, flags = segments[-1] if segments else (0, 0, 0)
        if segments and (record.offset, record.secinfo_flags) == (end, flags):
            segments[-1] = start, length + record.length, flags
        else:
            segments.append((record.offset, record.length, record.secinfo_flags))
        end = record.offset + record.length
    if not segments:
        raise SoftsgxError("it has no pages, but an ELF file has segments")
    if image.size != enclave_size(end):
        raise SoftsgxError(
            f"SIZE is {image.size:#x}, but a loader of ELF files makes it {enclave_size(end):#x}"
        )
    most = elf_tables.MOST_SEGMENTS
    if len(segments) > most:
        raise SoftsgxError(f"{len(segments)} segments are needed, and {most} are what Linux loads")
    return segments


def _inexpressible(
    record: PageRun | Chunks, end: int, segments: list[tuple[int, int, int]]
) -> str | None:
    """Return what of a record a loader of such a file could not do, None if it can."""
    if isinstance(record, Chunks):
        return "EEXTEND apart from its page"
    if not record.measured:
        return "not measured, but a loader of ELF files measures every page"
    if record.offset < end:
        return f"below {end:#x}, where the one before it ends; segments ascend"
    if record.is_tcs:
        if segments and (len(segments) > 1 or record.offset != end or not _is_tcs(segments[0][2])):
            return "a TCS that does not follow the others, which are the first segment"
        for start in range(0, record.length, PAGE_SIZE):
            wrong = _wrong_tcs(record.content(start, PAGE_SIZE))
            if wrong is not None:
                return f"a TCS that no ELF file may have: {wrong[1]}"
        return None
    if not segments:
        return "no TCS, but the first segment is the TCS pages"
    if record.secinfo_flags & SECINFO_W and not record.secinfo_flags & SECINFO_R:
        return "writable but not readable, which no segment may be"
    return None


def _is_tcs(secinfo_flags: int) -> bool:
    return secinfo_flags & SECINFO_PAGE_TYPE == SECINFO_TCS
