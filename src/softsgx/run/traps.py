# SPDX-License-Identifier: Apache-2.0
"""What a processor with SGX would do where this one stopped: ENCLU, CPUID, faults, AEX.

Owns nothing; works on the stopped thread. ENCLU traps as SIGILL, on some hosts as SIGSEGV, so
the bytes at RIP decide, never the signal alone. The kernel forces such a signal: where the
program had blocked or ignored it, mask and action are reset before the stop is seen, and they
are put back here, so that the program never notices.
"""

import struct

from softsgx.arch.exceptions import (
    PFEC_P,
    PFEC_SGX,
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
from softsgx.cpu.transition import Event, aex, enclu
from softsgx.errors import Fault
from softsgx.run import numbers as n
from softsgx.run import page_faults, ptrace
from softsgx.run.gp_instructions import CPUID, LONGEST, cpuid_length, illegal_inside
from softsgx.run.tracee import Tracee, handler_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.cpu.model import Model
    from softsgx.cpu.processor import Processor
    from softsgx.run.observe import Observer
    from softsgx.run.records import RecordTable
    from softsgx.run.vdso import VdsoImage

ENCLU = b"\x0f\x01\xd7"
UD2 = b"\x0f\x0b"
_INT3 = 0xCC
_COMMON = (2, 4)  # EENTER, EEXIT
_SIG_IGN = 1
_SI_KERNEL = 0x80
_ILL_ILLOPN = 2
_SEGV_MAPERR = 1
_BUS_ADRALN = 1
_FPE_INTDIV = 1
_DEBUG_TRAPS = (2, 4)  # TRAP_TRACE, TRAP_HWBKPT
_FSW_ES = 0x80
_PAGE_MASK = ~0xFFF
_ALL = (1 << 64) - 1
_SIGINFO_HEAD = struct.Struct("<iii4xQ")  # si_signo, si_errno, si_code, si_addr
_ELRANGE_BASE = ThreadRecord.OFFSETS["elrange_base"] // 8
_ELRANGE_SIZE = ThreadRecord.OFFSETS["elrange_size"] // 8
_AEP = ThreadRecord.OFFSETS["aep"] // 8
_TCS_RECORD = ThreadRecord.OFFSETS["tcs_record"] // 8
_TID = ThreadRecord.OFFSETS["tid"]


def _bit(signal: int) -> int:
    return 1 << (signal - 1)


def _siginfo(signal: int, code: int, address: int) -> bytes:
    return _SIGINFO_HEAD.pack(signal, 0, code, address).ljust(ptrace.SIGINFO_SIZE, b"\0")


def _lp(tracee: Tracee) -> LogicalProcessor:
    if tracee.lp is None:
        raise RuntimeError(f"thread {tracee.tid} has never been inside an enclave")
    return tracee.lp


def _in_elrange(lp: LogicalProcessor, address: int) -> bool:
    base: int = lp.quads[_ELRANGE_BASE]
    size: int = lp.quads[_ELRANGE_SIZE]
    return base <= address < base + size


class Traps:
    """The processor side of every signal stop."""

    def __init__(
        self,
        processor: "Processor",
        model: "Model",
        vdso: "VdsoImage",
        observer: "Observer",
        records: "RecordTable",
        xcr0: int,
    ) -> None:
        self._cpu = processor
        self._model = model
        self._vdso = vdso
        self._observer = observer
        self._records = records
        self._xcr0 = xcr0

    # -- the stop ---------------------------------------------------------------------------

    def on_signal(self, tracee: Tracee, signal: int) -> None:
        """Handle a signal-delivery stop and let the thread go on."""
        if signal == n.SIGILL:
            # The way of every ecall, so without a look at the siginfo: that somebody else's SIGILL
            # comes just before an EENTER or EEXIT is the one case in which it would tell more.
            regs = tracee.load_regs()
            if regs.rax & 0xFFFFFFFF in _COMMON and tracee.process.mm.read(regs.rip, 3) == ENCLU:
                self._on_enclu(tracee, signal)
                return
        if signal in n.FAULT_SIGNALS:
            info = ptrace.get_siginfo(tracee.tid)
            _, _, code, address = _SIGINFO_HEAD.unpack_from(info)
            if code > 0:
                self._on_fault(tracee, signal, code, address)
                return
            if tracee.inside and (tracee.sigmask or 0) & _bit(signal):
                # Sent by somebody, and blocked but for us: it waits until the thread is outside.
                tracee.held.append((signal, info))
                ptrace.cont(tracee.tid)
                return
        if not tracee.inside:
            self._pass_on(tracee, signal)
            return
        info = ptrace.get_siginfo(tracee.tid)
        tracee.load_regs()
        self._exit_asynchronously(tracee, Event(None, 0, 0))
        self._deliver(tracee, signal, info)

    def _on_fault(self, tracee: Tracee, signal: int, code: int, address: int) -> None:
        regs = tracee.load_regs()
        # A page fault at RIP itself is a fetch that failed: no instruction was there to execute.
        if signal == n.SIGILL or (signal == n.SIGSEGV and address != regs.rip):
            head = tracee.mm.read(regs.rip, 3)
            if head == ENCLU:
                self._on_enclu(tracee, signal)
                return
            known = regs.rip in tracee.mm.cpuid_sites and not tracee.inside
            if known and (head[:2] == UD2 or not tracee.mm.reachable):
                self._on_cpuid(tracee, signal, len(CPUID))
                return
            if tracee.mm.cpuid_faults and not tracee.inside and code == _SI_KERNEL:
                length = cpuid_length(tracee.mm.read(regs.rip, LONGEST))
                if length:
                    self._on_cpuid(tracee, signal, length)
                    return
        if not tracee.inside:
            if regs.rip == tracee.mm.path_load and regs.rip:
                # A path call with a bad pointer: the kernel shall say so.
                regs.rip = tracee.mm.path_ask
                self._unforce(tracee, signal)
                self._resume(tracee)
                return
            if signal != n.SIGSEGV or not self._on_enclave_memory(tracee, code, address):
                self._pass_on(tracee, signal)
            return
        if signal == n.SIGTRAP and code in _DEBUG_TRAPS:
            # Without DBGOPTIN nothing steps or breaks inside, and POPF cannot set TF.
            regs.rflags &= ~RFLAGS_TF
            self._resume(tracee)
            return
        if handler_of(tracee.process.actions.get(signal)) == _SIG_IGN:
            tracee.fault_reset |= _bit(signal)
        if signal == n.SIGSEGV and page_faults.passed_over(tracee, code, address):
            self._resume(tracee)
            return
        event, signal, info = self._classify(tracee, signal, code, address)
        at_vdso = self._exit_asynchronously(tracee, event) == tracee.mm.aep and tracee.mm.aep
        if at_vdso and event.vector not in (VECTOR_DB, VECTOR_BP):
            self._fix_up(tracee, event.vector or 0, event.error_code, event.address, True)
            self._resume(tracee)
        else:
            self._deliver(tracee, signal, info)

    def _on_enclave_memory(self, tracee: Tracee, code: int, address: int) -> bool:
        """Handle a SIGSEGV outside that is not what the kernel's driver would make of it; tell whether."""
        if page_faults.passed_over(tracee, code, address):
            self._unforce(tracee, n.SIGSEGV)
            self._resume(tracee)
            return True
        if not page_faults.out_of_reach(tracee, code, address):
            return False
        self._unforce(tracee, n.SIGSEGV)
        self._deliver(tracee, n.SIGBUS, _siginfo(n.SIGBUS, page_faults.BUS_ADRERR, address))
        return True

    @staticmethod
    def _pass_on(tracee: Tracee, signal: int) -> None:
        if signal in n.FAULT_SIGNALS:
            tracee.process.spend_handler(signal)
        ptrace.cont(tracee.tid, signal)

    # -- CPUID ------------------------------------------------------------------------------

    def _on_cpuid(self, tracee: Tracee, signal: int, length: int) -> None:
        regs = tracee.regs
        leaf, subleaf = regs.rax & 0xFFFFFFFF, regs.rcx & 0xFFFFFFFF
        native = self._vdso.native_cpuid(leaf, subleaf)
        regs.rax, regs.rbx, regs.rcx, regs.rdx = self._model.cpuid(leaf, subleaf, native)
        regs.rip += length
        self._unforce(tracee, signal)
        self._observer.cpuid(tracee, leaf, subleaf)
        tracee.trapped = True
        self._resume(tracee)

    # -- ENCLU ------------------------------------------------------------------------------

    def _on_enclu(self, tracee: Tracee, signal: int) -> None:
        regs = tracee.regs
        lp = tracee.lp
        if lp is None:
            lp = tracee.lp = self._logical_processor(tracee)
        leaf = regs.rax & 0xFFFFFFFF
        was_inside = lp.inside
        tcs = regs.rbx
        try:
            if was_inside and not _in_elrange(lp, regs.rip):
                raise Fault.gp(f"the enclave went on at {regs.rip:#x} without EEXIT")
            enclu(self._cpu, lp, regs)
        except Fault as fault:
            self._observer.leaf(tracee, leaf, tcs, fault)
            if was_inside:
                self._fault_inside(tracee, fault)
            else:
                self._unforce(tracee, signal)
                self._fault_outside(tracee, fault, tracee.regs.rip)
            return
        self._observer.leaf(tracee, leaf, tcs, None)
        tracee.trapped = True
        if lp.inside:
            if not was_inside:
                self._point_to_tcs(tracee, lp)
                self._unforce(tracee, signal)
                mask = tracee.checked_mask or 0
                tracee.sigmask = mask
                if mask & n.FAULT_MASK:
                    ptrace.set_sigmask(tracee.tid, mask & ~n.FAULT_MASK)
            self._resume(tracee)
            return
        if handler_of(tracee.process.actions.get(signal)) == _SIG_IGN:
            tracee.fault_reset |= _bit(signal)
        self._left(tracee)
        self._resume(tracee)

    def _logical_processor(self, tracee: Tracee) -> LogicalProcessor:
        tid = tracee.tid
        tracee.record_slot, record = self._records.thread()
        struct.pack_into("<I", record, _TID, tid)
        return LogicalProcessor(
            record=record,
            translate=lambda address: (
                tracee.mm.enclaves.translate(address) if tracee.mm.enclaves else None
            ),
            xcr0=self._xcr0,
            load_xsave=lambda: ptrace.get_xstate(tid),
            store_xsave=lambda image: ptrace.set_xstate(tid, image),
        )

    def _point_to_tcs(self, tracee: Tracee, lp: LogicalProcessor) -> None:
        thread = lp.thread
        if thread is not None and tracee.mm.records:
            offset = self._records.tcs_offset(thread.secs.eid, thread.linaddr)
            lp.quads[_TCS_RECORD] = tracee.mm.records + offset if offset else 0

    def _fault_inside(self, tracee: Tracee, fault: Fault) -> None:
        event = Event(fault.vector, fault.error_code, fault.address or 0)
        aep = self._exit_asynchronously(tracee, event)
        if aep == tracee.mm.aep:
            self._fix_up(tracee, fault.vector, fault.error_code, fault.address or 0, True)
            self._resume(tracee)
        else:
            self._deliver(tracee, *self._as_signal(fault, aep))

    def _fault_outside(self, tracee: Tracee, fault: Fault, rip: int) -> None:
        if rip == tracee.mm.aep:
            self._fix_up(tracee, fault.vector, fault.error_code, fault.address or 0, False)
            self._resume(tracee)
        else:
            self._deliver(tracee, *self._as_signal(fault, rip))

    @staticmethod
    def _as_signal(fault: Fault, rip: int) -> tuple[int, bytes]:
        # arch/x86/kernel/traps.c, mm/fault.c: what a fault is told as.
        match fault.vector:
            case 14:
                present = fault.error_code & (PFEC_P | PFEC_SGX)
                code = page_faults.SEGV_ACCERR if present else _SEGV_MAPERR
                address = (fault.address or 0) & _PAGE_MASK
                return n.SIGSEGV, _siginfo(n.SIGSEGV, code, address)
            case 6:
                return n.SIGILL, _siginfo(n.SIGILL, _ILL_ILLOPN, rip)
            case _:
                return n.SIGSEGV, _siginfo(n.SIGSEGV, _SI_KERNEL, 0)

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
        aex(self._cpu, _lp(tracee), tracee.regs, event)
        self._observer.aex(tracee, event)
        self._left(tracee)
        return tracee.regs.rip

    def _left(self, tracee: Tracee) -> None:
        # The thread is outside again: its own mask, and the actions that forced signals reset.
        mask, tracee.sigmask = tracee.sigmask, None
        if mask is not None and mask & n.FAULT_MASK:
            ptrace.set_sigmask(tracee.tid, mask)
        if tracee.fault_reset:
            self._restore_actions(tracee)
        if tracee.held:
            self._send_held(tracee)

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
            return Event(VECTOR_GP, 0, 0), n.SIGSEGV, _siginfo(n.SIGSEGV, _SI_KERNEL, 0)
        aep = lp.quads[_AEP]
        illegal = n.SIGILL, _siginfo(n.SIGILL, _ILL_ILLOPN, aep)
        if signal == n.SIGSEGV and code == _SI_KERNEL:
            if illegal_inside(tracee.mm.read(regs.rip, LONGEST)):
                return Event(VECTOR_UD, 0, 0), *illegal
            return Event(VECTOR_GP, 0, 0), n.SIGSEGV, _siginfo(n.SIGSEGV, _SI_KERNEL, 0)
        if signal == n.SIGSEGV or (signal == n.SIGBUS and code != _BUS_ADRALN):
            told, told_code, error_code = page_faults.inside(tracee, signal, code, address)
            event = Event(VECTOR_PF, error_code, address)
            return event, told, _siginfo(told, told_code, page)
        if signal == n.SIGBUS:
            return Event(VECTOR_AC, 0, 0), n.SIGBUS, _siginfo(n.SIGBUS, code, aep)
        if signal == n.SIGFPE:
            vector = VECTOR_DE
            if code != _FPE_INTDIV:
                status = struct.unpack_from("<H", ptrace.get_xstate(tracee.tid), 2)[0]
                vector = VECTOR_MF if status & _FSW_ES else VECTOR_XM
            return Event(vector, 0, 0), n.SIGFPE, _siginfo(n.SIGFPE, code, aep)
        if signal == n.SIGTRAP and tracee.mm.read(regs.rip - 1, 1) == bytes([_INT3]):
            # Without DBGOPTIN an INT3 inside is #UD, and a fault: RIP at the instruction.
            regs.rip -= 1
        return Event(VECTOR_UD, 0, 0), *illegal

    # -- signals ----------------------------------------------------------------------------

    def _unforce(self, tracee: Tracee, signal: int) -> None:
        """Undo what the kernel's forced delivery of `signal` did to mask and action.

        The mask after it cannot tell whether the signal was blocked before. A handler that is
        gone tells; without one only a mask in which the other fault signals are all blocked,
        looked at again whenever the rest of the mask has changed.
        """
        mask = ptrace.get_sigmask(tracee.tid)
        bit = _bit(signal)
        handler = handler_of(tracee.process.actions.get(signal))
        before = tracee.checked_mask
        if handler > _SIG_IGN:
            blocked = not self._caught(tracee, signal)
        elif before is not None and mask | bit == before | bit:
            blocked = bool(before & bit)
        else:
            others = n.FAULT_MASK & ~bit
            blocked = mask & others == others
        tracee.checked_mask = mask | bit if blocked else mask
        if blocked:
            ptrace.set_sigmask(tracee.tid, mask | bit)
        if handler == _SIG_IGN or (blocked and handler):
            tracee.fault_reset |= bit
        if tracee.fault_reset:
            # Now, because this stop is ours to end; that of somebody's signal would not be.
            self._restore_actions(tracee)

    @staticmethod
    def _caught(tracee: Tracee, signal: int) -> bool:
        with open(f"/proc/{tracee.tid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"SigCgt:"):
                    return bool(int(line.split()[1], 16) & _bit(signal))
        return True

    @staticmethod
    def _restore_actions(tracee: Tracee) -> None:
        reset, tracee.fault_reset = tracee.fault_reset, 0
        with tracee.injecting() as injector:
            for signal in n.FAULT_SIGNALS:
                action = tracee.process.actions.get(signal)
                if reset & _bit(signal) and action is not None:
                    with tracee.mm.scratch_for(action) as at:
                        injector.call(n.SYS_RT_SIGACTION, signal, at, 0, 8)
        tracee.borrowed = True

    def _resume(self, tracee: Tracee) -> None:
        tracee.borrowed = False
        tracee.store_regs()
        ptrace.cont(tracee.tid)

    def _deliver(self, tracee: Tracee, signal: int, info: bytes) -> None:
        """Deliver a signal with the thread's registers as they are recorded."""
        tid = tracee.tid
        mask = ptrace.get_sigmask(tid)
        handler = handler_of(tracee.process.actions.get(signal))
        if _SIGINFO_HEAD.unpack_from(info)[2] > 0:
            # kernel/signal.c, force_sig_info_to_task: a fault that is blocked or ignored takes
            # the default action.
            if handler and (mask & _bit(signal) or handler == _SIG_IGN):
                default = bytes(32)
                with tracee.injecting() as injector, tracee.mm.scratch_for(default) as at:
                    injector.call(n.SYS_RT_SIGACTION, signal, at, 0, 8)
                tracee.borrowed = True
            mask &= ~_bit(signal)
        tracee.store_regs()
        if tracee.borrowed:
            # An injected call has ended the signal-delivery stop: ask for another one, before
            # the thread's next instruction and before any other signal.
            tracee.borrowed = False
            ptrace.set_sigmask(tid, ~_bit(signal) & _ALL)
            ptrace.tgkill(tracee.process.pid, tid, signal)
            tracee.go_to_signal(signal)
        ptrace.set_sigmask(tid, mask)
        ptrace.set_siginfo(tid, info)
        self._pass_on(tracee, signal)
