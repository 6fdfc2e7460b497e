# SPDX-License-Identifier: Apache-2.0
"""Blocking and tracking: EBLOCK, ETRACK and ETRACKC; and ERDINFO, which tells of a page (SDM volume 3D).

EBLOCK forbids new translations of a page. A tracking cycle shows that no logical processor has an old one:
it is complete when every thread that was inside as ETRACK began it has left.

A cycle is a number.  A thread remembers the cycle that it entered in, a blocked page the one in which
EBLOCK found it: the page is tracked once a later cycle has begun and no thread inside is as old as it.

None of these leaves is ever suspended, so two of them never meet on a SECS; and what else is at work on a
SECS shares it with them.  Only an enclave's page that is on its way into the EPC or out of it is a conflict.
"""

from softsgx.arch.attributes import TCS_ACTIVE
from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    PT_REG,
    PT_SECS,
    PT_TCS,
    PT_TRIM,
    PT_VA,
    SECINFO_PAGE_TYPE_SHIFT,
)
from softsgx.arch.structures import Rdinfo
from softsgx.cpu.epc import EPCM_BLOCKED, EPCM_SECINFO, EPCM_VALID, Epc, PageIndex
from softsgx.cpu.memory import Memory
from softsgx.cpu.processor import Processor
from softsgx.cpu.secs import CSSA, STATE, SecsPage
from softsgx.errors import Fault

# The types of the pages that an enclave addresses: those that are blocked and tracked.
CHILDREN = frozenset({PT_REG, PT_TCS, PT_TRIM})

_RDINFO_CHILDPRESENT = 1
_RDINFO_BLOCKED = 1 << 63
_RDINFO_WRITTEN = 24


def _modified(epc: Epc, page: PageIndex) -> bool:
    """Tell whether another leaf has the page for itself."""
    return page in epc.busy and not epc.is_secs(page)


def eblock(cpu: Processor, rcx: int) -> LeafCode:
    """EBLOCK: the EPC page in RCX."""
    epc = cpu.epc
    if rcx % PAGE_SIZE:
        raise Fault.gp("the EPC address is not page aligned")
    return eblock_page(cpu, epc.resolve(rcx))


def eblock_page(cpu: Processor, page: PageIndex) -> LeafCode:
    """EBLOCK, as the driver uses it."""
    epc = cpu.epc
    if epc.busy and _modified(epc, page):
        return LeafCode.EPC_PAGE_CONFLICT
    word = epc.words[page]
    if not word & EPCM_VALID:
        return LeafCode.PG_INVLD
    kind = word >> SECINFO_PAGE_TYPE_SHIFT
    if kind not in CHILDREN:
        return LeafCode.PG_IS_SECS if kind == PT_SECS else LeafCode.NOTBLOCKABLE
    if word & EPCM_BLOCKED:
        return LeafCode.BLKSTATE
    epc.block(page, cpu.enclaves[epc.owners[page]].cycle)
    return LeafCode.NO_ERROR


def etrack(cpu: Processor, rcx: int) -> LeafCode:
    """ETRACK: the SECS in RCX."""
    epc = cpu.epc
    if rcx % PAGE_SIZE:
        raise Fault.gp("the EPC address is not page aligned")
    page = epc.resolve(rcx)
    if not epc.is_secs(page):
        raise Fault.pf(rcx, "the page is no valid SECS")
    return _track(cpu.enclaves[page])


def etrackc(cpu: Processor, rcx: int) -> LeafCode:
    """ETRACKC: any page of the enclave in RCX; what ETRACK answers by a fault is a code."""
    epc = cpu.epc
    if rcx % PAGE_SIZE:
        raise Fault.gp("the EPC address is not page aligned")
    page = epc.resolve(rcx)
    if _modified(epc, page):
        return LeafCode.EPC_PAGE_CONFLICT
    if not epc.valid(page):
        return LeafCode.PG_INVLD
    kind = epc.page_type(page)
    if kind == PT_VA:
        return LeafCode.TRACK_NOT_REQUIRED
    return _track(cpu.enclaves[page if kind == PT_SECS else epc.owners[page]])


def _track(secs: SecsPage) -> LeafCode:
    # Whoever comes in without a leaf does not tell in which cycle.
    secs.shut()
    if any(thread.cycle < secs.cycle for thread in secs.inside()):
        return LeafCode.PREV_TRK_INCMPL
    secs.cycle += 1
    for thread in secs.threads.values():
        # Who comes in from now on may come without a leaf.
        if not thread.words[STATE] & TCS_ACTIVE:
            thread.cycle = secs.cycle
    return LeafCode.NO_ERROR


def tracked_before(secs: SecsPage) -> int:
    """Return the cycle before which a page must have been blocked to be tracked now."""
    return min((secs.cycle, *(thread.cycle for thread in secs.inside())))


def held(secs: SecsPage) -> set[int]:
    """Give the pages, by linear address, that threads inside hold: TCSs and SSA frames.

    Their addresses were resolved on entry, so that no flush makes the threads forget them.
    """
    kept: set[int] = set()
    for thread in secs.inside():
        kept.add(thread.linaddr)
        frame = thread.frame + thread.words[CSSA] * thread.frame_size
        kept.update(frame + offset for offset in secs.ssa_pages)
    return kept


def tlb_shootdown(secs: SecsPage) -> None:
    """Record that no logical processor inside has a translation from before this cycle.

    An interrupt to each makes it so on the hardware, for the exit flushes what the processor
    remembers. Here whoever takes a page out of the page tables flushes the host's own.
    """
    secs.shut()
    for thread in secs.inside():
        thread.cycle = secs.cycle


def erdinfo(cpu: Processor, memory: Memory, rbx: int, rcx: int) -> LeafCode:
    """ERDINFO: RDINFO in RBX, which is written only if there is something to tell; the EPC page in RCX."""
    epc = cpu.epc
    if rbx % Rdinfo.SIZE or rcx % PAGE_SIZE:
        raise Fault.gp("RDINFO is not 32-byte aligned or the EPC address not page aligned")
    try:
        page = epc.resolve(rcx)
    except Fault:
        return LeafCode.PG_NONEPC
    if _modified(epc, page):
        return LeafCode.EPC_PAGE_CONFLICT
    word = epc.words[page]
    if not word & EPCM_VALID:
        return LeafCode.PG_INVLD
    kind = word >> SECINFO_PAGE_TYPE_SHIFT
    flags = word & EPCM_SECINFO | (_RDINFO_BLOCKED if word & EPCM_BLOCKED else 0)
    status = context = 0
    if kind != PT_VA:
        context = epc.address(PageIndex(page if kind == PT_SECS else epc.owners[page]))
    if kind == PT_SECS and cpu.enclaves[page].children:
        status = _RDINFO_CHILDPRESENT
    rdinfo = Rdinfo(status=status, flags=flags, enclavecontext=context).encode()
    with memory.user_access() as window:
        window.write(rbx, rdinfo[:_RDINFO_WRITTEN])
    return LeafCode.NO_ERROR
