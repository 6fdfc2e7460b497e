# SPDX-License-Identifier: Apache-2.0
"""SGX_IOC_ENCLAVE_SET_BACKING: a program says where its enclave's evicted pages go (docs/backing.md).

Owns nothing: a store that was made is the enclave's.  The review of the driver's version 16 asked for
it in November 2018; no kernel has it.  The checks come in the order in which docs/backing.md lists them.
"""

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from softsgx.arch.ioctl import (
    BACKING_FD,
    BACKING_KERNEL,
    BACKING_KILL_ON_ERROR,
    BACKING_MODE,
    BACKING_NONE,
    BACKING_PUNCH,
    BACKING_SEPARATE,
    BACKING_SYNC,
    BACKING_VMA,
    EnclaveSetBacking,
)
from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.arch.structures import Secs
from softsgx.driver.backing import (
    Backing,
    BackingStalled,
    NoBacking,
    contents_size,
    pcmds_size,
    store_size,
)
from softsgx.driver.extent import Extent, FileExtent, MemoryExtent
from softsgx.driver.provided import BoundedBacking, ExtentBacking, bounded
from softsgx.driver.stores import Stores, Stretch
from softsgx.driver.worker import Job, Worker
from softsgx.errors import DriverError, Fault, Misaligned

if TYPE_CHECKING:
    from softsgx.driver.encl import Encl
    from softsgx.driver.task import Task

_FLAGS = BACKING_MODE | BACKING_SEPARATE | BACKING_KILL_ON_ERROR | BACKING_SYNC | BACKING_PUNCH
# What means something in each mode.
_FLAGS_OF = {
    BACKING_KERNEL: BACKING_KILL_ON_ERROR,
    BACKING_NONE: 0,
    BACKING_VMA: BACKING_SEPARATE | BACKING_KILL_ON_ERROR | BACKING_SYNC | BACKING_PUNCH,
    BACKING_FD: BACKING_SEPARATE | BACKING_KILL_ON_ERROR | BACKING_SYNC | BACKING_PUNCH,
}
# Beyond this a file has no offsets (MAX_LFS_FILESIZE).
_FILE_SIZE_MAX = (1 << 63) - 1
_O_PATH = 0o10000000
# include/uapi/asm-generic/mman-common.h
_PROT_READ_WRITE = 3
_MAP_SHARED_VALIDATE = 0x03
_MAP_SYNC = 0x80000
_MAP_FAILED = ctypes.c_void_p(-1).value
# include/uapi/linux/fcntl.h
_F_GET_SEALS = 1034
_F_SEAL_WRITE = 0x0008
_F_SEAL_FUTURE_WRITE = 0x0010

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int64),
)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Range(NamedTuple):
    """Where the program wants contents or PCMDs: of its memory, or of the file behind a descriptor."""

    name: str
    start: int
    length: int
    fd: int


class _Opened(NamedTuple):
    """A file that can be a store, with how large it is."""

    extent: FileExtent
    place: tuple[int, int]
    size: int


def check_settable(encl: "Encl") -> None:
    """Judge whether an enclave's store can be chosen now, before the argument is looked at."""
    if not encl.created:
        raise DriverError(errno.EINVAL, "the enclave is not created yet: its size is not known")
    if encl.initialized or len(encl.page_array):
        raise DriverError(errno.EINVAL, "the enclave has pages already")
    if encl.backing_set:
        raise DriverError(errno.EBUSY, "the enclave's backing has been set already")


def set_backing(encl: "Encl", argument: bytes, task: "Task", enclave: int = 0) -> None:
    """Give an enclave the store that the 64 bytes of ``argument`` describe, or raise DriverError.

    ``enclave`` is what the argument must have in that field: the base where a node has many.
    """
    check_settable(encl)
    wanted = EnclaveSetBacking.decode(argument)
    mode, flags = wanted.flags & BACKING_MODE, wanted.flags & ~BACKING_MODE
    if mode not in _FLAGS_OF or flags & ~_FLAGS_OF[mode]:
        raise DriverError(
            errno.EINVAL,
            f"flags {wanted.flags:#x}: no such mode, or a flag that means nothing in it",
        )
    if wanted.enclave != enclave or not EnclaveSetBacking.reserved_is_zero(argument):
        raise DriverError(errno.EINVAL, f"reserved is not {enclave:#x} and zero")
    ranges = _ranges(wanted, encl.size)
    kill_on_error = bool(flags & BACKING_KILL_ON_ERROR)
    if mode == BACKING_KERNEL:
        # The enclave has it from CREATE on: the driver's own, or what `softsgx run --backing` says.
        encl.backing.kill_on_error |= kill_on_error
        encl.backing_set = True
    elif mode == BACKING_NONE:
        encl.give_backing(NoBacking())
    elif mode == BACKING_VMA:
        for flag, name in ((BACKING_SYNC, "SYNC"), (BACKING_PUNCH, "PUNCH")):
            if flags & flag:
                raise DriverError(errno.EOPNOTSUPP, f"{name} in memory: give the file behind it")
        encl.give_backing(
            memory_backing(encl.stores, encl.base, encl.size, ranges, task, kill_on_error)
        )
    else:
        encl.give_backing(_file_backing(encl, ranges, flags, task))


def _ranges(wanted: EnclaveSetBacking, size: int) -> list[Range]:
    """Return the one range or the two that a store consists of; none in a mode without."""
    mode = wanted.flags & BACKING_MODE
    separate = bool(wanted.flags & BACKING_SEPARATE)
    contents = Range("contents", wanted.contents, wanted.contents_len, wanted.contents_fd)
    pcmds = Range("pcmd", wanted.pcmd, wanted.pcmd_len, wanted.pcmd_fd)
    ranges = [contents, pcmds][: 0 if mode in {BACKING_KERNEL, BACKING_NONE} else 1 + separate]
    for name, start, length, _ in (contents, pcmds)[len(ranges) :]:
        if start or length:
            raise DriverError(errno.EINVAL, f"{name} and {name}_len are not used and must be 0")
    for name, _, _, fd in (contents, pcmds)[0 if mode == BACKING_VMA else len(ranges) :]:
        if fd != -1:
            raise DriverError(errno.EINVAL, f"{name}_fd {fd} is not used and must be -1")
    needed = [contents_size(size), pcmds_size(size)] if separate else [store_size(size)]
    for name, start, length, _ in ranges:
        if start % PAGE_SIZE or length % PAGE_SIZE:
            raise Misaligned(errno.EINVAL, f"{name} {start:#x}+{length:#x} is not page aligned")
        if start + length > _FILE_SIZE_MAX:
            raise DriverError(errno.EINVAL, f"{name} {start:#x}+{length:#x} is beyond 2^63")
    for (name, _, length, _), least in zip(ranges, needed, strict=False):
        if length < least:
            raise DriverError(
                errno.ENOSPC,
                f"{name}_len is {length:#x}; {least:#x} bytes are needed, in whole pages",
            )
    if separate and contents.fd == pcmds.fd:
        _check_apart(*ranges)
    return ranges


def _check_apart(one: Range, other: Range) -> None:
    if one.start < other.start + other.length and other.start < one.start + one.length:
        raise DriverError(errno.EINVAL, "the contents' place and the PCMDs' overlap")


def _store(
    extents: Sequence[Extent], size: int, kill_on_error: bool, released: Callable[[], None]
) -> ExtentBacking:
    pcmds_at = contents_size(size) if len(extents) == 1 else 0
    return ExtentBacking(
        extents[0], extents[-1], pcmds_at, kill_on_error=kill_on_error, released=released
    )


# -- memory of the program ----------------------------------------------------------------------


def memory_backing(
    stores: Stores, base: int, size: int, ranges: list[Range], task: "Task", kill_on_error: bool
) -> Backing:
    """Return a store in the caller's memory for an enclave at ``base``; DriverError where there can be none."""
    for name, start, length, _ in ranges:
        if start < base + size and base < start + length:
            raise DriverError(
                errno.EINVAL, f"{name} {start:#x}+{length:#x} is in the enclave's range"
            )
    with ExitStack() as undo:
        stretches: list[Stretch] = []
        extents: list[MemoryExtent] = []
        for name, start, length, _ in ranges:
            try:
                memory = task.store_memory(start, length)
            except Fault as fault:
                raise DriverError(
                    errno.EFAULT, f"{name} {start:#x}+{length:#x} cannot be a store: {fault}"
                ) from fault
            undo.callback(memory.close)
            stretches += memory.stretches
            extents.append(MemoryExtent(memory, start))
        released = stores.claim(stretches)
        undo.callback(released)
        backing = bounded(_store(extents, size, kill_on_error, released), stores.tell)
        undo.pop_all()
        return backing


def create_backing(encl: "Encl", secs: Secs, address: int, task: "Task") -> Backing:
    """Return the store that CREATE's ``backing`` names, for the enclave that the SECS will make: 0 is none."""
    if not address:
        return NoBacking()
    if secs.size.bit_count() != 1 or secs.size > _FILE_SIZE_MAX >> 1:
        raise DriverError(
            errno.EINVAL, f"SECS.SIZE {secs.size:#x} is not a power of two, or too large"
        )
    if address % PAGE_SIZE:
        raise Misaligned(errno.EINVAL, f"backing {address:#x} is not page aligned")
    length = -(-store_size(secs.size) // PAGE_SIZE) * PAGE_SIZE
    store = Range("backing", address, length, -1)
    return memory_backing(encl.stores, secs.baseaddr, secs.size, [store], task, False)


# -- files ----------------------------------------------------------------------------------------


def _file_backing(encl: "Encl", ranges: list[Range], flags: int, task: "Task") -> Backing:
    stores = encl.stores
    with ExitStack() as undo:
        # Even to look at a file may take until somebody answers.
        worker = Worker(stores.tell)
        undo.callback(worker.end, bool)
        opened: list[_Opened] = []
        for wanted in ranges:
            fd = _descriptor(wanted, task)
            try:
                file = worker.ask(partial(_open_file, fd, wanted, flags), _close_late)
            except BackingStalled as stalled:
                raise DriverError(
                    errno.EAGAIN, f"{wanted.name}_fd {wanted.fd}: {stalled}"
                ) from stalled
            undo.callback(worker.post, file.extent.close)
            opened.append(file)
        for (name, start, length, _), file in zip(ranges, opened, strict=True):
            if start + length > file.size:
                raise DriverError(
                    errno.ENOSPC,
                    f"{name}_fd: the file has {file.size:#x} bytes, wanted are "
                    f"{length:#x} from {start:#x} on",
                )
        if len(opened) == 2 and opened[0].place == opened[1].place:
            _check_apart(*ranges)
        released = stores.claim(
            [
                Stretch(file.place, start, start + length)
                for (_, start, length, _), file in zip(ranges, opened, strict=True)
            ]
        )
        undo.pop_all()
    store = _store(
        [file.extent for file in opened], encl.size, bool(flags & BACKING_KILL_ON_ERROR), released
    )
    if store.waits:
        return BoundedBacking(store, worker)
    worker.end(bool)
    return store


def _descriptor(wanted: Range, task: "Task") -> int:
    try:
        fd = task.descriptor(wanted.fd)
    except OSError as error:
        raise DriverError(errno.EBADF, f"{wanted.name}_fd {wanted.fd} is no open file") from error
    if task.file(wanted.fd) is not None:
        os.close(fd)
        raise DriverError(errno.EOPNOTSUPP, f"{wanted.name}_fd {wanted.fd} is a device node")
    return fd


def _open_file(fd: int, wanted: Range, flags: int) -> _Opened:
    """Make an extent of a file that the program has open; its copy of the descriptor is used up."""
    name = f"{wanted.name}_fd {wanted.fd}"
    try:
        status_flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        status = os.fstat(fd)
        _check_file(fd, status_flags, status.st_mode, name)
        fd = _own_description(fd, status_flags, name)
        if flags & BACKING_SYNC:
            _check_synchronous(fd, wanted.start, name)
        extent = FileExtent(
            fd,
            wanted.start,
            wanted.length,
            punches=bool(flags & BACKING_PUNCH),
            durable=bool(flags & BACKING_SYNC),
        )
    except BaseException:
        os.close(fd)
        raise
    return _Opened(extent, (status.st_dev, status.st_ino), status.st_size)


def _check_file(fd: int, status_flags: int, mode: int, name: str) -> None:
    if status_flags & _O_PATH:
        raise DriverError(errno.EBADF, f"{name} is open as a path only")
    if status_flags & os.O_ACCMODE != os.O_RDWR or _sealed(fd):
        raise DriverError(errno.EACCES, f"{name} is not open for reading and writing")
    if not stat.S_ISREG(mode):
        raise DriverError(
            errno.EOPNOTSUPP, f"{name} is no regular file; of a DAX device, give a file on it"
        )


def _close_late(job: Job[_Opened]) -> None:
    if job.result is not None:
        job.result.extent.close()


def _sealed(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, _F_GET_SEALS) & (_F_SEAL_WRITE | _F_SEAL_FUTURE_WRITE))
    except OSError:
        return False  # no memfd


def _own_description(fd: int, status_flags: int, name: str) -> int:
    """Open the file anew, so that F_SETFL of the program changes nothing here; ``fd`` where that is refused."""
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if status_flags & (os.O_APPEND | os.O_DIRECT):
            raise DriverError(
                errno.EINVAL,
                f"{name} is open with O_APPEND or O_DIRECT, and cannot be without: {error}",
            ) from error
        return fd
    os.close(fd)
    return own


def _check_synchronous(fd: int, start: int, name: str) -> None:
    """See that the file can be mapped with MAP_SYNC, as on the DAX file system of an NVDIMM."""
    at = _libc.mmap(None, PAGE_SIZE, _PROT_READ_WRITE, _MAP_SHARED_VALIDATE | _MAP_SYNC, fd, start)
    if at == _MAP_FAILED:
        raise DriverError(
            errno.EOPNOTSUPP,
            f"{name} cannot be mapped with MAP_SYNC ({os.strerror(ctypes.get_errno())}): SYNC needs a "
            "file on a DAX file system",
        )
    _libc.munmap(at, PAGE_SIZE)
