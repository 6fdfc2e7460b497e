# SPDX-License-Identifier: Apache-2.0
"""ECREATE, EADD, EEXTEND, EREMOVE, EPA: each check in the manual's order."""

from hashlib import sha256
from typing import Any

import pytest

from softsgx.arch.attributes import (
    ATTRIBUTE_CET,
    ATTRIBUTE_INIT,
    ATTRIBUTE_KSS,
    ATTRIBUTE_MODE64BIT,
    ATTRIBUTE_PROVISIONKEY,
    TCS_DBGOPTIN,
)
from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import (
    PT_TCS,
    PT_TRIM,
    PT_VA,
    SECINFO_MODIFIED,
    SECINFO_PENDING,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_TCS,
    SECINFO_W,
    SECINFO_X,
)
from softsgx.arch.structures import Secinfo, Tcs
from softsgx.arch.thread import MODE_OUTSIDE, ThreadRecord
from softsgx.cpu import encls
from softsgx.cpu.epc import EPC_BASE, EPCM_VALID
from softsgx.cpu.model import Model

RW = SECINFO_REG | SECINFO_R | SECINFO_W


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


# -- ECREATE ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"xfrm": 1}, "XFRM"),
        ({"xfrm": 0xB}, "XFRM"),
        ({"xfrm": 1 << 63 | 3}, "XFRM"),
        ({"miscselect": 2}, "MISCSELECT"),
        ({"ssaframesize": 0}, "SSAFRAMESIZE"),
        ({"baseaddr": 1 << 47}, "canonical"),
        ({"attributes": 0, "baseaddr": 1 << 32}, "4 GiB"),
        ({"attributes": 0, "baseaddr": 0, "size": 1 << 31}, "2^31"),
        ({"size": 1 << 47, "baseaddr": 0}, "2^47"),
        ({"size": 4096}, "power of two"),
        ({"size": 0x3000}, "power of two"),
        ({"baseaddr": 0x7F00_0000_1000}, "aligned to SIZE"),
        ({"attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_INIT}, "ATTRIBUTES"),
        ({"attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_CET}, "ATTRIBUTES"),
        ({"configsvn": 1}, "KSS"),
        ({"configid": b"\1" * 64}, "KSS"),
        # Two wrongs: the manual's first is told.
        ({"size": 4096, "ssaframesize": 0}, "SSAFRAMESIZE"),
        ({"size": 4096, "attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_INIT}, "SIZE"),
    ],
)
@pytest.mark.leaf("ECREATE", "#GP")
def test_ecreate_refuses_a_secs(machine: Any, gp: Any, changes: Any, reason: str) -> None:
    assert reason in gp(lambda: machine.create(**changes))
    assert not machine.cpu.enclaves
    assert not machine.cpu.epc.busy


def test_ecreate_refuses_reserved_bytes_of_the_secs(machine: Any, gp: Any) -> None:
    for offset in (24, 47, 96, 127, 160, 191, 262, 4095):
        data = bytearray(machine.secs_bytes())
        data[offset] = 1
        rbx = machine.pageinfo(bytes(data), 0)
        assert "reserved" in gp(
            lambda at=rbx: encls.ecreate(machine.cpu, machine.memory, at, EPC_BASE)
        )


@pytest.mark.leaf("ECREATE", "#GP", "#PF", "done")
def test_ecreate_checks_its_operands(machine: Any, gp: Any, pf: Any) -> None:
    def run(rcx: int = EPC_BASE, shift: int = 0, flags: int = 0, **changes: int) -> None:
        rbx = machine.pageinfo(machine.secs_bytes(), flags, **changes)
        encls.ecreate(machine.cpu, machine.memory, rbx + shift, rcx)

    assert "32-byte" in gp(lambda: run(shift=8))
    assert "page aligned" in gp(lambda: run(rcx=EPC_BASE + 8))
    assert pf(lambda: run(rcx=EPC_BASE - 4096)) == EPC_BASE - 4096
    assert pf(lambda: run(rcx=EPC_BASE + 64 * 4096)) == EPC_BASE + 64 * 4096
    assert "SRCPGE" in gp(lambda: run(srcpge=0x10800))
    assert "SRCPGE" in gp(lambda: run(secinfo=0x10020))
    assert "LINADDR" in gp(lambda: run(linaddr=4096))
    assert "LINADDR" in gp(lambda: run(secs=EPC_BASE))
    assert "not of a SECS" in gp(lambda: run(flags=SECINFO_REG))
    assert "reserved" in gp(lambda: run(flags=1 << 6))
    assert pf(lambda: run(srcpge=0x5000_0000)) == 0x5000_0000
    machine.cpu.epc.lock(0)
    assert "in use" in gp(run)
    machine.cpu.epc.unlock((0,))
    run()
    assert pf(run) == EPC_BASE


def test_ecreate_needs_a_frame_for_xsave_gprsgx_and_exinfo(make_machine: Any, gp: Any) -> None:
    machine = make_machine(xcr0=0xE7)
    # 2688 bytes of XSAVE for AVX-512 fit one page; PKRU would not change that.
    machine.create(xfrm=0xE7, miscselect=1)
    assert machine.secs.xsave_size == 2688
    assert "XFRM" in gp(lambda: machine.create(xfrm=0x67))


def test_eids_count_up(machine: Any) -> None:
    machine.create()
    first = machine.secs.eid
    machine.create()
    assert machine.secs.eid == first + 1


def test_base_zero_is_legal(machine: Any) -> None:
    machine.create(baseaddr=0)
    assert machine.secs.baseaddr == 0


# -- EADD and EEXTEND ---------------------------------------------------------------------------


@pytest.mark.leaf("EADD", "done")
@pytest.mark.leaf("EEXTEND", "done")
def test_the_measurement_is_that_of_the_manuals_blocks(machine: Any) -> None:
    machine.create(ssaframesize=2)
    data = bytes(range(256)) * 16
    machine.add(0x3000, data, SECINFO_REG | SECINFO_R | SECINFO_X)
    machine.add(0x5000, data, RW, measure=False)
    stream = b"ECREATE\0" + (2).to_bytes(4, "little") + u64(machine.SIZE) + bytes(44)
    stream += b"EADD\0\0\0\0" + u64(0x3000) + u64(0x205) + bytes(40)
    for chunk in range(0, 4096, 256):
        stream += b"EEXTEND\0" + u64(0x3000 + chunk) + bytes(48) + data[chunk : chunk + 256]
    stream += b"EADD\0\0\0\0" + u64(0x5000) + u64(0x203) + bytes(40)
    assert machine.secs.hasher.digest() == sha256(stream).digest()


def test_a_tcs_is_measured_as_eadd_leaves_it(machine: Any) -> None:
    dirty = machine.tcs_bytes(state=1, flags=TCS_DBGOPTIN, cssa=1, aep=0x1234)
    clean = machine.tcs_bytes()
    machine.create()
    page = machine.add(machine.TCS, dirty, SECINFO_TCS | SECINFO_R | SECINFO_W)
    stream = b"ECREATE\0" + (1).to_bytes(4, "little") + u64(machine.SIZE) + bytes(44)
    stream += b"EADD\0\0\0\0" + u64(machine.TCS) + u64(SECINFO_TCS) + bytes(40)
    for chunk in range(0, 4096, 256):
        stream += b"EEXTEND\0" + u64(machine.TCS + chunk) + bytes(48) + clean[chunk : chunk + 256]
    assert machine.secs.hasher.digest() == sha256(stream).digest()
    assert machine.cpu.epc.words[page] == EPCM_VALID | PT_TCS << 8


@pytest.mark.leaf("EADD", "#GP", "#PF", "done")
def test_eadd_checks_in_order(machine: Any, gp: Any, pf: Any) -> None:
    machine.create()
    secs = machine.address(machine.secs_page)
    free = machine.address(20)

    def run(
        rcx: int = free,
        shift: int = 0,
        flags: int = RW,
        data: bytes = bytes(4096),
        linaddr: int = machine.BASE,
        owner: int = secs,
        **changes: int,
    ) -> None:
        rbx = machine.pageinfo(data, flags, linaddr, owner, **changes)
        encls.eadd(machine.cpu, machine.memory, rbx + shift, rcx)

    assert "32-byte" in gp(lambda: run(shift=16, rcx=free + 1))
    assert "page aligned" in gp(lambda: run(rcx=free + 256))
    assert pf(lambda: run(rcx=0x1000)) == 0x1000
    assert "SRCPGE" in gp(lambda: run(srcpge=8))
    assert "SRCPGE" in gp(lambda: run(owner=secs + 8))
    assert "SECINFO" in gp(lambda: run(secinfo=8))
    assert "LINADDR" in gp(lambda: run(linaddr=machine.BASE + 8))
    assert pf(lambda: run(owner=0x2000)) == 0x2000
    assert "reserved" in gp(lambda: run(flags=RW | 1 << 16))
    for kind in (0, PT_VA, PT_TRIM, 7):
        assert "neither" in gp(lambda k=kind: run(flags=k << 8 | SECINFO_R))
    assert "transition" in gp(lambda: run(flags=RW | SECINFO_PENDING))
    machine.cpu.epc.lock(20)
    assert "in use" in gp(run)
    machine.cpu.epc.unlock((20,))
    machine.cpu.epc.lock(machine.secs_page)
    assert "in use" in gp(run)
    machine.cpu.epc.unlock((machine.secs_page,))
    assert not machine.cpu.epc.busy
    # The destination's state comes before the SECS's.
    other = machine.address(30)
    encls.epa(machine.cpu, PT_VA, other)
    assert pf(lambda: run(rcx=other, owner=machine.address(40))) == other
    assert pf(lambda: run(owner=other)) == other
    assert pf(lambda: run(srcpge=0x5000_0000, flags=SECINFO_REG | SECINFO_W)) == 0x5000_0000
    tcs = bytearray(machine.tcs_bytes())
    tcs[72] = 1
    assert "TCS reserved" in gp(lambda: run(flags=SECINFO_TCS, data=bytes(tcs), linaddr=0))
    assert "writable but not" in gp(lambda: run(flags=SECINFO_REG | SECINFO_W, linaddr=0))
    assert "ELRANGE" in gp(lambda: run(linaddr=machine.BASE + machine.SIZE))
    assert "ELRANGE" in gp(lambda: run(linaddr=machine.BASE - 4096))
    assert machine.secs.children == 0
    assert not machine.cpu.epc.busy
    run()
    assert machine.secs.children == 1


def test_a_refused_page_does_not_change_the_measurement(machine: Any, gp: Any) -> None:
    machine.create()
    before = machine.secs.hasher.digest()
    gp(lambda: machine.add(machine.SIZE, bytes(4096), RW))
    assert machine.secs.hasher.digest() == before


def test_a_32_bit_enclave_wants_limits_that_end_in_fff(machine: Any, gp: Any) -> None:
    machine.create(attributes=0, baseaddr=0)
    tcs = machine.tcs_bytes(fslimit=0x1000)
    rbx = machine.pageinfo(tcs, SECINFO_TCS, 0x1000, machine.address(machine.secs_page))
    assert "FSLIMIT" in gp(lambda: encls.eadd(machine.cpu, machine.memory, rbx, machine.address(5)))


@pytest.mark.leaf("EADD", "#GP")
@pytest.mark.leaf("EEXTEND", "#GP")
def test_nothing_is_added_after_einit(machine: Any, gp: Any) -> None:
    machine.build()
    assert "initialised" in gp(lambda: machine.add(0x20000, bytes(4096), RW))
    page = machine.table[machine.BASE]
    secs = machine.address(machine.secs_page)
    assert "initialised" in gp(lambda: encls.eextend(machine.cpu, secs, machine.address(page)))


@pytest.mark.leaf("EEXTEND", "#GP", "#PF")
def test_eextend_checks_in_order(machine: Any, gp: Any, pf: Any) -> None:
    other = machine.create()
    machine.create()
    page = machine.add(0, bytes(4096), RW)
    secs, rcx = machine.address(machine.secs_page), machine.address(page)

    def run(rbx: int, rcx: int) -> Any:
        return lambda: encls.eextend(machine.cpu, rbx, rcx)

    assert "page aligned" in gp(run(0x1080, rcx + 1))
    assert pf(run(0x1000, rcx + 1)) == 0x1000
    assert "256-byte" in gp(run(secs, rcx + 128))
    assert pf(run(secs, 0x1000)) == 0x1000
    assert pf(run(secs, machine.address(50))) == machine.address(50)
    assert pf(run(secs, secs)) == secs
    va = machine.address(40)
    encls.epa(machine.cpu, PT_VA, va)
    assert pf(run(secs, va)) == va
    assert "not the page's" in gp(run(machine.address(other), rcx))
    machine.cpu.epc.lock(machine.secs_page)
    assert "SECS is in use" in gp(run(secs, rcx))
    machine.cpu.epc.unlock((machine.secs_page,))
    machine.cpu.epc.lock(page)
    assert "in use" in gp(run(machine.address(other), rcx))


@pytest.mark.leaf("EADD", "#GP")
@pytest.mark.leaf("EREMOVE", "#GP")
def test_two_leaves_cannot_have_one_page(machine: Any, gp: Any) -> None:
    """While a leaf waits for its caller's memory, another one that needs the page is refused."""
    machine.create()
    secs = machine.address(machine.secs_page)
    source = machine.memory.place(bytes(4096))
    rbx = machine.pageinfo(bytes(4096), RW, machine.BASE, secs, srcpge=source)
    reasons = []
    read = machine.memory.read

    def suspended(address: int, length: int) -> bytes:
        if address == source:
            machine.memory.read = read
            reasons.append(
                gp(lambda: encls.eadd(machine.cpu, machine.memory, rbx, machine.address(9)))
            )
            reasons.append(gp(lambda: encls.eremove(machine.cpu, secs)))
        return bytes(read(address, length))

    machine.memory.read = suspended
    encls.eadd(machine.cpu, machine.memory, rbx, machine.address(9))
    assert ["in use" in reason for reason in reasons] == [True, True]
    assert not machine.cpu.epc.busy


# -- EREMOVE and EPA ----------------------------------------------------------------------------


@pytest.mark.leaf("EREMOVE", "#GP", "#PF", "CHILD_PRESENT", "ENCLAVE_ACT", "done")
def test_eremove_checks_in_order(machine: Any, gp: Any, pf: Any) -> None:
    machine.build()
    cpu = machine.cpu
    secs = machine.address(machine.secs_page)
    child = machine.address(machine.table[machine.BASE])
    assert "page aligned" in gp(lambda: encls.eremove(cpu, 0x1001))
    assert pf(lambda: encls.eremove(cpu, 0x1000)) == 0x1000
    assert encls.eremove(cpu, machine.address(60)) is LeafCode.NO_ERROR
    assert encls.eremove(cpu, secs) is LeafCode.CHILD_PRESENT
    machine.regs.rax, machine.regs.rbx = 2, machine.BASE + machine.TCS
    from softsgx.cpu.transition import enclu  # noqa: PLC0415

    enclu(cpu, machine.lp, machine.regs)
    assert encls.eremove(cpu, child) is LeafCode.ENCLAVE_ACT
    assert encls.eremove(cpu, secs) is LeafCode.CHILD_PRESENT
    cpu.thread_gone(machine.lp)
    assert encls.eremove(cpu, child) is LeafCode.NO_ERROR
    assert machine.read(0, 16) == bytes(16)
    for page in machine.table.values():
        assert encls.eremove(cpu, machine.address(page)) is LeafCode.NO_ERROR
    assert encls.eremove(cpu, secs) is LeafCode.NO_ERROR
    assert not cpu.enclaves
    assert not cpu.threads
    assert not cpu.epc.contents
    cpu.epc.check()


def test_eremove_pages_is_eremove_of_each(machine: Any) -> None:
    machine.build()
    first, count = machine.secs_page, len(machine.table) + 1
    code, done = encls.eremove_pages(machine.cpu, first, count)
    assert (code, done) == (LeafCode.CHILD_PRESENT, 0)
    code, done = encls.eremove_pages(machine.cpu, first + 1, count - 1)
    assert (code, done) == (LeafCode.NO_ERROR, count - 1)
    assert machine.secs.children == 0
    assert machine.read(0, 16) == bytes(16)
    assert encls.eremove_pages(machine.cpu, first, 1) == (LeafCode.NO_ERROR, 1)
    assert not any(machine.cpu.epc.words)


def test_eremove_pages_stops_where_a_thread_is_inside(machine: Any) -> None:
    machine.build()
    machine.lp.words[ThreadRecord.OFFSETS["mode"] // 4] = MODE_OUTSIDE
    thread = next(iter(machine.secs.threads.values()))
    thread.words[0] = 1
    first = machine.secs_page + 1
    assert encls.eremove_pages(machine.cpu, first, 3) == (LeafCode.ENCLAVE_ACT, 0)


@pytest.mark.leaf("EPA", "#GP", "#PF", "done")
def test_epa_makes_a_version_array(machine: Any, gp: Any, pf: Any) -> None:
    cpu, rcx = machine.cpu, machine.address(3)
    gp(lambda: encls.epa(cpu, 2, rcx))
    gp(lambda: encls.epa(cpu, PT_VA, rcx + 8))
    assert pf(lambda: encls.epa(cpu, PT_VA, 0)) == 0
    cpu.epc.lock(3)
    assert "in use" in gp(lambda: encls.epa(cpu, PT_VA, rcx))
    cpu.epc.unlock((3,))
    encls.epa(cpu, PT_VA, rcx)
    assert pf(lambda: encls.epa(cpu, PT_VA, rcx)) == rcx
    assert encls.eremove(cpu, rcx) is LeafCode.NO_ERROR
    assert not any(cpu.epc.words)


@pytest.mark.parametrize("leaf", [*range(0xD, 0x15), 0x18, 0x40, 0xFFFF_FFFF])
def test_leaves_that_the_processor_has_not_are_refused(machine: Any, gp: Any, leaf: int) -> None:
    machine.cpu.model = Model(64 * 4096, features=frozenset())
    assert "not supported" in gp(lambda: encls.encls(machine.cpu, machine.memory, leaf))


def test_encls_ignores_the_upper_half_of_rax(machine: Any) -> None:
    rcx = machine.address(0)
    code, _ = encls.encls(machine.cpu, machine.memory, 1 << 32 | 0xA, PT_VA, rcx)
    assert code is LeafCode.NO_ERROR
    assert machine.cpu.epc.valid(0)


# -- EDBGRD and EDBGWR --------------------------------------------------------------------------


@pytest.mark.leaf("EDBGRD", "#GP", "#PF", "PAGE_NOT_DEBUGGABLE", "done")
@pytest.mark.leaf("EDBGWR", "#GP", "#PF", "PAGE_NOT_DEBUGGABLE", "done")
def test_a_debugger_reads_and_writes_a_debug_enclave(machine: Any, gp: Any, pf: Any) -> None:
    machine.build()
    cpu = machine.cpu
    data = machine.address(machine.table[machine.BASE + machine.DATA])
    tcs = machine.address(machine.table[machine.BASE + machine.TCS])
    assert encls.edbgwr(cpu, data + 16, 0x1122334455667788) is LeafCode.NO_ERROR
    assert encls.edbgrd(cpu, data + 16) == (LeafCode.NO_ERROR, 0x1122334455667788)
    assert machine.read(machine.DATA + 16, 8) == u64(0x1122334455667788)
    assert encls.edbgrd(cpu, tcs + 16) == (LeafCode.NO_ERROR, machine.SSA)
    assert encls.edbgwr(cpu, tcs + 8, TCS_DBGOPTIN) is LeafCode.NO_ERROR
    assert encls.edbgrd(cpu, tcs + 8) == (LeafCode.NO_ERROR, TCS_DBGOPTIN)
    assert machine.secs.threads[machine.table[machine.BASE + machine.TCS]].flags == TCS_DBGOPTIN

    for leaf in (lambda rcx: encls.edbgrd(cpu, rcx), lambda rcx: encls.edbgwr(cpu, rcx, 0)):
        assert "8-byte" in gp(lambda leaf=leaf: leaf(4))
        assert pf(lambda leaf=leaf: leaf(0)) == 0
        cpu.epc.lock(60)
        assert "in use" in gp(lambda leaf=leaf: leaf(machine.address(60)))
        cpu.epc.unlock((60,))
        assert pf(lambda leaf=leaf: leaf(machine.address(60))) == machine.address(60)
    assert pf(lambda: encls.edbgrd(cpu, machine.address(60))) == machine.address(60)
    secs = machine.address(machine.secs_page)
    assert pf(lambda: encls.edbgrd(cpu, secs)) == secs
    assert "beyond" in gp(lambda: encls.edbgrd(cpu, tcs + 72))
    assert "FLAGS" in gp(lambda: encls.edbgwr(cpu, tcs + 16, 0))
    va = machine.address(60)
    encls.epa(cpu, PT_VA, va)
    assert encls.edbgrd(cpu, va) == (LeafCode.NO_ERROR, 0)
    cpu.epc.contents[60][8] = 1
    assert encls.edbgrd(cpu, va + 8) == (LeafCode.NO_ERROR, (1 << 64) - 1)
    assert pf(lambda: encls.edbgwr(cpu, va, 1)) == va
    for bit in (SECINFO_PENDING, SECINFO_MODIFIED):
        cpu.epc.words[machine.table[machine.BASE + machine.DATA]] ^= bit
        assert encls.edbgrd(cpu, data) == (LeafCode.PAGE_NOT_DEBUGGABLE, 0)
        assert encls.edbgwr(cpu, data, 0) is LeafCode.PAGE_NOT_DEBUGGABLE
        cpu.epc.words[machine.table[machine.BASE + machine.DATA]] ^= bit


@pytest.mark.leaf("EDBGRD", "#GP")
@pytest.mark.leaf("EDBGWR", "#GP")
def test_a_production_enclave_cannot_be_debugged(machine: Any, gp: Any) -> None:
    machine.build(attributes=ATTRIBUTE_MODE64BIT)
    data = machine.address(machine.table[machine.BASE + machine.DATA])
    assert "no debug" in gp(lambda: encls.edbgrd(machine.cpu, data))
    assert "no debug" in gp(lambda: encls.edbgwr(machine.cpu, data, 0))


def test_the_running_tcs_shows_to_a_debugger(machine: Any) -> None:
    machine.build()
    machine.regs.rax, machine.regs.rbx, machine.regs.rcx = 2, machine.BASE + machine.TCS, 0x4444
    from softsgx.cpu.transition import enclu  # noqa: PLC0415

    enclu(machine.cpu, machine.lp, machine.regs)
    tcs = machine.address(machine.table[machine.BASE + machine.TCS])
    state = Tcs.OFFSETS["state"]
    assert encls.edbgrd(machine.cpu, tcs + state)[1] == 1
    assert encls.edbgrd(machine.cpu, tcs + Tcs.OFFSETS["aep"])[1] == 0x4444


def test_attributes_of_the_model_are_all_accepted(machine: Any) -> None:
    machine.create(
        attributes=ATTRIBUTE_MODE64BIT | ATTRIBUTE_KSS | ATTRIBUTE_PROVISIONKEY,
        configid=b"\7" * 64,
        configsvn=9,
    )
    assert machine.secs.configsvn == 9
    assert Secinfo.SIZE == 64
