# SPDX-License-Identifier: Apache-2.0
"""The supervisor as the job of a shell: what is sent to it goes to its program, and stops do too.

Owns the descriptor of the signals that the supervisor takes. SIGTERM and SIGHUP that are sent to
the supervisor go on to the first program. A terminal sends its signals to the whole foreground
group, so the program has them already; but when SIGTSTP, SIGTTIN or SIGTTOU makes the program
stop, the supervisor stops as well, or the shell would wait for it. It stops after the program, because the
program may catch the signal, tidy up the terminal first, or not stop at all.
"""

import os
import time

from softsgx.run import numbers as n
from softsgx.run import signals

_FORWARDED = (signals.SIGTERM, signals.SIGHUP)
# Seconds in which a program that catches the signal has tidied up and stops itself.
_PATIENCE = 5.0
_TERMINAL_STOPS = (signals.SIGTSTP, signals.SIGTTIN, signals.SIGTTOU)


def block_signals() -> int:
    """Block what the supervisor reads from signal descriptors; give the mask of before."""
    return signals.block(signals.bits(n.SIGCHLD, *_FORWARDED, *_TERMINAL_STOPS))


class Job:
    """What a shell, a terminal and whoever sends signals see of the supervisor."""

    def __init__(self) -> None:
        self.fd = signals.descriptor(signals.bits(*_FORWARDED, *_TERMINAL_STOPS))
        self.first = 0  # the first program
        self._asked = 0.0  # until when the terminal's wish that the whole group stop counts
        self._stopped = 0  # the signal of the first program's group stop

    def on_signal(self, programs: set[int]) -> None:
        """Take the next signal that was sent to the supervisor; `programs` are alive."""
        number = signals.read(self.fd)
        if number in _FORWARDED:
            # Once the first program has ended, whoever is left is meant.
            for pid in {self.first} & programs or programs:
                os.kill(pid, number)
        elif number:
            self._asked = time.monotonic() + _PATIENCE

    def on_program_stop(self, number: int) -> None:
        """The first program is in a group stop by this signal; 0 when it goes on."""
        self._stopped = number

    def stop_with_program(self) -> None:
        """Stop, where the terminal has asked for it and the first program has stopped."""
        if not self._stopped or time.monotonic() > self._asked:
            return
        number, self._asked = self._stopped, 0.0
        signals.unblock(signals.bits(*_TERMINAL_STOPS))
        os.kill(os.getpid(), number)
        # Here the shell has sent SIGCONT to all of the job.
        signals.block(signals.bits(*_TERMINAL_STOPS))
