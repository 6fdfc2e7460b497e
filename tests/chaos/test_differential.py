# SPDX-License-Identifier: Apache-2.0
"""Some random programs do the same with their transitions by a trap and without: see differential.py."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

SEEDS = "8"
STEPS = "100"


def test_transitions_are_the_same_by_a_trap_and_without(tmp_path: Path) -> None:
    script = Path(__file__).with_name("differential.py")
    which = ["--seed", "1", "--count", SEEDS, "--steps", STEPS, "--keep", tmp_path]
    command = [sys.executable, script, *which]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout == f"{SEEDS} seeds from 1 on, 0 with differences\n"
