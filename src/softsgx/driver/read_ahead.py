# SPDX-License-Identifier: Apache-2.0
"""Bringing in the evicted pages that an enclave will touch next, if it touches its pages in order.

Owns where each enclave's next touch is expected. mainline's driver loads one page a fault. Here a fault
costs more than what it brings in, and swap has read ahead for as long (mm/swap_state.c,
swap_vma_readahead). It never makes room: it takes of the free pages only. To the policy what it has
brought in is as what was touched: no touch of a page that is resident is seen, so nobody can tell them apart.
"""

from typing import TYPE_CHECKING

from softsgx.arch.secinfo import PAGE_SIZE, VA_SLOT_SIZE, VA_SLOTS
from softsgx.cpu.epc import PageIndex
from softsgx.cpu.paging_run import eldu_run
from softsgx.driver.backing import BackingFault, BackingStalled

if TYPE_CHECKING:
    from softsgx.driver.encl import Encl
    from softsgx.driver.page_array import PageRun
    from softsgx.driver.reclaim import Reclaimer

# So many pages beside the second touch in order, then twice as many each time.
_FIRST = 4
# 128 KiB, as Linux reads ahead of files by default (VM_READAHEAD_PAGES).
READ_AHEAD_MOST = 32


class ReadAhead:
    """Follows the touches of evicted pages; ``most`` pages are brought in at once, 0 for none."""

    def __init__(self, reclaimer: "Reclaimer", most: int = READ_AHEAD_MOST) -> None:
        self._reclaimer = reclaimer
        # A part of a small EPC, lest it be filled with what nobody has asked for.
        self._most = min(most, reclaimer.allocator.total // 16)
        # Of each enclave the page that is touched next if it goes on in order, and how many were brought in.
        self._walks: dict[Encl, tuple[int, int]] = {}

    def ended(self, encl: "Encl") -> None:
        """Forget an enclave."""
        self._walks.pop(encl, None)

    def touched(self, encl: "Encl", page: int, end: int) -> bool:
        """Hear of the touch of a linear page that is out; True if it was brought in with what follows it.

        That ends before ``end``. Nobody has asked for what follows: whatever stands against it, it is
        left. What stands against the page itself is for the driver to find out when it loads it alone.
        """
        due, window = self._walks.get(encl, (-1, 0))
        if page != due:
            self._walks[encl] = page + 1, 0
            return False
        window = min(max(2 * window, _FIRST), self._most)
        count = min(window, (self._reclaimer.allocator.free_pages - 1) // 2)
        run = encl.page_array.find(page)
        if run is not None and count > 0:
            count = self._bring_in(encl, run, page, min(end, run.end, page + 1 + count))
        self._walks[encl] = page + max(count, 1), window
        return run is not None and count > 0

    def _bring_in(self, encl: "Encl", run: "PageRun", first: int, end: int) -> int:
        page = first
        while page < end and run.evicted(page):
            page += 1
        count = page - first
        secs = encl.secs_page
        if not count or secs is None:
            return 0
        index = first - encl.base // PAGE_SIZE
        try:
            contents, pcmds = encl.backing.load_run(index, count)
        except (BackingFault, BackingStalled):
            return 0
        allocator, va = self._reclaimer.allocator, encl.va_pages
        pages = [PageIndex(allocator.allocate_page()) for _ in range(count)]
        slots = [divmod(run.slot(page), VA_SLOTS) for page in range(first, first + count)]
        at = [(va.pages[number], slot * VA_SLOT_SIZE) for number, slot in slots]
        done = 0
        try:
            done = eldu_run(
                self._reclaimer.cpu, pages, at, secs, first * PAGE_SIZE, contents, pcmds
            )
        finally:
            for page in pages[done:]:
                allocator.free(page)
        for number, slot in slots[:done]:
            va.give_back(number, slot)
        run.set_resident(first, pages[:done])
        self._reclaimer.loaded_run(encl, index, pages[:done])
        return done
