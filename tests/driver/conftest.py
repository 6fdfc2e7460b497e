# SPDX-License-Identifier: Apache-2.0
"""A platform, a caller that can be made hostile, and an enclave with its SIGSTRUCT."""

import errno
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from softsgx.arch.attributes import ATTRIBUTE_DEBUG, ATTRIBUTE_MODE64BIT, XFRM_LEGACY
from softsgx.arch.ioctl import EnclaveAddPages
from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG, SECINFO_TCS, SECINFO_W, SECINFO_X
from softsgx.arch.structures import Secinfo, Secs, Tcs
from softsgx.cpu.memory import HeldMemory
from softsgx.driver.driver import EnclaveFile
from softsgx.driver.platform import Platform
from softsgx.driver.state import State
from softsgx.driver.task import LocalTask
from softsgx.errors import DriverError, Fault
from softsgx.image import sigstruct
from softsgx.image.measurement import Measurement

# For helpers that are no tests: slow_file.
sys.path.insert(0, str(Path(__file__).parent))

BASE = 0x7F00_0000_0000
SIZE = 0x40_0000
ATTRIBUTES = ATTRIBUTE_MODE64BIT | ATTRIBUTE_DEBUG
EPC_PAGES = 256


class CallerMemory(HeldMemory):
    """Memory with read-only pages, and a hook that runs at each access as another thread would."""

    def __init__(self) -> None:
        super().__init__()
        self.read_only: set[int] = set()
        self.on_access: Any = None

    def user_access(self) -> Any:
        if self.on_access is not None:
            hook, self.on_access = self.on_access, None
            hook()
        return super().user_access()

    def write(self, address: int, data: Any, /) -> None:
        if address // 4096 in self.read_only:
            raise Fault.pf(address, "the page is read-only")
        super().write(address, data)


class Caller(LocalTask):
    """A task whose signals, mounts and personality the test sets."""

    def __init__(self) -> None:
        super().__init__(CallerMemory())
        self.signals: list[bool] = []
        self.vmas: list[tuple[int, int, bool]] = [(0, 1 << 47, True)]
        self.personality = False

    def signal_pending(self) -> bool:
        return self.signals.pop(0) if self.signals else False

    def _vma(self, address: int) -> tuple[int, int, bool] | None:
        return next((vma for vma in self.vmas if address < vma[1]), None)

    def may_exec(self, address: int) -> bool | None:
        vma = self._vma(address)
        return None if vma is None else vma[2]

    def vma_end(self, address: int) -> int:
        vma = self._vma(address)
        assert vma is not None
        return vma[1]

    def read_implies_exec(self) -> bool:
        return self.personality


class Bench:
    """What the tests do again and again with one platform."""

    BASE, SIZE, ATTRIBUTES = BASE, SIZE, ATTRIBUTES

    def __init__(self, platform: Platform, key: Any) -> None:
        self.platform = platform
        self.driver = platform.driver
        self.key = key
        self.task = Caller()
        # EPC pages that the test means to lose.
        self.lost = 0

    @property
    def memory(self) -> Any:
        return self.task.memory

    @property
    def free(self) -> int:
        return self.driver.epc.free_pages

    def caller(self) -> Caller:
        return Caller()

    def open(self) -> EnclaveFile:
        return self.driver.open_enclave()

    def ioctl(self, file: Any, request: int, argument: Any, task: Any = None) -> int:
        """Carry out an ioctl; ``argument`` is an address, or a record to be placed."""
        task = self.task if task is None else task
        arg = argument if isinstance(argument, int) else task.memory.place(argument.encode())
        return file.ioctl(request, arg, task)

    def refused(self, file: Any, request: int, argument: Any, task: Any = None) -> str:
        """Return the name of the errno with which an ioctl fails."""
        with pytest.raises(DriverError) as caught:
            self.ioctl(file, request, argument, task)
        assert caught.value.reason
        return errno.errorcode[caught.value.errno]

    def secs(self, **changes: Any) -> bytes:
        fields = {
            "size": SIZE,
            "baseaddr": BASE,
            "ssaframesize": 1,
            "attributes": ATTRIBUTES,
            "xfrm": XFRM_LEGACY,
        }
        return Secs.blank().replace(**fields | changes).encode()

    def add_argument(self, **changes: Any) -> EnclaveAddPages:
        """Return a good argument for one readable page at offset 0."""
        fields = {
            "src": changes["src"] if "src" in changes else self.memory.place(bytes(4096)),
            "offset": 0,
            "length": 4096,
            "secinfo": 0,
            "flags": 0,
            "count": 0xDEAD,
        }
        if "secinfo" not in changes:
            flags = changes.pop("secinfo_flags", SECINFO_REG | SECINFO_R)
            changes["secinfo"] = self.memory.place(Secinfo(flags=flags).encode())
        return EnclaveAddPages.blank().replace(**fields | changes)

    def count(self, arg: int) -> int:
        return EnclaveAddPages.decode(self.memory.read(arg, 48)).count

    def sigstruct(self, mrenclave: bytes, **changes: Any) -> bytes:
        fields = {
            "enclavehash": mrenclave,
            "date": 0x2026_0101,
            "attributes": ATTRIBUTES,
            "attributemask": 0xFFFF_FFFF_FFFF_FFFF & ~ATTRIBUTE_DEBUG,
            "xfrm": XFRM_LEGACY,
            "xfrmmask": 0xFFFF_FFFF_FFFF_FFFF,
        }
        return sigstruct.sign(sigstruct.unsigned(**fields | changes), self.key)

    def pages(self) -> list[tuple[int, int, bytes, bool]]:
        """Return a small enclave: (offset, SECINFO.FLAGS, data, measured)."""
        tcs = Tcs.blank().replace(ossa=0x3000, nssa=1, oentry=0x1000, fslimit=0xFFF, gslimit=0xFFF)
        return [
            (0, SECINFO_TCS, tcs.encode(), True),
            (0x1000, SECINFO_REG | SECINFO_R | SECINFO_X, bytes(range(256)) * 32, True),
            (0x3000, SECINFO_REG | SECINFO_R | SECINFO_W, bytes(0x2000), True),
            (0x5000, SECINFO_REG | SECINFO_R | SECINFO_W, b"\xcc" * 4096, False),
        ]

    def mrenclave(self, pages: list[tuple[int, int, bytes, bool]], ssaframesize: int = 1) -> bytes:
        measurement = Measurement()
        measurement.ecreate(ssaframesize, SIZE)
        for offset, flags, data, measured in pages:
            measurement.add_pages(offset, flags, data, measured=measured)
        return measurement.digest()

    def build(self, **changes: Any) -> Any:
        """Return a LocalEnclave with the small enclave's pages, not initialized."""
        enclave = self.platform.open_enclave()
        enclave.create(self.secs(**changes))
        for offset, flags, data, measured in self.pages():
            assert enclave.add_pages(offset, data, flags, measure=measured) == len(data)
        return enclave

    def build_mapped(self, **changes: Any) -> Any:
        """Return a MappedEnclave with the small enclave's pages, not initialized: for the older drivers."""
        enclave = self.platform.map_enclave(SIZE, BASE)
        assert enclave.create(self.secs(**changes)) == 0
        for offset, flags, data, measured in self.pages():
            assert enclave.add_pages(offset, data, flags, measure=measured) == 0
        return enclave

    def good_sigstruct(self, **changes: Any) -> bytes:
        return self.sigstruct(self.mrenclave(self.pages()), **changes)


@pytest.fixture(scope="session")
def key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415

    return rsa.generate_private_key(public_exponent=3, key_size=3072)


@pytest.fixture(scope="session")
def bench_of(key: Any) -> Any:
    """Give what makes a Bench of any platform."""
    return partial(Bench, key=key)


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform(epc=EPC_PAGES * 4096, state=State.temporary()) as platform:
        yield platform


@pytest.fixture
def bench(platform: Platform, key: Any) -> Iterator[Bench]:
    """Yield the platform with helpers; at the end every EPC page must have come back."""
    bench = Bench(platform, key)
    yield bench
    platform.close()
    platform.processor.epc.check()
    assert platform.driver.epc.free_pages == platform.driver.epc.total - bench.lost


@pytest.fixture
def slow_file(tmp_path: Path) -> Iterator[Any]:
    """Yield a file of 8 MiB that can be made to answer late: see slow_file.py."""
    from slow_file import SlowFile  # noqa: PLC0415

    try:
        file = SlowFile(tmp_path / "slow", 8 << 20)
    except OSError as error:
        pytest.skip(f"FUSE cannot be mounted here: {error}")
    yield file
    file.close()
