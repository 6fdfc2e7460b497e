# SPDX-License-Identifier: Apache-2.0
"""Real programs whose enclaves are larger than the EPC: pages go out and come in, and no answer is wrong."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.run.conftest import Harness

# Eight times the EPC.
HEAP = 4 << 20
EPC = "512K"


def pressure(softsgx: "Harness", what: str, heap: int = HEAP) -> list[str]:
    program = softsgx.program("pressure")
    return [str(word) for word in (program, *softsgx.enclave(heap=heap), heap, what)]


@pytest.mark.parametrize("what", ["walk", "sort", "threads", "fork"])
def test_an_enclave_of_eight_times_the_epc(softsgx: "Harness", what: str) -> None:
    ended = softsgx.run(*pressure(softsgx, what), options=("--epc", EPC))
    assert ended.status == 0, ended.out + ended.err
    assert ended.err == ""


def test_processes_that_compete_for_the_epc(softsgx: "Harness") -> None:
    calls = [" ".join(pressure(softsgx, what)) for what in ("walk", "threads", "fork")]
    script = " & ".join(calls) + " & wait"
    ended = softsgx.run("sh", "-c", script, options=("--epc", EPC))
    assert ended.out.count("finished") == 3, ended.out + ended.err
    assert ended.err == ""
