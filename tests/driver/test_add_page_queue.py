# SPDX-License-Identifier: Apache-2.0
"""ADD_PAGE's queue: where pages wait, in what order they are added, and what becomes of failures."""

import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_TCS,
    SECINFO_W,
    SECINFO_X,
)
from softsgx.arch.structures import Secs, Tcs
from softsgx.driver.add_page_queue import ARENA_PAGES
from softsgx.driver.backing import BackingFault, KernelBacking, NoBacking
from softsgx.driver.default_stores import NoStores
from softsgx.driver.extent import FileExtent
from softsgx.driver.nodes import DCAP_1_5, ISGX, LEGACY, V16
from softsgx.driver.platform import Platform
from softsgx.driver.provided import ExtentBacking, bounded
from softsgx.driver.state import State
from softsgx.errors import DriverError
from softsgx.image.measurement import Measurement

RW = SECINFO_REG | SECINFO_R | SECINFO_W
TCS = Tcs.blank().replace(ossa=0x3000, nssa=1, oentry=0x1000, fslimit=0xFFF, gslimit=0xFFF)


@pytest.fixture
def driver() -> str:
    return V16


@pytest.fixture
def backing() -> Any:
    return None


@pytest.fixture
def pages() -> int:
    return 256


@pytest.fixture
def platform(driver: str, backing: Any, pages: int) -> Iterator[Platform]:
    state = State.temporary()
    with Platform(epc=pages * PAGE_SIZE, state=state, driver=driver, backing=backing) as platform:
        yield platform


every_driver = pytest.mark.parametrize("driver", LEGACY)
not_v16 = pytest.mark.parametrize("driver", [ISGX, DCAP_1_5])
# One that takes a whole batch at a time.
large_epc = pytest.mark.parametrize("pages", [1024])
no_backing = pytest.mark.parametrize("backing", [NoStores()])


@pytest.fixture
def mapped(bench: Any) -> Any:
    enclave = bench.platform.map_enclave(bench.SIZE, bench.BASE)
    assert enclave.create(bench.secs()) == 0
    return enclave


def page(number: int) -> bytes:
    return bytes([number & 0xFF, number >> 8 & 0xFF]) * (PAGE_SIZE // 2)


def add(enclave: Any, index: int, data: bytes | None = None, flags: int = RW) -> None:
    data = page(index + 1) if data is None else data
    assert enclave.add_page(index * PAGE_SIZE, data, flags) == 0


def refused(call: Callable[..., object], *args: Any) -> str:
    with pytest.raises(DriverError) as caught:
        call(*args)
    return errno.errorcode[caught.value.errno]


def measured(pages: list[tuple[int, int, bytes, int]], size: int) -> bytes:
    """Return the MRENCLAVE of pages: index, SECINFO.FLAGS, data, mrmask."""
    measurement = Measurement()
    measurement.ecreate(1, size)
    for index, flags, data, mask in pages:
        measurement.eadd(index * PAGE_SIZE, flags)
        for at in range(0, PAGE_SIZE, 256):
            if mask >> at // 256 & 1:
                measurement.eextend(index * PAGE_SIZE + at, data[at : at + 256])
    return measurement.digest()


def encl_of(enclave: Any) -> Any:
    return enclave.mapping.encl


def run_worker(bench: Any) -> int:
    """Let the worker add all it can; return how many times it was asked."""
    turns = 1
    while bench.driver.background():
        turns += 1
    return turns


# -- what a program sees of it ------------------------------------------------------------------


@every_driver
def test_add_page_returns_before_the_page_is_added(bench: Any, mapped: Any) -> None:
    before = bench.free
    add(mapped, 0)
    add(mapped, 1)
    encl = encl_of(mapped)
    assert (bench.free, len(encl.page_array), len(encl.queue)) == (before, 0, 2)
    # It is there for who adds it again.
    assert refused(add, mapped, 1) == "EEXIST"
    run_worker(bench)
    assert (bench.free, len(encl.page_array), len(encl.queue)) == (before - 2, 2, 0)
    assert refused(add, mapped, 1) == "EEXIST"
    assert encl.read(encl.base, 2 * PAGE_SIZE) == page(1) + page(2)


@every_driver
def test_init_adds_what_is_queued(bench: Any) -> None:
    with bench.build_mapped() as enclave:
        encl = encl_of(enclave)
        assert len(encl.queue) == 6
        assert enclave.init(bytes(1808)) == LeafCode.INVALID_SIG_STRUCT
        assert (len(encl.queue), len(encl.page_array)) == (0, 6)
        assert enclave.init(bench.good_sigstruct()) == 0
        assert not bench.driver.background()


@every_driver
def test_without_a_queue_add_page_adds(driver: str) -> None:
    state = State.temporary()
    with Platform(epc=1 << 20, state=state, driver=driver, queue=False) as platform:
        enclave = platform.map_enclave(0x10000)
        secs = Secs.blank().replace(
            size=0x10000, baseaddr=enclave.base, ssaframesize=1, attributes=4, xfrm=3
        )
        assert enclave.create(secs.encode()) == 0
        assert enclave.mapping.encl.queue is None
        add(enclave, 3)
        assert len(enclave.mapping.encl.page_array) == 1
        assert not platform.driver.background()


@large_epc
def test_neighbours_of_one_kind_are_added_together(bench: Any, mapped: Any) -> None:
    calls = []
    encl = encl_of(mapped)
    add_now = encl.add_now

    def counted(*args: Any) -> int:
        calls.append(add_now(*args))
        return calls[-1]

    encl.add_now = counted
    for index in range(150):
        add(mapped, index)
    add(mapped, 150, flags=SECINFO_REG | SECINFO_R)
    add(mapped, 151)
    add(mapped, 153)
    # A page of which some chunks are measured is for itself.
    for index in (154, 155):
        assert mapped.add_page(index * PAGE_SIZE, page(1), RW, 1) == 0
    assert run_worker(bench) == len(calls)
    assert calls == [64, 64, 22, 1, 1, 1, 1, 1]


@large_epc
def test_each_enclave_has_a_queue_and_a_turn(bench: Any, mapped: Any) -> None:
    other = bench.platform.map_enclave(bench.SIZE)
    assert other.create(bench.secs(baseaddr=other.base)) == 0
    for index in range(70):
        add(mapped, index)
        add(other, index)
    bench.driver.background()
    assert len(encl_of(mapped).queue) == 6
    other.init(bytes(1808))
    assert (len(encl_of(mapped).queue), len(encl_of(other).queue)) == (6, 0)
    run_worker(bench)
    assert len(encl_of(mapped).page_array) == len(encl_of(other).page_array) == 70


# -- where a page waits ---------------------------------------------------------------------------


def test_a_page_waits_in_the_backing_at_its_own_place(bench: Any, mapped: Any) -> None:
    for index in (7, 2, 900):
        add(mapped, index)
    encl = encl_of(mapped)
    fd = encl.backing.fd
    held = [os.pread(fd, PAGE_SIZE, index * PAGE_SIZE) for index in (2, 7, 900)]
    assert held == [page(3), page(8), page(901)]
    assert encl.backing.pages_held == encl.stats.backing_pages == 3
    run_worker(bench)
    assert encl.backing.pages_held == encl.stats.backing_pages == 0
    # Nothing of it is left: the file is one hole.
    with pytest.raises(OSError, match="No such device or address"):
        os.lseek(fd, 0, os.SEEK_DATA)
    # Written, then read.
    assert encl.stats.backing_bytes == 6 * (PAGE_SIZE + 128)


@pytest.mark.parametrize("added", [0, 2])
def test_pages_that_wait_are_gone_with_the_mapping(bench: Any, mapped: Any, added: int) -> None:
    encl = encl_of(mapped)
    for index in range(added):
        add(mapped, index)
    run_worker(bench)
    for index in range(added, 5):
        add(mapped, index)
    discarded: list[int] = []
    encl.backing.discard = discarded.append
    mapped.munmap(0x10_0000, PAGE_SIZE)
    assert (len(encl.queue), discarded) == (0, list(range(added, 5)))
    assert bench.free == bench.driver.epc.total
    assert not bench.driver.background()


@no_backing
def test_without_a_backing_sixteen_pages_wait(bench: Any, mapped: Any) -> None:
    before = bench.free
    for index in range(ARENA_PAGES):
        add(mapped, index)
    encl = encl_of(mapped)
    assert (len(encl.queue), bench.free) == (16, before)
    add(mapped, 16)
    # The one that found no place has added what waited.
    assert (len(encl.queue), bench.free) == (1, before - 16)
    run_worker(bench)
    expected = [(index, RW, page(index + 1), 0xFFFF) for index in range(17)]
    assert mapped.init(bench.sigstruct(measured(expected, bench.SIZE))) == 0


def test_a_backing_that_takes_nothing_is_as_none(bench: Any, mapped: Any) -> None:
    encl = encl_of(mapped)
    encl.backing.store = lambda *_: 0
    for index in range(20):
        add(mapped, index)
    assert len(encl.queue) == 4
    assert encl.stats.backing_faults > 0
    run_worker(bench)
    assert encl.read(encl.base + 19 * PAGE_SIZE, PAGE_SIZE) == page(20)


def ten_thousand() -> Iterator[tuple[int, int, bytes, int]]:
    """Give pages of several kinds, in an order that is not that of their addresses."""
    for number in range(10_000):
        index = number * 7 % 10_007
        flags = RW if index % 3 else SECINFO_REG | SECINFO_R | SECINFO_X
        yield index, flags, page(index), (0, 0xFFFF, 0x8421, 0xFFFF)[index % 4]


@no_backing
@pytest.mark.parametrize("queue", [True, False])
def test_ten_thousand_pages_are_measured_alike_queued_and_direct(
    bench_of: Any, backing: NoStores, queue: bool
) -> None:
    size = 1 << 26
    with Platform(
        epc=48 << 20, state=State.temporary(), driver=V16, backing=backing, queue=queue
    ) as platform:
        bench = bench_of(platform)
        enclave = platform.map_enclave(size)
        assert enclave.create(bench.secs(size=size, baseaddr=enclave.base)) == 0
        encl = encl_of(enclave)
        waiting = 0
        for number, (index, flags, data, mask) in enumerate(ten_thousand()):
            assert enclave.add_page(index * PAGE_SIZE, data, flags, mask) == 0
            if encl.queue is not None:
                waiting = max(waiting, len(encl.queue))
                if number % 100 == 50:
                    platform.driver.background()
        assert waiting == (ARENA_PAGES if queue else 0)
        # EINIT compares MRENCLAVE with what is the same for both.
        assert enclave.init(bench.sigstruct(measured(list(ten_thousand()), size))) == 0
        assert (len(encl.page_array), encl.stats.evictions) == (10_000, 0)


PAGES = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.sampled_from([RW, SECINFO_REG | SECINFO_R, SECINFO_TCS]),
        st.sampled_from([0, 0xFFFF, 1, 0x8000]),
        st.booleans(),
    ),
    unique_by=lambda added: added[0],
    max_size=40,
)


@pytest.fixture(scope="module")
def identity() -> Iterator[State]:
    state = State.temporary()
    yield state
    state.close()


@given(pages=PAGES, none=st.booleans(), epc=st.sampled_from([24, 64]))
def test_any_order_of_pages_and_turns_is_measured_as_it_was_called(
    bench_of: Any, identity: State, pages: list[tuple[int, int, int, bool]], none: bool, epc: int
) -> None:
    platform = Platform(epc=epc * PAGE_SIZE, state=identity, driver=V16)
    bench = bench_of(platform)
    enclave = platform.map_enclave(bench.SIZE, bench.BASE)
    enclave.create(bench.secs())
    encl = encl_of(enclave)
    if none and epc > len(pages) + 2:
        encl.backing = NoBacking()
    expected = []
    for number, (index, flags, mask, turn) in enumerate(pages):
        data = TCS.encode() if flags == SECINFO_TCS else page(number)
        assert enclave.add_page(index * PAGE_SIZE, data, flags, mask) == 0
        expected.append((index, flags, data, mask))
        if turn:
            platform.driver.background()
    assert enclave.init(bench.sigstruct(measured(expected, bench.SIZE))) == 0
    for index, flags, data, _ in expected:
        if flags != SECINFO_TCS:
            assert encl.read(encl.base + index * PAGE_SIZE, PAGE_SIZE) == data
    enclave.close()
    platform.processor.epc.check()
    assert bench.free == platform.driver.epc.total
    platform.driver.close()


def test_pages_that_wait_and_pages_that_were_evicted_do_not_meet(bench: Any, mapped: Any) -> None:
    # Three times what the EPC holds: early pages leave it while later ones wait.
    count = 3 * bench.driver.epc.total
    for index in range(count):
        add(mapped, index)
        if index % 90 == 89:
            bench.driver.background()
    encl = encl_of(mapped)
    assert encl.stats.evictions > 0
    assert len(encl.queue) > 0
    expected = [(index, RW, page(index + 1), 0xFFFF) for index in range(count)]
    assert mapped.init(bench.sigstruct(measured(expected, bench.SIZE))) == 0
    for index in range(count):
        assert encl.read(encl.base + index * PAGE_SIZE, PAGE_SIZE) == page(index + 1)


def test_pages_of_one_batch_are_evicted_while_the_rest_waits(bench: Any, mapped: Any) -> None:
    # Half a batch is added at a time, to an EPC that holds less.
    held = bench.driver.epc.allocate_run(bench.free - 20)
    for index in range(64):
        add(mapped, index)
    encl = encl_of(mapped)
    expected = [(index, RW, page(index + 1), 0xFFFF) for index in range(64)]
    assert mapped.init(bench.sigstruct(measured(expected, bench.SIZE))) == 0
    assert encl.stats.evictions >= 40
    for index in range(64):
        assert encl.read(encl.base + index * PAGE_SIZE, PAGE_SIZE) == page(index + 1)
    bench.driver.epc.free(*held)


# -- who changes the backing meanwhile ------------------------------------------------------------


def test_what_is_added_is_measured_not_what_was_given(bench: Any, mapped: Any) -> None:
    add(mapped, 5)
    encl = encl_of(mapped)
    os.pwrite(encl.backing.fd, page(0x1234), 5 * PAGE_SIZE)
    given_page, changed = ([(5, RW, data, 0xFFFF)] for data in (page(6), page(0x1234)))
    wrong = bench.sigstruct(measured(given_page, bench.SIZE))
    assert mapped.init(wrong) == LeafCode.INVALID_MEASUREMENT
    assert mapped.init(bench.sigstruct(measured(changed, bench.SIZE))) == 0
    assert encl.read(encl.base + 5 * PAGE_SIZE, PAGE_SIZE) == page(0x1234)


BAD_TCS = [
    TCS.replace(flags=2).encode(),
    TCS.replace(ossa=0x3001).encode(),
    TCS.replace(fslimit=0).encode(),
    TCS.encode()[:-1] + b"\1",
]


@pytest.mark.parametrize("bad", range(len(BAD_TCS)))
def test_a_tcs_is_judged_again(bench: Any, mapped: Any, bad: int) -> None:
    add(mapped, 0)
    add(mapped, 1, TCS.encode(), SECINFO_TCS)
    add(mapped, 2)
    encl = encl_of(mapped)
    os.pwrite(encl.backing.fd, BAD_TCS[bad], PAGE_SIZE)
    assert run_worker(bench) == 2
    assert encl.dead
    assert bench.free == bench.driver.epc.total
    with pytest.raises(DriverError, match=r"could not be added.*TCS") as caught:
        add(mapped, 3)
    assert caught.value.errno == errno.EFAULT
    assert refused(mapped.init, bench.good_sigstruct()) == "EFAULT"


def unreadable(encl: Any, index: int) -> None:
    load = encl.backing.load

    def fails(wanted: int) -> tuple[bytes, bytes]:
        if wanted == index:
            raise BackingFault(f"page {index} cannot be read")
        return load(wanted)

    encl.backing.load = fails


def test_a_page_that_cannot_be_read_ends_the_enclave(bench: Any, mapped: Any) -> None:
    for index in range(4):
        add(mapped, index)
    encl = encl_of(mapped)
    unreadable(encl, 2)
    # INIT adds what comes before it, and is told.
    assert refused(mapped.init, bytes(1808)) == "EFAULT"
    assert encl.dead
    assert encl.stats.backing_faults > 0
    assert refused(add, mapped, 4) == "EFAULT"
    assert bench.free == bench.driver.epc.total


@not_v16
def test_isgx_drops_the_rest_and_init_finds_out(bench: Any, mapped: Any) -> None:
    for index in range(4):
        add(mapped, index)
    encl = encl_of(mapped)
    unreadable(encl, 2)
    run_worker(bench)
    assert not encl.dead
    assert (len(encl.page_array), len(encl.queue)) == (2, 0)
    # What was dropped counts as added; what comes later is.
    assert refused(add, mapped, 2) == refused(add, mapped, 3) == "EEXIST"
    add(mapped, 4)
    pages = [(index, RW, page(index + 1), 0xFFFF) for index in range(5)]
    wanted = bench.sigstruct(measured(pages, bench.SIZE))
    assert mapped.init(wanted) == LeafCode.INVALID_MEASUREMENT
    # The enclave is what was added, as with the driver.
    assert mapped.init(bench.sigstruct(measured(pages[:2] + pages[4:], bench.SIZE))) == 0


# -- no room ----------------------------------------------------------------------------------------


@no_backing
@every_driver
def test_an_enclave_without_a_backing_is_told_enomem_and_lives(bench: Any, mapped: Any) -> None:
    encl = encl_of(mapped)
    held = bench.driver.epc.allocate_run(bench.free - 5)
    for index in range(5 + ARENA_PAGES):
        add(mapped, index)
    assert refused(add, mapped, 21) == "ENOMEM"
    assert refused(mapped.init, bytes(1808)) == "ENOMEM"
    assert (len(encl.queue), len(encl.page_array), bench.free) == (ARENA_PAGES, 5, 0)
    # The worker does not try again until more is free.
    assert run_worker(bench) == 1
    assert refused(add, mapped, 20) == "EEXIST"
    bench.driver.epc.free(*held)
    assert run_worker(bench) == 1
    add(mapped, 21)
    expected = [(index, RW, page(index + 1), 0xFFFF) for index in range(22)]
    assert mapped.init(bench.sigstruct(measured(expected, bench.SIZE))) == 0


def test_with_a_backing_an_epc_that_stays_full_ends_it(bench: Any, mapped: Any) -> None:
    encl = encl_of(mapped)
    held = bench.driver.epc.allocate_run(bench.free)
    add(mapped, 0)
    # Nobody gives way, and nobody will.
    run_worker(bench)
    assert encl.dead
    assert refused(add, mapped, 1) == "EFAULT"
    with pytest.raises(DriverError, match="no EPC page is left"):
        mapped.init(bytes(1808))
    bench.driver.epc.free(*held)


def test_where_others_may_give_way_later_the_worker_tries_again(
    bench: Any, mapped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encl = encl_of(mapped)
    held = bench.driver.epc.allocate_run(bench.free)
    add(mapped, 0)
    monkeypatch.setattr(bench.driver.reclaimer, "transient", lambda *_: True)
    assert not bench.driver.background()
    assert (encl.dead, len(encl.queue)) == (False, 1)
    bench.driver.epc.free(*held)
    run_worker(bench)
    assert len(encl.page_array) == 1


def test_a_signal_leaves_the_rest_queued(
    bench: Any, mapped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(mapped, 0)
    task = mapped.task
    held = bench.driver.epc.allocate_run(bench.free)
    monkeypatch.setattr(task, "signal_pending", lambda: True)
    # The flush of INIT waits for an EPC page, and the ioctl begins anew after the handler.
    assert refused(mapped.init, bytes(1808)) == "EINTR"
    assert not encl_of(mapped).dead
    bench.driver.epc.free(*held)
    assert mapped.init(bytes(1808)) == LeafCode.INVALID_SIG_STRUCT
    assert len(encl_of(mapped).page_array) == 1


# -- several callers --------------------------------------------------------------------------------


def suspended(
    bench: Any, mapped: Any, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]
) -> str | int:
    """Let INIT be suspended while it adds, and another thread do something; return what INIT gives."""
    held: list[Any] = [bench.driver.epc.allocate_run(bench.free)]

    def pause() -> bool:
        if held:
            meanwhile()
            bench.driver.epc.free(*held.pop())
        return True

    monkeypatch.setattr(bench.driver.reclaimer, "transient", lambda *_: True)
    monkeypatch.setattr(mapped.task, "pause", pause)
    try:
        return int(mapped.init(bytes(1808)))
    except DriverError as error:
        return errno.errorcode[error.errno]


def test_others_add_while_one_waits_for_room(
    bench: Any, mapped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encl = encl_of(mapped)
    add(mapped, 0)

    def meanwhile() -> None:
        add(mapped, 1)
        assert refused(add, mapped, 0) == "EEXIST"
        # The worker leaves it to who is at it.
        assert not bench.driver.background()
        assert len(encl.queue) == 2

    code = suspended(bench, mapped, monkeypatch, meanwhile)
    assert code == LeafCode.INVALID_SIG_STRUCT
    assert encl.read(encl.base, 2 * PAGE_SIZE) == page(1) + page(2)


def test_a_second_flush_waits_for_the_first(
    bench: Any, mapped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(mapped, 0)
    signals = [False, False, True]

    def meanwhile() -> None:
        # It waits until a signal comes: nothing is added twice.
        monkeypatch.setattr(mapped.task, "pause", lambda: True)
        monkeypatch.setattr(mapped.task, "signal_pending", lambda: signals.pop(0))
        assert refused(mapped.init, bytes(1808)) == "EINTR"
        monkeypatch.setattr(mapped.task, "signal_pending", lambda: False)
        assert not signals

    assert suspended(bench, mapped, monkeypatch, meanwhile) == LeafCode.INVALID_SIG_STRUCT
    assert len(encl_of(mapped).page_array) == 1


def test_an_enclave_that_ends_while_one_waits_for_room(
    bench: Any, mapped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        add(mapped, index)
    result = suspended(bench, mapped, monkeypatch, partial(mapped.munmap, 0, PAGE_SIZE))
    assert result == "EFAULT"
    assert bench.free == bench.driver.epc.total
    assert not bench.driver.background()


# -- a store that is late ---------------------------------------------------------------------------


def late_backing(bench: Any, encl: Any, slow_file: Any) -> None:
    fd = os.open(slow_file.path, os.O_RDWR | os.O_CLOEXEC)
    extent = FileExtent(fd, 0, 8 << 20, punches=False, durable=False)
    store = ExtentBacking(
        extent, extent, encl.size + PAGE_SIZE, kill_on_error=False, released=lambda: None
    )
    encl.give_backing(bounded(store, bench.driver.stores.tell))


def test_a_store_that_is_late_keeps_neither_worker_nor_add_page(
    bench: Any, mapped: Any, slow_file: Any
) -> None:
    encl = encl_of(mapped)
    late_backing(bench, encl, slow_file)
    add(mapped, 0)
    slow_file.gate.clear()
    # The worker asks for the page, and leaves it.
    assert not bench.driver.background()
    assert encl.backing.stalled
    asked = len(slow_file.asked)
    for index in range(1, ARENA_PAGES + 1):
        add(mapped, index)
        assert not bench.driver.background()
    assert (len(slow_file.asked), len(encl.queue), encl.dead) == (asked, 17, False)

    # INIT waits for it, until a signal comes.
    task = mapped.task
    signals = [False, False, True]
    task.signal_pending = lambda: signals.pop(0)
    assert refused(mapped.init, bytes(1808)) == "EINTR"
    task.signal_pending = lambda: False
    slow_file.gate.set()
    expected = [(index, RW, page(index + 1), 0xFFFF) for index in range(17)]
    assert mapped.init(bench.sigstruct(measured(expected, bench.SIZE))) == 0
    mapped.close()


def test_the_kernel_s_store_is_what_these_tests_take_it_for(mapped: Any) -> None:
    assert isinstance(encl_of(mapped).backing, KernelBacking)
