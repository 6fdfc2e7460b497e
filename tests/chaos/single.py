# SPDX-License-Identifier: Apache-2.0
"""A run of its own: one program, what is done to it, and what must be so when it has ended."""

import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from disturbance import (
    CERTAIN,
    FORWARDED,
    TERMINAL,
    Delivered,
    S,
    Tree,
    carry_out,
    plan,
    wait_until,
)
from processes import ExitWatch, condition, marked, members, send

if TYPE_CHECKING:
    from chaos import Chaos

QUIET_LIMIT = 120.0  # seconds; the machine may be busy with other things
DISTURBED_LIMIT = 25.0
END_LIMIT = 30.0
COMPLAINTS = ("internal error", "Traceback", "softsgx: warning")
IN_MAIN = re.compile(r'/softsgx/cli/__init__\.py", line \d+, in main$', re.MULTILINE)
OF_THE_SUPERVISOR = {*S} - {*(S.SIGCHLD, S.SIGURG, S.SIGWINCH, S.SIGCONT, S.SIGSTOP)}


class Outcome(NamedTuple):
    """What became of one run."""

    name: str
    kinds: list[str]
    complaints: list[str]
    missed: int = 0
    released: int = 0

    def __str__(self) -> str:
        return self.name


def without_advice(err: str) -> str:
    """Take out the line that tells how to get a larger EPC: some programs fill it on purpose."""
    return "".join(line for line in err.splitlines(keepends=True) if "--epc SIZE" not in line)


def complaints_of(err: str) -> list[str]:
    """Find what no run may ever say."""
    err = without_advice(err)
    return [f"on standard error: {err[-3000:]}"] if any(word in err for word in COMPLAINTS) else []


def interpreters_own(err: str) -> bool:
    """Tell whether Python has answered a SIGINT, before softsgx's main() was entered."""
    early = "KeyboardInterrupt" in err or err.startswith("Could not import runpy module")
    return early and not IN_MAIN.search(err)


def names_below(directory: Path) -> set[str]:
    """Give the names of all files below a directory."""
    return {path.name for path in directory.rglob("*") if path.is_file()}


def wrong_status(
    status: int, program: int | None, delivered: Delivered, *, seen: bool, good: bool
) -> str:
    """Tell what is wrong with a status after these signals; `program` is the first program's own.

    `seen` says that there was one, `good` that the status is what it is undisturbed.
    """
    to_supervisor, to_first = (delivered.get(part, set()) for part in ("supervisor", "first"))
    ends = to_supervisor & OF_THE_SUPERVISOR
    if seen:
        ends -= {*FORWARDED, *TERMINAL}  # from before the program is there these are its own
    if status in {-number for number in ends}:
        return ""
    if not seen and S.SIGINT in ends:
        return ""  # the interpreter's own answer
    if program is not None and status != program:
        return f"exit status {status}, the first program's was {program}"
    # What is passed on to it may have come before what it was sent itself.
    may_end = to_first | to_supervisor & {*FORWARDED}
    if good or status in {-number for number in may_end} or not to_first & CERTAIN:
        return ""
    return f"exit status {status} although the first program was sent {names_of(to_first)}"


def names_of(numbers: set[S]) -> str:
    """Give the names of signals, in order."""
    return ", ".join(number.name for number in sorted(numbers))


class SingleRun:
    """The run of one number."""

    def __init__(self, chaos: "Chaos", number: int, rng: Random) -> None:
        self._chaos = chaos
        self._number = number
        self._piece = rng.choice(chaos.pool.pieces)
        self._events = plan(rng)
        # Now and then the first run of a user: identity and cache are made in it.
        self._fresh = rng.random() < 0.25
        self._released = self._missed = 0
        self._delivered: Delivered = {}

    def __str__(self) -> str:
        chaos = self._chaos
        events = "; ".join(map(str, self._events)) or "undisturbed"
        again = f"make chaos SEED={chaos.seed} RUN={self._number}"
        return f"{self._piece.name}: {events}{', fresh' * self._fresh}. Again: {again}"

    def outcome(self) -> Outcome:
        """Run it to its end and judge it."""
        directory = self._chaos.directory / f"run-{self._number}-{time.monotonic_ns()}"
        self._cwd, self._tmp = directory / "cwd", directory / "tmp"
        for path in (directory, self._cwd, self._tmp):
            path.mkdir()
        own = directory if self._fresh else self._chaos.directory
        self._state, self._cache = own / "state", own / "cache"
        self._out, self._err = directory / "out", directory / "err"
        try:
            complaints = self._run()
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        kinds = sorted({event.kind for event in self._events})
        return Outcome(str(self), kinds, complaints, self._missed, self._released)

    def _run(self) -> list[str]:
        piece = self._piece
        argv = piece.argv()
        run = [sys.executable, "-m", "softsgx", "run", "--state", str(self._state)]
        command = [*run, *piece.options, "--", *argv]
        started = time.monotonic()
        process = self._chaos.start(
            command,
            subprocess.DEVNULL,
            self._out,
            self._err,
            self._cwd,
            TMPDIR=str(self._tmp),
            XDG_CACHE_HOME=str(self._cache),
        )
        tree = Tree(process.pid)
        watch = self._disturb(process, tree, started)
        ended = self._await_end(process, tree)
        if self._chaos.stop.is_set():
            self._sweep(tree)
            return []
        if not ended:
            found = [condition(one.pid) for one in members(tree.supervisor)]
            self._sweep(tree)
            process.wait()
            return ["no end", *found, self._err.read_text(errors="replace")]
        if self._harmless():
            self._chaos.learn(piece.name, time.monotonic() - started)
        program = watch.status() if watch is not None else None
        if watch is not None:
            watch.close()
        err = self._err.read_text(errors="replace")
        found = self._strays(tree)
        sent = self._delivered.get("supervisor", set())
        if not (S.SIGINT in sent and interpreters_own(err)):
            found += complaints_of(err)
        found += self._judge(process.returncode, program, seen=watch is not None)
        self._chaos.known.discard(process.pid)
        return found + self._files()

    # -- while it runs ----------------------------------------------------------------------------

    def _disturb(
        self, process: "subprocess.Popen[str]", tree: Tree, started: float
    ) -> ExitWatch | None:
        watch = None
        events = list(self._events)
        scale = self._chaos.duration(self._piece.name)
        while process.poll() is None and not self._chaos.stop.is_set():
            if watch is None and tree.find_first():
                with suppress(ProcessLookupError):
                    watch = ExitWatch(tree.first)
            if events and time.monotonic() - started >= events[0].when * scale:
                self._missed += not carry_out(events.pop(0), tree, self._delivered)
            elif watch is not None and not events:
                break
            time.sleep(0.003)
        self._missed += len(events)
        return watch

    def _harmless(self) -> bool:
        return all(event.harmless for event in self._events)

    def _await_end(self, process: "subprocess.Popen[str]", tree: Tree) -> bool:
        def over() -> bool:
            return process.poll() is not None or self._chaos.stop.is_set()

        if wait_until(over, QUIET_LIMIT if self._harmless() else DISTURBED_LIMIT):
            return True
        if self._harmless():
            return False
        # Who waits for somebody that was killed waits for ever. The supervisor must see it end.
        self._released = 1
        for _ in range(3):
            for one in tree.programs():
                send(one.pid, signal.SIGKILL, tree.supervisor)
            if wait_until(over, END_LIMIT / 3):
                return True
        return False

    def _sweep(self, tree: Tree) -> None:
        for one in members(tree.supervisor):
            send(one.pid, signal.SIGKILL, tree.supervisor)

    # -- afterwards -------------------------------------------------------------------------------

    def _strays(self, tree: Tree) -> list[str]:
        mark = f"TMPDIR={self._tmp}"
        if wait_until(lambda: not members(tree.supervisor) and not marked(mark), 10):
            return []
        left = {**{one.pid: "" for one in members(tree.supervisor)}, **marked(mark)}
        self._sweep(tree)
        return [f"still running: {pid} {line}" for pid, line in left.items()]

    def _judge(self, status: int, program: int | None, *, seen: bool) -> list[str]:
        if self._harmless():
            return self._judge_quiet(status, seen=seen)
        out = self._out.read_text(errors="replace")
        good = self._piece.good(status, out)
        wrong = wrong_status(status, program, self._delivered, seen=seen, good=good)
        return [f"{wrong}: {out[-300:]}"] if wrong else []

    def _judge_quiet(self, status: int, *, seen: bool) -> list[str]:
        sent = self._delivered.get("supervisor", set())
        if not seen and (S.SIGINT in sent or status in {-number for number in sent}):
            return []  # no program yet, and nobody to ignore the terminal's signals
        if self._events and not self._piece.steady:
            return []
        out, err = (path.read_text(errors="replace") for path in (self._out, self._err))
        if interpreters_own(err):
            err = ""  # that was looked at already
        err = without_advice(err)
        if not self._piece.good(status, out):
            bad = [line for line in out.splitlines() if line.startswith("not ok")]
            return [f"exit status {status}: {out[-300:]} {bad} {err[-300:]}"]
        return [f"on standard error: {err[-300:]}"] if err else []

    def _files(self) -> list[str]:
        left = names_below(self._tmp)
        if self._harmless() and (not self._events or self._piece.steady):
            left |= names_below(self._cwd)
        if self._fresh:
            left |= names_below(self._state) - {"identity"}
            left |= {name for name in names_below(self._cache) if name.startswith(".")}
        if self._delivered.get("supervisor", set()) & OF_THE_SUPERVISOR:
            # What it was writing: the next run that wants it overwrites that.
            whole = names_below(self._state) | names_below(self._cache)
            left -= {name for name in left if name[0] == "." and name[1:] not in whole}
            left -= set() if "identity" in whole else {"identity.new"}
        return [f"left: {name}" for name in sorted(left)]
