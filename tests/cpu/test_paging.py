# SPDX-License-Identifier: Apache-2.0
"""EWB, ELDB, ELDU and their kin: what goes out and comes back, and every refusal in the manual's order."""

from collections.abc import Callable
from typing import Any

import pytest

from softsgx.arch.attributes import TCS_DBGOPTIN
from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import (
    PT_TCS,
    PT_VA,
    SECINFO_MODIFIED,
    SECINFO_PAGE_TYPE_SHIFT,
    SECINFO_PENDING,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_W,
)
from softsgx.arch.structures import Pageinfo, Pcmd, Secinfo, Tcs
from softsgx.cpu import encls, paging
from softsgx.cpu.epc import EPC_BASE, EPCM_BLOCKED, EPCM_TYPE_SHIFT, EPCM_VALID
from softsgx.cpu.paging_run import eldu_run
from softsgx.cpu.registers import Registers
from softsgx.cpu.transition import Event, aex, enclu
from softsgx.errors import Fault

EENTER, ERESUME = 2, 3
CONTENT = bytes(range(256)) * 16
READ_WRITE = SECINFO_REG | SECINFO_R | SECINFO_W
NOT_EPC = 0x1000
OTHER_BASE = 1 << 40


def data_page(pager: Any, number: int = 0) -> int:
    """Fill a data page and return its EPC page."""
    machine = pager.machine
    offset = machine.DATA + number * 4096
    machine.write(offset, CONTENT)
    page: int = machine.table[machine.BASE + offset]
    return page


def tcs_page(pager: Any) -> int:
    page: int = pager.machine.table[pager.machine.BASE + pager.machine.TCS]
    return page


def evict_all(pager: Any) -> list[Any]:
    """Take out every page of the enclave but its SECS."""
    return [
        pager.evict(page, slot + 8) for slot, page in enumerate(list(pager.machine.table.values()))
    ]


# -- out and back -------------------------------------------------------------------------------


def test_a_page_comes_back_as_it_went(pager: Any) -> None:
    machine = pager.machine
    page = data_page(pager)
    children = machine.secs.children
    out = pager.evict(page)
    assert out.linaddr == machine.BASE + machine.DATA
    contents, pcmd = out.sealed()
    assert CONTENT[:64] not in contents
    fields = Pcmd.decode(pcmd)
    assert (fields.secinfo.flags, fields.enclaveid) == (READ_WRITE, machine.secs.eid)
    assert Pcmd.reserved_is_zero(pcmd)
    assert not pager.cpu.epc.valid(page)
    assert machine.secs.children == children - 1
    assert machine.read(machine.DATA, 4096) == bytes(4096)
    assert list(pager.slots()) == [0]
    elsewhere = machine.allocate()
    assert not pager.eld(out, elsewhere)
    assert machine.read(machine.DATA, 4096) == CONTENT
    assert machine.secs.children == children
    assert not pager.slots()
    # The version is spent.
    encls.eremove(pager.cpu, machine.address(elsewhere))
    assert pager.eld(out, elsewhere) is LeafCode.MAC_COMPARE_FAIL
    pager.cpu.epc.check()


@pytest.mark.leaf("EBLOCK", "done")
@pytest.mark.leaf("ETRACK", "done")
@pytest.mark.leaf("ETRACKC", "done")
@pytest.mark.leaf("EWB", "done")
@pytest.mark.leaf("ELDB", "done")
@pytest.mark.leaf("ELDU", "done")
@pytest.mark.leaf("ELDBC", "done")
@pytest.mark.leaf("ELDUC", "done")
@pytest.mark.leaf("ERDINFO", "done")
def test_the_leaves_are_found_by_number(pager: Any) -> None:
    machine = pager.machine
    cpu, memory, page = pager.cpu, machine.memory, data_page(pager)
    secs, rcx = machine.address(machine.secs_page), machine.address(page)
    before = LeafCode.NO_ERROR
    for leaf, after in ((0x08, False), (0x13, False), (0x07, True), (0x12, True)):
        assert encls.encls(cpu, memory, 0x09, 0, rcx) == (before, 0)
        track = 0x11 if after else 0x0C
        assert encls.encls(cpu, memory, track, 0, secs) == (LeafCode.NO_ERROR, 0)
        contents, pcmd = memory.place(bytes(4096)), memory.place(bytes(128))
        pageinfo = Pageinfo(linaddr=0, srcpge=contents, secinfo=pcmd, secs=0)
        rbx, rdx = memory.place(pageinfo.encode()), machine.address(pager.va) + 8 * leaf
        assert encls.encls(cpu, memory, 0x0B, rbx, rcx, rdx) == (LeafCode.NO_ERROR, rbx)
        pageinfo = Pageinfo.decode(memory.read(rbx, 32)).replace(secs=secs)
        rbx = memory.place(pageinfo.encode())
        assert encls.encls(cpu, memory, leaf, rbx, rcx, rdx) == (LeafCode.NO_ERROR, rbx)
        assert bool(cpu.epc.words[page] & EPCM_BLOCKED) == after
        before = LeafCode.BLKSTATE if after else LeafCode.NO_ERROR
    rdinfo = memory.place(bytes(32))
    assert encls.encls(cpu, memory, 0x10, rdinfo, rcx) == (LeafCode.NO_ERROR, rdinfo)
    assert machine.read(machine.DATA, 4096) == CONTENT
    cpu.epc.check()


def test_a_page_that_is_loaded_blocked_needs_a_cycle_before_it_goes(pager: Any) -> None:
    page = data_page(pager)
    assert not pager.eld(pager.evict(page), page, paging.eldb)
    assert pager.ewb(page)[0] is LeafCode.NOT_TRACKED
    assert not pager.etrack()
    code, out = pager.ewb(page)
    assert not code
    assert not pager.eld(out, page)
    assert not pager.cpu.epc.words[page] & EPCM_BLOCKED


@pytest.mark.leaf("EWB", "VA_SLOT_OCCUPIED")
def test_an_occupied_slot_is_told_and_the_page_is_out(pager: Any) -> None:
    first, second = data_page(pager), data_page(pager, 1)
    lost = pager.evict(first)
    pager.block(second)
    code, out = pager.ewb(second)
    assert code is LeafCode.VA_SLOT_OCCUPIED
    assert not pager.cpu.epc.valid(second)
    assert pager.eld(lost, first) is LeafCode.MAC_COMPARE_FAIL
    assert not pager.eld(out, first)


def test_no_two_pages_are_sealed_under_one_version(pager: Any) -> None:
    page, seen = data_page(pager), set()
    for slot in range(20):
        out = pager.evict(page, slot % 3)
        seen.add((*pager.slots().values(), *out.sealed()))
        assert not pager.eld(out, page)
    assert len(seen) == 20


def test_a_tcs_comes_back_with_its_threads_state(pager: Any) -> None:
    machine = pager.machine
    assert not encls.edbgwr(pager.cpu, machine.address(tcs_page(pager)) + 8, TCS_DBGOPTIN)
    regs = Registers(rax=EENTER, rbx=machine.BASE + machine.TCS, rcx=0x40_1000)
    enclu(pager.cpu, machine.lp, regs)
    regs.rdi = 0x5A5A
    aex(pager.cpu, machine.lp, regs, Event())
    before = Tcs.decode(machine.secs.threads[tcs_page(pager)].tcs_page(machine.tcs_bytes()))
    assert (before.cssa, before.aep, before.state) == (1, 0x40_1000, 0)
    out = pager.evict(tcs_page(pager), 3)
    assert not machine.secs.threads
    assert not pager.cpu.threads
    with pytest.raises(Fault) as raised:
        enclu(pager.cpu, machine.lp, regs)
    assert (raised.value.vector, raised.value.address) == (14, machine.BASE + machine.TCS)
    page = machine.allocate()
    assert not pager.eld(out, page)
    (thread,) = machine.secs.threads.values()
    assert thread is pager.cpu.threads[page]
    assert Tcs.decode(thread.tcs_page(pager.cpu.epc.contents[page])) == before.replace(
        flags=TCS_DBGOPTIN
    )
    assert thread.flags == TCS_DBGOPTIN
    enclu(pager.cpu, machine.lp, regs)
    assert (regs.rdi, regs.rip) == (0x5A5A, machine.BASE + 0x100)
    pager.cpu.epc.check()


@pytest.mark.leaf("EWB", "CHILD_PRESENT", "done")
def test_a_secs_goes_last_and_comes_first(pager: Any) -> None:
    machine = pager.machine
    secs, secs_page = machine.secs, machine.secs_page
    data_page(pager)
    assert pager.ewb(secs_page)[0] is LeafCode.CHILD_PRESENT
    outs = evict_all(pager)
    code, out_secs = pager.ewb(secs_page, 1)
    assert not code
    assert not pager.cpu.enclaves
    for out in outs:
        with pytest.raises(Fault) as raised:
            pager.eld(out, secs_page, secs=machine.address(secs_page))
        assert (raised.value.vector, raised.value.address) == (14, machine.address(secs_page))
    machine.secs_page = machine.allocate()
    assert not pager.eld(out_secs, machine.secs_page, secs=0)
    assert machine.secs is secs
    for out in outs:
        assert not pager.eld(out, machine.allocate())
    assert machine.read(machine.DATA, 4096) == CONTENT
    regs = Registers(rax=EENTER, rbx=machine.BASE + machine.TCS, rcx=0x40_1000)
    enclu(pager.cpu, machine.lp, regs)
    pager.cpu.epc.check()


def test_an_enclave_that_is_being_built_can_be_paged(pager: Any) -> None:
    machine = pager.machine

    def built(*, paged: bool) -> bytes:
        machine.create(attributes=4)
        for offset, data, flags in (
            (machine.CODE, CONTENT, READ_WRITE),
            (machine.TCS, machine.tcs_bytes(cssa=5), 0x100),
        ):
            page = machine.add(offset, data, flags, measure=False)
            for chunk in range(0, 4096, 256):
                secs = machine.address(machine.secs_page)
                encls.eextend(pager.cpu, secs, machine.address(page) + chunk)
                if paged:
                    out = pager.evict(page)
                    code, out_secs = pager.ewb(machine.secs_page, 1)
                    if offset == machine.CODE:
                        assert not pager.eld(out_secs, machine.secs_page, secs=0)
                    else:
                        assert code is LeafCode.CHILD_PRESENT
                    assert not pager.eld(out, page)
        digest: bytes = machine.secs.hasher.digest()
        return digest

    assert built(paged=True) == built(paged=False)


def test_whose_secs_it_is_stands_in_what_was_sealed(pager: Any) -> None:
    # PCMD.ENCLAVEID is software's handle: the MAC does not cover it.
    machine = pager.machine
    first = machine.secs
    outs = evict_all(pager)
    _, out_first = pager.ewb(machine.secs_page, 1)
    second = machine.create(attributes=4, baseaddr=OTHER_BASE)
    other = pager.cpu.enclaves[second]
    _, out_second = pager.ewb(second, 2)
    for out, eid in ((out_first, other.eid), (out_second, first.eid)):
        pcmd = Pcmd.decode(machine.memory.read(out.pcmd, 128))
        machine.memory.write(out.pcmd, pcmd.replace(enclaveid=eid).encode())
    machine.secs_page = second
    assert not pager.eld(out_first, second, secs=0)
    assert machine.secs is first
    assert not pager.eld(out_second, machine.allocate(), secs=0)
    assert [secs.eid for secs in pager.cpu.enclaves.values()] == [first.eid, other.eid]
    assert not pager.eld(outs[0], machine.allocate())


@pytest.mark.parametrize(
    "how", ["EREMOVE of the VA page", "EWB to the same slot", "EWB of several", "ELDU"]
)
def test_an_evicted_secs_is_kept_as_long_as_its_version(pager: Any, how: str) -> None:
    machine = pager.machine
    secs = machine.create(attributes=4, baseaddr=OTHER_BASE)
    _, out = pager.ewb(secs, 5)
    assert len(pager.cpu.evicted_secs) == 1
    if how == "ELDU":
        assert not pager.eld(out, secs, secs=0)
    elif how == "EWB to the same slot":
        machine.secs_page = pager.cpu.epc.owners[tcs_page(pager)]
        page = data_page(pager)
        pager.block(page)
        assert pager.ewb(page, 5)[0] is LeafCode.VA_SLOT_OCCUPIED
    elif how == "EWB of several":
        machine.secs_page = pager.cpu.epc.owners[tcs_page(pager)]
        page = data_page(pager)
        pager.block(page)
        assert paging.ewb_pages(pager.cpu, [page], pager.va, [5])[1]
    else:
        assert not encls.eremove(pager.cpu, machine.address(pager.va))
    assert not pager.cpu.evicted_secs


def test_a_va_page_goes_to_another(pager: Any) -> None:
    machine = pager.machine
    page = data_page(pager)
    out = pager.evict(page)
    inner, outer = pager.va, machine.allocate()
    encls.epa(pager.cpu, PT_VA, machine.address(outer))
    pager.va = outer
    code, out_va = pager.ewb(inner)
    assert not code
    with pytest.raises(Fault) as raised:
        pager.eld(out, page)
    assert (raised.value.vector, raised.value.address) == (14, out.slot)
    assert not pager.eld(out_va, inner, secs=0)
    assert not pager.eld(out, page)
    assert machine.read(machine.DATA, 4096) == CONTENT


# -- several at once ----------------------------------------------------------------------------


def blocked_pages(pager: Any, count: int) -> list[int]:
    pages = [data_page(pager, number) for number in range(count)]
    for page in pages:
        assert not pager.eblock(page)
    assert not pager.etrack()
    return pages


def load(pager: Any, page: int, slot: int, out: tuple[int, bytes, bytes]) -> LeafCode:
    secs = pager.machine.secs_page
    code: LeafCode = paging.eldu_page(pager.cpu, page, pager.va, slot * 8, secs, *out)
    return code


def test_pages_go_out_together_as_one_by_one(pager: Any) -> None:
    machine = pager.machine
    pages = blocked_pages(pager, 4)
    for number in range(4):
        machine.write(machine.DATA + number * 4096, bytes([number]) * 4096)
    # Neighbours, a page out of line, one with other attributes.
    order, slots = [pages[1], pages[2], pages[0], pages[3]], [9, 3, 511, 0]
    pager.cpu.epc.words[pages[3]] &= ~SECINFO_W
    code, outs = paging.ewb_pages(pager.cpu, order, pager.va, slots)
    assert code is LeafCode.NO_ERROR
    assert [out[0] - machine.BASE for out in outs] == [0x7000, 0x8000, 0x6000, 0x9000]
    assert set(pager.slots()) == set(slots)
    assert not any(pager.cpu.epc.valid(page) for page in pages)
    assert machine.read(machine.DATA, 4 * 4096) == bytes(4 * 4096)
    pager.cpu.epc.check()
    assert [Pcmd.decode(out[2]).secinfo.flags for out in outs] == [*[READ_WRITE] * 3, 0x201]
    for page, slot, out in zip(order, slots, outs, strict=True):
        assert not load(pager, page, slot, out)
    assert machine.read(machine.DATA, 4 * 4096) == b"".join(bytes([n]) * 4096 for n in range(4))
    assert pager.cpu.epc.words[pages[3]] & (SECINFO_R | SECINFO_W) == SECINFO_R
    assert machine.secs.children == len(machine.table)
    pager.cpu.epc.check()


def test_pages_of_two_enclaves_go_out_together(pager: Any) -> None:
    # At the same addresses, so that they look like neighbours.
    machine, epc = pager.machine, pager.cpu.epc
    first = machine.secs
    pages = [data_page(pager, number) for number in range(4)]
    machine.create(attributes=4)
    second = machine.secs
    for number in (1, 2):
        offset = machine.DATA + number * 4096
        pages[number] = machine.add(offset, bytes([number]) * 4096, READ_WRITE, measure=False)
    for page in pages:
        assert not pager.eblock(page)
    # Of the first enclave nothing is tracked.
    assert not pager.etrack()
    assert paging.ewb_pages(pager.cpu, pages, pager.va, range(4)) == (LeafCode.NOT_TRACKED, [])
    code, outs = paging.ewb_pages(pager.cpu, [*pages[1:3], pages[0]], pager.va, range(3))
    assert (code, len(outs)) == (LeafCode.NOT_TRACKED, 2)
    for slot, (page, out) in enumerate(zip(pages[1:3], outs, strict=True)):
        assert not load(pager, page, slot, out)
        assert second.elrange.read(out[0], 4096) == bytes([slot + 1]) * 4096
        assert not pager.eblock(page)
    assert not pager.etrack()
    assert not paging.etrack(pager.cpu, machine.address(first.page))
    code, outs = paging.ewb_pages(pager.cpu, pages, pager.va, range(4))
    assert (code, len(outs)) == (LeafCode.NO_ERROR, 4)
    assert [Pcmd.decode(out[2]).enclaveid for out in outs] == [
        secs.eid for secs in (first, second, second, first)
    ]
    assert (first.children, second.children) == (len(machine.table) - 2, 0)
    epc.check()


def test_the_last_children_and_their_secs_go_out_together(pager: Any) -> None:
    machine = pager.machine
    pages = list(machine.table.values())
    for page in pages:
        assert not pager.eblock(page)
    assert not pager.etrack()
    everything = [*pages, machine.secs_page]
    code, outs = paging.ewb_pages(pager.cpu, everything, pager.va, range(len(everything)))
    assert (code, len(outs)) == (LeafCode.NO_ERROR, len(everything))
    assert not pager.cpu.enclaves
    out = outs[-1]
    slot = 8 * len(pages)
    assert not paging.eldu_page(pager.cpu, machine.secs_page, pager.va, slot, None, *out)
    for slot, page in enumerate(pages):
        assert not load(pager, page, slot, outs[slot])
    assert machine.secs.children == len(pages)


def test_a_code_ends_the_batch_and_tells_what_is_out(pager: Any) -> None:
    machine = pager.machine
    pages = blocked_pages(pager, 3)
    pager.cpu.epc.words[pages[2]] &= ~EPCM_BLOCKED
    del pager.cpu.epc.blocked[pages[2]]
    code, outs = paging.ewb_pages(pager.cpu, pages, pager.va, [1, 2, 3])
    assert code is LeafCode.PAGE_NOT_BLOCKED
    assert [out[0] for out in outs] == [machine.BASE + 0x6000, machine.BASE + 0x7000]
    assert set(pager.slots()) == {1, 2}
    assert machine.read(0x8000, 4096) == CONTENT
    assert paging.ewb_pages(pager.cpu, [machine.secs_page], pager.va, [4]) == (
        LeafCode.CHILD_PRESENT,
        [],
    )


def test_a_page_that_would_fault_ends_the_batch(pager: Any, gp: Any, pf: Any) -> None:
    machine, cpu, va = pager.machine, pager.cpu, pager.va
    first, second, third = blocked_pages(pager, 3)
    free = machine.allocate()
    assert pf(lambda: paging.ewb_pages(cpu, [free], va, [0])) == machine.address(free)
    code, outs = paging.ewb_pages(cpu, [first, free, second], va, [0, 1, 2])
    assert (code, len(outs)) == (LeafCode.NO_ERROR, 1)
    # The page that went is not there for a second time.
    code, outs = paging.ewb_pages(cpu, [second, second], va, [1, 2])
    assert (code, len(outs), set(pager.slots())) == (LeafCode.NO_ERROR, 1, {0, 1})
    cpu.epc.lock(third)
    assert "in use" in gp(lambda: paging.ewb_pages(cpu, [third], va, [0]))
    assert paging.ewb_pages(cpu, [], va, []) == (LeafCode.NO_ERROR, [])
    cpu.epc.unlock((third,))
    assert "slots" in gp(lambda: paging.ewb_pages(cpu, [va], va, [0]))
    assert paging.ewb_pages(cpu, [third, va], va, [2, 3])[1]
    cpu.epc.lock(va)
    assert "VA page" in gp(lambda: paging.ewb_pages(cpu, [third], va, [0]))
    cpu.epc.unlock((va,))
    reg = tcs_page(pager)
    assert pf(lambda: paging.ewb_pages(cpu, [reg], free, [2])) == machine.address(free) + 16
    cpu.epc.check()


# -- refusals, in the manual's order ------------------------------------------------------------


@pytest.mark.leaf("EWB", "#GP", "#PF", "PAGE_NOT_BLOCKED", "NOT_TRACKED")
def test_ewb_makes_its_checks_in_order(pager: Any, gp: Any, pf: Any) -> None:
    machine, cpu, memory = pager.machine, pager.cpu, pager.machine.memory
    page, free = data_page(pager), machine.allocate()
    good = {
        "linaddr": 0,
        "srcpge": memory.place(bytes(4096)),
        "secinfo": memory.place(bytes(128)),
        "secs": 0,
    }
    rcx, rdx = machine.address(page), machine.address(pager.va) + 8
    hole = 0xF000_0000

    def ewb(rcx: int = rcx, rdx: int = rdx, rbx: int | None = None, **fields: int) -> Any:
        if rbx is None:
            rbx = memory.place(Pageinfo(**(good | fields)).encode())
        return paging.ewb(cpu, memory, rbx, rcx, rdx)

    assert "aligned" in gp(lambda: ewb(rcx=NOT_EPC + 8, rdx=3, rbx=hole))
    assert "aligned" in gp(lambda: ewb(rcx=NOT_EPC, rdx=3, rbx=hole + 16))
    assert pf(lambda: ewb(rcx=NOT_EPC, rdx=3, rbx=hole)) == NOT_EPC
    assert "8-byte" in gp(lambda: ewb(rdx=NOT_EPC + 4, rbx=hole))
    assert pf(lambda: ewb(rdx=NOT_EPC, rbx=hole)) == NOT_EPC
    assert "itself" in gp(lambda: ewb(rdx=rcx + 8, rbx=hole))
    assert pf(lambda: ewb(rbx=hole)) == hole
    assert "LINADDR" in gp(lambda: ewb(linaddr=4096, srcpge=hole + 8))
    assert "SECS" in gp(lambda: ewb(secs=1, srcpge=hole + 8))
    assert "aligned" in gp(lambda: ewb(srcpge=hole + 8))
    assert "aligned" in gp(lambda: ewb(secinfo=hole + 64))
    for busy in (page, pager.va):
        cpu.epc.lock(busy)
        assert "in use" in gp(lambda: ewb(srcpge=hole))
        cpu.epc.unlock((busy,))
    address = machine.address(free)
    assert pf(lambda: ewb(rcx=address, rdx=machine.address(page), srcpge=hole)) == address
    assert pf(lambda: ewb(rdx=address + 16, srcpge=hole)) == address + 16
    other = machine.address(tcs_page(pager)) + 24
    assert pf(lambda: ewb(rdx=other, srcpge=hole)) == other
    # Nothing is written before the page is known to go.
    assert ewb(srcpge=hole) is LeafCode.PAGE_NOT_BLOCKED
    assert not pager.eblock(page)
    assert ewb(srcpge=hole) is LeafCode.NOT_TRACKED
    assert not pager.etrack()
    assert pf(lambda: ewb(srcpge=hole)) == hole
    assert pf(lambda: ewb(secinfo=hole)) == hole
    assert not pager.slots()
    assert machine.read(machine.DATA, 4096) == CONTENT
    assert ewb() is LeafCode.NO_ERROR
    assert not cpu.epc.busy


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "eldb", marks=pytest.mark.leaf("ELDB", "#GP", "#PF", "MAC_COMPARE_FAIL", "done")
        ),
        pytest.param(
            "eldu", marks=pytest.mark.leaf("ELDU", "#GP", "#PF", "MAC_COMPARE_FAIL", "done")
        ),
        pytest.param(
            "eldbc",
            marks=pytest.mark.leaf(
                "ELDBC", "#GP", "#PF", "EPC_PAGE_CONFLICT", "MAC_COMPARE_FAIL", "done"
            ),
        ),
        pytest.param(
            "elduc",
            marks=pytest.mark.leaf(
                "ELDUC", "#GP", "#PF", "EPC_PAGE_CONFLICT", "MAC_COMPARE_FAIL", "done"
            ),
        ),
    ],
)
def test_eld_makes_its_checks_in_order(pager: Any, gp: Any, pf: Any, name: str) -> None:
    leaf = getattr(paging, name)
    machine, cpu, memory = pager.machine, pager.cpu, pager.machine.memory
    page, free = data_page(pager), machine.allocate()
    out = pager.evict(page)
    secs = machine.address(machine.secs_page)
    good = {"linaddr": out.linaddr, "srcpge": out.contents, "secinfo": out.pcmd, "secs": secs}
    rcx, rdx = machine.address(page), out.slot
    hole = 0xF000_0000

    def eld(rcx: int = rcx, rdx: int = rdx, rbx: int | None = None, **fields: int) -> Any:
        if rbx is None:
            rbx = memory.place(Pageinfo(**(good | fields)).encode())
        return leaf(cpu, memory, rbx, rcx, rdx)

    assert "aligned" in gp(lambda: eld(rcx=NOT_EPC + 8, rdx=3, rbx=hole))
    assert "aligned" in gp(lambda: eld(rcx=NOT_EPC, rdx=3, rbx=hole + 16))
    assert pf(lambda: eld(rcx=NOT_EPC, rdx=3, rbx=hole)) == NOT_EPC
    assert "8-byte" in gp(lambda: eld(rdx=NOT_EPC + 4, rbx=hole))
    assert pf(lambda: eld(rdx=NOT_EPC, rbx=hole)) == NOT_EPC
    assert pf(lambda: eld(rbx=hole)) == hole
    taken = machine.address(tcs_page(pager))
    assert "aligned" in gp(lambda: eld(rcx=taken, srcpge=hole + 8))
    assert "aligned" in gp(lambda: eld(rcx=taken, secinfo=hole + 64))
    for busy in (page, pager.va):
        cpu.epc.lock(busy)
        if name in {"eldbc", "elduc"}:
            assert eld(srcpge=hole, secinfo=hole) is LeafCode.EPC_PAGE_CONFLICT
        else:
            assert "in use" in gp(lambda: eld(srcpge=hole, secinfo=hole))
        cpu.epc.unlock((busy,))
    assert pf(lambda: eld(rcx=taken, rdx=rcx, secinfo=hole)) == taken
    assert pf(lambda: eld(rdx=machine.address(free) + 8, secinfo=hole)) == machine.address(free) + 8
    assert pf(lambda: eld(rdx=taken + 8, secinfo=hole)) == taken + 8
    # The slot is on the page itself, which is free.
    assert pf(lambda: eld(rdx=rcx + 8, secinfo=hole)) == rcx + 8
    assert pf(lambda: eld(secinfo=hole, secs=8)) == hole
    assert "SECS" in gp(lambda: eld(secs=NOT_EPC + 8, srcpge=hole))
    assert pf(lambda: eld(secs=NOT_EPC, srcpge=hole)) == NOT_EPC
    assert pf(lambda: eld(secs=0, srcpge=hole)) == 0
    assert pf(lambda: eld(srcpge=hole, secs=taken)) == hole
    assert pf(lambda: eld(secs=taken)) == taken
    assert pf(lambda: eld(secs=machine.address(free))) == machine.address(free)
    # LINADDR is what the MAC covers, whatever it is.
    assert eld(linaddr=out.linaddr + 8) is LeafCode.MAC_COMPARE_FAIL
    assert eld(rdx=rdx + 8) is LeafCode.MAC_COMPARE_FAIL
    assert not cpu.epc.valid(page)
    # A SECS that others share is no conflict.
    cpu.epc.lock(machine.secs_page)
    assert eld() is LeafCode.NO_ERROR
    assert cpu.epc.busy == {machine.secs_page}
    assert machine.read(machine.DATA, 4096) == CONTENT


def test_secs_and_va_pages_are_loaded_without_a_secs(pager: Any, gp: Any) -> None:
    machine = pager.machine
    secs = machine.create(attributes=4, baseaddr=OTHER_BASE)
    _, out_secs = pager.ewb(secs, 1)
    va = machine.allocate()
    encls.epa(pager.cpu, PT_VA, machine.address(va))
    _, out_va = pager.ewb(va, 2)
    parent = pager.cpu.epc.owners[tcs_page(pager)]
    for out, page in ((out_secs, secs), (out_va, va)):
        for given in (machine.address(parent), NOT_EPC, 8):
            assert "SECS is not zero" in gp(
                lambda out=out, page=page, given=given: pager.eld(out, page, secs=given)
            )
        out.linaddr = 4096
        assert pager.eld(out, page, secs=0) is LeafCode.MAC_COMPARE_FAIL
        out.linaddr = 0
        # ELDB blocks the pages of enclaves only.
        assert not pager.eld(out, page, paging.eldb, secs=0)
        assert not pager.cpu.epc.words[page] & EPCM_BLOCKED
    pager.cpu.epc.check()


def test_eldu_of_operands_in_memory_makes_the_same_checks(pager: Any, gp: Any, pf: Any) -> None:
    machine, cpu, va, secs = pager.machine, pager.cpu, pager.va, pager.machine.secs_page
    page = data_page(pager)
    out = pager.evict(page, 2)
    operands = (out.linaddr, *out.sealed())
    taken = tcs_page(pager)

    def load(page: int = page, va: int = va, secs: int | None = secs) -> Any:
        return paging.eldu_page(cpu, page, va, 16, secs, *operands)

    assert pf(lambda: load(page=taken)) == machine.address(taken)
    assert pf(lambda: load(va=taken)) == machine.address(taken) + 16
    assert pf(lambda: load(secs=taken)) == machine.address(taken)
    assert pf(lambda: load(secs=None)) == 0
    for busy in (page, va):
        cpu.epc.lock(busy)
        assert "in use" in gp(load)
        cpu.epc.unlock((busy,))
    assert load() is LeafCode.NO_ERROR


def test_neighbours_come_in_together_until_one_would_not(pager: Any) -> None:
    machine, cpu, va = pager.machine, pager.cpu, pager.va
    pages, slots = blocked_pages(pager, 4), [9, 3, 511, 0]
    words = [cpu.epc.words[page] & ~EPCM_BLOCKED for page in pages]
    for number in range(4):
        machine.write(machine.DATA + number * 4096, bytes([number]) * 4096)
    children = machine.secs.children
    code, outs = paging.ewb_pages(cpu, pages, va, slots)
    assert code is LeafCode.NO_ERROR
    contents, pcmds = (b"".join(out[part] for out in outs) for part in (1, 2))
    at = [(va, slot * 8) for slot in slots]
    first = machine.BASE + machine.DATA

    def run(**changed: Any) -> int:
        given = {
            "pages": pages,
            "slots": at,
            "owner": machine.secs_page,
            "linaddr": first,
            "contents": contents,
            "pcmds": pcmds,
        }
        return eldu_run(cpu, *(given | changed).values())

    def nothing_is_loaded() -> None:
        assert machine.secs.children == children - 4
        assert not any(cpu.epc.valid(page) for page in pages)
        assert set(pager.slots()) == set(slots)
        assert machine.read(machine.DATA, 4 * 4096) == bytes(4 * 4096)

    # Everything that eldu_page refuses of the first one is none at all.
    assert run(owner=tcs_page(pager)) == 0
    assert run(pages=[tcs_page(pager), *pages[1:]]) == 0
    assert run(slots=[(tcs_page(pager), 72), *at[1:]]) == 0
    assert run(slots=[at[1], at[0], *at[2:]]) == 0
    assert run(linaddr=first + 4096) == 0
    for busy in (machine.secs_page, va, pages[3]):
        cpu.epc.lock(busy)
        assert run() == 0
        cpu.epc.unlock((busy,))
    for bit in (SECINFO_PENDING, SECINFO_MODIFIED, PT_TCS << SECINFO_PAGE_TYPE_SHIFT):
        flags = int.from_bytes(pcmds[:8], "little") ^ bit
        assert run(pcmds=flags.to_bytes(8, "little") + pcmds[8:]) == 0
    nothing_is_loaded()
    # Of a later one: what is before it is loaded.
    wrong = bytearray(contents)
    wrong[2 * 4096 + 77] ^= 0x10
    assert run(contents=bytes(wrong)) == 2
    assert [cpu.epc.valid(page) for page in pages] == [True, True, False, False]
    assert set(pager.slots()) == {511, 0}
    assert machine.secs.children == children - 2
    assert machine.read(machine.DATA, 2 * 4096) == bytes(4096) + b"\1" * 4096
    rest = {
        "linaddr": first + 2 * 4096,
        "contents": contents[2 * 4096 :],
        "pcmds": pcmds[256:],
    }
    assert run(pages=pages[2:], slots=at[2:], **rest) == 2
    assert not pager.slots()
    assert machine.secs.children == children
    assert machine.read(machine.DATA, 4 * 4096) == b"".join(bytes([n]) * 4096 for n in range(4))
    assert [cpu.epc.words[page] for page in pages] == words
    cpu.epc.check()


# -- pages that are blocked ---------------------------------------------------------------------


def test_a_blocked_page_can_be_debugged_measured_and_removed(pager: Any, machine: Any) -> None:
    page = data_page(pager)
    pager.block(page)
    pager.block(tcs_page(pager))
    cpu, rcx = pager.cpu, machine.address(page)
    assert encls.edbgrd(cpu, rcx) == (LeafCode.NO_ERROR, 0x0706_0504_0302_0100)
    assert encls.edbgwr(cpu, rcx, 7) is LeafCode.NO_ERROR
    assert encls.edbgwr(cpu, machine.address(tcs_page(pager)) + 8, 1) is LeafCode.NO_ERROR
    assert encls.eremove(cpu, rcx) is LeafCode.NO_ERROR
    assert encls.eremove(cpu, machine.address(tcs_page(pager))) is LeafCode.NO_ERROR
    assert not cpu.epc.blocked
    last = [data_page(pager, number) for number in (2, 3)]
    for page in last:
        pager.block(page)
    assert encls.eremove_pages(cpu, last[0], 2) == (LeafCode.NO_ERROR, 2)
    assert not cpu.epc.blocked
    cpu.epc.check()


def test_a_blocked_page_is_no_place_for_another(pager: Any, pf: Any) -> None:
    machine, page = pager.machine, data_page(pager)
    pager.block(page)
    secs = machine.create(attributes=4, baseaddr=OTHER_BASE)
    flags = machine.memory.place(Secinfo(flags=READ_WRITE).encode())
    source = machine.memory.place(CONTENT)
    pageinfo = Pageinfo(
        linaddr=OTHER_BASE, srcpge=source, secinfo=flags, secs=machine.address(secs)
    )
    rbx, rcx = machine.memory.place(pageinfo.encode()), machine.address(page)
    assert pf(lambda: encls.eadd(pager.cpu, machine.memory, rbx, rcx)) == rcx
    assert pf(lambda: encls.epa(pager.cpu, PT_VA, rcx)) == rcx


@pytest.mark.parametrize("leaf", [0, 1])
def test_a_blocked_operand_of_a_leaf_inside_is_a_page_fault(pager: Any, leaf: int) -> None:
    machine = pager.machine
    regs = Registers(rax=EENTER, rbx=machine.BASE + machine.TCS, rcx=0x40_1000)
    enclu(pager.cpu, machine.lp, regs)
    address = machine.BASE + machine.DATA
    for register, number in (("rbx", 0), ("rcx", 1), ("rdx", 2))[: 3 - leaf]:
        operands = {name: address + i * 4096 for i, name in enumerate(("rbx", "rcx", "rdx"))}
        page = machine.table[operands[register]]
        assert not pager.eblock(page)
        for name, value in operands.items():
            setattr(regs, name, value)
        regs.rax = leaf
        with pytest.raises(Fault) as raised:
            enclu(pager.cpu, machine.lp, regs)
        assert (raised.value.vector, raised.value.address) == (14, address + number * 4096)
        assert raised.value.error_code & 0x8001 == 0x8001
        pager.cpu.epc.words[page] &= ~EPCM_BLOCKED


# -- leaves that are suspended in user memory ---------------------------------------------------


def during_write(pager: Any, what: Callable[[], object]) -> None:
    """Have something happen while the next leaf writes to its memory for the second time."""
    memory = pager.machine.memory
    write, count = memory.write, iter(range(2))

    def suspended(address: int, data: bytes) -> None:
        if next(count, None) == 1:
            memory.write = write
            what()
        write(address, data)

    memory.write = suspended


def test_a_page_on_its_way_out_belongs_to_ewb(pager: Any, gp: Any) -> None:
    machine, cpu = pager.machine, pager.cpu
    page = tcs_page(pager)
    address = machine.address(page)
    seen = []

    def meanwhile() -> None:
        assert cpu.epc.busy == {page}
        seen.append(pager.eblock(page))
        seen.append(paging.etrackc(cpu, address))
        seen.append(paging.erdinfo(cpu, machine.memory, machine.memory.place(bytes(32)), address))
        regs = Registers(rax=EENTER, rbx=machine.BASE + machine.TCS, rcx=0x40_1000)
        for leaf in (
            lambda: enclu(cpu, machine.lp, regs),
            lambda: encls.eremove(cpu, address),
            lambda: encls.edbgrd(cpu, address),
            lambda: pager.ewb(page, 4),
        ):
            assert "in use" in gp(leaf)
        # Its SECS and the VA page are shared.
        assert not pager.etrack()
        assert not pager.eld(pager.evict(data_page(pager), 7), machine.allocate())

    pager.block(page)
    during_write(pager, meanwhile)
    assert pager.ewb(page)[0] is LeafCode.NO_ERROR
    assert seen == [LeafCode.EPC_PAGE_CONFLICT] * 3
    assert not cpu.epc.busy
    cpu.epc.check()


def test_a_secs_that_gets_a_child_meanwhile_stays(pager: Any) -> None:
    machine = pager.machine
    outs = evict_all(pager)
    during_write(pager, lambda: pager.eld(outs[0], machine.allocate()))
    assert pager.ewb(machine.secs_page, 1)[0] is LeafCode.CHILD_PRESENT
    assert machine.secs.children == 1
    assert 1 not in pager.slots()
    pager.cpu.epc.check()


def test_a_va_page_that_is_removed_meanwhile_takes_no_version(pager: Any, pf: Any) -> None:
    machine, page = pager.machine, data_page(pager)
    pager.block(page)
    during_write(pager, lambda: encls.eremove(pager.cpu, machine.address(pager.va)))
    assert pf(lambda: pager.ewb(page, 3)) == machine.address(pager.va) + 24
    assert machine.read(machine.DATA, 4096) == CONTENT
    pager.cpu.epc.check()


def test_paging_goes_on_while_a_page_is_being_added(pager: Any) -> None:
    machine, cpu, memory = pager.machine, pager.cpu, pager.machine.memory
    machine.create(attributes=4)
    first = machine.add(machine.DATA, CONTENT, READ_WRITE, measure=False)
    read = memory.read
    done = []

    def suspended(address: int, length: int) -> bytes:
        if length == 4096 and not done:
            done.append(cpu.epc.busy.copy())
            assert not pager.eld(pager.evict(first), machine.allocate())
            assert paging.etrackc(cpu, machine.address(first)) is LeafCode.PG_INVLD
            rdinfo = memory.place(bytes(32))
            secs = machine.address(machine.secs_page)
            assert not paging.erdinfo(cpu, memory, rdinfo, secs)
            assert not paging.etrackc(cpu, secs)
            assert paging.eblock(cpu, secs) is LeafCode.PG_IS_SECS
        return read(address, length)

    memory.read = suspended
    second = machine.add(machine.DATA + 4096, CONTENT, READ_WRITE, measure=False)
    assert done == [{machine.secs_page, second}]
    assert machine.secs.children == 2
    assert machine.read(machine.DATA, 8192) == CONTENT * 2
    cpu.epc.check()


def test_the_destination_of_eld_is_held_while_the_page_is_read(pager: Any, gp: Any) -> None:
    machine, cpu, memory = pager.machine, pager.cpu, pager.machine.memory
    page = data_page(pager)
    out = pager.evict(page)
    read = memory.read
    done = []

    def suspended(address: int, length: int) -> bytes:
        if length == 4096 and not done:
            done.append(cpu.epc.busy.copy())
            assert "in use" in gp(lambda: encls.epa(cpu, PT_VA, machine.address(page)))
            assert pager.eld(out, page, paging.elduc) is LeafCode.EPC_PAGE_CONFLICT
            # To another page it may go: then the version is spent.
            assert not pager.eld(out, machine.allocate())
        return read(address, length)

    memory.read = suspended
    assert pager.eld(out, page) is LeafCode.MAC_COMPARE_FAIL
    assert done == [{page}]
    assert machine.read(machine.DATA, 4096) == CONTENT
    cpu.epc.check()


def test_what_is_resident_is_what_the_epcm_says(pager: Any) -> None:
    # The constants of the fast path are the EPCM's.
    word = pager.cpu.epc.words[data_page(pager)]
    assert word == EPCM_VALID | READ_WRITE
    assert word >> EPCM_TYPE_SHIFT == 2
    assert pager.machine.address(0) == EPC_BASE
