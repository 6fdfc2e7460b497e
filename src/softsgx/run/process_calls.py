# SPDX-License-Identifier: Apache-2.0
"""Calls by which a program acts on another process: making it, tracing it.

Owns nothing; works on a thread that stands in the call.
"""

import errno
import os

from softsgx.run import numbers as n

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.observe import Observer
    from softsgx.run.tracee import Tracee


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
