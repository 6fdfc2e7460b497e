# SPDX-License-Identifier: Apache-2.0
"""EDBGRD and EDBGWR: what a debugger may see and change of a debug enclave (SDM volume 3D)."""

from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    PT_REG,
    PT_TCS,
    PT_VA,
    SECINFO_MODIFIED,
    SECINFO_PENDING,
)
from softsgx.arch.structures import Tcs
from softsgx.cpu.epc import PageIndex
from softsgx.cpu.processor import Processor
from softsgx.cpu.secs import SecsPage
from softsgx.errors import Fault

# Only the defined part of a TCS can be reached.
_TCS_LIMIT = 72
_TCS_FLAGS = Tcs.OFFSETS["flags"]


def _debugged(cpu: Processor, rcx: int, types: frozenset[int]) -> tuple[PageIndex, LeafCode]:
    """Make the checks of EDBGRD and EDBGWR up to the page's state."""
    epc = cpu.epc
    if rcx % 8:
        raise Fault.gp("the EPC address is not 8-byte aligned")
    page = epc.resolve(rcx)
    if page in epc.busy:
        raise Fault.gp("the EPC page is in use by another leaf")
    if not epc.valid(page):
        raise Fault.pf(rcx, "the EPC page is not valid")
    if epc.page_type(page) not in types:
        raise Fault.pf(rcx, "the type of the EPC page cannot be debugged")
    if epc.words[page] & (SECINFO_PENDING | SECINFO_MODIFIED):
        return page, LeafCode.PAGE_NOT_DEBUGGABLE
    return page, LeafCode.NO_ERROR


def _require_debug(cpu: Processor, page: PageIndex) -> SecsPage:
    secs = cpu.enclaves[cpu.epc.owners[page]]
    if not secs.debug:
        raise Fault.gp("the enclave is no debug enclave")
    return secs


def edbgrd(cpu: Processor, rcx: int) -> tuple[LeafCode, int]:
    """EDBGRD: 8 bytes at the EPC address in RCX; returns the code and what RBX receives."""
    page, code = _debugged(cpu, rcx, frozenset({PT_REG, PT_TCS, PT_VA}))
    if code:
        return code, 0
    offset = rcx % PAGE_SIZE
    kind = cpu.epc.page_type(page)
    if kind == PT_VA:
        # A version is a secret; whether there is one is not.
        slot = cpu.epc.contents[page][offset : offset + 8]
        return LeafCode.NO_ERROR, 0xFFFF_FFFF_FFFF_FFFF if any(slot) else 0
    if kind == PT_TCS and offset >= _TCS_LIMIT:
        raise Fault.gp(f"TCS offset {offset:#x} is beyond the TCS")
    secs = _require_debug(cpu, page)
    if kind == PT_TCS:
        data = cpu.threads[page].tcs_page(cpu.epc.contents[page])[offset : offset + 8]
    else:
        data = secs.elrange.read(cpu.epc.addresses[page] + offset, 8)
    return LeafCode.NO_ERROR, int.from_bytes(data, "little")


def edbgwr(cpu: Processor, rcx: int, value: int) -> LeafCode:
    """EDBGWR: store 8 bytes (RBX points to them in the manual) at the EPC address in RCX."""
    page, code = _debugged(cpu, rcx, frozenset({PT_REG, PT_TCS}))
    if code:
        return code
    offset = rcx % PAGE_SIZE
    is_tcs = cpu.epc.page_type(page) == PT_TCS
    if is_tcs and offset != _TCS_FLAGS:
        raise Fault.gp(f"TCS offset {offset:#x}: only FLAGS can be written")
    secs = _require_debug(cpu, page)
    data = value.to_bytes(8, "little")
    if is_tcs:
        cpu.epc.contents[page][offset : offset + 8] = data
        cpu.threads[page].set_flags(value)
    else:
        secs.elrange.write(cpu.epc.addresses[page] + offset, data)
    return LeafCode.NO_ERROR
