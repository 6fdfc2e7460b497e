# SPDX-License-Identifier: Apache-2.0
"""Threads that stop at each instruction of the transitions without a trap: before them or behind them, never between."""

import json
import os
import re
import subprocess
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from softsgx.run.slots import entry_slot, exit_slot
from softsgx.run.vdso import VdsoImage

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        "--no-fast-path" in os.environ.get("RUN_OPTIONS", ""), reason="every transition traps"
    ),
]

MOV = b"\xb8%c\x00\x00\x00"  # the leaf to EAX
# exit_long_move of transitions_enclave.S, as long as it is there.
LONG = bytes.fromhex(
    "48c7c004000000 4c8bb790000000 4c8b3d00000000 4f8d3437 4c8bbf98000000 488b7f58"
)


def instructions(*objdump: str | Path) -> dict[int, str]:
    """Disassemble; return each instruction by its offset."""
    command = ["objdump", "--no-show-raw-insn", *objdump]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {
        int(at, 16): text
        for at, text in re.findall(r"^ *([0-9a-f]+):\t(.*)$", listing, re.MULTILINE)
    }


@pytest.fixture(scope="module")
def image() -> VdsoImage:
    return VdsoImage.load()


@pytest.fixture(scope="module")
def places(image: VdsoImage, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Name every instruction as in_transition.c wants it."""

    def of_slot(code: bytes) -> list[int]:
        path = tmp_path_factory.mktemp("slot") / "code"
        # Without the address of the jump at its end.
        path.write_bytes(code[:-8])
        return list(instructions("-D", "-b", "binary", "-mi386:x86-64", path))

    def leaving(moved: bytes) -> list[int]:
        return of_slot(exit_slot(0, moved, 4096, 8192, 4096, by_fs=False, shift=12))

    text = instructions("-d", image.path)

    def from_on(start: int) -> list[int]:
        # To the padding: where the image says that it ends is what is tested.
        return list(takewhile(lambda at: "nop" not in text[at], (at for at in text if at >= start)))

    eenter, eexit = from_on(image.eenter), from_on(image.eexit)
    through = next(at for at in eexit if text[at].split() == ["jmp", "*%rbx"])
    by_name = {
        "entry": of_slot(entry_slot(0, MOV % 2, 4096, 4096)),
        "enter": [at for at in eenter if at < image.eenter_inside],
        "inside": [at for at in eenter if image.eenter_inside <= at < image.eenter_trap],
        "trap": [at for at in eenter if image.eenter_trap <= at],
        "exit": leaving(MOV % 4),
        # What comes behind its own instructions is as in the other.
        "long": [at for at in leaving(LONG) if at <= len(LONG)],
        "leave": [at for at in eexit if at < image.eexit_outside],
        "outside": [at for at in eexit if image.eexit_outside <= at <= through],
        "nowhere": [at for at in eexit if at > through],
    }
    assert all(by_name.values())
    return [f"{name}:{at}" for name, found in by_name.items() for at in found]


def stopped(
    softsgx: "Harness", image: VdsoImage, how: str, places: list[str], *options: str
) -> dict[str, int]:
    """Stop a thread at each of these places; return the run's statistics."""
    told = softsgx.directory / f"in_transition-{how}.json"
    ended = softsgx.run(
        *(softsgx.program("in_transition"), *softsgx.enclave_of("transitions_enclave")),
        *(how, str(image.table), *places),
        options=(*options, "--stats-json", told),
    )
    assert "not ok" not in ended.out, ended
    assert ended.out.endswith("finished\n"), ended
    assert set(places) == {line.split()[1] for line in ended.out.splitlines()[:-1]}
    stats: dict[str, int] = json.loads(told.read_text())
    assert stats["eenter_fast"] > 0 < stats["eexit_fast"]
    return stats


def test_a_signal_comes_before_a_transition_or_behind_it(
    softsgx: "Harness", image: VdsoImage, places: list[str]
) -> None:
    stats = stopped(softsgx, image, "signal", places)
    # Who is put before a transition has not made it, and it is counted once. Two miscounts may make up
    # for each other here; not where every second place is left out.
    assert stats["eenter"] == stats["eexit"]


def test_who_is_held_in_a_transition_makes_it_by_a_leaf(
    softsgx: "Harness", image: VdsoImage, places: list[str]
) -> None:
    stats = stopped(softsgx, image, "hold", places[::2])
    assert stats["eenter"] == stats["eexit"]


def test_a_stop_of_the_process_in_a_transition_changes_nothing(
    softsgx: "Harness", image: VdsoImage, places: list[str]
) -> None:
    stats = stopped(softsgx, image, "stop", places[1::2])
    assert stats["eenter"] == stats["eexit"]


def test_a_tcs_can_be_entered_after_who_was_killed_in_a_transition(
    softsgx: "Harness", image: VdsoImage, places: list[str]
) -> None:
    stopped(softsgx, image, "kill", places)


def test_an_eenter_needs_no_stack(softsgx: "Harness") -> None:
    words = (softsgx.program("stack_edge"), *softsgx.enclave_of("transitions_enclave"))
    ended = softsgx.run(*words)
    assert "not ok" not in ended.out, ended
    assert ended.out.endswith("finished\n"), ended


def test_an_aep_that_is_not_canonical_is_the_leafs_to_refuse(softsgx: "Harness") -> None:
    told = softsgx.directory / "aep_edge.json"
    words = (softsgx.program("aep_edge"), *softsgx.enclave_of("transitions_enclave"))
    ended = softsgx.run(*words, options=("--stats-json", told))
    assert "not ok" not in ended.out, ended
    assert ended.out.endswith("finished\n"), ended
    # Nothing is shown by entries that all trap.
    assert json.loads(told.read_text())["eenter_fast"] > 0


def test_an_interrupt_in_a_transition_is_an_aex_of_who_is_inside(
    softsgx: "Harness", image: VdsoImage, places: list[str]
) -> None:
    within = [
        p for p in places if p.split(":")[0] in {"inside", "exit", "long", "leave", "nowhere"}
    ]
    stats = stopped(softsgx, image, "exits", within, "--aex-every", "20ms")
    assert stats["eenter"] == stats["eexit"]
