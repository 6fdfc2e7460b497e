# SPDX-License-Identifier: Apache-2.0
import errno
import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softsgx.cpu.memory import HeldMemory
from softsgx.driver import worker
from softsgx.driver.backing import (
    Backing,
    BackingFault,
    BackingStalled,
    KernelBacking,
    NoBacking,
    contents_size,
    pcmds_size,
    store_size,
)
from softsgx.driver.extent import Extent, FileExtent, MemoryExtent
from softsgx.driver.provided import BoundedBacking, ExtentBacking, bounded
from softsgx.driver.stores import Stores, Stretch
from softsgx.driver.task import HeldStoreMemory
from softsgx.driver.worker import Worker
from softsgx.errors import DriverError

SIZE = 0x40_0000
PAGES = SIZE // 4096
SECS = PAGES  # the SECS's index


def page(index: int, version: int = 0) -> tuple[int, bytes, bytes]:
    """Return a page to be stored that no other equals."""
    mark = index * 1000 + version + 1
    return index, mark.to_bytes(8, "little") * 512, mark.to_bytes(8, "big") * 16


@pytest.fixture
def backing() -> Iterator[KernelBacking]:
    backing = KernelBacking(SIZE)
    yield backing
    backing.close()


def occupied(backing: KernelBacking) -> int:
    backing.tidy()
    return os.fstat(backing.fd).st_blocks * 512


def test_the_layout_is_mainlines() -> None:
    # sgx_encl_create and sgx_encl_get_backing_page_pcmd_offset of Linux 6.1.
    assert contents_size(SIZE) == SIZE + 4096
    assert pcmds_size(SIZE) == (SIZE + 4096) // 32 == contents_size(SIZE) // 4096 * 128
    assert store_size(SIZE) == SIZE + 4096 + (SIZE + 4096) // 32


def test_every_byte_of_the_file_is_where_mainline_has_it(backing: KernelBacking) -> None:
    stored = [page(index) for index in (0, 1, 2, 31, 32, 700, PAGES - 1, SECS)]
    assert backing.store(stored) == len(stored)
    wanted = bytearray(store_size(SIZE))
    for index, contents, pcmd in stored:
        wanted[index * 4096 : (index + 1) * 4096] = contents
        at = SIZE + 4096 + index * 128
        wanted[at : at + 128] = pcmd
    assert os.fstat(backing.fd).st_size == len(wanted)
    assert os.pread(backing.fd, len(wanted) + 1, 0) == wanted


def test_the_file_is_made_when_a_page_is_to_be_stored(backing: KernelBacking) -> None:
    assert backing.fd == -1
    assert backing.bytes_held == 0
    assert backing.pin([3, 5]) == [3, 5]
    assert backing.fd >= 0
    assert occupied(backing) == 0


def test_pages_are_loaded_again_and_again_until_they_are_discarded(backing: KernelBacking) -> None:
    assert backing.store([page(7), page(8), page(200)]) == 3
    for _ in range(2):
        assert backing.load(8) == page(8)[1:]
    assert backing.pages_held == 3
    backing.discard(8)
    assert backing.load(8) == (bytes(4096), bytes(128))
    assert backing.load(7) == page(7)[1:]
    assert backing.pages_held == 2
    assert backing.store([page(8, 1)]) == 1
    assert backing.load(8) == page(8, 1)[1:]


def test_a_discarded_page_leaves_a_hole_and_so_does_the_last_pcmd_of_32(
    backing: KernelBacking,
) -> None:
    assert backing.store([page(index) for index in range(64, 98)]) == 34
    assert occupied(backing) == backing.bytes_held == (34 + 2) * 4096
    for index in range(65, 96):
        backing.discard(index)
    assert occupied(backing) == backing.bytes_held == (3 + 2) * 4096
    backing.discard(64)
    assert occupied(backing) == backing.bytes_held == (2 + 1) * 4096
    assert backing.load(96) == page(96)[1:]
    backing.discard(96)
    backing.discard(97)
    backing.discard(97)
    assert occupied(backing) == backing.bytes_held == backing.pages_held == 0


def test_the_pcmds_that_are_left_are_zero_where_a_page_was_discarded(
    backing: KernelBacking,
) -> None:
    backing.store([page(32), page(33), page(34)])
    backing.discard(33)
    backing.tidy()
    entries = os.pread(backing.fd, 3 * 128, SIZE + 4096 + 32 * 128)
    assert entries == page(32)[2] + bytes(128) + page(34)[2]


def test_a_store_that_fails_leaves_nothing_of_what_it_did_not_store(
    backing: KernelBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset == 9 * 4096:
            real(fd, data[:100], offset)
            raise OSError(28, "no space")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    assert backing.store([page(5), page(6), page(9), page(11)]) == 2
    assert backing.load(6) == page(6)[1:]
    assert backing.load(9) == (bytes(4096), bytes(128))
    assert occupied(backing) == backing.bytes_held == 3 * 4096


def test_without_a_descriptor_nothing_is_pinned(
    backing: KernelBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(24, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", full)
        assert backing.pin([1]) == []
        assert backing.store([page(1)]) == 0
    with pytest.raises(BackingFault):
        backing.load(1)
    assert backing.pin([1]) == [1]


def test_a_closed_store_has_no_file(backing: KernelBacking) -> None:
    backing.store([page(1)])
    fd = backing.fd
    backing.close()
    assert backing.pages_held == backing.bytes_held == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    backing.close()


_calls = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(st.integers(60, 70) | st.integers(0, SECS), min_size=1, max_size=16, unique=True),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(calls=_calls)
def test_it_holds_what_a_dictionary_would(calls: list[tuple[bool, list[int]]]) -> None:
    backing = KernelBacking(SIZE)
    model: dict[int, tuple[bytes, bytes]] = {}
    backing.pin([0])
    for version, (store, indices) in enumerate(calls):
        if store:
            pages = [page(index, version) for index in indices]
            assert backing.store(pages) == len(pages)
            model |= {index: (contents, pcmd) for index, contents, pcmd in pages}
        else:
            for index in indices:
                backing.discard(index)
                model.pop(index, None)
        for index in {*indices, *model}:
            assert backing.load(index) == model.get(index, (bytes(4096), bytes(128)))
        groups = {index // 32 for index in model}
        assert backing.pages_held == len(model)
        assert backing.bytes_held == occupied(backing) == (len(model) + len(groups)) * 4096
    backing.close()


def test_pages_that_are_stored_again_before_they_have_become_holes_stay(
    backing: KernelBacking,
) -> None:
    backing.store([page(index) for index in range(64, 96)])
    for index in range(64, 96):
        backing.discard(index)
    assert os.fstat(backing.fd).st_blocks
    backing.store([page(70, 1)])
    backing.tidy()
    assert backing.load(70) == page(70, 1)[1:]
    assert backing.load(71) == (bytes(4096), bytes(128))
    assert occupied(backing) == backing.bytes_held == 2 * 4096
    # By themselves, where there are many.
    backing.store([page(index) for index in range(256)])
    for index in range(256):
        backing.discard(index)
    assert os.fstat(backing.fd).st_blocks * 512 < 128 * 4096


def test_no_backing_takes_nothing() -> None:
    backing: Backing = NoBacking()
    assert backing.kills
    assert backing.pin([1, 2]) == []
    assert backing.store([page(1)]) == 0
    with pytest.raises(BackingFault, match="no backing"):
        backing.load(1)
    backing.discard(1)
    assert backing.bytes_held == 0
    backing.close()


def test_the_kernels_store_does_not_kill() -> None:
    backing: Backing = KernelBacking(SIZE)
    assert not backing.kills
    assert not backing.kill_on_error
    assert not backing.gone
    assert not backing.stalled


# -- what a program provides --------------------------------------------------------------------

START = 0x3000  # where the store begins in its file, or memory
LENGTH = -(-store_size(SIZE) // 4096) * 4096


def blank_file(path: Path, length: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, length)
    return fd


def on_files(
    directory: Path, *, separate: bool, punches: bool = True, kill_on_error: bool = False
) -> ExtentBacking:
    """Return a store in one file, or in two, that is behind no worker."""
    fd = blank_file(directory / "contents", START + LENGTH)
    if not separate:
        one = FileExtent(fd, START, LENGTH, punches=punches)
        return of([one], kill_on_error=kill_on_error)
    other = blank_file(directory / "pcmds", START + LENGTH)
    return of(
        [
            FileExtent(fd, START, LENGTH, punches=punches),
            FileExtent(other, START, LENGTH, punches=punches),
        ],
        kill_on_error=kill_on_error,
    )


def of(extents: list[Any], *, kill_on_error: bool = False) -> ExtentBacking:
    return ExtentBacking(
        extents[0],
        extents[-1],
        contents_size(SIZE) if len(extents) == 1 else 0,
        kill_on_error=kill_on_error,
        released=bool,
    )


def in_memory(*, separate: bool) -> tuple[ExtentBacking, HeldMemory, list[int]]:
    memory = HeldMemory()
    starts = [memory.place(bytes(LENGTH)) for _ in range(1 + separate)]
    ports = [HeldStoreMemory(memory, start, LENGTH) for start in starts]
    extents = [MemoryExtent(port, start) for port, start in zip(ports, starts, strict=True)]
    return of(extents), memory, starts


@pytest.fixture(params=["tmpfs", "disk"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Yield a directory whose files wait for nobody, and one whose files may."""
    if request.param == "disk":
        yield tmp_path
        return
    path = Path("/dev/shm") / f"softsgx-test-{os.getpid()}"  # noqa: S108 - it is the tmpfs that is wanted
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def whole(path: Path, start: int, length: int) -> bytes:
    return path.read_bytes()[start : start + length]


def test_the_bytes_are_the_same_in_every_store(backing: KernelBacking, directory: Path) -> None:
    S = contents_size(SIZE)  # noqa: N806 - the name that the layout has
    single_in_memory, memory, [single_at] = in_memory(separate=False)
    separate_in_memory, parts, [contents_at, pcmds_at] = in_memory(separate=True)
    (directory / "one").mkdir()
    (directory / "two").mkdir()
    single = on_files(directory / "one", separate=False)
    separate = on_files(directory / "two", separate=True)
    stores: list[Backing] = [backing, single, separate, single_in_memory, separate_in_memory]
    indices = [*range(40), 700, PAGES - 1, SECS]
    for store in stores:
        assert store.pin(indices) == indices
        assert store.store([page(index) for index in indices[:20]]) == 20
        assert store.store([page(index) for index in reversed(indices[20:])]) == len(indices) - 20
        for index in (3, 35, SECS):
            store.discard(index)
        store.tidy()
        assert (store.pages_held, store.bytes_held) == (len(indices) - 3, (40 + 4) * 4096)
    kernel = os.pread(backing.fd, store_size(SIZE), 0)
    # What punches has a hole where a page was discarded; memory keeps the ciphertext there.
    of_memory = bytearray(kernel)
    for index in (3, 35, SECS):
        of_memory[index * 4096 : (index + 1) * 4096] = page(index)[1]
    rest = store_size(SIZE) - S
    assert whole(directory / "one" / "contents", START, len(kernel)) == kernel
    assert whole(directory / "two" / "contents", START, S) == kernel[:S]
    assert whole(directory / "two" / "pcmds", START, rest) == kernel[S:]
    assert memory.read(single_at, len(kernel)) == of_memory
    assert parts.read(contents_at, S) == of_memory[:S]
    assert parts.read(pcmds_at, rest) == of_memory[S:]
    for index in indices:
        want = (bytes(4096), bytes(128)) if index in {3, 35, SECS} else page(index)[1:]
        assert [store.load(index) for store in stores[:3]] == [want] * 3
        if index not in {3, 35, SECS}:
            assert [store.load(index) for store in stores[3:]] == [want] * 2
    for store in stores:
        store.close()
    for name in ("one/contents", "two/contents", "two/pcmds"):
        (directory / name).unlink()
    (directory / "one").rmdir()
    (directory / "two").rmdir()


def data_in(fd: int) -> int:
    """Count the bytes of a file that are no hole."""
    at = found = 0
    end = os.fstat(fd).st_size
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        hole = os.lseek(fd, at, os.SEEK_HOLE)
        found += hole - at
        at = hole
    return found


@pytest.mark.parametrize("separate", [False, True])
def test_a_file_that_is_punched_holds_what_is_evicted_and_no_more(
    directory: Path, separate: bool
) -> None:
    store = on_files(directory, separate=separate)
    fds = [os.open(path, os.O_RDONLY) for path in directory.iterdir()]
    indices = [*range(64), SECS]
    store.pin(indices)
    store.store([page(index) for index in indices])
    assert sum(map(data_in, fds)) == store.bytes_held == (65 + 3) * 4096
    for index in range(1, 64):
        store.discard(index)
    assert sum(map(data_in, fds)) == store.bytes_held == (2 + 2) * 4096
    assert store.load(0) == page(0)[1:]
    for index in (0, SECS):
        store.discard(index)
    assert sum(map(data_in, fds)) == store.bytes_held == 0
    store.close()
    for fd in fds:
        os.close(fd)


def test_a_file_that_is_not_punched_keeps_ciphertext_and_loses_the_pcmd(directory: Path) -> None:
    store = on_files(directory, separate=False, punches=False)
    store.store([page(5), page(6)])
    store.discard(5)
    assert store.load(5) == (page(5)[1], bytes(128))
    assert store.load(6) == page(6)[1:]
    assert store.pages_held == 1
    store.close()


def test_a_truncated_file_takes_no_page_and_returns_when_it_is_whole_again(directory: Path) -> None:
    store = on_files(directory, separate=False)
    path = directory / "contents"
    assert store.store([page(1), page(900)]) == 2
    os.truncate(path, START + 800 * 4096)
    assert store.pin([2, 900, 950]) == [900]
    with pytest.raises(BackingFault, match="truncated"):
        store.load(900)
    # Its PCMD lies behind all contents.
    with pytest.raises(BackingFault, match="truncated"):
        store.load(1)
    os.truncate(path, START + LENGTH)
    assert store.load(1) == (page(1)[1], bytes(128))
    assert store.pin([2, 950]) == [2, 950]
    assert store.store([page(1), page(900)]) == 2
    assert store.load(900) == page(900)[1:]
    store.close()


class Full:
    """A small file system, unmounted at the end; None where it cannot be mounted."""

    def __init__(self, path: Path, size: int) -> None:
        path.mkdir()
        self.path = path
        options = f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted: {done.stderr.strip()}")

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Yield a directory of a file system with 16 pages."""
    full = Full(tmp_path / "small", 16 * 4096)
    yield full.path
    full.close()


@pytest.mark.parametrize("separate", [False, True])
def test_a_full_file_system_is_noticed_before_a_page_is_blocked(
    small: Path, separate: bool
) -> None:
    store = on_files(small, separate=separate)
    pinned = store.pin(list(range(32)))
    # One of the 16 is a page of PCMDs; reserved is reserved.
    assert pinned == list(range(15))
    assert store.store([page(index) for index in pinned]) == 15
    assert store.pin([31]) == []
    assert store.pin(pinned) == pinned
    for index in pinned:
        assert store.load(index) == page(index)[1:]
    # Three places, for two pages and the page of their PCMDs is there.
    for index in (3, 4, 5):
        store.discard(index)
    assert store.pin([30, 31]) == [30, 31]
    assert store.store([page(30), page(31)]) == 2
    store.close()


def test_a_full_file_system_stores_what_it_can(small: Path) -> None:
    store = on_files(small, separate=False)
    # Every other page, so that each is a write of its own; nothing is pinned.
    pages = [page(2 * index) for index in range(16)]
    stored = store.store(pages)
    assert stored == 15
    for index, contents, pcmd in pages[:stored]:
        assert store.load(index) == (contents, pcmd)
    assert store.pages_held == stored
    assert store.load(pages[stored][0]) == (bytes(4096), bytes(128))
    store.close()


def test_memory_that_was_unmapped_takes_nothing_until_it_is_back() -> None:
    store, memory, [at] = in_memory(separate=False)
    assert store.store([page(1), page(2), page(3)]) == 3
    held = memory.read(at + 2 * 4096, 4096)
    memory.unmap(at + 2 * 4096, 4096)
    with pytest.raises(BackingFault):
        store.load(2)
    assert store.load(1) == page(1)[1:]
    store.discard(3)
    memory.unmap(at + 3 * 4096, 4096)
    assert store.pin([3, 4]) == [4]
    # A hole in the midst: the page before it is stored, the one behind it not.
    memory.unmap(at + 9 * 4096, 4096)
    assert store.store([page(7), page(9), page(11)]) == 1
    memory.map(at + 2 * 4096, 4096)
    memory.write(at + 2 * 4096, held)
    assert store.load(2) == page(2)[1:]
    store.close()


def test_pinning_destroys_no_page_that_is_held() -> None:
    store, _, _ = in_memory(separate=True)
    store.store([page(5)])
    assert store.pin([4, 5, 6]) == [4, 5, 6]
    assert store.load(5) == page(5)[1:]


@settings(max_examples=40, deadline=None)
@given(calls=_calls, separate=st.booleans())
def test_a_provided_store_holds_what_a_dictionary_would(
    calls: list[tuple[bool, list[int]]], separate: bool
) -> None:
    backing, _, _ = in_memory(separate=separate)
    model: dict[int, tuple[bytes, bytes]] = {}
    for version, (store, indices) in enumerate(calls):
        if store:
            assert backing.pin(indices) == indices
            pages = [page(index, version) for index in indices]
            assert backing.store(pages) == len(pages)
            model |= {index: (contents, pcmd) for index, contents, pcmd in pages}
        else:
            for index in indices:
                backing.discard(index)
                if model.pop(index, None):
                    assert backing.load(index)[1] == bytes(128)
        for index, held in model.items():
            assert backing.load(index) == held
        assert backing.pages_held == len(model)


def test_a_store_in_memory_or_on_tmpfs_needs_no_worker(
    tmp_path: Path, patience: Callable[[int], None]
) -> None:
    in_tmpfs = os.memfd_create("store")
    os.ftruncate(in_tmpfs, LENGTH)
    assert not FileExtent(in_tmpfs, 0, LENGTH, punches=True).waits
    os.close(in_tmpfs)
    store, _, _ = in_memory(separate=False)
    assert bounded(store, bool) is store
    patience(10_000)
    on_disk = on_files(tmp_path, separate=False)
    if on_disk.waits:
        behind = bounded(on_disk, bool)
        assert isinstance(behind, BoundedBacking)
        assert behind.store([page(1)]) == 1
        assert behind.load(1) == page(1)[1:]
        behind.close()


# -- stores that answer late --------------------------------------------------------------------


class Gated:
    """An extent in memory that waits where ``gate`` is closed."""

    waits = True
    punches = False
    gone = False

    def __init__(self, extent: Extent) -> None:
        self.extent = extent
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[str] = []
        self.closed = False

    def _pass(self, name: str) -> None:
        self.calls.append(name)
        self.gate.wait()

    def reserve(self, offset: int, length: int) -> None:
        self._pass("reserve")
        self.extent.reserve(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        self._pass("read")
        return self.extent.read(offset, length)

    def read_now(self, offset: int, length: int) -> bytes | None:  # noqa: ARG002 - never at once
        return None

    def write(self, offset: int, pieces: list[bytes]) -> None:
        self._pass("write")
        self.extent.write(offset, pieces)

    def punch(self, offset: int, length: int) -> None:
        self.extent.punch(offset, length)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what sets for how many milliseconds a store is waited for: long, unless it shall stall.

    On a machine that is busy with other things, an answer that is on its way may take longer than 50.
    """

    def be(milliseconds: int) -> None:
        monkeypatch.setattr(worker, "PATIENCE_MS", milliseconds)

    be(10_000)
    return be


class Late:
    """A store whose answers come when the test says so, and what it tells."""

    def __init__(self, patience: Callable[[int], None]) -> None:
        self._patience = patience
        self.stores = Stores()
        memory = HeldMemory()
        self.at = memory.place(bytes(LENGTH))
        self.memory = memory
        port = HeldStoreMemory(memory, self.at, LENGTH)
        self.extent = Gated(MemoryExtent(port, self.at))
        self.backing = bounded(of([self.extent]), self.stores.tell)
        assert isinstance(self.backing, BoundedBacking)

    def stall(self) -> None:
        self.extent.gate.clear()
        self._patience(50)

    def answer(self) -> None:
        """Let it answer, and wait until it says that it can be asked again."""
        self.extent.gate.set()
        assert select.select([self.stores.ready], [], [], 10)[0], "nobody was told"
        os.eventfd_read(self.stores.ready)
        assert not self.backing._worker.stalled
        self._patience(10_000)

    def close(self) -> None:
        self._patience(10_000)
        self.extent.gate.set()
        self.backing.close()
        self.stores.close()


@pytest.fixture
def late(patience: Callable[[int], None]) -> Iterator[Late]:
    late = Late(patience)
    yield late
    late.close()


def test_a_load_that_stalls_is_answered_when_it_has_come(late: Late) -> None:
    backing = late.backing
    assert backing.store([page(1), page(2)]) == 2
    late.stall()
    with pytest.raises(BackingStalled, match="50 ms"):
        backing.load(1)
    # At once now, whatever is asked.
    for index in (1, 2):
        with pytest.raises(BackingStalled, match="not answered yet"):
            backing.load(index)
    assert backing.stalled
    assert backing.pin([7]) == []
    assert backing.store([page(7)]) == 0
    assert late.extent.calls[2:] == ["read"]
    late.answer()
    reads = late.extent.calls.count("read")
    assert backing.load(1) == page(1)[1:]
    # What came late was kept: a store that is always late is not asked for ever.
    assert late.extent.calls.count("read") == reads
    assert backing.load(1) == page(1)[1:]
    assert backing.load(2) == page(2)[1:]
    assert late.extent.calls.count("read") == reads + 4


def test_a_page_that_came_late_and_was_discarded_is_not_what_is_loaded_next(late: Late) -> None:
    backing = late.backing
    backing.store([page(1)])
    late.stall()
    with pytest.raises(BackingStalled):
        backing.load(1)
    backing.discard(1)
    late.answer()
    backing.store([page(1, 1)])
    assert backing.load(1) == page(1, 1)[1:]


def test_a_store_that_stalls_has_stored_nothing(late: Late) -> None:
    backing = late.backing
    backing.store([page(1)])
    late.stall()
    assert backing.store([page(5), page(6)]) == 0
    late.answer()
    assert backing.pages_held == 1
    # Its write has ended after all, and its PCMDs are taken back.
    assert late.memory.read(late.at + contents_size(SIZE) + 5 * 128, 256) == bytes(256)
    assert backing.load(1) == page(1)[1:]
    assert backing.store([page(5, 1)]) == 1
    assert backing.load(5) == page(5, 1)[1:]


def test_what_is_pinned_late_is_not_pinned(late: Late) -> None:
    late.stall()
    assert late.backing.pin([1, 2]) == []
    late.answer()
    # It may be over by the time that somebody looks: so it is counted.
    assert not late.backing.stalled
    assert late.backing.stalls == 1
    assert late.backing.pin([1, 2]) == [1, 2]
    assert late.backing.stalls == 1


def test_discards_of_a_store_that_stalls_come_in_their_order(late: Late) -> None:
    backing = late.backing
    backing.store([page(index) for index in range(4)])
    late.stall()
    with pytest.raises(BackingStalled):
        backing.load(0)
    for index in (1, 2):
        backing.discard(index)
    late.answer()
    assert backing.pages_held == 2
    pcmds = late.memory.read(late.at + contents_size(SIZE), 4 * 128)
    assert pcmds == page(0)[2] + bytes(256) + page(3)[2]


def test_a_failure_that_comes_late_is_told(late: Late) -> None:
    backing = late.backing
    backing.store([page(1)])
    late.stall()
    with pytest.raises(BackingStalled):
        backing.load(1)
    late.memory.unmap(late.at + 4096, 4096)
    late.answer()
    with pytest.raises(BackingFault):
        backing.load(1)


def test_a_store_that_stalls_is_closed_when_it_answers(
    patience: Callable[[int], None],
) -> None:
    late = Late(patience)
    late.backing.store([page(1)])
    late.stall()
    with pytest.raises(BackingStalled):
        late.backing.load(1)
    late.backing.close()
    assert not late.extent.closed
    patience(10_000)
    late.extent.gate.set()
    until(lambda: late.extent.closed and has_ended(late.backing._worker))
    late.stores.close()


def has_ended(worker: Worker) -> bool:
    """Tell whether the worker's own thread has: another test's may be ending at the same time."""
    assert worker._tid
    return not Path("/proc/self/task", str(worker._tid)).exists()


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does; the test's timeout ends it."""
    pause = threading.Event()
    while not true():
        pause.wait(0.01)


def test_a_closed_store_takes_nothing_and_gives_nothing(late: Late) -> None:
    backing = late.backing
    backing.store([page(1)])
    backing.close()
    backing.close()
    assert backing.pin([1]) == []
    assert backing.store([page(2)]) == 0
    backing.discard(1)
    with pytest.raises(BackingFault, match="closed"):
        backing.load(1)
    assert backing.pages_held == 0


def test_a_store_that_answers_in_time_leaves_no_thread_behind(
    patience: Callable[[int], None],
) -> None:
    late = Late(patience)
    late.backing.store([page(1)])
    worker = late.backing._worker
    descriptors = [late.stores.ready, worker._given, worker._answered]
    assert all(map(is_open, descriptors))
    late.close()
    assert late.extent.closed
    until(lambda: has_ended(worker))
    assert not any(map(is_open, descriptors))


def test_a_mistake_in_a_store_is_told_to_who_asked(late: Late) -> None:
    def wrong(*_: object) -> bytes:
        raise ZeroDivisionError

    late.extent.read = wrong  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        late.backing.load(1)
    assert not late.backing._worker.stalled


def test_a_thread_that_only_waits_for_its_turn_is_no_store_that_stalls(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    late.backing.store([page(1)])
    looked: list[bool] = []
    runs = Worker._runs

    def busy_machine(self: Worker) -> bool:
        looked.append(runs(self))
        if len(looked) == 3:
            late.extent.gate.set()
        return True

    late.stall()
    monkeypatch.setattr(Worker, "_runs", busy_machine)
    assert late.backing.load(1) == page(1)[1:]
    # What really waits for the gate waits for no processor.
    assert looked[:3] == [False] * 3


def test_even_a_busy_machine_is_not_waited_for_for_ever(
    late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    late.stall()
    monkeypatch.setattr(worker, "PATIENCE_MS", 1)
    monkeypatch.setattr(Worker, "_runs", lambda _: True)
    with pytest.raises(BackingStalled):
        late.backing.load(1)
    monkeypatch.undo()
    late.answer()


def test_without_a_thread_there_is_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    made: list[int] = []
    eventfd = os.eventfd

    def noted(*arguments: int) -> int:
        made.append(eventfd(*arguments))
        return made[-1]

    monkeypatch.setattr("_thread.start_new_thread", none)
    monkeypatch.setattr("os.eventfd", noted)
    with pytest.raises(OSError, match="threads") as caught:
        Worker(bool)
    assert caught.value.errno == errno.EAGAIN
    assert len(made) == 2
    assert not any(map(is_open, made))


def test_a_file_that_is_served_late_keeps_nobody_waiting(
    slow_file: Any, patience: Callable[[int], None]
) -> None:
    stores = Stores()
    fd = os.open(slow_file.path, os.O_RDWR | os.O_CLOEXEC)
    backing = bounded(of([FileExtent(fd, 0, 8 << 20, punches=True)]), stores.tell)
    assert isinstance(backing, BoundedBacking)
    # FUSE's own answers: no fallocate, no look at what is cached.
    assert backing.pin([1, 2]) == [1, 2]
    assert backing.store([page(1), page(2)]) == 2
    assert backing.load(1) == page(1)[1:]
    slow_file.gate.clear()
    patience(50)
    with pytest.raises(BackingStalled):
        backing.load(2)
    assert slow_file.waiting.wait(10)
    with pytest.raises(BackingStalled):
        backing.load(1)
    slow_file.gate.set()
    assert select.select([stores.ready], [], [], 10)[0]
    os.eventfd_read(stores.ready)
    patience(10_000)
    assert backing.load(2) == page(2)[1:]
    # A write that stalls, and what was to be stored is in the file none the less: but not its PCMD.
    slow_file.waiting.clear()
    slow_file.gate.clear()
    patience(50)
    assert backing.store([page(9)]) == 0
    assert slow_file.waiting.wait(10)
    slow_file.gate.set()
    assert select.select([stores.ready], [], [], 10)[0]
    at = contents_size(SIZE) + 9 * 128
    assert slow_file.data[at : at + 128] == bytes(128)
    assert backing.pages_held == 2
    patience(10_000)
    backing.close()
    stores.close()


# -- what is in use -----------------------------------------------------------------------------


def test_no_two_stores_share_a_byte() -> None:
    stores = Stores()
    release = stores.claim([Stretch("a", 0x1000, 0x3000), Stretch("b", 0, 0x1000)])
    other = stores.claim([Stretch("a", 0x3000, 0x4000), Stretch("c", 0x1000, 0x3000)])
    for start, end in ((0, 0x1001), (0x2FFF, 0x3000), (0, 0x9000), (0x1800, 0x1801)):
        with pytest.raises(DriverError, match="another enclave's store") as caught:
            stores.claim([Stretch("z", 0, 1), Stretch("a", start, end)])
        assert caught.value.errno == errno.EBUSY
    release()
    release()
    stores.claim([Stretch("a", 0x1000, 0x3000)])()
    stores.claim([Stretch("z", 0, 1), Stretch("b", 0, 0x1000)])()
    other()
    stores.close()
    # A store that is closed after all tells it to nobody.
    stores.tell()
