# SPDX-License-Identifier: Apache-2.0
"""The mappings of enclaves in one address space, and what makes the touch of a hole a fault.

Owns the list of enclave VMAs of an Mm and its userfaultfd. A mapping begins as PROT_NONE, and `settle`
gives it its protection: a mapping that allows the touch of a hole makes a silent zero page. Where the
userfaultfd watches, who touches a hole, or writes to a page that is on its way out, sleeps until it is
answered (userfaults.py), and only pages that allow less than the mapping stay PROT_NONE. Where there is
none, all that must fault stays so: an mprotect for each run of pages, and a SIGSEGV that the supervisor
tells from the program's.

Source: ioctl_userfaultfd(2), include/uapi/linux/userfaultfd.h.
"""

import contextlib
import ctypes
import fcntl
import os
import struct
from bisect import bisect_left, bisect_right

from softsgx.driver.read_ahead import READ_AHEAD_MOST
from softsgx.run import numbers as n
from softsgx.run.ptrace import failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from softsgx.driver.driver import EnclaveFile
    from softsgx.driver.encl import Encl
    from softsgx.driver.legacy import LegacyMapping
    from softsgx.run.fast_path import Space
    from softsgx.run.revoke import Revoker
    from softsgx.run.tracee import Injector, Tracee
    from softsgx.run.userfaults import Userfaults

    Mapped = EnclaveFile | LegacyMapping
    Release = Callable[[Mapped], None]

USER_MODE_ONLY = 1
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_COPY = 0xC028AA03
_UFFDIO_WRITEPROTECT = 0xC018AA06
_UFFDIO_WAKE = 0x8010AA02
_UFFD_API = 0xAA
# UFFD_FEATURE_: THREAD_ID, EXACT_ADDRESS, and WP_HUGETLBFS_SHMEM of Linux 5.19.
_FEATURES = 1 << 8 | 1 << 11 | 1 << 12
_MODE_MISSING = 1
_MODE_WP = 2
_COPY_MODE_WP = 2
_PROTECT = 1
_WRITEPROTECT = struct.Struct("<QQQ")
_COPY = struct.Struct("<QQQQq")
_TOP = 1 << 64
# The protection in force of what another thread may have changed meanwhile.
_UNKNOWN = -1

# What UFFDIO_COPY copies from.
_pages = bytearray((1 + READ_AHEAD_MOST) * n.PAGE_SIZE)
_pages_at = ctypes.addressof((ctypes.c_char * len(_pages)).from_buffer(_pages))


def too_many_runs(tracee: "Tracee") -> str:
    """Say why an mprotect of enclave memory has failed."""
    return (
        f"process {tracee.process.pid} has more runs of enclave pages than it may have mappings: "
        "allow userfaultfd, which needs none, or raise vm.max_map_count"
    )


class EnclaveVma:
    """One mapping of an enclave: [start, end), the protection asked for, the open file or legacy mapping.

    `in_force` is the protection that the kernel knows of; `may_write` is its VM_MAYWRITE.
    """

    __slots__ = ("dontfork", "end", "file", "in_force", "may_write", "prot", "start", "watched")

    def __init__(self, start: int, end: int, prot: int, file: "Mapped") -> None:
        self.start = start
        self.end = end
        self.prot = prot
        self.file = file
        self.in_force = 0
        self.may_write = True
        self.watched = False  # by the userfaultfd
        self.dontfork = False

    def part(self, start: int, end: int) -> "EnclaveVma":
        """Give the piece of this mapping within [start, end)."""
        low, high = max(self.start, start), min(self.end, end)
        piece = EnclaveVma(low, high, self.prot, self.file)
        piece.in_force = self.in_force
        piece.may_write = self.may_write
        piece.watched = self.watched
        piece.dontfork = self.dontfork
        return piece

    def reaches(self, encl: "Encl") -> bool:
        """Tell whether touching a hole of an enclave here gives zeros."""
        return self.file.encl is encl and not self.watched and self.in_force != 0

    def goes_on_in(self, other: "EnclaveVma") -> bool:
        """Tell whether `other` begins where this one ends and differs in nothing else."""
        return (
            self.end == other.start
            and self.file is other.file
            and self.prot == other.prot
            and self.in_force == other.in_force
            and self.may_write == other.may_write
            and self.watched == other.watched
            and self.dontfork == other.dontfork
        )


class EnclaveMap:
    """All enclave VMAs of an address space, in order.

    `release` ends what still belongs to a mapping when the address space ends. `userfaults` answers
    whoever sleeps at a page.
    """

    def __init__(
        self,
        revoker: "Revoker | None" = None,
        release: "Release | None" = None,
        userfaults: "Userfaults | None" = None,
    ) -> None:
        self._vmas: list[EnclaveVma] = []
        self._starts: list[int] = []
        self._uffd = -1
        self.refused = False  # a userfaultfd cannot be had
        # Another thread may have mapped or unmapped between the kernel's copy and this one.
        self.doubtful = False
        self.changing = 0  # so many changes are on their way: a fault may be due to one of them
        self.placed = -1  # the page that was put in place last
        # With strict isolation, an enclave is out of reach while none of these threads is inside.
        self.strict = False
        self.inside: dict[Encl, int] = {}
        self.space: Space | None = None  # hears of what changes, where threads enter without a leaf
        self.generation = 0  # counts what may make an access work that has faulted
        # Changes mappings that no userfaultfd watches, by one of the threads.
        self._revoker = revoker
        self._release = release
        self._userfaults = userfaults

    def __len__(self) -> int:
        return len(self._vmas)

    @property
    def watched(self) -> bool:
        """Whether the userfaultfd is in place."""
        return self._uffd >= 0

    def watch(self, uffd: int) -> None:
        """Take over the userfaultfd made in this address space and register what is mapped."""
        fcntl.ioctl(uffd, _UFFDIO_API, struct.pack("<QQQ", _UFFD_API, _FEATURES, 0))
        self._uffd = uffd
        if self._userfaults is not None:
            self._userfaults.watch(uffd, self)
        for vma in self._vmas:
            self._register(vma)

    def _register(self, vma: EnclaveVma) -> None:
        argument = struct.pack("<QQQQ", vma.start, vma.end - vma.start, _MODE_MISSING | _MODE_WP, 0)
        # userfaultfd_register refuses a mapping without VM_MAYWRITE.
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._uffd, _UFFDIO_REGISTER, argument)
            vma.watched = True
            self._protect_unwritable(vma, vma.start, vma.end)

    def close(self) -> None:
        """Forget everything: the address space is gone."""
        files = {vma.file for vma in self._vmas}
        for vma in self._vmas:
            mm_list = vma.file.encl.mm_list
            if self in mm_list:
                mm_list.remove(self)
            vma.file.encl.zapped(self)
        self._vmas.clear()
        self._starts.clear()
        if self._uffd >= 0:
            if self._userfaults is not None:
                self._userfaults.forget(self._uffd)
            os.close(self._uffd)
            self._uffd = -1
        for file in files:
            if file.ends_unmapped and self._release is not None:
                self._release(file)

    def maps(self, file: "Mapped") -> bool:
        """Tell whether any part of a file is mapped."""
        return any(vma.file is file for vma in self._vmas)

    def find(self, address: int) -> EnclaveVma | None:
        """Give the mapping that holds `address`."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        vma = self._vmas[at]
        return vma if address < vma.end else None

    def files(self) -> "set[Mapped]":
        """Give the files that are mapped."""
        return {vma.file for vma in self._vmas}

    def overlapping(self, start: int, end: int) -> list[EnclaveVma]:
        """Give the pieces of mappings that lie in [start, end)."""
        return [vma.part(start, end) for vma in self._vmas[self._span(start, end)]]

    def add(self, vma: EnclaveVma) -> None:
        """Enter a new mapping over whatever was there, and watch it."""
        self._changed(vma.start, vma.end)
        if self._uffd >= 0:
            self._register(vma)
        self._replace(vma.start, vma.end, [vma])
        if self not in vma.file.encl.mm_list:
            vma.file.encl.mm_list.append(self)

    def remove(self, start: int, end: int) -> None:
        """Forget what lay in [start, end)."""
        self._changed(start, end)
        self._replace(start, end, [])

    def protect(self, start: int, end: int, prot: int, in_force: int) -> None:
        """Record a changed protection, and the one that is in force."""
        self._changed(start, end)
        pieces = self.overlapping(start, end)
        for piece in pieces:
            piece.prot = prot
            piece.in_force = in_force
        self._replace(start, end, pieces)

    def _changed(self, start: int, end: int) -> None:
        if self.space is not None:
            self.space.changed(start, end)

    def set_dontfork(self, start: int, end: int) -> None:
        """Record that a range is not inherited."""
        pieces = self.overlapping(start, end)
        for piece in pieces:
            piece.dontfork = True
        self._replace(start, end, pieces)

    def fork(self, *, alone: bool) -> "EnclaveMap":
        """Give the child's map, not watched yet.

        If the thread that forks is not `alone`, another may have changed protections after the kernel's copy.
        """
        child = EnclaveMap(self._revoker, self._release, self._userfaults)
        stale = not alone or any(file.encl.dead for file in self.files())
        child.refused = self.refused
        child.strict = self.strict
        child.doubtful = not alone
        for vma in self._vmas:
            if not vma.dontfork:
                copy = vma.part(vma.start, vma.end)
                copy.watched = False
                if stale:
                    copy.in_force = _UNKNOWN
                child.add(copy)
        return child

    def agree(self, mapped: "Sequence[tuple[int, int, Mapped]]") -> list[tuple[int, int]]:
        """Forget what is not among the mappings that the kernel has; give those that are not known here."""
        for vma in list(self._vmas):
            at = vma.start
            for low, high, file in mapped:
                if file is vma.file and low < vma.end and high > at:
                    self.remove(at, max(low, at))
                    at = high
            self.remove(at, max(vma.end, at))
        unknown = []
        for start, end, file in mapped:
            at = start
            for part in self.overlapping(start, end):
                if part.file is file:
                    unknown.append((at, part.start))
                    at = part.end
            unknown.append((at, end))
        return [(low, high) for low, high in unknown if low < high]

    def translate(self, address: int) -> int | None:
        """Walk the page tables: the EPC page at a linear address, or None where not present."""
        vma = self.find(address)
        if vma is None or not vma.prot:
            return None
        return vma.file.encl.translate(address)

    # -- pages that go out and come in -------------------------------------------------------

    def block(self, encl: "Encl", spans: list[tuple[int, int]]) -> bool:
        """Take writing away from an enclave's pages, as driver's EnclMm port wants it.

        A write that comes now stops its thread. Where no userfaultfd watches, the pages are out of
        reach when this returns, and the caller may have been suspended.
        """
        if self.block_watched(encl, spans):
            return True
        return self._revoker is not None and self._revoker.revoke(self, encl, spans)

    def block_watched(self, encl: "Encl", spans: list[tuple[int, int]]) -> bool:
        """Take writing away where the userfaultfd watches; tell whether that is everywhere."""
        everywhere = True
        for start, end in spans:
            for vma in self._vmas[self._span(start, end)]:
                if vma.file.encl is not encl:
                    continue
                if vma.watched:
                    low, high = max(vma.start, start), min(vma.end, end)
                    self._write_protect(low, high, _PROTECT)
                else:
                    everywhere = False
        return everywhere

    def narrow(self, encl: "Encl", spans: list[tuple[int, int]]) -> bool:
        """Take away what an enclave's pages do not allow any more, as driver's EnclMm port wants it."""
        due = False
        for start, end in spans:
            for vma in self._vmas[self._span(start, end)]:
                if vma.file.encl is encl and vma.watched:
                    self._protect_unwritable(vma, max(vma.start, start), min(vma.end, end))
            due |= self.unsettled(start, end) is not None
        if not due:
            return True
        return self._revoker is not None and self._revoker.revoke(self, encl, spans, blocking=False)

    def _protect_unwritable(self, vma: EnclaveVma, start: int, end: int) -> None:
        # Whatever the mapping allows now: it may allow writing later.
        for low, high in vma.file.encl.unwritable(start, end):
            self._write_protect(low, high, _PROTECT)

    def zap(self, encl: "Encl") -> bool:
        """Take a killed enclave's pages out of reach, as driver's EnclMm port wants it.

        Where the userfaultfd watches they are, as soon as they are holes.
        """
        if not self.reaching(encl):
            return True
        return self._revoker is not None and self._revoker.zap(self, encl)

    def reaching(self, encl: "Encl") -> list[tuple[int, int]]:
        """Give the mappings through which holes of an enclave would be zeros."""
        return [(vma.start, vma.end) for vma in self._vmas if vma.reaches(encl)]

    def unblock(self, page: int) -> None:
        """Allow writing to a page that has stayed, or come back."""
        self._write_protect(page, page + n.PAGE_SIZE, 0)

    def _write_protect(self, start: int, end: int, mode: int) -> None:
        self.generation += 1
        argument = _WRITEPROTECT.pack(start, end - start, mode)
        # A part that another thread has just unmapped is of no concern.
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._uffd, _UFFDIO_WRITEPROTECT, argument)

    def wake(self, address: int) -> None:
        """Let those try again who sleep at a page."""
        with contextlib.suppress(OSError):
            argument = struct.pack("<QQ", address & -n.PAGE_SIZE, n.PAGE_SIZE)
            fcntl.ioctl(self._uffd, _UFFDIO_WAKE, argument)

    def place(self, address: int, data: "bytes | bytearray | memoryview") -> int:
        """Put absent pages into the enclave's memory and into this address space at once; gives how many bytes.

        It ends at one that is not watched, or unmapped by now, or of which somebody else's touch has
        made a page of zeros.
        """
        self.generation += 1
        length = len(data)
        vma = self.find(address)
        if self._uffd < 0 or length > len(_pages) or vma is None:
            return 0
        mode = _COPY_MODE_WP if vma.file.encl.unwritable(address, address + length) else 0
        _pages[:length] = data
        argument = bytearray(_COPY.pack(address, _pages_at, length, mode, 0))
        try:
            fcntl.ioctl(self._uffd, _UFFDIO_COPY, argument, True)
        except OSError:
            end, length = address + length, max(_COPY.unpack(argument)[4], 0)
            if mode:
                # What is put there in another way is not to be written either.
                self._write_protect(address + length, end, _PROTECT)
        if length:
            self.placed = address
        return length

    # -- the protection in force --------------------------------------------------------------

    def shut(self, encl: "Encl") -> bool:
        """Tell whether an enclave's mappings are out of reach, for none of the process's threads is inside."""
        return self.strict and encl not in self.inside

    def due(self, vma: EnclaveVma) -> "Iterator[tuple[int, int, int]]":
        """Give for each part of a mapping the protection that has to be in force: low, high, prot."""
        if self.shut(vma.file.encl):
            yield vma.start, vma.end, 0
            return
        if vma.watched:
            parts = vma.file.encl.narrowed(vma.start, vma.end, vma.prot)
            between = vma.prot
        else:
            parts = vma.file.encl.touchable(vma.start, vma.end, vma.prot)
            between = 0
        at = vma.start
        for low, high, within in parts:
            if at < low:
                yield at, low, between
            yield low, high, within
            at = high
        if at < vma.end:
            yield at, vma.end, between

    def unsettled(self, start: int, end: int) -> tuple[int, int, int] | None:
        """Give the first run in [start, end) for which another protection is due: low, high, prot."""
        run: tuple[int, int, int] | None = None
        span = self._span(start, end)
        for at in range(span.start, span.stop):
            vma = self._vmas[at].part(start, end)
            for low, high, prot in self.due(vma):
                wrong = prot != vma.in_force
                if run is not None and wrong and (run[1], run[2]) == (low, prot):
                    run = run[0], high, prot
                elif run is not None:
                    return run
                elif wrong:
                    run = low, high, prot
        return run

    def settle(self, injector: "Injector", start: int, end: int) -> int:
        """Put in force in [start, end) what is due; gives the errno of an mprotect that failed.

        Each run is looked for anew: meanwhile another thread may have changed the mappings.
        """
        while self.changing:
            # What the kernel has and what is recorded would differ, had two calls changed one page.
            injector.pause()
        self.changing += 1
        try:
            while (run := self.unsettled(start, end)) is not None:
                low, high, prot = run
                result = injector.call(n.SYS_MPROTECT, low, high - low, prot)
                if not failed(result):
                    self._set_in_force(low, high, prot)
                elif self.unsettled(low, high) == run:
                    return failed(result)
                start = low
            return 0
        finally:
            self.changing -= 1

    def _set_in_force(self, start: int, end: int, prot: int) -> None:
        self.generation += 1
        pieces = self.overlapping(start, end)
        for piece in pieces:
            piece.in_force = prot
        self._replace(start, end, pieces)

    # -- the list -----------------------------------------------------------------------------

    def _span(self, start: int, end: int) -> slice:
        first = max(bisect_right(self._starts, start) - 1, 0)
        if first < len(self._vmas) and self._vmas[first].end <= start:
            first += 1
        return slice(first, max(bisect_left(self._starts, end), first))

    def _replace(self, start: int, end: int, pieces: list[EnclaveVma]) -> None:
        span = self._span(start, end)
        first, last = span.start, span.stop
        if first < last:
            left, right = self._vmas[first].part(0, start), self._vmas[last - 1].part(end, _TOP)
            pieces = [vma for vma in (left, *pieces, right) if vma.start < vma.end]
        # With the neighbours, as the kernel joins VMAs.
        first, before = max(first - 1, 0), self._vmas[max(first - 1, 0) : first]
        joined: list[EnclaveVma] = []
        for vma in (*before, *pieces, *self._vmas[last : last + 1]):
            if joined and joined[-1].goes_on_in(vma):
                joined[-1].end = vma.end
            else:
                joined.append(vma.part(vma.start, vma.end))
        self._vmas[first : last + 1] = joined
        self._starts[first : last + 1] = [vma.start for vma in joined]
