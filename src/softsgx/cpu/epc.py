# SPDX-License-Identifier: Apache-2.0
"""The EPC: the EPCM in columns, the contents of pages that no enclave addresses, the busy pages.

Owns the EPCM and nothing else; which page is free is the driver's knowledge. A leaf that is at work on
a page holds it busy, and a second leaf that needs it meets #GP, as the manual's concurrency tables say.
The columns are plain integer arrays, so that a range is one slice and an entry one comparison.
"""

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, NewType

from softsgx.arch.secinfo import (
    PAGE_SIZE,
    PT_SECS,
    PT_TCS,
    PT_VA,
    SECINFO_MODIFIED,
    SECINFO_PAGE_TYPE_SHIFT,
    SECINFO_PENDING,
    SECINFO_PR,
    SECINFO_RWX,
)
from softsgx.errors import Fault

if TYPE_CHECKING:
    from softsgx.cpu.secs import Thread

PageIndex = NewType("PageIndex", int)

# Where the EPC lies in the address space of who executes ENCLS.
EPC_BASE = 0xFFFF_C900_0000_0000

# An EPCM entry's word: SECINFO.FLAGS as the manual prints them (RWX, PENDING, MODIFIED, PR, PAGE_TYPE),
# and in the two bits that SECINFO reserves, what SECINFO does not hold.
EPCM_BLOCKED = 0x40
EPCM_VALID = 0x80
EPCM_SECINFO = 0xFFFF & ~(EPCM_BLOCKED | EPCM_VALID)
EPCM_TYPE_SHIFT = SECINFO_PAGE_TYPE_SHIFT

# The words of a SECS and of a VA page, which have no attributes and are never blocked.
SECS_WORD = EPCM_VALID | PT_SECS << EPCM_TYPE_SHIFT
VA_WORD = EPCM_VALID | PT_VA << EPCM_TYPE_SHIFT
# "No page": the owner of a SECS or VA page.
NO_SECS = 0xFFFF_FFFF


class Epc:
    """The enclave page cache of so many pages; an index out of range is the caller's bug."""

    __slots__ = (
        "addresses",
        "blocked",
        "busy",
        "contents",
        "modified",
        "open",
        "owners",
        "pages",
        "words",
    )

    def __init__(self, pages: int) -> None:
        if not 0 < pages < NO_SECS:
            raise ValueError(f"an EPC of {pages} pages; 1 to {NO_SECS - 1} are possible")
        self.pages = pages
        self.words = array("H", [0]) * pages
        self.owners = array("I", [NO_SECS]) * pages
        self.addresses = array("Q", [0]) * pages
        # TCS and VA pages, by index: no one may read them by an address inside an enclave.
        self.contents: dict[int, bytearray] = {}
        self.busy: set[int] = set()
        # The tracking cycle of its enclave in which a page was blocked.
        self.blocked: dict[int, int] = {}
        # The TCSs by which threads enter without a leaf, by each page that a leaf would look at.
        self.open: dict[int, set[Thread]] = {}
        # The one in which EMODPR or EMODT has changed a page that is not accepted yet.
        self.modified: dict[int, int] = {}

    def resolve(self, address: int) -> PageIndex:
        """Return the page that holds a linear address of the EPC; #PF if there is none."""
        index = (address - EPC_BASE) // PAGE_SIZE
        if not 0 <= index < self.pages:
            raise Fault.pf(address, f"{address:#x} does not resolve within the EPC")
        return PageIndex(index)

    @staticmethod
    def address(page: PageIndex) -> int:
        """Return the linear address of an EPC page."""
        return EPC_BASE + page * PAGE_SIZE

    def lock(self, page: int) -> None:
        """Hold a page busy; #GP if somebody does."""
        if page in self.busy:
            raise Fault.gp(f"EPC page {page} is in use by another leaf")
        self.busy.add(page)

    def lock_range(self, pages: range) -> None:
        """Hold pages busy, all or none; #GP if somebody holds one."""
        if not self.busy.isdisjoint(pages):
            raise Fault.gp(f"an EPC page in {pages.start}..{pages.stop} is in use by another leaf")
        self.busy.update(pages)

    def unlock(self, pages: Iterable[int]) -> None:
        """Release pages."""
        self.busy.difference_update(pages)

    def valid(self, page: int) -> bool:
        """Tell EPCM.VALID."""
        return bool(self.words[page] & EPCM_VALID)

    def page_type(self, page: int) -> int:
        """Tell EPCM.PT."""
        return self.words[page] >> EPCM_TYPE_SHIFT

    def is_secs(self, page: int) -> bool:
        """Tell whether a valid SECS is on the page."""
        return self.words[page] == SECS_WORD

    def set_secs(self, page: int) -> None:
        """Make the entry that ECREATE makes."""
        self._set(page, SECS_WORD, NO_SECS, 0)

    def set_va(self, page: int) -> None:
        """Make the entry that EPA makes."""
        self._set(page, VA_WORD, NO_SECS, 0)

    def set_child(self, page: int, secinfo_flags: int, secs: int, address: int) -> None:
        """Make the entry of an enclave's page: RWX, PENDING, MODIFIED, PR and type are SECINFO's."""
        self._set(page, secinfo_flags | EPCM_VALID, secs, address)

    def set_children(self, pages: range, secinfo_flags: int, secs: int, address: int) -> None:
        """Make the entries of pages that follow one another in the EPC and in the enclave."""
        count = len(pages)
        where = slice(pages.start, pages.stop)
        self.words[where] = array("H", [secinfo_flags | EPCM_VALID]) * count
        self.owners[where] = array("I", [secs]) * count
        self.addresses[where] = array("Q", range(address, address + count * PAGE_SIZE, PAGE_SIZE))

    def shut(self, page: int) -> None:
        """Let nobody enter without a leaf by a TCS that lies on a page, or has its SSA frame there."""
        for thread in self.open.pop(page, ()):
            thread.shut()

    def block(self, page: int, cycle: int) -> None:
        """Set EPCM.BLOCKED of an enclave's page, in a tracking cycle of its enclave."""
        if page in self.open:
            self.shut(page)
        self.words[page] |= EPCM_BLOCKED
        self.blocked[page] = cycle

    def clear(self, page: int) -> None:
        """Make the entry invalid and forget what the page held."""
        if page in self.open:
            self.shut(page)
        self._set(page, 0, NO_SECS, 0)
        self.contents.pop(page, None)
        self.blocked.pop(page, None)
        self.modified.pop(page, None)

    def clear_range(self, pages: range) -> None:
        """Make the entries of regular pages invalid."""
        if self.open:
            for page in pages:
                self.shut(page)
        count = len(pages)
        where = slice(pages.start, pages.stop)
        self.words[where] = array("H", [0]) * count
        self.owners[where] = array("I", [NO_SECS]) * count
        self.addresses[where] = array("Q", [0]) * count
        if self.blocked:
            for page in pages:
                self.blocked.pop(page, None)
        if self.modified:
            for page in pages:
                self.modified.pop(page, None)

    def _set(self, page: int, word: int, owner: int, address: int) -> None:
        self.words[page] = word
        self.owners[page] = owner
        self.addresses[page] = address

    def check(self) -> None:
        """Assert what every leaf must keep true of the whole EPCM; for tests and the suspicious."""
        for page in range(self.pages):
            word, owner = self.words[page], self.owners[page]
            kind = word >> EPCM_TYPE_SHIFT
            if not word & EPCM_VALID:
                consistent = (word, owner, self.addresses[page]) == (0, NO_SECS, 0)
            elif kind in {PT_SECS, PT_VA}:
                attributes = SECINFO_RWX | SECINFO_PENDING | SECINFO_MODIFIED | SECINFO_PR
                consistent = owner == NO_SECS and not word & (attributes | EPCM_BLOCKED)
            else:
                consistent = owner != NO_SECS and self.is_secs(owner)
            blocked = bool(word & EPCM_BLOCKED) == (page in self.blocked)
            held = bool(word & EPCM_VALID and kind in {PT_TCS, PT_VA}) == (page in self.contents)
            changed = word & (SECINFO_MODIFIED | SECINFO_PR) or page not in self.modified
            if not (consistent and blocked and held and changed):
                raise AssertionError(f"EPCM entry {page}: word {word:#x}, owner {owner:#x}")
