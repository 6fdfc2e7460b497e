# SPDX-License-Identifier: Apache-2.0
"""Who calls: what an ioctl needs to know of the calling thread (kernel: current, its mm, its files).

``Task`` is the port that run/ supplies; ``LocalTask`` is the Python process itself.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.cpu.epc import EPC_BASE
from softsgx.cpu.memory import HeldMemory, Memory
from softsgx.driver.stores import Stretch
from softsgx.driver.vma import MAP_SHARED, TASK_SIZE
from softsgx.errors import DriverError, Fault

if TYPE_CHECKING:
    from softsgx.driver.driver import DeviceFile
    from softsgx.driver.encl import Encl
    from softsgx.driver.extent import StoreMemory
    from softsgx.driver.legacy import LegacyFile, LegacyMapping


class Task(Protocol):
    """The calling thread.  Only ``pause`` and what goes through ``memory`` may suspend the caller."""

    @property
    def memory(self) -> Memory:
        """The caller's address space."""
        ...

    def may_exec(self, address: int) -> bool | None:
        """Tell whether the first VMA that ends above the address has VM_MAYEXEC; None if there is no such VMA."""
        ...

    def vma_end(self, address: int) -> int:
        """Return where the answer of ``may_exec(address)`` ends to hold: at most that VMA's end, above ``address``.

        A subclass that knows its VMAs overrides this; else the question is put for each page.
        """
        return address + PAGE_SIZE

    def signal_pending(self) -> bool:
        """Tell whether a signal waits for the caller, so that a long call should return."""
        ...

    def pause(self) -> bool:
        """Let other callers go on, for what this one waits for is theirs; False if there are none."""
        return False

    def file(self, fd: int) -> "DeviceFile | None":
        """Return what the caller's descriptor refers to, None for a bad one or for another kind of file."""
        ...

    def descriptor(self, fd: int) -> int:
        """Return a duplicate, the driver's own, of the caller's descriptor; OSError for a bad one."""
        ...

    def store_memory(self, address: int, length: int) -> "StoreMemory":
        """Return a range of the caller's memory for what is read and written when no thread stands in a call.

        Fault.pf at the first address that is not writable, or is no ordinary memory (VM_IO, an enclave).
        """
        ...

    def read_implies_exec(self) -> bool:
        """Tell whether the caller's personality has READ_IMPLIES_EXEC."""
        ...

    def legacy_vma(self, address: int) -> "tuple[int, int, LegacyMapping] | None":
        """Return the caller's VMA of a legacy node that holds an address: start, end and its mapping."""
        ...


class HeldStoreMemory:
    """Python-held memory as a store."""

    waits = False
    gone = False

    def __init__(self, memory: HeldMemory, address: int, length: int) -> None:
        self._memory = memory
        self.stretches = [Stretch(id(memory), address, address + length)]

    def read(self, address: int, length: int) -> bytes:
        """Return so many bytes; OSError where they are not mapped."""
        try:
            return self._memory.read(address, length)
        except Fault as fault:
            raise OSError(errno.EFAULT, str(fault)) from fault

    def write(self, address: int, data: bytes) -> None:
        """Store the bytes; OSError where they are not mapped."""
        try:
            self._memory.write(address, data)
        except Fault as fault:
            raise OSError(errno.EFAULT, str(fault)) from fault

    def close(self) -> None:
        """Do nothing: the memory is the caller's."""


def executable_pages(task: Task, source: int, count: int) -> int:
    """Count the source pages that may be executed, of ``count``; DriverError if the first may not.

    The kernel's indirect question for a noexec mount: VM_MAYEXEC of the VMA.
    """
    # No task has memory beyond, whatever it answers; nor does a range wrap around.
    address, end = source, min(source + count * PAGE_SIZE, TASK_SIZE)
    may_exec: bool | None = None
    while address < end:
        may_exec = task.may_exec(address)
        if not may_exec:
            break
        address = task.vma_end(address)
    if address > source:
        # A VMA ends on a page boundary.
        return min(address - source, end - source) // PAGE_SIZE
    if may_exec is None:
        raise DriverError(errno.EFAULT, f"no memory is mapped at or above {source:#x}")
    raise DriverError(errno.EACCES, f"the source page {source:#x} is on a noexec mount")


# Where LocalTask puts mappings that are left to it: anywhere below TASK_SIZE will do.
_FIRST_VMA = 0x7000_0000_0000


class EnclMm(Protocol):
    """One address space that maps the enclave (kernel: struct sgx_encl_mm); run/ supplies it."""

    def block(self, encl: "Encl", spans: list[tuple[int, int]]) -> bool:
        """Take writing away from the address ranges; False if that cannot be done now.

        What has been written is in the elrange when it returns, and the next write is a fault that
        ``touched`` hears of first. May suspend the caller.
        """
        ...

    def narrow(self, encl: "Encl", spans: list[tuple[int, int]]) -> bool:
        """Take away what the pages in the address ranges do not allow any more; False if that cannot be done now.

        Of pages that are ``modifying`` that is everything. May suspend the caller.
        """
        ...

    def zap(self, encl: "Encl") -> bool:
        """Take all pages of a killed enclave out of reach, before they are holes (kernel: zap_vma_ptes).

        False if that takes its time: the pages keep their contents until the enclave hears ``zapped``.
        """
        ...


class LocalTask(Task):
    """The Python process as the caller: its memory is Python-held, its descriptors are a table."""

    def __init__(self, memory: HeldMemory | None = None) -> None:
        self._memory = HeldMemory() if memory is None else memory
        self._files: dict[int, DeviceFile | int] = {}
        # The VMAs of legacy nodes, by start: their end and mapping.
        self._vmas: dict[int, tuple[int, LegacyMapping]] = {}
        self._next_vma = _FIRST_VMA

    @property
    def memory(self) -> HeldMemory:
        """The task's address space."""
        return self._memory

    def may_exec(self, address: int) -> bool | None:  # noqa: ARG002 - Python-held memory has no noexec mounts
        """Answer True: no memory of this task comes from a noexec mount."""
        return True

    def vma_end(self, address: int) -> int:  # noqa: ARG002 - one answer for all
        """Return the end of the user address space."""
        return 1 << 64

    def signal_pending(self) -> bool:
        """Answer False: Python handles signals elsewhere."""
        return False

    def file(self, fd: int) -> "DeviceFile | None":
        """Return the device file that ``install`` put there."""
        file = self._files.get(fd)
        return None if isinstance(file, int) else file

    def descriptor(self, fd: int) -> int:
        """Return a duplicate of the Python process's descriptor that ``install`` put there.

        Of a device file it is one of nothing: who wants a file asks ``file`` too.
        """
        file = self._files.get(fd)
        if file is None:
            raise OSError(errno.EBADF, f"{fd} is not installed")
        return os.dup(file) if isinstance(file, int) else os.open(os.devnull, os.O_RDWR)

    def store_memory(self, address: int, length: int) -> HeldStoreMemory:
        """Return a range of the task's memory; Fault.pf at the first address that is not mapped."""
        for page in range(address, address + length, PAGE_SIZE):
            self._memory.read(page, 1)
        return HeldStoreMemory(self._memory, address, length)

    def read_implies_exec(self) -> bool:
        """Answer False."""
        return False

    @contextmanager
    def placed(self, data: bytes) -> Iterator[int]:
        """Put bytes in the task's memory for a while; give their page-aligned address."""
        address = self._memory.place(data)
        try:
            yield address
        finally:
            self._memory.unmap(address, max(len(data), 1))

    def install(self, file: "DeviceFile | int") -> int:
        """Give a device file, or a descriptor of the Python process, the lowest free number and return it."""
        fd = next(number for number in range(len(self._files) + 1) if number not in self._files)
        self._files[fd] = file
        return fd

    def close(self, fd: int) -> None:
        """Take a descriptor out of the table; the file itself is released by its owner."""
        del self._files[fd]

    def mmap(self, file: "LegacyFile", length: int, address: int | None = None) -> int:
        """Map a legacy node, at an address as MAP_FIXED does or where there is room; return where.

        DriverError as mmap(2).  What was there is unmapped.
        """
        length = file.get_unmapped_area(length, MAP_SHARED)
        start = file.align(self._next_vma if address is None else address, length)
        if address is None:
            self._next_vma = start + length
        self.munmap(start, length)
        self._vmas[start] = start + length, file.mmap(start, 0)
        return start

    def munmap(self, address: int, length: int) -> None:
        """Unmap a range: an enclave ends, of which any part lies in it."""
        stop = address + -(-length // PAGE_SIZE) * PAGE_SIZE
        for start, (end, mapping) in list(self._vmas.items()):
            if end <= address or stop <= start:
                continue
            del self._vmas[start]
            mapping.vma_close()
            if start < address:
                self._vmas[start] = address, mapping
            if stop < end:
                self._vmas[stop] = end, mapping
            if mapping not in (left for _, left in self._vmas.values()):
                mapping.release()

    def legacy_vma(self, address: int) -> "tuple[int, int, LegacyMapping] | None":
        """Return what ``mmap`` made and ``munmap`` left."""
        for start, (end, mapping) in self._vmas.items():
            if start <= address < end:
                return start, end, mapping
        return None


def add_failed(fault: Fault, offset: int, source: int) -> DriverError:
    """Return what ADD_PAGES fails with where EADD has faulted: whose pointer it was decides."""
    # The kernel reaches the source before EADD, which then sees kernel addresses only.
    if fault.address is not None and fault.address < EPC_BASE:
        return DriverError(errno.EFAULT, f"the source page {source:#x} cannot be read: {fault}")
    return DriverError(errno.EIO, f"EADD of page {offset:#x}: {fault}")
