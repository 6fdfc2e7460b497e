# SPDX-License-Identifier: Apache-2.0
"""Memory as a debugger sees it: enclaves by EDBGRD and EDBGWR, and breakpoints that do not show.

Owns the software breakpoints that are in place. In an enclave one is an INT3 that EDBGWR writes, after
each page has been measured, so that neither MRENCLAVE nor what the program sees of its file changes.
"""

import contextlib
import errno

from softsgx.arch.attributes import TCS_DBGOPTIN
from softsgx.arch.secinfo import PT_TCS
from softsgx.arch.structures import Tcs
from softsgx.driver.reclaim import AGAIN
from softsgx.driver.vma_access import vma_read, vma_write
from softsgx.errors import DriverError
from softsgx.run import numbers as n
from softsgx.run.gp_instructions import CPUID, UD2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from softsgx.driver.encl import Encl
    from softsgx.run.elrange_map import EnclaveVma
    from softsgx.run.mm import Mm

_INT3 = b"\xcc"
_FLAGS = Tcs.OFFSETS["flags"]
_WORD = 8
_TOP = 1 << 47


def _pieces(mm: "Mm", start: int, end: int) -> "Iterator[tuple[int, int, EnclaveVma | None]]":
    """Cut a range where enclaves begin and end."""
    at = start
    for vma in mm.enclaves.overlapping(start, end) if mm.enclaves is not None else ():
        if at < vma.start:
            yield at, vma.start, None
        yield vma.start, vma.end, vma
        at = vma.end
    if at < end:
        yield at, end, None


def read_memory(mm: "Mm", address: int, length: int) -> bytes:
    """Read what is there, of enclaves what the kernel would let a debugger see.

    OSError where nothing can be read at `address`; shorter where what follows cannot.
    """
    out = b""
    for low, high, vma in _pieces(mm, address, min(address + length, _TOP)):
        try:
            piece = mm.read(low, high - low) if vma is None else _read_enclave(vma, low, high)
        except DriverError as refused:
            if not out:
                raise OSError(refused.errno, refused.reason) from refused
            break
        out += piece
        if len(piece) < high - low:
            break
    if length and not out:
        raise OSError(errno.EFAULT, f"nothing is mapped at {address:#x}")
    return out


def _read_enclave(vma: "EnclaveVma", low: int, high: int) -> bytes:
    # In pages, so that those before a hole are shown.
    out = b""
    at = low
    while at < high:
        end = min(high, (at & -n.PAGE_SIZE) + n.PAGE_SIZE)
        try:
            out += vma_read(vma.file.encl, at, end - at, vma.prot)
        except AGAIN as later:
            raise DriverError(errno.EAGAIN, str(later)) from later
        except DriverError:
            if not out:
                raise
            break
        at = end
    return out


def write_memory(mm: "Mm", address: int, data: bytes) -> None:
    """Write memory, whatever its protection; OSError where it cannot be written."""
    for low, high, vma in _pieces(mm, address, address + len(data)):
        piece = data[low - address : high - address]
        try:
            if vma is not None:
                vma_write(vma.file.encl, low, piece, vma.prot)
            elif not mm.write(low, piece):
                raise OSError(errno.EFAULT, f"nothing is mapped at {low:#x}")
        except AGAIN as later:
            raise OSError(errno.EAGAIN, str(later)) from later
        except DriverError as refused:
            raise OSError(refused.errno, refused.reason) from refused


def opt_in(encl: "Encl") -> None:
    """Set DBGOPTIN in every TCS of a debug enclave: without it an INT3 inside is #UD.

    OSError where it is no debug enclave.
    """
    for run in encl.page_array.runs():
        if run.type != PT_TCS:
            continue
        for page in range(run.first, run.end):
            at = page * n.PAGE_SIZE + _FLAGS
            try:
                flags = int.from_bytes(vma_read(encl, at, _WORD), "little")
                vma_write(encl, at, (flags | TCS_DBGOPTIN).to_bytes(_WORD, "little"))
            except (DriverError, *AGAIN) as refused:
                raise OSError(errno.EFAULT, str(refused)) from refused


class DebuggedMemory:
    """An address space with breakpoints, which whoever reads does not see."""

    def __init__(self) -> None:
        # What stands at the address of a breakpoint otherwise.
        self._inserted: dict[int, int] = {}
        # What was taken away: a thread may have executed it, and not stopped for it yet.
        self._removed: set[int] = set()

    def has_breakpoint(self, address: int) -> bool:
        """Tell whether a breakpoint is in place."""
        return address in self._inserted

    def was_removed(self, mm: "Mm", address: int) -> bool:
        """Tell whether an INT3 that a thread has executed was a breakpoint, which is gone."""
        return address in self._removed and mm.read(address, 1) != _INT3

    def forget(self) -> None:
        """Hear that the address space has gone, and all breakpoints with it."""
        self._inserted.clear()
        self._removed.clear()

    def read(self, mm: "Mm", address: int, length: int) -> bytes:
        """Read memory as the program knows it."""
        shown = bytearray(read_memory(mm, address, length))
        end = address + len(shown)
        for at, byte in self._inserted.items():
            if address <= at < end:
                shown[at - address] = byte
        # A CPUID that was replaced for it to trap.
        for at in mm.cpuid_sites:
            if address <= at < end - 1 and shown[at - address : at - address + 2] == UD2:
                shown[at - address : at - address + 2] = CPUID
        return bytes(shown)

    def write(self, mm: "Mm", address: int, data: bytes) -> None:
        """Write memory; a breakpoint within stays in place."""
        stored = bytearray(data)
        for at in self._inserted:
            if address <= at < address + len(data):
                self._inserted[at] = data[at - address]
                stored[at - address] = _INT3[0]
        write_memory(mm, address, bytes(stored))

    def insert(self, mm: "Mm", address: int) -> None:
        """Put a breakpoint in place; OSError where none can be, as in a production enclave."""
        if address in self._inserted:
            return
        vma = mm.enclaves.find(address) if mm.enclaves is not None else None
        before = read_memory(mm, address, 1)
        if vma is not None:
            opt_in(vma.file.encl)
        write_memory(mm, address, _INT3)
        self._inserted[address] = before[0]

    def lift(self, mm: "Mm", address: int) -> None:
        """Take a breakpoint away for a moment."""
        with contextlib.suppress(OSError):
            write_memory(mm, address, bytes([self._inserted[address]]))

    def put_back(self, mm: "Mm", address: int) -> None:
        """Put a lifted breakpoint in place again, unless it was removed meanwhile."""
        if address in self._inserted:
            with contextlib.suppress(OSError):
                write_memory(mm, address, _INT3)

    def on_fork(self, child: "Mm") -> None:
        """Take the breakpoints out of a copy of the address space; those in enclaves are shared."""
        for address, byte in self._inserted.items():
            if child.enclaves is None or child.enclaves.find(address) is None:
                child.write(address, bytes([byte]))

    def remove(self, mm: "Mm", address: int) -> None:
        """Take a breakpoint away; where its memory is gone, so is it."""
        before = self._inserted.pop(address, None)
        if before is None:
            return
        self._removed.add(address)
        try:
            there = read_memory(mm, address, 1)
        except OSError:
            return
        if there == _INT3:
            write_memory(mm, address, bytes([before]))

    def remove_all(self, mm: "Mm") -> None:
        """Take all breakpoints away."""
        for address in list(self._inserted):
            self.remove(mm, address)
