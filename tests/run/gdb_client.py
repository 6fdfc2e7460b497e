# SPDX-License-Identifier: Apache-2.0
"""The gdb side of the remote serial protocol, as far as the tests of `softsgx run --gdb` go."""

import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = 60
RAX, RDI, RSP, RIP = 0, 5, 7, 16


class Stopped(NamedTuple):
    """A stop reply: W and X have a status in `signal`, T has its pairs."""

    kind: str
    signal: int
    told: dict[str, str]


def symbols(path: Path) -> dict[str, int]:
    """Give the symbols of an executable, by `nm`."""
    lines = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    fields = [line.split() for line in lines.splitlines()]
    return {name: int(value, 16) for value, _, name in (f for f in fields if len(f) == 3)}


class Client:
    """One connection to the stub."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        # Acknowledgement and command go out one after the other.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""
        self.console: list[str] = []

    def close(self) -> None:
        self.socket.close()

    def _byte(self) -> bytes:
        if not self.rest:
            self.rest = self.socket.recv(1 << 16)
            if not self.rest:
                raise EOFError("the stub has hung up")
        byte, self.rest = self.rest[:1], self.rest[1:]
        return byte

    def send(self, packet: bytes) -> None:
        self.socket.sendall(b"$%b#%02x" % (packet, sum(packet) & 0xFF))

    def receive(self) -> bytes:
        while (byte := self._byte()) != b"$":
            assert byte in b"+-"
        packet = b""
        while (byte := self._byte()) != b"#":
            packet += byte
        check = self._byte() + self._byte()
        assert int(check, 16) == sum(packet) & 0xFF
        # Behind the last packet there may be nobody any more.
        with suppress(OSError):
            self.socket.sendall(b"+")
        return packet

    def ask(self, packet: bytes) -> bytes:
        self.send(packet)
        return self.receive()

    def ok(self, packet: bytes) -> None:
        assert self.ask(packet) == b"OK", packet

    def stop(self) -> Stopped:
        while (packet := self.receive())[:1] == b"O":
            self.console.append(bytes.fromhex(packet[1:].decode()).decode())
        kind, rest = packet[:1].decode(), packet[1:].decode()
        told = dict(pair.split(":", 1) for pair in rest[2:].split(";") if pair)
        if kind in "WX":
            self.close()
        return Stopped(kind, int(rest[:2] or "0", 16), told)

    def resume(self, packet: bytes = b"vCont;c") -> Stopped:
        self.send(packet)
        return self.stop()

    def monitor(self, command: str) -> str:
        self.send(b"qRcmd," + command.encode().hex().encode())
        text = ""
        while (packet := self.receive())[:1] == b"O" and packet != b"OK":
            text += bytes.fromhex(packet[1:].decode()).decode()
        assert packet == b"OK"
        return text

    def whole(self, what: bytes) -> bytes:
        """Give a whole object of qXfer."""
        data = b""
        while True:
            part = self.ask(b"qXfer:%b:%x,%x" % (what, len(data), 0x300))
            raw = re.sub(rb"}(.)", lambda m: bytes([m[1][0] ^ 0x20]), part[1:], flags=re.DOTALL)
            data += raw
            if part[:1] == b"l":
                return data
            assert part[:1] == b"m"
            assert raw

    # -- registers and memory -------------------------------------------------------------------

    def register(self, number: int) -> int:
        return int.from_bytes(bytes.fromhex(self.ask(b"p%x" % number).decode()), "little")

    @property
    def pid(self) -> int:
        thread = self.ask(b"qC").removeprefix(b"QC")
        return int(thread, 16)

    @property
    def rip(self) -> int:
        return self.register(RIP)

    def read(self, address: int, length: int = 8) -> bytes:
        answer = self.ask(b"m%x,%x" % (address, length))
        if answer[:1] == b"E" and len(answer) == 3:
            raise OSError(int(answer[1:], 16), f"reading {address:#x}")
        return bytes.fromhex(answer.decode())

    def word(self, address: int) -> int:
        return struct.unpack("<Q", self.read(address))[0]

    def step(self, tid: str = "") -> Stopped:
        return self.resume(b"vCont;s" + (b":" + tid.encode() if tid else b""))


@contextmanager
def waiting(softsgx: Any, *argv: str | Path) -> Iterator[tuple[subprocess.Popen[str], Client, str]]:
    """Start a program under --gdb and connect; gives the process, the client and what was said."""
    command = softsgx.command(*argv, options=("--gdb", "0"))
    with softsgx.started(command) as process:
        said = process.stderr.readline()
        found = re.search(r"target remote 127\.0\.0\.1:(\d+)", said)
        assert found, said
        client = Client(int(found[1]))
        try:
            yield process, client, said
        finally:
            client.close()
