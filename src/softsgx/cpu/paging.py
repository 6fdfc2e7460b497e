# SPDX-License-Identifier: Apache-2.0
"""Paging: EWB, ELDB and ELDU (SDM volume 3D), as leaves and as the driver uses them.

A page that is blocked and tracked (tracking.py) goes out: EWB seals it, leaves its version in a VA slot, and
frees it.  ELDB and ELDU bring it back if the slot still holds the version that it was sealed under, and if
nothing of what was sealed has changed.

The operands of a leaf lie in user memory, reading and writing it may suspend: the page itself is busy
meanwhile, VA page and SECS are shared, and what depends on them is checked again afterwards.
"""

from collections.abc import Sequence
from struct import Struct

from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    PT_REG,
    PT_SECS,
    PT_TCS,
    PT_VA,
    SECINFO_MODIFIED,
    SECINFO_PAGE_TYPE,
    SECINFO_PAGE_TYPE_SHIFT,
    SECINFO_PENDING,
    SECINFO_REG,
    VA_SLOT_SIZE,
)
from softsgx.arch.structures import Pageinfo, Pcmd, Secs
from softsgx.cpu.epc import (
    EPC_BASE,
    EPCM_BLOCKED,
    EPCM_SECINFO,
    EPCM_VALID,
    NO_SECS,
    SECS_WORD,
    VA_WORD,
    PageIndex,
)
from softsgx.cpu.memory import Memory
from softsgx.cpu.operands import pageinfo_at
from softsgx.cpu.processor import Processor
from softsgx.cpu.secs import SecsPage
from softsgx.cpu.tracking import (
    CHILDREN,
    eblock,
    eblock_page,
    erdinfo,
    etrack,
    etrackc,
    held,
    tlb_shootdown,
    tracked_before,
)
from softsgx.errors import Fault

__all__ = [
    "eblock",
    "eblock_page",
    "eldb",
    "eldbc",
    "eldu",
    "eldu_page",
    "elduc",
    "erdinfo",
    "etrack",
    "etrackc",
    "ewb",
    "ewb_pages",
    "held",
    "tlb_shootdown",
]

# The initialisation vector is VER << 32, 96 bits, little-endian.
_pack_iv = Struct("<4xQ").pack
# The authenticated header, which the manual does not lay out: EID, LINADDR, and of PCMD SECINFO and the
# reserved bytes, for EWB 64 with FLAGS and 40 zeros.
_pack_header = Struct("<QQQ104x").pack
_pack_header_of_pcmd = Struct("<QQ64s40s8x").pack
# PCMD: SECINFO, ENCLAVEID, reserved bytes, MAC. ENCLAVEID is software's handle: nothing depends on it.
_pack_pcmd = Struct("<Q56xQ40x16s").pack
unpack_pcmd = Struct("<64s8x40s16s").unpack
_PCMD_PAGE_TYPE = 1
_SLOT = Struct("<Q")

_REG_MASK = EPCM_VALID | EPCM_BLOCKED | SECINFO_PAGE_TYPE
_BLOCKED_REG = EPCM_VALID | EPCM_BLOCKED | SECINFO_REG


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
        epc.lock(page)
        try:
            if va in epc.busy:
                raise Fault.gp("the VA page is in use by another leaf")
            code = _check_ewb(cpu, page, rdx)
            if code:
                return code
            linaddr = epc.addresses[page]
            version, contents, pcmd = _seal(cpu, page)
            window.write(pageinfo.srcpge, contents)
            window.write(pageinfo.secinfo, pcmd)
            window.write(rbx, linaddr.to_bytes(8, "little"))
            return _check_ewb(cpu, page, rdx) or _free(cpu, page, rdx, version)
        finally:
            epc.unlock((page,))


def ewb_pages(
    cpu: Processor, pages: Sequence[int], va: PageIndex, slots: Sequence[int]
) -> tuple[LeafCode, list[tuple[int, bytes, bytes]]]:
    """EWB of pages to slots (0 to 511) of one VA page, until one returns a code or would fault.

    Returns the code that ended it, or NO_ERROR, and of the pages that are out the linear address, the
    sealed 4096 bytes and the PCMD. A Fault, as EWB's, if that is the first page. Whether a slot was
    occupied is not told.
    """
    epc = cpu.epc
    words, owners, addresses, blocked = epc.words, epc.owners, epc.addresses, epc.blocked
    modified = epc.modified
    encrypt = cpu.paging_cipher()[0]
    done: list[tuple[int, bytes, bytes]] = []
    count = _idle(cpu, pages, va)
    secs: SecsPage | None = None
    owner = NO_SECS
    limit = at = 0
    kept: set[int] = set()
    while at < count:
        page = pages[at]
        run = at
        if words[page] & _REG_MASK == _BLOCKED_REG and words[va] == VA_WORD:
            if owners[page] != owner or secs is None:
                owner = owners[page]
                secs = cpu.enclaves[owner]
                limit, kept = tracked_before(secs), held(secs)
            # Neighbours in the enclave are read, and forgotten, at once.
            address = start = addresses[page]
            while (
                run < count
                and words[page := pages[run]] & _REG_MASK == _BLOCKED_REG
                and addresses[page] == address
                and owners[page] == owner
                and blocked[page] < limit
                and address not in kept
            ):
                run += 1
                address += PAGE_SIZE
        if run == at or secs is None:
            try:
                code = _check_ewb(cpu, page, epc.address(va) + slots[at] * VA_SLOT_SIZE)
            except Fault:
                if at:
                    break
                raise
            if code:
                return code, done
            linaddr = addresses[page]
            version, contents, pcmd = _seal(cpu, page)
            _free(cpu, page, epc.address(va) + slots[at] * VA_SLOT_SIZE, version)
            done.append((linaddr, contents, pcmd))
            at += 1
            continue
        data = memoryview(secs.elrange.read(start, address - start))
        eid = secs.eid
        version = cpu.version
        cpu.version += run - at
        versions = memoryview(epc.contents[va]).cast("Q")
        for offset, page, slot in zip(
            range(0, address - start, PAGE_SIZE), pages[at:run], slots[at:run], strict=True
        ):
            linaddr = start + offset
            version += 1
            flags = words[page] & EPCM_SECINFO
            sealed = encrypt(
                _pack_iv(version),
                data[offset : offset + PAGE_SIZE],
                _pack_header(eid, linaddr, flags),
            )
            done.append((linaddr, sealed[:PAGE_SIZE], _pack_pcmd(flags, eid, sealed[PAGE_SIZE:])))
            if versions[slot]:
                cpu.evicted_secs.pop(versions[slot], None)
            versions[slot] = version
            words[page] = addresses[page] = 0
            owners[page] = NO_SECS
            del blocked[page]
            modified.pop(page, None)
        at = run
        secs.children -= (address - start) // PAGE_SIZE
        secs.elrange.discard(start, address - start)
    return LeafCode.NO_ERROR, done


def _idle(cpu: Processor, pages: Sequence[int], va: PageIndex) -> int:
    """Count the pages before one that another leaf is at work on, or that holds the slots."""
    barred = {va, *cpu.epc.busy}
    if va in cpu.epc.busy:
        raise Fault.gp("the VA page is in use by another leaf")
    if barred.isdisjoint(pages):
        return len(pages)
    count = next(at for at, page in enumerate(pages) if page in barred)
    if not count:
        raise Fault.gp(f"EPC page {pages[0]} is in use by another leaf, or holds the slots")
    return count


def _check_ewb(cpu: Processor, page: int, rdx: int) -> LeafCode:
    """Make EWB's checks from the EPCM on."""
    epc = cpu.epc
    word = epc.words[page]
    if not word & EPCM_VALID:
        raise Fault.pf(epc.address(PageIndex(page)), "the EPC page is not valid")
    if epc.words[epc.resolve(rdx)] != VA_WORD:
        raise Fault.pf(rdx, "the slot is on no VA page")
    kind = word >> SECINFO_PAGE_TYPE_SHIFT
    if kind in CHILDREN:
        if not word & EPCM_BLOCKED:
            return LeafCode.PAGE_NOT_BLOCKED
        secs = cpu.enclaves[epc.owners[page]]
        if epc.blocked[page] >= tracked_before(secs) or epc.addresses[page] in held(secs):
            return LeafCode.NOT_TRACKED
    elif kind == PT_SECS and cpu.enclaves[page].children:
        return LeafCode.CHILD_PRESENT
    return LeafCode.NO_ERROR


def _seal(cpu: Processor, page: int) -> tuple[int, bytes, bytes]:
    """Return the version under which the page is sealed now, its sealed bytes and its PCMD."""
    epc = cpu.epc
    word, linaddr = epc.words[page], epc.addresses[page]
    kind = word >> SECINFO_PAGE_TYPE_SHIFT
    eid = enclaveid = 0
    if kind in CHILDREN:
        secs = cpu.enclaves[epc.owners[page]]
        eid = enclaveid = secs.eid
        if kind == PT_TCS:
            # One that is not accepted yet is what the enclave has written.
            thread = cpu.threads.get(page)
            held_here = epc.contents[page]
            contents = bytes(held_here) if thread is None else thread.tcs_page(held_here)
        else:
            contents = secs.elrange.read(linaddr, PAGE_SIZE)
    elif kind == PT_SECS:
        enclaveid = cpu.enclaves[page].eid
        contents = _secs_page(cpu.enclaves[page])
    else:
        contents = bytes(epc.contents[page])
    flags = word & EPCM_SECINFO
    cpu.version += 1
    header = _pack_header(eid, linaddr, flags)
    sealed = cpu.paging_cipher()[0](_pack_iv(cpu.version), contents, header)
    return cpu.version, sealed[:PAGE_SIZE], _pack_pcmd(flags, enclaveid, sealed[PAGE_SIZE:])


def _free(cpu: Processor, page: int, rdx: int, version: int) -> LeafCode:
    """Leave the version of a sealed page in its slot, and make the EPC page invalid."""
    epc = cpu.epc
    kind = epc.page_type(page)
    if kind in CHILDREN:
        secs = cpu.enclaves[epc.owners[page]]
        secs.children -= 1
        if kind == PT_TCS:
            cpu.drop_thread(secs, page)
        else:
            secs.elrange.discard(epc.addresses[page], PAGE_SIZE)
    elif kind == PT_SECS:
        cpu.evicted_secs[version] = cpu.enclaves.pop(page)
    epc.clear(page)
    versions, slot = epc.contents[epc.resolve(rdx)], rdx % PAGE_SIZE
    (before,) = _SLOT.unpack_from(versions, slot)
    _SLOT.pack_into(versions, slot, version)
    if not before:
        return LeafCode.NO_ERROR
    cpu.evicted_secs.pop(before, None)
    return LeafCode.VA_SLOT_OCCUPIED


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
    with memory.user_access() as window:
        pageinfo = pageinfo_at(window, rbx)
        if pageinfo.secinfo % Pcmd.SIZE or pageinfo.srcpge % PAGE_SIZE:
            raise Fault.gp("PCMD is not 128-byte aligned or SRCPGE not page aligned")
        if not epc.busy.isdisjoint((page, va)):
            if conflict:
                return LeafCode.EPC_PAGE_CONFLICT
            raise Fault.gp("the EPC page or the VA page is in use by another leaf")
        epc.lock(page)
        try:
            _check_eld(cpu, page, rdx)
            pcmd = window.read(pageinfo.secinfo, Pcmd.SIZE)
            owner = _owner(cpu, pcmd, pageinfo.secs)
            contents = window.read(pageinfo.srcpge, PAGE_SIZE)
        finally:
            epc.unlock((page,))
    slot = rdx % PAGE_SIZE
    return eldu_page(cpu, page, va, slot, owner, pageinfo.linaddr, contents, pcmd, blocked=blocked)


def _check_eld(cpu: Processor, page: PageIndex, rdx: int) -> None:
    epc = cpu.epc
    if epc.valid(page):
        raise Fault.pf(epc.address(page), "the EPC page is in use")
    if epc.words[epc.resolve(rdx)] != VA_WORD:
        raise Fault.pf(rdx, "the slot is on no VA page")


def _owner(cpu: Processor, pcmd: bytes, secs: int) -> PageIndex | None:
    """Make ELD's checks of PAGEINFO.SECS, which depend on the page's type."""
    if pcmd[_PCMD_PAGE_TYPE] not in CHILDREN:
        if secs:
            raise Fault.gp("PAGEINFO.SECS is not zero for a page that no enclave addresses")
        return None
    if secs % PAGE_SIZE:
        raise Fault.gp("PAGEINFO.SECS is not page aligned")
    return cpu.epc.resolve(secs)


def unseal(
    cpu: Processor,
    version: int,
    eid: int,
    linaddr: int,
    contents: bytes,
    secinfo: bytes,
    reserved: bytes,
    mac: bytes,
) -> bytes | None:
    """Decrypt what EWB has sealed; None if it is not that."""
    _, decrypt, mismatch = cpu.paging_cipher()
    header = _pack_header_of_pcmd(eid, linaddr, secinfo, reserved)
    try:
        return decrypt(_pack_iv(version), contents + mac, header)
    except mismatch:
        return None


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
    words = epc.words
    if epc.busy and not epc.busy.isdisjoint((page, va)):
        raise Fault.gp("the EPC page or the VA page is in use by another leaf")
    if words[page] & EPCM_VALID:
        raise Fault.pf(EPC_BASE + page * PAGE_SIZE, "the EPC page is in use")
    if words[va] != VA_WORD:
        raise Fault.pf(EPC_BASE + va * PAGE_SIZE + slot, "the slot is on no VA page")
    secinfo, reserved, mac = unpack_pcmd(pcmd)
    kind = secinfo[_PCMD_PAGE_TYPE]
    eid = 0
    if kind in CHILDREN:
        if owner is None:
            raise Fault.pf(0, "PAGEINFO.SECS does not resolve within the EPC")
        if words[owner] != SECS_WORD:
            raise Fault.pf(EPC_BASE + owner * PAGE_SIZE, "the page is no valid SECS")
        secs = cpu.enclaves[owner]
        eid = secs.eid
    elif owner is not None:
        raise Fault.gp("PAGEINFO.SECS is not zero for a page that no enclave addresses")
    versions = epc.contents[va]
    (version,) = _SLOT.unpack_from(versions, slot)
    plain = unseal(cpu, version, eid, linaddr, contents, secinfo, reserved, mac)
    if plain is None:
        return LeafCode.MAC_COMPARE_FAIL
    # What follows is as EWB has sealed it: so much of SECINFO is not zero.
    _SLOT.pack_into(versions, slot, 0)
    if owner is None:
        if kind == PT_VA:
            epc.contents[page] = bytearray(plain)
            epc.set_va(page)
        else:
            _put_secs(cpu, page, version)
        return LeafCode.NO_ERROR
    if kind == PT_TCS and secinfo[0] & SECINFO_MODIFIED:
        epc.contents[page] = bytearray(plain)
    elif kind == PT_TCS:
        cpu.put_thread(secs, page, linaddr, plain)
    elif kind == PT_REG and not secinfo[0] & SECINFO_PENDING:
        # The others have no contents that anybody may touch: see sgx2.py.
        secs.elrange.write(linaddr, plain)
    words[page] = EPCM_VALID | secinfo[0] | kind << SECINFO_PAGE_TYPE_SHIFT
    epc.owners[page] = owner
    epc.addresses[page] = linaddr
    secs.children += 1
    if blocked:
        epc.block(page, secs.cycle)
    return LeafCode.NO_ERROR


def _put_secs(cpu: Processor, page: PageIndex, version: int) -> None:
    secs = cpu.evicted_secs.pop(version)
    secs.page = page
    cpu.enclaves[page] = secs
    cpu.epc.set_secs(page)
