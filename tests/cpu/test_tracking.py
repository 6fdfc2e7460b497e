# SPDX-License-Identifier: Apache-2.0
"""EBLOCK, ETRACK, ETRACKC, ERDINFO: their refusals in order, and what threads inside keep from going out."""

from typing import Any

import pytest

from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import SECINFO_PR, SECINFO_TCS
from softsgx.arch.structures import Rdinfo
from softsgx.cpu import encls, paging
from softsgx.cpu.epc import EPCM_BLOCKED
from softsgx.cpu.registers import Registers
from softsgx.cpu.transition import Event, aex, enclu

EENTER, ERESUME, EEXIT = 2, 3, 4
NOT_EPC = 0x1000


class Inside:
    """Threads of an enclave: one by the machine's TCS, others by TCSs of their own."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.lp = machine.logical_processor()
        self.regs = Registers()

    def enter(self, leaf: int = EENTER, tcs: int | None = None) -> None:
        machine = self.machine
        self.regs.rax, self.regs.rcx, self.regs.rip = leaf, machine.AEP, 0x40_0FFD
        self.regs.rbx = machine.BASE + (machine.TCS if tcs is None else tcs)
        enclu(machine.cpu, self.lp, self.regs)

    def exit(self) -> None:
        self.regs.rax, self.regs.rbx = EEXIT, 0x41_0000
        enclu(self.machine.cpu, self.lp, self.regs)

    def aex(self) -> None:
        aex(self.machine.cpu, self.lp, self.regs, Event())


def resident(pager: Any, offset: int) -> int:
    page: int = pager.machine.table[pager.machine.BASE + offset]
    return page


# -- the leaves ---------------------------------------------------------------------------------


@pytest.mark.leaf(
    "EBLOCK",
    "#GP",
    "#PF",
    "EPC_PAGE_CONFLICT",
    "PG_INVLD",
    "PG_IS_SECS",
    "NOTBLOCKABLE",
    "BLKSTATE",
    "done",
)
def test_eblock_makes_its_checks_in_order(pager: Any, gp: Any, pf: Any) -> None:
    machine, cpu = pager.machine, pager.cpu
    page, free = resident(pager, machine.DATA), machine.allocate()
    assert "aligned" in gp(lambda: paging.eblock(cpu, NOT_EPC + 8))
    assert pf(lambda: paging.eblock(cpu, NOT_EPC)) == NOT_EPC
    for busy in (free, page):
        cpu.epc.lock(busy)
        assert pager.eblock(busy) is LeafCode.EPC_PAGE_CONFLICT
        cpu.epc.unlock((busy,))
    assert pager.eblock(free) is LeafCode.PG_INVLD
    assert pager.eblock(machine.secs_page) is LeafCode.PG_IS_SECS
    assert pager.eblock(pager.va) is LeafCode.NOTBLOCKABLE
    assert pager.eblock(page) is LeafCode.NO_ERROR
    assert pager.eblock(page) is LeafCode.BLKSTATE
    assert pager.eblock(resident(pager, machine.TCS)) is LeafCode.NO_ERROR
    cpu.epc.check()


@pytest.mark.leaf("ETRACK", "#GP", "#PF", "done")
def test_etrack_wants_a_secs(pager: Any, gp: Any, pf: Any) -> None:
    machine, cpu = pager.machine, pager.cpu
    assert "aligned" in gp(lambda: paging.etrack(cpu, NOT_EPC + 8))
    assert pf(lambda: paging.etrack(cpu, NOT_EPC)) == NOT_EPC
    for page in (machine.allocate(), pager.va, resident(pager, machine.TCS)):
        assert pf(lambda page=page: paging.etrack(cpu, machine.address(page))) == (
            machine.address(page)
        )
    assert pager.etrack() is LeafCode.NO_ERROR


@pytest.mark.leaf(
    "ETRACKC",
    "#GP",
    "#PF",
    "EPC_PAGE_CONFLICT",
    "PG_INVLD",
    "TRACK_NOT_REQUIRED",
    "PREV_TRK_INCMPL",
    "done",
)
def test_etrackc_takes_any_page_of_the_enclave(pager: Any, gp: Any, pf: Any) -> None:
    machine, cpu = pager.machine, pager.cpu
    page, free = resident(pager, machine.DATA), machine.allocate()

    def etrackc(page: int) -> LeafCode:
        return paging.etrackc(cpu, machine.address(page))

    assert "aligned" in gp(lambda: paging.etrackc(cpu, NOT_EPC + 8))
    assert pf(lambda: paging.etrackc(cpu, NOT_EPC)) == NOT_EPC
    cpu.epc.lock(page)
    assert etrackc(page) is LeafCode.EPC_PAGE_CONFLICT
    cpu.epc.unlock((page,))
    assert etrackc(free) is LeafCode.PG_INVLD
    assert etrackc(pager.va) is LeafCode.TRACK_NOT_REQUIRED
    for target in (page, resident(pager, machine.TCS), machine.secs_page):
        assert not pager.eblock(page)
        assert pager.ewb(page)[0] is LeafCode.NOT_TRACKED
        assert etrackc(target) is LeafCode.NO_ERROR
        code, out = pager.ewb(page)
        assert not code
        assert not pager.eld(out, page)
    thread = Inside(machine)
    thread.enter()
    assert etrackc(page) is LeafCode.NO_ERROR
    assert etrackc(page) is LeafCode.PREV_TRK_INCMPL


@pytest.mark.leaf("ERDINFO", "#GP", "#PF", "PG_NONEPC", "EPC_PAGE_CONFLICT", "PG_INVLD", "done")
def test_erdinfo_tells_of_a_page(pager: Any, gp: Any, pf: Any) -> None:
    machine, cpu, memory = pager.machine, pager.cpu, pager.machine.memory
    page, free = resident(pager, machine.DATA), machine.allocate()
    before = b"\xa5" * 32
    rbx = memory.place(before)

    def erdinfo(page: int, rbx: int = rbx) -> LeafCode:
        return paging.erdinfo(cpu, memory, rbx, machine.address(page))

    def told(page: int) -> tuple[int, int, int]:
        assert erdinfo(page) is LeafCode.NO_ERROR
        rdinfo = Rdinfo.decode(memory.read(rbx, 32))
        assert memory.read(rbx + 24, 8) == before[24:]
        return rdinfo.status, rdinfo.flags, rdinfo.enclavecontext

    assert "aligned" in gp(lambda: paging.erdinfo(cpu, memory, 0xF000_0008, NOT_EPC))
    assert "aligned" in gp(lambda: paging.erdinfo(cpu, memory, rbx, NOT_EPC + 8))
    assert paging.erdinfo(cpu, memory, rbx, NOT_EPC) is LeafCode.PG_NONEPC
    cpu.epc.lock(page)
    assert erdinfo(page) is LeafCode.EPC_PAGE_CONFLICT
    cpu.epc.unlock((page,))
    assert erdinfo(free) is LeafCode.PG_INVLD
    assert memory.read(rbx, 32) == before
    assert pf(lambda: erdinfo(page, 0xF000_0000)) == 0xF000_0000
    secs = machine.address(machine.secs_page)
    assert told(page) == (0, 0x203, secs)
    assert told(resident(pager, machine.TCS)) == (0, SECINFO_TCS, secs)
    cpu.epc.words[page] |= SECINFO_PR
    assert not pager.eblock(page)
    assert told(page) == (0, 1 << 63 | 0x203 | SECINFO_PR, secs)
    assert told(machine.secs_page) == (1, 0, secs)
    assert told(pager.va) == (0, 0x300, 0)
    for child in machine.table.values():
        assert not encls.eremove(cpu, machine.address(child))
    assert told(machine.secs_page) == (0, 0, secs)


# -- threads inside -----------------------------------------------------------------------------


def test_a_page_must_be_blocked_and_tracked(pager: Any) -> None:
    page = resident(pager, pager.machine.DATA)
    assert pager.ewb(page)[0] is LeafCode.PAGE_NOT_BLOCKED
    # A cycle from before EBLOCK shows nothing.
    assert not pager.etrack()
    assert not pager.eblock(page)
    assert pager.ewb(page)[0] is LeafCode.NOT_TRACKED
    assert not pager.etrack()
    assert not pager.ewb(page)[0]


@pytest.mark.parametrize("leave", ["exit", "aex"])
@pytest.mark.leaf("ETRACK", "PREV_TRK_INCMPL", "done")
@pytest.mark.leaf("EWB", "NOT_TRACKED", "done")
def test_a_thread_from_before_the_cycle_must_leave(pager: Any, leave: str) -> None:
    machine = pager.machine
    page = resident(pager, machine.DATA)
    thread = Inside(machine)
    thread.enter()
    pager.block(page)
    assert pager.ewb(page)[0] is LeafCode.NOT_TRACKED
    assert pager.etrack() is LeafCode.PREV_TRK_INCMPL
    getattr(thread, leave)()
    assert pager.etrack() is LeafCode.NO_ERROR
    assert pager.ewb(page)[0] is LeafCode.NO_ERROR


def test_a_thread_that_entered_between_eblock_and_etrack_must_leave_too(pager: Any) -> None:
    machine = pager.machine
    page = resident(pager, machine.DATA)
    assert not pager.eblock(page)
    thread = Inside(machine)
    thread.enter()
    assert not pager.etrack()
    assert pager.ewb(page)[0] is LeafCode.NOT_TRACKED
    thread.exit()
    assert pager.ewb(page)[0] is LeafCode.NO_ERROR


@pytest.mark.parametrize("leave", ["exit", "aex"])
def test_a_thread_that_entered_in_the_new_cycle_may_stay(pager: Any, leave: str) -> None:
    machine = pager.machine
    page = resident(pager, machine.DATA)
    thread = Inside(machine)
    thread.enter()
    pager.block(page)
    getattr(thread, leave)()
    thread.enter(ERESUME if leave == "aex" else EENTER)
    assert pager.etrack() is LeafCode.NO_ERROR
    assert pager.ewb(page)[0] is LeafCode.NO_ERROR
    assert pager.etrack() is LeafCode.PREV_TRK_INCMPL


def test_a_shootdown_makes_the_threads_inside_as_new(pager: Any) -> None:
    machine = pager.machine
    page = resident(pager, machine.DATA)
    thread = Inside(machine)
    thread.enter()
    pager.block(page)
    paging.tlb_shootdown(machine.secs)
    assert pager.etrack() is LeafCode.NO_ERROR
    assert pager.ewb(page)[0] is LeafCode.NO_ERROR


def test_a_shootdown_before_the_cycle_does_not_count(pager: Any) -> None:
    machine = pager.machine
    page = resident(pager, machine.DATA)
    Inside(machine).enter()
    assert not pager.eblock(page)
    paging.tlb_shootdown(machine.secs)
    assert not pager.etrack()
    assert pager.ewb(page)[0] is LeafCode.NOT_TRACKED


def test_a_thread_of_another_enclave_is_of_no_concern(pager: Any) -> None:
    machine = pager.machine
    page, secs = resident(pager, machine.DATA), machine.secs_page
    table = dict(machine.table)
    machine.build()
    Inside(machine).enter()
    machine.secs_page = secs
    pager.block(page)
    machine.table.update(table)
    assert pager.ewb(page)[0] is LeafCode.NO_ERROR


def test_what_a_thread_inside_holds_stays(pager: Any) -> None:
    machine = pager.machine
    thread = Inside(machine)
    thread.enter()
    thread.aex()
    thread.enter()
    everything = list(machine.table.items())
    for _, page in everything:
        assert not pager.eblock(page)
    assert not pager.etrack()
    paging.tlb_shootdown(machine.secs)
    # It entered for the second time: its frame is the second.
    kept = {machine.BASE + machine.TCS, machine.BASE + machine.SSA + 4096}
    assert paging.held(machine.secs) == kept
    for slot, (linaddr, page) in enumerate(everything):
        code = pager.ewb(page, slot)[0]
        assert code is (LeafCode.NOT_TRACKED if linaddr in kept else LeafCode.NO_ERROR), linaddr
    # Nor do they go in company.
    last = [machine.table[linaddr] for linaddr in sorted(kept)]
    for page in last:
        batch = paging.ewb_pages(pager.cpu, [page], pager.va, [100])
        assert batch == (LeafCode.NOT_TRACKED, [])
    thread.aex()
    assert paging.held(machine.secs) == set()
    code, outs = paging.ewb_pages(pager.cpu, last, pager.va, [100, 101])
    assert (code, len(outs)) == (LeafCode.NO_ERROR, 2)
    assert machine.secs.children == 0
    pager.cpu.epc.check()


def test_of_a_long_frame_only_what_an_exit_writes_is_held(machine: Any, make_pager: Any) -> None:
    machine.build(machine.tcs_bytes(nssa=1), ssaframesize=4)
    pager = make_pager(machine)
    Inside(machine).enter()
    first = machine.BASE + machine.SSA
    assert paging.held(machine.secs) == {machine.BASE + machine.TCS, first, first + 3 * 4096}
    pages = [machine.table[first + i * 4096] for i in range(4)]
    for page in pages:
        assert not pager.eblock(page)
    assert not pager.etrack()
    paging.tlb_shootdown(machine.secs)
    # A run of neighbours ends where a page is held.
    assert paging.ewb_pages(pager.cpu, pages, pager.va, range(4)) == (LeafCode.NOT_TRACKED, [])
    code, outs = paging.ewb_pages(pager.cpu, pages[1:], pager.va, range(3))
    assert code is LeafCode.NOT_TRACKED
    assert [out[0] for out in outs] == [first + 4096, first + 8192]


def test_pages_that_are_not_tracked_end_a_batch(pager: Any) -> None:
    machine = pager.machine
    first, second, third = (resident(pager, machine.DATA + i * 4096) for i in range(3))
    pager.block(first)
    assert not pager.eblock(second)
    code, outs = paging.ewb_pages(pager.cpu, [first, second, third], pager.va, [0, 1, 2])
    assert (code, len(outs)) == (LeafCode.NOT_TRACKED, 1)
    thread = Inside(machine)
    thread.enter()
    assert not pager.etrack()
    assert paging.ewb_pages(pager.cpu, [second], pager.va, [1]) == (LeafCode.NOT_TRACKED, [])
    thread.exit()
    assert paging.ewb_pages(pager.cpu, [second], pager.va, [1])[1]
    assert not pager.cpu.epc.words[third] & EPCM_BLOCKED
