# SPDX-License-Identifier: Apache-2.0
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from softsgx.arch.ioctl import (
    BACKING_FD,
    BACKING_KERNEL,
    BACKING_KILL_ON_ERROR,
    BACKING_NONE,
    BACKING_PUNCH,
    BACKING_SEPARATE,
    BACKING_SYNC,
    BACKING_VMA,
    SGX_IOC_ENCLAVE_CREATE,
    SGX_IOC_ENCLAVE_CREATE_BACKING,
    SGX_IOC_ENCLAVE_SET_BACKING,
    EnclaveCreate,
    EnclaveCreateBacking,
    EnclaveSetBacking,
)
from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG
from softsgx.driver import set_backing, worker
from softsgx.driver.backing import (
    BackingStalled,
    KernelBacking,
    NoBacking,
    contents_size,
    pcmds_size,
    store_size,
)
from softsgx.driver.provided import BoundedBacking, ExtentBacking
from softsgx.errors import DriverError

BASE, SIZE = 0x7F00_0000_0000, 0x40_0000  # of the enclaves of conftest.py


def round_up(length: int) -> int:
    return -(-length // 4096) * 4096


SINGLE = round_up(store_size(SIZE))
CONTENTS = contents_size(SIZE)
PCMDS = round_up(pcmds_size(SIZE))


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a machine that is busy with other things, an answer may take longer than 50 ms.
    monkeypatch.setattr(worker, "PATIENCE_MS", 10_000)


@pytest.fixture
def file() -> Iterator[int]:
    """Yield a descriptor of a file that is large enough."""
    fd = os.memfd_create("store", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * SINGLE)
    yield fd
    os.close(fd)


@pytest.fixture
def enclave(bench: Any) -> Iterator[Any]:
    """Yield an enclave that is created and has no page."""
    with bench.platform.open_enclave() as enclave:
        enclave.create(bench.secs())
        yield enclave


def argument(**changes: int) -> EnclaveSetBacking:
    none = {"contents_fd": -1, "pcmd_fd": -1}
    return EnclaveSetBacking.blank().replace(**none | changes)


def refused(enclave: Any, /, **changes: int) -> str:
    """Return the name of the errno with which the ioctl fails; the store stays as it was."""
    before = enclave.file.encl.backing
    with pytest.raises(DriverError) as caught:
        enclave.ioctl(SGX_IOC_ENCLAVE_SET_BACKING, argument(**changes))
    assert enclave.file.encl.backing is before
    assert not enclave.file.encl.backing_set
    return {"ENOTSUP": "EOPNOTSUPP"}.get(name := errno.errorcode[caught.value.errno], name)


def single(**changes: int) -> dict[str, int]:
    """Return a good argument in memory, but for the address."""
    return {"flags": BACKING_VMA, "contents_len": SINGLE, **changes}


def place(enclave: Any, length: int) -> int:
    address: int = enclave.task.memory.place(bytes(length))
    return address


# -- when ---------------------------------------------------------------------------------------


def test_the_default_is_the_drivers_own_store(enclave: Any) -> None:
    backing = enclave.file.encl.backing
    assert isinstance(backing, KernelBacking)
    assert not enclave.file.encl.backing_set
    assert backing.store([(0, b"c" * 4096, b"p" * 128)]) == 1


def test_the_store_ends_with_the_enclave(bench: Any) -> None:
    with bench.platform.open_enclave() as enclave:
        enclave.create(bench.secs())
        backing = enclave.file.encl.backing
        backing.pin([0])
        assert backing.fd >= 0
    assert backing.fd == -1


def test_before_create_is_einval(bench: Any) -> None:
    with bench.platform.open_enclave() as enclave:
        assert refused(enclave, flags=BACKING_NONE) == "EINVAL"
        # Before the argument is looked at.
        assert bench.refused(enclave.file, SGX_IOC_ENCLAVE_SET_BACKING, 0) == "EINVAL"


def test_after_the_first_page_is_einval(bench: Any, enclave: Any) -> None:
    enclave.add_pages(0, bytes(4096), SECINFO_REG | SECINFO_R)
    assert refused(enclave, flags=BACKING_NONE) == "EINVAL"
    assert bench.refused(enclave.file, SGX_IOC_ENCLAVE_SET_BACKING, 0) == "EINVAL"


def test_after_init_is_einval(bench: Any) -> None:
    with bench.build() as enclave:
        enclave.init(bench.good_sigstruct())
        assert refused(enclave, flags=BACKING_NONE) == "EINVAL"


def test_a_page_that_was_refused_is_none(bench: Any, enclave: Any) -> None:
    bench.refused(enclave.file, 0xC030A401, 0)
    enclave.set_backing(BACKING_NONE)
    assert isinstance(enclave.file.encl.backing, NoBacking)


@pytest.mark.parametrize("first", [BACKING_KERNEL, BACKING_NONE])
def test_a_second_call_is_ebusy(bench: Any, enclave: Any, first: int) -> None:
    enclave.set_backing(first)
    with pytest.raises(DriverError) as caught:
        enclave.set_backing(BACKING_NONE)
    assert caught.value.errno == errno.EBUSY
    # Before the argument is looked at.
    assert bench.refused(enclave.file, SGX_IOC_ENCLAVE_SET_BACKING, 0) == "EBUSY"


def test_a_failed_call_does_not_count(enclave: Any) -> None:
    assert refused(enclave, flags=0x100) == "EINVAL"
    enclave.set_backing(BACKING_NONE)


def test_while_another_ioctl_is_in_flight_it_is_ebusy(bench: Any) -> None:
    with bench.open() as file:
        inner: list[str] = []
        bench.memory.on_access = lambda: inner.append(
            bench.refused(file, SGX_IOC_ENCLAVE_SET_BACKING, argument(flags=BACKING_NONE))
        )
        src = bench.memory.place(bench.secs())
        bench.ioctl(file, SGX_IOC_ENCLAVE_CREATE, EnclaveCreate(src=src))
        assert inner == ["EBUSY"]


def test_a_bad_pointer_is_efault(bench: Any, enclave: Any) -> None:
    assert bench.refused(enclave.file, SGX_IOC_ENCLAVE_SET_BACKING, 0x10) == "EFAULT"
    at = bench.memory.place(bytes(64))
    # The last byte is on another page, which is not there.
    assert bench.refused(enclave.file, SGX_IOC_ENCLAVE_SET_BACKING, at + 4033) == "EFAULT"


# -- flags and fields ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        *range(4, 16),
        *(1 << bit for bit in range(8, 64)),
        BACKING_NONE | BACKING_KILL_ON_ERROR,
        BACKING_NONE | BACKING_SEPARATE,
        BACKING_NONE | BACKING_PUNCH,
        BACKING_KERNEL | BACKING_SEPARATE,
        BACKING_KERNEL | BACKING_SYNC,
        BACKING_KERNEL | BACKING_PUNCH,
    ],
)
def test_unknown_flags_and_those_without_a_meaning_are_einval(enclave: Any, flags: int) -> None:
    assert refused(enclave, flags=flags) == "EINVAL"


def test_reserved_must_be_zero(enclave: Any) -> None:
    assert refused(enclave, flags=BACKING_NONE, enclave=BASE) == "EINVAL"
    data = bytearray(argument(flags=BACKING_NONE).encode())
    for at in range(56, 64):
        data[at] = 1
        with enclave.task.placed(bytes(data)) as arg, pytest.raises(DriverError) as caught:
            enclave.file.ioctl(SGX_IOC_ENCLAVE_SET_BACKING, arg, enclave.task)
        assert caught.value.errno == errno.EINVAL
        data[at] = 0


def test_where_a_node_has_many_enclaves_the_base_names_one(enclave: Any) -> None:
    encl = enclave.file.encl
    data = argument(flags=BACKING_NONE, enclave=BASE).encode()
    with pytest.raises(DriverError):
        set_backing.set_backing(encl, argument(flags=BACKING_NONE).encode(), enclave.task, BASE)
    set_backing.set_backing(encl, data, enclave.task, BASE)
    assert encl.backing.kills


@pytest.mark.parametrize("mode", [BACKING_KERNEL, BACKING_NONE])
@pytest.mark.parametrize("name", ["contents", "contents_len", "pcmd", "pcmd_len"])
def test_a_mode_without_a_place_takes_none(enclave: Any, mode: int, name: str) -> None:
    assert refused(enclave, flags=mode, **{name: 4096}) == "EINVAL"


@pytest.mark.parametrize("mode", [BACKING_KERNEL, BACKING_NONE])
@pytest.mark.parametrize("name", ["contents_fd", "pcmd_fd"])
@pytest.mark.parametrize("fd", [0, 3, -2])
def test_a_mode_without_a_file_takes_none(enclave: Any, mode: int, name: str, fd: int) -> None:
    assert refused(enclave, flags=mode, **{name: fd}) == "EINVAL"


def test_fields_that_are_not_used_must_be_empty(enclave: Any, file: int) -> None:
    at = place(enclave, SINGLE)
    number = enclave.task.install(file)
    for changes in ({"pcmd": 4096}, {"pcmd_len": 4096}, {"contents_fd": 0}, {"pcmd_fd": 0}):
        assert refused(enclave, **single(contents=at, **changes)) == "EINVAL"
    in_file = {"flags": BACKING_FD, "contents_len": SINGLE, "contents_fd": number}
    for changes in ({"pcmd": 4096}, {"pcmd_len": 4096}, {"pcmd_fd": number}):
        assert refused(enclave, **in_file, **changes) == "EINVAL"
    both = single(flags=BACKING_VMA | BACKING_SEPARATE, contents=at, pcmd=at, pcmd_len=PCMDS)
    for name in ("contents_fd", "pcmd_fd"):
        assert refused(enclave, **both, **{name: number}) == "EINVAL"
    enclave.task.close(number)


# -- how large, and where -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [BACKING_VMA, BACKING_FD])
@pytest.mark.parametrize("name", ["contents", "contents_len", "pcmd", "pcmd_len"])
@pytest.mark.parametrize("by", [1, 8, 2048])
def test_unaligned_is_einval(enclave: Any, mode: int, name: str, by: int) -> None:
    good = {"contents": 1 << 20, "contents_len": CONTENTS, "pcmd": 1 << 30, "pcmd_len": PCMDS}
    changes = good | {name: good[name] + by}
    assert refused(enclave, flags=mode | BACKING_SEPARATE, **changes) == "EINVAL"


@pytest.mark.parametrize("mode", [BACKING_VMA, BACKING_FD])
@pytest.mark.parametrize("start", [(1 << 64) - SINGLE, (1 << 64) - 4096, 1 << 63])
def test_what_wraps_is_einval(enclave: Any, mode: int, start: int) -> None:
    assert refused(enclave, flags=mode, contents=start, contents_len=SINGLE) == "EINVAL"


@pytest.mark.parametrize("mode", [BACKING_VMA, BACKING_FD])
def test_short_is_enospc(enclave: Any, mode: int) -> None:
    for length in (0, 4096, SINGLE - 4096):
        assert refused(enclave, flags=mode, contents=4096, contents_len=length) == "ENOSPC"
    apart = {"flags": mode | BACKING_SEPARATE, "contents": 4096, "pcmd": 1 << 30}
    assert refused(enclave, **apart, contents_len=CONTENTS - 4096, pcmd_len=PCMDS) == "ENOSPC"
    assert refused(enclave, **apart, contents_len=CONTENTS, pcmd_len=PCMDS - 4096) == "ENOSPC"


@pytest.mark.parametrize("behind", [-PCMDS, -4096, 0, 4096, CONTENTS - 4096, CONTENTS])
@pytest.mark.parametrize("mode", [BACKING_VMA, BACKING_FD])
def test_places_that_overlap_are_einval(enclave: Any, file: int, mode: int, behind: int) -> None:
    at = place(enclave, 4 * SINGLE) + SINGLE if mode == BACKING_VMA else SINGLE
    contents, pcmds = (at, CONTENTS), (at + behind, PCMDS)
    files = {} if mode == BACKING_VMA else {"file": file, "pcmds_file": file}
    apart = behind in {-PCMDS, CONTENTS}
    if apart:
        enclave.set_backing(mode, contents=contents, pcmds=pcmds, **files)
    else:
        with pytest.raises(DriverError) as caught:
            enclave.set_backing(mode, contents=contents, pcmds=pcmds, **files)
        assert caught.value.errno == errno.EINVAL
        number = enclave.task.install(file)
        fd = number if files else -1
        assert (
            refused(
                enclave,
                flags=mode | BACKING_SEPARATE,
                contents=contents[0],
                contents_len=CONTENTS,
                pcmd=pcmds[0],
                pcmd_len=PCMDS,
                contents_fd=fd,
                pcmd_fd=fd,
            )
            == "EINVAL"
        )


@pytest.mark.parametrize("at", [BASE - SINGLE + 4096, BASE, BASE + 4096, BASE + SIZE - 4096])
def test_a_store_in_the_enclaves_own_range_is_einval(enclave: Any, at: int) -> None:
    enclave.task.memory.map(at, SINGLE)
    assert refused(enclave, **single(contents=at)) == "EINVAL"
    elsewhere = place(enclave, SINGLE)
    for contents, pcmd in ((at, elsewhere), (elsewhere, at)):
        apart = {"flags": BACKING_VMA | BACKING_SEPARATE, "pcmd_len": SINGLE}
        assert refused(enclave, **single(contents=contents, pcmd=pcmd, **apart)) == "EINVAL"


def test_a_store_beside_the_enclave_is_good(enclave: Any) -> None:
    enclave.task.memory.map(BASE - SINGLE, SINGLE)
    enclave.set_backing(BACKING_VMA, contents=(BASE - SINGLE, SINGLE))


# -- memory -------------------------------------------------------------------------------------


def test_memory_that_is_not_mapped_is_efault(enclave: Any) -> None:
    at = place(enclave, SINGLE)
    memory = enclave.task.memory
    for hole in (at, at + SINGLE // 8192 * 4096, at + SINGLE - 4096):
        memory.unmap(hole, 4096)
        assert refused(enclave, **single(contents=at)) == "EFAULT"
        memory.map(hole, 4096)
    enclave.set_backing(BACKING_VMA, contents=(at, SINGLE))


@pytest.mark.parametrize("flag", [BACKING_SYNC, BACKING_PUNCH])
def test_memory_is_neither_synchronous_nor_punched(enclave: Any, flag: int) -> None:
    at = place(enclave, SINGLE)
    assert refused(enclave, **single(flags=BACKING_VMA | flag, contents=at)) == "EOPNOTSUPP"


def test_memory_holds_what_is_stored(enclave: Any) -> None:
    contents, pcmds = place(enclave, CONTENTS), place(enclave, PCMDS)
    enclave.set_backing(
        BACKING_VMA,
        flags=BACKING_KILL_ON_ERROR,
        contents=(contents, CONTENTS),
        pcmds=(pcmds, PCMDS),
    )
    backing = enclave.file.encl.backing
    assert not backing.kills
    assert backing.kill_on_error
    assert backing.pin([1023, 1024]) == [1023, 1024]
    assert backing.store([(1023, b"c" * 4096, b"p" * 128), (1024, b"d" * 4096, b"q" * 128)]) == 2
    memory = enclave.task.memory
    assert memory.read(contents + 1023 * 4096, 8192) == b"c" * 4096 + b"d" * 4096
    assert memory.read(pcmds + 1023 * 128, 256) == b"p" * 128 + b"q" * 128


def test_memory_has_one_enclave(bench: Any, enclave: Any) -> None:
    at = place(enclave, 4 * SINGLE)
    enclave.set_backing(BACKING_VMA, contents=(at, SINGLE))
    with bench.platform.open_enclave() as other:
        other.task = enclave.task
        other.create(bench.secs())
        for start in (at, at + 4096, at + SINGLE - 4096):
            assert refused(other, **single(contents=start)) == "EBUSY"
        other.set_backing(BACKING_VMA, contents=(at + SINGLE, SINGLE))
    # The other's has ended with it.
    with bench.platform.open_enclave() as third:
        third.task = enclave.task
        third.create(bench.secs())
        third.set_backing(BACKING_VMA, contents=(at + SINGLE, SINGLE))


def test_the_same_address_of_another_program_is_another_place(bench: Any, enclave: Any) -> None:
    at = place(enclave, SINGLE)
    enclave.set_backing(BACKING_VMA, contents=(at, SINGLE))
    with bench.platform.open_enclave() as other:
        other.create(bench.secs())
        assert place(other, SINGLE) == at
        other.set_backing(BACKING_VMA, contents=(at, SINGLE))


# -- files --------------------------------------------------------------------------------------


def of_file(enclave: Any, fd: int, **changes: int) -> Any:
    number = enclave.task.install(fd)
    try:
        fields = {"flags": BACKING_FD, "contents_len": SINGLE, "contents_fd": number} | changes
        return refused(enclave, **fields)
    finally:
        enclave.task.close(number)


@pytest.mark.parametrize("fd", [-1, -2, 0, 77, 0x7FFF_FFFF, -0x8000_0000])
def test_a_bad_descriptor_is_ebadf(enclave: Any, fd: int) -> None:
    changes = {"flags": BACKING_FD, "contents_len": SINGLE}
    assert refused(enclave, **changes, contents_fd=fd) == "EBADF"


def test_a_bad_second_descriptor_is_ebadf(enclave: Any, file: int) -> None:
    apart = {"flags": BACKING_FD | BACKING_SEPARATE, "pcmd_len": PCMDS, "pcmd_fd": 78}
    assert of_file(enclave, file, **apart) == "EBADF"


def test_a_path_is_no_open_file(enclave: Any, tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(bytes(SINGLE))
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    assert of_file(enclave, fd) == "EBADF"
    os.close(fd)


@pytest.mark.parametrize("mode", [os.O_RDONLY, os.O_WRONLY])
def test_a_file_that_is_not_open_for_both_is_eacces(
    enclave: Any, tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "store"
    path.write_bytes(bytes(SINGLE))
    fd = os.open(path, mode | os.O_CLOEXEC)
    assert of_file(enclave, fd) == "EACCES"
    os.close(fd)


@pytest.mark.parametrize("seal", [0x8, 0x10])
def test_a_sealed_file_is_eacces(enclave: Any, file: int, seal: int) -> None:
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seal)
    assert of_file(enclave, file) == "EACCES"


def test_what_is_no_regular_file_is_eopnotsupp(enclave: Any, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    left, right = socket.socketpair()
    opened = [
        os.open("/dev/zero", os.O_RDWR),
        os.open("/dev/full", os.O_RDWR),
        os.open(pipe, os.O_RDWR),
        os.dup(left.fileno()),
    ]
    for fd in opened:
        assert of_file(enclave, fd) == "EOPNOTSUPP"
        os.close(fd)
    left.close()
    right.close()


def test_a_device_node_of_ours_is_eopnotsupp(bench: Any, enclave: Any) -> None:
    with bench.open() as file:
        for node in (file, enclave.file, bench.driver.open_provision()):
            number = enclave.task.install(node)
            changes = {"flags": BACKING_FD, "contents_len": SINGLE, "contents_fd": number}
            assert refused(enclave, **changes) == "EOPNOTSUPP"
            enclave.task.close(number)


def test_a_file_of_proc_is_none_to_store_in(enclave: Any) -> None:
    # It calls itself a regular file, of no bytes.
    fd = os.open("/proc/self/mem", os.O_RDWR)
    assert of_file(enclave, fd) == "ENOSPC"
    os.close(fd)


def test_a_file_that_is_too_short_is_enospc(enclave: Any, file: int) -> None:
    os.ftruncate(file, SINGLE + 4095)
    assert of_file(enclave, file, contents=4096) == "ENOSPC"
    os.ftruncate(file, SINGLE + 4096)
    enclave.set_backing(BACKING_FD, contents=(4096, SINGLE), file=file)


def test_synchronous_is_eopnotsupp_where_the_file_system_is_not(
    enclave: Any, file: int, tmp_path: Path
) -> None:
    assert of_file(enclave, file, flags=BACKING_FD | BACKING_SYNC) == "EOPNOTSUPP"
    path = tmp_path / "store"
    path.write_bytes(bytes(SINGLE))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    assert of_file(enclave, fd, flags=BACKING_FD | BACKING_SYNC) == "EOPNOTSUPP"
    os.close(fd)


def test_a_synchronous_store_writes_through(
    enclave: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No machine of ours has an NVDIMM: what the file system would allow is played.
    class Libc:
        @staticmethod
        def mmap(*given: Any) -> Any:
            assert given[3] == 0x80003
            return 0x1000  # never touched

        @staticmethod
        def munmap(*_: Any) -> int:
            return 0

    path = tmp_path / "store"
    path.write_bytes(bytes(SINGLE))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    monkeypatch.setattr(set_backing, "_libc", Libc)
    flags: list[int] = []
    real = os.pwritev

    def pwritev(fd: int, pieces: list[bytes], offset: int, flag: int = 0) -> int:
        flags.append(flag)
        return real(fd, pieces, offset, flag)

    enclave.set_backing(BACKING_FD, flags=BACKING_SYNC, contents=(0, SINGLE), file=fd)
    monkeypatch.setattr(os, "pwritev", pwritev)
    assert enclave.file.encl.backing.store([(0, b"c" * 4096, b"p" * 128)]) == 1
    assert flags == [os.RWF_DSYNC] * 2
    os.close(fd)


def test_a_store_outlives_the_programs_descriptor(enclave: Any, tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(bytes(4096 + SINGLE))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    enclave.set_backing(BACKING_FD, contents=(4096, SINGLE), file=fd)
    os.close(fd)
    backing = enclave.file.encl.backing
    assert backing.pin([5]) == [5]
    assert backing.store([(5, b"c" * 4096, b"p" * 128)]) == 1
    data = path.read_bytes()
    assert data[6 * 4096 : 7 * 4096] == b"c" * 4096
    at = 4096 + CONTENTS + 5 * 128
    assert data[at : at + 128] == b"p" * 128


@pytest.mark.parametrize("flag", [os.O_APPEND, os.O_DIRECT])
def test_flags_of_the_programs_descriptor_count_for_nothing(
    enclave: Any, tmp_path: Path, flag: int
) -> None:
    path = tmp_path / "store"
    path.write_bytes(bytes(SINGLE))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    enclave.set_backing(BACKING_FD, contents=(0, SINGLE), file=fd)
    fcntl.fcntl(fd, fcntl.F_SETFL, flag)
    assert enclave.file.encl.backing.store([(0, b"c" * 4096, b"p" * 128)]) == 1
    os.close(fd)
    assert path.stat().st_size == SINGLE
    assert path.read_bytes()[:4096] == b"c" * 4096


def test_a_file_that_cannot_be_opened_anew_is_used_as_it_is(
    enclave: Any, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "not yours")

    appending = os.open(f"/proc/self/fd/{file}", os.O_RDWR | os.O_APPEND)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", no)
        assert of_file(enclave, appending) == "EINVAL"
        enclave.set_backing(BACKING_FD, contents=(0, SINGLE), file=file)
    os.close(appending)
    assert enclave.file.encl.backing.store([(0, b"c" * 4096, b"p" * 128)]) == 1
    assert os.pread(file, 4096, 0) == b"c" * 4096


def test_two_files_hold_what_is_stored_and_lose_what_is_discarded(enclave: Any, file: int) -> None:
    other = os.memfd_create("pcmds")
    os.ftruncate(other, 2 * PCMDS)
    enclave.set_backing(
        BACKING_FD,
        flags=BACKING_PUNCH,
        contents=(SINGLE, CONTENTS),
        pcmds=(PCMDS, PCMDS),
        file=file,
        pcmds_file=other,
    )
    backing = enclave.file.encl.backing
    assert isinstance(backing, ExtentBacking)  # behind no worker
    assert not backing.kill_on_error
    backing.store([(3, b"c" * 4096, b"p" * 128)])
    assert os.pread(file, 4096, SINGLE + 3 * 4096) == b"c" * 4096
    assert os.pread(other, 128, PCMDS + 3 * 128) == b"p" * 128
    assert os.fstat(file).st_blocks == os.fstat(other).st_blocks == 8
    backing.discard(3)
    assert os.fstat(file).st_blocks == os.fstat(other).st_blocks == 0
    os.close(other)


def test_a_file_has_many_enclaves_in_places_apart(bench: Any, enclave: Any, file: int) -> None:
    enclave.set_backing(BACKING_FD, contents=(0, SINGLE), file=file)
    again = os.open(f"/proc/self/fd/{file}", os.O_RDWR)
    with bench.platform.open_enclave() as other:
        other.create(bench.secs())
        for fd in (file, again):
            assert of_file(other, fd) == "EBUSY"
            assert of_file(other, fd, contents=SINGLE - 4096) == "EBUSY"
        other.set_backing(BACKING_FD, contents=(SINGLE, SINGLE), file=again)
    with bench.platform.open_enclave() as third:
        third.create(bench.secs())
        third.set_backing(BACKING_FD, contents=(SINGLE, 2 * SINGLE), file=file)
    os.close(again)


def test_a_refused_file_leaves_nothing_open(bench: Any, enclave: Any, file: int) -> None:
    enclave.set_backing(BACKING_FD, contents=(0, SINGLE), file=file)
    with bench.platform.open_enclave() as other:
        other.create(bench.secs())
        pause = select_pause()
        before = descriptors()
        assert of_file(other, file) == "EBUSY"
        apart = {"flags": BACKING_FD | BACKING_SEPARATE, "pcmd_len": PCMDS, "pcmd_fd": 99}
        assert of_file(other, file, contents=SINGLE, **apart) == "EBADF"
        # The worker that looked at the files ends by itself.
        while descriptors() > before:
            pause()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def select_pause() -> Callable[[], object]:
    import threading  # noqa: PLC0415

    event = threading.Event()
    return lambda: event.wait(0.01)


def test_a_slow_file_is_behind_a_worker(slow_file: Any, enclave: Any) -> None:
    fd = os.open(slow_file.path, os.O_RDWR | os.O_CLOEXEC)
    enclave.set_backing(BACKING_FD, contents=(0, SINGLE), file=fd)
    os.close(fd)
    backing = enclave.file.encl.backing
    assert isinstance(backing, BoundedBacking)
    assert backing.store([(1, b"c" * 4096, b"p" * 128)]) == 1
    assert backing.load(1) == (b"c" * 4096, b"p" * 128)


def test_a_file_that_is_not_even_told_about_in_time_is_eagain(
    enclave: Any, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    real = worker.Worker.ask

    def stalls(self: Any, work: Any, late: Any = None) -> Any:
        if late is None:
            return real(self, work)
        job = worker.Job(work, late, awaited=True)
        job.do()
        closed.append(job.result.extent.fd)
        late(job)
        raise BackingStalled("no answer")

    monkeypatch.setattr(worker.Worker, "ask", stalls)
    assert of_file(enclave, file) == "EAGAIN"
    assert len(closed) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(closed[0])


# -- the explicit default, and none ----------------------------------------------------------------


def test_the_explicit_default_keeps_the_store(enclave: Any) -> None:
    backing = enclave.file.encl.backing
    enclave.set_backing(BACKING_KERNEL, flags=BACKING_KILL_ON_ERROR)
    assert enclave.file.encl.backing is backing
    assert backing.kill_on_error


def test_none_kills(enclave: Any) -> None:
    enclave.set_backing(BACKING_NONE)
    assert enclave.file.encl.backing.kills


# -- CREATE as the thread had it ------------------------------------------------------------------


def test_create_with_a_store_in_memory(bench: Any) -> None:
    with bench.platform.open_enclave() as enclave:
        at = place(enclave, SINGLE)
        enclave.create_with_backing(bench.secs(), at)
        encl = enclave.file.encl
        assert (encl.created, encl.base, encl.size) == (True, BASE, SIZE)
        assert encl.backing.store([(1, b"c" * 4096, b"p" * 128)]) == 1
        memory = enclave.task.memory
        assert memory.read(at + 4096, 4096) == b"c" * 4096
        assert memory.read(at + CONTENTS + 128, 128) == b"p" * 128
        with pytest.raises(DriverError) as caught:
            enclave.set_backing(BACKING_NONE)
        assert caught.value.errno == errno.EBUSY


def test_create_with_null_kills(bench: Any) -> None:
    with bench.platform.open_enclave() as enclave:
        enclave.create_with_backing(bench.secs(), 0)
        assert enclave.file.encl.backing.kills


def create_refused(bench: Any, enclave: Any, backing: int, **changes: Any) -> str:
    src = enclave.task.memory.place(bench.secs(**changes))
    record = EnclaveCreateBacking(src=src, backing=backing)
    return bench.refused(enclave.file, SGX_IOC_ENCLAVE_CREATE_BACKING, record, enclave.task)


def test_create_with_a_bad_store_creates_nothing(bench: Any) -> None:
    with bench.platform.open_enclave() as enclave:
        at = place(enclave, SINGLE)
        assert create_refused(bench, enclave, at + 1) == "EINVAL"
        assert create_refused(bench, enclave, BASE) == "EINVAL"
        assert create_refused(bench, enclave, at + 4096) == "EFAULT"
        assert create_refused(bench, enclave, at, size=SIZE + 4096) == "EINVAL"
        assert create_refused(bench, enclave, at, size=0) == "EINVAL"
        assert create_refused(bench, enclave, at, size=1 << 63) == "EINVAL"
        # ECREATE's own refusal: the store is free again.
        assert create_refused(bench, enclave, at, ssaframesize=0) == "EIO"
        free = bench.free
        enclave.create_with_backing(bench.secs(), at)
        assert bench.free < free
        assert create_refused(bench, enclave, at) == "EINVAL"


def test_create_with_a_bad_pointer_is_efault(bench: Any) -> None:
    with bench.open() as file:
        assert bench.refused(file, SGX_IOC_ENCLAVE_CREATE_BACKING, 0x10) == "EFAULT"
        record = EnclaveCreateBacking(src=0x10, backing=0)
        assert bench.refused(file, SGX_IOC_ENCLAVE_CREATE_BACKING, record) == "EFAULT"


def test_create_with_another_enclaves_store_is_ebusy(bench: Any) -> None:
    with bench.platform.open_enclave() as enclave, bench.platform.open_enclave() as other:
        at = place(enclave, SINGLE)
        enclave.create_with_backing(bench.secs(), at)
        other.task = enclave.task
        assert create_refused(bench, other, at) == "EBUSY"
