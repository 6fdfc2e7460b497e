# SPDX-License-Identifier: Apache-2.0
"""What gdb asks for: one connection's commands and their answers.

Owns what gdb has chosen: threads, whether it waits for a stop. A command is carried out while every
thread of the program stands.

Source: the GDB manual, appendix "GDB Remote Serial Protocol".
"""

import os
import struct
from functools import partial

from softsgx.run import gdb_packets as wire
from softsgx.run import numbers as n
from softsgx.run import ptrace, signals
from softsgx.run.debugger import (
    BREAKPOINT,
    EXECUTED,
    HARDWARE,
    NOBODY,
    Action,
    Debugger,
    Stop,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from softsgx.run.gdb_registers import Registers
    from softsgx.run.ptrace import UserRegs
    from softsgx.run.tracee import Tracee

_PACKET_SIZE = 0x4000
_AT_SYSINFO_EHDR = 33
_ESRCH = 3
_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_HEX_DIGITS = 16
# Z1, Z2 and Z4: what DR7 has as R/W; no processor tells reads alone. And its LEN, by bytes.
_ON = {1: ptrace.ON_EXECUTION, 2: 1, 4: 3}
_LENGTHS = {1: 0, 2: 1, 4: 3, 8: 2}
_FEATURES = (
    "qXfer:features:read+",
    "qXfer:auxv:read+",
    "qXfer:exec-file:read+",
    "QStartNoAckMode+",
    "QPassSignals+",
    "vContSupported+",
    "swbreak+",
    "hwbreak+",
    "exec-events+",
    "no-resumed+",
)
_HELP = """enclaves               the enclaves of the program: base, size, debug, MRENCLAVE
stop-at-entry on|off   stop at the first instruction of each debug enclave (off)
"""


class _Bad(Exception):
    """A command cannot be carried out; the errno is the answer."""

    def __init__(self, number: int = 22) -> None:
        super().__init__(number)
        self.number = number


def _hex(text: bytes) -> int:
    # int() takes signs and spaces too, and numbers that no register holds.
    if len(text) > _HEX_DIGITS or not _DIGITS.issuperset(text):
        raise _Bad
    try:
        return int(text, 16)
    except ValueError:
        raise _Bad from None


def _unhex(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise _Bad from None


def _told(address: int, kind: int) -> bytes:
    match kind & 3:
        case ptrace.ON_EXECUTION:
            return b"hwbreak:;"
        case 1:
            return b"watch:%x;" % address
        case _:
            return b"awatch:%x;" % address


class Commands:
    """The commands of one connection.

    `send` takes a packet for gdb; `hang_up` ends the connection, with which the program goes on.
    """

    def __init__(
        self,
        debugger: Debugger,
        registers: "Registers",
        send: "Callable[[bytes], None]",
        hang_up: "Callable[[], None]",
    ) -> None:
        self._debugger = debugger
        self._registers = registers
        self._send = send
        self._hang_up = hang_up
        self.acknowledges = True
        # gdb waits for the answer to a resumption.
        self.awaited = False
        self._last: Stop | None = None
        self._ended = b""
        self._general = 0  # the thread of Hg
        self._resumed = 0  # the thread of Hc
        self._stop_at_entry = False
        self._description = registers.description()
        self._commands: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"?": lambda _: self._stop_reply(),
            b"g": self._read_registers,
            b"G": self._write_registers,
            b"p": self._read_register,
            b"P": self._write_register,
            b"m": self._read_memory,
            b"M": self._write_memory,
            b"X": self._write_binary,
            b"Z0,": self._insert,
            b"z0,": self._remove,
            **{b"Z%d," % number: partial(self._watch, number) for number in _ON},
            **{b"z%d," % number: partial(self._unwatch, number) for number in _ON},
            b"H": self._choose,
            b"T": self._is_alive,
            b"c": lambda rest: self._resume_chosen(b"c", rest),
            b"C": lambda rest: self._resume_chosen(b"C", rest),
            b"s": lambda rest: self._resume_chosen(b"s", rest),
            b"S": lambda rest: self._resume_chosen(b"S", rest),
            b"vCont?": lambda _: b"vCont;c;C;s;S;t;r",
            b"vCont;": self._resume,
            b"vKill;": self._kill,
            b"k": self._kill,
            b"D": self._detach,
            b"QStartNoAckMode": self._start_no_ack,
            b"QPassSignals:": self._pass_signals,
            b"qSupported": self._supported,
            b"qXfer:features:read:target.xml:": lambda r: self._part(r, self._description),
            b"qXfer:auxv:read::": lambda rest: self._part(rest, self._auxv()),
            b"qXfer:exec-file:read:": self._exec_file,
            b"qAttached": lambda _: b"1",
            b"qC": lambda _: b"QC%x" % self._thread().tid,
            b"qfThreadInfo": lambda _: b"m" + b",".join(b"%x" % t.tid for t in self._threads()),
            b"qsThreadInfo": lambda _: b"l",
            b"qThreadExtraInfo,": self._extra_info,
            b"qSymbol": lambda _: b"OK",
            b"qRcmd,": self._monitor,
        }
        self._by_length = sorted(self._commands, key=len, reverse=True)

    def answer(self, packet: bytes) -> bytes | None:
        """Carry out a command; give its answer, empty for one that is not known, None for none now."""
        for name in self._by_length:
            if packet.startswith(name):
                try:
                    return self._commands[name](packet[len(name) :])
                except _Bad as bad:
                    return b"E%02x" % (bad.number & 0xFF)
                except ptrace.TraceeGone:
                    return b"E%02x" % _ESRCH
                except OSError as error:
                    return b"E%02x" % ((error.errno or 5) & 0xFF)
        return b""

    def on_entered(self, encl: str, *, debug: bool) -> bool:
        """Hear of an enclave that is entered for the first time; tell whether to stop there."""
        if self.awaited:
            self._console(f"softsgx: enters an enclave: {encl}\n")
        return debug and self._stop_at_entry

    def on_stop(self, stop: Stop) -> None:
        """Hear that every thread stands, and why."""
        self._last = stop
        if stop.kind != NOBODY:
            self._general = self._resumed = stop.tid
        if self.awaited:
            self.awaited = False
            self._send(self._stop_reply())

    def on_exit(self, status: int) -> None:
        """Hear that the program has ended, by its wait status."""
        if os.WIFEXITED(status):
            self._ended = b"W%02x" % os.WEXITSTATUS(status)
        else:
            self._ended = b"X%02x" % wire.gdb_signal(os.WTERMSIG(status))
        if self.awaited:
            self.awaited = False
            self._send(self._ended)

    # -- stops and resumptions ------------------------------------------------------------------

    def _stop_reply(self) -> bytes:
        if self._ended:
            return self._ended
        stop = self._last
        if stop is None:
            return b"T%02xthread:%x;" % (n.SIGTRAP, self._thread().tid)
        if stop.kind == NOBODY:
            return b"N"
        reason = b""
        if stop.kind == BREAKPOINT:
            reason = b"swbreak:;"
        elif stop.kind == HARDWARE:
            reason = _told(*stop.place)
        elif stop.kind == EXECUTED:
            reason = b"exec:%b;" % os.fsencode(self._executable()).hex().encode()
        number = wire.gdb_signal(stop.signal) if stop.signal else 0
        return b"T%02x%bthread:%x;" % (number, reason, stop.tid)

    def _resume(self, rest: bytes) -> bytes | None:
        actions: dict[int, Action] = {}
        default: Action | None = None
        for text in rest.split(b";"):
            verb, colon, tid = text.partition(b":")
            action = self._action(verb)
            if not colon or tid == b"-1":
                default = default or action
            elif action is not None:
                actions.setdefault(_hex(tid), action)
        self._go(lambda tid: actions.get(tid, default))
        return None

    @staticmethod
    def _action(verb: bytes) -> Action | None:
        kind = verb[:1]
        if kind == b"t":
            return None
        if kind in (b"C", b"S"):
            return Action(wire.linux_signal(_hex(verb[1:])), step=kind == b"S")
        if kind == b"r":
            start, _, end = verb[1:].partition(b",")
            return Action(step=True, stays_in=range(_hex(start), _hex(end)))
        if kind not in (b"c", b"s"):
            raise _Bad
        return Action(step=kind == b"s")

    def _resume_chosen(self, verb: bytes, rest: bytes) -> bytes | None:
        number, _, address = rest.partition(b";") if verb in (b"C", b"S") else (b"", b"", rest)
        if address:
            tracee = self._thread(self._resumed)
            tracee.regs.rip = _hex(address)
            tracee.store_regs()
        action = self._action(verb + number)
        chosen = self._resumed
        others = Action()
        self._go(lambda tid: action if tid == chosen or chosen <= 0 else others)
        return None

    def _go(self, action_of: "Callable[[int], Action | None]") -> None:
        if self._ended:
            self._send(self._ended)
            return
        self.awaited = True
        self._debugger.resume(action_of)

    def _kill(self, rest: bytes) -> bytes | None:
        process = self._debugger.process
        if process is not None and not self._ended:
            self._debugger.let_go()
            os.kill(process.pid, signals.SIGKILL)
        return b"OK" if rest else None

    def _detach(self, _: bytes) -> None:
        self._send(b"OK")
        self._hang_up()

    # -- threads ----------------------------------------------------------------------------

    def _threads(self) -> "list[Tracee]":
        threads = self._debugger.threads()
        if not threads:
            raise _Bad(_ESRCH)
        return threads

    def _thread(self, tid: int | None = None) -> "Tracee":
        tid = self._general if tid is None else tid
        found = self._debugger.thread(tid) if tid > 0 else None
        if found is None and tid <= 0:
            found = self._threads()[0]
        if found is None or not self._debugger.of(found).stands:
            raise _Bad(_ESRCH)
        return found

    def _choose(self, rest: bytes) -> bytes:
        tid = -1 if rest[1:] == b"-1" else _hex(rest[1:])
        if tid > 0 and self._debugger.thread(tid) is None:
            raise _Bad(_ESRCH)
        if rest[:1] == b"g":
            self._general = tid
        else:
            self._resumed = tid
        return b"OK"

    def _is_alive(self, rest: bytes) -> bytes:
        if self._debugger.thread(_hex(rest)) is None:
            raise _Bad(_ESRCH)
        return b"OK"

    def _extra_info(self, rest: bytes) -> bytes:
        tracee = self._debugger.thread(_hex(rest))
        if tracee is None:
            raise _Bad(_ESRCH)
        thread = tracee.lp.thread if tracee.lp is not None else None
        told = "outside"
        if thread is not None:
            told = f"inside the enclave at {thread.secs.baseaddr:#x} by TCS {thread.linaddr:#x}"
        return told.encode().hex().encode()

    # -- registers and memory -------------------------------------------------------------------

    def _regs(self) -> "tuple[Tracee, UserRegs]":
        tracee = self._thread()
        return tracee, tracee.regs

    def _read_registers(self, _: bytes) -> bytes:
        tracee, regs = self._regs()
        return self._registers.read_all(tracee.tid, regs).hex().encode()

    def _write_registers(self, rest: bytes) -> bytes:
        tracee, regs = self._regs()
        self._registers.write_all(tracee.tid, regs, _unhex(rest))
        return b"OK"

    def _read_register(self, rest: bytes) -> bytes:
        number = _hex(rest)
        if number >= len(self._registers):
            raise _Bad
        tracee, regs = self._regs()
        return self._registers.read(tracee.tid, regs, number).hex().encode()

    def _write_register(self, rest: bytes) -> bytes:
        number, _, value = rest.partition(b"=")
        if _hex(number) >= len(self._registers):
            raise _Bad
        tracee, regs = self._regs()
        self._registers.write(tracee.tid, regs, _hex(number), _unhex(value))
        return b"OK"

    def _read_memory(self, rest: bytes) -> bytes:
        address, _, length = rest.partition(b",")
        wanted = min(_hex(length), _PACKET_SIZE // 2)
        mm = self._thread().mm
        return self._debugger.memory.read(mm, _hex(address), wanted).hex().encode()

    def _write_memory(self, rest: bytes) -> bytes:
        place, _, data = rest.partition(b":")
        self._debugger.memory.write(self._thread().mm, _hex(place.partition(b",")[0]), _unhex(data))
        return b"OK"

    def _write_binary(self, rest: bytes) -> bytes:
        place, _, data = rest.partition(b":")
        address = _hex(place.partition(b",")[0])
        if data:
            self._debugger.memory.write(self._thread().mm, address, wire.unescape(data))
        return b"OK"

    def _insert(self, rest: bytes) -> bytes:
        address, _, kind = rest.partition(b",")
        if kind.partition(b";")[0] not in (b"1", b"0"):
            raise _Bad
        self._debugger.memory.insert(self._threads()[0].mm, _hex(address))
        return b"OK"

    def _remove(self, rest: bytes) -> bytes:
        self._debugger.memory.remove(self._threads()[0].mm, _hex(rest.partition(b",")[0]))
        return b"OK"

    @staticmethod
    def _place(number: int, rest: bytes) -> tuple[int, int]:
        address, _, kind = rest.partition(b",")
        at, length = _hex(address), _hex(kind.partition(b";")[0])
        if number == 1:
            return at, _ON[number]
        if length not in _LENGTHS or at % length:
            raise _Bad
        return at, _ON[number] | _LENGTHS[length] << 2

    def _watch(self, number: int, rest: bytes) -> bytes:
        self._debugger.watch(*self._place(number, rest))
        return b"OK"

    def _unwatch(self, number: int, rest: bytes) -> bytes:
        self._debugger.unwatch(*self._place(number, rest))
        return b"OK"

    # -- queries ----------------------------------------------------------------------------

    def _supported(self, rest: bytes) -> bytes:
        self._debugger.stops_at_exec = b"exec-events+" in rest
        return ";".join((f"PacketSize={_PACKET_SIZE:x}", *_FEATURES)).encode()

    def _start_no_ack(self, _: bytes) -> None:
        self._send(b"OK")
        self.acknowledges = False

    def _pass_signals(self, rest: bytes) -> bytes:
        numbers = [wire.linux_signal(_hex(number)) for number in rest.split(b";") if number]
        self._debugger.passed = frozenset(number for number in numbers if number)
        return b"OK"

    @staticmethod
    def _part(rest: bytes, whole: bytes) -> bytes:
        start, _, length = rest.partition(b",")
        at, wanted = _hex(start), min(_hex(length), _PACKET_SIZE // 2 - 1)
        part = whole[at : at + wanted]
        return (b"l" if at + wanted >= len(whole) else b"m") + wire.escape(part)

    def _executable(self) -> str:
        process = self._debugger.process
        return os.readlink(f"/proc/{process.pid}/exe") if process is not None else ""

    def _exec_file(self, rest: bytes) -> bytes:
        return self._part(rest.partition(b":")[2], os.fsencode(self._executable()))

    def _auxv(self) -> bytes:
        # The kernel remembers its own vDSO, where the program has seen ours.
        tracee = self._threads()[0]
        with open(f"/proc/{tracee.process.pid}/auxv", "rb") as file:
            entries = list(struct.iter_unpack("<QQ", file.read()))
        return b"".join(
            struct.pack("<QQ", key, tracee.mm.image if key == _AT_SYSINFO_EHDR else value)
            for key, value in entries
        )

    def _console(self, text: str) -> None:
        self._send(b"O" + text.encode().hex().encode())

    # -- monitor ----------------------------------------------------------------------------

    def _monitor(self, rest: bytes) -> bytes:
        words = _unhex(rest).decode(errors="replace").split()
        match words:
            case ["enclaves"]:
                text = (
                    "".join(line + "\n" for line in self._debugger.encls())
                    or "no enclave is mapped\n"
                )
            case ["stop-at-entry", "on" | "off" as choice]:
                self._stop_at_entry = choice == "on"
                text = ""
            case _:
                text = _HELP
        for line in text.splitlines(keepends=True):
            self._console(line)
        return b"OK"
