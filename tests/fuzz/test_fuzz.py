# SPDX-License-Identifier: Apache-2.0
"""Some thousand damaged files of every format, the same each time: see fuzz.py; and what it would complain of."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
COUNT = 4000
SEED = "6"


def test_damaged_files_are_read_or_refused_in_one_line() -> None:
    command = [sys.executable, HERE / "fuzz.py", "--count", str(COUNT), "--seed", SEED]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f" {COUNT} trials, 0 went wrong\n" in ended.stdout


# A trial that does what a defect would do.
PLANTED = """
import sys, fuzz, trial
def main(arguments):
    {defect}
trial.Trials.undamaged = lambda self: []
trial.main = main
sys.argv[1:] = ["--count", "1", "--seed", "1"]
sys.exit(fuzz.main())
"""


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        ("raise KeyError('lost')", "KeyError: 'lost'"),
        ("sys.stderr.write('softsgx: a\\nb\\n'); return 2", "not one line: "),
        ("sys.stderr.write('softsgx: it is bad\\n'); return 2", "no file is named: "),
        ("sys.stderr.write(f'softsgx: {arguments[-1]}: bad\\n'); return 2", "no offset is named: "),
        ("sys.stderr.write('softsgx: \\x1b[31m\\n'); return 2", "not a line for a terminal: "),
        ("return 3", "status 3: "),
        ("bytearray(1 << 28)", "MemoryError"),
        ("signal = __import__('signal'); signal.raise_signal(signal.SIGPROF)", "killed by SIGPROF"),
    ],
)
def test_a_defect_is_told_and_the_files_are_kept(tmp_path: Path, defect: str, said: str) -> None:
    code = PLANTED.format(defect=defect)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert said in ended.stdout, ended.stdout
    assert "again by: make fuzz SEED=1 CASE=0\n" in ended.stdout
    (kept,) = (tmp_path / "build" / "fuzz").iterdir()
    assert kept.name == "1-0"
    assert list(kept.iterdir())
