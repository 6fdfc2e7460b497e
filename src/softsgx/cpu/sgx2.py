# SPDX-License-Identifier: Apache-2.0
"""Dynamic memory (SGX2): EAUG, EMODPR and EMODT of the system, EACCEPT, EMODPE and EACCEPTCOPY of the enclave.

A page is changed in two steps: the system's leaf makes it PENDING, MODIFIED or PR, and the enclave accepts it.
EMODPR and EMODT remember the tracking cycle (tracking.py) that they found: what they took away is gone once a
later cycle is complete, and until then EACCEPT says NOT_TRACKED.

What nobody inside may touch has no contents in the Elrange, so that whoever maps it has a hole there: a PENDING
page is zero until it is accepted, the contents of a TCS are kept with the EPCM from EMODT on, and those of a
TRIM page nobody reads again.

None of these leaves is ever suspended behind its operands.
"""

from softsgx.arch.attributes import ATTRIBUTE_MODE64BIT, TCS_DBGOPTIN
from softsgx.arch.codes import LeafCode
from softsgx.arch.exceptions import PFEC_P, PFEC_SGX, PFEC_U, PFEC_W
from softsgx.arch.leaves import Enclu
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    PT_REG,
    PT_TCS,
    PT_TRIM,
    SECINFO_MODIFIED,
    SECINFO_PAGE_TYPE,
    SECINFO_PAGE_TYPE_SHIFT,
    SECINFO_PENDING,
    SECINFO_PR,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_RESERVED,
    SECINFO_RWX,
    SECINFO_TCS,
    SECINFO_TRIM,
    SECINFO_W,
)
from softsgx.arch.structures import Pageinfo, Secinfo, Tcs
from softsgx.cpu.epc import EPCM_BLOCKED, EPCM_VALID, PageIndex
from softsgx.cpu.memory import Memory
from softsgx.cpu.operands import pageinfo_at, secinfo_at
from softsgx.cpu.processor import LogicalProcessor, Processor
from softsgx.cpu.secs import SecsPage
from softsgx.cpu.tracking import CHILDREN, held, tracked_before
from softsgx.errors import Fault

# What EAUG makes, before it is accepted.
_AUGMENTED = SECINFO_REG | SECINFO_R | SECINFO_W | SECINFO_PENDING
# What EACCEPT compares, and what it clears.
_MATCHED = SECINFO_PAGE_TYPE | SECINFO_RWX | SECINFO_PENDING | SECINFO_MODIFIED
_TRANSITION = SECINFO_PENDING | SECINFO_MODIFIED | SECINFO_PR

_REG_MASK = SECINFO_PAGE_TYPE | EPCM_VALID | EPCM_BLOCKED | SECINFO_PENDING | SECINFO_MODIFIED
_REG_WORD = SECINFO_REG | EPCM_VALID


# -- ENCLS --------------------------------------------------------------------------------------------


def eaug(cpu: Processor, memory: Memory, rbx: int, rcx: int) -> None:
    """EAUG: PAGEINFO in RBX, the free EPC page in RCX."""
    epc = cpu.epc
    if rbx % Pageinfo.SIZE:
        raise Fault.gp("PAGEINFO is not 32-byte aligned")
    if rcx % PAGE_SIZE:
        raise Fault.gp("the EPC address is not page aligned")
    page = epc.resolve(rcx)
    with memory.user_access() as window:
        pageinfo = pageinfo_at(window, rbx)
    if pageinfo.secs % PAGE_SIZE or pageinfo.linaddr % PAGE_SIZE:
        raise Fault.gp("SECS or LINADDR is not page aligned")
    # A SECINFO is for pages of shadow stacks, which are not there without CET.
    if pageinfo.srcpge or pageinfo.secinfo:
        raise Fault.gp("PAGEINFO.SRCPGE or SECINFO is not zero")
    eaug_page(cpu, page, epc.resolve(pageinfo.secs), pageinfo.linaddr)


def eaug_page(cpu: Processor, page: PageIndex, owner: PageIndex, linaddr: int) -> None:
    """EAUG of operands that are in memory, from the locks on."""
    epc = cpu.epc
    if page in epc.busy or owner in epc.busy:
        raise Fault.gp("the EPC page or the SECS is in use by another leaf")
    if epc.valid(page):
        raise Fault.pf(epc.address(page), "the EPC page is in use")
    if not epc.is_secs(owner):
        raise Fault.pf(epc.address(owner), "the page is no valid SECS")
    secs = cpu.enclaves[owner]
    if not secs.initialised:
        raise Fault.gp("the enclave is not initialised")
    if not 0 <= linaddr - secs.baseaddr < secs.size:
        raise Fault.gp(f"LINADDR {linaddr:#x} is outside ELRANGE")
    epc.set_child(page, _AUGMENTED, owner, linaddr)
    secs.children += 1


def emodpr(cpu: Processor, memory: Memory, rbx: int, rcx: int) -> LeafCode:
    """EMODPR: SECINFO in RBX, the EPC page in RCX."""
    page, flags = _changed(cpu, memory, rbx, rcx)
    if flags & SECINFO_W and not flags & SECINFO_R:
        raise Fault.gp(f"SECINFO {flags:#x} is writable but not readable")
    return emodpr_page(cpu, page, flags)


def emodpr_page(cpu: Processor, page: PageIndex, flags: int) -> LeafCode:
    """EMODPR of a SECINFO that is in memory, from the locks on."""
    epc = cpu.epc
    word = epc.words[page]
    if page in epc.busy:
        # One that is on its way in, or that a leaf beside this one has.
        if not word & EPCM_VALID:
            raise Fault.gp("the EPC page is in use by another leaf")
        return LeafCode.EPC_PAGE_CONFLICT
    if not word & EPCM_VALID:
        raise Fault.pf(epc.address(page), "the EPC page is not valid")
    # Before the type: so a TRIM page that is not accepted yet gives this, and one that is a #PF.
    if word & (SECINFO_PENDING | SECINFO_MODIFIED):
        return LeafCode.PAGE_NOT_MODIFIABLE
    if epc.page_type(page) != PT_REG:
        raise Fault.pf(epc.address(page), "the EPC page is not REG")
    secs = cpu.enclaves[epc.owners[page]]
    if not secs.initialised:
        raise Fault.gp("the enclave is not initialised")
    epc.shut(page)
    epc.words[page] = word & (flags | ~SECINFO_RWX) | SECINFO_PR
    epc.modified[page] = secs.cycle
    return LeafCode.NO_ERROR


def emodt(cpu: Processor, memory: Memory, rbx: int, rcx: int) -> LeafCode:
    """EMODT: SECINFO in RBX, the EPC page in RCX."""
    page, flags = _changed(cpu, memory, rbx, rcx)
    kind = flags >> SECINFO_PAGE_TYPE_SHIFT
    if kind not in {PT_TCS, PT_TRIM}:
        raise Fault.gp(f"SECINFO {flags:#x} is neither of a TCS nor of a TRIM page")
    return emodt_page(cpu, page, kind)


def emodt_page(cpu: Processor, page: PageIndex, kind: int) -> LeafCode:
    """EMODT to a type that is TCS or TRIM, from the locks on.

    On the TCS or the SSA frame of a thread inside it is a conflict: no interrupt drives the thread out, and
    its next exit writes there.
    """
    epc = cpu.epc
    if page in epc.busy:
        return LeafCode.EPC_PAGE_CONFLICT
    word = epc.words[page]
    if not word & EPCM_VALID:
        raise Fault.pf(epc.address(page), "the EPC page is not valid")
    before = epc.page_type(page)
    if before != PT_REG and not (before == PT_TCS and kind == PT_TRIM):
        raise Fault.pf(epc.address(page), f"a page of type {before} does not become one of {kind}")
    if word & (SECINFO_PENDING | SECINFO_MODIFIED):
        return LeafCode.PAGE_NOT_MODIFIABLE
    secs = cpu.enclaves[epc.owners[page]]
    if not secs.initialised:
        raise Fault.gp("the enclave is not initialised")
    linaddr = epc.addresses[page]
    epc.shut(page)
    if linaddr in held(secs):
        return LeafCode.EPC_PAGE_CONFLICT
    if before == PT_TCS:
        cpu.drop_thread(secs, page)
        del epc.contents[page]
    else:
        if kind == PT_TCS:
            epc.contents[page] = bytearray(secs.elrange.read(linaddr, PAGE_SIZE))
        secs.elrange.discard(linaddr, PAGE_SIZE)
    kept = word & (EPCM_VALID | EPCM_BLOCKED)
    epc.words[page] = kept | SECINFO_MODIFIED | kind << SECINFO_PAGE_TYPE_SHIFT
    epc.modified[page] = secs.cycle
    return LeafCode.NO_ERROR


def _changed(cpu: Processor, memory: Memory, rbx: int, rcx: int) -> tuple[PageIndex, int]:
    """Make the checks that EMODPR and EMODT share; return the page and SECINFO.FLAGS."""
    if rbx % Secinfo.SIZE:
        raise Fault.gp("SECINFO is not 64-byte aligned")
    if rcx % PAGE_SIZE:
        raise Fault.gp("the EPC address is not page aligned")
    page = cpu.epc.resolve(rcx)
    with memory.user_access() as window:
        return page, secinfo_at(window, rbx)


# -- ENCLU --------------------------------------------------------------------------------------------


def enclu(
    cpu: Processor, lp: LogicalProcessor, leaf: int, rbx: int, rcx: int, rdx: int
) -> LeafCode | None:
    """Execute EACCEPT, EMODPE or EACCEPTCOPY inside; None for EMODPE, which has no code."""
    if leaf == Enclu.EACCEPT:
        return eaccept(cpu, lp, rbx, rcx)
    if leaf == Enclu.EACCEPTCOPY:
        return eacceptcopy(cpu, lp, rbx, rcx, rdx)
    emodpe(cpu, lp, rbx, rcx)
    return None


def eaccept(cpu: Processor, lp: LogicalProcessor, rbx: int, rcx: int) -> LeafCode:
    """EACCEPT: SECINFO in RBX, the page in RCX; both are addresses inside the enclave."""
    secs, epc = _current(lp), cpu.epc
    _require_aligned(rbx, Secinfo.SIZE)
    _require_inside(secs, rbx)
    flags = _secinfo(cpu, lp, secs, rbx)
    _require_aligned(rcx, PAGE_SIZE)
    _require_inside(secs, rcx)
    page = _resolve(lp, rcx)
    if not _acceptable(flags):
        raise Fault.gp(f"SECINFO {flags:#x} is of no page that could be accepted")
    word = epc.words[page]
    if (
        word & (EPCM_VALID | EPCM_BLOCKED) != EPCM_VALID
        or word >> SECINFO_PAGE_TYPE_SHIFT not in CHILDREN
        or epc.owners[page] != secs.page
    ):
        raise _denied(rcx, "the page is no page of ours")
    if page in epc.busy:
        raise Fault.gp("the page is in use by another leaf")
    if epc.addresses[page] != rcx or (word ^ flags) & _MATCHED:
        return LeafCode.PAGE_ATTRIBUTES_MISMATCH
    if epc.modified.get(page, -1) >= tracked_before(secs):
        return LeafCode.NOT_TRACKED
    if flags & SECINFO_PAGE_TYPE == SECINFO_TCS:
        data = bytes(epc.contents[page])
        _check_tcs(secs, data)
        cpu.put_thread(secs, page, rcx, data)
    elif flags & SECINFO_PENDING:
        # From here on it has contents.
        secs.elrange.write(rcx, bytes(PAGE_SIZE))
    epc.words[page] = word & ~_TRANSITION
    epc.modified.pop(page, None)
    return LeafCode.NO_ERROR


def emodpe(cpu: Processor, lp: LogicalProcessor, rbx: int, rcx: int) -> None:
    """EMODPE: SECINFO in RBX, the page in RCX, as EACCEPT."""
    secs, epc = _current(lp), cpu.epc
    _require_aligned(rbx, Secinfo.SIZE)
    _require_aligned(rcx, PAGE_SIZE)
    _require_inside(secs, rbx, rcx)
    _resolve(lp, rbx)
    page = _resolve(lp, rcx)
    flags = _secinfo(cpu, lp, secs, rbx)
    word = epc.words[page]
    if word & _REG_MASK != _REG_WORD or epc.owners[page] != secs.page:
        raise _denied(rcx, "the page is no accepted REG page of ours")
    if page in epc.busy:
        raise Fault.gp("the page is in use by another leaf")
    if epc.addresses[page] != rcx:
        raise _denied(rcx, "the page belongs elsewhere")
    if flags & SECINFO_W and not (flags | word) & SECINFO_R:
        raise Fault.gp(f"SECINFO {flags:#x} makes the page writable but not readable")
    epc.words[page] = word | flags & SECINFO_RWX


def eacceptcopy(cpu: Processor, lp: LogicalProcessor, rbx: int, rcx: int, rdx: int) -> LeafCode:
    """EACCEPTCOPY: SECINFO in RBX, the PENDING page in RCX, the page that is copied in RDX."""
    secs, epc = _current(lp), cpu.epc
    _require_aligned(rbx, Secinfo.SIZE)
    _require_aligned(rcx, PAGE_SIZE)
    _require_aligned(rdx, PAGE_SIZE)
    _require_inside(secs, rbx, rcx, rdx)
    _resolve(lp, rbx)
    page = _resolve(lp, rcx, PFEC_W)
    _resolve(lp, rdx)
    flags = _secinfo(cpu, lp, secs, rbx)
    if flags & SECINFO_W and not flags & SECINFO_R:
        raise Fault.gp(f"SECINFO {flags:#x} is writable but not readable")
    if flags & SECINFO_PAGE_TYPE != SECINFO_REG:
        raise Fault.gp(f"SECINFO {flags:#x} is not of a REG page")
    _require_readable(cpu, lp, secs, rdx)
    word = epc.words[page]
    if word & _REG_MASK != _REG_WORD | SECINFO_PENDING or epc.owners[page] != secs.page:
        return LeafCode.PAGE_ATTRIBUTES_MISMATCH
    if page in epc.busy:
        raise Fault.gp("the page is in use by another leaf")
    if word & SECINFO_RWX != SECINFO_R | SECINFO_W or epc.addresses[page] != rcx:
        raise _denied(rcx, "the page is not as EAUG has made it", PFEC_W)
    secs.elrange.write(rcx, secs.elrange.read(rdx, PAGE_SIZE))
    epc.words[page] = (word | flags & SECINFO_RWX) & ~SECINFO_PENDING
    return LeafCode.NO_ERROR


def _acceptable(flags: int) -> bool:
    """Tell whether page type, PENDING, MODIFIED and PR are of a page that waits to be accepted."""
    kind, transition = flags & SECINFO_PAGE_TYPE, flags & _TRANSITION
    if kind == SECINFO_REG:
        return bool(transition) and not transition & SECINFO_MODIFIED
    return kind in {SECINFO_TCS, SECINFO_TRIM} and transition == SECINFO_MODIFIED


def _check_tcs(secs: SecsPage, data: bytes) -> None:
    tcs = Tcs.decode(data)
    if not Tcs.reserved_is_zero(data):
        raise Fault.gp("TCS reserved bytes are not zero")
    if tcs.flags & TCS_DBGOPTIN or tcs.cssa >= tcs.nssa or tcs.aep or tcs.state:
        raise Fault.gp("TCS.DBGOPTIN, AEP or STATE is not zero, or CSSA is not below NSSA")
    if not secs.attributes & ATTRIBUTE_MODE64BIT and not (
        tcs.fslimit & 0xFFF == 0xFFF and tcs.gslimit & 0xFFF == 0xFFF
    ):
        raise Fault.gp("TCS.FSLIMIT or GSLIMIT does not end in FFF")


def _current(lp: LogicalProcessor) -> SecsPage:
    if lp.thread is None:
        raise ValueError("the logical processor is not inside an enclave")
    return lp.thread.secs


def _require_aligned(address: int, align: int) -> None:
    if address % align:
        raise Fault.gp(f"operand {address:#x} is not {align}-byte aligned")


def _require_inside(secs: SecsPage, *addresses: int) -> None:
    for address in addresses:
        if not 0 <= address - secs.baseaddr < secs.size:
            raise Fault.gp(f"operand {address:#x} is outside ELRANGE")


def _resolve(lp: LogicalProcessor, address: int, write: int = 0) -> PageIndex:
    page = lp.resolve(address)
    if page is None:
        raise Fault.pf(address, "the operand's page is not present", PFEC_U | write)
    return page


def _denied(address: int, reason: str, write: int = 0) -> Fault:
    return Fault.pf(address, reason, PFEC_U | PFEC_P | PFEC_SGX | write)


def _require_readable(cpu: Processor, lp: LogicalProcessor, secs: SecsPage, address: int) -> None:
    epc, page = cpu.epc, _resolve(lp, address)
    word = epc.words[page]
    if (
        word & (_REG_MASK | SECINFO_R) != _REG_WORD | SECINFO_R
        or epc.owners[page] != secs.page
        or epc.addresses[page] != address & -PAGE_SIZE
    ):
        raise _denied(address, "the operand's page is no readable page of ours")


def _secinfo(cpu: Processor, lp: LogicalProcessor, secs: SecsPage, address: int) -> int:
    """Read a SECINFO inside the enclave; #GP if what is reserved is not zero."""
    _require_readable(cpu, lp, secs, address)
    data = secs.elrange.read(address, Secinfo.SIZE)
    flags = Secinfo.decode(data).flags
    if flags & SECINFO_RESERVED or not Secinfo.reserved_is_zero(data):
        raise Fault.gp(f"SECINFO {flags:#x} has reserved bits")
    return flags
