# SPDX-License-Identifier: Apache-2.0
"""The record technique: what is declared is what is stored, and a wrong declaration fails at import."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softsgx.arch import ioctl, structures, thread, vdso
from softsgx.arch.layout import S32, U8, U16, U32, U64, Record, at, layout, raw, record

RECORDS = [
    value
    for module in (structures, ioctl, vdso, thread)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Record) and value is not Record
]


@layout(size=16)
class Inner(Record):
    number: int = at(8, U32)


@layout(size=64)
class Outer(Record):
    byte: int = at(0, U8)
    short: int = at(2, U16)
    inner: Inner = at(16, record(Inner))
    text: bytes = at(40, raw(4))
    long: int = at(48, U64)


@layout(size=4)
class Signed(Record):
    number: int = at(0, S32)


def a(kind: type[Record]) -> st.SearchStrategy[Record]:
    fields = {}
    for name, field in kind._KINDS:
        if field.nested is not None:
            fields[name] = a(field.nested)
        elif field.code.endswith("s"):
            fields[name] = st.binary(min_size=field.size, max_size=field.size)
        else:
            least = -(1 << 8 * field.size - 1) if field.code.islower() else 0
            fields[name] = st.integers(least, least + (1 << 8 * field.size) - 1)
    return st.builds(kind, **fields)


def test_fields_lie_where_they_were_declared() -> None:
    stored = Outer(0x11, 0x2233, Inner(0x44556677), b"abcd", 0x8899AABBCCDDEEFF).encode()
    assert stored == bytes.fromhex(
        "11003322000000000000000000000000"
        "00000000000000007766554400000000"
        "00000000000000006162636400000000"
        "ffeeddccbbaa99880000000000000000"
    )


def test_a_signed_field_holds_a_descriptor_or_minus_one() -> None:
    assert Signed(-1).encode() == b"\xff" * 4
    assert Signed.decode(b"\xff" * 4).number == -1
    assert Signed.decode(b"\xff\xff\xff\x7f").number == 0x7FFF_FFFF


def test_every_record_is_here() -> None:
    names = {kind.__name__ for kind in RECORDS}
    assert {"Secs", "Sigstruct", "EnclaveAddPages", "SgxEnclaveRun", "ThreadRecord"} <= names


@pytest.mark.parametrize("kind", [*RECORDS, Outer], ids=lambda kind: kind.__name__)
def test_what_is_encoded_is_decoded(kind: type[Record]) -> None:
    @given(a(kind), st.integers(0, 40))
    def check(value: Record, offset: int) -> None:
        stored = value.encode()
        assert len(stored) == kind.SIZE
        assert kind.decode(stored) == value
        assert hash(kind.decode(stored)) == hash(value)
        assert kind.reserved_is_zero(stored)
        # What lay in the buffer before does not show in the reserved bytes, and nothing beside is touched.
        buffer = bytearray(b"\xff" * (offset + kind.SIZE + 8))
        value.encode_into(buffer, offset)
        assert buffer == b"\xff" * offset + stored + b"\xff" * 8
        assert kind.decode(memoryview(buffer), offset) == value
        assert kind.reserved_is_zero(memoryview(buffer), offset)

    check()


@pytest.mark.parametrize("kind", [*RECORDS, Outer], ids=lambda kind: kind.__name__)
def test_the_bytes_that_no_field_covers_are_reserved(kind: type[Record]) -> None:
    blank = kind.blank().encode()
    for index in range(kind.SIZE):
        buffer = bytearray(blank)
        buffer[index] = 1
        # A byte is either a field's or reserved, never both and never neither.
        assert (kind.decode(buffer) == kind.blank()) is not kind.reserved_is_zero(buffer)


def test_a_short_buffer_is_refused() -> None:
    with pytest.raises(struct.error):
        Outer.decode(bytes(63))
    with pytest.raises(struct.error):
        Outer.blank().encode_into(bytearray(100), 40)
    with pytest.raises(ValueError, match="Outer is 64 bytes; the buffer has 100, from 40"):
        Outer.reserved_is_zero(bytes(100), 40)


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Outer\.text is 4 bytes, not 3"):
        Outer.blank().replace(text=b"abc").encode()
    with pytest.raises(ValueError, match=r"Outer\.text is 4 bytes, not 5"):
        Outer.blank().replace(text=b"abcde").encode()
    with pytest.raises(struct.error):
        Outer.blank().replace(byte=256).encode()
    with pytest.raises(struct.error):
        Outer.blank().replace(byte=-1).encode()


def test_replace_changes_what_it_names_and_refuses_other_names() -> None:
    before = Outer.blank()
    after = before.replace(short=5)
    assert (before.short, after.short, after.long) == (0, 5, 0)
    with pytest.raises(TypeError, match="shrot"):
        before.replace(shrot=5)


def test_records_of_two_types_are_never_equal() -> None:
    assert ioctl.EnclaveCreate(1) != ioctl.EnclaveInit(1)


def test_a_record_shows_its_fields() -> None:
    assert repr(Inner(number=18)) == "Inner(number=0x12)"
    assert repr(structures.Pcmd.blank()).startswith(
        "Pcmd(secinfo=Secinfo(flags=0x0), enclaveid=0x0, mac="
    )


def test_overlapping_fields_fail_at_the_declaration() -> None:
    with pytest.raises(TypeError, match=r"Bad\.second at 4 overlaps the field before it"):

        @layout(size=16)
        class Bad(Record):
            first: int = at(0, U64)
            second: int = at(4, U32)


def test_a_field_beyond_the_size_fails_at_the_declaration() -> None:
    with pytest.raises(TypeError, match="Bad is 16 bytes, but its last field ends at 20"):

        @layout(size=16)
        class Bad(Record):
            last: int = at(12, U64)
