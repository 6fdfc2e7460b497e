# SPDX-License-Identifier: Apache-2.0
"""The command itself: verbs, exit statuses, and that a verb costs what it uses."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentError, ArgumentParser
from importlib import import_module
from pathlib import Path

import pytest

from softsgx import __version__, cli
from softsgx.cli import VERBS, main, run


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"softsgx {__version__}\n"
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert "never for secrets" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "a verb is missing"), (["fly"], "there is no verb 'fly'"), (["-x"], "no verb '-x'")],
)
def test_a_wrong_verb_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_module_and_explains_itself(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(f"softsgx.cli.{verb}")
    assert callable(module.add_arguments)
    assert callable(module.main)
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert end.value.code == 0
    assert f"softsgx {verb}" in capsys.readouterr().out


def test_an_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    assert main(["measure", "x"]) == 130


def test_a_defect_of_ours_is_not_dressed_as_a_users_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def defective(_: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_dispatch", defective)
    with pytest.raises(ZeroDivisionError):
        main(["measure", "x"])


START = "import sys; from softsgx.cli import main; status = main(sys.argv[1:]); "


def test_a_verb_does_not_import_the_others_nor_large_packages(tmp_path: Path) -> None:
    code = START + "print(status, sorted(m.partition('.')[0] for m in sys.modules))"
    code += "; print([m for m in sys.modules if m.startswith('softsgx.')])"
    run = subprocess.run(
        [sys.executable, "-c", code, "measure", str(tmp_path / "nothing")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("2 ")
    for package in ("'numpy'", "'cryptography'", "'iced_x86'"):
        assert package not in run.stdout
    assert "softsgx.cli.run" not in run.stdout
    assert "softsgx.driver" not in run.stdout


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    # The pipe's reading end is closed before anything is written.
    shell = '{ sleep 0.3; "$@"; echo "status $?" >&2; } | :'
    run = subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-c", START + "sys.exit(status)", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stderr == "status 1\n"


# -- run's own reading of a command line that is right ------------------------------------------------


def by_argparse(arguments: list[str]) -> dict[str, object] | None:
    parser = ArgumentParser(allow_abbrev=False, exit_on_error=False)
    run.add_arguments(parser)
    try:
        return vars(parser.parse_args(arguments))
    except (SystemExit, ArgumentError):
        return None


@pytest.mark.parametrize(
    "line",
    [
        "true",
        "-- true",
        "--stats -- prog -x --stats",
        "--epc 64M --trace=t.jsonl prog a b",
        "--epc=64M --state dir --kill-on-exit --leave-text -- prog -- x",
        "--stats-json=s.json prog",
        "--stats-json s.json -- prog --stats-json",
        "--stats-json --stats prog",
        "--state= prog",
        "--driver isgx prog",
        "--driver=dcap -- prog --driver",
        "--driver",
        "--kill_on_exit prog",
        "--stat prog",
        "--stats=1 prog",
        "--epc",
        "--epc --stats prog",
        "--help",
        "-x prog",
        "--",
        "",
    ],
)
def test_run_reads_a_command_line_as_argparse_does(line: str) -> None:
    words = line.split()
    given = run.parse(words)
    if given is not None:
        assert vars(given) == by_argparse(words)
    else:
        assert by_argparse(words) is None
