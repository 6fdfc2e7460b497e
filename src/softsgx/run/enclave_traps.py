# SPDX-License-Identifier: Apache-2.0
"""What a processor with SGX would do where a thread stopped: ENCLU, faults inside, AEX.

Owns nothing; works on the stopped thread. Loaded once a program of the run asks for SGX.
"""

import struct

from softsgx.arch.attributes import TCS_DBGOPTIN
from softsgx.arch.exceptions import (
    PFEC_I,
    PFEC_U,
    PFEC_W,
    VECTOR_AC,
    VECTOR_BP,
    VECTOR_DB,
    VECTOR_DE,
    VECTOR_GP,
    VECTOR_MF,
    VECTOR_PF,
    VECTOR_UD,
    VECTOR_XM,
)
from softsgx.arch.thread import ThreadRecord
from softsgx.cpu.processor import LogicalProcessor
from softsgx.cpu.registers import RFLAGS_TF
from softsgx.cpu.secs import THREAD
from softsgx.cpu.transition import Event, aex, enclu
from softsgx.errors import Fault
from softsgx.run import fault_mask, isolation, page_faults, ptrace
from softsgx.run import numbers as n
from softsgx.run.cpuid_inside import InsideCpuid, at_cpuid
from softsgx.run.delivery import (
    BUS_ADRERR,
    SI_KERNEL,
    SIG_IGN,
    bit,
    deliver,
    restore_actions,
    resume,
    siginfo,
    unforce,
)
from softsgx.run.gp_instructions import LONGEST, illegal_inside, int3_length
from softsgx.run.tracee import NO_SYSCALL, Tracee, handler_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.cpu.processor import Processor
    from softsgx.run.fast_transitions import FastTransitions
    from softsgx.run.observe import Observer
    from softsgx.run.options import Options
    from softsgx.run.records import RecordTable

# Pages that one leaf may have brought in before its thread goes on to execute it again.
_TRIES = 4
_EENTER = 2
_CHANGES = range(5, 8)  # EACCEPT, EMODPE, EACCEPTCOPY
_SYSCALL_LENGTH = 2  # INT 80H has as many bytes
_ILL_ILLOPN = 2
_BUS_ADRALN = 1
_FPE_INTDIV = 1
_DEBUG_TRAPS = (2, 4)  # TRAP_TRACE, TRAP_HWBKPT
_FSW_ES = 0x80
_PAGE_MASK = ~0xFFF
_AEP = ThreadRecord.OFFSETS["aep"] // 8
_TCS_RECORD = ThreadRecord.OFFSETS["tcs_record"] // 8
_TID = ThreadRecord.OFFSETS["tid"]


def _lp(tracee: Tracee) -> LogicalProcessor:
    if tracee.lp is None:
        raise RuntimeError(f"thread {tracee.tid} has never been inside an enclave")
    return tracee.lp


def _was_killed(lp: LogicalProcessor) -> bool:
    return lp.thread is not None and lp.thread.abandoned is not None


def _has_opted_in(lp: LogicalProcessor) -> bool:
    return lp.thread is not None and bool(lp.thread.flags & TCS_DBGOPTIN)


def _in_elrange(lp: LogicalProcessor, address: int) -> bool:
    if lp.thread is None:
        return False
    secs = lp.thread.secs
    return secs.baseaddr <= address < secs.baseaddr + secs.size


class EnclaveTraps:
    """The processor side of the stops that concern an enclave."""

    def __init__(
        self,
        processor: "Processor",
        observer: "Observer",
        records: "RecordTable",
        options: "Options",
    ) -> None:
        self._strict = options.strict
        self._cpu = processor
        self._observer = observer
        self._records = records
        self._xcr0 = options.xcr0
        self._steps = options.aex_every.instructions if options.aex_every is not None else 0
        # Where transitions may be made without a trap.
        self.fast: FastTransitions | None = None
        self._inside_cpuid = InsideCpuid()

    # -- transitions without a trap ---------------------------------------------------------

    def steady(self, tracee: Tracee) -> bool:
        """Put a stopped thread before or behind the transition that it may have stopped in; tell whether it had."""
        if self.fast is None:
            return False
        tracee.load_regs()
        if tracee.lp is None:
            self.fast.path.on_stranger(tracee)
        return self.fast.stops.steady(tracee)

    def on_breakpoint(self, tracee: Tracee) -> bool:
        """Handle a thread that has come to a place which was to be seen executed; tell whether it was one."""
        return self.fast is not None and self.fast.sites.on_breakpoint(tracee)

    def judged_by_leaf(self, tracee: Tracee, signal: int) -> None:
        """Let a thread whose transition has faulted go on to the ENCLU: the leaf judges what it could not touch."""
        if tracee.inside:
            fault_mask.take_over(tracee, signal)
        else:
            unforce(tracee, signal)
        resume(tracee)

    # -- faults and signals -----------------------------------------------------------------

    def on_signal_inside(self, tracee: Tracee, signal: int, info: bytes) -> None:
        """Handle a signal that somebody has sent to a thread inside: an AEX, then the signal."""
        tracee.load_regs()
        self._exit_asynchronously(tracee, Event(None, 0, 0))
        deliver(tracee, signal, info)

    def on_interrupt(self, tracee: Tracee) -> bool:
        """Handle a stop that stands for an interrupt of the machine (--aex-every); tell whether it was an AEX."""
        tracee.must_exit = False
        # What the thread has stopped at already comes first, and is an AEX or a leaf itself.
        if not tracee.inside or ptrace.any_pending_of(tracee.tid, n.FAULT_SIGNALS):
            return False
        tracee.load_regs()
        tracee.borrowed = True  # no signal can be delivered from this stop
        if not self._has_jumped_out(tracee):
            self._exit_asynchronously(tracee, Event(None, 0, 0))
            resume(tracee)
        return True

    def _has_jumped_out(self, tracee: Tracee) -> bool:
        """Handle a thread inside that stands outside ELRANGE, whose next fetch is #GP; tell whether it does."""
        rip = tracee.regs.rip
        if _in_elrange(_lp(tracee), rip):
            return False
        self._fault_inside(tracee, Fault.gp(f"the enclave went on at {rip:#x} without EEXIT"))
        return True

    def _on_step(self, tracee: Tracee) -> None:
        if self._has_jumped_out(tracee):
            return
        tracee.steps -= 1
        if not tracee.steps:
            self._exit_asynchronously(tracee, Event(None, 0, 0))
        # It stops again at once.
        tracee.trapped = True
        resume(tracee)

    def leave(self, tracee: Tracee) -> None:
        """Take a thread inside that was interrupted out by an AEX; it stays at its stop."""
        tracee.load_regs()
        tracee.regs.orig_rax = NO_SYSCALL
        self._exit_asynchronously(tracee, Event(None, 0, 0))
        tracee.borrowed = False
        tracee.store_regs()

    def on_fault_inside(self, tracee: Tracee, signal: int, code: int, address: int) -> None:
        """Handle a fault signal of a thread inside; its registers are loaded."""
        regs = tracee.regs
        fault_mask.take_over(tracee, 0 if tracee.borrowed else signal)
        if handler_of(tracee.process.actions.get(signal)) == SIG_IGN:
            tracee.fault_reset |= bit(signal)
        if signal == n.SIGTRAP and self.on_breakpoint(tracee):
            self._stay(tracee)
            return
        if signal == n.SIGTRAP and at_cpuid(tracee, code):
            signal, code = n.SIGILL, _ILL_ILLOPN
        if signal == n.SIGTRAP and code in _DEBUG_TRAPS and tracee.steps:
            regs.rflags &= ~RFLAGS_TF
            self._on_step(tracee)
            return
        if signal == n.SIGTRAP and code in _DEBUG_TRAPS and not _has_opted_in(_lp(tracee)):
            # Nothing steps or breaks inside, and POPF cannot set TF.
            regs.rflags &= ~RFLAGS_TF
            self._stay(tracee)
            return
        if signal == n.SIGSEGV and page_faults.passed_over(tracee, code, address):
            self._stay(tracee)
            return
        event, signal, info = self._classify(tracee, signal, code, address)
        at_vdso = self._exit_asynchronously(tracee, event) == tracee.mm.aep and tracee.mm.aep
        if at_vdso and event.vector not in (VECTOR_DB, VECTOR_BP):
            self._fix_up(tracee, event.vector or 0, event.error_code, event.address, True)
            resume(tracee)
        else:
            deliver(tracee, signal, info)

    @staticmethod
    def on_missing(tracee: Tracee, address: int) -> bool:
        """Handle the stop of a thread at a page that was evicted; tell whether. The registers are loaded."""
        if not page_faults.missing(tracee, address):
            return False
        resume(tracee)
        return True

    @staticmethod
    def bring_in_code(tracee: Tracee) -> None:
        """Bring in the page of the instruction that a thread inside stands at, which is to be read."""
        rip = tracee.regs.rip
        pages = {rip & _PAGE_MASK, (rip + LONGEST - 1) & _PAGE_MASK}
        # Who waits for one may find it, or the other, gone again: both are there when nobody has waited.
        while any(page_faults.brought_in(tracee, address) for address in pages):
            pass

    def on_system_call(self, tracee: Tracee, signal: int = 0) -> None:
        """Handle a system call made inside: SYSCALL and INT 80H are #UD there (SDM 38.6.1).

        The kernel has carried nothing out; what SYSCALL itself does to RCX and R11 remains. The stop is
        that of PTRACE_SYSEMU, or the signal of syscall user dispatch.
        """
        regs = tracee.load_regs()
        regs.rax = regs.orig_rax
        regs.orig_rax = NO_SYSCALL
        regs.rip -= _SYSCALL_LENGTH
        fault = Fault.ud("a system call inside")
        if not _in_elrange(_lp(tracee), regs.rip):
            fault = Fault.gp(f"the enclave went on at {regs.rip:#x} without EEXIT")
        if signal:
            fault_mask.take_over(tracee, signal)
            if handler_of(tracee.process.actions.get(signal)) == SIG_IGN:
                tracee.fault_reset |= bit(signal)
        else:
            tracee.borrowed = True  # no signal can be delivered from this stop
        self._fault_inside(tracee, fault)

    def on_touch_outside(self, tracee: Tracee, code: int, address: int) -> bool:
        """Handle a SIGSEGV outside that is not what the kernel's driver would make of it; tell whether."""
        if self._strict and isolation.touched(tracee, code, address, self._observer):
            return True
        if page_faults.passed_over(tracee, code, address):
            unforce(tracee, n.SIGSEGV)
            resume(tracee)
            return True
        if not page_faults.out_of_reach(tracee, code, address):
            return False
        unforce(tracee, n.SIGSEGV)
        deliver(tracee, n.SIGBUS, siginfo(n.SIGBUS, BUS_ADRERR, address))
        return True

    # -- ENCLU ------------------------------------------------------------------------------

    def on_enclu(self, tracee: Tracee, signal: int) -> None:
        """Carry out the ENCLU at which a thread stopped; its registers are loaded."""
        regs = tracee.regs
        lp = tracee.lp
        if lp is None:
            lp = tracee.lp = self._logical_processor(tracee)
        leaf = regs.rax & 0xFFFFFFFF
        was_inside = lp.inside
        before = lp.thread
        if was_inside:
            fault_mask.take_over(tracee, signal)
        site, tcs, target = regs.rip, regs.rbx, regs.rcx
        for tries_left in range(_TRIES, -1, -1):
            try:
                if was_inside and not _in_elrange(lp, regs.rip):
                    raise Fault.gp(f"the enclave went on at {regs.rip:#x} without EEXIT")
                enclu(self._cpu, lp, regs)
                break
            except Fault as fault:
                access = n.PROT_WRITE if fault.error_code & PFEC_W else n.PROT_READ
                if fault.address is not None and page_faults.brought_in(
                    tracee, fault.address, access
                ):
                    # A page fault to the processor, and nothing to the program: the leaf is executed
                    # again, at last from a stop of its own, where a signal can come.
                    if tries_left:
                        continue
                    self._again(tracee, signal, was_inside)
                    return
                self._observer.leaf(tracee, leaf, tcs, fault)
                if was_inside:
                    self._fault_inside(tracee, fault)
                else:
                    unforce(tracee, signal)
                    self._fault_outside(tracee, fault, tracee.regs.rip)
                return
        self._observer.leaf(tracee, leaf, tcs, None)
        if leaf in _CHANGES:
            page_faults.accepted(tracee, target)
        tracee.trapped = True
        if was_inside and handler_of(tracee.process.actions.get(signal)) == SIG_IGN:
            tracee.fault_reset |= bit(signal)
        if lp.inside:
            if not was_inside:
                tracee.steps = self._steps
                self._point_to_tcs(tracee, lp)
                watched = self._inside_cpuid.watch(tracee, lp)
                unforce(tracee, signal)
                fault_mask.unblock(tracee)
                if self._strict:
                    isolation.entered(tracee)
                if self.fast is not None:
                    self.fast.entered(tracee, lp, watched)
                    if leaf == _EENTER:
                        self.fast.sites.on_eenter(tracee, site)
            self._stay(tracee)
            return
        self._left(tracee)
        if self.fast is not None and before is not None:
            self.fast.sites.on_eexit(tracee, site, before)
        resume(tracee)

    def _again(self, tracee: Tracee, signal: int, was_inside: bool) -> None:
        if not was_inside:
            unforce(tracee, signal)
        elif handler_of(tracee.process.actions.get(signal)) == SIG_IGN:
            tracee.fault_reset |= bit(signal)
        tracee.trapped = True
        if was_inside:
            self._stay(tracee)
        else:
            resume(tracee)

    @staticmethod
    def _stay(tracee: Tracee) -> None:
        thread = _lp(tracee).thread
        if tracee.fault_reset and thread is not None:
            # The actions are put back where it leaves, which therefore has to be by a trap.
            thread.quads[THREAD] = 0
        resume(tracee)

    def _logical_processor(self, tracee: Tracee) -> LogicalProcessor:
        tid = tracee.tid
        tracee.record_slot, record = self._records.thread()
        struct.pack_into("<I", record, _TID, tid)
        lp = LogicalProcessor(
            record=record,
            translate=lambda address: (
                tracee.mm.enclaves.translate(address) if tracee.mm.enclaves else None
            ),
            xcr0=self._xcr0,
            load_xsave=lambda: ptrace.get_xstate(tid),
            store_xsave=lambda image: ptrace.set_xstate(tid, image),
        )
        fast = self.fast
        if fast is not None:
            lp.adopt = lambda: fast.path.adopt(tracee)
        return lp

    def _point_to_tcs(self, tracee: Tracee, lp: LogicalProcessor) -> None:
        thread = lp.thread
        if thread is not None and tracee.mm.records:
            offset = self._records.tcs_offset(thread.secs.eid, thread.linaddr)
            lp.quads[_TCS_RECORD] = tracee.mm.records + offset if offset else 0
            lp.take(thread)

    def _fault_inside(self, tracee: Tracee, fault: Fault) -> None:
        event = Event(fault.vector, fault.error_code, fault.address or 0)
        aep = self._exit_asynchronously(tracee, event)
        if aep == tracee.mm.aep:
            self._fix_up(tracee, fault.vector, fault.error_code, fault.address or 0, True)
            resume(tracee)
        else:
            deliver(tracee, *self._as_signal(tracee, fault, aep))

    def _fault_outside(self, tracee: Tracee, fault: Fault, rip: int) -> None:
        if rip == tracee.mm.aep:
            self._fix_up(tracee, fault.vector, fault.error_code, fault.address or 0, False)
            resume(tracee)
        else:
            deliver(tracee, *self._as_signal(tracee, fault, rip))

    @staticmethod
    def _as_signal(tracee: Tracee, fault: Fault, rip: int) -> tuple[int, bytes]:
        # arch/x86/kernel/traps.c, mm/fault.c: what a fault is told as.
        match fault.vector:
            case 14:
                address = (fault.address or 0) & _PAGE_MASK
                signal, code = page_faults.of_leaf(tracee, fault.error_code, address)
                return signal, siginfo(signal, code, address)
            case 6:
                return n.SIGILL, siginfo(n.SIGILL, _ILL_ILLOPN, rip)
            case _:
                return n.SIGSEGV, siginfo(n.SIGSEGV, SI_KERNEL, 0)

    @staticmethod
    def _fix_up(tracee: Tracee, vector: int, error_code: int, address: int, aex_made: bool) -> None:
        # arch/x86/entry/vdso/extable.c: the fault becomes an exception return of the vDSO call.
        regs = tracee.regs
        regs.rip = tracee.mm.handle_exception
        regs.rdi = vector
        regs.rsi = error_code
        # An AEX clears the low 12 bits of CR2; an EENTER that faults has not been inside.
        regs.rdx = 0
        if vector == VECTOR_PF:
            regs.rdx = address & _PAGE_MASK if aex_made else address

    # -- AEX --------------------------------------------------------------------------------

    def _exit_asynchronously(self, tracee: Tracee, event: Event) -> int:
        """Do the AEX; give the AEP."""
        rip, lp = tracee.regs.rip, _lp(tracee)
        thread = lp.thread
        opened = thread is not None and thread.close is not None
        aex(self._cpu, lp, tracee.regs, event)
        self._observer.aex(tracee, event, rip)
        if thread is not None and opened and self.fast is not None:
            self.fast.path.left_by_aex(tracee, lp, thread)
        self._left(tracee)
        return tracee.regs.rip

    def _left(self, tracee: Tracee) -> None:
        # The thread is outside again: its own mask, and the actions that forced signals reset.
        mask, tracee.sigmask = tracee.sigmask, None
        if mask is not None and mask & n.FAULT_MASK:
            ptrace.set_sigmask(tracee.tid, mask)
        if tracee.fault_reset:
            restore_actions(tracee)
        if tracee.held:
            self._send_held(tracee)
        if self._strict:
            isolation.left(tracee)

    @staticmethod
    def _send_held(tracee: Tracee) -> None:
        held, tracee.held = tracee.held, []
        with tracee.injecting() as injector:
            for signal, info in held:
                # By the thread itself: the kernel lets nobody else claim a kernel's si_code.
                with tracee.mm.scratch_for(info) as at:
                    injector.call(
                        n.SYS_RT_TGSIGQUEUEINFO, tracee.process.pid, tracee.tid, signal, at
                    )
        tracee.borrowed = True

    def _classify(
        self, tracee: Tracee, signal: int, code: int, address: int
    ) -> tuple[Event, int, bytes]:
        """Say which exception a fault signal inside stands for, and what the host is told."""
        regs = tracee.regs
        lp = _lp(tracee)
        page = address & _PAGE_MASK
        if not _in_elrange(lp, regs.rip):
            # The enclave jumped out without EEXIT: the first fetch would have been refused.
            return Event(VECTOR_GP, 0, 0), n.SIGSEGV, siginfo(n.SIGSEGV, SI_KERNEL, 0)
        if _was_killed(lp) and not (
            signal == n.SIGBUS or (signal == n.SIGSEGV and code != SI_KERNEL)
        ):
            # The enclave was killed when the thread had stopped already: what it stopped at is gone,
            # and cannot be fetched again.
            return (
                Event(VECTOR_PF, PFEC_U | PFEC_I, regs.rip),
                n.SIGBUS,
                siginfo(n.SIGBUS, BUS_ADRERR, regs.rip & _PAGE_MASK),
            )
        aep = lp.quads[_AEP]
        illegal = n.SIGILL, siginfo(n.SIGILL, _ILL_ILLOPN, aep)
        if signal == n.SIGSEGV and code == SI_KERNEL:
            if illegal_inside(tracee.mm.read(regs.rip, LONGEST)):
                return Event(VECTOR_UD, 0, 0), *illegal
            return Event(VECTOR_GP, 0, 0), n.SIGSEGV, siginfo(n.SIGSEGV, SI_KERNEL, 0)
        if signal == n.SIGSEGV or (signal == n.SIGBUS and code != _BUS_ADRALN):
            told, told_code, error_code = page_faults.inside(tracee, signal, code, address)
            event = Event(VECTOR_PF, error_code, address)
            return event, told, siginfo(told, told_code, page)
        if signal == n.SIGBUS:
            return Event(VECTOR_AC, 0, 0), n.SIGBUS, siginfo(n.SIGBUS, code, aep)
        if signal == n.SIGFPE:
            vector = VECTOR_DE
            if code != _FPE_INTDIV:
                status = struct.unpack_from("<H", ptrace.get_xstate(tracee.tid), 2)[0]
                vector = VECTOR_MF if status & _FSW_ES else VECTOR_XM
            return Event(vector, 0, 0), n.SIGFPE, siginfo(n.SIGFPE, code, aep)
        if signal == n.SIGTRAP and code in _DEBUG_TRAPS:
            return Event(VECTOR_DB, 0, 0), n.SIGTRAP, siginfo(n.SIGTRAP, code, aep)
        if signal == n.SIGTRAP:
            # Inside an INT3 is a fault, RIP at the instruction: #BP with DBGOPTIN, else #UD.
            length = int3_length(tracee.mm.read(regs.rip - 2, 2))
            regs.rip -= length
            if length and _has_opted_in(lp):
                return Event(VECTOR_BP, 0, 0), n.SIGTRAP, siginfo(n.SIGTRAP, SI_KERNEL, 0)
        return Event(VECTOR_UD, 0, 0), *illegal
