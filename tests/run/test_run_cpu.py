# SPDX-License-Identifier: Apache-2.0
"""`softsgx run --cpu`: programs find the processor that was asked for, and no other."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

MODE64BIT, KSS, AEXNOTIFY = 0x4, 0x80, 0x400


@pytest.mark.parametrize("more", [(), ("--stats",)], ids=["answered inside", "trapped"])
@pytest.mark.parametrize(
    ("cpu", "attributes", "expected"),
    [
        ("default,-aex-notify", MODE64BIT | KSS, "0x443 0x1 0xb6 created"),
        ("default", MODE64BIT | AEXNOTIFY, "0xc43 0x1 0x4b6 created"),
        ("sgx1,+everifyreport2", MODE64BIT, "0x81 0 0x36 created"),
        ("sgx1", MODE64BIT, "0x1 0 0x36 created"),
        ("sgx1", MODE64BIT | KSS, "0x1 0 0x36 EIO"),
        ("sgx1,+kss", MODE64BIT | KSS, "0x1 0 0xb6 created"),
        ("sgx1,+exinfo,+aex-notify", MODE64BIT | KSS, "0x801 0x1 0x436 EIO"),
    ],
)
def test_programs_find_the_processor_that_was_asked_for(
    softsgx: "Harness", cpu: str, attributes: int, expected: str, more: tuple[str, ...]
) -> None:
    program = softsgx.program("sgx_leaf")
    ended = softsgx.run(program, hex(attributes), options=("--cpu", cpu, *more))
    assert (ended.status, ended.out) == (0, f"{expected}\n"), ended


def test_a_processor_that_is_not_there_is_refused_before_the_program_runs(
    softsgx: "Harness",
) -> None:
    ended = softsgx.run("echo", "run", options=("--cpu", "sgx1,+sgx9"))
    assert (ended.status, ended.out) == (2, "")
    assert "'+sgx9' is no change of a feature" in ended.err
