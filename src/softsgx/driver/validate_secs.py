# SPDX-License-Identifier: Apache-2.0
"""What the drivers before mainline's look at in a SECS themselves, before ECREATE does (sgx_validate_secs).

Owns nothing.  Mainline leaves all but one check to ECREATE; here most defects are -EINVAL of the driver's.
"""

import errno
from typing import TYPE_CHECKING, NamedTuple

from softsgx.arch.attributes import (
    ATTRIBUTE_MODE64BIT,
    MISC_EXINFO,
    XFRM_BNDCSR,
    XFRM_BNDREGS,
    XFRM_LEGACY,
)
from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.arch.structures import Exinfo, Secs
from softsgx.cpu.model import MAX_ENCLAVE_SIZE_64, MAX_ENCLAVE_SIZE_NOT64
from softsgx.errors import DriverError

if TYPE_CHECKING:
    from softsgx.cpu.model import Model


class SecsRules(NamedTuple):
    """Where the drivers differ: bits that no processor makes good, GPRSGX's bytes, reserved stretches."""

    attributes_reserved: int
    gprs_size: int
    reserved: tuple[tuple[int, int], ...]
    # A caller that is not 32-bit itself may create a 32-bit enclave.
    mode32: bool


_BITS_63_8 = 0xFFFF_FFFF_FFFF_FF00
# Where CONFIGID and CONFIGSVN are, older headers have more of the reserved bytes.
_RESERVED_WITHOUT_KSS = ((24, 48), (96, 128), (160, 256), (260, 4096))
_RESERVED = ((24, 48), (96, 128), (160, 192), (262, 4096))
# SGX_ATTR_RESERVED_MASK of each, and its SGX_SSA_GPRS_SIZE: two bytes short in the older ones.
V16_RULES = SecsRules(_BITS_63_8 | 0x88, 182, _RESERVED_WITHOUT_KSS, mode32=False)
ISGX_RULES = SecsRules(_BITS_63_8 | 0x49, 182, _RESERVED, mode32=False)
DCAP_RULES = SecsRules(_BITS_63_8 | 0x48, 184, _RESERVED, mode32=True)


def validate_secs(model: "Model", data: bytes, rules: SecsRules) -> None:
    """Judge a SECS of 4096 bytes; DriverError EINVAL."""
    secs = Secs.decode(data)
    problem = _problem(model, secs, data, rules)
    if problem:
        raise DriverError(errno.EINVAL, f"SECS.{problem}")


def _problem(model: "Model", secs: Secs, data: bytes, rules: SecsRules) -> str:
    if secs.size < 2 * PAGE_SIZE or secs.size & (secs.size - 1):
        return f"SIZE {secs.size:#x} is no power of two from 2 pages on"
    if secs.baseaddr & (secs.size - 1):
        return f"BASEADDR {secs.baseaddr:#x} is not aligned to SIZE {secs.size:#x}"
    unknown = secs.attributes & (~model.attributes | rules.attributes_reserved)
    if unknown:
        return f"ATTRIBUTES {unknown:#x} are reserved"
    if secs.miscselect & ~(model.miscselect & MISC_EXINFO):
        return f"MISCSELECT {secs.miscselect:#x} is reserved"
    if secs.attributes & ATTRIBUTE_MODE64BIT:
        most = MAX_ENCLAVE_SIZE_64
    elif rules.mode32:
        most = MAX_ENCLAVE_SIZE_NOT64
    else:
        return "ATTRIBUTES are of a 32-bit enclave, and the caller is a 64-bit one"
    if secs.size > 1 << most:
        return f"SIZE {secs.size:#x} is beyond 2^{most}"
    if secs.xfrm & XFRM_LEGACY != XFRM_LEGACY or secs.xfrm & ~model.xfrm:
        return f"XFRM {secs.xfrm:#x} is without x87 or SSE, or beyond {model.xfrm:#x}"
    if bool(secs.xfrm & XFRM_BNDREGS) != bool(secs.xfrm & XFRM_BNDCSR):
        return f"XFRM {secs.xfrm:#x} has one half of MPX"
    least = ssa_pages(model, secs.xfrm, secs.miscselect, rules.gprs_size)
    if secs.ssaframesize < max(least, 1):
        return f"SSAFRAMESIZE {secs.ssaframesize} is too small: {least} wanted"
    if any(any(data[start:end]) for start, end in rules.reserved):
        return "reserved bytes are not zero"
    return ""


def ssa_pages(model: "Model", xfrm: int, miscselect: int, gprs_size: int) -> int:
    """Return the pages of an SSA frame as these drivers compute them: from 0DH's EAX + EBX, a page at least."""
    size = PAGE_SIZE
    for component, (length, offset) in model.xsave_sizes.items():
        if component >= 2 and xfrm >> component & 1:
            exinfo = Exinfo.SIZE if miscselect & MISC_EXINFO else 0
            size = max(size, gprs_size + offset + length + exinfo)
    return -(-size // PAGE_SIZE)
