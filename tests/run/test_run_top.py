# SPDX-License-Identifier: Apache-2.0
"""`softsgx top`: what it shows of real runs, and how it leaves the terminal."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from softsgx.cli import main, top
from softsgx.run.runs import Run

if TYPE_CHECKING:
    from conftest import Harness

live = pytest.mark.live

TIMEOUT = 30
EPC_PAGES = 512
TOP = [sys.executable, "-m", "softsgx", "top"]
ENTER_SCREEN, LEAVE_SCREEN, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
CTRL_C, CTRL_Z = "\x03", "\x1a"


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "runtime"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    return directory


class Held(NamedTuple):
    """A run of tests/run/programs/held.c, and the process of the program."""

    run: subprocess.Popen[str]
    program: int

    def end(self) -> None:
        self.run.send_signal(signal.SIGTERM)
        assert self.run.wait(TIMEOUT) == 0


@contextmanager
def held(softsgx: "Harness") -> Iterator[Held]:
    words = [softsgx.program("held"), *softsgx.enclave(), "0"]
    command = softsgx.command(*words, options=("--epc", f"{EPC_PAGES * 4}K"))
    with softsgx.started(command) as process:
        assert process.stdout is not None
        yield Held(process, int(process.stdout.readline().split()[1]))
        if process.poll() is None:
            Held(process, 0).end()


def shown(*options: str, status: int = 0) -> str:
    """Give what top prints where there is no terminal."""
    ended = subprocess.run(
        [*TOP, *options], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert ended.returncode == status, ended
    assert "Traceback" not in ended.stderr
    assert (not ended.stderr) == (not status), ended
    return ended.stdout if not status else ended.stderr


# -- without a terminal -----------------------------------------------------------------------


def test_that_nothing_runs_is_said_and_status_1(runtime: Path) -> None:
    said = shown(status=1)
    assert said.startswith("softsgx: no program of this user")
    assert f"(looked in {runtime}/softsgx)" in said
    assert said.count("\n") == 1
    assert shown("--pid", str(os.getpid()), status=1).startswith(f"softsgx: process {os.getpid()} ")


def test_that_nothing_runs_is_an_object_too() -> None:
    ended = subprocess.run([*TOP, "--json"], capture_output=True, text=True, check=False)
    assert (ended.returncode, json.loads(ended.stdout)) == (1, {"runs": [], "silent": []})


@live
@pytest.mark.parametrize("options", [[], ["--once"], ["--interval", "1"]])
def test_a_plain_table_is_printed_once(softsgx: "Harness", options: list[str]) -> None:
    with held(softsgx) as (run, program):
        (snapshot,) = json.loads(shown("--json"))["runs"]
        text = shown(*options)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert "software" in lines[0]
    assert re.match(rf"run {run.pid}  mainline  0:00:\d\d  .*/held ", lines[2])
    used = snapshot["resident"]
    assert lines[3].split() == f"EPC {used} of 512 pages in use (2M), {used} at the peak".split()
    assert lines[4].lstrip().startswith("paging    0 evictions, 0 reloads, 0 kills;")
    (enclave,) = snapshot["largest_enclaves"]
    heads, row = (line.split() for line in lines[5:])
    assert dict(zip(heads, row, strict=True)) == {
        "processes": str(program),
        "base": enclave["base"],
        "size": f"{enclave['size'] >> 10}K",
        **{name: str(enclave[name]) for name in ("pages", "resident", "evictions", "reloads")},
    }


@live
def test_one_run_of_several_can_be_shown(softsgx: "Harness") -> None:
    with held(softsgx) as (first, _), held(softsgx) as (second, _):
        both = re.findall(r"^run (\d+) ", shown("--once"), re.MULTILINE)
        assert sorted(both) == sorted([str(first.pid), str(second.pid)])
        one = re.findall(r"^run (\d+) ", shown("--pid", str(first.pid)), re.MULTILINE)
        assert one == [str(first.pid)]
        (run,) = json.loads(shown("--json", "--pid", str(second.pid)))["runs"]
        assert run["pid"] == second.pid


@live
def test_with_an_interval_an_object_is_a_line_until_the_run_ends(softsgx: "Harness") -> None:
    with held(softsgx) as run:
        command = [*TOP, "--json", "--interval", "0.1"]
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert watcher.stdout is not None
        lines = [json.loads(watcher.stdout.readline()) for _ in range(3)]
        assert [line["runs"][0]["pid"] for line in lines] == [run.run.pid] * 3
        seconds = [line["runs"][0]["seconds"] for line in lines]
        assert seconds == sorted(set(seconds))
        run.end()
        *_, last = (json.loads(line) for line in watcher.stdout)
        watcher.stdout.close()
        assert watcher.wait(TIMEOUT) == 0
        assert last == {"runs": [], "silent": []}


@live
def test_a_run_that_is_stopped_is_told(softsgx: "Harness") -> None:
    with held(softsgx) as (run, _):
        run.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, run.pid, os.WSTOPPED | os.WNOWAIT)
        assert f"\nrun {run.pid} does not answer" in shown()
        silent = json.loads(shown("--json"))
        assert silent["runs"] == []
        assert silent["silent"][0]["pid"] == run.pid
        run.send_signal(signal.SIGCONT)


@live
def test_a_run_that_was_killed_is_not_shown(softsgx: "Harness", runtime: Path) -> None:
    with held(softsgx) as (run, _):
        run.kill()
        run.wait(TIMEOUT)
        assert (runtime / "softsgx" / f"{run.pid}.sock").exists()
        deadline = time.monotonic() + TIMEOUT
        # Its keeper may still be about to close the socket.
        while any((runtime / "softsgx").iterdir()):
            shown(status=1)
            assert time.monotonic() < deadline


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "1e9", "soon"])
def test_an_interval_that_makes_no_sense_is_status_2(
    interval: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["top", f"--interval={interval}"])
    assert end.value.code == 2
    assert f"{interval}: wanted are 0.05 to 3600 seconds" in capsys.readouterr().err


def test_a_directory_that_others_can_use_is_a_line_and_status_2(
    runtime: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runtime / "softsgx").mkdir(mode=0o755)
    assert main(["top"]) == 2
    err = capsys.readouterr().err
    assert "mode 0755" in err
    assert err.count("\n") == 1


# -- what a line says ---------------------------------------------------------------------------


def enclave(number: int, **counters: int) -> dict[str, Any]:
    base = {"number": number, "pids": [1, 2, 3, 4], "base": "0x1000", "size": 4096}
    names = ("pages", "resident", "added", "evictions", "reloads", "kills")
    return {**base, "initialized": True, **dict.fromkeys(names, 0), **counters}


def snapshot(seconds: float, *enclaves: dict[str, Any], **fields: Any) -> dict[str, Any]:
    names = ("added", "evictions", "reloads", "kills")
    backing = ("backing_pages", "backing_bytes", "backing_faults")
    sums = {name: sum(e[name] for e in enclaves) for name in names}
    return {
        "pid": 7,
        "driver": "mainline",
        "command": ["x"],
        "started": 1.0,
        "seconds": seconds,
        "epc_pages": 100,
        "epc_pages_free": 40,
        "epc_pages_peak": 70,
        **sums,
        **dict.fromkeys(backing, 0),
        "largest_enclaves": list(enclaves),
        "other_enclaves": {"enclaves": 0, "pages": 0, "resident": 0, "evictions": 0, "reloads": 0},
        **fields,
    }


def test_what_a_terminal_obeys_is_not_printed() -> None:
    command = ["a\x1b]0;title\x07", "b c", "\udcff"]
    line = top._lines([Run(7, snapshot(3661, command=command))])[2]
    assert line == "run 7  mainline  1:01:01  'a?]0;title?' 'b c' '?'"


def test_an_enclaves_state_and_who_shares_it_are_told() -> None:
    killed, building = enclave(1, kills=1), enclave(2) | {"initialized": False, "pids": []}
    others = {"enclaves": 5, "pages": 9, "resident": 8, "evictions": 7, "reloads": 6}
    lines = top._lines([Run(7, snapshot(1, killed, building, other_enclaves=others))])[6:]
    assert [line.split() for line in lines] == [
        ["1,2,3,...", "0x1000", "4K", "0", "0", "0", "0", "killed"],
        ["0x1000", "4K", "0", "0", "0", "0", "building"],
        ["5", "others", "9", "8", "7", "6"],
    ]
    assert top._lines([Run(7, snapshot(1))])[-1] == "  no enclave"


def test_rates_are_of_the_same_enclave_of_the_same_run() -> None:
    before = snapshot(10, enclave(1, evictions=100, added=5), enclave(2, evictions=50))
    now = snapshot(12, enclave(2, evictions=60, reloads=4), enclave(3, evictions=9))
    assert top._rates_of_enclaves(now, before) == [["0", "5", "2"], ["-", "-", "-"]]
    assert top._rates(before, before | {"evictions": 130}, 2) == ["0", "10", "0"]
    # Another process of the same number, and the first look.
    for none in (before | {"started": 2.0}, None):
        assert top._rates_of_enclaves(now, none) == [["-"] * 3] * 2


# -- on a terminal --------------------------------------------------------------------------------


class Screen:
    """A terminal on which top runs, as its session's leader."""

    def __init__(self, *options: str, term: str = "xterm") -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
        self.settings = termios.tcgetattr(self.slave)
        self.seen = ""
        environment = {**os.environ, "TERM": term}
        for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *TOP, *options],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=environment,
        )

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> str:
        """Wait until `text` is shown; give what came before it."""
        deadline = time.monotonic() + TIMEOUT
        while text not in self.seen:
            self._read(deadline, text)
        before, _, self.seen = self.seen.partition(text)
        return before

    def _read(self, deadline: float, what: str) -> None:
        left = max(0, deadline - time.monotonic())
        if not select.select([self.master], [], [], left)[0]:
            pytest.fail(f"waited for {what!r}, saw {self.seen[-3000:]!r}")
        self.seen += os.read(self.master, 1 << 16).decode(errors="replace")

    def ended(self) -> int:
        """Wait for the end; what was shown last is in `seen`."""
        deadline = time.monotonic() + TIMEOUT
        while self.process.poll() is None or select.select([self.master], [], [], 0)[0]:
            # While it writes nobody else reads.
            if select.select([self.master], [], [], 0.02)[0]:
                self._read(deadline, "the end")
            assert time.monotonic() < deadline
        return self.process.returncode

    def in_order(self) -> bool:
        """Tell whether the terminal is as it was before."""
        last = max(self.seen.rfind(LEAVE_SCREEN), self.seen.rfind(ENTER_SCREEN))
        return (
            termios.tcgetattr(self.slave) == self.settings
            and SHOW_CURSOR in self.seen
            and self.seen.startswith(LEAVE_SCREEN, last)
        )

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@contextmanager
def screen(*options: str, term: str = "xterm") -> Iterator[Screen]:
    opened = Screen("--interval", "0.1", *options, term=term)
    try:
        yield opened
    finally:
        opened.close()


def show_twice(screen: Screen, pid: int) -> None:
    screen.expect(ENTER_SCREEN)
    for _ in range(2):
        screen.expect(f"run {pid}  mainline")
        screen.expect("of 512 pages in use (2M)")
        screen.expect("evictions/s")


@live
@pytest.mark.parametrize(("key", "status"), [("q", 0), ("xQ", 0), (CTRL_C, 130)])
def test_a_key_ends_it_and_the_terminal_is_in_order(
    softsgx: "Harness", key: str, status: int
) -> None:
    with held(softsgx) as (run, program), screen() as terminal:
        show_twice(terminal, run.pid)
        terminal.expect(str(program))
        assert termios.tcgetattr(terminal.slave) != terminal.settings
        terminal.type(key)
        assert terminal.ended() == status
        assert terminal.in_order(), terminal.seen
        assert "Traceback" not in terminal.seen


@live
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_in_order(
    softsgx: "Harness", number: signal.Signals
) -> None:
    with held(softsgx) as (run, _), screen() as terminal:
        show_twice(terminal, run.pid)
        terminal.process.send_signal(number)
        assert terminal.ended() == 128 + number
        assert terminal.in_order(), terminal.seen


@live
def test_it_can_be_stopped_and_goes_on(softsgx: "Harness") -> None:
    with held(softsgx) as (run, _), screen() as terminal:
        show_twice(terminal, run.pid)
        terminal.type(CTRL_Z)
        terminal.expect(LEAVE_SCREEN)
        os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOWAIT)
        assert termios.tcgetattr(terminal.slave) == terminal.settings
        terminal.process.send_signal(signal.SIGCONT)
        show_twice(terminal, run.pid)
        terminal.type("q")
        assert terminal.ended() == 0
        assert terminal.in_order(), terminal.seen


@live
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_when_the_run_that_it_watches_does(
    softsgx: "Harness", runtime: Path, number: signal.Signals
) -> None:
    with held(softsgx) as (run, _), screen("--pid", str(run.pid)) as terminal:
        show_twice(terminal, run.pid)
        run.send_signal(number)
        run.wait(TIMEOUT)
        assert terminal.ended() == 0
        assert terminal.in_order(), terminal.seen
        assert terminal.seen.rstrip().endswith("softsgx: what was shown has ended")
        if number == signal.SIGTERM:
            assert not list(runtime.rglob("*"))


@live
def test_a_run_that_begins_is_shown_beside_the_first(softsgx: "Harness") -> None:
    with held(softsgx) as (first, _), screen() as terminal:
        show_twice(terminal, first.pid)
        with held(softsgx) as second:
            terminal.expect(f"run {second.run.pid}  mainline")
            second.end()
        # Of those that are left the first is the last.
        terminal.type("q")
        assert terminal.ended() == 0


@live
def test_a_terminal_that_can_do_nothing_gets_the_table(softsgx: "Harness") -> None:
    with held(softsgx) as (run, _), screen(term="dumb") as terminal:
        assert terminal.ended() == 0
        assert f"run {run.pid}  mainline" in terminal.seen
        assert "\x1b" not in terminal.seen


@live
def test_a_table_needs_no_rich(softsgx: "Harness") -> None:
    code = "import sys; from softsgx.cli import main; status = main(['top', '--once']); "
    code += "print(status, 'rich' in sys.modules)"
    with held(softsgx):
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "0 False"
