# SPDX-License-Identifier: Apache-2.0
"""`softsgx run` as a command: statuses, signals, and what is there when it has ended."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

EPC_PAGES = 512
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (looked at, never written)
EPC = f"{EPC_PAGES * 4}K"


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 15
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


# -- status ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 3, 255])
def test_the_exit_status_is_the_programs(softsgx: "Harness", status: int) -> None:
    assert tuple(softsgx.run("sh", "-c", f"exit {status}")) == (status, "", "")


@pytest.mark.parametrize("name", ["TERM", "KILL", "ABRT", "SEGV", "USR1", "PIPE"])
def test_death_by_a_signal_is_the_programs(softsgx: "Harness", name: str) -> None:
    ended = softsgx.run("sh", "-c", f"kill -{name} $$")
    assert tuple(ended) == (-signal.Signals[f"SIG{name}"], "", "")


def test_a_shell_sees_128_and_the_signal(softsgx: "Harness") -> None:
    command = softsgx.command("sh", "-c", "kill -TERM $$")
    # A shell may say itself that a command was terminated, so its standard error is not looked at.
    ended = softsgx.complete(["sh", "-c", '"$@"; echo $?', "-", *command])
    assert ended.out == "143\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("option", ["--stats", "--epc=64M"])
def test_a_standard_stream_may_be_closed(softsgx: "Harness", closed: str, option: str) -> None:
    command = softsgx.command("sh", "-c", "exit 3", options=(option,))
    assert softsgx.complete(["sh", "-c", f'"$@" {closed}', "-", *command]).status == 3


@pytest.mark.parametrize(
    "options",
    [
        ["--no-such-option"],
        ["--kill_on_exit"],
        ["--epc", "much"],
        ["--epc", "9" * 5000],
        ["--epc", "0"],
        ["--epc", "100"],
        ["--trace"],
        ["--trace", "/nonexistent/trace"],
        ["--stats-json", "/nonexistent/stats"],
        ["--epc=128M"],
        [],
    ],
    ids=lambda options: " ".join(options)[:20],
)
def test_a_bad_option_is_status_2(softsgx: "Harness", options: list[str]) -> None:
    state = ["--state", str(softsgx.state)]
    # Without a program the good ones are wrong too.
    program = [] if options in ([], ["--epc=128M"]) else ["--", "true"]
    if options == ["--trace"]:
        program = []
    ended = softsgx.complete([sys.executable, "-m", "softsgx", "run", *state, *options, *program])
    assert (ended.status, ended.out) == (2, ""), ended
    assert ended.err
    assert "Traceback" not in ended.err


def test_a_program_that_is_not_there_is_127(softsgx: "Harness", tmp_path: Path) -> None:
    for name in ("no-such-program-anywhere", str(tmp_path / "missing"), ""):
        ended = softsgx.run(name)
        assert (ended.status, ended.out) == (127, ""), ended
        assert ended.err.startswith("softsgx: ")
        assert ended.err.count("\n") == 1


def test_a_program_that_cannot_be_executed_is_126(softsgx: "Harness", tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    for path in (plain, tmp_path):
        ended = softsgx.run(path)
        assert (ended.status, ended.out) == (126, ""), ended
        assert str(path) in ended.err
        assert ended.err.count("\n") == 1


def test_a_run_inside_a_run_is_refused_in_a_line(softsgx: "Harness") -> None:
    ended = softsgx.run(*softsgx.command("true"))
    assert ended.status == 2, ended
    assert not ended.out
    assert ended.err.count("\n") == 1, ended
    assert ended.err.startswith("softsgx: ")
    assert "softsgx run" in ended.err


# -- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_run_reaches_the_program(
    softsgx: "Harness", number: signal.Signals
) -> None:
    script = f"trap 'echo caught; exit 5' {number}; echo ready; while :; do sleep 0.02; done"
    with softsgx.started(softsgx.command("sh", "-c", script)) as process:
        assert line_of(process) == "ready\n"
        process.send_signal(number)
        ended = softsgx.end_of(process)
    assert tuple(ended) == (5, "caught\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_terminals_signal_ends_everything(softsgx: "Harness", number: signal.Signals) -> None:
    if shutil.which("dash") is None:
        pytest.skip("dash is missing")
    # dash, unlike bash, dies of both.
    script = "ulimit -c 0; echo ready; sleep 30 | sleep 30; echo not reached"
    with softsgx.started(softsgx.command("dash", "-c", script)) as process:
        assert line_of(process) == "ready\n"
        time.sleep(0.1)
        os.killpg(process.pid, number)
        ended = softsgx.end_of(process)
    assert tuple(ended) == (-number, "", "")


def test_a_terminals_signal_ends_a_program_inside_its_enclave(softsgx: "Harness") -> None:
    command = softsgx.command(
        softsgx.program("spin_inside"),
        *softsgx.enclave(),
        str(EPC_PAGES),
        options=("--epc", EPC),
    )
    with softsgx.started(command) as process:
        assert line_of(process) == "inside\n"
        os.killpg(process.pid, signal.SIGINT)
        ended = softsgx.end_of(process)
    assert ended[:2] == (-signal.SIGINT, "")
    assert ended.err == ""


def test_an_epc_that_is_full_is_told_once(softsgx: "Harness") -> None:
    heap = 4 * EPC_PAGES * 4096
    words = [softsgx.program("pressure"), *softsgx.enclave(heap=heap), str(heap), "walk"]
    call = " ".join(map(str, words))
    ended = softsgx.run("sh", "-c", f"{call}; {call}", options=("--epc", EPC, "--backing", "none"))
    assert ended.out.count("Cannot allocate memory") == 2
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("softsgx: warning: process ")
    assert "--epc SIZE" in ended.err


# -- what stays behind ----------------------------------------------------------------------------


def files_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_a_program_killed_inside_leaves_nothing(softsgx: "Harness", tmp_path: Path) -> None:
    program = softsgx.program("spin_inside")
    elf, css = softsgx.enclave()
    call = f"{program} {elf} {css} {EPC_PAGES}"
    # Twice the whole EPC is taken by a program that is killed inside; then it is all there.
    script = (
        f"for i in 1 2; do {call} >said & pid=$!; "
        "while kill -0 $pid && ! grep -q inside said; do sleep 0.02; done; "
        f"kill -KILL $pid; wait $pid; echo $?; done 2>errors; rm said errors; {call} leave"
    )
    softsgx.run("true")  # makes the state
    before = files_below(softsgx.directory), files_below(SHARED_MEMORY)
    ended = softsgx.run("bash", "-c", script, options=("--epc", EPC), cwd=tmp_path)
    assert ended[:2] == (0, "137\n137\nfilled\n")
    assert ended.err == ""
    assert (files_below(softsgx.directory), files_below(SHARED_MEMORY)) == before
    assert not files_below(tmp_path)


def test_killing_the_supervisor_kills_the_programs_and_the_keeper(softsgx: "Harness") -> None:
    program = softsgx.program("spin_inside")
    elf, css = softsgx.enclave()
    script = f"sleep 60 & (sleep 60; echo late) & exec {program} {elf} {css} {EPC_PAGES}"
    command = softsgx.command("sh", "-c", script, options=("--epc", EPC))
    with softsgx.started(command) as process:
        assert line_of(process) == "inside\n"
        mark = next(
            word
            for word in Path(f"/proc/{process.pid}/environ").read_text().split("\0")
            if word.startswith("SOFTSGX_TEST=")
        )
        # The supervisor, its keeper, the program, two sleeps and the shell between.
        assert len(softsgx.marked(mark)) == 6
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
        wait_until(lambda: not softsgx.marked(mark), "programs or keeper outlive the supervisor")
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_a_killed_keeper_is_replaced(softsgx: "Harness") -> None:
    call = join(map(str, [softsgx.program("reopened"), *softsgx.enclave()]))
    # Of the supervisor's two children one is this shell.
    kill = "for pid in $(cat /proc/$PPID/task/$PPID/children); do [ $pid = $$ ] || kill -KILL $pid; done"
    script = f"{call} >&2 && {kill} && sleep 0.1 && {call} >&2 && {kill} && exec {call}"
    ended = softsgx.run("sh", "-c", script)
    assert ended.status == 0, ended
    assert ended.out.endswith("finished\n")


def test_a_stopped_keeper_holds_nobody_up(softsgx: "Harness") -> None:
    call = join(map(str, [softsgx.program("reopened"), *softsgx.enclave()]))
    stop = "for pid in $(cat /proc/$PPID/task/$PPID/children); do [ $pid = $$ ] || kill -STOP $pid; done"
    ended = softsgx.run("sh", "-c", f"{call} && {stop}")
    assert ended.status == 0, ended
    assert ended.out.endswith("finished\n")


def test_a_program_may_have_the_id_of_a_killed_keeper(softsgx: "Harness") -> None:
    namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace of process ids is for root only")
    outer = [*namespace, "sh", "-c", '"$@"; exit $?', "-"]
    command = softsgx.command(softsgx.program("keepers_id"), *softsgx.enclave())
    ended = softsgx.complete([*outer, *command])
    assert ended.status == 0, ended
    assert ended.out.endswith("finished\n")


def test_a_run_after_all_that_works(softsgx: "Harness") -> None:
    ended = softsgx.run(
        softsgx.program("spin_inside"),
        *softsgx.enclave(),
        str(EPC_PAGES),
        "leave",
        options=("--epc", EPC),
    )
    assert ended[:2] == (0, "filled\n")
    assert ended.err == ""
