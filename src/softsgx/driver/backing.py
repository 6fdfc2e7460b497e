# SPDX-License-Identifier: Apache-2.0
"""Where evicted pages go: the backing store of one enclave (kernel: the backing parts of encl.c).

Owns the layout of a store and the anonymous file that the driver itself provides.  What is in a store
is ciphertext and its PCMDs: who reads it learns nothing, who changes it is found out by ELDU's MAC.  Only
what an older driver's ADD_PAGE has queued lies there as it was given (add_page_queue.py).

Layout: the contents of page ``index`` = (address - base) / 4096 lie at index * 4096, those of the SECS
behind the last page's, at size; its PCMD at index * 128 from the start of the PCMDs, which begin behind
the SECS in a single store and have one of their own in a separate one.
"""

import ctypes
import os
from typing import Protocol

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.arch.structures import Pcmd
from softsgx.driver.page_array import neighbours

PCMD_SIZE = Pcmd.SIZE
PCMD_SHIFT = 5  # a page has 32 PCMDs
_PCMDS_A_PAGE = 1 << PCMD_SHIFT

NO_PCMD = bytes(PCMD_SIZE)
_IOV_MAX = 1024
# So many pages that were loaded become holes at once.
_SPENT_AT_ONCE = 64
# include/uapi/linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

# A page to be stored: its index, its 4096 bytes, its PCMD.
Evicted = tuple[int, bytes, bytes]


def contents_size(size: int) -> int:
    """Return how many bytes the contents of an enclave of ``size`` bytes take: its pages and its SECS."""
    return size + PAGE_SIZE


def pcmds_size(size: int) -> int:
    """Return how many bytes the PCMDs of an enclave of ``size`` bytes take."""
    return contents_size(size) >> PCMD_SHIFT


def store_size(size: int) -> int:
    """Return how many bytes a single store of an enclave of ``size`` bytes takes; not rounded to pages."""
    return contents_size(size) + pcmds_size(size)


class BackingFault(Exception):
    """A page of a store cannot be read now: whoever touches the enclave's page gets SIGBUS."""


class BackingStalled(Exception):
    """The store has not answered yet, and tells its Backing's ``ready`` when it has: try again then."""


class Backing(Protocol):
    """One enclave's store.  No method waits longer than a moment, whatever the store does.

    What has been stored stays until it is discarded or stored anew: a page may be loaded again and again.
    """

    # Nothing is ever stored: the enclave is killed rather than swapped.
    kills: bool
    # A page that cannot be pinned kills the enclave, instead of being passed over.
    kill_on_error: bool
    # How often the store has not answered in time: what was not pinned or stored then may be so soon.
    stalls: int

    @property
    def gone(self) -> bool:
        """Whether the store has ended for good, as memory does with its process: the enclave must be killed."""
        ...

    @property
    def stalled(self) -> bool:
        """Whether the store has not answered yet: nothing is pinned, stored or loaded until it does."""
        ...

    @property
    def pages_held(self) -> int:
        """The pages whose contents are in the store now."""
        ...

    @property
    def bytes_held(self) -> int:
        """The bytes that the pages held and their PCMDs occupy, in whole pages of the store."""
        ...

    def pin(self, indices: list[int]) -> list[int]:
        """Return those of the pages whose two places can be written now.

        Before EBLOCK, because after it a failure to store can only kill the enclave.
        """
        ...

    def store(self, pages: list[Evicted]) -> int:
        """Write contents and PCMDs; return how many pages, from the first, are in the store."""
        ...

    def load(self, index: int) -> tuple[bytes, bytes]:
        """Return a page's contents and PCMD; BackingFault, or BackingStalled."""
        ...

    def load_run(self, index: int, count: int) -> tuple[bytes, bytes]:
        """Return contents and PCMDs of ``count`` neighbours, for which nobody waits; BackingFault, BackingStalled."""
        ...

    def discard(self, index: int) -> None:
        """Forget a page that ELDU has taken: its PCMD becomes zero, its contents a hole where the store punches.

        The store may put that off until ``tidy``.
        """
        ...

    def discard_run(self, index: int, count: int) -> None:
        """Discard ``count`` neighbours."""
        ...

    def tidy(self) -> None:
        """Finish what ``discard`` has put off."""
        ...

    def close(self) -> None:
        """Give the store up: the enclave has ended."""
        ...


def writes(pages: list[Evicted]) -> list[list[Evicted]]:
    """Divide pages, in their order, into runs of neighbours: each run is one write."""
    runs: list[list[Evicted]] = []
    due = -1
    for page in pages:
        if page[0] == due and len(runs[-1]) < _IOV_MAX:
            runs[-1].append(page)
        else:
            runs.append([page])
        due = page[0] + 1
    return runs


def write_at(fd: int, pieces: list[bytes], offset: int) -> bool:
    """Write pieces one behind the other; False, with errno's OSError swallowed, unless all are there."""
    try:
        if len(pieces) == 1:
            return os.pwrite(fd, pieces[0], offset) == len(pieces[0])
        return os.pwritev(fd, pieces, offset) == sum(map(len, pieces))
    except OSError:
        return False


def punch(fd: int, offset: int, length: int) -> bool:
    """Make a hole of [offset, offset + length); False where the file system refuses."""
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    return not _libc.fallocate(fd, mode, offset, length)


class Held:
    """Which pages a store holds: a mask for each page of PCMDs, so that an empty one is found at once."""

    __slots__ = ("_masks", "pages")

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}
        self.pages = 0

    def add(self, index: int) -> None:
        """Enter a page that is in the store, perhaps again."""
        group, bit = index >> PCMD_SHIFT, 1 << index % _PCMDS_A_PAGE
        mask = self._masks.get(group, 0)
        if not mask & bit:
            self._masks[group] = mask | bit
            self.pages += 1

    def remove(self, index: int) -> bool:
        """Take a page out; True if its PCMD was the last one of its page of PCMDs."""
        group, bit = index >> PCMD_SHIFT, 1 << index % _PCMDS_A_PAGE
        mask = self._masks[group]
        self.pages -= 1
        if mask == bit:
            del self._masks[group]
            return True
        self._masks[group] = mask ^ bit
        return False

    def has_group(self, group: int) -> bool:
        """Tell whether any page is held whose PCMD lies in a page of PCMDs."""
        return group in self._masks

    def __contains__(self, index: int) -> bool:
        return bool(self._masks.get(index >> PCMD_SHIFT, 0) >> index % _PCMDS_A_PAGE & 1)

    @property
    def bytes(self) -> int:
        """What the pages and their pages of PCMDs occupy."""
        return (self.pages + len(self._masks)) * PAGE_SIZE

    def clear(self) -> None:
        """Forget all."""
        self._masks.clear()
        self.pages = 0


class KernelBacking:
    """The driver's own store: an anonymous sparse file, made when the first page is to be stored.

    A page that was loaded becomes a hole again, as does a page of PCMDs with its last entry
    (__sgx_encl_eldu): the store is as large as what is evicted now. That is done for several pages at
    once, of which neighbours are one hole, and by ``tidy`` at the latest.
    """

    kills = False
    gone = False
    stalled = False
    stalls = 0

    def __init__(self, size: int) -> None:
        self.kill_on_error = False
        self._size = size
        self._pcmds = contents_size(size)
        self._fd = -1
        self._held = Held()
        # Loaded, and still to be made holes.
        self._spent: set[int] = set()

    @property
    def fd(self) -> int:
        """The file's descriptor; -1 before the first page."""
        return self._fd

    @property
    def pages_held(self) -> int:
        """The pages whose contents are in the store now."""
        return self._held.pages

    @property
    def bytes_held(self) -> int:
        """What the file occupies."""
        return self._held.bytes

    def pin(self, indices: list[int]) -> list[int]:
        """Return them all, or none where the file cannot be made."""
        return indices if self._fd >= 0 or self._open() else []

    def _open(self) -> bool:
        try:
            fd = os.memfd_create("SGX backing", os.MFD_CLOEXEC)
        except OSError:
            return False
        try:
            os.ftruncate(fd, store_size(self._size))
        except OSError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def store(self, pages: list[Evicted]) -> int:
        """Write contents and PCMDs; return how many pages, from the first, are in the store."""
        fd = self._fd
        if fd < 0 and not self._open():
            return 0
        fd, held = self._fd, self._held
        stored = 0
        for run in writes(pages):
            first = run[0][0]
            written = write_at(fd, [page[1] for page in run], first * PAGE_SIZE) and write_at(
                fd, [page[2] for page in run], self._pcmds + first * PCMD_SIZE
            )
            for index, _, _ in run:
                held.add(index)
                self._spent.discard(index)
            if not written:
                # Out of memory: what is there of the run may not stay.
                for index, _, _ in run:
                    self.discard(index)
                self.tidy()
                break
            stored += len(run)
        return stored

    def load(self, index: int) -> tuple[bytes, bytes]:
        """Return a page's contents and PCMD, zeros if it is not there; BackingFault."""
        return self.load_run(index, 1)

    def load_run(self, index: int, count: int) -> tuple[bytes, bytes]:
        """Return contents and PCMDs of neighbours, zeros for what is not there; BackingFault."""
        if not self._spent.isdisjoint(range(index, index + count)):
            self.tidy()
        fd = self._fd
        try:
            contents = os.pread(fd, count * PAGE_SIZE, index * PAGE_SIZE)
            pcmds = os.pread(fd, count * PCMD_SIZE, self._pcmds + index * PCMD_SIZE)
        except OSError as error:
            raise BackingFault(f"page {index:#x} of the backing: {error.strerror}") from error
        if len(contents) < count * PAGE_SIZE or len(pcmds) < count * PCMD_SIZE:
            raise BackingFault(f"page {index + count - 1:#x} is beyond the backing")
        return contents, pcmds

    def discard(self, index: int) -> None:
        """Make a hole of the contents; the PCMD becomes zero, or a hole with the last one of its page."""
        self.discard_run(index, 1)

    def discard_run(self, index: int, count: int) -> None:
        """Discard neighbours."""
        held, spent = self._held, self._spent
        for at in range(index, index + count):
            if at in held:
                held.remove(at)
                spent.add(at)
        if len(spent) >= _SPENT_AT_ONCE:
            self.tidy()

    def tidy(self) -> None:
        """Make holes of what was discarded."""
        spent, self._spent = self._spent, set()
        fd, held = self._fd, self._held
        for first, count in neighbours(sorted(spent)):
            punch(fd, first * PAGE_SIZE, count * PAGE_SIZE)
            index = first
            while index < first + count:
                group = index >> PCMD_SHIFT
                end = min(first + count, group + 1 << PCMD_SHIFT)
                if held.has_group(group):
                    write_at(fd, [NO_PCMD * (end - index)], self._pcmds + index * PCMD_SIZE)
                else:
                    punch(fd, self._pcmds + group * PAGE_SIZE, PAGE_SIZE)
                index = end

    def close(self) -> None:
        """Give the file up."""
        self._held.clear()
        self._spent.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class NoBacking:
    """No store: nothing is evicted, and an enclave that must give way is killed."""

    kills = True
    kill_on_error = True
    gone = False
    stalled = False
    stalls = 0
    pages_held = 0
    bytes_held = 0

    def pin(self, indices: list[int]) -> list[int]:  # noqa: ARG002 - nothing has a place
        """Return none."""
        return []

    def store(self, pages: list[Evicted]) -> int:  # noqa: ARG002 - nothing has a place
        """Store none."""
        return 0

    def load(self, index: int) -> tuple[bytes, bytes]:
        """Raise BackingFault: nothing was stored."""
        raise BackingFault(f"page {index:#x}: the enclave has no backing")

    def load_run(self, index: int, count: int) -> tuple[bytes, bytes]:  # noqa: ARG002 - as ``load``
        """Raise BackingFault: nothing was stored."""
        return self.load(index)

    def discard(self, index: int) -> None:
        """Do nothing."""

    def discard_run(self, index: int, count: int) -> None:
        """Do nothing."""

    def tidy(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
