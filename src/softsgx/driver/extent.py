# SPDX-License-Identifier: Apache-2.0
"""A stretch of a file, or of a program's memory, that holds contents or PCMDs.

Owns the descriptor, or the port to the memory, until it is closed.  Offsets count from the stretch's
start.  Each method may wait as long as whoever serves the file or the memory lets it, unless ``waits``
is False.  OSError wherever something cannot be read or written: a file that is too short, memory that is
not mapped or may not be touched.
"""

import contextlib
import ctypes
import errno
import os
from typing import Protocol

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.driver.backing import Held, punch
from softsgx.driver.stores import Stretch

# include/uapi/linux/magic.h
_TMPFS_MAGIC = 0x01021994
_RAMFS_MAGIC = 0x858458F6
_FALLOC_FL_KEEP_SIZE = 0x01

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_statfs = (ctypes.c_long * 32)()
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)


class StoreMemory(Protocol):
    """Memory of one address space, whoever runs in it: the port that the Task supplies.

    It is bound to the address space, not to a process number, and outlives the call that gave it.
    ``stretches`` are what it covers: of the address space, and of the files that are mapped shared there.
    """

    waits: bool
    stretches: list[Stretch]

    @property
    def gone(self) -> bool:
        """Whether the address space has ended."""
        ...

    def read(self, address: int, length: int, /) -> bytes:
        """Return so many bytes; OSError where they are not readable."""
        ...

    def write(self, address: int, data: bytes, /) -> None:
        """Store the bytes; OSError where they are not writable."""
        ...

    def close(self) -> None:
        """Give the port up."""
        ...


class Extent(Protocol):
    """What a store consists of."""

    waits: bool
    punches: bool

    @property
    def gone(self) -> bool:
        """Whether nothing can ever be read here again."""
        ...

    def reserve(self, offset: int, length: int) -> None:
        """Make sure that this can be written; what is there may be lost.  Within one page."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return so many bytes."""
        ...

    def read_now(self, offset: int, length: int) -> bytes | None:
        """Return so many bytes if nothing has to be waited for, else None."""
        ...

    def write(self, offset: int, pieces: list[bytes]) -> None:
        """Write pieces one behind the other."""
        ...

    def punch(self, offset: int, length: int) -> None:
        """Make a hole of whole pages."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


def is_memory(fd: int) -> bool:
    """Tell whether a file is in memory only, so that reading and writing it waits for nobody."""
    if _libc.fstatfs(fd, ctypes.byref(_statfs)):
        return False
    return _statfs[0] in {_TMPFS_MAGIC, _RAMFS_MAGIC}


class FileExtent:
    """Length bytes of a file from ``start`` on; the descriptor is the extent's own.

    With ``durable`` what has been written is on the medium when ``write`` returns.  A file that ``grows``
    becomes longer with what is stored; any other that is too short has been truncated.  Whether a file
    ``waits`` its file system is asked, which may itself take a while.
    """

    gone = False

    def __init__(
        self,
        fd: int,
        start: int,
        length: int,
        *,
        punches: bool,
        durable: bool = False,
        grows: bool = False,
        waits: bool | None = None,
    ) -> None:
        self.fd = fd
        self.start = start
        self.end = start + length
        self.punches = punches
        self.waits = not is_memory(fd) if waits is None else waits
        self._flags = os.RWF_DSYNC if durable else 0
        self._grows = grows
        self._looks = self.waits
        self._allocates = True
        self._allocated = Held()

    def reserve(self, offset: int, length: int) -> None:
        """Allocate the page of the file that holds this, once."""
        if not self._grows and os.fstat(self.fd).st_size < self.start + offset + length:
            raise OSError(errno.EFBIG, "the file has been truncated")
        page = (self.start + offset) // PAGE_SIZE
        if not self._allocates or page in self._allocated:
            return
        mode = 0 if self._grows else _FALLOC_FL_KEEP_SIZE
        if _libc.fallocate(self.fd, mode, page * PAGE_SIZE, PAGE_SIZE):
            number = ctypes.get_errno()
            if number not in {errno.EOPNOTSUPP, errno.ENOSYS}:
                raise OSError(number, os.strerror(number))
            # A file system without: what does not fit is told by the write.
            self._allocates = False
            return
        self._allocated.add(page)

    def read(self, offset: int, length: int) -> bytes:
        """Return so many bytes."""
        data = os.pread(self.fd, length, self.start + offset)
        if len(data) < length:
            raise OSError(errno.EFBIG, "the file has been truncated")
        return data

    def read_now(self, offset: int, length: int) -> bytes | None:
        """Return so many bytes if the page cache has them, else None."""
        if not self._looks:
            return None
        data = bytearray(length)
        try:
            done = os.preadv(self.fd, [data], self.start + offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError:
            # A file system that cannot tell, or a failure that `read` will meet too.
            self._looks = False
            return None
        return bytes(data) if done == length else None

    def write(self, offset: int, pieces: list[bytes]) -> None:
        """Write pieces one behind the other."""
        done = os.pwritev(self.fd, pieces, self.start + offset, self._flags)
        if done < sum(map(len, pieces)):
            raise OSError(errno.ENOSPC, "the file took less than it was given")

    def punch(self, offset: int, length: int) -> None:
        """Make a hole; where the file system cannot, what is there stays."""
        start = self.start + offset
        if not punch(self.fd, start, length):
            self.punches = False
            return
        for page in range(start // PAGE_SIZE, (start + length) // PAGE_SIZE):
            if page in self._allocated:
                self._allocated.remove(page)

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            # It is closed even where a server far away has not taken what was written.
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1


class MemoryExtent:
    """A range of a program's memory; the port is the extent's own."""

    punches = False

    def __init__(self, memory: StoreMemory, start: int) -> None:
        self._memory = memory
        self._start = start
        self.waits = memory.waits

    @property
    def gone(self) -> bool:
        """Whether the program's address space has ended."""
        return self._memory.gone

    def reserve(self, offset: int, length: int) -> None:  # noqa: ARG002 - one byte stands for its page
        """Write a zero: the page is not read-only, absent, or without room."""
        self._memory.write(self._start + offset, b"\0")

    def read(self, offset: int, length: int) -> bytes:
        """Return so many bytes."""
        return self._memory.read(self._start + offset, length)

    def read_now(self, offset: int, length: int) -> bytes | None:  # noqa: ARG002 - it cannot be told
        """Return None: whether a page is there is known only when it is touched."""
        return None

    def write(self, offset: int, pieces: list[bytes]) -> None:
        """Write pieces one behind the other."""
        self._memory.write(self._start + offset, b"".join(pieces))

    def punch(self, offset: int, length: int) -> None:
        """Do nothing: pages of a program's memory are the program's to free."""

    def close(self) -> None:
        """Give the port up."""
        self._memory.close()
