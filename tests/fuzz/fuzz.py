# SPDX-License-Identifier: Apache-2.0
"""Damages files of every format that the verbs for enclaves at rest read, and sees what the verbs make of them.

A verb may read a damaged file, or refuse it by one line that names file, offset and reason. It may not end in a
traceback, take more than a few seconds of a processor, or more memory than a small file is worth.

What is done to the files is decided by the seed and the number of the trial. The files of one that went wrong are kept.
"""

import argparse
import json
import os
import secrets
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from seeds import good  # noqa: E402
from trial import Trials, clock, limit  # noqa: E402

KEPT = Path("build/fuzz")
PROGRESS = 5.0
ENOUGH = 10  # that went wrong


@dataclass
class Worker:
    """A process that carries out every so many-th trial, from one number on."""

    pid: int
    told: IO[str]
    folder: Path
    begun: int = -1


@dataclass
class Fuzz:
    """The workers, and what they have found."""

    args: argparse.Namespace
    folder: Path
    done: int = 0
    wrong: list[int] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def run(self) -> int:
        """Carry out the trials; returns the exit status."""
        each = os.cpu_count() or 1
        if self.args.case is not None:
            numbers = [range(self.args.case, self.args.case + 1)]
        elif self.args.count is not None:
            numbers = [range(first, self.args.count, each) for first in range(each)]
        else:
            numbers = [range(first, sys.maxsize, each) for first in range(each)]
        pending = list(numbers)
        workers: dict[int, tuple[Worker, range]] = {}
        said = self.started
        while pending or workers:
            while pending:
                mine = pending.pop()
                if mine and not self._over():
                    worker = self._start(mine)
                    workers[worker.pid] = worker, mine
            for worker, mine in list(workers.values()):
                line = worker.told.readline()
                if line:
                    self._hear(worker, line)
                    continue
                # It has ended, by itself or by one of its trials.
                _, status = os.waitpid(worker.pid, 0)
                worker.told.close()
                del workers[worker.pid]
                if status and len(self.wrong) < ENOUGH:
                    self._keep(worker.begun, [f"{_how(status)} in this trial"])
                    pending.append(range(worker.begun + mine.step, mine.stop, mine.step))
            if time.monotonic() - said > PROGRESS:
                said = time.monotonic()
                self._progress()
        self._progress()
        return 1 if self.wrong else 0

    def _over(self) -> bool:
        if len(self.wrong) >= ENOUGH:
            return True
        lasts = self.args.case is None and self.args.count is None
        return lasts and time.monotonic() - self.started > self.args.seconds

    def _start(self, numbers: range) -> Worker:
        reads, writes = os.pipe()
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        pid = os.fork()
        if pid:
            os.close(writes)
            return Worker(pid, os.fdopen(reads), folder)
        status = 70
        try:
            os.close(reads)
            with os.fdopen(writes, "w", buffering=1) as tells:
                self._work(numbers, folder, tells)
            status = 0
        finally:
            os._exit(status)

    def _work(self, numbers: range, folder: Path, tells: IO[str]) -> None:
        trials = Trials(self.args.seed, folder)
        limit()
        for number in numbers:
            if self._over():
                return
            tells.write(f"{number}\n")
            trial = trials.trial(number)
            clock()
            complaints = trials.complaints(trial)
            tells.write(json.dumps(complaints) + "\n")

    def _hear(self, worker: Worker, line: str) -> None:
        if not line.startswith("["):
            worker.begun = int(line)
            return
        self.done += 1
        complaints = json.loads(line)
        if complaints and len(self.wrong) < ENOUGH:
            self._keep(worker.begun, complaints)
        if len(self.wrong) == ENOUGH:
            os.kill(worker.pid, signal.SIGKILL)

    def _keep(self, number: int, complaints: list[str]) -> None:
        """Keep the files, and say how to get here again."""
        self.wrong.append(number)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            trial = Trials(self.args.seed, Path(folder)).trial(number)
        kept = KEPT.resolve() / f"{self.args.seed}-{number}"
        kept.mkdir(parents=True, exist_ok=True)
        for name, content in {**trial.files, "good.sgxs": good()}.items():
            (kept / name).write_bytes(content)
        print(f"\nfuzz: trial {number}, of {trial.seed}:")
        for complaint in complaints:
            print("  " + complaint.replace("\n", "\n  ").rstrip())
        print(f"  kept in {kept}; again by: make fuzz SEED={self.args.seed} CASE={number}")
        for command in dict.fromkeys(trial.commands):
            print(f"  or by: softsgx {shlex.join(Trials.filled(command, trial, kept))}")
        sys.stdout.flush()

    def _progress(self) -> None:
        seconds = time.monotonic() - self.started
        print(
            f"fuzz: {seconds:.0f} s: {self.done} trials, {len(self.wrong)} went wrong", flush=True
        )


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = signal.Signals(os.WTERMSIG(status))
        reason = ", for the processor's time that it took" if number == signal.SIGPROF else ""
        return f"killed by {number.name}{reason}"
    return f"status {os.WEXITSTATUS(status)} (a defect of the fuzzer)"


def main() -> int:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--count", type=int, default=None, help="so many trials, however long")
    parser.add_argument("--case", type=int, default=None, help="this trial only")
    args = parser.parse_args()
    if args.seed is None:
        args.seed = secrets.randbelow(1 << 32)
    print(f"fuzz: seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="softsgx-fuzz-") as folder:
        undamaged = Trials(args.seed, Path(folder)).undamaged()
        if undamaged:
            print("\n".join(undamaged))
            return 1
        return Fuzz(args, Path(folder)).run()


if __name__ == "__main__":
    sys.exit(main())
