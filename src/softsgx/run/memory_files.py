# SPDX-License-Identifier: Apache-2.0
"""A program's descriptor of /proc/PID/mem: of enclave memory it gives what the kernel gives a debugger.

Owns nothing. The supervisor opens such a file for the program, and so knows its number; a filter on that
number then stops the reads and writes. What touches no enclave goes on to the kernel.

Source: fs/proc/base.c (mem_rw), arch/x86/kernel/cpu/sgx/encl.c (sgx_vma_access).
"""

import errno
import os
import struct

from softsgx.errors import Fault
from softsgx.run import bpf, ptrace
from softsgx.run import numbers as n
from softsgx.run.gdb_memory import read_memory, write_memory
from softsgx.run.ptrace import failed
from softsgx.run.user_memory import ProgramMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.notification import Listener, Notification
    from softsgx.run.observe import Observer
    from softsgx.run.tracee import Process, Tracee

_SEEK_SET = 0
_FILTER, _TSYNC = 1, 1  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
_AT_ONCE = 1 << 20
_IOVEC = struct.Struct("<QQ")
_VECTORS = frozenset(
    (
        n.SYS_READV,
        n.SYS_WRITEV,
        n.SYS_PREADV,
        n.SYS_PWRITEV,
        n.SYS_PREADV2,
        n.SYS_PWRITEV2,
    )
)
_READS = frozenset((n.SYS_READ, n.SYS_PREAD64, n.SYS_READV, n.SYS_PREADV, n.SYS_PREADV2))
_AT_POSITION = frozenset((n.SYS_READ, n.SYS_WRITE, n.SYS_READV, n.SYS_WRITEV))
# These too, if the offset is -1.
_OR_AT_POSITION = frozenset((n.SYS_PREADV2, n.SYS_PWRITEV2))
_MINUS_ONE = (1 << 64) - 1
_OPENS = (n.SYS_OPEN, n.SYS_OPENAT)


def target_of(path: bytes, tracee: "Tracee", tracees: "dict[int, Tracee]") -> "Process | None":
    """Give the process with enclaves whose memory a path names: /proc/PID/mem, or as a thread of it."""
    words = path.split(b"/")
    if words[:2] != [b"", b"proc"] or words[-1] != b"mem":
        return None
    match words[2:-1]:
        case [b"self" | b"thread-self"]:
            found: Tracee | None = tracee
        case [who] | [_, b"task", who] if who.isdigit():
            found = tracees.get(int(who))
        case _:
            return None
    if found is None or found.mm.enclaves is None or not len(found.mm.enclaves):
        return None
    return found.process


def open_memory(
    listener: "Listener", call: "Notification", tracee: "Tracee", target: "Process"
) -> bool:
    """Answer the open of a process's memory; False where the kernel is to judge it.

    The thread is stopped where its open returns, for the filter.
    """
    if call.number not in _OPENS:
        return False
    flags = call.args[1 if call.number == n.SYS_OPEN else 2]
    try:
        if os.stat(f"/proc/{target.pid}").st_uid != os.stat(f"/proc/{tracee.tid}").st_uid:
            return False
        fd = os.open(f"/proc/{target.pid}/mem", flags & os.O_ACCMODE | os.O_CLOEXEC)
    except OSError as error:
        listener.answer(call, -(error.errno or errno.EACCES))
        return True
    ptrace.interrupt(tracee.tid)
    tracee.must_guard = listener.give(call, fd, flags & n.O_CLOEXEC)
    os.close(fd)
    return True


def guard(tracee: "Tracee", observer: "Observer") -> None:
    """Stop the reads and writes of a descriptor from now on; the thread stands where its open returns."""
    number, tracee.must_guard = tracee.must_guard, -1
    process = tracee.process
    if number in process.guarded:
        if tracee.must_stop:
            # This stop may have been for more than the filter.
            ptrace.interrupt(tracee.tid)
        tracee.go_on()
        return
    result = tracee.load_regs().rax
    program = bpf.memory_filter(number)
    with tracee.injecting() as injector, tracee.mm.scratch_for(program) as at:
        header = struct.pack("<HxxxxxxQ", len(program) // 8, at)
        with tracee.mm.scratch_for(header) as fprog:
            refused = injector.call(n.SYS_SECCOMP, _FILTER, _TSYNC, fprog)
            if not refused:
                process.guarded.add(number)
            else:
                refused = injector.call(n.SYS_SECCOMP, _FILTER, 0, fprog)
    if refused:
        observer.warn_once(
            "mem",
            f"process {process.pid} has opened the memory of a process with enclaves, and its own "
            f"sandbox forbids the filter that would hide them ({os.strerror(failed(refused))})",
        )
    tracee.finish_call(result)


def read_or_write(tracee: "Tracee", tracees: "dict[int, Tracee]") -> None:
    """Carry out a read or write of a guarded descriptor."""
    regs = tracee.regs
    number, fd = regs.orig_rax, regs.rdi & 0xFFFFFFFF
    target = _target(tracee, tracees, fd)
    if target is None:
        tracee.go_on()
        return
    place, size = regs.rsi, regs.rdx
    if number in _VECTORS:
        place, size = _first_vector(tracee, place, size)
    position, mode = _open_file(tracee, fd)
    moves = number in _AT_POSITION or (number in _OR_AT_POSITION and regs.r10 == _MINUS_ONE)
    at = position if moves else regs.r10
    size = min(size, _AT_ONCE)
    enclaves = target.mm.enclaves
    reads = number in _READS
    if (
        enclaves is None
        or mode == (os.O_WRONLY if reads else os.O_RDONLY)
        or not enclaves.overlapping(at, at + size)
    ):
        tracee.go_on()
        return
    result = _transfer(tracee, target, reads, at, place, size)
    if result > 0 and moves:
        with tracee.injecting() as injector:
            injector.call(n.SYS_LSEEK, fd, at + result, _SEEK_SET)
    tracee.finish_call(result)


def _transfer(
    tracee: "Tracee", target: "Process", reads: bool, at: int, place: int, size: int
) -> int:
    try:
        with ProgramMemory(tracee).user_access() as window:
            if reads:
                data = read_memory(target.mm, at, size)
                window.write(place, data)
            else:
                data = window.read(place, size)
                write_memory(target.mm, at, data)
    except Fault:
        return -errno.EFAULT
    except OSError:
        # access_remote_vm() has moved nothing.
        return -errno.EIO
    return len(data)


def _target(tracee: "Tracee", tracees: "dict[int, Tracee]", fd: int) -> "Process | None":
    # The number may have another meaning by now.
    try:
        path = os.readlink(f"/proc/{tracee.tid}/fd/{fd}")
    except OSError:
        return None
    return target_of(os.fsencode(path), tracee, tracees)


def _first_vector(tracee: "Tracee", iovec: int, count: int) -> tuple[int, int]:
    vectors = tracee.mm.read(iovec, min(count, 1024) * _IOVEC.size)
    for base, length in _IOVEC.iter_unpack(vectors[: len(vectors) & -_IOVEC.size]):
        if length:
            return base, length
    return 0, 0


def _open_file(tracee: "Tracee", fd: int) -> tuple[int, int]:
    """Give position and access mode."""
    try:
        with open(f"/proc/{tracee.tid}/fdinfo/{fd}", "rb") as info:
            told = dict(line.split()[:2] for line in info)
    except OSError:
        return 0, os.O_RDWR
    return int(told[b"pos:"]), int(told[b"flags:"], 8) & os.O_ACCMODE
