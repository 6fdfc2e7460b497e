# SPDX-License-Identifier: Apache-2.0
"""rt_sigaction of the five fault signals: what the program sets is recorded, the kernel may get another one.

Owns nothing; the record is the process's (tracee.py), which says why they differ.
"""

from softsgx.run.tracee import Tracee, kernel_action

_SIGSET_SIZE = 8  # the only sigsetsize that the kernel takes


def sigaction(tracee: Tracee) -> None:
    """Carry out an rt_sigaction of a fault signal, at its seccomp stop; the registers are loaded."""
    regs, process = tracee.regs, tracee.process
    number = regs.rdi & 0xFFFFFFFF
    action = tracee.mm.read(regs.rsi, 32)
    if len(action) < 32 or regs.r10 != _SIGSET_SIZE:
        tracee.go_on()
        return
    before = process.actions.get(number)
    process.record_action(number, action)
    given = kernel_action(number, action)
    was_changed = before is not None and kernel_action(number, before) != before
    if given == action and not was_changed:
        tracee.go_on()
        return
    with tracee.mm.scratch_for(given) as at:
        asked, regs.rsi = regs.rsi, at
        result = tracee.run_to_exit()
    regs.rsi = asked
    if not result and was_changed and regs.rdx and before is not None:
        tracee.mm.write(regs.rdx, before)
    tracee.finish_call(result)
