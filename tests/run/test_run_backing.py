# SPDX-License-Identifier: Apache-2.0
"""Real programs whose evicted pages go where they, or the user, say."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Ended, Harness

# Eight times the EPC.
HEAP = 2 << 20
EPC = "256K"
SKIPPED = 77  # of tests/programs/host.h
MEMORY = ["memory", "memory-two", "shared", "create"]
FILES = ["file", "file-two", "punched"]


def provided(softsgx: "Harness", where: str, what: str, cwd: Path) -> "Ended":
    words = [str(HEAP), where, what]
    program = softsgx.program("provided")
    ended = softsgx.run(
        program, *softsgx.enclave(heap=HEAP), *words, options=("--epc", EPC), cwd=cwd
    )
    assert "not ok" not in ended.out, ended.out + ended.err
    assert ended.out.endswith("finished\n"), ended
    assert ended.status == 0, ended
    return ended


@pytest.mark.parametrize("where", MEMORY + FILES)
def test_an_enclave_is_paged_to_where_its_program_says(
    softsgx: "Harness", where: str, tmp_path: Path
) -> None:
    assert provided(softsgx, where, "walk", tmp_path).err == ""


@pytest.mark.parametrize("what", ["flip", "swap", "replay"])
@pytest.mark.parametrize("where", ["memory", "file-two"])
def test_what_was_changed_in_the_store_is_found_out(
    softsgx: "Harness", where: str, what: str, tmp_path: Path
) -> None:
    provided(softsgx, where, what, tmp_path)


@pytest.mark.parametrize("what", ["protect", "unmap"])
@pytest.mark.parametrize("where", ["memory-two", "shared"])
def test_a_store_out_of_reach_is_a_fault_until_it_is_back(
    softsgx: "Harness", where: str, what: str, tmp_path: Path
) -> None:
    provided(softsgx, where, what, tmp_path)


@pytest.mark.parametrize("where", ["file", "file-two"])
def test_a_truncated_store_is_a_fault_until_it_is_back(
    softsgx: "Harness", where: str, tmp_path: Path
) -> None:
    provided(softsgx, where, "truncate", tmp_path)


@pytest.mark.parametrize("what", ["exit", "exec"])
def test_an_enclave_ends_with_the_process_whose_memory_is_its_store(
    softsgx: "Harness", what: str, tmp_path: Path
) -> None:
    provided(softsgx, "memory", what, tmp_path)


def test_what_can_be_a_store_and_what_cannot(softsgx: "Harness") -> None:
    softsgx.checked("backing_rules")


def test_so_it_is_for_an_ordinary_user(softsgx: "Harness", ordinary_user: int | None) -> None:
    softsgx.checked("backing_rules", uid=ordinary_user)


# -- where the user says --------------------------------------------------------------------------

MARK = b"softsgx backing\0".ljust(4096, b"\0")


def pressure(softsgx: "Harness", what: str = "walk", heap: int = HEAP) -> list[str]:
    program = softsgx.program("pressure")
    return [str(word) for word in (program, *softsgx.enclave(heap=heap), heap, what)]


@pytest.mark.parametrize("where", ["kernel", "file:store", "dir:."])
def test_an_unmodified_program_is_paged_to_where_the_user_says(
    softsgx: "Harness", where: str, tmp_path: Path
) -> None:
    calls = " & ".join(" ".join(pressure(softsgx, what, HEAP // 2)) for what in ("walk", "fork"))
    options = ("--epc", EPC, "--backing", where)
    ended = softsgx.run("sh", "-c", f"{calls} & wait", options=options, cwd=tmp_path)
    assert ended.out.count("finished") == 2, ended.out + ended.err
    assert ended.err == ""
    # Nothing is left but a file's mark.
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == ({"store": MARK} if where == "file:store" else {})


def test_without_a_store_an_enclave_is_no_larger_than_the_epc(softsgx: "Harness") -> None:
    ended = softsgx.run(*pressure(softsgx), options=("--epc", EPC, "--backing=none"))
    assert "SGX_IOC_ENCLAVE_ADD_PAGES (errno 12" in ended.out
    assert "ENOMEM" in ended.err
    assert ended.err.count("\n") == 1, ended.err


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("disk", "wanted is kernel, file:PATH, dir:PATH or none"),
        ("file:/dev/null", "not a regular file"),
        ("file:thesis", "it holds data that is not softsgx's"),
        ("file:missing/store", "No such file or directory"),
        ("dir:missing", "No such file or directory"),
        ("dir:thesis", "Not a directory"),
    ],
)
def test_a_mistake_is_told_before_the_program_starts(
    softsgx: "Harness", where: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / "thesis").write_text("chapter 1")
    options = ("--backing", where)
    ended = softsgx.run("touch", tmp_path / "started", options=options, cwd=tmp_path)
    assert ended.status == 2
    assert ended.err.startswith(f"softsgx: --backing {where}: {why}")
    assert ended.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]
    assert (tmp_path / "thesis").read_text() == "chapter 1"


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def until(true: Any) -> None:
    """Wait for what other processes do; the test's timeout ends it."""
    while not true():
        time.sleep(0.02)


def test_what_a_run_that_was_killed_has_left_is_no_hindrance(
    softsgx: "Harness", tmp_path: Path
) -> None:
    store = tmp_path / "store"
    options = ("--epc", EPC, "--backing", f"file:{store}")
    command = softsgx.command(*pressure(softsgx, "threads"), options=options)
    with softsgx.started(command, cwd=tmp_path) as process:
        until(lambda: store.exists() and store.stat().st_blocks * 512 > HEAP // 4)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert store.stat().st_blocks * 512 > HEAP // 4
    ended = softsgx.run(*pressure(softsgx), options=options, cwd=tmp_path)
    assert ended.status == 0, ended
    assert store.read_bytes() == MARK


# -- a store that answers late ----------------------------------------------------------------------


@pytest.fixture
def slow_file(tmp_path: Path) -> Iterator[Any]:
    """Yield a file of 16 MiB that can be made to answer late: see tests/driver/slow_file.py."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "driver"))
    try:
        from slow_file import SlowFile  # noqa: PLC0415

        file = SlowFile(tmp_path / "slow", 16 << 20)
    except OSError as error:
        pytest.skip(f"FUSE cannot be mounted here: {error}")
    finally:
        sys.path.pop(0)
    yield file
    file.close()


def test_a_page_that_the_program_itself_supplies_is_waited_for(
    softsgx: "Harness", tmp_path: Path
) -> None:
    program, words = softsgx.program("provided"), [str(HEAP), "shared", "late"]
    ended = softsgx.run(
        program, *softsgx.enclave(heap=HEAP), *words, options=("--epc", EPC), cwd=tmp_path
    )
    if ended.status == SKIPPED:
        pytest.skip(ended.out.splitlines()[-1])
    assert "not ok" not in ended.out, ended.out + ended.err
    assert ended.out.endswith("finished\n"), ended


def test_a_store_that_answers_late_keeps_only_its_own_enclave_waiting(
    softsgx: "Harness", slow_file: Any, tmp_path: Path
) -> None:
    provided = softsgx.program("provided")
    late = [
        str(word) for word in (provided, *softsgx.enclave(heap=HEAP), HEAP, "file=slow", "hash")
    ]
    prompt = pressure(softsgx, "threads")
    script = f"{' '.join(late)} > late & {' '.join(prompt)} > prompt; mv prompt ended; wait"
    command = softsgx.command("sh", "-c", script, options=("--epc", EPC))
    with softsgx.started(command, cwd=tmp_path) as process:
        until(lambda: process.poll() is not None or "\nok filled" in text_of(tmp_path / "late"))
        slow_file.gate.clear()
        assert slow_file.waiting.wait(60)
        until(lambda: process.poll() is not None or (tmp_path / "ended").exists())
        # It has gone through all its pages while the other one waits.
        assert "finished" in text_of(tmp_path / "ended")
        assert "finished" not in text_of(tmp_path / "late")
        slow_file.gate.set()
        ended = softsgx.end_of(process)
    assert ended.status == 0, ended
    assert ended.err == ""
    text = (tmp_path / "late").read_text()
    assert "not ok" not in text
    assert text.endswith("finished\n")
