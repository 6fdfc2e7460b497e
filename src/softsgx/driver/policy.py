# SPDX-License-Identifier: Apache-2.0
"""Which page gives way: the replacement policy of the EPC, one small object that can be exchanged.

A policy sees the pages that may be evicted, by EPC page while they are resident.  It is told when one
comes and goes; no touch in between is seen, for the page tables' accessed bits are the host kernel's.
What it can know is how soon a page that it gave up was wanted again, and that tells a hot page.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol

from softsgx.errors import SoftsgxError

# What identifies a page wherever it is: (enclave's serial number) << 52 | linear page number.
Identity = int


class Policy(Protocol):
    """The order in which pages give way."""

    def added(self, pages: Iterable[int]) -> None:
        """Hear of pages that are resident for the first time."""
        ...

    def loaded(self, page: int, identity: Identity) -> None:
        """Hear of a page that was evicted and is resident again."""
        ...

    def removed(self, pages: Iterable[int]) -> None:
        """Hear of pages that are resident no more, or may not be evicted; unknown ones are no mistake."""
        ...

    def victims(self, count: int) -> list[int]:
        """Return at most so many pages in the order in which they should give way, and forget them."""
        ...

    def young(self, pages: Iterable[int]) -> None:
        """Take back victims that cannot or should not give way now."""
        ...

    def evicted(self, identities: Iterable[Identity]) -> None:
        """Hear which of the victims are out."""
        ...

    def __len__(self) -> int:
        """Return how many pages may be evicted."""
        ...


class Fifo:
    """First in, first out: mainline's list without its second chance."""

    def __init__(self) -> None:
        self._pages: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def added(self, pages: Iterable[int]) -> None:
        """Append them."""
        self._pages.update(dict.fromkeys(pages))

    def loaded(self, page: int, identity: Identity) -> None:  # noqa: ARG002 - all pages are alike
        """Append it."""
        self._pages[page] = None

    def removed(self, pages: Iterable[int]) -> None:
        """Take them out."""
        for page in pages:
            self._pages.pop(page, None)

    def victims(self, count: int) -> list[int]:
        """Take from the front."""
        return _take(self._pages, count)

    def young(self, pages: Iterable[int]) -> None:
        """Append them."""
        self._pages.update(dict.fromkeys(pages))

    def evicted(self, identities: Iterable[Identity]) -> None:
        """Remember nothing."""


class TwoQueues:
    """Cold pages give way first, a page that was wanted again soon is hot (after 2Q: Johnson, Shasha 1994).

    A page comes in cold.  If it is loaded again while it is still among the last evicted ones, as many as
    the EPC has pages, it is hot: a scan that touches each page once passes through the cold queue and
    leaves the hot set resident.  Hot pages give way, the oldest first, while they hold more than seven
    eighths of what may be evicted; one that is still in use is soon loaded again, as hot.
    """

    def __init__(self, epc_pages: int) -> None:
        self._remembered = epc_pages
        self._cold: OrderedDict[int, None] = OrderedDict()
        self._hot: OrderedDict[int, None] = OrderedDict()
        self._gone: OrderedDict[Identity, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._cold) + len(self._hot)

    def added(self, pages: Iterable[int]) -> None:
        """Append them to the cold ones."""
        self._cold.update(dict.fromkeys(pages))

    def loaded(self, page: int, identity: Identity) -> None:
        """Append it to the hot ones if it was evicted not long ago."""
        if identity in self._gone:
            del self._gone[identity]
            self._hot[page] = None
        else:
            self._cold[page] = None

    def removed(self, pages: Iterable[int]) -> None:
        """Take them out."""
        for page in pages:
            if page in self._cold:
                del self._cold[page]
            else:
                self._hot.pop(page, None)

    def victims(self, count: int) -> list[int]:
        """Take cold ones, while they are more than an eighth of all, then hot ones, then any."""
        cold, hot = self._cold, self._hot
        excess = len(cold) - len(self) // 8
        pages = _take(cold, min(count, max(excess, 0)))
        pages += _take(hot, count - len(pages))
        pages += _take(cold, count - len(pages))
        return pages

    def young(self, pages: Iterable[int]) -> None:
        """Append them to the hot ones: they are in use."""
        self._hot.update(dict.fromkeys(pages))

    def evicted(self, identities: Iterable[Identity]) -> None:
        """Remember them, and forget the oldest."""
        gone = self._gone
        for identity in identities:
            gone[identity] = None
        while len(gone) > self._remembered:
            gone.popitem(last=False)


def _take(queue: "OrderedDict[int, None]", count: int) -> list[int]:
    popitem = queue.popitem
    return [popitem(last=False)[0] for _ in range(min(count, len(queue)))]


_NAMES = ("2q", "fifo")


def require_policy(name: str) -> None:
    """See that there is a policy of that name; SoftsgxError says which there are."""
    if name not in _NAMES:
        raise SoftsgxError(f"--epc-policy {name}: wanted is one of {', '.join(_NAMES)}")


def policy_named(name: str, epc_pages: int) -> Policy:
    """Make the policy of a name for an EPC of so many pages; SoftsgxError for another name."""
    require_policy(name)
    return TwoQueues(epc_pages) if name == "2q" else Fifo()
