# SPDX-License-Identifier: Apache-2.0
"""The device's system calls where threads, signals and limits of the program come in between."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Harness


def test_added_pages_go_by_no_descriptor_and_no_file_size_limit(softsgx: "Harness") -> None:
    softsgx.checked("other_descriptor")
