# SPDX-License-Identifier: Apache-2.0
"""EBLOCK, ETRACK, EWB, ELDB, ELDU and their kin, leaf by leaf."""

from typing import Any

import pytest

from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import PT_VA, SECINFO_R, SECINFO_REG, SECINFO_W
from softsgx.arch.structures import Pageinfo, Pcmd
from softsgx.cpu import encls, paging
from softsgx.cpu.epc import EPCM_BLOCKED
from softsgx.errors import Fault

PAGE = 4096
CONTENT = bytes(range(256)) * 16


class Out:
    """A page that EWB has taken out: what software keeps of it."""

    def __init__(self, machine: Any, linaddr: int, contents: int, pcmd: int, slot: int) -> None:
        self.memory = machine.memory
        self.linaddr = linaddr
        self.contents = contents
        self.pcmd = pcmd
        self.slot = slot

    def pageinfo(self, secs: int) -> int:
        record = Pageinfo(linaddr=self.linaddr, srcpge=self.contents, secinfo=self.pcmd, secs=secs)
        address: int = self.memory.place(record.encode())
        return address


@pytest.fixture
def built(machine: Any) -> Any:
    machine.create()
    machine.page = machine.allocate()
    rbx = machine.pageinfo(
        CONTENT,
        SECINFO_REG | SECINFO_R | SECINFO_W,
        machine.BASE + machine.DATA,
        machine.address(machine.secs_page),
    )
    encls.eadd(machine.cpu, machine.memory, rbx, machine.address(machine.page))
    machine.va = machine.allocate()
    encls.epa(machine.cpu, PT_VA, machine.address(machine.va))
    return machine


def ewb(machine: Any, page: int, slot: int = 0) -> tuple[LeafCode, Out]:
    memory = machine.memory
    contents, pcmd = memory.place(bytes(PAGE)), memory.place(bytes(128))
    pageinfo = memory.place(Pageinfo(linaddr=0, srcpge=contents, secinfo=pcmd, secs=0).encode())
    rdx = machine.address(machine.va) + slot * 8
    code = paging.ewb(machine.cpu, memory, pageinfo, machine.address(page), rdx)
    linaddr = Pageinfo.decode(memory.read(pageinfo, 32)).linaddr
    return code, Out(machine, linaddr, contents, pcmd, rdx)


def block(machine: Any, page: int) -> None:
    assert not paging.eblock(machine.cpu, machine.address(page))
    assert not paging.etrack(machine.cpu, machine.address(machine.secs_page))


def eldu(machine: Any, out: Out, page: int) -> LeafCode:
    rbx = out.pageinfo(machine.address(machine.secs_page))
    return paging.eldu(machine.cpu, machine.memory, rbx, machine.address(page), out.slot)


def test_a_page_comes_back_as_it_went(built: Any) -> None:
    block(built, built.page)
    code, out = ewb(built, built.page)
    assert not code
    assert out.linaddr == built.BASE + built.DATA
    sealed = built.memory.read(out.contents, PAGE)
    assert CONTENT[:64] not in sealed
    assert Pcmd.decode(built.memory.read(out.pcmd, 128)).secinfo.flags == (
        SECINFO_REG | SECINFO_R | SECINFO_W
    )
    assert not built.cpu.epc.valid(built.page)
    assert built.secs.children == 0
    assert built.secs.elrange.read(out.linaddr, PAGE) == bytes(PAGE)
    elsewhere = built.allocate()
    assert not eldu(built, out, elsewhere)
    assert built.secs.elrange.read(out.linaddr, PAGE) == CONTENT
    assert built.secs.children == 1
    # The version is spent.
    encls.eremove(built.cpu, built.address(elsewhere))
    assert eldu(built, out, elsewhere) is LeafCode.MAC_COMPARE_FAIL
    built.cpu.epc.check()


def test_a_page_must_be_blocked_and_tracked(built: Any) -> None:
    assert ewb(built, built.page)[0] is LeafCode.PAGE_NOT_BLOCKED
    assert not paging.eblock(built.cpu, built.address(built.page))
    assert paging.eblock(built.cpu, built.address(built.page)) is LeafCode.BLKSTATE
    assert ewb(built, built.page)[0] is LeafCode.NOT_TRACKED
    assert not paging.etrack(built.cpu, built.address(built.secs_page))
    assert not ewb(built, built.page)[0]


def test_an_occupied_slot_is_told_and_the_page_is_out(built: Any) -> None:
    block(built, built.page)
    code, first = ewb(built, built.page)
    assert not code
    assert not eldu(built, first, built.page)
    block(built, built.page)
    built.cpu.epc.contents[built.va][0] = 1
    code, second = ewb(built, built.page)
    assert code is LeafCode.VA_SLOT_OCCUPIED
    assert not eldu(built, second, built.page)


def test_eldb_leaves_the_page_blocked(built: Any) -> None:
    block(built, built.page)
    _, out = ewb(built, built.page)
    rbx = out.pageinfo(built.address(built.secs_page))
    assert not paging.eldb(built.cpu, built.memory, rbx, built.address(built.page), out.slot)
    assert built.cpu.epc.words[built.page] & EPCM_BLOCKED


def test_a_secs_goes_last_and_comes_first(built: Any) -> None:
    secs = built.secs_page
    assert ewb(built, secs)[0] is LeafCode.CHILD_PRESENT
    block(built, built.page)
    _, out = ewb(built, built.page)
    code, out_secs = ewb(built, secs, slot=1)
    assert not code
    with pytest.raises(Fault) as raised:
        eldu(built, out, built.page)
    assert raised.value.vector == 14
    rbx = out_secs.pageinfo(0)
    new = built.allocate()
    assert not paging.eldu(built.cpu, built.memory, rbx, built.address(new), out_secs.slot)
    built.secs_page = new
    assert not eldu(built, out, built.page)
    assert built.secs.elrange.read(out.linaddr, PAGE) == CONTENT


def test_a_va_page_goes_to_another(built: Any) -> None:
    block(built, built.page)
    _, out = ewb(built, built.page)
    inner, outer = built.va, built.allocate()
    encls.epa(built.cpu, PT_VA, built.address(outer))
    built.va = outer
    code, out_va = ewb(built, inner)
    assert not code
    with pytest.raises(Fault):
        eldu(built, out, built.page)
    rbx = out_va.pageinfo(0)
    assert not paging.eldu(built.cpu, built.memory, rbx, built.address(inner), out_va.slot)
    assert not eldu(built, out, built.page)
