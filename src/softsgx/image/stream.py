# SPDX-License-Identifier: Apache-2.0
"""An enclave at rest: its size and its pages in the order in which a loader adds them.

Every reader of a file format produces an Image; measuring, signing and loading take one. What EADD
changes in a page before EEXTEND sees it is done here, so a reader hands over the bytes of its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from softsgx.arch.attributes import TCS_DBGOPTIN, TCS_INACTIVE
from softsgx.arch.secinfo import PAGE_SIZE, SECINFO_PAGE_TYPE, SECINFO_TCS
from softsgx.arch.structures import Tcs
from softsgx.image.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator

# ECREATE refuses an enclave that is smaller.
MINIMUM_SIZE = 2 * PAGE_SIZE

_PIECE = 1024 * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class PageRun:
    """Pages that follow each other and share their SECINFO; `offset` and `length` are bytes.

    `data` has exactly `length` bytes, or is None for pages of zeros.
    """

    offset: int
    length: int
    secinfo_flags: int
    data: memoryview | None
    measured: bool

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

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, bytes) of parts of bounded length, as EADD leaves them in the EPC."""
        if self.is_tcs:
            for page in range(0, self.length, PAGE_SIZE):
                content = bytes(PAGE_SIZE) if self.data is None else self.data[page:]
                yield self.offset + page, memoryview(_as_eadd_stores_it(Tcs.decode(content)))
            return
        zeros = memoryview(bytes(min(self.length, _PIECE))) if self.data is None else None
        for start in range(0, self.length, _PIECE):
            length = min(_PIECE, self.length - start)
            if zeros is not None:
                yield self.offset + start, zeros[:length]
            elif self.data is not None:
                yield self.offset + start, self.data[start : start + length]


@dataclass(frozen=True, slots=True)
class Image:
    """An enclave as its file describes it: SIZE in bytes, SSAFRAMESIZE in pages, pages in order."""

    size: int
    ssaframesize: int
    runs: tuple[PageRun, ...]

    @property
    def pages(self) -> int:
        """Count the pages."""
        return sum(run.length for run in self.runs) // PAGE_SIZE

    @property
    def threads(self) -> int:
        """Count the TCS pages: how many threads can be inside at once."""
        return sum(run.length for run in self.runs if run.is_tcs) // PAGE_SIZE


def enclave_size(end: int) -> int:
    """Return the smallest legal SIZE that holds `end` bytes: a power of two, at least 8 KiB."""
    return max(MINIMUM_SIZE, 1 << (end - 1).bit_length())


def measure(image: Image) -> bytes:
    """Return MRENCLAVE of an image whose pages are added in its order (32 bytes)."""
    measurement = Measurement()
    measurement.ecreate(image.ssaframesize, image.size)
    for run in image.runs:
        if not run.measured:
            measurement.add_unmeasured(run.offset, run.secinfo_flags, run.length // PAGE_SIZE)
            continue
        for offset, content in run.pieces():
            measurement.add_pages(offset, run.secinfo_flags, content, measured=True)
    return measurement.digest()


# EADD clears these before it stores the page, so they are cleared in what EEXTEND measures.
def _as_eadd_stores_it(tcs: Tcs) -> bytes:
    return tcs.replace(state=TCS_INACTIVE, cssa=0, aep=0, flags=tcs.flags & ~TCS_DBGOPTIN).encode()
