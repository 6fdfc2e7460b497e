# SPDX-License-Identifier: Apache-2.0
"""What is brought in before it is touched: when, how much, and that it is never at anybody's cost."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG, SECINFO_W, SECINFO_X
from softsgx.arch.structures import Secs
from softsgx.driver.backing import BackingStalled
from softsgx.driver.platform import Platform
from softsgx.driver.read_ahead import READ_AHEAD_MOST, ReadAhead
from softsgx.driver.state import State

PAGE = 4096
EPC_PAGES = 512
PAGES = 1024
BASE = 0x7F00_0000_0000
RW = SECINFO_REG | SECINFO_R | SECINFO_W


def content(number: int) -> bytes:
    return number.to_bytes(8, "little") * (PAGE // 8)


class Walker:
    """An enclave of twice the EPC, and its touches as a fault would tell them."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        enclave = platform.open_enclave()
        secs = Secs.blank().replace(
            size=PAGES * PAGE, baseaddr=BASE, ssaframesize=1, attributes=6, xfrm=3
        )
        enclave.create(secs.encode())
        half = PAGES // 2
        enclave.add_pages(0, b"".join(map(content, range(half))), RW, measure=False)
        rest = b"".join(map(content, range(half, PAGES)))
        enclave.add_pages(half * PAGE, rest, RW | SECINFO_X, measure=False)
        self.encl = enclave.file.encl
        self.reclaimer = platform.driver.reclaimer
        # All of the enclave is out but the pages at its end, and room is free.
        self.reclaimer.make_room(64, self.encl, kill=False)

    def touch(self, number: int, end: int = PAGES) -> list[int]:
        """Touch a page that is out, and give the pages that have come with it."""
        before = self.resident()
        assert number not in before
        self.reclaimer.make_room(64, self.encl, kill=False)
        before = self.resident()
        address = BASE + number * PAGE
        assert self.encl.load_page_in_vma(address, 0, BASE + end * PAGE) is None
        return sorted(self.resident() - before)

    def resident(self) -> set[int]:
        first = BASE // PAGE
        epc_page = self.encl.page_array.epc_page
        return {page for page in range(PAGES) if epc_page(first + page) is not None}

    def check(self) -> None:
        """See that every page is what it was, and that the accounts are in order."""
        held = self.encl.backing.pages_held
        assert held == PAGES - len(self.resident())
        for number in range(PAGES):
            assert self.encl.read(BASE + number * PAGE, PAGE) == content(number)
        stats = self.encl.stats
        in_use = EPC_PAGES - self.platform.driver.epc.free_pages
        assert stats.resident == in_use
        self.platform.processor.epc.check()


@pytest.fixture
def walker() -> Iterator[Walker]:
    with Platform(epc=EPC_PAGES * PAGE, state=State.temporary()) as platform:
        walker = Walker(platform)
        yield walker
        walker.check()


def test_a_touch_alone_brings_in_its_page_alone(walker: Walker) -> None:
    for number in (5, 90, 40, 39, 41, 43):
        assert walker.touch(number) == [number]


def test_touches_in_order_bring_in_more_and_more(walker: Walker) -> None:
    assert walker.touch(10) == [10]
    assert walker.touch(11) == list(range(11, 16))
    assert walker.touch(16) == list(range(16, 25))
    assert walker.touch(25) == list(range(25, 25 + 17))
    walker.reclaimer.make_room(4 * READ_AHEAD_MOST, walker.encl, kill=False)
    assert walker.touch(42) == list(range(42, 43 + READ_AHEAD_MOST))
    assert walker.touch(43 + READ_AHEAD_MOST)[:1] == [43 + READ_AHEAD_MOST]
    assert walker.encl.stats.reloads >= 1 + 5 + 9 + 17 + READ_AHEAD_MOST
    # Out of order it begins anew.
    assert walker.touch(200) == [200]
    assert walker.touch(201) == list(range(201, 206))


def test_it_ends_where_the_mapping_or_the_kind_of_page_ends(walker: Walker) -> None:
    assert walker.touch(10) == [10]
    assert walker.touch(11, end=13) == [11, 12]
    last = PAGES // 2 - 1
    assert walker.touch(last - 1) == [last - 1]
    assert walker.touch(last) == [last]


def test_it_ends_at_a_page_that_is_there(walker: Walker) -> None:
    walker.touch(13)
    walker.touch(10)
    assert walker.touch(11) == [11, 12]


def test_it_takes_no_more_than_half_of_what_is_free(walker: Walker) -> None:
    walker.touch(10)
    free = walker.platform.driver.epc
    taken = [free.allocate_page() for _ in range(free.free_pages - 6)]
    evictions = walker.encl.stats.evictions
    before = walker.resident()
    assert walker.encl.load_page_in_vma(BASE + 11 * PAGE, 0, BASE + PAGES * PAGE) is None
    assert walker.resident() - before == {11, 12, 13}
    assert walker.encl.stats.evictions == evictions
    for page in taken:
        free.free(page)


def test_a_page_that_was_changed_ends_it_and_its_own_touch_tells(walker: Walker) -> None:
    walker.touch(10)
    backing: Any = walker.encl.backing
    right = os.pread(backing.fd, 1, 13 * PAGE)
    os.pwrite(backing.fd, bytes([right[0] ^ 1]), 13 * PAGE)
    assert walker.touch(11) == [11, 12]
    address = BASE + 13 * PAGE
    faults = walker.encl.stats.backing_faults
    end = BASE + PAGES * PAGE
    assert "MAC_COMPARE_FAIL" in str(walker.encl.load_page_in_vma(address, 0, end))
    assert walker.encl.stats.backing_faults == faults + 1
    os.pwrite(backing.fd, right, 13 * PAGE)
    assert walker.touch(13) == [13]
    assert walker.touch(14) == [14, 15, 16, 17, 18]


def test_a_store_that_does_not_answer_is_asked_for_the_page_alone(
    walker: Walker, monkeypatch: pytest.MonkeyPatch
) -> None:
    backing: Any = walker.encl.backing
    load, asked = backing.load_run, []

    def late(index: int, count: int) -> tuple[bytes, bytes]:
        asked.append((index, count))
        if count > 1:
            raise BackingStalled("not yet")
        return load(index, count)

    walker.touch(10)
    monkeypatch.setattr(backing, "load_run", late)
    assert walker.touch(11) == [11]
    assert asked == [(11, 5), (11, 1)]
    monkeypatch.undo()
    assert walker.touch(12) == list(range(12, 21))


def test_memory_that_cannot_be_had_costs_no_epc_page(
    walker: Walker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "no space")

    walker.touch(10)
    free = walker.platform.driver.epc.free_pages
    with monkeypatch.context() as patched:
        patched.setattr(walker.encl.elrange, "write", full)
        with pytest.raises(OSError, match="no space"):
            walker.encl.load_page_in_vma(BASE + 11 * PAGE, 0, BASE + PAGES * PAGE)
    assert walker.platform.driver.epc.free_pages == free
    assert walker.touch(11) == list(range(11, 16))


def test_of_a_small_epc_it_takes_a_sixteenth_at_most() -> None:
    with Platform(epc=64 * PAGE, state=State.temporary()) as platform:
        assert platform.driver.reclaimer.read_ahead._most == 64 // 16
        assert ReadAhead(platform.driver.reclaimer, most=0)._most == 0


def test_an_enclave_that_has_ended_is_forgotten() -> None:
    with Platform(epc=EPC_PAGES * PAGE, state=State.temporary()) as platform:
        other = Walker(platform)
        other.touch(10)
        assert platform.driver.reclaimer.read_ahead._walks
        other.encl.kill("the test wants it")
        assert not platform.driver.reclaimer.read_ahead._walks
        assert "killed" in str(
            other.encl.load_page_in_vma(BASE + 11 * PAGE, 0, BASE + PAGES * PAGE)
        )
        assert not platform.driver.reclaimer.read_ahead._walks
