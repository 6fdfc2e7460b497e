# SPDX-License-Identifier: Apache-2.0
"""The pages that ADD_PAGE has taken and EADD has not, and the worker that adds them (v16's encl.c).

Owns the queue of each enclave.  A queued page waits in the enclave's backing, at its own place, where
it will lie again once it is evicted; only then it is ciphertext.  Where the backing takes nothing, for
there is none or it does not answer, it waits in an arena of 16 pages: when that is full, ADD_PAGE adds.

Why there is a worker.  The series does not say, and its author meant to write it down.  What it gains:
a page is an EPC page, for which others may have to be written out, then EADD, then up to 16 times
EEXTEND; with a queue the ioctl returns after one copy, and the caller reads the next page from its file
meanwhile.  And room in the EPC is made by a thread that holds none of the caller's locks (mmap_sem).
What it costs is why mainline has none: an error comes when the call that it is about has long returned
0, so that nothing is left but to end the enclave; no signal ends it; and the plaintext needs a place,
so that an enclave without a backing could not be built (hence the arena).

Here the worker is the driver's own thread when no program wants anything of it.  It takes pages that are
neighbours together, so a queue also makes one run of EADD of what came page by page.

Order is first in, first out: MRENCLAVE is the same as without a queue.  Who can write to the backing may
change a page while it waits: what EADD takes is what is measured, and a TCS is judged again.
"""

import errno
from typing import TYPE_CHECKING

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.driver.backing import (
    NO_PCMD,
    PCMD_SIZE,
    BackingFault,
    BackingStalled,
    KernelBacking,
)
from softsgx.errors import DriverError, Fault

if TYPE_CHECKING:
    from softsgx.driver.legacy_encl import LegacyEncl, PageRequest
    from softsgx.driver.task import Task

ARENA_PAGES = 16
# Pages that are added at a time: then it is seen whether a program wants something.
_BATCH_PAGES = 64
_ZEROS = bytes(PAGE_SIZE)


class AddPageWorker:
    """The worker of all enclaves of a driver (sgx_add_page_wq, whose works run one at a time)."""

    def __init__(self) -> None:
        # As a dict, for its order.
        self._queues: dict[AddPageQueue, None] = {}

    def queued(self, queue: "AddPageQueue") -> None:
        """Enter a queue that has something to add."""
        self._queues.setdefault(queue)

    def emptied(self, queue: "AddPageQueue") -> None:
        """Forget a queue that has nothing left."""
        self._queues.pop(queue, None)

    def background(self) -> bool:
        """Add a batch if there is any that can be added now; tell whether there is more."""
        return any(queue.background() for queue in list(self._queues))


class AddPageQueue:
    """The queue of one enclave (encl->add_page_reqs)."""

    def __init__(self, encl: "LegacyEncl", worker: AddPageWorker) -> None:
        self._encl = encl
        self._worker = worker
        # By the page's place in the backing, in the order of the calls.
        self._requests: dict[int, PageRequest] = {}
        self._arena: dict[int, bytes] = {}
        # What a worker has dropped that leaves the enclave alive: there all the same (EEXIST).
        self._dropped: set[int] = set()
        self._busy = False
        # How many EPC pages were free when the worker could not go on; more may let it.
        self._stalled_at = -1

    def __len__(self) -> int:
        return len(self._requests)

    def has(self, address: int) -> bool:
        """Tell whether a page has been taken by ADD_PAGE, and by no EADD."""
        index = self._encl.index(address)
        return index in self._requests or index in self._dropped

    def put(self, request: "PageRequest", data: bytes, caller: "Task") -> None:
        """Take a page that was judged; may suspend the caller.  DriverError as ``check_page``, ENOMEM, EINTR."""
        encl = self._encl
        index = encl.index(request.addr)
        while not self._keep(index, data):
            self._add_some(caller)
            # Another call has come in between, or the worker's failure has.
            encl.check_page(request, data)
        self._requests[index] = request
        self._worker.queued(self)

    def flush(self, caller: "Task") -> None:
        """Add all that is queued (flush_work); may suspend the caller.  DriverError ENOMEM, EINTR."""
        while self._requests:
            self._add_some(caller)

    def background(self) -> bool:
        """Add a batch, unless that has to wait; tell whether there is more."""
        free = self._encl.free_epc_pages
        if self._busy or self._encl.backing.stalled or free <= self._stalled_at:
            return False
        self._stalled_at = -1
        try:
            self._add_some(None)
        except (DriverError, BackingStalled):
            self._stalled_at = self._encl.free_epc_pages
            return False
        return bool(self._requests)

    def clear(self) -> None:
        """Drop what is queued: nothing of it stays in the backing."""
        for index in self._requests:
            self._forget_data(index)
        self._encl.backing.tidy()
        self._requests.clear()
        self._worker.emptied(self)

    # -- the place of a page that waits -----------------------------------------------------------

    def _keep(self, index: int, data: bytes) -> bool:
        backing, stats = self._encl.backing, self._encl.stats
        if not backing.kills and not backing.stalled:
            if backing.store([(index, data, NO_PCMD)]):
                stats.backing_bytes += PAGE_SIZE + PCMD_SIZE
                stats.backing_pages = backing.pages_held
                return True
            stats.backing_faults += 1
        if len(self._arena) == ARENA_PAGES:
            return False
        self._arena[index] = data
        return True

    def _data(self, index: int) -> bytes:
        if index in self._arena:
            return self._arena[index]
        encl = self._encl
        try:
            data = encl.backing.load(index)[0]
        except BackingFault as fault:
            encl.stats.backing_faults += 1
            if encl.events is not None:
                encl.events.backing_fault(encl, encl.base + index * PAGE_SIZE, str(fault))
            raise
        encl.stats.backing_bytes += PAGE_SIZE + PCMD_SIZE
        return data

    def _forget_data(self, index: int) -> None:
        if self._arena.pop(index, None) is None:
            backing = self._encl.backing
            if not isinstance(backing, KernelBacking):
                # A store without holes keeps what is discarded, and this is no ciphertext.
                backing.store([(index, _ZEROS, NO_PCMD)])
            backing.discard(index)
            self._encl.stats.backing_pages = backing.pages_held

    # -- the worker -------------------------------------------------------------------------------

    def _add_some(self, caller: "Task | None") -> None:
        """Add the first pages of the queue; may suspend the caller, and then may have added none.

        DriverError ENOMEM and EINTR, and BackingStalled where there is no caller: they stay queued.  Any
        other failure is the enclave's.
        """
        encl = self._encl
        if self._busy or encl.backing.stalled:
            # Another caller is in the middle, suspended; or the store has not answered.
            _pause(caller)
            return
        try:
            batch, data = self._first()
            self._busy = True
            added = encl.add_now(batch, data, caller)
        except BackingStalled:
            if caller is None:
                raise
        except (DriverError, BackingFault, Fault) as error:
            if isinstance(error, DriverError) and self._may_be_repeated(error, caller):
                raise
            self._fail(str(error))
        else:
            # Before anything else can evict them to where they have waited.
            self._forget(batch[:added])
        finally:
            self._busy = False

    def _first(self) -> "tuple[list[PageRequest], bytes]":
        """Return the first requests, as far as they are neighbours of one kind, and their pages."""
        batch: list[PageRequest] = []
        pages = []
        for index, request in self._requests.items():
            if batch and not batch[-1].goes_on_in(request):
                break
            try:
                data = self._data(index)
                self._encl.check_tcs(request, data)
            except (BackingFault, BackingStalled, DriverError):
                # First those before it.
                if batch:
                    break
                raise
            batch.append(request)
            pages.append(data)
            if len(batch) == _BATCH_PAGES:
                break
        return batch, b"".join(pages)

    def _may_be_repeated(self, error: DriverError, caller: "Task | None") -> bool:
        if error.errno == errno.ENOMEM:
            # An enclave that cannot be swapped fills the EPC by itself: ENOMEM for it, not its end.
            return self._encl.backing.kills or (caller is None and self._encl.may_have_room_later)
        return error.errno == errno.EINTR

    def _forget(self, added: "list[PageRequest]") -> None:
        """Take what has been added off the queue."""
        for request in added:
            index = self._encl.index(request.addr)
            del self._requests[index]
            self._forget_data(index)
        # Now: what was forgotten is no ciphertext.
        self._encl.backing.tidy()
        if not self._requests:
            self._worker.emptied(self)

    def _fail(self, reason: str) -> None:
        """Drop the queue: what was built is not what the caller wanted any more."""
        self._dropped.update(self._requests)
        self.clear()
        self._encl.worker_failed(reason)


def _pause(caller: "Task | None") -> None:
    if caller is None:
        raise BackingStalled("the worker does not wait")
    if caller.signal_pending():
        raise DriverError(errno.EINTR, "a signal came before the queued pages were added")
    caller.pause()
