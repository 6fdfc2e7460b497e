# SPDX-License-Identifier: Apache-2.0
"""The ENCLS leaves: one function a leaf, its checks in the manual's order; and the leaves over a range.

Operands are what the registers hold. Pointers to a PAGEINFO, a SECINFO or a page are followed in the
caller's Memory, inside ``user_access()`` only; pointers to EPC pages are linear addresses from EPC_BASE
on. What touches user memory may be suspended there: the pages at work are busy meanwhile.
"""

from softsgx.arch.attributes import (
    ATTRIBUTE_MODE64BIT,
    TCS_DBGOPTIN,
    TCS_INACTIVE,
)
from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import (
    EEXTEND_SIZE,
    PAGE_SIZE,
    PT_REG,
    PT_SECS,
    PT_TCS,
    PT_TRIM,
    PT_VA,
    SECINFO_MODIFIED,
    SECINFO_PAGE_TYPE_SHIFT,
    SECINFO_PENDING,
    SECINFO_PR,
    SECINFO_R,
    SECINFO_RESERVED,
    SECINFO_RWX,
    SECINFO_W,
)
from softsgx.arch.structures import Pageinfo, Secinfo, Tcs
from softsgx.cpu.debug import edbgrd, edbgwr
from softsgx.cpu.ecreate import ecreate
from softsgx.cpu.epc import PageIndex
from softsgx.cpu.memory import Memory, Window
from softsgx.cpu.operands import pageinfo_at, secinfo_at
from softsgx.cpu.processor import Processor
from softsgx.cpu.secs import SecsPage, Thread
from softsgx.errors import Fault

__all__ = [
    "eadd",
    "eadd_pages",
    "ecreate",
    "edbgrd",
    "edbgwr",
    "eextend",
    "encls",
    "epa",
    "eremove",
    "eremove_pages",
]

# EADD of a range copies so many pages, then has them hashed while it copies the next.
_PIECE = 512


def eadd(cpu: Processor, memory: Memory, rbx: int, rcx: int) -> None:
    """EADD: PAGEINFO in RBX, the free EPC page in RCX."""
    epc = cpu.epc
    if rbx % Pageinfo.SIZE:
        raise Fault.gp("PAGEINFO is not 32-byte aligned")
    if rcx % PAGE_SIZE:
        raise Fault.gp("the EPC address is not page aligned")
    page = epc.resolve(rcx)
    with memory.user_access() as window:
        pageinfo = pageinfo_at(window, rbx)
        if pageinfo.srcpge % PAGE_SIZE or pageinfo.secs % PAGE_SIZE:
            raise Fault.gp("SRCPGE or SECS is not page aligned")
        if pageinfo.secinfo % Secinfo.SIZE:
            raise Fault.gp("SECINFO is not 64-byte aligned")
        if pageinfo.linaddr % PAGE_SIZE:
            raise Fault.gp("LINADDR is not page aligned")
        owner = epc.resolve(pageinfo.secs)
        flags = secinfo_at(window, pageinfo.secinfo)
        _check_added(flags)
        _eadd(cpu, window, owner, page, pageinfo.linaddr, pageinfo.srcpge, flags)


def _check_added(flags: int) -> None:
    if flags >> SECINFO_PAGE_TYPE_SHIFT not in {PT_REG, PT_TCS}:
        raise Fault.gp(f"SECINFO {flags:#x} is neither of a REG nor of a TCS page")
    if flags & (SECINFO_PENDING | SECINFO_MODIFIED | SECINFO_PR):
        raise Fault.gp(f"SECINFO {flags:#x} is of a page in transition")


def _eadd(
    cpu: Processor,
    window: Window,
    owner: PageIndex,
    page: PageIndex,
    linaddr: int,
    srcpge: int,
    flags: int,
) -> None:
    """EADD from the locks on."""
    epc = cpu.epc
    epc.lock_range(range(page, page + 1))
    try:
        epc.lock(owner)
    except Fault:
        epc.unlock((page,))
        raise
    try:
        if epc.valid(page):
            raise Fault.pf(epc.address(page), "the EPC page is in use")
        secs = _valid_secs(cpu, owner)
        data = window.read(srcpge, PAGE_SIZE)
        tcs = None
        if flags >> SECINFO_PAGE_TYPE_SHIFT == PT_TCS:
            tcs = _check_tcs(secs, data)
            flags &= ~SECINFO_RWX
        elif flags & SECINFO_W and not flags & SECINFO_R:
            raise Fault.gp(f"SECINFO {flags:#x} is writable but not readable")
        _check_place(secs, linaddr)
        secs.hasher.eadd(linaddr - secs.baseaddr, flags)
        if tcs is None:
            secs.elrange.write(linaddr, data)
        else:
            _make_thread(cpu, secs, page, linaddr, tcs)
        epc.set_child(page, flags, owner, linaddr)
        secs.children += 1
    finally:
        epc.unlock((page, owner))


def _valid_secs(cpu: Processor, owner: PageIndex) -> SecsPage:
    if not cpu.epc.is_secs(owner):
        raise Fault.pf(cpu.epc.address(owner), "the page is no valid SECS")
    return cpu.enclaves[owner]


def _check_tcs(secs: SecsPage, data: bytes) -> Tcs:
    tcs = Tcs.decode(data)
    if not Tcs.reserved_is_zero(data):
        raise Fault.gp("TCS reserved bytes are not zero")
    if not secs.attributes & ATTRIBUTE_MODE64BIT and not (
        tcs.fslimit & 0xFFF == 0xFFF and tcs.gslimit & 0xFFF == 0xFFF
    ):
        raise Fault.gp("TCS.FSLIMIT or GSLIMIT does not end in FFF")
    return tcs


def _check_place(secs: SecsPage, linaddr: int) -> None:
    if not 0 <= linaddr - secs.baseaddr < secs.size:
        raise Fault.gp(f"LINADDR {linaddr:#x} is outside ELRANGE")
    if secs.initialised:
        raise Fault.gp("the enclave is initialised")


def _make_thread(cpu: Processor, secs: SecsPage, page: PageIndex, linaddr: int, tcs: Tcs) -> None:
    # EEXTEND measures what these leave in the EPC, not what software gave.
    tcs = tcs.replace(flags=tcs.flags & ~TCS_DBGOPTIN, cssa=0, aep=0, state=TCS_INACTIVE)
    thread = Thread(tcs, page, linaddr, secs)
    thread.attach(tcs, cpu.tcs_records(secs.eid, linaddr))
    cpu.epc.contents[page] = bytearray(tcs.encode())
    secs.threads[page] = thread
    cpu.threads[page] = thread


def eextend(cpu: Processor, rbx: int, rcx: int) -> None:
    """EEXTEND: the SECS in RBX, the address of 256 bytes of an EPC page in RCX."""
    epc = cpu.epc
    if rbx % PAGE_SIZE:
        raise Fault.gp("the SECS address is not page aligned")
    owner = epc.resolve(rbx)
    if rcx % EEXTEND_SIZE:
        raise Fault.gp("the EPC address is not 256-byte aligned")
    page = epc.resolve(rcx)
    epc.lock(page)
    try:
        if not epc.valid(page):
            raise Fault.pf(rcx, "the EPC page is not valid")
        if epc.page_type(page) not in {PT_REG, PT_TCS}:
            raise Fault.pf(rcx, "the EPC page is neither REG nor TCS")
        if epc.owners[page] != owner:
            raise Fault.gp("the SECS is not the page's")
        if owner in epc.busy:
            raise Fault.gp("the SECS is in use by another leaf")
        secs = cpu.enclaves[owner]
        if secs.initialised:
            raise Fault.gp("the enclave is initialised")
        _measure(cpu, secs, page, rcx % PAGE_SIZE)
    finally:
        epc.unlock((page,))


def _measure(cpu: Processor, secs: SecsPage, page: PageIndex, chunk: int) -> None:
    linaddr = cpu.epc.addresses[page] + chunk
    if cpu.epc.page_type(page) == PT_TCS:
        data = bytes(cpu.epc.contents[page][chunk : chunk + EEXTEND_SIZE])
    else:
        data = secs.elrange.read(linaddr, EEXTEND_SIZE)
    secs.hasher.eextend(linaddr - secs.baseaddr, data)


def eadd_pages(
    cpu: Processor,
    memory: Memory,
    secs: PageIndex,
    pages: range,
    linaddr: int,
    source: int,
    secinfo_flags: int,
    measure: bool,
) -> int:
    """EADD, and if ``measure`` 16 times EEXTEND, of pages that follow one another.

    They go to the EPC pages of the range as the scalar leaves in a loop would put them. Returns how many
    were done: fewer than asked for where the next would fault. Raises its Fault if that is the first.
    """
    epc = cpu.epc
    if linaddr % PAGE_SIZE or source % PAGE_SIZE:
        raise Fault.gp("LINADDR or SRCPGE is not page aligned")
    if secinfo_flags & SECINFO_RESERVED:
        raise Fault.gp(f"SECINFO {secinfo_flags:#x} has reserved bits")
    _check_added(secinfo_flags)
    epc.resolve(epc.address(secs))
    epc.resolve(epc.address(PageIndex(pages.start)))
    pages = range(pages.start, min(pages.stop, epc.pages))
    with memory.user_access() as window:
        if secinfo_flags >> SECINFO_PAGE_TYPE_SHIFT == PT_TCS:
            return _add_threads(cpu, window, secs, pages, linaddr, source, secinfo_flags, measure)
        if secs in pages:
            raise Fault.gp("the SECS is one of the pages")
        epc.lock_range(pages)
        try:
            epc.lock(secs)
            try:
                return _add_regular(
                    cpu, window, secs, pages, linaddr, source, secinfo_flags, measure
                )
            finally:
                epc.unlock((secs,))
        finally:
            epc.unlock(pages)


def _add_threads(
    cpu: Processor,
    window: Window,
    owner: PageIndex,
    pages: range,
    linaddr: int,
    source: int,
    flags: int,
    measure: bool,
) -> int:
    for done in range(len(pages)):
        page = PageIndex(pages.start + done)
        offset = done * PAGE_SIZE
        try:
            _eadd(cpu, window, owner, page, linaddr + offset, source + offset, flags)
        except Fault:
            if done:
                return done
            raise
        if measure:
            secs = cpu.enclaves[owner]
            for chunk in range(0, PAGE_SIZE, EEXTEND_SIZE):
                _measure(cpu, secs, page, chunk)
    return len(pages)


def _add_regular(
    cpu: Processor,
    window: Window,
    owner: PageIndex,
    pages: range,
    linaddr: int,
    source: int,
    flags: int,
    measure: bool,
) -> int:
    epc = cpu.epc
    if epc.valid(pages.start):
        raise Fault.pf(epc.address(PageIndex(pages.start)), "the EPC page is in use")
    secs = _valid_secs(cpu, owner)
    count = next(
        (i for i, word in enumerate(epc.words[pages.start : pages.stop]) if word), len(pages)
    )
    if flags & SECINFO_W and not flags & SECINFO_R:
        # A scalar EADD reads the page before it looks at this.
        window.read(source, PAGE_SIZE)
        raise Fault.gp(f"SECINFO {flags:#x} is writable but not readable")
    if not 0 <= linaddr - secs.baseaddr < secs.size or secs.initialised:
        window.read(source, PAGE_SIZE)
        _check_place(secs, linaddr)
    count = min(count, (secs.baseaddr + secs.size - linaddr) // PAGE_SIZE)
    done = 0
    while done < count:
        wanted = min(_PIECE, count - done)
        offset = done * PAGE_SIZE
        copied = window.fill(secs.elrange, linaddr + offset, source + offset, wanted * PAGE_SIZE)
        made = copied // PAGE_SIZE
        if made:
            _measure_range(secs, linaddr + offset - secs.baseaddr, flags, made, measure)
            added = range(pages.start + done, pages.start + done + made)
            epc.set_children(added, flags, owner, linaddr + offset)
            secs.children += made
            done += made
        if made < wanted:
            if copied % PAGE_SIZE:
                # No page was added there, so that the range must read as zero.
                secs.elrange.discard(linaddr + done * PAGE_SIZE, PAGE_SIZE)
            if not done:
                raise Fault.pf(source + copied, "the source page is not readable")
            break
    return done


def _measure_range(secs: SecsPage, offset: int, flags: int, count: int, measure: bool) -> None:
    if measure:
        secs.hasher.add_pages(secs.elrange, secs.baseaddr, offset, flags, count)
    else:
        secs.hasher.add_unmeasured(offset, flags, count)


def eremove(cpu: Processor, rcx: int) -> LeafCode:
    """EREMOVE: the EPC page in RCX."""
    epc = cpu.epc
    if rcx % PAGE_SIZE:
        raise Fault.gp("the EPC address is not page aligned")
    page = epc.resolve(rcx)
    if page in epc.busy:
        raise Fault.gp("the EPC page is in use by another leaf")
    if not epc.valid(page):
        return LeafCode.NO_ERROR
    kind = epc.page_type(page)
    if kind == PT_VA:
        # With its version an evicted SECS is out of reach.
        if cpu.evicted_secs:
            for version in memoryview(epc.contents[page]).cast("Q"):
                cpu.evicted_secs.pop(version, None)
        epc.clear(page)
    elif kind == PT_SECS:
        if cpu.enclaves[page].children:
            return LeafCode.CHILD_PRESENT
        del cpu.enclaves[page]
        epc.clear(page)
    else:
        secs = cpu.enclaves[epc.owners[page]]
        # A TRIM page that is accepted nobody can be using.
        gone = kind == PT_TRIM and not epc.words[page] & SECINFO_MODIFIED
        secs.shut()
        if secs.active() and not gone:
            return LeafCode.ENCLAVE_ACT
        if kind == PT_TCS:
            cpu.drop_thread(secs, page)
        else:
            secs.elrange.discard(epc.addresses[page], PAGE_SIZE)
        epc.clear(page)
        secs.children -= 1
    return LeafCode.NO_ERROR


def eremove_pages(cpu: Processor, first: PageIndex, count: int) -> tuple[LeafCode, int]:
    """EREMOVE of EPC pages that follow one another, until one returns a code.

    Returns that code, or NO_ERROR, and the pages removed; a Fault as EREMOVE.
    """
    epc = cpu.epc
    epc.resolve(epc.address(first))
    count = min(count, epc.pages - first)
    done = 0
    while done < count:
        page = PageIndex(first + done)
        run = _run_of_regular(cpu, page, count - done)
        if run > 1:
            _remove_regular(cpu, page, run)
            done += run
            continue
        code = eremove(cpu, epc.address(page))
        if code:
            return code, done
        done += 1
    return LeafCode.NO_ERROR, done


def _run_of_regular(cpu: Processor, first: PageIndex, limit: int) -> int:
    """Count the idle REG pages from one on that lie in the enclave as they do in the EPC."""
    epc = cpu.epc
    word, owner = epc.words[first], epc.owners[first]
    if word >> SECINFO_PAGE_TYPE_SHIFT != PT_REG:
        return 0
    cpu.enclaves[owner].shut()
    if cpu.enclaves[owner].active():
        return 0
    words, owners, addresses, busy = epc.words, epc.owners, epc.addresses, epc.busy
    address = addresses[first]
    for i in range(limit):
        page = first + i
        if (
            words[page] >> SECINFO_PAGE_TYPE_SHIFT != PT_REG
            or owners[page] != owner
            or addresses[page] != address + i * PAGE_SIZE
            or page in busy
        ):
            return i
    return limit


def _remove_regular(cpu: Processor, first: PageIndex, count: int) -> None:
    epc = cpu.epc
    secs = cpu.enclaves[epc.owners[first]]
    secs.elrange.discard(epc.addresses[first], count * PAGE_SIZE)
    epc.clear_range(range(first, first + count))
    secs.children -= count


def epa(cpu: Processor, rbx: int, rcx: int) -> None:
    """EPA: PT_VA in RBX, the free EPC page in RCX."""
    epc = cpu.epc
    if rbx != PT_VA or rcx % PAGE_SIZE:
        raise Fault.gp("EPA wants PT_VA in RBX and a page aligned EPC address")
    page = epc.resolve(rcx)
    if page in epc.busy:
        raise Fault.gp("the EPC page is in use by another leaf")
    if epc.valid(page):
        raise Fault.pf(rcx, "the EPC page is in use")
    epc.contents[page] = bytearray(PAGE_SIZE)
    epc.set_va(page)


def encls(
    cpu: Processor, memory: Memory, leaf: int, rbx: int = 0, rcx: int = 0, rdx: int = 0
) -> tuple[LeafCode, int]:
    """Execute any ENCLS leaf; returns the code (NO_ERROR for leaves that have none) and RBX.

    EDBGWR takes the value itself in RBX. #GP for a leaf that is not supported.
    """
    leaf &= 0xFFFF_FFFF
    if leaf not in cpu.model.encls:
        raise Fault.gp(f"ENCLS leaf {leaf:#x} is not supported")
    match leaf:
        case 0x00:
            ecreate(cpu, memory, rbx, rcx)
        case 0x01:
            eadd(cpu, memory, rbx, rcx)
        case 0x02:
            from softsgx.cpu.einit import einit  # noqa: PLC0415  # one call an enclave

            return einit(cpu, memory, rbx, rcx, rdx), rbx
        case 0x03:
            return eremove(cpu, rcx), rbx
        case 0x04:
            return edbgrd(cpu, rcx)
        case 0x05:
            return edbgwr(cpu, rcx, rbx), rbx
        case 0x06:
            eextend(cpu, rbx, rcx)
        case 0x0A:
            epa(cpu, rbx, rcx)
        case 0x18:
            from softsgx.cpu.eupdatesvn import eupdatesvn  # noqa: PLC0415  # one call a microcode

            return eupdatesvn(cpu), rbx
        case 0x0D | 0x0E | 0x0F:
            return _sgx2(cpu, memory, leaf, rbx, rcx), rbx
        case _:
            return _paging(cpu, memory, leaf, rbx, rcx, rdx), rbx
    return LeafCode.NO_ERROR, rbx


def _sgx2(cpu: Processor, memory: Memory, leaf: int, rbx: int, rcx: int) -> LeafCode:
    from softsgx.cpu import sgx2  # noqa: PLC0415  # most enclaves stay as they were built

    match leaf:
        case 0x0D:
            sgx2.eaug(cpu, memory, rbx, rcx)
            return LeafCode.NO_ERROR
        case 0x0E:
            return sgx2.emodpr(cpu, memory, rbx, rcx)
        case _:
            return sgx2.emodt(cpu, memory, rbx, rcx)


def _paging(cpu: Processor, memory: Memory, leaf: int, rbx: int, rcx: int, rdx: int) -> LeafCode:
    from softsgx.cpu import paging  # noqa: PLC0415  # most enclaves fit the EPC

    match leaf:
        case 0x07:
            return paging.eldb(cpu, memory, rbx, rcx, rdx)
        case 0x08:
            return paging.eldu(cpu, memory, rbx, rcx, rdx)
        case 0x09:
            return paging.eblock(cpu, rcx)
        case 0x0B:
            return paging.ewb(cpu, memory, rbx, rcx, rdx)
        case 0x0C:
            return paging.etrack(cpu, rcx)
        case 0x10:
            return paging.erdinfo(cpu, memory, rbx, rcx)
        case 0x11:
            return paging.etrackc(cpu, rcx)
        case 0x12:
            return paging.eldbc(cpu, memory, rbx, rcx, rdx)
        case _:
            return paging.elduc(cpu, memory, rbx, rcx, rdx)
