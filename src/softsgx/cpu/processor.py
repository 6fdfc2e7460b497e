# SPDX-License-Identifier: Apache-2.0
"""The processor: one EPC, one identity, the enclaves of the EPC; and the logical processors.

One processor serves a whole process tree. Its leaves are functions (encls.py, einit.py, keys.py,
transition.py) over it. All run on one thread; where a leaf may be suspended, its pages are busy.
"""

import os
from collections.abc import Callable

from softsgx.arch.thread import MODE_INSIDE, TcsRecord, ThreadRecord
from softsgx.cpu.epc import Epc, PageIndex
from softsgx.cpu.identity import Identity
from softsgx.cpu.model import Model
from softsgx.cpu.secs import CSSA, SecsPage, Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.arch.layout import Buffer

    # (IV, contents, header) to sealed contents and MAC, and back; and what the way back raises.
    Seal = Callable[[bytes, Buffer, bytes], bytes]
    PagingCipher = tuple[Seal, Seal, type[Exception]]

_KEY_SIZE = 16
_MODE = ThreadRecord.OFFSETS["mode"] // 4
_TCS_RECORD = ThreadRecord.OFFSETS["tcs_record"] // 8
_ENTERED = ThreadRecord.OFFSETS["entered"] // 8


def _held_record(_eid: int, _linaddr: int) -> memoryview:
    return memoryview(bytearray(TcsRecord.SIZE))


class Processor:
    """An SGX processor.

    ``microcode_svn`` is the CPUSVN of the microcode that is loaded, at the start the identity's; whoever loads
    another one sets it. ``rdseed`` gives so many random bytes, or none where there are not enough.
    ``tcs_records`` gives the buffer of a TcsRecord when EADD makes a TCS: (EID, linear address) to at
    least 128 writable bytes; by default the processor holds them itself. ``ia32_sgxlepubkeyhash`` is
    MSRs 8CH to 8FH, which the driver writes before EINIT.
    """

    __slots__ = (
        *("_base_pk", "_paging_cipher", "enclaves", "epc", "evicted_secs", "ia32_sgxlepubkeyhash"),
        *("identity", "microcode_svn", "model", "next_eid", "rdseed", "report_keyid"),
        *("tcs_records", "threads", "version"),
    )

    def __init__(self, model: Model, identity: Identity, epc_pages: int) -> None:
        self.model = model
        self.identity = identity
        self.epc = Epc(epc_pages)
        self.enclaves: dict[int, SecsPage] = {}
        self.threads: dict[int, Thread] = {}
        # SECSs that EWB has taken out, by the version in their slot: what the manual has no field for
        # stays here until the version is spent or lost.
        self.evicted_secs: dict[int, SecsPage] = {}
        # The last version that EWB gave: no two pages are ever sealed under one.
        self.version = 0
        self._base_pk = b""
        self._paging_cipher: PagingCipher | None = None
        self.microcode_svn = identity.cpusvn
        self.rdseed: Callable[[int], bytes] = os.urandom
        self.next_eid = 1
        self.ia32_sgxlepubkeyhash = bytes(32)
        # CR_REPORT_KEYID: new at every start.
        self.report_keyid = os.urandom(32)
        self.tcs_records: Callable[[int, int], memoryview] = _held_record

    def secs_of(self, page: int) -> SecsPage | None:
        """Return the enclave whose SECS is on the page, or to which the page belongs."""
        secs = self.enclaves.get(page)
        if secs is not None or not self.epc.valid(page):
            return secs
        return self.enclaves.get(self.epc.owners[page])

    def renew_base_pk(self) -> bool:
        """Make a new CR_BASE_PK; what was sealed under the old one cannot come back. Tell whether it could be."""
        key = self.rdseed(_KEY_SIZE)
        if len(key) == _KEY_SIZE:
            self._base_pk, self._paging_cipher = key, None
        return len(key) == _KEY_SIZE

    def paging_cipher(self) -> "PagingCipher":
        """Return AES-GCM under CR_BASE_PK, which is new at every start: encrypt, decrypt, InvalidTag."""
        if self._paging_cipher is None:
            # Where no page is evicted, nothing is sealed.
            from cryptography.exceptions import InvalidTag  # noqa: PLC0415
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

            self._base_pk = self._base_pk or os.urandom(_KEY_SIZE)
            cipher = AESGCM(self._base_pk)
            self._paging_cipher = cipher.encrypt, cipher.decrypt, InvalidTag
        return self._paging_cipher

    def put_thread(self, secs: SecsPage, page: PageIndex, linaddr: int, data: bytes) -> None:
        """Make a thread of the TCS whose contents an EPC page has received."""
        from softsgx.arch.structures import Tcs  # noqa: PLC0415  # a start needs no records

        tcs = Tcs.decode(data)
        thread = Thread(tcs, page, linaddr, secs)
        thread.attach(tcs, self.tcs_records(secs.eid, linaddr))
        self.epc.contents[page] = bytearray(data)
        secs.threads[page] = thread
        self.threads[page] = thread

    def drop_thread(self, secs: SecsPage, page: int) -> None:
        """Forget the thread of a TCS that leaves its EPC page, or is none any more."""
        # One that is not accepted yet has none.
        secs.threads.pop(page, None)
        self.threads.pop(page, None)

    def thread_gone(self, lp: "LogicalProcessor") -> None:
        """Take a dead thread out of its enclave: as an AEX leaves it, but that nothing was saved."""
        from softsgx.cpu import transition  # noqa: PLC0415  # transition imports this module

        transition.thread_gone(lp)


def _no_xsave() -> bytearray:
    raise NotImplementedError("this logical processor has no XSAVE state")


def _no_store(_image: bytearray) -> None:
    raise NotImplementedError("this logical processor has no XSAVE state")


def _no_thread() -> Thread | None:
    return None


class LogicalProcessor:
    """One thread, as the processor sees it.

    ``record`` is its ThreadRecord. ``translate`` is the page tables: a page's linear address to its EPC
    page, None if none is present. ``load_xsave`` and ``store_xsave`` read and replace the thread's
    extended state in the standard format, as NT_X86_XSTATE; AEX and ERESUME call them.
    """

    __slots__ = (
        *("_taken_by", "_thread", "adopt", "cssa", "load_xsave", "quads", "record", "store_xsave"),
        *("translate", "words", "xcr0"),
    )

    def __init__(
        self,
        translate: Callable[[int], int | None],
        record: memoryview | None = None,
        xcr0: int = 7,
        load_xsave: Callable[[], bytearray] = _no_xsave,
        store_xsave: Callable[[bytearray], None] = _no_store,
    ) -> None:
        if record is None:
            record = memoryview(bytearray(ThreadRecord.SIZE))
        self.record = record.cast("B")[: ThreadRecord.SIZE]
        self.words = self.record.cast("I")
        self.quads = self.record.cast("Q")
        self.translate = translate
        self.xcr0 = xcr0
        self.load_xsave = load_xsave
        self.store_xsave = store_xsave
        # The TCS by which this thread has entered by a leaf, and its CSSA. While it is inside they are this
        # thread's own: the program that shares the records cannot misdirect an AEX.
        self._thread: Thread | None = None
        self._taken_by = 0, 0
        self.cssa = 0
        # Who has entered without a leaf has left its TCS in the record: finds it.
        self.adopt: Callable[[], Thread | None] = _no_thread

    @property
    def thread(self) -> Thread | None:
        """The TCS by which the thread is inside, if it is: the record says so, whoever has written it."""
        if self.words[_MODE] != MODE_INSIDE:
            return None
        entry = self._entry()
        if self._thread is None or self._taken_by != entry:
            thread = self.adopt()
            if thread is not None:
                self.cssa = min(thread.words[CSSA], max(thread.nssa, 1) - 1)
            self._thread, self._taken_by = thread, entry
        return self._thread

    def take(self, thread: Thread | None) -> None:
        """Remember by which TCS the thread is inside, as its record tells now."""
        self._thread = thread
        self._taken_by = self._entry()

    def _entry(self) -> tuple[int, int]:
        # Between two entries by one TCS others may have been inside, and have left it another CSSA.
        return self.quads[_TCS_RECORD], self.quads[_ENTERED]

    @property
    def inside(self) -> bool:
        """Tell whether the thread is in enclave mode."""
        return self.words[_MODE] == MODE_INSIDE

    def resolve(self, address: int) -> PageIndex | None:
        """Return the EPC page of any linear address, None if none is present."""
        page = self.translate(address & ~0xFFF)
        return None if page is None else PageIndex(page)
