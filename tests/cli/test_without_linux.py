# SPDX-License-Identifier: Apache-2.0
"""The verbs for enclaves at rest on a machine that is no Linux: without its modules, and without what only a run needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import softsgx
from softsgx.cli import _LINUX, VERBS, main
from softsgx.image import sigstruct

PACKAGE = Path(softsgx.__file__).parent
AT_REST = [verb for verb in VERBS if verb not in _LINUX]
# iced-x86 disassembles for lint; it has no wheel for some machines.
DISASSEMBLE = {"softsgx.image.illegal"}
MODULES = sorted(
    f"softsgx.{room}.{path.stem}"
    for room in ("arch", "image")
    for path in (PACKAGE / room).glob("*.py")
    if path.stem != "__init__" and f"softsgx.{room}.{path.stem}" not in DISASSEMBLE
)

# What Windows lacks of the standard library, and what is installed on x86-64 Linux only.
ELSEWHERE = """
import os, sys
for name in ("fcntl", "resource", "termios", "tty", "pty", "grp", "pwd", "syslog", "greenlet", "iced_x86"):
    sys.modules[name] = None
for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "O_TMPFILE", "fork", "getuid", "geteuid", "uname", "pread",
             "preadv", "pwrite", "memfd_create", "fchmod", "sched_getaffinity", "posix_spawn", "mkfifo", "sysconf"):
    delattr(os, name)
for room in ("run", "driver"):
    sys.modules["softsgx." + room] = None
from importlib import import_module
from softsgx.cli import main
"""


def elsewhere(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def verb(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return elsewhere("sys.exit(main(sys.argv[1:]))", *arguments)


@pytest.fixture(scope="module")
def enclave(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("enclave")
    source, script, out = folder / "e.s", folder / "e.lds", folder / "enclave.elf"
    source.write_text(
        '.section .tcs, "aw"\n'
        ".quad 0, 0, 0x2000\n.long 0, 1\n.quad 0x1000\n.fill 4056, 1, 0\n"
        ".text\n.globl _start\n_start: ud2\n"
    )
    script.write_text(
        "PHDRS { tcs PT_LOAD FLAGS(6); text PT_LOAD FLAGS(5); }\n"
        "SECTIONS { . = 0; .tcs : { *(.tcs) } :tcs\n. = 0x1000; .text : { *(.text) } :text\n"
        "/DISCARD/ : { *(*) } }\n"
    )
    subprocess.run(
        [
            "cc",
            "-nostdlib",
            "-static",
            "-no-pie",
            f"-Wl,-T,{script}",
            "-Wl,--build-id=none",
            "-o",
            str(out),
            str(source),
        ],
        check=True,
        capture_output=True,
    )
    return out


def test_every_module_of_enclaves_at_rest_can_be_imported() -> None:
    run = elsewhere("for name in sys.argv[1:]: import_module(name)", *MODULES)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", AT_REST)
def test_every_verb_for_enclaves_at_rest_explains_itself(name: str) -> None:
    run = verb(name, "--help")
    assert run.returncode == 0, run.stderr
    assert f"softsgx {name}" in run.stdout


def test_measure_and_sign_work(enclave: Path, tmp_path: Path) -> None:
    key, out = tmp_path / "key.pem", tmp_path / "out.sigstruct"
    measured = verb("measure", enclave)
    assert measured.returncode == 0, measured.stderr
    signed = verb("sign", enclave, "--key", key, "--generate-key", "--out", out)
    assert signed.returncode == 0, signed.stderr
    assert sigstruct.verify(out.read_bytes()) is None
    mrenclave = measured.stdout.splitlines()[0].split()[1]
    assert f"MRENCLAVE  {mrenclave}\n" in signed.stdout


def test_the_other_verbs_work(enclave: Path, tmp_path: Path) -> None:
    copy, key = tmp_path / "enclave.elf", tmp_path / "key.pem"
    copy.write_bytes(enclave.read_bytes())
    for arguments in (
        ("sign", copy, "--key", key, "--generate-key", "--production"),
        ("verify", copy),
        ("inspect", copy),
        ("inspect", f"{copy}.sigstruct"),
        ("measure", copy, "--explain"),
        ("convert", copy, tmp_path / "e.sgxs", "--sigstruct-out", tmp_path / "e.sig"),
        ("verify", tmp_path / "e.sgxs"),
        ("convert", tmp_path / "e.sgxs", tmp_path / "e.pages", "--to", "pages"),
        ("convert", tmp_path / "e.pages", tmp_path / "again.elf", "--to", "elf"),
        ("convert", tmp_path / "e.pages", tmp_path / "e.sgxs"),
        ("diff", copy, tmp_path / "again.elf", "--json"),
    ):
        run = verb(*arguments)
        # The copies have no SIGSTRUCT beside them, in which they differ.
        assert (run.returncode, run.stderr) == (int(arguments[0] == "diff"), ""), arguments
    assert '"same_mrenclave": true' in run.stdout
    assert not list(tmp_path.glob(".softsgx*"))


def test_lint_says_what_it_lacks(enclave: Path) -> None:
    run = verb("lint", enclave)
    assert run.returncode == 2
    assert run.stderr == (
        f"softsgx: {enclave}: lint reads instructions by the package iced-x86, which is not installed here\n"
    )


def test_lint_of_a_program_needs_linux(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main(["lint", "--", "true"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("softsgx: lint of a program needs x86-64 Linux, this is darwin; ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", _LINUX)
def test_a_verb_that_needs_linux_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main([name, "--", "true"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"softsgx: {name} needs x86-64 Linux, this is darwin; here work: ")
    assert "measure" in error
    assert "sign" in error
    assert error.count("\n") == 1


def test_run_says_that_its_vdso_image_is_missing(tmp_path: Path) -> None:
    # As where it was built without a compiler.
    code = (
        "import sys; from softsgx.cli import main; from softsgx.run import vdso; "
        "vdso._IMAGE = sys.argv[1]; vdso._editable = lambda: None; sys.exit(main(sys.argv[2:]))"
    )
    image = tmp_path / "linux-vdso.so.1"
    for arguments, status in ((["run", "true"], 2), (["info"], 1)):
        run = subprocess.run(
            [sys.executable, "-c", code, image, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == status, run.stdout + run.stderr
        said = run.stderr if status == 2 else run.stdout
        assert f"{image}: no vDSO image (No such file or directory)" in said
        assert "install the wheel for x86-64 Linux" in said
        assert "Traceback" not in run.stderr
        if status == 2:
            assert said.count("\n") == 1
