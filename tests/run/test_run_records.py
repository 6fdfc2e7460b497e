# SPDX-License-Identifier: Apache-2.0
"""The table of records that programs and supervisor share."""

import os

import pytest

from softsgx.arch.thread import TcsRecord, ThreadRecord
from softsgx.run.records import TABLE_SIZE, RecordTable
from softsgx.run.tracee import LENT_PATH

SLOTS = 1 << 16
TCS_AT = SLOTS * ThreadRecord.SIZE


def shared(table: RecordTable, at: int, length: int) -> bytes:
    """Read what another process that maps the descriptor sees."""
    return os.pread(table.fd, length, at)


def test_the_table_has_the_size_that_is_mapped() -> None:
    table = RecordTable()
    assert os.fstat(table.fd).st_size == TABLE_SIZE > TCS_AT + SLOTS * TcsRecord.SIZE
    assert not os.get_inheritable(table.fd)


def test_threads_have_slots_of_their_own_in_shared_memory() -> None:
    table = RecordTable()
    lent = [table.thread() for _ in range(3)]
    assert [slot for slot, _ in lent] == [0, 1, 2]
    for slot, record in lent:
        record[:] = bytes([slot + 1]) * ThreadRecord.SIZE
    for slot, _ in lent:
        seen = shared(table, slot * ThreadRecord.SIZE, ThreadRecord.SIZE)
        assert seen == bytes([slot + 1]) * ThreadRecord.SIZE


def test_a_slot_given_back_is_lent_again_and_empty() -> None:
    table = RecordTable()
    slot, record = table.thread()
    record[:] = b"\xff" * ThreadRecord.SIZE
    table.thread()
    table.give_back_thread(slot)
    again, record = table.thread()
    assert again == slot
    assert bytes(record) == bytes(ThreadRecord.SIZE)
    assert table.thread()[0] == 2


def test_too_many_threads_are_refused_by_name() -> None:
    table = RecordTable()
    table._thread_count = SLOTS
    with pytest.raises(RuntimeError, match="more than 65536 threads"):
        table.thread()


def test_tcs_records_follow_the_threads_and_go_with_their_enclave() -> None:
    table = RecordTable()
    first = [table.tcs(1, 0x1000 * at) for at in range(2)]
    other = table.tcs(2, 0x9000)
    for number, record in enumerate((*first, other), 1):
        record[:] = bytes([number]) * TcsRecord.SIZE
    for number in (1, 2, 3):
        at = TCS_AT + (number - 1) * TcsRecord.SIZE
        assert shared(table, at, TcsRecord.SIZE) == bytes([number]) * TcsRecord.SIZE
    table.give_back_enclave(1)
    lent = [table.tcs(3, 0x1000 * at) for at in range(3)]
    assert all(bytes(record) == bytes(TcsRecord.SIZE) for record in lent)
    assert bytes(other) == b"\x03" * TcsRecord.SIZE
    for record in lent:
        record[:] = b"\x07" * TcsRecord.SIZE
    # The two slots of enclave 1, and a fresh one behind enclave 2's.
    sevens = shared(table, TCS_AT, 4 * TcsRecord.SIZE).count(b"\x07")
    assert sevens == 3 * TcsRecord.SIZE
    assert bytes(other) == b"\x03" * TcsRecord.SIZE


def test_giving_back_an_enclave_without_tcs_is_nothing() -> None:
    table = RecordTable()
    table.give_back_enclave(7)
    assert len(table.tcs(7, 0)) == TcsRecord.SIZE


def test_a_tcs_beyond_the_table_is_held_outside_it() -> None:
    table = RecordTable()
    table._tcs_count = SLOTS
    record = table.tcs(1, 0)
    record[:] = b"\xff" * TcsRecord.SIZE
    assert not any(shared(table, TABLE_SIZE - TcsRecord.SIZE, TcsRecord.SIZE))
    # It is no slot of the table: giving back the enclave must not lend it to another one.
    table.give_back_enclave(1)
    assert bytes(table.tcs(2, 0)) == bytes(TcsRecord.SIZE)
    assert os.fstat(table.fd).st_size == TABLE_SIZE


def test_the_path_of_what_is_lent_is_no_path_that_exists() -> None:
    assert not os.path.lexists(LENT_PATH)
