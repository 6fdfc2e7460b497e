# SPDX-License-Identifier: Apache-2.0
"""ENCLU, and the leaves that move control: EENTER, ERESUME, EEXIT, EDECCSSA, and the asynchronous exit.

A leaf that faults has changed nothing. All that a transition keeps is in the thread's ThreadRecord and
the TCS's TcsRecord, where code inside the program could do the same. STATE is written last on the way
in and on the way out, so that who finds a TCS inactive finds the rest of it settled.
"""

from softsgx.arch.attributes import (
    ATTRIBUTE_AEXNOTIFY,
    ATTRIBUTE_MODE64BIT,
    MISC_EXINFO,
    SSA_AEXNOTIFY,
    TCS_ACTIVE,
    TCS_AEXNOTIFY,
    TCS_DBGOPTIN,
    TCS_INACTIVE,
)
from softsgx.arch.codes import LeafCode
from softsgx.arch.exceptions import (
    EXITINFO_TYPE_HARDWARE,
    EXITINFO_TYPE_SHIFT,
    EXITINFO_TYPE_SOFTWARE,
    EXITINFO_VALID,
    PFEC_P,
    PFEC_SGX,
    PFEC_U,
    PFEC_W,
    VECTOR_AC,
    VECTOR_BP,
    VECTOR_BR,
    VECTOR_DB,
    VECTOR_DE,
    VECTOR_GP,
    VECTOR_MF,
    VECTOR_PF,
    VECTOR_UD,
    VECTOR_XM,
)
from softsgx.arch.secinfo import (
    PT_REG,
    PT_TCS,
    SECINFO_MODIFIED,
    SECINFO_PENDING,
    SECINFO_R,
    SECINFO_W,
)
from softsgx.arch.structures import Exinfo, Gprsgx
from softsgx.arch.thread import (
    MODE_INSIDE,
    MODE_OUTSIDE,
    STATE_OPEN,
    STATE_TID_SHIFT,
    ThreadRecord,
)
from softsgx.cpu import xsave
from softsgx.cpu.epc import EPCM_BLOCKED, EPCM_TYPE_SHIFT, EPCM_VALID
from softsgx.cpu.processor import LogicalProcessor, Processor
from softsgx.cpu.registers import (
    RFLAGS_AC,
    RFLAGS_AF,
    RFLAGS_CF,
    RFLAGS_DF,
    RFLAGS_ID,
    RFLAGS_NT,
    RFLAGS_OF,
    RFLAGS_PF,
    RFLAGS_RF,
    RFLAGS_SF,
    RFLAGS_STATUS,
    RFLAGS_TF,
    RFLAGS_ZF,
    Registers,
)
from softsgx.cpu.secs import AEP, CSSA, STATE, THREAD, SecsPage, Thread, canonical
from softsgx.errors import Fault

ENCLU_LENGTH = 3

_EREPORT = 0
_EGETKEY = 1
_EENTER = 2
_ERESUME = 3
_EEXIT = 4
_EDECCSSA = 9
_SGX2 = range(5, 8)  # EACCEPT, EMODPE, EACCEPTCOPY

_MODE = ThreadRecord.OFFSETS["mode"] // 4
_SELECTOR = ThreadRecord.OFFSETS["selector"]
_TID = ThreadRecord.OFFSETS["tid"] // 4
_TCS = ThreadRecord.OFFSETS["tcs"] // 8
_ELRANGE_BASE = ThreadRecord.OFFSETS["elrange_base"] // 8
_ELRANGE_SIZE = ThreadRecord.OFFSETS["elrange_size"] // 8
_HOST_FSBASE = ThreadRecord.OFFSETS["host_fsbase"] // 8
_HOST_GSBASE = ThreadRecord.OFFSETS["host_gsbase"] // 8
_THREAD_AEP = ThreadRecord.OFFSETS["aep"] // 8
_HOST_RFLAGS = ThreadRecord.OFFSETS["host_rflags"] // 8
# The selector of syscall user dispatch: system calls pass, or stop the thread.
_SELECTOR_ALLOW = 0
_SELECTOR_BLOCK = 1

_URSP = Gprsgx.OFFSETS["ursp"]

_TCS_WORD = EPCM_VALID | PT_TCS << EPCM_TYPE_SHIFT
_SSA_WORD = EPCM_VALID | PT_REG << EPCM_TYPE_SHIFT | SECINFO_R | SECINFO_W
_SSA_MASK = (
    0xFF << EPCM_TYPE_SHIFT
    | EPCM_VALID
    | EPCM_BLOCKED
    | SECINFO_PENDING
    | SECINFO_MODIFIED
    | SECINFO_R
    | SECINFO_W
)

# What ERESUME takes of SSA.RFLAGS; IF and IOPL stay as they are, and so does TF for a debugger that
# opted in: it steps an enclave by setting TF outside (SDM, ERESUME Operation).
_RFLAGS_RESUMED = (
    RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_DF | RFLAGS_OF
    | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID | RFLAGS_RF
)  # fmt: skip

_REPORTED = frozenset(
    {VECTOR_DE, VECTOR_DB, VECTOR_BP, VECTOR_BR, VECTOR_UD, VECTOR_MF, VECTOR_AC, VECTOR_XM}
)
_REPORTED_WITH_EXINFO = frozenset({VECTOR_PF, VECTOR_GP})


class Event:
    """Why a thread leaves its enclave: a vector with its error code and address, or an interrupt (None)."""

    __slots__ = ("address", "error_code", "vector")

    def __init__(self, vector: int | None = None, error_code: int = 0, address: int = 0) -> None:
        self.vector = vector
        self.error_code = error_code
        self.address = address


def enclu(cpu: Processor, lp: LogicalProcessor, regs: Registers) -> int:
    """Execute the ENCLU at RIP, any leaf; return the leaf's number.

    A Fault leaves registers and state as they were.
    """
    leaf = regs.rax & 0xFFFF_FFFF
    if leaf > _EEXIT and leaf not in cpu.model.enclu:
        raise Fault.gp(f"ENCLU leaf {leaf:#x} is not supported")
    inside = lp.words[_MODE] == MODE_INSIDE
    if leaf == _EENTER:
        if inside:
            raise Fault.gp("EENTER inside an enclave")
        eenter(cpu, lp, regs)
        return leaf
    if leaf == _ERESUME:
        if inside:
            raise Fault.gp("ERESUME inside an enclave")
        eresume(cpu, lp, regs)
        return leaf
    if not inside:
        raise Fault.gp(f"ENCLU leaf {leaf} outside an enclave")
    if leaf == _EEXIT:
        eexit(cpu, lp, regs)
        return leaf
    if leaf == _EDECCSSA:
        edeccssa(cpu, lp)
        regs.rip += ENCLU_LENGTH
        return leaf
    code: LeafCode | None = None
    if leaf in _SGX2:
        from softsgx.cpu import sgx2  # noqa: PLC0415  # most enclaves stay as they were built

        code = sgx2.enclu(cpu, lp, leaf, regs.rbx, regs.rcx, regs.rdx)
    else:
        from softsgx.cpu import keys  # noqa: PLC0415  # most programs never use them

        if leaf == _EREPORT:
            keys.ereport(cpu, lp, regs.rbx, regs.rcx, regs.rdx)
        elif leaf == _EGETKEY:
            code = keys.egetkey(cpu, lp, regs.rbx, regs.rcx)
        else:
            code = keys.everifyreport2(cpu, lp, regs.rbx)
    if code is not None:
        regs.rax = int(code)
        regs.rflags = regs.rflags & ~RFLAGS_STATUS | (RFLAGS_ZF if code else 0)
    regs.rip += ENCLU_LENGTH
    return leaf


def _tcs(cpu: Processor, lp: LogicalProcessor, address: int, aep: int) -> Thread:
    """Make the checks that EENTER and ERESUME share, up to CSSA; return the TCS."""
    if address & 0xFFF:
        raise Fault.gp(f"TCS address {address:#x} is not page aligned")
    page = lp.translate(address)
    if page is None:
        raise Fault.pf(address, "the TCS does not resolve within the EPC", PFEC_U)
    if not canonical(aep):
        raise Fault.gp(f"AEP {aep:#x} is not canonical")
    epc = cpu.epc
    if page in epc.busy:
        raise Fault.gp("the TCS is in use by another leaf")
    if epc.words[page] != _TCS_WORD or epc.addresses[page] != address:
        raise Fault.pf(address, "the page is no TCS to enter by", PFEC_U | PFEC_P | PFEC_SGX)
    thread = cpu.threads[page]
    if thread.ossa & 0xFFF:
        raise Fault.gp(f"TCS.OSSA {thread.ossa:#x} is not page aligned")
    if thread.ofsbasgx & 0xFFF or thread.ogsbasgx & 0xFFF:
        raise Fault.gp("TCS.OFSBASGX or OGSBASGX is not page aligned")
    if not (canonical(thread.fsbase) and canonical(thread.gsbase)):
        raise Fault.gp("the enclave's FS or GS base is not canonical")
    flags = thread.flags
    if flags & ~cpu.model.tcs_flags:
        raise Fault.gp(f"TCS.FLAGS {flags:#x} has reserved bits")
    secs = thread.secs
    if not flags & TCS_DBGOPTIN and bool(flags & TCS_AEXNOTIFY) != bool(
        secs.attributes & ATTRIBUTE_AEXNOTIFY
    ):
        raise Fault.gp("TCS.FLAGS.AEXNOTIFY is not what SECS.ATTRIBUTES.AEXNOTIFY is")
    if not secs.initialised:
        raise Fault.gp("the enclave is not initialised")
    if not secs.attributes & ATTRIBUTE_MODE64BIT:
        raise Fault.gp("a 32-bit enclave cannot be entered in 64-bit mode")
    if secs.xfrm & ~lp.xcr0:
        raise Fault.gp(f"XFRM {secs.xfrm:#x} is beyond XCR0 {lp.xcr0:#x}")
    return thread


def check_frame(cpu: Processor, lp: LogicalProcessor, thread: Thread, cssa: int) -> int:
    """Check the pages of an SSA frame that a transition may write; return the frame's address."""
    frame = thread.frame + thread.frame_size * cssa
    secs = thread.secs
    epc, translate = cpu.epc, lp.translate
    for offset in secs.ssa_pages:
        address = frame + offset
        page = translate(address)
        # Beyond the XSAVE area it is GPRSGX itself that is looked at.
        shown = address if offset < secs.xsave_size else thread.gprsgx(cssa)
        if page is None:
            raise Fault.pf(shown, "a page of the SSA frame is not present", PFEC_U | PFEC_W)
        if (
            epc.words[page] & _SSA_MASK != _SSA_WORD
            or epc.owners[page] != secs.page
            or epc.addresses[page] != address
        ):
            code = PFEC_U | PFEC_W | PFEC_P | PFEC_SGX
            raise Fault.pf(shown, "a page of the SSA frame is not a writable page of ours", code)
    return frame


def _claim(lp: LogicalProcessor, regs: Registers, thread: Thread, cssa: int) -> None:
    """Commit what EENTER and ERESUME do to the records; before the registers change."""
    aep = regs.rcx
    words, quads = thread.words, thread.quads
    words[CSSA] = cssa
    quads[THREAD] = 0
    quads[AEP] = aep
    # A program that has changed its record may have made it no thread's id.
    words[STATE] = (lp.words[_TID] << STATE_TID_SHIFT | TCS_ACTIVE) & 0xFFFF_FFFF
    thread.cycle = thread.secs.cycle
    lp.take(thread)
    lp.cssa = cssa
    record = lp.quads
    record[_TCS] = thread.linaddr
    record[_ELRANGE_BASE] = thread.secs.baseaddr
    record[_ELRANGE_SIZE] = thread.secs.size
    record[_HOST_FSBASE] = regs.fsbase
    record[_HOST_GSBASE] = regs.gsbase
    record[_THREAD_AEP] = aep
    record[_HOST_RFLAGS] = regs.rflags
    lp.record[_SELECTOR] = _SELECTOR_BLOCK
    lp.words[_MODE] = MODE_INSIDE


def _release(lp: LogicalProcessor, thread: Thread) -> None:
    lp.words[_MODE] = MODE_OUTSIDE
    lp.record[_SELECTOR] = _SELECTOR_ALLOW
    lp.take(None)
    thread.words[STATE] &= STATE_OPEN


def _inside(lp: LogicalProcessor) -> Thread:
    thread = lp.thread
    if thread is None:
        raise ValueError("the logical processor is not inside an enclave")
    return thread


def eenter(cpu: Processor, lp: LogicalProcessor, regs: Registers) -> None:
    """EENTER: enter by the TCS in RBX, with RCX as the AEP (SDM volume 3D, EENTER)."""
    thread = _tcs(cpu, lp, regs.rbx, regs.rcx)
    cssa = thread.words[CSSA]
    if cssa >= thread.nssa:
        raise Fault.gp(f"TCS.CSSA {cssa} is not below NSSA {thread.nssa}")
    check_frame(cpu, lp, thread, cssa)
    _enter(lp, regs, thread, cssa)


def _enter(lp: LogicalProcessor, regs: Registers, thread: Thread, cssa: int) -> None:
    """Begin at OENTRY with an SSA frame that has been checked."""
    if not canonical(thread.oentry):
        raise Fault.gp(f"the entry point {thread.oentry:#x} is not canonical")
    thread.shut()
    if thread.words[STATE] & TCS_ACTIVE:
        raise Fault.gp("the TCS is active")
    # The enclave finds the stack of its caller here.
    outer_stack = regs.rsp.to_bytes(8, "little") + regs.rbp.to_bytes(8, "little")
    thread.secs.elrange.write(thread.gprsgx(cssa) + _URSP, outer_stack)
    _claim(lp, regs, thread, cssa)
    regs.rax = cssa
    regs.rcx = regs.rip + ENCLU_LENGTH
    regs.rip = thread.oentry
    regs.fsbase = thread.fsbase
    regs.gsbase = thread.gsbase
    if not thread.flags & TCS_DBGOPTIN:
        regs.rflags &= ~RFLAGS_TF


def eresume(cpu: Processor, lp: LogicalProcessor, regs: Registers) -> None:
    """ERESUME: go on from the last SSA frame of the TCS in RBX, with RCX as the AEP.

    Where the frame asks for AEX-Notify, enter with the next one instead: the enclave itself goes on.
    """
    thread = _tcs(cpu, lp, regs.rbx, regs.rcx)
    cssa = thread.words[CSSA]
    # Beyond NSSA is what only software that shares the record can have written.
    if not 0 < cssa <= thread.nssa:
        raise Fault.gp(f"TCS.CSSA {cssa}: there is no frame to resume from")
    cssa -= 1
    frame = check_frame(cpu, lp, thread, cssa)
    secs = thread.secs
    gprsgx = Gprsgx.decode(secs.elrange.read(thread.gprsgx(cssa), Gprsgx.SIZE))
    if thread.flags & TCS_AEXNOTIFY and gprsgx.aexnotify & SSA_AEXNOTIFY:
        cssa += 1
        if cssa >= thread.nssa:
            raise Fault.gp(f"AEX-Notify, and TCS.CSSA {cssa} is not below NSSA {thread.nssa}")
        check_frame(cpu, lp, thread, cssa)
        _enter(lp, regs, thread, cssa)
        return
    if not canonical(gprsgx.rip):
        raise Fault.gp(f"SSA RIP {gprsgx.rip:#x} is not canonical")
    if not (canonical(gprsgx.fsbase) and canonical(gprsgx.gsbase)):
        raise Fault.gp("SSA FSBASE or GSBASE is not canonical")
    thread.shut()
    if thread.words[STATE] & TCS_ACTIVE:
        raise Fault.gp("the TCS is active")
    area = secs.elrange.read(frame, secs.xsave_size)
    image = xsave.restored(lp.load_xsave(), area, secs.xfrm, cpu.model.xsave_sizes)
    lp.store_xsave(image)
    _claim(lp, regs, thread, cssa)
    _load_gprs(regs, gprsgx)
    kept = regs.rflags & ~_RFLAGS_RESUMED
    if not thread.flags & TCS_DBGOPTIN:
        kept &= ~RFLAGS_TF
    regs.rflags = kept | gprsgx.rflags & _RFLAGS_RESUMED
    regs.rip = gprsgx.rip
    regs.fsbase = gprsgx.fsbase
    regs.gsbase = gprsgx.gsbase


def _load_gprs(regs: Registers, gprsgx: Gprsgx) -> None:
    regs.rax, regs.rcx, regs.rdx, regs.rbx = gprsgx.rax, gprsgx.rcx, gprsgx.rdx, gprsgx.rbx
    regs.rsp, regs.rbp, regs.rsi, regs.rdi = gprsgx.rsp, gprsgx.rbp, gprsgx.rsi, gprsgx.rdi
    regs.r8, regs.r9, regs.r10, regs.r11 = gprsgx.r8, gprsgx.r9, gprsgx.r10, gprsgx.r11
    regs.r12, regs.r13, regs.r14, regs.r15 = gprsgx.r12, gprsgx.r13, gprsgx.r14, gprsgx.r15


def eexit(_cpu: Processor, lp: LogicalProcessor, regs: Registers) -> None:
    """EEXIT: leave to the address in RBX; the stack and all other registers stay the enclave's."""
    thread = _inside(lp)
    if not canonical(regs.rbx):
        raise Fault.gp(f"EEXIT target {regs.rbx:#x} is not canonical")
    record = lp.quads
    regs.rip = regs.rbx
    regs.rcx = record[_THREAD_AEP]
    regs.fsbase = record[_HOST_FSBASE]
    regs.gsbase = record[_HOST_GSBASE]
    if not thread.flags & TCS_DBGOPTIN:
        # Not only set: natively POPF sets TF inside, and outside it must not go on to step.
        regs.rflags = regs.rflags & ~RFLAGS_TF | record[_HOST_RFLAGS] & RFLAGS_TF
    _release(lp, thread)


def edeccssa(cpu: Processor, lp: LogicalProcessor) -> None:
    """EDECCSSA: the next AEX goes to the frame below; nothing else changes."""
    thread = _inside(lp)
    if not lp.cssa:
        raise Fault.gp("EDECCSSA, and CSSA is 0")
    check_frame(cpu, lp, thread, lp.cssa - 1)
    thread.shut()
    lp.cssa -= 1
    thread.words[CSSA] = lp.cssa


def aex(cpu: Processor, lp: LogicalProcessor, regs: Registers, event: Event) -> None:
    """Leave asynchronously: save the thread in its SSA frame and give it the synthetic state.

    CR2 is the caller's: after a #PF its low 12 bits are clear.
    """
    thread = _inside(lp)
    # The next one to enter has another frame.
    thread.shut()
    secs = thread.secs
    elrange = secs.elrange
    cssa = lp.cssa
    vector = event.vector
    where = thread.gprsgx(cssa)
    abandoned = thread.abandoned is not None
    before = thread.abandoned or Gprsgx.decode(elrange.read(where, Gprsgx.SIZE))
    image = lp.load_xsave()
    area = xsave.saved(image, secs.xfrm, cpu.model.xsave_sizes, secs.xsave_size)
    synthetic = xsave.synthetic(image, secs.xfrm, vector)

    rflags = regs.rflags & ~RFLAGS_TF
    if vector is not None and vector != VECTOR_DB:
        # As a fault's frame shows it: the instruction will be executed again.
        rflags |= RFLAGS_RF
    gprsgx = Gprsgx(
        rax=regs.rax, rcx=regs.rcx, rdx=regs.rdx, rbx=regs.rbx,
        rsp=regs.rsp, rbp=regs.rbp, rsi=regs.rsi, rdi=regs.rdi,
        r8=regs.r8, r9=regs.r9, r10=regs.r10, r11=regs.r11,
        r12=regs.r12, r13=regs.r13, r14=regs.r14, r15=regs.r15,
        rflags=rflags, rip=regs.rip, ursp=before.ursp, urbp=before.urbp,
        exitinfo=_exitinfo(vector, secs.miscselect), aexnotify=before.aexnotify,
        fsbase=regs.fsbase, gsbase=regs.gsbase,
    )  # fmt: skip
    if not abandoned:
        elrange.write(thread.frame + thread.frame_size * cssa, area)
        elrange.write(where, gprsgx.encode())
    if secs.miscselect & MISC_EXINFO and vector in _REPORTED_WITH_EXINFO and not abandoned:
        maddr = event.address if vector == VECTOR_PF else 0
        exinfo = Exinfo(maddr=maddr, errcd=event.error_code)
        elrange.write(where - Exinfo.SIZE, exinfo.encode())

    lp.store_xsave(synthetic)

    record = lp.quads
    aep = record[_THREAD_AEP]
    regs.rax = _ERESUME
    regs.rbx = thread.linaddr
    regs.rcx = aep
    regs.rdx = regs.rsi = regs.rdi = 0
    regs.r8 = regs.r9 = regs.r10 = regs.r11 = regs.r12 = regs.r13 = regs.r14 = regs.r15 = 0
    regs.rsp = before.ursp
    regs.rbp = before.urbp
    regs.rip = aep
    regs.rflags &= ~(RFLAGS_STATUS | RFLAGS_RF)
    if not thread.flags & TCS_DBGOPTIN:
        regs.rflags = regs.rflags & ~RFLAGS_TF | record[_HOST_RFLAGS] & RFLAGS_TF
    regs.fsbase = record[_HOST_FSBASE]
    regs.gsbase = record[_HOST_GSBASE]
    thread.words[CSSA] = cssa + 1
    _release(lp, thread)


def _exitinfo(vector: int | None, miscselect: int) -> int:
    if vector in _REPORTED or (miscselect & MISC_EXINFO and vector in _REPORTED_WITH_EXINFO):
        kind = EXITINFO_TYPE_SOFTWARE if vector == VECTOR_BP else EXITINFO_TYPE_HARDWARE
        return EXITINFO_VALID | kind << EXITINFO_TYPE_SHIFT | (vector or 0)
    return 0


def abandon(secs: SecsPage) -> None:
    """Take an enclave's pages from under the threads inside, before they are removed.

    To the processor they are out. Each makes its exit when it next faults, by the outer stack that its
    frame has now, and nothing of it is saved.
    """
    secs.shut()
    for thread in secs.inside():
        where = thread.gprsgx(thread.words[CSSA])
        thread.abandoned = Gprsgx.decode(secs.elrange.read(where, Gprsgx.SIZE))
        thread.words[STATE] = TCS_INACTIVE


def thread_gone(lp: LogicalProcessor) -> None:
    """Release the TCS of a thread that died: CSSA counts an AEX, whose frame holds nothing new."""
    thread = lp.thread
    if thread is None:
        return
    thread.shut()
    thread.words[CSSA] = min(lp.cssa + 1, thread.nssa)
    _release(lp, thread)
