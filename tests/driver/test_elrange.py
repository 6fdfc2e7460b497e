# SPDX-License-Identifier: Apache-2.0
import fcntl
import mmap
import os
from array import array
from collections.abc import Iterator
from ctypes import addressof, c_char

import pytest

from softsgx.driver.elrange import ELRANGE_SIZE, MemfdElrange

HIGH = 0x7FFF_FFFF_0000


@pytest.fixture
def elrange() -> Iterator[MemfdElrange]:
    elrange = MemfdElrange()
    yield elrange
    elrange.close()


def blocks(elrange: MemfdElrange) -> int:
    return os.fstat(elrange.fd).st_blocks * 512


def test_it_spans_the_address_space_and_weighs_nothing(elrange: MemfdElrange) -> None:
    status = os.fstat(elrange.fd)
    assert status.st_size == ELRANGE_SIZE == 1 << 47
    assert blocks(elrange) == 0


def test_a_hole_reads_as_zeros_and_stays_a_hole(elrange: MemfdElrange) -> None:
    assert elrange.read(HIGH, 8192) == bytes(8192)
    assert blocks(elrange) == 0


@pytest.mark.parametrize("address", [0, 0x10000, HIGH])
def test_what_is_written_is_read_and_discarded(elrange: MemfdElrange, address: int) -> None:
    data = os.urandom(3 * 4096)
    elrange.write(address, data)
    assert elrange.read(address, len(data)) == data
    elrange.discard(address + 4096, 4096)
    assert elrange.read(address, len(data)) == data[:4096] + bytes(4096) + data[8192:]
    assert blocks(elrange) == 2 * 4096


def test_only_whole_pages_are_discarded(elrange: MemfdElrange) -> None:
    with pytest.raises(ValueError, match="not page aligned"):
        elrange.discard(0x1000, 100)
    with pytest.raises(ValueError, match="not page aligned"):
        elrange.discard(0x1001, 4096)


def test_beyond_the_address_space_is_an_error(elrange: MemfdElrange) -> None:
    with pytest.raises(ValueError, match="beyond the address space"):
        elrange.read(ELRANGE_SIZE - 8, 16)


def test_a_reopened_descriptor_is_another_description_of_the_same_memory(
    elrange: MemfdElrange,
) -> None:
    fd = elrange.reopen(os.O_RDWR | os.O_CLOEXEC | os.O_TRUNC | os.O_CREAT)
    try:
        os.lseek(fd, 4096, os.SEEK_SET)
        assert os.lseek(elrange.fd, 0, os.SEEK_CUR) == 0
        elrange.write(HIGH, b"enclave page")
        with mmap.mmap(fd, 4096, offset=HIGH) as mapping:
            assert mapping[:12] == b"enclave page"
            mapping[:4] = b"ENCL"
        assert elrange.read(HIGH, 7) == b"ENCLave"
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    finally:
        os.close(fd)


def test_a_read_only_descriptor_stays_one(elrange: MemfdElrange) -> None:
    fd = elrange.reopen(os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096, access=mmap.ACCESS_WRITE)
        with pytest.raises(OSError, match="Bad file"):
            os.pwrite(fd, b"x", 0)
    finally:
        os.close(fd)


def test_closing_keeps_the_program_s_descriptor_alive(elrange: MemfdElrange) -> None:
    elrange.write(0x2000, b"still here")
    fd = elrange.reopen(os.O_RDWR)
    elrange.close()
    elrange.close()
    try:
        assert os.pread(fd, 10, 0x2000) == b"still here"
    finally:
        os.close(fd)


def test_a_scattered_read_fills_its_places_in_order(elrange: MemfdElrange) -> None:
    elrange.write(HIGH, bytes(range(256)) * 16)
    first, second = bytearray(300), bytearray(500)
    places = array("Q")
    for buffer in (first, second):
        places.extend((addressof(c_char.from_buffer(buffer)), len(buffer)))
    assert elrange.readv(HIGH, places.buffer_info()[0], 2) == 800
    assert first + second == (bytes(range(256)) * 16)[:800]
    with pytest.raises(OSError, match="Bad address"):
        elrange.readv(HIGH, 8, 1)
