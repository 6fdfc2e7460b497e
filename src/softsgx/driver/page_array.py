# SPDX-License-Identifier: Apache-2.0
"""The pages of one enclave by linear page number (kernel: struct sgx_encl_page in encl->page_array).

Owns the columns: per run of neighbouring pages of one kind, where each is: its EPC page, or if it was
evicted its VA slot as -1 - number.  A run is one object however many pages it has, so adding, checking and
releasing cost by the run.  What the EPCM allows of a page is remembered here too, for one that is out.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from softsgx.arch.secinfo import (
    PAGE_SIZE,
    PT_REG,
    PT_TCS,
    SECINFO_PAGE_TYPE_SHIFT,
    SECINFO_R,
    SECINFO_W,
    SECINFO_X,
)
from softsgx.driver.vma import PROT_EXEC, PROT_READ, PROT_WRITE


def page_type(secinfo_flags: int) -> int:
    """Return SECINFO's page type (PT_*)."""
    return secinfo_flags >> SECINFO_PAGE_TYPE_SHIFT & 0xFF


def vm_max_prot(secinfo_flags: int) -> int:
    """Return what a mapping of a page may allow at most (PROT_*): SECINFO's RWX; for a TCS RW."""
    if page_type(secinfo_flags) == PT_TCS:
        return PROT_READ | PROT_WRITE
    return permissions(secinfo_flags)


def permissions(secinfo_flags: int) -> int:
    """Return SECINFO's RWX, or the EPCM's, as PROT_*."""
    return (
        (PROT_READ if secinfo_flags & SECINFO_R else 0)
        | (PROT_WRITE if secinfo_flags & SECINFO_W else 0)
        | (PROT_EXEC if secinfo_flags & SECINFO_X else 0)
    )


class PageKind(NamedTuple):
    """What the pages of a run have in common.

    ``allowed`` is the EPCM's RWX as PROT_*, of a REG page; while it is ``pending`` nobody may touch it.
    """

    vm_max_prot: int
    type: int
    allowed: int
    pending: bool = False


def added_kind(secinfo_flags: int) -> PageKind:
    """Return the kind of a page that EADD makes of a SECINFO."""
    return PageKind(
        vm_max_prot(secinfo_flags), page_type(secinfo_flags), permissions(secinfo_flags)
    )


class PageRun:
    """Neighbouring linear pages [first, end) of one ``kind``; ``epc[i]`` tells of first + i."""

    __slots__ = ("end", "epc", "first", "kind")

    def __init__(self, first: int, epc: "array[int]", kind: PageKind) -> None:
        self.first = first
        self.end = first + len(epc)
        self.epc = epc
        self.kind = kind

    @property
    def vm_max_prot(self) -> int:
        """Tell what a mapping may allow at most."""
        return self.kind.vm_max_prot

    @property
    def type(self) -> int:
        """Tell the page type."""
        return self.kind.type

    @property
    def hidden(self) -> bool:
        """Whether nobody may touch the pages, so that they are holes though they are there."""
        return self.kind.type != PT_REG or self.kind.pending

    def evicted(self, page: int) -> bool:
        """Tell whether a page of the run is out."""
        return self.epc[page - self.first] < 0

    def slot(self, page: int) -> int:
        """Return the number of the VA slot of a page of the run that is out."""
        return -1 - self.epc[page - self.first]

    def set_resident(self, page: int, epc: Iterable[int]) -> None:
        """Record the EPC pages of neighbours, from ``page`` on."""
        for at, each in enumerate(epc, page - self.first):
            self.epc[at] = each

    def resident(self, first: int, end: int, leaving: set[int]) -> Iterator[tuple[int, int]]:
        """Give the parts of [first, end) that are in the EPC to stay; ``leaving`` are addresses."""
        start = -1
        for page in range(max(first, self.first), min(end, self.end)):
            if self.epc[page - self.first] >= 0 and page * PAGE_SIZE not in leaving:
                start = page if start < 0 else start
            elif start >= 0:
                yield start, page
                start = -1
        if start >= 0:
            yield start, min(end, self.end)


class PageArray:
    """The enclave's pages, resident ones with their EPC page; linear page number = address >> 12."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._runs: list[PageRun] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def runs(self) -> Iterator[PageRun]:
        """Iterate over all runs, by ascending address."""
        return iter(self._runs)

    def find(self, page: int) -> PageRun | None:
        """Return the run that holds a linear page."""
        index = bisect_right(self._firsts, page) - 1
        if index >= 0 and page < self._runs[index].end:
            return self._runs[index]
        return None

    def overlapping(self, first: int, end: int) -> Iterator[PageRun]:
        """Iterate over the runs that have a page in [first, end), by ascending address."""
        index = max(bisect_right(self._firsts, first) - 1, 0)
        while index < len(self._runs) and self._runs[index].first < end:
            if self._runs[index].end > first:
                yield self._runs[index]
            index += 1

    def parts(self, start: int, end: int) -> Iterator[tuple[int, int, PageRun]]:
        """Iterate over what of the runs lies in the addresses [start, end): low, high and the run."""
        first, last = start // PAGE_SIZE, -(-end // PAGE_SIZE)
        for run in self.overlapping(first, last):
            yield max(run.first, first) * PAGE_SIZE, min(run.end, last) * PAGE_SIZE, run

    def absent_from(self, first: int, count: int) -> int:
        """Count the pages from ``first`` on, at most ``count``, before the first one that is present."""
        for run in self.overlapping(first, first + count):
            return max(run.first - first, 0)
        return count

    def insert(self, first: int, epc_first: int, count: int, kind: PageKind) -> None:
        """Add ``count`` pages that sit in neighbouring EPC pages; none of them is present yet."""
        self._count += count
        index = bisect_left(self._firsts, first)
        epc = array("q", range(epc_first, epc_first + count))
        self._firsts.insert(index, first)
        self._runs.insert(index, PageRun(first, epc, kind))
        # Loaders that add page by page still get one run a segment.
        self._join(index, index + 1)

    def change(self, first: int, count: int, kind: PageKind) -> None:
        """Make pages, all of which are present, of another kind."""
        low, high = self._cut(first), self._cut(first + count)
        for run in self._runs[low:high]:
            run.kind = kind
        self._join(low, high)

    def remove(self, first: int, count: int) -> None:
        """Forget pages, all of which are present."""
        low, high = self._cut(first), self._cut(first + count)
        del self._firsts[low:high], self._runs[low:high]
        self._count -= count

    def _cut(self, page: int) -> int:
        """See that no run goes on beyond a page; return the index of the first run from there on."""
        index = bisect_left(self._firsts, page)
        if index and self._runs[index - 1].end > page:
            run = self._runs[index - 1]
            rest = run.epc[page - run.first :]
            del run.epc[page - run.first :]
            run.end = page
            self._firsts.insert(index, page)
            self._runs.insert(index, PageRun(page, rest, run.kind))
        return index

    def _join(self, low: int, high: int) -> None:
        """Make one run of neighbours of one kind, of those between two indices and beside them."""
        for index in range(min(high, len(self._runs) - 1), max(low, 1) - 1, -1):
            before, run = self._runs[index - 1 : index + 1]
            if before.end == run.first and before.kind == run.kind:
                before.epc.extend(run.epc)
                before.end = run.end
                del self._firsts[index], self._runs[index]

    def epc_page(self, page: int) -> int | None:
        """Return the EPC page of a linear page, None if it is not resident, or no page of the enclave's."""
        run = self.find(page)
        if run is None:
            return None
        epc = run.epc[page - run.first]
        return epc if epc >= 0 else None

    def slot(self, page: int) -> int | None:
        """Return the number of an evicted page's VA slot, None if the page is not evicted."""
        run = self.find(page)
        if run is None:
            return None
        epc = run.epc[page - run.first]
        return -1 - epc if epc < 0 else None

    def set_resident(self, page: int, epc: int) -> None:
        """Record that a page is in an EPC page; KeyError if the enclave has no such page."""
        run = self.find(page)
        if run is None:
            raise KeyError(page)
        run.epc[page - run.first] = epc

    def set_evicted(self, pages: Iterable[int], slots: Iterable[int]) -> None:
        """Record that pages are out, their versions in VA slots; KeyError as above."""
        run: PageRun | None = None
        for page, slot in zip(pages, slots, strict=True):
            if run is None or not run.first <= page < run.end:
                run = self.find(page)
            if run is None:
                raise KeyError(page)
            run.epc[page - run.first] = -1 - slot

    def clear(self) -> None:
        """Forget all pages."""
        self._count = 0
        self._firsts.clear()
        self._runs.clear()


def neighbours(pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Group pages that ascend by one: (first, count) of each group, in order; negative ones are left out."""
    first = count = 0
    for page in pages:
        if page < 0:
            continue
        if page != first + count or not count:
            if count:
                yield first, count
            first, count = page, 0
        count += 1
    if count:
        yield first, count
