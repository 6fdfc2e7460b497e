# SPDX-License-Identifier: Apache-2.0
"""SGXS streams: the very blocks that the leaves measure, one behind the other, with the pages' contents.

    ECREATE    64 bytes, as ECREATE measures them
    EADD       64 bytes, as EADD measures them
    EEXTEND    64 bytes and the 256 bytes of the chunk, as EEXTEND measures them
    UNMEASRD   likewise, of a chunk that is loaded and not measured

A canonical stream has its pages by ascending offset and each page's chunks right behind its EADD. Others are read,
too, as a processor would measure them; what no processor would do is refused: a page twice, a chunk of no page, a
chunk with two contents. A stream that begins by UNSIZED is unfinished.

Source: fortanix/rust-sgx, intel-sgx/sgxs/src/sgxs.rs.
"""

from __future__ import annotations

from itertools import pairwise
from struct import Struct
from typing import IO, TYPE_CHECKING, Any

from softsgx.arch.layout import U32, U64, Record, at, layout, raw
from softsgx.arch.secinfo import (
    EEXTEND_SIZE,
    PAGE_SIZE,
    PT_REG,
    PT_TCS,
    SECINFO_PAGE_TYPE_SHIFT,
    SECINFO_RESERVED,
    SECINFO_RWX,
)
from softsgx.image.enclave import Enclave
from softsgx.image.stream import Chunks, Image, PageRun, part_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from softsgx.image.file import File

FORMAT = "sgxs"
ECREATE, EADD, EEXTEND = b"ECREATE\0", b"EADD\0\0\0\0", b"EEXTEND\0"
UNMEASURED, UNSIZED = b"UNMEASRD", b"UNSIZED\0"

_BLOCK = 64
_CHUNK = _BLOCK + EEXTEND_SIZE
_CHUNKS_OF_PAGE = PAGE_SIZE // EEXTEND_SIZE
_PAGE = _BLOCK + _CHUNKS_OF_PAGE * _CHUNK
_ALL_CHUNKS = (1 << _CHUNKS_OF_PAGE) - 1
_PAGE_BLOCKS = Struct("<8sQQ40x" + _CHUNKS_OF_PAGE * f"8sQ48x{EEXTEND_SIZE}s")
_PAGE_CHUNKS = Struct(_CHUNKS_OF_PAGE * f"{EEXTEND_SIZE}s")
_AT_ONCE = 256
# A page whose chunks do not come as a whole is kept in memory; no real stream has so many.
_MOST_PARTIAL = 1 << 14
# To find the page of a chunk that does not follow it, what was added is searched.
_MOST_LOOKED_AT = 1 << 24


@layout(size=64)
class Ecreate(Record):
    """The block of ECREATE."""

    tag: bytes = at(0, raw(8))
    ssaframesize: int = at(8, U32)
    size: int = at(12, U64)


@layout(size=64)
class Eadd(Record):
    """The block of EADD."""

    tag: bytes = at(0, raw(8))
    offset: int = at(8, U64)
    secinfo_flags: int = at(16, U64)


@layout(size=64)
class Eextend(Record):
    """The block of EEXTEND, and of UNMEASRD."""

    tag: bytes = at(0, raw(8))
    offset: int = at(8, U64)


class _WholePages:
    """The contents of pages whose records follow each other in the file, between their blocks."""

    __slots__ = ("_file", "_pages", "_start")

    def __init__(self, file: File, start: int, pages: int) -> None:
        self._file = file
        self._start = start
        self._pages = pages

    def __len__(self) -> int:
        return self._pages * PAGE_SIZE

    def __getitem__(self, index: slice) -> memoryview:
        start, stop, _ = index.indices(len(self))
        first, last = start // PAGE_SIZE, -(-stop // PAGE_SIZE)
        content = bytearray()
        for page in range(first, last, _AT_ONCE):
            count = min(_AT_ONCE, last - page)
            stream = memoryview(self._file.read(self._start + page * _PAGE, count * _PAGE, "pages"))
            for begin in range(0, count * _PAGE, _PAGE):
                for chunk in range(begin + 2 * _BLOCK, begin + _PAGE, _CHUNK):
                    content += stream[chunk : chunk + EEXTEND_SIZE]
        return memoryview(content)[start - first * PAGE_SIZE :][: stop - start]


def read(file: File) -> tuple[Enclave, ...]:
    """Read the enclave of a stream."""
    head = file.read(0, min(_BLOCK, file.size), "the first block")
    if head.startswith(UNSIZED):
        file.damaged(0, "an unsized stream: it is no enclave until sgxs-append gives it a SIZE")
    if len(head) < _BLOCK or not head.startswith(ECREATE):
        file.damaged(0, "not SGXS, which begins by ECREATE")
    ecreate = Ecreate.decode(head)
    if not Ecreate.reserved_is_zero(head):
        file.damaged(0, "ECREATE: reserved bytes are not zero")
    if ecreate.size.bit_count() != 1 or ecreate.size < 2 * PAGE_SIZE:
        file.damaged(12, f"SIZE is {ecreate.size:#x}, not a power of two from 8 KiB on")
    if not ecreate.ssaframesize:
        file.damaged(8, "SSAFRAMESIZE is 0")
    reader = _Reader(file, ecreate.size)
    image = Image(ecreate.size, ecreate.ssaframesize, reader.records())
    return (Enclave(FORMAT, image, fields={"canonical": "yes" if reader.canonical else "no"}),)


class _Reader:
    def __init__(self, file: File, size: int) -> None:
        self._file = file
        self._size = size
        self._records: list[PageRun | Chunks] = []
        # Where the last run was found: (kind, file offset, pages, first offset, SECINFO.FLAGS).
        self._run: tuple[str, int, int, int, int] | None = None
        self._added: list[tuple[int, int]] = []
        self._partial: dict[int, tuple[bytearray, int]] = {}
        self._looked_at = 0
        self.canonical = True

    def records(self) -> tuple[PageRun | Chunks, ...]:
        file, at = self._file, _BLOCK
        window, window_at = b"", 0
        while at < file.size:
            # One read for many blocks.
            if at + _PAGE > window_at + len(window):
                window_at, length = at, min(_AT_ONCE * _PAGE, file.size - at)
                window = file.read(at, length, "blocks")
            block = window[at - window_at : at - window_at + _BLOCK]
            if len(block) < _BLOCK:
                file.damaged(at, f"a block of {len(block)} bytes at the end, of {_BLOCK}")
            tag = block[:8]
            if tag == EADD:
                at += self._page(at, block, window[at - window_at :][:_PAGE])
            elif tag in (EEXTEND, UNMEASURED):
                content = window[at - window_at + _BLOCK : at - window_at + _CHUNK]
                self._chunk(at, block, content)
                at += _CHUNK
            elif tag in (ECREATE, UNSIZED):
                file.damaged(at, "a second ECREATE")
            else:
                file.damaged(at, f"no block of SGXS: it begins by {tag!r}")
        self._flush()
        self._check_pages()
        return tuple(self._finished())

    def _page(self, at: int, block: bytes, whole: bytes) -> int:
        eadd = Eadd.decode(block)
        offset, flags = eadd.offset, eadd.secinfo_flags
        if offset % PAGE_SIZE or offset + PAGE_SIZE > self._size:
            self._file.damaged(at + 8, f"page at {offset:#x}: not aligned, or beyond SIZE")
        kind = flags >> SECINFO_PAGE_TYPE_SHIFT & 0xFF
        if (
            not Eadd.reserved_is_zero(block)
            or flags & SECINFO_RESERVED
            or kind not in (PT_TCS, PT_REG)
        ):
            self._file.damaged(at + 16, f"SECINFO with FLAGS {flags:#x}: EADD refuses it")
        if kind == PT_TCS:
            flags &= ~SECINFO_RWX  # as EADD does before it measures
        tag = whole[_BLOCK : _BLOCK + 8]
        if tag in (EEXTEND, UNMEASURED) and _is_whole(whole, tag, offset):
            self._extend("measured" if tag == EEXTEND else "loaded", at, offset, flags)
            return _PAGE
        self._extend("bare", at, offset, flags)
        return _BLOCK

    def _extend(self, kind: str, at: int, offset: int, flags: int) -> None:
        run = self._run
        if run is not None:
            before, start, pages, first, same = run
            stride = _BLOCK if kind == "bare" else _PAGE
            if (before, same) == (kind, flags) and (
                at == start + pages * stride and offset == first + pages * PAGE_SIZE
            ):
                self._run = (kind, start, pages + 1, first, flags)
                return
            self._flush()
        self._run = (kind, at, 1, offset, flags)

    def _flush(self) -> None:
        if self._run is None:
            return
        kind, start, pages, first, flags = self._run
        self._run = None
        self._added.append((first, pages * PAGE_SIZE))
        data = None if kind == "bare" else _WholePages(self._file, start, pages)
        self._records.append(PageRun(first, pages * PAGE_SIZE, flags, data, kind == "measured"))

    def _chunk(self, at: int, block: bytes, content: bytes) -> None:
        offset = Eextend.decode(block).offset
        page = offset & -PAGE_SIZE
        if offset % EEXTEND_SIZE or not Eextend.reserved_is_zero(block):
            self._file.damaged(
                at + 8, f"chunk at {offset:#x}: not aligned, or more than its offset"
            )
        if len(content) < EEXTEND_SIZE:
            self._file.damaged(at + _BLOCK, f"a chunk of {len(content)} bytes, of {EEXTEND_SIZE}")
        self._separate(page)
        if page not in self._partial:
            self._file.damaged(at + 8, f"chunk at {offset:#x} of a page that is not there yet")
        data, known = self._partial[page]
        within, bit = offset % PAGE_SIZE, 1 << offset % PAGE_SIZE // EEXTEND_SIZE
        if known & bit and data[within : within + EEXTEND_SIZE] != content:
            self._file.damaged(at, f"chunk at {offset:#x} has another content than before")
        data[within : within + EEXTEND_SIZE] = content
        self._partial[page] = data, known | bit
        if block[:8] == EEXTEND:
            last = self._records[-1]
            if (
                isinstance(last, Chunks)
                and last.offset + len(last.data) == offset
                and (len(last.data) < PAGE_SIZE)
            ):
                content = bytes(last.data[0 : len(last.data)]) + content
                offset = last.offset
                self._records.pop()
            self._records.append(Chunks(offset, memoryview(content)))

    def _separate(self, page: int) -> None:
        """Make a page one whose contents come by chunks, if it was added otherwise."""
        if page in self._partial:
            return
        self._flush()
        for index in range(len(self._records) - 1, -1, -1):
            self._looked_at += 1
            if self._looked_at > _MOST_LOOKED_AT:
                self._file.damaged(0, "chunks are too far from their pages, and too many")
            run = self._records[index]
            if isinstance(run, Chunks) or not run.offset <= page < run.offset + run.length:
                continue
            if len(self._partial) == _MOST_PARTIAL:
                self._file.damaged(0, f"more than {_MOST_PARTIAL} pages that are measured in part")
            within = page - run.offset
            data = bytearray(run.content(within, PAGE_SIZE))
            known = 0 if run.data is None else 0xFFFF
            self._partial[page] = data, known
            # In the usual order it is the last page, and the page alone is what is left of its run.
            self.canonical &= index == len(self._records) - 1 and (
                page == run.offset + run.length - PAGE_SIZE
            )
            self._records[index : index + 1] = list(_split(run, within))
            return

    def _check_pages(self) -> None:
        self.canonical &= self._added == sorted(self._added)
        ranges = sorted(self._added)
        for (before, length), (offset, _) in pairwise(ranges):
            if before + length > offset:
                self._file.damaged(0, f"the page at {offset:#x} is added twice")

    def _finished(self) -> Iterator[PageRun | Chunks]:
        for record in self._records:
            if isinstance(record, PageRun) and record.offset in self._partial:
                data = memoryview(self._partial[record.offset][0])
                yield PageRun(record.offset, PAGE_SIZE, record.secinfo_flags, data, record.measured)
            else:
                yield record


def _split(run: PageRun, within: int) -> Iterator[PageRun]:
    page, end = run.offset + within, run.offset + run.length
    yield from part_of(run, run.offset, page)
    yield from part_of(run, page, page + PAGE_SIZE)
    yield from part_of(run, page + PAGE_SIZE, end)


def _is_whole(stream: bytes, tag: bytes, offset: int) -> bool:
    if len(stream) < _PAGE:
        return False
    for number, start in enumerate(range(_BLOCK, _PAGE, _CHUNK)):
        expected = tag + (offset + number * EEXTEND_SIZE).to_bytes(8, "little")
        if not stream.startswith(expected, start) or any(stream[start + 16 : start + _BLOCK]):
            return False
    return True


def canonical(image: Image) -> Image:
    """Return an image with its pages by ascending offset, what is measured of a page behind it."""
    order = {id(record): number for number, record in enumerate(image.records)}

    def place(record: PageRun | Chunks) -> tuple[int, int, int]:
        page = record.offset & -PAGE_SIZE
        return page, 1 if isinstance(record, Chunks) else 0, order[id(record)]

    return Image(image.size, image.ssaframesize, tuple(sorted(image.records, key=place)))


def write(image: Image, out: IO[bytes]) -> None:
    """Write an image as a stream; it is canonical where the image has its pages by ascending offset."""
    out.write(Ecreate(ECREATE, image.ssaframesize, image.size).encode())
    measured_apart: dict[int, set[int]] = {}
    for record in image.records:
        if isinstance(record, Chunks):
            for offset in range(record.offset, record.offset + len(record.data), EEXTEND_SIZE):
                measured_apart.setdefault(offset & -PAGE_SIZE, set()).add(offset)
    for record in image.records:
        if isinstance(record, Chunks):
            for start in range(0, len(record.data), EEXTEND_SIZE):
                out.write(Eextend(EEXTEND, record.offset + start).encode())
                out.write(record.data[start : start + EEXTEND_SIZE])
        else:
            _write_run(record, measured_apart, out)


def page_blocks(offset: int, secinfo_flags: int, content: bytes | memoryview, mrmask: int) -> bytes:
    """Return the blocks of one page: EEXTEND of the chunks that a mask selects, UNMEASRD of the others."""
    tags = [EEXTEND if mrmask >> chunk & 1 else UNMEASURED for chunk in range(_CHUNKS_OF_PAGE)]
    fields: list[Any] = [b""] * (3 * _CHUNKS_OF_PAGE)
    fields[0::3] = tags
    fields[1::3] = range(offset, offset + PAGE_SIZE, EEXTEND_SIZE)
    fields[2::3] = _PAGE_CHUNKS.unpack(content)
    return _PAGE_BLOCKS.pack(EADD, offset, secinfo_flags, *fields)


def _write_run(run: PageRun, measured_apart: dict[int, set[int]], out: IO[bytes]) -> None:
    tag, mrmask = (EEXTEND, _ALL_CHUNKS) if run.measured else (UNMEASURED, 0)
    for start in range(0, run.length, _AT_ONCE * PAGE_SIZE):
        length = min(_AT_ONCE * PAGE_SIZE, run.length - start)
        absent = run.data is None and not run.measured
        content = memoryview(b"") if absent else run.content(start, length)
        stream = bytearray()
        for page in range(start, start + length, PAGE_SIZE):
            offset = run.offset + page
            if absent:
                stream += Eadd(EADD, offset, run.secinfo_flags).encode()
                continue
            apart = measured_apart.get(offset)
            if apart is None:
                page_content = content[page - start : page - start + PAGE_SIZE]
                stream += page_blocks(offset, run.secinfo_flags, page_content, mrmask)
                continue
            stream += Eadd(EADD, offset, run.secinfo_flags).encode()
            for chunk in range(offset, offset + PAGE_SIZE, EEXTEND_SIZE):
                if chunk not in apart:
                    within = chunk - run.offset - start
                    stream += Eextend(tag, chunk).encode()
                    stream += content[within : within + EEXTEND_SIZE]
        out.write(stream)
