# SPDX-License-Identifier: Apache-2.0
"""The extended state at an AEX and an ERESUME, in XSAVE images of the standard format.

Three images are in play: the thread's (all components of XCR0, as the host hands it over), the SSA
frame's (the components of XFRM) and the one to be loaded next. The loader of that one applies a
component only if its bit is in XSTATE_BV, MXCSR only with the bit of SSE or AVX and the x87 words only
with that of x87; so bits 0 and 1 are always set and the legacy area spelled out. See SDM volume 1,
chapter 13, and for the synthetic state volume 3D, "State on exit due to AEX".
"""

from softsgx.arch.attributes import XFRM_LEGACY, XFRM_SSE, XFRM_X87
from softsgx.arch.exceptions import VECTOR_MF, VECTOR_XM
from softsgx.arch.layout import U16, U32, U64, Record, at, layout, raw
from softsgx.cpu.model import XSAVE_MINIMUM
from softsgx.errors import Fault

_FCW_INIT = 0x037F
_FCW_MF = 0x037E
_FSW_MF = 0x8081
_MXCSR_INIT = 0x1F80
_MXCSR_AEX = 0x1FB0
_MXCSR_XM = 0x1F01
# The bits of MXCSR that exist if the image's MXCSR_MASK says 0 (SDM volume 1, 11.6.6).
_MXCSR_MASK_DEFAULT = 0xFFBF

_X87 = slice(0, 24)
_ST = slice(32, 160)
_XMM = slice(160, 416)
# The processor leaves these to software, which may have put anything there.
_UNUSED = slice(416, 512)
_HEADER = slice(512, 576)


@layout(size=576)
class Xsave(Record):
    """The legacy area and the header of an XSAVE image."""

    fcw: int = at(0, U16)
    fsw: int = at(2, U16)
    mxcsr: int = at(24, U32)
    mxcsr_mask: int = at(28, U32)
    xstate_bv: int = at(512, U64)
    xcomp_bv: int = at(520, U64)
    header_reserved: bytes = at(528, raw(8))


_FCW = Xsave.OFFSETS["fcw"]
_FSW = Xsave.OFFSETS["fsw"]
_MXCSR = Xsave.OFFSETS["mxcsr"]
_XSTATE_BV = Xsave.OFFSETS["xstate_bv"]


def _put(image: bytearray, offset: int, length: int, value: int) -> None:
    image[offset : offset + length] = value.to_bytes(length, "little")


def _components(xfrm: int, sizes: dict[int, tuple[int, int]]) -> list[tuple[int, slice]]:
    """Return the components of XFRM beyond the legacy area: their bits and where they lie."""
    return [
        (1 << component, slice(offset, offset + size))
        for component, (size, offset) in sizes.items()
        if component >= 2 and xfrm >> component & 1
    ]


def _copy(source: bytes | bytearray, target: bytearray, where: slice) -> None:
    # The host may leave off components at the end that the thread has never been allowed to use.
    piece = source[where].ljust(where.stop - where.start, b"\0")
    target[where] = piece


def saved(image: bytearray, xfrm: int, sizes: dict[int, tuple[int, int]], length: int) -> bytearray:
    """Return what an AEX stores in the SSA frame of the thread's image: ``length`` bytes."""
    area = bytearray(length)
    area[:XSAVE_MINIMUM] = image[:XSAVE_MINIMUM]
    area[_UNUSED] = bytes(_UNUSED.stop - _UNUSED.start)
    area[_HEADER] = bytes(_HEADER.stop - _HEADER.start)
    in_use = Xsave.decode(image).xstate_bv & xfrm
    _put(area, _XSTATE_BV, 8, in_use)
    for bit, where in _components(xfrm, sizes):
        if in_use & bit:
            _copy(image, area, where)
    return area


def synthetic(image: bytearray, xfrm: int, vector: int | None) -> bytearray:
    """Return the image that the thread has after an AEX by a vector (None: an interrupt)."""
    after = bytearray(image)
    _clear_legacy(after)
    _put(after, _FCW, 2, _FCW_MF if vector == VECTOR_MF else _FCW_INIT)
    _put(after, _FSW, 2, _FSW_MF if vector == VECTOR_MF else 0)
    _put(after, _MXCSR, 4, _MXCSR_XM if vector == VECTOR_XM else _MXCSR_AEX)
    others = Xsave.decode(image).xstate_bv & ~xfrm
    _put(after, _XSTATE_BV, 8, others | XFRM_LEGACY)
    return after


def restored(
    image: bytearray, area: bytes, xfrm: int, sizes: dict[int, tuple[int, int]]
) -> bytearray:
    """Return the image that ERESUME loads from an SSA frame; #GP where XRSTOR faults.

    The components outside XFRM stay the thread's.
    """
    ssa = Xsave.decode(area)
    if ssa.xstate_bv & ~xfrm:
        raise Fault.gp(f"SSA XSTATE_BV {ssa.xstate_bv:#x} is beyond XFRM {xfrm:#x}")
    if ssa.xcomp_bv or any(ssa.header_reserved):
        raise Fault.gp("SSA XSAVE header bytes 8 to 23 are not zero")
    now = Xsave.decode(image)
    if ssa.mxcsr & ~(now.mxcsr_mask or _MXCSR_MASK_DEFAULT):
        raise Fault.gp(f"SSA MXCSR {ssa.mxcsr:#x} has reserved bits")
    after = bytearray(image)
    _clear_legacy(after)
    if ssa.xstate_bv & XFRM_X87:
        after[_X87] = area[_X87]
        after[_ST] = area[_ST]
    else:
        _put(after, _FCW, 2, _FCW_INIT)
    # XRSTOR loads MXCSR also where XSTATE_BV says that SSE is in its initial state.
    _put(after, _MXCSR, 4, ssa.mxcsr)
    if ssa.xstate_bv & XFRM_SSE:
        after[_XMM] = area[_XMM]
    for bit, where in _components(xfrm, sizes):
        if ssa.xstate_bv & bit:
            after.extend(bytes(max(0, where.stop - len(after))))
            _copy(area, after, where)
    _put(after, _XSTATE_BV, 8, now.xstate_bv & ~xfrm | ssa.xstate_bv | XFRM_LEGACY)
    return after


def _clear_legacy(image: bytearray) -> None:
    """Put x87 and SSE into their initial state, all but FCW and MXCSR."""
    for where in (_X87, _ST, _XMM):
        image[where] = bytes(where.stop - where.start)
    _put(image, _MXCSR, 4, _MXCSR_INIT)
