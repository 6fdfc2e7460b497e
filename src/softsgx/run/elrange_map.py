# SPDX-License-Identifier: Apache-2.0
"""The mappings of enclaves in one address space, and the userfaultfd that watches their holes.

Owns the list of enclave VMAs of an Mm and its userfaultfd. A mapping is registered before the
call that made it returns, and in a forked child before it runs: an unregistered mapping that
touches a hole would make a silent zero page. Holes answer with SIGBUS (UFFD_FEATURE_SIGBUS),
which reaches the supervisor as a stop of the faulting thread with all its registers.

Source: ioctl_userfaultfd(2), include/uapi/linux/userfaultfd.h.
"""

import fcntl
import os
import struct
from bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.driver.driver import EnclaveFile

USER_MODE_ONLY = 1
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFD_API = 0xAA
_FEATURE_SIGBUS = 1 << 7
_MODE_MISSING = 1


class EnclaveVma:
    """One mapping of an enclave: [start, end), the protection asked for, the open file."""

    __slots__ = ("dontfork", "end", "file", "narrowed", "prot", "start")

    def __init__(self, start: int, end: int, prot: int, file: "EnclaveFile") -> None:
        self.start = start
        self.end = end
        self.prot = prot
        self.file = file
        self.dontfork = False
        # It allows more than its pages do, so its pages have been taken out of reach.
        self.narrowed = False

    def part(self, start: int, end: int) -> "EnclaveVma":
        """Give the piece of this mapping within [start, end)."""
        low, high = max(self.start, start), min(self.end, end)
        piece = EnclaveVma(low, high, self.prot, self.file)
        piece.dontfork = self.dontfork
        piece.narrowed = self.narrowed
        return piece


class EnclaveMap:
    """All enclave VMAs of an address space, in order."""

    def __init__(self) -> None:
        self._vmas: list[EnclaveVma] = []
        self._starts: list[int] = []
        self._uffd = -1

    def __len__(self) -> int:
        return len(self._vmas)

    @property
    def watched(self) -> bool:
        """Whether the userfaultfd is in place."""
        return self._uffd >= 0

    def watch(self, uffd: int) -> None:
        """Take over the userfaultfd made in this address space and register what is mapped."""
        fcntl.ioctl(uffd, _UFFDIO_API, struct.pack("<QQQ", _UFFD_API, _FEATURE_SIGBUS, 0))
        self._uffd = uffd
        for vma in self._vmas:
            self._register(vma)

    def close(self) -> None:
        """Forget everything: the address space is gone."""
        self._vmas.clear()
        self._starts.clear()
        if self._uffd >= 0:
            os.close(self._uffd)
            self._uffd = -1

    def _register(self, vma: EnclaveVma) -> None:
        argument = struct.pack("<QQQQ", vma.start, vma.end - vma.start, _MODE_MISSING, 0)
        fcntl.ioctl(self._uffd, _UFFDIO_REGISTER, argument)

    def find(self, address: int) -> EnclaveVma | None:
        """Give the mapping that holds `address`."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        vma = self._vmas[at]
        return vma if address < vma.end else None

    def overlapping(self, start: int, end: int) -> list[EnclaveVma]:
        """Give the pieces of mappings that lie in [start, end)."""
        return [v.part(start, end) for v in self._vmas if v.start < end and start < v.end]

    def add(self, vma: EnclaveVma) -> None:
        """Enter a new mapping over whatever was there, and watch it."""
        self._replace(vma.start, vma.end, [vma])
        if self._uffd >= 0:
            self._register(vma)

    def remove(self, start: int, end: int) -> None:
        """Forget what lay in [start, end)."""
        self._replace(start, end, [])

    def protect(self, start: int, end: int, prot: int) -> None:
        """Record a changed protection."""
        pieces = self.overlapping(start, end)
        for piece in pieces:
            piece.prot = prot
            piece.narrowed = False
        self._replace(start, end, pieces)

    def set_narrowed(self, start: int, end: int) -> None:
        """Record that the pages of a range have been taken out of reach."""
        pieces = self.overlapping(start, end)
        for piece in pieces:
            piece.narrowed = True
        self._replace(start, end, pieces)

    def set_dontfork(self, start: int, end: int) -> None:
        """Record that a range is not inherited."""
        pieces = self.overlapping(start, end)
        for piece in pieces:
            piece.dontfork = True
        self._replace(start, end, pieces)

    def fork(self) -> "EnclaveMap":
        """Give the child's map, not watched yet."""
        child = EnclaveMap()
        for vma in self._vmas:
            if not vma.dontfork:
                child.add(vma.part(vma.start, vma.end))
        return child

    def translate(self, address: int) -> int | None:
        """Walk the page tables: the EPC page at a linear address, or None where not present."""
        vma = self.find(address)
        if vma is None or not vma.prot:
            return None
        return vma.file.encl.translate(address)

    def _replace(self, start: int, end: int, pieces: list[EnclaveVma]) -> None:
        top = 1 << 64
        kept = []
        for vma in self._vmas:
            if vma.end <= start or end <= vma.start:
                kept.append(vma)
                continue
            kept.extend(
                rest for rest in (vma.part(0, start), vma.part(end, top)) if rest.start < rest.end
            )
        self._vmas = sorted(kept + pieces, key=lambda vma: vma.start)
        self._starts = [vma.start for vma in self._vmas]
