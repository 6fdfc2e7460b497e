# SPDX-License-Identifier: Apache-2.0
"""`softsgx run --backing`: one place for the pages of all enclaves that choose none."""

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softsgx.arch.ioctl import BACKING_FD, BACKING_KERNEL, BACKING_NONE
from softsgx.driver import default_stores, worker
from softsgx.driver.backing import BackingStalled, KernelBacking, NoBacking, store_size
from softsgx.driver.default_stores import default_store
from softsgx.driver.platform import Platform
from softsgx.driver.provided import BoundedBacking
from softsgx.driver.state import State
from softsgx.driver.stores import Stores
from softsgx.errors import DriverError, SoftsgxError

SIZE = 0x40_0000
LENGTH = -(-store_size(SIZE) // 4096) * 4096
PAGE = (3, b"c" * 4096, b"p" * 128)
MARK = b"softsgx backing\0".ljust(4096, b"\0")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE_MS", 10_000)


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


class Run:
    """The stores of a run, and what they have made."""

    def __init__(self, where: str) -> None:
        self.stores = Stores(default_store(where))

    def make(self, size: int = SIZE) -> Any:
        return self.stores.default(size)

    def close(self) -> None:
        self.stores.close()


def mistake(where: str) -> str:
    with pytest.raises(SoftsgxError) as caught:
        default_store(where)
    message = str(caught.value)
    assert message.startswith(f"--backing {where}: ")
    assert "\n" not in message
    return message.removeprefix(f"--backing {where}: ")


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("where", ["", "ram", "file", "file:", "dir", "dir:", "kernel:x", "none:"])
def test_what_it_may_be(where: str) -> None:
    assert mistake(where) == "wanted is kernel, file:PATH, dir:PATH or none"


def test_kernel_and_none() -> None:
    for where, kind in (("kernel", KernelBacking), ("none", NoBacking)):
        run = Run(where)
        assert type(run.make()) is kind
        run.close()


# -- file: -------------------------------------------------------------------------------------


def test_a_file_is_made_marked_and_left_with_its_mark(directory: Path) -> None:
    path = directory / "store"
    run = Run(f"file:{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == MARK
    store = run.make()
    assert not store.kills
    assert not store.kill_on_error
    assert store.pin([3]) == [3]
    assert store.store([PAGE]) == 1
    assert store.load(3) == PAGE[1:]
    data = path.read_bytes()
    assert data[4096 + 3 * 4096 : 4096 + 4 * 4096] == PAGE[1]
    at = 4096 + SIZE + 4096 + 3 * 128
    assert data[at : at + 128] == PAGE[2]
    # Mark, page, PCMDs: no more is allocated.
    assert blocks(path) == 3 * 4096
    store.discard(3)
    assert store.pages_held == 0
    # Behind what was given to a store's own thread.
    assert store.pin([]) == []
    assert blocks(path) == (3 if isinstance(store, BoundedBacking) else 1) * 4096
    assert not any(path.read_bytes()[at : at + 128])
    store.close()
    assert blocks(path) == 4096
    run.close()
    assert path.read_bytes() == MARK
    # Another run may have it.
    Run(f"file:{path}").close()


def test_enclaves_have_stretches_apart_that_are_used_again(directory: Path) -> None:
    path = directory / "store"
    run = Run(f"file:{path}")
    small = -(-store_size(0x2000) // 4096) * 4096
    first, second, third = run.make(), run.make(0x2000), run.make()
    for number, store in enumerate((first, second, third)):
        assert store.store([(0, bytes([number + 1]) * 4096, bytes([number + 1]) * 128)]) == 1
    data = path.read_bytes()
    at = (4096, 4096 + LENGTH, 4096 + LENGTH + small)
    assert [data[start] for start in at] == [1, 2, 3]
    second.close()
    second.close()  # once is enough
    first.close()
    # What is given back is empty.
    data = path.read_bytes()
    assert not any(data[4096 : 4096 + LENGTH + small])
    # The first that fits, and what is left of it.
    again, beside = run.make(0x2000), run.make(0x2000)
    for number, store in ((4, again), (5, beside)):
        assert store.store([(0, bytes([number]) * 4096, bytes([number]) * 128)]) == 1
        assert store.load(0) == (bytes([number]) * 4096, bytes([number]) * 128)
    data = path.read_bytes()
    assert (data[4096], data[4096 + small], data[4096 + LENGTH + small]) == (4, 5, 3)
    assert third.load(0) == (b"\3" * 4096, b"\3" * 128)
    for store in (again, beside, third):
        store.close()
    run.close()


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "thesis"
    path.write_bytes(b"a")
    assert mistake(f"file:{path}").startswith("it holds data that is not softsgx's")
    assert path.read_bytes() == b"a"


def test_a_file_of_zeros_keeps_its_length(tmp_path: Path) -> None:
    path = tmp_path / "prepared"
    path.touch()
    os.truncate(path, 1 << 20)
    run = Run(f"file:{path}")
    store = run.make()
    # Longer while it is needed.
    assert store.store([PAGE]) == 1
    assert path.stat().st_size > 1 << 20
    store.close()
    run.close()
    assert path.stat().st_size == 1 << 20
    assert blocks(path) == 4096


def test_what_a_run_that_was_killed_has_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(MARK + b"x" * 10_000)
    run = Run(f"file:{path}")
    assert path.read_bytes() == MARK
    run.close()


def test_two_runs_have_not_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "store"
    run = Run(f"file:{path}")
    assert mistake(f"file:{path}") == "another run is using it"
    run.close()
    Run(f"file:{path}").close()


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert mistake(f"file:{tmp_path / 'pipe'}") == "not a regular file"
    assert mistake("file:/dev/null") == "not a regular file"
    assert mistake(f"file:{tmp_path}") == "Is a directory"
    assert mistake(f"file:{tmp_path}/missing/store") == "No such file or directory"


def test_a_refused_file_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_bytes(b"a")
    before = targets()
    for path in ("/dev/null", tmp_path / "thesis", tmp_path):
        mistake(f"file:{path}")
    mistake("dir:/proc")
    # There may be fewer: the worker of another test's store may be ending.
    assert not targets() - before


def targets() -> Counter[str]:
    """Count what this process's descriptors are open on."""
    found: Counter[str] = Counter()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[str(each.readlink())] += 1
    return found


def test_a_program_cannot_choose_what_is_in_use_already(tmp_path: Path) -> None:
    path = tmp_path / "store"
    default = default_store(f"file:{path}")
    with Platform(epc=1 << 20, state=State.temporary(), backing=default) as platform:
        enclave, other = platform.open_enclave(), platform.open_enclave()
        enclave.create(secs())
        other.create(secs())
        fd = os.open(path, os.O_RDWR)
        os.ftruncate(fd, 8 * LENGTH)
        with pytest.raises(DriverError) as caught:
            other.set_backing(BACKING_FD, contents=(4096, LENGTH), file=fd)
        assert caught.value.errno == errno.EBUSY
        # Elsewhere in it, it can; and then its default stretch is free.
        other.set_backing(BACKING_FD, contents=(4096 + 4 * LENGTH, LENGTH), file=fd)
        os.close(fd)
        assert other.file.encl.backing.store([PAGE]) == 1
        assert path.read_bytes()[4096 + 4 * LENGTH + 3 * 4096 :][:4096] == PAGE[1]


def secs() -> bytes:
    from softsgx.arch.structures import Secs  # noqa: PLC0415

    fields = {"size": SIZE, "baseaddr": 0x7F00_0000_0000, "ssaframesize": 1}
    return Secs.blank().replace(**fields, attributes=4, xfrm=3).encode()


def test_a_run_ends_with_enclaves_that_nobody_has_closed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    run = Run(f"file:{path}")
    store = run.make()
    store.store([PAGE])
    run.close()
    assert path.read_bytes() == MARK
    store.close()
    assert path.stat().st_size == 4096


def test_a_full_file_system_takes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(f"file:{tmp_path / 'store'}")
    store = run.make()

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", full)
        assert store.store([PAGE]) == 0
    assert store.pages_held == 0
    assert store.store([PAGE]) == 1
    store.close()
    run.close()


def test_a_slow_file_keeps_nobody_waiting(slow_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_file.data = bytearray()
    run = Run(f"file:{slow_file.path}")
    store = run.make()
    assert store.pin([3]) == [3]
    assert store.store([PAGE]) == 1
    slow_file.gate.clear()
    monkeypatch.setattr(worker, "PATIENCE_MS", 50)
    with pytest.raises(BackingStalled):
        store.load(3)
    store.close()
    monkeypatch.setattr(worker, "PATIENCE_MS", 10_000)
    slow_file.gate.set()
    run.close()


# -- dir: --------------------------------------------------------------------------------------


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_directory_has_a_file_for_each_enclave_and_shows_none(
    directory: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    if not unnamed:
        real = os.open

        def older(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "no such flag")
            return real(path, flags, mode, dir_fd=dir_fd)

        monkeypatch.setattr(default_stores.os, "open", older)
    run = Run(f"dir:{directory}")
    stores = [run.make() for _ in range(3)]
    for number, store in enumerate(stores):
        assert store.pin([number]) == [number]
        assert store.store([(number, bytes([number]) * 4096, bytes([number]) * 128)]) == 1
    for number, store in enumerate(stores):
        assert store.load(number) == (bytes([number]) * 4096, bytes([number]) * 128)
    assert list(directory.iterdir()) == []
    for store in stores:
        store.close()
    run.close()


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert mistake(f"dir:{tmp_path / 'file'}") == "Not a directory"
    assert mistake(f"dir:{tmp_path / 'missing'}") == "No such file or directory"
    assert mistake("dir:/proc").startswith("no file can be made there: ")


def test_without_a_descriptor_there_is_no_enclave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(f"dir:{tmp_path}")

    def none(*_: Any, **__: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(default_stores.os, "open", none)
    with pytest.raises(DriverError) as caught:
        run.make()
    assert caught.value.errno == errno.EMFILE
    monkeypatch.undo()
    run.close()


# -- what a program says goes before ------------------------------------------------------------


def test_what_a_program_chooses_goes_before_the_default(tmp_path: Path) -> None:
    default = default_store(f"dir:{tmp_path}")
    with Platform(epc=1 << 20, state=State.temporary(), backing=default) as platform:
        enclave = platform.open_enclave()
        enclave.create(secs())
        enclave.set_backing(BACKING_NONE)
        assert enclave.file.encl.backing.kills


def test_the_default_of_none_is_what_kernel_means_then() -> None:
    default = default_store("none")
    with Platform(epc=1 << 20, state=State.temporary(), backing=default) as platform:
        enclave = platform.open_enclave()
        enclave.create(secs())
        enclave.set_backing(BACKING_KERNEL)
        assert enclave.file.encl.backing.kills
