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


def test_a_node_that_cannot_be_opened_takes_no_descriptor(softsgx: "Harness") -> None:
    # The supervisor's own descriptors are the first to be used up.
    command = softsgx.command(softsgx.program("open_until_full"))
    ended = softsgx.complete(["sh", "-c", 'ulimit -n 100; exec "$@"', "-", *command])
    assert ended.status == 0, ended
    opened = [int(line) for line in ended.out.split()]
    # What the first one needs besides stays open.
    assert opened[1:] == [opened[1]] * 3, opened
