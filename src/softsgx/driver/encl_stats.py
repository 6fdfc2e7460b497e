# SPDX-License-Identifier: Apache-2.0
"""What happened to the EPC pages of each enclave; the kernel counts none of it.

Owns the counters: one set for each open enclave, and the sum of those that have ended.  Whoever moves
pages increments them where it does so.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from softsgx.driver.encl import Encl

# In the order in which they are shown.
COUNTERS = (
    "resident",
    "added",
    "augmented",
    "evictions",
    "reloads",
    "kills",
    "backing_faults",
    "backing_bytes",
    "backing_pages",
)


class EnclStats:
    """The counters of one enclave, or of several.

    ``resident`` is the EPC pages held now, SECS and VA pages included: the sum over all enclaves, ended
    ones too, is the EPC in use.  ``added`` counts what ADD_PAGES added, ``augmented`` what a fault added by
    EAUG, ``evictions`` and ``reloads`` what EWB wrote out and ELDU brought back, SECS and VA pages too.
    ``kills`` is 1 for an enclave that had to give way.  ``backing_faults`` are accesses of the store that
    failed, ``backing_bytes`` what was written to it and read from it, PCMDs included, ``backing_pages`` the
    pages that lie there now.
    """

    __slots__ = (*COUNTERS, "number")

    resident: int
    added: int
    augmented: int
    evictions: int
    reloads: int
    kills: int
    backing_faults: int
    backing_bytes: int
    backing_pages: int

    def __init__(self) -> None:
        # Of the enclave among all of its driver; addresses and processes are used again.
        self.number = 0
        for name in COUNTERS:
            setattr(self, name, 0)

    def include(self, other: "EnclStats") -> None:
        """Add another's counters to these."""
        for name in COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict[str, int]:
        """Return the counters by name."""
        return {name: getattr(self, name) for name in COUNTERS}


class DriverStats:
    """The counters of all enclaves of one driver: ``live`` by enclave, in the order of their opening."""

    def __init__(self) -> None:
        self.live: dict[Encl, EnclStats] = {}
        self._opened = 0
        # Pages that EREMOVE refused stay in its ``resident``: nobody can allocate them any more.
        self.ended = EnclStats()

    def began(self, encl: "Encl") -> None:
        """Enter an enclave whose file was opened."""
        self._opened += 1
        encl.stats.number = self._opened
        self.live[encl] = encl.stats

    def end(self, encl: "Encl") -> None:
        """Keep only the sum of a released enclave's counters."""
        self.ended.include(self.live.pop(encl))

    def total(self) -> EnclStats:
        """Return the sum over all enclaves, ended ones too."""
        total = EnclStats()
        for stats in (self.ended, *self.live.values()):
            total.include(stats)
        return total


class EnclEvents(Protocol):
    """Who is told what happens to enclaves: ``Driver.events``, and ``Encl.events`` of each one opened since.

    None where nobody listens.  A call must not suspend, nor change an enclave.
    """

    def evicted(self, encl: "Encl", pages: int) -> None:
        """Hear that so many pages were written to the store and have left the EPC."""

    def reloaded(self, encl: "Encl", address: int) -> None:
        """Hear that the page at a linear address is in the EPC again."""

    def killed(self, encl: "Encl", reason: str) -> None:
        """Hear that an enclave had to give way; ``reason`` in words."""

    def backing_fault(self, encl: "Encl", address: int, reason: str) -> None:
        """Hear that the store failed for the page at a linear address; ``reason`` in words."""

    def ended(self, encl: "Encl") -> None:
        """Hear that an enclave is about to be released; its counters are still as they were."""


class BuildEvents(Protocol):
    """Who is told how enclaves are built: ``Driver.builds``, and ``Encl.builds`` of each one opened since.

    None where nobody listens, as in all runs but those of `softsgx extract`.  A call must not suspend, nor
    change an enclave.
    """

    def added(
        self, encl: "Encl", address: int, count: int, secinfo_flags: int, measured: bool
    ) -> None:
        """Hear that EADD has added pages from a linear address on, and whether EEXTEND has measured them all.

        They are resident, and the caller has not gone on yet.
        """

    def extended(self, encl: "Encl", address: int, mrmask: int) -> None:
        """Hear that EEXTEND has measured the chunks that a mask selects, of the page that was added last."""

    def initialized(self, encl: "Encl", sigstruct: bytes) -> None:
        """Hear that EINIT has taken a SIGSTRUCT."""

    def released(self, encl: "Encl") -> None:
        """Hear that an enclave is about to be released, whatever has become of it."""
