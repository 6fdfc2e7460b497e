# SPDX-License-Identifier: Apache-2.0
"""What the processor keeps of an enclave: its SECS and its thread control structures, decoded.

A TCS has two halves. What software wrote stays in the EPC page and, decoded, here; STATE, CSSA and AEP
live in a TcsRecord, which whoever moves control reads and writes. While that is open, threads of a program
enter and leave without a leaf; `Thread.shut` ends it, before anything that a leaf would look at changes.
"""

from typing import TYPE_CHECKING

from softsgx.arch.attributes import ATTRIBUTE_DEBUG, ATTRIBUTE_INIT, TCS_ACTIVE
from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.arch.structures import Gprsgx, Secs, Tcs
from softsgx.arch.thread import TcsRecord
from softsgx.cpu.epc import PageIndex
from softsgx.cpu.memory import Elrange

if TYPE_CHECKING:
    from collections.abc import Callable

    from softsgx.cpu.hasher import Hasher

# TcsRecord's fields as 32-bit and 64-bit words, for a memoryview cast to "I" and "Q".
STATE = TcsRecord.OFFSETS["state"] // 4
CSSA = TcsRecord.OFFSETS["cssa"] // 4
THREAD = TcsRecord.OFFSETS["thread"] // 8
AEP = TcsRecord.OFFSETS["aep"] // 8
_FLAGS = TcsRecord.OFFSETS["flags"] // 8


class SecsPage:
    """One enclave: the SECS fields by the manual's names, and what hangs on it.

    ``threads`` are its TCSs by EPC page, ``children`` counts its pages. ``ssa_pages`` are the offsets
    in an SSA frame of the pages that a transition checks: those of the XSAVE area, and that of GPRSGX.
    """

    __slots__ = (
        *("attributes", "baseaddr", "children", "configid", "configsvn", "cycle", "eid"),
        "elrange",
        *("hasher", "isvextprodid", "isvfamilyid", "isvprodid", "isvsvn", "miscselect"),
        *("mrenclave", "mrsigner", "page", "size", "ssa_pages", "ssaframesize", "threads"),
        *("__weakref__", "xfrm", "xsave_size"),
    )

    def __init__(
        self, secs: Secs, page: PageIndex, eid: int, elrange: Elrange, xsave_size: int
    ) -> None:
        self.page = page
        self.eid = eid
        self.elrange = elrange
        self.children = 0
        # ETRACK cycles that have begun.
        self.cycle = 0
        self.threads: dict[int, Thread] = {}
        self.hasher: Hasher = _hasher()
        self.size = secs.size
        self.baseaddr = secs.baseaddr
        self.ssaframesize = secs.ssaframesize
        self.miscselect = secs.miscselect
        self.attributes = secs.attributes
        self.xfrm = secs.xfrm
        self.configid = secs.configid
        self.configsvn = secs.configsvn
        self.xsave_size = xsave_size
        last = (secs.ssaframesize - 1) * PAGE_SIZE
        xsave = range(0, min(xsave_size, last), PAGE_SIZE)
        self.ssa_pages = (*xsave, last)
        # ECREATE overwrites what software put here; EINIT sets them.
        self.mrenclave = bytes(32)
        self.mrsigner = bytes(32)
        self.isvprodid = 0
        self.isvsvn = 0
        self.isvfamilyid = bytes(16)
        self.isvextprodid = bytes(16)

    @property
    def initialised(self) -> bool:
        """Tell ATTRIBUTES.INIT."""
        return bool(self.attributes & ATTRIBUTE_INIT)

    @property
    def debug(self) -> bool:
        """Tell ATTRIBUTES.DEBUG."""
        return bool(self.attributes & ATTRIBUTE_DEBUG)

    def shut(self) -> None:
        """Let nobody enter without a leaf: who is inside now can be told, and nobody else comes."""
        for thread in self.threads.values():
            thread.shut()

    def inside(self) -> "list[Thread]":
        """Return the TCSs by which threads are inside."""
        return [thread for thread in self.threads.values() if thread.words[STATE] & TCS_ACTIVE]

    def active(self) -> bool:
        """Tell whether a thread is inside."""
        return any(thread.words[STATE] & TCS_ACTIVE for thread in self.threads.values())


def _hasher() -> "Hasher":
    from softsgx.cpu.hasher import Hasher  # noqa: PLC0415  # most programs create no enclave

    return Hasher()


class Thread:
    """One TCS: the fields EADD read, and its TcsRecord as 32-bit ``words`` and 64-bit ``quads``.

    ``frame`` is the linear address of SSA frame 0, ``frame_size`` a frame's bytes.
    """

    __slots__ = (
        *(
            "abandoned",
            "close",
            "cycle",
            "fsbase",
            "flags",
            "frame",
            "frame_size",
            "gsbase",
            "linaddr",
            "nssa",
            "oentry",
        ),
        *("ofsbasgx", "ogsbasgx", "ossa", "page", "quads", "secs", "words"),
    )

    def __init__(self, tcs: Tcs, page: PageIndex, linaddr: int, secs: SecsPage) -> None:
        self.page = page
        self.secs = secs
        # The tracking cycle that the thread inside entered in.
        self.cycle = 0
        # Takes STATE_OPEN away, which a thread of the program may be about to use; set while it is open.
        self.close: Callable[[], None] | None = None
        # The frame to leave by where the enclave's pages are gone.
        self.abandoned: Gprsgx | None = None
        self.linaddr = linaddr
        self.flags = tcs.flags
        self.nssa = tcs.nssa
        self.ossa = tcs.ossa
        self.ofsbasgx = tcs.ofsbasgx
        self.ogsbasgx = tcs.ogsbasgx
        self.frame = wrap(secs.baseaddr + tcs.ossa)
        self.frame_size = secs.ssaframesize * PAGE_SIZE
        self.oentry = wrap(secs.baseaddr + tcs.oentry)
        self.fsbase = wrap(secs.baseaddr + tcs.ofsbasgx)
        self.gsbase = wrap(secs.baseaddr + tcs.ogsbasgx)

    def attach(self, tcs: Tcs, record: memoryview) -> None:
        """Begin to keep the run-time state in a record, with every field as EADD leaves it."""
        secs = self.secs
        TcsRecord(
            state=tcs.state,
            cssa=tcs.cssa,
            nssa=tcs.nssa,
            ssaframesize=secs.ssaframesize,
            linaddr=self.linaddr,
            flags=tcs.flags,
            ossa=tcs.ossa,
            oentry=tcs.oentry,
            aep=tcs.aep,
            ofsbasgx=tcs.ofsbasgx,
            ogsbasgx=tcs.ogsbasgx,
            elrange_base=secs.baseaddr,
            elrange_size=secs.size,
            thread=0,
            entry=0,
            fsbase=0,
            gsbase=0,
            ursp=0,
            watch=0,
        ).encode_into(record)
        record = record.cast("B")[: TcsRecord.SIZE]
        self.words = record.cast("I")
        self.quads = record.cast("Q")

    def tcs_page(self, contents: bytearray) -> bytes:
        """Return the contents of the TCS's EPC page with the run-time state."""
        words = self.words
        tcs = Tcs.decode(contents)
        state = words[STATE] & TCS_ACTIVE
        return tcs.replace(state=state, cssa=words[CSSA], aep=self.quads[AEP]).encode()

    def shut(self) -> None:
        """Let nobody enter without a leaf from now on, and whoever is inside leave by one."""
        if self.close is not None:
            close, self.close = self.close, None
            close()
            self.quads[THREAD] = 0

    def set_flags(self, flags: int) -> None:
        """Store FLAGS, as EDBGWR does."""
        self.shut()
        self.flags = flags
        self.quads[_FLAGS] = flags

    def gprsgx(self, cssa: int) -> int:
        """Return the linear address of GPRSGX in frame CSSA."""
        return self.frame + self.frame_size * (cssa + 1) - Gprsgx.SIZE


def wrap(address: int) -> int:
    """Return an effective address: 64 bits."""
    return address & 0xFFFF_FFFF_FFFF_FFFF


def canonical(address: int) -> bool:
    """Tell whether bits 63:47 are all equal (4-level paging)."""
    return address >> 47 in {0, 0x1FFFF}
