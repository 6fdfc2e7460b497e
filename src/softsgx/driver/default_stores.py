# SPDX-License-Identifier: Apache-2.0
"""Where the pages of all enclaves of a run go whose programs choose no store: `softsgx run --backing`.

Owns the file or the directory that the user has named.
"""

# Every start with --backing comes through here, and pathlib would cost it start-up time.
import _thread
import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.driver.backing import Backing, NoBacking, contents_size, punch, store_size
from softsgx.driver.extent import FileExtent, is_memory
from softsgx.driver.provided import ExtentBacking, bounded
from softsgx.driver.stores import DefaultStore, KernelStores, Stretch
from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from softsgx.driver.stores import Stores

# The first page of a file of ours: what a run that was killed has left may be overwritten, nothing else.
_MAGIC = b"softsgx backing\0"
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def default_store(where: str) -> DefaultStore:
    """Return what `--backing` names; SoftsgxError says what is wrong with it."""
    kind, colon, path = where.partition(":")
    if where == "kernel":
        return KernelStores()
    if where == "none":
        return NoStores()
    if kind in {"file", "dir"} and colon and path:
        return FileStore(path) if kind == "file" else DirectoryStores(path)
    raise SoftsgxError(f"--backing {where}: wanted is kernel, file:PATH, dir:PATH or none")


def _length(size: int) -> int:
    return -(-store_size(size) // PAGE_SIZE) * PAGE_SIZE


# A hole costs a disk's file system ten times what the page cost it, and the next page to be evicted has its
# place there: a file on disk keeps what it has taken until its enclave ends. Memory is given back at once.


class NoStores:
    """No store for any enclave: one that has to give way is killed."""

    def make(self, size: int, stores: "Stores") -> Backing:  # noqa: ARG002 - nothing is made
        """Return a store that takes nothing."""
        return NoBacking()

    def close(self) -> None:
        """Do nothing."""


class DirectoryStores:
    """A file without a name in one directory for each enclave."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._made = 0
        try:
            self._directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SoftsgxError(f"--backing dir:{path}: {error.strerror}") from None
        try:
            # A mistake shows before the program starts.
            os.close(self._file())
        except OSError as error:
            os.close(self._directory)
            raise SoftsgxError(
                f"--backing dir:{path}: no file can be made there: {error.strerror}"
            ) from None

    def make(self, size: int, stores: "Stores") -> Backing:
        """Return a store that is a file of its own, gone with its enclave."""
        fd = self._file()
        try:
            waits = not is_memory(fd)
            extent = FileExtent(fd, 0, _length(size), punches=not waits, grows=True, waits=waits)
            return bounded(_single(extent, size, bool), stores.tell)
        except BaseException:
            os.close(fd)
            raise

    def _file(self) -> int:
        try:
            return os.open(".", os.O_TMPFILE | _OPEN, 0o600, dir_fd=self._directory)
        except OSError as error:
            # EISDIR: a kernel or a file system that does not know the flag.
            if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
                raise
        self._made += 1
        name = f".softsgx-backing-{os.getpid()}-{self._made}"
        fd = os.open(name, os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=self._directory)
        os.unlink(name, dir_fd=self._directory)
        return fd

    def close(self) -> None:
        """Give the directory up."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


class FileStore:
    """One file for all enclaves, a stretch for each; what an enclave gives back another one gets.

    The first page is the mark.  At the end the file is as long as it was, or has that page only.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_CREAT | _OPEN, 0o600)
        except OSError as error:
            raise SoftsgxError(f"--backing file:{path}: {error.strerror}") from None
        try:
            self._length = self._take()
        except OSError as error:
            os.close(self._fd)
            raise SoftsgxError(f"--backing file:{path}: {error.strerror}") from None
        except BaseException:
            os.close(self._fd)
            raise
        self._used: list[tuple[int, int]] = []
        # Stretches are given back by the threads of their stores.
        self._lock = _thread.allocate_lock()

    def _take(self) -> int:
        """See that the file can be ours, and mark it; return how long it was."""
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise SoftsgxError(f"--backing file:{self._path}: not a regular file")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SoftsgxError(f"--backing file:{self._path}: another run is using it") from None
        self._place = status.st_dev, status.st_ino
        self._waits = not is_memory(self._fd)
        length = status.st_size
        if os.pread(self._fd, len(_MAGIC), 0) == _MAGIC:
            length = 0
            os.ftruncate(self._fd, 0)
        elif _has_data(self._fd):
            raise SoftsgxError(
                f"--backing file:{self._path}: it holds data that is not softsgx's, which would be "
                "overwritten; wanted is a new file, or one of zeros that were never written"
            )
        os.pwrite(self._fd, _MAGIC.ljust(PAGE_SIZE, b"\0"), 0)
        return length

    def make(self, size: int, stores: "Stores") -> Backing:
        """Return a store that is a stretch of the file."""
        length = _length(size)
        start = self._allocate(length)
        give_back = partial(self._give_back, start, start + length)
        try:
            # A program may know the file, and name it too.
            released = stores.claim([Stretch(self._place, start, start + length)])
        except BaseException:
            give_back()
            raise

        def both() -> None:
            released()
            give_back()

        try:
            waits, fd = self._waits, os.dup(self._fd)
            extent = _Piece(fd, start, length, punches=not waits, grows=True, waits=waits)
            return bounded(_single(extent, size, both), stores.tell)
        except BaseException:
            both()
            raise

    def _allocate(self, length: int) -> int:
        with self._lock:
            start = PAGE_SIZE
            for low, high in self._used:
                if low - start >= length:
                    break
                start = high
            self._used.append((start, start + length))
            self._used.sort()
        return start

    def _give_back(self, start: int, end: int) -> None:
        with self._lock:
            self._used.remove((start, end))

    def close(self) -> None:
        """Leave the file as long as it was, and nothing in it but the mark."""
        if self._fd >= 0:
            # What a broken file system keeps of it is ciphertext without a key.
            with contextlib.suppress(OSError):
                punch(self._fd, PAGE_SIZE, max(os.fstat(self._fd).st_size - PAGE_SIZE, 1))
                os.ftruncate(self._fd, max(self._length, PAGE_SIZE))
            os.close(self._fd)
            self._fd = -1


class _Piece(FileExtent):
    """A stretch that another enclave may have next: it is empty when it is given back."""

    def close(self) -> None:
        """Make all of it a hole."""
        if self.fd >= 0:
            punch(self.fd, self.start, self.end - self.start)
        super().close()


def _single(extent: FileExtent, size: int, released: Callable[[], object]) -> ExtentBacking:
    return ExtentBacking(
        extent, extent, contents_size(size), kill_on_error=False, released=released
    )


def _has_data(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
    return True
