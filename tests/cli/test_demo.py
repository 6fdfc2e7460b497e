# SPDX-License-Identifier: Apache-2.0
"""The demonstration that the README promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.live
@pytest.mark.skipif(not (BIN / "softsgx").exists(), reason="needs softsgx installed: make setup")
def test_the_demo_enters_the_enclave_and_refuses_the_changed_one() -> None:
    run = subprocess.run(
        ["bash", ROOT / "examples" / "demo.sh"],
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert '"Hello world, from inside the enclave." 20 + 22 = 42, visit 2' in run.stdout
    assert "SGX_IOC_ENCLAVE_INIT: Operation not permitted" in run.stderr
