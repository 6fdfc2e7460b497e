# SPDX-License-Identifier: Apache-2.0
"""Taking pages out of an address space that no userfaultfd watches: an mprotect by one of its threads.

Owns nothing. Any thread of the address space will do: the caller, which stands at a stop, or all others are
interrupted and the first that stops carries it out, while the caller gives the rest of the run its turns.
Whoever waits so does what others ask of it meanwhile. That is the slower way; where userfaultfd works
nothing of it is needed.
"""

from time import monotonic

from greenlet import getcurrent

from softsgx.run import ptrace
from softsgx.run.elrange_map import too_many_runs
from softsgx.run.mm import Refused
from softsgx.run.ptrace import TraceeGone
from softsgx.run.tracee import NO_SYSCALL, Injector, Tracee

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.driver.encl import Encl
    from softsgx.run.elrange_map import EnclaveMap

# Seconds that the caller waits for a thread of another address space.
_PATIENCE = 0.2
_SYSCALL_LENGTH = 2
_SYS_RESTART_SYSCALL = 219
# include/linux/errno.h: ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND; ERESTART_RESTARTBLOCK.
_RESTARTED = (512, 513, 514)
_RESTART_BLOCK = 516


class Revocation:
    """What one thread of an address space is to do; ``done`` when one has, or nobody is left to."""

    __slots__ = ("_blocking", "_encl", "_enclaves", "_spans", "done", "refused")

    def __init__(
        self, enclaves: "EnclaveMap", encl: "Encl", spans: list[tuple[int, int]], *, blocking: bool
    ) -> None:
        self._blocking = blocking
        self._enclaves = enclaves
        self._encl = encl
        self._spans = spans
        self.done = False
        self.refused = False

    def carry_out(self, tracee: Tracee, injector: Injector) -> None:
        """Put in force what is due; Refused where that cannot be, and nobody would wait for another time."""
        for start, end in self._spans:
            if self._enclaves.settle(injector, start, end):
                if not self._blocking:
                    raise Refused(too_many_runs(tracee))
                self.refused = True
        if self._blocking:
            # A forked child's mappings are watched by now.
            self._enclaves.block_watched(self._encl, self._spans)
        self.done = True


class Zap:
    """All pages of a killed enclave are to be out of an address space's reach, however long that takes."""

    __slots__ = ("_encl", "_enclaves", "done")

    def __init__(self, enclaves: "EnclaveMap", encl: "Encl") -> None:
        self._enclaves = enclaves
        self._encl = encl
        self.done = False

    def carry_out(self, _tracee: Tracee, injector: Injector) -> None:
        """Put in force what is due, which is nothing at all."""
        for start, end in self._enclaves.reaching(self._encl):
            if self._enclaves.settle(injector, start, end):
                # No more mappings can be had: the pages keep their contents.
                return
        self.done = True
        self._encl.zapped(self._enclaves)


class Revoker:
    """Carries out revocations; ``tracees`` is the supervisor's own table."""

    def __init__(self, tracees: "dict[int, Tracee]") -> None:
        self._tracees = tracees

    def revoke(
        self,
        enclaves: "EnclaveMap",
        encl: "Encl",
        spans: list[tuple[int, int]],
        *,
        blocking: bool = True,
    ) -> bool:
        """Take what is due out of reach; False if that cannot be done now. Suspends the caller.

        With ``blocking`` the pages are on their way out, and none is to be written either.
        """
        current = getcurrent()
        caller = next((t for t in self._tracees.values() if t.greenlet is current), None)
        revocation = Revocation(enclaves, encl, spans, blocking=blocking)
        if caller is None:
            # The supervisor itself, which never waits for a program.
            return False
        if caller.mm.enclaves is enclaves:
            with caller.injecting() as injector:
                revocation.carry_out(caller, injector)
            caller.borrowed = True
            return not revocation.refused
        self._ask(enclaves, revocation)
        # A thread that stands still in user memory, which may be a slow server's, cannot do it.
        late = monotonic() + _PATIENCE
        while not revocation.done and self._threads_of(enclaves):
            if monotonic() > late:
                return False
            pause(caller)
        return not revocation.refused

    def zap(self, enclaves: "EnclaveMap", encl: "Encl") -> bool:
        """Have all pages of a killed enclave taken out of reach, without waiting for it: False."""
        self._ask(enclaves, Zap(enclaves, encl))
        return False

    def settle_soon(self, enclaves: "EnclaveMap", encl: "Encl") -> None:
        """Have what is due of an enclave put in force, without waiting for it."""
        spans = [(encl.base, encl.base + encl.size)]
        self._ask(enclaves, Revocation(enclaves, encl, spans, blocking=False))

    def _ask(self, enclaves: "EnclaveMap", request: Revocation | Zap) -> None:
        for tracee in self._threads_of(enclaves):
            tracee.revocations.append(request)
            try:
                ptrace.interrupt(tracee.tid)
            except TraceeGone:
                continue

    def _threads_of(self, enclaves: "EnclaveMap") -> list[Tracee]:
        return [t for t in self._tracees.values() if t.mm.enclaves is enclaves and not t.ended]


def pause(tracee: Tracee) -> None:
    """Give the others a turn, and do for them what they wait for."""
    tracee.pause()
    if tracee.revocations:
        _do(tracee)
        tracee.borrowed = True


def _do(tracee: Tracee) -> None:
    revocations, tracee.revocations = tracee.revocations, []
    with tracee.injecting() as injector:
        for revocation in revocations:
            if not revocation.done:
                revocation.carry_out(tracee, injector)


def carry_out(tracee: Tracee) -> None:
    """Do what is asked of an interrupted thread, and let it go on as if it had not been interrupted."""
    regs = tracee.load_regs()
    _do(tracee)
    # The kernel would have restarted the call that was interrupted where the thread goes back to user
    # mode (arch/x86/kernel/signal.c); from the stop where an injected call ends it does not.
    if regs.orig_rax != NO_SYSCALL:
        code = -regs.rax & NO_SYSCALL
        if code in _RESTARTED or code == _RESTART_BLOCK:
            regs.rax = _SYS_RESTART_SYSCALL if code == _RESTART_BLOCK else regs.orig_rax
            regs.rip -= _SYSCALL_LENGTH
        regs.orig_rax = NO_SYSCALL
    tracee.store_regs()
    tracee.go_on()
