# SPDX-License-Identifier: Apache-2.0
"""The gdb remote stub of `softsgx run --gdb`: one connection, served between the run's stops.

Owns the listening socket, the connection, and the packets that wait until every thread of the program
stands. Nobody but this user may connect: who can debug can do anything.

Source: the GDB manual, appendix "GDB Remote Serial Protocol".
"""

import _socket
import contextlib
import ctypes
import os

from softsgx.errors import SoftsgxError
from softsgx.run import gdb_packets as wire
from softsgx.run import signals
from softsgx.run.debugger import Debugger, Stop
from softsgx.run.gdb_commands import Commands
from softsgx.run.gdb_registers import Registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from softsgx.run.observe import Observer
    from softsgx.run.tracee import Process, Tracee
    from softsgx.run.waiting import Waiter

_libc = ctypes.CDLL(None, use_errno=True)

_LOOPBACK = "127.0.0.1"
_RECEIVED = 1 << 16
# Seconds that gdb has for hanging up when the program has ended.
_PATIENCE = 1.0


def _of_this_user(peer: tuple[str, int], own: tuple[str, int]) -> bool:
    """Tell whether the other end of a connection within this machine is this user's, or root's."""

    def told(address: tuple[str, int]) -> bytes:
        number = int.from_bytes(_socket.inet_aton(address[0]), "little")
        return b"%08X:%04X" % (number, address[1])

    with open("/proc/net/tcp", "rb") as table:
        for line in table:
            fields = line.split()
            if fields[1:3] == [told(peer), told(own)]:
                return int(fields[7]) in (0, os.geteuid())
    return False


class GdbStub:
    """Serves gdb at a TCP port of this machine; 0 takes one that is free."""

    def __init__(self, port: int, observer: "Observer", registers: Registers) -> None:
        self._observer = observer
        self._registers = registers
        self._listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        self._listener.setblocking(False)
        try:
            self._listener.bind((_LOOPBACK, port))
            self._listener.listen(1)
        except OSError as error:
            raise SoftsgxError(f"--gdb {port}: {error.strerror}") from error
        self._connection: _socket.socket | None = None
        self._waiter: Waiter | None = None
        self.debugger: Debugger | None = None
        self._interrupts = -1
        self._packets = wire.Packets()
        self._queue: list[bytes] = []
        self._commands: Commands | None = None
        self._ended = False

    # -- the run ----------------------------------------------------------------------------

    def begin(
        self,
        waiter: "Waiter",
        tracees: "dict[int, Tracee]",
        leave: "Callable[[Tracee], None]",
    ) -> None:
        """Wait for gdb from now on."""
        self._waiter = waiter
        self.debugger = Debugger(tracees, self._on_stop, self._on_entered, leave)
        waiter.watch(self._listener.fileno())
        # Until gdb is there, Ctrl-C is meant for the program that stands.
        signals.set_default(signals.SIGINT)
        signals.block(signals.bits(signals.SIGINT))
        self._interrupts = signals.descriptor(signals.bits(signals.SIGINT))
        waiter.watch(self._interrupts)

    @property
    def fds(self) -> tuple[int, ...]:
        """Give the descriptors that `on_readable` is for."""
        connected = () if self._connection is None else (self._connection.fileno(),)
        return (self._listener.fileno(), self._interrupts, *connected)

    def on_readable(self, fd: int) -> None:
        """Handle one of them."""
        try:
            if fd == self._listener.fileno():
                self._accept()
            elif fd == self._interrupts:
                signals.read(fd)
                self.on_signal()
            else:
                self._receive()
        except Exception:  # noqa: BLE001  (who looks on must not end a run)
            self._observer.internal_error("at the gdb stub")
            self._disconnect()

    def on_signal(self) -> None:
        """Hear that the program was sent a signal to end; without gdb it is to get it."""
        debugger = self._debugger
        if self._connection is None and debugger.process is not None:
            debugger.let_go()

    def close(self) -> None:
        """Take the port away."""
        if self._connection is not None:
            # What it has sent and nobody has read would take the last packet away with it.
            self._connection.settimeout(_PATIENCE)
            with contextlib.suppress(OSError):
                self._connection.shutdown(_socket.SHUT_WR)
                while self._connection.recv(_RECEIVED):
                    continue
        self._disconnect()
        if self._waiter is not None:
            self._waiter.forget(self._listener.fileno())
            self._waiter.forget(self._interrupts)
            os.close(self._interrupts)
        self._listener.close()

    @property
    def process(self) -> "Process | None":
        """Give the process that is debugged."""
        return None if self.debugger is None else self.debugger.process

    def on_exec(self, tracee: "Tracee") -> None:
        """Hear that a program's image is ready, before its first instruction."""
        if self.process is None:
            program = os.readlink(f"/proc/{tracee.process.pid}/exe")
            port = self._listener.getsockname()[1]
            self._observer.say(
                f"process {tracee.process.pid} stands before its first instruction and waits for gdb: "
                f"gdb -ex 'target remote {_LOOPBACK}:{port}' {program}"
            )
        self._debugger.on_exec(tracee)

    @property
    def _debugger(self) -> Debugger:
        if self.debugger is None:
            raise RuntimeError("there is no program yet")
        return self.debugger

    def on_gone(self, tracee: "Tracee") -> None:
        """Hear that a thread has ended, and with its first thread the program."""
        if tracee.tid != tracee.process.pid:
            self._debugger.on_gone()
            return
        self._ended = True
        self._debugger.running = False
        if self._commands is not None:
            self._commands.on_exit(tracee.status)
        self._serve()

    def _on_stop(self, stop: Stop) -> None:
        if self._commands is not None:
            self._commands.on_stop(stop)
        self._serve()

    def _on_entered(self, encl: str, *, debug: bool) -> bool:
        return self._commands is not None and self._commands.on_entered(encl, debug=debug)

    # -- the connection -----------------------------------------------------------------------

    def _accept(self) -> None:
        flags = _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        fd: int = _libc.accept4(self._listener.fileno(), None, None, flags)
        if fd < 0:
            return
        connection = _socket.socket(fileno=fd)
        # The one before may have gone, and both be told of at once.
        self._receive()
        debugger = self._debugger
        try:
            allowed = _of_this_user(connection.getpeername(), connection.getsockname())
        except OSError:
            # It has left.
            allowed = False
        if self._connection is not None or self._ended or debugger.process is None or not allowed:
            connection.close()
            return
        connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._connection = connection
        self._packets, self._queue = wire.Packets(), []
        self._commands = Commands(debugger, self._registers, self._send, self._disconnect)
        if self._waiter is not None:
            self._waiter.watch(fd)
        debugger.take()
        if not all(debugger.of(t).stands for t in debugger.threads()):
            debugger.interrupt(0)

    def _receive(self) -> None:
        commands = self._commands
        if self._connection is None or commands is None:
            return
        try:
            data = self._connection.recv(_RECEIVED)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._disconnect()
            return
        for packet in self._packets.feed(data):
            if self._commands is not commands:
                # It was gone before all could be acknowledged.
                return
            if packet == wire.INTERRUPT:
                if commands.awaited:
                    self._debugger.interrupt(signals.SIGINT)
                continue
            if commands.acknowledges:
                self._raw(b"+" if packet is not None else b"-")
            if packet is not None:
                self._queue.append(packet)
        self._serve()

    def _serve(self) -> None:
        while self._queue and self._commands is not None and not self._debugger.running:
            answer = self._commands.answer(self._queue.pop(0))
            if answer is not None:
                self._send(answer)

    def _send(self, packet: bytes) -> None:
        self._raw(wire.framed(packet))

    def _raw(self, data: bytes) -> None:
        if self._connection is None:
            return
        try:
            sent = self._connection.send(data, _socket.MSG_NOSIGNAL)
        except OSError:
            sent = -1
        if sent != len(data):
            # It has gone, or does not read what it has asked for.
            self._disconnect()

    def _disconnect(self) -> None:
        """Let the program go on without gdb, which may come back."""
        if self._connection is None:
            return
        if self._waiter is not None:
            self._waiter.forget(self._connection.fileno())
        self._connection.close()
        self._connection = self._commands = None
        self._queue.clear()
        if not self._ended:
            self._debugger.let_go()
