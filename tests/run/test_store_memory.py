# SPDX-License-Identifier: Apache-2.0
"""The memory of another process as a store: what is protected, unmapped or gone is told, never touched."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softsgx.driver.stores import Stretch
from softsgx.errors import Fault
from softsgx.run import store_memory
from softsgx.run.store_memory import ProgramStoreMemory

# Does to its memory what it is told, a line each.
OWNER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
at = libc.mmap(None, 16 * 4096, 3, 0x22, -1, 0)
print(at, flush=True)
for line in sys.stdin:
    what, *rest = line.split()
    if what == "exec":
        os.execvp(rest[0], rest)
    if what == "protect":
        assert not libc.mprotect(at + int(rest[0]) * 4096, 4096, int(rest[1]))
    if what == "unmap":
        assert not libc.munmap(at + int(rest[0]) * 4096, 4096)
    if what == "byte":
        print(ctypes.string_at(at + int(rest[0]), 1)[0], flush=True)
        continue
    print("done", flush=True)
"""


class Owner:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.at = int(self._line())
        self.pid = self.process.pid

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def tell(self, line: str) -> str:
        self.say(line)
        return self._line()

    def store(self, *, hidden: bool = False) -> ProgramStoreMemory:
        mem = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        maps = -1 if hidden else os.open(f"/proc/{self.pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
        return ProgramStoreMemory(self.pid, mem, maps, [])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.end()


@pytest.fixture(params=["PROCMAP_QUERY", "maps"])
def store(
    request: pytest.FixtureRequest, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ProgramStoreMemory]:
    """Yield the owner's memory, on a kernel that can be asked about a mapping and on one that cannot."""
    if request.param == "maps":

        def older(*_: Any) -> int:
            raise OSError(errno.ENOTTY, "no such ioctl")

        monkeypatch.setattr(fcntl, "ioctl", older)
    store = owner.store()
    yield store
    store.close()


def fails(store: ProgramStoreMemory, at: int, length: int = 4096) -> tuple[bool, bool]:
    """Tell whether reading fails, and writing."""
    outcome = []
    for call in (lambda: store.read(at, length), lambda: store.write(at, bytes(length))):
        try:
            call()
        except OSError:
            outcome.append(True)
        else:
            outcome.append(False)
    return outcome[0], outcome[1]


def test_what_is_written_is_there(store: ProgramStoreMemory, owner: Owner) -> None:
    data = os.urandom(3 * 4096)
    store.write(owner.at + 100, data)
    assert store.read(owner.at + 100, len(data)) == data
    assert owner.tell("byte 100") == f"{data[0]}\n"


@pytest.mark.parametrize(
    ("rights", "read_fails", "write_fails"),
    [(0, True, True), (1, False, True), (3, False, False), (7, False, False)],
)
def test_protection_counts(
    store: ProgramStoreMemory, owner: Owner, rights: int, read_fails: bool, write_fails: bool
) -> None:
    store.write(owner.at, b"\1" * 8 * 4096)
    owner.tell(f"protect 3 {rights}")
    assert fails(store, owner.at + 3 * 4096) == (read_fails, write_fails)
    # Across it, and beside it.
    assert fails(store, owner.at + 2 * 4096, 3 * 4096) == (read_fails, write_fails)
    assert fails(store, owner.at, 3 * 4096) == (False, False)
    owner.tell("protect 3 3")
    if write_fails:
        # Nothing has been written to the protected page.
        assert store.read(owner.at + 3 * 4096, 4096) == b"\1" * 4096
    assert fails(store, owner.at, 8 * 4096) == (False, False)


def test_a_hole_is_told(store: ProgramStoreMemory, owner: Owner) -> None:
    owner.tell("unmap 3")
    assert fails(store, owner.at + 3 * 4096) == (True, True)
    assert fails(store, owner.at + 2 * 4096, 2 * 4096) == (True, True)
    assert fails(store, owner.at + 4 * 4096) == (False, False)
    assert not store.gone


def test_the_end_of_the_process_is_told(store: ProgramStoreMemory, owner: Owner) -> None:
    assert not store.gone
    owner.process.kill()
    owner.process.wait()
    assert store.gone
    assert fails(store, owner.at) == (True, True)


def test_what_the_process_executes_is_left_alone(store: ProgramStoreMemory, owner: Owner) -> None:
    owner.say("exec cat")
    # Not before: what is said to both at once, the first one reads.
    while Path(f"/proc/{owner.pid}/comm").read_text(encoding="ascii") != "cat\n":
        time.sleep(0.01)
    assert owner.tell("hello") == "hello\n"
    assert store.gone
    with Path(f"/proc/{owner.pid}/maps").open("rb") as maps:
        mapped = [line.split()[0].split(b"-") for line in maps if b" rw-p " in line]
    low, high = (int(part, 16) for part in mapped[0])
    with Path(f"/proc/{owner.pid}/mem").open("rb") as memory:
        memory.seek(low)
        before = memory.read(high - low)
        assert fails(store, low) == (True, True)
        memory.seek(low)
        assert memory.read(high - low) == before


def test_where_the_maps_are_hidden_only_what_is_mapped_counts(owner: Owner) -> None:
    store = owner.store(hidden=True)
    owner.tell("protect 3 0")
    owner.tell("unmap 5")
    assert fails(store, owner.at + 3 * 4096) == (False, False)
    assert fails(store, owner.at + 5 * 4096) == (True, True)
    owner.process.kill()
    owner.process.wait()
    assert store.gone
    assert fails(store, owner.at) == (True, True)
    store.close()


def test_a_closed_store_gives_its_descriptors_back(owner: Owner) -> None:
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    store = owner.store()
    store.close()
    store.close()
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


# -- what can be a store ------------------------------------------------------------------------


def maps_of(tmp_path: Path, text: str) -> int:
    path = tmp_path / "maps"
    path.write_text(text)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


MAPS = """\
7f0000000000-7f0000004000 rw-p 00000000 00:00 0
7f0000004000-7f0000006000 rw-s 00010000 08:02 1234                       /a name with spaces
7f0000006000-7f0000007000 r--p 00000000 00:00 0
7f0000009000-7f000000a000 rw-p 00003000 08:02 1234                       /private
"""


@pytest.mark.parametrize(
    ("start", "end", "bad"),
    [
        (0x7F0000000000, 0x7F0000004000, None),
        (0x7F0000001000, 0x7F0000006000, None),
        (0x7F0000009000, 0x7F000000A000, None),
        (0x7F0000001000, 0x7F0000007000, 0x7F0000006000),
        (0x7F0000006000, 0x7F0000007000, 0x7F0000006000),
        (0x7F0000008000, 0x7F000000A000, 0x7F0000008000),
        (0x7F0000009000, 0x7F000000B000, 0x7F000000A000),
        (0x7F000000A000, 0x7F000000B000, 0x7F000000A000),
        (0x7E0000000000, 0x7F0000001000, 0x7E0000000000),
    ],
)
def test_every_page_must_be_readable_and_writable(
    tmp_path: Path, start: int, end: int, bad: int | None
) -> None:
    maps = maps_of(tmp_path, MAPS)
    if bad is None:
        first, *_ = store_memory._writable(maps, start, end)
        assert first[0] == start
    else:
        with pytest.raises(Fault) as caught:
            list(store_memory._writable(maps, start, end))
        assert caught.value.address == bad
    os.close(maps)


def test_what_is_shared_of_a_file_is_the_files(tmp_path: Path) -> None:
    maps = maps_of(tmp_path, MAPS)
    found = list(store_memory._writable(maps, 0x7F0000002000, 0x7F0000005000))
    shared = Stretch((os.makedev(8, 2), 1234), 0x10000, 0x11000)
    assert found == [(0x7F0000002000, None), (0x7F0000004000, shared)]
    private = list(store_memory._writable(maps, 0x7F0000009000, 0x7F000000A000))
    assert private == [(0x7F0000009000, None)]
    os.close(maps)


def test_a_long_list_of_mappings_is_read_whole(tmp_path: Path) -> None:
    lines = [f"{at:x}-{at + 4096:x} rw-p 00000000 00:00 0 \n" for at in range(0, 1 << 25, 4096)]
    maps = maps_of(tmp_path, "".join(lines))
    assert len(list(store_memory._mappings(maps))) == len(lines)
    os.close(maps)
