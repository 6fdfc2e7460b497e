# SPDX-License-Identifier: Apache-2.0
"""SET_BACKING and CREATE with a backing, with the drivers beside mainline's."""

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from softsgx.arch.ioctl import (
    BACKING_FD,
    BACKING_NONE,
    BACKING_VMA,
    SGX_IOC_ENCLAVE_CREATE_BACKING,
    SGX_IOC_ENCLAVE_SET_BACKING,
    EnclaveCreateBacking,
    EnclaveSetBacking,
)
from softsgx.arch.secinfo import PAGE_SIZE, SECINFO_R, SECINFO_REG, SECINFO_W
from softsgx.driver.backing import KernelBacking, NoBacking, store_size
from softsgx.driver.local_legacy import MappedEnclave
from softsgx.driver.nodes import DCAP, LEGACY, V16
from softsgx.driver.platform import Platform
from softsgx.driver.provided import ExtentBacking
from softsgx.driver.state import State
from softsgx.errors import DriverError
from softsgx.image.measurement import Measurement

RW = SECINFO_REG | SECINFO_R | SECINFO_W
SIZE = 0x40_0000
LENGTH = -(-store_size(SIZE) // PAGE_SIZE) * PAGE_SIZE
UNMAPPED = 0xDEAD_0000


@pytest.fixture(params=[*LEGACY, DCAP])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def platform(driver: str) -> Iterator[Platform]:
    with Platform(epc=96 * PAGE_SIZE, state=State.temporary(), driver=driver) as platform:
        yield platform


mappings = pytest.mark.parametrize("driver", LEGACY)
only_v16 = pytest.mark.parametrize("driver", [V16])


@pytest.fixture
def opened(bench: Any, driver: str) -> Any:
    """Return an enclave that is not created yet."""
    if driver == DCAP:
        return bench.platform.open_enclave()
    return bench.platform.map_enclave(SIZE, bench.BASE)


@pytest.fixture
def enclave(bench: Any, opened: Any) -> Any:
    opened.create(bench.secs())
    return opened


def encl_of(enclave: Any) -> Any:
    return enclave.file.encl if hasattr(enclave.file, "encl") else enclave.mapping.encl


def refused(call: Callable[..., object], *args: Any, **named: Any) -> str:
    with pytest.raises(DriverError) as caught:
        call(*args, **named)
    return errno.errorcode[caught.value.errno]


def place(enclave: Any) -> int:
    return int(enclave.task.memory.place(bytes(LENGTH)))


def page(index: int) -> bytes:
    return bytes([index + 1]) * PAGE_SIZE


def fill(bench: Any, enclave: Any, count: int) -> bytes:
    """Add pages; return the SIGSTRUCT of what they make."""
    measurement = Measurement()
    measurement.ecreate(1, SIZE)
    for index in range(count):
        enclave.add_pages(index * PAGE_SIZE, page(index), RW)
        measurement.add_pages(index * PAGE_SIZE, RW, page(index), measured=True)
    return bytes(bench.sigstruct(measurement.digest()))


def check_pages(encl: Any, count: int) -> None:
    for index in range(count):
        assert encl.read(encl.base + index * PAGE_SIZE, PAGE_SIZE) == page(index)


def test_memory_of_the_caller_is_the_store(bench: Any, enclave: Any) -> None:
    at = place(enclave)
    enclave.set_backing(BACKING_VMA, contents=(at, LENGTH))
    encl = encl_of(enclave)
    enclave.init(fill(bench, enclave, 200))
    assert encl.stats.evictions > 100
    check_pages(encl, 200)
    # What lies there is none of the pages.
    held = enclave.task.memory.read(at, 200 * PAGE_SIZE)
    assert not any(page(index) in held for index in range(200))


def test_a_file_is_the_store(bench: Any, enclave: Any) -> None:
    fd = os.memfd_create("store")
    os.ftruncate(fd, LENGTH)
    enclave.set_backing(BACKING_FD, contents=(0, LENGTH), file=fd)
    os.close(fd)
    enclave.init(fill(bench, enclave, 150))
    assert isinstance(encl_of(enclave).backing, ExtentBacking)
    check_pages(encl_of(enclave), 150)


def test_create_names_the_store_as_the_thread_of_2018_had_it(bench: Any, opened: Any) -> None:
    at = place(opened)
    opened.create_with_backing(bench.secs(), at)
    encl = encl_of(opened)
    opened.init(fill(bench, opened, 150))
    assert encl.stats.evictions > 0
    check_pages(encl, 150)
    assert refused(opened.set_backing, BACKING_NONE) in ("EBUSY", "EINVAL")


def test_create_with_no_store_at_all(bench: Any, opened: Any) -> None:
    opened.create_with_backing(bench.secs(), 0)
    assert isinstance(encl_of(opened).backing, NoBacking)
    assert refused(opened.set_backing, BACKING_NONE) == "EBUSY"
    sigstruct = fill(bench, opened, 80)
    opened.init(sigstruct)
    check_pages(encl_of(opened), 80)


def test_without_a_store_a_full_epc_is_enomem(bench: Any, enclave: Any) -> None:
    enclave.set_backing(BACKING_NONE)
    assert refused(fill, bench, enclave, 200) == "ENOMEM"
    encl = encl_of(enclave)
    assert not encl.dead
    assert encl.read(encl.base, PAGE_SIZE) == page(0)


def test_a_create_that_is_refused_keeps_no_store(bench: Any, opened: Any) -> None:
    at = place(opened)
    create = opened.create_with_backing
    assert refused(create, bench.secs(), at + 8) == "EINVAL"
    assert refused(create, bench.secs(), UNMAPPED) == "EFAULT"
    assert refused(create, bench.secs(xfrm=0), at) == "EINVAL"
    held = bench.driver.epc.allocate_run(bench.free)
    assert refused(create, bench.secs(), at) == "ENOMEM"
    bench.driver.epc.free(*held)
    # A store that was kept would be in use.
    create(bench.secs(), at)
    assert isinstance(encl_of(opened).backing, ExtentBacking)


def test_a_store_is_chosen_once_and_before_the_first_page(bench: Any, enclave: Any) -> None:
    at = place(enclave)
    assert refused(enclave.set_backing, 7) == "EINVAL"
    enclave.set_backing(BACKING_VMA, contents=(at, LENGTH))
    assert refused(enclave.set_backing, BACKING_NONE) == "EBUSY"
    enclave.add_pages(0, page(0), RW)
    assert refused(enclave.set_backing, BACKING_NONE) == "EINVAL"
    bench.driver.background()
    assert refused(enclave.set_backing, BACKING_NONE) == "EINVAL"


def set_backing_of(enclave: Any, base: int) -> None:
    wanted = EnclaveSetBacking.blank().replace(
        flags=BACKING_NONE, contents_fd=-1, pcmd_fd=-1, enclave=base
    )
    enclave.ioctl(SGX_IOC_ENCLAVE_SET_BACKING, wanted)


@mappings
def test_a_descriptor_with_many_enclaves_names_one_by_its_base(bench: Any, opened: Any) -> None:
    base = opened.base
    assert refused(set_backing_of, opened, 0) == "EINVAL"
    assert refused(set_backing_of, opened, base) == "ENOENT"
    opened.create(bench.secs())
    assert refused(set_backing_of, opened, base + 8) == "EINVAL"
    assert refused(set_backing_of, opened, base + PAGE_SIZE) == "EINVAL"
    set_backing_of(opened, base)
    opened.munmap(PAGE_SIZE, PAGE_SIZE)
    assert refused(set_backing_of, opened, base) in ("EFAULT", "EINVAL")


@pytest.mark.parametrize("driver", [DCAP])
def test_a_descriptor_of_one_enclave_names_none(enclave: Any) -> None:
    assert refused(set_backing_of, enclave, encl_of(enclave).base) == "EINVAL"
    set_backing_of(enclave, 0)


@pytest.mark.parametrize("driver", [DCAP])
def test_dcap_reads_the_secs_before_it_looks_at_the_enclave(bench: Any, enclave: Any) -> None:
    unreadable = EnclaveCreateBacking(src=UNMAPPED, backing=0)
    assert refused(enclave.ioctl, SGX_IOC_ENCLAVE_CREATE_BACKING, unreadable) == "EFAULT"
    assert refused(enclave.create_with_backing, bench.secs(), 0) == "EINVAL"


@mappings
def test_create_with_a_backing_gives_what_copy_from_user_has_left(opened: Any) -> None:
    unreadable = EnclaveCreateBacking(src=UNMAPPED, backing=0)
    assert opened.ioctl(SGX_IOC_ENCLAVE_CREATE_BACKING, unreadable) == 4096


# -- pages that wait --------------------------------------------------------------------------------


@mappings
def test_pages_wait_in_the_callers_store_and_can_be_changed_there(bench: Any, enclave: Any) -> None:
    at = place(enclave)
    memory = enclave.task.memory
    enclave.set_backing(BACKING_VMA, contents=(at, LENGTH))
    enclave.add_pages(3 * PAGE_SIZE, page(3), RW)
    assert memory.read(at + 3 * PAGE_SIZE, PAGE_SIZE) == page(3)
    memory.write(at + 3 * PAGE_SIZE, page(9))
    bench.driver.background()
    # Nothing of it is left.
    assert memory.read(at, LENGTH) == bytes(LENGTH)
    assert encl_of(enclave).read(bench.BASE + 3 * PAGE_SIZE, PAGE_SIZE) == page(9)
    measurement = Measurement()
    measurement.ecreate(1, SIZE)
    measurement.add_pages(3 * PAGE_SIZE, RW, page(9), measured=True)
    assert enclave.init(bench.sigstruct(measurement.digest())) == 0


@mappings
def test_pages_that_wait_leave_nothing_in_the_callers_store(bench: Any, enclave: Any) -> None:
    at = place(enclave)
    enclave.set_backing(BACKING_VMA, contents=(at, LENGTH))
    fill(bench, enclave, 5)
    memory = enclave.task.memory
    assert memory.read(at, 5 * PAGE_SIZE) != bytes(5 * PAGE_SIZE)
    enclave.munmap(0, PAGE_SIZE)
    assert memory.read(at, LENGTH) == bytes(LENGTH)


@only_v16
def test_a_store_that_is_unmapped_while_pages_wait_ends_the_enclave(
    bench: Any, enclave: Any
) -> None:
    at = place(enclave)
    enclave.set_backing(BACKING_VMA, contents=(at, LENGTH))
    sigstruct = fill(bench, enclave, 5)
    enclave.task.memory.unmap(at, LENGTH)
    assert refused(enclave.init, sigstruct) == "EFAULT"
    assert encl_of(enclave).dead
    assert bench.free == bench.driver.epc.total


# -- who comes in between, while the caller's memory is looked at -------------------------------------


def at_store_memory(enclave: Any, hook: Callable[[], None]) -> None:
    """Let another thread do something when a store's memory is asked for, once."""
    task = enclave.task
    real = task.store_memory

    def store_memory(address: int, length: int) -> Any:
        task.store_memory = real
        hook()
        return real(address, length)

    task.store_memory = store_memory


@mappings
def test_a_mapping_gets_one_enclave_whoever_comes_in_between(bench: Any, opened: Any) -> None:
    at = place(opened)
    others: list[str] = []
    at_store_memory(opened, lambda: others.append(refused(opened.create, bench.secs())))
    opened.create_with_backing(bench.secs(), at)
    assert others == ["EINVAL"]
    assert isinstance(encl_of(opened).backing, ExtentBacking)


@mappings
def test_a_mapping_that_goes_while_its_store_is_looked_at(bench: Any, opened: Any) -> None:
    at = place(opened)
    at_store_memory(opened, opened.munmap)
    assert refused(opened.create_with_backing, bench.secs(), at) == "EINVAL"
    assert bench.free == bench.driver.epc.total
    with MappedEnclave(bench.driver, SIZE, bench.BASE, opened.task) as other:
        other.create_with_backing(bench.secs(), at)


@mappings
def test_an_enclave_that_ends_while_its_store_is_looked_at(bench: Any, enclave: Any) -> None:
    at = place(enclave)
    at_store_memory(enclave, enclave.munmap)
    enclave.set_backing(BACKING_VMA, contents=(at, LENGTH))
    # The store is nobody's: another enclave may have it.
    with MappedEnclave(bench.driver, SIZE, bench.BASE, enclave.task) as other:
        other.create_with_backing(bench.secs(), at)


@mappings
def test_a_page_waits_until_the_store_is_chosen(bench: Any, enclave: Any) -> None:
    at = place(enclave)
    task = enclave.task
    results: list[str] = []

    def hook() -> None:
        signals = [False, True]
        task.signal_pending = lambda: signals.pop(0)
        results.append(refused(enclave.add_pages, 0, page(0), RW))
        task.signal_pending = lambda: False

    at_store_memory(enclave, hook)
    enclave.set_backing(BACKING_VMA, contents=(at, LENGTH))
    assert results == ["EINTR"]
    assert not isinstance(encl_of(enclave).backing, KernelBacking)
    enclave.init(fill(bench, enclave, 3))
    check_pages(encl_of(enclave), 3)
