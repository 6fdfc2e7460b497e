# SPDX-License-Identifier: Apache-2.0
"""The fault signals of a thread that is inside: they come unblocked, whatever the program blocks.

Owns nothing; works on the stopped thread. An exception inside is an AEX, and no program's mask keeps it
away. Were its signal blocked, the kernel would force it, and reset the action of the whole process. So a
thread that enters by a trap has them unblocked, and gets its own mask back where it leaves; for one that has
entered without a trap this is made up for at its first stop.
"""

from softsgx.arch.thread import ThreadRecord
from softsgx.cpu.secs import THREAD
from softsgx.run import numbers as n
from softsgx.run import ptrace
from softsgx.run.delivery import unforce

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.tracee import Tracee

_ENTERED = ThreadRecord.OFFSETS["entered"] // 8


def unblock(tracee: "Tracee") -> None:
    """Unblock them; the thread has just entered, and its mask has been looked at."""
    mask = tracee.checked_mask or 0
    tracee.sigmask = mask
    if mask & n.FAULT_MASK:
        ptrace.set_sigmask(tracee.tid, mask & ~n.FAULT_MASK)
        thread = tracee.lp.thread if tracee.lp is not None else None
        if thread is not None:
            # It has to leave by a trap, which blocks them again.
            thread.quads[THREAD] = 0


def take_over(tracee: "Tracee", signal: int) -> None:
    """Do for a thread that has entered without a trap, and has stopped inside, what the trap would have done.

    `signal` is the forced one that has stopped it, 0 for a stop that only stands for one.
    """
    lp = tracee.lp
    if lp is None or lp.quads[_ENTERED] == tracee.entered_before:
        return
    tracee.entered_before = lp.quads[_ENTERED]
    if signal:
        unforce(tracee, signal)
    else:
        tracee.checked_mask = ptrace.get_sigmask(tracee.tid)
    unblock(tracee)
