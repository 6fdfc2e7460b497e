# SPDX-License-Identifier: Apache-2.0
"""The programs of the benchmarks: what they measure as made without a trap is made so, and all of it is made.

Their enclave has its ENCLUs close behind a TCS, two that take turns, and threads that begin where others end.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from softsgx.run import fast_path
from softsgx.run.vdso import VdsoImage

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

BENCH = Path(__file__).parents[2] / "bench"
TURNS = 4000
# Those by which a thread, a TCS and a place become known.
TRAPPED = 100


@pytest.fixture
def measure(softsgx: "Harness", monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Give bench/measure.py, with its programs made in the tests' directory."""
    monkeypatch.syspath_prepend(BENCH)
    import measure  # noqa: PLC0415  (it is found by then)

    monkeypatch.setattr(measure, "OUT", softsgx.directory / "bench")
    measure.compile_programs()
    yield measure
    del sys.modules["measure"]


def transitions(
    softsgx: "Harness", measure: ModuleType, *words: str, options: tuple[str, ...] = ()
) -> tuple[int, int]:
    """Run the program; return how many transitions there were, and how many without a trap."""
    told = softsgx.directory / "transitions.json"
    command = (measure.program("transitions"), *words)
    ended = softsgx.run(*command, options=(*options, "--stats-json", told))
    assert ended.status == 0, ended
    seen = json.loads(told.read_text())
    return seen["eenter"] + seen["eexit"], seen["eenter_fast"] + seen["eexit_fast"]


@pytest.mark.parametrize(("verb", "in_a_turn"), [("ecall", 2), ("ocall", 4)])
def test_turns_do_not_trap(
    softsgx: "Harness", measure: ModuleType, verb: str, in_a_turn: int
) -> None:
    made, fast = transitions(softsgx, measure, verb, *measure.enclave(), str(TURNS))
    assert made >= in_a_turn * TURNS
    if "--no-fast-path" in os.environ.get("RUN_OPTIONS", ""):
        assert not fast
        return
    why = fast_path.missing(VdsoImage.load())
    if why:
        pytest.skip(why)
    assert made - fast <= TRAPPED


def test_threads_that_begin_where_others_have_ended_enter_as_themselves(
    softsgx: "Harness", measure: ModuleType
) -> None:
    threads = min(2, len(os.sched_getaffinity(0)))
    for _ in range(3):
        words = (*measure.threads_enclave(threads), "100", str(threads), "12")
        # So every EEXIT traps, and the leaf asks who is inside.
        transitions(softsgx, measure, "threads", *words, options=("--leave-text",))
