# SPDX-License-Identifier: Apache-2.0
"""The bytes of the gdb remote serial protocol: framing, escapes, signal numbers."""

import signal

from hypothesis import given
from hypothesis import strategies as st

from softsgx.run.gdb_packets import (
    INTERRUPT,
    Packets,
    escape,
    framed,
    gdb_signal,
    linux_signal,
    unescape,
)


def test_packets_come_in_any_pieces() -> None:
    stream = b"+" + framed(b"qSupported") + b"+\x03" + framed(b"") + b"$bad#00" + framed(b"g")
    wanted = [b"qSupported", INTERRUPT, b"", None, b"g"]
    for size in range(1, len(stream) + 1):
        packets = Packets()
        found = []
        for at in range(0, len(stream), size):
            found += packets.feed(stream[at : at + size])
        assert found == wanted, size


def test_the_checksum_is_that_of_the_manual() -> None:
    # The GDB manual's own example of an acknowledged OK.
    assert framed(b"OK") == b"$OK#9a"


@given(st.binary())
def test_what_is_escaped_survives_a_packet(data: bytes) -> None:
    escaped = escape(data)
    assert not {*b"#$*"} & {*escaped}
    assert unescape(escaped) == data
    assert Packets().feed(framed(escaped)) == [escaped]


def test_signals_are_numbered_as_gdb_has_them() -> None:
    known = {"SIGINT": 2, "SIGTRAP": 5, "SIGBUS": 10, "SIGSEGV": 11, "SIGCHLD": 20, "SIGUSR1": 30}
    for name, number in known.items():
        assert gdb_signal(getattr(signal, name)) == number
    for number in range(1, 65):
        theirs = gdb_signal(number)
        if number != signal.SIGSTKFLT:  # gdb has none
            assert linux_signal(theirs) == number
    assert len({gdb_signal(number) for number in range(1, 65)}) == 64
    assert linux_signal(0) == 0
