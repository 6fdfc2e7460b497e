# SPDX-License-Identifier: Apache-2.0
"""The parts of transitions without a trap, as the supervisor's one thread uses them.

Owns nothing but the parts. Made with the machine, where nothing that was asked of the run forbids it.
"""

from softsgx.arch.thread import MODE_OUTSIDE, ThreadRecord
from softsgx.run.fast_path import FastPath, counted
from softsgx.run.fast_stops import FastStops
from softsgx.run.mm import Refused
from softsgx.run.transition_sites import TransitionSites

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.cpu.processor import LogicalProcessor, Processor
    from softsgx.run.observe import Observer
    from softsgx.run.records import RecordTable
    from softsgx.run.tracee import Tracee
    from softsgx.run.vdso import VdsoImage

_MODE = ThreadRecord.OFFSETS["mode"] // 4


class FastTransitions:
    """Who may make them (path), what becomes of who stops in one (stops), and where they are made (sites)."""

    def __init__(
        self,
        processor: "Processor",
        vdso: "VdsoImage",
        records: "RecordTable",
        observer: "Observer",
        tracees: "dict[int, Tracee]",
        *,
        leave_text: bool,
    ) -> None:
        self._observer = observer
        self.path = FastPath(processor, vdso, records, observer)
        self.stops = FastStops(vdso, self.path)
        self.sites = TransitionSites(vdso, records, observer, tracees, leave_text=leave_text)

    def entered(self, tracee: "Tracee", lp: "LogicalProcessor", watched: bool) -> None:
        """Hear that a thread has entered by a leaf; `watched` as `FastPath.entered` has it."""
        self.path.entered(tracee, lp, watched)
        thread = lp.thread
        if thread is not None:
            self.sites.on_entered(tracee, thread)

    def gone(self, tracee: "Tracee", lp: "LogicalProcessor") -> None:
        """Hear that a thread has ended, or executes: its transition, if it was in one, is given back."""
        entered, left = counted(lp)
        self._observer.entered += entered
        self._observer.left += left
        if tracee.mm.space is not None:
            tracee.mm.space.forget_thread(tracee)
        tracee.dispatched = False
        tracee.site_watched.clear()
        self.stops.give_back(tracee)
        try:
            thread = lp.thread
        except Refused:
            # What it says of itself is of no use.
            thread = None
            lp.words[_MODE] = MODE_OUTSIDE
        # From now on it says nothing, whatever its program writes there.
        lp.adopt = lambda: thread

    def forget_enclave(self, eid: int) -> None:
        """Forget an enclave that is gone."""
        self.path.forget_enclave(eid)
        self.sites.forget_enclave(eid)
