# SPDX-License-Identifier: Apache-2.0
"""A program's memory as the backing store of its enclave: driver's port StoreMemory.

Owns a duplicate of the descriptor of /proc/PID/mem, and one of /proc/PID/maps. Both stand for the
address space and not for the process number: where the process has ended, or executes another
program, nothing is read or written any more, as process_vm_writev(2) might. What they do not look
at is the protection, so that is asked for first. Nor do they wait for a page that the program's
userfaultfd has to supply: that a byte of process_vm_readv(2) does, of which nobody looks at the value.

Reading and writing may wait for whoever serves the memory: the driver does it on a thread of the
store's own.

Source: proc(5), include/uapi/linux/fs.h (PROCMAP_QUERY, since Linux 6.11).
"""

import ctypes
import errno
import fcntl
import os
import struct

from softsgx.driver.stores import Stretch
from softsgx.errors import Fault
from softsgx.run import numbers as n

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from softsgx.run.tracee import Tracee
    from softsgx.run.user_memory import ProgramMemory

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.argtypes = (
    *(ctypes.c_int, ctypes.c_char_p, ctypes.c_ulong),
    *(ctypes.c_char_p, ctypes.c_ulong, ctypes.c_ulong),
)
_IOVEC = struct.Struct("<QQ")
_PROCMAP_QUERY = 0xC0686611
_QUERY = struct.Struct("<QQQQQ64x")  # size, query_flags, query_addr, vma_start, vma_end
_READABLE = 0x01
_WRITABLE = 0x02
_TOP = (1 << 47) - n.PAGE_SIZE  # nothing is ever mapped there


def store_memory(
    tracee: "Tracee", memory: "ProgramMemory", address: int, length: int
) -> "ProgramStoreMemory":
    """Make a store of a range of the stopped thread's memory; Fault.pf where it cannot be one."""
    mm = tracee.mm
    enclaves = mm.enclaves
    if enclaves is not None and enclaves.overlapping(address, address + length):
        raise Fault.pf(address, "an enclave's memory cannot hold its own pages")
    if address + length > _TOP:
        raise Fault.pf(_TOP, "no user memory is there")
    try:
        maps = os.open(f"/proc/{tracee.process.pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        maps = -1  # the program hides them
    try:
        stretches = [Stretch(mm, address, address + length)]
        starts = [address]
        if maps >= 0:
            starts = []
            for low, shared in _writable(maps, address, address + length):
                starts.append(low)
                if shared is not None:
                    stretches.append(shared)
        _probe(memory, starts)
        return ProgramStoreMemory(tracee.process.pid, os.dup(mm.mem), maps, stretches)
    except BaseException:
        if maps >= 0:
            os.close(maps)
        raise


def _probe(memory: "ProgramMemory", starts: list[int]) -> None:
    # The protection may be right, and the memory VM_IO: then its pages are nobody's to touch.
    for start in starts:
        if not memory.populate(start, 1, write=True):
            raise Fault.pf(start, "the memory cannot be written from outside")


def _writable(maps: int, start: int, end: int) -> "Iterator[tuple[int, Stretch | None]]":
    """Give the mappings of [start, end), of a shared file also what of it; Fault.pf at a hole or a protected one."""
    at = start
    for low, high, rights, offset, file in _mappings(maps):
        if high <= at:
            continue
        if low > at or not rights.startswith(b"rw"):
            break
        to = min(high, end)
        shared = None
        if file is not None and rights.endswith(b"s"):
            shared = Stretch(file, offset + at - low, offset + to - low)
        yield at, shared
        at = to
        if at == end:
            return
    raise Fault.pf(at, "the memory is not mapped, or not readable and writable")


def _mappings(maps: int) -> "Iterator[tuple[int, int, bytes, int, tuple[int, int] | None]]":
    """Give start, end, rights, offset and file (device and inode) of each mapping."""
    os.lseek(maps, 0, os.SEEK_SET)
    rest = b""
    while data := os.read(maps, 1 << 16):
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        for line in lines:
            span, rights, offset, device, inode, *_ = line.split(None, 5)
            low, _, high = span.partition(b"-")
            major, _, minor = device.partition(b":")
            file = (
                (os.makedev(int(major, 16), int(minor, 16)), int(inode)) if inode != b"0" else None
            )
            yield int(low, 16), int(high, 16), rights, int(offset, 16), file


class ProgramStoreMemory:
    """A range of a program's memory; its methods may be called by any one thread at a time."""

    waits = True

    def __init__(self, pid: int, mem: int, maps: int, stretches: list[Stretch]) -> None:
        """`maps` is -1 where the program hides them: then its protection counts for nothing."""
        self._pid = pid
        self._mem = mem
        self._maps = maps
        self._asks = True  # by PROCMAP_QUERY
        self.stretches = stretches

    @property
    def gone(self) -> bool:
        """Whether the address space has ended, by exit or by exec."""
        try:
            return not os.pread(self._mem, 1, _TOP)
        except OSError:
            return False

    def read(self, address: int, length: int) -> bytes:
        """Read memory; OSError where it is not readable."""
        self._check(address, address + length, _READABLE)
        try:
            data = os.pread(self._mem, length, address)
        except OSError:
            self._bring_in(address, length)
            data = os.pread(self._mem, length, address)
        if len(data) < length:
            raise OSError(errno.EFAULT, "the memory is not mapped any more")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Write memory; OSError where it is not writable."""
        self._check(address, address + len(data), _WRITABLE)
        try:
            done = os.pwrite(self._mem, data, address)
        except OSError:
            done = 0
        if done < len(data):
            self._bring_in(address + done, len(data) - done)
            done += os.pwrite(self._mem, data[done:], address + done)
        if done < len(data):
            raise OSError(errno.EFAULT, "the memory is not mapped any more")

    def _bring_in(self, address: int, length: int) -> None:
        """Wait for pages that the program has to supply; nothing where it has not."""
        byte = ctypes.create_string_buffer(1)
        here = _IOVEC.pack(ctypes.addressof(byte), 1)
        for page in range(address & -n.PAGE_SIZE, address + length, n.PAGE_SIZE):
            there = _IOVEC.pack(page, 1)
            if _libc.process_vm_readv(self._pid, here, 1, there, 1, 0) < 0:
                return

    def _check(self, start: int, end: int, wanted: int) -> None:
        if self._maps < 0:
            return
        at = start
        while at < end and self._asks:
            query = bytearray(_QUERY.pack(_QUERY.size, wanted, at, 0, 0))
            try:
                fcntl.ioctl(self._maps, _PROCMAP_QUERY, query)
            except OSError as error:
                if error.errno != errno.ENOTTY:
                    raise OSError(errno.EFAULT, "the memory is protected, or not mapped") from error
                self._asks = False
            else:
                at = _QUERY.unpack(query)[4]
        if not self._asks:
            self._look(start, end, b"r" if wanted == _READABLE else b"w")

    def _look(self, at: int, end: int, wanted: bytes) -> None:
        for low, high, rights, _, _ in _mappings(self._maps):
            if high <= at:
                continue
            if low > at or wanted not in rights:
                break
            at = high
            if at >= end:
                return
        raise OSError(errno.EFAULT, "the memory is protected, or not mapped")

    def close(self) -> None:
        """Give up the descriptors."""
        for fd in (self._mem, self._maps):
            if fd >= 0:
                os.close(fd)
        self._mem = self._maps = -1
