# SPDX-License-Identifier: Apache-2.0
"""EENTER, EEXIT, ERESUME and AEX: the register tables, the checks in order, the records."""

from typing import Any

import pytest

from softsgx.arch.attributes import (
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_MODE64BIT,
    TCS_AEXNOTIFY,
    TCS_DBGOPTIN,
)
from softsgx.arch.exceptions import PFEC_P, PFEC_SGX, PFEC_U, PFEC_W
from softsgx.arch.secinfo import SECINFO_MODIFIED, SECINFO_PENDING, SECINFO_W
from softsgx.arch.structures import Exinfo, Gprsgx
from softsgx.arch.thread import STATE_TID_SHIFT, TcsRecord, ThreadRecord
from softsgx.cpu import encls
from softsgx.cpu.epc import EPCM_BLOCKED
from softsgx.cpu.registers import GPR_NAMES, RFLAGS_TF, Registers
from softsgx.cpu.transition import Event, aex, enclu
from softsgx.errors import Fault

EENTER, ERESUME, EEXIT = 2, 3, 4
AEP = 0x40_1000
RIP = 0x40_0FFD
HOST_FS, HOST_GS = 0x7FFF_F000, 0x7FFF_E000
# CF PF AF ZF SF DF OF set, and NT AC ID, IF, bit 1.
FLAGS = 0x244ED7


def entering(machine: Any, leaf: int = EENTER, **changes: int) -> Any:
    """Set the registers of a host that is about to execute ENCLU."""
    regs = machine.regs
    for i, name in enumerate(GPR_NAMES):
        setattr(regs, name, 0x1000 + i)
    regs.rax, regs.rbx, regs.rcx = leaf, machine.BASE + machine.TCS, AEP
    regs.rip, regs.rflags, regs.fsbase, regs.gsbase = RIP, FLAGS, HOST_FS, HOST_GS
    for name, value in changes.items():
        setattr(regs, name, value)
    return regs


def enter(machine: Any, leaf: int = EENTER, **changes: int) -> Any:
    regs = entering(machine, leaf, **changes)
    enclu(machine.cpu, machine.lp, regs)
    return regs


def thread_of(machine: Any) -> Any:
    return next(iter(machine.secs.threads.values()))


def tcs_record(machine: Any) -> TcsRecord:
    return TcsRecord.decode(thread_of(machine).words.cast("B"))


def thread_record(machine: Any) -> ThreadRecord:
    return ThreadRecord.decode(machine.lp.record)


def gprsgx(machine: Any, frame: int = 0) -> Gprsgx:
    return Gprsgx.decode(machine.read(machine.SSA + 4096 * (frame + 1) - 184, 184))


def exinfo(machine: Any, frame: int = 0) -> Exinfo:
    return Exinfo.decode(machine.read(machine.SSA + 4096 * (frame + 1) - 200, 16))


@pytest.fixture
def built(machine: Any) -> Any:
    return machine.build()


# -- EENTER and EEXIT ---------------------------------------------------------------------------


@pytest.mark.leaf("EENTER", "done")
def test_eenter_sets_what_the_manual_says_and_nothing_else(built: Any) -> None:
    machine = built
    before = entering(machine).as_dict()
    enclu(machine.cpu, machine.lp, machine.regs)
    assert machine.regs.as_dict() == before | {
        "rip": machine.BASE + machine.CODE + 0x100,
        "rax": 0,
        "rcx": RIP + 3,
        "fsbase": machine.BASE + machine.DATA,
        "gsbase": machine.BASE + machine.DATA + 0x1000,
    }
    assert machine.lp.inside
    frame = gprsgx(machine)
    assert (frame.ursp, frame.urbp) == (before["rsp"], before["rbp"])
    record = thread_record(machine)
    assert record == ThreadRecord(
        mode=1, selector=1, tid=0, tcs=machine.BASE + machine.TCS, elrange_base=machine.BASE,
        elrange_size=machine.SIZE, host_fsbase=HOST_FS, host_gsbase=HOST_GS, aep=AEP,
        host_rflags=FLAGS, tcs_record=0, taken=0, watch=0, rbx=0, flags=0, entered=0, left=0, site=0,
    )  # fmt: skip
    tcs = tcs_record(machine)
    assert (tcs.state, tcs.cssa, tcs.aep, tcs.nssa) == (1, 0, AEP, 2)
    assert (tcs.linaddr, tcs.elrange_base) == (machine.BASE + machine.TCS, machine.BASE)


def test_the_tcs_record_names_its_owner(built: Any) -> None:
    built.lp.words[ThreadRecord.OFFSETS["tid"] // 4] = 4711
    enter(built)
    assert tcs_record(built).state >> STATE_TID_SHIFT == 4711
    enter_exit(built)
    assert tcs_record(built).state == 0
    assert thread_record(built).tid == 4711


def enter_exit(machine: Any) -> None:
    machine.regs.rax, machine.regs.rbx = EEXIT, 0x41_0000
    enclu(machine.cpu, machine.lp, machine.regs)


@pytest.mark.leaf("EEXIT", "done")
def test_eexit_changes_rip_rcx_and_the_bases_only(built: Any) -> None:
    machine = built
    regs = enter(machine)
    for i, name in enumerate(GPR_NAMES):
        setattr(regs, name, 0xE000 + i)
    regs.rax, regs.rbx, regs.rip = EEXIT, 0x41_0000, machine.BASE + 0x500
    regs.fsbase, regs.gsbase, regs.rflags = 1, 2, 0x246
    before = regs.as_dict()
    enclu(machine.cpu, machine.lp, regs)
    changed = {"rip": 0x41_0000, "rcx": AEP, "fsbase": HOST_FS, "gsbase": HOST_GS}
    assert regs.as_dict() == before | changed
    assert not machine.lp.inside
    assert tcs_record(machine).state == 0
    assert tcs_record(machine).cssa == 0
    record = thread_record(machine)
    assert (record.mode, record.selector) == (0, 0)


def test_the_leaf_is_in_eax(built: Any) -> None:
    enter(built, rax=0xDEAD_BEEF_0000_0002)
    assert built.lp.inside


def test_leaves_on_the_wrong_side_are_refused(built: Any, gp: Any) -> None:
    for leaf in (0, 1, EEXIT):
        assert "outside" in gp(lambda n=leaf: enter(built, n))
    enter(built)
    for leaf in (EENTER, ERESUME):
        built.regs.rax = leaf
        assert "inside" in gp(lambda: enclu(built.cpu, built.lp, built.regs))
    for leaf in (10, 0x10, 0xFFFF_FFFF):
        built.regs.rax = leaf
        assert "not supported" in gp(lambda: enclu(built.cpu, built.lp, built.regs))


def test_a_trap_flag_is_suppressed_inside_and_comes_back(built: Any) -> None:
    regs = enter(built, rflags=FLAGS | RFLAGS_TF)
    assert not regs.rflags & RFLAGS_TF
    enter_exit(built)
    assert regs.rflags == FLAGS | RFLAGS_TF


def test_a_trap_flag_that_the_enclave_set_ends_with_it(built: Any) -> None:
    regs = enter(built, rflags=FLAGS)
    regs.rflags |= RFLAGS_TF
    enter_exit(built)
    assert regs.rflags == FLAGS


def test_a_debugger_that_opted_in_keeps_the_trap_flag(built: Any) -> None:
    tcs = built.address(built.table[built.BASE + built.TCS])
    encls.edbgwr(built.cpu, tcs + 8, TCS_DBGOPTIN)
    regs = enter(built, rflags=FLAGS | RFLAGS_TF)
    assert regs.rflags & RFLAGS_TF
    regs.rflags &= ~RFLAGS_TF
    enter_exit(built)
    assert not regs.rflags & RFLAGS_TF


def test_a_debugger_that_opted_in_steps_by_the_trap_flag_at_eresume(built: Any) -> None:
    tcs = built.address(built.table[built.BASE + built.TCS])
    encls.edbgwr(built.cpu, tcs + 8, TCS_DBGOPTIN)
    in_enclave(built)
    aex(built.cpu, built.lp, built.regs, Event())
    assert not gprsgx(built).rflags & RFLAGS_TF
    assert enter(built, ERESUME, rflags=FLAGS | RFLAGS_TF).rflags & RFLAGS_TF
    built.regs.rflags &= ~RFLAGS_TF
    aex(built.cpu, built.lp, built.regs, Event())
    assert not built.regs.rflags & RFLAGS_TF
    assert not enter(built, ERESUME, rflags=FLAGS).rflags & RFLAGS_TF


@pytest.mark.leaf("EEXIT", "#GP")
def test_eexit_wants_a_canonical_target(built: Any, gp: Any) -> None:
    enter(built)
    built.regs.rax, built.regs.rbx = EEXIT, 1 << 47
    assert "canonical" in gp(lambda: enclu(built.cpu, built.lp, built.regs))
    assert built.lp.inside


def untouched(machine: Any, leaf: int = EENTER, **changes: int) -> Fault:
    """Run a leaf that must fault, and see that it changed nothing."""
    before = entering(machine, leaf, **changes).as_dict()
    records = thread_record(machine), tcs_record(machine)
    memory = machine.read(machine.SSA, 0x4000)
    xsave = bytes(machine.xsave)
    with pytest.raises(Fault) as caught:
        enclu(machine.cpu, machine.lp, machine.regs)
    assert machine.regs.as_dict() == before
    assert records == (thread_record(machine), tcs_record(machine))
    assert memory == machine.read(machine.SSA, 0x4000)
    assert xsave == machine.xsave
    return caught.value


def as_gp(fault: Fault) -> str:
    assert fault.vector == 13
    return fault.reason


def as_pf(fault: Fault) -> tuple[int | None, int]:
    assert fault.vector == 14
    return fault.address, fault.error_code


@pytest.mark.parametrize(
    "leaf",
    [
        pytest.param(EENTER, marks=pytest.mark.leaf("EENTER", "#GP", "#PF")),
        pytest.param(ERESUME, marks=pytest.mark.leaf("ERESUME", "#GP", "#PF")),
    ],
)
def test_the_checks_of_the_tcs_in_order(built: Any, leaf: int) -> None:
    machine = built
    if leaf == ERESUME:
        enter(machine)
        aex(machine.cpu, machine.lp, machine.regs, Event())
    tcs = machine.BASE + machine.TCS
    hole = machine.BASE + 0x80000
    violation = PFEC_SGX | PFEC_P | PFEC_U
    assert "aligned" in as_gp(untouched(machine, leaf, rbx=tcs + 8, rcx=1 << 63))
    assert as_pf(untouched(machine, leaf, rbx=hole, rcx=1 << 63)) == (hole, PFEC_U)
    assert "AEP" in as_gp(untouched(machine, leaf, rbx=machine.BASE, rcx=1 << 63))
    assert as_pf(untouched(machine, leaf, rbx=machine.BASE)) == (machine.BASE, violation)
    page = machine.table[tcs]
    machine.cpu.epc.lock(page)
    assert "in use" in as_gp(untouched(machine, leaf))
    machine.cpu.epc.unlock((page,))
    for bit in (EPCM_BLOCKED, SECINFO_PENDING, SECINFO_MODIFIED):
        machine.cpu.epc.words[page] |= bit
        assert as_pf(untouched(machine, leaf)) == (tcs, violation)
        machine.cpu.epc.words[page] &= ~bit
    # A TCS that the page tables show elsewhere.
    machine.table[hole] = page
    assert as_pf(untouched(machine, leaf, rbx=hole)) == (hole, violation)
    thread = thread_of(machine)
    for name, value, reason in (
        ("ossa", 0x2008, "OSSA"),
        ("ofsbasgx", 8, "OFSBASGX"),
        ("ogsbasgx", 8, "OFSBASGX"),
        ("fsbase", 1 << 47, "FS or GS"),
        ("gsbase", 1 << 47, "FS or GS"),
        ("flags", TCS_AEXNOTIFY, "FLAGS"),
        ("flags", 1 << 63, "FLAGS"),
    ):
        good = getattr(thread, name)
        setattr(thread, name, value)
        assert reason in as_gp(untouched(machine, leaf))
        setattr(thread, name, good)
    machine.lp.xcr0 = 1
    assert "XCR0" in as_gp(untouched(machine, leaf))


def test_an_enclave_that_is_not_initialised_is_not_entered(machine: Any) -> None:
    machine.create(attributes=0, baseaddr=0x7F00_0000, size=1 << 20)
    machine.create()
    machine.populate()
    assert "not initialised" in as_gp(untouched(machine))


def test_a_32_bit_enclave_is_not_entered(make_machine: Any) -> None:
    machine = make_machine().build()
    machine.secs.attributes &= ~ATTRIBUTE_MODE64BIT
    assert "32-bit" in as_gp(untouched(machine))


@pytest.mark.leaf("EENTER", "#GP", "done")
@pytest.mark.leaf("ERESUME", "#GP")
def test_cssa_and_nssa_bound_the_frames(built: Any) -> None:
    machine = built
    assert "no frame" in as_gp(untouched(machine, ERESUME))
    for _ in range(machine.NSSA):
        enter(machine)
        aex(machine.cpu, machine.lp, machine.regs, Event())
    assert tcs_record(machine).cssa == machine.NSSA
    assert "NSSA" in as_gp(untouched(machine, EENTER))
    # What only a program that writes the shared record can bring about.
    thread_of(machine).words[TcsRecord.OFFSETS["cssa"] // 4] = 0xFFFF_FFFF
    assert "NSSA" in as_gp(untouched(machine, EENTER))
    assert "no frame" in as_gp(untouched(machine, ERESUME))


@pytest.mark.parametrize(
    "leaf",
    [
        pytest.param(EENTER, marks=pytest.mark.leaf("EENTER", "#PF")),
        pytest.param(ERESUME, marks=pytest.mark.leaf("ERESUME", "#PF")),
    ],
)
def test_the_pages_of_the_ssa_frame_are_checked(built: Any, leaf: int) -> None:
    machine = built
    enter(machine)
    if leaf == ERESUME:
        aex(machine.cpu, machine.lp, machine.regs, Event())
    else:
        enter_exit(machine)
    frame = machine.BASE + machine.SSA
    page = machine.table.pop(frame)
    assert as_pf(untouched(machine, leaf)) == (frame, PFEC_U | PFEC_W)
    violation = PFEC_SGX | PFEC_P | PFEC_U | PFEC_W
    machine.table[frame] = machine.table[frame + 4096]
    assert as_pf(untouched(machine, leaf)) == (frame, violation)
    machine.table[frame] = page
    words = machine.cpu.epc.words
    for bit in (EPCM_BLOCKED, SECINFO_PENDING, SECINFO_MODIFIED, SECINFO_W):
        words[page] ^= bit
        assert as_pf(untouched(machine, leaf)) == (frame, violation)
        words[page] ^= bit
    machine.cpu.epc.owners[page] += 1
    assert as_pf(untouched(machine, leaf)) == (frame, violation)


def test_only_the_xsave_and_gprsgx_pages_of_a_long_frame_are_checked(machine: Any) -> None:
    machine.build(machine.tcs_bytes(nssa=1), ssaframesize=4)
    first = machine.BASE + machine.SSA
    del machine.table[first + 4096], machine.table[first + 8192]
    enter(machine)
    enter_exit(machine)
    last = first + 3 * 4096
    gprsgx_at = last + 4096 - 184
    page = machine.table.pop(last)
    assert as_pf(untouched(machine)) == (gprsgx_at, PFEC_U | PFEC_W)
    machine.table[last] = machine.table[first]
    violation = PFEC_SGX | PFEC_P | PFEC_U | PFEC_W
    assert as_pf(untouched(machine)) == (gprsgx_at, violation)
    machine.table[last] = page
    enter(machine)


@pytest.mark.leaf("EENTER", "#GP")
def test_an_active_tcs_is_not_entered_twice(built: Any) -> None:
    machine = built
    enter(machine)
    other = machine.logical_processor()
    regs = Registers(rax=EENTER, rbx=machine.BASE + machine.TCS, rcx=AEP)
    with pytest.raises(Fault, match="active"):
        enclu(machine.cpu, other, regs)
    assert not other.inside
    enter_exit(machine)
    enclu(machine.cpu, other, regs)
    assert other.inside


def test_the_entry_point_must_be_canonical(machine: Any) -> None:
    machine.build(machine.tcs_bytes(oentry=1 << 47))
    assert "entry point" in as_gp(untouched(machine))


# -- AEX and ERESUME ----------------------------------------------------------------------------


def in_enclave(machine: Any) -> Any:
    """Enter and give every register a value of the enclave's own."""
    regs = enter(machine)
    for i, name in enumerate(GPR_NAMES):
        setattr(regs, name, 0xEEEE_0000 + i)
    regs.rip, regs.rflags = machine.BASE + 0x123, FLAGS
    regs.fsbase, regs.gsbase = machine.BASE + 0x6666, machine.BASE + 0x7777
    return regs


def test_aex_gives_the_synthetic_state(built: Any) -> None:
    machine = built
    regs = in_enclave(machine)
    inside = regs.as_dict()
    aex(machine.cpu, machine.lp, regs, Event(6))
    zero = dict.fromkeys(GPR_NAMES, 0)
    assert regs.as_dict() == zero | {
        "rax": ERESUME,
        "rbx": machine.BASE + machine.TCS,
        "rcx": AEP,
        "rsp": 0x1000 + GPR_NAMES.index("rsp"),
        "rbp": 0x1000 + GPR_NAMES.index("rbp"),
        "rip": AEP,
        # CF PF AF ZF SF OF and RF are cleared; IF, DF, NT, AC, ID stay.
        "rflags": 0x244602,
        "fsbase": HOST_FS,
        "gsbase": HOST_GS,
    }
    saved = gprsgx(machine)
    for name in (*GPR_NAMES, "rip", "fsbase", "gsbase"):
        assert getattr(saved, name) == inside[name]
    # RF as in a fault's frame.
    assert saved.rflags == FLAGS | 1 << 16
    tcs = tcs_record(machine)
    assert (tcs.state, tcs.cssa) == (0, 1)
    assert not machine.lp.inside


def test_aex_gives_the_trap_flag_of_the_entry_back(built: Any) -> None:
    regs = enter(built, rflags=FLAGS | RFLAGS_TF)
    regs.rflags |= RFLAGS_TF
    aex(built.cpu, built.lp, regs, Event())
    assert regs.rflags == 0x244602 | RFLAGS_TF
    assert gprsgx(built).rflags == FLAGS


VALID = 1 << 31


@pytest.mark.parametrize(
    ("vector", "exitinfo"),
    [
        (None, 0),
        (0, VALID | 0x300),
        (1, VALID | 0x301),
        (3, VALID | 0x603),
        (5, VALID | 0x305),
        (6, VALID | 0x306),
        (16, VALID | 0x310),
        (17, VALID | 0x311),
        (19, VALID | 0x313),
        (13, 0),
        (14, 0),
        (2, 0),
        (7, 0),
    ],
)
def test_exitinfo_without_exinfo(built: Any, vector: int | None, exitinfo: int) -> None:
    machine = built
    in_enclave(machine)
    marker = b"\xaa" * 16
    machine.write(machine.SSA + 4096 - 200, marker)
    aex(machine.cpu, machine.lp, machine.regs, Event(vector, 0x77, 0x1234))
    assert gprsgx(machine).exitinfo == exitinfo
    assert machine.read(machine.SSA + 4096 - 200, 16) == marker


def test_exinfo_tells_page_faults_and_general_protection(make_machine: Any) -> None:
    machine = make_machine().build(miscselect=1)
    in_enclave(machine)
    aex(machine.cpu, machine.lp, machine.regs, Event(14, 0x8007, machine.BASE + 0x9123))
    assert gprsgx(machine).exitinfo == VALID | 0x30E
    assert exinfo(machine) == Exinfo(maddr=machine.BASE + 0x9123, errcd=0x8007)
    in_enclave(machine)
    aex(machine.cpu, machine.lp, machine.regs, Event(13, 0x18, 0x5555))
    assert gprsgx(machine, 1).exitinfo == VALID | 0x30D
    assert exinfo(machine, 1) == Exinfo(maddr=0, errcd=0x18)


def test_an_interrupt_shows_rflags_as_they_were(built: Any) -> None:
    in_enclave(built)
    aex(built.cpu, built.lp, built.regs, Event())
    assert gprsgx(built).rflags == FLAGS


@pytest.mark.leaf("ERESUME", "done")
def test_eresume_goes_on_where_the_aex_was(built: Any) -> None:
    machine = built
    inside = in_enclave(machine).as_dict()
    aex(machine.cpu, machine.lp, machine.regs, Event())
    regs = enter(machine, ERESUME, rcx=AEP + 0x100)
    assert regs.as_dict() == inside
    assert machine.lp.inside
    tcs = tcs_record(machine)
    assert (tcs.state, tcs.cssa, tcs.aep) == (1, 0, AEP + 0x100)
    # EEXIT gives the AEP of the last ERESUME, AEX its bases.
    enter_exit(machine)
    assert regs.rcx == AEP + 0x100


def test_eresume_takes_what_the_enclave_wrote_into_the_ssa(built: Any) -> None:
    machine = built
    in_enclave(machine)
    aex(machine.cpu, machine.lp, machine.regs, Event(6))
    frame = gprsgx(machine).replace(
        rip=machine.BASE + 0x999, rax=0x55, rsp=0x66, rflags=0xFFFF_FFFF_FFFF_FFFF, gsbase=0x77000
    )
    machine.write(machine.SSA + 4096 - 184, frame.encode())
    regs = enter(machine, ERESUME, rflags=0x3202, fsbase=5, gsbase=6)
    assert (regs.rip, regs.rax, regs.rsp) == (machine.BASE + 0x999, 0x55, 0x66)
    assert regs.gsbase == 0x77000
    # CF PF AF ZF SF DF OF NT RF AC ID from the frame; TF 0; IF and IOPL as they were.
    assert regs.rflags == 0x3202 | 0x254CD5
    assert thread_record(machine).host_gsbase == 6


@pytest.mark.leaf("ERESUME", "#GP")
def test_eresume_checks_the_frame(built: Any) -> None:
    machine = built
    in_enclave(machine)
    aex(machine.cpu, machine.lp, machine.regs, Event())
    good = gprsgx(machine)
    place = machine.SSA + 4096 - 184
    for name, reason in (("rip", "RIP"), ("fsbase", "FSBASE"), ("gsbase", "FSBASE")):
        machine.write(place, good.replace(**{name: 1 << 60}).encode())
        assert reason in as_gp(untouched(machine, ERESUME))
    machine.write(place, good.encode())
    for offset, value, reason in (
        (512, b"\4", "XSTATE_BV"),
        (519, b"\x80", "XSTATE_BV"),
        (520, b"\1", "header"),
        (527, b"\x80", "header"),
        (535, b"\1", "header"),
        (26, b"\1", "MXCSR"),
    ):
        old = machine.read(machine.SSA + offset, 1)
        machine.write(machine.SSA + offset, value)
        assert reason in as_gp(untouched(machine, ERESUME))
        machine.write(machine.SSA + offset, old)
    machine.write(machine.SSA + 536, b"\1" * 40)
    enter(machine, ERESUME)
    assert machine.lp.inside


def test_a_nested_entry_uses_the_next_frame(built: Any) -> None:
    machine = built
    inner = in_enclave(machine).as_dict()
    aex(machine.cpu, machine.lp, machine.regs, Event(6))
    regs = enter(machine, rsp=0xAAA0, rbp=0xBBB0)
    assert regs.rax == 1
    assert (gprsgx(machine, 1).ursp, gprsgx(machine, 1).urbp) == (0xAAA0, 0xBBB0)
    assert gprsgx(machine, 0).ursp == 0x1000 + GPR_NAMES.index("rsp")
    regs.rip = 0x1111
    aex(machine.cpu, machine.lp, regs, Event())
    assert (regs.rsp, tcs_record(machine).cssa) == (0xAAA0, 2)
    assert enter(machine, ERESUME).rip == 0x1111
    enter_exit(machine)
    assert tcs_record(machine).cssa == 1
    regs = enter(machine, ERESUME)
    assert regs.as_dict() == inner | {"rflags": FLAGS | 1 << 16}


def test_aexnotify_byte_survives_an_aex(built: Any) -> None:
    machine = built
    in_enclave(machine)
    machine.write(machine.SSA + 4096 - 184 + 167, b"\1")
    aex(machine.cpu, machine.lp, machine.regs, Event())
    assert gprsgx(machine).aexnotify == 1


def test_a_dead_thread_leaves_its_tcs_free(built: Any) -> None:
    machine = built
    enter(machine)
    machine.cpu.thread_gone(machine.lp)
    tcs = tcs_record(machine)
    assert (tcs.state, tcs.cssa) == (0, 1)
    assert not machine.lp.inside
    machine.cpu.thread_gone(machine.lp)
    assert tcs_record(machine).cssa == 1


def test_aex_ignores_a_cssa_that_the_program_wrote(built: Any) -> None:
    machine = built
    in_enclave(machine)
    thread_of(machine).words[TcsRecord.OFFSETS["cssa"] // 4] = 0x7FFF_FFFF
    aex(machine.cpu, machine.lp, machine.regs, Event(6))
    assert tcs_record(machine).cssa == 1
    assert gprsgx(machine).rip == machine.BASE + 0x123


def test_the_records_may_be_given_from_outside(make_machine: Any) -> None:
    machine = make_machine()
    made = {}

    def record(eid: int, linaddr: int) -> memoryview:
        made[eid, linaddr] = bytearray(256)
        return memoryview(made[eid, linaddr])

    machine.cpu.tcs_records = record
    machine.build()
    buffer = made[machine.secs.eid, machine.BASE + machine.TCS]
    enter(machine)
    assert TcsRecord.decode(buffer).state == 1


def test_debug_attribute_does_not_matter_to_entering(make_machine: Any) -> None:
    machine = make_machine().build(attributes=ATTRIBUTE_MODE64BIT)
    assert not machine.secs.attributes & ATTRIBUTE_DEBUG
    enter(machine)
    assert machine.lp.inside
