# SPDX-License-Identifier: Apache-2.0
"""The keyboard of a verb that fills the screen, and the terminal as it was when the verb ends.

Owns the terminal's settings, and the signals that would leave it in disorder, from __enter__ to __exit__.
"""

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Keys:
    """Single keys without Enter, where standard input is a terminal.

    Ctrl-Z leaves the screen by ``leave`` before the verb stops, and ``come_back`` fills it again.
    """

    def __init__(self, leave: Callable[[], object], come_back: Callable[[], object]) -> None:
        self._leave = leave
        self._come_back = come_back
        self._fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
        self._settings: list[Any] = []
        self._handlers: dict[signal.Signals, Any] = {}

    def pressed(self, key: str, seconds: float) -> bool:
        """Wait so long for a key; False if it was not pressed, True also where the terminal is gone."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._fd < 0:
                time.sleep(left)
            elif select.select([self._fd], [], [], left)[0]:
                pressed = self._read()
                if not pressed or key.encode() in pressed.lower():
                    return True
        return False

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, 64)
        except OSError:
            return b""  # hung up

    def __enter__(self) -> Self:
        if self._fd >= 0:
            self._settings = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        for number in _ENDING:
            self._handlers[number] = signal.signal(number, self._end)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._restore()

    def _restore(self) -> None:
        if self._fd >= 0:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._settings)

    @staticmethod
    def _end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._leave()
        self._restore()
        # Not SIGTSTP, which the kernel would drop where no shell controls the job.
        os.kill(os.getpid(), signal.SIGSTOP)
        if self._fd >= 0:
            tty.setcbreak(self._fd)
        self._come_back()
