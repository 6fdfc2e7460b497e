# SPDX-License-Identifier: Apache-2.0
"""What is done to a run, by chance: which signals, to whom, and when."""

import os
import signal
import time
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from processes import Member, children, member, members, send, tracer_of

S = signal.Signals
IGNORED = (S.SIGCHLD, S.SIGURG, S.SIGWINCH, S.SIGCONT)
TERMINAL = (S.SIGINT, S.SIGQUIT)
FORWARDED = (S.SIGTERM, S.SIGHUP)
FATAL = (
    *(S.SIGKILL, S.SIGKILL, S.SIGTERM, S.SIGHUP, S.SIGINT, S.SIGQUIT, S.SIGUSR1, S.SIGALRM),
    *(S.SIGSEGV, S.SIGBUS, S.SIGILL, S.SIGFPE, S.SIGTRAP),
)
# What ends a supervisor that runs; SIGINT and SIGQUIT it ignores, others it passes on.
ENDS_SUPERVISOR = (S.SIGKILL, S.SIGKILL, S.SIGKILL, S.SIGSEGV, S.SIGALRM, S.SIGUSR1, S.SIGABRT)
# No handler in any program of the pool, and no disposition but the default one.
CERTAIN = {S.SIGKILL, S.SIGTERM}


class Event(NamedTuple):
    """One disturbance: `when` is a fraction of the time that the program takes undisturbed.

    `choice` picks one of several processes, by its place between 0 and 1; each of the `signals` is
    followed by `pause` seconds.
    """

    kind: str
    when: float
    target: str  # first, other, any, all, group, supervisor, keeper
    choice: float
    signals: tuple[signal.Signals, ...]
    pause: float

    @property
    def harmless(self) -> bool:
        """Whether a program ends as if nothing had been."""
        return self.kind in {"pause", "flutter", "ignored", "keeper"}

    def __str__(self) -> str:
        names = ",".join(dict.fromkeys(number.name for number in self.signals))
        return f"{self.kind} ({names} to {self.target}) at {self.when:.2f}"


def plan(rng: Random) -> list[Event]:
    """Decide what is done to one run."""
    count = rng.choices((0, 1, 2, 3), (15, 60, 15, 10))[0]
    return sorted((_event(rng) for _ in range(count)), key=lambda event: event.when)


def _event(rng: Random) -> Event:
    kind = rng.choice(
        (
            *("pause", "pause", "flutter", "ignored", "fatal", "fatal", "fatal"),
            *("forwarded", "supervisor", "supervisor", "terminal", "keeper"),
        )
    )
    when, choice = rng.uniform(0, 1.05), rng.random()
    program = rng.choice(("first", "other", "any"))
    match kind:
        case "pause":
            target = rng.choice((program, "all", "group", "supervisor"))
            return Event(kind, when, target, choice, (S.SIGSTOP, S.SIGCONT), rng.uniform(0, 0.3))
        case "flutter":
            signals = (S.SIGSTOP, S.SIGCONT) * rng.randint(5, 30)
            return Event(kind, when, program, choice, signals, rng.uniform(0, 0.003))
        case "ignored":
            target = rng.choice((program, program, "all", "supervisor"))
            numbers = IGNORED + (TERMINAL if target == "supervisor" else ())
            signals = tuple(rng.choices(numbers, k=rng.randint(1, 20)))
            return Event(kind, when, target, choice, signals, rng.uniform(0, 0.005))
        case "fatal":
            return Event(kind, when, program, choice, (rng.choice(FATAL),), 0)
        case "forwarded":
            return Event(kind, when, "supervisor", choice, (rng.choice(FORWARDED),), 0)
        case "keeper":
            return Event(kind, when, "keeper", choice, (S.SIGKILL,), 0)
        case "supervisor":
            return Event(kind, when, "supervisor", choice, (rng.choice(ENDS_SUPERVISOR),), 0)
    return Event(kind, when, "group", choice, (rng.choice(TERMINAL + FORWARDED),), 0)


class Tree:
    """The processes of one run, by the part that they have in it."""

    def __init__(self, supervisor: int) -> None:
        self.supervisor = supervisor
        self.first = 0

    def find_first(self) -> bool:
        """Look for the first program: the one child of the supervisor that it traces."""
        if not self.first:
            for pid in children(self.supervisor):
                if tracer_of(pid) == self.supervisor:
                    self.first = pid
        return bool(self.first)

    def keeper(self) -> int:
        """Give the supervisor's helper, or 0 where there is none, or nobody knows who is who yet."""
        for one in members(self.supervisor):
            if self.first and one.parent == self.supervisor and one.pid != self.first:
                return one.pid
        return 0

    def programs(self) -> list[Member]:
        """Give the first program and its descendants, the oldest first."""
        return [
            one
            for one in members(self.supervisor)
            if one.pid == self.first or self.supervisor not in {one.pid, one.parent}
        ]

    def targets(self, event: Event, spared: int = 0) -> list[int]:
        """Give the processes that an event is for."""
        programs = [one.pid for one in self.programs() if one.pid != spared]
        others = [pid for pid in programs if pid != self.first]
        first = [self.first] if self.first in programs else []
        match event.target:
            case "supervisor":
                return [self.supervisor]
            case "keeper":
                return [pid for pid in [self.keeper()] if pid]
            case "all":
                return programs
            case "group":
                return [self.supervisor] if spared else [-self.supervisor]
            case "first":
                chosen = first or others
            case "other":
                chosen = others or first
            case _:
                chosen = programs
        return [chosen[int(event.choice * len(chosen))]] if chosen else []


DIES = 10.0  # seconds that a process may take to die of SIGKILL on a busy machine

Delivered = dict[str, set[signal.Signals]]


def carry_out(event: Event, tree: Tree, delivered: Delivered, spared: int = 0) -> bool:
    """Disturb; notes which signals reached a living process of which part. False: nobody was there."""
    pids = tree.targets(event, spared)
    reached = False
    for number in event.signals:
        for pid in pids:
            parts = _parts(pid, tree)
            if _send(pid, number, tree.supervisor):
                reached = True
                for part in parts:
                    delivered.setdefault(part, set()).add(number)
        time.sleep(event.pause)
    if event.target == "keeper":
        # What the supervisor hands it before it has died goes with it, and no other one is started.
        wait_until(lambda: not any(map(member, pids)), DIES)
    return reached


def _send(pid: int, number: signal.Signals, session: int) -> bool:
    if pid > 0:
        return send(pid, number, session)
    if member(session) is None:
        return False
    os.killpg(session, number)
    return True


def _parts(pid: int, tree: Tree) -> tuple[str, ...]:
    if pid < 0:
        # The others of a group live longer than a first program that does not wait for them.
        ended = tree.first and member(tree.first) is None
        return ("supervisor", "other") if ended else ("supervisor", "first", "other")
    if pid == tree.supervisor:
        return ("supervisor",)
    return ("first",) if pid == tree.first else ("other",)


Poll = Callable[[], bool]


def wait_until(true: Poll, seconds: float, every: float = 0.02) -> bool:
    """Wait for something to become true; False where it has not after so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True
