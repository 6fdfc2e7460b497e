# SPDX-License-Identifier: Apache-2.0
"""Descriptors that a program's thread sends itself, where another thread of it comes in between."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import pytest

from softsgx.run import descriptors

if TYPE_CHECKING:
    from softsgx.run.tracee import Injector, Tracee


class FakeTracee:
    """A thread whose memory takes whatever is written."""

    def __init__(self) -> None:
        self.mm = self

    @contextmanager
    def scratch_for(self, data: bytes) -> Iterator[int]:
        yield len(data)

    def write(self, address: int, data: bytes) -> bool:
        return bool(address and data)


class Thief:
    """Calls that succeed, of a program that has kept a copy of the socket and sent nothing by it."""

    def __init__(self) -> None:
        self.kept = -1

    def lend(self, fd: int) -> int:
        self.kept = os.dup(fd)
        return 9

    def call(self, *_: int) -> int:
        return 1


def test_nobody_waits_for_a_socket_that_was_taken_away() -> None:
    thief = Thief()
    # Whoever did wait would do so for ever.
    signal.alarm(10)
    try:
        with pytest.raises(BlockingIOError):
            descriptors.take(cast("Tracee", FakeTracee()), cast("Injector", thief), 3)
    finally:
        signal.alarm(0)
        os.close(thief.kept)
