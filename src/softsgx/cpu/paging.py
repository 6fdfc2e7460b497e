# SPDX-License-Identifier: Apache-2.0
"""Paging: EBLOCK, ETRACK, EWB, ELDB and ELDU, and the oversubscription leaves (SDM volume 3D).

A page goes out in three steps.  EBLOCK forbids new translations of it; an ETRACK cycle shows that no
logical processor has an old one; EWB seals the page, leaves its version in a VA slot, and frees it.
ELDB and ELDU bring it back if the slot still holds the version that it was sealed under.

A cycle is a number.  A thread remembers the cycle that it entered in, a blocked page the one in which
EBLOCK found it: the page is tracked once a later cycle has begun and no thread inside is older.
"""

from collections.abc import Sequence
from struct import Struct

from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    PT_REG,
    PT_SECS,
    PT_TCS,
    PT_TRIM,
    PT_VA,
    SECINFO_PAGE_TYPE_SHIFT,
    VA_SLOT_SIZE,
)
from softsgx.arch.structures import Pageinfo, Pcmd, Rdinfo, Secs, Tcs
from softsgx.cpu.epc import EPCM_BLOCKED, EPCM_VALID, PageIndex
from softsgx.cpu.memory import Memory
from softsgx.cpu.operands import pageinfo_at
from softsgx.cpu.processor import Processor
from softsgx.cpu.secs import AEP, CSSA, STATE, SecsPage, Thread
from softsgx.errors import Fault

_CHILDREN = frozenset({PT_REG, PT_TCS, PT_TRIM})
# The authenticated header, which the manual does not lay out: EID, LINADDR, SECINFO, zeros.
_MAC_HDR = Struct("<QQQ104x")
# PCMD: SECINFO, ENCLAVEID, reserved bytes, MAC.
_PCMD = Struct("<Q56xQ40x16s")
_SLOT = Struct("<Q")
# The initialisation vector is VER << 32, 96 bits, little-endian.
_IV = Struct("<4xQ")
# What of an EPCM entry SECINFO holds.
_SECINFO = 0xFFFF & ~(EPCM_VALID | EPCM_BLOCKED)
_RDINFO_CHILDPRESENT = 1
_RDINFO_BLOCKED = 1 << 63


# -- blocking and tracking --------------------------------------------------------------------------


def eblock(cpu: Processor, rcx: int) -> LeafCode:
    """EBLOCK: the EPC page in RCX."""
    epc = cpu.epc
    if rcx % PAGE_SIZE:
        raise Fault.gp("the EPC address is not page aligned")
    page = epc.resolve(rcx)
    if page in epc.busy:
        return LeafCode.EPC_PAGE_CONFLICT
    word = epc.words[page]
    if not word & EPCM_VALID:
        return LeafCode.PG_INVLD
    kind = word >> SECINFO_PAGE_TYPE_SHIFT
    if kind not in _CHILDREN:
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
    if page in epc.busy:
        raise Fault.gp("the SECS is in use by another leaf")
    if not epc.is_secs(page):
        raise Fault.pf(rcx, "the page is no valid SECS")
    return _track(cpu.enclaves[page])


def etrackc(cpu: Processor, rcx: int) -> LeafCode:
    """ETRACKC: any page of the enclave in RCX; a conflict is a code."""
    epc = cpu.epc
    if rcx % PAGE_SIZE:
        raise Fault.gp("the EPC address is not page aligned")
    page = epc.resolve(rcx)
    if page in epc.busy:
        return LeafCode.EPC_PAGE_CONFLICT
    if not epc.valid(page):
        return LeafCode.PG_INVLD
    kind = epc.page_type(page)
    if kind == PT_VA:
        return LeafCode.TRACK_NOT_REQUIRED
    owner = page if kind == PT_SECS else epc.owners[page]
    if owner in epc.busy:
        return LeafCode.EPC_PAGE_CONFLICT
    return _track(cpu.enclaves[owner])


def _track(secs: SecsPage) -> LeafCode:
    if any(thread.cycle < secs.cycle for thread in secs.inside()):
        return LeafCode.PREV_TRK_INCMPL
    secs.cycle += 1
    return LeafCode.NO_ERROR


def tlb_shootdown(secs: SecsPage) -> None:
    """Record that no logical processor inside has a translation from before this cycle.

    An interrupt to each makes it so on the hardware, for the exit flushes what the processor
    remembers. Here whoever takes a page out of the page tables flushes the host's own.
    """
    for thread in secs.inside():
        thread.cycle = secs.cycle


def held(secs: SecsPage) -> set[int]:
    """Give the pages, by linear address, that threads inside hold: TCSs and SSA frames.

    Their addresses were resolved on entry, so that no flush makes the threads forget them.
    """
    held: set[int] = set()
    for thread in secs.inside():
        held.add(thread.linaddr)
        frame = thread.frame + thread.words[CSSA] * thread.frame_size
        held.update(frame + offset for offset in secs.ssa_pages)
    return held


# -- out ----------------------------------------------------------------------------------------------


def ewb(cpu: Processor, memory: Memory, rbx: int, rcx: int, rdx: int) -> LeafCode:
    """EWB: PAGEINFO in RBX, the EPC page in RCX, the VA slot in RDX.

    VA_SLOT_OCCUPIED tells that a version was overwritten; the page is out all the same.
    """
    epc = cpu.epc
    if rbx % Pageinfo.SIZE or rcx % PAGE_SIZE:
        raise Fault.gp("PAGEINFO is not 32-byte aligned or the EPC address not page aligned")
    page = epc.resolve(rcx)
    if rdx % VA_SLOT_SIZE:
        raise Fault.gp("the VA slot is not 8-byte aligned")
    va = epc.resolve(rdx)
    if page == va:
        raise Fault.gp("the VA slot is on the page itself")
    with memory.user_access() as window:
        pageinfo = pageinfo_at(window, rbx)
        if pageinfo.linaddr or pageinfo.secs:
            raise Fault.gp("PAGEINFO.LINADDR or SECS is not zero")
        if pageinfo.secinfo % Pcmd.SIZE or pageinfo.srcpge % PAGE_SIZE:
            raise Fault.gp("PCMD is not 128-byte aligned or SRCPGE not page aligned")
        # Both places must be writable before anything is lost.
        window.write(pageinfo.srcpge, window.read(pageinfo.srcpge, PAGE_SIZE))
        window.write(pageinfo.secinfo, window.read(pageinfo.secinfo, Pcmd.SIZE))
        epc.lock(page)
        try:
            epc.lock(va)
            try:
                out = _Eviction(cpu, va)
                code = out.check(page)
                if code:
                    return code
                code, linaddr, contents, pcmd = out.seal(page, rdx % PAGE_SIZE)
                window.write(pageinfo.srcpge, contents)
                window.write(pageinfo.secinfo, pcmd)
                window.write(rbx, linaddr.to_bytes(8, "little"))
                out.finish()
            finally:
                epc.unlock((va,))
        finally:
            epc.unlock((page,))
    return code


def ewb_pages(
    cpu: Processor, pages: Sequence[int], va: PageIndex, slots: Sequence[int]
) -> tuple[LeafCode, list[tuple[int, bytes, bytes]]]:
    """EWB of pages to slots (0 to 511) of one VA page, until one returns a code or would fault.

    Returns the code that ended it, or NO_ERROR, and of the pages that are out the linear address,
    the sealed 4096 bytes and the PCMD. A Fault, as EWB's, if that is the first page.
    """
    epc = cpu.epc
    done: list[tuple[int, bytes, bytes]] = []
    if va in epc.busy or va in pages:
        raise Fault.gp("the VA page is in use by another leaf")
    out = _Eviction(cpu, va)
    out.read_ahead(pages)
    try:
        for page, slot in zip(pages, slots, strict=True):
            if page in epc.busy:
                if done:
                    break
                raise Fault.gp(f"EPC page {page} is in use by another leaf")
            try:
                code = out.check(page)
            except Fault:
                if done:
                    break
                raise
            if code:
                return code, done
            done.append(out.seal(page, slot * VA_SLOT_SIZE)[1:])
    finally:
        out.finish()
    return LeafCode.NO_ERROR, done


class _Eviction:
    """EWB of pages to slots of one VA page, operands apart."""

    __slots__ = ("_ahead", "_cpu", "_discards", "_encrypt", "_held", "_va")

    def __init__(self, cpu: Processor, va: PageIndex) -> None:
        self._cpu = cpu
        self._va = va
        self._encrypt = cpu.paging_cipher().encrypt
        self._held: dict[int, set[int]] = {}
        # Contents read before their turn, by EPC page; what is to be forgotten: enclave, address.
        self._ahead: dict[int, bytes] = {}
        self._discards: list[tuple[SecsPage, int]] = []

    def read_ahead(self, pages: Sequence[int]) -> None:
        """Read the contents of neighbours at once; blocked pages change no more."""
        epc = self._cpu.epc
        words, owners, addresses = epc.words, epc.owners, epc.addresses
        at = 0
        while at < len(pages):
            first = pages[at]
            start = at
            at += 1
            if words[first] >> SECINFO_PAGE_TYPE_SHIFT != PT_REG:
                continue
            owner, address = owners[first], addresses[first]
            while at < len(pages):
                page = pages[at]
                next_address = address + (at - start) * PAGE_SIZE
                if owners[page] != owner or addresses[page] != next_address:
                    break
                if words[page] >> SECINFO_PAGE_TYPE_SHIFT != PT_REG:
                    break
                at += 1
            if at - start > 1 and words[first] & EPCM_BLOCKED:
                elrange = self._cpu.enclaves[owner].elrange
                data = elrange.read(address, (at - start) * PAGE_SIZE)
                for i in range(start, at):
                    offset = (i - start) * PAGE_SIZE
                    self._ahead[pages[i]] = data[offset : offset + PAGE_SIZE]

    def check(self, page: int) -> LeafCode:
        """Make EWB's checks from the EPCM on."""
        cpu = self._cpu
        epc = cpu.epc
        word = epc.words[page]
        if not word & EPCM_VALID:
            raise Fault.pf(epc.address(PageIndex(page)), "the EPC page is not valid")
        if not epc.valid(self._va) or epc.page_type(self._va) != PT_VA:
            raise Fault.pf(epc.address(self._va), "the slot is on no VA page")
        kind = word >> SECINFO_PAGE_TYPE_SHIFT
        if kind in _CHILDREN:
            if not word & EPCM_BLOCKED:
                return LeafCode.PAGE_NOT_BLOCKED
            secs = cpu.enclaves[epc.owners[page]]
            cycle = epc.blocked[page]
            if secs.cycle <= cycle:
                return LeafCode.NOT_TRACKED
            if secs.active():
                if any(thread.cycle <= cycle for thread in secs.inside()):
                    return LeafCode.NOT_TRACKED
                if secs.page not in self._held:
                    self._held[secs.page] = held(secs)
                if epc.addresses[page] in self._held[secs.page]:
                    return LeafCode.NOT_TRACKED
        elif kind == PT_SECS and cpu.enclaves[page].children:
            return LeafCode.CHILD_PRESENT
        return LeafCode.NO_ERROR

    def seal(self, page: int, slot: int) -> tuple[LeafCode, int, bytes, bytes]:
        """Seal a page whose checks were passed; ``slot`` is the offset of the slot in its page."""
        cpu = self._cpu
        epc = cpu.epc
        word, linaddr = epc.words[page], epc.addresses[page]
        kind = word >> SECINFO_PAGE_TYPE_SHIFT
        eid = enclaveid = 0
        if kind in _CHILDREN:
            secs = cpu.enclaves[epc.owners[page]]
            eid = enclaveid = secs.eid
            if kind == PT_TCS:
                contents = _take_thread(cpu, secs, page)
            else:
                ahead = self._ahead.pop(page, None)
                contents = secs.elrange.read(linaddr, PAGE_SIZE) if ahead is None else ahead
                self._discards.append((secs, linaddr))
            secs.children -= 1
        elif kind == PT_SECS:
            secs = cpu.enclaves.pop(page)
            enclaveid = secs.eid
            cpu.evicted_secs[enclaveid] = secs
            contents = _secs_page(secs)
        else:
            contents = bytes(epc.contents[page])
        flags = word & _SECINFO
        cpu.version += 1
        version = cpu.version
        sealed = self._encrypt(_IV.pack(version), contents, _MAC_HDR.pack(eid, linaddr, flags))
        slots = epc.contents[self._va]
        occupied = any(slots[slot : slot + VA_SLOT_SIZE])
        _SLOT.pack_into(slots, slot, version)
        epc.clear(page)
        code = LeafCode.VA_SLOT_OCCUPIED if occupied else LeafCode.NO_ERROR
        return code, linaddr, sealed[:PAGE_SIZE], _PCMD.pack(flags, enclaveid, sealed[PAGE_SIZE:])

    def finish(self) -> None:
        """Forget the contents of what went out, neighbours at once."""
        discards = self._discards
        at = 0
        while at < len(discards):
            secs, address = discards[at]
            end = at + 1
            while (
                end < len(discards)
                and discards[end][0] is secs
                and discards[end][1] == address + (end - at) * PAGE_SIZE
            ):
                end += 1
            secs.elrange.discard(address, (end - at) * PAGE_SIZE)
            at = end
        discards.clear()


def _take_thread(cpu: Processor, secs: SecsPage, page: int) -> bytes:
    """Return a TCS page with its run-time state, and forget the thread."""
    thread = secs.threads.pop(page)
    del cpu.threads[page]
    words = thread.words
    tcs = Tcs.decode(cpu.epc.contents[page])
    return tcs.replace(
        state=words[STATE], cssa=words[CSSA], aep=thread.quads[AEP], flags=thread.flags
    ).encode()


def _secs_page(secs: SecsPage) -> bytes:
    """Return a SECS page; what the manual leaves to the processor stays with it."""
    return (
        Secs.blank()
        .replace(
            size=secs.size,
            baseaddr=secs.baseaddr,
            ssaframesize=secs.ssaframesize,
            miscselect=secs.miscselect,
            attributes=secs.attributes,
            xfrm=secs.xfrm,
            mrenclave=secs.mrenclave,
            mrsigner=secs.mrsigner,
            configid=secs.configid,
            isvprodid=secs.isvprodid,
            isvsvn=secs.isvsvn,
            configsvn=secs.configsvn,
        )
        .encode()
    )


# -- in -----------------------------------------------------------------------------------------------


def eldb(cpu: Processor, memory: Memory, rbx: int, rcx: int, rdx: int) -> LeafCode:
    """ELDB: PAGEINFO in RBX, the free EPC page in RCX, the VA slot in RDX; the page is blocked."""
    return _eld(cpu, memory, rbx, rcx, rdx, blocked=True, conflict=False)


def eldu(cpu: Processor, memory: Memory, rbx: int, rcx: int, rdx: int) -> LeafCode:
    """ELDU: PAGEINFO in RBX, the free EPC page in RCX, the VA slot in RDX."""
    return _eld(cpu, memory, rbx, rcx, rdx, blocked=False, conflict=False)


def eldbc(cpu: Processor, memory: Memory, rbx: int, rcx: int, rdx: int) -> LeafCode:
    """ELDBC: as ELDB, but a conflict is a code."""
    return _eld(cpu, memory, rbx, rcx, rdx, blocked=True, conflict=True)


def elduc(cpu: Processor, memory: Memory, rbx: int, rcx: int, rdx: int) -> LeafCode:
    """ELDUC: as ELDU, but a conflict is a code."""
    return _eld(cpu, memory, rbx, rcx, rdx, blocked=False, conflict=True)


def _eld(
    cpu: Processor, memory: Memory, rbx: int, rcx: int, rdx: int, *, blocked: bool, conflict: bool
) -> LeafCode:
    epc = cpu.epc
    if rbx % Pageinfo.SIZE or rcx % PAGE_SIZE:
        raise Fault.gp("PAGEINFO is not 32-byte aligned or the EPC address not page aligned")
    page = epc.resolve(rcx)
    if rdx % VA_SLOT_SIZE:
        raise Fault.gp("the VA slot is not 8-byte aligned")
    va = epc.resolve(rdx)
    if page == va:
        raise Fault.gp("the VA slot is on the page itself")
    with memory.user_access() as window:
        pageinfo = pageinfo_at(window, rbx)
        if pageinfo.srcpge % PAGE_SIZE or pageinfo.secinfo % Pcmd.SIZE:
            raise Fault.gp("SRCPGE is not page aligned or PCMD not 128-byte aligned")
        if pageinfo.secs % PAGE_SIZE or pageinfo.linaddr % PAGE_SIZE:
            raise Fault.gp("SECS or LINADDR is not page aligned")
        owner = epc.resolve(pageinfo.secs) if pageinfo.secs else None
        # Copied before they are judged: the leaf decides about what it has, and loads it.
        contents = window.read(pageinfo.srcpge, PAGE_SIZE)
        pcmd = window.read(pageinfo.secinfo, Pcmd.SIZE)
    # The SECS may be shared with another load: its entry does not change.
    if not epc.busy.isdisjoint((page, va)):
        if conflict:
            return LeafCode.EPC_PAGE_CONFLICT
        raise Fault.gp("the EPC page or the VA page is in use by another leaf")
    return eldu_page(
        cpu, page, va, rdx % PAGE_SIZE, owner, pageinfo.linaddr, contents, pcmd, blocked=blocked
    )


def eldu_page(
    cpu: Processor,
    page: PageIndex,
    va: PageIndex,
    slot: int,
    owner: PageIndex | None,
    linaddr: int,
    contents: bytes,
    pcmd: bytes,
    *,
    blocked: bool = False,
) -> LeafCode:
    """ELDU, or with ``blocked`` ELDB, of operands that are in memory; ``slot`` is an offset.

    ``owner`` is the SECS of a REG, TCS or TRIM page and None for a SECS or VA page.
    """
    epc = cpu.epc
    if epc.valid(page):
        raise Fault.pf(epc.address(page), "the EPC page is in use")
    if not epc.valid(va) or epc.page_type(va) != PT_VA:
        raise Fault.pf(epc.address(va), "the slot is on no VA page")
    flags, enclaveid, mac = _PCMD.unpack(pcmd)
    if not Pcmd.reserved_is_zero(pcmd) or flags & ~_SECINFO:
        raise Fault.gp("PCMD has reserved bits")
    kind = flags >> SECINFO_PAGE_TYPE_SHIFT
    secs: SecsPage | None = None
    eid = 0
    if kind in _CHILDREN:
        if owner is None or not epc.is_secs(owner):
            raise Fault.pf(epc.address(owner or PageIndex(0)), "the page is no valid SECS")
        secs = cpu.enclaves[owner]
        eid = secs.eid
    elif kind in {PT_SECS, PT_VA}:
        if owner is not None:
            raise Fault.gp("PAGEINFO.SECS is not zero for a SECS or VA page")
    else:
        raise Fault.gp(f"PCMD.SECINFO {flags:#x} is of no page that is swapped")
    slots = epc.contents[va]
    (version,) = _SLOT.unpack_from(slots, slot)
    header = _MAC_HDR.pack(eid, linaddr, flags)
    plain = cpu.unseal(_IV.pack(version), contents + mac, header)
    if plain is None or (kind == PT_SECS and enclaveid not in cpu.evicted_secs):
        return LeafCode.MAC_COMPARE_FAIL
    _SLOT.pack_into(slots, slot, 0)
    if secs is not None and owner is not None:
        if kind == PT_TCS:
            _put_thread(cpu, secs, page, linaddr, plain)
        else:
            secs.elrange.write(linaddr, plain)
        epc.set_child(page, flags, owner, linaddr)
        secs.children += 1
        if blocked:
            epc.block(page, secs.cycle)
    elif kind == PT_SECS:
        _put_secs(cpu, page, enclaveid)
    else:
        epc.contents[page] = bytearray(plain)
        epc.set_va(page)
    return LeafCode.NO_ERROR


def _put_thread(cpu: Processor, secs: SecsPage, page: PageIndex, linaddr: int, data: bytes) -> None:
    tcs = Tcs.decode(data)
    thread = Thread(tcs, page, linaddr, secs)
    thread.attach(tcs, cpu.tcs_records(secs.eid, linaddr))
    cpu.epc.contents[page] = bytearray(data)
    secs.threads[page] = thread
    cpu.threads[page] = thread


def _put_secs(cpu: Processor, page: PageIndex, eid: int) -> None:
    secs = cpu.evicted_secs.pop(eid)
    secs.page = page
    cpu.enclaves[page] = secs
    cpu.epc.set_secs(page)


# -- oversubscription ---------------------------------------------------------------------------------


def erdinfo(cpu: Processor, memory: Memory, rbx: int, rcx: int) -> LeafCode:
    """ERDINFO: RDINFO in RBX, the EPC page in RCX."""
    epc = cpu.epc
    if rbx % Rdinfo.SIZE or rcx % PAGE_SIZE:
        raise Fault.gp("RDINFO is not 32-byte aligned or the EPC address not page aligned")
    with memory.user_access() as window:
        # The structure must be writable whatever the answer is.
        window.write(rbx, window.read(rbx, Rdinfo.SIZE))
        try:
            page = epc.resolve(rcx)
        except Fault:
            window.write(rbx, Rdinfo(status=0, flags=0, enclavecontext=0).encode())
            return LeafCode.PG_NONEPC
        if page in epc.busy:
            return LeafCode.EPC_PAGE_CONFLICT
        word = epc.words[page]
        if not word & EPCM_VALID:
            window.write(rbx, Rdinfo(status=0, flags=0, enclavecontext=0).encode())
            return LeafCode.PG_INVLD
        kind = word >> SECINFO_PAGE_TYPE_SHIFT
        flags = word & _SECINFO | (_RDINFO_BLOCKED if word & EPCM_BLOCKED else 0)
        status = context = 0
        if kind != PT_VA:
            owner = page if kind == PT_SECS else epc.owners[page]
            context = epc.address(PageIndex(owner))
        if kind == PT_SECS and cpu.enclaves[page].children:
            status = _RDINFO_CHILDPRESENT
        window.write(rbx, Rdinfo(status=status, flags=flags, enclavecontext=context).encode())
    return LeafCode.NO_ERROR
