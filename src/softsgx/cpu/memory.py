# SPDX-License-Identifier: Apache-2.0
"""The ports to memory: whose pointers a leaf follows, and where the contents of an enclave's pages live.

A processor needs two memories.  Operands of a leaf lie in the memory of whoever executes it
(``Memory``): they may be bad pointers, and reaching them may stall.  The contents of regular enclave
pages (``Elrange``) are addressed by their linear address inside the enclave's range; whether a page is
there, and who may touch it, is the EPCM's business alone.

Every method of a ``Window`` may suspend its caller, and other leaves may run in between: a leaf holds
its EPC pages busy around it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.errors import Fault


class Elrange(Protocol):
    """The contents of one enclave's regular pages, by linear address; what was never written is zero."""

    def read(self, address: int, length: int, /) -> bytes:
        """Return so many bytes."""
        ...

    def write(self, address: int, data: bytes | bytearray | memoryview, /) -> None:
        """Store the bytes."""
        ...

    def discard(self, address: int, length: int, /) -> None:
        """Forget whole pages: they read as zero from now on."""
        ...


@runtime_checkable
class ScatteredReads(Protocol):
    """What an Elrange may offer besides: a read that lays the bytes out as they are wanted."""

    def readv(self, address: int, iovec: int, count: int, /) -> int:
        """Read to the ``count`` (1024 at most) places that the struct iovecs at ``iovec`` tell.

        Returns the bytes read. Any thread may call it.
        """
        ...


class Window(Protocol):
    """User memory while it may be touched; a bad pointer raises Fault.pf with the first bad address."""

    def read(self, address: int, length: int, /) -> bytes:
        """Return so many bytes of user memory."""
        ...

    def write(self, address: int, data: bytes | bytearray | memoryview, /) -> None:
        """Store the bytes in user memory."""
        ...

    def fill(self, elrange: Elrange, destination: int, source: int, length: int, /) -> int:
        """Copy user memory into an enclave's pages; return the bytes copied, less at a bad pointer."""
        ...


class Memory(Protocol):
    """The memory that the operands of a leaf lie in."""

    def user_access(self) -> AbstractContextManager[Window]:
        """Open the scope in which a leaf may touch the memory."""
        ...


_ZERO_PAGE = bytes(PAGE_SIZE)


class _Pages:
    """Sparse bytes by address; a page that is not there is the caller's question."""

    def __init__(self) -> None:
        # A page that was written whole is kept as it came, and copied when a part of it changes.
        self.pages: dict[int, bytes | bytearray] = {}

    def read(self, address: int, length: int, /) -> bytes:
        """Return so many bytes."""
        pages = self.pages
        if length == PAGE_SIZE and not address % PAGE_SIZE:
            return bytes(pages.get(address, _ZERO_PAGE))
        if not (address | length) % PAGE_SIZE:
            starts = range(address, address + length, PAGE_SIZE)
            return b"".join([pages.get(start, _ZERO_PAGE) for start in starts])
        parts = []
        while length > 0:
            offset = address % PAGE_SIZE
            take = min(length, PAGE_SIZE - offset)
            page = pages.get(address - offset)
            parts.append(bytes(take) if page is None else bytes(page[offset : offset + take]))
            address += take
            length -= take
        return b"".join(parts)

    def write(self, address: int, data: bytes | bytearray | memoryview, /) -> None:
        """Store the bytes."""
        pages = self.pages
        if len(data) == PAGE_SIZE and not address % PAGE_SIZE:
            pages[address] = bytes(data)
            return
        done = 0
        while done < len(data):
            offset = (address + done) % PAGE_SIZE
            take = min(len(data) - done, PAGE_SIZE - offset)
            start = address + done - offset
            page = pages.get(start, _ZERO_PAGE)
            if not isinstance(page, bytearray):
                page = pages[start] = bytearray(page)
            page[offset : offset + take] = data[done : done + take]
            done += take


class HeldElrange(_Pages):
    """An enclave's pages held in Python: for an enclave that no program maps."""

    def discard(self, address: int, length: int, /) -> None:
        """Forget whole pages: they read as zero from now on."""
        pages = self.pages
        for start in range(address, address + length, PAGE_SIZE):
            pages.pop(start, None)


class HeldMemory:
    """Memory held in Python: for kernel buffers, for the Python API, for tests.

    Only what ``map`` or ``place`` made is there; everything else is a bad pointer.
    """

    def __init__(self, base: int = 0x10000) -> None:
        self._held = _Pages()
        self._next = base

    def map(self, address: int, length: int) -> None:
        """Make the pages of a range present, zero unless they were present before."""
        first = address - address % PAGE_SIZE
        for start in range(first, address + length, PAGE_SIZE):
            self._held.pages.setdefault(start, bytearray(PAGE_SIZE))

    def unmap(self, address: int, length: int) -> None:
        """Take the pages of a range away."""
        first = address - address % PAGE_SIZE
        for start in range(first, address + length, PAGE_SIZE):
            self._held.pages.pop(start, None)

    def place(self, data: bytes | bytearray | memoryview) -> int:
        """Put bytes on fresh pages, a hole behind them; return their page-aligned address."""
        address = self._next
        self._next += (len(data) + 2 * PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
        self.map(address, max(len(data), 1))
        self._held.write(address, data)
        return address

    @contextmanager
    def user_access(self) -> Iterator["HeldMemory"]:
        """Open the scope in which a leaf may touch the memory."""
        yield self

    def _present(self, address: int, length: int) -> int:
        """Count the bytes that are there from the address on."""
        start = address - address % PAGE_SIZE
        while start < address + length and start in self._held.pages:
            start += PAGE_SIZE
        return max(0, min(start, address + length) - address)

    def _check(self, address: int, length: int) -> None:
        present = self._present(address, length)
        if present < length:
            raise Fault.pf(address + present, "the memory is not mapped")

    def read(self, address: int, length: int, /) -> bytes:
        """Return so many bytes; Fault.pf at the first that is not there."""
        self._check(address, length)
        return self._held.read(address, length)

    def write(self, address: int, data: bytes | bytearray | memoryview, /) -> None:
        """Store the bytes; Fault.pf at the first that is not there, with nothing stored."""
        self._check(address, len(data))
        self._held.write(address, data)

    def fill(self, elrange: Elrange, destination: int, source: int, length: int, /) -> int:
        """Copy into an enclave's pages; return the bytes copied, less at the first that is not there."""
        present = self._present(source, length)
        elrange.write(destination, self._held.read(source, present))
        return present
