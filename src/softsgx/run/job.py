# SPDX-License-Identifier: Apache-2.0
"""The supervisor as the job of a shell: what is sent to it goes to its program, and stops do too.

Owns the descriptor of the signals that the supervisor takes. SIGTERM and SIGHUP that are sent to
the supervisor go on to the first program. A terminal sends its signals to the whole foreground
group, so the program has them already; but when SIGTSTP, SIGTTIN or SIGTTOU makes the program
stop, the supervisor stops as well, or the shell would wait for it. It stops after the program, because the
program may catch the signal, tidy up the terminal first, or not stop at all.
"""

import ctypes
import os
import signal
import struct
from collections.abc import Iterable

FORWARDED = (signal.SIGTERM, signal.SIGHUP)
_TERMINAL_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_SIGINFO = 128  # struct signalfd_siginfo

_libc = ctypes.CDLL(None, use_errno=True)


def supervisor_signals() -> set[int | signal.Signals]:
    """Block what the supervisor reads from its signal descriptors; give the mask of before."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *FORWARDED, *_TERMINAL_STOPS})


def signal_descriptor(signals: Iterable[signal.Signals]) -> int:
    """Make a signalfd(2) of signals that are blocked."""
    mask = struct.pack("<Q", sum(1 << (number - 1) for number in signals))
    fd: int = _libc.syscall(289, -1, mask, ctypes.c_ulong(8), os.O_CLOEXEC | os.O_NONBLOCK)
    return fd


def read_signal(fd: int) -> int:
    """Take the next signal from a signalfd; 0 for none."""
    try:
        number: int = struct.unpack_from("<I", os.read(fd, _SIGINFO))[0]
    except BlockingIOError:
        return 0
    return number


class Job:
    """What a shell, a terminal and whoever sends signals see of the supervisor."""

    def __init__(self) -> None:
        self.fd = signal_descriptor((*FORWARDED, *_TERMINAL_STOPS))
        self.first = 0  # the first program
        self._asked = False  # the terminal has told the whole group to stop
        self._stopped = 0  # the signal of the first program's group stop

    def on_signal(self, programs: set[int]) -> None:
        """Take the next signal that was sent to the supervisor; `programs` are alive."""
        number = read_signal(self.fd)
        if number in FORWARDED:
            # Once the first program has ended, whoever is left is meant.
            for pid in {self.first} & programs or programs:
                os.kill(pid, number)
        elif number:
            self._asked = True

    def on_program_stop(self, number: int) -> None:
        """The first program is in a group stop by this signal; 0 when it goes on."""
        self._stopped = number

    def stop_with_program(self) -> None:
        """Stop, where the terminal has asked for it and the first program has stopped."""
        if not self._asked or not self._stopped:
            return
        number, self._asked = self._stopped, False
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERMINAL_STOPS)
        os.kill(os.getpid(), number)
        # Here the shell has sent SIGCONT to all of the job.
        signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL_STOPS)
