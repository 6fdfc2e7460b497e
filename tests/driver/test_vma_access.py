# SPDX-License-Identifier: Apache-2.0
"""A debugger's access to enclave memory: debug enclaves only, word by word, of a TCS its fields."""

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from softsgx.arch.attributes import ATTRIBUTE_MODE64BIT, TCS_DBGOPTIN
from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG
from softsgx.arch.structures import Tcs
from softsgx.driver.platform import Platform
from softsgx.driver.reclaim import EpcExhausted
from softsgx.driver.state import State
from softsgx.driver.vma_access import vma_read, vma_write
from softsgx.errors import DriverError

R, W, X = 1, 2, 4
TCS, CODE, DATA, UNMEASURED, HOLE = 0, 0x1000, 0x3000, 0x5000, 0x6000
FLAGS, OSSA = Tcs.OFFSETS["flags"], Tcs.OFFSETS["ossa"]


@pytest.fixture
def built(bench: Any) -> Iterator[Any]:
    with bench.build() as enclave:
        yield enclave


def refused(call: Callable[..., object], *arguments: object) -> tuple[str, str]:
    with pytest.raises(DriverError) as caught:
        call(*arguments)
    return errno.errorcode[caught.value.errno], caught.value.reason


def test_reads_and_writes_are_of_any_length_and_alignment(bench: Any, built: Any) -> None:
    encl = built.file.encl
    whole = bytes(range(256)) * 32
    for offset, length in ((0, 8), (3, 1), (5, 11), (0xFF9, 14), (0, 0x2000), (16, 0)):
        assert vma_read(encl, bench.BASE + CODE + offset, length) == whole[offset : offset + length]
    vma_write(encl, bench.BASE + DATA + 0xFFD, b"across")
    assert vma_read(encl, bench.BASE + DATA + 0xFFC, 8) == b"\0across\0"
    assert encl.elrange.read(bench.BASE + DATA + 0xFFD, 6) == b"across"


def test_the_measurement_does_not_change(bench: Any, built: Any) -> None:
    vma_write(built.file.encl, bench.BASE + CODE, b"\xcc")
    built.init(bench.good_sigstruct())


def test_of_a_production_enclave_nothing_is_shown(bench: Any) -> None:
    with bench.build(attributes=ATTRIBUTE_MODE64BIT) as enclave:
        encl = enclave.file.encl
        for call in (
            lambda: vma_read(encl, bench.BASE + CODE, 8),
            lambda: vma_write(encl, bench.BASE + DATA, b"x"),
        ):
            code, reason = refused(call)
            assert code == "EFAULT"
            assert "no debug enclave" in reason
        assert encl.elrange.read(bench.BASE + DATA, 1) == b"\0"


def test_before_create_there_is_nothing(bench: Any) -> None:
    with bench.open() as file:
        assert refused(vma_read, file.encl, bench.BASE, 8)[0] == "EFAULT"


def test_a_tcs_shows_its_fields_and_takes_its_flags(bench: Any, built: Any) -> None:
    encl = built.file.encl
    tcs = bench.BASE + TCS
    assert vma_read(encl, tcs + OSSA, 8) == (0x3000).to_bytes(8, "little")
    vma_write(encl, tcs + FLAGS, bytes([TCS_DBGOPTIN]))
    assert vma_read(encl, tcs, 72)[FLAGS] == TCS_DBGOPTIN
    assert encl.cpu.threads[encl.translate(tcs)].flags == TCS_DBGOPTIN
    code, reason = refused(vma_read, encl, tcs + 64, 16)
    assert code == "EIO"
    assert "TCS offset 0x48 is beyond the TCS" in reason
    code, reason = refused(vma_write, encl, tcs + OSSA, bytes(8))
    assert code == "EIO"
    assert "only FLAGS" in reason
    # What is before the word that is refused has been written.
    assert refused(vma_write, encl, tcs + FLAGS, bytes(16))[0] == "EIO"
    assert vma_read(encl, tcs + FLAGS, 1) == b"\0"


def test_a_page_that_is_not_there_or_that_the_mapping_exceeds_is_efault(
    bench: Any, built: Any
) -> None:
    encl = built.file.encl
    assert refused(vma_read, encl, bench.BASE + HOLE, 8)[0] == "EFAULT"
    assert refused(vma_read, encl, bench.BASE + HOLE - 8, 16)[0] == "EFAULT"
    assert refused(vma_read, encl, bench.BASE + CODE, 8, R | W)[0] == "EFAULT"
    assert len(vma_read(encl, bench.BASE + CODE, 8, R | X)) == 8
    assert refused(vma_read, encl, bench.BASE - 8, 8)[0] == "EFAULT"


def test_an_evicted_page_is_brought_in_and_what_was_written_is_sealed_with_it(bench: Any) -> None:
    pages = 24
    with (
        Platform(epc=16 << 12, state=State.temporary()) as platform,
        platform.open_enclave() as enclave,
    ):
        enclave.create(bench.secs())
        for number in range(pages):
            enclave.add_pages(number << 12, bytes([number]) * 4096, SECINFO_REG | SECINFO_R)
        encl = enclave.file.encl
        for turn in range(2):
            for number in range(pages):
                at = bench.BASE + (number << 12)
                assert vma_read(encl, at + 8, 2) == bytes([number]) * 2
                seen = vma_read(encl, at, 1)
                assert seen == bytes([number if not turn else 255 - number])
                vma_write(encl, at, bytes([255 - number]))
        assert encl.stats.reloads


def test_where_no_page_is_free_it_is_to_be_tried_again(
    bench: Any, built: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encl = built.file.encl

    def exhausted(*_: object) -> None:
        raise EpcExhausted("nothing gives way")

    monkeypatch.setattr(encl, "load_page_in_vma", exhausted)
    with pytest.raises(EpcExhausted):
        vma_read(encl, bench.BASE + DATA, 8)
