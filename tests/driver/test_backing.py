# SPDX-License-Identifier: Apache-2.0
import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softsgx.driver.backing import (
    Backing,
    BackingFault,
    KernelBacking,
    NoBacking,
    contents_size,
    pcmds_size,
    store_size,
)

SIZE = 0x40_0000
PAGES = SIZE // 4096
SECS = PAGES  # the SECS's index


def page(index: int, version: int = 0) -> tuple[int, bytes, bytes]:
    """Return a page to be stored that no other equals."""
    mark = index * 1000 + version + 1
    return index, mark.to_bytes(8, "little") * 512, mark.to_bytes(8, "big") * 16


@pytest.fixture
def backing() -> Iterator[KernelBacking]:
    backing = KernelBacking(SIZE)
    yield backing
    backing.close()


def occupied(backing: KernelBacking) -> int:
    return os.fstat(backing.fd).st_blocks * 512


def test_the_layout_is_mainlines() -> None:
    # sgx_encl_create and sgx_encl_get_backing_page_pcmd_offset of Linux 6.1.
    assert contents_size(SIZE) == SIZE + 4096
    assert pcmds_size(SIZE) == (SIZE + 4096) // 32 == contents_size(SIZE) // 4096 * 128
    assert store_size(SIZE) == SIZE + 4096 + (SIZE + 4096) // 32


def test_every_byte_of_the_file_is_where_mainline_has_it(backing: KernelBacking) -> None:
    stored = [page(index) for index in (0, 1, 2, 31, 32, 700, PAGES - 1, SECS)]
    assert backing.store(stored) == len(stored)
    wanted = bytearray(store_size(SIZE))
    for index, contents, pcmd in stored:
        wanted[index * 4096 : (index + 1) * 4096] = contents
        at = SIZE + 4096 + index * 128
        wanted[at : at + 128] = pcmd
    assert os.fstat(backing.fd).st_size == len(wanted)
    assert os.pread(backing.fd, len(wanted) + 1, 0) == wanted


def test_the_file_is_made_when_a_page_is_to_be_stored(backing: KernelBacking) -> None:
    assert backing.fd == -1
    assert backing.bytes_held == 0
    assert backing.pin([3, 5]) == [3, 5]
    assert backing.fd >= 0
    assert occupied(backing) == 0


def test_pages_are_loaded_again_and_again_until_they_are_discarded(backing: KernelBacking) -> None:
    assert backing.store([page(7), page(8), page(200)]) == 3
    for _ in range(2):
        assert backing.load(8) == page(8)[1:]
    assert backing.pages_held == 3
    backing.discard(8)
    assert backing.load(8) == (bytes(4096), bytes(128))
    assert backing.load(7) == page(7)[1:]
    assert backing.pages_held == 2
    assert backing.store([page(8, 1)]) == 1
    assert backing.load(8) == page(8, 1)[1:]


def test_a_discarded_page_leaves_a_hole_and_so_does_the_last_pcmd_of_32(
    backing: KernelBacking,
) -> None:
    assert backing.store([page(index) for index in range(64, 98)]) == 34
    assert occupied(backing) == backing.bytes_held == (34 + 2) * 4096
    for index in range(65, 96):
        backing.discard(index)
    assert occupied(backing) == backing.bytes_held == (3 + 2) * 4096
    backing.discard(64)
    assert occupied(backing) == backing.bytes_held == (2 + 1) * 4096
    assert backing.load(96) == page(96)[1:]
    backing.discard(96)
    backing.discard(97)
    backing.discard(97)
    assert occupied(backing) == backing.bytes_held == backing.pages_held == 0


def test_the_pcmds_that_are_left_are_zero_where_a_page_was_discarded(
    backing: KernelBacking,
) -> None:
    backing.store([page(32), page(33), page(34)])
    backing.discard(33)
    entries = os.pread(backing.fd, 3 * 128, SIZE + 4096 + 32 * 128)
    assert entries == page(32)[2] + bytes(128) + page(34)[2]


def test_a_store_that_fails_leaves_nothing_of_what_it_did_not_store(
    backing: KernelBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset == 9 * 4096:
            real(fd, data[:100], offset)
            raise OSError(28, "no space")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    assert backing.store([page(5), page(6), page(9), page(11)]) == 2
    assert backing.load(6) == page(6)[1:]
    assert backing.load(9) == (bytes(4096), bytes(128))
    assert occupied(backing) == backing.bytes_held == 3 * 4096


def test_without_a_descriptor_nothing_is_pinned(
    backing: KernelBacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(24, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", full)
        assert backing.pin([1]) == []
        assert backing.store([page(1)]) == 0
    with pytest.raises(BackingFault):
        backing.load(1)
    assert backing.pin([1]) == [1]


def test_a_closed_store_has_no_file(backing: KernelBacking) -> None:
    backing.store([page(1)])
    fd = backing.fd
    backing.close()
    assert backing.pages_held == backing.bytes_held == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    backing.close()


_calls = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(st.integers(60, 70) | st.integers(0, SECS), min_size=1, max_size=16, unique=True),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(calls=_calls)
def test_it_holds_what_a_dictionary_would(calls: list[tuple[bool, list[int]]]) -> None:
    backing = KernelBacking(SIZE)
    model: dict[int, tuple[bytes, bytes]] = {}
    backing.pin([0])
    for version, (store, indices) in enumerate(calls):
        if store:
            pages = [page(index, version) for index in indices]
            assert backing.store(pages) == len(pages)
            model |= {index: (contents, pcmd) for index, contents, pcmd in pages}
        else:
            for index in indices:
                backing.discard(index)
                model.pop(index, None)
        for index in {*indices, *model}:
            assert backing.load(index) == model.get(index, (bytes(4096), bytes(128)))
        groups = {index // 32 for index in model}
        assert backing.pages_held == len(model)
        assert backing.bytes_held == occupied(backing) == (len(model) + len(groups)) * 4096
    backing.close()


def test_no_backing_takes_nothing() -> None:
    backing: Backing = NoBacking()
    assert backing.kills
    assert backing.pin([1, 2]) == []
    assert backing.store([page(1)]) == 0
    with pytest.raises(BackingFault, match="no backing"):
        backing.load(1)
    backing.discard(1)
    assert backing.bytes_held == 0
    backing.close()


def test_the_kernels_store_does_not_kill() -> None:
    backing: Backing = KernelBacking(SIZE)
    assert not backing.kills
    assert not backing.kill_on_error
    assert not backing.gone
