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
    runs: list[Run] = []
    waiting: dict[int, tuple[int, _socket.socket, bytearray]] = {}
    try:
        with opened(directory()) as fd:
            for name in os.listdir(fd):
                pid = _pid_of(name)
                if not pid or only not in (None, pid):
                    continue
                try:
                    client = connected(fd, name)
                except FileNotFoundError:
                    continue  # it has just ended
                except OSError as error:
                    # EAGAIN where too many are waiting already.
                    silent = isinstance(error, BlockingIOError)
                    runs.append(Run(pid, None, _SILENT if silent else error.strerror or ""))
                    continue
                if client is not None:
                    waiting[client.fileno()] = pid, client, bytearray()
    except FileNotFoundError:
        return []  # nobody has ever had one
    try:
        runs += _answers(waiting, time.monotonic() + patience)
    finally:
        for _, client, _ in waiting.values():
            client.close()
    return sorted(runs, key=lambda run: run.pid)


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
    while open_ and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
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
