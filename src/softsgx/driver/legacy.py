# SPDX-License-Identifier: Apache-2.0
"""The nodes of v16, isgx and DCAP 1.5: open files that hold no enclave, and mappings that each may hold one.

Owns an enclave's end: it belongs to its VMA, not to a descriptor.  mmap reserves a range that an enclave
fits in, aligned to its length; CREATE binds an enclave to it; munmap of any part of it ends the enclave.
The VMA is VM_DONTCOPY: no other process ever has it.

Sources: sgx_main.c and sgx_vma.c of linux-sgx-driver, main.c and vma.c of the series.
"""

import errno
from typing import TYPE_CHECKING

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.cpu.memory import HeldElrange
from softsgx.cpu.model import MAX_ENCLAVE_SIZE_64
from softsgx.driver import vma
from softsgx.driver.add_page_queue import AddPageQueue
from softsgx.driver.elrange import MemfdElrange
from softsgx.driver.legacy_encl import IsgxEncl, LegacyEncl
from softsgx.driver.legacy_ioctl import legacy_ioctl
from softsgx.driver.nodes import V16
from softsgx.driver.vma import MAP_PRIVATE, PROT_READ, PROT_WRITE, TASK_SIZE
from softsgx.errors import DriverError

if TYPE_CHECKING:
    from softsgx.cpu.memory import Elrange
    from softsgx.driver.driver import Driver
    from softsgx.driver.task import Task


class LegacyFile:
    """An open file of /dev/sgx or /dev/isgx; ``kind`` is the driver's name."""

    grants_provisioning = False
    restarts = True

    def __init__(self, driver: "Driver") -> None:
        self.kind = driver.name
        self.driver = driver

    def ioctl(self, request: int, arg: int, task: "Task") -> int:
        """Answer a system call of ``task`` on the file: return its result, or raise DriverError.

        A result above 0 is a code of EINIT, or how many bytes could not be copied.
        """
        return legacy_ioctl(self, request & 0xFFFF_FFFF, arg, task)

    def get_unmapped_area(self, length: int, flags: int) -> int:
        """Judge mmap(2) of the file; return its length in whole pages, to which its address is aligned.

        DriverError EINVAL.  Also of MAP_SHARED_VALIDATE, which has the bit of MAP_PRIVATE.
        """
        length = -(-length // PAGE_SIZE) * PAGE_SIZE
        if length < 2 * PAGE_SIZE or length & (length - 1):
            raise DriverError(errno.EINVAL, f"{length:#x} is no power of two from 2 pages on")
        if length > 1 << MAX_ENCLAVE_SIZE_64:
            raise DriverError(errno.EINVAL, f"{length:#x} is beyond 2^{MAX_ENCLAVE_SIZE_64}")
        if flags & MAP_PRIVATE:
            raise DriverError(errno.EINVAL, "an enclave cannot be mapped MAP_PRIVATE")
        return length

    @staticmethod
    def align(address: int, length: int) -> int:
        """Return where the mapping begins in a free range of twice its length, or with MAP_FIXED; ENOMEM."""
        address = (address + length - 1) & -length
        if address > TASK_SIZE - length:
            raise DriverError(errno.ENOMEM, f"no room for {length:#x} bytes at {address:#x}")
        return address

    def mmap(self, address: int, pgoff: int) -> "LegacyMapping":
        """Return a new mapping that begins at an address, of the file's page ``pgoff`` on."""
        return LegacyMapping(self.driver, self.kind, address, pgoff)

    def unmapped_encl(self) -> LegacyEncl:
        """Return an enclave that nobody can map: for what CREATE says before it looks for the mapping."""
        return _new_encl(self.driver, HeldElrange())

    def release(self) -> int:
        """Do nothing: the enclaves belong to their mappings."""
        return 0


def _new_encl(driver: "Driver", elrange: "Elrange") -> LegacyEncl:
    encl_type = LegacyEncl if driver.name == V16 else IsgxEncl
    encl = encl_type(driver.processor, driver.reclaimer, elrange, driver.stores)
    if driver.add_page_worker is not None:
        encl.queue = AddPageQueue(encl, driver.add_page_worker)
    return encl


class LegacyMapping:
    """One mapping of a node in one address space: the VMA that mmap made, or what is left of it."""

    ends_unmapped = True

    def __init__(self, driver: "Driver", kind: str, address: int, pgoff: int) -> None:
        self.kind = kind
        self._address = address
        self._pgoff = pgoff
        self._stats = driver.stats
        self.elrange = MemfdElrange(kind)
        self.encl = _new_encl(driver, self.elrange)
        self.encl.events = driver.events
        self.encl.builds = driver.builds
        self._stats.began(self.encl)
        self._released = False

    def pgoff(self, address: int) -> int:
        """Return vm_pgoff of the VMA that begins at an address in it."""
        return self._pgoff + (address - self._address) // PAGE_SIZE

    @property
    def released(self) -> bool:
        """Whether no part of it is mapped any more."""
        return self._released

    def check_mprotect(self, start: int, end: int, prot: int, task: "Task") -> None:
        """Grant any protection: the EPCM is asked at the access."""

    def check_madvise(self, advice: int, prot: int = PROT_READ | PROT_WRITE) -> bool:
        """Judge madvise(2) of a VMA of protection ``prot``: see vma.check_madvise."""
        return vma.check_madvise(advice, prot)

    def check_mremap(self, old_length: int, new_length: int, flags: int) -> None:
        """Judge mremap(2) of a VMA: see vma.check_mremap."""
        vma.check_mremap(old_length, new_length, flags)

    def doom(self) -> bool:
        """Hear that a part of it is unmapped; tell whether there is an enclave that has to end now.

        From then on nothing of it may be mapped any more, and ``vma_close`` frees its pages.
        """
        doomed = self.encl.created and not self.encl.dead
        self.encl.dead |= doomed
        return doomed

    def vma_close(self) -> None:
        """End the enclave of which a part was unmapped (sgx_vma_close).

        Its EPC pages are free at once, threads inside are driven out.  What is left of the mapping stays,
        and every touch of it is SIGBUS.
        """
        if self.encl.created:
            self.encl.destroy()

    def release(self) -> int:
        """Give the memory back: no part of it is mapped any more.  Return how many EPC pages were lost, 0."""
        if self._released:
            return 0
        self._released = True
        self.vma_close()
        if self.encl.events is not None:
            self.encl.events.ended(self.encl)
        lost = self.encl.release()
        self._stats.end(self.encl)
        self.elrange.close()
        return lost
