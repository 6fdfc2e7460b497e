# SPDX-License-Identifier: Apache-2.0
"""`softsgx run --gdb`: a debugger on the host and in debug enclaves, by the protocol and by gdb itself."""

import errno
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from gdb_client import RAX, RDI, RSP, Client, Stopped, symbols, waiting

TIMEOUT = 120
USERFAULTFD = 323
PROGRAMS = Path(__file__).parents[1] / "programs"
INT3 = b"\xcc"
# gdb's own numbers of signals.
GDB_SIGINT, GDB_SIGTRAP, GDB_SIGUSR1 = 2, 5, 30


def program(softsgx: Any) -> Path:
    return softsgx.program("debugged", "-no-pie", "-Wl,-z,now", "-g")


def arguments(softsgx: Any, kind: str, *more: str) -> list[str | Path]:
    enclave = softsgx.enclave(debug=kind == "debug")
    return [program(softsgx), *enclave, kind, *more]


def to_built(softsgx: Any, client: Client) -> dict[str, int]:
    """Run to where the enclave is built; give the host's symbols and the enclave's addresses."""
    found = symbols(program(softsgx))
    client.ok(b"Z0,%x,1" % found["built"])
    stopped = client.resume()
    assert (stopped.signal, "swbreak" in stopped.told) == (GDB_SIGTRAP, True)
    assert client.rip == found["built"]
    client.ok(b"z0,%x,1" % found["built"])
    base = client.register(RDI)
    enclave = symbols(Path(softsgx.enclave()[0]))
    for name in ("enclave_main", "kept"):
        found[name] = base + enclave[name]
    return {**found, "base": base}


def ended(process: "subprocess.Popen[str]", softsgx: Any) -> str:
    result = softsgx.end_of(process)
    assert result.status == 0, result
    assert result.out.endswith("finished\n"), result
    return result.out


# -- the host -----------------------------------------------------------------------------------


def test_a_program_waits_at_its_first_instruction_and_is_told_of(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug")) as (process, client, said):
        pid = client.pid
        assert said.startswith(f"softsgx: process {pid} stands before its first instruction")
        assert said.rstrip().endswith(str(program(softsgx)))
        assert client.ask(b"?") == b"T05thread:%x;" % pid
        assert client.ask(b"qAttached") == b"1"
        assert client.whole(b"exec-file:read:%x" % pid) == os.fsencode(program(softsgx))
        auxv = dict(struct.iter_unpack("<QQ", client.whole(b"auxv:read:")))
        # The vDSO that the program finds is ours; the C library's loader has not run.
        assert client.read(auxv[33], 4) == b"\x7fELF"
        assert auxv[9] == symbols(program(softsgx))["_start"]
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "libc.so" not in maps
        assert client.resume() == Stopped("W", 0, {})
        ended(process, softsgx)


def test_the_description_and_the_registers_agree(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug")) as (process, client, _):
        root = ET.fromstring(client.whole(b"features:read:target.xml"))  # noqa: S314  (our own)
        assert root.findtext("architecture") == "i386:x86-64"
        sizes = {reg.get("name"): int(reg.get("bitsize", "0")) // 8 for reg in root.iter("reg")}
        assert {
            "rip",
            "eflags",
            "st7",
            "fop",
            "xmm15",
            "mxcsr",
            "orig_rax",
            "fs_base",
            "gs_base",
        } <= {*sizes}
        everything = bytes.fromhex(client.ask(b"g").decode())
        assert len(everything) == sum(sizes.values())
        at = 0
        for number, (name, size) in enumerate(sizes.items()):
            one = bytes.fromhex(client.ask(b"p%x" % number).decode())
            assert one == everything[at : at + size], name
            at += size
        assert client.ask(b"p%x" % len(sizes)) == b"E16"
        # What is written is read, in one packet or one by one.
        names = list(sizes)
        values = {
            "r12": 0x1122334455667788,
            "xmm3": 3 << 100 | 7,
            "mxcsr": 0x1FA0,
            "st2": 5 << 64 | 9,
        }
        if "ymm5h" in sizes:
            values["ymm5h"] = 1 << 127 | 1
        for name, value in values.items():
            encoded = value.to_bytes(sizes[name], "little").hex().encode()
            client.ok(b"P%x=%b" % (names.index(name), encoded))
            assert client.register(names.index(name)) == value, name
        changed = client.ask(b"g")
        client.ok(b"G" + everything.hex().encode())
        assert client.register(names.index("r12")) != values["r12"]
        client.ok(b"G" + changed)
        for name, value in values.items():
            assert client.register(names.index(name)) == value, name
        client.ok(b"G" + everything.hex().encode())
        assert client.resume().kind == "W"
        ended(process, softsgx)


def test_breakpoints_do_not_show_and_memory_is_written(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug")) as (process, client, _):
        found = to_built(softsgx, client)
        before = client.read(found["twice"], 16)
        client.ok(b"Z0,%x,1" % found["twice"])
        assert client.read(found["twice"], 16) == before
        pid = client.pid
        with Path(f"/proc/{pid}/mem").open("rb") as memory:
            memory.seek(found["twice"])
            assert memory.read(16) == INT3 + before[1:]
        # Written over, it stays in place.
        client.ok(b"X%x,2:%b" % (found["twice"], before[:2].replace(b"}", b"}]")))
        assert client.resume().told["swbreak"] == ""
        assert client.rip == found["twice"]
        assert client.register(RDI) == 7
        client.ok(b"P%x=%b" % (RDI, (50).to_bytes(8, "little").hex().encode()))
        client.ok(b"z0,%x,1" % found["twice"])
        client.ok(b"M%x,8:%b" % (found["turns"], (900).to_bytes(8, "little").hex().encode()))
        step = client.step()
        assert (step.kind, step.signal, step.told.get("swbreak")) == ("T", GDB_SIGTRAP, None)
        assert found["twice"] < client.rip < found["twice"] + 16
        assert client.resume().kind == "W"
        assert "twice 100\n" in ended(process, softsgx)


def test_what_cannot_be_done_is_an_error(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug")) as (process, client, _):
        for packet in (b"m10,8", b"M10,1:00", b"X10,1:a", b"Z0,10,1"):
            assert client.ask(packet) == b"E%02x" % errno.EFAULT, packet
        for packet in (b"Z3,10,8", b"vFile:open:2f,0,0", b"vMustReplyEmpty", b"R00"):
            assert client.ask(packet) == b"", packet
        assert client.ask(b"Hg7fffffff") == b"E03"
        assert client.ask(b"T7fffffff") == b"E03"
        # No number at all, or none that a register holds.
        for text in (b"xyz", b"-1", b"0x10", b"1_0", b" 1", b"1" + b"0" * 16):
            for packet in (b"m%b,1", b"M%b,1:00", b"p%b", b"s%b", b"C05;%b", b"z0,%b,1"):
                assert client.ask(packet % text) == b"E16", packet % text
        client.socket.sendall(b"$?#00")
        assert client._byte() == b"-"
        client.ok(b"QStartNoAckMode")
        assert client.ask(b"qfThreadInfo").startswith(b"m")
        assert client.ask(b"qsThreadInfo") == b"l"
        assert "enclaves" in client.monitor("help")
        assert client.monitor("enclaves") == "no enclave is mapped\n"
        client.ok(b"vKill;1")
        assert softsgx.end_of(process).status == -signal.SIGKILL


def test_stepping_goes_over_what_traps_for_softsgx(softsgx: Any) -> None:
    # CPUID, system calls that a filter stops, ENCLU: each is one instruction, and no thread runs away.
    with waiting(softsgx, *arguments(softsgx, "production")) as (process, client, _):
        found = to_built(softsgx, client)
        client.ok(b"Z0,%x,1" % found["call_vdso_on"])
        client.resume()
        client.ok(b"z0,%x,1" % found["call_vdso_on"])
        seen, tries = [], 0
        base = found["base"]
        while b"\x0f\x01\xd7" not in (code := client.read(client.rip, 3)):
            assert code
            client.step()
            tries += 1
            assert tries < 200
        enclu = client.rip
        assert client.register(RAX) & 0xFFFFFFFF == 2
        # A production enclave has not opted in: entering and leaving is one instruction.
        client.step()
        seen.append(client.rip)
        assert seen == [enclu + 3]
        assert not base <= client.rip < base + 0x80000
        assert client.resume().kind == "W"
        assert "got 7\n" in ended(process, softsgx)


def test_stepping_over_a_system_call_that_is_answered(softsgx: Any) -> None:
    # An open that a notification answers, an ioctl that a filter stops, a close that nobody sees.
    with waiting(softsgx, *arguments(softsgx, "debug")) as (process, client, _):
        found = to_built(softsgx, client)
        client.ok(b"Z0,%x,1" % found["refused_ioctl"])
        client.resume()
        client.ok(b"z0,%x,1" % found["refused_ioctl"])
        back = client.word(client.register(RSP))
        calls = steps = 0
        while (before := client.rip) != back:
            is_call = client.read(before, 2) == b"\x0f\x05"
            client.step()
            if is_call:
                calls += 1
                assert client.rip == before + 2
            steps += 1
            assert steps < 2000
        assert calls == 3
        assert client.register(RAX) == errno.EFAULT
        client.ok(b"D")
        ended(process, softsgx)


# -- enclaves -----------------------------------------------------------------------------------


def test_a_debug_enclave_is_broken_into_stepped_read_and_written(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug")) as (process, client, _):
        found = to_built(softsgx, client)
        line = client.monitor("enclaves")
        assert re.fullmatch(
            rf"base {found['base']:#x}, size 0x80000, debug, MRENCLAVE [0-9a-f]{{64}}\n", line
        )
        text = client.read(found["enclave_main"], 64)
        client.ok(b"Z0,%x,1" % found["enclave_main"])
        assert client.read(found["enclave_main"], 64) == text
        stopped = client.resume()
        assert "swbreak" in stopped.told
        assert client.rip == found["enclave_main"]
        assert any("enters an enclave" in line for line in client.console)
        tid = client.ask(b"qC")[2:]
        info = bytes.fromhex(client.ask(b"qThreadExtraInfo," + tid).decode()).decode()
        assert info.startswith(f"inside the enclave at {found['base']:#x} by TCS")
        client.ok(b"z0,%x,1" % found["enclave_main"])
        for _ in range(5):
            at = client.rip
            step = client.step()
            assert (step.kind, step.signal) == ("T", GDB_SIGTRAP)
            assert client.rip != at
            assert found["base"] <= client.rip < found["base"] + 0x80000
        client.ok(b"Z0,%x,1" % found["enclave_main"])
        assert "swbreak" in client.resume().told
        assert client.word(found["kept"]) == 7
        client.ok(b"M%x,1:15" % found["kept"])
        client.ok(b"z0,%x,1" % found["enclave_main"])
        # The TCS shows what EDBGRD shows of one, and has opted in.
        tcs = found["base"]
        assert client.word(tcs + 8) == 1
        assert len(client.read(tcs, 72)) == 72
        with pytest.raises(OSError, match="reading") as caught:
            client.read(tcs + 72, 8)
        assert caught.value.errno == errno.EIO
        assert client.ask(b"M%x,8:%b" % (tcs + 16, b"00" * 8)) == b"E%02x" % errno.EIO
        assert client.resume().kind == "W"
        assert "got 21\n" in ended(process, softsgx)


def test_stepping_leaves_a_debug_enclave_as_it_goes_in(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug")) as (process, client, _):
        found = to_built(softsgx, client)
        client.monitor("stop-at-entry on")
        # It opts in only where somebody breaks or writes: the first entry stops all the same.
        stopped = client.resume()
        assert stopped.signal == GDB_SIGTRAP
        entry = client.rip
        assert found["base"] <= entry < found["base"] + 0x80000
        client.ok(b"Z0,%x,1" % found["enclave_main"])
        client.ok(b"z0,%x,1" % found["enclave_main"])
        inside = True
        for _ in range(400):
            client.step()
            if not found["base"] <= client.rip < found["base"] + 0x80000:
                inside = False
                break
        assert not inside
        assert client.resume().kind == "W"
        assert "got 7\n" in ended(process, softsgx)


def test_of_a_production_enclave_nothing_can_be_seen_or_changed(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "production")) as (process, client, _):
        found = to_built(softsgx, client)
        assert ", production, MRENCLAVE " in client.monitor("enclaves")
        refused = b"E%02x" % errno.EFAULT
        for packet in (
            b"m%x,8" % found["kept"],
            b"M%x,1:00" % found["kept"],
            b"X%x,1:a" % found["kept"],
            b"Z0,%x,1" % found["enclave_main"],
        ):
            assert client.ask(packet) == refused, packet
        # What comes before it is shown.
        assert client.resume().kind == "W"
        assert "got 7\n" in ended(process, softsgx)


def test_a_thread_interrupted_inside_shows_the_enclave_or_its_exit(softsgx: Any) -> None:
    for kind in ("debug", "production"):
        spin = softsgx.program("spin_debugged", "-no-pie")
        enclave = softsgx.enclave(debug=kind == "debug")
        with waiting(softsgx, spin, *enclave, kind) as (process, client, _):
            base = 0
            client.send(b"vCont;c")
            assert process.stdout is not None
            while not (line := process.stdout.readline()).startswith("inside"):
                base = int(line.split()[1], 16)
            client.socket.sendall(b"\x03")
            stopped = client.stop()
            assert stopped.signal == GDB_SIGINT
            within = base <= client.rip < base + 0x80000
            assert within == (kind == "debug")
            if kind == "production":
                # The AEX that an interrupt is: ERESUME by the TCS, and no register of the enclave's.
                assert client.register(RAX) == 3
                assert client.register(RDI) == 0
                assert client.read(client.rip, 3) == b"\x0f\x01\xd7"
            stop = symbols(spin)["stop"]
            client.ok(b"M%x,1:01" % stop)
            assert client.resume().kind == "W"
            assert softsgx.end_of(process).status == 0


# -- the debug registers ------------------------------------------------------------------------------


def test_hardware_breakpoints_and_watchpoints_in_the_host_and_inside(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug")) as (process, client, _):
        found = to_built(softsgx, client)
        client.ok(b"Z1,%x,1" % found["enclave_main"])
        client.ok(b"Z2,%x,8" % found["kept"])
        # The text is as it was.
        with Path(f"/proc/{client.pid}/mem").open("rb") as memory:
            memory.seek(found["twice"])
            assert memory.read(1) != INT3
        stopped = client.resume()
        assert stopped.told["hwbreak"] == ""
        assert client.rip == found["enclave_main"]
        client.ok(b"z1,%x,1" % found["enclave_main"])
        stopped = client.resume()
        assert int(stopped.told["watch"], 16) == found["kept"]
        assert client.word(found["kept"]) == 7
        assert found["base"] <= client.rip < found["base"] + 0x80000
        client.ok(b"z2,%x,8" % found["kept"])
        client.ok(b"Z4,%x,8" % found["turns"])
        stopped = client.resume()
        assert int(stopped.told["awatch"], 16) == found["turns"]
        assert found["twice"] <= client.rip < found["twice"] + 40
        # There are four, of lengths and places that the processor has.
        for at in range(3):
            client.ok(b"Z2,%x,1" % (found["turns"] + at))
        assert client.ask(b"Z2,%x,1" % (found["turns"] + 3)) == b"E%02x" % errno.ENOSPC
        assert client.ask(b"Z2,%x,3" % found["turns"]) == b"E16"
        assert client.ask(b"Z2,%x,4" % (found["turns"] + 1)) == b"E16"
        client.ok(b"D")
        assert "got 7\n" in ended(process, softsgx)


def test_new_threads_are_watched_and_production_enclaves_are_not(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug", "threads")) as (process, client, _):
        found = to_built(softsgx, client)
        main = client.pid
        client.ok(b"Z1,%x,1" % found["twice"])
        stopped = client.resume()
        assert "hwbreak" in stopped.told
        assert int(stopped.told["thread"], 16) != main
        client.ok(b"z1,%x,1" % found["twice"])
        client.ok(b"M%x,1:01" % found["finish_now"])
        assert client.resume().kind == "W"
        ended(process, softsgx)
    with waiting(softsgx, *arguments(softsgx, "production")) as (process, client, _):
        found = to_built(softsgx, client)
        refused = b"E%02x" % errno.EFAULT
        assert client.ask(b"Z1,%x,1" % found["enclave_main"]) == refused
        assert client.ask(b"Z2,%x,8" % found["kept"]) == refused
        assert client.resume().kind == "W"
        assert "got 7\n" in ended(process, softsgx)


def test_a_debugger_that_is_killed_leaves_no_trap_behind(softsgx: Any) -> None:
    # Its breakpoints are executed all the time by threads that run when it goes.
    with waiting(softsgx, *arguments(softsgx, "debug", "threads")) as (process, first, said):
        port = int(re.findall(r":(\d+)'", said)[0])
        found = to_built(softsgx, first)
        client = first
        for packet in (b"Z0,%x,1", b"Z1,%x,1"):
            for _ in range(8):
                client.ok(packet % found["twice"])
                client.resume()
                client.ok(packet.replace(b"Z", b"z") % found["twice"])
                client.step()
                client.ok(packet % found["twice"])
                client.send(b"vCont;c")
                client.close()
                client = Client(port)
                assert client.ask(b"?")[:1] == b"T"
        client.ok(b"M%x,1:01" % found["finish_now"])
        client.ok(b"D")
        client.close()
        ended(process, softsgx)


# -- threads, signals, exec, the connection ---------------------------------------------------------


def test_all_threads_stop_and_one_can_step_alone(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug", "threads")) as (process, client, _):
        found = to_built(softsgx, client)
        client.ok(b"Z0,%x,1" % found["twice"])
        seen = set()
        for _ in range(12):
            stopped = client.resume()
            assert "swbreak" in stopped.told
            tid = stopped.told["thread"]
            seen.add(tid)
            client.ok(b"z0,%x,1" % found["twice"])
            turns = client.word(found["turns"])
            stepped = client.step(tid)
            assert stepped.told["thread"] == tid
            # The others stand: nobody has counted but this one, perhaps.
            assert client.word(found["turns"]) - turns in (0, 1)
            client.ok(b"Z0,%x,1" % found["twice"])
        threads = client.ask(b"qfThreadInfo")[1:].split(b",")
        assert len(threads) in (2, 3)
        assert {tid.encode() for tid in seen} <= {*threads}
        for tid in threads:
            client.ok(b"T" + tid)
            client.ok(b"Hg" + tid)
            assert client.rip
        client.ok(b"z0,%x,1" % found["twice"])
        client.ok(b"M%x,1:01" % found["finish_now"])
        assert client.resume().kind == "W"
        ended(process, softsgx)


@pytest.mark.parametrize(
    ("answer", "handled"), [(b"vCont;C1e:%x;c", 10), (b"vCont;c", 0), (b"", 10)]
)
def test_a_signal_is_told_and_passed_on_or_not(softsgx: Any, answer: bytes, handled: int) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug", "signal")) as (process, client, _):
        if answer:
            stopped = client.resume()
            assert stopped.signal == GDB_SIGUSR1
            tid = int(stopped.told["thread"], 16)
            client.send(answer % tid if b"%" in answer else answer)
        else:
            client.ok(b"QPassSignals:e;1e")
            client.send(b"vCont;c")
        assert client.stop().kind == "W"
        assert f"handled {handled}\n" in ended(process, softsgx)


def test_what_a_program_becomes_is_told(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug", "exec")) as (process, client, _):
        assert b"exec-events+" in client.ask(b"qSupported:exec-events+;swbreak+")
        found = to_built(softsgx, client)
        stopped = client.resume()
        path = bytes.fromhex(stopped.told["exec"]).decode()
        assert path == str(program(softsgx))
        # No breakpoint of before, and the same again.
        client.ok(b"Z0,%x,1" % found["built"])
        assert "swbreak" in client.resume().told
        client.ok(b"z0,%x,1" % found["built"])
        assert client.resume().kind == "W"
        assert ended(process, softsgx).count("got 7\n") == 2


def test_gdb_may_go_and_come_back(softsgx: Any) -> None:
    spin = softsgx.program("spin_debugged", "-no-pie")
    enclave = softsgx.enclave(debug=True)
    with waiting(softsgx, spin, *enclave, "debug") as (process, client, said):
        port = int(re.findall(r":(\d+)'", said)[0])
        client.ok(b"D")
        assert process.stdout is not None
        while not process.stdout.readline().startswith("inside"):
            continue
        again = Client(port)
        assert again.ask(b"?")[:3] == b"T00"
        # One at a time.
        third = Client(port)
        with pytest.raises((EOFError, ConnectionError)):
            third.ask(b"?")
        third.close()
        again.ok(b"Z0,%x,1" % symbols(spin)["main"])
        # Killed, it leaves nothing behind.
        again.close()
        last = Client(port)
        last.ask(b"?")
        pid = last.pid
        with Path(f"/proc/{pid}/mem").open("rb") as memory:
            memory.seek(symbols(spin)["main"])
            assert memory.read(1) != INT3
        last.ok(b"M%x,1:01" % symbols(spin)["stop"])
        assert last.resume().kind == "W"
        last.close()
        assert softsgx.end_of(process).status == 0


def test_gdb_may_go_before_it_is_answered(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug")) as (process, client, _):
        client.ask(b"?")
        # All of it is there when the first acknowledgement finds nobody.
        os.kill(process.pid, signal.SIGSTOP)
        client.socket.sendall(b"$?#3f" * 100 + b"\x03")
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        os.kill(process.pid, signal.SIGCONT)
        ended(process, softsgx)


def test_a_killed_program_is_told_of(softsgx: Any) -> None:
    with waiting(softsgx, *arguments(softsgx, "debug")) as (process, client, _):
        to_built(softsgx, client)
        pid = client.pid
        os.kill(pid, signal.SIGKILL)
        # Told, or all is over by now.
        try:
            assert client.resume() == Stopped("X", 9, {})
        except (EOFError, ConnectionError):
            client.close()
        assert softsgx.end_of(process).status == -signal.SIGKILL


def test_a_forked_child_runs_without_the_breakpoints(softsgx: Any) -> None:
    forks = softsgx.program("fork_debugged", "-no-pie")
    enclave = softsgx.enclave(debug=True)
    with waiting(softsgx, forks, *enclave) as (process, client, _):
        found = symbols(forks)
        client.ok(b"Z0,%x,1" % found["built"])
        client.resume()
        base = client.register(RDI)
        client.ok(b"z0,%x,1" % found["built"])
        main = base + symbols(Path(enclave[0]))["enclave_main"]
        client.ok(b"QPassSignals:14")
        client.ok(b"Z0,%x,1" % found["marked"])
        client.ok(b"Z0,%x,1" % main)
        # The child passes both, in its copy of the host's text and in the enclave that it shares.
        stopped = client.resume()
        assert client.rip == found["marked"]
        client.ok(b"z0,%x,1" % found["marked"])
        stopped = client.resume()
        assert "swbreak" in stopped.told
        assert client.rip == main
        client.ok(b"z0,%x,1" % main)
        assert client.resume().kind == "W"
        ended(process, softsgx)


@pytest.mark.parametrize("sandboxed", [False, True])
def test_interrupts_steps_and_breakpoints_while_pages_come_and_go(
    softsgx: Any, sandboxed: bool
) -> None:
    # Without userfaultfd pages leave by an mprotect of a thread, which may stand.
    pressure, heap = softsgx.program("pressure"), 2 << 20
    enclave = softsgx.enclave(heap=heap)
    command = softsgx.command(
        pressure, *enclave, str(heap), "threads", options=("--gdb", "0", "--epc", "512K")
    )
    sandbox = softsgx.refusing("1", [USERFAULTFD]) if sandboxed else []
    decide = random.Random(7)  # noqa: S311  (not for secrets)
    with softsgx.started([*sandbox, *command]) as process:
        client = Client(int(re.findall(r":(\d+)'", process.stderr.readline())[0]))
        client.ok(b"QPassSignals:e;14")
        stopped = Stopped("T", 0, {})
        for _ in range(40):
            tids = client.ask(b"qfThreadInfo")[1:].split(b",")
            stepped = b"vCont;s:" + decide.choice(tids)
            client.send(decide.choice([b"vCont;c", stepped, stepped + b";c"]))
            time.sleep(decide.random() * 0.02)
            # Too late where it has stopped already: then it is passed over.
            client.socket.sendall(b"\x03")
            stopped = client.stop()
            if stopped.kind != "T":
                break
            assert client.rip
        while stopped.kind == "T":
            stopped = client.resume()
        assert stopped == Stopped("W", 0, {})
        ended(process, softsgx)


@pytest.mark.parametrize(
    "name", ["signal_state", "aex_registers", "eresume_rewritten_ssa", "handler_enters", "fork"]
)
def test_programs_do_not_notice_breakpoints_and_steps(softsgx: Any, name: str) -> None:
    # Where SIGTRAP is blocked or ignored, the kernel's forced one has to be undone each time.
    path = softsgx.directory / f"debugged-{name}"
    flags = ["-O2", "-w", "-pthread", "-no-pie", f"-I{PROGRAMS}"]
    subprocess.run(["cc", *flags, "-o", path, PROGRAMS / f"{name}.c"], check=True)
    found = symbols(path)
    places = [found[at] for at in ("call_vdso_on", "bare_instruction", "check") if at in found]
    with waiting(softsgx, path, *softsgx.enclave()) as (process, client, _):
        # Every signal but SIGTRAP is the program's own affair.
        client.ok(b"QPassSignals:" + b";".join(b"%x" % n for n in range(1, 150) if n != 5))
        hits = 0
        while True:
            for place in places:
                client.ok(b"Z0,%x,1" % place)
            stopped = client.resume()
            if stopped.kind != "T":
                break
            assert "swbreak" in stopped.told, stopped
            hits += 1
            for place in places:
                client.ok(b"z0,%x,1" % place)
            at = client.rip
            assert client.step(stopped.told["thread"]).signal == GDB_SIGTRAP
            assert client.rip != at
        assert stopped == Stopped("W", 0, {})
        assert hits > len(places)
        ended(process, softsgx)


def test_until_gdb_is_there_ctrl_c_and_sigterm_are_for_the_program(softsgx: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        command = softsgx.command(*arguments(softsgx, "debug"), options=("--gdb", "0"))
        with softsgx.started(command) as process:
            assert process.stderr is not None
            pid = int(process.stderr.readline().split()[2])
            if number == signal.SIGINT:
                os.kill(pid, number)  # the terminal sends it to both
            process.send_signal(number)
            assert process.wait(TIMEOUT) == -number


def test_a_bad_port_and_one_that_is_taken_are_usage_errors(softsgx: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = str(server.getsockname()[1])
        for port, reason in (
            ("65536", "not a port"),
            ("-1", ""),
            ("x", "not a port"),
            (taken, "Address already in use"),
        ):
            command = softsgx.command("true", options=(f"--gdb={port}",))
            result = softsgx.complete(command)
            assert result.status == 2, (port, result)
            assert reason in result.err


# -- gdb itself -----------------------------------------------------------------------------------

SESSION = """set debuginfod enabled off
set confirm off
target remote 127.0.0.1:{port}
break built
continue
monitor enclaves
eval "add-symbol-file {elf} -o %#lx", base
break enclave_main
continue
x/2i $pc
stepi
info threads
printf "kept %lu\\n", *(unsigned long *)&kept
continue
set var *(unsigned long *)&kept = 33
backtrace 1
delete
break twice
continue
finish
continue
"""


def test_gdb_itself(softsgx: Any, tmp_path: Path) -> None:
    gdb = shutil.which("gdb")
    if gdb is None:
        pytest.skip("there is no gdb here")
    path = program(softsgx)
    elf, css = softsgx.enclave(debug=True)
    command = softsgx.command(path, elf, css, "debug", options=("--gdb", "0"))
    with softsgx.started(command) as process:
        assert process.stderr is not None
        port = re.findall(r":(\d+)'", process.stderr.readline())[0]
        script = tmp_path / "session"
        script.write_text(SESSION.format(port=port, elf=elf))
        told = subprocess.run(
            [gdb, "-nx", "-batch", "-x", script, path],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert told.returncode == 0, told
        for wanted in (
            "Breakpoint 1, ",
            ", debug, MRENCLAVE ",
            "in enclave_main ()",
            "<enclave_main+",
            "inside the enclave at",
            "kept 0\n",
            "Value returned is $1 = 66",
            "exited normally",
        ):
            assert wanted in told.stdout + told.stderr, (wanted, told)
        assert "got 33\ntwice 66\n" in ended(process, softsgx)
