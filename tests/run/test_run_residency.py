# SPDX-License-Identifier: Apache-2.0
"""What the host's kernel says is in memory of an enclave is what the driver says is resident, and no more."""

import os
import re
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from softsgx.arch.secinfo import VA_SLOTS
from softsgx.run import runs

if TYPE_CHECKING:
    import subprocess

    from conftest import Harness

PAGE = 4096
HEAP = 4 << 20
EPC = "512K"
USERFAULTFD = 323
PATIENCE = 15.0
# Linux: a page of a mapping is in this process's page tables.
PRESENT = 1 << 63


class Standing(NamedTuple):
    """What the program says of itself: page numbers, but for its process."""

    pid: int
    base: int
    pages: range  # all but the TCSs
    in_core: set[int]  # by mincore


class Seen(NamedTuple):
    """What everybody else says: sets of page numbers, and what the control socket tells of the enclave."""

    in_core: set[int]
    in_file: set[int]  # the enclave's memfd
    in_tables: set[int]  # of the process
    in_store: set[int]  # where the driver has evicted pages
    rss: int  # smaps, in pages
    told: dict[str, Any]


def read(line: str) -> Standing:
    pid, *numbers, letters = line.split()
    base, first, last = (int(word, 16) // PAGE for word in numbers)
    pages = range(first, last + 1)
    in_core = {page for page, letter in zip(pages, letters, strict=True) if letter == "1"}
    return Standing(int(pid), base, pages, in_core)


def data_pages(path: Path) -> set[int]:
    """Give the pages of a sparse file that are no holes."""
    found: set[int] = set()
    fd = os.open(path, os.O_RDONLY)
    try:
        at = 0
        with suppress(OSError):  # ENXIO: no data behind
            while True:
                start = os.lseek(fd, at, os.SEEK_DATA)
                at = os.lseek(fd, start, os.SEEK_HOLE)
                found.update(range(start // PAGE, at // PAGE))
    finally:
        os.close(fd)
    return found


def descriptor(pid: int, name: str) -> Path:
    """Find a descriptor of a memfd of this name."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if str(path.readlink()).startswith(f"/memfd:{name}"):
                return path
    pytest.fail(f"process {pid} has no descriptor of {name}")


def mapped(pid: int) -> tuple[set[int], int]:
    """Give the pages of enclaves that a process has in its page tables, and how many smaps counts."""
    found: set[int] = set()
    rss = 0
    lines = iter(Path(f"/proc/{pid}/smaps").read_text().splitlines())
    with Path(f"/proc/{pid}/pagemap").open("rb") as pagemap:
        inside = False
        for line in lines:
            if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = "/memfd:sgx_enclave" in line
                if inside:
                    low, high = (int(word, 16) // PAGE for word in head.groups())
                    pagemap.seek(low * 8)
                    entries = struct.unpack(f"<{high - low}Q", pagemap.read((high - low) * 8))
                    found.update(low + i for i, one in enumerate(entries) if one & PRESENT)
            elif inside and line.startswith("Rss:"):
                rss += int(line.split()[1]) * 1024 // PAGE
    return found, rss


def look(run: int, standing: Standing) -> Seen:
    in_tables, rss = mapped(standing.pid)
    (one,) = runs.ask(PATIENCE, only=run)
    assert one.snapshot is not None, one.problem
    (told,) = one.snapshot["largest_enclaves"]
    store = data_pages(descriptor(run, "SGX backing"))
    return Seen(
        standing.in_core,
        data_pages(descriptor(standing.pid, "sgx_enclave")),
        in_tables,
        # The SECS is the first page behind the enclave, the PCMDs follow.
        {standing.base + index for index in store if index < told["size"] // PAGE},
        rss,
        told,
    )


def agree(seen: Seen, standing: Standing) -> None:
    """See that all say the same."""
    told, everything = seen.told, set(standing.pages)
    tcss = set(range(standing.base, standing.pages.start))
    assert told["pages"] == len(everything) + len(tcss)
    assert seen.in_file <= everything, "a TCS's contents are the processor's"
    assert seen.in_file | seen.in_store & everything == everything
    assert not seen.in_file & seen.in_store
    assert seen.in_core == seen.in_file
    assert seen.in_tables <= seen.in_file
    assert seen.rss == len(seen.in_tables)
    assert len(seen.in_store) == told["backing_pages"] == told["evictions"] - told["reloads"]
    # The SECS is there as long as one of its pages is; a VA page for each 512 pages and the SECS.
    resident_tcss = tcss - seen.in_store
    va_pages = -(-(told["pages"] + 1) // VA_SLOTS)
    assert told["resident"] == len(seen.in_file) + len(resident_tcss) + 1 + va_pages


class Program:
    """The program that stands, and its run."""

    def __init__(self, process: "subprocess.Popen[str]", fifo: Path) -> None:
        assert process.stdout is not None
        self._run, self._out, self._fifo = process.pid, process.stdout, fifo

    def say(self, word: str) -> str:
        """Let it do something, and give what it prints."""
        self._fifo.write_text(f"{word}\n")
        return self._out.readline()

    def settled(self) -> Seen:
        """Look when the background reclaimer has done its work, and see that all say the same."""
        deadline = time.monotonic() + PATIENCE
        before = None
        while True:
            standing = read(self.say("look"))
            now = look(self._run, standing)
            if now == before or time.monotonic() > deadline:
                agree(now, standing)
                return now
            before = now


@pytest.mark.parametrize("way", ["userfaultfd", "without userfaultfd"])
def test_what_is_in_memory_is_what_is_resident(
    softsgx: "Harness", way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    before = [] if way == "userfaultfd" else softsgx.refusing("1", [USERFAULTFD])
    words = (softsgx.program("standing"), *softsgx.enclave(heap=HEAP), str(HEAP), fifo)
    command = softsgx.command(*words, options=("--epc", EPC))
    with softsgx.started([*before, *command]) as process:
        program = Program(process, fifo)
        first = program.settled()
        assert first.told["backing_pages"] > HEAP / PAGE / 2
        touched = int(program.say("touch"), 16) // PAGE
        second = program.settled()
        # What was touched is back, in memory and in the tables of who has touched it.
        assert touched in first.in_store - second.in_store
        assert touched in second.in_tables
        fifo.write_text("end\n")
        assert tuple(softsgx.end_of(process)) == (0, "finished\n", "")
