# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to the pages of a running enclave, and in whatever order: each is what a model of it says."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from test_sgx2 import EACCEPT, EMODPE, HOLE, MODIFY, PAGE, REMOVE, RESTRICT, Running

from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import (
    PT_TRIM,
    SECINFO_MODIFIED,
    SECINFO_PENDING,
    SECINFO_PR,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_TRIM,
    SECINFO_W,
)
from softsgx.driver.platform import Platform
from softsgx.driver.state import State
from softsgx.driver.vma import PROT_READ, PROT_WRITE
from softsgx.errors import Fault

RW = SECINFO_R | SECINFO_W
PAGES = 3
MISMATCH = LeafCode.PAGE_ATTRIBUTES_MISMATCH
ABSENT, PENDING, REGULAR, TRIMMED, ACCEPTED = range(5)

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                # The first steps of a page's life come more often, that the later ones have a page.
                *("touch", "touch", "accept", "accept", "accept", "write", "restrict"),
                *("accept_restricted", "extend", "trim", "accept_trim", "accept_trim", "remove"),
                "evict",
            ]
        ),
        st.integers(0, PAGES - 1),
        st.sampled_from([0, SECINFO_R, RW]),
    ),
    min_size=20,
    max_size=60,
)


class Page:
    """What a page is to be."""

    def __init__(self) -> None:
        self.state = ABSENT
        self.allowed = 0
        self.contents = 0


class Model:
    """A running enclave, and what each page of its hole is to be."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.encl = running.encl
        self.pages = [Page() for _ in range(PAGES)]
        self.written = 0

    def leaf(self, number: int, offset: int, flags: int) -> int | None:
        """Execute a leaf with all that it needs in the EPC; None for a fault."""
        needed = self.encl.page_array.find((self.encl.base + offset) // PAGE)
        self.running.bring_in(offset if needed is not None else 0)
        try:
            return self.running.leaf(number, offset, flags)
        except Fault:
            return None

    def step(self, what: str, number: int, wanted: int) -> None:
        running, page, offset = self.running, self.pages[number], HOLE + number * PAGE
        state = page.state
        if what == "evict":
            while self.encl.reclaimer.reclaim_pages():
                pass
        elif what == "touch":
            assert running.augment(offset) is None
            page.state = PENDING if state == ABSENT else state
        elif what == "accept":
            code = self.leaf(EACCEPT, offset, SECINFO_REG | RW | SECINFO_PENDING)
            assert code == {ABSENT: None, PENDING: 0}.get(state, MISMATCH)
            if state == PENDING:
                page.state, page.allowed, page.contents = REGULAR, RW, 0
        elif what == "write" and state == REGULAR and page.allowed & SECINFO_W:
            self.written += 1
            page.contents = self.written
            running.bring_in(offset)
            self.encl.elrange.write(self.encl.base + offset, self.written.to_bytes(8, "little"))
        elif what == "restrict":
            self.restrict(page, offset, wanted)
        elif what == "accept_restricted":
            code = self.leaf(EACCEPT, offset, SECINFO_REG | page.allowed | SECINFO_PR)
            assert code == {ABSENT: None, REGULAR: 0}.get(state, MISMATCH)
        elif what == "extend":
            done = self.leaf(EMODPE, offset, RW)
            assert done == (0 if state == REGULAR else None)
            page.allowed |= RW if state == REGULAR else 0
        elif what == "trim":
            code = LeafCode.PAGE_NOT_MODIFIABLE
            expected = {
                ABSENT: ("EFAULT", 0, 0),
                PENDING: ("EFAULT", 0, code),
                REGULAR: ("", PAGE, 0),
            }
            told = running.ioctl(MODIFY, offset=offset, page_type=PT_TRIM)
            assert told == expected.get(state, ("EINVAL", 0, 0))
            page.state = TRIMMED if state == REGULAR else state
        elif what == "accept_trim":
            accepted = self.leaf(EACCEPT, offset, SECINFO_TRIM | SECINFO_MODIFIED)
            assert accepted == {ABSENT: None, TRIMMED: 0}.get(state, MISMATCH)
            page.state = ACCEPTED if state == TRIMMED else state
        elif what == "remove":
            expected = {ABSENT: ("EFAULT", 0, 0), ACCEPTED: ("", PAGE, 0)}
            told = running.ioctl(REMOVE, offset=offset)
            assert told == expected.get(state, ("EPERM", 0, 0))
            page.state = ABSENT if state == ACCEPTED else state

    def restrict(self, page: Page, offset: int, wanted: int) -> None:
        code = LeafCode.PAGE_NOT_MODIFIABLE
        expected = {
            ABSENT: ("EFAULT", 0, 0),
            PENDING: ("EFAULT", 0, code),
            REGULAR: ("", PAGE, 0),
        }
        told = self.running.ioctl(RESTRICT, offset=offset, permissions=wanted)
        assert told == expected.get(page.state, ("EINVAL", 0, 0))
        if page.state == REGULAR:
            page.allowed &= wanted

    def check(self) -> None:
        encl, epc = self.encl, self.running.cpu.epc
        epc.check()
        base = encl.base + HOLE
        prot = PROT_READ | PROT_WRITE
        touchable = {
            at: given
            for low, high, given in encl.touchable(base, base + PAGES * PAGE, prot)
            for at in range(low, high, PAGE)
        }
        unwritable = {
            at
            for low, high in encl.unwritable(base, base + PAGES * PAGE)
            for at in range(low, high, PAGE)
        }
        for number, page in enumerate(self.pages):
            at = base + number * PAGE
            run = encl.page_array.find(at // PAGE)
            assert (run is None) == (page.state == ABSENT)
            seen = page.state == REGULAR and encl.translate(at) is not None
            # SECINFO's R and W are PROT_*'s.
            assert touchable.get(at, 0) == (page.allowed if seen else 0)
            assert (at in unwritable) == (page.state == REGULAR and not page.allowed & SECINFO_W)
            if run is not None:
                assert run.hidden == (page.state != REGULAR)
            # A hole is a hole, and what was written is there.
            contents = page.contents.to_bytes(8, "little")
            if page.state == REGULAR:
                assert encl.read(at, 8) == contents
            else:
                assert encl.elrange.read(at, PAGE) == bytes(PAGE)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_each_page_is_what_was_made_of_it(bench_of: Any, steps: list[tuple[str, int, int]]) -> None:
    with Platform(epc=256 * 4096, state=State.temporary()) as platform:
        running = Running(bench_of(platform))
        model = Model(running)
        for step in steps:
            model.step(*step)
            model.check()
        running.close()
        assert platform.driver.epc.free_pages == platform.driver.epc.total
