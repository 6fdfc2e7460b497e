# SPDX-License-Identifier: Apache-2.0
"""Any order of entries, exits and what AEX-Notify does between them, against a model of a few lines."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from softsgx.arch.attributes import (
    ATTRIBUTE_AEXNOTIFY,
    ATTRIBUTE_MODE64BIT,
    TCS_AEXNOTIFY,
)
from softsgx.arch.leaves import Enclu
from softsgx.arch.structures import Gprsgx
from softsgx.arch.thread import TcsRecord
from softsgx.cpu.transition import Event, aex, enclu
from softsgx.errors import Fault

NSSA = 3
AEP = 0x40_1000
ENCLU_AT = 0x40_0FFD
GPRSGX_END = 4096 - Gprsgx.SIZE


class Thread(RuleBasedStateMachine):
    """One TCS of an enclave that is told of exits: CSSA, who is inside, and what each frame holds."""

    def __init__(self, machine: Any) -> None:
        super().__init__()
        self.machine = machine
        attributes = ATTRIBUTE_MODE64BIT | ATTRIBUTE_AEXNOTIFY
        machine.build(machine.tcs_bytes(nssa=NSSA, flags=TCS_AEXNOTIFY), attributes=attributes)
        self.inside = False
        self.cssa = 0
        # What an exit has left in each frame, and whether the frame asks to be told.
        self.rip = [0] * NSSA
        self.outer = [0] * NSSA
        self.asks = [False] * NSSA
        self.number = 0

    def _leaf(self, leaf: Enclu) -> bool:
        """Execute a leaf; tell whether it was no #GP."""
        regs = self.machine.regs
        before = regs.as_dict()
        regs.rax = int(leaf)
        if not self.inside:
            regs.rbx, regs.rcx, regs.rip = self.machine.BASE + self.machine.TCS, AEP, ENCLU_AT
            self.number += 1
            regs.rsp = 0x10_0000 + self.number
        try:
            enclu(self.machine.cpu, self.machine.lp, regs)
        except Fault as fault:
            refused = fault.vector
        else:
            return True
        assert refused == 13
        for name, value in before.items():
            setattr(regs, name, value)
        return False

    def _entered(self, frame: int) -> None:
        regs = self.machine.regs
        assert (regs.rax, regs.rcx) == (frame, ENCLU_AT + 3)
        assert regs.rip == self.machine.BASE + self.machine.CODE + 0x100
        self.inside, self.cssa = True, frame
        self.outer[frame] = regs.rsp

    @precondition(lambda self: not self.inside)
    @rule()
    def eenter(self) -> None:
        assert self._leaf(Enclu.EENTER) == (self.cssa < NSSA)
        if self.cssa < NSSA:
            self._entered(self.cssa)

    @precondition(lambda self: not self.inside)
    @rule()
    def eresume(self) -> None:
        told = self.cssa > 0 and self.asks[self.cssa - 1]
        done = self._leaf(Enclu.ERESUME)
        assert done == (0 < self.cssa < NSSA + (not told))
        if done and told:
            self._entered(self.cssa)
        elif done:
            self.inside, self.cssa = True, self.cssa - 1
            assert self.machine.regs.rip == self.rip[self.cssa]

    @precondition(lambda self: self.inside)
    @rule()
    def edeccssa(self) -> None:
        assert self._leaf(Enclu.EDECCSSA) == (self.cssa > 0)
        self.cssa = max(self.cssa - 1, 0)

    @precondition(lambda self: self.inside)
    @rule()
    def eexit(self) -> None:
        self.machine.regs.rbx = 0x41_0000
        assert self._leaf(Enclu.EEXIT)
        self.inside = False

    @precondition(lambda self: self.inside)
    @rule(vector=st.sampled_from([None, 6, 14]))
    def exit_asynchronously(self, vector: int | None) -> None:
        regs = self.machine.regs
        self.number += 1
        regs.rip = self.rip[self.cssa] = self.machine.BASE + self.number
        aex(self.machine.cpu, self.machine.lp, regs, Event(vector))
        assert (regs.rip, regs.rax, regs.rsp) == (AEP, Enclu.ERESUME, self.outer[self.cssa])
        self.inside, self.cssa = False, self.cssa + 1

    @rule(frame=st.integers(0, NSSA - 1), asks=st.booleans())
    def ask(self, frame: int, asks: bool) -> None:
        place = self.machine.SSA + 4096 * frame + GPRSGX_END + Gprsgx.OFFSETS["aexnotify"]
        self.machine.write(place, bytes([asks]))
        self.asks[frame] = asks

    @invariant()
    def the_tcs_tells_it(self) -> None:
        thread = next(iter(self.machine.secs.threads.values()))
        tcs = TcsRecord.decode(thread.words.cast("B"))
        assert (tcs.cssa, bool(tcs.state)) == (self.cssa, self.inside)
        assert self.machine.lp.inside == self.inside


def test_any_order_of_entries_and_exits(make_machine: Any) -> None:
    run_state_machine_as_test(
        lambda: Thread(make_machine()),
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
