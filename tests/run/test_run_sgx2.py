# SPDX-License-Identifier: Apache-2.0
"""Pages that come, change and go while an enclave runs: what programs see, with userfaultfd and without.

SECONDS=60 make test ARGS="tests/run/test_run_sgx2.py -k too_small" lets them come and go for a minute.
"""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.run.conftest import Harness

# The enclave begins so far into its ELRANGE: before it there is nothing.
HOLE = 4 << 20
USERFAULTFD = 323


@pytest.fixture(params=["userfaultfd", "without userfaultfd"])
def before(request: pytest.FixtureRequest, softsgx: "Harness") -> list[str]:
    """Give the words before a command that make its holes fault the one way or the other."""
    return [] if request.param == "userfaultfd" else softsgx.refusing("1", [USERFAULTFD])


def check(
    softsgx: "Harness", before: list[str], name: str, *words: str, options: tuple[str, ...]
) -> str:
    program = softsgx.program(name)
    command = softsgx.command(program, *softsgx.enclave(base=HOLE), *words, options=options)
    ended = softsgx.complete([*before, *command])
    assert "not ok" not in ended.out, ended.out + ended.err
    assert ended.out.endswith("finished\n"), ended
    assert ended.status == 0, ended
    return ended.err


def test_each_touch_gives_what_mapping_and_epcm_say(softsgx: "Harness", before: list[str]) -> None:
    assert check(softsgx, before, "sgx2", options=("--epc", "4M")) == ""


def test_so_it_is_where_the_host_is_kept_out(softsgx: "Harness", before: list[str]) -> None:
    check(softsgx, before, "sgx2", "strict", options=("--epc", "4M", "--isolation", "strict"))


def test_pages_come_and_go_with_an_epc_that_is_too_small(
    softsgx: "Harness", before: list[str]
) -> None:
    # Four times 96 pages, with the enclave's own 70, in 256.
    check(softsgx, before, "sgx2_pressure", "1", "96", options=("--epc", "1M"))


def test_two_programs_whose_pages_come_and_go_share_an_epc(
    softsgx: "Harness", before: list[str]
) -> None:
    program, words = softsgx.program("sgx2_pressure"), softsgx.enclave(base=HOLE)
    one = " ".join(map(str, (program, *words, 1, 64)))
    script = f"{one} & other=$!; {one} && wait $other"
    ended = softsgx.complete(
        [*before, *softsgx.command("sh", "-c", script, options=("--epc", "1M"))]
    )
    assert "not ok" not in ended.out, ended.out + ended.err
    assert ended.out.count("finished\n") == 2, ended
    assert ended.status == 0, ended


@pytest.mark.parametrize("other", [(), ("process",)])
def test_children_of_a_fork_while_pages_are_unmapped(
    softsgx: "Harness", before: list[str], other: tuple[str, ...]
) -> None:
    assert check(softsgx, before, "fork_unmapping", "300", *other, options=()) == ""
