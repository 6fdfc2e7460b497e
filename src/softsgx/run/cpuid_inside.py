# SPDX-License-Identifier: Apache-2.0
"""Where an initialised enclave may execute CPUID: the byte pairs 0F A2 of its executable pages.

Inside an enclave CPUID is #UD, and runtimes emulate it: their handlers look at the bytes at RIP, so
nothing may be put in their place. The debug registers stop a thread before the instruction is
executed and change nothing, whatever else the byte pair may be; but a thread has four of them. Where
there are more pairs, those come first that control flow reaches from the function starts of the ELF
image that the enclave was loaded from, if it holds one with its headers.
"""

from struct import error
from weakref import WeakKeyDictionary

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.cpu.processor import LogicalProcessor
from softsgx.cpu.registers import RFLAGS_RF
from softsgx.driver.encl import Encl
from softsgx.driver.reclaim import AGAIN
from softsgx.driver.vma import PROT_EXEC
from softsgx.run import ptrace
from softsgx.run.cpuid_sites import Elf
from softsgx.run.delivery import TRAP_HWBKPT
from softsgx.run.gp_instructions import CPUID
from softsgx.run.revoke import pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.cpu.secs import SecsPage
    from softsgx.run.tracee import Tracee

_CHUNK = 1 << 20
_HITS_LIMIT = 1 << 12
# An enclave is loaded from one image, or two; each may cost seconds.
_IMAGES = 2


def at_cpuid(tracee: "Tracee", code: int) -> bool:
    """Tell of a SIGTRAP inside whether a breakpoint of ours has stopped the thread at CPUID."""
    return code == TRAP_HWBKPT and tracee.mm.read(tracee.regs.rip, 2) == CPUID


class InsideCpuid:
    """The CPUID instructions of the enclaves that were entered; SIGTRAP stops a thread before one."""

    def __init__(self) -> None:
        self._sites: WeakKeyDictionary[SecsPage, tuple[int, ...]] = WeakKeyDictionary()

    def watch(self, tracee: "Tracee", lp: LogicalProcessor) -> bool:
        """Prepare a thread that has just entered an enclave; tell whether there is something to stop it at."""
        thread = lp.thread
        if thread is None:
            return False
        secs = thread.secs
        sites = self._sites.get(secs)
        if sites is None:
            enclaves = tracee.mm.enclaves
            vma = enclaves.find(thread.linaddr) if enclaves else None
            if vma is None:
                return False
            while sites is None:
                try:
                    sites = self._sites[secs] = inside_sites(vma.file.encl)
                except AGAIN:
                    pause(tracee)
        if tracee.watched is not secs and (sites or tracee.watched is not None):
            tracee.watched, tracee.cpuid_watched = secs, sites
            tracee.site_watched.clear()
            tracee.watch()
        if tracee.regs.rip in sites:
            # ERESUME at the instruction itself: RF would let it pass, and #UD does not know RF.
            tracee.regs.rflags &= ~RFLAGS_RF
        return bool(sites)


class _LoadedElf(Elf):
    """An ELF image as its segments lie in memory: a file offset is an address less the image's start."""

    __slots__ = ("_encl", "_start")

    def __init__(self, encl: Encl, start: int, size: int) -> None:
        self._encl = encl
        self._start = start
        super().__init__(-1, size, encl.read(start, PAGE_SIZE))
        self.shnum = 0
        self.segments = tuple(
            (kind, flags, address, address, physical, length, memory, align)
            for kind, flags, _, address, physical, length, memory, align in self.segments
        )

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0 or offset < 0:
            return b""
        return self._encl.read(self._start + offset, length)


def inside_sites(encl: Encl) -> tuple[int, ...]:
    """Give the addresses, four at most, at which the enclave's threads are to be stopped."""
    hits: list[int] = []
    for run in encl.page_array.runs():
        if run.vm_max_prot & PROT_EXEC:
            start, end = run.first * PAGE_SIZE, run.end * PAGE_SIZE
            # With the byte before, for a pair that lies across two runs.
            for at in range(max(start - 1, 0), end, _CHUNK):
                chunk = encl.read(at, min(_CHUNK + 1, end - at))
                found = chunk.find(CPUID)
                while found >= 0 and len(hits) < _HITS_LIMIT:
                    if at + found not in hits[-1:]:
                        hits.append(at + found)
                    found = chunk.find(CPUID, found + 1)
    if len(hits) <= ptrace.WATCHABLE:
        return tuple(hits)
    proven = _proven(encl, hits)
    return tuple((proven + [hit for hit in hits if hit not in proven])[: ptrace.WATCHABLE])


def _proven(encl: Encl, hits: list[int]) -> list[int]:
    from softsgx.run.cpuid_proof import Proof  # noqa: PLC0415 (the decoder costs 20 ms)

    images = 0
    for run in encl.page_array.runs():
        start = run.first * PAGE_SIZE
        if images == _IMAGES or encl.read(start, 4) != b"\x7fELF":
            continue
        images += 1
        try:
            proof = Proof(_LoadedElf(encl, start, encl.base + encl.size - start))
            proven = [hit for hit in hits if proof.covers(hit - start)]
        except (error, ValueError):
            continue
        if proven:
            return proven
    return []
