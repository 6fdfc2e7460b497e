# SPDX-License-Identifier: Apache-2.0
"""How a thread goes on from a signal-delivery stop, with what the kernel's forced delivery took.

Owns nothing; works on the stopped thread. The kernel forces the signal of a fault: where the program
had blocked or ignored it, mask and action are reset before the stop is seen, and they are put back
here, so that the program never notices.

Source: kernel/signal.c (force_sig_info_to_task, get_signal).
"""

import struct

from softsgx.run import numbers as n
from softsgx.run import ptrace
from softsgx.run.tracee import GROUP_STOPS, Tracee, handler_of, kernel_action

SIG_IGN = 1
_IGNORED_BY_DEFAULT = (17, 18, 23, 28)  # SIGCHLD, SIGCONT, SIGURG, SIGWINCH
SI_KERNEL = 0x80
TRAP_HWBKPT = 4
BUS_ADRERR = 2
_ALL = (1 << 64) - 1
_SIGSTKFLT = 16  # nobody sends it
_SIGCONT = 18
SIGINFO_HEAD = struct.Struct("<iii4xQ")  # si_signo, si_errno, si_code, si_addr


def bit(signal: int) -> int:
    """Give a signal's bit in a mask."""
    return 1 << (signal - 1)


def siginfo(signal: int, code: int, address: int) -> bytes:
    """Make the siginfo of a fault."""
    return SIGINFO_HEAD.pack(signal, 0, code, address).ljust(ptrace.SIGINFO_SIZE, b"\0")


def unforce(tracee: Tracee, signal: int) -> None:
    """Undo what the kernel's forced delivery of `signal` did to mask and action.

    The mask after it cannot tell whether the signal was blocked before. A handler that is
    gone tells; without one only a mask in which the other fault signals are all blocked,
    looked at again whenever the rest of the mask has changed.
    """
    mask = ptrace.get_sigmask(tracee.tid)
    this = bit(signal)
    handler = handler_of(tracee.process.actions.get(signal))
    before = tracee.checked_mask
    if handler > SIG_IGN:
        blocked = not _caught(tracee, signal)
    elif before is not None and mask | this == before | this:
        blocked = bool(before & this)
    else:
        # Who blocks all faults need not think of SIGSYS.
        others = n.FAULT_MASK & ~this & ~bit(n.SIGSYS)
        blocked = mask & others == others
    tracee.checked_mask = mask | this if blocked else mask
    if blocked:
        ptrace.set_sigmask(tracee.tid, mask | this)
    if handler == SIG_IGN or (blocked and handler):
        tracee.fault_reset |= this
    if tracee.fault_reset:
        # Now, because this stop is ours to end; that of somebody's signal would not be.
        restore_actions(tracee)


def _caught(tracee: Tracee, signal: int) -> bool:
    return _disposed(tracee, signal, b"SigCgt:", otherwise=True)


def _disposed(tracee: Tracee, signal: int, row: bytes, *, otherwise: bool) -> bool:
    with open(f"/proc/{tracee.tid}/status", "rb") as status:
        for line in status:
            if line.startswith(row):
                return bool(int(line.split()[1], 16) & bit(signal))
    return otherwise


def unseen(tracee: Tracee, signal: int) -> bool:
    """Tell whether a signal only stops the process, or does nothing: no handler sees the thread."""
    if _caught(tracee, signal):
        return False
    if signal in GROUP_STOPS or signal in _IGNORED_BY_DEFAULT:
        return True
    return _disposed(tracee, signal, b"SigIgn:", otherwise=False)


def restore_actions(tracee: Tracee) -> None:
    """Put back the actions that forced deliveries have reset."""
    reset, tracee.fault_reset = tracee.fault_reset, 0
    with tracee.injecting() as injector:
        for signal in n.FAULT_SIGNALS:
            action = tracee.process.actions.get(signal)
            if reset & bit(signal) and action is not None:
                with tracee.mm.scratch_for(kernel_action(signal, action)) as at:
                    injector.call(n.SYS_RT_SIGACTION, signal, at, 0, 8)
    tracee.borrowed = True


def resume(tracee: Tracee) -> None:
    """Let the thread go on without the signal, with its registers as they are recorded."""
    tracee.borrowed = False
    tracee.store_regs()
    if tracee.process.debugger is not None:
        tracee.process.debugger.on_carried_out(tracee)
    tracee.go_on()


def deliver(tracee: Tracee, signal: int, info: bytes) -> None:
    """Deliver a signal with the thread's registers as they are recorded."""
    tid = tracee.tid
    mask = ptrace.get_sigmask(tid)
    handler = handler_of(tracee.process.actions.get(signal))
    if SIGINFO_HEAD.unpack_from(info)[2] > 0:
        # kernel/signal.c, force_sig_info_to_task: a fault that is blocked or ignored takes
        # the default action.
        if handler and (mask & bit(signal) or handler == SIG_IGN):
            default = bytes(32)
            with tracee.injecting() as injector, tracee.mm.scratch_for(default) as at:
                injector.call(n.SYS_RT_SIGACTION, signal, at, 0, 8)
            tracee.borrowed = True
        mask &= ~bit(signal)
    tracee.store_regs()
    if tracee.borrowed:
        # An injected call has ended the signal-delivery stop: ask for another one, before
        # the thread's next instruction and before any other signal.
        tracee.borrowed = False
        # SIGCONT by the stop of another: sent again, it would end a stop from after it.
        sent = _SIGSTKFLT if signal == _SIGCONT else signal
        ptrace.set_sigmask(tid, ~bit(sent) & _ALL)
        ptrace.tgkill(tracee.process.pid, tid, sent)
        tracee.go_to_signal(sent)
    ptrace.set_sigmask(tid, mask)
    ptrace.set_siginfo(tid, info)
    pass_on(tracee, signal)


def pass_on(tracee: Tracee, signal: int) -> None:
    """Let the thread have the signal that it stopped for, as it is, or as a debugger wants it."""
    if tracee.process.debugger is not None:
        signal = tracee.process.debugger.on_signal(tracee, signal)
    if signal in n.FAULT_SIGNALS:
        tracee.process.spend_handler(signal)
    tracee.go_on(signal)
