# SPDX-License-Identifier: Apache-2.0
"""EAUG, EMODPR, EMODT, EACCEPT, EMODPE, EACCEPTCOPY: each refusal in the manual's order, and what a page becomes."""

from typing import Any

import pytest

from softsgx.arch.attributes import ATTRIBUTE_MODE64BIT
from softsgx.arch.codes import LeafCode
from softsgx.arch.exceptions import PFEC_P, PFEC_SGX, PFEC_U, PFEC_W
from softsgx.arch.secinfo import (
    PT_REG,
    PT_TCS,
    PT_TRIM,
    SECINFO_MODIFIED,
    SECINFO_PENDING,
    SECINFO_PR,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_TCS,
    SECINFO_TRIM,
    SECINFO_W,
    SECINFO_X,
)
from softsgx.arch.structures import Pageinfo, Secinfo, Tcs
from softsgx.cpu import encls, paging
from softsgx.cpu.epc import EPCM_VALID
from softsgx.cpu.model import DEFAULT_FEATURES, Model
from softsgx.cpu.registers import RFLAGS_CF, RFLAGS_ZF, Registers
from softsgx.cpu.transition import Event, aex, enclu
from softsgx.errors import Fault

EAUG, EMODPR, EMODT = 0x0D, 0x0E, 0x0F
EENTER, ERESUME, EEXIT, EACCEPT, EMODPE, EACCEPTCOPY = 2, 3, 4, 5, 6, 7
NOT_EPC = 0x1000
RW = SECINFO_R | SECINFO_W
DENIED = PFEC_U | PFEC_P | PFEC_SGX
HOLE = 0x20000  # no page of the machine's enclave is there


class Dynamic:
    """An initialised enclave, a thread inside it, and the six leaves on its pages by offset."""

    def __init__(self, pager: Any) -> None:
        self.pager = pager
        self.machine = pager.machine
        self.cpu = pager.cpu
        self.base = self.machine.BASE
        self.lp = self.machine.logical_processor()
        self.regs = Registers()
        self.enter()

    def enter(self, leaf: int = EENTER, tcs: int | None = None) -> None:
        machine = self.machine
        self.regs.rax, self.regs.rcx, self.regs.rip = leaf, machine.AEP, 0x40_0FFD
        self.regs.rbx = self.base + (machine.TCS if tcs is None else tcs)
        enclu(self.cpu, self.lp, self.regs)

    def leave(self) -> None:
        self.regs.rax, self.regs.rbx = EEXIT, 0x41_0000
        enclu(self.cpu, self.lp, self.regs)

    def page(self, offset: int) -> int:
        page: int = self.machine.table[self.base + offset]
        return page

    def word(self, offset: int) -> int:
        return self.cpu.epc.words[self.page(offset)] & ~EPCM_VALID

    # -- ENCLS --------------------------------------------------------------------------------

    def encls(self, leaf: int, rbx: int, rcx: int) -> LeafCode:
        return encls.encls(self.cpu, self.machine.memory, leaf, rbx, rcx)[0]

    def secinfo(self, flags: int) -> int:
        at: int = self.machine.memory.place(Secinfo(flags=flags).encode())
        return at

    def pageinfo(self, offset: int = HOLE, **changes: int) -> int:
        pageinfo = Pageinfo(
            linaddr=self.base + offset,
            srcpge=0,
            secinfo=0,
            secs=self.machine.address(self.machine.secs_page),
        )
        at: int = self.machine.memory.place(pageinfo.replace(**changes).encode())
        return at

    def eaug(self, offset: int = HOLE) -> int:
        page: int = self.machine.allocate()
        assert self.encls(EAUG, self.pageinfo(offset), self.machine.address(page)) == 0
        self.machine.table[self.base + offset] = page
        return page

    def emodpr(self, offset: int, flags: int) -> LeafCode:
        return self.encls(EMODPR, self.secinfo(flags), self.machine.address(self.page(offset)))

    def emodt(self, offset: int, kind: int) -> LeafCode:
        return self.encls(EMODT, self.secinfo(kind), self.machine.address(self.page(offset)))

    def track(self) -> None:
        """Do what ETRACK and the interrupts to all processors do."""
        assert self.pager.etrack() is LeafCode.NO_ERROR
        paging.tlb_shootdown(self.machine.secs)

    # -- ENCLU --------------------------------------------------------------------------------

    def enclu(self, leaf: int, rbx: int, rcx: int, rdx: int = 0) -> int:
        regs = self.regs
        regs.rax, regs.rbx, regs.rcx, regs.rdx = leaf, rbx, rcx, rdx
        regs.rflags |= RFLAGS_CF
        rip = regs.rip
        enclu(self.cpu, self.lp, regs)
        assert regs.rip == rip + 3
        if leaf == EMODPE:
            assert regs.rax == EMODPE
            assert regs.rflags & RFLAGS_CF
            return 0
        assert not regs.rflags & RFLAGS_CF
        assert bool(regs.rflags & RFLAGS_ZF) == bool(regs.rax)
        return regs.rax

    def operand(self, flags: int, reserved: bytes = bytes(56)) -> int:
        """Put a SECINFO into a data page of the enclave; return its address."""
        offset: int = self.machine.DATA + 0x3000
        self.machine.write(offset, flags.to_bytes(8, "little") + reserved)
        return self.base + offset

    def eaccept(self, offset: int, flags: int) -> int:
        return self.enclu(EACCEPT, self.operand(flags), self.base + offset)

    def emodpe(self, offset: int, flags: int) -> int:
        return self.enclu(EMODPE, self.operand(flags), self.base + offset)

    def eacceptcopy(self, offset: int, source: int, flags: int) -> int:
        return self.enclu(EACCEPTCOPY, self.operand(flags), self.base + offset, self.base + source)

    def fault(self, leaf: int, rbx: int, rcx: int, rdx: int = 0) -> Fault:
        """Execute a leaf inside that must fault: nothing may have changed."""
        before = self.regs.as_dict()
        words = list(self.cpu.epc.words)
        with pytest.raises(Fault) as caught:
            self.enclu(leaf, rbx, rcx, rdx)
        after = self.regs.as_dict()
        for name in ("rip", "rflags"):
            assert after[name] in {before[name], before[name] | RFLAGS_CF}
        assert list(self.cpu.epc.words) == words
        return caught.value


@pytest.fixture
def dynamic(pager: Any) -> Dynamic:
    return Dynamic(pager)


def is_gp(fault: Fault, word: str) -> bool:
    return (fault.vector, fault.error_code) == (13, 0) and word in fault.reason


def is_pf(fault: Fault, address: int, error_code: int) -> bool:
    return (fault.vector, fault.address, fault.error_code) == (14, address, error_code)


# -- the processor -----------------------------------------------------------------------------


def test_cpuid_claims_sgx2_and_a_model_without_has_none_of_its_leaves(machine: Any) -> None:
    assert Model().cpuid(0x12, 0, (0, 0, 0, 0))[0] & 2
    without = Model(64 * 4096, features=DEFAULT_FEATURES - {"sgx2"})
    assert not without.cpuid(0x12, 0, (0, 0, 0, 0))[0] & 2
    machine.cpu.model = without
    for leaf in (EAUG, EMODPR, EMODT):
        with pytest.raises(Fault, match="not supported"):
            encls.encls(machine.cpu, machine.memory, leaf, 0, 0)
    for leaf in (EACCEPT, EMODPE, EACCEPTCOPY):
        with pytest.raises(Fault, match="not supported"):
            enclu(machine.cpu, machine.lp, Registers(rax=leaf))


def test_the_enclaves_leaves_are_gp_outside(machine: Any) -> None:
    for leaf in (EACCEPT, EMODPE, EACCEPTCOPY):
        with pytest.raises(Fault, match="outside an enclave"):
            enclu(machine.cpu, machine.lp, Registers(rax=leaf))


# -- EAUG --------------------------------------------------------------------------------------


@pytest.mark.leaf("EAUG", "#GP", "#PF", "done")
def test_eaug_makes_its_checks_in_order(dynamic: Dynamic, gp: Any, pf: Any) -> None:
    machine, cpu = dynamic.machine, dynamic.cpu
    page = machine.allocate()
    at, used = machine.address(page), machine.address(dynamic.page(machine.DATA))
    good = dynamic.pageinfo()
    assert "32-byte" in gp(lambda: dynamic.encls(EAUG, good + 8, NOT_EPC + 8))
    assert "EPC address" in gp(lambda: dynamic.encls(EAUG, 0, NOT_EPC + 8))
    assert pf(lambda: dynamic.encls(EAUG, 0, NOT_EPC)) == NOT_EPC
    assert pf(lambda: dynamic.encls(EAUG, 0x40, at)) == 0x40

    def eaug(rcx: int = at, **changes: int) -> Any:
        return lambda: dynamic.encls(EAUG, dynamic.pageinfo(**changes), rcx)

    assert "aligned" in gp(eaug(secs=NOT_EPC + 8, srcpge=4096))
    assert "aligned" in gp(eaug(linaddr=dynamic.base + 8, srcpge=4096))
    assert "SRCPGE" in gp(eaug(srcpge=4096, secs=NOT_EPC))
    assert "SECINFO" in gp(eaug(secinfo=64, secs=NOT_EPC))
    assert pf(eaug(secs=NOT_EPC)) == NOT_EPC
    for busy in (page, machine.secs_page):
        cpu.epc.lock(busy)
        assert "in use by another" in gp(eaug())
        cpu.epc.unlock((busy,))
    assert pf(eaug(rcx=used, secs=used)) == used
    assert pf(eaug(secs=used)) == used
    assert "outside ELRANGE" in gp(eaug(linaddr=dynamic.base + machine.SIZE))
    assert "outside ELRANGE" in gp(eaug(linaddr=dynamic.base - 4096))
    assert not cpu.epc.valid(page)
    eaug()()
    assert cpu.epc.valid(page)
    cpu.epc.check()


def test_eaug_wants_an_initialised_enclave(machine: Any, gp: Any) -> None:
    machine.create()
    page = machine.allocate()
    info = Pageinfo(
        linaddr=machine.BASE + machine.SIZE,
        srcpge=0,
        secinfo=0,
        secs=machine.address(machine.secs_page),
    )
    rbx = machine.memory.place(info.encode())
    # Before the place is looked at.
    assert "not initialised" in gp(
        lambda: encls.encls(machine.cpu, machine.memory, EAUG, rbx, machine.address(page))
    )


def test_eaug_adds_a_pending_page_that_changes_no_measurement(dynamic: Dynamic) -> None:
    children, mrenclave = dynamic.machine.secs.children, dynamic.machine.secs.mrenclave
    page = dynamic.eaug()
    assert dynamic.word(HOLE) == SECINFO_REG | RW | SECINFO_PENDING
    assert dynamic.cpu.epc.owners[page] == dynamic.machine.secs_page
    assert dynamic.machine.secs.children == children + 1
    assert dynamic.machine.secs.mrenclave == mrenclave
    assert dynamic.machine.read(HOLE, 4096) == bytes(4096)


# -- EMODPR ------------------------------------------------------------------------------------


@pytest.mark.leaf("EMODPR", "#GP", "#PF", "EPC_PAGE_CONFLICT", "PAGE_NOT_MODIFIABLE")
def test_emodpr_makes_its_checks_in_order(dynamic: Dynamic, gp: Any, pf: Any) -> None:
    machine, cpu = dynamic.machine, dynamic.cpu
    free, data = machine.allocate(), machine.DATA
    at = machine.address(dynamic.page(data))
    good = dynamic.secinfo(SECINFO_R)
    assert "64-byte" in gp(lambda: dynamic.encls(EMODPR, good + 8, NOT_EPC + 8))
    assert "page aligned" in gp(lambda: dynamic.encls(EMODPR, 0x40, NOT_EPC + 8))
    assert pf(lambda: dynamic.encls(EMODPR, 0x40, NOT_EPC)) == NOT_EPC
    assert pf(lambda: dynamic.encls(EMODPR, 0x40, at)) == 0x40
    cpu.epc.lock(dynamic.page(data))
    for flags, word in ((1 << 6, "reserved"), (SECINFO_W, "not readable")):
        assert word in gp(lambda flags=flags: dynamic.emodpr(data, flags))
    assert dynamic.emodpr(data, 0) is LeafCode.EPC_PAGE_CONFLICT
    cpu.epc.unlock((dynamic.page(data),))
    reserved = machine.memory.place(bytes(63) + b"\1")
    assert "reserved" in gp(lambda: dynamic.encls(EMODPR, reserved, at))
    cpu.epc.lock(free)
    assert "another leaf" in gp(lambda: dynamic.encls(EMODPR, good, machine.address(free)))
    cpu.epc.unlock((free,))
    assert pf(lambda: dynamic.encls(EMODPR, good, machine.address(free))) == machine.address(free)
    for page in (machine.secs_page, dynamic.pager.va, dynamic.page(machine.TCS)):
        where = machine.address(page)
        assert pf(lambda where=where: dynamic.encls(EMODPR, good, where)) == where
    # PENDING and MODIFIED before the type: a TRIM page tells whether it was accepted.
    dynamic.eaug()
    assert dynamic.emodpr(HOLE, SECINFO_R) is LeafCode.PAGE_NOT_MODIFIABLE
    assert dynamic.emodt(data, SECINFO_TRIM) is LeafCode.NO_ERROR
    assert dynamic.emodpr(data, SECINFO_R) is LeafCode.PAGE_NOT_MODIFIABLE
    dynamic.track()
    assert dynamic.eaccept(data, SECINFO_TRIM | SECINFO_MODIFIED) == 0
    assert pf(lambda: dynamic.emodpr(data, SECINFO_R)) == at


@pytest.mark.parametrize(("leaf", "flags"), [(EMODPR, SECINFO_R), (EMODT, SECINFO_TRIM)])
def test_changes_want_an_initialised_enclave(machine: Any, gp: Any, leaf: int, flags: int) -> None:
    machine.create()
    machine.populate()
    page = machine.table[machine.BASE + machine.DATA]
    rbx = machine.memory.place(Secinfo(flags=flags).encode())
    assert "not initialised" in gp(
        lambda: encls.encls(machine.cpu, machine.memory, leaf, rbx, machine.address(page))
    )


@pytest.mark.leaf("EMODPR", "done")
def test_emodpr_takes_permissions_away_and_gives_none(dynamic: Dynamic) -> None:
    data, code = dynamic.machine.DATA, dynamic.machine.CODE
    assert dynamic.emodpr(data, SECINFO_R | SECINFO_X) is LeafCode.NO_ERROR
    assert dynamic.word(data) == SECINFO_REG | SECINFO_R | SECINFO_PR
    assert dynamic.emodpr(code, SECINFO_X) is LeafCode.NO_ERROR
    assert dynamic.word(code) == SECINFO_REG | SECINFO_X | SECINFO_PR
    # A page under restriction can be restricted further.
    assert dynamic.emodpr(data, 0) is LeafCode.NO_ERROR
    assert dynamic.word(data) == SECINFO_REG | SECINFO_PR
    dynamic.cpu.epc.check()


# -- EMODT -------------------------------------------------------------------------------------


@pytest.mark.leaf("EMODT", "#GP", "#PF", "EPC_PAGE_CONFLICT", "PAGE_NOT_MODIFIABLE", "done")
def test_emodt_makes_its_checks_in_order(dynamic: Dynamic, gp: Any, pf: Any) -> None:
    machine, cpu = dynamic.machine, dynamic.cpu
    free, data, tcs = machine.allocate(), machine.DATA, machine.TCS
    at = machine.address(dynamic.page(data))
    good = dynamic.secinfo(SECINFO_TRIM)
    assert "64-byte" in gp(lambda: dynamic.encls(EMODT, good + 8, NOT_EPC + 8))
    assert "page aligned" in gp(lambda: dynamic.encls(EMODT, 0x40, NOT_EPC + 8))
    assert pf(lambda: dynamic.encls(EMODT, 0x40, NOT_EPC)) == NOT_EPC
    assert pf(lambda: dynamic.encls(EMODT, 0x40, at)) == 0x40
    cpu.epc.lock(dynamic.page(data))
    assert "reserved" in gp(lambda: dynamic.emodt(data, 1 << 7 | SECINFO_TRIM))
    for kind in (SECINFO_REG, 0, 3 << 8):
        assert "neither" in gp(lambda kind=kind: dynamic.emodt(data, kind))
    assert dynamic.emodt(data, SECINFO_TRIM) is LeafCode.EPC_PAGE_CONFLICT
    cpu.epc.unlock((dynamic.page(data),))
    assert pf(lambda: dynamic.encls(EMODT, good, machine.address(free))) == machine.address(free)
    for page in (machine.secs_page, dynamic.pager.va):
        where = machine.address(page)
        assert pf(lambda where=where: dynamic.encls(EMODT, good, where)) == where
    assert pf(lambda: dynamic.emodt(tcs, SECINFO_TCS)) == machine.address(dynamic.page(tcs))
    # Here the type comes first.
    dynamic.eaug()
    assert dynamic.emodt(HOLE, SECINFO_TRIM) is LeafCode.PAGE_NOT_MODIFIABLE
    assert dynamic.emodt(data, SECINFO_TCS) is LeafCode.NO_ERROR
    assert pf(lambda: dynamic.emodt(data, SECINFO_TCS)) == at
    assert dynamic.emodt(data, SECINFO_TRIM) is LeafCode.PAGE_NOT_MODIFIABLE
    # The thread inside holds its TCS and its SSA frame.
    for offset in (tcs, machine.SSA):
        assert dynamic.emodt(offset, SECINFO_TRIM) is LeafCode.EPC_PAGE_CONFLICT
    dynamic.leave()
    assert dynamic.emodt(tcs, SECINFO_TRIM) is LeafCode.NO_ERROR
    assert dynamic.word(tcs) == SECINFO_TRIM | SECINFO_MODIFIED
    cpu.epc.check()


def test_what_becomes_trim_or_a_tcs_is_a_hole(dynamic: Dynamic) -> None:
    machine = dynamic.machine
    for offset, kind in ((machine.DATA, SECINFO_TRIM), (machine.DATA + 0x1000, SECINFO_TCS)):
        machine.write(offset, b"\xa5" * 4096)
        assert dynamic.emodt(offset, kind) is LeafCode.NO_ERROR
        assert dynamic.word(offset) == kind | SECINFO_MODIFIED
        assert machine.read(offset, 4096) == bytes(4096)


# -- EACCEPT -----------------------------------------------------------------------------------


def make_checks_of_secinfo_page(dynamic: Dynamic, leaf: int, rcx: int, rdx: int = 0) -> None:
    machine, cpu, base = dynamic.machine, dynamic.cpu, dynamic.base
    at = dynamic.operand(0)
    page = cpu.epc.words[dynamic.page(machine.DATA + 0x3000)]
    assert is_gp(dynamic.fault(leaf, at + 8, rcx, rdx), "aligned")
    for outside in (base - 64, base + machine.SIZE):
        assert is_gp(dynamic.fault(leaf, outside, rcx, rdx), "outside ELRANGE")
    assert is_pf(dynamic.fault(leaf, base + HOLE + 0x9000, rcx, rdx), base + HOLE + 0x9000, PFEC_U)
    where = dynamic.page(machine.DATA + 0x3000)
    for bad in (
        page & ~SECINFO_R,
        page | SECINFO_PENDING,
        page | SECINFO_MODIFIED,
        page & 0xFF | SECINFO_TRIM,
    ):
        cpu.epc.words[where] = bad
        assert is_pf(dynamic.fault(leaf, at, rcx, rdx), at, DENIED)
        cpu.epc.words[where] = page
    cpu.epc.block(where, 0)
    assert is_pf(dynamic.fault(leaf, at, rcx, rdx), at, DENIED)
    cpu.epc.words[where] = page
    del cpu.epc.blocked[where]
    # A page of ours that belongs elsewhere.
    machine.table[base + HOLE + 0x9000] = where
    assert is_pf(dynamic.fault(leaf, base + HOLE + 0x9000, rcx, rdx), base + HOLE + 0x9000, DENIED)
    del machine.table[base + HOLE + 0x9000]
    cpu.epc.owners[where] += 1
    assert is_pf(dynamic.fault(leaf, at, rcx, rdx), at, DENIED)
    cpu.epc.owners[where] -= 1
    for flags, reserved in ((1 << 6, bytes(56)), (1 << 16, bytes(56)), (0, bytes(55) + b"\1")):
        at = dynamic.operand(flags, reserved)
        assert is_gp(dynamic.fault(leaf, at, rcx, rdx), "reserved")


@pytest.mark.leaf("EACCEPT", "#GP", "#PF", "PAGE_ATTRIBUTES_MISMATCH")
def test_eaccept_makes_its_checks_in_order(dynamic: Dynamic) -> None:
    machine, cpu, base = dynamic.machine, dynamic.cpu, dynamic.base
    make_checks_of_secinfo_page(dynamic, EACCEPT, base + HOLE + 8)
    at = dynamic.operand(SECINFO_REG)
    assert is_gp(dynamic.fault(EACCEPT, at, base + HOLE + 8), "aligned")
    for outside in (base - 4096, base + machine.SIZE):
        assert is_gp(dynamic.fault(EACCEPT, at, outside), "outside ELRANGE")
    # A hole, before the request is looked at: that is what makes the driver augment it.
    assert is_pf(dynamic.fault(EACCEPT, at, base + HOLE), base + HOLE, PFEC_U)
    page = dynamic.eaug()
    for flags in (
        SECINFO_REG | RW,
        SECINFO_REG | SECINFO_MODIFIED,
        SECINFO_REG | SECINFO_MODIFIED | SECINFO_PR,
        SECINFO_TCS,
        SECINFO_TCS | SECINFO_PENDING | SECINFO_MODIFIED,
        SECINFO_TRIM | SECINFO_MODIFIED | SECINFO_PR,
        SECINFO_PENDING,
    ):
        assert is_gp(dynamic.fault(EACCEPT, dynamic.operand(flags), base + HOLE), "accepted")
    at = dynamic.operand(SECINFO_REG | RW | SECINFO_PENDING)
    word = cpu.epc.words[page]
    cpu.epc.lock(page)
    for bad in (word & ~EPCM_VALID, word | 0x40, word & 0xFF | 3 << 8):
        cpu.epc.words[page] = bad
        assert is_pf(dynamic.fault(EACCEPT, at, base + HOLE), base + HOLE, DENIED)
        cpu.epc.words[page] = word
    cpu.epc.owners[page] += 1
    assert is_pf(dynamic.fault(EACCEPT, at, base + HOLE), base + HOLE, DENIED)
    cpu.epc.owners[page] -= 1
    machine.table[base + HOLE + 0x1000] = page
    assert is_gp(dynamic.fault(EACCEPT, at, base + HOLE + 0x1000), "another leaf")
    cpu.epc.unlock((page,))
    mismatch = LeafCode.PAGE_ATTRIBUTES_MISMATCH
    assert dynamic.enclu(EACCEPT, at, base + HOLE + 0x1000) == mismatch
    del machine.table[base + HOLE + 0x1000]
    pending = SECINFO_REG | SECINFO_PENDING
    for flags in (
        pending | SECINFO_R,
        pending | SECINFO_W,
        pending | RW | SECINFO_X,
        SECINFO_REG | RW | SECINFO_PR,
        SECINFO_TCS | SECINFO_MODIFIED,
    ):
        assert dynamic.eaccept(HOLE, flags) == mismatch
    assert dynamic.word(HOLE) == pending | RW
    # PR is not compared.
    assert dynamic.eaccept(HOLE, pending | RW | SECINFO_PR) == 0
    assert dynamic.word(HOLE) == SECINFO_REG | RW
    cpu.epc.check()


@pytest.mark.parametrize(
    ("change", "flags", "accepted"),
    [
        ("emodpr", SECINFO_R, SECINFO_REG | SECINFO_R | SECINFO_PR),
        ("emodt", SECINFO_TRIM, SECINFO_TRIM | SECINFO_MODIFIED),
    ],
)
@pytest.mark.leaf("EACCEPT", "NOT_TRACKED", "done")
def test_what_was_taken_away_is_accepted_when_it_is_tracked(
    dynamic: Dynamic, change: str, flags: int, accepted: int
) -> None:
    data = dynamic.machine.DATA
    assert getattr(dynamic, change)(data, flags) is LeafCode.NO_ERROR
    # The comparison comes before the tracking.
    assert dynamic.eaccept(data, accepted ^ SECINFO_X) == LeafCode.PAGE_ATTRIBUTES_MISMATCH
    assert dynamic.eaccept(data, accepted) == LeafCode.NOT_TRACKED
    assert dynamic.pager.etrack() is LeafCode.NO_ERROR
    # The thread itself may still know the page as it was.
    assert dynamic.eaccept(data, accepted) == LeafCode.NOT_TRACKED
    paging.tlb_shootdown(dynamic.machine.secs)
    assert dynamic.eaccept(data, accepted) == 0
    assert dynamic.word(data) == accepted & ~(SECINFO_PR | SECINFO_MODIFIED)
    assert dynamic.eaccept(data, accepted) == (
        0 if accepted & SECINFO_PR else LeafCode.PAGE_ATTRIBUTES_MISMATCH
    )
    dynamic.cpu.epc.check()


def test_a_thread_that_has_left_since_need_not_be_interrupted(dynamic: Dynamic) -> None:
    data, accepted = dynamic.machine.DATA, SECINFO_REG | SECINFO_R | SECINFO_PR
    assert not dynamic.emodpr(data, SECINFO_R)
    assert not dynamic.pager.etrack()
    aex(dynamic.cpu, dynamic.lp, dynamic.regs, Event())
    dynamic.enter(ERESUME)
    assert dynamic.eaccept(data, accepted) == 0


def test_eaccept_of_a_tcs_checks_it_and_makes_it_one_to_enter_by(dynamic: Dynamic) -> None:
    machine, base = dynamic.machine, dynamic.base
    offset, accepted = machine.DATA, SECINFO_TCS | SECINFO_MODIFIED
    good = Tcs.decode(machine.tcs_bytes(ossa=machine.SSA + 0x2000))
    for number, (bad, word) in enumerate(
        (
            (good.encode()[:4095] + b"\1", "reserved"),
            (good.replace(flags=1).encode(), "DBGOPTIN"),
            (good.replace(cssa=2).encode(), "CSSA"),
            (good.replace(aep=1).encode(), "AEP"),
            (good.replace(state=1).encode(), "STATE"),
        )
    ):
        where = HOLE + number * 0x1000
        dynamic.eaug(where)
        assert dynamic.eaccept(where, SECINFO_REG | RW | SECINFO_PENDING) == 0
        machine.write(where, bad)
        assert not dynamic.emodt(where, SECINFO_TCS)
        # Tracking comes first.
        assert dynamic.eaccept(where, accepted) == LeafCode.NOT_TRACKED
        dynamic.track()
        fault = dynamic.fault(EACCEPT, dynamic.operand(accepted), base + where)
        assert is_gp(fault, word)
        assert dynamic.word(where) == accepted
    machine.write(offset, good.encode())
    assert not dynamic.emodt(offset, SECINFO_TCS)
    dynamic.track()
    lp, regs = machine.logical_processor(), Registers()
    regs.rax, regs.rbx, regs.rcx, regs.rip = EENTER, base + offset, machine.AEP, 0x40_0FFD
    with pytest.raises(Fault, match="no TCS to enter by"):
        enclu(dynamic.cpu, lp, regs)
    assert dynamic.eaccept(offset, accepted) == 0
    enclu(dynamic.cpu, lp, regs)
    assert lp.inside
    assert regs.rip == base + machine.CODE + 0x100
    dynamic.cpu.epc.check()


def test_the_limits_of_a_32_bit_tcs_are_checked(machine: Any, make_pager: Any) -> None:
    # No thread enters a 32-bit enclave here: so it becomes one when it has been entered.
    dynamic = Dynamic(make_pager(machine.build()))
    machine.secs.attributes &= ~ATTRIBUTE_MODE64BIT
    machine.write(machine.DATA, machine.tcs_bytes(gslimit=0xFFE))
    assert not dynamic.emodt(machine.DATA, SECINFO_TCS)
    dynamic.track()
    at = dynamic.operand(SECINFO_TCS | SECINFO_MODIFIED)
    assert is_gp(dynamic.fault(EACCEPT, at, dynamic.base + machine.DATA), "GSLIMIT")


# -- EMODPE ------------------------------------------------------------------------------------


@pytest.mark.leaf("EMODPE", "#GP", "#PF")
def test_emodpe_makes_its_checks_in_order(dynamic: Dynamic) -> None:
    machine, cpu, base = dynamic.machine, dynamic.cpu, dynamic.base
    data = base + machine.DATA
    make_checks_of_secinfo_page(dynamic, EMODPE, data)
    at = dynamic.operand(SECINFO_R)
    assert is_gp(dynamic.fault(EMODPE, base - 64, data + 8), "aligned")
    for outside in (base - 4096, base + machine.SIZE):
        assert is_gp(dynamic.fault(EMODPE, at, outside), "outside ELRANGE")
    assert is_pf(dynamic.fault(EMODPE, at, base + HOLE), base + HOLE, PFEC_U)
    dynamic.eaug()
    assert is_pf(dynamic.fault(EMODPE, at, base + HOLE), base + HOLE, DENIED)
    page = dynamic.page(machine.DATA)
    word = cpu.epc.words[page]
    cpu.epc.lock(page)
    for bad in (word | SECINFO_MODIFIED, word | 0x40, word & 0xFF | SECINFO_TCS, 0):
        cpu.epc.words[page] = bad
        assert is_pf(dynamic.fault(EMODPE, at, data), data, DENIED)
        cpu.epc.words[page] = word
    cpu.epc.owners[page] += 1
    assert is_pf(dynamic.fault(EMODPE, at, data), data, DENIED)
    cpu.epc.owners[page] -= 1
    machine.table[base + HOLE + 0x1000] = page
    assert is_gp(dynamic.fault(EMODPE, at, base + HOLE + 0x1000), "another leaf")
    cpu.epc.unlock((page,))
    there = base + HOLE + 0x1000
    assert is_pf(dynamic.fault(EMODPE, at, there), there, DENIED)
    assert not dynamic.emodpr(machine.DATA, 0)
    assert is_gp(dynamic.fault(EMODPE, dynamic.operand(SECINFO_W), data), "not readable")
    assert dynamic.emodpe(machine.DATA, RW) == 0
    assert dynamic.word(machine.DATA) == SECINFO_REG | RW | SECINFO_PR


@pytest.mark.leaf("EMODPE", "done")
def test_emodpe_gives_permissions_and_takes_none(dynamic: Dynamic) -> None:
    code = dynamic.machine.CODE
    dynamic.emodpe(code, SECINFO_W)
    assert dynamic.word(code) == SECINFO_REG | RW | SECINFO_X
    dynamic.emodpe(code, 0)
    assert dynamic.word(code) == SECINFO_REG | RW | SECINFO_X


# -- EACCEPTCOPY -------------------------------------------------------------------------------


@pytest.mark.leaf("EACCEPTCOPY", "#GP", "#PF", "PAGE_ATTRIBUTES_MISMATCH")
def test_eacceptcopy_makes_its_checks_in_order(dynamic: Dynamic) -> None:
    machine, cpu, base = dynamic.machine, dynamic.cpu, dynamic.base
    page = dynamic.eaug()
    target, source = base + HOLE, base + machine.DATA
    make_checks_of_secinfo_page(dynamic, EACCEPTCOPY, target, source)
    at = dynamic.operand(SECINFO_REG | SECINFO_R)
    for rcx, rdx in ((target + 8, source), (target, source + 8)):
        assert is_gp(dynamic.fault(EACCEPTCOPY, base - 64, rcx, rdx), "aligned")
    absent = base + HOLE + 0x9000
    for rcx, rdx in ((base - 4096, source), (target, base + machine.SIZE)):
        assert is_gp(dynamic.fault(EACCEPTCOPY, absent, rcx, rdx), "outside ELRANGE")
    assert is_pf(dynamic.fault(EACCEPTCOPY, absent, absent, absent), absent, PFEC_U)
    assert is_pf(dynamic.fault(EACCEPTCOPY, at, absent, absent), absent, PFEC_U | PFEC_W)
    assert is_pf(dynamic.fault(EACCEPTCOPY, at, target, absent), absent, PFEC_U)
    from_page = dynamic.page(machine.DATA)
    word = cpu.epc.words[from_page]
    cpu.epc.words[from_page] = word & ~SECINFO_R
    for flags, what in (
        (SECINFO_REG | SECINFO_W, "not readable"),
        (SECINFO_TCS, "not of a REG"),
    ):
        fault = dynamic.fault(EACCEPTCOPY, dynamic.operand(flags), target, source)
        assert is_gp(fault, what)
    cpu.epc.lock(page)
    at = dynamic.operand(SECINFO_REG | SECINFO_R)
    for bad in (
        word & ~SECINFO_R,
        word | SECINFO_PENDING,
        word | SECINFO_MODIFIED,
        word | 0x40,
        word & 0xFF | SECINFO_TRIM,
    ):
        cpu.epc.words[from_page] = bad
        assert is_pf(dynamic.fault(EACCEPTCOPY, at, target, source), source, DENIED)
    cpu.epc.words[from_page] = word
    mismatch = LeafCode.PAGE_ATTRIBUTES_MISMATCH
    before = cpu.epc.words[page]
    for bad in (before & ~SECINFO_PENDING, before | SECINFO_MODIFIED, before | 0x40):
        cpu.epc.words[page] = bad
        assert dynamic.enclu(EACCEPTCOPY, at, target, source) == mismatch
        cpu.epc.words[page] = before
    assert is_gp(dynamic.fault(EACCEPTCOPY, at, target, source), "another leaf")
    cpu.epc.unlock((page,))
    for bad in (before & ~SECINFO_W, before | SECINFO_X):
        cpu.epc.words[page] = bad
        fault = dynamic.fault(EACCEPTCOPY, at, target, source)
        assert is_pf(fault, target, DENIED | PFEC_W)
        cpu.epc.words[page] = before
    machine.table[base + HOLE + 0x1000] = page
    there = base + HOLE + 0x1000
    fault = dynamic.fault(EACCEPTCOPY, at, there, source)
    assert is_pf(fault, there, DENIED | PFEC_W)
    assert dynamic.enclu(EACCEPTCOPY, at, target, source) == 0


@pytest.mark.leaf("EACCEPTCOPY", "done")
def test_eacceptcopy_copies_and_gives_permissions(dynamic: Dynamic) -> None:
    machine = dynamic.machine
    contents = bytes(range(256)) * 16
    machine.write(machine.DATA, contents)
    dynamic.eaug()
    assert dynamic.eacceptcopy(HOLE, machine.DATA, SECINFO_REG | SECINFO_R | SECINFO_X) == 0
    assert dynamic.word(HOLE) == SECINFO_REG | RW | SECINFO_X
    assert machine.read(HOLE, 4096) == contents
    assert machine.read(machine.DATA, 4096) == contents
    # It is accepted by that.
    flags = SECINFO_REG | RW | SECINFO_PENDING
    assert dynamic.eaccept(HOLE, flags) == LeafCode.PAGE_ATTRIBUTES_MISMATCH


# -- with the other leaves ---------------------------------------------------------------------


def test_an_accepted_trim_page_goes_though_threads_are_inside(dynamic: Dynamic) -> None:
    data, cpu = dynamic.machine.DATA, dynamic.cpu
    address = dynamic.machine.address(dynamic.page(data))
    assert not dynamic.emodt(data, SECINFO_TRIM)
    dynamic.track()
    assert encls.eremove(cpu, address) is LeafCode.ENCLAVE_ACT
    assert dynamic.eaccept(data, SECINFO_TRIM | SECINFO_MODIFIED) == 0
    children = dynamic.machine.secs.children
    assert encls.eremove(cpu, address) is LeafCode.NO_ERROR
    assert dynamic.machine.secs.children == children - 1
    cpu.epc.check()


def test_every_state_goes_out_and_comes_back_with_its_bits(dynamic: Dynamic) -> None:
    machine, cpu, pager = dynamic.machine, dynamic.cpu, dynamic.pager
    data = machine.DATA
    tcs = machine.tcs_bytes(ossa=machine.SSA + 0x2000)
    dynamic.eaug()
    assert not dynamic.emodpr(data, SECINFO_R)
    machine.write(data, b"\xa5" * 4096)
    machine.write(data + 0x1000, tcs)
    assert not dynamic.emodt(data + 0x1000, SECINFO_TCS)
    assert not dynamic.emodt(data + 0x2000, SECINFO_TRIM)
    offsets = (HOLE, data, data + 0x1000, data + 0x2000)
    wanted = [dynamic.word(offset) for offset in offsets]
    kinds = [word >> 8 for word in wanted]
    assert kinds == [PT_REG, PT_REG, PT_TCS, PT_TRIM]
    dynamic.leave()
    out = [pager.evict(dynamic.page(offset), slot) for slot, offset in enumerate(offsets)]
    assert not cpu.epc.modified
    for evicted in out:
        assert not pager.eld(evicted, machine.allocate())
    assert [dynamic.word(offset) for offset in offsets] == wanted
    # What nobody may touch is still a hole.
    assert [machine.read(offset, 4096) for offset in offsets] == [
        bytes(4096),
        b"\xa5" * 4096,
        bytes(4096),
        bytes(4096),
    ]
    cpu.epc.check()
    # EWB has waited for the tracking; and each is accepted as if it had never been away.
    dynamic.enter()
    for offset, word in zip(offsets, wanted, strict=True):
        assert dynamic.eaccept(offset, word) == 0
    lp, regs = machine.logical_processor(), Registers()
    regs.rax, regs.rbx, regs.rcx = EENTER, dynamic.base + data + 0x1000, machine.AEP
    enclu(cpu, lp, regs)
    assert lp.inside


def test_a_range_goes_out_with_its_bits(dynamic: Dynamic) -> None:
    machine, cpu, pager = dynamic.machine, dynamic.cpu, dynamic.pager
    assert not dynamic.emodpr(machine.DATA, SECINFO_R)
    pages = [dynamic.page(machine.DATA + offset) for offset in (0, 0x1000)]
    for page in pages:
        assert pager.eblock(page) is LeafCode.NO_ERROR
    dynamic.track()
    code, done = paging.ewb_pages(cpu, pages, pager.va, [0, 1])
    assert (code, len(done)) == (LeafCode.NO_ERROR, 2)
    assert [pcmd[0] for _, _, pcmd in done] == [SECINFO_R | SECINFO_PR, RW]
    assert not cpu.epc.modified
    cpu.epc.check()
