# SPDX-License-Identifier: Apache-2.0
"""A run that lasts: a shell that is told what to start, whose supervisor must end up as it was."""

import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from shlex import join, quote
from typing import TYPE_CHECKING

from disturbance import Delivered, Event, Tree, carry_out, plan, wait_until
from processes import condition, holdings, members, resident, send
from single import DISTURBED_LIMIT, END_LIMIT, QUIET_LIMIT, Outcome, complaints_of

if TYPE_CHECKING:
    from pool import Piece

    from chaos import Chaos

EPC = "16M"
# It adds pages for as long as it lives, and the others would have none.
TAKES_ALL = {"exec_beside add"}
KINDS = {"pause", "flutter", "ignored", "fatal", "keeper"}
SIGNALLED = 128  # what a shell adds to the number of a signal
SCRIPT = 'while read -r line; do eval "$line"; echo over; done'


class LastingRun:
    """The shell and its supervisor; one job at a time, of up to three programs."""

    def __init__(self, chaos: "Chaos") -> None:
        self._chaos = chaos
        self._directory = chaos.directory / f"lasting-{time.monotonic_ns()}"
        self._directory.mkdir()
        self._said, self._err = self._directory / "said", self._directory / "err"
        run = [sys.executable, "-m", "softsgx", "run", "--epc", EPC]
        state = ["--state", str(chaos.directory / "state")]
        self._process = chaos.start(
            [*run, *state, "--", "sh", "-c", SCRIPT],
            subprocess.PIPE,
            self._said,
            self._err,
            self._directory,
            XDG_CACHE_HOME=str(chaos.directory / "cache"),
        )
        self._tree = Tree(self._process.pid)
        wait_until(self._tree.find_first, QUIET_LIMIT)
        self._jobs = 0
        self._pieces = [
            piece
            for piece in chaos.pool.pieces
            if not piece.options and piece.name not in TAKES_ALL
        ]
        # Bell, keeper and table of records are there from the first enclave on.
        for piece in self._pieces:
            if piece.name in {"fork", "threads"}:
                self._do([piece], [])
        self._free = self._free_pages()
        self._base: dict[str, Counter[str]] = {}
        while self._base != (now := self._holdings()):
            self._base = now
            time.sleep(0.5)
        self._memory = resident(self._process.pid)

    # -- one job ----------------------------------------------------------------------------------

    def job(self, number: int, rng: Random) -> Outcome:
        """Start some programs, disturb them or not, and compare what the supervisor holds then."""
        pieces = rng.choices(self._pieces, k=rng.choice((1, 1, 2, 3)))
        events = [event for event in plan(rng) if event.kind in KINDS]
        names = " and ".join(piece.name for piece in pieces)
        what = "; ".join(map(str, events)) or "undisturbed"
        again = f"make chaos SEED={self._chaos.seed} JOB={number}"
        name = f"job {number} of the lasting run, {names}: {what}. Again: {again}"
        complaints, missed, released = self._do(pieces, events)
        if self._chaos.stop.is_set():
            complaints = []
        else:
            complaints += [] if complaints else self._compare()
            complaints += complaints_of(self._err.read_text(errors="replace"))
        kinds = sorted({f"lasting: {event.kind}" for event in events}) or ["lasting: nothing"]
        return Outcome(name, kinds, complaints, missed, released)

    def _do(self, pieces: list["Piece"], events: list[Event]) -> tuple[list[str], int, int]:
        """Give the complaints, how many events met nobody, and whether the programs were ended."""
        chaos, tree = self._chaos, self._tree
        places, line = self._line(pieces)
        overs = self._overs()
        started = time.monotonic()
        self._tell(line)
        missed = 0
        delivered: Delivered = {}
        longest = max(chaos.duration(piece.name) for piece in pieces)
        for event in events:
            time.sleep(max(0, started + event.when * longest - time.monotonic()))
            missed += not carry_out(event, tree, delivered, spared=tree.first)

        def over() -> bool:
            said = self._overs() > overs and not self._others()
            return said or chaos.stop.is_set() or not self._alive()

        harmless = all(event.harmless for event in events)
        ended = wait_until(over, QUIET_LIMIT if harmless else DISTURBED_LIMIT, every=0.1)
        released = not ended and not harmless
        for _ in range(3 * released):
            for pid in self._others():
                send(pid, signal.SIGKILL, tree.supervisor)
            ended = ended or wait_until(over, END_LIMIT / 3)
        if not ended:
            return ["no end", *map(condition, self._others())], missed, released
        if not self._alive():
            return [f"the run has ended: {self._process.returncode}"], missed, released
        judged = harmless and not chaos.stop.is_set()
        found = self._judge(pieces, places, disturbed=bool(events)) if judged else []
        return found, missed, released

    def _line(self, pieces: list["Piece"]) -> tuple[list[Path], str]:
        """Give a directory for each program, and what the shell is told: start them, then wait."""
        self._jobs += 1
        places, starts, waits = [], [], []
        for at, piece in enumerate(pieces):
            place = self._directory / f"{self._jobs}-{at}"
            place.mkdir()
            streams = f"</dev/null >{quote(f'{place}.out')} 2>{quote(f'{place}.err')}"
            starts.append(
                f"(cd {quote(str(place))} && exec {join(piece.argv())}) {streams} & p{at}=$!;"
            )
            waits.append(f"wait $p{at}; echo status $?;")
            places.append(place)
        return places, " ".join([*starts, *waits])

    def _judge(self, pieces: list["Piece"], places: list[Path], *, disturbed: bool) -> list[str]:
        said = re.findall(r"^status (\d+)$", self._said.read_text(), re.MULTILINE)[-len(pieces) :]
        complaints = []
        for place, piece, word in zip(places, pieces, said, strict=True):
            status = int(word) if int(word) < SIGNALLED else SIGNALLED - int(word)
            out, err = (
                place.with_suffix(suffix).read_text(errors="replace") for suffix in (".out", ".err")
            )
            if not piece.good(status, out) and (piece.steady or not disturbed):
                complaints.append(f"{piece.name}: exit status {status}: {out[-600:]} {err[-300:]}")
        return complaints

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _overs(self) -> int:
        return self._said.read_text().count("over\n")

    def _alive(self) -> bool:
        return self._process.poll() is None

    def _others(self) -> list[int]:
        return [one.pid for one in self._tree.programs() if one.pid != self._tree.first]

    # -- what is held -----------------------------------------------------------------------------

    def _holdings(self) -> dict[str, Counter[str]]:
        parts = {"supervisor": self._process.pid, "keeper": self._tree.keeper()}
        return {part: holdings(pid) for part, pid in parts.items() if pid}

    def _free_pages(self) -> str:
        before = self._overs()
        self._tell(join(self._chaos.pool.epc_free()))
        wait_until(lambda: self._overs() > before or not self._alive(), QUIET_LIMIT)
        return self._said.read_text().splitlines()[-2]

    def _compare(self) -> list[str]:
        complaints = []
        free = self._free_pages()
        if free != self._free:
            complaints.append(f"{free} pages of EPC; before it was {self._free}")
        if not wait_until(lambda: self._holdings() == self._base, 10):
            now = self._holdings()
            for part, before in self._base.items():
                more, fewer = now.get(part, Counter()) - before, before - now.get(part, Counter())
                complaints.append(f"the {part} holds {dict(more)} more, {dict(fewer)} fewer")
        return complaints

    def end(self) -> Outcome:
        """Let the shell end; give what was wrong with that."""
        assert self._process.stdin is not None
        memory = resident(self._process.pid) if self._alive() else 0
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        wait_until(lambda: not self._alive(), END_LIMIT)
        complaints = []
        if self._process.poll() != 0 and not self._chaos.stop.is_set():
            complaints.append(f"the lasting run ended with {self._process.poll()}")
        for one in members(self._process.pid):
            send(one.pid, signal.SIGKILL, self._process.pid)
        self._process.wait()
        self._chaos.known.discard(self._process.pid)
        self._chaos.say(
            f"lasting run: {self._jobs} jobs; resident memory of the supervisor "
            f"{self._memory >> 10} MiB at the start, {memory >> 10} MiB at the end"
        )
        return Outcome("the end of the lasting run", ["lasting: nothing"], complaints)
