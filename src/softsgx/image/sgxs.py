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

from array import array
from bisect import bisect_left, bisect_right
from itertools import pairwise
from struct import Struct
from typing import IO, TYPE_CHECKING, Any

from softsgx.arch.layout import U32, U64, Record, at, layout, raw
from softsgx.arch.secinfo import EEXTEND_SIZE, PAGE_SIZE, SECINFO_TCS
from softsgx.image.enclave import Enclave
from softsgx.image.stream import Chunks, Image, PageRun, added_flags

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
_BARE_PAGE = Struct("<8sQQ40x")
_PAGE_CHUNKS = Struct(_CHUNKS_OF_PAGE * f"{EEXTEND_SIZE}s")
_AT_ONCE = 256


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


class _ChunkContents:
    """The contents of chunks whose records follow each other in the file, between their blocks."""

    __slots__ = ("_count", "_file", "_start")

    def __init__(self, file: File, start: int, count: int) -> None:
        self._file = file
        self._start = start
        self._count = count

    def __len__(self) -> int:
        return self._count * EEXTEND_SIZE

    def __getitem__(self, index: slice) -> memoryview:
        start, stop, _ = index.indices(len(self))
        stream = memoryview(self._file.read(self._start, self._count * _CHUNK, "chunks"))
        content = b"".join(
            stream[at + _BLOCK : at + _CHUNK] for at in range(0, len(stream), _CHUNK)
        )
        return memoryview(content)[start:stop]


class _PageOfChunks:
    """The contents of a page whose chunks lie anywhere in the file: where each is, 0 where it is not there."""

    __slots__ = ("_file", "_places")

    def __init__(self, file: File, places: array[int]) -> None:
        self._file = file
        self._places = places

    def __len__(self) -> int:
        return PAGE_SIZE

    def __getitem__(self, index: slice) -> memoryview:
        content = b"".join(
            self._file.read(place, EEXTEND_SIZE, "chunk") if place else bytes(EEXTEND_SIZE)
            for place in self._places
        )
        return memoryview(content)[index]


# What a row stands for.
_BARE, _LOADED, _MEASURED, _LOADED_CHUNKS, _MEASURED_CHUNKS = range(5)


class _Reader:
    """Reads the blocks into rows, one for pages or chunks that follow each other, and then makes records of them."""

    def __init__(self, file: File, size: int) -> None:
        self._file = file
        self._size = size
        # Columns, because a block of 64 bytes may be a row.
        self._kinds = bytearray()
        self._starts = array("Q")
        self._offsets = array("Q")
        self._counts = array("Q")
        self._flags = array("Q")
        self._last_page = -1
        # Of pages that have chunks which do not come with them, where in the file each chunk's content is.
        self._partial: dict[int, array[int]] = {}
        self._partial_threads: set[int] = set()
        self.canonical = True

    def records(self) -> tuple[PageRun | Chunks, ...]:
        file, at = self._file, _BLOCK
        window, window_at = b"", 0
        while at < file.size:
            # One read for many blocks.
            if at + _PAGE > window_at + len(window):
                window_at, length = at, min(_AT_ONCE * _PAGE, file.size - at)
                window = file.read(at, length, "blocks")
            within = at - window_at
            block = window[within : within + _BLOCK]
            if len(block) < _BLOCK:
                file.damaged(at, f"a block of {len(block)} bytes at the end, of {_BLOCK}")
            tag = block[:8]
            if tag == EADD:
                at += self._page(at, block, window[within : within + _PAGE])
                if self._kinds[-1] == _BARE and not self._counts[-1] % _AT_ONCE:
                    at += self._bare_pages(memoryview(window)[at - window_at :])
            elif tag in (EEXTEND, UNMEASURED):
                self._chunk(at, block, min(_CHUNK, len(window) - within) - _BLOCK)
                at += _CHUNK
            elif tag in (ECREATE, UNSIZED):
                file.damaged(at, "a second ECREATE")
            else:
                file.damaged(at, f"no block of SGXS: it begins by {tag!r}")
        self._place_chunks()
        return tuple(self._finished())

    def _page(self, at: int, block: bytes, whole: bytes) -> int:
        eadd = Eadd.decode(block)
        offset, flags = eadd.offset, eadd.secinfo_flags
        if offset % PAGE_SIZE or offset + PAGE_SIZE > self._size:
            self._file.damaged(at + 8, f"page at {offset:#x}: not aligned, or beyond SIZE")
        measured = added_flags(flags)
        if measured is None or not Eadd.reserved_is_zero(block):
            self._file.damaged(at + 16, f"SECINFO with FLAGS {flags:#x}: EADD refuses it")
        flags = measured
        self._last_page = offset
        tag = whole[_BLOCK : _BLOCK + 8]
        if tag in (EEXTEND, UNMEASURED) and _is_whole(whole, tag, offset):
            self._row(_MEASURED if tag == EEXTEND else _LOADED, at, offset, flags)
            return _PAGE
        self._row(_BARE, at, offset, flags)
        return _BLOCK

    def _bare_pages(self, stream: memoryview) -> int:
        """Go on with a long run of pages without contents, as a heap of gigabytes is; returns its length in the stream."""
        count, flags = self._counts[-1], self._flags[-1]
        offset = self._offsets[-1] + count * PAGE_SIZE
        pages = (
            min(len(stream) // _BLOCK, (self._size - offset) // PAGE_SIZE) // _AT_ONCE * _AT_ONCE
        )
        length = 0
        for first in range(offset, offset + pages * PAGE_SIZE, _AT_ONCE * PAGE_SIZE):
            expected = _bare_blocks(first, _AT_ONCE, flags)
            if stream[length : length + len(expected)] != expected:
                break
            length += len(expected)
        if length:
            self._counts[-1] += length // _BLOCK
            self._last_page = offset + length // _BLOCK * PAGE_SIZE - PAGE_SIZE
        return length

    def _chunk(self, at: int, block: bytes, length: int) -> None:
        offset = Eextend.decode(block).offset
        if offset % EEXTEND_SIZE or not Eextend.reserved_is_zero(block):
            self._file.damaged(
                at + 8, f"chunk at {offset:#x}: not aligned, or more than its offset"
            )
        if length < EEXTEND_SIZE:
            self._file.damaged(at + _BLOCK, f"a chunk of {length} bytes, of {EEXTEND_SIZE}")
        self.canonical &= offset & -PAGE_SIZE == self._last_page
        self._row(_MEASURED_CHUNKS if block[:8] == EEXTEND else _LOADED_CHUNKS, at, offset, 0)

    def _row(self, kind: int, at: int, offset: int, flags: int) -> None:
        if self._kinds and self._kinds[-1] == kind and self._flags[-1] == flags:
            count = self._counts[-1]
            stride, length = _STRIDES[kind]
            start, first = self._starts[-1], self._offsets[-1]
            # No chunks of two pages.
            if (at, offset) == (start + count * stride, first + count * length) and (
                kind <= _MEASURED or offset % PAGE_SIZE
            ):
                self._counts[-1] = count + 1
                return
        self._kinds.append(kind)
        self._starts.append(at)
        self._offsets.append(offset)
        self._counts.append(1)
        self._flags.append(flags)

    def _place_chunks(self) -> None:
        """Find the page of each chunk that came apart; refuse what no processor would do."""
        pages = [row for row, kind in enumerate(self._kinds) if kind <= _MEASURED]
        by_offset = sorted(pages, key=self._offsets.__getitem__)
        self.canonical &= by_offset == pages
        for before, row in pairwise(by_offset):
            offset = self._offsets[row]
            if self._offsets[before] + self._counts[before] * PAGE_SIZE > offset:
                self._file.damaged(
                    self._starts[max(before, row)], f"the page at {offset:#x} is added twice"
                )
        for row, kind in enumerate(self._kinds):
            if kind <= _MEASURED:
                continue
            offset = self._offsets[row]
            page = offset & -PAGE_SIZE
            index = bisect_right(by_offset, page, key=self._offsets.__getitem__) - 1
            added = by_offset[index] if index >= 0 else row
            if added >= row or page >= self._offsets[added] + self._counts[added] * PAGE_SIZE:
                self._file.damaged(
                    self._starts[row] + 8, f"chunk at {offset:#x} of a page that is not there yet"
                )
            places = self._partial.get(page)
            if places is None:
                places = self._partial[page] = self._places(added, page)
                if self._flags[added] == SECINFO_TCS:
                    self._partial_threads.add(page)
            for number in range(self._counts[row]):
                at = self._starts[row] + number * _CHUNK
                self._place(places, offset + number * EEXTEND_SIZE, at)

    def _places(self, row: int, page: int) -> array[int]:
        if self._kinds[row] == _BARE:
            return array("Q", bytes(8 * _CHUNKS_OF_PAGE))
        number = (page - self._offsets[row]) // PAGE_SIZE
        first = self._starts[row] + number * _PAGE + 2 * _BLOCK
        return array("Q", range(first, first + _CHUNKS_OF_PAGE * _CHUNK, _CHUNK))

    def _place(self, places: array[int], offset: int, at: int) -> None:
        chunk = offset % PAGE_SIZE // EEXTEND_SIZE
        known, content_at = places[chunk], at + _BLOCK
        if not known:
            places[chunk] = content_at
        elif self._file.read(known, EEXTEND_SIZE, "chunk") != self._file.read(
            content_at, EEXTEND_SIZE, "chunk"
        ):
            self._file.damaged(at, f"chunk at {offset:#x} has another content than before")

    def _finished(self) -> Iterator[PageRun | Chunks]:
        partial = sorted(self._partial)
        for row, kind in enumerate(self._kinds):
            start, offset, count = self._starts[row], self._offsets[row], self._counts[row]
            if kind == _MEASURED_CHUNKS:
                page = offset & -PAGE_SIZE
                if page in self._partial_threads:
                    whole = PageRun(
                        page,
                        PAGE_SIZE,
                        SECINFO_TCS,
                        _PageOfChunks(self._file, self._partial[page]),
                        measured=False,
                    )
                    yield whole.chunks(offset, count * EEXTEND_SIZE)
                else:
                    yield Chunks(offset, _ChunkContents(self._file, start, count))
            elif kind <= _MEASURED:
                end = offset + count * PAGE_SIZE
                first, last = (bisect_left(partial, edge) for edge in (offset, end))
                at = offset
                for page in partial[first:last]:
                    yield from self._pages(row, at, page)
                    data = _PageOfChunks(self._file, self._partial[page])
                    measured = kind == _MEASURED
                    yield PageRun(page, PAGE_SIZE, self._flags[row], data, measured)
                    at = page + PAGE_SIZE
                yield from self._pages(row, at, end)

    def _pages(self, row: int, first: int, end: int) -> Iterator[PageRun]:
        if first >= end:
            return
        kind, skipped = self._kinds[row], (first - self._offsets[row]) // PAGE_SIZE
        data = None
        if kind != _BARE:
            start = self._starts[row] + skipped * _PAGE
            data = _WholePages(self._file, start, (end - first) // PAGE_SIZE)
        yield PageRun(first, end - first, self._flags[row], data, kind == _MEASURED)


# Of what each kind of row stands for: bytes of the file, and of the enclave.
_STRIDES = {
    _BARE: (_BLOCK, PAGE_SIZE),
    _LOADED: (_PAGE, PAGE_SIZE),
    _MEASURED: (_PAGE, PAGE_SIZE),
    _LOADED_CHUNKS: (_CHUNK, EEXTEND_SIZE),
    _MEASURED_CHUNKS: (_CHUNK, EEXTEND_SIZE),
}


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


def _bare_blocks(offset: int, pages: int, secinfo_flags: int) -> bytes:
    pack, end = _BARE_PAGE.pack, offset + pages * PAGE_SIZE
    return b"".join([pack(EADD, at, secinfo_flags) for at in range(offset, end, PAGE_SIZE)])


def _write_run(run: PageRun, measured_apart: dict[int, set[int]], out: IO[bytes]) -> None:
    tag, mrmask = (EEXTEND, _ALL_CHUNKS) if run.measured else (UNMEASURED, 0)
    absent = run.data is None and not run.measured
    for start in range(0, run.length, _AT_ONCE * PAGE_SIZE):
        length = min(_AT_ONCE * PAGE_SIZE, run.length - start)
        if absent:
            out.write(_bare_blocks(run.offset + start, length // PAGE_SIZE, run.secinfo_flags))
            continue
        content = run.content(start, length)
        stream = bytearray()
        for page in range(start, start + length, PAGE_SIZE):
            offset = run.offset + page
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
