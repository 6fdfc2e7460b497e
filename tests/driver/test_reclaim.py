# SPDX-License-Identifier: Apache-2.0
"""Enclaves that are larger than the EPC: which pages go, where they are meanwhile, and that they come back."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG, SECINFO_W
from softsgx.arch.structures import Secs
from softsgx.driver.backing import Evicted, KernelBacking, NoBacking
from softsgx.driver.local import LocalEnclave
from softsgx.driver.platform import Platform
from softsgx.driver.policy import Fifo, TwoQueues
from softsgx.driver.state import State
from softsgx.driver.va_pages import VaPages
from softsgx.errors import DriverError
from softsgx.image.measurement import Measurement

PAGE = 4096
EPC_PAGES = 64
PAGES = 8 * EPC_PAGES
BASE = 0x7F00_0000_0000
RW = SECINFO_REG | SECINFO_R | SECINFO_W


def content(number: int) -> bytes:
    return number.to_bytes(8, "little") * (PAGE // 8)


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform(epc=EPC_PAGES * PAGE, state=State.temporary()) as platform:
        yield platform
        platform.processor.epc.check()


def create(platform: Platform, pages: int, base: int = BASE) -> LocalEnclave:
    enclave = platform.open_enclave()
    size = 1 << (pages * PAGE - 1).bit_length()
    secs = Secs.blank().replace(size=size, baseaddr=base, ssaframesize=1, attributes=6, xfrm=3)
    enclave.create(secs.encode())
    return enclave


def build(platform: Platform, pages: int, base: int = BASE) -> LocalEnclave:
    enclave = create(platform, pages, base)
    enclave.add_pages(0, b"".join(map(content, range(pages))), RW, measure=False)
    return enclave


def read(enclave: LocalEnclave, number: int) -> bytes:
    encl = enclave.file.encl
    return encl.read(encl.base + number * PAGE, PAGE)


def resident(enclave: LocalEnclave) -> set[int]:
    encl = enclave.file.encl
    first = encl.base // PAGE
    return {
        page - first
        for page in range(first, first + PAGES)
        if encl.page_array.epc_page(page) is not None
    }


def check_accounts(platform: Platform) -> None:
    in_use = sum(encl.stats.resident for encl in platform.driver.stats.live)
    assert in_use == EPC_PAGES - platform.driver.epc.free_pages
    for encl in platform.driver.stats.live:
        evicted = sum(1 for run in encl.page_array.runs() for where in run.epc if where < 0)
        slots = [
            slot
            for page in encl.va_pages.pages
            for slot in memoryview(platform.processor.epc.contents[page]).cast("Q")
            if slot
        ]
        assert len(slots) == evicted + (encl.created and encl.secs_page is None and not encl.dead)
        assert encl.backing.pages_held == len(slots)


def test_everything_comes_back_in_any_order(platform: Platform) -> None:
    order = random.Random(4)  # noqa: S311 - the same every time
    one, two = build(platform, PAGES), build(platform, PAGES, 2 * BASE % (1 << 46))
    for _ in range(2 * PAGES):
        enclave, number = order.choice((one, two)), order.randrange(PAGES)
        assert read(enclave, number) == content(number)
    check_accounts(platform)
    assert one.file.encl.stats.evictions > PAGES
    one.close()
    check_accounts(platform)
    assert all(read(two, number) == content(number) for number in range(PAGES))


def test_what_was_written_comes_back(platform: Platform) -> None:
    enclave = build(platform, PAGES)
    encl = enclave.file.encl
    for number in range(0, PAGES, 3):
        assert read(enclave, number) == content(number)
        encl.elrange.write(encl.base + number * PAGE, content(~number & 0xFFFF))
    for number in range(PAGES):
        wanted = content(~number & 0xFFFF) if number % 3 == 0 else content(number)
        assert read(enclave, number) == wanted


def test_a_page_that_is_out_is_a_hole(platform: Platform) -> None:
    enclave = build(platform, PAGES)
    encl = enclave.file.encl
    here = resident(enclave)
    assert 0 < len(here) < EPC_PAGES
    for number in range(PAGES):
        data = encl.elrange.read(encl.base + number * PAGE, PAGE)
        assert data == (content(number) if number in here else bytes(PAGE))


def test_the_store_never_has_the_plaintext(platform: Platform) -> None:
    enclave = build(platform, PAGES)
    encl = enclave.file.encl
    for number in set(range(PAGES)) - resident(enclave):
        sealed, _ = encl.backing.load(number)
        assert content(number)[:16] not in sealed
        assert sealed != bytes(PAGE)


@pytest.mark.parametrize("offset", [0, 4095, 4096, 4096 + 8, 4096 + 112, 4096 + 127])
def test_a_flipped_bit_is_found_and_mended_it_is_right(platform: Platform, offset: int) -> None:
    enclave = build(platform, PAGES)
    encl = enclave.file.encl
    number = min(set(range(PAGES)) - resident(enclave))
    contents, pcmd = encl.backing.load(number)
    changed = bytearray(contents + pcmd)
    changed[offset] ^= 0x10
    encl.backing.store([(number, bytes(changed[:PAGE]), bytes(changed[PAGE:]))])
    for _ in range(2):
        assert encl.load_page_in_vma(encl.base + number * PAGE, 3) is not None
    assert encl.stats.backing_faults == 2
    check_accounts(platform)
    encl.backing.store([(number, contents, pcmd)])
    assert read(enclave, number) == content(number)


def test_exchanged_and_replayed_pages_are_found(platform: Platform) -> None:
    enclave = build(platform, PAGES)
    encl = enclave.file.encl
    one, two = sorted(set(range(PAGES)) - resident(enclave))[:2]
    old, other = encl.backing.load(one), encl.backing.load(two)
    encl.backing.store([(one, *other), (two, *old)])
    assert encl.load_page_in_vma(encl.base + one * PAGE, 3) is not None
    assert encl.load_page_in_vma(encl.base + two * PAGE, 3) is not None
    encl.backing.store([(one, *old), (two, *other)])
    assert read(enclave, one) == content(one)
    while one in resident(enclave):
        platform.driver.reclaimer.reclaim_pages()
    new = encl.backing.load(one)
    encl.backing.store([(one, *old)])
    assert encl.load_page_in_vma(encl.base + one * PAGE, 3) is not None
    encl.backing.store([(one, *new)])
    assert read(enclave, one) == content(one)


def test_the_secs_goes_last_and_comes_back(platform: Platform, bench: Any) -> None:
    enclave = build(platform, 8)
    encl = enclave.file.encl
    measurement = Measurement()
    measurement.ecreate(1, encl.size)
    measurement.add_unmeasured(0, RW, 8)
    enclave.init(bench.sigstruct(measurement.digest()))
    assert platform.driver.reclaimer.reclaim_pages() == 9
    assert encl.secs_page is None
    check_accounts(platform)
    assert [read(enclave, number) for number in range(8)] == [content(n) for n in range(8)]
    assert encl.secs_page is not None
    assert encl.cpu.enclaves[encl.secs_page].initialised


def test_an_enclave_ends_while_all_of_it_is_out(platform: Platform, bench: Any) -> None:
    test_the_secs_goes_last_and_comes_back(platform, bench)
    platform.driver.reclaimer.reclaim_pages()
    encl = next(iter(platform.driver.stats.live))
    assert encl.secs_page is None
    platform.close()
    assert platform.driver.epc.free_pages == EPC_PAGES
    assert not platform.processor.evicted_secs


class Refusing(KernelBacking):
    """A store that is full: it takes so many pages of each batch."""

    takes = 0
    pins = True

    def pin(self, indices: list[int]) -> list[int]:
        return super().pin(indices) if self.pins else []

    def store(self, pages: list[Evicted]) -> int:
        return super().store(pages[: self.takes])


@pytest.mark.parametrize(("takes", "pins"), [(0, True), (3, True), (0, False)])
def test_what_the_store_does_not_take_stays(platform: Platform, takes: int, pins: bool) -> None:
    enclave = build(platform, 40)
    encl = enclave.file.encl
    encl.backing = backing = Refusing(encl.size)
    backing.takes, backing.pins = takes, pins
    freed = platform.driver.reclaimer.reclaim_pages()
    assert freed == takes
    assert encl.stats.backing_faults > 0
    check_accounts(platform)
    backing.takes, backing.pins = 16, True
    assert platform.driver.reclaimer.reclaim_pages() == 16
    assert [read(enclave, number) for number in range(40)] == [content(n) for n in range(40)]


def test_a_store_that_fails_may_kill(platform: Platform) -> None:
    enclave = build(platform, 40)
    encl = enclave.file.encl
    encl.backing = backing = Refusing(encl.size)
    backing.kill_on_error = True
    platform.driver.reclaimer.reclaim_pages()
    assert encl.dead
    assert platform.driver.epc.free_pages == EPC_PAGES
    with pytest.raises(DriverError, match="killed"):
        enclave.add_pages(50 * PAGE, bytes(PAGE), RW)


class Late(Refusing):
    """A store that does not answer in time, and kills where it fails."""

    def pin(self, indices: list[int]) -> list[int]:
        self.stalls += not self.pins
        return super().pin(indices)

    def store(self, pages: list[Evicted]) -> int:
        self.stalls += not self.takes
        return super().store(pages)


@pytest.mark.parametrize(("takes", "pins"), [(0, True), (16, False)])
def test_a_store_that_is_late_has_not_failed(platform: Platform, takes: int, pins: bool) -> None:
    enclave = build(platform, 40)
    encl = enclave.file.encl
    encl.backing = backing = Late(encl.size)
    backing.kill_on_error = True
    backing.takes, backing.pins = takes, pins
    reclaimer = platform.driver.reclaimer
    assert not reclaimer.transient(encl)
    assert reclaimer.reclaim_pages() == 0
    # Whoever needs the room waits, although by now the store may have answered.
    assert not backing.stalled
    assert reclaimer.transient(encl)
    assert not encl.dead
    backing.takes, backing.pins = 16, True
    assert reclaimer.reclaim_pages() == 16
    assert not reclaimer.transient(encl)
    assert [read(enclave, number) for number in range(40)] == [content(n) for n in range(40)]


def without_backing(platform: Platform, pages: int, base: int) -> LocalEnclave:
    enclave = create(platform, 64, base)
    enclave.file.encl.backing = NoBacking()
    enclave.add_pages(0, bytes(pages * PAGE), RW, measure=False)
    return enclave


def test_swappable_pages_go_before_anybody_is_killed(platform: Platform) -> None:
    doomed = without_backing(platform, 20, 1 << 40)
    swapped = build(platform, 30)
    build(platform, 20, 1 << 41)
    assert not doomed.file.encl.dead
    assert swapped.file.encl.stats.evictions


def test_the_one_with_the_oldest_page_is_killed_and_nobody_for_itself(platform: Platform) -> None:
    first = without_backing(platform, 20, 1 << 40)
    second = without_backing(platform, 20, 1 << 41)
    third = without_backing(platform, 30, 1 << 42)
    assert [e.file.encl.dead for e in (first, second, third)] == [True, False, False]
    # Nobody dies for a page that is free, nor for more than the next one.
    third.add_pages(30 * PAGE, bytes(platform.driver.epc.free_pages * PAGE), RW, measure=False)
    assert not second.file.encl.dead
    third.add_pages(50 * PAGE, bytes(14 * PAGE), RW, measure=False)
    assert second.file.encl.dead
    with pytest.raises(DriverError) as refused:
        third.add_pages(40 * PAGE, bytes(10 * PAGE), RW, measure=False)
    assert not third.file.encl.dead
    assert refused.value.errno == 12
    with pytest.raises(DriverError) as dead:
        first.add_pages(30 * PAGE, bytes(PAGE), RW)
    assert dead.value.errno == 5
    assert first.file.encl.load_page_in_vma(1 << 40, 3) is not None
    check_accounts(platform)


def test_room_that_others_take_is_made_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    encl = build(platform, PAGES).file.encl
    reclaimer = platform.driver.reclaimer
    batch = reclaimer._reclaim_batch
    lost = iter(range(20))

    def reclaim_batch() -> int:
        if next(lost, None) is None:
            return batch()
        # While an address space is waited for others run, and use what has gone out.
        reclaimer._evicted += 16
        return 0

    monkeypatch.setattr(reclaimer, "_reclaim_batch", reclaim_batch)
    assert reclaimer.make_room(EPC_PAGES // 2, encl, kill=False)
    assert next(lost, None) is None


def test_the_background_works_from_the_low_to_the_high_mark(platform: Platform) -> None:
    reclaimer, free = platform.driver.reclaimer, platform.driver.epc
    assert (reclaimer.low, reclaimer.high) == (8, 16)
    assert not reclaimer.background()
    build(platform, 50)
    assert free.free_pages >= reclaimer.low
    assert not reclaimer.background()
    build(platform, 6, 1 << 40)
    assert free.free_pages < reclaimer.low
    while reclaimer.background():
        pass
    assert free.free_pages >= reclaimer.high
    assert not reclaimer.background()


class TestPolicies:
    @staticmethod
    def faults(policy: TwoQueues | Fifo, touches: list[int], pages: int = 100) -> dict[int, int]:
        """Let a policy serve touches of pages by an EPC of so many; give the faults of each page."""
        where: dict[int, int] = {}
        free = list(range(pages))
        gone: set[int] = set()
        faults: dict[int, int] = {}
        for page in touches:
            if page in where:
                continue
            faults[page] = faults.get(page, 0) + 1
            if not free:
                victims = policy.victims(16)
                names = {epc: name for name, epc in where.items()}
                policy.evicted(names[victim] for victim in victims)
                for victim in victims:
                    gone.add(names[victim])
                    del where[names[victim]]
                free += victims
            where[page] = free.pop()
            if page in gone:
                policy.loaded(where[page], page)
            else:
                policy.added([where[page]])
        assert len(policy) == len(where)
        return faults

    @pytest.mark.parametrize("hot", [10, 50, 70])
    def test_a_hot_set_that_fits_stays_while_a_scan_passes(self, hot: int) -> None:
        touches = []
        for cold in range(1000, 5000):
            touches += [cold, *range(hot)]
        ours = self.faults(TwoQueues(100), touches)
        fifo = self.faults(Fifo(), touches)
        assert sum(ours[page] for page in range(hot)) <= 4 * hot
        assert sum(fifo[page] for page in range(hot)) > 10 * hot

    def test_an_old_hot_set_makes_room_for_a_new_one(self) -> None:
        old = [page for cold in range(1000, 2000) for page in (cold, *range(60))]
        new = [page for cold in range(2000, 4000) for page in (cold, *range(100, 160))]
        faults = self.faults(TwoQueues(100), old + new)
        assert sum(faults[page] for page in range(100, 160)) <= 20 * 60

    @pytest.mark.parametrize("policy", [TwoQueues(100), Fifo()])
    def test_a_policy_forgets_and_takes_back(self, policy: TwoQueues | Fifo) -> None:
        policy.added(range(40))
        policy.removed(range(10, 20))
        policy.removed([12, 99])
        victims = policy.victims(8)
        assert victims == list(range(8))
        policy.young(victims[:4])
        assert len(policy) == 26
        assert sorted(policy.victims(100)) == sorted({*range(4), 8, 9, *range(20, 40)})
        assert policy.victims(1) == []


class TestVaPages:
    def test_slots_are_taken_once_and_used_again(self) -> None:
        pages: Any = VaPages()
        pages.add(7)
        pages.add(9)
        taken = set()
        while len(taken) < 1024:
            number, slots = pages.reserve(100)
            assert slots
            for slot in slots:
                assert (number, slot) not in taken
                taken.add((number, slot))
        with pytest.raises(ValueError, match="taken"):
            pages.reserve(1)
        assert pages.pop_unused() is None
        pages.give_back(0, 5)
        assert pages.reserve(16) == (0, [5])

    def test_only_an_unused_page_is_given_up(self) -> None:
        pages: Any = VaPages()
        pages.add(7)
        pages.add(9)
        number, slots = pages.reserve(1)
        assert (number, slots) == (1, [0])
        assert pages.pop_unused() is None
        pages.give_back(1, 0)
        assert pages.pop_unused() == 9
        assert pages.clear() == [7]
        assert len(pages) == 0
