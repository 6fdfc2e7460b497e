# SPDX-License-Identifier: Apache-2.0
"""A program's image at exec and after: our vDSO in place of the kernel's, and CPUID that is answered.

Owns whether this host has CPUID faulting, which the first exec finds out. At the exec stop, before
the dynamic linker runs, AT_SYSINFO_EHDR is pointed at our vDSO. User-mode CPUID cannot be made to
trap on many hosts, so in every executable file mapping the proven CPUID instructions are changed
(cpuid_changes).
"""

import errno
import os
import stat
import struct

from softsgx.run import numbers as n
from softsgx.run.cpuid_changes import CpuidChanges
from softsgx.run.cpuid_sites import NO_SITES, Sites, cpuid_sites
from softsgx.run.executable import privilege
from softsgx.run.mm import SCRATCH_SIZE
from softsgx.run.path_sites import executable_files
from softsgx.run.ptrace import TraceeGone, failed
from softsgx.run.rooms import ROOM_SIZE, Room
from softsgx.run.tracee import NO_SYSCALL, Injector, Tracee

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.observe import Observer
    from softsgx.run.vdso import VdsoImage

_AT_NULL = 0
_AT_SYSINFO_EHDR = 33
_USER64_CS = 0x33
_STACK_STEP = 64 * 1024
_PAGE = n.PAGE_SIZE
_WORD = struct.Struct("<Q")


def _find_auxv(tracee: Tracee, kind: int) -> tuple[int, int] | None:
    """Give address and value of an auxiliary vector entry on the stack of a fresh program."""
    stack = bytearray()
    base = tracee.regs.rsp
    zeros = 0
    at = 8  # behind argc
    while True:
        more = tracee.mm.read(base + len(stack), _STACK_STEP)
        stack += more
        words = memoryview(stack)[: len(stack) & ~7].cast("Q")
        # argv, then envp, each ended by a null word; then pairs.
        while zeros < 2 and at // 8 < len(words):
            zeros += not words[at // 8]
            at += 8
        while zeros == 2 and at // 8 + 1 < len(words):
            key, value = words[at // 8], words[at // 8 + 1]
            if key == kind:
                return base + at + 8, value
            if key == _AT_NULL:
                return None
            at += 16
        words.release()
        if not more:
            return None


class Programs:
    """Prepares the image of every program that a traced thread executes."""

    def __init__(
        self,
        vdso: "VdsoImage",
        observer: "Observer",
        *,
        leave_text: bool = False,
        detours: bool = True,
    ) -> None:
        self._vdso = vdso
        self._observer = observer
        self._leave_text = leave_text
        self._may_fault = True
        self._sites = CpuidChanges(vdso, detours=detours)

    def exec(self, tracee: Tracee) -> None:
        """Prepare a fresh image at its exec stop."""
        regs = tracee.load_regs()
        mm = tracee.mm
        if regs.cs != _USER64_CS or not mm.reachable:
            what = "is a 32-bit program" if mm.reachable else "cannot be read by its user"
            self._warn(tracee, what, "it runs without SGX, as all of its kind")
            return
        raised = privilege(f"/proc/{tracee.process.pid}/exe")
        if raised:
            what = "is setuid, setgid or given capabilities"
            self._warn(tracee, what, f"it is not {raised} under softsgx (no_new_privs)")
        entry = regs.rip
        regs.orig_rax = NO_SYSCALL
        regs.rax = 0
        auxv = _find_auxv(tracee, _AT_SYSINFO_EHDR)
        if auxv is None:
            if mm.gone:
                raise TraceeGone
            self._observer.warn(f"process {tracee.process.pid} has no vDSO to replace")
        size = (self._vdso.size + _PAGE - 1) & ~(_PAGE - 1)
        # Until our own pages are there, the gadget stands in for the program's first instructions.
        gadget = self._vdso.gadget
        first = mm.read(entry, len(gadget))
        mm.write(entry, gadget)
        mm.gadget = entry
        with tracee.injecting() as injector:
            base = injector.call(
                n.SYS_MMAP,
                0,
                size + SCRATCH_SIZE + ROOM_SIZE,
                n.PROT_READ | n.PROT_EXEC,
                n.MAP_PRIVATE | n.MAP_ANONYMOUS,
                -1,
                0,
            )
            mm.cpuid_faults = self._make_cpuid_fault(injector)
        mm.write(entry, first)
        if failed(base):
            raise RuntimeError(f"no room for the vDSO: {os.strerror(failed(base))}")
        # The kernel's own is below the stack; ours must be where no enclave could want to be.
        host = auxv[1] if auxv else 0
        image = self._vdso.for_process(host, base)
        mm.write(base, image)
        mm.place(base + self._vdso.syscall, base + size)
        mm.rooms = [Room(base + size + SCRATCH_SIZE)]
        if auxv:
            mm.write(auxv[0], _WORD.pack(base))
        mm.image = base
        mm.path_flag = base + self._vdso.path_flag
        if tracee.process.filtered:
            mm.watch_descriptors()
        mm.path_load = base + self._vdso.path_load
        mm.path_ask = base + self._vdso.path_ask
        mm.aep = base + self._vdso.enclu
        mm.handle_exception = base + self._vdso.handle_exception
        if not self._leave_text and not mm.cpuid_faults:
            self._patch_mapped(tracee)

    # arch/x86/kernel/process.c: clone and fork pass it on, and exec takes it away.
    def _make_cpuid_fault(self, injector: Injector) -> bool:
        if not self._may_fault:
            return False
        refused = failed(injector.call(n.SYS_ARCH_PRCTL, n.ARCH_SET_CPUID, 0))
        # No such processor, or no such kernel; else it was a sandbox of this one program.
        self._may_fault = refused not in {errno.ENODEV, errno.EINVAL}
        return not refused

    def _warn(self, tracee: Tracee, what: str, then: str) -> None:
        pid = tracee.process.pid
        try:
            name = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            name = "its program"
        self._observer.warn_once(what, f"process {pid} ({name}) {what}: {then}")

    def map_executable(self, tracee: Tracee) -> None:
        """Carry out an executable mapping of a file, and patch what it brought."""
        regs = tracee.regs
        shared = regs.r10 & n.MAP_TYPE != n.MAP_PRIVATE
        left = self._leave_text or tracee.mm.cpuid_faults
        if shared or left or not tracee.mm.reachable:
            # What is written to a shared mapping is written to the file.
            tracee.go_on()
            return
        if regs.r10 & n.MAP_FIXED:
            # As the dynamic linker maps a library's text: its path calls need no look at the maps.
            tracee.mm.text.append((regs.rdi, regs.rdi + regs.rsi))
        fd, offset = regs.r8 & 0xFFFFFFFF, regs.r9
        here = self._proven(tracee, f"/proc/{tracee.tid}/fd/{fd}", offset, offset + regs.rsi)
        if not here:
            tracee.go_on()
            return
        base = tracee.run_to_exit()
        if not failed(base):
            sites = [(base + site - offset, detour) for site, detour in here]
            self._sites.change(tracee, sites, base)
        tracee.go_on()

    def _proven(self, tracee: Tracee, path: str, offset: int, end: int) -> list[tuple[int, int]]:
        sites = self._look_up(path)
        unproven = sum(offset <= site < end for site in sites.unproven)
        if unproven:
            self._observer.cpuid_unproven(tracee, os.path.realpath(path), unproven)
        both = zip(sites.offsets, sites.detours, strict=True)
        return [(site, detour) for site, detour in both if offset <= site < end]

    @staticmethod
    def _look_up(path: str) -> Sites:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return NO_SITES
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return NO_SITES
            return cpuid_sites(fd)
        except OSError:
            return NO_SITES
        finally:
            os.close(fd)

    def _patch_mapped(self, tracee: Tracee) -> None:
        # The program and its interpreter were mapped by the kernel, past every filter.
        pid = tracee.tid
        try:
            with open(f"/proc/{pid}/maps", "rb") as maps:
                lines = maps.readlines()
        except OSError:
            return
        tracee.mm.text = executable_files(lines)
        program = self._own_file(pid)
        for line in lines:
            fields = line.split(None, 5)
            if len(fields) < 6 or b"x" not in fields[1] or not fields[5].startswith(b"/"):
                continue
            low, high = (int(part, 16) for part in fields[0].split(b"-"))
            offset = int(fields[2], 16)
            name = fields[5].rstrip(b"\n")
            path = f"/proc/{pid}/map_files/{low:x}-{high:x}"
            if not os.access(path, os.R_OK):
                # Only root may open it. A program may have no name: in a memfd, or removed.
                path = f"/proc/{pid}/exe" if name == program else os.fsdecode(name)
            here = self._proven(tracee, path, offset, offset + high - low)
            sites = [(low + site - offset, detour) for site, detour in here]
            self._sites.change(tracee, sites, low)

    @staticmethod
    def _own_file(pid: int) -> bytes:
        try:
            return os.readlink(f"/proc/{pid}/exe".encode())
        except OSError:
            return b""
