# SPDX-License-Identifier: Apache-2.0
"""The probes against what the kernel says of itself elsewhere, and a host that refuses."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from softsgx.errors import SoftsgxError
from softsgx.run import host, numbers, probes


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
    found = host.probe_host()
    assert len({probe.name for probe in found}) == len(found)
    assert all(probe.purpose and probe.value for probe in found)
    assert {probe.need for probe in found} == {host.ESSENTIAL, host.USEFUL, host.INFORMATION}


def test_every_essential_that_can_be_missing_names_its_fix() -> None:
    assert all(probe.fix for probe in host.probe_host() if probe.need == host.ESSENTIAL)


def test_a_missing_feature_is_found_by_the_same_name_each_time() -> None:
    first, second = by_name(), by_name()
    assert {name: probe.ok for name, probe in first.items()} == {
        name: probe.ok for name, probe in second.items()
    }


def test_probing_leaves_no_child_and_no_descriptor() -> None:
    def state() -> tuple[list[str], str]:
        # Another test's helper process may be a child too.
        children = Path("/proc/thread-self/children").read_text(encoding="ascii")
        return sorted(os.listdir("/proc/self/fd")), children  # noqa: PTH208

    host.probe_host()
    before = state()
    host.probe_host()
    assert state() == before


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
    assert probes.protection_keys().ok == ("ospke" in flags.split())


def test_fsgsbase_agrees_with_cpuinfo() -> None:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\nflags", 1)[1].split("\n")[0]
    assert not probes.fsgsbase().ok or "fsgsbase" in flags.split()


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


def test_a_host_without_proc_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda _: False)
    with pytest.raises(SoftsgxError, match="mount -t proc"):
        host.require_host()


def test_the_kernel_floor_itself_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: Uname(release="5.19.0"))
    host.require_host()


def test_asking_at_every_start_costs_less_than_a_millisecond() -> None:
    costs = []
    for _ in range(20):
        begin = time.perf_counter()
        host.require_host()
        costs.append(time.perf_counter() - begin)
    assert min(costs) < 0.001


def test_asking_at_every_start_imports_no_probe() -> None:
    script = (
        "import sys; from softsgx.run.host import require_host; require_host(); "
        "sys.exit(any(name in sys.modules for name in ('ctypes', 'softsgx.run.probes')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def refuse(number: int, error: int) -> Callable[..., int]:
    real = probes._call

    def call(called: int, *arguments: int) -> int:
        if called == number:
            raise OSError(error, os.strerror(error))
        return real(called, *arguments)

    return call


def test_a_sandbox_without_userfaultfd_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_call", refuse(numbers.SYS_USERFAULTFD, errno.EPERM))
    found = {probe.name: probe for probe in probes.userfaultfd()}
    assert not any(probe.ok for probe in found.values())
    assert found["userfaultfd"].need == host.USEFUL
    assert "PROT_NONE" in found["userfaultfd"].value
    assert "container" in found["userfaultfd"].fix


# A sandbox as a container has it: a filter that refuses one system call with EPERM, or kills for it.
SANDBOX = """
import ctypes, struct, sys
from softsgx.run import probes
refused, probe, action = int(sys.argv[1]), sys.argv[2], int(sys.argv[3], 16)
code = struct.pack("<HBBI", 0x20, 0, 0, 0)
code += struct.pack("<HBBI", 0x15, 0, 1, refused)
code += struct.pack("<HBBI", 0x06, 0, 0, action)
code += struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000)
buffer = ctypes.create_string_buffer(code, len(code))
fprog = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(buffer)))
assert probes._libc.prctl(38, 1, 0, 0, 0) == 0
assert probes._libc.prctl(22, 2, fprog, 0, 0) == 0
found = getattr(probes, probe)()
for found in found if isinstance(found, list) else [found]:
    print(int(found.ok), found.need, found.value, found.fix, sep="|")
"""
ERRNO, KILL = "50001", "80000000"


@pytest.mark.parametrize(
    ("refused", "probe", "fix"),
    [
        (310, "process_vm", "allow process_vm_readv and process_vm_writev"),
        (311, "process_vm", "allow process_vm_readv and process_vm_writev"),
        (101, "ptrace", "--cap-add SYS_PTRACE"),
        (53, "descriptors", "allow socketpair"),
        (319, "executable_memfd", "executable mappings"),
        (323, "userfaultfd", "allow the system call userfaultfd"),
    ],
)
def test_what_a_sandbox_refuses_is_found_with_its_fix(refused: int, probe: str, fix: str) -> None:
    command = [sys.executable, "-c", SANDBOX, str(refused), probe, ERRNO]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ok, _, value, said = done.stdout.splitlines()[0].split("|")
    assert (ok, value.partition(":")[0]) == ("0", "refused")
    assert "Operation not permitted" in value
    assert fix in said or "ptrace_scope" in said


@pytest.mark.parametrize(
    ("refused", "probe"),
    [(101, "ptrace"), (311, "process_vm"), (323, "userfaultfd"), (317, "seccomp")],
)
def test_a_sandbox_that_kills_is_survived_and_told(refused: int, probe: str) -> None:
    command = [sys.executable, "-c", SANDBOX, str(refused), probe, KILL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    ok, need, value, _ = done.stdout.splitlines()[0].split("|")
    assert (ok, value.partition(":")[0]) == ("0", f"answered by signal {signal.SIGSYS}")
    assert need == host.ESSENTIAL


@pytest.mark.parametrize("probe", ["process_vm", "ptrace"])
def test_without_that_refusal_the_same_probe_works(probe: str) -> None:
    # 999 is no system call: the sandbox refuses nothing.
    command = [sys.executable, "-c", SANDBOX, "999", probe, ERRNO]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1|"), done.stdout


def test_only_what_a_run_can_do_without_is_not_essential() -> None:
    needs = {probe.name: probe.need for probe in host.probe_host()}
    assert needs["ptrace"] == host.ESSENTIAL
    assert {needs["process_vm_readv"], needs["userfaultfd"]} == {host.USEFUL}


def test_a_second_listener_is_told_from_a_forbidden_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_call", refuse(numbers.SYS_SECCOMP, errno.EBUSY))
    probe = probes.seccomp()[0]
    assert not probe.ok
    assert "outside of the other program" in probe.fix


def test_a_memfd_that_may_not_be_executable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_call", refuse(319, errno.EACCES))
    monkeypatch.setattr(probes, "_sysctl", lambda _: 2)
    probe = probes.executable_memfd()
    assert not probe.ok
    assert "vm.memfd_noexec" in probe.fix


def test_a_child_that_is_killed_for_a_call_tells_the_signal() -> None:
    def killed() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert probes._in_child(killed) == -signal.SIGKILL
