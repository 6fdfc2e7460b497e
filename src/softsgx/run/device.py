# SPDX-License-Identifier: Apache-2.0
"""The system calls that make an enclave: ioctl and mmap; and the second filter, which brings the rest.

Owns nothing. What changes a mapping is mapping_calls'. A program's descriptor is a memfd whose file
offset is the linear address, so a mapping of it only needs its offset set right; what the
kernel's driver would refuse is refused here by the driver's own rules.
"""

import errno
import os
import struct
from weakref import WeakSet

from softsgx.arch.ioctl import SGX_IOC_ENCLAVE_ADD_PAGES, EnclaveAddPages
from softsgx.driver.driver import EnclaveFile
from softsgx.driver.nodes import LEGACY, PROVISION
from softsgx.driver.task import LocalTask
from softsgx.errors import DriverError
from softsgx.run import bpf, descriptors, ptrace
from softsgx.run import numbers as n
from softsgx.run.device_files import DeviceFiles, ProgramTask
from softsgx.run.elrange_map import USER_MODE_ONLY, EnclaveMap, EnclaveVma, too_many_runs
from softsgx.run.mapping_calls import MappingCalls, round_up, settle, settle_started
from softsgx.run.mm import Refused
from softsgx.run.ptrace import TraceeGone, failed
from softsgx.run.records import TABLE_SIZE
from softsgx.run.tracee import NO_SYSCALL, Injector, Process, Tracee

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.driver.driver import DeviceFile
    from softsgx.run.fast_transitions import FastTransitions
    from softsgx.run.keeper import Keeper
    from softsgx.run.observe import Observer
    from softsgx.run.records import RecordTable
    from softsgx.run.revoke import Revoker
    from softsgx.run.userfaults import Userfaults

_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_O_NONBLOCK = 0o4000
_ERESTARTSYS = 512  # include/linux/errno.h
_PAGE = n.PAGE_SIZE
_TOP = 1 << 47


class DeviceCalls:
    """Carries out the traced system calls that concern an enclave."""

    def __init__(
        self,
        files: DeviceFiles,
        keeper: "Keeper",
        records: "RecordTable",
        observer: "Observer",
        revoker: "Revoker",
        mappings: MappingCalls,
        userfaults: "Userfaults",
        *,
        strict: bool = False,
    ) -> None:
        self._strict = strict
        self.fast: FastTransitions | None = None
        self._files = files
        self._mappings = mappings
        self._keeper = keeper
        self._records = records
        self._observer = observer
        self._revoker = revoker
        self._userfaults = userfaults
        self._filter = bpf.second_filter()
        # Processes whose threads cannot share the second filter, and the threads that have it.
        self._apart: WeakSet[Process] = WeakSet()
        self._filtered: WeakSet[Tracee] = WeakSet()

    # -- ioctl ------------------------------------------------------------------------------

    def ioctl(self, tracee: Tracee) -> None:
        """Answer an ioctl of magic 0xA4; one on another file goes on to the kernel."""
        regs = tracee.regs
        fd, request, argument = regs.rdi & 0xFFFFFFFF, regs.rsi & 0xFFFFFFFF, regs.rdx
        file = self._files.of(tracee, fd)
        if file is None:
            tracee.go_on()
            return
        if self._unfiltered(tracee):
            with tracee.injecting() as injector:
                self._install_second_filter(tracee, injector)
        started = self._observer.now()
        pages = len(file.encl.page_array) if isinstance(file, EnclaveFile) else 0
        task = LocalTask() if file.kind == PROVISION else ProgramTask(tracee, self._files)
        error: DriverError | None = None
        try:
            result = file.ioctl(request, argument, task)
        except DriverError as refused:
            error = refused
            result = -refused.errno
            if refused.errno == errno.ENOMEM:
                self._observer.warn_once(
                    "epc",
                    f"process {tracee.process.pid} gets ENOMEM: {refused.reason}; "
                    "`softsgx run --epc SIZE` makes the EPC larger",
                )
        self._observer.ioctl(tracee, request, result, error, started)
        adds = request & 0xFF == SGX_IOC_ENCLAVE_ADD_PAGES & 0xFF
        if adds and isinstance(file, EnclaveFile) and len(file.encl.page_array) != pages:
            self._settle_added(tracee, file, argument)
        elif not result and file.kind in LEGACY:
            settle_started(tracee, request, argument)
        if result == -errno.EINTR and file.restarts:
            self._restart(tracee)
        else:
            tracee.finish_call(result)

    @staticmethod
    def _restart(tracee: Tracee) -> None:
        # The kernel's driver returns ERESTARTSYS: whether the program sees EINTR is for the
        # handler's SA_RESTART to say, and the kernel decides it where the signal is delivered.
        tracee.regs.orig_rax = NO_SYSCALL
        tracee.run_to_exit()
        tracee.regs.rax = -_ERESTARTSYS & NO_SYSCALL
        tracee.regs.orig_rax = n.SYS_IOCTL
        tracee.store_regs()
        # The signal may be gone by now, as SIGCONT takes a stop away. The kernel restarts the call
        # all the same, if it looks for signals at all: else the program would see ERESTARTSYS.
        ptrace.interrupt(tracee.tid)
        tracee.go_on()

    def _settle_added(self, tracee: Tracee, file: EnclaveFile, argument: int) -> None:
        # A mapping from before ADD_PAGES may allow more than the pages do (sgx_encl_load_page_in_vma
        # then refuses the page): those parts are taken away. Where no userfaultfd watches, what was
        # added is given. Nothing to do for who maps afterwards; others see it at their first touch.
        arguments = tracee.mm.read(argument, EnclaveAddPages.SIZE)
        if len(arguments) < EnclaveAddPages.SIZE:
            return
        added = EnclaveAddPages.decode(arguments)
        start = file.encl.base + added.offset
        settle(tracee, start, start + added.count)

    # -- mmap -------------------------------------------------------------------------------

    def mmap(self, tracee: Tracee) -> "DeviceFile | None":
        """Carry out an mmap that is, or lies over, an enclave's.

        Gives the device file that was mapped; None where the call is none of the device's and
        still stands at its stop.
        """
        regs = tracee.regs
        file = None
        if not regs.r10 & n.MAP_ANONYMOUS:
            file = self._files.of(tracee, regs.r8 & 0xFFFFFFFF)
        if file is None:
            return None
        try:
            vma = self._map(tracee, file)
        except DriverError as refused:
            self._observer.refused(tracee, "mmap", refused)
            tracee.finish_call(-refused.errno)
            return file
        if vma is None:
            tracee.finish_call(regs.rax)
            return file
        result = regs.rax
        self._observer.openers.setdefault(vma.file.encl, tracee.process.pid)
        error = self._adopt(tracee, vma)
        tracee.finish_call(-error if error else result)
        return file

    def _map(self, tracee: Tracee, file: "DeviceFile") -> EnclaveVma | None:
        """Map the file; gives the mapping, or None where the kernel has refused it. RAX tells its result."""
        if file.kind in LEGACY:
            from softsgx.run.legacy_maps import map_legacy  # noqa: PLC0415  (few runs have them)

            return map_legacy(
                tracee, file, self._mappings, may_write=self._open_for_writing(tracee)
            )
        return self._map_enclave(tracee, file)

    def _map_enclave(self, tracee: Tracee, file: "DeviceFile") -> EnclaveVma | None:
        regs = tracee.regs
        given = regs.rdi, regs.rdx, regs.r10, regs.r9
        address, length, prot, flags = regs.rdi, regs.rsi, regs.rdx & 7, regs.r10
        task = ProgramTask(tracee, self._files)
        if not isinstance(file, EnclaveFile):
            raise DriverError(errno.ENODEV, f"a node of kind {file.kind} cannot be mapped")
        file.check_mmap(address, length, prot, flags, task)
        may_write = self._open_for_writing(tracee)
        if prot & n.PROT_WRITE and not may_write:
            raise DriverError(errno.EACCES, "the descriptor is open for reading only")
        fixed = flags & (n.MAP_FIXED | n.MAP_FIXED_NOREPLACE)
        if not fixed:
            with tracee.injecting() as injector:
                address = injector.call(
                    n.SYS_MMAP,
                    address,
                    length,
                    0,
                    n.MAP_PRIVATE | n.MAP_ANONYMOUS | n.MAP_NORESERVE,
                    -1,
                    0,
                )
            if failed(address):
                regs.rax = address
                raise DriverError(failed(address), "no room for the mapping")
            flags |= n.MAP_FIXED
            try:
                file.check_mmap(address, length, prot, flags, task)
            except DriverError:
                with tracee.injecting() as injector:
                    injector.call(n.SYS_MUNMAP, address, length)
                raise
        # The file offset is the linear address. It is out of reach until its holes are looked after.
        regs.rdi, regs.rdx, regs.r10, regs.r9 = address, 0, flags, address
        result = tracee.run_to_exit()
        # A system call changes no register but the result's, RCX and R11.
        regs.rdi, regs.rdx, regs.r10, regs.r9 = given
        if failed(result):
            return None
        vma = EnclaveVma(result, result + round_up(length), prot, file)
        vma.may_write = may_write
        return vma

    @staticmethod
    def _open_for_writing(tracee: Tracee) -> bool:
        with tracee.injecting() as injector:
            flags = injector.call(n.SYS_FCNTL, tracee.regs.r8, n.F_GETFL)
        return failed(flags) != 0 or flags & os.O_ACCMODE == os.O_RDWR

    def _adopt(self, tracee: Tracee, vma: EnclaveVma) -> int:
        """Enter a new mapping; an errno where it cannot have its protection, and is gone again."""
        mm = tracee.mm
        if mm.enclaves is None:
            mm.enclaves = EnclaveMap(self._revoker, self._mappings.release, self._userfaults)
            mm.enclaves.strict = self._strict
        enclaves = mm.enclaves
        enclaves.add(vma)
        if self.fast is not None:
            self.fast.sites.on_mapped(vma.file, tracee)
        with tracee.injecting() as injector:
            if not tracee.process.filtered or self._unfiltered(tracee):
                # The descriptor came from another process, or another thread.
                self._install_second_filter(tracee, injector)
            if not mm.records:
                self._map_records(tracee, injector)
            self._watch(tracee, injector, enclaves)
            injector.call(n.SYS_MADVISE, vma.start, vma.end - vma.start, n.MADV_DONTDUMP)
            error = enclaves.settle(injector, vma.start, vma.end)
            if error:
                injector.call(n.SYS_MUNMAP, vma.start, vma.end - vma.start)
        if error:
            self._mappings.unmapped(tracee, vma.start, vma.end)
        if error == errno.ENOMEM:
            self._observer.warn(too_many_runs(tracee))
        return error

    def watch_mappings(self, tracee: Tracee) -> None:
        """Put the second filter in place; the thread stands where its open of a node returns."""
        result = tracee.load_regs().rax
        with tracee.injecting() as injector:
            self._install_second_filter(tracee, injector)
        tracee.finish_call(result)

    def _unfiltered(self, tracee: Tracee) -> bool:
        return tracee.process in self._apart and tracee not in self._filtered

    def _install_second_filter(self, tracee: Tracee, injector: Injector) -> None:
        program = self._filter
        mm = tracee.mm
        with mm.scratch_for(program) as at:
            header = struct.pack("<HxxxxxxQ", len(program) // 8, at)
            with mm.scratch_for(header) as fprog:
                for flags in (_SECCOMP_FILTER_FLAG_TSYNC, 0):
                    result = injector.call(n.SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, fprog)
                    if not result:
                        tracee.process.filtered = True
                        mm.watch_descriptors()
                        if not flags:
                            # A thread has a filter of its own, so that TSYNC reaches none. Each
                            # is given ours where it first calls the device; one that never does,
                            # but changes an enclave's mapping, is not seen.
                            self._apart.add(tracee.process)
                            self._filtered.add(tracee)
                        return
        raise Refused(
            f"process {tracee.process.pid} cannot be given the second filter: "
            f"{os.strerror(failed(result)) if failed(result) else f'thread {result}'}"
        )

    def watch_child(self, tracee: Tracee, injector: Injector) -> None:
        """Look after the holes that a forked child has inherited, before it runs."""
        enclaves = tracee.mm.enclaves
        if enclaves is not None:
            if enclaves.doubtful:
                self._agree(tracee, injector, enclaves)
            if len(enclaves):
                self._watch(tracee, injector, enclaves)
            if enclaves.settle(injector, 0, _TOP):
                raise Refused(too_many_runs(tracee))

    def _agree(self, tracee: Tracee, injector: Injector, enclaves: EnclaveMap) -> None:
        # The fork and another thread's call are each carried out by the kernel and heard of later, in any
        # order. A mapping that nobody watches would make silent zero pages: the child goes without.
        enclaves.doubtful = False
        try:
            mapped = [
                (start, end, file)
                for start, end, file in self._files.mapped_in(tracee)
                if isinstance(file, EnclaveFile)
            ]
        except OSError:
            return
        for start, end in enclaves.agree(mapped):
            injector.call(n.SYS_MUNMAP, start, end - start)

    def _watch(self, tracee: Tracee, injector: Injector, enclaves: EnclaveMap) -> None:
        if not enclaves.watched and not enclaves.refused:
            self._start_watching(tracee, injector, enclaves)

    def _start_watching(self, tracee: Tracee, injector: Injector, enclaves: EnclaveMap) -> None:
        uffd = self._take_userfaultfd(tracee, injector)
        if uffd < 0:
            enclaves.refused = not enclaves.watched
        elif enclaves.watched:
            # Another thread has mapped an enclave meanwhile: a range has one userfaultfd.
            os.close(uffd)
        else:
            try:
                enclaves.watch(uffd)
            except OSError:
                # A kernel whose userfaultfd does not write-protect shared memory.
                os.close(uffd)
                enclaves.refused = True
            else:
                self._keeper.keep(uffd, tracee.process.pid)

    @staticmethod
    def _take_userfaultfd(tracee: Tracee, injector: Injector) -> int:
        """Make a userfaultfd of the thread's address space, which lives as long as that; -1 if refused."""
        fd = injector.call(n.SYS_USERFAULTFD, n.O_CLOEXEC | _O_NONBLOCK | USER_MODE_ONLY)
        if failed(fd):
            return -1
        try:
            uffd = descriptors.take(tracee, injector, fd)
        except OSError:
            uffd = -1
        try:
            injector.call(n.SYS_CLOSE, fd)
        except TraceeGone:
            # Killed between the two: nobody else knows of ours.
            if uffd >= 0:
                os.close(uffd)
            raise
        return uffd

    def _map_records(self, tracee: Tracee, injector: Injector) -> None:
        prot = n.PROT_READ | n.PROT_WRITE
        fd = injector.lend(self._records.fd)
        if failed(fd):
            return
        at = injector.call(n.SYS_MMAP, 0, TABLE_SIZE, prot, n.MAP_SHARED, fd, 0)
        injector.call(n.SYS_CLOSE, fd)
        if not failed(at) and tracee.mm.records:
            # Another thread was faster.
            injector.call(n.SYS_MUNMAP, at, TABLE_SIZE)
        elif not failed(at):
            tracee.mm.records = at
