# SPDX-License-Identifier: Apache-2.0
"""An enclave at rest: its size and what a loader does with its pages, in the loader's order.

Every reader of a file format produces an Image; measuring, signing, explaining and converting take one. What EADD
changes in a page before EEXTEND sees it is done here, so a reader hands over the bytes of its file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from softsgx.arch.attributes import TCS_DBGOPTIN, TCS_INACTIVE
from softsgx.arch.secinfo import (
    EEXTEND_SIZE,
    PAGE_SIZE,
    SECINFO_PAGE_TYPE,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_RWX,
    SECINFO_TCS,
    SECINFO_W,
)
from softsgx.arch.structures import Tcs
from softsgx.image.file import Part
from softsgx.image.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# ECREATE refuses an enclave that is smaller.
MINIMUM_SIZE = 2 * PAGE_SIZE
# Servers report 2**56 in CPUID.12H:EDX; a process has so much that is its own.
MAXIMUM_SIZE = 1 << 47
# No file asks for a hundredth of it.
MAXIMUM_SSAFRAMESIZE = 1 << 24

_PIECE = 256 * PAGE_SIZE
# From here on a second thread pays, and what it takes to load numpy.
_LONG = 1024 * PAGE_SIZE
_ZEROS = bytes(PAGE_SIZE)


class Content(Protocol):
    """The bytes of pages: a memoryview, or what becomes one when it is sliced."""

    def __len__(self) -> int:
        """Return how many bytes there are."""
        ...

    def __getitem__(self, index: slice, /) -> memoryview:
        """Return some of the bytes."""
        ...


class Fill:
    """Content of one 32-bit word again and again, which a loader fills pages with."""

    __slots__ = ("_length", "_word")

    def __init__(self, word: int, length: int) -> None:
        self._word = word.to_bytes(4, "little")
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: slice) -> memoryview:
        start, stop, _ = index.indices(self._length)
        words = self._word * ((stop - (start & -4) + 3) // 4)
        return memoryview(words)[start % 4 : start % 4 + stop - start]


class Computed:
    """Content of pages that are made when they are wanted: of thousands of threads, not all are in memory."""

    __slots__ = ("_length", "_page")

    def __init__(self, pages: int, page: Callable[[int], bytes]) -> None:
        self._length = pages * PAGE_SIZE
        self._page = page

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: slice) -> memoryview:
        start, stop, _ = index.indices(self._length)
        first, last = start // PAGE_SIZE, -(-stop // PAGE_SIZE)
        content = b"".join(self._page(number) for number in range(first, last))
        return memoryview(content)[start - first * PAGE_SIZE :][: max(0, stop - start)]


@dataclass(frozen=True, slots=True)
class PageRun:
    """Pages that follow each other and share their SECINFO; `offset` and `length` are bytes.

    `data` has exactly `length` bytes, or is None for pages of zeros. `name` says what the pages are for.
    """

    offset: int
    length: int
    secinfo_flags: int
    data: Content | None
    measured: bool
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse what no reader may produce."""
        if self.offset % PAGE_SIZE or self.length % PAGE_SIZE or self.length <= 0:
            raise ValueError(f"{self.length:#x} bytes at {self.offset:#x} are not whole pages")
        if self.data is not None and len(self.data) != self.length:
            raise ValueError(f"{len(self.data):#x} bytes of data for {self.length:#x} of pages")

    @property
    def is_tcs(self) -> bool:
        """Tell whether these pages are thread control structures."""
        return self.secinfo_flags & SECINFO_PAGE_TYPE == SECINFO_TCS

    def content(self, start: int, length: int) -> memoryview:
        """Return bytes of the pages as EADD leaves them in the EPC; `start` is from the run's begin.

        Of TCS pages, whole pages are wanted.
        """
        data = memoryview(bytes(length)) if self.data is None else self.data[start : start + length]
        if not self.is_tcs:
            return data
        return memoryview(
            b"".join(
                _as_eadd_stores_it(Tcs.decode(data, page)) for page in range(0, length, PAGE_SIZE)
            )
        )

    def chunks(self, offset: int, length: int) -> Chunks:
        """Return EEXTEND of some chunks of a page of a TCS, which measures what EADD has made of it."""
        page, within = offset & -PAGE_SIZE, offset % PAGE_SIZE
        return Chunks(offset, self.content(page - self.offset, PAGE_SIZE)[within : within + length])

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, bytes) of parts of bounded length, as EADD leaves them in the EPC."""
        zeros = memoryview(bytes(min(self.length, _PIECE)))
        for start in range(0, self.length, _PIECE):
            length = min(_PIECE, self.length - start)
            plain = self.data is None and not self.is_tcs
            yield self.offset + start, zeros[:length] if plain else self.content(start, length)


@dataclass(frozen=True, slots=True)
class Chunks:
    """EEXTEND of chunks of 256 bytes that follow each other, of pages that are there already.

    Only a stream that measures some of a page, or in another order, needs these beside PageRun.
    """

    offset: int
    data: Content

    def __post_init__(self) -> None:
        """Refuse what no reader may produce."""
        if self.offset % EEXTEND_SIZE or len(self.data) % EEXTEND_SIZE or not len(self.data):
            raise ValueError(f"{len(self.data):#x} bytes at {self.offset:#x} are not whole chunks")


@dataclass(frozen=True, slots=True)
class Image:
    """An enclave as its file describes it: SIZE in bytes, SSAFRAMESIZE in pages, then the loader's work in order."""

    size: int
    ssaframesize: int
    records: tuple[PageRun | Chunks, ...]

    @property
    def runs(self) -> tuple[PageRun, ...]:
        """Return what is added, without what is measured apart from it."""
        return tuple(record for record in self.records if isinstance(record, PageRun))

    @property
    def pages(self) -> int:
        """Count the pages."""
        return sum(run.length for run in self.runs) // PAGE_SIZE

    @property
    def threads(self) -> int:
        """Count the TCS pages: how many threads can be inside at once."""
        return sum(run.length for run in self.runs if run.is_tcs) // PAGE_SIZE


def added_flags(secinfo_flags: int) -> int | None:
    """Return SECINFO.FLAGS of a page as EADD measures them, None where it refuses them."""
    kind = secinfo_flags & SECINFO_PAGE_TYPE
    if secinfo_flags & ~(SECINFO_PAGE_TYPE | SECINFO_RWX) or kind not in (SECINFO_TCS, SECINFO_REG):
        return None
    if kind == SECINFO_TCS:
        return kind
    writable = secinfo_flags & SECINFO_W and not secinfo_flags & SECINFO_R
    return None if writable else secinfo_flags


def enclave_size(end: int) -> int:
    """Return the smallest legal SIZE that holds `end` bytes: a power of two, at least 8 KiB."""
    return max(MINIMUM_SIZE, 1 << (end - 1).bit_length())


def page_up(length: int) -> int:
    """Return so many bytes as whole pages have at least."""
    return (length + PAGE_SIZE - 1) & -PAGE_SIZE


def measure(image: Image) -> bytes:
    """Return MRENCLAVE of an image whose pages are added in its order (32 bytes)."""
    measurement = Measurement()
    measurement.ecreate(image.ssaframesize, image.size)
    for record in image.records:
        measure_record(measurement, record)
    return measurement.digest()


def measure_record(measurement: Measurement, record: PageRun | Chunks) -> None:
    """Update a measurement by one record of an image."""
    if isinstance(record, Chunks):
        for start in range(0, len(record.data), EEXTEND_SIZE):
            chunk = record.data[start : start + EEXTEND_SIZE]
            measurement.eextend(record.offset + start, chunk)
    elif not record.measured:
        measurement.add_unmeasured(record.offset, record.secinfo_flags, record.length // PAGE_SIZE)
    elif record.length >= _LONG and not record.is_tcs:
        from softsgx.image.long_run import measure_long  # noqa: PLC0415

        measure_long(measurement, record)
    else:
        for offset, content in record.pieces():
            measurement.add_pages(offset, record.secinfo_flags, content, measured=True)


def segment_runs(
    part: Part, vaddr: int, memsz: int, secinfo_flags: int, name: str = ""
) -> list[PageRun]:
    """Return the pages of a segment: its part of the file at `vaddr`, zeros before, behind and up to `memsz`.

    Whole pages of the file are not read yet; a page where its content begins or ends is.
    """
    start, end = vaddr & -PAGE_SIZE, page_up(vaddr + memsz)
    filled = vaddr + len(part)
    runs: list[PageRun] = []

    def add(offset: int, stop: int, data: Content | None) -> None:
        if offset < stop:
            runs.append(
                PageRun(offset, stop - offset, secinfo_flags, data, measured=True, name=name)
            )

    def padded(page: int) -> memoryview:
        at, stop = max(page, vaddr), min(page + PAGE_SIZE, filled)
        content = bytes(at - page) + bytes(part[at - vaddr : stop - vaddr])
        return memoryview(content.ljust(PAGE_SIZE, b"\0"))

    whole, whole_end = page_up(vaddr), max(filled & -PAGE_SIZE, page_up(vaddr))
    if vaddr % PAGE_SIZE and len(part):
        add(start, start + PAGE_SIZE, padded(start))
    if len(part) and filled > whole:
        add(whole, whole_end, part.part(whole - vaddr, whole_end - whole))
        if filled > whole_end:
            add(whole_end, whole_end + PAGE_SIZE, padded(whole_end))
    add(page_up(filled) if len(part) else start, end, None)
    return runs


def overlay(runs: Iterable[PageRun], patches: list[tuple[int, bytes]]) -> list[PageRun]:
    """Return the runs with bytes written over them, each by its offset in the enclave."""
    result = []
    for run in runs:
        pages: dict[int, bytearray] = {}
        for at, content in patches:
            for page in range(at & -PAGE_SIZE, at + len(content), PAGE_SIZE):
                if not run.offset <= page < run.offset + run.length:
                    continue
                if page not in pages:
                    pages[page] = bytearray(_ZEROS)
                    if run.data is not None:
                        pages[page][:] = run.data[page - run.offset :][:PAGE_SIZE]
                first, last = max(at, page), min(at + len(content), page + PAGE_SIZE)
                pages[page][first - page : last - page] = content[first - at : last - at]
        at = run.offset
        for page, changed in sorted(pages.items()):
            result += part_of(run, at, page)
            result += [replace(run, offset=page, length=PAGE_SIZE, data=memoryview(bytes(changed)))]
            at = page + PAGE_SIZE
        result += part_of(run, at, run.offset + run.length)
    return result


def part_of(run: PageRun, start: int, end: int) -> list[PageRun]:
    """Return the pages of a run from one offset in the enclave to another; [] if there are none."""
    if start >= end:
        return []
    data: Content | None = None
    if run.data is not None:
        first, length = start - run.offset, end - start
        data = (
            run.data.part(first, length)
            if isinstance(run.data, Part)
            else _Slice(run.data, first, length)
        )
    return [replace(run, offset=start, length=end - start, data=data)]


class _Slice:
    __slots__ = ("_content", "_length", "_start")

    def __init__(self, content: Content, start: int, length: int) -> None:
        self._content = content
        self._start = start
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: slice) -> memoryview:
        start, stop, _ = index.indices(self._length)
        return self._content[self._start + start : self._start + stop]


# EADD clears these before it stores the page, so they are cleared in what EEXTEND measures.
def _as_eadd_stores_it(tcs: Tcs) -> bytes:
    return tcs.replace(state=TCS_INACTIVE, cssa=0, aep=0, flags=tcs.flags & ~TCS_DBGOPTIN).encode()
