# SPDX-License-Identifier: Apache-2.0
"""The VA pages of one enclave and which of their slots are taken (kernel: struct sgx_va_page).

Owns the slots: a mask of the free ones for each page.  A slot's number is page number * 512 + slot; it is
all that is kept of where the version of an evicted page lies.
"""

from softsgx.arch.secinfo import VA_SLOTS
from softsgx.cpu.epc import PageIndex

_ALL_FREE = (1 << VA_SLOTS) - 1


class VaPages:
    """The VA pages, in the order of their EPA."""

    __slots__ = ("_free", "_open", "pages")

    def __init__(self) -> None:
        self.pages: list[PageIndex] = []
        self._free: list[int] = []
        # Numbers of pages with a free slot, the one to be used next at the end.
        self._open: list[int] = []

    def __len__(self) -> int:
        return len(self.pages)

    def add(self, page: PageIndex) -> None:
        """Enter a page that EPA has made."""
        self._open.append(len(self.pages))
        self.pages.append(page)
        self._free.append(_ALL_FREE)

    def reserve(self, count: int) -> tuple[int, list[int]]:
        """Take up to ``count`` slots, at least one, of one page: its number and the slots.

        ValueError if all are taken, which cannot be while there is a slot for each page.
        """
        if not self._open:
            raise ValueError("every VA slot of the enclave is taken")
        number = self._open[-1]
        free = self._free[number]
        slots: list[int] = []
        while free and len(slots) < count:
            lowest = free & -free
            slots.append(lowest.bit_length() - 1)
            free ^= lowest
        self._free[number] = free
        if not free:
            self._open.pop()
        return number, slots

    def give_back(self, number: int, slot: int) -> None:
        """Free a slot: its version is spent, or was never written."""
        free = self._free[number]
        if not free:
            self._open.append(number)
        self._free[number] = free | 1 << slot

    def pop_unused(self) -> PageIndex | None:
        """Take out the last page if none of its slots is taken."""
        if not self.pages or self._free[-1] != _ALL_FREE:
            return None
        self._free.pop()
        self._open.remove(len(self.pages) - 1)
        return self.pages.pop()

    def clear(self) -> list[PageIndex]:
        """Take out all pages, whatever their slots hold, and return them."""
        pages, self.pages = self.pages, []
        self._free.clear()
        self._open.clear()
        return pages
