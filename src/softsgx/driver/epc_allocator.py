# SPDX-License-Identifier: Apache-2.0
"""Which EPC pages are free (kernel: the free lists of main.c).

Owns the free ranges.  Used by the driver's thread only; no call suspends, so an allocation of
several pages is one step for everybody else.
"""

from bisect import bisect_left


class EpcAllocator:
    """Free EPC pages as ranges: large contiguous runs from the low end, single pages from the high end.

    SECS and VA pages live as long as their enclave; kept at the far end they do not cut the ranges
    that ADD_PAGES wants whole.
    """

    def __init__(self, pages: int) -> None:
        self._starts = [0] if pages else []
        self._ends = [pages] if pages else []
        self.total = pages
        self.free_pages = pages
        # The fewest that were ever free: the EPC in use at its peak is all but these.
        self.fewest_free = pages

    def allocate_page(self) -> int:
        """Return one free page; ValueError when ``free_pages`` is 0."""
        self._check_some_free()
        self._ends[-1] -= 1
        self._take(1)
        page = self._ends[-1]
        if self._starts[-1] == page:
            del self._starts[-1], self._ends[-1]
        return page

    def allocate_run(self, wanted: int) -> tuple[int, int]:
        """Return (first page, count) of a contiguous run of at most ``wanted`` pages, at least one.

        The first range that holds them all, else the largest one whole; ValueError when ``free_pages``
        is 0.
        """
        self._check_some_free()
        best, best_length = 0, 0
        for index, start in enumerate(self._starts):
            length = self._ends[index] - start
            if length > best_length:
                best, best_length = index, length
                if length >= wanted:
                    break
        first, count = self._starts[best], min(best_length, wanted)
        if count == best_length:
            del self._starts[best], self._ends[best]
        else:
            self._starts[best] += count
        self._take(count)
        return first, count

    def free(self, first: int, count: int = 1) -> None:
        """Give back a run of pages; ValueError if one of them is free already or does not exist."""
        if count == 0:
            return
        end = first + count
        index = bisect_left(self._starts, first)
        below = self._ends[index - 1] if index else 0
        above = self._starts[index] if index < len(self._starts) else self.total
        if not below <= first < end <= above:
            raise ValueError(f"EPC pages {first}..{end - 1} are not all allocated")
        joins_below = index > 0 and below == first
        joins_above = index < len(self._starts) and above == end
        if joins_below and joins_above:
            self._ends[index - 1] = self._ends[index]
            del self._starts[index], self._ends[index]
        elif joins_below:
            self._ends[index - 1] = end
        elif joins_above:
            self._starts[index] = first
        else:
            self._starts.insert(index, first)
            self._ends.insert(index, end)
        self.free_pages += count

    def _take(self, count: int) -> None:
        self.free_pages -= count
        self.fewest_free = min(self.fewest_free, self.free_pages)

    def _check_some_free(self) -> None:
        if not self.free_pages:
            raise ValueError(f"none of {self.total} EPC pages is free")
