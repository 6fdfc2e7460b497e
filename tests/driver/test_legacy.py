# SPDX-License-Identifier: Apache-2.0
"""v16, isgx and DCAP 1.5: return values in the order of their checks, and when an enclave ends."""

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from softsgx.arch.attributes import (
    ATTRIBUTE_DEBUG,
    ATTRIBUTE_EINITTOKENKEY,
    ATTRIBUTE_KSS,
    ATTRIBUTE_MODE64BIT,
    ATTRIBUTE_PROVISIONKEY,
    XFRM_BNDREGS,
    XFRM_LEGACY,
    XFRM_OPMASK,
)
from softsgx.arch.codes import LeafCode
from softsgx.arch.ioctl import (
    SGX_IOC_ENCLAVE_ADD_PAGES,
    SGX_IOC_ENCLAVE_CREATE,
    SGX_IOC_ENCLAVE_INIT,
    SGX_IOC_ENCLAVE_PROVISION,
    EnclaveCreate,
)
from softsgx.arch.legacy_ioctl import (
    SGX_IOC_ENCLAVE_ADD_PAGE,
    SGX_IOC_ENCLAVE_EMODPR,
    SGX_IOC_ENCLAVE_INIT_AT,
    SGX_IOC_ENCLAVE_INIT_BY_TOKEN,
    SGX_IOC_ENCLAVE_MKTCS,
    SGX_IOC_ENCLAVE_NOTIFY_ACCEPT,
    SGX_IOC_ENCLAVE_PAGE_REMOVE,
    SGX_IOC_ENCLAVE_SET_ATTRIBUTE_AT,
    SGX_IOC_ENCLAVE_TRIM,
    EnclaveAddPage,
    EnclaveInitAt,
    EnclaveInitByToken,
    EnclaveModification,
    EnclaveSetAttributeAt,
)
from softsgx.arch.secinfo import (
    PAGE_SIZE,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_RWX,
    SECINFO_TCS,
    SECINFO_W,
    SECINFO_X,
)
from softsgx.arch.structures import EINITTOKEN_MACED, Einittoken, Secinfo, Tcs
from softsgx.cpu.keys import cmac, einittoken_key
from softsgx.cpu.model import Model
from softsgx.driver.launch import signer_hash
from softsgx.driver.legacy_ioctl import INTEL_LEPUBKEYHASH
from softsgx.driver.nodes import DCAP_1_5, ISGX, LEGACY, MAINLINE, V16
from softsgx.driver.platform import Platform
from softsgx.driver.state import State
from softsgx.errors import DriverError, Fault, SoftsgxError
from softsgx.image.measurement import Measurement

R, W, X = 1, 2, 4
TCS, CODE, DATA, HOLE = 0, 0x1000, 0x3000, 0x6000
XCR0 = 0xE7
UNMAPPED = 0xDEAD_0000
MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE = 1, 2, 3


@pytest.fixture(params=LEGACY)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["queued", "direct"])
def queue(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def platform(driver: str, queue: bool) -> Iterator[Platform]:
    model = Model(256 * PAGE_SIZE, XCR0)
    with Platform(model=model, state=State.temporary(), driver=driver, queue=queue) as platform:
        yield platform


only = {name: pytest.mark.parametrize("driver", [name]) for name in LEGACY}
not_isgx = pytest.mark.parametrize("driver", [V16, DCAP_1_5])


@pytest.fixture
def mapped(bench: Any) -> Any:
    return bench.platform.map_enclave(bench.SIZE, bench.BASE)


@pytest.fixture
def built(bench: Any) -> Any:
    return bench.build_mapped()


def refused(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(DriverError) as caught:
        call(*args, **named)
    assert caught.value.reason
    return errno.errorcode[caught.value.errno]


def bad_argument(enclave: Any, request: int) -> str:
    return refused(enclave.file.ioctl, request, UNMAPPED, enclave.task)


# -- any command --------------------------------------------------------------------------------

REQUESTS = {
    V16: {SGX_IOC_ENCLAVE_CREATE, SGX_IOC_ENCLAVE_ADD_PAGE, SGX_IOC_ENCLAVE_INIT_AT},
    DCAP_1_5: {
        *(SGX_IOC_ENCLAVE_CREATE, SGX_IOC_ENCLAVE_ADD_PAGE, SGX_IOC_ENCLAVE_INIT_AT),
        SGX_IOC_ENCLAVE_SET_ATTRIBUTE_AT,
    },
    ISGX: {
        *(SGX_IOC_ENCLAVE_CREATE, SGX_IOC_ENCLAVE_ADD_PAGE, SGX_IOC_ENCLAVE_INIT_BY_TOKEN),
        *(SGX_IOC_ENCLAVE_EMODPR, SGX_IOC_ENCLAVE_MKTCS, SGX_IOC_ENCLAVE_TRIM),
        *(SGX_IOC_ENCLAVE_NOTIFY_ACCEPT, SGX_IOC_ENCLAVE_PAGE_REMOVE),
    },
}
MAINLINES = {SGX_IOC_ENCLAVE_ADD_PAGES, SGX_IOC_ENCLAVE_INIT, SGX_IOC_ENCLAVE_PROVISION}
UNKNOWN = {0, 0x5401, 0x4008_A408, 0xC030_A400}


def test_a_known_command_reads_its_argument_first_and_an_unknown_one_is_enotty(
    mapped: Any, driver: str
) -> None:
    every = set().union(*REQUESTS.values()) | MAINLINES | UNKNOWN
    for request in every:
        wanted = "EFAULT" if request in REQUESTS[driver] else "ENOTTY"
        assert bad_argument(mapped, request) == wanted, hex(request)
        # Only the lower half of the register counts.
        assert bad_argument(mapped, 7 << 32 | request) == wanted


def test_a_driver_says_which_way_its_enclaves_are_opened(platform: Platform) -> None:
    with pytest.raises(SoftsgxError, match="map_enclave"):
        platform.open_enclave()
    with (
        Platform(driver=MAINLINE, state=State.temporary()) as other,
        pytest.raises(SoftsgxError, match="open_enclave"),
    ):
        other.map_enclave(0x10000)


# -- mmap ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "flags"),
    [
        (0, MAP_SHARED),
        (4096, MAP_SHARED),
        (0x3000, MAP_SHARED),
        (0x3001, MAP_PRIVATE),
        (0x4000, MAP_PRIVATE),
        (0x4000, MAP_SHARED_VALIDATE),
        (1 << 48, MAP_SHARED),
    ],
)
def test_a_length_that_no_enclave_has_is_einval(mapped: Any, length: int, flags: int) -> None:
    assert refused(mapped.file.get_unmapped_area, length, flags) == "EINVAL"


def test_a_length_is_rounded_to_pages_first(mapped: Any) -> None:
    assert mapped.file.get_unmapped_area(0x1001, MAP_SHARED) == 0x2000
    assert mapped.file.get_unmapped_area(0x3FFF, MAP_SHARED) == 0x4000


def test_a_mapping_is_aligned_to_its_length_even_where_it_is_fixed(mapped: Any) -> None:
    assert mapped.file.align(0x10_0000, 0x10_0000) == 0x10_0000
    assert mapped.file.align(0x10_1000, 0x10_0000) == 0x20_0000
    assert refused(mapped.file.align, (1 << 47) - 0x2000, 0x2000) == "ENOMEM"
    task, file = mapped.task, mapped.file
    assert all(task.mmap(file, length) % length == 0 for length in (1 << 20, 1 << 14, 1 << 20))
    assert task.mmap(file, 0x10_0000, 0x5000_0000_1000) == 0x5000_0010_0000


# -- CREATE -------------------------------------------------------------------------------------


def test_a_secs_that_cannot_be_read_gives_what_copy_from_user_has_left(mapped: Any) -> None:
    memory = mapped.task.memory
    memory.map(0x50_0000, 4096)
    for src, left in (
        (UNMAPPED, 4096),
        (0, 4096),
        (0x50_0000 + 4000, 4000),
        ((1 << 47) - 4096, 4096),
        (1 << 63, 4096),
    ):
        assert mapped.ioctl(SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src)) == left


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0x3000},
        {"size": 0x1000, "baseaddr": 0x1000},
        {"baseaddr": 0x7F00_0000_1000},
        {"attributes": ATTRIBUTE_MODE64BIT | 1},
        {"attributes": ATTRIBUTE_MODE64BIT | 8},
        {"attributes": ATTRIBUTE_MODE64BIT | 1 << 8},
        {"attributes": ATTRIBUTE_DEBUG},
        {"miscselect": 2},
        {"xfrm": 1},
        {"xfrm": XFRM_LEGACY | 1 << 20},
        {"xfrm": XFRM_LEGACY | XFRM_BNDREGS},
        {"ssaframesize": 0},
        {"size": 1 << 48, "baseaddr": 0},
    ],
    ids=str,
)
def test_a_defect_of_the_secs_is_einval(bench: Any, mapped: Any, changes: dict[str, int]) -> None:
    assert refused(mapped.create, bench.secs(**changes)) == "EINVAL"
    assert bench.free == bench.driver.epc.total


@pytest.mark.parametrize("offset", [24, 47, 96, 127, 160, 191, 262, 4095])
def test_reserved_bytes_are_einval(bench: Any, mapped: Any, offset: int) -> None:
    secs = bytearray(bench.secs())
    secs[offset] = 1
    assert refused(mapped.create, bytes(secs)) == "EINVAL"


def test_kss_is_unknown_to_v16(bench: Any, mapped: Any, driver: str) -> None:
    secs = bench.secs(attributes=bench.ATTRIBUTES | ATTRIBUTE_KSS, configid=b"\1" * 64, configsvn=1)
    if driver == V16:
        assert refused(mapped.create, secs) == "EINVAL"
        assert refused(mapped.create, bench.secs(configsvn=1)) == "EINVAL"
    else:
        assert mapped.create(secs) == 0


def test_the_frame_size_is_computed_from_the_last_component_s_end() -> None:
    # Each component ends where 0DH's EAX + EBX say, and 182 bytes of GPRSGX are added to that.
    from softsgx.driver.validate_secs import ISGX_RULES, ssa_pages  # noqa: PLC0415

    model = Model(1 << 20, 7, {2: (256, 576), 9: (8, 4096 - 182 - 8)})
    assert ssa_pages(model, 3, 0, ISGX_RULES.gprs_size) == 1
    assert ssa_pages(model, 3 | 1 << 9, 0, ISGX_RULES.gprs_size) == 1
    assert ssa_pages(model, 3 | 1 << 9, 1, ISGX_RULES.gprs_size) == 2


def test_what_only_ecreate_refuses_is_efault(bench: Any, mapped: Any) -> None:
    # One of the three components of AVX-512; and a SIZE of the limit itself.
    assert refused(mapped.create, bench.secs(xfrm=XFRM_LEGACY | XFRM_OPMASK)) == "EFAULT"
    assert refused(mapped.create, bench.secs(size=1 << 47, baseaddr=0)) == "EFAULT"
    assert bench.free == bench.driver.epc.total


def test_create_wants_the_whole_mapping_and_nothing_else(bench: Any, mapped: Any) -> None:
    half = bench.SIZE // 2
    for base, size in (
        (bench.BASE, half),
        (bench.BASE + half, half),
        (bench.BASE, 2 * bench.SIZE),
        (bench.BASE + bench.SIZE, bench.SIZE),
    ):
        assert refused(mapped.create, bench.secs(baseaddr=base, size=size)) == "EINVAL"
        assert bench.free == bench.driver.epc.total
    assert mapped.create(bench.secs()) == 0
    assert refused(mapped.create, bench.secs()) == "EINVAL"


def test_the_epc_is_wanted_before_the_mapping_is_looked_at(bench: Any, mapped: Any) -> None:
    pages = bench.driver.epc.allocate_run(bench.driver.epc.total)
    assert refused(mapped.create, bench.secs(baseaddr=0x10_0000_0000)) == "ENOMEM"
    bench.driver.epc.free(*pages)


def test_what_a_partial_munmap_has_left_may_be_an_enclave(
    bench: Any, mapped: Any, driver: str
) -> None:
    # Before CREATE a mapping is only a mapping. Its second half begins at a page of the file, which
    # isgx does not look at.
    half = bench.SIZE // 2
    mapped.munmap(0, half)
    secs = bench.secs(baseaddr=bench.BASE + half, size=half)
    if driver == ISGX:
        assert mapped.create(secs) == 0
    else:
        assert refused(mapped.create, secs) == "EINVAL"


def test_the_first_half_of_a_mapping_may_be_an_enclave(bench: Any, mapped: Any) -> None:
    half = bench.SIZE // 2
    mapped.munmap(half, half)
    assert mapped.create(bench.secs(size=half)) == 0


# -- ADD_PAGE -----------------------------------------------------------------------------------


def add(enclave: Any, offset: int, **changes: Any) -> int:
    """ADD_PAGE with some things wrong; the rest is a good argument for a readable page."""
    memory = enclave.task.memory
    fields = {
        "addr": enclave.base + offset,
        "src": changes["src"]
        if "src" in changes
        else memory.place(changes.pop("data", bytes(4096))),
        "secinfo": 0,
        "mrmask": 0xFFFF,
    }
    if "secinfo" not in changes:
        flags = changes.pop("flags", SECINFO_REG | SECINFO_R)
        changes["secinfo"] = memory.place(changes.pop("raw", Secinfo(flags=flags).encode()))
    return int(enclave.ioctl(SGX_IOC_ENCLAVE_ADD_PAGE, EnclaveAddPage(**fields | changes)))


def test_add_page_finds_the_enclave_by_address(bench: Any, mapped: Any) -> None:
    assert refused(add, mapped, HOLE + 8) == "EINVAL"
    assert refused(add, mapped, bench.SIZE) == "EINVAL"
    assert refused(add, mapped, HOLE) == "ENOENT"
    mapped.create(bench.secs())
    assert add(mapped, HOLE) == 0
    assert refused(add, mapped, HOLE) == "EEXIST"


def test_add_page_reads_secinfo_then_the_page(built: Any) -> None:
    assert refused(add, built, HOLE, secinfo=UNMAPPED, src=UNMAPPED) == "EFAULT"
    assert add(built, HOLE, src=UNMAPPED) == 4096
    built.task.memory.map(0x50_0000, 4096)
    assert add(built, HOLE, src=0x50_0001) == 1
    # What is said of the page comes after it was read.
    assert add(built, HOLE, src=UNMAPPED, flags=SECINFO_W) == 4096


@pytest.mark.parametrize(
    "flags",
    [
        SECINFO_REG | SECINFO_W,
        SECINFO_REG | SECINFO_W | SECINFO_X,
        SECINFO_R,
        3 << 8 | SECINFO_R,
        SECINFO_REG | SECINFO_R | 8,
        SECINFO_REG | SECINFO_R | 1 << 16,
    ],
)
def test_a_bad_secinfo_is_einval(built: Any, flags: int) -> None:
    assert refused(add, built, HOLE, flags=flags) == "EINVAL"


def test_reserved_bytes_of_secinfo_are_einval(built: Any) -> None:
    raw = bytearray(Secinfo(flags=SECINFO_REG | SECINFO_R).encode())
    raw[63] = 1
    assert refused(add, built, HOLE, raw=bytes(raw)) == "EINVAL"


GOOD_TCS = Tcs.blank().replace(ossa=0x3000, nssa=1, oentry=0x1000, fslimit=0xFFF, gslimit=0xFFF)


@pytest.mark.parametrize(
    "changes",
    [
        {"flags": 1},
        {"flags": 2},
        {"flags": 1 << 63},
        {"ossa": 0x3001},
        {"ossa": 0x40_0000},
        {"ofsbasgx": 8},
        {"ofsbasgx": 1 << 40},
        {"ogsbasgx": 0x40_0000},
        {"fslimit": 0},
        {"gslimit": 0x1000},
    ],
    ids=str,
)
def test_a_bad_tcs_is_einval(built: Any, changes: dict[str, int]) -> None:
    tcs = GOOD_TCS.replace(**changes).encode()
    assert refused(add, built, HOLE, data=tcs, flags=SECINFO_TCS) == "EINVAL"
    reserved = GOOD_TCS.encode()[:-1] + b"\1"
    assert refused(add, built, HOLE, data=reserved, flags=SECINFO_TCS) == "EINVAL"
    # A regular page may hold anything.
    assert add(built, HOLE, data=tcs) == 0


def test_a_tcs_may_be_given_permissions_which_are_not_measured(bench: Any) -> None:
    pages = bench.pages()
    with bench.platform.map_enclave(bench.SIZE, bench.BASE) as enclave:
        enclave.create(bench.secs())
        for offset, flags, data, measured in pages:
            rwx = SECINFO_RWX if flags == SECINFO_TCS else 0
            assert enclave.add_pages(offset, data, flags | rwx, measure=measured) == 0
        assert enclave.init(bench.good_sigstruct()) == 0


def test_chunks_are_measured_as_the_mask_says(bench: Any) -> None:
    data = bytes(range(256)) * 16
    flags = SECINFO_REG | SECINFO_R
    masks = (0x0000, 0xFFFF, 0x8001, 0x0002, 0x5555)
    measurement = Measurement()
    measurement.ecreate(1, bench.SIZE)
    for index, mask in enumerate(masks):
        offset = index * PAGE_SIZE
        measurement.eadd(offset, flags)
        for chunk in range(16):
            if mask >> chunk & 1:
                at = chunk * 256
                measurement.eextend(offset + at, data[at : at + 256])
    with bench.platform.map_enclave(bench.SIZE, bench.BASE) as enclave:
        enclave.create(bench.secs())
        for index, mask in enumerate(masks):
            assert enclave.add_page(index * PAGE_SIZE, data, flags, mask) == 0
        assert enclave.init(bench.sigstruct(measurement.digest())) == 0


def test_adding_after_init_is_einval(bench: Any, built: Any) -> None:
    assert built.init(bench.good_sigstruct()) == 0
    assert refused(add, built, HOLE) == "EINVAL"


# -- INIT ---------------------------------------------------------------------------------------


def test_init_gives_the_codes_of_einit(bench: Any, built: Any) -> None:
    assert built.init(bytes(1808)) == LeafCode.INVALID_SIG_STRUCT
    assert built.init(bench.sigstruct(bytes(32))) == LeafCode.INVALID_MEASUREMENT
    attributes = bench.good_sigstruct(attributes=ATTRIBUTE_MODE64BIT | ATTRIBUTE_KSS)
    assert built.init(attributes) == LeafCode.INVALID_ATTRIBUTE
    signed = bytearray(bench.good_sigstruct())
    signed[520] ^= 1
    assert built.init(bytes(signed)) == LeafCode.INVALID_SIGNATURE
    assert built.init(bench.good_sigstruct()) == 0
    # Whatever comes now.
    assert built.init(bytes(1808)) == 0


def init_at(enclave: Any, addr: int, sigstruct: int, token: int) -> int:
    if enclave.file.kind == ISGX:
        argument = EnclaveInitByToken(addr=addr, sigstruct=sigstruct, einittoken=token)
        return int(enclave.ioctl(SGX_IOC_ENCLAVE_INIT_BY_TOKEN, argument))
    argument = EnclaveInitAt(addr=addr, sigstruct=sigstruct)
    return int(enclave.ioctl(SGX_IOC_ENCLAVE_INIT_AT, argument))


def test_init_reads_before_it_looks_for_the_enclave(bench: Any, mapped: Any) -> None:
    place = mapped.task.memory.place
    css, token = place(bench.sigstruct(bytes(32))), place(bytes(304))
    assert init_at(mapped, 1, UNMAPPED, token) == 1808
    if mapped.file.kind == ISGX:
        assert init_at(mapped, 1, css, UNMAPPED) == 304
    assert refused(init_at, mapped, mapped.base + 1, css, token) == "EINVAL"
    assert refused(init_at, mapped, UNMAPPED, css, token) == "EINVAL"
    assert refused(init_at, mapped, mapped.base, css, token) == "ENOENT"
    mapped.create(bench.secs())
    # Any page of it names the enclave.
    assert init_at(mapped, mapped.base + HOLE, css, token) == LeafCode.INVALID_MEASUREMENT


@only[V16]
def test_v16_gives_an_einval_without_its_sign(bench: Any, built: Any) -> None:
    attributes = bench.ATTRIBUTES | ATTRIBUTE_EINITTOKENKEY
    assert built.init(bench.good_sigstruct(attributes=attributes)) == 22


@only[V16]
def test_v16_grants_the_provisioning_key_to_everybody(bench: Any) -> None:
    attributes = bench.ATTRIBUTES | ATTRIBUTE_PROVISIONKEY
    with bench.build_mapped(attributes=attributes) as enclave:
        assert enclave.init(bench.good_sigstruct(attributes=attributes)) == 0


@only[DCAP_1_5]
def test_dcap_1_5_grants_the_provisioning_key_for_its_node(bench: Any) -> None:
    attributes = bench.ATTRIBUTES | ATTRIBUTE_PROVISIONKEY
    css = bench.good_sigstruct(attributes=attributes)
    with bench.build_mapped(attributes=attributes) as enclave:
        assert refused(enclave.init, css) == "EACCES"
        wrong = EnclaveSetAttributeAt(addr=enclave.base, attribute_fd=99)
        assert refused(enclave.ioctl, SGX_IOC_ENCLAVE_SET_ATTRIBUTE_AT, wrong) == "EINVAL"
        assert enclave.provision() == 0
        assert enclave.init(css) == 0


@only[DCAP_1_5]
def test_dcap_1_5_refuses_the_launch_key(bench: Any) -> None:
    attributes = bench.ATTRIBUTES | ATTRIBUTE_EINITTOKENKEY
    with bench.build_mapped(attributes=attributes) as enclave:
        assert enclave.provision() == 0
        assert refused(enclave.init, bench.good_sigstruct(attributes=attributes)) == "EACCES"


# -- INIT by token ------------------------------------------------------------------------------


def token_for(bench: Any, css: bytes, **changes: Any) -> bytes:
    """Return the token that a launch enclave of Intel's would give on this processor."""
    processor = bench.platform.processor
    modulus, mrenclave = css[128:512], css[960:992]
    fields = {
        "valid": 1,
        "attributes": bench.ATTRIBUTES,
        "xfrm": XFRM_LEGACY,
        "mrenclave": mrenclave,
        "mrsigner": signer_hash(modulus),
        "cpusvnle": processor.identity.cpusvn,
        "isvsvnle": 2,
        "isvprodidle": 1,
        "maskedattributesle": ATTRIBUTE_MODE64BIT,
        "maskedxfrmle": XFRM_LEGACY,
        "keyid": b"k" * 32,
    }
    token = Einittoken.blank().replace(**fields | changes)
    key = einittoken_key(
        processor,
        isvprodid=token.isvprodidle,
        isvsvn=token.isvsvnle,
        attributes=token.maskedattributesle,
        xfrm=token.maskedxfrmle,
        miscselect=token.maskedmiscselectle,
        mrsigner=INTEL_LEPUBKEYHASH,
        cpusvn=token.cpusvnle,
        keyid=token.keyid,
    )
    mac = cmac(key, token.encode()[:EINITTOKEN_MACED])
    return token.replace(mac=mac).encode()


@only[ISGX]
def test_a_token_of_intel_s_launch_enclave_starts_an_enclave(bench: Any, built: Any) -> None:
    css = bench.good_sigstruct()
    assert built.init(css, token_for(bench, css)) == 0
    assert bench.platform.processor.ia32_sgxlepubkeyhash == INTEL_LEPUBKEYHASH


@only[ISGX]
def test_a_token_is_looked_at_where_there_is_one(bench: Any, built: Any) -> None:
    css = bench.good_sigstruct()
    wrong = bytearray(token_for(bench, css))
    wrong[-1] ^= 1
    assert built.init(css, bytes(wrong)) == LeafCode.INVALID_EINITTOKEN
    other = token_for(bench, css, mrsigner=bytes(32))
    assert built.init(css, other) == LeafCode.INVALID_MEASUREMENT
    newer = token_for(bench, css, cpusvnle=b"\xff" * 16)
    assert built.init(css, newer) == LeafCode.INVALID_CPUSVN
    wider = token_for(bench, css, attributes=bench.ATTRIBUTES | ATTRIBUTE_PROVISIONKEY)
    assert built.init(css, wider) == LeafCode.INVALID_ATTRIBUTE


@only[ISGX]
def test_without_a_token_everybody_but_a_launch_enclave_starts(bench: Any, built: Any) -> None:
    assert built.init(bench.good_sigstruct()) == 0
    attributes = bench.ATTRIBUTES | ATTRIBUTE_EINITTOKENKEY
    built.close()
    with bench.build_mapped(attributes=attributes) as enclave:
        css = bench.good_sigstruct(attributes=attributes)
        assert enclave.init(css) == LeafCode.INVALID_ATTRIBUTE


# -- SGX2 ---------------------------------------------------------------------------------------


@only[ISGX]
def test_sgx2_is_enosys_but_for_permissions_that_cannot_be(built: Any) -> None:
    arg = built.task.memory.place(bytes(24))
    for request in (
        *(SGX_IOC_ENCLAVE_EMODPR, SGX_IOC_ENCLAVE_MKTCS, SGX_IOC_ENCLAVE_TRIM),
        *(SGX_IOC_ENCLAVE_NOTIFY_ACCEPT, SGX_IOC_ENCLAVE_PAGE_REMOVE),
    ):
        assert refused(built.file.ioctl, request, arg, built.task) == "ENOSYS"
    for flags in (SECINFO_W, 8, 1 << 40):
        wrong = EnclaveModification(start_addr=built.base, nr_pages=1, flags=flags)
        assert refused(built.ioctl, SGX_IOC_ENCLAVE_EMODPR, wrong) == "EINVAL"


# -- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [(0, None), (0, 4096), (0x3F_F000, 4096), (DATA, 4096)])
@pytest.mark.parametrize("initialized", [False, True])
def test_munmap_of_any_part_ends_the_enclave_and_frees_its_epc(
    bench: Any, built: Any, part: tuple[int, int | None], initialized: bool
) -> None:
    if initialized:
        built.init(bench.good_sigstruct())
    mapping = built.mapping
    built.munmap(*part)
    assert bench.free == bench.driver.epc.total
    assert mapping.encl.dead
    assert mapping.released is (part[1] is None)
    assert "no page" in mapping.encl.load_page_in_vma(bench.BASE + CODE, R) or not initialized


def test_what_is_left_of_a_dead_enclave_answers_as_one(bench: Any, built: Any, driver: str) -> None:
    built.munmap(DATA, 4096)
    assert refused(add, built, HOLE) == ("EFAULT" if driver == V16 else "EINVAL")
    assert refused(built.init, bench.good_sigstruct()) == "EFAULT"
    # The mapping has its enclave for good.
    assert refused(built.create, bench.secs()) == "EINVAL"
    # Where nothing is mapped any more, nothing is found.
    assert refused(add, built, DATA) == "EINVAL"
    # The rest goes by and by, and the memory with it.
    elrange = built.mapping.elrange
    built.munmap(0, DATA)
    assert elrange.fd >= 0
    built.munmap()
    assert elrange.fd < 0


def test_a_mapping_over_a_part_is_a_munmap(bench: Any, built: Any) -> None:
    mapping = built.mapping
    at = bench.BASE + 0x10_0000
    assert built.task.mmap(built.file, 0x10_0000, at) == at
    assert mapping.encl.dead
    assert bench.free == bench.driver.epc.total
    # The new one is as good as any.
    assert built.create(bench.secs(baseaddr=at, size=0x10_0000)) == 0
    assert not built.task.legacy_vma(at)[2].encl.dead


def test_an_initialized_enclave_that_has_ended_still_gives_0_to_init(
    bench: Any, built: Any
) -> None:
    css = bench.good_sigstruct()
    assert built.init(css) == 0
    built.munmap(DATA, 4096)
    assert built.init(css) == 0


def test_one_file_has_many_enclaves(bench: Any) -> None:
    first = bench.build_mapped()
    task, file = first.task, first.file
    size = 0x10_0000
    bases = [task.mmap(file, size) for _ in range(3)]
    for base in bases:
        assert first.create(bench.secs(baseaddr=base, size=size)) == 0
    task.munmap(bases[1], 4096)
    assert [task.legacy_vma(base + 0x1000)[2].encl.dead for base in bases] == [False, True, False]
    assert first.init(bench.good_sigstruct()) == 0
    task.munmap(0, 1 << 47)
    assert bench.free == bench.driver.epc.total


def test_an_enclave_that_ends_between_the_copies_and_the_add(bench: Any, built: Any) -> None:
    # Another thread unmaps while this one waits for its page.
    memory = built.task.memory
    real, calls = memory.user_access, []

    def user_access() -> Any:
        calls.append(1)
        if len(calls) == 3:
            built.munmap()
        return real()

    memory.user_access = user_access
    assert refused(add, built, HOLE) in ("EFAULT", "EINVAL")
    assert len(calls) == 3
    assert bench.free == bench.driver.epc.total


direct = pytest.mark.parametrize("queue", [False])


@direct
def test_a_full_epc_is_told_by_add_page_and_ends_nothing(bench: Any, mapped: Any) -> None:
    mapped.create(bench.secs())
    held = bench.driver.epc.allocate_run(bench.free)
    assert refused(add, mapped, HOLE) == "ENOMEM"
    bench.driver.epc.free(*held)
    assert add(mapped, HOLE) == 0


@direct
def test_an_eadd_that_fails_is_told_by_add_page(
    bench: Any, mapped: Any, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped.create(bench.secs())

    def fails(*_: Any) -> int:
        raise Fault.gp("as no page that was judged before it does")

    monkeypatch.setattr("softsgx.driver.encl.eadd_pages", fails)
    assert refused(add, mapped, HOLE) == "EFAULT"
    # v16 ends the enclave, the others find out at INIT.
    assert mapped.mapping.encl.dead is (driver == V16)
    if driver == V16:
        assert refused(mapped.init, bench.good_sigstruct()) == "EFAULT"
    else:
        assert mapped.init(bench.good_sigstruct()) == LeafCode.INVALID_MEASUREMENT


def test_the_stats_count_an_enclave_once(bench: Any) -> None:
    driver = bench.driver
    built = bench.build_mapped()
    while driver.background():
        pass
    assert driver.stats.total().resident == driver.epc.total - bench.free
    assert driver.stats.total().added == 6
    built.close()
    built.close()
    total = driver.stats.total()
    assert (total.resident, total.added, total.kills) == (0, 6, 0)
    assert not driver.stats.live
