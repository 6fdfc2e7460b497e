# SPDX-License-Identifier: Apache-2.0
"""Starts programs under `softsgx run`, eight at a time, and disturbs them by signals at any moment.

However a run is disturbed, nothing of it may stay behind, its status must be that of its first
program, and nobody may complain; a run that was not disturbed, or only stopped and continued, must
have the right outcome. One of the eight is a run that lasts: programs come and go in it, and what
its supervisor holds must go with them.

What is done to a run is decided by the seed and the number of the run, before it starts. The
machine decides the rest, so the same decisions may meet a program at another moment.
"""

import argparse
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from disturbance import wait_until  # noqa: E402
from lasting import LastingRun  # noqa: E402
from pool import Pool  # noqa: E402
from processes import adopt_orphans, marked, reap_orphans  # noqa: E402
from single import Outcome, SingleRun  # noqa: E402

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (looked at, never written)
AT_A_TIME = 8
PATIENCE = {"SOFTSGX_TEST_PATIENCE": "90"}  # seconds; less than a run is waited for
PASSES = 10.0  # seconds in which a file of somebody else's start is gone again
PROGRESS = 5.0  # seconds between two lines of progress
USUAL = 0.5  # seconds that a program takes of which nothing is known yet


class Chaos:
    """The workers, and what they have found."""

    def __init__(self, args: argparse.Namespace, directory: Path) -> None:
        self.args = args
        self.seed: int = args.seed
        self.directory = directory
        self.mark = f"SOFTSGX_CHAOS={directory.name}.{os.getpid()}"
        self.pool = Pool(directory)
        self.stop = threading.Event()
        self.stopped_by = ""
        self.children = threading.Lock()
        self.known: set[int] = set()  # whom their own worker waits for
        self.started = time.monotonic()
        self._lock = threading.Lock()
        self._next: Counter[str] = Counter()
        self._durations: dict[str, float] = {}
        self._kinds: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._released: Counter[str] = Counter()
        self._failures: list[str] = []

    # -- what the runs use ------------------------------------------------------------------------

    def start(
        self, command: list[str], stdin: int, out: Path, err: Path, cwd: Path, **environment: str
    ) -> "subprocess.Popen[str]":
        """Start a command in a session of its own, with the mark in its environment."""
        name, _, value = self.mark.partition("=")
        with self.children, out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **PATIENCE, **environment, name: value},
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
            self.known.add(process.pid)
        return process

    def duration(self, name: str) -> float:
        """Tell how long a program takes undisturbed, as far as known."""
        return self._durations.get(name, USUAL)

    def learn(self, name: str, seconds: float) -> None:
        """Note how long a program took undisturbed."""
        self._durations[name] = (self.duration(name) + seconds) / 2

    def say(self, text: str) -> None:
        """Print a line at once."""
        with self._lock:
            print(text, flush=True)

    def note(self, outcome: Outcome) -> None:
        """Count one run, and tell at once if it failed."""
        with self._lock:
            self._counts["failed" if outcome.complaints else "passed"] += 1
            self._counts["missed"] += outcome.missed
            if outcome.released:
                self._released[outcome.name.partition(":")[0]] += 1
            self._kinds.update(outcome.kinds or ["nothing"])
            if outcome.complaints:
                text = "\n    ".join([str(outcome), *outcome.complaints])
                self._failures.append(text)
        if outcome.complaints:
            self.say(f"FAILED {text}")

    # -- the workers ------------------------------------------------------------------------------

    def _number(self, only: int | None, kind: str) -> int | None:
        """Give the number of the next run or job; None where there is to be no more."""
        with self._lock:
            number = self._next[kind]
            over = time.monotonic() - self.started > self.args.seconds
            if only is not None:
                over = number >= self.args.times
            if over or self.stop.is_set():
                return None
            self._next[kind] += 1
            return number if only is None else only

    def _rng(self, kind: str, number: int) -> Random:
        return Random(f"{self.seed}:{kind}:{number}")  # noqa: S311  (to be repeated, not secret)

    def _work(self) -> None:
        while (number := self._number(self.args.run, "run")) is not None:
            self.note(SingleRun(self, number, self._rng("run", number)).outcome())

    def _last(self) -> None:
        run: LastingRun | None = None
        while (number := self._number(self.args.job, "job")) is not None:
            run = run or LastingRun(self)
            outcome = run.job(number, self._rng("job", number))
            self.note(outcome)
            if outcome.complaints:
                self.note(run.end())
                run = None
        if run is not None:
            self.note(run.end())

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # noqa: BLE001  (a worker that gives up must not pass for one that found nothing)
            self.note(Outcome("a worker of the chaos test", [], [traceback.format_exc()]))

    def work(self) -> None:
        """Run until the time is over, or somebody says stop; then see what is left of it all."""
        shared = set(SHARED_MEMORY.iterdir())
        singles, lasting = AT_A_TIME - 1, 1
        if self.args.run is not None:
            lasting = 0
        elif self.args.job is not None:
            singles = 0
        targets: list[Callable[[], None]] = [self._work] * singles + [self._last] * lasting
        workers = [threading.Thread(target=self._guarded, args=[target]) for target in targets]
        for worker in workers:
            worker.start()
        told = time.monotonic()
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.2)
            reap_orphans(self.known, self.children)
            if time.monotonic() - told > PROGRESS:
                told = time.monotonic()
                self.say(self._progress())
        left = marked(self.mark)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        if not self.stop.is_set():
            complaints = [f"still running at the end: {line}" for line in left.values()]
            # Others use it too, for a moment only.
            wait_until(lambda: not set(SHARED_MEMORY.iterdir()) - shared, PASSES)
            fresh = sorted(set(SHARED_MEMORY.iterdir()) - shared)
            complaints += [f"left in shared memory: {path}" for path in fresh]
            self.note(Outcome("what is left at the end", [], complaints))

    # -- what is told -----------------------------------------------------------------------------

    def _progress(self) -> str:
        seconds = time.monotonic() - self.started
        return f"{seconds:6.0f} s  {self._counts['passed']} passed, {self._counts['failed']} failed"

    def summary(self) -> int:
        """Print what was done and found; give the exit status."""
        print(f"\n{'disturbances':<14}runs that had one")
        for kind, count in sorted(self._kinds.items()):
            print(f"    {kind:<12}{count:6}")
        print(f"{self._counts['missed']} came when nobody was there any more")
        print(f"{self._released.total()} waited for what was killed, and were ended")
        for name, count in sorted(self._released.items()):
            print(f"    {name:<40}{count:4}")
        for text in self._failures:
            print(f"FAILED {text}")
        if self.stop.is_set():
            print(f"interrupted by {self.stopped_by}")
        print(f"{self._counts['passed']} passed, {self._counts['failed']} failed")
        return 1 if self._failures or self.stop.is_set() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="how long runs are started")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--run", type=int, help="only the run of this number")
    parser.add_argument("--job", type=int, help="only the job of this number of the lasting run")
    parser.add_argument("--times", type=int, default=20, help="how often, with --run or --job")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="softsgx-chaos-") as directory:
        Path(directory).chmod(0o755)
        chaos = Chaos(args, Path(directory))

        def stop(number: int, _frame: FrameType | None) -> None:
            chaos.stopped_by = signal.Signals(number).name
            chaos.stop.set()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, stop)
        chaos.work()
        return chaos.summary()


if __name__ == "__main__":
    sys.exit(main())
