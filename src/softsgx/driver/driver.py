# SPDX-License-Identifier: Apache-2.0
"""The device nodes and their open files (kernel: driver.c).

Owns the free list of the EPC and who makes room in it.  Used by one thread; calls of several callers
interleave only where user memory suspends one of them.
"""

import errno
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.driver import vma
from softsgx.driver.elrange import MemfdElrange
from softsgx.driver.encl import Encl
from softsgx.driver.encl_stats import DriverStats
from softsgx.driver.epc_allocator import EpcAllocator
from softsgx.driver.ioctl import sgx_ioctl
from softsgx.driver.nodes import DCAP, ENCLAVE, LEGACY, MAINLINE, PROVISION
from softsgx.driver.policy import Policy, TwoQueues
from softsgx.driver.reclaim import Reclaimer
from softsgx.driver.stores import DefaultStore, Stores
from softsgx.driver.vma import (
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MAP_TYPE,
    PROT_READ,
    PROT_WRITE,
    TASK_SIZE,
)
from softsgx.errors import DriverError, SoftsgxError

if TYPE_CHECKING:
    from softsgx.cpu.processor import Processor
    from softsgx.driver.add_page_queue import AddPageWorker
    from softsgx.driver.encl_stats import BuildEvents, EnclEvents
    from softsgx.driver.legacy import LegacyFile
    from softsgx.driver.task import Task

    DeviceFile: TypeAlias = "EnclaveFile | ProvisionFile | LegacyFile"


class Driver:
    """One of the SGX drivers over one processor: mainline's by default, another by its name.

    ``backing`` makes the store of each enclave whose program chooses none; the driver closes it.  Without
    ``queue`` the ADD_PAGE of the older drivers adds by itself.
    """

    def __init__(
        self,
        processor: "Processor",
        backing: DefaultStore | None = None,
        name: str = MAINLINE,
        policy: Policy | None = None,
        *,
        queue: bool = True,
    ) -> None:
        self.processor = processor
        self.name = name
        self.stores = Stores(backing)
        self.epc = EpcAllocator(processor.epc.pages)
        self.reclaimer = Reclaimer(processor, self.epc, policy or TwoQueues(processor.epc.pages))
        self.stats = DriverStats()
        self.events: EnclEvents | None = None
        self.builds: BuildEvents | None = None
        self._queue = queue
        # What adds the pages that ADD_PAGE has queued, from the first open of a node that has it.
        self.add_page_worker: AddPageWorker | None = None

    def background(self) -> bool:
        """Do some of the work that waits for an idle moment, if there is any; tell whether there is more.

        That is ksgxd's and the worker's which adds queued pages.
        """
        more = self.reclaimer.background()
        if self.add_page_worker is not None:
            more |= self.add_page_worker.background()
        return more

    def open(self, kind: str) -> "DeviceFile":
        """Open a node by its kind."""
        if kind in LEGACY:
            return self.open_legacy()
        return self.open_enclave() if kind == ENCLAVE else self.open_provision()

    def open_legacy(self) -> "LegacyFile":
        """Open the node of a driver that finds an enclave by its address; SoftsgxError if this one does not."""
        if self.name not in LEGACY:
            raise SoftsgxError(f"the driver {self.name} has enclave files: open_enclave")
        # Few runs want them.
        from softsgx.driver.add_page_queue import AddPageWorker  # noqa: PLC0415
        from softsgx.driver.legacy import LegacyFile  # noqa: PLC0415

        if self._queue and self.add_page_worker is None:
            self.add_page_worker = AddPageWorker()
        return LegacyFile(self)

    def open_enclave(self) -> "EnclaveFile":
        """Open the node of enclaves: a new enclave, nothing created yet.  SoftsgxError if there is none."""
        if self.name in LEGACY:
            raise SoftsgxError(f"the driver {self.name} has no enclave files: map_enclave")
        if self.name == DCAP:
            from softsgx.driver.dcap import DcapEnclaveFile  # noqa: PLC0415  (few runs want it)

            return DcapEnclaveFile(self)
        return EnclaveFile(self)

    def open_provision(self) -> "ProvisionFile":
        """Open the node of the provisioning capability."""
        return ProvisionFile()

    def close(self) -> None:
        """Give up what the stores of its enclaves have in common; all files are released."""
        self.stores.close()


class EnclaveFile:
    """An open file of /dev/sgx_enclave, which is one enclave; shared by dup, fork and its mappings.

    ``release`` is called once, when the last descriptor and the last mapping are gone; as a context
    manager it does so at the end.  munmap alone ends nothing, and fork copies mappings that MADV_DONTFORK
    has not marked.
    """

    kind = ENCLAVE
    grants_provisioning = False
    # munmap alone ends no enclave.
    ends_unmapped = False
    # EINTR is what a caller sees whose signal's handler has no SA_RESTART, else the call begins anew.
    restarts = True
    encl_type = Encl

    def __init__(self, driver: Driver) -> None:
        self.elrange = MemfdElrange()
        self.encl = self.encl_type(driver.processor, driver.reclaimer, self.elrange, driver.stores)
        self.encl.events = driver.events
        self.encl.builds = driver.builds
        self._stats = driver.stats
        self._stats.began(self.encl)
        self._released = False

    def ioctl(self, request: int, arg: int, task: "Task") -> int:
        """Answer a system call of ``task`` on the file: return its result, or raise DriverError."""
        if self._released:
            raise DriverError(errno.EBADF, "the enclave file is released")
        try:
            return self._ioctl(request, arg, task)
        finally:
            # A release while the call was suspended: the call held a reference until now.
            self._release_if_idle()

    def _ioctl(self, request: int, arg: int, task: "Task") -> int:
        return sgx_ioctl(self.encl, request, arg, task)

    def check_mmap(self, address: int, length: int, prot: int, flags: int, task: "Task") -> None:
        """Judge mmap(2) of the file; DriverError if the driver refuses.

        Without MAP_FIXED or MAP_FIXED_NOREPLACE the address is not known yet, and only what does not
        depend on it is judged: ask again with MAP_FIXED and the address chosen.  What the kernel refuses
        for any file, before it asks the driver or beside it (a bad range, the open mode, other map
        types), is left to it.
        """
        length = -(-length // PAGE_SIZE) * PAGE_SIZE
        fixed = flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)
        if not 0 < length <= TASK_SIZE:
            return
        if flags & MAP_TYPE == MAP_PRIVATE:
            raise DriverError(errno.EINVAL, "an enclave cannot be mapped MAP_PRIVATE")
        if fixed and (address % PAGE_SIZE or address > TASK_SIZE - length):
            return
        if fixed:
            self.encl.may_map(address, address + length, prot, task.read_implies_exec())
        elif task.read_implies_exec():
            raise DriverError(errno.EACCES, "the caller's personality is READ_IMPLIES_EXEC")

    def check_mprotect(self, start: int, end: int, prot: int, task: "Task") -> None:
        """Judge mprotect(2) of one VMA's part [start, end) (sgx_vma_mprotect); DriverError if refused."""
        self.encl.may_map(start, end, prot, task.read_implies_exec())

    def check_madvise(self, advice: int, prot: int = PROT_READ | PROT_WRITE) -> bool:
        """Judge madvise(2) of a VMA of protection ``prot``: see vma.check_madvise."""
        return vma.check_madvise(advice, prot)

    def check_mremap(self, old_length: int, new_length: int, flags: int) -> None:
        """Judge mremap(2) of a VMA: see vma.check_mremap."""
        vma.check_mremap(old_length, new_length, flags)

    def release(self) -> int:
        """Destroy the enclave; return how many EPC pages EREMOVE refused, as a thread is still inside.

        While an ioctl is suspended it holds the file: then the destruction comes at its end, and the
        answer is 0.
        """
        if self._released:
            return 0
        self._released = True
        return self._release_if_idle()

    def _release_if_idle(self) -> int:
        if not self._released or self.encl.ioctl_in_flight:
            return 0
        if self.encl.events is not None:
            self.encl.events.ended(self.encl)
        lost = self.encl.release()
        self._stats.end(self.encl)
        self.elrange.close()
        return lost

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class ProvisionFile:
    """An open file of /dev/sgx_provision: a capability for SGX_IOC_ENCLAVE_PROVISION, no more."""

    kind = PROVISION
    grants_provisioning = True
    restarts = False

    def ioctl(self, request: int, arg: int, task: "Task") -> int:  # noqa: ARG002 - as EnclaveFile's
        """Refuse: the node has no ioctls."""
        raise DriverError(errno.ENOTTY, f"{request:#010x}: /dev/sgx_provision has no ioctls")

    def check_mmap(self, address: int, length: int, prot: int, flags: int, task: "Task") -> None:  # noqa: ARG002 - as EnclaveFile's
        """Refuse: the node cannot be mapped."""
        raise DriverError(errno.ENODEV, "/dev/sgx_provision cannot be mapped")

    def release(self) -> int:
        """Do nothing: the file holds nothing."""
        return 0
