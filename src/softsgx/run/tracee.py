# SPDX-License-Identifier: Apache-2.0
"""A traced thread, the process that it belongs to, and injected calls.

Owns the recorded actions of the five fault signals. All of it is touched by the
supervisor's one thread only; a handler that waits for its thread's next stop is switched out.
"""

import os
import struct

from greenlet import greenlet

from softsgx.arch.attributes import TCS_DBGOPTIN
from softsgx.run import numbers as n
from softsgx.run import ptrace
from softsgx.run.bpf import INJECTION_DONE
from softsgx.run.mm import Mm, Refused
from softsgx.run.ptrace import TraceeGone, UserRegs
from softsgx.run.signals import SIG_IGN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from softsgx.cpu.processor import LogicalProcessor
    from softsgx.driver.encl import Encl
    from softsgx.run.debugger import Debugger
    from softsgx.run.revoke import Revocation, Zap

GROUP_STOPS = (n.SIGSTOP, 20, 21, 22)  # SIGTSTP, SIGTTIN, SIGTTOU
_SA_RESETHAND = 0x80000000
_SA_NODEFER = 0x40000000
_SYSCALL_STOP = n.SIGTRAP | 0x80
# What an injected open asks for; the supervisor answers it with the descriptor that is lent.
LENT_PATH = "/softsgx/lent"
# The wait status of a pause, which no stop has.
WAKE = 0x7F7F
NO_SYSCALL = 0xFFFFFFFFFFFFFFFF
_ALL_SIGNALS = 0xFFFFFFFFFFFFFFFF
_DIRECTION_AND_TRAP = 0x400 | 0x100


class Process:
    """A thread group: what its threads share beside memory."""

    def __init__(self, pid: int, mm: Mm, actions: dict[int, bytes]) -> None:
        self.pid = pid
        self.mm = mm
        mm.users += 1
        self.threads = 0
        # struct kernel_sigaction of each fault signal that the program has set; else default.
        self.actions = actions
        self.filtered = False  # the second filter is in place
        # Descriptors whose reads and writes a filter stops, for good: the kernel takes no filter away.
        self.guarded: set[int] = set()
        self.interrupted = False  # a thread of it has been stopped to put the filter in place
        self.debugger: Debugger | None = None
        self.beside: Debugger | None = (
            None  # that of a process whose memory, or enclaves, it shares
        )

    def fork(self, pid: int, mm: Mm) -> "Process":
        """Make the child's record."""
        child = Process(pid, mm, dict(self.actions))
        child.filtered = self.filtered
        child.guarded = set(self.guarded)
        child.beside = self.debugger or self.beside
        return child

    def record_action(self, signal_number: int, action: bytes) -> None:
        """Record what the program has set for a fault signal."""
        if handler_of(action):
            self.actions[signal_number] = action
        else:
            self.actions.pop(signal_number, None)

    def spend_handler(self, signal_number: int) -> None:
        """Record that a signal is delivered: an SA_RESETHAND handler is good for one only."""
        action = self.actions.get(signal_number)
        if action is not None and handler_of(action) != SIG_IGN:
            flags = struct.unpack_from("<Q", action, 8)[0]
            if flags & _SA_RESETHAND:
                del self.actions[signal_number]

    def exec(self) -> None:
        """Take a new address space: handlers go, what is ignored stays ignored."""
        old = self.mm
        self.mm = Mm(self.pid)
        self.mm.users = 1
        old.drop()
        self.actions = {s: a for s, a in self.actions.items() if handler_of(a) == SIG_IGN}


# struct kernel_sigaction of an ignored signal.
IGNORE = struct.pack("<QQQQ", SIG_IGN, 0, 0, 0)


def handler_of(action: bytes | None) -> int:
    """Give the handler of a struct kernel_sigaction (0 default, 1 ignore)."""
    return struct.unpack_from("<Q", action)[0] if action else 0


def kernel_action(signal_number: int, action: bytes) -> bytes:
    """Give the struct kernel_sigaction that the kernel has for one that the program sets.

    ENCLU is a forced SIGILL. Were SIGILL blocked while its handler runs, as runtimes that enter
    from the handler have it, that ENCLU would reset the action of the whole process for a moment,
    in which the SIGILL of another thread would find none.
    """
    handler, flags, restorer, mask = struct.unpack("<QQQQ", action)
    if signal_number != n.SIGILL or handler <= SIG_IGN:
        return action
    mask &= ~(1 << (n.SIGILL - 1))
    return struct.pack("<QQQQ", handler, flags | _SA_NODEFER, restorer, mask)


class Tracee:
    """One thread. Its life runs in a greenlet of its own; `wait` gives the others their turn."""

    def __init__(
        self,
        tid: int,
        process: Process,
        life: "Callable[[Tracee, int], None]",
        hub: greenlet,
        ready: list[tuple[int, int]] | None = None,
    ) -> None:
        self.tid = tid
        self.process = process
        process.threads += 1
        self.regs = UserRegs()
        self.lp: LogicalProcessor | None = None
        self.sigmask: int | None = None  # the program's own mask while fault signals are unblocked
        self.checked_mask: int | None = None
        self.fault_reset = 0  # fault signals whose action the kernel's forced delivery has reset
        self.awaited_by: Tracee | None = None  # the thread whose vfork ends at its exec or exit
        self.must_filter = False  # at its next stop the second filter goes in
        self.must_guard = -1  # at its next stop a filter for this descriptor goes in
        self.must_open = False  # at its first stop its memory must be opened
        self.must_watch = False  # at its first stop its mappings must be watched
        self.revocations: list[Revocation | Zap] = []  # at its next stop mappings must change
        # The address at which it slept when it was interrupted, until its next stop.
        self.fault: int | None = None
        self.must_exit = False  # at its next stop it leaves its enclave, if it is inside
        self.steps = 0  # instructions until it leaves its enclave, which it executes one by one
        self.halted = False  # the debugger wants it to stand at its next stop
        self.stepping = False  # it is to execute one instruction for the debugger
        self.within: Encl | None = None  # the enclave that it keeps open to its process
        self.held: list[tuple[int, bytes]] = []  # signals that it blocks, sent while it was inside
        self.record_slot = -1
        # Of transitions that do not trap (fast_path): the bases by which it is found, who else may have
        # them, whether its system calls are dispatched, and how often it had entered so at its last trap.
        self.bases: tuple[int, int] | None = None
        self.rivals: set[Tracee] = set()
        self.dispatched = False
        self.entered_before = 0
        self.site_watched: dict[int, tuple[int, int]] = {}  # by leaf, a MOV and its ENCLU
        self.watched: object = None  # the enclave whose CPUID instructions stop the thread
        self.cpuid_watched: tuple[int, ...] = ()  # where they are
        # The debugger's own: address, and R/W with LEN as DR7 has them.
        self.hardware: tuple[tuple[int, int], ...] = ()
        # Its last stop was an ENCLU, a CPUID, or a page that was out: it will stop again at once.
        self.trapped = False
        self.borrowing = False  # the thread carries out a call for us
        self.lent = -1  # the supervisor's descriptor that a call of ours asks for
        self.replaced = False  # and an exec came in between, whose stop is still to be handled
        self.retried = (
            0,
            0,
            0,
        )  # instruction, address and generation of the last fault passed over
        self.borrowed = False  # an injected call has ended the signal-delivery stop
        self.ended = False
        self.status = 0
        # A thread is often met first in another one's greenlet, which must not be its parent.
        self._hub = hub
        self._ready = ready if ready is not None else []
        self._pausing = False
        self.greenlet = greenlet(lambda status: life(self, status), hub)

    @property
    def mm(self) -> Mm:
        """The address space of the thread's process."""
        return self.process.mm

    @property
    def inside(self) -> bool:
        """Whether the thread is in enclave mode."""
        return self.lp is not None and self.lp.inside

    @property
    def may_step(self) -> bool:
        """Whether the next instruction is one of those to be stepped: an enclave that has not opted in has none."""
        return self.stepping and not self.opted_out

    @property
    def opted_out(self) -> bool:
        """Whether it is inside an enclave of which a debugger is shown nothing: DBGOPTIN is not set."""
        if self.lp is None or self.lp.thread is None:
            return False
        return not self.lp.thread.flags & TCS_DBGOPTIN

    def watch(self) -> bool:
        """Put in the debug registers what is to stop the thread; the debugger's comes first. False if none can be had."""
        own = (*self.cpuid_watched, *(move for move, _ in self.site_watched.values()))
        places = (*self.hardware, *((address, ptrace.ON_EXECUTION) for address in own))
        return ptrace.watch(self.tid, places[: ptrace.WATCHABLE])

    @property
    def must_stop(self) -> bool:
        """Whether something is asked of it, for which a stop may have been passed over."""
        return bool(self.revocations) or self.halted

    @property
    def gone(self) -> bool:
        """Whether the stopped thread was killed, or another one's exec has taken its memory."""
        try:
            ptrace.get_sigmask(self.tid)
        except TraceeGone:
            return True
        return self.mm.gone

    def wait(self) -> int:
        """Wait for the thread's next stop or its end; give the wait status."""
        status: int = self._hub.switch()
        while status == WAKE and not self._pausing:
            # Asked for by who had this id before.
            status = self._hub.switch()
        self.status = status
        if not os.WIFSTOPPED(status):
            self.ended = True
        if self.borrowing and (self.ended or status >> 16 == ptrace.EVENT_EXEC):
            # Killed; or another thread's exec has taken over this one's id and ended the rest.
            self.borrowing = False
            self.replaced = not self.ended
            raise TraceeGone
        return status

    def pause(self) -> None:
        """Give the others a turn while the thread stands at its stop."""
        self.wake()
        self.stand()

    def wake(self) -> None:
        """Let a thread that stands have its turn soon."""
        self._ready.append((self.tid, WAKE))

    def stand(self) -> None:
        """Give the others their turns until the thread is woken."""
        borrowing, self.borrowing = self.borrowing, True
        self._pausing = True
        try:
            self.wait()
        finally:
            self.borrowing, self._pausing = borrowing, False

    def load_regs(self) -> UserRegs:
        """Read the registers at a stop."""
        ptrace.get_regs(self.tid, self.regs)
        return self.regs

    def store_regs(self) -> None:
        """Write the registers at a stop."""
        try:
            ptrace.set_regs(self.tid, self.regs)
        except OSError as error:
            # By an SSA frame, or a record, that somebody has written.
            raise Refused(
                f"process {self.process.pid}: thread {self.tid} would have registers that no program can "
                f"have (FS base {self.regs.fsbase:#x}, GS base {self.regs.gsbase:#x})"
            ) from error

    def go_on(self, signal: int = 0) -> None:
        """Let the thread run on as its mode wants it: inside, the kernel carries out no call."""
        if self.stepping and self.may_step:
            step = ptrace.step_without_calls if self.inside else ptrace.step
            step(self.tid, signal)
        elif self.inside and not self.dispatched:
            go_on = ptrace.step_without_calls if self.steps else ptrace.cont_without_calls
            go_on(self.tid, signal)
        else:
            ptrace.cont(self.tid, signal)

    def go_to_signal(self, signal: int) -> None:
        """Let the thread run into the delivery stop of a signal that was just sent to it."""
        self.borrowing = True
        stopped, passed_on = False, 0
        while True:
            ptrace.cont(self.tid, passed_on)
            passed_on = 0
            status = self.wait()
            event, number = status >> 16, (status >> 8) & 0xFF
            if not event and number == signal:
                break
            if event == ptrace.EVENT_STOP:
                stopped = number in GROUP_STOPS
            elif not event and number == n.SIGSTOP:
                passed_on = number
        self.borrowing = False
        if stopped or self.must_stop:
            ptrace.interrupt(self.tid)

    def run_to_exit(self) -> int:
        """Let the system call at a seccomp stop run to its exit stop; give its result."""
        self.store_regs()
        self.borrowing = True
        try:
            while True:
                ptrace.cont_to_syscall(self.tid)
                status = self.wait()
                if (status >> 8) & 0xFF == _SYSCALL_STOP and not status >> 16:
                    break
        finally:
            self.borrowing = False
        if self.must_stop:
            ptrace.interrupt(self.tid)
        result = self.load_regs().rax
        self.regs.orig_rax = NO_SYSCALL
        return result

    def finish_call(self, result: int) -> None:
        """At a seccomp stop: skip the system call and return `result` from it."""
        self.regs.rax = result & NO_SYSCALL
        self.regs.orig_rax = NO_SYSCALL
        ptrace.set_regs(self.tid, self.regs)
        self.go_on()

    def injecting(self) -> "Injector":
        """Borrow the stopped thread for system calls of ours.

        On exit mask and registers are as they were, and the thread stands in a seccomp stop: a
        signal can no longer be delivered from it, but the interrupted call can be carried out.
        """
        return Injector(self)


class Injector:
    """System calls carried out by a borrowed thread."""

    def __init__(self, tracee: Tracee) -> None:
        self._tracee = tracee
        self._mask = 0
        self._regs = tracee.regs.copy()
        self._regs.orig_rax = NO_SYSCALL
        self._regs.rflags &= ~_DIRECTION_AND_TRAP
        self._regs.r13 = INJECTION_DONE
        self._used = False
        self._stopped = False  # a group stop came meanwhile

    def __enter__(self) -> "Self":
        tid = self._tracee.tid
        self._mask = ptrace.get_sigmask(tid)
        ptrace.set_sigmask(tid, _ALL_SIGNALS)
        self._tracee.borrowing = True
        return self

    def __exit__(self, *_: object) -> None:
        tracee = self._tracee
        tracee.borrowing = False
        if not tracee.ended and not tracee.replaced:
            ptrace.set_sigmask(tracee.tid, self._mask)
            if self._used:
                ptrace.set_regs(tracee.tid, tracee.regs)
            if self._stopped or tracee.must_stop:
                # It joins the stop that it ran on in, unless SIGCONT has ended that; or what it was
                # interrupted for is still to be done.
                ptrace.interrupt(tracee.tid)

    def pause(self) -> None:
        """Give the others a turn while the thread is borrowed."""
        self._tracee.pause()

    def lend(self, fd: int) -> int:
        """Give the program a copy of our descriptor, to be closed soon; its number or an errno."""
        tracee = self._tracee
        tracee.lent = fd
        with tracee.mm.scratch_for(LENT_PATH.encode() + b"\0") as path:
            number = self.call(n.SYS_OPENAT, n.AT_FDCWD, path, os.O_RDWR | n.O_CLOEXEC)
        tracee.lent = -1
        return number

    def call(self, syscall: int, *args: int) -> int:
        """Carry out one call and give what it returned, as an unsigned 64-bit number."""
        tracee = self._tracee
        regs = self._regs
        regs.rbx = syscall
        padded = (*args, 0, 0, 0, 0, 0, 0)
        regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9 = (
            a & NO_SYSCALL for a in padded[:6]
        )
        regs.rip = tracee.mm.gadget
        ptrace.set_regs(tracee.tid, regs)
        self._used = True
        seen = UserRegs()
        passed_on = 0
        while True:
            ptrace.cont(tracee.tid, passed_on)
            passed_on = 0
            status = tracee.wait()
            event, number = status >> 16, (status >> 8) & 0xFF
            if event == ptrace.EVENT_SECCOMP:
                ptrace.get_regs(tracee.tid, seen)
                if seen.orig_rax == n.SYS_RT_SIGRETURN and seen.rdi == INJECTION_DONE:
                    return seen.r12
                # the injected call is itself one that the filters trace: let it pass
            elif event == ptrace.EVENT_STOP:
                # A group stop; or, told as SIGTRAP, the SIGCONT that ends it.
                self._stopped = number in GROUP_STOPS
            elif not event and number == n.SIGSTOP:
                passed_on = number  # it cannot be blocked; the group stop comes next
            elif not event:
                raise Refused(
                    f"process {tracee.process.pid} cannot be made to carry out system call "
                    f"{syscall} (signal {number}): does its own seccomp filter forbid it?"
                )
