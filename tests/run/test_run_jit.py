# SPDX-License-Identifier: Apache-2.0
"""Programs that make code at run time, and use fault signals for it, run as without softsgx."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

SOURCES = Path(__file__).parent / "programs" / "jit"
PROGRAMS = {
    # Without the file for jps and jstat, that would be left in /tmp.
    "java": (["java", "-XX:-UsePerfData", SOURCES / "Work.java"], "nulls 200"),
    "node": (["node", SOURCES / "work.js"], "RuntimeError"),
    "python": ([sys.executable, "-B", SOURCES / "work.py"], "asyncio"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_makes_code_runs_as_without(softsgx: "Harness", name: str) -> None:
    command, done = PROGRAMS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {name}")
    native = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=softsgx.directory, timeout=60
    )
    if done not in native.stdout:
        pytest.skip(f"{name} cannot run it: {native.stderr.strip()[-200:]}")
    wanted = (native.returncode, native.stdout, native.stderr)
    assert tuple(softsgx.run(*command)) == wanted
    assert tuple(softsgx.run(*command, options=("--leave-text",))) == wanted
