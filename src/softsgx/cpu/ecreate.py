# SPDX-License-Identifier: Apache-2.0
"""ECREATE: the checks of a SECS, and the enclave that they let begin (SDM volume 3D, ECREATE)."""

from softsgx.arch.attributes import ATTRIBUTE_KSS, ATTRIBUTE_MODE64BIT, XFRM_LEGACY
from softsgx.arch.secinfo import PAGE_SIZE, PT_SECS, SECINFO_PAGE_TYPE_SHIFT
from softsgx.arch.structures import Pageinfo, Secinfo, Secs
from softsgx.cpu.memory import Elrange, HeldElrange, Memory
from softsgx.cpu.model import MAX_ENCLAVE_SIZE_64, MAX_ENCLAVE_SIZE_NOT64, Model
from softsgx.cpu.operands import pageinfo_at, secinfo_at
from softsgx.cpu.processor import Processor
from softsgx.cpu.secs import SecsPage, canonical
from softsgx.errors import Fault


def ecreate(
    cpu: Processor, memory: Memory, rbx: int, rcx: int, *, elrange: Elrange | None = None
) -> None:
    """ECREATE: PAGEINFO in RBX, the free EPC page in RCX; ``elrange`` will hold the pages' contents."""
    epc = cpu.epc
    if rbx % Pageinfo.SIZE:
        raise Fault.gp("PAGEINFO is not 32-byte aligned")
    if rcx % PAGE_SIZE:
        raise Fault.gp("the EPC address is not page aligned")
    page = epc.resolve(rcx)
    with memory.user_access() as window:
        pageinfo = pageinfo_at(window, rbx)
        if pageinfo.srcpge % PAGE_SIZE or pageinfo.secinfo % Secinfo.SIZE:
            raise Fault.gp("SRCPGE is not page aligned or SECINFO not 64-byte aligned")
        if pageinfo.linaddr or pageinfo.secs:
            raise Fault.gp("PAGEINFO.LINADDR or SECS is not zero")
        flags = secinfo_at(window, pageinfo.secinfo)
        if flags >> SECINFO_PAGE_TYPE_SHIFT != PT_SECS:
            raise Fault.gp(f"SECINFO {flags:#x} is not of a SECS")
        epc.lock(page)
        try:
            if epc.valid(page):
                raise Fault.pf(rcx, "the EPC page is in use")
            data = window.read(pageinfo.srcpge, PAGE_SIZE)
            secs = Secs.decode(data)
            _check_secs(cpu.model, secs, data)
            made = SecsPage(
                secs,
                page,
                cpu.next_eid,
                HeldElrange() if elrange is None else elrange,
                cpu.model.xsave_size(secs.xfrm),
            )
            made.hasher.ecreate(secs.ssaframesize, secs.size)
            cpu.next_eid += 1
            cpu.enclaves[page] = made
            epc.set_secs(page)
        finally:
            epc.unlock((page,))


def _check_secs(model: Model, secs: Secs, data: bytes) -> None:
    if secs.xfrm & XFRM_LEGACY != XFRM_LEGACY:
        raise Fault.gp(f"XFRM {secs.xfrm:#x} is without x87 or SSE")
    if not model.loadable(secs.xfrm):
        raise Fault.gp(f"XFRM {secs.xfrm:#x} is not legal; {model.xfrm:#x} is offered")
    if secs.miscselect & ~model.miscselect:
        raise Fault.gp(f"MISCSELECT {secs.miscselect:#x} is not supported")
    if secs.ssaframesize * PAGE_SIZE < model.ssa_size(secs.xfrm, secs.miscselect):
        raise Fault.gp(f"SSAFRAMESIZE {secs.ssaframesize} is too small for XFRM {secs.xfrm:#x}")
    if secs.attributes & ATTRIBUTE_MODE64BIT:
        limit = MAX_ENCLAVE_SIZE_64
        if not canonical(secs.baseaddr):
            raise Fault.gp(f"BASEADDR {secs.baseaddr:#x} is not canonical")
    else:
        limit = MAX_ENCLAVE_SIZE_NOT64
        if secs.baseaddr >> 32:
            raise Fault.gp(f"BASEADDR {secs.baseaddr:#x} of a 32-bit enclave is above 4 GiB")
    if secs.size >> limit:
        raise Fault.gp(f"SIZE {secs.size:#x} is not below 2^{limit}")
    if secs.size < 2 * PAGE_SIZE or secs.size & (secs.size - 1):
        raise Fault.gp(f"SIZE {secs.size:#x} is no power of two from 2 pages on")
    if secs.baseaddr & (secs.size - 1):
        raise Fault.gp(f"BASEADDR {secs.baseaddr:#x} is not aligned to SIZE {secs.size:#x}")
    if secs.attributes & ~model.attributes:
        raise Fault.gp(f"ATTRIBUTES {secs.attributes:#x} are beyond {model.attributes:#x}")
    if not Secs.reserved_is_zero(data):
        raise Fault.gp("SECS reserved bytes are not zero")
    if not secs.attributes & ATTRIBUTE_KSS and (any(secs.configid) or secs.configsvn):
        raise Fault.gp("CONFIGID or CONFIGSVN without ATTRIBUTES.KSS")
