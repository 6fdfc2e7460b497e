# SPDX-License-Identifier: Apache-2.0
"""CPUID that is answered in the program: where a jump has room, and nowhere else."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from softsgx.cpu.model import Model
from softsgx.run.vdso import VdsoImage

if TYPE_CHECKING:
    from conftest import Harness

JUMP, UD2, MOV = "e9", "0b", "b8"
# Where something leads right behind CPUID, and where nothing does.
WANTED = {
    "room": JUMP,
    "displaced": JUMP,
    "entered": UD2,
    "cold": UD2,
    "led": JUMP,
    "chosen": UD2,
    "beside": JUMP,
    "past": UD2,
    "bounded": UD2,
    "leaf": JUMP,
}


def run(softsgx: "Harness", *options: str, uid: int | None = None) -> dict[str, str]:
    program = softsgx.program("cpuid_detour", "-ldl")
    library = softsgx.program("cpuid_detour_library.so", "-shared", "-fPIC")
    ended = softsgx.run(program, library, options=options, uid=uid)
    lines = [line.split() for line in ended.out.splitlines()]
    assert ended.status == 0, ended
    assert {line[0]: line[2] for line in lines} == dict.fromkeys(WANTED, "right"), ended.out
    return {line[0]: line[1] for line in lines}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.live
def test_every_cpuid_traps_where_nothing_can_be_kept(
    softsgx: "Harness", ordinary_user: int | None
) -> None:
    if ordinary_user is None:
        pytest.skip("needs root: the ordinary user of the tests has no cache")
    assert run(softsgx, uid=ordinary_user) == {**dict.fromkeys(WANTED, UD2), "led": MOV}


@pytest.mark.live
def test_a_jump_stands_where_it_has_room_and_nothing_leads_into_it(softsgx: "Harness") -> None:
    assert run(softsgx) == WANTED


@pytest.mark.live
def test_every_cpuid_traps_where_they_are_counted(softsgx: "Harness") -> None:
    assert run(softsgx, "--stats") == {**dict.fromkeys(WANTED, UD2), "led": MOV}


def test_more_rows_than_have_room_are_refused() -> None:
    image = VdsoImage.load()
    rows = Model(max_leaf=0).cpuid_rows
    before = image.data
    image.answer_cpuid_by(rows)
    assert len(image.data) == len(before) == image.size
    assert image.data != before
    with pytest.raises(ValueError, match="rows of CPUID"):
        image.answer_cpuid_by(rows * 2)
