# SPDX-License-Identifier: Apache-2.0
"""Real programs whose evicted pages go where they, or the user, say."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Ended, Harness

# Eight times the EPC.
HEAP = 4 << 20
EPC = "512K"
MEMORY = ["memory", "memory-two", "shared", "create"]
FILES = ["file", "file-two", "punched"]


def provided(softsgx: "Harness", where: str, what: str, cwd: Path) -> "Ended":
    words = [str(HEAP), where, what]
    program = softsgx.program("provided")
    ended = softsgx.run(
        program, *softsgx.enclave(heap=HEAP), *words, options=("--epc", EPC), cwd=cwd
    )
    assert "not ok" not in ended.out, ended.out + ended.err
    assert ended.out.endswith("finished\n"), ended
    assert ended.status == 0, ended
    return ended


@pytest.mark.parametrize("where", MEMORY + FILES)
def test_an_enclave_is_paged_to_where_its_program_says(
    softsgx: "Harness", where: str, tmp_path: Path
) -> None:
    assert provided(softsgx, where, "walk", tmp_path).err == ""


@pytest.mark.parametrize("what", ["flip", "swap", "replay"])
@pytest.mark.parametrize("where", ["memory", "file-two"])
def test_what_was_changed_in_the_store_is_found_out(
    softsgx: "Harness", where: str, what: str, tmp_path: Path
) -> None:
    provided(softsgx, where, what, tmp_path)


@pytest.mark.parametrize("what", ["protect", "unmap"])
@pytest.mark.parametrize("where", ["memory-two", "shared"])
def test_a_store_out_of_reach_is_a_fault_until_it_is_back(
    softsgx: "Harness", where: str, what: str, tmp_path: Path
) -> None:
    provided(softsgx, where, what, tmp_path)


@pytest.mark.parametrize("where", ["file", "file-two"])
def test_a_truncated_store_is_a_fault_until_it_is_back(
    softsgx: "Harness", where: str, tmp_path: Path
) -> None:
    provided(softsgx, where, "truncate", tmp_path)


@pytest.mark.parametrize("what", ["exit", "exec"])
def test_an_enclave_ends_with_the_process_whose_memory_is_its_store(
    softsgx: "Harness", what: str, tmp_path: Path
) -> None:
    provided(softsgx, "memory", what, tmp_path)


def test_what_can_be_a_store_and_what_cannot(softsgx: "Harness") -> None:
    softsgx.checked("backing_rules")


def test_so_it_is_for_an_ordinary_user(softsgx: "Harness", ordinary_user: int | None) -> None:
    softsgx.checked("backing_rules", uid=ordinary_user)
