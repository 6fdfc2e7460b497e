# SPDX-License-Identifier: Apache-2.0
"""Ten supervisors are killed while pages of enclaves come and go: see kills.py."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

KILLS = "10"
SEED = "20"


def test_nobody_reads_zeros_when_a_supervisor_is_killed() -> None:
    script = Path(__file__).with_name("kills.py")
    command = [sys.executable, script, "--kills", KILLS, "--seed", SEED]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{KILLS} of supervisors" in ended.stdout
