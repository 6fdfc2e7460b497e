# SPDX-License-Identifier: Apache-2.0
"""The runs of this user that have opened a node, asked through their control sockets.

Owns nothing; what a killed run has left behind is removed on the way.
"""

import _socket
import json
import os
import select
import time
from typing import Any

from softsgx import __version__
from softsgx.run.control import SUFFIX, connected, directory, opened

# No run answers with more.
_LONGEST = 1 << 20
_AGAIN = 0.01
_SILENT = "does not answer; it may be stopped"


class Run:
    """What one run says: its snapshot, or why there is none."""

    def __init__(self, pid: int, snapshot: dict[str, Any] | None, problem: str = "") -> None:
        self.pid = pid
        self.snapshot = snapshot
        self.problem = problem


def ask(patience: float, only: int | None = None) -> list[Run]:
    """Ask all runs, or the one of process `only`, and wait so many seconds at most for their answers.

    SoftsgxError where the directory of sockets is not this user's own.
    """
    deadline = time.monotonic() + patience
    waiting: dict[int, tuple[int, _socket.socket, bytearray]] = {}
    runs: list[Run] = []
    try:
        with opened(directory()) as fd:
            pids = {_pid_of(name) for name in os.listdir(fd)} - {0}
            left = pids if only is None else pids & {only}
            while left := _not_yet(fd, left, waiting, runs):
                if time.monotonic() >= deadline:
                    break
                time.sleep(_AGAIN)
        runs += [Run(pid, None, _SILENT) for pid in left]
        runs += _answers(waiting, deadline)
    except FileNotFoundError:
        return []  # nobody has ever had one
    finally:
        for _, client, _ in waiting.values():
            client.close()
    return sorted(runs, key=lambda run: run.pid)


def _not_yet(
    fd: int,
    pids: set[int],
    waiting: dict[int, tuple[int, _socket.socket, bytearray]],
    runs: list[Run],
) -> set[int]:
    """Connect to each of these runs; give those at which the line is too long at the moment."""
    left = set()
    for pid in pids:
        try:
            client = connected(fd, f"{pid}{SUFFIX}")
        except FileNotFoundError:
            continue  # it has just ended
        except BlockingIOError:
            left.add(pid)
        except OSError as error:
            runs.append(Run(pid, None, error.strerror or ""))
        else:
            if client is not None:
                waiting[client.fileno()] = pid, client, bytearray()
    return left


def _pid_of(name: str) -> int:
    # A name with a dot before it is one that is not listened to yet.
    pid = name.removesuffix(SUFFIX)
    return int(pid) if name.endswith(SUFFIX) and pid.isdecimal() else 0


def _answers(
    waiting: dict[int, tuple[int, _socket.socket, bytearray]], deadline: float
) -> list[Run]:
    runs = []
    open_ = set(waiting)
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    while open_:
        # What is there already is taken, however late it is.
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            break
        for fd, _ in ready:
            pid, client, said = waiting[fd]
            try:
                data = client.recv(1 << 16)
            except ConnectionError:
                data = b""
            said += data
            if data and len(said) < _LONGEST:
                continue
            poll.unregister(fd)
            open_.discard(fd)
            if said:
                runs.append(_understood(pid, bytes(said)))
            # Else it has ended before it has answered.
    return runs + [Run(waiting[fd][0], None, _SILENT) for fd in open_]


def _understood(pid: int, said: bytes) -> Run:
    try:
        snapshot = json.loads(said)
        version = snapshot["softsgx"]
    except (ValueError, TypeError, KeyError):
        return Run(pid, None, "its answer is not understood")
    if version != __version__:
        return Run(pid, None, f"it is softsgx {version}, and this is {__version__}")
    return Run(pid, snapshot)
