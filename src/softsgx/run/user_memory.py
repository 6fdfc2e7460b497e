# SPDX-License-Identifier: Apache-2.0
"""The memory of a program as a leaf or an ioctl on its behalf sees it.

Owns the buffer that copies go through. A page that is present is copied from outside; any other
is brought in by the calling thread itself, through an injected MADV_POPULATE_READ or _WRITE, so
that EFAULT and stalls (a page served by FUSE or by the program's userfaultfd) are that thread's
own. Long runs that ADD_PAGES copies are written by the thread itself.

Sources: process_vm_readv(2), madvise(2), Documentation/admin-guide/mm/pagemap.rst.
"""

import ctypes
import errno
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from softsgx.errors import Fault
from softsgx.run import numbers as n
from softsgx.run.ptrace import failed
from softsgx.run.tracee import Tracee

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.cpu.memory import Elrange

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_READV = 310  # process_vm_readv
_WRITEV = 311
_IOVEC = struct.Struct("<QQ")
_FORBIDDEN = (errno.EPERM, errno.ENOSYS)  # the latter by older sandboxes, for calls unknown to them
# Of a pagemap entry's last byte: present, and write-protected by a userfaultfd.
_PRESENT = 1 << 63 - 56
_UFFD_WP = 1 << 57 - 56
_TOP = 1 << 47
_PAGE = n.PAGE_SIZE
# What fits a processor's own cache costs little to copy twice.
_PIECE = 512 * _PAGE
# From here on two injected calls more are worth one copy less.
_LONG = 1 << 20
# A page that was brought in may be gone again before it is copied.
_PATIENCE = 16

_piece = bytearray(_PIECE)
_piece_at = ctypes.addressof((ctypes.c_char * _PIECE).from_buffer(_piece))


class ProgramMemory:
    """cpu's Memory port for the thread that stands in an ioctl."""

    def __init__(self, tracee: Tracee) -> None:
        self._tracee = tracee
        self._lent = -1  # the descriptor that the program has of us for this scope

    @contextmanager
    def user_access(self) -> "Iterator[ProgramMemory]":
        """Open the window; what is inside may suspend the caller."""
        try:
            yield self
        finally:
            # Where the program has ended, or executed another one, the descriptor is closed.
            if self._lent >= 0 and not self._tracee.ended and not self._tracee.replaced:
                with self._tracee.injecting() as injector:
                    injector.call(n.SYS_CLOSE, self._lent)
                self._lent = -1

    def read(self, address: int, length: int) -> bytes:
        """Read user memory; a bad pointer is a page fault at the first byte that is not there."""
        out = bytearray()
        while len(out) < length:
            data = self._piece_of(address + len(out), length - len(out))
            if not data:
                raise Fault.pf(address + len(out), "user memory is not readable")
            out += data
        return bytes(out)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write user memory; a bad pointer is a page fault."""
        written = 0
        while written < len(data):
            piece = bytes(data[written : written + _PIECE])
            done = self._copy(address + written, len(piece), piece)
            if not done:
                raise Fault.pf(address + written, "user memory is not writable")
            written += done

    def fill(self, elrange: "Elrange", destination: int, source: int, length: int) -> int:
        """Copy user memory into the enclave's pages; give the bytes copied before a bad one."""
        enclaves = self._tracee.mm.enclaves
        if enclaves is not None and enclaves.overlapping(source, source + length):
            # VM_IO memory cannot be pinned: get_user_pages refuses it.
            return 0
        done = self._written_by_thread(elrange, destination, source, length)
        while done < length:
            data = self._piece_of(source + done, length - done)
            if not data:
                break
            elrange.write(destination + done, data)
            done += len(data)
        return done

    def _written_by_thread(
        self, elrange: "Elrange", destination: int, source: int, length: int
    ) -> int:
        """Let the thread write a long run itself, which takes one copy; give the whole pages done.

        By a descriptor lent for that time, because another thread may change what the program's
        own number stands for. What is not done, for whatever reason, is copied from outside.
        """
        fd = getattr(elrange, "fd", -1)
        if length < _LONG or fd < 0 or (self._lent < 0 and not self._unlimited()):
            return 0
        done = 0
        with self._tracee.injecting() as injector:
            if self._lent < 0:
                lent = injector.lend(fd)
                if failed(lent):
                    return 0
                self._lent = lent
            while done < length:
                result = injector.call(
                    n.SYS_PWRITE64, self._lent, source + done, length - done, destination + done
                )
                if failed(result) or not result:
                    break
                done += result
        whole = done & -_PAGE
        if done != whole:
            elrange.discard(destination + whole, _PAGE)
        return whole

    def _unlimited(self) -> bool:
        # RLIMIT_FSIZE counts the file offset, and kills.
        import resource  # noqa: PLC0415  (few programs add long runs)

        limit, _ = resource.prlimit(self._tracee.tid, resource.RLIMIT_FSIZE)
        return limit == resource.RLIM_INFINITY

    def _piece_of(self, address: int, length: int) -> memoryview:
        # The shared buffer: what is in it holds until the next time that this thread may suspend.
        return memoryview(_piece)[: self._copy(address, min(length, _PIECE), None)]

    def _copy(self, address: int, length: int, data: bytes | None) -> int:
        """Copy up to `length` bytes into the buffer, or `data` out of it; 0 at a bad pointer."""
        if not 0 <= address <= _TOP - length:
            length = min(length, _TOP - address)
            if address < 0 or length <= 0:
                return 0
        populated = False
        for _ in range(_PATIENCE):
            here = self._present(address, length, data is not None)
            if here < 0 and populated:
                # The pagemap cannot be had, but the thread has just touched them all.
                here = length
            if here > 0:
                if data is not None:
                    _piece[:here] = data[:here]
                done = self._transfer(address, here, data is not None, populated)
                if done > 0:
                    return done
            length = self.populate(address, length, write=data is not None)
            if not length:
                return 0
            populated = True
        return 0

    def populate(self, address: int, length: int, *, write: bool) -> int:
        """Let the thread itself touch the pages; give up to where that is known to have worked."""
        advice = n.MADV_POPULATE_WRITE if write else n.MADV_POPULATE_READ
        start = address & -_PAGE
        first_page = min(length, start + _PAGE - address)
        with self._tracee.injecting() as injector:
            for this in (length, first_page):
                end = (address + this + _PAGE - 1) & -_PAGE
                if not failed(injector.call(n.SYS_MADVISE, start, end - start, advice)):
                    return this
        return 0

    def _transfer(self, address: int, length: int, write: bool, populated: bool) -> int:
        """Copy between the buffer and pages that are present; give the bytes copied."""
        done: int = _libc.syscall(
            _WRITEV if write else _READV,
            self._tracee.tid,
            _IOVEC.pack(_piece_at, length),
            ctypes.c_ulong(1),
            _IOVEC.pack(address, length),
            ctypes.c_ulong(1),
            ctypes.c_ulong(0),
        )
        if done >= 0 or ctypes.get_errno() not in _FORBIDDEN or not populated:
            return done
        # A sandbox, or a program that has made itself non-dumpable. This way asks for no access
        # rights, but the thread itself has shown that it has them.
        if write:
            return length if self._tracee.mm.write(address, bytes(_piece[:length])) else 0
        data = self._tracee.mm.read(address, length)
        _piece[: len(data)] = data
        return len(data)

    def _present(self, address: int, length: int, write: bool) -> int:
        """Tell how many of the bytes lie in pages that are present; -1 where that is hidden.

        Touching another page from outside could wait for the very program that is stopped.
        """
        first, last = address // _PAGE, (address + length - 1) // _PAGE
        entries = self._tracee.mm.pagemap(8 * first, 8 * (last - first + 1))
        if not entries:
            return -1
        wanted = _PRESENT | (_UFFD_WP if write else 0)
        for at, entry in enumerate(entries[7::8]):
            if entry & wanted != _PRESENT:
                return max((first + at) * _PAGE - address, 0)
        return min(length, (first + len(entries) // 8) * _PAGE - address)
