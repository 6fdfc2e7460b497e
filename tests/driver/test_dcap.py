# SPDX-License-Identifier: Apache-2.0
"""The driver of DCAP 1.6: where it answers otherwise than mainline."""

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from softsgx.arch.attributes import (
    ATTRIBUTE_CET,
    ATTRIBUTE_EINITTOKENKEY,
    ATTRIBUTE_INIT,
    ATTRIBUTE_MODE64BIT,
    ATTRIBUTE_PROVISIONKEY,
    XFRM_BNDREGS,
    XFRM_LEGACY,
    XFRM_OPMASK,
)
from softsgx.arch.ioctl import (
    SGX_IOC_ENCLAVE_ADD_PAGES,
    SGX_IOC_ENCLAVE_CREATE,
    SGX_IOC_ENCLAVE_INIT,
    SGX_IOC_ENCLAVE_PROVISION,
    SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS,
    EnclaveCreate,
    EnclaveInit,
    EnclaveProvision,
)
from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG, SECINFO_TCS, SECINFO_W, SECINFO_X
from softsgx.arch.structures import Tcs
from softsgx.cpu.model import Model
from softsgx.driver.nodes import DCAP
from softsgx.driver.platform import Platform
from softsgx.driver.state import State
from softsgx.errors import DriverError

PAGE = 4096
R, W, X = 1, 2, 4
SHARED = 1
TCS, CODE, DATA, HOLE = 0, 0x1000, 0x3000, 0x6000
# Every component that the model knows, for an XFRM that only ECREATE refuses.
XCR0 = 0xE7


@pytest.fixture
def platform() -> Iterator[Platform]:
    model = Model(256 * PAGE, XCR0)
    with Platform(model=model, state=State.temporary(), driver=DCAP) as platform:
        yield platform


@pytest.fixture
def built(bench: Any) -> Any:
    with bench.build() as enclave:
        yield enclave


def create(bench: Any, file: Any, **changes: Any) -> int:
    src = bench.memory.place(bench.secs(**changes))
    return bench.ioctl(file, SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src))


def create_refused(bench: Any, file: Any, **changes: Any) -> str:
    src = bench.memory.place(bench.secs(**changes))
    return bench.refused(file, SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src))


def add_refused(bench: Any, enclave: Any, **changes: Any) -> str:
    argument = bench.add_argument(**changes)
    return bench.refused(enclave.file, SGX_IOC_ENCLAVE_ADD_PAGES, argument)


def init_refused(bench: Any, enclave: Any, sigstruct: bytes) -> str:
    at = bench.memory.place(sigstruct)
    return bench.refused(enclave.file, SGX_IOC_ENCLAVE_INIT, EnclaveInit(sigstruct=at))


def test_an_enclave_is_built_and_started(bench: Any, built: Any) -> None:
    built.init(bench.good_sigstruct())
    assert built.file.encl.initialized


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0x3000},
        {"size": 0x1000, "baseaddr": 0x1000},
        {"baseaddr": 0x7F00_0000_1000},
        {"attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_INIT},
        {"attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_CET},
        {"attributes": ATTRIBUTE_MODE64BIT | 1 << 40},
        {"miscselect": 2},
        {"xfrm": 1},
        {"xfrm": XFRM_LEGACY | 1 << 20},
        {"xfrm": XFRM_LEGACY | XFRM_BNDREGS},
        {"ssaframesize": 0},
        {"size": 1 << 48, "baseaddr": 0},
    ],
    ids=str,
)
def test_a_defect_of_the_secs_is_the_driver_s_einval(bench: Any, changes: dict[str, int]) -> None:
    with bench.open() as file:
        assert create_refused(bench, file, **changes) == "EINVAL"
        assert bench.free == bench.driver.epc.total


def test_reserved_bytes_of_the_secs_are_einval(bench: Any) -> None:
    for offset in (24, 47, 96, 127, 160, 191, 262, 4095):
        secs = bytearray(bench.secs())
        secs[offset] = 1
        argument = EnclaveCreate(src=bench.memory.place(secs))
        with bench.open() as file:
            assert bench.refused(file, SGX_IOC_ENCLAVE_CREATE, argument) == "EINVAL"


def test_what_only_ecreate_refuses_is_its_fault_as_a_number(bench: Any) -> None:
    # One of the three components of AVX-512: the driver looks at no more than what is offered.
    with bench.open() as file:
        assert create(bench, file, xfrm=XFRM_LEGACY | XFRM_OPMASK) == 0x4000_000D
        assert not file.encl.created
        assert bench.free == bench.driver.epc.total


def test_the_secs_is_read_before_a_second_create_is_refused(bench: Any, built: Any) -> None:
    unreadable = EnclaveCreate(src=0xDEAD_0000)
    assert bench.refused(built.file, SGX_IOC_ENCLAVE_CREATE, unreadable) == "EFAULT"
    assert create_refused(bench, built.file) == "EINVAL"


def test_a_page_that_is_there_is_eexist(bench: Any, built: Any) -> None:
    assert add_refused(bench, built, offset=CODE) == "EEXIST"


def test_adding_to_an_initialized_enclave_is_efault_after_the_secinfo(
    bench: Any, built: Any
) -> None:
    built.init(bench.good_sigstruct())
    assert add_refused(bench, built, offset=HOLE, secinfo_flags=SECINFO_REG | SECINFO_W) == "EINVAL"
    assert add_refused(bench, built, offset=HOLE) == "EFAULT"


def test_a_signal_is_eintr_even_after_pages(bench: Any, built: Any) -> None:
    # A page that is there ends the first run.
    there = bench.add_argument(offset=HOLE + 2 * PAGE)
    assert bench.ioctl(built.file, SGX_IOC_ENCLAVE_ADD_PAGES, there) == 0
    pages = bench.memory.place(bytes(4 * PAGE))
    argument = bench.add_argument(src=pages, offset=HOLE, length=4 * PAGE)
    arg = bench.memory.place(argument.encode())
    bench.task.signals = [False, True]
    assert bench.refused(built.file, SGX_IOC_ENCLAVE_ADD_PAGES, arg) == "EINTR"
    assert bench.count(arg) == 2 * PAGE


def test_only_executable_pages_ask_for_a_noexec_source(bench: Any, built: Any) -> None:
    bench.task.vmas = [(0, 1 << 47, False)]
    flags = SECINFO_REG | SECINFO_R
    argument = bench.add_argument(offset=HOLE, secinfo_flags=flags)
    assert bench.ioctl(built.file, SGX_IOC_ENCLAVE_ADD_PAGES, argument) == 0
    assert (
        add_refused(bench, built, offset=HOLE + PAGE, secinfo_flags=flags | SECINFO_X) == "EACCES"
    )
    bench.task.vmas = []
    assert add_refused(bench, built, offset=HOLE + PAGE, src=0xDEAD_0000) == "EFAULT"


def test_a_failed_eadd_destroys_the_enclave(bench: Any, built: Any) -> None:
    tcs = bench.memory.place(Tcs.blank().replace(state=0).encode()[:-1] + b"\1")
    flags = SECINFO_TCS
    assert add_refused(bench, built, offset=HOLE, src=tcs, secinfo_flags=flags) == "EIO"
    assert bench.free == bench.driver.epc.total
    for request in (SGX_IOC_ENCLAVE_ADD_PAGES, SGX_IOC_ENCLAVE_INIT, 0x1234):
        assert bench.refused(built.file, request, 0) == "EFAULT"


@pytest.mark.parametrize(
    "attributes", [ATTRIBUTE_PROVISIONKEY, ATTRIBUTE_EINITTOKENKEY], ids=["PROVISION", "EINITTOKEN"]
)
def test_attributes_that_were_not_granted_are_eacces(bench: Any, attributes: int) -> None:
    wanted = bench.ATTRIBUTES | attributes
    with bench.build(attributes=wanted) as enclave:
        sigstruct = bench.good_sigstruct(attributes=wanted)
        assert init_refused(bench, enclave, sigstruct) == "EACCES"


@pytest.mark.parametrize("before", [True, False])
def test_a_grant_holds_also_from_before_create(bench: Any, before: bool) -> None:
    wanted = bench.ATTRIBUTES | ATTRIBUTE_PROVISIONKEY
    with bench.platform.open_enclave() as enclave:
        if before:
            enclave.provision()
        enclave.create(bench.secs(attributes=wanted))
        for offset, flags, data, measured in bench.pages():
            enclave.add_pages(offset, data, flags, measure=measured)
        if not before:
            enclave.provision()
        enclave.init(bench.good_sigstruct(attributes=wanted))
        assert enclave.file.encl.initialized


def test_provisioning_needs_the_node(bench: Any, built: Any) -> None:
    argument = EnclaveProvision(fd=7)
    assert bench.refused(built.file, SGX_IOC_ENCLAVE_PROVISION, argument) == "EINVAL"


def test_a_second_init_is_efault_and_a_wrong_one_eperm(bench: Any, built: Any) -> None:
    assert init_refused(bench, built, bench.sigstruct(bytes(32))) == "EPERM"
    built.init(bench.good_sigstruct())
    assert init_refused(bench, built, bench.good_sigstruct()) == "EFAULT"


def test_sgx2_is_unknown(bench: Any, built: Any) -> None:
    assert bench.refused(built.file, SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS, 0) == "ENOTTY"


# -- mappings ----------------------------------------------------------------------------------


def may_map(bench: Any, enclave: Any, start: int, end: int, prot: int) -> bool:
    try:
        enclave.file.encl.may_map(bench.BASE + start, bench.BASE + end, prot)
    except DriverError as error:
        assert error.errno == errno.EACCES  # noqa: PT017 - of all that are raised
        return False
    return True


def test_a_mapping_wants_a_page_everywhere(bench: Any, built: Any) -> None:
    assert may_map(bench, built, CODE, DATA, R | X)
    assert may_map(bench, built, CODE, HOLE, R)
    assert may_map(bench, built, TCS, HOLE, 0)
    assert may_map(bench, built, 0, bench.SIZE, 0)
    assert not may_map(bench, built, CODE, DATA, R | W)
    assert not may_map(bench, built, DATA, HOLE + PAGE, R)
    assert not may_map(bench, built, HOLE, HOLE + PAGE, R)
    assert not may_map(bench, built, HOLE, HOLE + 2 * PAGE, R)


def test_read_implies_exec_is_refused(bench: Any, built: Any) -> None:
    with pytest.raises(DriverError, match="READ_IMPLIES_EXEC"):
        built.file.encl.may_map(bench.BASE, bench.BASE + PAGE, 0, read_implies_exec=True)


def test_mprotect_is_not_judged_and_the_epcm_narrows(bench: Any, built: Any) -> None:
    base, encl = bench.BASE, built.file.encl
    built.file.check_mprotect(base, base + bench.SIZE, R | W | X, bench.task)
    assert encl.narrowed(base + TCS, base + HOLE + PAGE, R | W | X) == [
        (base + TCS, base + CODE, R | W),
        (base + CODE, base + DATA, R | X),
        (base + DATA, base + HOLE, R | W),
    ]
    assert encl.touchable(base + TCS, base + HOLE + PAGE, R | W | X) == [
        (base + CODE, base + DATA, R | X),
        (base + DATA, base + HOLE, R | W),
    ]
    # A page table entry that allows writing allows reading.
    assert encl.narrowed(base + CODE, base + DATA, W) == [(base + CODE, base + DATA, R)]


def test_a_fault_before_init_is_sigbus(bench: Any, built: Any) -> None:
    encl = built.file.encl
    assert "not initialized" in encl.load_page_in_vma(bench.BASE + CODE, R)
    built.init(bench.good_sigstruct())
    assert encl.load_page_in_vma(bench.BASE + CODE, R | W | X) is None
    assert "no page" in encl.load_page_in_vma(bench.BASE + HOLE, R)
