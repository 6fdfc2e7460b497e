# SPDX-License-Identifier: Apache-2.0
"""Enclaves of the Intel SGX SDK: an ELF shared object and its metadata in the section .note.sgxmeta.

The section is one note, "sgx_metadata", and its description one or more metadata, one behind the other, each with
its own SIGSTRUCT: version 1 for loaders without EDMM, 2 and 3 for those with it, and 10 more where the enclave says its
ELRANGE. A metadata has directories: the patches of the file that come before anything is added (the global data of
the trusted runtime, and what of the ELF headers must not be measured), the layout of what follows the segments (heap,
guard pages, and for each thread stack, SSA, TCS and thread data, repeated by groups), and extensions.

What the loader does, in its order:

    ECREATE   SIZE and SSAFRAMESIZE of the metadata, or SIZE of its ELRANGE
    segments  PT_LOAD in the file's order, all measured; a page that a relocation changes is also writable where
              the file has text relocations
    layout    entries in their order; a group repeats the entries before it, each time a step further

Sources: intel/linux-sgx, common/inc/internal/metadata.h and psw/urts/loader.cpp, of 2017 to 2025.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from softsgx.arch.layout import U16, U32, U64, Record, at, layout, raw
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    SECINFO_REG,
    SECINFO_TCS,
    SECINFO_W,
)
from softsgx.arch.structures import Tcs
from softsgx.image import elf_tables
from softsgx.image.elf_tables import Elf, Phdr, Rela, Segment
from softsgx.image.enclave import Enclave, signed_or_none
from softsgx.image.stream import (
    MAXIMUM_SIZE,
    MAXIMUM_SSAFRAMESIZE,
    Computed,
    Fill,
    Image,
    PageRun,
    added_flags,
    page_up,
    part_of,
    segment_runs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from softsgx.image.file import File

SECTION = b".note.sgxmeta"
FORMAT = "intel-sdk"

_MAGIC = 0x86A8_0294_635D_0E4C
_NOTE_NAME = b"sgx_metadata\0"
# A major version that is so much larger has an ELRANGE of its own.
_ELRANGE_GAP = 10
_EXTEND_SHARED_OBJECT = 0x1002
_GROUP = 1 << 12
_EADD, _EEXTEND, _POST_ADD = 1, 2, 8
# No enclave has so many pieces, and no file so many metadata; it bounds what a damaged one can ask for.
_MOST_RUNS = 1 << 16
_MOST_METADATA = 16
_LAYOUT_NAMES = {
    1: "heap",
    2: "heap, initial",
    3: "heap, up to the maximum",
    4: "TCS",
    5: "thread data",
    6: "SSA",
    7: "stack, up to the maximum",
    8: "stack",
    10: "guard",
    11: "heap, dynamic",
    12: "heap, dynamic initial",
    13: "heap, dynamic maximum",
    14: "TCS, dynamic",
    15: "thread data, dynamic",
    16: "SSA, dynamic",
    17: "stack, dynamic maximum",
    18: "stack, dynamic",
    20: "reserved memory",
    21: "reserved memory, initial",
    22: "reserved memory, maximum",
    23: "user region",
}


@layout(size=12)
class Nhdr(Record):
    """ELF note."""

    n_namesz: int = at(0, U32)
    n_descsz: int = at(4, U32)
    n_type: int = at(8, U32)


@layout(size=1904)
class Metadata(Record):
    """Head of a metadata; tables and data follow, at offsets from its begin."""

    magic_num: int = at(0, U64)
    version: int = at(8, U64)
    size: int = at(16, U32)
    tcs_policy: int = at(20, U32)
    ssa_frame_size: int = at(24, U32)
    max_save_buffer_size: int = at(28, U32)
    desired_misc_select: int = at(32, U32)
    tcs_min_pool: int = at(36, U32)
    enclave_size: int = at(40, U64)
    attributes: int = at(48, U64)
    xfrm: int = at(56, U64)
    enclave_css: bytes = at(64, raw(1808))
    patch_offset: int = at(1872, U32)
    patch_size: int = at(1876, U32)
    layout_offset: int = at(1880, U32)
    layout_size: int = at(1884, U32)
    elrange_offset: int = at(1888, U32)
    elrange_size: int = at(1892, U32)
    extend_offset: int = at(1896, U32)
    extend_size: int = at(1900, U32)


@layout(size=32)
class LayoutEntry(Record):
    """What is added: so many pages, filled by content of the metadata or by a word."""

    id: int = at(0, U16)
    attributes: int = at(2, U16)
    page_count: int = at(4, U32)
    rva: int = at(8, U64)
    content_size: int = at(16, U32)
    content_offset: int = at(20, U32)
    si_flags: int = at(24, U64)


@layout(size=32)
class LayoutGroup(Record):
    """The entries before it again, so often, each time a step further."""

    id: int = at(0, U16)
    entry_count: int = at(2, U16)
    load_times: int = at(4, U32)
    load_step: int = at(8, U64)


@layout(size=32)
class PatchEntry(Record):
    """Bytes of the metadata that are written over the file."""

    dst: int = at(0, U64)
    src: int = at(8, U32)
    size: int = at(12, U32)


@layout(size=24)
class ElrangeEntry(Record):
    """Where the image is in an ELRANGE that the enclave chose."""

    enclave_image_address: int = at(0, U64)
    elrange_start_address: int = at(8, U64)
    elrange_size: int = at(16, U64)


@layout(size=16)
class ExtendEntry(Record):
    """An extension."""

    entry_id: int = at(0, U32)
    size: int = at(4, U32)
    offset: int = at(8, U32)


@layout(size=32)
class SharedObject(Record):
    """A shared object inside the enclave's file that is loaded, too (the OpenSSL FIPS provider)."""

    file_offset: int = at(0, U64)
    mem_offset: int = at(8, U64)
    size: int = at(16, U64)


def read(elf: Elf) -> tuple[Enclave, ...]:
    """Read every enclave that the file's metadata describe, the newest metadata first."""
    section = elf.section(SECTION)
    assert section is not None  # noqa: S101 (by which the caller chose this reader)
    file = elf.file
    at, size = section.header.sh_offset, section.header.sh_size
    note = Nhdr.decode(file.read(at, Nhdr.SIZE, "note of .note.sgxmeta"))
    name = file.read(at + Nhdr.SIZE, len(_NOTE_NAME), "name of the note")
    if note.n_namesz != len(_NOTE_NAME) or name != _NOTE_NAME:
        file.damaged(at, "the note in .note.sgxmeta is not named sgx_metadata")
    # The SDK does not align what follows the name.
    first = at + Nhdr.SIZE + len(_NOTE_NAME)
    end = min(at + size, first + note.n_descsz, file.size)
    enclaves: list[tuple[tuple[int, int], Enclave]] = []
    at = first
    while at + Metadata.SIZE <= end:
        head = Metadata.decode(file.read(at, Metadata.SIZE, "metadata"))
        if head.magic_num != _MAGIC:
            break
        if len(enclaves) == _MOST_METADATA:
            file.damaged(at, f"more than {_MOST_METADATA} metadata")
        if head.size < Metadata.SIZE:
            file.damaged(at + 16, f"metadata of {head.size:#x} bytes, less than its head")
        # What is newer within a generation, an ELRANGE of its own or not, is what a loader prefers.
        newness = (head.version >> 32) % _ELRANGE_GAP, head.version & 0xFFFF_FFFF
        enclaves.append((newness, _Loader(elf, at, head).enclave()))
        at += head.size
    if not enclaves:
        file.damaged(first, "no metadata of the Intel SDK: the enclave is not signed yet")
    return tuple(enclave for _, enclave in sorted(enclaves, key=lambda one: one[0], reverse=True))


class _Loader:
    def __init__(self, elf: Elf, start: int, head: Metadata) -> None:
        self._elf = elf
        self._file = elf.file
        self._start = start
        self._head = head
        self._major, self._minor = head.version >> 32, head.version & 0xFFFF_FFFF
        self._content = elf.file.read(start, head.size, "metadata")
        self._check()

    def _damaged(self, offset: int, reason: str) -> NoReturn:
        self._file.damaged(self._start + offset, f"metadata {self._major}.{self._minor}: {reason}")

    def _check(self) -> None:
        head = self._head
        if self._major % _ELRANGE_GAP not in (1, 2, 3):
            self._damaged(8, "of a version that is not known here: 1 to 3, and 11 to 13, are")
        if not 1 <= head.ssa_frame_size <= MAXIMUM_SSAFRAMESIZE:
            self._damaged(24, f"SSAFRAMESIZE is {head.ssa_frame_size}")
        size = head.enclave_size
        if size.bit_count() != 1 or not 2 * PAGE_SIZE <= size <= MAXIMUM_SIZE:
            self._damaged(40, f"SIZE is {size:#x}, not a power of two from 8 KiB on")

    def _table(self, kind: type[Record], offset: int, size: int, what: str) -> Iterator[int]:
        if offset + size > len(self._content):
            self._damaged(offset, f"the table of {what}, {size:#x} bytes, is cut off")
        yield from range(offset, offset + size - kind.SIZE + 1, kind.SIZE)

    def enclave(self) -> Enclave:
        head = self._head
        size, shift = self._elrange()
        file = self._file.patched(self._patches())
        runs = self._segments(file)
        runs += self._shared_object(file)
        runs += self._layout()
        for run in runs:
            if run.offset + run.length + shift > size:
                self._damaged(
                    40, f"pages to {run.offset + run.length:#x} are beyond SIZE {size:#x}"
                )
        if shift:
            runs = [replace(run, offset=run.offset + shift) for run in runs]
        return Enclave(
            FORMAT,
            Image(size, head.ssa_frame_size, tuple(runs)),
            f"metadata {self._major}.{self._minor}",
            signed_or_none(head.enclave_css),
            self._start + Metadata.OFFSETS["enclave_css"],
            self._file.name,
            {
                "metadata_version": f"{self._major}.{self._minor}",
                "metadata_offset": self._start,
                "metadata_size": head.size,
                "tcs_policy": "unbound" if head.tcs_policy else "bound",
                "ssa_frame_size": head.ssa_frame_size,
                "max_save_buffer_size": head.max_save_buffer_size,
                "desired_misc_select": head.desired_misc_select,
                "tcs_min_pool": head.tcs_min_pool,
                "enclave_size": head.enclave_size,
                "attributes": head.attributes,
                "xfrm": head.xfrm,
            },
            image_at=shift,
            place=self._start + Metadata.OFFSETS["enclave_css"],
        )

    def _elrange(self) -> tuple[int, int]:
        head = self._head
        if self._major <= _ELRANGE_GAP:
            return head.enclave_size, 0
        if head.elrange_size != ElrangeEntry.SIZE or (
            head.elrange_offset + ElrangeEntry.SIZE > len(self._content)
        ):
            self._damaged(Metadata.OFFSETS["elrange_offset"], "no ELRANGE, which its version has")
        elrange = ElrangeEntry.decode(self._content, head.elrange_offset)
        size, start = elrange.elrange_size, elrange.elrange_start_address
        shift = elrange.enclave_image_address - start
        if (
            size.bit_count() != 1
            or not 2 * PAGE_SIZE <= size <= MAXIMUM_SIZE
            or start % size
            or shift % PAGE_SIZE
            or not 0 <= shift <= size - head.enclave_size
        ):
            self._damaged(
                head.elrange_offset,
                f"ELRANGE of {size:#x} bytes at {start:#x} does not hold the image at "
                f"{elrange.enclave_image_address:#x}",
            )
        return size, shift

    def _patches(self) -> list[tuple[int, bytes]]:
        head, patched = self._head, 0
        patches = []
        for offset in self._table(PatchEntry, head.patch_offset, head.patch_size, "patches"):
            patch = PatchEntry.decode(self._content, offset)
            if patch.src + patch.size > len(self._content):
                self._damaged(offset, f"a patch of {patch.size:#x} bytes is cut off")
            if patch.dst + patch.size > self._file.size:
                self._damaged(offset, f"a patch at {patch.dst:#x} of the file is beyond its end")
            patched += patch.size
            if patched > head.size:
                self._damaged(offset, "the patches have more bytes than the metadata")
            patches.append((patch.dst, self._content[patch.src : patch.src + patch.size]))
        return patches

    def _segments(self, file: File) -> list[PageRun]:
        relocated = self._relocated_pages()
        runs: list[PageRun] = []
        last: Phdr | None = None
        for segment in self._elf.load_segments():
            header = segment.header
            runs += self._old_guard(last, header.p_vaddr & -PAGE_SIZE)
            runs += _writable(_segment(self._file, file, segment), relocated)
            if last is None or header.p_vaddr > last.p_vaddr:
                last = header
        return runs + self._old_guard(last, None)

    # Loaders of metadata 1.3 rounded the size of a segment up before they added where it begins, which made a page
    # more of some; so the later ones add it, for the enclaves that were signed with it.
    def _old_guard(self, last: Phdr | None, following: int | None) -> list[PageRun]:
        if last is None or (self._major, self._minor) != (1, 3):
            return []
        end = page_up(last.p_vaddr + last.p_memsz)
        if end >= page_up(page_up(last.p_memsz) + last.p_vaddr):
            return []
        if following is not None and end >= following:
            return []
        flags = _permissions(last.p_flags)
        return [PageRun(end, PAGE_SIZE, flags, None, measured=True, name="page of metadata 1.3")]

    def _relocated_pages(self) -> list[int]:
        dynamic = self._elf.dynamic()
        if elf_tables.DT_TEXTREL not in dynamic:
            return []
        by_address = {section.header.sh_addr: section for section in self._elf.sections()}
        pages = set()
        for table, size in (
            (elf_tables.DT_RELA, elf_tables.DT_RELASZ),
            (elf_tables.DT_JMPREL, elf_tables.DT_PLTRELSZ),
        ):
            section = by_address.get(dynamic.get(table, -1))
            if section is None:
                continue
            content = self._file.read(section.header.sh_offset, dynamic.get(size, 0), "relocations")
            for entry in elf_tables.records(Rela, content):
                if entry.r_info & 0xFFFF_FFFF != elf_tables.R_X86_64_NONE:
                    pages.add(entry.r_offset & -PAGE_SIZE)
                    pages.add((entry.r_offset + 7) & -PAGE_SIZE)
        return sorted(pages)

    def _shared_object(self, file: File) -> list[PageRun]:
        head = self._head
        # What has no such directory has data there.
        if self._major % _ELRANGE_GAP == 2 or self._minor < (
            5 if self._major % _ELRANGE_GAP == 1 else 2
        ):
            return []
        runs: list[PageRun] = []
        for offset in self._table(ExtendEntry, head.extend_offset, head.extend_size, "extensions"):
            entry = ExtendEntry.decode(self._content, offset)
            if entry.entry_id != _EXTEND_SHARED_OBJECT:
                continue
            if runs:
                self._damaged(offset, "a second shared object inside")
            if entry.offset + SharedObject.SIZE > len(self._content):
                self._damaged(offset, "an extension is cut off")
            shared = SharedObject.decode(self._content, entry.offset)
            content = file.read(shared.file_offset, shared.size, "the shared object inside")
            inner = type(file).of(content, f"{file.name} (the shared object inside)")
            for segment in Elf(inner).load_segments():
                runs += [
                    replace(run, offset=run.offset + shared.mem_offset)
                    for run in _segment(inner, inner, segment)
                ]
        return runs

    def _layout(self) -> list[PageRun]:
        head, again = self._head, 0
        runs: list[PageRun] = []
        entries: list[LayoutEntry | None] = []
        for offset in self._table(LayoutEntry, head.layout_offset, head.layout_size, "the layout"):
            entry = LayoutEntry.decode(self._content, offset)
            if not entry.id & _GROUP:
                entries.append(entry)
                runs += self._entry(offset, entry, 0, "")
                continue
            entries.append(None)
            group = LayoutGroup.decode(self._content, offset)
            repeated = entries[-1 - group.entry_count : -1]
            if len(repeated) != group.entry_count or None in repeated:
                self._damaged(offset, f"a group of {group.entry_count} entries that are not there")
            again += group.load_times * max(1, len(repeated))
            if again > _MOST_RUNS or (group.load_times * group.load_step > head.enclave_size):
                self._damaged(
                    offset, f"a group {group.load_times} times, each {group.load_step:#x} further"
                )
            for time in range(1, group.load_times + 1):
                for repeat in repeated:
                    if repeat is not None:
                        delta = time * group.load_step
                        runs += self._entry(offset, repeat, delta, f", thread {time + 1}")
        return runs

    def _entry(self, offset: int, entry: LayoutEntry, delta: int, suffix: str) -> list[PageRun]:
        rva, length = entry.rva + delta, entry.page_count * PAGE_SIZE
        if not entry.attributes & _EADD or length == 0:
            return []
        if rva % PAGE_SIZE or rva + length > self._head.enclave_size:
            self._damaged(
                offset, f"pages at {rva:#x}, {length:#x} bytes: not whole, or beyond SIZE"
            )
        flags = added_flags(entry.si_flags) if entry.si_flags or entry.content_offset else 0
        if flags is None:
            self._damaged(offset + 24, f"SECINFO.FLAGS is {entry.si_flags:#x}, which EADD refuses")
        name = _LAYOUT_NAMES.get(entry.id, f"layout {entry.id}") + suffix
        measured = entry.attributes & _EEXTEND != 0
        if not entry.content_offset:
            if not flags:
                return []
            data = Fill(entry.content_size, length) if entry.content_size else None
            return [PageRun(rva, length, flags, data, measured, name)]
        end = entry.content_offset + entry.content_size
        if end > len(self._content):
            self._damaged(offset + 16, f"the content of {name} is cut off")
        content = self._content[entry.content_offset : end]
        if entry.si_flags == SECINFO_TCS:
            threads = Computed(entry.page_count, lambda _: _tcs(content, rva))
            return [PageRun(rva, length, SECINFO_TCS, threads, measured, name)]
        if len(content) > length:
            self._damaged(offset + 16, f"the content of {name} is larger than its pages")
        part = type(self._file).of(content, self._file.name).part(0, len(content))
        return segment_runs(part, rva, length, flags, name)


def _tcs(template: bytes, rva: int) -> bytes:
    tcs = Tcs.decode(template[:PAGE_SIZE].ljust(PAGE_SIZE, b"\0"))
    mask = 0xFFFF_FFFF_FFFF_FFFF
    return tcs.replace(
        ossa=tcs.ossa + rva & mask,
        ofsbasgx=tcs.ofsbasgx + rva & mask,
        ogsbasgx=tcs.ogsbasgx + rva & mask,
    ).encode()


def _permissions(p_flags: int) -> int:
    flags = SECINFO_REG
    for bit, permission in ((elf_tables.PF_R, 1), (elf_tables.PF_W, 2), (elf_tables.PF_X, 4)):
        if p_flags & bit:
            flags |= permission
    return flags


def _segment(named: File, file: File, segment: Segment) -> list[PageRun]:
    header = segment.header
    if header.p_vaddr + header.p_memsz > MAXIMUM_SIZE:
        named.damaged(
            segment.header_at,
            f"segment ends at {header.p_vaddr + header.p_memsz:#x}, "
            f"the largest enclave at {MAXIMUM_SIZE:#x}",
        )
    part = file.part(header.p_offset, header.p_filesz)
    return segment_runs(part, header.p_vaddr, header.p_memsz, _permissions(header.p_flags))


def _writable(runs: list[PageRun], relocated: list[int]) -> list[PageRun]:
    result = []
    for run in runs:
        at, end = run.offset, run.offset + run.length if run.data is not None else 0
        for page in relocated[bisect_left(relocated, at) : bisect_left(relocated, end)]:
            result += part_of(run, at, page)
            result += [
                replace(changed, secinfo_flags=run.secinfo_flags | SECINFO_W)
                for changed in part_of(run, page, page + PAGE_SIZE)
            ]
            at = page + PAGE_SIZE
        result += part_of(run, at, run.offset + run.length)
    return result
