# SPDX-License-Identifier: Apache-2.0
"""The contents of one enclave's pages in a sparse memfd whose file offset is the virtual address.

Owns the memfd.  A program maps a reopened descriptor of it at offset = address, so what the processor
reads and writes here is what the enclave's own code sees there; an absent page is a hole.
"""

import ctypes
import fcntl
import os
from collections.abc import Callable

from softsgx.driver.nodes import ENCLAVE

# One page-table root spans this much user address space (x86-64, four levels).
ELRANGE_SIZE = 1 << 47

_PAGE_SIZE = 4096
# include/uapi/linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.preadv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_libc.preadv.restype = ctypes.c_ssize_t


class MemfdElrange:
    """cpu's Elrange over a sparse memfd, 2^47 bytes long; ``fd`` is the driver's own descriptor.

    ``kind`` is that of the node through which a program has it, and shows in its name.  ``place`` is set
    while a page is brought in for somebody who has touched it: it puts whole pages that are absent into the
    memfd and into that address space at once, and returns how many bytes.  What has been changed in what the
    enclave executes (``change``) is not what it holds: nobody reads that here.
    """

    def __init__(self, kind: str = ENCLAVE) -> None:
        self.place: Callable[[int, bytes | bytearray | memoryview], int] | None = None
        self._kept: list[tuple[int, int]] | None = None
        # By address: what is there instead, what the enclave holds, and whom to tell when it is gone.
        self._changes: dict[int, tuple[bytes, bytes, Callable[[], None]]] = {}
        # All of them lie between these two, which every page that moves is compared with.
        self._first_change, self._end_of_changes = 0, 0
        self.fd = os.memfd_create(f"sgx_{kind}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, ELRANGE_SIZE)
            # A device node has no size for the program to change.
            seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except OSError:
            os.close(self.fd)
            raise

    def reopen(self, flags: int) -> int:
        """Open the memfd anew and return the descriptor: a file description of its own for the program.

        ``flags`` are open(2)'s, as the program gave them; those that create or truncate are dropped,
        a device node ignores them.  A device node cannot be read or written either: this one is at its
        end to begin with, and whatever is written is appended, which the seal refuses.
        """
        ignored = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_DIRECT | os.O_NOFOLLOW
        fd = os.open(f"/proc/self/fd/{self.fd}", flags & ~ignored | os.O_APPEND)
        os.lseek(fd, 0, os.SEEK_END)
        return fd

    def read(self, address: int, length: int) -> bytes:
        """Read ``length`` bytes at a linear address; a hole reads as zeros and stays a hole."""
        data = os.pread(self.fd, length, address)
        while len(data) < length:
            more = os.pread(self.fd, length - len(data), address + len(data))
            if not more:
                raise ValueError(f"{address:#x}+{length:#x} is beyond the address space")
            data += more
        if found := self._changed(address, length):
            held = bytearray(data)
            for at, (there, before, _) in found:
                low, high = max(at, address), min(at + len(there), address + length)
                if held[low - address : high - address] == there[low - at : high - at]:
                    held[low - address : high - address] = before[low - at : high - at]
            data = bytes(held)
        return data

    def readv(self, address: int, iovec: int, count: int) -> int:
        """Read to the ``count`` (IOV_MAX at most) places that the struct iovecs at ``iovec`` tell.

        Returns the bytes read.  The interpreter's lock is free meanwhile, and is not held either to look
        at a thousand buffers, as os.preadv would.
        """
        done: int = _libc.preadv(self.fd, iovec, count, address)
        if done < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "sgx_enclave")
        if found := self._changed(address, done):
            self._put_back(found, address, iovec, count)
        return done

    def _changed(
        self, address: int, length: int
    ) -> list[tuple[int, tuple[bytes, bytes, Callable[[], None]]]]:
        if not (address < self._end_of_changes and self._first_change < address + length):
            return []
        return [
            (at, change)
            for at, change in self._changes.items()
            if at < address + length and address < at + len(change[0])
        ]

    @staticmethod
    def _put_back(
        found: list[tuple[int, tuple[bytes, bytes, Callable[[], None]]]],
        address: int,
        iovec: int,
        count: int,
    ) -> None:
        places = (ctypes.c_uint64 * (2 * count)).from_address(iovec)
        for number in range(count):
            start, length = places[2 * number], places[2 * number + 1]
            for at, (there, before, _) in found:
                low, high = max(at, address), min(at + len(there), address + length)
                place = start + low - address
                if (
                    low < high
                    and ctypes.string_at(place, high - low) == there[low - at : high - at]
                ):
                    ctypes.memmove(place, before[low - at : high - at], high - low)
            address += length

    def change(self, address: int, there: bytes, gone: Callable[[], None]) -> None:
        """Put bytes of ours where the enclave executes its own, on one page; ``gone`` hears when that has left."""
        before = self.read(address, len(there))
        if not self._changes:
            self._first_change, self._end_of_changes = address, 0
        self._changes[address] = there, before, gone
        self._first_change = min(self._first_change, address)
        self._end_of_changes = max(self._end_of_changes, address + len(there))
        os.pwrite(self.fd, there, address)

    @property
    def changed(self) -> bool:
        """Whether anything is there that the enclave does not hold."""
        return bool(self._changes)

    def take_back(self) -> None:
        """Put what the enclave holds where it was changed."""
        changes, self._changes = self._changes, {}
        for address, (there, before, gone) in changes.items():
            if os.pread(self.fd, len(there), address) == there:
                os.pwrite(self.fd, before, address)
            gone()

    def _forget(self, address: int, length: int) -> None:
        for at, (there, before, gone) in self._changed(address, length):
            del self._changes[at]
            if os.pread(self.fd, len(there), at) == there:
                os.pwrite(self.fd, before, at)
            gone()

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write at a linear address.  A page that was a hole appears whole, by one system call."""
        if address < self._end_of_changes:
            self._forget(address, len(data))
        if self.place is not None and not len(data) % _PAGE_SIZE:
            done = self.place(address, data)
            if done == len(data):
                return
            address += done
            data = memoryview(data)[done:]
        done = os.pwrite(self.fd, data, address)
        while done < len(data):
            done += os.pwrite(self.fd, memoryview(data)[done:], address + done)

    def discard(self, address: int, length: int) -> None:
        """Make [address, address + length) a hole; both are multiples of the page size."""
        if address % _PAGE_SIZE or length % _PAGE_SIZE:
            raise ValueError(f"{address:#x}+{length:#x} is not page aligned")
        if self._kept is not None:
            self._kept.append((address, length))
            return
        if address < self._end_of_changes:
            for at, (_, _, gone) in self._changed(address, length):
                del self._changes[at]
                gone()
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if length and _libc.fallocate(self.fd, mode, address, length):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "sgx_enclave")

    def keep(self) -> None:
        """Keep the contents of what is discarded from now on, until ``discard_kept``."""
        self._kept = []

    def discard_kept(self) -> None:
        """Make holes of what was kept."""
        kept, self._kept = self._kept, None
        if kept is not None and self.fd >= 0:
            for address, length in kept:
                self.discard(address, length)

    def close(self) -> None:
        """Give the driver's descriptor back; the program's own keep the memory alive."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
