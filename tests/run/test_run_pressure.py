# SPDX-License-Identifier: Apache-2.0
"""Real programs whose enclaves are larger than the EPC: pages go out and come in, and no answer is wrong."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.run.conftest import Harness

# Eight times the EPC.
HEAP = 2 << 20
# Of those that compete: together twelve times.
SHARED_HEAP = 1 << 20
EPC = "256K"
USERFAULTFD = 323


def pressure(softsgx: "Harness", what: str, heap: int = HEAP) -> list[str]:
    program = softsgx.program("pressure")
    return [str(word) for word in (program, *softsgx.enclave(heap=heap), heap, what)]


@pytest.fixture(params=["userfaultfd", "without userfaultfd"])
def before(request: pytest.FixtureRequest, softsgx: "Harness") -> list[str]:
    """Give the words before a command that make its pages come and go the one way or the other."""
    return [] if request.param == "userfaultfd" else softsgx.refusing("1", [USERFAULTFD])


@pytest.mark.parametrize("what", ["walk", "sort", "threads", "mprotect", "fork"])
def test_an_enclave_of_eight_times_the_epc(
    softsgx: "Harness", what: str, before: list[str]
) -> None:
    command = softsgx.command(*pressure(softsgx, what), options=("--epc", EPC))
    ended = softsgx.complete([*before, *command])
    assert ended.status == 0, ended.out + ended.err
    assert ended.err == ""


def test_processes_that_compete_for_the_epc(softsgx: "Harness", before: list[str]) -> None:
    calls = [" ".join(pressure(softsgx, what, SHARED_HEAP)) for what in ("walk", "threads", "fork")]
    script = " & ".join(calls) + " & wait"
    command = softsgx.command("sh", "-c", script, options=("--epc", EPC))
    ended = softsgx.complete([*before, *command])
    assert ended.out.count("finished") == 3, ended.out + ended.err
    assert ended.err == ""
