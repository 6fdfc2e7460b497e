# SPDX-License-Identifier: Apache-2.0
"""The chaos test for a few seconds, with decisions that are always the same: see chaos.py."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

SECONDS = "8"
SEED = "20"


def test_nothing_stays_behind_however_a_run_is_disturbed() -> None:
    script = Path(__file__).with_name("chaos.py")
    command = [sys.executable, script, "--seconds", SECONDS, "--seed", SEED]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith(" passed, 0 failed\n")
