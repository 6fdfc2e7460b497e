# SPDX-License-Identifier: Apache-2.0
"""`softsgx extract`: the enclaves that a program builds, as they were added and as they were measured."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from softsgx.arch.secinfo import PAGE_SIZE, SECINFO_R, SECINFO_REG, SECINFO_W
from softsgx.cli import main
from softsgx.driver.nodes import LEGACY, nodes_of
from softsgx.image import formats, sgxs
from softsgx.image.stream import Chunks, Image, PageRun, measure

if TYPE_CHECKING:
    from conftest import Ended, Harness

pytestmark = pytest.mark.live

_CHUNK = 256
_FULL = memoryview(b"\x5a" * PAGE_SIZE)
# As the program counts: initialised twice, never, in a child that is killed, and at the end.
_UNFINISHED = 3


def the_enclave(
    softsgx: "Harness", *, heap: int = 0, partly: bool = False
) -> tuple[Image, Path, Path]:
    """Give what programs/extracted.c builds: the image, its SGXS and its SIGSTRUCT."""
    (read,) = formats.read(str(softsgx.enclave(heap=heap)[0]))
    flags, behind = SECINFO_REG | SECINFO_R | SECINFO_W, read.image.size - 4 * PAGE_SIZE
    added: list[PageRun | Chunks] = [
        PageRun(behind, PAGE_SIZE, flags, _FULL, False),
        PageRun(behind + PAGE_SIZE, PAGE_SIZE, flags, None, False),
    ]
    if partly:
        third, fourth = behind + 2 * PAGE_SIZE, behind + 3 * PAGE_SIZE
        added.append(PageRun(third, PAGE_SIZE, flags, _FULL, False))
        added += [Chunks(third + chunk * _CHUNK, _FULL[:_CHUNK]) for chunk in (0, 5, 10, 15)]
        added.append(PageRun(fourth, PAGE_SIZE, flags, None, False))
        added.append(Chunks(fourth + _CHUNK, memoryview(bytes(_CHUNK))))
    image = Image(read.image.size, read.image.ssaframesize, (*read.image.records, *added))
    stream, css = (
        softsgx.directory / f"extracted-{heap:x}{'-partly' * partly}.{kind}"
        for kind in ("sgxs", "css")
    )
    with stream.open("wb") as out:
        sgxs.write(image, out)
    key = ["--key", softsgx.directory / "extracted.pem", "--generate-key"]
    sign = [sys.executable, "-m", "softsgx", "sign", stream, "--out", css, *key]
    subprocess.run([*sign, "--production", "--miscselect", "1"], check=True, capture_output=True)
    return image, stream, css


def extract(softsgx: "Harness", *argv: str | Path, options: tuple[str | Path, ...]) -> "Ended":
    command = softsgx.command(*argv, options=options)
    command[command.index("run")] = "extract"
    return softsgx.complete(command)


def contents(image: Image) -> dict[int, tuple[int, bytes]]:
    """Give SECINFO.FLAGS and contents of each page, in the order in which they are added."""
    return {
        run.offset + at: (run.secinfo_flags, bytes(run.content(at, PAGE_SIZE)))
        for run in image.runs
        for at in range(0, run.length, PAGE_SIZE)
    }


def check(out: Path, image: Image, css: Path, ended: "Ended") -> Path:
    """Check what programs/extracted.c leaves, and give the stream."""
    name = measure(image).hex()
    assert ended.status == 7, ended
    assert ended.out == "ok it works\nok it works\nfinished\n"
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.sgxs", f"{name}.sigstruct"]
    assert (out / f"{name}.sigstruct").read_bytes() == css.read_bytes()
    lines = ended.err.splitlines()
    assert sum("was never initialised" in line for line in lines) == _UNFINISHED, ended.err
    assert lines[-1].startswith(f"softsgx: {out}/{name}.sgxs: ")
    assert len(lines) == _UNFINISHED + 1, ended.err
    return out / f"{name}.sgxs"


@pytest.mark.parametrize("isolation", ["none", "strict"])
def test_what_was_added_and_measured_is_written(
    softsgx: "Harness", tmp_path: Path, isolation: str
) -> None:
    image, stream, css = the_enclave(softsgx)
    out, summary = tmp_path / "new" / "out", tmp_path / "summary.json"
    options = ("--out", out, f"--json={summary}", "--isolation", isolation)
    argv = softsgx.program("extracted"), softsgx.enclave()[0], css
    ended = extract(softsgx, *argv, options=options)
    # Byte for byte, and so without what the program and the enclave have changed since.
    written = check(out, image, css, ended)
    assert written.read_bytes() == stream.read_bytes()
    told = json.loads(summary.read_text())
    (enclave,) = told["enclaves"]
    assert enclave["mrenclave"] == written.stem
    assert (enclave["sgxs"], enclave["times"]) == (str(written), 2)
    assert enclave["pages"] == image.pages
    assert len(told["not_initialised"]) == _UNFINISHED
    assert all(
        given["pid"] and given["pages"] == image.pages - 2 for given in told["not_initialised"]
    )
    assert told["failed"] == []


@pytest.mark.parametrize("driver", LEGACY)
def test_chunks_that_are_measured_alone_are_written_so(
    softsgx: "Harness", tmp_path: Path, driver: str
) -> None:
    image, _, css = the_enclave(softsgx, partly=True)
    node = next(path for path, kind in nodes_of(driver).paths.items() if kind in LEGACY)
    argv = softsgx.program("extracted"), softsgx.enclave()[0], css, node, driver
    ended = extract(softsgx, *argv, options=("--out", tmp_path, "--driver", driver))
    (read,) = formats.read(str(check(tmp_path, image, css, ended)))
    assert measure(read.image) == measure(image)
    assert list(contents(read.image).items()) == list(contents(image).items())
    assert read.fields["canonical"] == "yes"


def test_an_enclave_larger_than_the_epc_is_whole(softsgx: "Harness", tmp_path: Path) -> None:
    image, stream, css = the_enclave(softsgx, heap=4 << 20)
    argv = softsgx.program("extracted"), softsgx.enclave(heap=4 << 20)[0], css
    ended = extract(softsgx, *argv, options=("--out", tmp_path, "--epc", "2M"))
    assert check(tmp_path, image, css, ended).read_bytes() == stream.read_bytes()


def test_a_directory_that_cannot_be_is_one_line(softsgx: "Harness", tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    ended = extract(softsgx, "true", options=("--out", file / "below"))
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"softsgx: --out {file}/below: Not a directory\n"


def test_what_cannot_be_written_ends_no_program(softsgx: "Harness", tmp_path: Path) -> None:
    image, _, css = the_enclave(softsgx)
    argv = softsgx.program("extracted"), softsgx.enclave()[0], css
    name = measure(image).hex()
    # A directory has the name.
    (tmp_path / f"{name}.sgxs" / "x").mkdir(parents=True)
    ended = extract(softsgx, *argv, options=("--out", tmp_path))
    assert ended.status == 7, ended
    assert ended.out == "ok it works\nok it works\nfinished\n"
    warned = [line for line in ended.err.splitlines() if line.startswith("softsgx: warning: ")]
    assert len(warned) == 2
    assert all(line.endswith(": Is a directory") for line in warned), warned
    assert not list(tmp_path.glob(".softsgx*"))


def test_a_program_without_enclaves_is_run_as_it_is(softsgx: "Harness", tmp_path: Path) -> None:
    ended = extract(
        softsgx, "sh", "-c", 'echo "$@"; exit 3', "sh", "--", "-x", options=("--out", tmp_path)
    )
    assert (ended.status, ended.out) == (3, "-- -x\n")
    assert ended.err == "softsgx: no enclave was initialised, nothing is written\n"
    ended = extract(softsgx, "/nonexistent", options=("--out", tmp_path))
    assert ended.status == 127
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_was_converted_to_elf_and_back_runs(softsgx: "Harness", tmp_path: Path) -> None:
    enclave, _ = softsgx.enclave()
    _, _, css = the_enclave(softsgx)
    stream, again = tmp_path / "enclave.sgxs", tmp_path / "again.elf"
    assert main(["convert", str(enclave), str(stream)]) == 0
    assert main(["convert", str(stream), str(again), "--to", "elf"]) == 0
    ended = softsgx.run(softsgx.program("extracted"), again, css)
    assert ended.status == 7, ended
    assert ended.out == "ok it works\nok it works\nfinished\n"


def test_nothing_without_its_name_stays_of_an_extract_that_is_killed(
    softsgx: "Harness", tmp_path: Path
) -> None:
    image, _, css = the_enclave(softsgx)
    argv = softsgx.program("extracted"), softsgx.enclave()[0], css
    ended = extract(softsgx, "env", "KILL_THE_SUPERVISOR=1", *argv, options=("--out", tmp_path))
    assert ended.status == -signal.SIGKILL, ended
    name = measure(image).hex()
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.sgxs", f"{name}.sigstruct"}
