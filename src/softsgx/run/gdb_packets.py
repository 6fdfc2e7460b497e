# SPDX-License-Identifier: Apache-2.0
"""The gdb remote serial protocol, as far as bytes go: packets, escapes, acknowledgements, signal numbers.

Owns what has been received of a packet that is not whole yet. Knows nothing of any program.

Source: the GDB manual, appendix "GDB Remote Serial Protocol"; include/gdb/signals.def.
"""

# What stands between packets: an interrupt, which is Ctrl-C in gdb.
INTERRUPT = b"\x03"
_ACK, _NAK = b"+", b"-"
_ESCAPE = 0x7D
_FLIP = 0x20
# Of what is sent, `*` would be taken for a run length.
_ESCAPED = frozenset(b"#$}*")

# gdb numbers signals by itself; up to 15 most are as in Linux.
_LINUX_TO_GDB = {
    **{number: number for number in (1, 2, 3, 4, 5, 6, 8, 9, 11, 13, 14, 15)},
    7: 10, 10: 30, 12: 31, 17: 20, 18: 19, 19: 17, 20: 18, 21: 21, 22: 22, 23: 16, 24: 24,
    25: 25, 26: 26, 27: 27, 28: 28, 29: 23, 30: 32, 31: 12, 32: 77, 64: 78,
    **{number: number + 12 for number in range(33, 64)},
}  # fmt: skip
_GDB_TO_LINUX = {theirs: number for number, theirs in _LINUX_TO_GDB.items()}
_UNKNOWN = 143


def gdb_signal(number: int) -> int:
    """Give gdb's number of a signal of Linux."""
    return _LINUX_TO_GDB.get(number, _UNKNOWN)


def linux_signal(number: int) -> int:
    """Give the signal of Linux that gdb means by a number; 0 for none."""
    return _GDB_TO_LINUX.get(number, 0)


def escape(data: bytes) -> bytes:
    """Encode binary data for a packet."""
    out = bytearray()
    for byte in data:
        if byte in _ESCAPED:
            out += bytes((_ESCAPE, byte ^ _FLIP))
        else:
            out.append(byte)
    return bytes(out)


def unescape(data: bytes) -> bytes:
    """Decode the binary data of a packet."""
    out = bytearray()
    rest = iter(data)
    for byte in rest:
        out.append(next(rest, 0) ^ _FLIP if byte == _ESCAPE else byte)
    return bytes(out)


def framed(packet: bytes) -> bytes:
    """Give a packet as it goes over the wire."""
    return b"$%b#%02x" % (packet, sum(packet) & 0xFF)


class Packets:
    """What comes in, cut into packets."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> "list[bytes | None]":
        """Take what was received; give the packets that are whole, INTERRUPT among them, None for a bad one."""
        data = self._rest + data
        packets: list[bytes | None] = []
        while data:
            if data[:1] != b"$":
                if data[:1] == INTERRUPT:
                    packets.append(INTERRUPT)
                # An acknowledgement; what is sent over a stream socket has arrived.
                data = data[1:]
                continue
            end = data.find(b"#")
            if end < 0 or len(data) < end + 3:
                break
            packet, check, data = data[1:end], data[end + 1 : end + 3], data[end + 3 :]
            good = check.lower() == b"%02x" % (sum(packet) & 0xFF)
            packets.append(packet if good else None)
        self._rest = data
        return packets
