# SPDX-License-Identifier: Apache-2.0
"""The memories that are held in Python."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softsgx.cpu.memory import HeldElrange, HeldMemory
from softsgx.errors import Fault


@given(st.lists(st.tuples(st.integers(0, 20000), st.binary(max_size=9000)), max_size=8))
def test_a_held_elrange_is_sparse_bytes(writes: list[tuple[int, bytes]]) -> None:
    elrange, model = HeldElrange(), bytearray(40960)
    base = 1 << 46
    for offset, data in writes:
        elrange.write(base + offset, data)
        model[offset : offset + len(data)] = data
    assert elrange.read(base, len(model)) == model
    elrange.discard(base + 4096, 8192)
    model[4096:12288] = bytes(8192)
    assert elrange.read(base, len(model)) == model


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.none() | st.integers(0, 4080), st.binary(min_size=16, max_size=16)
        )
    )
)
def test_whole_pages_and_parts_of_them_mix(writes: list[tuple[int, int | None, bytes]]) -> None:
    elrange, model = HeldElrange(), bytearray(4 * 4096)
    for page, part, data in writes:
        given = bytearray(data * 256 if part is None else data)
        start = page * 4096 + (part or 0)
        elrange.write(start, bytes(given) if data[0] % 2 else given)
        model[start : start + len(given)] = given
        # What was given is the caller's again.
        given[:] = bytes(len(given))
        before = elrange.read(page * 4096, 4096)
        elrange.write(page * 4096 + 1, b"?")
        assert before == model[page * 4096 : page * 4096 + 4096]
        model[page * 4096 + 1] = ord("?")
        assert elrange.read(0, 4 * 4096) == model
        assert elrange.read(4090, 4) == model[4090:4094]


def test_what_is_not_mapped_is_a_bad_pointer() -> None:
    memory = HeldMemory()
    memory.map(0x5000, 4096)
    with memory.user_access() as window:
        window.write(0x5FF0, b"x" * 16)
        assert window.read(0x5FF0, 16) == b"x" * 16
        for address, length, bad in ((0x5FF0, 17, 0x6000), (0x4FFF, 2, 0x4FFF), (0, 1, 0)):
            with pytest.raises(Fault) as caught:
                window.read(address, length)
            assert caught.value.address == bad
        with pytest.raises(Fault) as caught:
            window.write(0x5FF0, b"y" * 17)
        assert caught.value.address == 0x6000
        assert window.read(0x5FF0, 16) == b"x" * 16
    memory.unmap(0x5000, 1)
    with pytest.raises(Fault), memory.user_access() as window:
        window.read(0x5000, 1)


def test_fill_stops_at_the_first_bad_page() -> None:
    memory, elrange = HeldMemory(), HeldElrange()
    address = memory.place(b"z" * 5000)
    assert memory.fill(elrange, 0, address, 3 * 4096) == 8192
    assert elrange.read(0, 5001) == b"z" * 5000 + b"\0"
    assert memory.fill(elrange, 0, 0x1_0000_0000, 4096) == 0


def test_places_are_apart() -> None:
    memory = HeldMemory()
    first, second = memory.place(b"1"), memory.place(bytes(4096))
    assert second >= first + 2 * 4096
    assert first % 4096 == second % 4096 == 0
