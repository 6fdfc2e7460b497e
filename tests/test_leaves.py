# SPDX-License-Identifier: Apache-2.0
"""The table of the leaves: it is current, has no empty cell, and every outcome of the manual has its test."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from softsgx.arch.codes import LeafCode
from softsgx.arch.leaves import Encls, Enclu
from softsgx.cpu.model import FEATURES, Model

SCRIPT = Path(__file__).parents[1] / "conformance" / "leaves.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("leaves", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["leaves"] = module
    spec.loader.exec_module(module)
    return module


leaves: Any = _script()
ROWS = list(leaves.leaves())


def test_the_table_is_current() -> None:
    wanted = leaves.table()
    found = leaves.TABLE.read_text()
    assert found == wanted, "run: python conformance/leaves.py --write"


def test_no_cell_is_empty() -> None:
    rows = [line for line in leaves.table().splitlines() if line.startswith("| ENCL")]
    assert len(rows) == len(ROWS)
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 7, row
        assert all(cells), row


def test_every_leaf_has_a_row() -> None:
    model = Model(features=frozenset(FEATURES))
    assert {row.number for row in ROWS if row.instruction == "ENCLS"} == model.encls
    assert {row.number for row in ROWS if row.instruction == "ENCLU"} == model.enclu


def test_the_manuals_lists_name_every_leaf_and_known_codes() -> None:
    names = {*Encls.__members__, *Enclu.__members__}
    assert set(leaves.MANUAL) == set(leaves.OUTCOMES) == names
    codes = {code for outcomes in leaves.OUTCOMES.values() for code in outcomes} - {"#GP", "#PF"}
    assert codes <= set(LeafCode.__members__)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.name))
def test_each_fault_and_code_of_a_leaf_is_provoked(row: Any) -> None:
    provoked = {outcome for outcomes in row.tests.values() for outcome in outcomes}
    assert provoked >= {"done", *leaves.OUTCOMES[row.name]}


def test_a_code_that_nothing_can_provoke_is_told_with_the_reason() -> None:
    for name, why in leaves.NEVER.items():
        code = re.match(r"\w+", why)
        assert code is not None
        assert code[0] in LeafCode.__members__
        assert code[0] not in leaves.OUTCOMES[name]
