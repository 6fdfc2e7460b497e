# SPDX-License-Identifier: Apache-2.0
"""Enclave memory as programs of the run see it by /proc/PID/mem and process_vm_readv."""

from typing import Any

import pytest

SECCOMP, USERFAULTFD = 317, 323


@pytest.mark.parametrize("kind", ["debug", "production"])
@pytest.mark.parametrize("options", [(), ("--leave-text",), ("--epc", "512K")])
def test_a_debug_enclave_shows_and_a_production_one_does_not(
    softsgx: Any, kind: str, options: tuple[str, ...]
) -> None:
    enclave = softsgx.enclave(debug=kind == "debug")
    result = softsgx.run(softsgx.program("peek", "-no-pie"), *enclave, kind, options=options)
    bad = [line for line in result.out.splitlines() if line.startswith("not ok")]
    assert not bad, "\n".join([*bad, result.err])
    assert result.status == 0, result
    assert result.out.endswith("finished\n"), result
    assert result.err == ""


def test_without_userfaultfd(softsgx: Any) -> None:
    for kind in ("debug", "production"):
        enclave = softsgx.enclave(debug=kind == "debug")
        command = softsgx.command(softsgx.program("peek", "-no-pie"), *enclave, kind)
        result = softsgx.complete([*softsgx.refusing("1", [USERFAULTFD]), *command])
        assert "not ok" not in result.out, result
        assert result.out.endswith("finished\n"), result


def test_an_ordinary_user(softsgx: Any, ordinary_user: int | None) -> None:
    enclave = softsgx.enclave(debug=True)
    result = softsgx.run(softsgx.program("peek", "-no-pie"), *enclave, "debug", uid=ordinary_user)
    assert "not ok" not in result.out, result
    assert result.out.endswith("finished\n"), result


def test_a_program_that_opens_its_memory_often(softsgx: Any) -> None:
    # As many filters as there are opens here the kernel does not take.
    program = softsgx.program("peek_often")
    result = softsgx.run(program, *softsgx.enclave(), "2500")
    assert "not ok" not in result.out, result
    assert result.out.endswith("finished\n"), result
    assert result.err == ""
