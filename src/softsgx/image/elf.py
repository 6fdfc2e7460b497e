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

Reading does not measure: that is softsgx.image.stream.measure().
"""

from __future__ import annotations

from softsgx.arch.secinfo import (
    PAGE_SIZE,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_TCS,
    SECINFO_W,
    SECINFO_X,
)
from softsgx.arch.structures import Tcs
from softsgx.errors import SoftsgxError
from softsgx.image import elf_tables
from softsgx.image.elf_tables import Elf, Segment
from softsgx.image.enclave import Enclave
from softsgx.image.file import File
from softsgx.image.stream import (
    MAXIMUM_SIZE,
    Image,
    PageRun,
    enclave_size,
    page_up,
    segment_runs,
)

FORMAT = "elf"

# What a loader would have to do to these files, and does not: they are not linked at fixed offsets.
_NEEDS_A_DYNAMIC_LINKER = {elf_tables.PT_INTERP: "PT_INTERP", elf_tables.PT_DYNAMIC: "PT_DYNAMIC"}
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
    if not 1 <= ssaframesize <= MAXIMUM_SIZE // PAGE_SIZE:
        raise SoftsgxError(f"SSAFRAMESIZE is at least one page, {ssaframesize} was given")
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
    for bit, permission in (
        (elf_tables.PF_R, SECINFO_R),
        (elf_tables.PF_W, SECINFO_W),
        (elf_tables.PF_X, SECINFO_X),
    ):
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
            _check_tcs(file, at, run.data[start : start + PAGE_SIZE])


def _check_tcs(file: File, at: int, page: memoryview) -> None:
    if not Tcs.reserved_is_zero(page):
        file.damaged(at, "TCS page: reserved bytes are not zero, EADD refuses it")
    tcs = Tcs.decode(page)
    for field in ("ossa", "ofsbasgx", "ogsbasgx"):
        if getattr(tcs, field) % PAGE_SIZE:
            file.damaged(
                at + Tcs.OFFSETS[field],
                f"TCS.{field.upper()} is {getattr(tcs, field):#x}, not page aligned",
            )
    if tcs.nssa == 0:
        file.damaged(at + Tcs.OFFSETS["nssa"], "TCS.NSSA is 0: no thread could enter")
