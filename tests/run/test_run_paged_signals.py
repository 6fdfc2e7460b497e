# SPDX-License-Identifier: Apache-2.0
"""Signals, stops and ends of real programs whose enclaves are larger than the EPC."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Harness

HEAP = 1 << 20
EPC = "512K"
USERFAULTFD = 323
WHAT = ["storm", "actions", "stopped", "ends", "resumed", "read-only"]


@pytest.mark.parametrize("way", ["userfaultfd", "without userfaultfd"])
@pytest.mark.parametrize("what", WHAT)
def test_nothing_is_lost(softsgx: "Harness", what: str, way: str) -> None:
    sandbox = [] if way == "userfaultfd" else softsgx.refusing("1", [USERFAULTFD])
    words = (softsgx.program("paged_signals"), *softsgx.enclave(heap=HEAP), str(HEAP), what)
    ended = softsgx.complete([*sandbox, *softsgx.command(*words, options=("--epc", EPC))])
    assert "not ok" not in ended.out, ended.out + ended.err
    assert ended.out.endswith("finished\n"), ended
    assert tuple(ended)[::2] == (0, "")
