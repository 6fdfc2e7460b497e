# SPDX-License-Identifier: Apache-2.0
"""AEX-Notify: an ERESUME that enters instead, EDECCSSA, and the flags that ask for it (SDM volume 3D)."""

from collections.abc import Callable
from typing import Any

import pytest

from softsgx.arch.attributes import (
    ATTRIBUTE_AEXNOTIFY,
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_MODE64BIT,
    TCS_AEXNOTIFY,
    TCS_DBGOPTIN,
)
from softsgx.arch.exceptions import PFEC_P, PFEC_SGX, PFEC_U, PFEC_W
from softsgx.arch.leaves import Enclu
from softsgx.arch.structures import Gprsgx
from softsgx.cpu import encls
from softsgx.cpu.model import DEFAULT_FEATURES, Model
from softsgx.cpu.registers import GPR_NAMES
from softsgx.cpu.transition import Event, aex, enclu
from softsgx.errors import Fault

ATTRIBUTES = ATTRIBUTE_MODE64BIT | ATTRIBUTE_DEBUG | ATTRIBUTE_AEXNOTIFY
AEP = 0x40_1000
RIP = 0x40_0FFD
INSIDE_RIP = 0x123
GPRSGX_SIZE = Gprsgx.SIZE
AEXNOTIFY_BYTE = Gprsgx.OFFSETS["aexnotify"]


class Notified:
    """A machine whose one thread is told of exits, and what a host and its enclave do with it."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.regs = machine.regs

    def leaf(self, leaf: Enclu, **changes: int) -> None:
        for name, value in ({"rax": int(leaf)} | changes).items():
            setattr(self.regs, name, value)
        enclu(self.machine.cpu, self.machine.lp, self.regs)

    def enter(self, leaf: Enclu = Enclu.EENTER, **changes: int) -> None:
        tcs = self.machine.BASE + self.machine.TCS
        operands = {"rbx": tcs, "rcx": AEP, "rip": RIP, "rsp": 0x7000, "rbp": 0x7100}
        self.leaf(leaf, **(operands | changes))

    def aex(self, event: Event | None = None) -> None:
        aex(self.machine.cpu, self.machine.lp, self.regs, event or Event())

    def interrupted(self) -> dict[str, int]:
        """Enter, and be interrupted with a value of its own in each register; return the values."""
        self.enter()
        for i, name in enumerate(GPR_NAMES):
            setattr(self.regs, name, 0xE000 + i)
        self.regs.rip, self.regs.rflags = self.machine.BASE + INSIDE_RIP, 0x246
        inside = self.regs.as_dict()
        self.aex()
        return inside

    def gprsgx_at(self, frame: int) -> int:
        return int(self.machine.SSA + 4096 * (frame + 1) - GPRSGX_SIZE)

    def gprsgx(self, frame: int) -> Gprsgx:
        return Gprsgx.decode(self.machine.read(self.gprsgx_at(frame), GPRSGX_SIZE))

    def ask(self, frame: int, value: int = 1) -> None:
        """Set the byte that asks for the notification, as the enclave does."""
        self.machine.write(self.gprsgx_at(frame) + AEXNOTIFY_BYTE, bytes([value]))

    @property
    def cssa(self) -> int:
        thread = next(iter(self.machine.secs.threads.values()))
        return int(thread.words[1])

    def fault(self, leaf: Enclu) -> Fault:
        """Run a leaf that must fault, and see that it changed nothing."""
        machine = self.machine
        run = self.leaf if leaf is Enclu.EDECCSSA else self.enter
        before = machine.read(machine.SSA, 0x4000), bytes(machine.lp.record), self.cssa
        with pytest.raises(Fault) as caught:
            run(leaf)
        assert (machine.read(machine.SSA, 0x4000), bytes(machine.lp.record), self.cssa) == before
        return caught.value


@pytest.fixture
def notified(machine: Any) -> Notified:
    machine.build(machine.tcs_bytes(flags=TCS_AEXNOTIFY), attributes=ATTRIBUTES)
    return Notified(machine)


def test_a_frame_that_does_not_ask_is_resumed(notified: Notified) -> None:
    inside = notified.interrupted()
    notified.ask(0, 0xFE)
    notified.enter(Enclu.ERESUME)
    assert notified.regs.as_dict() == inside
    assert notified.cssa == 0


@pytest.mark.leaf("ERESUME", "done")
def test_eresume_of_a_frame_that_asks_enters_with_the_next_one(notified: Notified) -> None:
    machine = notified.machine
    notified.interrupted()
    notified.ask(0)
    saved = notified.gprsgx(0)
    machine.xsave[160:176] = b"\x77" * 16
    xsave = bytes(machine.xsave)
    notified.enter(Enclu.ERESUME, rcx=AEP + 0x40, rdx=1, r15=2, rflags=0x206)
    expected = {
        "rip": machine.BASE + machine.CODE + 0x100,
        "rax": 1,
        "rcx": RIP + 3,
        "rdx": 1,
        "r15": 2,
        "rbx": machine.BASE + machine.TCS,
        "rsp": 0x7000,
        "rflags": 0x206,
        "fsbase": machine.BASE + machine.DATA,
        "gsbase": machine.BASE + machine.DATA + 0x1000,
    }
    assert {name: getattr(notified.regs, name) for name in expected} == expected
    assert machine.lp.inside
    assert notified.cssa == 1
    # The frame below is as it was, so is the extended state; the outer stack is in the frame above.
    assert notified.gprsgx(0) == saved
    assert bytes(machine.xsave) == xsave
    assert (notified.gprsgx(1).ursp, notified.gprsgx(1).urbp) == (0x7000, 0x7100)
    # EEXIT tells the AEP of this ERESUME.
    notified.leaf(Enclu.EEXIT, rbx=0x41_0000)
    assert notified.regs.rcx == AEP + 0x40


@pytest.mark.leaf("ERESUME", "#GP")
def test_eresume_that_notifies_wants_a_frame_above(notified: Notified) -> None:
    notified.interrupted()
    notified.enter()
    notified.aex()
    notified.ask(1)
    fault = notified.fault(Enclu.ERESUME)
    assert fault.vector == 13
    assert "NSSA" in fault.reason
    # What does not ask goes on from the last frame as ever.
    notified.ask(1, 0)
    notified.enter(Enclu.ERESUME)
    assert notified.cssa == 1


@pytest.mark.leaf("ERESUME", "#PF", "done")
def test_eresume_that_notifies_checks_the_frame_above(notified: Notified) -> None:
    machine = notified.machine
    notified.interrupted()
    notified.ask(0)
    above = machine.BASE + machine.SSA + 4096
    page = machine.table.pop(above)
    fault = notified.fault(Enclu.ERESUME)
    assert (fault.vector, fault.address, fault.error_code) == (14, above, PFEC_U | PFEC_W)
    machine.table[above] = page
    # What it does not restore it does not look at: RIP and the XSAVE header of the frame below.
    rip = notified.gprsgx_at(0) + Gprsgx.OFFSETS["rip"]
    machine.write(rip, (1 << 60).to_bytes(8, "little"))
    machine.write(machine.SSA + 520, b"\1")
    notified.enter(Enclu.ERESUME)
    assert notified.regs.rax == 1


def test_eresume_that_notifies_finds_the_tcs_inactive(notified: Notified) -> None:
    machine = notified.machine
    notified.interrupted()
    notified.ask(0)
    notified.enter()
    thread = next(iter(machine.secs.threads.values()))
    # Another thread that takes the same TCS, whose CSSA an entry does not change.
    other = Notified(machine)
    machine.lp = machine.logical_processor()
    assert thread.words[1] == 1
    assert "active" in other.fault(Enclu.ERESUME).reason


@pytest.mark.leaf("EDECCSSA", "done")
def test_edeccssa_makes_the_frame_below_the_current_one(notified: Notified) -> None:
    machine = notified.machine
    notified.interrupted()
    notified.ask(0)
    notified.enter(Enclu.ERESUME)
    notified.regs.rflags = 0x8D7
    before = notified.regs.as_dict() | {"rax": 9}
    xsave, memory = bytes(machine.xsave), machine.read(machine.SSA, 0x4000)
    notified.leaf(Enclu.EDECCSSA)
    # No register and no flag but RIP, no byte of a frame.
    assert notified.regs.as_dict() == before | {"rip": before["rip"] + 3}
    assert (bytes(machine.xsave), machine.read(machine.SSA, 0x4000)) == (xsave, memory)
    assert notified.cssa == 0
    assert machine.lp.inside
    # The next exit goes to frame 0, whose outer stack is that of the first entry.
    notified.regs.rip = machine.BASE + 0x777
    notified.aex(Event(6))
    assert (notified.gprsgx(0).rip, notified.cssa) == (machine.BASE + 0x777, 1)
    assert notified.regs.rsp == 0x7000


@pytest.mark.leaf("EDECCSSA", "#GP")
def test_edeccssa_wants_a_frame_below(notified: Notified) -> None:
    notified.enter()
    fault = notified.fault(Enclu.EDECCSSA)
    assert fault.vector == 13
    assert "CSSA is 0" in fault.reason


@pytest.mark.leaf("EDECCSSA", "#PF")
def test_edeccssa_checks_the_frame_below(notified: Notified) -> None:
    machine = notified.machine
    notified.interrupted()
    notified.enter()
    below = machine.BASE + machine.SSA
    page = machine.table.pop(below)
    fault = notified.fault(Enclu.EDECCSSA)
    assert (fault.vector, fault.address, fault.error_code) == (14, below, PFEC_U | PFEC_W)
    machine.table[below] = machine.table[below + 4096]
    fault = notified.fault(Enclu.EDECCSSA)
    violation = PFEC_U | PFEC_W | PFEC_P | PFEC_SGX
    assert (fault.vector, fault.address, fault.error_code) == (14, below, violation)
    machine.table[below] = page
    notified.leaf(Enclu.EDECCSSA)


def test_edeccssa_does_not_need_a_thread_that_is_notified(machine: Any) -> None:
    plain = Notified(machine.build())
    plain.interrupted()
    plain.enter()
    plain.leaf(Enclu.EDECCSSA)
    assert plain.cssa == 0


def test_edeccssa_is_a_leaf_of_the_inside(notified: Notified) -> None:
    fault = notified.fault(Enclu.EDECCSSA)
    assert fault.vector == 13
    assert "outside" in fault.reason


@pytest.mark.parametrize("leaf", [Enclu.EENTER, Enclu.ERESUME])
@pytest.mark.parametrize(("enclave", "tcs"), [(False, True), (True, False)])
def test_the_thread_and_its_enclave_must_agree(
    machine: Any, leaf: Enclu, enclave: bool, tcs: bool
) -> None:
    machine.build(
        machine.tcs_bytes(flags=TCS_AEXNOTIFY if tcs else 0),
        attributes=ATTRIBUTES if enclave else ATTRIBUTES & ~ATTRIBUTE_AEXNOTIFY,
    )
    notified = Notified(machine)
    fault = notified.fault(leaf)
    assert fault.vector == 13
    assert "AEXNOTIFY" in fault.reason
    # A debugger that has opted in may have it otherwise.
    flags = TCS_DBGOPTIN | (TCS_AEXNOTIFY if tcs else 0)
    address = machine.address(machine.table[machine.BASE + machine.TCS])
    encls.edbgwr(machine.cpu, address + 8, flags)
    notified.enter()
    assert machine.lp.inside


def test_the_flag_is_judged_before_the_enclave_is_ready(machine: Any) -> None:
    machine.create()
    machine.populate(machine.tcs_bytes(flags=TCS_AEXNOTIFY))
    assert "AEXNOTIFY" in Notified(machine).fault(Enclu.EENTER).reason


def test_a_processor_without_it_knows_neither_flag_nor_leaf(
    machine: Any, gp: Callable[[Callable[[], Any]], str]
) -> None:
    machine.cpu.model = Model(64 * 4096, features=DEFAULT_FEATURES - {"aex-notify"})
    assert "ATTRIBUTES" in gp(lambda: machine.create(attributes=ATTRIBUTES))
    machine.build(machine.tcs_bytes(flags=TCS_AEXNOTIFY))
    notified = Notified(machine)
    assert "reserved bits" in notified.fault(Enclu.EENTER).reason
    machine.secs.threads[machine.table[machine.BASE + machine.TCS]].flags = 0
    notified.enter()
    assert "not supported" in notified.fault(Enclu.EDECCSSA).reason
