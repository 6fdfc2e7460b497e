# SPDX-License-Identifier: Apache-2.0
"""Calls by which a program acts on a process, its own or another: its signals, its memory, making and tracing it.

Owns nothing; works on a thread that stands in the call.
"""

import errno
import os
import struct

from softsgx.run import bpf
from softsgx.run import numbers as n
from softsgx.run.sigaction import sigaction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.observe import Observer
    from softsgx.run.tracee import Tracee

_IOVEC = struct.Struct("<QQ")
_IOV_MAX = 1024


def answer(tracee: "Tracee", tracees: "dict[int, Tracee]", observer: "Observer") -> None:
    """Answer a call that a filter has stopped and that concerns no enclave of the thread's own."""
    number = tracee.regs.orig_rax
    if number == n.SYS_RT_SIGACTION:
        sigaction(tracee)
    elif number == n.SYS_PTRACE:
        ptrace(tracee, tracees, observer)
    elif number in (n.SYS_PROCESS_VM_READV, n.SYS_PROCESS_VM_WRITEV):
        process_vm(tracee, tracees)
    elif number in bpf.MEMORY_CALLS:
        from softsgx.run.memory_files import read_or_write  # noqa: PLC0415

        read_or_write(tracee, tracees)
    else:
        tracee.go_on()


def guard(tracee: "Tracee", observer: "Observer") -> None:
    """Put the filter in place for a descriptor of another process's memory."""
    from softsgx.run import memory_files  # noqa: PLC0415

    memory_files.guard(tracee, observer)


def clone_flags(tracee: "Tracee", tid: int) -> int:
    """Give the CLONE_ flags of the call by which the stopped thread made thread `tid`."""
    regs = tracee.load_regs()
    if tracee.mm.gadget and regs.orig_rax == n.SYS_CLONE:
        return regs.rdi
    if tracee.mm.gadget and regs.orig_rax == n.SYS_CLONE3:
        return int.from_bytes(tracee.mm.read(regs.rdi, 8), "little")
    if tracee.mm.gadget and regs.orig_rax == n.SYS_VFORK:
        return n.CLONE_VM
    # A 32-bit or unreadable program, which has nothing of ours: a thread, or not.
    known = os.path.exists(f"/proc/{tracee.process.pid}/task/{tid}")
    return n.CLONE_THREAD | n.CLONE_VM if known else 0


def ptrace(tracee: "Tracee", tracees: "dict[int, Tracee]", observer: "Observer") -> None:
    """Answer a call that would trace a program of the run."""
    # The kernel would refuse it too: a thread has one tracer. But it would not say why.
    regs = tracee.regs
    if regs.rdi & 0xFFFFFFFF != n.PTRACE_TRACEME and regs.rsi not in tracees:
        tracee.go_on()
        return
    observer.warn_once(
        "ptrace",
        f"process {tracee.process.pid} wants to trace a program of this run, as debuggers and "
        "strace do: EPERM, for each has one tracer, which is softsgx; `softsgx run --gdb` "
        "lets gdb debug it, and `--trace` tells what concerns SGX",
    )
    tracee.finish_call(-errno.EPERM)


def process_vm(tracee: "Tracee", tracees: "dict[int, Tracee]") -> None:
    """Carry out process_vm_readv or process_vm_writev: a mapping of EPC is VM_IO, which it refuses.

    As the kernel does, up to the first piece that it cannot have (mm/process_vm_access.c).
    """
    regs = tracee.regs
    target = tracees.get(regs.rdi)
    enclaves = target.mm.enclaves if target is not None else None
    if enclaves is None or not len(enclaves) or not _same_pids(tracee):
        tracee.go_on()
        return
    pieces = tracee.mm.read(regs.r10, min(regs.r8, _IOV_MAX) * _IOVEC.size)
    before, length = 0, 0
    for start, size in _IOVEC.iter_unpack(pieces[: len(pieces) & -_IOVEC.size]):
        if enclaves.overlapping(start, start + size):
            break
        before, length = before + 1, length + size
    else:
        tracee.go_on()
        return
    if not length:
        tracee.finish_call(-errno.EFAULT)
        return
    asked, regs.r8 = regs.r8, before
    result = tracee.run_to_exit()
    regs.r8 = asked
    tracee.finish_call(result)


def _same_pids(tracee: "Tracee") -> bool:
    # In a PID namespace of its own a number means another process.
    try:
        return os.stat(f"/proc/{tracee.tid}/ns/pid").st_ino == os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return False
