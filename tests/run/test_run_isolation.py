# SPDX-License-Identifier: Apache-2.0
"""`softsgx run --isolation strict`: what code outside sees of an enclave, and what it does not change."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(__file__).parents[1] / "programs"
USERFAULTFD = 323
STRICT = ("--isolation", "strict")


@pytest.mark.parametrize("sandboxed", [False, True])
def test_outside_reads_are_all_ones_and_writes_vanish(softsgx: Any, sandboxed: bool) -> None:
    command = softsgx.command(softsgx.program("isolated"), *softsgx.enclave(), options=STRICT)
    sandbox = softsgx.refusing("1", [USERFAULTFD]) if sandboxed else []
    result = softsgx.complete([*sandbox, *command])
    bad = [line for line in result.out.splitlines() if line.startswith("not ok")]
    assert not bad, "\n".join([*bad, result.err])
    assert result.out.endswith("finished\n"), result
    # The one access that cannot be given all ones is told of.
    assert result.err.count("softsgx: warning") == 1
    assert "cannot be given all ones" in result.err


@pytest.mark.parametrize("kind", ["walk", "threads", "fork"])
def test_paging_goes_on(softsgx: Any, kind: str) -> None:
    heap = 2 << 20
    enclave = softsgx.enclave(heap=heap)
    pressure = softsgx.program("pressure")
    options = (*STRICT, "--epc", "1M")
    result = softsgx.run(pressure, *enclave, str(heap), kind, options=options)
    assert result.status == 0, result
    assert "not ok" not in result.out


@pytest.mark.parametrize(
    "name",
    ["threads", "signal_storm", "vdso_exceptions", "vdso_handler", "signal_state", "fork", "exec"],
)
def test_programs_that_do_not_touch_it_notice_nothing(softsgx: Any, name: str) -> None:
    path = softsgx.directory / f"shared-{name}"
    # An entry may take longer than the millisecond of its timer: then nothing else would be done.
    flags = ["-O2", "-w", "-pthread", "-DEVERY_US=20000", f"-I{PROGRAMS}"]
    command = ["cc", *flags, "-o", path, PROGRAMS / f"{name}.c"]
    subprocess.run(command, check=True)
    result = softsgx.run(path, *softsgx.enclave(), options=STRICT)
    bad = [line for line in result.out.splitlines() if line.startswith("not ok")]
    assert not bad, "\n".join([*bad, result.err])
    assert result.out.endswith("finished\n"), result


def test_what_a_debugger_is_shown_is_as_before(softsgx: Any) -> None:
    enclave = softsgx.enclave(debug=True)
    options = (*STRICT, "--aex-every", "1ms")
    result = softsgx.run(softsgx.program("peek", "-no-pie"), *enclave, "debug", options=options)
    assert "not ok" not in result.out, result
    assert result.out.endswith("finished\n"), result


def test_another_mode_is_a_usage_error(softsgx: Any) -> None:
    result = softsgx.run("true", options=("--isolation", "half"))
    assert result.status == 2
    assert "wanted is none or strict" in result.err
