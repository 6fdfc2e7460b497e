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

from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

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
from softsgx.image.stream import Image, PageRun, enclave_size

# No processor has reported a larger CPUID.12H:EDX; it also bounds what a damaged file can ask for.
MAXIMUM_SIZE = 1 << 36

_PF_X, _PF_W, _PF_R = 1, 2, 4
# What a loader would have to do to these files, and does not: they are not linked at fixed offsets.
_NEEDS_A_DYNAMIC_LINKER = ("PT_INTERP", "PT_DYNAMIC")


class _Segment(NamedTuple):
    header_at: int  # where its program header is in the file
    offset: int
    vaddr: int
    filesz: int
    memsz: int
    flags: int


def read(path: str, ssaframesize: int = 1) -> Image:
    """Read an enclave's pages from an ELF file; SSAFRAMESIZE is the host's choice, in pages.

    SoftsgxError says file, offset and reason if the file is not such an enclave.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SoftsgxError(f"{path}: cannot read the enclave: {error.strerror}") from error
    return decode(content, path, ssaframesize)


def decode(content: bytes, name: str, ssaframesize: int = 1) -> Image:
    """Read an enclave's pages from an ELF file's content; `name` is for messages."""
    if not 1 <= ssaframesize <= MAXIMUM_SIZE // PAGE_SIZE:
        raise SoftsgxError(f"SSAFRAMESIZE is at least one page, {ssaframesize} was given")
    segments = _load_segments(content, name)
    runs: list[PageRun] = []
    end = 0
    for number, segment in enumerate(segments):
        if segment.vaddr < end:
            raise _damaged(
                name,
                segment.header_at,
                f"segment at {segment.vaddr:#x} overlaps the one before it, which ends at {end:#x}",
            )
        secinfo = SECINFO_TCS if number == 0 else _permissions(name, segment)
        segment_runs = _pages(content, segment, secinfo)
        if number == 0:
            _check_tcs_pages(name, segment, segment_runs)
        runs += segment_runs
        end = segment.vaddr + _page_up(segment.memsz)
    return Image(enclave_size(end), ssaframesize, tuple(runs))


def _damaged(name: str, offset: int, reason: str) -> SoftsgxError:
    return SoftsgxError(f"{name}: offset {offset:#x}: {reason}")


def _page_up(length: int) -> int:
    return (length + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1)


def _load_segments(content: bytes, name: str) -> list[_Segment]:
    from elftools.common.exceptions import ELFError  # noqa: PLC0415
    from elftools.common.utils import struct_parse  # noqa: PLC0415
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415

    stream = BytesIO(content)
    try:
        elf = ELFFile(stream)
    except ELFError as error:
        raise _damaged(name, 0, "not an ELF file, or one cut off in its header") from error
    _check_header(elf, name)

    first, each, count = elf["e_phoff"], elf["e_phentsize"], elf["e_phnum"]
    smallest = elf.structs.Elf_Phdr.sizeof()
    if each < smallest:
        raise _damaged(name, 0x36, f"program headers of {each} bytes, not {smallest}")
    if count == 0:
        raise _damaged(name, 0x38, "no program headers: link it with the linker, not with -r")
    if first + each * count > len(content):
        raise _damaged(
            name,
            first,
            f"{count} program headers do not fit a file of {len(content):#x} bytes",
        )
    segments = []
    for number in range(count):
        header_at = first + number * each
        header = struct_parse(elf.structs.Elf_Phdr, stream, stream_pos=header_at)
        if header["p_type"] in _NEEDS_A_DYNAMIC_LINKER:
            raise _damaged(
                name,
                header_at,
                f"{header['p_type']}: an enclave has no dynamic linker; "
                "link it with -static -no-pie at address 0",
            )
        if header["p_type"] == "PT_LOAD":
            segment = _Segment(
                header_at,
                header["p_offset"],
                header["p_vaddr"],
                header["p_filesz"],
                header["p_memsz"],
                header["p_flags"],
            )
            _check_segment(name, segment, len(content))
            segments.append(segment)
    if not segments:
        raise _damaged(name, first, "no PT_LOAD segment, so no pages")
    return segments


def _check_header(elf: Any, name: str) -> None:
    if elf.elfclass != 64 or not elf.little_endian:
        raise _damaged(name, 4, "not a little-endian 64-bit ELF file")
    if elf["e_machine"] != "EM_X86_64":
        raise _damaged(name, 0x12, f"machine is {elf['e_machine']}, not EM_X86_64")
    if elf["e_type"] != "ET_EXEC":
        raise _damaged(
            name,
            0x10,
            f"type is {elf['e_type']}, not ET_EXEC; link it with -static -no-pie at address 0",
        )


def _check_segment(name: str, segment: _Segment, file_length: int) -> None:
    at = segment.header_at
    if segment.vaddr % PAGE_SIZE:
        raise _damaged(name, at, f"segment at {segment.vaddr:#x} does not start at a page boundary")
    if segment.memsz == 0:
        raise _damaged(name, at, f"segment at {segment.vaddr:#x} is empty")
    if segment.filesz > segment.memsz:
        raise _damaged(
            name,
            at,
            f"segment has {segment.filesz:#x} bytes in the file, {segment.memsz:#x} in memory",
        )
    if segment.offset + segment.filesz > file_length:
        raise _damaged(
            name,
            at,
            f"segment's content, {segment.filesz:#x} bytes at {segment.offset:#x}, "
            f"is cut off: the file has {file_length:#x} bytes",
        )
    if segment.vaddr + segment.memsz > MAXIMUM_SIZE:
        raise _damaged(
            name,
            at,
            f"segment ends at {segment.vaddr + segment.memsz:#x}, "
            f"the largest enclave at {MAXIMUM_SIZE:#x}",
        )


def _permissions(name: str, segment: _Segment) -> int:
    if segment.flags & _PF_W and not segment.flags & _PF_R:
        raise _damaged(name, segment.header_at, "segment is writable but not readable")
    flags = SECINFO_REG
    for bit, permission in ((_PF_R, SECINFO_R), (_PF_W, SECINFO_W), (_PF_X, SECINFO_X)):
        if segment.flags & bit:
            flags |= permission
    return flags


# Whole pages of the file are not copied; the page where the file's content ends is.
def _pages(content: bytes, segment: _Segment, secinfo: int) -> list[PageRun]:
    view = memoryview(content)[segment.offset : segment.offset + segment.filesz]
    whole = segment.filesz & ~(PAGE_SIZE - 1)
    runs = []
    if whole:
        runs.append(PageRun(segment.vaddr, whole, secinfo, view[:whole], measured=True))
    if segment.filesz > whole:
        padded = memoryview(bytes(view[whole:]).ljust(PAGE_SIZE, b"\0"))
        runs.append(PageRun(segment.vaddr + whole, PAGE_SIZE, secinfo, padded, measured=True))
    filled, end = _page_up(segment.filesz), _page_up(segment.memsz)
    if end > filled:
        runs.append(
            PageRun(segment.vaddr + filled, end - filled, secinfo, data=None, measured=True)
        )
    return runs


def _check_tcs_pages(name: str, segment: _Segment, runs: list[PageRun]) -> None:
    if segment.flags & _PF_X:
        raise _damaged(
            name,
            segment.header_at,
            "the first segment is executable, but it is to hold the TCS pages",
        )
    for run in runs:
        for page in range(0, run.length, PAGE_SIZE):
            at = segment.offset + run.offset - segment.vaddr + page
            if run.data is None:
                raise _damaged(name, at, "TCS page without content: NSSA is 0")
            if not Tcs.reserved_is_zero(run.data, page):
                raise _damaged(name, at, "TCS page: reserved bytes are not zero, EADD refuses it")
            tcs = Tcs.decode(run.data, page)
            for field in ("ossa", "ofsbasgx", "ogsbasgx"):
                if getattr(tcs, field) % PAGE_SIZE:
                    raise _damaged(
                        name,
                        at + Tcs.OFFSETS[field],
                        f"TCS.{field.upper()} is {getattr(tcs, field):#x}, not page aligned",
                    )
            if tcs.nssa == 0:
                raise _damaged(
                    name, at + Tcs.OFFSETS["nssa"], "TCS.NSSA is 0: no thread could enter"
                )
