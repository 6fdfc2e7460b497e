# SPDX-License-Identifier: Apache-2.0
"""The pages of one enclave by linear page number (kernel: struct sgx_encl_page in encl->page_array).

Owns the columns: per run of neighbouring pages with one vm_max_prot and type, where each is: its EPC page,
or if it was evicted its VA slot as -1 - number.  A run is one object however many pages it has, so adding,
checking and releasing cost by the run.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from softsgx.arch.secinfo import (
    PAGE_SIZE,
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
    return (
        (PROT_READ if secinfo_flags & SECINFO_R else 0)
        | (PROT_WRITE if secinfo_flags & SECINFO_W else 0)
        | (PROT_EXEC if secinfo_flags & SECINFO_X else 0)
    )


class PageRun:
    """Neighbouring linear pages [first, end) with one ``vm_max_prot`` and ``type``; ``epc[i]`` tells of first + i."""

    __slots__ = ("end", "epc", "first", "type", "vm_max_prot")

    def __init__(self, first: int, epc: "array[int]", vm_max_prot: int, page_type: int) -> None:
        self.first = first
        self.end = first + len(epc)
        self.epc = epc
        self.vm_max_prot = vm_max_prot
        self.type = page_type

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

    def insert(
        self, first: int, epc_first: int, count: int, vm_max_prot: int, page_type: int
    ) -> None:
        """Add ``count`` pages that sit in neighbouring EPC pages; none of them is present yet."""
        self._count += count
        index = bisect_left(self._firsts, first)
        epc = array("q", range(epc_first, epc_first + count))
        if index:
            before = self._runs[index - 1]
            # Loaders that add page by page still get one run a segment.
            alike = before.vm_max_prot == vm_max_prot and before.type == page_type
            if before.end == first and alike:
                before.epc.extend(epc)
                before.end += count
                return
        self._firsts.insert(index, first)
        self._runs.insert(index, PageRun(first, epc, vm_max_prot, page_type))

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
        self._set(page, epc)

    def set_evicted(self, page: int, slot: int) -> None:
        """Record that a page is out, its version in a VA slot; KeyError as above."""
        self._set(page, -1 - slot)

    def _set(self, page: int, where: int) -> None:
        run = self.find(page)
        if run is None:
            raise KeyError(page)
        run.epc[page - run.first] = where

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
