# SPDX-License-Identifier: Apache-2.0
"""Threads that go in and out as fast as they can, under signals, exits at any moment and EPC pressure.

`make storm SECONDS=...` lets each of these take as long.
"""

import json
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

SECONDS = int(os.environ.get("SOFTSGX_STORM_SECONDS", "3"))
HEAP = 2 << 20
USED = 1 << 20
USERFAULTFD = 323
PRESSURE = ("--epc", "1M", "--aex-every", "500us")


@pytest.mark.parametrize(
    ("options", "refused"),
    [((), []), (PRESSURE, []), (PRESSURE, [USERFAULTFD])],
    ids=["signals", "signals, exits and pressure", "without userfaultfd"],
)
def test_every_answer_is_right_in_a_storm(
    softsgx: "Harness",
    options: tuple[str, ...],
    refused: list[int],
) -> None:
    told = softsgx.directory / "storm.json"
    words = (softsgx.program("transition_storm"), *softsgx.enclave(heap=HEAP))
    command = softsgx.command(
        *words, str(SECONDS), str(USED), options=(*options, "--stats-json", told)
    )
    ended = softsgx.complete([*(softsgx.refusing("1", refused) if refused else []), *command])
    assert "not ok" not in ended.out, ended
    assert ended.out.endswith("finished\n"), ended
    assert (ended.status, ended.err) == (0, "")
    stats = json.loads(told.read_text())
    assert stats["aex"]["interrupt"] > 0
    assert bool(stats["evictions"]) == bool(options)
    if "--no-fast-path" not in os.environ.get("RUN_OPTIONS", ""):
        assert stats["eenter_fast"] > 0
