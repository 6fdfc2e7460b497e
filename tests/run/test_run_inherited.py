# SPDX-License-Identifier: Apache-2.0
"""What `softsgx run` is started with, changes for itself, and what the program sees of it."""

import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

CHILDREN = 300
FEW = 256


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def ignore_children() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= FEW, reason="few files may be open at all"
)
def test_the_program_keeps_its_limit_of_open_files(softsgx: "Harness") -> None:
    command = softsgx.command(
        "sh", "-c", "ulimit -Sn; ulimit -Hn; grep 'open files' /proc/$PPID/limits"
    )
    out = subprocess.run(
        command, preexec_fn=few_files, capture_output=True, text=True, timeout=20, check=True
    ).stdout.splitlines()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert out[:2] == [str(FEW), str(hard)]
    assert out[2].split()[3:5] == [str(hard), str(hard)]


def test_a_limit_of_file_sizes_is_the_programs_not_the_enclaves(softsgx: "Harness") -> None:
    enclave = [softsgx.program("counted"), *softsgx.enclave()]
    command = softsgx.command("sh", "-c", 'ulimit -Sf; exec "$@"', "-", *enclave)
    ended = softsgx.complete(["sh", "-c", 'ulimit -Sf 8; exec "$@"', "-", *command])
    assert ended.status == 0, ended
    assert ended.out.startswith("8\n")


def test_a_hard_limit_of_file_sizes_is_refused_by_name(softsgx: "Harness") -> None:
    command = softsgx.command("true")
    ended = softsgx.complete(["sh", "-c", 'ulimit -f 1000; exec "$@"', "-", *command])
    assert (ended.status, ended.out) == (2, "")
    assert "raise `ulimit -f`" in ended.err


@pytest.mark.parametrize("ignored", [False, True])
def test_an_ignored_sigchld_is_the_programs_not_the_supervisors(
    softsgx: "Harness", ignored: bool
) -> None:
    # A shell would set it to its default.
    program = "import sys; print(open('/proc/self/status').read()); sys.exit(3)"
    command = softsgx.command(sys.executable, "-c", program)
    ended = subprocess.run(
        command,
        preexec_fn=ignore_children if ignored else None,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (3, "")
    found = next(line for line in ended.stdout.splitlines() if line.startswith("SigIgn:"))
    assert bool(int(found.split()[1], 16) >> (signal.SIGCHLD - 1) & 1) is ignored


def test_processes_that_ended_leave_no_descriptors(softsgx: "Harness") -> None:
    program = softsgx.program("fork_often")
    command = softsgx.command(program, *softsgx.enclave(), str(CHILDREN))
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=few_files,  # noqa: PLW1509  (no threads here)
        text=True,
    ) as supervisor:
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "forked\n"
        # The supervisor, and of its children the keeper.
        held = {pid: files(pid) for pid in (supervisor.pid, *children(supervisor.pid))}
        supervisor.stdin.close()
        assert supervisor.wait(20) == 0
    assert len(held) == 3
    assert max(held.values()) < 40, held


def test_too_few_files_are_said_in_a_line(softsgx: "Harness") -> None:
    command = softsgx.command("true")
    ended = softsgx.complete(["sh", "-c", 'ulimit -n 8; exec "$@"', "-", *command])
    assert (ended.status, ended.out) == (2, ""), ended
    assert ended.err.count("\n") == 1
    assert "raise `ulimit -Hn`" in ended.err
