# SPDX-License-Identifier: Apache-2.0
"""An enclave's life beside its building: mapping, faults, isolation, keys and the end."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from softsgx.arch.attributes import KEYNAME_SEAL, KEYPOLICY_MRENCLAVE
from softsgx.arch.ioctl import SGX_IOC_ENCLAVE_ADD_PAGES, SGX_IOC_ENCLAVE_CREATE, EnclaveCreate
from softsgx.arch.leaves import Enclu
from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG, SECINFO_W, SECINFO_X
from softsgx.arch.structures import Keyrequest, Secs
from softsgx.cpu.keys import egetkey
from softsgx.cpu.model import Model
from softsgx.cpu.processor import LogicalProcessor
from softsgx.cpu.registers import Registers
from softsgx.cpu.transition import eenter
from softsgx.driver.platform import Platform
from softsgx.driver.state import State
from softsgx.driver.task import LocalTask, Task
from softsgx.errors import DriverError, SoftsgxError

PAGE = 4096
R, W, X = 1, 2, 4
SHARED, PRIVATE, FIXED, NOREPLACE = 0x01, 0x02, 0x10, 0x100000
TCS, CODE, DATA, UNMEASURED, HOLE = 0, 0x1000, 0x3000, 0x5000, 0x6000


def eacces(call: Any, *arguments: Any) -> str:
    with pytest.raises(DriverError) as caught:
        call(*arguments)
    assert caught.value.errno == errno.EACCES
    return caught.value.reason


@pytest.fixture
def built(bench: Any) -> Any:
    with bench.build() as enclave:
        yield enclave


# -- nodes ------------------------------------------------------------------------------------


def test_the_provision_node_cannot_be_mapped(bench: Any) -> None:
    with pytest.raises(DriverError) as caught:
        bench.driver.open_provision().check_mmap(0, PAGE, R, SHARED, bench.task)
    assert caught.value.errno == errno.ENODEV


# -- mapping ----------------------------------------------------------------------------------


def test_a_private_mapping_is_einval_in_every_state(bench: Any) -> None:
    with bench.open() as file:
        for flags in (PRIVATE, PRIVATE | FIXED, PRIVATE | NOREPLACE):
            with pytest.raises(DriverError) as caught:
                file.check_mmap(0x10000, PAGE, 0, flags, bench.task)
            assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("flags", [SHARED, SHARED | FIXED, 3 | FIXED])
def test_before_create_anything_may_be_mapped_anywhere(bench: Any, flags: int) -> None:
    with bench.open() as file:
        for prot in range(8):
            file.check_mmap(0x10000, 1 << 30, prot, flags, bench.task)


@pytest.mark.parametrize(
    ("offset", "most"), [(TCS, R | W), (CODE, R | X), (DATA, R | W), (UNMEASURED, R | W)]
)
def test_a_mapping_allows_no_more_than_the_page(
    bench: Any, built: Any, offset: int, most: int
) -> None:
    at = bench.BASE + offset
    for initialized in (False, True):
        if initialized:
            built.init(bench.good_sigstruct())
        for prot in range(8):
            calls = (
                (built.file.check_mmap, at, PAGE, prot, SHARED | FIXED, bench.task),
                (built.file.check_mprotect, at, at + PAGE, prot, bench.task),
            )
            for call in calls:
                if prot & ~most:
                    assert f"{at:#x}" in eacces(*call)
                else:
                    call[0](*call[1:])


def test_a_mapping_of_several_pages_allows_what_all_do(bench: Any, built: Any) -> None:
    mmap = built.file.check_mmap
    whole = (bench.BASE, bench.SIZE)
    mmap(*whole, R, SHARED | FIXED, bench.task)
    eacces(mmap, *whole, W, SHARED | FIXED, bench.task)
    eacces(mmap, *whole, X, SHARED | FIXED, bench.task)
    mmap(bench.BASE + DATA, bench.SIZE - DATA, R | W, SHARED | FIXED, bench.task)
    # A length within the next page reaches that page.
    mmap(bench.BASE + CODE, 2 * PAGE, X, SHARED | FIXED, bench.task)
    eacces(mmap, bench.BASE + CODE, 2 * PAGE + 1, X, SHARED | FIXED, bench.task)


def test_a_hole_may_be_mapped_with_any_protection(bench: Any, built: Any) -> None:
    built.init(bench.good_sigstruct())
    for prot in range(8):
        built.file.check_mmap(bench.BASE + HOLE, PAGE, prot, SHARED | FIXED, bench.task)


@pytest.mark.parametrize("start", [-PAGE, 0x40_0000, 0x40_0000 - PAGE, -0x10_0000_0000])
def test_after_init_a_mapping_lies_inside_the_enclave(bench: Any, built: Any, start: int) -> None:
    arguments = (bench.BASE + start, 2 * PAGE, 0, SHARED | NOREPLACE, bench.task)
    built.file.check_mmap(*arguments)
    built.init(bench.good_sigstruct())
    assert "outside" in eacces(built.file.check_mmap, *arguments)


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (0x10000, 0),
        (0x10000, (1 << 64) - 1),
        (0x10000, 1 << 47),
        (0x10001, PAGE),
        (0x7FFF_FFFF_F000, PAGE),
        (0xFFFF_FFFF_FFFF_F000, PAGE),
    ],
)
def test_a_range_that_is_no_range_is_left_to_the_kernel(
    bench: Any, built: Any, address: int, length: int
) -> None:
    built.init(bench.good_sigstruct())
    built.file.check_mmap(address, length, R, SHARED | FIXED, bench.task)


def test_the_whole_enclave_may_be_mapped_after_init(bench: Any, built: Any) -> None:
    built.init(bench.good_sigstruct())
    built.file.check_mmap(bench.BASE, bench.SIZE, R, SHARED | FIXED, bench.task)


def test_read_implies_exec_is_refused_even_without_protection(bench: Any, built: Any) -> None:
    bench.task.personality = True
    for flags in (SHARED, SHARED | FIXED):
        assert "READ_IMPLIES_EXEC" in eacces(
            built.file.check_mmap, bench.BASE, PAGE, 0, flags, bench.task
        )
    assert "READ_IMPLIES_EXEC" in eacces(
        built.file.check_mprotect, bench.BASE, bench.BASE + PAGE, 0, bench.task
    )


def test_what_a_mapping_allowed_too_much_is_told_by_ranges(bench: Any, built: Any) -> None:
    base = bench.BASE
    encl = built.file.encl
    assert encl.narrowed(base, base + bench.SIZE, R) == []
    assert encl.narrowed(base, base + bench.SIZE, R | W) == [(base + CODE, base + DATA, 0)]
    assert encl.narrowed(base + 0x2000, base + 0x4000, R | W | X) == [
        (base + 0x2000, base + 0x3000, 0),
        (base + 0x3000, base + 0x4000, 0),
    ]


def test_madvise_and_mremap_are_judged_by_the_file(built: Any) -> None:
    assert built.file.check_madvise(10) is True
    with pytest.raises(DriverError):
        built.file.check_madvise(4)
    built.file.check_mremap(2 * PAGE, PAGE, 0)
    with pytest.raises(DriverError):
        built.file.check_mremap(PAGE, 2 * PAGE, 1)


# -- faults -----------------------------------------------------------------------------------


def test_a_fault_loads_the_page_if_the_mapping_allows_no_more_than_it(
    bench: Any, built: Any
) -> None:
    encl = built.file.encl
    for initialized in (False, True):
        if initialized:
            built.init(bench.good_sigstruct())
        assert encl.load_page_in_vma(bench.BASE + CODE + 123, R | X) is None
        assert encl.load_page_in_vma(bench.BASE + CODE, 0) is None
        assert "allows" in encl.load_page_in_vma(bench.BASE + CODE, R | W | X)
        assert "no page" in encl.load_page_in_vma(bench.BASE + HOLE, R)
        assert "no page" in encl.load_page_in_vma(bench.BASE - 1, R)


def test_what_a_mapping_lets_touch_is_what_is_there_but_a_tcs(bench: Any, built: Any) -> None:
    def touchable(start: int, end: int, prot: int) -> list[tuple[int, int]]:
        parts = built.file.encl.touchable(bench.BASE + start, bench.BASE + end, prot)
        assert all(given == prot for _, _, given in parts)
        return [(low - bench.BASE, high - bench.BASE) for low, high, _ in parts]

    assert touchable(TCS, HOLE + PAGE, R) == [(CODE, DATA), (DATA, HOLE)]
    assert touchable(TCS, HOLE + PAGE, R | W) == [(DATA, HOLE)]
    assert touchable(CODE + PAGE, DATA + PAGE, R | X) == [(CODE + PAGE, DATA)]
    assert touchable(TCS, HOLE + PAGE, R | W | X) == []
    assert touchable(TCS, CODE, R | W) == []


def test_an_address_translates_to_the_page_that_the_epcm_knows(bench: Any, built: Any) -> None:
    encl, epc = built.file.encl, bench.driver.processor.epc
    for offset in (TCS, CODE, CODE + PAGE, DATA, UNMEASURED):
        page = encl.translate(bench.BASE + offset + 0xFFF)
        assert epc.valid(page)
        assert epc.addresses[page] == bench.BASE + offset
        assert epc.owners[page] == encl.secs_page
    assert encl.translate(bench.BASE + HOLE) is None
    assert encl.translate(bench.BASE - 1) is None


# -- two enclaves -----------------------------------------------------------------------------


def test_two_enclaves_at_one_address_share_nothing(bench: Any) -> None:
    flags = SECINFO_REG | SECINFO_R | SECINFO_W
    with bench.platform.open_enclave() as one, bench.platform.open_enclave() as other:
        one.create(bench.secs())
        other.create(bench.secs())
        one.add_pages(0, b"\x01" * PAGE, flags)
        other.add_pages(0, b"\x02" * PAGE, flags)
        other.add_pages(PAGE, b"\x03" * PAGE, SECINFO_REG | SECINFO_R | SECINFO_X)
        assert one.file.elrange.read(bench.BASE, 2 * PAGE) == b"\x01" * PAGE + bytes(PAGE)
        assert one.file.encl.translate(bench.BASE + PAGE) is None
        assert one.file.encl.translate(bench.BASE) != other.file.encl.translate(bench.BASE)
        one.close()
        assert other.file.elrange.read(bench.BASE, PAGE) == b"\x02" * PAGE
        expected = bench.mrenclave(
            [
                (0, flags, b"\x02" * PAGE, True),
                (PAGE, SECINFO_REG | SECINFO_R | SECINFO_X, b"\x03" * PAGE, True),
            ]
        )
        other.init(bench.sigstruct(expected))


def test_hostile_calls_on_one_file_leave_another_untouched(bench: Any, built: Any) -> None:
    with bench.open() as hostile:
        for request in (*range(0x4008_A400, 0x4008_A410), SGX_IOC_ENCLAVE_ADD_PAGES, 0):
            for arg in (0, 1, 0xDEAD_0000, (1 << 64) - 1):
                with pytest.raises(DriverError):
                    hostile.ioctl(request, arg, bench.task)
    built.init(bench.good_sigstruct())


# -- the end ----------------------------------------------------------------------------------


def test_the_end_gives_every_epc_page_back(bench: Any) -> None:
    for initialize in (False, True):
        with bench.build() as enclave:
            assert bench.free < 256
            if initialize:
                enclave.init(bench.good_sigstruct())
        assert bench.free == 256
        assert bench.driver.processor.enclaves == {}
        assert enclave.file.encl.translate(bench.BASE) is None


def test_the_end_comes_once(bench: Any) -> None:
    enclave = bench.build()
    assert enclave.file.release() == 0
    assert enclave.file.release() == 0
    assert bench.refused(enclave.file, SGX_IOC_ENCLAVE_CREATE, 0) == "EBADF"
    assert bench.free == 256


def test_a_release_while_an_ioctl_is_suspended_waits_for_its_end(bench: Any) -> None:
    file = bench.open()
    seen = []

    def gone() -> None:
        seen.append((file.release(), bench.free))

    bench.memory.on_access = gone
    src = bench.memory.place(bench.secs())
    assert bench.ioctl(file, SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src)) == 0
    assert seen == [(0, 256)]
    assert bench.free == 256
    assert bench.driver.processor.enclaves == {}
    assert file.elrange.fd == -1


def test_platform_close_ends_what_was_left_open(bench: Any) -> None:
    bench.build()
    bench.build()
    bench.platform.close()
    assert bench.free == 256


def entered(bench: Any, platform: Platform, enclave: Any) -> LogicalProcessor:
    lp = LogicalProcessor(enclave.file.encl.translate)
    registers = Registers()
    registers.rax, registers.rbx = Enclu.EENTER, bench.BASE + TCS
    registers.rcx = registers.rip = 0x40_0000
    eenter(platform.processor, lp, registers)
    assert registers.rip == bench.BASE + 0x1000
    return lp


def test_a_page_that_eremove_refuses_is_not_given_out_again(bench: Any, built: Any) -> None:
    built.init(bench.good_sigstruct())
    entered(bench, bench.platform, built)
    encl = built.file.encl
    pages = [encl.translate(bench.BASE + offset) for offset in (TCS, CODE, DATA)]
    # Six pages and the SECS; the VA page belongs to nobody.
    assert built.file.release() == 7
    bench.lost = 7
    assert bench.free == 256 - 7
    processor = bench.driver.processor
    assert all(processor.epc.valid(page) for page in pages)


# -- keys and state ---------------------------------------------------------------------------


def sealing_key(bench: Any, state: State) -> bytes:
    """Return what EGETKEY gives the small enclave on a platform of this state."""
    with Platform(epc=64 * PAGE, state=state) as platform:
        bench.platform = platform
        enclave = bench.build()
        enclave.init(bench.good_sigstruct())
        lp = entered(bench, platform, enclave)
        cpusvn = platform.processor.identity.cpusvn
        request = Keyrequest.blank().replace(
            keyname=KEYNAME_SEAL, keypolicy=KEYPOLICY_MRENCLAVE, cpusvn=cpusvn
        )
        elrange = enclave.file.elrange
        elrange.write(bench.BASE + UNMEASURED, request.encode())
        key_at = bench.BASE + UNMEASURED + 0x800
        before = elrange.read(key_at, 16)
        assert not egetkey(platform.processor, lp, bench.BASE + UNMEASURED, key_at)
        key = elrange.read(key_at, 16)
        assert key != before
        platform.processor.thread_gone(lp)
        return key


def test_the_sealing_key_outlives_a_run_and_differs_by_state(bench: Any, tmp_path: Path) -> None:
    first = sealing_key(bench, State(tmp_path / "state"))
    assert sealing_key(bench, State(tmp_path / "state")) == first
    assert sealing_key(bench, State(tmp_path / "other")) != first


# -- the Python API ---------------------------------------------------------------------------


@pytest.mark.parametrize("epc", [0, -4096, 100, 4097, 1 << 60])
def test_an_impossible_epc_is_the_user_s_mistake(epc: int) -> None:
    with pytest.raises(SoftsgxError, match="a multiple of 4096"):
        Platform(epc=epc)


def test_a_model_brings_its_epc() -> None:
    with Platform(model=Model(epc_bytes=48 * PAGE), state=State.temporary()) as platform:
        assert platform.driver.epc.total == platform.processor.epc.pages == 48


def test_a_local_task_s_descriptors_are_a_table(bench: Any) -> None:
    task = LocalTask()
    with bench.open() as file:
        provision = bench.driver.open_provision()
        assert (task.install(file), task.install(provision), task.install(file)) == (0, 1, 2)
        assert task.file(1) is provision
        task.close(1)
        assert task.file(1) is None
        assert task.install(provision) == 1


def test_a_task_that_does_not_know_its_vmas_is_asked_for_each_page(bench: Any) -> None:
    asked = []

    class Asked(LocalTask):
        vma_end = Task.vma_end

        def may_exec(self, address: int) -> bool | None:
            asked.append(address)
            return True

    task = Asked()
    enclave = bench.platform.open_enclave()
    enclave.task = task
    enclave.create(bench.secs())
    enclave.add_pages(0, bytes(3 * PAGE), SECINFO_REG | SECINFO_R)
    assert [address - asked[0] for address in asked] == [0, PAGE, 2 * PAGE]


def test_an_enclave_takes_ten_lines(key: Any) -> None:
    from softsgx.image.measurement import Measurement  # noqa: PLC0415
    from softsgx.image.sigstruct import sign, unsigned  # noqa: PLC0415

    code, flags = os.urandom(PAGE), SECINFO_REG | SECINFO_R | SECINFO_X
    measurement = Measurement()
    measurement.ecreate(1, 0x10000)
    measurement.add_pages(0, flags, code, measured=True)
    mask = (1 << 64) - 1
    css = unsigned(
        enclavehash=measurement.digest(),
        date=0x20260101,
        attributes=4,
        attributemask=mask,
        xfrm=3,
        xfrmmask=mask,
    )
    with Platform(epc=64 << 12, state=State.temporary()) as platform:
        enclave = platform.open_enclave()
        secs = Secs.blank().replace(size=0x10000, ssaframesize=1, attributes=4, xfrm=3)
        enclave.create(secs.encode())
        enclave.add_pages(0, code, flags)
        enclave.init(sign(css, key))
        assert enclave.file.encl.initialized
