# SPDX-License-Identifier: Apache-2.0
"""Kills supervisors while pages of enclaves come and go, and sees that nobody reads a page of zeros.

The enclaves of run/programs/zero_watch.c have no word that is 0. Whatever its readers still get to
see when their supervisor is dead, and before they are, is in a file. Nothing of a run may stay behind
when its supervisor was killed; nor when its first program was, or the process whose memory is the
store of an enclave that another one still has.

The moment of each kill is decided by the seed and its number. With `--no-keeper` the keeper is killed
first: then zeros are to be expected, which shows that they would be found.
"""

import argparse
import os
import secrets
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "run")]
from disturbance import Tree, wait_until  # noqa: E402
from processes import adopt_orphans, marked, member, members, reap_orphans, send  # noqa: E402

from conftest import Harness  # noqa: E402

AT_A_TIME = 4
HEAP = 1 << 20
EPC = "256K"
USERFAULTFD = 323
SEEN = struct.Struct("<QQ")  # struct watched
READERS = 4
# The last one is in a child, which outlives the first program only where that one's memory is the store.
BUILDS = 60.0  # seconds; the machine may be busy with other things
DIES = 30.0
# A kill of another kind after so many of supervisors.
OTHERS = 20
PROGRESS = 10.0


class Kill(NamedTuple):
    """What is killed, and when: so many seconds after all readers have read everything, or after the start."""

    number: int
    whom: str  # supervisor, program, owner
    watched: bool  # by a userfaultfd
    when: float
    early: bool  # after the start

    def __str__(self) -> str:
        since = "the start" if self.early else "the first reading"
        how = "" if self.watched else " without userfaultfd"
        return f"kill {self.number}: {self.whom}{how}, {self.when * 1000:.0f} ms after {since}"


def planned(seed: int, number: int, whom: str) -> Kill:
    """Decide one kill."""
    rng = Random(f"{seed}:{whom}:{number}")  # noqa: S311  (to be repeated, not secret)
    early = whom == "supervisor" and rng.random() < 0.1
    when = rng.uniform(0, 1) if early else rng.expovariate(20)
    return Kill(number, whom, rng.random() > 0.15, when, early)


class Victim:
    """One run, which somebody of is killed."""

    def __init__(self, kills: "Kills", kill: Kill) -> None:
        self._kills = kills
        self._kill = kill
        self._directory = kills.directory / f"{kill.whom}-{kill.number}"
        self._tmp = self._directory / "tmp"
        self._tmp.mkdir(parents=True)
        self._file = self._directory / "seen"
        self._err = self._directory / "err"
        self.turns = 0

    def complaints(self) -> list[str]:
        """Start it, kill, and tell what was wrong."""
        kill = self._kill
        where = "memory" if kill.whom == "owner" else "kernel"
        command = self._kills.command(self._file, where, watched=kill.watched)
        process = self._kills.start(command, self._directory, self._err, TMPDIR=str(self._tmp))
        tree = Tree(process.pid)
        try:
            if kill.early:
                time.sleep(kill.when)
            elif not wait_until(lambda: self._reading() or process.poll() is not None, BUILDS):
                return ["the readers do not get on", self._said()]
            else:
                time.sleep(kill.when)
            if not kill.early and process.poll() is not None:
                return [f"it has ended by itself: {process.returncode}", self._said()]
            self._carry_out(tree)
            if not wait_until(lambda: process.poll() is not None, DIES):
                return ["no end", *map(str, members(tree.supervisor))]
            return [*self._wrong_status(process.returncode), *self._left(tree), *self._zeros()]
        finally:
            for one in members(tree.supervisor):
                send(one.pid, signal.SIGKILL, tree.supervisor)
            process.wait()
            self._kills.known.discard(process.pid)

    def _carry_out(self, tree: Tree) -> None:
        tree.find_first()
        if self._kills.keeper and (keeper := tree.keeper()):
            send(keeper, signal.SIGKILL, tree.supervisor)
            wait_until(lambda: member(keeper) is None, DIES)
        victim = tree.supervisor if self._kill.whom == "supervisor" else tree.first
        send(victim, signal.SIGKILL, tree.supervisor)

    # -- what must be so ----------------------------------------------------------------------

    def _seen(self) -> list[tuple[int, int]]:
        with suppress(FileNotFoundError):
            data = self._file.read_bytes()
            return [SEEN.unpack_from(data, at) for at in range(0, len(data), SEEN.size)]
        return []

    def _reading(self) -> bool:
        seen = self._seen()
        return len(seen) == READERS and all(turns for turns, _ in seen)

    def _said(self) -> str:
        return self._err.read_text(errors="replace")[-2000:]

    def _wrong_status(self, status: int) -> list[str]:
        if status == -signal.SIGKILL:
            return []
        return [f"the status is {status}", self._said()]

    def _left(self, tree: Tree) -> list[str]:
        mark = f"TMPDIR={self._tmp}"
        found = []
        if not wait_until(lambda: not members(tree.supervisor) and not marked(mark), DIES):
            found = [f"still running: {one}" for one in members(tree.supervisor)]
            found += [f"still running: {pid} {line}" for pid, line in marked(mark).items()]
        return found + [f"left: {path}" for path in self._tmp.rglob("*")]

    def _zeros(self) -> list[str]:
        seen = self._seen()
        self.turns = sum(turns for turns, _ in seen)
        return [
            f"reader {at} has read 0 at {where:#x}" for at, (_, where) in enumerate(seen) if where
        ]


class Kills:
    """The workers, and what they have found."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.directory = directory
        self.known: set[int] = set()  # whom their own worker waits for
        self.keeper: bool = args.no_keeper  # is killed first
        self._harness = Harness(directory)
        self._program = [self._harness.program("zero_watch"), *self._harness.enclave(heap=HEAP)]
        self._runtime = directory / "runtime"
        self._runtime.mkdir(mode=0o700)
        self._children = threading.Lock()
        self._lock = threading.Lock()
        others = max(1, args.kills // OTHERS)
        kinds = {"supervisor": args.kills, "program": others, "owner": others}
        plan = [planned(args.seed, n, whom) for whom, count in kinds.items() for n in range(count)]
        self._plan = iter(plan if args.kill is None else [plan[args.kill]] * args.kills)
        self._done: Counter[str] = Counter()
        self._turns = 0
        self._failures: list[str] = []

    def command(self, file: Path, where: str, *, watched: bool) -> list[str]:
        """Give the command line of a run."""
        words = (*self._program, str(HEAP), file, where)
        before = [] if watched else self._harness.refusing("1", [USERFAULTFD])
        return [*before, *self._harness.command(*words, options=("--epc", EPC))]

    def start(
        self, command: list[str], cwd: Path, err: Path, **environment: str
    ) -> "subprocess.Popen[bytes]":
        """Start a command in a session of its own."""
        with self._children, err.open("w") as stream:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **environment, "XDG_RUNTIME_DIR": str(self._runtime)},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
            self.known.add(process.pid)
        return process

    def _work(self) -> None:
        while True:
            with self._lock:
                kill = next(self._plan, None)
            if kill is None:
                return
            victim = Victim(self, kill)
            try:
                complaints = victim.complaints()
            except Exception:  # noqa: BLE001  (a worker that gives up must not pass for one that found nothing)
                complaints = [traceback.format_exc()]
            with self._lock:
                self._done[kill.whom] += 1
                self._turns += victim.turns
                if complaints:
                    self._failures.append("\n    ".join([str(kill), *complaints]))
                    print(f"FAILED {self._failures[-1]}", flush=True)

    def work(self) -> int:
        """Do it all; give the exit status."""
        workers = [threading.Thread(target=self._work) for _ in range(AT_A_TIME)]
        for worker in workers:
            worker.start()
        told = time.monotonic()
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.1)
            reap_orphans(self.known, self._children)
            if time.monotonic() - told > PROGRESS:
                told = time.monotonic()
                print(f"{self._done.total()} kills, {len(self._failures)} failed", flush=True)
        # What a killed run leaves of its socket the next one removes, or who looks for runs.
        look = "from softsgx.run import runs; print(runs.ask(0))"
        command = [sys.executable, "-c", look]
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(self._runtime)}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        left = [str(path) for path in self._runtime.rglob("*.sock")]
        self._failures += [f"left: {path}" for path in left]
        print(f"all readers have read everything {self._turns} times")
        counts = ", ".join(f"{count} of {whom}s" for whom, count in self._done.items())
        print(f"kills: {counts}; {len(self._failures)} failed")
        return 1 if self._failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, help="how many supervisors are killed")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--kill", type=int, help="only the kill of this number, again and again")
    parser.add_argument("--no-keeper", action="store_true", help="kill the keeper before")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="softsgx-kills-") as directory:
        Path(directory).chmod(0o755)
        return Kills(args, Path(directory)).work()


if __name__ == "__main__":
    sys.exit(main())
