# SPDX-License-Identifier: Apache-2.0
"""The open device files, found by a program's descriptor, and the thread that stands in a call.

Owns the table of open files, by inode: a program's descriptor may be dup'ed, inherited or passed
on, and is still the same file. The thread answers what the driver asks of its caller.
"""

import errno
import os
import struct

from softsgx.run import descriptors, ptrace
from softsgx.run import numbers as n
from softsgx.run.revoke import pause
from softsgx.run.tracee import Tracee
from softsgx.run.user_memory import ProgramMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.driver.driver import DeviceFile
    from softsgx.driver.legacy import LegacyMapping
    from softsgx.run.store_memory import ProgramStoreMemory

# SIG_KERNEL_IGNORE_MASK: SIGCHLD, SIGCONT, SIGURG, SIGWINCH.
_IGNORED_BY_DEFAULT = 1 << 16 | 1 << 17 | 1 << 22 | 1 << 27
_READ_IMPLIES_EXEC = 0x0400000
_PAGE = n.PAGE_SIZE
_TOP = 1 << 47
_NOEXEC = b"noexec"
_STAT_SIZE = 144  # struct stat
_BELOW_STACK = 4096  # clear of the red zone


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

    def kind_of(self, tracee: Tracee, fd: int) -> str | None:
        """Give the kind of node behind a descriptor, of a thread that stands in a notification."""
        try:
            stat = os.stat(f"/proc/{tracee.tid}/fd/{fd}")
        except OSError:
            return None
        file = self._files.get((stat.st_dev, stat.st_ino))
        return file.kind if file is not None else None

    def mapped_in(self, tracee: Tracee) -> "list[tuple[int, int, DeviceFile]]":
        """Give the mappings of device files in a process, in order; OSError where it hides them."""
        mapped = []
        with open(f"/proc/{tracee.tid}/maps", "rb") as maps:
            for line in maps:
                span, _, _, device, inode, *_ = line.split(None, 5)
                major, _, minor = device.partition(b":")
                key = os.makedev(int(major, 16), int(minor, 16)), int(inode)
                file = self._files.get(key)
                if file is not None:
                    low, _, high = span.partition(b"-")
                    mapped.append((int(low, 16), int(high, 16), file))
        return mapped


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

    def pause(self) -> bool:
        """Give the other threads of the run a turn."""
        pause(self._tracee)
        return True

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

    def descriptor(self, fd: int) -> int:
        """Give a duplicate of a descriptor of the program."""
        with self._tracee.injecting() as injector:
            taken = descriptors.take(self._tracee, injector, fd)
        if taken < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return taken

    def store_memory(self, address: int, length: int) -> "ProgramStoreMemory":
        """Give a range of the program's memory as a store."""
        # Few programs bring a store of their own.
        from softsgx.run.store_memory import store_memory  # noqa: PLC0415

        return store_memory(self._tracee, self._memory, address, length)

    def legacy_vma(self, address: int) -> "tuple[int, int, LegacyMapping] | None":
        """Give the VMA of a legacy node at an address: start, end, mapping."""
        # Imported with the first such node.
        from softsgx.driver.legacy import LegacyMapping  # noqa: PLC0415

        enclaves = self._tracee.mm.enclaves
        vma = enclaves.find(address) if enclaves is not None else None
        if vma is None or not isinstance(vma.file, LegacyMapping):
            return None
        return vma.start, vma.end, vma.file

    def read_implies_exec(self) -> bool:
        """Tell whether the process has the READ_IMPLIES_EXEC personality."""
        try:
            with open(f"/proc/{self._tracee.tid}/personality", "rb") as personality:
                return bool(int(personality.read(), 16) & _READ_IMPLIES_EXEC)
        except (OSError, ValueError):
            return False
