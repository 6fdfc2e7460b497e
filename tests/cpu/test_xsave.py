# SPDX-License-Identifier: Apache-2.0
"""Extended state at an AEX and at an ERESUME."""

from typing import Any

import pytest

from softsgx.cpu import xsave
from softsgx.cpu.model import XSAVE_SIZES
from softsgx.cpu.transition import Event, aex, enclu
from softsgx.errors import Fault

LENGTH = 2696
# x87, SSE, AVX, AVX-512, PKRU
XCR0 = 0x2E7
AVX = slice(576, 832)
PKRU = slice(2688, 2696)
LEGACY_AFTER_AEX = {"fcw": 0x037F, "fsw": 0, "mxcsr": 0x1FB0}


def image(fill: int, in_use: int = XCR0) -> bytearray:
    """Return a thread's image whose components are all of one byte."""
    out = bytearray([fill]) * LENGTH
    out[24:32] = (0x1F80).to_bytes(4, "little") + (0xFFFF).to_bytes(4, "little")
    out[464:512] = b"\x5a" * 48
    out[512:576] = in_use.to_bytes(8, "little") + bytes(56)
    return out


def words(data: bytes) -> dict[str, int]:
    head = xsave.Xsave.decode(data)
    return {"fcw": head.fcw, "fsw": head.fsw, "mxcsr": head.mxcsr}


def test_an_aex_saves_the_components_of_xfrm() -> None:
    area = xsave.saved(image(0xEE), 7, XSAVE_SIZES, 832)
    assert len(area) == 832
    assert area[:24] == b"\xee" * 24
    assert area[32:416] == b"\xee" * 384
    # What the host's kernel keeps here is none of the enclave's business.
    assert area[416:512] == bytes(96)
    assert int.from_bytes(area[512:520], "little") == 7
    assert area[520:576] == bytes(56)
    assert area[AVX] == b"\xee" * 256


def test_components_that_are_not_in_use_are_saved_as_initial() -> None:
    area = xsave.saved(image(0xEE, 3), 7, XSAVE_SIZES, 832)
    assert int.from_bytes(area[512:520], "little") == 3
    assert area[AVX] == bytes(256)


def test_the_synthetic_state_is_initial_for_xfrm_and_only_for_it() -> None:
    after = xsave.synthetic(image(0xEE), 7, None)
    assert words(after) == LEGACY_AFTER_AEX
    assert int.from_bytes(after[512:520], "little") == XCR0 & ~4
    assert after[2:24] == bytes(22)
    assert after[32:416] == bytes(384)
    assert after[PKRU] == b"\xee" * 8
    assert after[464:512] == b"\x5a" * 48


@pytest.mark.parametrize(
    ("vector", "changed"),
    [
        (16, {"fcw": 0x037E, "fsw": 0x8081}),
        (19, {"mxcsr": 0x1F01}),
        (6, {}),
        (14, {}),
    ],
)
def test_the_synthetic_state_lets_a_floating_point_fault_show(vector: int, changed: Any) -> None:
    assert words(xsave.synthetic(image(0xEE), 7, vector)) == LEGACY_AFTER_AEX | changed


def test_resuming_restores_xfrm_and_leaves_the_rest() -> None:
    area = xsave.saved(image(0xEE), 7, XSAVE_SIZES, 832)
    host = image(0x11)
    after = xsave.restored(host, bytes(area), 7, XSAVE_SIZES)
    assert after[:24] == b"\xee" * 24
    assert after[32:416] == b"\xee" * 384
    assert after[AVX] == b"\xee" * 256
    assert after[832:] == host[832:]
    assert after[464:512] == host[464:512]
    assert int.from_bytes(after[512:520], "little") == XCR0


def test_resuming_initialises_what_the_frame_has_not_in_use() -> None:
    area = xsave.saved(image(0xEE, 0), 7, XSAVE_SIZES, 832)
    area[24:28] = (0x1F00).to_bytes(4, "little")
    after = xsave.restored(image(0x11), bytes(area), 7, XSAVE_SIZES)
    # Bits 0 and 1 are set so that FCW and MXCSR are taken; MXCSR is the frame's in any case.
    assert words(after) == {"fcw": 0x037F, "fsw": 0, "mxcsr": 0x1F00}
    assert after[32:416] == bytes(384)
    assert int.from_bytes(after[512:520], "little") == XCR0 & ~4


def test_a_host_may_leave_off_what_a_thread_never_used() -> None:
    short = image(0xEE, 3)[:576]
    area = xsave.saved(short, 7, XSAVE_SIZES, 832)
    assert area[AVX] == bytes(256)
    full = xsave.saved(image(0xEE), 7, XSAVE_SIZES, 832)
    after = xsave.restored(image(0x11, 3)[:576], bytes(full), 7, XSAVE_SIZES)
    assert after[AVX] == b"\xee" * 256


def test_mxcsr_bits_that_the_processor_has_not_are_refused() -> None:
    area = xsave.saved(image(0xEE), 7, XSAVE_SIZES, 832)
    area[24:28] = (0x1FC0).to_bytes(4, "little")
    host = image(0x11)
    host[28:32] = bytes(4)
    with pytest.raises(Fault, match="MXCSR"):
        xsave.restored(host, bytes(area), 7, XSAVE_SIZES)
    assert xsave.restored(image(0x11), bytes(area), 7, XSAVE_SIZES)[24:28] == area[24:28]


def test_a_round_trip_through_an_enclave(make_machine: Any) -> None:
    machine = make_machine(xcr0=7).build(xfrm=7)
    machine.xsave = image(0xEE)
    machine.regs.rax, machine.regs.rbx = 2, machine.BASE + machine.TCS
    enclu(machine.cpu, machine.lp, machine.regs)
    aex(machine.cpu, machine.lp, machine.regs, Event(19))
    assert words(machine.xsave) == LEGACY_AFTER_AEX | {"mxcsr": 0x1F01}
    frame = machine.read(machine.SSA, 832)
    assert frame[AVX] == b"\xee" * 256
    assert b"\x5a" not in frame
    machine.xsave = image(0x11)
    machine.regs.rax = 3
    enclu(machine.cpu, machine.lp, machine.regs)
    assert machine.xsave[AVX] == b"\xee" * 256
    assert machine.xsave[PKRU] == b"\x11" * 8
