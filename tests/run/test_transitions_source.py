# SPDX-License-Identifier: Apache-2.0
"""What csrc/vdso/transitions.S and the supervisor both know: the layout of records and tables, and of a stack."""

import re
import struct
from pathlib import Path

import pytest

from softsgx.arch.thread import STATE_OPEN, TcsRecord, ThreadRecord
from softsgx.run import fast_path, fast_stops, slots
from softsgx.run.records import SPACE_SIZE

SOURCE = Path(__file__).parents[2] / "csrc" / "vdso" / "transitions.S"


@pytest.fixture(scope="module")
def defined() -> dict[str, str]:
    """Return the #defines by name."""
    text = re.sub(r"/\*.*?\*/", "", SOURCE.read_text(), flags=re.DOTALL)
    return dict(re.findall(r"^#define\s+(\w+)\s+(.*\S)\s*$", text, re.MULTILINE))


def test_the_fields_of_the_records_are_where_they_are_said_to_be(defined: dict[str, str]) -> None:
    for prefix, record, least in (("T_", ThreadRecord, 10), ("R_", TcsRecord, 8)):
        fields = {
            name.removeprefix(prefix).lower(): int(value)
            for name, value in defined.items()
            if name.startswith(prefix)
        }
        assert len(fields) >= least
        assert fields.items() <= record.OFFSETS.items()
    assert int(defined["OPEN"]) == STATE_OPEN


def test_a_slot_finds_the_thread_of_a_tcs_and_names_its_way_out_where_the_source_has_them() -> None:
    thread, site = TcsRecord.OFFSETS["thread"], ThreadRecord.OFFSETS["site"]
    code = slots.exit_slot(0, b"\x90" * 5, 4096, 8192, 4096, by_fs=False, shift=12)
    assert b"\x48\x8b\x49" + bytes([thread]) in code  # mov R_THREAD(%rcx), %rcx
    assert b"\x48\x89\x41" + bytes([site]) in code  # mov %rax, T_SITE(%rcx)


def test_the_tables_have_the_same_size_on_both_sides(defined: dict[str, str]) -> None:
    assert int(defined["THREADS"]) == fast_path._THREADS
    assert int(defined["TCSS"]) == fast_path._TCSS
    assert int(defined["THREAD_SIZE"]) == fast_path._THREAD_QUADS * 8
    assert int(defined["TCS_SIZE"]) == fast_path._TCS_QUADS * 8
    assert int(defined["PROBES"]) == fast_path._PROBES
    at = eval(  # noqa: S307  (an expression of our own source)
        defined["TCSS_AT"],
        {name: int(defined[name]) for name in ("THREADS", "PROBES", "THREAD_SIZE")},
    )
    assert at == fast_path._TCSS_AT * 8
    assert at + (fast_path._TCSS + fast_path._PROBES) * fast_path._TCS_QUADS * 8 <= SPACE_SIZE


def test_the_same_place_of_a_table_is_looked_at_first(defined: dict[str, str]) -> None:
    factor, shift = int(defined["SPREAD"], 16), int(defined["SPREAD_SHIFT"])
    for key in (0, 4096, 0x7FFF_F7D8_A740, (1 << 64) - 1, 1 << 64):
        product = struct.unpack("<Q", struct.pack("<Q", key * factor % (1 << 64)))[0]
        assert fast_path._spread(key) == product >> shift


def test_every_place_is_looked_at(defined: dict[str, str]) -> None:
    text = SOURCE.read_text()
    looked_at = [
        [int(word) for word in found.split(",")] for found in re.findall(r"\.irp\s+at, (.*)", text)
    ]
    probes = range(int(defined["PROBES"]))
    sizes = int(defined["THREAD_SIZE"]), int(defined["TCS_SIZE"])
    assert looked_at == [[number * size for number in probes] for size in sizes]


def test_what_lies_on_the_stack_is_read_where_it_was_put(defined: dict[str, str]) -> None:
    names = ("TARGET", "FLAGS", "RDI", "RDX", "AEP", "BEHIND")
    places = [int(defined[name].removesuffix("(%rsp)")) for name in names]
    assert places == [8 * number - fast_stops._STACK_AT for number in range(len(names))]
    # Below what a signal leaves alone, or its frame would come to lie in it.
    assert max(places) + 8 <= -128
