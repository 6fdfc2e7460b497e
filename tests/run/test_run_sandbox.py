# SPDX-License-Identifier: Apache-2.0
"""Runs in a sandbox that refuses system calls, as containers have one."""

import errno
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

KCMP, PROCESS_VM_READV, PROCESS_VM_WRITEV, USERFAULTFD = 312, 310, 311, 323
PTRACE, SECCOMP, SOCKETPAIR, SENDMSG = 101, 317, 53, 46
SIGNALFD4, INOTIFY_INIT1 = 289, 294
PIDFD_OPEN, PIDFD_GETFD, PROCESS_MADVISE = 434, 438, 440
# Docker's default profile with its default capabilities, of what a run might use.
DOCKER = (KCMP, USERFAULTFD, PIDFD_GETFD, PROCESS_MADVISE)
# The second is how a profile answers for what is newer than itself.
ERRORS = (errno.EPERM, errno.ENOSYS)


@pytest.mark.parametrize("error", ERRORS)
def test_what_a_run_can_do_without(softsgx: "Harness", error: int) -> None:
    refused = (*DOCKER, PIDFD_OPEN, PROCESS_VM_READV, PROCESS_VM_WRITEV)
    ended = softsgx.complete(
        [
            *softsgx.refusing(str(error), refused),
            *softsgx.command(softsgx.program("counted"), *softsgx.enclave()),
        ]
    )
    assert (ended.status, ended.err) == (0, ""), ended


@pytest.mark.parametrize("action", [str(errno.EPERM), str(errno.ENOSYS)])
@pytest.mark.parametrize(
    ("number", "named"),
    [
        (PTRACE, "ptrace"),
        (SECCOMP, "seccomp user notification"),
        (SOCKETPAIR, "pairs of sockets"),
        (SENDMSG, "messages between sockets"),
        (INOTIFY_INIT1, "inotify"),
        (SIGNALFD4, "signalfd"),
    ],
)
def test_what_a_run_cannot_do_without_is_named(
    softsgx: "Harness", action: str, number: int, named: str
) -> None:
    ended = softsgx.complete([*softsgx.refusing(action, [number]), *softsgx.command("true")])
    assert (ended.status, ended.out) == (2, ""), ended
    assert ended.err.startswith(f"softsgx: this host forbids {named} ("), ended
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("action", ["kill", "trap"])
def test_a_sandbox_that_kills_for_seccomp_is_named(softsgx: "Harness", action: str) -> None:
    ended = softsgx.complete([*softsgx.refusing(action, [SECCOMP]), *softsgx.command("true")])
    assert ended.status == 2, ended
    assert "it kills for it" in ended.err


# What a page that is not there is told as, and who sees one that comes later, is the same.
def test_holes(softsgx: "Harness") -> None:
    softsgx.checked("holes")


def test_holes_where_threads_have_other_numbers(softsgx: "Harness") -> None:
    # A userfaultfd tells the number of a thread in its own namespace.
    namespace = ["unshare", "--pid", "--fork", "--"]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace of process ids is for root only")
    ended = softsgx.run(*namespace, softsgx.program("holes"), *softsgx.enclave())
    assert ended.status == 0, ended
    assert ended.out.endswith("finished\n")


@pytest.mark.parametrize("error", ERRORS)
def test_holes_without_userfaultfd(softsgx: "Harness", error: int) -> None:
    softsgx.checked("holes", sandbox=softsgx.refusing(str(error), DOCKER))


@pytest.mark.parametrize("name", ["mapping_calls", "other_descriptor", "reopened"])
def test_mappings_without_userfaultfd(softsgx: "Harness", name: str) -> None:
    softsgx.checked(name, sandbox=softsgx.refusing(str(errno.EPERM), DOCKER))


def test_a_hidden_program_of_an_ordinary_user_without_userfaultfd(
    softsgx: "Harness", ordinary_user: int | None
) -> None:
    sandbox = softsgx.refusing(str(errno.EPERM), DOCKER)
    softsgx.checked("not_dumpable", "first", uid=ordinary_user, sandbox=sandbox)


def test_more_runs_of_pages_than_mappings(softsgx: "Harness") -> None:
    softsgx.checked("many_mappings")


def test_more_runs_of_pages_than_mappings_without_userfaultfd(softsgx: "Harness") -> None:
    command = softsgx.command(softsgx.program("many_mappings"), *softsgx.enclave())
    ended = softsgx.complete([*softsgx.refusing(str(errno.EPERM), DOCKER), *command])
    assert ended.status == -signal.SIGKILL, ended
    assert "vm.max_map_count" in ended.err
