# SPDX-License-Identifier: Apache-2.0
"""The EPC pages of one enclave: how they are had, counted and given back (kernel: sgx_encl_grow and its kin).

Owns which VA pages the enclave has, and how many pages it has that may need a slot in them.
"""

import errno
from typing import TYPE_CHECKING

from softsgx.arch.secinfo import PT_VA, VA_SLOTS
from softsgx.cpu.encls import epa, eremove, eremove_pages
from softsgx.cpu.epc import Epc, PageIndex
from softsgx.driver.encl_stats import EnclStats
from softsgx.driver.va_pages import VaPages
from softsgx.errors import DriverError

if TYPE_CHECKING:
    from softsgx.cpu.processor import Processor
    from softsgx.driver.reclaim import Reclaimer
    from softsgx.driver.task import Task


class EnclEpc:
    """What an enclave holds of the EPC."""

    def __init__(self, cpu: "Processor", reclaimer: "Reclaimer") -> None:
        self.cpu = cpu
        self.reclaimer = reclaimer
        self.allocator = reclaimer.allocator
        self.va_pages = VaPages()
        # Pages that have, or may come to need, a VA slot: the SECS too.
        self.page_cnt = 0
        self.stats = EnclStats()

    def make_room(self, task: "Task", wanted: int, least: int) -> None:
        """Reclaim until ``wanted`` EPC pages are free, or at least ``least``, as far as that goes.

        Nobody is killed for more than the least.  What is on its way in elsewhere does not give way: the
        caller waits for that.
        """
        make_room = self.reclaimer.make_room
        if make_room(wanted, self, kill=False):
            return
        while not make_room(least, self):
            if task.signal_pending():
                raise DriverError(errno.EINTR, "a signal came before an EPC page was free")
            if not self.reclaimer.transient(self) or not task.pause():
                break

    def affordable(self, count: int) -> int:
        """Return how many pages, at most ``count``, the free EPC holds together with their VA pages."""
        free = self.allocator.free_pages
        count = min(count, free)
        while count and count + self.va_pages_wanted(count) > free:
            count -= 1
        return count

    def va_pages_wanted(self, count: int) -> int:
        """Return how many VA pages are missing for so many more pages."""
        # After REMOVE_PAGES there may be more than are needed.
        return max(-self._va_pages_spare(count), 0)

    def _va_pages_spare(self, count: int) -> int:
        return len(self.va_pages) - -(-(self.page_cnt + count) // VA_SLOTS)

    def exhausted(self, what: str) -> DriverError:
        """Return what fails where no EPC page can be had."""
        return DriverError(
            errno.ENOMEM,
            f"no EPC page is left for {what}: {self.allocator.free_pages} of "
            f"{self.allocator.total} are free, and nothing gives way "
            f"({len(self.reclaimer.policy)} pages could be evicted)",
        )

    def grow(self, count: int) -> None:
        """Account for more pages; the caller has seen that the EPC holds their VA pages."""
        for _ in range(self.va_pages_wanted(count)):
            page = self.allocate_page()
            epa(self.cpu, PT_VA, Epc.address(page))
            self.va_pages.add(page)
        self.page_cnt += count

    def shrink(self, count: int) -> None:
        """Take back what ``grow`` accounted for."""
        self.page_cnt -= count
        for _ in range(self._va_pages_spare(0)):
            # Reclaim may have used it meanwhile: then it stays.
            page = self.va_pages.pop_unused()
            if page is None:
                break
            self.free_epc_page(page)

    def allocate_page(self) -> PageIndex:
        """Take a free EPC page; the caller has seen that there is one."""
        page = PageIndex(self.allocator.allocate_page())
        self.stats.resident += 1
        return page

    def free_epc_page(self, page: PageIndex) -> bool:
        """EREMOVE a page and give it back; False if EREMOVE refused, the page is then lost."""
        if eremove(self.cpu, Epc.address(page)):
            return False
        self.allocator.free(page)
        self.stats.resident -= 1
        return True

    def free_epc_run(self, first: int, count: int) -> int:
        """EREMOVE neighbouring pages and give them back; return how many EREMOVE refused."""
        lost = 0
        while count:
            code, done = eremove_pages(self.cpu, PageIndex(first), count)
            self.reclaimer.removed(range(first, first + done))
            self.allocator.free(first, done)
            self.stats.resident -= done
            # Past the page that was refused.
            skipped = 1 if code else 0
            lost += skipped
            first += done + skipped
            count -= done + skipped
        return lost
