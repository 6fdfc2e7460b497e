# SPDX-License-Identifier: Apache-2.0
"""SGX_IOC_ENCLAVE_ADD_PAGES: its errnos in the kernel's order, the count, and what is left after a failure."""

import errno
import os
from typing import Any

import pytest

from softsgx.arch.ioctl import SGX_IOC_ENCLAVE_ADD_PAGES
from softsgx.arch.secinfo import (
    SECINFO_MODIFIED,
    SECINFO_PENDING,
    SECINFO_PR,
    SECINFO_R,
    SECINFO_REG,
    SECINFO_TCS,
    SECINFO_TRIM,
    SECINFO_W,
    SECINFO_X,
)
from softsgx.arch.structures import Secinfo, Secs
from softsgx.driver.backing import NoBacking
from softsgx.driver.platform import Platform
from softsgx.driver.state import State
from softsgx.errors import DriverError

ADD = SGX_IOC_ENCLAVE_ADD_PAGES
PAGE = 4096
RW = SECINFO_REG | SECINFO_R | SECINFO_W


@pytest.fixture
def file(bench: Any) -> Any:
    with bench.platform.open_enclave() as enclave:
        enclave.create(bench.secs())
        yield enclave.file


def add(bench: Any, file: Any, **changes: Any) -> int:
    """Add pages and return the count that the argument tells."""
    arg = bench.memory.place(bench.add_argument(**changes).encode())
    assert bench.ioctl(file, ADD, arg) == 0
    return bench.count(arg)


def refused(bench: Any, file: Any, **changes: Any) -> tuple[str, int]:
    """Return errno and count of an ADD_PAGES that fails."""
    arg = bench.memory.place(bench.add_argument(**changes).encode())
    return bench.refused(file, ADD, arg), bench.count(arg)


UNTOUCHED = 0xDEAD


# -- the state and the argument ---------------------------------------------------------------


def test_before_create_and_after_init_it_is_einval(bench: Any) -> None:
    with bench.open() as file:
        assert bench.refused(file, ADD, 0) == "EINVAL"
    with bench.build() as enclave:
        enclave.init(bench.good_sigstruct())
        assert bench.refused(enclave.file, ADD, 0) == "EINVAL"
        assert refused(bench, enclave.file, offset=0x8000) == ("EINVAL", UNTOUCHED)


@pytest.mark.parametrize("address", [0, 0xDEAD_0000, 0x7FFF_FFFF_F000, 0xFFFF_FFFF_FFFF_FFF8])
def test_a_bad_argument_pointer_is_efault(bench: Any, file: Any, address: int) -> None:
    assert bench.refused(file, ADD, address) == "EFAULT"


@pytest.mark.parametrize(
    "changes",
    [
        {"src": 0xDEAD_0001},
        {"offset": 1},
        {"offset": 0x800},
        {"length": 0},
        {"length": 100},
        {"length": PAGE + 1},
        {"offset": 0x40_0000},
        {"offset": 0x3F_F000, "length": 2 * PAGE},
        {"length": 0x40_1000},
        {"offset": 0xFFFF_FFFF_FFFF_F000},
        {"offset": 0xFFFF_FFFF_FFFF_F000, "length": 2 * PAGE},
        {"offset": PAGE, "length": 0xFFFF_FFFF_FFFF_F000},
        {"length": 0xFFFF_FFFF_FFFF_F000},
    ],
)
def test_a_bad_range_is_einval_before_the_secinfo_is_read(
    bench: Any, file: Any, changes: dict[str, int]
) -> None:
    assert refused(bench, file, secinfo=0xDEAD_0000, **changes) == ("EINVAL", UNTOUCHED)


def test_a_bad_secinfo_pointer_is_efault(bench: Any, file: Any) -> None:
    assert refused(bench, file, secinfo=0xDEAD_0000) == ("EFAULT", UNTOUCHED)
    half_mapped = bench.memory.place(bytes(PAGE)) + PAGE - 32
    assert refused(bench, file, secinfo=half_mapped) == ("EFAULT", UNTOUCHED)


@pytest.mark.parametrize(
    "flags",
    [
        0,
        SECINFO_R,
        3 << 8,
        SECINFO_TRIM | SECINFO_R,
        5 << 8 | SECINFO_R,
        SECINFO_REG | SECINFO_W,
        SECINFO_REG | SECINFO_W | SECINFO_X,
        SECINFO_TCS | SECINFO_R,
        SECINFO_TCS | SECINFO_R | SECINFO_W,
        RW | SECINFO_PENDING,
        RW | SECINFO_MODIFIED,
        RW | SECINFO_PR,
        RW | 1 << 6,
        RW | 1 << 16,
        RW | 1 << 63,
    ],
)
def test_a_bad_secinfo_is_einval_before_the_source_is_read(
    bench: Any, file: Any, flags: int
) -> None:
    assert refused(bench, file, secinfo_flags=flags, src=0xDEAD_0000) == ("EINVAL", UNTOUCHED)


@pytest.mark.parametrize("at", [8, 63])
def test_reserved_bytes_of_the_secinfo_are_einval(bench: Any, file: Any, at: int) -> None:
    secinfo = bytearray(Secinfo(flags=RW).encode())
    secinfo[at] = 1
    address = bench.memory.place(bytes(secinfo))
    assert refused(bench, file, secinfo=address) == ("EINVAL", UNTOUCHED)


def test_other_flags_than_measure_are_ignored(bench: Any, file: Any) -> None:
    assert add(bench, file, flags=0xFFFF_FFFF_FFFF_FFFE) == PAGE


def test_a_secinfo_may_lie_anywhere(bench: Any, file: Any) -> None:
    address = bench.memory.place(bytes(3) + Secinfo(flags=RW).encode()) + 3
    assert add(bench, file, secinfo=address) == PAGE


# -- the source -------------------------------------------------------------------------------


@pytest.mark.parametrize("src", [0, 0xDEAD_0000, 0x7FFF_FFFF_F000])
def test_a_source_that_is_not_there_is_efault_with_count_0(bench: Any, file: Any, src: int) -> None:
    free = bench.free
    assert refused(bench, file, src=src, length=4 * PAGE) == ("EFAULT", 0)
    assert bench.free == free
    assert add(bench, file) == PAGE


@pytest.mark.parametrize("src", [0x8000_0000_0000, 0xFFFF_FFFF_FFFF_F000])
def test_a_source_above_all_memory_is_efault(bench: Any, file: Any, src: int) -> None:
    assert refused(bench, file, src=src, length=2 * PAGE) == ("EFAULT", 0)


def test_a_source_that_wraps_around_is_efault(bench: Any) -> None:
    with bench.platform.open_enclave() as enclave:
        enclave.create(bench.secs())
        argument = bench.add_argument(src=(1 << 64) - PAGE, length=4 * PAGE)
        arg = enclave.task.memory.place(bytes(48))
        secinfo = enclave.task.memory.place(Secinfo(flags=SECINFO_REG | SECINFO_R).encode())
        enclave.task.memory.write(arg, argument.replace(secinfo=secinfo).encode())
        with pytest.raises(DriverError) as caught:
            enclave.file.ioctl(SGX_IOC_ENCLAVE_ADD_PAGES, arg, enclave.task)
        assert caught.value.errno == errno.EFAULT


def test_a_source_that_ends_in_a_hole_is_a_short_count_and_efault(bench: Any, file: Any) -> None:
    free = bench.free
    src = bench.memory.place(bytes(3 * PAGE))
    assert refused(bench, file, src=src, length=8 * PAGE) == ("EFAULT", 3 * PAGE)
    assert bench.free == free - 3
    # What was added stays, what was not can still be.
    assert refused(bench, file, offset=2 * PAGE) == ("EBUSY", 0)
    assert add(bench, file, offset=3 * PAGE) == PAGE


def test_a_noexec_source_is_eacces_before_it_is_read(bench: Any, file: Any) -> None:
    bench.task.vmas = [(0, 1 << 47, False)]
    free = bench.free
    assert refused(bench, file) == ("EACCES", 0)
    assert refused(bench, file, src=0xDEAD_0000) == ("EACCES", 0)
    assert bench.free == free


def test_a_source_that_runs_into_a_noexec_mapping_is_a_short_count(bench: Any, file: Any) -> None:
    src = bench.memory.place(bytes(6 * PAGE))
    bench.task.vmas = [
        (0, src + PAGE, True),
        (src + PAGE, src + 3 * PAGE, True),
        (src + 3 * PAGE, src + 5 * PAGE, False),
        (src + 5 * PAGE, 1 << 47, True),
    ]
    assert refused(bench, file, src=src, length=6 * PAGE) == ("EACCES", 3 * PAGE)


def test_the_page_present_is_found_before_the_source_is_looked_at(bench: Any, file: Any) -> None:
    assert add(bench, file, offset=2 * PAGE) == PAGE
    bench.task.vmas = [(0, 1 << 47, False)]
    assert refused(bench, file, offset=2 * PAGE, src=0xDEAD_0000) == ("EBUSY", 0)


# -- EADD -------------------------------------------------------------------------------------


def test_a_page_that_is_present_is_ebusy_with_the_pages_before_it_counted(
    bench: Any, file: Any
) -> None:
    assert add(bench, file, offset=5 * PAGE) == PAGE
    src = bench.memory.place(bytes(8 * PAGE))
    free = bench.free
    assert refused(bench, file, src=src, offset=2 * PAGE, length=8 * PAGE) == ("EBUSY", 3 * PAGE)
    assert bench.free == free - 3


# The first and the last reserved byte.
@pytest.mark.parametrize("spoiled", [72, 4095])
def test_a_bad_tcs_is_eio_and_leaves_nothing(bench: Any, file: Any, spoiled: int) -> None:
    tcs = bytearray(bench.pages()[0][2])
    tcs[spoiled] = 0xFF
    free = bench.free
    src = bench.memory.place(bytes(tcs))
    assert refused(bench, file, src=src, secinfo_flags=SECINFO_TCS) == ("EIO", 0)
    assert bench.free == free
    assert add(bench, file) == PAGE


def test_a_bad_tcs_among_good_ones_is_a_short_count(bench: Any, file: Any) -> None:
    tcs = bench.pages()[0][2]
    bad = bytearray(tcs)
    bad[4000] = 1
    src = bench.memory.place(tcs * 2 + bytes(bad) + tcs)
    free = bench.free
    result = refused(bench, file, src=src, length=4 * PAGE, secinfo_flags=SECINFO_TCS)
    assert result == ("EIO", 2 * PAGE)
    assert bench.free == free - 2


# Legal for ECREATE, out of every program's reach: the upper half.
@pytest.mark.parametrize("offset", [0, 0x8000, (1 << 20) - PAGE])
@pytest.mark.parametrize("flags", [SECINFO_TCS, SECINFO_REG | SECINFO_R])
def test_a_page_beyond_the_user_address_space_is_eio(bench: Any, offset: int, flags: int) -> None:
    with bench.platform.open_enclave() as enclave:
        enclave.create(bench.secs(size=1 << 20, baseaddr=0xFFFF_8000_0000_0000))
        free = bench.free
        assert refused(bench, enclave.file, offset=offset, secinfo_flags=flags) == ("EIO", 0)
        assert bench.free == free


@pytest.mark.parametrize("base", [0, 1 << 46])
def test_the_largest_enclave_has_pages_up_to_its_end(bench: Any, base: int) -> None:
    with bench.platform.open_enclave() as enclave:
        enclave.create(bench.secs(size=1 << 46, baseaddr=base))
        src = bench.memory.place(bytes(2 * PAGE))
        end = {"offset": (1 << 46) - 2 * PAGE, "length": 2 * PAGE}
        assert add(bench, enclave.file, src=src, **end) == 2 * PAGE


# -- signals and the count ----------------------------------------------------------------------


def test_a_signal_before_the_first_page_is_eintr_with_count_0(bench: Any, file: Any) -> None:
    bench.task.signals = [True]
    assert refused(bench, file) == ("EINTR", 0)
    assert add(bench, file) == PAGE


def test_an_argument_that_cannot_be_written_back_is_efault_though_pages_were_added(
    bench: Any, file: Any
) -> None:
    arg = bench.memory.place(bench.add_argument().encode())
    bench.memory.read_only.add(arg // PAGE)
    assert bench.refused(file, ADD, arg) == "EFAULT"
    assert refused(bench, file) == ("EBUSY", 0)


def test_the_write_back_failing_hides_the_first_failure(bench: Any, file: Any) -> None:
    bench.task.signals = [True]
    arg = bench.memory.place(bench.add_argument().encode())
    bench.memory.read_only.add(arg // PAGE)
    assert bench.refused(file, ADD, arg) == "EFAULT"


def test_the_argument_is_read_once(bench: Any, file: Any) -> None:
    arg = bench.memory.place(bench.add_argument(offset=3 * PAGE).encode())
    before = bytearray(bench.memory.read(arg, 48))

    def scribble() -> None:
        # Runs at the first access, which is the argument's own copy: the next one is the SECINFO's.
        bench.memory.on_access = lambda: bench.memory.write(arg, bytes(48))

    bench.memory.on_access = scribble
    assert bench.ioctl(file, ADD, arg) == 0
    before[40:48] = PAGE.to_bytes(8, "little")
    assert bench.memory.read(arg, 48) == bytes(before)
    assert file.encl.translate(bench.BASE + 3 * PAGE) is not None


# -- what is added ------------------------------------------------------------------------------


def test_pages_hold_what_the_caller_gave(bench: Any, file: Any) -> None:
    data = os.urandom(5 * PAGE)
    src = bench.memory.place(data)
    assert add(bench, file, src=src, offset=7 * PAGE, length=5 * PAGE) == 5 * PAGE
    assert file.elrange.read(bench.BASE + 6 * PAGE, 7 * PAGE) == bytes(PAGE) + data + bytes(PAGE)
    assert [file.encl.translate(bench.BASE + n * PAGE) is None for n in range(6, 13)] == [
        True,
        *[False] * 5,
        True,
    ]


def test_the_measurement_is_that_of_the_pages_in_their_order(bench: Any) -> None:
    pages = bench.pages()
    reordered = [pages[2], pages[0], pages[3], pages[1]]
    with bench.platform.open_enclave() as enclave:
        enclave.create(bench.secs())
        for offset, flags, data, measured in reordered:
            enclave.add_pages(offset, data, flags, measure=measured)
        with pytest.raises(DriverError, match="INVALID_MEASUREMENT"):
            enclave.init(bench.sigstruct(bench.mrenclave(pages)))
        enclave.init(bench.sigstruct(bench.mrenclave(reordered)))


def test_one_large_call_measures_as_many_small_ones(bench: Any) -> None:
    data = os.urandom(40 * PAGE)
    expected = bench.mrenclave([(0, RW, data, True)])
    for step in (PAGE, 7 * PAGE, 40 * PAGE):
        with bench.platform.open_enclave() as enclave:
            enclave.create(bench.secs())
            for at in range(0, len(data), step):
                enclave.add_pages(at, data[at : at + step], RW)
            enclave.init(bench.sigstruct(expected))


def test_pages_that_no_run_of_the_epc_holds_together_are_added_all_the_same(bench: Any) -> None:
    allocator = bench.driver.epc
    first, _ = allocator.allocate_run(128)
    for page in range(first, first + 128, 3):
        allocator.free(page)
    taken = allocator.allocate_run(120)
    data = os.urandom(30 * PAGE)
    with bench.platform.open_enclave() as enclave:
        enclave.create(bench.secs())
        assert enclave.add_pages(0, data, RW) == len(data)
        enclave.init(bench.sigstruct(bench.mrenclave([(0, RW, data, True)])))
        assert enclave.file.elrange.read(bench.BASE, len(data)) == data
    allocator.free(*taken)
    for page in range(first, first + 128):
        if (page - first) % 3:
            allocator.free(page)
    assert bench.free == 256


# -- EPC --------------------------------------------------------------------------------------


def test_an_exhausted_epc_is_enomem_with_the_pages_before_it_counted(bench: Any, file: Any) -> None:
    src = bench.memory.place(bytes(300 * PAGE))
    file.encl.backing = NoBacking()
    free = bench.free
    errno, count = refused(bench, file, src=src, length=300 * PAGE)
    assert (errno, count) == ("ENOMEM", free * PAGE)
    assert bench.free == 0
    # The allocation comes before the page array is looked at.
    assert refused(bench, file) == ("ENOMEM", 0)


def test_enomem_says_that_nothing_gives_way(bench: Any, file: Any) -> None:
    taken = bench.driver.epc.allocate_run(bench.free)
    with pytest.raises(DriverError, match="nothing gives way"):
        bench.ioctl(file, ADD, bench.add_argument())
    bench.driver.epc.free(*taken)


def test_a_failed_call_gives_back_what_it_took(bench: Any, file: Any) -> None:
    free = bench.free
    for changes in (
        {"src": 0xDEAD_0000, "length": 50 * PAGE},
        {"secinfo_flags": SECINFO_TCS, "src": bench.memory.place(b"\xff" * PAGE)},
    ):
        for _ in range(3):
            refused(bench, file, **changes)
            assert bench.free == free
            assert file.encl.page_cnt == 1


def test_a_caller_that_is_killed_inside_gives_back_what_it_took(bench: Any, file: Any) -> None:
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    free = bench.free
    arg = bench.memory.place(bench.add_argument(length=PAGE).encode())

    def later(accesses: int) -> Any:
        def hook() -> None:
            bench.memory.on_access = kill if accesses == 0 else later(accesses - 1)

        return hook

    # The argument, the SECINFO, then the page itself.
    bench.memory.on_access = later(1)
    with pytest.raises(Killed):
        bench.ioctl(file, ADD, arg)
    assert bench.free == free
    assert not file.encl.ioctl_in_flight
    assert file.encl.translate(bench.BASE) is None


class TestLargeEnclave:
    """A VA page for each 512 pages, the SECS among them."""

    @pytest.fixture
    def platform(self) -> Any:
        with Platform(epc=2048 * PAGE, state=State.temporary()) as platform:
            yield platform

    def test_a_va_page_comes_with_each_512th_page(self, bench: Any) -> None:
        with bench.platform.open_enclave() as enclave:
            enclave.create(bench.secs(size=1 << 24))
            encl = enclave.file.encl
            for pages, va_pages in ((1, 1), (510, 1), (1, 2), (511, 2), (1, 3)):
                added = encl.page_cnt - 1
                before = bench.free
                enclave.add_pages(added * PAGE, bytes(pages * PAGE), RW, measure=False)
                assert encl.page_cnt == 1 + added + pages
                assert len(encl.va_pages) == va_pages
                assert before - bench.free == pages + (pages == 1 and added > 0)

    def test_the_last_page_needs_its_va_page_too(self, bench: Any) -> None:
        with bench.platform.open_enclave() as enclave:
            enclave.create(bench.secs(size=1 << 24))
            enclave.file.encl.backing = NoBacking()
            enclave.add_pages(0, bytes(510 * PAGE), RW, measure=False)
            taken = bench.driver.epc.allocate_run(bench.free - 2)
            # One page more fills the VA page; the next would need two EPC pages, and one is left.
            src = bench.memory.place(bytes(4 * PAGE))
            result = refused(bench, enclave.file, src=src, offset=510 * PAGE, length=4 * PAGE)
            assert result == ("ENOMEM", PAGE)
            assert bench.free == 1
            assert len(enclave.file.encl.va_pages) == 1
            bench.driver.epc.free(*taken)

    def test_a_failure_gives_the_va_page_back(self, bench: Any) -> None:
        with bench.platform.open_enclave() as enclave:
            enclave.create(bench.secs(size=1 << 24))
            enclave.add_pages(0, bytes(511 * PAGE), RW, measure=False)
            free = bench.free
            assert refused(bench, enclave.file, offset=511 * PAGE, src=0xDEAD_0000) == ("EFAULT", 0)
            assert bench.free == free
            assert len(enclave.file.encl.va_pages) == 1

    def test_a_signal_ends_a_long_call_with_a_short_count(
        self, bench: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("softsgx.driver.encl._RUN_PAGES", 200)
        with bench.platform.open_enclave() as enclave:
            enclave.create(bench.secs(size=1 << 24))
            src = bench.memory.place(bytes(1500 * PAGE))
            bench.task.signals = [False, True]
            count = add(bench, enclave.file, src=src, length=1500 * PAGE)
            assert count == 200 * PAGE
            rest = 1500 * PAGE - count
            arguments = {"src": src + count, "offset": count, "length": rest}
            assert add(bench, enclave.file, **arguments) == rest
            enclave.init(bench.sigstruct(self.mrenclave(1500)))

    @staticmethod
    def mrenclave(pages: int) -> bytes:
        from softsgx.image.measurement import Measurement  # noqa: PLC0415

        measurement = Measurement()
        measurement.ecreate(1, 1 << 24)
        flags = SECINFO_REG | SECINFO_R
        measurement.add_pages(0, flags, bytes(pages * PAGE), measured=False)
        return measurement.digest()


def test_sixteen_mebibytes_are_one_call() -> None:
    with Platform(epc=(4096 + 64) * PAGE, state=State.temporary()) as platform:
        data = os.urandom(1 << 24)
        enclave = platform.open_enclave()
        secs = Secs.blank().replace(size=1 << 25, ssaframesize=1, attributes=4, xfrm=3)
        enclave.create(secs.encode())
        assert enclave.add_pages(0, data, RW) == len(data)
        assert enclave.file.elrange.read(0, len(data)) == data
        # Not a page at a time: neighbours of one kind are one object.
        assert sum(1 for _ in enclave.file.encl.page_array.runs()) == 1


def test_a_caller_killed_in_the_middle_of_a_copy_leaves_no_half_page(bench: Any, file: Any) -> None:
    class Killed(BaseException):
        pass

    class Dying(type(bench.memory)):
        def fill(self, elrange: Any, destination: int, source: int, length: int, /) -> int:
            elrange.write(destination, self.read(source, length // 2))
            raise Killed

    bench.task._memory = Dying()
    free = bench.free
    arg = bench.memory.place(
        bench.add_argument(src=bench.memory.place(b"\xee" * 5 * PAGE), length=5 * PAGE).encode()
    )
    with pytest.raises(Killed):
        bench.ioctl(file, ADD, arg)
    assert bench.free == free
    assert file.elrange.read(bench.BASE, 5 * PAGE) == bytes(5 * PAGE)
    assert os.fstat(file.elrange.fd).st_blocks == 0
