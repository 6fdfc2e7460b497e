# SPDX-License-Identifier: Apache-2.0
"""The control socket: who is told what, what is left behind, and that nobody can stall a run by it."""

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from softsgx.errors import SoftsgxError
from softsgx.run import control, runs
from softsgx.run.control import Control
from softsgx.run.waiting import Waiter

if TYPE_CHECKING:
    from conftest import Harness

live = pytest.mark.live

PAGE = 4096
EPC_PAGES = 512
TCS_PAGES = 8  # of tests/programs/enclave.c
EPC = f"{EPC_PAGES * 4}K"
PATIENCE = 15.0


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the runtime directory of this test's runs; deeper than a socket's address is long."""
    directory = tmp_path / ("deep" * 30)
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    return directory


def left(runtime: Path) -> list[str]:
    return sorted(str(path.relative_to(runtime)) for path in runtime.rglob("*"))


@contextmanager
def held(
    softsgx: "Harness", *more: str, uid: int | None = None, heap: int = 0
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Run tests/run/programs/held.c until the block ends; gives the run and the program's processes."""
    words = [softsgx.program("held"), *softsgx.enclave(heap=heap), *(more or ["0"])]
    with softsgx.started(softsgx.command(*words, options=("--epc", EPC)), uid=uid) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("held "), line
        yield process, [int(pid) for pid in line.split()[1:]]
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert tuple(softsgx.end_of(process)) == (0, "finished\n", "")


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def told(pid: int) -> dict[str, Any]:
    (run,) = runs.ask(PATIENCE, only=pid)
    assert run.snapshot is not None, run.problem
    return run.snapshot


# -- what is told ---------------------------------------------------------------------------------


@live
def test_a_run_tells_what_its_platform_does(softsgx: "Harness", runtime: Path) -> None:
    with held(softsgx, "2") as (process, pids):
        snapshot = told(process.pid)
        assert (snapshot["pid"], snapshot["driver"]) == (process.pid, "mainline")
        assert "software" in snapshot["warning"]
        assert snapshot["command"][0] == str(softsgx.program("held"))
        assert snapshot["epc_pages"] == EPC_PAGES
        assert snapshot["epc_pages_free"] == EPC_PAGES - snapshot["resident"]
        (enclave,) = snapshot["largest_enclaves"]
        assert enclave["pids"] == sorted(pids)
        assert len(pids) == 3
        assert enclave["initialized"]
        # Nothing is evicted here: SECS and VA page with them.
        assert enclave["resident"] == enclave["pages"] + 2 == snapshot["resident"]
        assert enclave["added"] == enclave["pages"] == snapshot["added"]
        assert snapshot["enclaves"] == 1
        assert snapshot["other_enclaves"]["enclaves"] == 0
        maps = Path(f"/proc/{pids[1]}/maps").read_text()
        mapped = [int(line.split("-")[0], 16) for line in maps.splitlines() if "sgx_" in line]
        assert int(enclave["base"], 16) in mapped
        directory = runtime / "softsgx"
        assert directory.stat().st_mode & 0o777 == 0o700
        assert [path.name for path in directory.iterdir()] == [f"{process.pid}.sock"]
        # A later one is of a later time, and nothing was counted by being asked.
        again = told(process.pid)
        assert again.pop("seconds") > snapshot.pop("seconds")
        assert again == snapshot
    assert left(runtime) == []


def data_pages(pid: int, name: str, end: int) -> int:
    """Count the pages below `end` that are in the one memory file of this name that a process has open."""
    found: dict[int, Path] = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if str(path.readlink()).startswith(f"/memfd:{name} "):
                found[path.stat().st_ino] = path
    (path,) = found.values()
    pages = at = 0
    fd = os.open(path, os.O_RDONLY)
    try:
        while at < end:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
            pages += (min(at, end) - min(start, end)) // PAGE
    except OSError as error:
        # ENXIO: no data from here on.
        assert error.errno == errno.ENXIO  # noqa: PT017
    finally:
        os.close(fd)
    return pages


@live
def test_what_is_told_under_pressure_is_what_memory_holds(softsgx: "Harness") -> None:
    # Four times the EPC.
    with held(softsgx, heap=EPC_PAGES * PAGE * 4) as (process, _):
        snapshot = told(process.pid)
        while (later := told(process.pid)) | {"seconds": 0} != snapshot | {"seconds": 0}:
            # The reclaimer is still at work.
            snapshot = later
        (enclave,) = snapshot["largest_enclaves"]
        assert snapshot["epc_pages"] - snapshot["epc_pages_free"] == enclave["resident"]
        assert enclave["pages"] > 4 * EPC_PAGES
        # What left and did not come back is in the store, be it the SECS.
        assert enclave["evictions"] - enclave["reloads"] == enclave["backing_pages"] > 3 * EPC_PAGES
        held_back = data_pages(process.pid, "SGX backing", enclave["size"] + PAGE)
        assert held_back == enclave["backing_pages"]
        # SECS, VA pages and TCSs are in the EPC, and no memory of the program.
        others = enclave["resident"] - data_pages(process.pid, "sgx_enclave", 1 << 47)
        assert 0 < others <= 1 + -(-(enclave["pages"] + 1) // 512) + TCS_PAGES


@live
def test_the_counters_agree_with_each_other_while_pages_move(softsgx: "Harness") -> None:
    heap = EPC_PAGES * PAGE * 4
    program = [softsgx.program("pressure"), *softsgx.enclave(heap=heap), str(heap), "threads"]
    with softsgx.started(softsgx.command(*program, options=("--epc", EPC))) as process:
        seen = []
        while process.poll() is None:
            asked = runs.ask(PATIENCE, only=process.pid)
            seen += [run.snapshot for run in asked if run.snapshot is not None]
        assert softsgx.end_of(process).out.endswith("finished\n")
    assert len(seen) > 2
    for snapshot in seen:
        assert snapshot["epc_pages"] - snapshot["epc_pages_free"] == snapshot["resident"]
    for name in ("added", "evictions", "reloads", "backing_bytes"):
        counts = [snapshot[name] for snapshot in seen]
        assert counts == sorted(counts)
        assert counts[-1] > 0


@live
def test_a_process_that_has_ended_has_the_enclave_no_more(softsgx: "Harness") -> None:
    with held(softsgx, "2") as (process, pids):
        os.kill(pids[2], signal.SIGKILL)
        wait_until(lambda: told(process.pid)["largest_enclaves"][0]["pids"] == sorted(pids[:2]))


@live
def test_a_run_without_a_node_has_no_socket(softsgx: "Harness", runtime: Path) -> None:
    script = 'ls -A "$XDG_RUNTIME_DIR"'
    assert tuple(softsgx.run("sh", "-c", script)) == (0, "", "")
    # The control: one that opens the node has it.
    opening = f"exec 3<>/dev/sgx_enclave; {script}"
    assert tuple(softsgx.run("sh", "-c", opening)) == (0, "softsgx\n", "")
    assert left(runtime) == []


@live
def test_two_runs_are_told_apart(softsgx: "Harness", runtime: Path) -> None:
    with held(softsgx) as (first, _):
        with held(softsgx) as (second, _):
            both = runs.ask(PATIENCE)
            assert [run.pid for run in both] == sorted([first.pid, second.pid])
            assert all(run.snapshot is not None for run in both)
        assert [run.pid for run in runs.ask(PATIENCE)] == [first.pid]
    assert left(runtime) == []


@live
def test_a_program_that_enters_all_the_time_does_not_keep_who_asks_waiting(
    softsgx: "Harness",
) -> None:
    # The supervisor waits in wait4, out of which the bell has to call it.
    with held(softsgx, "0", "enter") as (process, _):
        seconds = [told(process.pid)["seconds"] for _ in range(20)]
        assert seconds == sorted(seconds)


# -- what is left ---------------------------------------------------------------------------------


@live
def test_who_lists_removes_what_a_killed_run_has_left(softsgx: "Harness", runtime: Path) -> None:
    with held(softsgx) as (process, _):
        process.kill()
        process.wait(PATIENCE)
        socket_file = f"softsgx/{process.pid}.sock"
        assert left(runtime) == ["softsgx", socket_file]
        # Its keeper may still be about to close the socket.
        wait_until(lambda: runs.ask(PATIENCE) == [] and left(runtime) == ["softsgx"])


@live
def test_a_run_removes_what_killed_runs_have_left(softsgx: "Harness", runtime: Path) -> None:
    with held(softsgx) as (killed, _):
        killed.kill()
        killed.wait(PATIENCE)
        assert left(runtime) == ["softsgx", f"softsgx/{killed.pid}.sock"]
        # One that was killed before it had its name, too.
        names = runtime / "softsgx"
        (names / f"{killed.pid}.sock").rename(names / f".{killed.pid}.sock")
        with held(softsgx) as (process, _):
            assert left(runtime) == ["softsgx", f"softsgx/{process.pid}.sock"]
    assert left(runtime) == []


@live
def test_a_run_that_can_have_no_socket_goes_on(softsgx: "Harness", runtime: Path) -> None:
    (runtime / "softsgx").write_text("a file\n")
    assert softsgx.checked("reopened").endswith("finished\n")
    assert left(runtime) == ["softsgx"]


# -- clients that do harm -------------------------------------------------------------------------


def connect(runtime: Path, pid: int) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    fd = os.open(runtime / "softsgx", os.O_PATH)
    try:
        # Without a timeout, which would make it fail where the line is long.
        client.connect(f"/proc/self/fd/{fd}/{pid}.sock")
    finally:
        os.close(fd)
    client.settimeout(PATIENCE)
    return client


@live
def test_clients_that_never_read_or_leave_at_once_stall_nobody(
    softsgx: "Harness", runtime: Path
) -> None:
    with held(softsgx, "0", "enter") as (process, _), ExitStack() as clients:
        silent = [clients.enter_context(connect(runtime, process.pid)) for _ in range(100)]
        for _ in range(100):
            connect(runtime, process.pid).close()
        for client in silent:
            with suppress(BrokenPipeError):
                client.sendall(b"x" * 1000)
        assert told(process.pid)["pid"] == process.pid
        # What was sent to them is there, whole, whenever they come to read it.
        for client in silent:
            said = b""
            while not said.endswith(b"\n"):
                data = client.recv(1 << 16)
                assert data
                said += data
            assert json.loads(said)["pid"] == process.pid


@live
def test_a_stopped_run_is_told_as_one_that_does_not_answer(softsgx: "Harness") -> None:
    with held(softsgx) as (process, _):
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        # More than wait in line at most.
        for _ in range(20):
            (run,) = runs.ask(0.001)
            assert run.snapshot is None
            assert "does not answer" in run.problem
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: runs.ask(PATIENCE)[0].snapshot is not None)


@live
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_told_nothing(
    softsgx: "Harness", ordinary_user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = softsgx.directory / "runtime-of-nobody"
    runtime.mkdir(mode=0o700)
    os.chown(runtime, ordinary_user, ordinary_user)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with held(softsgx, uid=ordinary_user) as (process, _):
        with connect(runtime, process.pid) as client:
            assert client.recv(1) == b""
        # The control: their own user is told.
        code = "from softsgx.run import runs; print(runs.ask(15)[0].snapshot['pid'])"
        asked = softsgx.complete([sys.executable, "-c", code], uid=ordinary_user)
        assert tuple(asked) == (0, f"{process.pid}\n", "")
    assert left(runtime) == []


# -- where it is --------------------------------------------------------------------------------


def test_the_directory_is_the_users_own(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = os.geteuid()
    assert control.directory() == str(runtime / "softsgx")
    login = f"/run/user/{user}"
    fallback = f"{login}/softsgx" if os.path.isdir(login) else f"/tmp/softsgx-{user}"  # noqa: S108, PTH112
    monkeypatch.chdir(tmp_path)
    other = "/proc/1" if user else None
    for bad in ("", runtime.name, str(tmp_path / "missing"), other):
        if bad is not None:
            monkeypatch.setenv("XDG_RUNTIME_DIR", bad)
            assert control.directory() == fallback, bad
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert control.directory() == fallback


def test_a_directory_that_others_can_use_is_not_used(runtime: Path) -> None:
    directory = runtime / "softsgx"
    directory.mkdir(mode=0o700)
    Control(dict).close()
    directory.mkdir(mode=0o700)
    directory.chmod(0o711)
    for use in (lambda: Control(dict), lambda: runs.ask(1)):
        with pytest.raises(SoftsgxError, match="mode 0711"):
            use()
    directory.rmdir()
    directory.symlink_to(runtime)
    with pytest.raises(SoftsgxError, match="Not a directory"):
        Control(dict)


def test_a_umask_closes_nothing(runtime: Path) -> None:
    before = os.umask(0o777)
    try:
        server = Control(dict)
    finally:
        os.umask(before)
    assert (runtime / "softsgx").stat().st_mode & 0o777 == 0o700
    assert (runtime / "softsgx" / f"{os.getpid()}.sock").stat().st_mode & 0o777 == 0o600
    server.close()


# -- the server, alone --------------------------------------------------------------------------


def answered(server: Control, runtime: Path) -> bytes:
    with connect(runtime, os.getpid()) as client:
        assert server.answer()
        said = b""
        while data := client.recv(1 << 16):
            said += data
    return said


def test_an_answer_is_one_line(runtime: Path) -> None:
    server = Control(lambda: {"words": ["a\nb", "\udcff"]})
    assert json.loads(answered(server, runtime)) == {"words": ["a\nb", "\udcff"]}
    assert answered(server, runtime).count(b"\n") == 1
    server.close()


def test_an_answer_that_is_too_long_is_cut_off_and_nobody_waits(runtime: Path) -> None:
    server = Control(lambda: {"long": "x" * (16 << 20)})
    said = answered(server, runtime)
    assert 0 < len(said) < 16 << 20
    server.close()


def test_without_a_client_nothing_is_waited_for(runtime: Path) -> None:
    server = Control(dict)
    assert server.answer()
    assert answered(server, runtime) == b"{}\n"
    server.close()


def test_without_a_descriptor_the_server_gives_up(runtime: Path) -> None:
    server = Control(dict)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with connect(runtime, os.getpid()):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            goes_on = server.answer()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not goes_on
    server.close()


def test_a_descriptor_that_is_forgotten_is_waited_for_no_more() -> None:
    child, other = os.pipe(), os.pipe()
    waiter = Waiter(child[0])
    waiter.watch(other[0])
    os.write(other[1], b"x")
    assert waiter.ready(-1) == [other[0]]
    waiter.forget(other[0])
    os.write(child[1], b"x")
    assert waiter.ready(-1) == [child[0]]
    waiter.close()
    for fd in (*child, *other):
        os.close(fd)


# -- who asks -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b'{"softsgx": "0.0.0"}\n', "it is softsgx 0.0.0"),
        (b'{"softsgx": ', "not understood"),
        (b"[]\n", "not understood"),
    ],
)
def test_an_answer_that_cannot_be_used_is_told(
    monkeypatch: pytest.MonkeyPatch, said: bytes, problem: str
) -> None:
    server = Control(dict)
    monkeypatch.setattr(server, "_tell", lambda client: client.send(said))
    real = runs._answers

    def answer_first(waiting: Any, deadline: float) -> Any:
        server.answer()
        return real(waiting, deadline)

    monkeypatch.setattr(runs, "_answers", answer_first)
    (run,) = runs.ask(PATIENCE)
    assert (run.pid, run.snapshot) == (os.getpid(), None)
    assert problem in run.problem
    # One that ends without an answer is no run any more.
    monkeypatch.setattr(server, "_tell", lambda _: None)
    assert runs.ask(PATIENCE) == []
    server.close()


def test_what_is_no_socket_of_a_run_is_let_alone(runtime: Path) -> None:
    server = Control(dict)
    directory = runtime / "softsgx"
    for name in ("notes", "x.sock", ".sock", "12.sock.old"):
        (directory / name).write_text("")
    (directory / "12.sock").write_text("no socket")
    assert [run.pid for run in runs.ask(0.001)] in ([12, os.getpid()], [os.getpid()])
    server.close()
