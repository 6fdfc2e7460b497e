# SPDX-License-Identifier: Apache-2.0
"""The supervisor: one thread that follows the program and all its descendants.

Owns the tracees, the listener, and the descriptors that it waits for. One thread does it all and
never blocks on a program: the life of each traced thread is a greenlet, switched out while it waits
for that thread's next stop. So there are no locks; what must not run twice at a time (two ioctls on
one enclave) is marked busy by whoever does it, in the order tracee, enclave, EPC.
"""

import ctypes
import errno
import os

from greenlet import greenlet

from softsgx.errors import SoftsgxError
from softsgx.run import numbers as n
from softsgx.run import process_calls, ptrace, signals
from softsgx.run.host import forbidden
from softsgx.run.job import Job
from softsgx.run.mm import Mm, Refused
from softsgx.run.notification import Listener
from softsgx.run.path_sites import PathSites
from softsgx.run.paths import PathCalls
from softsgx.run.program import Programs
from softsgx.run.ptrace import TraceeGone
from softsgx.run.tracee import GROUP_STOPS, IGNORE, Process, Tracee
from softsgx.run.traps import Traps
from softsgx.run.waiting import Waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from softsgx.cpu.model import Model
    from softsgx.driver.nodes import Nodes
    from softsgx.driver.platform import Platform
    from softsgx.run.gdb_stub import GdbStub
    from softsgx.run.machine import Machine
    from softsgx.run.observe import Observer
    from softsgx.run.options import Options
    from softsgx.run.vdso import VdsoImage

_SYSCALL_STOP = n.SIGTRAP | 0x80
# How many stops are handled at most before the other descriptors get their turn.
_BURST = 16
# Seconds between two turns of a thread that waits for something that no descriptor tells.
_PAUSE = 0.001

_libc = ctypes.CDLL(None, use_errno=True)


class Supervisor:
    """Follows a process tree until its last thread has ended.

    `platform` is called when a program first asks for SGX; `model` is what its CPUID tells, `nodes`
    are those of its driver. With `detours` the image may answer CPUID, which then nobody sees. With
    `gdb` the first program stands before its first instruction, and what is text stays as it is then.
    """

    def __init__(
        self,
        platform: "Callable[[], Platform]",
        model: "Model",
        vdso: "VdsoImage",
        observer: "Observer",
        options: "Options",
        nodes: "Nodes",
        *,
        kill_on_exit: bool = False,
        detours: bool = True,
        gdb: "GdbStub | None" = None,
    ) -> None:
        self._gdb = gdb
        self._platform = platform
        self._observer = observer
        self._tracees: dict[int, Tracee] = {}
        self._vdso = vdso
        self._options = options
        self._machine: Machine | None = None
        leave_text = options.leave_text
        self._programs = Programs(
            vdso, observer, leave_text=leave_text, detours=detours and gdb is None
        )
        self._traps = Traps(model, vdso, observer, lambda: self._sgx.traps)
        sites = None if leave_text or gdb is not None else PathSites(vdso)
        self._paths = PathCalls(nodes, self._open_node, sites, self._kind_of, self._tracees)
        # A new thread may stop before its parent's event tells whose child it is.
        self._early: dict[int, int] = {}
        # Threads that an exec has ended: theirs are the exits that nobody waits for.
        self._forgotten: set[int] = set()
        self._ready: list[tuple[int, int]] = []
        self._hub = greenlet.getcurrent()
        self._first = 0
        self._status = 0
        self._ended = False  # the first program has
        self._kill_on_exit = kill_on_exit
        self._job = Job()
        self._inotify = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self._inotify < 0:
            raise forbidden("inotify", os.strerror(ctypes.get_errno()))
        self._child = signals.descriptor(signals.bits(n.SIGCHLD))
        self._waiter = Waiter(self._child)

    # -- the loop ---------------------------------------------------------------------------

    def follow(self, pid: int, listener_fd: int, mask: int, ignored: int) -> int:
        """Follow the program until it and all its descendants have ended; give its wait status.

        `mask` and `ignored` are the signals that it was started with blocked and ignored.
        """
        listener = Listener(listener_fd)
        self._first = self._job.first = pid
        actions = {s: IGNORE for s in n.FAULT_SIGNALS if ignored >> (s - 1) & 1}
        tracee = self._enter(pid, Process(pid, Mm(pid), actions))
        tracee.checked_mask = mask
        waiter = self._waiter
        for fd in (self._job.fd, listener.fd, self._inotify):
            waiter.watch(fd)
        answered = False  # nothing but page faults, which are no stops
        if self._gdb is not None:
            self._gdb.begin(waiter, self._tracees, self._leave_by_aex)
        try:
            while self._tracees:
                waited = not answered and self._reap(waiter)
                if not waited and self._machine is not None:
                    waited = self._machine.background()
                if not waited:
                    self._job.stop_with_program()
                # Who pauses is asked again when anything has happened, or soon.
                timeout = 0 if waited else _PAUSE if self._ready or self._untidy else -1
                wanting = waiter.ready(timeout)
                if not wanting and not waited and self._untidy:
                    self._sgx.tidy()
                answered = bool(wanting) and not waited and not self._ready
                for fd in wanting:
                    if self._machine is not None and fd in self._machine.userfaults:
                        self._machine.userfaults.answer(fd)
                        continue
                    answered = False
                    if fd == listener.fd:
                        self._answer(listener)
                    elif fd == self._child:
                        signals.read(fd)
                    elif fd == self._job.fd:
                        self._job.on_signal({t.process.pid for t in self._tracees.values()})
                        if self._gdb is not None:
                            self._gdb.on_signal()
                    elif self._gdb is not None and fd in self._gdb.fds:
                        self._gdb.on_readable(fd)
                    elif fd == self._inotify:
                        self._sgx.on_release()
                    else:
                        self._sgx.answer(fd)
        finally:
            self._kill_all()
            for ours in (self._gdb, self._machine, waiter):
                if ours is not None:
                    ours.close()
            for fd in (self._child, self._job.fd, listener.fd, self._inotify):
                os.close(fd)
        return self._status

    def _reap(self, waiter: Waiter) -> bool:
        """Handle waiting stops; tell whether there may be more."""
        ready, self._ready[:] = self._ready[:], []
        for tid, status in ready:
            if tid in self._tracees:
                self._tracees[tid].greenlet.switch(status)
        trapped = False
        for _ in range(_BURST):
            try:
                pid, status = waiter.next_stop() if trapped else waiter.stop()
            except ChildProcessError:
                self._tracees.clear()
                return True
            if not pid:
                return trapped or not self._tracees
            tracee = self._tracees.get(pid)
            trapped = False
            if tracee is not None:
                tracee.trapped = False
                tracee.greenlet.switch(status)
                # Who sleeps until the next stop does nothing else meanwhile.
                trapped = tracee.trapped and not self._reclaiming
                if self._ready:
                    # A new thread's first stop; or who pauses, which is no reason to look no further.
                    return True
            elif pid in self._forgotten:
                self._forgotten.discard(pid)
            elif self._machine is not None and pid == self._machine.keeper.pid:
                self._machine.keeper.has_ended()
            else:
                self._early[pid] = status
        return True

    def _answer(self, listener: Listener) -> None:
        call = listener.receive()
        if call is None:
            return
        self._observer.path_calls += 1
        tracee = self._tracees.get(call.tid)
        try:
            self._paths.answer(listener, call, tracee)
        except TraceeGone:
            pass
        except Exception:  # noqa: BLE001  (one thread's misfortune is not the others')
            self._observer.internal_error(f"at thread {call.tid}")
            listener.let(call)

    def _kill_all(self) -> None:
        for tracee in self._tracees.values():
            ptrace.tgkill(tracee.process.pid, tracee.tid, signals.SIGKILL)

    # -- SGX --------------------------------------------------------------------------------

    @property
    def _sgx(self) -> "Machine":
        """What serves SGX; a third of a start's time, so made at first need."""
        if self._machine is None:
            from softsgx.run.machine import Machine  # noqa: PLC0415

            self._machine = Machine(
                *(self._platform(), self._observer, self._vdso, self._inotify, self._waiter),
                *(self._tracees, self._options),
            )
        return self._machine

    @property
    def _untidy(self) -> bool:
        return self._machine is not None and self._machine.untidy

    @property
    def _reclaiming(self) -> bool:
        return self._machine is not None and self._machine.reclaiming

    def _kind_of(self, tracee: Tracee, fd: int) -> str | None:
        return self._machine.files.kind_of(tracee, fd) if self._machine is not None else None

    def _open_node(self, tracee: Tracee, node: str, flags: int) -> int:
        try:
            return self._sgx.open_node(tracee, node, flags)
        except SoftsgxError as error:
            # The state directory was in order when the run began.
            self._observer.warn(f"{node}: {error}")
            raise OSError(errno.EIO, str(error)) from error

    # -- the life of a thread -----------------------------------------------------------------

    def _enter(self, tid: int, process: Process) -> Tracee:
        tracee = Tracee(tid, process, self._life, self._hub, self._ready)
        self._tracees[tid] = tracee
        if process.threads == 1:
            self._observer.processes += 1
        if self._ended and self._kill_on_exit:
            ptrace.tgkill(process.pid, tid, signals.SIGKILL)
        return tracee

    def _life(self, tracee: Tracee, status: int) -> None:
        tracee.status = status
        while os.WIFSTOPPED(tracee.status):
            try:
                self._on_stop(tracee, tracee.status)
            except TraceeGone:
                pass  # its exit status is on the way, or here
            except Exception as failure:  # noqa: BLE001  (one thread's misfortune is not the others')
                # Where it was killed in the middle, that is why it failed.
                if not tracee.gone:
                    self._end(tracee, failure)
            if tracee.replaced:
                tracee.replaced = False
            elif not tracee.ended:
                tracee.wait()
        self._leave(tracee)

    def _end(self, tracee: Tracee, failure: Exception) -> None:
        if isinstance(failure, Refused):
            self._observer.warn(f"{failure}; it is killed")
        else:
            self._observer.internal_error(f"at thread {tracee.tid}")
        ptrace.tgkill(tracee.process.pid, tracee.tid, signals.SIGKILL)

    def _leave(self, tracee: Tracee) -> None:
        self._leave_enclave(tracee)
        if tracee.tid == self._first:
            self._status = tracee.status
        self._tracees.pop(tracee.tid, None)
        process = tracee.process
        if tracee.tid == process.pid:
            # The first thread's end is told last. Whoever is left was killed in an exec, when it
            # had taken over the first one's id and its stop was not told yet.
            self._take_others_away(tracee)
        process.threads -= 1
        if self._gdb is not None and tracee.process is self._gdb.process:
            self._gdb.on_gone(tracee)
        if not process.threads:
            process.mm.drop()
            if process.pid == self._first:
                self._ended = True
                if self._kill_on_exit:
                    self._kill_all()

    def _leave_by_aex(self, tracee: Tracee) -> None:
        self._sgx.traps.leave(tracee)

    def _leave_enclave(self, tracee: Tracee) -> None:
        if self._machine is not None:
            self._machine.leave_enclave(tracee)

    def _take_others_away(self, tracee: Tracee, former: int = 0) -> None:
        """Forget the other threads of a process, of whose end nothing is told.

        `former` is the id that the thread had which executes: it may be given to another one.
        """
        for other in list(self._tracees.values()):
            if other.process is tracee.process and other is not tracee:
                other.ended = True
                if former and other.tid != former:
                    self._forgotten.add(other.tid)
                self._leave_enclave(other)
                del self._tracees[other.tid]
                other.process.threads -= 1

    def _on_stop(self, tracee: Tracee, status: int) -> None:
        number = (status >> 8) & 0xFF
        event = status >> 16
        # Any other stop comes before the touch, which is made again.
        fault, tracee.fault = tracee.fault, None
        if event == ptrace.EVENT_SECCOMP:
            self._on_seccomp(tracee)
        elif not event:
            if number == _SYSCALL_STOP:
                self._traps.on_system_call(tracee)
            else:
                self._traps.on_signal(tracee, number)
        elif event in (ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE):
            self._on_clone(tracee, vfork=event == ptrace.EVENT_VFORK)
        elif event == ptrace.EVENT_EXEC:
            self._on_exec(tracee)
        elif number in GROUP_STOPS:
            if self._stands_for_first(tracee):
                self._job.on_program_stop(number)
            if tracee.revocations:
                # It joins the stop again when it has done that.
                ptrace.interrupt(tracee.tid)
                self._carry_out_revocations(tracee)
            else:
                if tracee.process.debugger is not None:
                    tracee.process.debugger.on_interrupted(tracee)
                ptrace.listen(tracee.tid)
        else:
            self._on_first_stop(tracee, fault)

    def _on_seccomp(self, tracee: Tracee) -> None:
        regs = tracee.load_regs()
        match regs.orig_rax:
            case n.SYS_IOCTL:
                self._on_ioctl(tracee)
            case n.SYS_MMAP:
                self._on_mmap(tracee)
            case n.SYS_MUNMAP:
                self._sgx.mappings.munmap(tracee)
            case n.SYS_MPROTECT | n.SYS_PKEY_MPROTECT:
                self._sgx.mappings.mprotect(tracee)
            case n.SYS_MREMAP:
                self._sgx.mappings.mremap(tracee)
            case n.SYS_REMAP_FILE_PAGES:
                self._sgx.mappings.remap_file_pages(tracee)
            case n.SYS_MADVISE:
                self._sgx.mappings.madvise(tracee)
            case n.SYS_CLONE:
                regs.rdi &= ~n.CLONE_UNTRACED
                tracee.store_regs()
                tracee.go_on()
            case n.SYS_FSTAT | n.SYS_FTRUNCATE | n.SYS_FALLOCATE:
                self._sgx.mappings.descriptor_call(tracee)
            case _:
                process_calls.answer(tracee, self._tracees, self._observer)

    def _on_ioctl(self, tracee: Tracee) -> None:
        if self._machine is None:
            tracee.go_on()
            return
        # What the program has closed and unmapped by now is free for this call.
        self._machine.on_release()
        self._machine.device.ioctl(tracee)

    def _on_mmap(self, tracee: Tracee) -> None:
        regs = tracee.regs
        machine = self._machine
        if machine is not None and (
            machine.device.mmap(tracee) is not None or machine.mappings.mmap_over(tracee)
        ):
            return
        if regs.rdx & n.PROT_EXEC and not regs.r10 & n.MAP_ANONYMOUS:
            self._programs.map_executable(tracee)
        else:
            tracee.go_on()

    def _stands_for_first(self, tracee: Tracee) -> bool:
        """Tell whether the first program is stopped when this thread is.

        A thread in vfork(2) stops only when its child has gone on to exec or exit, and a child
        that the terminal has stopped does neither.
        """
        while tracee.awaited_by is not None:
            tracee = tracee.awaited_by
        return tracee.tid == self._first

    def _on_clone(self, tracee: Tracee, *, vfork: bool) -> None:
        tid = ptrace.event_message(tracee.tid)
        process = tracee.process
        flags = process_calls.clone_flags(tracee, tid)
        child = process
        enclaves = None
        if not flags & n.CLONE_THREAD:
            mm = process.mm if flags & n.CLONE_VM else process.mm.fork(tid)
            if mm is not process.mm and process.mm.enclaves is not None:
                enclaves = process.mm.enclaves.fork(alone=process.threads == process.mm.users == 1)
                mm.enclaves = enclaves
            child = process.fork(tid, mm)
            if process.debugger is not None and mm is not process.mm:
                process.debugger.memory.on_fork(mm)
        new = self._enter(tid, child)
        new.checked_mask = tracee.checked_mask
        new.awaited_by = tracee if vfork else None
        new.must_open = process.mm.reachable and not child.mm.reachable
        if self._machine is not None and flags & (n.CLONE_VM | n.CLONE_SETTLS) == n.CLONE_VM:
            self._machine.on_share(tracee, new)
        new.must_watch = enclaves is not None and (len(enclaves) > 0 or enclaves.doubtful)
        if child.debugger is not None:
            child.debugger.on_new(new)
        tracee.go_on()
        status = self._early.pop(tid, None)
        if status is not None:
            self._ready.append((tid, status))

    def _on_first_stop(self, tracee: Tracee, fault: int | None) -> None:
        if self._stands_for_first(tracee):
            self._job.on_program_stop(0)
        if tracee.halted:
            # It stands at the next one, where there is something to do at this.
            ptrace.interrupt(tracee.tid)
        if tracee.mm.transitions and self._sgx.traps.steady(tracee):
            # It has slept within a transition, which traps now.
            fault = None
        if tracee.must_filter:
            tracee.must_filter = False
            self._sgx.device.watch_mappings(tracee)
            return
        if tracee.must_guard >= 0:
            process_calls.guard(tracee, self._observer)
            return
        if tracee.must_open or tracee.must_watch:
            # A forked child: its mappings must be watched before it runs.
            tracee.load_regs()
            with tracee.injecting() as injector:
                if tracee.must_open:
                    tracee.mm.open_within(injector)
                if tracee.must_watch:
                    self._sgx.device.watch_child(tracee, injector)
                for revocation in tracee.revocations:
                    revocation.carry_out(tracee, injector)
            tracee.must_open = tracee.must_watch = False
            tracee.revocations.clear()
            tracee.finish_call(0)
            return
        if tracee.revocations:
            self._carry_out_revocations(tracee)
            return
        if fault is not None:
            self._traps.on_sleeper(tracee, fault)
            return
        if tracee.process.debugger is not None:
            tracee.process.debugger.on_interrupted(tracee)
        if not (tracee.must_exit and self._sgx.traps.on_interrupt(tracee)):
            tracee.go_on()

    @staticmethod
    def _carry_out_revocations(tracee: Tracee) -> None:
        from softsgx.run import revoke  # noqa: PLC0415  # loaded with the first enclave

        revoke.carry_out(tracee)

    def _on_exec(self, tracee: Tracee) -> None:
        process = tracee.process
        self._take_others_away(tracee, former=ptrace.event_message(tracee.tid))
        self._leave_enclave(tracee)
        # What it was asked for was about the address space that it has left.
        tracee.revocations.clear()
        tracee.awaited_by = None
        # The kernel has cleared its debug registers.
        tracee.watched, tracee.cpuid_watched, tracee.hardware = None, (), ()
        process.exec()
        self._programs.exec(tracee)
        if self._gdb is not None:
            self._gdb.on_exec(tracee)
        tracee.go_on()
