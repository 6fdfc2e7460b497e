# SPDX-License-Identifier: Apache-2.0
"""One damaged file given to the verbs: what may come of it, and what may not."""

from __future__ import annotations

import re
import resource
import signal
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from random import Random

from damage import damaged
from seeds import good, seeds

from softsgx.cli import main
from softsgx.image import formats

PROCESSOR_SECONDS = 8
# Beyond what is there before the first file; the files have some ten thousand bytes.
MEMORY = 64 << 20
LARGEST_OUT = 32 << 20
# Mistakes that are not at a place in a file.
_WITHOUT_OFFSET = re.compile(
    r": not a regular file|: cannot (read|write) it: |are to be hashed of what is not in the file|"
    r": a SIGSTRUCT alone has no pages|: no plain ELF file can be this enclave|"
    r"a canonical stream of it is another enclave"
)


@dataclass(frozen=True)
class Trial:
    """The files, the first of which is {0} of the commands, and the commands."""

    seed: str
    files: dict[str, bytes]
    commands: tuple[tuple[str, ...], ...]


class Trials:
    """Decides the trials by a seed and their numbers, and carries them out in a folder."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._seed = seed
        self._seeds = seeds()
        self._contents = [content for one in self._seeds.values() for content in one.files.values()]
        self._folder = folder
        (folder / "good.sgxs").write_bytes(good())

    def undamaged(self) -> list[str]:
        """Return what is wrong without any damage: then all else says nothing."""
        return [
            f"{name}, not damaged: {complaint}"
            for name, seed in self._seeds.items()
            for complaint in self.complaints(Trial(name, seed.files, seed.commands), refused=False)
        ]

    def trial(self, number: int) -> Trial:
        """Decide one."""
        chance = Random(f"{self._seed}:{number}")  # noqa: S311  (to be repeated, not secret)
        name, seed = chance.choice(list(self._seeds.items()))
        files = dict(seed.files)
        for file in [chance.choice(list(files))] if chance.random() < 0.9 else list(files):
            files[file] = damaged(chance, files[file], self._contents)
        return Trial(name, files, (seed.commands[0], chance.choice(seed.commands)))

    def complaints(self, trial: Trial, *, refused: bool = True) -> list[str]:
        """Carry one out and tell what was wrong; without `refused` no place in a file may be named."""
        for name, content in trial.files.items():
            (self._folder / name).write_bytes(content)
        found = []
        for command in dict.fromkeys(trial.commands):
            arguments = self.filled(command, trial, self._folder)
            out, err = StringIO(), StringIO()
            try:
                with redirect_stdout(out), redirect_stderr(err):
                    status = main(arguments)
            except (Exception, SystemExit):  # noqa: BLE001 (whatever it is)
                complaint: str | None = traceback.format_exc()
            else:
                complaint = wrong(status, err.getvalue(), str(self._folder), refused=refused)
            if complaint is not None:
                found.append(f"softsgx {' '.join(arguments)}: {complaint}")
        for path in self._folder.iterdir():
            if path.name != "good.sgxs":
                path.unlink()
        return found

    @staticmethod
    def filled(command: Sequence[str], trial: Trial, folder: Path) -> list[str]:
        """Return a command with the paths of a folder."""
        paths = [str(folder / name) for name in trial.files]
        return [
            word.format(*paths, good=folder / "good.sgxs", out=folder / "out") for word in command
        ]


def wrong(status: int, err: str, folder: str, *, refused: bool = True) -> str | None:
    """Return what is wrong with how a verb has ended, None if nothing is."""
    if status in (0, 1):
        return f"status {status}, but it said {err!r}" if err else None
    if status != 2 or (": offset 0x" in err and not refused):
        return f"status {status}: {err!r}"
    if not err.startswith("softsgx: ") or err.count("\n") != 1 or len(err) > 1000:
        return f"not one line: {err!r}"
    if not err.rstrip("\n").isprintable():
        return f"not a line for a terminal: {err!r}"
    if folder not in err:
        return f"no file is named: {err!r}"
    if ": offset 0x" not in err and _WITHOUT_OFFSET.search(err) is None:
        return f"no offset is named: {err!r}"
    return None


def limit() -> None:
    """Let this process need no more than a verb may for a small file, of memory and of files; for good."""
    import numpy as np  # noqa: F401, PLC0415  (its own memory does not depend on the file)

    used = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            used = int(line.split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_OUT, LARGEST_OUT))
    # What is hashed without being in the file takes a second for each GiB, and there may be 5.
    formats._MOST_HASHED = 64 << 20


def clock() -> None:
    """Give the process so much time of a processor from now on; SIGPROF ends it then."""
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
