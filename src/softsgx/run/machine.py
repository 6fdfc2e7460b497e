# SPDX-License-Identifier: Apache-2.0
"""What serves SGX in a run: made when one of its programs first asks, which most never do.

Owns the platform, the open device files with the inotify watches that tell their last references,
the shared records, the keeper, the control socket. Used by the supervisor's one thread.
"""

import ctypes
import fcntl
import os
import struct

from softsgx.driver.driver import EnclaveFile
from softsgx.errors import SoftsgxError
from softsgx.run import isolation, ptrace
from softsgx.run.control import Control
from softsgx.run.device import DeviceCalls
from softsgx.run.device_files import DeviceFiles
from softsgx.run.enclave_traps import EnclaveTraps
from softsgx.run.keeper import Keeper
from softsgx.run.mapping_calls import MappingCalls
from softsgx.run.mm import Refused
from softsgx.run.records import RecordTable
from softsgx.run.revoke import Revoker
from softsgx.run.userfaults import Userfaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from softsgx.driver.driver import DeviceFile
    from softsgx.driver.encl import Encl
    from softsgx.driver.legacy import LegacyMapping
    from softsgx.driver.platform import Platform
    from softsgx.run.fast_transitions import FastTransitions
    from softsgx.run.observe import Observer
    from softsgx.run.options import Options
    from softsgx.run.tracee import Tracee
    from softsgx.run.vdso import VdsoImage
    from softsgx.run.waiting import Waiter

_IN_CLOSE = 0x18

_libc = ctypes.CDLL(None, use_errno=True)


def is_last(lease: int) -> bool:
    """Tell whether an open file is the only one of its inode but the driver's own."""
    try:
        fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


class Machine:
    """The platform of a run, and what carries out the calls and traps that concern it.

    `tracees` is the supervisor's own table, and `inotify` its descriptor for the watches. For
    whatever else its `waiter` is made to wait for, it calls `answer`.
    """

    def __init__(
        self,
        platform: "Platform",
        observer: "Observer",
        vdso: "VdsoImage",
        inotify: int,
        waiter: "Waiter",
        tracees: "dict[int, Tracee]",
        options: "Options",
    ) -> None:
        self._platform = platform
        self._inotify = inotify
        self._observer = observer
        self._tracees = tracees
        self._waiter = waiter
        self._control: Control | None = None
        self._control_tried = False
        self._watched: dict[int, tuple[DeviceFile, int]] = {}
        self._doomed: list[DeviceFile | LegacyMapping] = []
        self._records = RecordTable()
        platform.processor.tcs_records = self._records.tcs
        observer.observe(platform.driver)
        self.keeper = Keeper()
        self.files = DeviceFiles()
        self.mappings = MappingCalls(self.files, observer, self._release)
        self.userfaults = Userfaults(waiter, tracees)
        self._revoker = Revoker(tracees)
        self.device = DeviceCalls(
            self.files,
            self.keeper,
            self._records,
            observer,
            self._revoker,
            self.mappings,
            self.userfaults,
            strict=options.strict,
        )
        self.traps = EnclaveTraps(platform.processor, observer, self._records, options)
        self._fast = self._start_fast_path(vdso, options)
        aex_every = options.aex_every
        self._timer = aex_every.timer() if aex_every is not None else -1
        if self._timer >= 0:
            waiter.watch(self._timer)

    def close(self) -> None:
        """Let the keeper go, and what the platform has for this run only."""
        if self._control is not None:
            self._control.close()
        if self._timer >= 0:
            os.close(self._timer)
        self.keeper.close()
        self._platform.close()

    def _start_fast_path(self, vdso: "VdsoImage", options: "Options") -> "FastTransitions | None":
        from softsgx.run import fast_path, fast_transitions  # noqa: PLC0415  (a run may go without)

        why = options.slow or fast_path.missing(vdso)
        if why:
            self._observer.slow(why)
            return None
        fast = fast_transitions.FastTransitions(
            *(self._platform.processor, vdso, self._records, self._observer, self._tracees),
            leave_text=options.leave_text,
        )
        self.traps.fast = self.device.fast = fast
        return fast

    def on_share(self, tracee: "Tracee", child: "Tracee") -> None:
        """Hear that a thread has made another one in its address space, which begins with its bases."""
        if self._fast is not None:
            self._fast.path.on_share(tracee, child)

    def background(self) -> bool:
        """Do a batch of the driver's own work if there is any; tell whether there is more."""
        return self._platform.driver.background()

    @property
    def reclaiming(self) -> bool:
        """Whether there is any of ksgxd's work."""
        return self._platform.driver.reclaimer.woken

    @property
    def untidy(self) -> bool:
        """Whether something is left that may wait until nothing else happens."""
        return self._platform.driver.reclaimer.untidy

    def tidy(self) -> None:
        """Do what may wait until nothing else happens."""
        self._platform.driver.reclaimer.tidy()

    def open_node(self, tracee: "Tracee", node: str, flags: int) -> int:
        """Open a device node for a program; give our descriptor of the file."""
        # What the program has closed by now has no descriptors of ours any more.
        self.on_release()
        self._start_control()
        driver = self._platform.driver
        file = driver.open(node)
        fd = lease = -1
        try:
            fd = self._descriptor_of(file, flags)
            self.files.add(fd, file)
            # IN_CLOSE comes at the last reference to an open file, mappings and passed descriptors
            # included: the kernel's release. The lease tells whether it was the last open file.
            path = f"/proc/self/fd/{fd}"
            lease = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            watch = self._watch(node, path)
        except OSError:
            self.files.remove(file)
            file.release()
            for opened in (lease, fd):
                if opened >= 0:
                    os.close(opened)
            raise
        self._watched[watch] = file, lease
        if isinstance(file, EnclaveFile):
            self._observer.openers[file.encl] = tracee.process.pid
        if not tracee.process.filtered and not tracee.process.interrupted:
            # It stops where its open returns, and the second filter is put in place there.
            tracee.process.interrupted = tracee.must_filter = True
            ptrace.interrupt(tracee.tid)
        return fd

    # -- the control socket -----------------------------------------------------------------

    def _start_control(self) -> None:
        if self._control_tried:
            return
        self._control_tried = True
        try:
            self._control = Control(self._snapshot)
        except (OSError, SoftsgxError):
            # The programs do without; `softsgx top` says where it looks.
            return
        self._waiter.watch(self._control.fd)

    def answer(self, fd: int) -> None:
        """Answer the timer of exits, or who has connected to the control socket."""
        if fd == self._timer:
            from softsgx.run.aex_every import tick  # noqa: PLC0415  (few runs want it)

            tick(fd, self._tracees.values())
            return
        if self._control is None:
            return
        try:
            goes_on = self._control.answer()
        except Exception:  # noqa: BLE001  (who looks on must not end a run)
            self._observer.internal_error("at the control socket")
            goes_on = False
        if not goes_on:
            self._waiter.forget(self._control.fd)
            self._control.close()
            self._control = None

    def _snapshot(self) -> "dict[str, Any]":
        from softsgx.run.report import snapshot  # noqa: PLC0415  (few runs are asked)

        # Who asks may look at the stores, too.
        self.tidy()
        pids: dict[Encl, set[int]] = {}
        for process in {tracee.process for tracee in self._tracees.values()}:
            for file in process.mm.enclaves.files() if process.mm.enclaves is not None else ():
                pids.setdefault(file.encl, set()).add(process.pid)
        return snapshot(self._observer, pids)

    # -- open files -------------------------------------------------------------------------

    @staticmethod
    def _descriptor_of(file: "DeviceFile", flags: int) -> int:
        if isinstance(file, EnclaveFile):
            return file.elrange.reopen(flags)
        inode = os.memfd_create(f"sgx_{file.kind}", os.MFD_CLOEXEC)
        try:
            return os.open(f"/proc/self/fd/{inode}", flags)
        finally:
            os.close(inode)

    def _watch(self, node: str, path: str) -> int:
        watch: int = _libc.inotify_add_watch(self._inotify, path.encode(), _IN_CLOSE)
        if watch < 0:
            error = OSError(ctypes.get_errno(), "no inotify watch")
            self._observer.warn(
                f"{node} cannot be opened, for its end could not be told "
                f"({os.strerror(error.errno or 0)}): raise fs.inotify.max_user_watches"
            )
            raise error
        return watch

    def on_release(self) -> None:
        """Take what the watches tell, and end the files whose last reference is gone."""
        self._release_doomed()
        try:
            events = os.read(self._inotify, 4096)
        except BlockingIOError:
            return
        at = 0
        while at < len(events):
            watch, _, _, length = struct.unpack_from("<iIII", events, at)
            at += 16 + length
            file, lease = self._watched.get(watch, (None, -1))
            if file is not None and is_last(lease):
                del self._watched[watch]
                os.close(lease)
                _libc.inotify_rm_watch(self._inotify, watch)
                self.files.remove(file)
                self._release(file)

    def _release(self, file: "DeviceFile | LegacyMapping") -> None:
        if self._is_taken(file) or any(
            tracee.inside and self._uses(tracee, file) for tracee in self._tracees.values()
        ):
            # Its threads are killed already, but their ends have not been told yet; or they have been
            # driven out, and have not come to where they notice.
            self._doomed.append(file)
            return
        file.release()
        encl: Encl | None = getattr(file, "encl", None)
        if encl is not None:
            if self._fast is not None:
                self._fast.forget_enclave(encl.eid)
            self._records.give_back_enclave(encl.eid)

    def _is_taken(self, file: "DeviceFile | LegacyMapping") -> bool:
        # Who is about to enter is not inside yet.
        encl: Encl | None = getattr(file, "encl", None)
        if self._fast is None or encl is None or encl.secs_page is None:
            return False
        secs = self._platform.processor.enclaves.get(encl.secs_page)
        # Of one that was killed the page is another's by now.
        if secs is None or secs.eid != encl.eid:
            return False
        secs.shut()
        return secs.active()

    def _release_doomed(self) -> None:
        doomed, self._doomed = self._doomed, []
        for file in doomed:
            self._release(file)

    @staticmethod
    def _uses(tracee: "Tracee", file: "DeviceFile | LegacyMapping") -> bool:
        try:
            thread = tracee.lp.thread if tracee.lp is not None else None
        except Refused:
            # Told at its own next stop.
            return False
        return thread is not None and thread.secs.elrange is getattr(file, "elrange", None)

    def leave_enclave(self, tracee: "Tracee") -> None:
        """Take a thread that has ended, or executes, out of its enclave."""
        if tracee.lp is not None:
            if self._fast is not None:
                self._fast.gone(tracee, tracee.lp)
            encl, enclaves = isolation.gone(tracee), tracee.mm.enclaves
            if encl is not None and enclaves is not None and enclaves.shut(encl):
                # Who shares the address space goes on, and has to close what this one has opened.
                self._revoker.settle_soon(enclaves, encl)
            self._platform.processor.thread_gone(tracee.lp)
            self._records.give_back_thread(tracee.record_slot)
            tracee.lp = None
            self._release_doomed()
