# SPDX-License-Identifier: Apache-2.0
"""A processor with one page table, and the steps that build an enclave on it one leaf at a time."""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from hashlib import sha256
from typing import Any

import pytest

import softsgx.cpu
from softsgx.arch.attributes import ATTRIBUTE_DEBUG, ATTRIBUTE_MODE64BIT, XFRM_LEGACY
from softsgx.arch.codes import LeafCode
from softsgx.arch.secinfo import (
    PT_VA,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_TCS,
    SECINFO_W,
    SECINFO_X,
)
from softsgx.arch.structures import (
    SIGSTRUCT_HEADER,
    SIGSTRUCT_HEADER2,
    Einittoken,
    Pageinfo,
    Secinfo,
    Secs,
    Sigstruct,
    Tcs,
)
from softsgx.cpu import encls, paging
from softsgx.cpu.einit import einit
from softsgx.cpu.epc import PageIndex
from softsgx.cpu.identity import Identity
from softsgx.cpu.memory import HeldMemory
from softsgx.cpu.model import Model
from softsgx.cpu.processor import LogicalProcessor, Processor
from softsgx.cpu.registers import Registers
from softsgx.errors import Fault

BASE = 0x7F00_0000_0000
SIZE = 0x10_0000
XSAVE_LENGTH = 832


class Machine:
    """One processor, one enclave at a time, one thread."""

    BASE = BASE
    SIZE = SIZE
    # Where ``build`` puts things, from BASE on.
    CODE, TCS, SSA, DATA = 0, 0x1000, 0x2000, 0x6000
    AEP = 0x40_1000
    NSSA = 2

    def __init__(self, key: Any, identity: Identity | None = None, xcr0: int = 7) -> None:
        self.key = key
        self.cpu = Processor(Model(64 * 4096, xcr0=xcr0), identity or Identity.fresh(), 64)
        self.memory = HeldMemory()
        self.table: dict[int, int] = {}
        self.next_page = 0
        self.secs_page = PageIndex(0)
        self.xsave = bytearray(XSAVE_LENGTH)
        self.lp = self.logical_processor(xcr0)
        self.regs = Registers()

    def logical_processor(self, xcr0: int = 7) -> LogicalProcessor:
        return LogicalProcessor(
            self.table.get,
            xcr0=xcr0,
            load_xsave=lambda: bytearray(self.xsave),
            store_xsave=self._store,
        )

    def _store(self, image: bytearray) -> None:
        self.xsave = bytearray(image)

    @property
    def secs(self) -> Any:
        return self.cpu.enclaves[self.secs_page]

    def allocate(self) -> PageIndex:
        page = PageIndex(self.next_page)
        self.next_page += 1
        return page

    def address(self, page: int) -> int:
        return self.cpu.epc.address(PageIndex(page))

    def pageinfo(
        self, data: bytes, flags: int, linaddr: int = 0, secs: int = 0, **changes: int
    ) -> int:
        pageinfo = Pageinfo(
            linaddr=linaddr,
            srcpge=self.memory.place(data),
            secinfo=self.memory.place(Secinfo(flags=flags).encode()),
            secs=secs,
        )
        return self.memory.place(pageinfo.replace(**changes).encode())

    def secs_bytes(self, **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "size": SIZE,
            "baseaddr": BASE,
            "ssaframesize": 1,
            "attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_DEBUG,
            "xfrm": XFRM_LEGACY,
        }
        return Secs.blank().replace(**fields | changes).encode()

    def tcs_bytes(self, **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "ossa": self.SSA,
            "nssa": self.NSSA,
            "oentry": self.CODE + 0x100,
            "ofsbasgx": self.DATA,
            "ogsbasgx": self.DATA + 0x1000,
            "fslimit": 0xFFF,
            "gslimit": 0xFFF,
        }
        return Tcs.blank().replace(**fields | changes).encode()

    def create(self, **changes: Any) -> PageIndex:
        page = self.allocate()
        rbx = self.pageinfo(self.secs_bytes(**changes), 0)
        encls.ecreate(self.cpu, self.memory, rbx, self.address(page))
        self.secs_page = page
        return page

    def add(self, offset: int, data: bytes, flags: int, measure: bool = True) -> PageIndex:
        page = self.allocate()
        rbx = self.pageinfo(data, flags, BASE + offset, self.address(self.secs_page))
        encls.eadd(self.cpu, self.memory, rbx, self.address(page))
        self.table[BASE + offset] = page
        if measure:
            for chunk in range(0, 4096, 256):
                encls.eextend(self.cpu, self.address(self.secs_page), self.address(page) + chunk)
        return page

    def populate(self, tcs: bytes | None = None) -> None:
        """Add code, a TCS, four SSA pages and four data pages."""
        self.add(self.CODE, b"\x90" * 4096, SECINFO_REG | SECINFO_R | SECINFO_X)
        self.add(self.TCS, self.tcs_bytes() if tcs is None else tcs, SECINFO_TCS)
        for offset in range(self.SSA, self.DATA + 0x4000, 0x1000):
            self.add(offset, bytes(4096), SECINFO_REG | SECINFO_R | SECINFO_W)

    def sigstruct(self, **changes: Any) -> bytes:
        """Return a SIGSTRUCT that fits the enclave as it is; ``signed`` changes come before signing."""
        fields: dict[str, Any] = {
            "header": SIGSTRUCT_HEADER,
            "vendor": 0,
            "date": 0x20260101,
            "header2": SIGSTRUCT_HEADER2,
            "exponent": 3,
            "modulus": self.key.public_key().public_numbers().n.to_bytes(384, "little"),
            "miscselect": self.secs.miscselect,
            "miscmask": 0xFFFF_FFFF,
            "attributes": self.secs.attributes,
            "attributemask": 0xFFFF_FFFF_FFFF_FFFD,
            "xfrm": self.secs.xfrm,
            "xfrmmask": 0xFFFF_FFFF_FFFF_FFFF,
            "enclavehash": self.secs.hasher.digest(),
            "isvprodid": 5,
            "isvsvn": 3,
        }
        return self.sign(Sigstruct.blank().replace(**fields | changes).encode())

    def sign(self, data: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # noqa: PLC0415
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

        modulus = self.key.public_key().public_numbers().n
        signed = self.key.sign(data[:128] + data[900:1028], PKCS1v15(), SHA256())
        s = int.from_bytes(signed, "big")
        q1 = s * s // modulus
        q2 = (s**3 - q1 * s * modulus) // modulus
        out = bytearray(data)
        for offset, value in ((516, s), (1040, q1), (1424, q2)):
            out[offset : offset + 384] = value.to_bytes(384, "little")
        return bytes(out)

    def mrsigner(self) -> bytes:
        return sha256(self.key.public_key().public_numbers().n.to_bytes(384, "little")).digest()

    def einit(self, css: bytes, token: bytes = bytes(Einittoken.SIZE)) -> LeafCode:
        rbx, rdx = self.memory.place(css), self.memory.place(token)
        return einit(self.cpu, self.memory, rbx, self.address(self.secs_page), rdx)

    def build(self, tcs: bytes | None = None, **changes: Any) -> "Machine":
        """Make an initialised enclave."""
        css = {name: changes.pop(name) for name in list(changes) if name.startswith("isv")}
        self.create(**changes)
        self.populate(tcs)
        self.cpu.ia32_sgxlepubkeyhash = self.mrsigner()
        assert self.einit(self.sigstruct(**css)) is LeafCode.NO_ERROR
        return self

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.secs.elrange.read(BASE + offset, length))

    def write(self, offset: int, data: bytes) -> None:
        self.secs.elrange.write(BASE + offset, data)


class Evicted:
    """What software keeps of a page that EWB has taken out, in its memory; all of it may be changed."""

    def __init__(self, memory: HeldMemory, slot: int) -> None:
        self.memory = memory
        self.linaddr = 0
        self.contents = memory.place(bytes(4096))
        self.pcmd = memory.place(bytes(128))
        # The address of the VA slot.
        self.slot = slot

    def pageinfo(self, secs: int) -> int:
        record = Pageinfo(linaddr=self.linaddr, srcpge=self.contents, secinfo=self.pcmd, secs=secs)
        return self.memory.place(record.encode())

    def sealed(self) -> tuple[bytes, bytes]:
        return self.memory.read(self.contents, 4096), self.memory.read(self.pcmd, 128)


class Pager:
    """The steps by which a page of a machine's enclave goes out and comes back, with one VA page."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.cpu = machine.cpu
        self.va = machine.allocate()
        encls.epa(self.cpu, PT_VA, machine.address(self.va))

    def eblock(self, page: int) -> LeafCode:
        return paging.eblock(self.cpu, self.machine.address(page))

    def etrack(self) -> LeafCode:
        return paging.etrack(self.cpu, self.machine.address(self.machine.secs_page))

    def block(self, page: int) -> None:
        assert self.eblock(page) is LeafCode.NO_ERROR
        assert self.etrack() is LeafCode.NO_ERROR

    def ewb(self, page: int, slot: int = 0) -> tuple[LeafCode, Evicted]:
        machine = self.machine
        memory = machine.memory
        out = Evicted(memory, machine.address(self.va) + slot * 8)
        rbx = out.pageinfo(0)
        code = paging.ewb(self.cpu, memory, rbx, machine.address(page), out.slot)
        out.linaddr = Pageinfo.decode(memory.read(rbx, 32)).linaddr
        return code, out

    def evict(self, page: int, slot: int = 0) -> Evicted:
        """Take a page out, and out of the page table."""
        self.block(page)
        code, out = self.ewb(page, slot)
        assert code is LeafCode.NO_ERROR
        self.machine.table.pop(out.linaddr, None)
        return out

    def eld(
        self, out: Evicted, page: int, leaf: Any = paging.eldu, secs: int | None = None
    ) -> LeafCode:
        """ELDU, or another ``leaf``, with the machine's SECS or the address of another."""
        machine = self.machine
        if secs is None:
            secs = machine.address(machine.secs_page)
        code: LeafCode = leaf(
            self.cpu, machine.memory, out.pageinfo(secs), machine.address(page), out.slot
        )
        if not code:
            machine.table[out.linaddr] = page
        return code

    def slots(self, va: int | None = None) -> dict[int, int]:
        """Return the versions in the VA page by slot."""
        versions = memoryview(self.cpu.epc.contents[self.va if va is None else va]).cast("Q")
        return {slot: version for slot, version in enumerate(versions) if version}


def _fault(call: Callable[[], Any]) -> Fault:
    with pytest.raises(Fault) as caught:
        call()
    return caught.value


def _recorded(
    name: str, leaf: Callable[..., Any], seen: set[tuple[str, str]]
) -> Callable[..., Any]:
    @wraps(leaf)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            result = leaf(*args, **kwargs)
        except Fault as fault:
            seen.add((name, {13: "#GP", 14: "#PF"}.get(fault.vector, str(fault.vector))))
            raise
        code = result[0] if isinstance(result, tuple) else result
        seen.add((name, code.name if code else "done"))
        return result

    return run


@pytest.fixture(autouse=True)
def provoked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """See that a test provokes what it says: @pytest.mark.leaf(NAME, OUTCOME, ...)."""
    claims = [(mark.args[0], set(mark.args[1:])) for mark in request.node.iter_markers("leaf")]
    if not claims:
        yield
        return
    seen: set[tuple[str, str]] = set()
    for info in pkgutil.iter_modules(softsgx.cpu.__path__):
        importlib.import_module(f"softsgx.cpu.{info.name}")
    modules = list(sys.modules.values())
    for name, _ in claims:
        attribute = name.lower()
        made: dict[int, Callable[..., Any]] = {}
        for module in modules:
            leaf = vars(module).get(attribute) if hasattr(module, "__dict__") else None
            if callable(leaf) and getattr(leaf, "__module__", "").startswith("softsgx.cpu."):
                run = made.setdefault(id(leaf), _recorded(name, leaf, seen))
                monkeypatch.setattr(module, attribute, run)
        assert made, f"no leaf {name} is loaded"
    yield
    for name, outcomes in claims:
        missing = outcomes - {outcome for leaf, outcome in seen if leaf == name}
        assert not missing, f"{name}: {sorted(missing)} not provoked, only {sorted(seen)}"


@pytest.fixture(scope="session")
def key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415

    return rsa.generate_private_key(public_exponent=3, key_size=3072)


@pytest.fixture
def machine(key: Any) -> Machine:
    return Machine(key)


@pytest.fixture
def pager(machine: Machine) -> Pager:
    """Return the pager of an initialised enclave."""
    return Pager(machine.build())


@pytest.fixture
def make_pager() -> Callable[[Machine], Pager]:
    return Pager


@pytest.fixture
def make_machine(key: Any) -> Callable[..., Machine]:
    return lambda **options: Machine(key, **options)


@pytest.fixture
def gp() -> Callable[[Callable[[], Any]], str]:
    """Run something that must raise #GP(0); return the reason."""

    def run(call: Callable[[], Any]) -> str:
        fault = _fault(call)
        assert (fault.vector, fault.error_code) == (13, 0), fault
        return fault.reason

    return run


@pytest.fixture
def pf() -> Callable[[Callable[[], Any]], int]:
    """Run something that must raise #PF; return the address."""

    def run(call: Callable[[], Any]) -> int:
        fault = _fault(call)
        assert fault.vector == 14, fault
        assert fault.address is not None
        return fault.address

    return run
