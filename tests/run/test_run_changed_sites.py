# SPDX-License-Identifier: Apache-2.0
"""Places of enclaves that were changed for transitions without a trap: nobody else sees it, and it goes with its page."""

import json
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        "--no-fast-path" in os.environ.get("RUN_OPTIONS", ""), reason="no place is changed"
    ),
]


@pytest.mark.parametrize("how", ["exec", "beside"])
def test_a_program_that_maps_an_enclave_later_finds_what_it_holds(
    softsgx: "Harness", how: str
) -> None:
    softsgx.checked("changed_sites", how)


def test_edbgrd_and_edbgwr_know_what_a_debug_enclave_holds(softsgx: "Harness") -> None:
    words = (*softsgx.enclave(debug=True), "debug")
    ended = softsgx.run(softsgx.program("changed_sites"), *words)
    assert "not ok" not in ended.out, ended
    assert ended.out.endswith("finished\n"), ended


def test_an_evicted_page_comes_back_as_it_was_and_is_changed_again(softsgx: "Harness") -> None:
    told = softsgx.directory / "changed_sites.json"
    words = (*softsgx.enclave(heap=2 << 20), "evicted")
    options = ("--epc", "1M", "--stats-json", told)
    ended = softsgx.run(softsgx.program("changed_sites"), *words, options=options)
    assert "not ok" not in ended.out, ended
    assert ended.out.endswith("finished\n"), ended
    stats = json.loads(told.read_text())
    assert stats["evictions"] > 0
    assert stats["eexit_fast"] > 0
