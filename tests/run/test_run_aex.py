# SPDX-License-Identifier: Apache-2.0
"""Exits at every place: `--aex-every`, and an enclave that is told of its exits (AEX-Notify)."""

import json
from typing import TYPE_CHECKING

import pytest

from softsgx.arch.codes import LeafCode

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

AEXNOTIFY = 0x404
SKIPPED_LEAF = 0xFFFF_FFFF
THREADS = 4


def notified(
    softsgx: "Harness", what: str, turns: int = 0, wanted: int = 0, options: tuple[str, ...] = ()
) -> dict[str, int]:
    """Run the program that uses AEX-Notify; return how many exits there were by kind."""
    # The program tries an enclave without the attribute, too: the signature leaves it open.
    open_mask = f"{(1 << 64) - 1 - 0x402:#x}"
    signed = ("--attributes", f"{AEXNOTIFY:#x}", "--attribute-mask", open_mask)
    words = (*softsgx.enclave_of("aex_notify_enclave", *signed), what, str(turns), str(wanted))
    told = softsgx.directory / "aex.json"
    ended = softsgx.run(
        softsgx.program("aex_notify"), *words, options=(*options, "--stats-json", told)
    )
    assert "not ok" not in ended.out, ended
    assert ended.out.endswith("finished\n"), ended
    assert ended.status == 0, ended
    exits: dict[str, int] = json.loads(told.read_text())["aex"]
    return exits


def test_an_enclave_is_told_of_an_exception_and_goes_on_behind_it(softsgx: "Harness") -> None:
    assert notified(softsgx, "once") == {"#UD": 1, "#GP": 1}


def test_a_missing_everifyreport2_is_a_fault_that_a_handler_can_skip(softsgx: "Harness") -> None:
    assert notified(softsgx, "report2", turns=SKIPPED_LEAF) == {"#GP": 1}
    code = int(LeafCode.INVALID_REPORTMACSTRUCT)
    options = ("--cpu", "default,+everifyreport2")
    assert notified(softsgx, "report2", turns=code, options=options) == {}


def test_an_enclave_is_told_of_signals(softsgx: "Harness") -> None:
    exits = notified(softsgx, "signals", turns=200_000, wanted=20)
    assert exits["interrupt"] >= 20


@pytest.mark.parametrize("every", ["200us", "1ms"])
def test_an_enclave_is_told_of_a_storm_of_exits(softsgx: "Harness", every: str) -> None:
    exits = notified(
        softsgx, "interrupted", turns=100_000, wanted=100, options=("--aex-every", every)
    )
    assert exits["interrupt"] >= 100


def test_an_enclave_is_told_of_an_exit_after_so_many_instructions(softsgx: "Harness") -> None:
    # The handler takes some 50 instructions, so that the enclave gets on by twice as many.
    exits = notified(softsgx, "interrupted", turns=200, wanted=50, options=("--aex-every", "150i"))
    assert exits["interrupt"] >= 50


def test_an_exit_after_each_instruction_changes_no_result(softsgx: "Harness") -> None:
    exits = notified(softsgx, "unarmed", turns=20, wanted=1, options=("--aex-every", "1i"))
    # A turn is 13 instructions.
    assert exits["interrupt"] >= THREADS * 20 * 13


def test_threads_of_ordinary_enclaves_survive_a_storm(softsgx: "Harness") -> None:
    told = softsgx.directory / "storm.json"
    options = ("--aex-every", "100us", "--stats-json", str(told))
    softsgx.checked("spread", options=options)
    assert json.loads(told.read_text())["aex"]["interrupt"] > 0


def test_a_jump_out_of_the_enclave_is_seen_where_it_is_stepped(softsgx: "Harness") -> None:
    # Else at the next trap; this code makes none.
    assert "went on\n" in softsgx.checked("jump_out")
    out = softsgx.checked("jump_out", options=("--aex-every", "1000000i"))
    assert "#GP at the target\n" in out


def test_a_jump_out_of_the_enclave_is_seen_at_a_tick(softsgx: "Harness") -> None:
    assert "#GP " in softsgx.checked("jump_out", options=("--aex-every", "200us"))


@pytest.mark.parametrize(
    ("name", "base", "heap", "more", "epc"),
    [
        ("pressure", 0, 1 << 20, (str(1 << 20), "threads"), "256K"),
        # Pages are added, changed and removed, by four threads.
        ("sgx2_pressure", 4 << 20, 0, ("1", "96"), "1M"),
    ],
    ids=["evicted pages", "dynamic memory"],
)
def test_pages_come_and_go_in_a_storm_of_exits(
    softsgx: "Harness", name: str, base: int, heap: int, more: tuple[str, ...], epc: str
) -> None:
    told = softsgx.directory / f"{name}.json"
    options = ("--epc", epc, "--aex-every", "500us", "--stats-json", told)
    words = (*softsgx.enclave(base=base, heap=heap), *more)
    ended = softsgx.run(softsgx.program(name), *words, options=options)
    assert "not ok" not in ended.out, ended
    assert ended.out.endswith("finished\n"), ended
    stats = json.loads(told.read_text())
    assert stats["evictions"] > 0
    assert stats["aex"]["interrupt"] > 0


@pytest.mark.parametrize(
    "every", ["", "0", "0us", "-1us", "1.5ms", "1 us", "1h", "us", "i", "9" * 20]
)
def test_what_is_no_period_is_refused(softsgx: "Harness", every: str) -> None:
    ended = softsgx.run("echo", "run", options=(f"--aex-every={every}",))
    assert (ended.status, ended.out) == (2, "")
    assert f"--aex-every {every}: wanted is a time such as" in ended.err


def test_only_one_steps_a_program(softsgx: "Harness") -> None:
    ended = softsgx.run("echo", "run", options=("--aex-every", "9i", "--gdb", "0"))
    assert (ended.status, ended.out) == (2, "")
    assert "--aex-every 9i and --gdb: both step the program" in ended.err


def test_a_run_without_an_enclave_does_not_notice(softsgx: "Harness") -> None:
    for every in ("1us", "1i"):
        ended = softsgx.run("echo", "run", options=("--aex-every", every))
        assert (ended.status, ended.out, ended.err) == (0, "run\n", "")


def test_an_ignored_sigtrap_stays_ignored_under_single_steps(
    softsgx: "Harness",
) -> None:
    inner = [softsgx.program("spread"), *softsgx.enclave(), "1"]
    script = "trap '' TRAP; exec \"$@\""
    command = softsgx.command(
        "sh", "-c", script, "sh", *map(str, inner), options=("--aex-every", "50i")
    )
    ended = softsgx.complete(command)
    assert "not ok" not in ended.out, ended
    assert ended.out.endswith("finished\n"), ended
