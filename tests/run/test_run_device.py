# SPDX-License-Identifier: Apache-2.0
"""The device's system calls where threads, signals and limits of the program come in between."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Harness


def test_added_pages_go_by_no_descriptor_and_no_file_size_limit(softsgx: "Harness") -> None:
    softsgx.checked("other_descriptor")


@pytest.mark.parametrize(
    "what",
    ["at-once", "leader", "table", "filter", "registers", "ignored", "restarted", "interrupted"],
)
def test_what_comes_in_between(softsgx: "Harness", what: str) -> None:
    softsgx.checked("threads_of_device", what)
