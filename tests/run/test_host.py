# SPDX-License-Identifier: Apache-2.0
"""The probes against what the kernel says of itself elsewhere, and a host that refuses."""

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from softsgx.errors import SoftsgxError
from softsgx.run import host, numbers


def by_name() -> dict[str, host.Probe]:
    return {probe.name: probe for probe in host.probe_host()}


class Uname:
    def __init__(
        self, sysname: str = "Linux", machine: str = "x86_64", release: str = "6.1"
    ) -> None:
        self.sysname = sysname
        self.machine = machine
        self.release = release


def test_every_probe_has_a_name_of_its_own_and_a_purpose() -> None:
    probes = host.probe_host()
    assert len({probe.name for probe in probes}) == len(probes)
    assert all(probe.purpose and probe.value for probe in probes)
    assert {probe.need for probe in probes} == {host.ESSENTIAL, host.USEFUL, host.INFORMATION}


def test_every_essential_that_can_be_missing_names_its_fix() -> None:
    assert all(probe.fix for probe in host.probe_host() if probe.need == host.ESSENTIAL)


def test_a_missing_feature_is_found_by_the_same_name_each_time() -> None:
    first, second = by_name(), by_name()
    assert {name: probe.ok for name, probe in first.items()} == {
        name: probe.ok for name, probe in second.items()
    }


def test_probing_leaves_no_child_and_no_descriptor() -> None:
    host.probe_host()
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    host.probe_host()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_probing_changes_nothing_of_the_prober() -> None:
    def state() -> list[str]:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return [line for line in lines if line.startswith(("Seccomp", "NoNewPrivs", "TracerPid"))]

    before = state()
    host.probe_host()
    assert state() == before


def test_the_probes_work_beside_other_threads() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert by_name()["ptrace"].value
    finally:
        stop.set()
        thread.join()


def test_pku_agrees_with_cpuinfo() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\nflags", 1)[1].split("\n")[0]
    assert host.protection_keys().ok == ("ospke" in flags.split())


def test_fsgsbase_agrees_with_cpuinfo() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\nflags", 1)[1].split("\n")[0]
    assert not host.fsgsbase().ok or "fsgsbase" in flags.split()


@pytest.mark.parametrize(
    ("release", "numbers"),
    [
        ("5.19.0", (5, 19)),
        ("6.18.44-fc-v669", (6, 18)),
        ("5.4", (5, 4)),
        ("7", (7, 0)),
        ("6.1-rc1", (6, 1)),
        ("six", (0, 0)),
    ],
)
def test_a_release_is_read_up_to_its_second_number(release: str, numbers: tuple[int, int]) -> None:
    assert host._release(release) == numbers


@pytest.mark.parametrize(
    ("uname", "said"),
    [
        (Uname(release="5.18.19"), "5.19 or newer"),
        (Uname(release="4.19"), "5.19 or newer"),
        (Uname(machine="aarch64"), "x86-64"),
        (Uname(machine="i686"), "x86-64"),
        (Uname(sysname="FreeBSD"), "Linux"),
    ],
)
def test_an_unfit_host_is_refused_with_the_remedy(
    uname: Uname, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: uname)
    with pytest.raises(SoftsgxError, match=said):
        host.require_host()


def test_the_kernel_floor_itself_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: Uname(release="5.19.0"))
    host.require_host()


def refuse(number: int, error: int) -> Callable[..., int]:
    real = host._call

    def call(called: int, *arguments: int) -> int:
        if called == number:
            raise OSError(error, os.strerror(error))
        return real(called, *arguments)

    return call


def test_a_sandbox_without_userfaultfd_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_call", refuse(numbers.SYS_USERFAULTFD, errno.EPERM))
    probes = {probe.name: probe for probe in host.userfaultfd()}
    assert not any(probe.ok for probe in probes.values())
    assert "container" in probes["userfaultfd"].fix


def test_a_second_listener_is_told_from_a_forbidden_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_call", refuse(numbers.SYS_SECCOMP, errno.EBUSY))
    probe = host.seccomp()[0]
    assert not probe.ok
    assert "outside of the other program" in probe.fix


def test_a_memfd_that_may_not_be_executable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_call", refuse(319, errno.EACCES))
    monkeypatch.setattr(host, "_sysctl", lambda _: 2)
    probe = host.executable_memfd()
    assert not probe.ok
    assert "vm.memfd_noexec" in probe.fix


def test_a_child_that_is_killed_for_a_call_counts_as_refused() -> None:
    def killed() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert host._in_child(killed) == errno.EPERM
