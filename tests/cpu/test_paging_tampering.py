# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to what EWB wrote, ELDU refuses it: no bit, no part and no copy can be exchanged.

Every single bit and every combination of parts is tried, by the form that takes its operands from memory;
the leaf itself, by a sample of them.
"""

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import PT_VA, SECINFO_PAGE_TYPE_SHIFT, SECINFO_R, SECINFO_REG, SECINFO_W
from softsgx.cpu import encls, paging
from softsgx.errors import Fault

READ_WRITE = SECINFO_REG | SECINFO_R | SECINFO_W
OTHER_BASE = 1 << 40
# PCMD: page type in SECINFO.FLAGS[15:8], and ENCLAVEID, which the MAC does not cover.
PAGE_TYPE_BITS = range(SECINFO_PAGE_TYPE_SHIFT, SECINFO_PAGE_TYPE_SHIFT + 8)
ENCLAVEID_BITS = range(64 * 8, 72 * 8)
GP, PF = 13, 14


class Out(NamedTuple):
    """A page that is out, and where it belongs."""

    linaddr: int
    contents: bytes
    pcmd: bytes
    slot: int
    # None for a SECS or VA page.
    secs: int | None


def load(pager: Any, out: Out, page: int, **changes: Any) -> LeafCode | int:
    """Return ELDU's code, or the vector of its fault."""
    out = out._replace(**changes)
    operands = out.linaddr, out.contents, out.pcmd
    try:
        return paging.eldu_page(pager.cpu, page, pager.va, out.slot * 8, out.secs, *operands)
    except Fault as fault:
        return fault.vector


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def tracked(pager: Any, *pages: int) -> None:
    for page in pages:
        assert not pager.eblock(page)
    assert not pager.etrack()


def taken_out(pager: Any, page: int, slot: int, secs: int | None) -> Out:
    code, outs = paging.ewb_pages(pager.cpu, [page], pager.va, [slot])
    assert code is LeafCode.NO_ERROR
    return Out(*outs[0], slot, secs)


def of_kind(pager: Any, kind: str) -> tuple[Out, int, bytes, Callable[[], bytes]]:
    """Take out a page of a kind: what is out, its EPC page, what it held, and how that is seen."""
    machine, cpu = pager.machine, pager.cpu
    parent = machine.secs_page if kind in {"REG", "TCS"} else None
    held = bytes(range(256)) * 16
    if kind == "REG":
        page = machine.table[machine.BASE + machine.DATA]
        machine.write(machine.DATA, held)
    elif kind == "TCS":
        page, held = machine.table[machine.BASE + machine.TCS], machine.tcs_bytes()
    elif kind == "SECS":
        page = machine.create(attributes=4, baseaddr=OTHER_BASE)
        held = bytes([machine.secs.eid])
    else:
        page = machine.allocate()
        encls.epa(cpu, PT_VA, machine.address(page))
        cpu.epc.contents[page][:] = held
    if parent is not None:
        tracked(pager, page)
    seen = {
        "REG": lambda: machine.read(machine.DATA, 4096),
        "SECS": lambda: bytes([cpu.enclaves[page].eid]),
    }
    return (
        taken_out(pager, page, 1, parent),
        page,
        held,
        seen.get(kind, lambda: bytes(cpu.epc.contents[page])),
    )


@pytest.mark.parametrize("kind", ["REG", "TCS", "SECS", "VA"])
def test_no_single_bit_can_be_changed(pager: Any, kind: str) -> None:
    out, page, held, seen = of_kind(pager, kind)
    version = pager.slots()
    for bit in range(4096 * 8):
        answer = load(pager, out, page, contents=flipped(out.contents, bit))
        assert answer is LeafCode.MAC_COMPARE_FAIL, bit
    for bit in range(128 * 8):
        if bit in ENCLAVEID_BITS:
            continue
        answer = load(pager, out, page, pcmd=flipped(out.pcmd, bit))
        # With another type PAGEINFO.SECS is one too many, or missing.
        documented = {GP, PF} if bit in PAGE_TYPE_BITS else set()
        assert answer in {LeafCode.MAC_COMPARE_FAIL, *documented}, bit
    for bit in range(64):
        answer = load(pager, out, page, linaddr=out.linaddr ^ 1 << bit)
        assert answer is LeafCode.MAC_COMPARE_FAIL, bit
    assert pager.slots() == version
    assert not pager.cpu.epc.valid(page)
    pager.cpu.epc.check()
    # What was tried has spent nothing; and ENCLAVEID is software's own.
    assert load(pager, out, page, pcmd=flipped(out.pcmd, ENCLAVEID_BITS.start)) is LeafCode.NO_ERROR
    assert seen() == held
    assert not pager.slots()


def test_no_bit_of_the_version_can_be_changed(pager: Any) -> None:
    out, page, held, seen = of_kind(pager, "REG")
    slots = pager.cpu.epc.contents[pager.va]
    for bit in range(64, 128):
        slots[bit // 8] ^= 1 << bit % 8
        assert load(pager, out, page) is LeafCode.MAC_COMPARE_FAIL
        slots[bit // 8] ^= 1 << bit % 8
    assert load(pager, out, page) is LeafCode.NO_ERROR
    assert seen() == held


def test_no_part_can_be_exchanged_with_another_page_or_an_older_copy(pager: Any) -> None:
    """Two enclaves, two pages each, three generations: every mixture of contents, PCMD, place and slot."""
    machine, cpu = pager.machine, pager.cpu
    pages: dict[tuple[int, int], int] = {}
    for _ in range(2):
        secs = machine.create(attributes=4)
        for number in (0, 1):
            offset = machine.DATA + number * 4096
            pages[secs, number] = machine.add(offset, bytes(4096), READ_WRITE, measure=False)
    outs: list[Out] = []
    for generation in range(3):
        for slot, ((secs, number), page) in enumerate(pages.items()):
            elrange = cpu.enclaves[secs].elrange
            linaddr = machine.BASE + machine.DATA + number * 4096
            elrange.write(linaddr, bytes([16 * generation + slot]) * 4096)
            machine.secs_page = secs
            tracked(pager, page)
            outs.append(taken_out(pager, page, slot, secs))
        if generation < 2:
            for slot, page in enumerate(pages.values()):
                assert load(pager, outs[4 * generation + slot], page) is LeafCode.NO_ERROR
    live = outs[8:]
    versions = pager.slots()
    target = next(iter(pages.values()))
    tried = 0
    for contents, pcmd, place, slot in product(outs, outs, live, range(6)):
        mixed = Out(place.linaddr, contents.contents, pcmd.pcmd, slot, place.secs)
        if mixed in live:
            continue
        assert load(pager, mixed, target) is LeafCode.MAC_COMPARE_FAIL
        tried += 1
    assert tried == 12 * 12 * 4 * 6 - 4
    assert pager.slots() == versions
    for slot, page in enumerate(pages.values()):
        assert load(pager, live[slot], page) is LeafCode.NO_ERROR
    for slot, (secs, number) in enumerate(pages):
        linaddr = machine.BASE + machine.DATA + number * 4096
        assert cpu.enclaves[secs].elrange.read(linaddr, 4096) == bytes([32 + slot]) * 4096
    cpu.epc.check()


def test_an_older_tcs_cannot_be_brought_back(pager: Any) -> None:
    machine = pager.machine
    page = machine.table[machine.BASE + machine.TCS]
    tracked(pager, page)
    old = taken_out(pager, page, 1, machine.secs_page)
    assert load(pager, old, page) is LeafCode.NO_ERROR
    tracked(pager, page)
    new = taken_out(pager, page, 1, machine.secs_page)
    assert load(pager, old, page) is LeafCode.MAC_COMPARE_FAIL
    # Nor by the VA page of then, which EWB has sealed with a version of its own.
    assert load(pager, new, page, slot=2) is LeafCode.MAC_COMPARE_FAIL
    assert load(pager, new, page) is LeafCode.NO_ERROR


def test_an_older_va_page_brings_no_older_page_back(pager: Any) -> None:
    machine, cpu = pager.machine, pager.cpu
    page = machine.table[machine.BASE + machine.DATA]
    inner, outer = pager.va, machine.allocate()
    encls.epa(cpu, PT_VA, machine.address(outer))

    def va_out() -> Out:
        pager.va = outer
        out = taken_out(pager, inner, 0, None)
        pager.va = inner
        return out

    def va_in(out: Out) -> LeafCode | int:
        pager.va = outer
        answer = load(pager, out, inner)
        pager.va = inner
        return answer

    tracked(pager, page)
    old = taken_out(pager, page, 1, machine.secs_page)
    old_va = va_out()
    assert va_in(old_va) is LeafCode.NO_ERROR
    assert load(pager, old, page) is LeafCode.NO_ERROR
    tracked(pager, page)
    new = taken_out(pager, page, 1, machine.secs_page)
    new_va = va_out()
    assert va_in(old_va) is LeafCode.MAC_COMPARE_FAIL
    assert va_in(new_va) is LeafCode.NO_ERROR
    assert load(pager, old, page) is LeafCode.MAC_COMPARE_FAIL
    assert load(pager, new, page) is LeafCode.NO_ERROR


def test_another_processor_has_another_key(pager: Any, make_machine: Any, make_pager: Any) -> None:
    out, page, _, _ = of_kind(pager, "REG")
    other = make_pager(make_machine(identity=pager.cpu.identity).build())
    gone = of_kind(other, "REG")[0]
    assert (gone.linaddr, gone.slot, gone.secs) == (out.linaddr, out.slot, out.secs)
    assert pager.slots() == other.slots()
    assert load(other, out, page) is LeafCode.MAC_COMPARE_FAIL
    assert load(other, gone, page) is LeafCode.NO_ERROR


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits=st.sets(st.integers(0, (4096 + 128) * 8 - 1), min_size=1, max_size=6),
    leaf=st.sampled_from([paging.eldu, paging.elduc]),
)
def test_the_leaves_refuse_what_was_changed_in_memory(
    pager: Any, bits: set[int], leaf: Any
) -> None:
    machine = pager.machine
    page = machine.table[machine.BASE + machine.DATA]
    out = pager.evict(page)
    both = b"".join(out.sealed())
    changed = both
    for bit in bits:
        changed = flipped(changed, bit)
    machine.memory.write(out.contents, changed[:4096])
    machine.memory.write(out.pcmd, changed[4096:])
    harmless = {(4096 + 64) * 8 + bit for bit in range(64)}
    try:
        answer: LeafCode | int = pager.eld(out, page, leaf)
    except Fault as fault:
        answer = fault.vector
    if bits <= harmless:
        assert answer is LeafCode.NO_ERROR
    else:
        assert answer in {LeafCode.MAC_COMPARE_FAIL, GP}
        assert not pager.cpu.epc.valid(page)
        machine.memory.write(out.contents, both[:4096])
        machine.memory.write(out.pcmd, both[4096:])
        assert pager.eld(out, page, leaf) is LeafCode.NO_ERROR
