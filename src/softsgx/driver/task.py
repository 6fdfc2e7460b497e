# SPDX-License-Identifier: Apache-2.0
"""Who calls: what an ioctl needs to know of the calling thread (kernel: current, its mm, its files).

``Task`` is the port that run/ supplies; ``LocalTask`` is the Python process itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.cpu.memory import HeldMemory, Memory

if TYPE_CHECKING:
    from softsgx.driver.driver import EnclaveFile, ProvisionFile


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

    def file(self, fd: int) -> "EnclaveFile | ProvisionFile | None":
        """Return what the caller's descriptor refers to, None for a bad one or for another kind of file."""
        ...

    def read_implies_exec(self) -> bool:
        """Tell whether the caller's personality has READ_IMPLIES_EXEC."""
        ...


class LocalTask(Task):
    """The Python process as the caller: its memory is Python-held, its descriptors are a table."""

    def __init__(self, memory: HeldMemory | None = None) -> None:
        self._memory = HeldMemory() if memory is None else memory
        self._files: dict[int, EnclaveFile | ProvisionFile] = {}

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

    def file(self, fd: int) -> "EnclaveFile | ProvisionFile | None":
        """Return what ``install`` put there."""
        return self._files.get(fd)

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

    def install(self, file: "EnclaveFile | ProvisionFile") -> int:
        """Give the file the lowest free descriptor number and return it."""
        fd = next(number for number in range(len(self._files) + 1) if number not in self._files)
        self._files[fd] = file
        return fd

    def close(self, fd: int) -> None:
        """Take a descriptor out of the table; the file itself is released by its owner."""
        del self._files[fd]
