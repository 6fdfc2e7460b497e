# SPDX-License-Identifier: Apache-2.0
"""The errno table of Linux 6.1 for what is no matter of adding pages, in the kernel's order of checks."""

from typing import Any

import pytest

from softsgx.arch.attributes import (
    ATTRIBUTE_CET,
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_EINITTOKENKEY,
    ATTRIBUTE_INIT,
    ATTRIBUTE_KSS,
    ATTRIBUTE_MODE64BIT,
    ATTRIBUTE_PROVISIONKEY,
    MISC_CPINFO,
    MISC_EXINFO,
    XFRM_AMX,
    XFRM_LEGACY,
)
from softsgx.arch.ioctl import (
    SGX_IOC_ENCLAVE_ADD_PAGES,
    SGX_IOC_ENCLAVE_CREATE,
    SGX_IOC_ENCLAVE_INIT,
    SGX_IOC_ENCLAVE_MODIFY_TYPES,
    SGX_IOC_ENCLAVE_PROVISION,
    SGX_IOC_ENCLAVE_REMOVE_PAGES,
    SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS,
    SGX_IOC_VEPC_REMOVE_ALL,
    EnclaveCreate,
    EnclaveInit,
    EnclaveProvision,
)
from softsgx.arch.structures import Sigstruct
from softsgx.cpu.model import DEFAULT_FEATURES, Model
from softsgx.errors import DriverError

UNMAPPED = (0, 0xDEAD_0000, 0x7FFF_FFFF_F000, 0x8000_0000_0000_0000, 0xFFFF_FFFF_FFFF_FFF8)
FULL = 0xFFFF_FFFF_FFFF_FFFF
# Not ours, or of another driver: isgx's EINIT and EADD, tee's, a terminal's.
UNKNOWN = (0, 0x4010A402, 0x401AA401, 0x4018A402, 0x4040A411, 0xC030A400, 0x4008A408, 0x5401)


def create(bench: Any, file: Any, **changes: Any) -> int:
    src = bench.memory.place(bench.secs(**changes))
    return bench.ioctl(file, SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src))


def create_refused(bench: Any, file: Any, **changes: Any) -> str:
    src = bench.memory.place(bench.secs(**changes))
    return bench.refused(file, SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src))


def init_refused(bench: Any, enclave: Any, sigstruct: bytes) -> str:
    at = bench.memory.place(sigstruct)
    return bench.refused(enclave.file, SGX_IOC_ENCLAVE_INIT, EnclaveInit(sigstruct=at))


# -- any command ----------------------------------------------------------------------------


@pytest.mark.parametrize("request_number", [*UNKNOWN, SGX_IOC_VEPC_REMOVE_ALL])
def test_an_unknown_command_is_enotty(bench: Any, request_number: int) -> None:
    with bench.open() as file:
        assert bench.refused(file, request_number, 0) == "ENOTTY"


@pytest.mark.parametrize(
    "request_number",
    [
        SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS,
        SGX_IOC_ENCLAVE_MODIFY_TYPES,
        SGX_IOC_ENCLAVE_REMOVE_PAGES,
    ],
)
@pytest.mark.parametrize("arg", [0, 0xDEAD_0000])
def test_sgx2_is_enodev_before_anything_is_looked_at(
    bench: Any, request_number: int, arg: int
) -> None:
    bench.platform.processor.model = Model(features=DEFAULT_FEATURES - {"sgx2"})
    with bench.open() as file:
        assert bench.refused(file, request_number, arg) == "ENODEV"
    with bench.build() as enclave:
        enclave.init(bench.good_sigstruct())
        assert bench.refused(enclave.file, request_number, arg) == "ENODEV"


def test_only_the_lower_half_of_the_request_counts(bench: Any) -> None:
    with bench.open() as file:
        src = bench.memory.place(bench.secs())
        assert bench.ioctl(file, 7 << 32 | SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src)) == 0


def test_a_command_of_the_provision_node_is_enotty(bench: Any) -> None:
    file = bench.driver.open_provision()
    for request in (SGX_IOC_ENCLAVE_CREATE, SGX_IOC_ENCLAVE_PROVISION, *UNKNOWN):
        assert bench.refused(file, request, 0) == "ENOTTY"


@pytest.mark.parametrize(
    ("request_number", "argument"),
    [
        (SGX_IOC_ENCLAVE_CREATE, 0),
        (SGX_IOC_ENCLAVE_ADD_PAGES, 0),
        (SGX_IOC_ENCLAVE_INIT, 0),
        (SGX_IOC_ENCLAVE_PROVISION, 0),
        (SGX_IOC_ENCLAVE_REMOVE_PAGES, 0),
        (0x1234, 0),
    ],
)
def test_an_ioctl_while_another_is_in_flight_is_ebusy(
    bench: Any, request_number: int, argument: int
) -> None:
    seen = []

    def another_thread() -> None:
        seen.append(bench.refused(file, request_number, argument, bench.caller()))

    with bench.open() as file:
        bench.memory.on_access = another_thread
        create(bench, file)
        assert seen == ["EBUSY"]
        # The first one is over: the file answers again.
        assert create_refused(bench, file) == "EINVAL"


def test_an_ioctl_on_another_file_runs_meanwhile(bench: Any) -> None:
    other = bench.open()

    def another_thread() -> None:
        create(bench, other, baseaddr=0x10_0000_0000)

    with bench.open() as file:
        bench.memory.on_access = another_thread
        create(bench, file)
        assert (file.encl.base, other.encl.base) == (bench.BASE, 0x10_0000_0000)
    other.release()


def test_a_failed_ioctl_is_no_longer_in_flight(bench: Any) -> None:
    with bench.open() as file:
        assert bench.refused(file, SGX_IOC_ENCLAVE_CREATE, 0) == "EFAULT"
        assert create(bench, file) == 0


def test_a_caller_that_is_killed_leaves_the_file_usable(bench: Any) -> None:
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    with bench.open() as file:
        bench.memory.on_access = kill
        with pytest.raises(Killed):
            create(bench, file)
        assert create(bench, file) == 0


# -- CREATE ---------------------------------------------------------------------------------


def test_create_twice_is_einval_even_with_a_bad_pointer(bench: Any) -> None:
    with bench.open() as file:
        create(bench, file)
        assert bench.refused(file, SGX_IOC_ENCLAVE_CREATE, 0xDEAD_0000) == "EINVAL"


@pytest.mark.parametrize("address", UNMAPPED)
def test_create_with_a_bad_argument_is_efault(bench: Any, address: int) -> None:
    with bench.open() as file:
        assert bench.refused(file, SGX_IOC_ENCLAVE_CREATE, address) == "EFAULT"
        assert bench.refused(file, SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=address)) == "EFAULT"


def test_create_with_a_secs_that_ends_in_a_hole_is_efault(bench: Any) -> None:
    with bench.open() as file:
        src = bench.memory.place(bench.secs()) + 8
        assert bench.refused(file, SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src)) == "EFAULT"


def test_create_reads_a_secs_anywhere(bench: Any) -> None:
    with bench.open() as file:
        src = bench.memory.place(bytes(24) + bench.secs()) + 24
        assert bench.ioctl(file, SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src)) == 0


@pytest.mark.parametrize("size", [0, 3 << 12, (1 << 20) + 1, FULL])
def test_create_of_a_size_that_is_no_power_of_two_is_einval(bench: Any, size: int) -> None:
    with bench.open() as file:
        # A defect that ECREATE would see does not count before the size.
        assert create_refused(bench, file, size=size, ssaframesize=0) == "EINVAL"


def test_create_that_no_file_can_back_is_einval(bench: Any) -> None:
    with bench.open() as file:
        assert create_refused(bench, file, size=1 << 63, baseaddr=0) == "EINVAL"


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 4096},
        {"size": 1 << 62, "baseaddr": 0},
        {"baseaddr": 0x7F00_0000_1000},
        {"baseaddr": 0x8000_0000_0000_0000},
        {"ssaframesize": 0},
        {"attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_INIT},
        {"attributes": ATTRIBUTE_MODE64BIT | 1 << 3},
        {"attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_CET},
        {"attributes": ATTRIBUTE_MODE64BIT | 1 << 63},
        {"miscselect": MISC_CPINFO},
        {"xfrm": 1},
        {"xfrm": XFRM_LEGACY | XFRM_AMX},
        {"xfrm": XFRM_LEGACY | 1 << 63},
        {"configsvn": 1},
    ],
)
def test_any_other_defect_of_the_secs_is_eio_and_costs_nothing(
    bench: Any, changes: dict[str, int]
) -> None:
    free = bench.free
    with bench.open() as file:
        assert create_refused(bench, file, **changes) == "EIO"
        assert bench.free == free
        assert create(bench, file) == 0


def test_a_reserved_byte_of_the_secs_is_eio(bench: Any) -> None:
    with bench.open() as file:
        secs = bytearray(bench.secs())
        secs[4095] = 1
        argument = EnclaveCreate(src=bench.memory.place(bytes(secs)))
        assert bench.refused(file, SGX_IOC_ENCLAVE_CREATE, argument) == "EIO"


def test_create_takes_a_secs_and_a_va_page(bench: Any) -> None:
    free = bench.free
    with bench.open() as file:
        create(bench, file)
        assert free - bench.free == 2
        assert bench.driver.processor.secs_of(file.encl.secs_page).baseaddr == bench.BASE
    assert bench.free == free


@pytest.mark.parametrize("left", [0, 1])
def test_create_without_an_epc_page_left_is_enomem_and_says_why(bench: Any, left: int) -> None:
    taken = bench.driver.epc.allocate_run(bench.free - left)
    with (
        bench.open() as file,
        pytest.raises(DriverError, match="nothing gives way") as error,
    ):
        create(bench, file)
    assert error.value.errno == 12
    assert bench.free == left
    bench.driver.epc.free(*taken)


def test_the_base_may_be_zero(bench: Any) -> None:
    with bench.open() as file:
        assert create(bench, file, baseaddr=0) == 0


# -- INIT -----------------------------------------------------------------------------------


def test_init_before_create_and_after_init_is_einval(bench: Any) -> None:
    with bench.open() as file:
        assert bench.refused(file, SGX_IOC_ENCLAVE_INIT, 0) == "EINVAL"
    with bench.build() as enclave:
        enclave.init(bench.good_sigstruct())
        assert enclave.file.encl.initialized
        assert bench.refused(enclave.file, SGX_IOC_ENCLAVE_INIT, 0) == "EINVAL"


@pytest.mark.parametrize("address", UNMAPPED)
def test_init_with_a_bad_pointer_is_efault(bench: Any, address: int) -> None:
    with bench.build() as enclave:
        assert bench.refused(enclave.file, SGX_IOC_ENCLAVE_INIT, address) == "EFAULT"
        argument = EnclaveInit(sigstruct=address)
        assert bench.refused(enclave.file, SGX_IOC_ENCLAVE_INIT, argument) == "EFAULT"


def test_init_reads_a_sigstruct_anywhere(bench: Any) -> None:
    with bench.build() as enclave:
        at = bench.memory.place(bytes(8) + bench.good_sigstruct()) + 8
        assert bench.ioctl(enclave.file, SGX_IOC_ENCLAVE_INIT, EnclaveInit(sigstruct=at)) == 0


def test_init_with_a_foreign_vendor_is_einval_before_the_attributes(bench: Any) -> None:
    with bench.build(attributes=bench.ATTRIBUTES | ATTRIBUTE_PROVISIONKEY) as enclave:
        assert init_refused(bench, enclave, bench.good_sigstruct(vendor=1)) == "EINVAL"


@pytest.mark.parametrize("attribute", [ATTRIBUTE_PROVISIONKEY, ATTRIBUTE_EINITTOKENKEY])
def test_init_with_an_attribute_not_granted_is_eacces_before_the_masks(
    bench: Any, attribute: int
) -> None:
    attributes = bench.ATTRIBUTES | attribute
    with bench.build(attributes=attributes) as enclave:
        sigstruct = bench.good_sigstruct(attributes=attributes | 1 << 3)
        assert init_refused(bench, enclave, sigstruct) == "EACCES"


@pytest.mark.parametrize(
    "changes",
    [
        {"attributes": ATTRIBUTE_MODE64BIT | 1 << 3},
        {"attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_INIT},
        {"attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_CET},
        {"attributes": ATTRIBUTE_MODE64BIT | 1 << 63},
        {"miscselect": MISC_CPINFO},
        {"xfrm": XFRM_LEGACY | XFRM_AMX},
        {"xfrm": XFRM_LEGACY | 1 << 63},
    ],
)
def test_init_that_demands_what_the_processor_lacks_is_einval(
    bench: Any, changes: dict[str, int]
) -> None:
    with bench.build() as enclave:
        # Before EINIT: the measurement is wrong as well.
        assert init_refused(bench, enclave, bench.sigstruct(bytes(32), **changes)) == "EINVAL"


def test_init_may_name_what_the_processor_lacks_outside_the_mask(bench: Any) -> None:
    with bench.build() as enclave:
        enclave.init(bench.good_sigstruct(xfrm=XFRM_LEGACY | XFRM_AMX, xfrmmask=FULL & ~XFRM_AMX))


def flipped(offset: int) -> Any:
    def flip(sigstruct: bytes) -> bytes:
        spoiled = bytearray(sigstruct)
        spoiled[offset] ^= 1
        return bytes(spoiled)

    return flip


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (flipped(0), "INVALID_SIG_STRUCT"),
        (flipped(512), "INVALID_SIG_STRUCT"),
        (flipped(100), "INVALID_SIG_STRUCT"),
        (flipped(1030), "INVALID_SIG_STRUCT"),
        (flipped(516), "INVALID_SIGNATURE"),
        (flipped(128), "INVALID_SIGNATURE"),
        (flipped(960), "INVALID_SIGNATURE"),
        (flipped(Sigstruct.OFFSETS["q1"]), "INVALID_SIGNATURE"),
        (flipped(Sigstruct.OFFSETS["q2"]), "INVALID_SIGNATURE"),
    ],
)
def test_a_wrong_signature_is_eperm_and_the_enclave_can_still_be_initialized(
    bench: Any, spoil: Any, code: str
) -> None:
    with bench.build() as enclave:
        good = bench.good_sigstruct()
        with pytest.raises(DriverError, match=code) as error:
            enclave.init(spoil(good))
        assert error.value.errno == 1
        assert not enclave.file.encl.initialized
        enclave.init(good)


def test_a_wrong_measurement_is_eperm(bench: Any) -> None:
    with bench.build() as enclave, pytest.raises(DriverError, match="INVALID_MEASUREMENT"):
        enclave.init(bench.sigstruct(bytes(32)))


def test_a_page_flipped_after_signing_is_eperm(bench: Any) -> None:
    sigstruct = bench.good_sigstruct()
    offset = bench.pages()[1][0]
    with bench.platform.open_enclave() as enclave:
        enclave.create(bench.secs())
        for page in bench.pages():
            data = page[2]
            if page[0] == offset:
                data = data[:5000] + bytes([data[5000] ^ 0x10]) + data[5001:]
            enclave.add_pages(page[0], data, page[1], measure=page[3])
        with pytest.raises(DriverError, match="INVALID_MEASUREMENT") as error:
            enclave.init(sigstruct)
    assert error.value.errno == 1


def test_an_unmeasured_page_may_be_anything(bench: Any) -> None:
    with bench.platform.open_enclave() as enclave:
        enclave.create(bench.secs())
        for offset, flags, data, measured in bench.pages():
            enclave.add_pages(offset, data if measured else bytes(4096), flags, measure=measured)
        enclave.init(bench.good_sigstruct())


def test_a_debug_enclave_against_a_production_sigstruct_is_eperm(bench: Any) -> None:
    production = bench.good_sigstruct(attributes=ATTRIBUTE_MODE64BIT, attributemask=FULL)
    with bench.build() as enclave, pytest.raises(DriverError, match="INVALID_ATTRIBUTE") as error:
        enclave.init(production)
    assert error.value.errno == 1
    with bench.build(attributes=ATTRIBUTE_MODE64BIT) as enclave:
        enclave.init(production)


@pytest.mark.parametrize(
    "changes",
    [
        {"attributes": ATTRIBUTE_MODE64BIT | ATTRIBUTE_DEBUG | ATTRIBUTE_KSS},
        {"miscselect": MISC_EXINFO},
    ],
)
def test_other_attributes_than_signed_are_eperm(bench: Any, changes: dict[str, int]) -> None:
    with bench.build() as enclave, pytest.raises(DriverError, match="INVALID_ATTRIBUTE"):
        enclave.init(bench.good_sigstruct(**changes))


def test_every_signer_is_accepted(bench: Any) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415

    with bench.build() as first:
        first.init(bench.good_sigstruct())
        bench.key = rsa.generate_private_key(public_exponent=3, key_size=3072)
        with bench.build() as second:
            second.init(bench.good_sigstruct())
            secs_of = bench.driver.processor.secs_of
            one, other = (secs_of(e.file.encl.secs_page) for e in (first, second))
            assert one.mrenclave == other.mrenclave == bench.mrenclave(bench.pages())
            assert one.mrsigner != other.mrsigner


# -- PROVISION ------------------------------------------------------------------------------


def provisioned(bench: Any, enclave: Any) -> None:
    enclave.init(bench.good_sigstruct(attributes=bench.ATTRIBUTES | ATTRIBUTE_PROVISIONKEY))


def test_a_grant_lets_the_provision_key_through(bench: Any) -> None:
    with bench.build(attributes=bench.ATTRIBUTES | ATTRIBUTE_PROVISIONKEY) as enclave:
        enclave.provision()
        provisioned(bench, enclave)


def test_a_grant_before_create_is_lost(bench: Any) -> None:
    with bench.platform.open_enclave() as enclave:
        enclave.provision()
        enclave.create(bench.secs(attributes=bench.ATTRIBUTES | ATTRIBUTE_PROVISIONKEY))
        with pytest.raises(DriverError, match="granted") as error:
            provisioned(bench, enclave)
    assert error.value.errno == 13


def test_a_grant_is_allowed_after_init(bench: Any) -> None:
    with bench.build() as enclave:
        enclave.init(bench.good_sigstruct())
        enclave.provision()


def test_a_grant_is_not_one_for_the_init_token_key(bench: Any) -> None:
    attributes = bench.ATTRIBUTES | ATTRIBUTE_EINITTOKENKEY
    with bench.build(attributes=attributes) as enclave:
        enclave.provision()
        assert init_refused(bench, enclave, bench.good_sigstruct(attributes=attributes)) == "EACCES"


@pytest.mark.parametrize("address", UNMAPPED)
def test_provision_with_a_bad_argument_is_efault(bench: Any, address: int) -> None:
    with bench.open() as file:
        assert bench.refused(file, SGX_IOC_ENCLAVE_PROVISION, address) == "EFAULT"


def test_provision_with_a_wrong_descriptor_is_einval(bench: Any) -> None:
    with bench.open() as file:
        enclave_fd = bench.task.install(file)
        for fd in (enclave_fd, 77, 0xFFFF_FFFF, 1 << 40 | enclave_fd, FULL):
            argument = EnclaveProvision(fd=fd)
            assert bench.refused(file, SGX_IOC_ENCLAVE_PROVISION, argument) == "EINVAL"


def test_provision_looks_at_an_unsigned_int(bench: Any) -> None:
    with bench.open() as file:
        fd = bench.task.install(bench.driver.open_provision())
        argument = EnclaveProvision(fd=1 << 40 | fd)
        assert bench.ioctl(file, SGX_IOC_ENCLAVE_PROVISION, argument) == 0
