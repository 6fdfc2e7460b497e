# SPDX-License-Identifier: Apache-2.0
"""`softsgx run` as a job of an interactive shell on a terminal, and --kill-on-exit."""

import os
import pty
import select
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

TIMEOUT = 20
PROMPT = "READY> "


class Terminal:
    """An interactive bash on a pseudo-terminal: a person's view of it."""

    def __init__(self, directory: str) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.chdir(directory)
            environment = {**os.environ, "PS1": PROMPT, "TERM": "dumb", "HISTFILE": ""}
            words = ["bash", "--norc", "--noprofile", "-i"]
            os.execvpe("bash", words, environment)  # noqa: S606  (a shell is what this plays)
        self.seen = ""
        self.expect(PROMPT)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Wait until `text` is shown; give what came before it."""
        deadline = time.monotonic() + TIMEOUT
        while text not in self.seen:
            if not select.select([self._master], [], [], max(0, deadline - time.monotonic()))[0]:
                pytest.fail(f"waited for {text!r}, saw {self.seen!r}")
            try:
                self.seen += os.read(self._master, 4096).decode(errors="replace")
            except OSError:
                pytest.fail(f"the terminal was closed before {text!r}, after {self.seen!r}")
        before, _, self.seen = self.seen.partition(text)
        return before

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._master)


@pytest.fixture
def terminal(softsgx: "Harness") -> Iterator[Terminal]:
    if shutil.which("bash") is None:
        pytest.skip("bash is missing")
    terminal = Terminal(str(softsgx.directory))
    yield terminal
    terminal.close()


def line(softsgx: "Harness", script: str, *options: str) -> str:
    words = softsgx.command("sh", "-c", script, options=options)
    return shlex.join(words) + "\n"


COUNTING = "trap 'echo caught; exit 7' INT; echo begun; while :; do sleep 0.05; echo -n .; done"


# A shell whose child has the loop gets SIGINT as well, and dies of it when the child has ended.
@pytest.mark.parametrize(
    ("script", "status"), [(COUNTING, 7), (f"sh -c '{COUNTING.replace(chr(39), chr(34))}'; :", 130)]
)
def test_a_terminal_stops_it_and_it_goes_on(
    softsgx: "Harness", terminal: Terminal, script: str, status: int
) -> None:
    terminal.type(line(softsgx, script))
    terminal.expect("begun\r\n")
    for _ in range(3):
        terminal.expect("...")
        terminal.type("\x1a")
        terminal.expect("Stopped")
        terminal.expect(PROMPT)
        terminal.type("jobs\n")
        assert "Stopped" in terminal.expect(PROMPT)
        terminal.type("fg\n")
    terminal.expect("...")
    terminal.type("\x03")
    terminal.expect("caught")
    terminal.expect(PROMPT)
    terminal.type("echo status=$?\n")
    terminal.expect(f"status={status}\r\n")


EDITOR = """
import os, signal, sys
def tidy(*_):
    print('tidy', flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    print('back', flush=True)
    sys.exit(3)
signal.signal(signal.SIGTSTP, tidy)
print('begun', flush=True)
while True:
    signal.pause()
"""


def test_in_the_background_it_stops_to_read(softsgx: "Harness", terminal: Terminal) -> None:
    reading = line(softsgx, "echo begun; read word; echo got $word")
    terminal.type(reading.rstrip("\n") + " &\n")
    terminal.expect("begun\r\n")
    # A shell tells of its jobs when it is asked. What is typed is shown too, but not its result.
    deadline = time.monotonic() + TIMEOUT
    shown = ""
    while "Stopped" not in shown:
        assert time.monotonic() < deadline, shown
        terminal.type("jobs; echo asked $((40 + 2))\n")
        shown = terminal.expect("asked 42\r\n")
    terminal.type("fg\n")
    terminal.type("hello\n")
    terminal.expect("got hello\r\n")
    terminal.expect(PROMPT)


def test_a_program_that_catches_the_stop_is_stopped_by_its_own(
    softsgx: "Harness", terminal: Terminal
) -> None:
    # As an editor does: it tidies up, then stops itself.
    terminal.type(line(softsgx, f'exec {sys.executable} -c "{EDITOR}"'))
    terminal.expect("begun\r\n")
    terminal.type("\x1a")
    terminal.expect("tidy\r\n")
    terminal.expect("Stopped")
    terminal.expect(PROMPT)
    terminal.type("fg\n")
    terminal.expect("back\r\n")
    terminal.expect(PROMPT)
    terminal.type("echo status=$?\n")
    terminal.expect("status=3\r\n")


def test_a_program_that_ignores_the_stop_runs_on(softsgx: "Harness", terminal: Terminal) -> None:
    script = "trap '' TSTP; echo begun; for i in 1 2 3 4 5 6; do sleep 0.1; done; echo done"
    terminal.type(line(softsgx, script))
    terminal.expect("begun\r\n")
    terminal.type("\x1a")
    assert "Stopped" not in terminal.expect("done\r\n")
    terminal.expect(PROMPT)


def test_a_program_that_stops_another_does_not_stop_the_run(softsgx: "Harness") -> None:
    # Nobody on a terminal has asked: the first program is stopped and continued by its child.
    script = "(sleep 0.1; kill -STOP $$; sleep 0.2; kill -CONT $$) & wait $!; wait; echo on; exit 4"
    assert tuple(softsgx.run("sh", "-c", script)) == (4, "on\n", "")


def test_kill_on_exit_ends_the_rest(softsgx: "Harness") -> None:
    script = "sleep 300 & (sh -c 'sleep 300 & sleep 300' &) ; setsid sleep 300 & echo first; exit 6"
    ended = softsgx.run("sh", "-c", script, options=("--kill-on-exit",))
    assert tuple(ended) == (6, "first\n", "")


def test_kill_on_exit_reaches_what_is_just_being_born(softsgx: "Harness") -> None:
    script = "(while :; do sleep 0.01 & done) & sleep 0.3; exit 0"
    ended = softsgx.run("sh", "-c", script, options=("--kill-on-exit",))
    assert ended.status == 0, ended
