# SPDX-License-Identifier: Apache-2.0
"""The system calls that change or end a mapping of an enclave, and those that ask about its descriptor.

Owns nothing. The driver's rules judge a call before the kernel carries it out, and the list of the
address space's enclave mappings is kept as the kernel keeps its own.
"""

import errno

from softsgx.arch.ioctl import SGX_IOC_ENCLAVE_INIT
from softsgx.driver.driver import EnclaveFile
from softsgx.errors import DriverError
from softsgx.run import numbers as n
from softsgx.run.device_files import DeviceFiles, ProgramTask
from softsgx.run.elrange_map import EnclaveMap, EnclaveVma, too_many_runs
from softsgx.run.mm import Refused
from softsgx.run.node_stat import NodeStat
from softsgx.run.ptrace import failed
from softsgx.run.tracee import Tracee

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.elrange_map import Release
    from softsgx.run.observe import Observer

_PAGE = n.PAGE_SIZE
# So much of a range is looked at for where its first run ends.
_AT_ONCE = 512 * _PAGE


def round_up(length: int) -> int:
    """Give a length in whole pages."""
    return (length + _PAGE - 1) & ~(_PAGE - 1)


def settle(tracee: Tracee, start: int, end: int) -> None:
    """Put in force what is due; the thread's call can still be carried out or skipped."""
    enclaves = tracee.mm.enclaves
    if enclaves is not None and enclaves.unsettled(start, end) is not None:
        with tracee.injecting() as injector:
            if enclaves.settle(injector, start, end):
                raise Refused(too_many_runs(tracee))


def settle_started(tracee: Tracee, request: int, argument: int) -> None:
    """Put in force what is due of an enclave that an older driver's INIT has just started.

    Its pages have come one by one, some while no thread was at hand to change a mapping: and before
    INIT nobody can be inside.
    """
    enclaves = tracee.mm.enclaves
    if enclaves is None or request & 0xFF != SGX_IOC_ENCLAVE_INIT & 0xFF:
        return
    vma = enclaves.find(int.from_bytes(tracee.mm.read(argument, 8), "little"))
    if vma is not None:
        settle(tracee, vma.file.encl.base, vma.file.encl.base + vma.file.encl.size)


class MappingCalls:
    """Carries out the traced calls on mappings; `release` ends one of a legacy node that is gone."""

    def __init__(
        self,
        files: DeviceFiles,
        observer: "Observer",
        release: "Release",
    ) -> None:
        self._files = files
        self._observer = observer
        self.release = release
        self._stat = NodeStat()

    def unmapped(self, tracee: Tracee, start: int, end: int) -> None:
        """Forget what lay in a range that is unmapped now; an enclave that belongs to its VMA ends."""
        enclaves = tracee.mm.enclaves
        if enclaves is None:
            return
        files = {part.file for part in enclaves.overlapping(start, end)}
        enclaves.remove(start, end)
        for file in files:
            if isinstance(file, EnclaveFile):
                continue
            if file.doom():
                try:
                    # What is left of the mapping is out of reach before its pages are gone.
                    settle(tracee, file.encl.base, file.encl.base + file.encl.size)
                finally:
                    file.vma_close()
            if not enclaves.maps(file):
                self.release(file)

    # -- the descriptor ------------------------------------------------------------------------

    def descriptor_call(self, tracee: Tracee) -> None:
        """Answer fstat, ftruncate or fallocate of a node's descriptor, as of a character device."""
        regs = tracee.regs
        number, argument = regs.orig_rax, regs.rsi
        file = self._files.of(tracee, regs.rdi & 0xFFFFFFFF)
        if file is None:
            tracee.go_on()
        elif number == n.SYS_FSTAT:
            written = tracee.mm.write(argument, self._stat.stat(file.kind))
            tracee.finish_call(0 if written else -errno.EFAULT)
        else:
            tracee.finish_call(-errno.EINVAL if number == n.SYS_FTRUNCATE else -errno.ENODEV)

    # -- what changes a mapping ---------------------------------------------------------------

    def mmap_over(self, tracee: Tracee) -> bool:
        """Carry out a MAP_FIXED mapping of something else over an enclave range: a munmap.

        False where the call does not lie over one, and still stands at its stop.
        """
        regs = tracee.regs
        tracee.mm.source_vma = None
        enclaves = tracee.mm.enclaves
        start, end = regs.rdi, regs.rdi + round_up(regs.rsi)
        if enclaves is None or not regs.r10 & n.MAP_FIXED or not enclaves.overlapping(start, end):
            return False
        if not failed(tracee.run_to_exit()):
            self.unmapped(tracee, start, end)
        tracee.go_on()
        return True

    def remap_file_pages(self, tracee: Tracee) -> None:
        """Refuse remap_file_pages on an enclave: the address selects the page, never an offset."""
        regs = tracee.regs
        enclaves = tracee.mm.enclaves
        if enclaves is not None and enclaves.overlapping(regs.rdi, regs.rdi + round_up(regs.rsi)):
            tracee.finish_call(-errno.EINVAL)
        else:
            tracee.go_on()

    def munmap(self, tracee: Tracee) -> None:
        """Carry out a munmap."""
        regs = tracee.regs
        tracee.mm.source_vma = None
        enclaves = tracee.mm.enclaves
        start, end = regs.rdi, regs.rdi + round_up(regs.rsi)
        held = enclaves is not None and enclaves.overlapping(start, end)
        if enclaves is not None and held and not failed(tracee.run_to_exit()):
            self.unmapped(tracee, start, end)
        tracee.go_on()

    def mprotect(self, tracee: Tracee) -> None:
        """Carry out an mprotect; on enclave memory sgx_vma_mprotect decides first."""
        regs = tracee.regs
        tracee.mm.source_vma = None
        enclaves = tracee.mm.enclaves
        start, end, prot = regs.rdi, regs.rdi + round_up(regs.rsi), regs.rdx & 7
        parts = enclaves.overlapping(start, end) if enclaves is not None else []
        if enclaves is None or not parts:
            tracee.go_on()
            return
        try:
            for part in parts:
                self._check_mprotect(tracee, part, prot)
        except DriverError as refused:
            self._observer.refused(tracee, "mprotect", refused)
            tracee.finish_call(-refused.errno)
            return
        for part in parts:
            part.prot = prot
        if not enclaves.changing and all(
            due == prot for part in parts for _, _, due in enclaves.due(part)
        ):
            enclaves.changing += 1
            try:
                if not failed(tracee.run_to_exit()):
                    enclaves.protect(start, end, prot, prot)
            finally:
                enclaves.changing -= 1
            # What another thread has added meanwhile may allow less.
            settle(tracee, start, end)
            tracee.go_on()
        else:
            tracee.finish_call(-self._mprotect_by_runs(tracee, enclaves))

    def _check_mprotect(self, tracee: Tracee, part: EnclaveVma, prot: int) -> None:
        if prot & n.PROT_WRITE and not part.may_write:
            raise DriverError(
                errno.EACCES, "the descriptor that was mapped is open for reading only"
            )
        part.file.check_mprotect(part.start, part.end, prot, ProgramTask(tracee, self._files))

    def _mprotect_by_runs(self, tracee: Tracee, enclaves: EnclaveMap) -> int:
        """Carry out an mprotect that must leave holes out of reach; gives an errno, or 0."""
        regs = tracee.regs
        at, end, asked = regs.rdi, regs.rdi + round_up(regs.rsi), regs.rdx
        with tracee.injecting() as injector:
            # In the kernel's order: what lies before a failure is changed.
            while at < end:
                while enclaves.changing:
                    injector.pause()
                # Who has a page evicted now waits with its own change: ours would give the page back.
                enclaves.changing += 1
                try:
                    high, due = self._next_run(enclaves, at, end, asked & 7)
                    prot = asked if due is None else asked & ~7 | due
                    result = injector.call(regs.orig_rax, at, high - at, prot, regs.r10)
                    if failed(result):
                        if due is not None and failed(result) == errno.ENOMEM:
                            self._observer.warn(too_many_runs(tracee))
                        return failed(result)
                    if due is not None:
                        enclaves.protect(at, high, asked & 7, due)
                finally:
                    enclaves.changing -= 1
                at = high
        return 0

    @staticmethod
    def _next_run(enclaves: EnclaveMap, at: int, end: int, prot: int) -> tuple[int, int | None]:
        """Give where a run ends that begins at an address, and the protection that is due; None outside enclaves.

        It is looked for when it is changed: between two runs another thread may have had a page evicted.
        """
        parts = enclaves.overlapping(at, min(end, at + _AT_ONCE))
        if not parts:
            return min(end, at + _AT_ONCE), None
        if at < parts[0].start:
            return parts[0].start, None
        parts[0].prot = prot
        _, high, due = next(enclaves.due(parts[0]))
        return high, due

    def mremap(self, tracee: Tracee) -> None:
        """Carry out an mremap; an enclave mapping (VM_DONTEXPAND) neither grows nor moves."""
        regs = tracee.regs
        tracee.mm.source_vma = None
        enclaves = tracee.mm.enclaves
        old, old_length, new_length = regs.rdi, round_up(regs.rsi), round_up(regs.rdx)
        if enclaves is None:
            tracee.go_on()
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
                self.unmapped(tracee, old + new_length, old + old_length)
            if result != old:
                self.unmapped(tracee, result, result + new_length)
        tracee.go_on()

    def madvise(self, tracee: Tracee) -> None:
        """Carry out an madvise; on enclave memory as the kernel treats a device mapping."""
        regs = tracee.regs
        tracee.mm.source_vma = None
        enclaves = tracee.mm.enclaves
        start, end, advice = regs.rdi, regs.rdi + round_up(regs.rsi), regs.rdx & 0xFFFFFFFF
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
        tracee.go_on()
