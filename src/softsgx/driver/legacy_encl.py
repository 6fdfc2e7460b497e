# SPDX-License-Identifier: Apache-2.0
"""The enclave object of the drivers that find an enclave by its address (v16's encl.c).

Owns what Encl owns, and the queue of pages that wait for EADD.  Pages come one at a time and are judged
before EADD sees them; a page's chunks of 256 bytes are measured one by one, as the caller chooses.
"""

import errno
from typing import TYPE_CHECKING

from softsgx.arch.attributes import TCS_DBGOPTIN
from softsgx.arch.secinfo import (
    EEXTEND_SIZE,
    PAGE_SIZE,
    SECINFO_PAGE_TYPE,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_RWX,
    SECINFO_TCS,
    SECINFO_W,
)
from softsgx.arch.structures import Secinfo, Tcs
from softsgx.cpu.encls import eextend
from softsgx.cpu.epc import Epc
from softsgx.driver.add_page_queue import AddPageQueue
from softsgx.driver.backing import Backing
from softsgx.driver.epcm_encl import EpcmEncl
from softsgx.driver.task import LocalTask
from softsgx.errors import DriverError, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from softsgx.driver.task import Task

# mrmask with all 16 chunks of a page.
ALL_CHUNKS = 0xFFFF


class PageRequest:
    """A page to be added: its address, SECINFO.FLAGS, the chunks to be measured (struct sgx_add_page_req)."""

    __slots__ = ("addr", "mrmask", "secinfo_flags")

    def __init__(self, addr: int, secinfo_flags: int, mrmask: int) -> None:
        self.addr = addr
        self.secinfo_flags = secinfo_flags
        self.mrmask = mrmask

    def goes_on_in(self, other: "PageRequest") -> bool:
        """Tell whether the next page is of the same kind, so that one run of EADD takes both."""
        whole = (0, ALL_CHUNKS)
        return (
            other.addr == self.addr + PAGE_SIZE
            and other.secinfo_flags == self.secinfo_flags
            and other.mrmask == self.mrmask
            and self.mrmask in whole
        )


class LegacyEncl(EpcmEncl):
    """One enclave of v16, isgx or DCAP 1.5: bound to a mapping by CREATE, ended by any munmap of it."""

    # What ADD_PAGE says of one that has ended: v16 looks before it has a VA page, the others afterwards.
    dead_errno = errno.EFAULT
    # The worker's failure ends it.
    ends_with_worker = True
    # None where ADD_PAGE adds by itself.
    queue: AddPageQueue | None = None
    _ended_for = ""

    def add_page(self, request: PageRequest, data: bytes, task: "Task") -> None:
        """Take a page whose SECINFO is valid (sgx_encl_add_page), and EADD it now or later; DriverError."""
        self.check_page(request, data)
        if self.queue is not None:
            self.queue.put(request, data, task)
            return
        try:
            self.add_now([request], data, task)
        except (DriverError, Fault) as error:
            if isinstance(error, DriverError) and error.errno in (errno.ENOMEM, errno.EINTR):
                # Nothing of the page is there, and it can be added again.
                raise
            self.worker_failed(str(error))
            raise DriverError(errno.EFAULT, str(error)) from error

    def flush(self, task: "Task") -> None:
        """Add what is queued; may suspend the caller.  DriverError ENOMEM, EINTR: some still is."""
        if self.queue is not None:
            self.queue.flush(task)

    def check_page(self, request: PageRequest, data: bytes) -> None:
        """Judge a page before it is added; DriverError with the errno that the state or the page gives."""
        self.check_tcs(request, data)
        if self.dead:
            raise DriverError(self.dead_errno, self.end_reason)
        if self.initialized:
            raise DriverError(errno.EINVAL, "the enclave is initialized already")
        queued = self.queue is not None and self.queue.has(request.addr)
        if queued or self.page_array.find(request.addr // PAGE_SIZE) is not None:
            raise DriverError(errno.EEXIST, f"page {request.addr:#x} is present already")

    def check_tcs(self, request: PageRequest, data: bytes) -> None:
        """Judge the contents of a TCS, and no other page (sgx_validate_tcs); DriverError EINVAL."""
        if request.secinfo_flags & SECINFO_PAGE_TYPE == SECINFO_TCS:
            problem = _tcs_problem(data, self.size)
            if problem:
                raise DriverError(errno.EINVAL, f"TCS.{problem}")

    def add_now(self, requests: list[PageRequest], data: bytes, caller: "Task | None") -> int:
        """EADD and EEXTEND neighbouring pages of one kind and return how many, at least one; DriverError.

        ``caller`` waits for EPC pages that others are about to give up; None for who cannot wait.
        """
        first = requests[0]
        buffer = _KernelBuffer(caller)
        with buffer.placed(data) as source:
            added = self.add_run(
                buffer,
                first.addr - self.base,
                source,
                len(requests),
                first.secinfo_flags,
                first.mrmask == ALL_CHUNKS,
            )
        if first.mrmask not in (0, ALL_CHUNKS):
            self._extend(first)
        return added

    def _extend(self, request: PageRequest) -> None:
        page = self.translate(request.addr)
        if page is None:
            raise ValueError(
                f"page {request.addr:#x} is not resident, though it has just been added"
            )
        for chunk in _chunks(request.mrmask):
            eextend(self.cpu, Epc.address(self.created_secs()), Epc.address(page) + chunk)
        if self.builds is not None:
            self.builds.extended(self, request.addr, request.mrmask)

    @property
    def free_epc_pages(self) -> int:
        """How many EPC pages are free."""
        return self.allocator.free_pages

    @property
    def may_have_room_later(self) -> bool:
        """Whether EPC pages that cannot give way now may do so without anybody's end."""
        return self.reclaimer.transient(self)

    @property
    def end_reason(self) -> str:
        """Why the enclave has ended, in words."""
        return "the enclave is dead" + self._ended_for

    def give_backing(self, backing: Backing) -> None:
        """Take a store, as Encl does."""
        super().give_backing(backing)
        if self.dead:
            # It has ended while the store was looked at, and will not close one again.
            backing.close()

    def worker_failed(self, reason: str) -> None:
        """Hear that a page that ADD_PAGE has taken could not be added."""
        self._ended_for = f": a page could not be added, {reason}"
        if self.ends_with_worker:
            self.destroy()

    def destroy(self) -> None:
        """End the enclave as Encl does; what is queued goes with it."""
        if self.queue is not None:
            self.queue.clear()
        super().destroy()


class _KernelBuffer(LocalTask):
    """The driver's own memory as the source of pages."""

    def __init__(self, caller: "Task | None") -> None:
        super().__init__()
        self._caller = caller

    def signal_pending(self) -> bool:
        """Tell whether the caller has a signal to handle."""
        return self._caller is not None and self._caller.signal_pending()

    def pause(self) -> bool:
        """Let the caller wait."""
        return self._caller is not None and self._caller.pause()


class IsgxEncl(LegacyEncl):
    """One enclave of isgx or DCAP 1.5, which finds out at INIT that pages are missing."""

    dead_errno = errno.EINVAL
    ends_with_worker = False


def _chunks(mrmask: int) -> "Iterator[int]":
    """Give the offsets of the chunks that a mask selects, in order."""
    return (bit * EEXTEND_SIZE for bit in range(PAGE_SIZE // EEXTEND_SIZE) if mrmask >> bit & 1)


def validate_secinfo(secinfo: bytes) -> None:
    """Judge the SECINFO of a page to be added; DriverError EINVAL.

    Unlike mainline's it lets a TCS have permissions, which EADD clears before it measures them.
    """
    flags = Secinfo.decode(secinfo).flags
    if flags & ~(SECINFO_RWX | SECINFO_PAGE_TYPE) or not Secinfo.reserved_is_zero(secinfo):
        raise DriverError(errno.EINVAL, f"SECINFO.FLAGS {flags:#x} or the rest has reserved bits")
    if flags & SECINFO_W and not flags & SECINFO_R:
        raise DriverError(errno.EINVAL, "SECINFO has W without R")
    if flags & SECINFO_PAGE_TYPE not in (SECINFO_REG, SECINFO_TCS):
        raise DriverError(errno.EINVAL, f"SECINFO.FLAGS {flags:#x} is neither of REG nor of TCS")


def _tcs_problem(data: bytes, size: int) -> str:
    tcs = Tcs.decode(data)
    if tcs.flags & ~TCS_DBGOPTIN:
        return f"FLAGS {tcs.flags:#x} has reserved bits"
    if tcs.flags & TCS_DBGOPTIN:
        return "FLAGS has DBGOPTIN, which EADD clears"
    for name, offset in (
        ("OSSA", tcs.ossa),
        ("OFSBASGX", tcs.ofsbasgx),
        ("OGSBASGX", tcs.ogsbasgx),
    ):
        if offset % PAGE_SIZE or offset >= size:
            return f"{name} {offset:#x} is not page aligned or beyond SIZE {size:#x}"
    if tcs.fslimit & 0xFFF != 0xFFF or tcs.gslimit & 0xFFF != 0xFFF:
        return f"FSLIMIT {tcs.fslimit:#x} or GSLIMIT {tcs.gslimit:#x} does not end in FFF"
    return "" if Tcs.reserved_is_zero(data) else "reserved bytes are not zero"
