# SPDX-License-Identifier: Apache-2.0
"""Transitions that never stop: which threads and TCSs the program's own code may use, and who has.

Owns the tables by which csrc/vdso/transitions.S finds the records of a thread and of a TCS, and
STATE_OPEN. The first transition of a thread, and any that is not plainly the common case, traps, and
EnclaveTraps carries it out. What a leaf has found in order then holds until it is shut: whatever changes
a page that the leaf has looked at, or its mapping, shuts the TCS first (Thread.shut), so that the next
entry traps and is looked at anew.

While it is inside such a thread is in no other mode of ptrace than outside, for nobody sees it go in.
So its SYSCALLs are stopped by syscall user dispatch, whose selector the transition writes, and not by
PTRACE_SYSEMU. That needs a system call of the thread itself, once.

Source: Documentation/admin-guide/syscall-user-dispatch.rst.
"""

import os
import time
from functools import partial

from softsgx.arch.attributes import TCS_ACTIVE, TCS_DBGOPTIN
from softsgx.arch.structures import Gprsgx
from softsgx.arch.thread import STATE_OPEN, STATE_TID_SHIFT, TcsRecord, ThreadRecord
from softsgx.cpu.registers import RFLAGS_TF
from softsgx.cpu.secs import AEP, CSSA, STATE, THREAD
from softsgx.cpu.transition import check_frame
from softsgx.errors import Fault
from softsgx.run import numbers as n
from softsgx.run import ptrace
from softsgx.run.mm import Refused
from softsgx.run.probes import fsgsbase
from softsgx.run.ptrace import TraceeGone, failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.cpu.processor import LogicalProcessor, Processor
    from softsgx.cpu.secs import Thread
    from softsgx.run.mm import Mm
    from softsgx.run.observe import Observer
    from softsgx.run.records import RecordTable
    from softsgx.run.tracee import Tracee
    from softsgx.run.vdso import VdsoImage

# csrc/vdso/transitions.S
_THREADS = _TCSS = 512
_THREAD_QUADS, _TCS_QUADS = 4, 2
_PROBES = 4
_TCSS_AT = (_THREADS + _PROBES) * _THREAD_QUADS
_SPREAD, _SPREAD_SHIFT = 0x61C88647, 40
_WORD = (1 << 64) - 1

_PR_SET_SYSCALL_USER_DISPATCH = 59
_PR_SYS_DISPATCH_ON = 1

_BMI2 = 1 << 8  # CPUID.7:EBX

_THREAD_WORDS = {name: at // 4 for name, at in ThreadRecord.OFFSETS.items()}
_THREAD_FIELDS = {name: at // 8 for name, at in ThreadRecord.OFFSETS.items()}
_SELECTOR = ThreadRecord.OFFSETS["selector"]
_TAKEN, _WATCH = _THREAD_WORDS["taken"], _THREAD_WORDS["watch"]
_TCS_RECORD, _HOST_RFLAGS = _THREAD_FIELDS["tcs_record"], _THREAD_FIELDS["host_rflags"]
_TCS, _THREAD_AEP = _THREAD_FIELDS["tcs"], _THREAD_FIELDS["aep"]
_ELRANGE_BASE, _ELRANGE_SIZE = _THREAD_FIELDS["elrange_base"], _THREAD_FIELDS["elrange_size"]
_HOST_FSBASE, _HOST_GSBASE = _THREAD_FIELDS["host_fsbase"], _THREAD_FIELDS["host_gsbase"]
ENTERED, LEFT = _THREAD_FIELDS["entered"], _THREAD_FIELDS["left"]
_TCS_FIELDS = {name: at // 8 for name, at in TcsRecord.OFFSETS.items()}
_ENTRY, _FSBASE, _GSBASE = _TCS_FIELDS["entry"], _TCS_FIELDS["fsbase"], _TCS_FIELDS["gsbase"]
_URSP = _TCS_FIELDS["ursp"]
_TCS_WATCH = TcsRecord.OFFSETS["watch"] // 4
_GPRSGX_URSP = Gprsgx.OFFSETS["ursp"]
_STOPS_WITHIN = 0.02  # seconds
# A thread that runs may leave and enter again while its record is looked at.
_LOOKS = 16


def missing(vdso: "VdsoImage") -> str:
    """Say what this host's processor or kernel lacks for it; empty if nothing."""
    if not fsgsbase().ok:
        return "this host's kernel or processor has no FSGSBASE"
    if not vdso.native_cpuid(7)[1] & _BMI2:
        return "this host's processor has no BMI2"
    return ""


def _spread(value: int) -> int:
    return (value * _SPREAD & _WORD) >> _SPREAD_SHIFT


class Space:
    """The table of one address space, at an offset of the shared one: threads by bases, TCSs by address."""

    def __init__(self, records: "RecordTable", offset: int) -> None:
        self._records = records
        self._offset = offset
        self._quads = records.quads[offset // 8 :]
        self._threads: dict[tuple[int, int], tuple[Tracee, int]] = {}
        self._shared: set[tuple[int, int]] = set()  # bases that two threads have had at a time
        # By TCS: its entry, and what its pages and those of its SSA frames span.
        self._tcss: dict[int, tuple[int, int, int]] = {}

    def close(self) -> None:
        """Give the table back: the address space is gone."""
        self._records.give_back_space(self._offset)

    def enter_thread(self, key: tuple[int, int], tracee: "Tracee", record: int) -> bool:
        """Let a thread be found by its bases; False where another one has the same, or there is no room."""
        known = self._threads.get(key)
        if known is not None:
            other = known[0]
            if other is tracee:
                return True
            self.forget_thread(other)
            if not (other.ended or ptrace.has_ended(other.tid)) and other.mm is tracee.mm:
                # Neither can be told from the other, now or later.
                self._shared.add(key)
        if key in self._shared:
            return False
        first = _spread(sum(key)) & (_THREADS - 1)
        for at in range(first * _THREAD_QUADS, (first + _PROBES) * _THREAD_QUADS, _THREAD_QUADS):
            if not self._quads[at + 2]:
                self._quads[at + 2] = record
                self._quads[at + 1] = key[1]
                self._quads[at] = key[0]
                self._threads[key] = tracee, at
                tracee.bases = key
                return True
        return False

    def forget_thread(self, tracee: "Tracee") -> None:
        """Let a thread be found no more."""
        key, tracee.bases = tracee.bases, None
        if key is not None and key in self._threads and self._threads[key][0] is tracee:
            self._clear(self._threads.pop(key)[1])

    def forget_ended(self) -> None:
        """Let no thread be found that has ended."""
        for tracee, _ in list(self._threads.values()):
            if ptrace.has_ended(tracee.tid):
                self.forget_thread(tracee)

    def forget_bases(self, key: tuple[int, int]) -> None:
        """Let no thread be found by these bases."""
        known = self._threads.get(key)
        if known is not None:
            self.forget_thread(known[0])

    def _clear(self, at: int) -> None:
        # No base is like that: it is not canonical.
        self._quads[at] = self._quads[at + 1] = _WORD >> 1
        self._quads[at + 2] = 0

    def enter_tcs(self, linaddr: int, record: int, low: int, high: int) -> bool:
        """Let a TCS be found, as long as the mappings of its pages, [low, high), stay what they are.

        False where there is no room.
        """
        known = self._tcss.pop(linaddr, None)
        if known is not None:
            # Another enclave may have been here, and there may be another frame.
            self._quads[known[0]] = self._quads[known[0] + 1] = 0
        first = _spread(linaddr) & (_TCSS - 1)
        for number in range(first, first + _PROBES):
            at = _TCSS_AT + number * _TCS_QUADS
            if not self._quads[at + 1]:
                self._quads[at + 1] = record
                self._quads[at] = linaddr
                self._tcss[linaddr] = at, low, high
                return True
        return False

    def changed(self, start: int, end: int) -> None:
        """Hear that mappings change: the leaf shall look at what lies there."""
        for linaddr, (at, low, high) in list(self._tcss.items()):
            if low < end and start < high:
                self._quads[at] = self._quads[at + 1] = 0
                del self._tcss[linaddr]


class FastPath:
    """Opens TCSs to the program's own code, and finds out who has used them."""

    def __init__(
        self,
        processor: "Processor",
        vdso: "VdsoImage",
        records: "RecordTable",
        observer: "Observer",
    ) -> None:
        self._cpu = processor
        self._vdso = vdso
        self._records = records
        self._observer = observer
        self._shut = vdso.shut()
        self._filters = _filters(os.getpid())
        # By the offset of its record: of who enters without a leaf nothing else is known.
        self._threads: dict[int, Thread] = {}

    # -- after a transition that trapped -------------------------------------------------------

    def entered(self, tracee: "Tracee", lp: "LogicalProcessor", watched: bool) -> None:
        """Open the TCS by which a thread has just entered by a leaf; it still stands at its ENCLU.

        `watched` tells whether its enclave has CPUIDs, for which debug registers are set.
        """
        thread = lp.thread
        tracee.entered_before = lp.quads[ENTERED]
        lp.words[_WATCH] = thread.secs.eid & 0xFFFFFFFF if watched and thread is not None else 0
        if thread is None or thread.flags & TCS_DBGOPTIN or thread.abandoned is not None:
            return
        mm = tracee.mm
        space = mm.space or self._begin(mm)
        offset = self._records.tcs_offset(thread.secs.eid, thread.linaddr)
        if space is None or not offset or not self._registered(tracee, lp, space):
            return
        thread.words[_TCS_WATCH] = thread.secs.eid & 0xFFFFFFFF if watched else 0
        self._open(tracee, lp, thread, space, offset, lp.cssa)
        if not ((tracee.sigmask or 0) & n.FAULT_MASK or lp.quads[_HOST_RFLAGS] & RFLAGS_TF):
            thread.quads[THREAD] = mm.records + tracee.record_slot * ThreadRecord.SIZE

    def left_by_aex(self, tracee: "Tracee", lp: "LogicalProcessor", thread: "Thread") -> None:
        """Open a TCS again that was open until the AEX: the next entry, of a handler, has the next frame."""
        cssa = thread.words[CSSA]
        space = tracee.mm.space
        offset = self._records.tcs_offset(thread.secs.eid, thread.linaddr)
        if space is None or not offset or cssa >= thread.nssa or thread.abandoned is not None:
            return
        try:
            check_frame(self._cpu, lp, thread, cssa)
        except Fault:
            # So will the leaf find.
            return
        self._open(tracee, lp, thread, space, offset, cssa)

    def _begin(self, mm: "Mm") -> Space | None:
        if not mm.records or not mm.image or mm.enclaves is None:
            self._observer.slow("the program has no room for the records")
            return None
        offset = self._records.space()
        if offset < 0:
            self._observer.slow("more programs enter enclaves at once than there are tables")
            return None
        mm.space = mm.enclaves.space = Space(self._records, offset)
        mm.find_records(mm.image + self._vdso.table, mm.records + offset)
        return mm.space

    def _registered(self, tracee: "Tracee", lp: "LogicalProcessor", space: Space) -> bool:
        bases = lp.quads[_HOST_FSBASE], lp.quads[_HOST_GSBASE]
        if tracee.bases == bases:
            return True
        space.forget_thread(tracee)
        for rival in list(tracee.rivals):
            if rival.mm is tracee.mm and not _differ(rival, bases):
                self._observer.slow("a thread has the FS and GS base of another")
                return False
            tracee.rivals.discard(rival)
        if not tracee.dispatched and not self._dispatch(tracee):
            self._observer.slow("the thread may not use syscall user dispatch")
            return False
        lp.words[_TAKEN] = tracee.tid << STATE_TID_SHIFT | STATE_OPEN | TCS_ACTIVE
        record = tracee.mm.records + tracee.record_slot * ThreadRecord.SIZE
        if not space.enter_thread(bases, tracee, record):
            self._observer.slow("a thread has the FS and GS base of another, or there are too many")
            return False
        return True

    def _dispatch(self, tracee: "Tracee") -> bool:
        mm = tracee.mm
        # The program's own it is to keep; and what a sandbox of its own does with the call nobody knows.
        if ptrace.has_dispatch(tracee.tid) or _filters(tracee.tid) > self._filters_of(tracee):
            return False
        selector = mm.records + tracee.record_slot * ThreadRecord.SIZE + _SELECTOR
        with tracee.injecting() as injector:
            result = injector.call(
                *(n.SYS_PRCTL, _PR_SET_SYSCALL_USER_DISPATCH, _PR_SYS_DISPATCH_ON),
                *(mm.image, self._vdso.size, selector),
            )
        tracee.dispatched = not failed(result)
        return tracee.dispatched

    def _filters_of(self, tracee: "Tracee") -> int:
        process = tracee.process
        return self._filters + 1 + process.filtered + len(process.guarded)

    def _open(
        self,
        tracee: "Tracee",
        lp: "LogicalProcessor",
        thread: "Thread",
        space: Space,
        offset: int,
        cssa: int,
    ) -> None:
        frame = thread.frame + thread.frame_size * cssa
        pages: list[int] = [thread.page]
        for at in thread.secs.ssa_pages:
            page = lp.translate(frame + at)
            if page is None:
                return
            pages.append(page)
        opened = self._cpu.epc.open
        for page in pages:
            opened.setdefault(page, set()).add(thread)
        quads = thread.quads
        quads[_ENTRY], quads[_FSBASE], quads[_GSBASE] = (
            thread.oentry,
            thread.fsbase,
            thread.gsbase,
        )
        quads[_URSP] = thread.gprsgx(cssa) + _GPRSGX_URSP
        self._threads[offset] = thread
        thread.close = partial(self._shut, self._records.address(offset))
        thread.words[STATE] |= STATE_OPEN
        low, high = min(thread.linaddr, frame), max(thread.linaddr, frame + thread.frame_size - 1)
        if not space.enter_tcs(thread.linaddr, tracee.mm.records + offset, low, high + 1):
            self._observer.slow("the program enters by more TCSs than its table has room for")

    # -- who has entered, or left, without a leaf -------------------------------------------------

    def adopt(self, tracee: "Tracee") -> "Thread | None":
        """Find the TCS by which a thread has entered without a leaf, as its record tells."""
        lp = tracee.lp
        if lp is None:
            return None
        for _ in range(_LOOKS):
            thread = self._threads.get(lp.quads[_TCS_RECORD] - tracee.mm.records)
            if thread is not None and self._has(tracee, thread):
                break
            if not lp.inside:
                # It is running, and has left meanwhile.
                return None
        else:
            raise Refused(
                f"process {tracee.process.pid} has changed what softsgx keeps of its threads: thread "
                f"{tracee.tid} claims to be inside an enclave"
            )
        quads, secs = lp.quads, thread.secs
        quads[_TCS] = thread.linaddr
        quads[_ELRANGE_BASE], quads[_ELRANGE_SIZE] = secs.baseaddr, secs.size
        # Who single-steps has trapped.
        quads[_HOST_RFLAGS] = 0
        thread.quads[AEP] = quads[_THREAD_AEP]
        return thread

    @staticmethod
    def _has(tracee: "Tracee", thread: "Thread") -> bool:
        owner = thread.words[STATE] >> STATE_TID_SHIFT
        return owner == tracee.tid or thread.abandoned is not None

    def taken(self, tracee: "Tracee", lp: "LogicalProcessor") -> "Thread | None":
        """Find the TCS that a thread which is outside has taken to enter, or has not given back yet."""
        thread = self._threads.get(lp.quads[_TCS_RECORD] - tracee.mm.records)
        if thread is None or thread.words[STATE] >> STATE_TID_SHIFT != tracee.tid:
            return None
        return thread

    def forget_enclave(self, eid: int) -> None:
        """Forget the TCSs of an enclave that is gone."""
        self._threads = {
            offset: thread for offset, thread in self._threads.items() if thread.secs.eid != eid
        }

    @staticmethod
    def on_stranger(tracee: "Tracee") -> None:
        """Hear of the stop of a thread that has entered by no leaf yet; its registers are loaded.

        It may have the bases of one that is ending, of which nobody has been told yet: a thread that is
        joined leaves its stack to the next.
        """
        if tracee.mm.space is not None:
            tracee.mm.space.forget_bases((tracee.regs.fsbase, tracee.regs.gsbase))

    def on_share(self, tracee: "Tracee", child: "Tracee") -> None:
        """Hear that a thread has made another one in its address space, which begins with its bases."""
        space = tracee.mm.space
        if space is not None:
            space.forget_thread(tracee)
            # Whose bases the new one will give itself is somebody's who is gone.
            space.forget_ended()
        # Whichever of them enters first; but who waits in vfork enters nothing.
        for other in {tracee, *tracee.rivals}:
            other.rivals.add(child)
            if child.awaited_by is not other:
                child.rivals.add(other)


def _filters(tid: int) -> int:
    """Give how many seccomp filters a thread has (Linux 5.9)."""
    with open(f"/proc/{tid}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Seccomp_filters:"):
                return int(line.split()[1])
    return 0


def _differ(rival: "Tracee", bases: tuple[int, int]) -> bool:
    """Tell whether a thread that has had another's bases, or given it its own, has others by now, or has ended."""
    if rival.ended or rival.bases is not None:
        return True
    regs = ptrace.UserRegs()
    deadline = time.monotonic() + _STOPS_WITHIN
    try:
        if not ptrace.stands(rival.tid):
            ptrace.interrupt(rival.tid)
        while not ptrace.stands(rival.tid):
            if time.monotonic() > deadline or ptrace.has_ended(rival.tid):
                return ptrace.has_ended(rival.tid)
        ptrace.get_regs(rival.tid, regs)
    except TraceeGone:
        return True
    return (regs.fsbase, regs.gsbase) != bases


def counted(lp: "LogicalProcessor") -> tuple[int, int]:
    """Give how often a thread has entered and left without a leaf."""
    return lp.quads[ENTERED], lp.quads[LEFT]
