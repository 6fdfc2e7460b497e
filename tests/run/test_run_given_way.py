# SPDX-License-Identifier: Apache-2.0
"""Enclaves that are killed rather than swapped: who gives way, and what everybody sees then."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.run.conftest import Harness

HEAP = 1 << 20
# Room for one of them, and not for two.
EPC = "2M"
TOO_SMALL = "512K"
USERFAULTFD = 323


@pytest.fixture(params=["userfaultfd", "without userfaultfd"])
def before(request: pytest.FixtureRequest, softsgx: "Harness") -> list[str]:
    """Give the words before a command that make its pages come and go the one way or the other."""
    return [] if request.param == "userfaultfd" else softsgx.refusing("1", [USERFAULTFD])


@pytest.mark.parametrize("what", ["inside", "busy", "mapped", "read-only", "lone"])
def test_an_enclave_gives_way(
    softsgx: "Harness", what: str, before: list[str], tmp_path: Path
) -> None:
    told = tmp_path / "stats"
    epc = TOO_SMALL if what == "lone" else EPC
    options = ("--epc", epc, "--backing", "none", "--stats-json", told)
    words = (str(HEAP), what)
    command = softsgx.command(
        softsgx.program("given_way"), *softsgx.enclave(heap=HEAP), *words, options=options
    )
    ended = softsgx.complete([*before, *command])
    assert "not ok" not in ended.out, ended.out + ended.err
    assert ended.out.endswith("finished\n"), ended
    assert ended.status == 0, ended
    stats = json.loads(told.read_text())
    assert stats["kills"] == (0 if what == "lone" else 1)
    assert stats["evictions"] == stats["reloads"] == 0
