# SPDX-License-Identifier: Apache-2.0
"""The system calls that concern an enclave: ioctl, and everything that maps or unmaps it.

Owns the table of open device files, by inode. A program's descriptor is a memfd whose file
offset is the linear address, so a mapping of it only needs its offset set right; what the
kernel's driver would refuse is refused here by the driver's own rules.
"""

import errno
import os
import struct
from typing import TYPE_CHECKING
from weakref import WeakSet

from softsgx.arch.ioctl import EnclaveAddPages
from softsgx.driver.driver import EnclaveFile
from softsgx.driver.task import LocalTask, Task
from softsgx.errors import DriverError
from softsgx.run import bpf, ptrace
from softsgx.run import numbers as n
from softsgx.run.elrange_map import USER_MODE_ONLY, EnclaveMap, EnclaveVma
from softsgx.run.records import TABLE_PATH, TABLE_SIZE
from softsgx.run.tracee import NO_SYSCALL, Injector, Process, Refused, Tracee, failed
from softsgx.run.user_memory import ProgramMemory

if TYPE_CHECKING:
    from softsgx.driver.driver import ProvisionFile

    DeviceFile = EnclaveFile | ProvisionFile
    from softsgx.run.keeper import Keeper
    from softsgx.run.observe import Observer

_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_O_NONBLOCK = 0o4000
_ERESTARTSYS = 512  # include/linux/errno.h
# SIG_KERNEL_IGNORE_MASK: SIGCHLD, SIGCONT, SIGURG, SIGWINCH.
_IGNORED_BY_DEFAULT = 1 << 16 | 1 << 17 | 1 << 22 | 1 << 27
_READ_IMPLIES_EXEC = 0x0400000
_PAGE = n.PAGE_SIZE
_TOP = 1 << 47
_NOEXEC = b"noexec"
_STAT_SIZE = 144  # struct stat
_BELOW_STACK = 4096  # clear of the red zone


def _round_up(length: int) -> int:
    return (length + _PAGE - 1) & ~(_PAGE - 1)


class DeviceFiles:
    """Open files of the device nodes, found again by the inode of a program's descriptor."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], DeviceFile] = {}

    def add(self, fd: int, file: "DeviceFile") -> None:
        """Enter the file whose inode `fd` has."""
        stat = os.fstat(fd)
        self._files[stat.st_dev, stat.st_ino] = file

    def remove(self, file: "DeviceFile") -> None:
        """Forget a released file."""
        for key, known in list(self._files.items()):
            if known is file:
                del self._files[key]

    def of(self, tracee: Tracee, fd: int) -> "DeviceFile | None":
        """Give the device file behind a descriptor of the stopped thread's process."""
        if not self._files or not 0 <= fd < 1 << 31:
            return None
        try:
            stat = os.stat(f"/proc/{tracee.tid}/fd/{fd}")
        except PermissionError:
            return self._files.get(_fstat_within(tracee, fd))
        except OSError:
            return None
        return self._files.get((stat.st_dev, stat.st_ino))


def _fstat_within(tracee: Tracee, fd: int) -> tuple[int, int]:
    # A program that has made itself non-dumpable closes /proc: it is asked itself.
    buffer = (tracee.regs.rsp - _BELOW_STACK) & ~0xF
    before = tracee.mm.read(buffer, _STAT_SIZE)
    with tracee.injecting() as injector:
        injector.call(n.SYS_FSTAT, fd, buffer)
    dev, ino = struct.unpack("<QQ", tracee.mm.read(buffer, 16).ljust(16, b"\0"))
    tracee.mm.write(buffer, before)
    return dev, ino


class ProgramTask:
    """driver's Task port: the thread that stands in an ioctl."""

    def __init__(self, tracee: Tracee, files: DeviceFiles) -> None:
        self._tracee = tracee
        self._files = files
        self._memory = ProgramMemory(tracee)

    @property
    def memory(self) -> ProgramMemory:
        """Give the caller's address space."""
        return self._memory

    def may_exec(self, address: int) -> bool | None:
        """Tell whether the first VMA that ends above `address` has VM_MAYEXEC; None without one."""
        return self._vma(address)[2]

    def _vma(self, address: int) -> tuple[int, int, bool | None]:
        # What was seen last, because a loader adds page after page of one mapping.
        seen = self._tracee.mm.source_vma
        if seen is not None and seen[0] <= address < seen[1]:
            return seen
        found: tuple[int, int, bool | None] = (0, 0, None)
        try:
            with open(f"/proc/{self._tracee.tid}/maps", "rb") as maps:
                for line in maps:
                    span, _, _, device, inode, *_ = line.split(None, 5)
                    low, _, high = span.partition(b"-")
                    if address < int(high, 16):
                        may = inode == b"0" or not self._on_noexec_mount(device)
                        found = (int(low, 16), int(high, 16), may)
                        break
        except OSError:
            # The program hides its maps; the copy itself still tells a bad pointer.
            found = (0, _TOP, True)
        self._tracee.mm.source_vma = found if found[2] else None
        return found

    def _on_noexec_mount(self, device: bytes) -> bool:
        major, minor = (int(part, 16) for part in device.split(b":"))
        with open(f"/proc/{self._tracee.tid}/mountinfo", "rb") as mounts:
            for line in mounts:
                fields = line.split(b" ")
                if fields[2] == b"%d:%d" % (major, minor):
                    return _NOEXEC in fields[5].split(b",")
        return False

    def vma_end(self, address: int) -> int:
        """Tell up to where the answer of `may_exec(address)` holds."""
        low, high, _ = self._vma(address)
        return high if low <= address < high else address + _PAGE

    def signal_pending(self) -> bool:
        """Tell whether a signal waits that the thread does not block."""
        if not ptrace.any_pending(self._tracee.tid):
            return False
        pending = blocked = ignored = caught = 0
        try:
            with open(f"/proc/{self._tracee.tid}/status", "rb") as status:
                for line in status:
                    if line.startswith((b"SigPnd:", b"ShdPnd:")):
                        pending |= int(line.split()[1], 16)
                    elif line.startswith(b"SigBlk:"):
                        blocked = int(line.split()[1], 16)
                    elif line.startswith(b"SigIgn:"):
                        ignored = int(line.split()[1], 16)
                    elif line.startswith(b"SigCgt:"):
                        caught = int(line.split()[1], 16)
        except OSError:
            return False
        # Queued only because the thread is traced: sig_ignored() would have dropped it.
        ignored |= _IGNORED_BY_DEFAULT & ~caught
        return bool(pending & ~blocked & ~ignored)

    def file(self, fd: int) -> "DeviceFile | None":
        """Give the device file behind a descriptor of the program, or None."""
        return self._files.of(self._tracee, fd)

    def read_implies_exec(self) -> bool:
        """Tell whether the process has the READ_IMPLIES_EXEC personality."""
        try:
            with open(f"/proc/{self._tracee.tid}/personality", "rb") as personality:
                return bool(int(personality.read(), 16) & _READ_IMPLIES_EXEC)
        except (OSError, ValueError):
            return False


class DeviceCalls:
    """Carries out the traced system calls that concern an enclave."""

    def __init__(self, files: DeviceFiles, keeper: "Keeper", observer: "Observer") -> None:
        self._files = files
        self._keeper = keeper
        self._observer = observer
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
            ptrace.cont(tracee.tid)
            return
        if self._unfiltered(tracee):
            with tracee.injecting() as injector:
                self._install_second_filter(tracee, injector)
        started = self._observer.now()
        pages = len(file.encl.page_array) if isinstance(file, EnclaveFile) else 0
        task = self._task(tracee, file)
        error: DriverError | None = None
        try:
            result = file.ioctl(request, argument, task)
        except DriverError as refused:
            error = refused
            result = -refused.errno
        self._observer.ioctl(tracee, request, result, error, started)
        if isinstance(file, EnclaveFile) and len(file.encl.page_array) != pages:
            self._observer.pages_added += len(file.encl.page_array) - pages
            self._narrow(tracee, file, argument)
        if result == -errno.EINTR:
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
        ptrace.cont(tracee.tid)

    @staticmethod
    def _narrow(tracee: Tracee, file: EnclaveFile, argument: int) -> None:
        # A mapping from before ADD_PAGES may allow more than the pages do (sgx_encl_load_page_in_vma
        # then refuses the page): take those parts away. Nothing to do for who maps afterwards.
        enclaves = tracee.mm.enclaves
        arguments = tracee.mm.read(argument, EnclaveAddPages.SIZE)
        if enclaves is None or len(arguments) < EnclaveAddPages.SIZE:
            return
        added = EnclaveAddPages.decode(arguments)
        start = file.encl.base + added.offset
        parts = [
            part
            for vma in enclaves.overlapping(start, start + added.count)
            if vma.file is file and not vma.narrowed
            for part in file.encl.unmappable(vma.start, vma.end, vma.prot)
        ]
        if parts:
            with tracee.injecting() as injector:
                for start, end in parts:
                    injector.call(n.SYS_MPROTECT, start, end - start, 0)
                    enclaves.set_narrowed(start, end)

    def _task(self, tracee: Tracee, file: "DeviceFile") -> Task:
        if isinstance(file, EnclaveFile):
            return ProgramTask(tracee, self._files)
        return LocalTask()  # the provision node touches no memory

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
            vma = self._map_enclave(tracee, file)
        except DriverError as refused:
            self._observer.refused(tracee, "mmap", refused)
            tracee.finish_call(-refused.errno)
            return file
        if vma is not None:
            self._adopt(tracee, vma)
        tracee.finish_call(regs.rax)
        return file

    def _map_enclave(self, tracee: Tracee, file: "DeviceFile") -> EnclaveVma | None:
        regs = tracee.regs
        given = regs.rdi, regs.r10, regs.r9
        address, length, prot, flags = regs.rdi, regs.rsi, regs.rdx & 7, regs.r10
        task = self._task(tracee, file)
        file.check_mmap(address, length, prot, flags, task)
        if not isinstance(file, EnclaveFile):
            raise DriverError(errno.ENODEV, "only an enclave can be mapped")
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
        # The file offset is the linear address.
        regs.rdi, regs.r10, regs.r9 = address, flags, address
        result = tracee.run_to_exit()
        # A system call changes no register but the result's, RCX and R11.
        regs.rdi, regs.r10, regs.r9 = given
        if failed(result):
            return None
        return EnclaveVma(result, result + _round_up(length), prot, file)

    def _adopt(self, tracee: Tracee, vma: EnclaveVma) -> None:
        mm = tracee.mm
        if mm.enclaves is None:
            mm.enclaves = EnclaveMap()
        mm.enclaves.add(vma)
        with tracee.injecting() as injector:
            if not tracee.process.filtered or self._unfiltered(tracee):
                # The descriptor came from another process, or another thread.
                self._install_second_filter(tracee, injector)
            if not mm.records:
                self._map_records(tracee, injector)
            self._watch(tracee, injector, mm.enclaves)
            injector.call(n.SYS_MADVISE, vma.start, vma.end - vma.start, n.MADV_DONTDUMP)

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

    def make_userfaultfd(self, tracee: Tracee, injector: Injector) -> int:
        """Make a userfaultfd of the thread's address space, which lives as long as that."""
        uffd = self._take_userfaultfd(tracee, injector)
        self._keeper.keep(uffd, tracee.process.pid)
        return uffd

    @staticmethod
    def _take_userfaultfd(tracee: Tracee, injector: Injector) -> int:
        flags = n.O_CLOEXEC | _O_NONBLOCK | USER_MODE_ONLY
        fd = injector.call(n.SYS_USERFAULTFD, flags)
        if failed(fd):
            raise Refused(
                f"userfaultfd is refused to process {tracee.process.pid} "
                f"({os.strerror(failed(fd))}): `softsgx info` tells the fix"
            )
        try:
            uffd = ptrace.pidfd_getfd(tracee.process.pid, fd, tracee.tid)
        except OSError as error:
            raise Refused(
                f"pidfd_getfd of process {tracee.process.pid} is refused ({error.strerror}): "
                "`softsgx info` tells the fix; a program that makes itself non-dumpable must do so "
                "after it has mapped its enclave"
            ) from error
        finally:
            injector.call(n.SYS_CLOSE, fd)
        return uffd

    def _watch(self, tracee: Tracee, injector: Injector, enclaves: EnclaveMap) -> None:
        uffd = -1 if enclaves.watched else self._take_userfaultfd(tracee, injector)
        if uffd < 0:
            return
        if enclaves.watched:
            # Another thread has mapped an enclave meanwhile: a range has one userfaultfd.
            os.close(uffd)
            return
        enclaves.watch(uffd)
        self._keeper.keep(uffd, tracee.process.pid)

    @staticmethod
    def _map_records(tracee: Tracee, injector: Injector) -> None:
        with tracee.mm.scratch_for(TABLE_PATH) as path:
            fd = injector.call(n.SYS_OPENAT, n.AT_FDCWD, path, os.O_RDWR | n.O_CLOEXEC)
        if not failed(fd):
            prot = n.PROT_READ | n.PROT_WRITE
            at = injector.call(n.SYS_MMAP, 0, TABLE_SIZE, prot, n.MAP_SHARED, fd, 0)
            injector.call(n.SYS_CLOSE, fd)
            if not failed(at) and tracee.mm.records:
                # Another thread was faster.
                injector.call(n.SYS_MUNMAP, at, TABLE_SIZE)
            elif not failed(at):
                tracee.mm.records = at

    # -- what changes a mapping ---------------------------------------------------------------

    def mmap_over(self, tracee: Tracee) -> bool:
        """Carry out a MAP_FIXED mapping of something else over an enclave range: a munmap.

        False where the call does not lie over one, and still stands at its stop.
        """
        regs = tracee.regs
        tracee.mm.source_vma = None
        enclaves = tracee.mm.enclaves
        start, end = regs.rdi, regs.rdi + _round_up(regs.rsi)
        if enclaves is None or not regs.r10 & n.MAP_FIXED or not enclaves.overlapping(start, end):
            return False
        if not failed(tracee.run_to_exit()):
            enclaves.remove(start, end)
        ptrace.cont(tracee.tid)
        return True

    def remap_file_pages(self, tracee: Tracee) -> None:
        """Refuse remap_file_pages on an enclave: the address selects the page, never an offset."""
        regs = tracee.regs
        enclaves = tracee.mm.enclaves
        if enclaves is not None and enclaves.overlapping(regs.rdi, regs.rdi + _round_up(regs.rsi)):
            tracee.finish_call(-errno.EINVAL)
        else:
            ptrace.cont(tracee.tid)

    def munmap(self, tracee: Tracee) -> None:
        """Carry out a munmap."""
        regs = tracee.regs
        tracee.mm.source_vma = None
        enclaves = tracee.mm.enclaves
        start, end = regs.rdi, regs.rdi + _round_up(regs.rsi)
        held = enclaves is not None and enclaves.overlapping(start, end)
        if enclaves is not None and held and not failed(tracee.run_to_exit()):
            enclaves.remove(start, end)
        ptrace.cont(tracee.tid)

    def mprotect(self, tracee: Tracee) -> None:
        """Carry out an mprotect; on enclave memory sgx_vma_mprotect decides first."""
        regs = tracee.regs
        tracee.mm.source_vma = None
        enclaves = tracee.mm.enclaves
        start, end, prot = regs.rdi, regs.rdi + _round_up(regs.rsi), regs.rdx & 7
        parts = enclaves.overlapping(start, end) if enclaves is not None else []
        if enclaves is None or not parts:
            ptrace.cont(tracee.tid)
            return
        try:
            for part in parts:
                task = self._task(tracee, part.file)
                part.file.check_mprotect(part.start, part.end, prot, task)
        except DriverError as refused:
            self._observer.refused(tracee, "mprotect", refused)
            tracee.finish_call(-refused.errno)
            return
        if not failed(tracee.run_to_exit()):
            enclaves.protect(start, end, prot)
        ptrace.cont(tracee.tid)

    def mremap(self, tracee: Tracee) -> None:
        """Carry out an mremap; an enclave mapping (VM_DONTEXPAND) neither grows nor moves."""
        regs = tracee.regs
        tracee.mm.source_vma = None
        enclaves = tracee.mm.enclaves
        old, old_length, new_length = regs.rdi, _round_up(regs.rsi), _round_up(regs.rdx)
        if enclaves is None:
            ptrace.cont(tracee.tid)
            return
        parts = enclaves.overlapping(old, old + max(old_length, 1))
        if parts:
            try:
                parts[0].file.check_mremap(old_length, new_length, regs.r10)
            except DriverError as refused:
                self._observer.refused(tracee, "mremap", refused)
                tracee.finish_call(-refused.errno)
                return
        result = tracee.run_to_exit()
        if not failed(result):
            if parts:
                enclaves.remove(old + new_length, old + old_length)
            if result != old:
                enclaves.remove(result, result + new_length)
        ptrace.cont(tracee.tid)

    def madvise(self, tracee: Tracee) -> None:
        """Carry out an madvise; on enclave memory as the kernel treats a device mapping."""
        regs = tracee.regs
        tracee.mm.source_vma = None
        enclaves = tracee.mm.enclaves
        start, end, advice = regs.rdi, regs.rdi + _round_up(regs.rsi), regs.rdx & 0xFFFFFFFF
        parts = enclaves.overlapping(start, end) if enclaves is not None else []
        if enclaves is not None and parts:
            try:
                granted = [part.file.check_madvise(advice, part.prot) for part in parts]
            except DriverError as refused:
                self._observer.refused(tracee, "madvise", refused)
                tracee.finish_call(-refused.errno)
                return
            if not all(granted):
                tracee.finish_call(0)
                return
            if advice == n.MADV_DONTFORK:
                enclaves.set_dontfork(start, end)
        ptrace.cont(tracee.tid)
