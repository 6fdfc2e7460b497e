# SPDX-License-Identifier: Apache-2.0
"""The threads of the program that is debugged: which stand at a stop, which run, and why they stopped.

Owns the stop that is to be told when all threads stand. A thread that stands is switched out in its
own greenlet, at whatever stop it came to, so that the rest of the run goes on. All of it happens in
the supervisor's one thread, and nothing here knows who debugs.
"""

import errno
from weakref import WeakKeyDictionary

from softsgx.arch.attributes import ATTRIBUTE_DEBUG
from softsgx.cpu.registers import RFLAGS_TF
from softsgx.run import numbers as n
from softsgx.run import ptrace
from softsgx.run.delivery import SI_KERNEL, SIG_IGN, TRAP_HWBKPT, bit, unforce
from softsgx.run.gdb_memory import DebuggedMemory, opt_in
from softsgx.run.gp_instructions import CPUID
from softsgx.run.ptrace import TraceeGone
from softsgx.run.tracee import Tracee, handler_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from softsgx.driver.encl import Encl
    from softsgx.run.tracee import Process

    class OnEntered(Protocol):
        """Hears of an enclave that is entered for the first time; tells whether to stop there."""

        def __call__(self, encl: str, *, debug: bool) -> bool:
            """Hear of it."""
            ...


_AFTER_CALL = 1  # TRAP_BRKPT, as a step over a system call ends
_STEP_CODES = (_AFTER_CALL, 2)  # TRAP_TRACE
BREAKPOINT, STEPPED, SIGNALLED, EXECUTED, NOBODY, HARDWARE = range(6)


class Stop:
    """Why the program has stopped: at which thread (0 for any), by which signal, at which place of HARDWARE."""

    __slots__ = ("kind", "place", "signal", "tid")

    def __init__(
        self, kind: int, tid: int = 0, signal: int = n.SIGTRAP, place: tuple[int, int] = (0, 0)
    ) -> None:
        self.place = place
        self.kind = kind
        self.tid = tid
        self.signal = signal


class Action:
    """How a thread goes on: with a signal, and for one instruction or while RIP stays in a range."""

    __slots__ = ("signal", "stays_in", "step")

    def __init__(
        self, signal: int = 0, *, step: bool = False, stays_in: range | None = None
    ) -> None:
        self.signal = signal
        self.step = step
        self.stays_in = stays_in


class Standing:
    """What the debugger keeps of one thread."""

    __slots__ = (
        "action",
        "flag_set",
        "lifted",
        "owes_step",
        "signal",
        "stands",
        "step_from",
        "stop",
        "unreported",
    )

    def __init__(self) -> None:
        self.stands = False
        self.stop: Stop | None = None  # not told yet
        self.signal = 0  # it stands where this signal would be delivered
        self.flag_set = False  # TF is set, by us
        self.lifted = 0  # where it passes over a breakpoint that is another process's
        self.owes_step = False  # the SIGTRAP of a step may be on its way
        self.unreported = 0  # a signal that the debugger has sent
        self.action = Action()
        self.step_from = 0


class Debugger:
    """One debugged process; `tracees` is the supervisor's own table.

    `tell` hears why the program has stopped, once for each `resume` or `interrupt`, when every thread stands.
    `on_entered` hears of an enclave's first entry, and says whether to stop there;
    `leave` takes a thread out of its enclave by an AEX.
    """

    def __init__(
        self,
        tracees: dict[int, Tracee],
        tell: "Callable[[Stop], None]",
        on_entered: "OnEntered",
        leave: "Callable[[Tracee], None]",
    ) -> None:
        self._tracees = tracees
        self._tell = tell
        self._on_entered = on_entered
        self._leave = leave
        # EIDs of the enclaves that were entered.
        self._entered: set[int] = set()
        self._standing: WeakKeyDictionary[Tracee, Standing] = WeakKeyDictionary()
        self.process: Process | None = None
        self.memory = DebuggedMemory()
        # Whether anybody waits for a stop.
        self.running = False
        self._next: Stop | None = None
        self.passed: frozenset[int] = frozenset()  # signals that are not worth a stop
        self.stops_at_exec = False
        # Of the debug registers, what is asked for in all threads.
        self._hardware: tuple[tuple[int, int], ...] = ()
        # Threads that are made while it runs run as well.
        self._all_run = False

    # -- threads ----------------------------------------------------------------------------

    def threads(self) -> list[Tracee]:
        """Give the threads of the debugged process."""
        return [t for t in self._tracees.values() if t.process is self.process and not t.ended]

    def thread(self, tid: int) -> Tracee | None:
        """Give the thread with this id, if it is one of them."""
        tracee = self._tracees.get(tid)
        return tracee if tracee is not None and tracee.process is self.process else None

    def of(self, tracee: Tracee) -> Standing:
        """Give what is kept of a thread."""
        it = self._standing.get(tracee)
        if it is None:
            it = self._standing[tracee] = Standing()
        return it

    # -- standing ---------------------------------------------------------------------------

    def stand(self, tracee: Tracee, stop: Stop | None = None, signal: int = 0) -> int:
        """Keep a thread at its stop until it may go on; give the signal that it is to have then."""
        tracee.load_regs()
        it = self.of(tracee)
        self._take_flag_back(tracee)
        # Signals of a thread's own doing come before any other, and all of them behind an interrupt.
        it.owes_step = stop is None and (it.owes_step or tracee.stepping)
        tracee.stepping = False
        tracee.halted = False
        it.stands = True
        it.signal = signal
        self._take_over(tracee)
        it.stop = stop
        if stop is not None and self.running and self._next is None:
            it.stop = None
            self._next = stop
            self._halt()
        elif stop is not None and (
            stop.kind == BREAKPOINT
            or (stop.kind == HARDWARE and stop.place[1] == ptrace.ON_EXECUTION)
        ):
            # It stands before the instruction, and comes to the breakpoint again if that is still there.
            it.stop = None
        self._tell_when_all_stand()
        try:
            tracee.stand()
        finally:
            it.stands = False
        action = it.action
        tracee.stepping = action.step
        it.step_from = tracee.regs.rip
        if not signal and action.signal:
            # From this stop no signal can be delivered.
            it.unreported = action.signal
            ptrace.tgkill(tracee.process.pid, tracee.tid, action.signal)
            return 0
        return action.signal

    def _take_flag_back(self, tracee: Tracee) -> None:
        it = self.of(tracee)
        if it.flag_set:
            it.flag_set = False
            tracee.regs.rflags &= ~RFLAGS_TF
            tracee.store_regs()

    def _halt(self) -> None:
        for tracee in self.threads():
            it = self.of(tracee)
            if not it.stands:
                tracee.halted = True
                try:
                    ptrace.interrupt(tracee.tid)
                except TraceeGone:
                    # It has ended, which is told later; a first thread's end, when all have.
                    tracee.halted = False

    def _tell_when_all_stand(self) -> None:
        threads = self.threads()
        if self._next is None or any(t.halted for t in threads) or not threads:
            return
        stop, self._next = self._next, None
        if not any(t.tid == stop.tid for t in threads):
            stop.tid = next((t.tid for t in threads if self.of(t).stands), threads[0].tid)
        self.running = False
        self._tell(stop)

    def interrupt(self, signal: int) -> None:
        """Stop the program; `signal` is what its stop is told as."""
        self.running = True
        if self._next is None:
            self._next = Stop(SIGNALLED, signal=signal)
        self._halt()
        self._tell_when_all_stand()

    def resume(self, action_of: "Callable[[int], Action | None]") -> None:
        """Let threads go on, those for which there is an action."""
        self.running = True
        self._all_run = action_of(-1) is not None
        standing = [t for t in self.threads() if self.of(t).stands]
        going = [(t, action) for t in standing if (action := action_of(t.tid)) is not None]
        for tracee, _ in going:
            if self.of(tracee).stop is not None:
                self._next, self.of(tracee).stop = self.of(tracee).stop, None
                self._halt()
                self._tell_when_all_stand()
                return
        for tracee, action in going:
            self.of(tracee).action = action
            # It stands until its greenlet has its turn; who asks meanwhile must not wake it again.
            self.of(tracee).stands = False
            tracee.wake()
        if not going:
            self._next = Stop(NOBODY)
            self._tell_when_all_stand()

    def let_go(self) -> None:
        """Let the program run on undebugged, with the signals that its threads stood for."""
        process = self.process
        if process is None:
            return
        self.memory.remove_all(process.mm)
        self._set_hardware(())
        # Threads that run come across what is left of it.
        process.debugger, process.beside = None, self
        self.running = False
        self._next = None
        for tracee in self.threads():
            it = self.of(tracee)
            tracee.halted = False
            it.stop = None
            it.owes_step = it.owes_step or tracee.stepping
            tracee.stepping = False
            if it.stands:
                it.action = Action(it.signal)
                it.stands = False
                tracee.wake()

    def take(self) -> None:
        """Begin to debug the process again; it is to be stopped then."""
        if self.process is not None:
            self.process.debugger, self.process.beside = self, None

    # -- the debug registers ------------------------------------------------------------------

    def watch(self, address: int, kind: int) -> None:
        """Stop threads at a place, by a debug register; OSError where there is none to be had."""
        place = address, kind
        if place in self._hardware:
            return
        process = self.process
        enclaves = process.mm.enclaves if process is not None else None
        vma = enclaves.find(address) if enclaves is not None else None
        if vma is not None:
            opt_in(vma.file.encl)
        if len(self._hardware) == ptrace.WATCHABLE:
            raise OSError(errno.ENOSPC, "all debug registers are in use")
        self._set_hardware((*self._hardware, place))

    def unwatch(self, address: int, kind: int) -> None:
        """Stop there no more."""
        self._set_hardware(tuple(p for p in self._hardware if p != (address, kind)))

    def _set_hardware(self, places: tuple[tuple[int, int], ...]) -> None:
        if places == self._hardware:
            return
        self._hardware = places
        for tracee in self.threads():
            # One that runs takes them over where it stands next.
            if self.of(tracee).stands:
                self._take_over(tracee)

    def _take_over(self, tracee: Tracee) -> None:
        if tracee.hardware != self._hardware:
            tracee.hardware = self._hardware
            tracee.watch()

    def _hit(self, tracee: Tracee) -> tuple[int, int] | None:
        """Give the place that is asked for at which the debug registers have stopped a thread."""
        status = ptrace.take_debug_status(tracee.tid)
        hits = [place for at, place in enumerate(tracee.hardware) if status >> at & 1]
        return next((place for place in hits if place in self._hardware), None)

    # -- what the supervisor tells ------------------------------------------------------------

    def on_exec(self, tracee: Tracee) -> None:
        """Hear that a program's image is ready, before its first instruction."""
        if self.process is None:
            self.process = tracee.process
            tracee.process.debugger = self
            self.stand(tracee)
        elif tracee.process is self.process and tracee.process.debugger is not None:
            self.memory.forget()
            self._hardware = ()
            tracee.stepping = False
            if self.stops_at_exec:
                self.stand(tracee, Stop(EXECUTED, tracee.tid))

    def on_new(self, tracee: Tracee) -> None:
        """Hear of a new thread before it runs."""
        tracee.halted = not self.running or self._next is not None or not self._all_run

    def on_gone(self) -> None:
        """Hear that a thread has ended: others may have waited for it to stand."""
        if self._next is None and self.running:
            threads = self.threads()
            if threads and all(self.of(t).stands for t in threads):
                self._next = Stop(NOBODY)
        self._tell_when_all_stand()

    def on_interrupted(self, tracee: Tracee) -> bool:
        """Keep a thread that was interrupted for it; tell whether it was.

        Of a production enclave nothing is shown: the interrupt is an AEX there, as it is on silicon.
        """
        # A new thread has none of the debug registers of the one that has made it.
        self._take_over(tracee)
        if not tracee.halted:
            return False
        lp = tracee.lp
        if lp is not None and lp.thread is not None and not lp.thread.secs.debug:
            self._leave(tracee)
        self.stand(tracee)
        return True

    def on_signal(self, tracee: Tracee, signal: int) -> int:
        """Handle a signal that the program is to have; give the one that it gets."""
        it = self.of(tracee)
        if signal == it.unreported or signal in self.passed:
            it.unreported = 0
            return signal
        return self.stand(tracee, Stop(SIGNALLED, tracee.tid, signal), signal)

    def on_trap(self, tracee: Tracee, code: int) -> bool:
        """Handle a SIGTRAP if it is of a breakpoint or a step; tell whether. The registers are loaded."""
        regs = tracee.regs
        place = (0, 0)
        if code == SI_KERNEL and self.memory.has_breakpoint(regs.rip - 1):
            regs.rip -= 1
            kind = BREAKPOINT
        elif code == TRAP_HWBKPT and (hit := self._hit(tracee)) is not None:
            kind, place = HARDWARE, hit
        elif tracee.stepping and code in _STEP_CODES:
            kind = STEPPED if self._has_stepped(tracee, code) else NOBODY
        elif self._is_left_over(tracee, code):
            kind = NOBODY
        else:
            return False
        self._take_flag_back(tracee)
        self._end_trap(tracee)
        passed = kind == NOBODY or (kind == HARDWARE and tracee.opted_out)
        if not passed:
            self.stand(tracee, Stop(kind, tracee.tid, place=place))
        self._go_on(tracee)
        return True

    def _go_on(self, tracee: Tracee) -> None:
        borrowed, tracee.borrowed = tracee.borrowed, False
        if not borrowed or not tracee.may_step:
            tracee.go_on()
            return
        # From where a call of ours has ended the kernel's step would end at once, before the instruction.
        tracee.regs.rflags |= RFLAGS_TF
        self.of(tracee).flag_set = True
        tracee.store_regs()
        ptrace.cont(tracee.tid)

    def on_trap_beside(self, tracee: Tracee, code: int) -> bool:
        """Handle a SIGTRAP of a process that is not debugged, and shares memory with one that is, or was itself.

        It executes what the breakpoint stands for, and for that moment there is none.
        """
        regs, it = tracee.regs, self.of(tracee)
        if code == SI_KERNEL and self.memory.has_breakpoint(regs.rip - 1):
            regs.rip -= 1
            it.lifted = regs.rip
            self.memory.lift(tracee.mm, regs.rip)
            tracee.stepping = True
        elif tracee.stepping and code in _STEP_CODES:
            if code != _AFTER_CALL or regs.rip != it.lifted:
                tracee.stepping = False
                self.memory.put_back(tracee.mm, it.lifted)
        elif not self._is_left_over(tracee, code):
            return False
        self._take_flag_back(tracee)
        self._end_trap(tracee)
        self._go_on(tracee)
        return True

    def _is_left_over(self, tracee: Tracee, code: int) -> bool:
        """Tell whether a trap is of what was taken away when it was due: an interrupt's stop comes before it.

        A breakpoint that is gone lets the thread execute what stands there.
        """
        regs, it = tracee.regs, self.of(tracee)
        if code == SI_KERNEL and self.memory.was_removed(tracee.mm, regs.rip - 1):
            regs.rip -= 1
            return True
        if code in _STEP_CODES:
            owed, it.owes_step = it.owes_step, False
            return owed
        if code != TRAP_HWBKPT or (tracee.inside and tracee.mm.read(regs.rip, 2) == CPUID):
            return False
        self._take_over(tracee)
        return True

    @staticmethod
    def _end_trap(tracee: Tracee) -> None:
        # The kernel has forced the SIGTRAP, as any signal of a fault.
        if not tracee.inside:
            unforce(tracee, n.SIGTRAP)
        elif handler_of(tracee.process.actions.get(n.SIGTRAP)) == SIG_IGN:
            tracee.fault_reset |= bit(n.SIGTRAP)
        tracee.store_regs()

    def on_carried_out(self, tracee: Tracee) -> None:
        """Hear that a thread goes on from an instruction that softsgx may have carried out.

        A visit to an enclave that has not opted in is one instruction (SDM volume 3D, 42.2).
        """
        if self._first_entry(tracee):
            self.stand(tracee, Stop(SIGNALLED, tracee.tid))
        elif tracee.may_step and tracee.regs.rip != self.of(tracee).step_from:
            self.stand(tracee, Stop(STEPPED, tracee.tid))

    def _has_stepped(self, tracee: Tracee, code: int) -> bool:
        rip, it = tracee.regs.rip, self.of(tracee)
        if code == _AFTER_CALL and rip == it.step_from:
            return False
        if it.action.stays_in is not None and rip in it.action.stays_in:
            it.step_from = rip
            return False
        return True

    # -- enclaves -----------------------------------------------------------------------------

    def encls(self) -> list[str]:
        """Tell of the enclaves that the process has mapped, those at low addresses first."""
        if self.process is None or self.process.mm.enclaves is None:
            return []
        encls = {file.encl for file in self.process.mm.enclaves.files() if file.encl.created}
        return [_told(encl) for encl in sorted(encls, key=lambda encl: encl.base)]

    def _first_entry(self, tracee: Tracee) -> bool:
        thread = tracee.lp.thread if tracee.lp is not None else None
        if thread is None or thread.secs.eid in self._entered:
            return False
        self._entered.add(thread.secs.eid)
        vma = tracee.mm.enclaves.find(thread.linaddr) if tracee.mm.enclaves is not None else None
        return vma is not None and self._on_entered(_told(vma.file.encl), debug=thread.secs.debug)


def _told(encl: "Encl") -> str:
    kind = "debug" if encl.attributes & ATTRIBUTE_DEBUG else "production"
    secs = encl.cpu.enclaves.get(encl.secs_page) if encl.secs_page is not None else None
    if encl.dead:
        kind += ", killed"
    elif not encl.initialized:
        kind += ", not initialised"
    elif secs is not None:
        kind += f", MRENCLAVE {secs.mrenclave.hex()}"
    return f"base {encl.base:#x}, size {encl.size:#x}, {kind}"
