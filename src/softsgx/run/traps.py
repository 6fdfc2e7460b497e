# SPDX-License-Identifier: Apache-2.0
"""Every signal stop: whose it is. CPUID and the path calls of the image are answered here.

Owns nothing; works on the stopped thread. ENCLU traps as SIGILL, on some hosts as SIGSEGV, so the
bytes at RIP decide, never the signal alone. What concerns an enclave is enclave_traps'.
"""

from softsgx.run import numbers as n
from softsgx.run import ptrace
from softsgx.run.delivery import (
    BUS_ADRERR,
    SI_KERNEL,
    SIGINFO_HEAD,
    TRAP_HWBKPT,
    bit,
    deliver,
    pass_on,
    resume,
    siginfo,
    unforce,
    unseen,
)
from softsgx.run.gp_instructions import CPUID, LONGEST, UD2, cpuid_length
from softsgx.run.tracee import Tracee

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from softsgx.cpu.model import Model
    from softsgx.run.enclave_traps import EnclaveTraps
    from softsgx.run.observe import Observer
    from softsgx.run.vdso import VdsoImage

ENCLU = b"\x0f\x01\xd7"
_COMMON = (2, 4)  # EENTER, EEXIT
_SYS_USER_DISPATCH = 2


class Traps:
    """The processor side of every signal stop; `enclaves` gives that of the enclaves."""

    def __init__(
        self,
        model: "Model",
        vdso: "VdsoImage",
        observer: "Observer",
        enclaves: "Callable[[], EnclaveTraps]",
    ) -> None:
        self._model = model
        self._vdso = vdso
        self._observer = observer
        self._enclaves = enclaves

    def on_signal(self, tracee: Tracee, signal: int) -> None:
        """Handle a signal-delivery stop and let the thread go on."""
        if signal == n.SIGILL:
            # The way of every ecall and of every start of a program, so without a look at the
            # siginfo: that somebody else's SIGILL comes just before an EENTER, an EEXIT or a CPUID
            # is the one case in which it would tell more.
            regs = tracee.load_regs()
            mm = tracee.process.mm
            if regs.rax & 0xFFFFFFFF in _COMMON and mm.read(regs.rip, 3) == ENCLU:
                self._enclaves().on_enclu(tracee, signal)
                return
            if (
                regs.rip in mm.cpuid_sites
                and not tracee.inside
                and mm.read(regs.rip, len(UD2)) == UD2
            ):
                self._on_cpuid(tracee, signal, len(CPUID))
                return
        moved = tracee.mm.transitions and self._enclaves().steady(tracee)
        if signal in n.FAULT_SIGNALS:
            info = ptrace.get_siginfo(tracee.tid)
            _, _, code, address = SIGINFO_HEAD.unpack_from(info)
            if code > 0 and moved and signal != n.SIGTRAP:
                self._enclaves().judged_by_leaf(tracee, signal)
                return
            if code > 0:
                if moved:
                    # A single step: it is told where the thread is seen.
                    address = tracee.regs.rip
                    ptrace.set_siginfo(tracee.tid, siginfo(signal, code, address))
                elif not tracee.mm.transitions:
                    tracee.load_regs()
                self._on_fault(tracee, signal, code, address)
                return
            if tracee.inside and (tracee.sigmask or 0) & bit(signal):
                # Sent by somebody, and blocked but for us: it waits until the thread is outside.
                tracee.held.append((signal, info))
                tracee.go_on()
                return
        # A stop leaves the thread inside, as that of another thread of its process does. After an
        # AEX it may have to be sent again, and would then outlive the SIGCONT that has ended it.
        # That SIGCONT, and what is ignored, needs no AEX either.
        if tracee.inside and not unseen(tracee, signal):
            self._enclaves().on_signal_inside(tracee, signal, ptrace.get_siginfo(tracee.tid))
        else:
            pass_on(tracee, signal)

    def on_system_call(self, tracee: Tracee) -> None:
        """Handle a system call stop that nobody waits for: one that was made inside is #UD."""
        if tracee.inside:
            self._enclaves().on_system_call(tracee)
        else:
            tracee.go_on()

    def on_sleeper(self, tracee: Tracee, address: int) -> None:
        """Handle the stop of a thread that slept at a page of an enclave: a fault that no kernel has told."""
        tracee.load_regs()
        tracee.borrowed = True  # no signal can be delivered from this stop
        if not self._enclaves().on_missing(tracee, address):
            self._on_fault(tracee, n.SIGBUS, BUS_ADRERR, address)

    def _on_fault(self, tracee: Tracee, signal: int, code: int, address: int) -> None:
        # Its registers are loaded.
        regs = tracee.regs
        if signal == n.SIGTRAP and self._is_debuggers(tracee, code):
            return
        if signal == n.SIGSYS and tracee.inside and code == _SYS_USER_DISPATCH:
            self._enclaves().on_system_call(tracee, signal)
            return
        if tracee.mm.enclaves is not None and tracee.inside:
            self._enclaves().bring_in_code(tracee)
        # A page fault at RIP itself is a fetch that failed: no instruction was there to execute.
        if signal == n.SIGILL or (signal == n.SIGSEGV and address != regs.rip):
            head = tracee.mm.read(regs.rip, 3)
            if head == ENCLU:
                self._enclaves().on_enclu(tracee, signal)
                return
            known = regs.rip in tracee.mm.cpuid_sites and not tracee.inside
            if known and (head[:2] == UD2 or not tracee.mm.reachable):
                self._on_cpuid(tracee, signal, len(CPUID))
                return
            if tracee.mm.cpuid_faults and not tracee.inside and code == SI_KERNEL:
                length = cpuid_length(tracee.mm.read(regs.rip, LONGEST))
                if length:
                    self._on_cpuid(tracee, signal, length)
                    return
        if tracee.inside:
            self._enclaves().on_fault_inside(tracee, signal, code, address)
        elif (
            signal == n.SIGTRAP
            and code == TRAP_HWBKPT
            and tracee.site_watched
            and self._enclaves().on_breakpoint(tracee)
        ):
            unforce(tracee, signal)
            resume(tracee)
        elif signal == n.SIGTRAP and code == TRAP_HWBKPT and tracee.watched is not None:
            # Where an enclave was that has ended, and the program has code of its own now.
            unforce(tracee, signal)
            resume(tracee)
        elif regs.rip == tracee.mm.path_load and regs.rip:
            # A path call with a bad pointer: the kernel shall say so.
            regs.rip = tracee.mm.path_ask
            if not tracee.borrowed:
                unforce(tracee, signal)
            resume(tracee)
        elif not (
            signal == n.SIGSEGV
            and tracee.mm.enclaves is not None
            and self._enclaves().on_touch_outside(tracee, code, address)
        ):
            if tracee.borrowed:
                deliver(tracee, signal, siginfo(signal, code, address))
            else:
                pass_on(tracee, signal)

    @staticmethod
    def _is_debuggers(tracee: Tracee, code: int) -> bool:
        process = tracee.process
        if process.debugger is not None:
            return process.debugger.on_trap(tracee, code)
        return process.beside is not None and process.beside.on_trap_beside(tracee, code)

    def _on_cpuid(self, tracee: Tracee, signal: int, length: int) -> None:
        regs = tracee.regs
        leaf, subleaf = regs.rax & 0xFFFFFFFF, regs.rcx & 0xFFFFFFFF
        native = self._vdso.native_cpuid(leaf, subleaf)
        regs.rax, regs.rbx, regs.rcx, regs.rdx = self._model.cpuid(leaf, subleaf, native)
        regs.rip += length
        unforce(tracee, signal)
        self._observer.cpuid(tracee, leaf, subleaf)
        tracee.trapped = True
        resume(tracee)
