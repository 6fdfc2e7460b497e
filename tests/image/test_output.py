# SPDX-License-Identifier: Apache-2.0
"""Files that are written: whole under their name or not there, also where the process is killed."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from softsgx.errors import SoftsgxError
from softsgx.image.output import Output, written


@pytest.fixture(params=["without a name", "with a temporary name"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways that a file is begun; the second is that of file systems which have no O_TMPFILE."""
    if request.param == "with a temporary name":
        monkeypatch.delattr(os, "O_TMPFILE")


@pytest.mark.usefixtures("way")
def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for content in (b"first", b"second, in its place"):
        with written(str(path), "it") as out:
            out.write(content)
            assert not path.exists() or path.read_bytes() == b"first"
            out.seek(0)
            assert out.read() == content
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


def write_half(path: Path) -> None:
    with written(str(path), "it") as out:
        out.write(b"half")
        raise ZeroDivisionError


@pytest.mark.usefixtures("way")
def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    output = Output(str(tmp_path))
    output.file.write(b"of no use")
    output.discard()
    (tmp_path / "folder").mkdir()
    output = Output(str(tmp_path))
    with pytest.raises(IsADirectoryError):
        output.keep(str(tmp_path / "folder"))
    assert path.read_bytes() == b"before"
    assert {one.name for one in tmp_path.iterdir()} == {"out", "folder"}


@pytest.mark.usefixtures("way")
def test_permissions_and_links_stay_as_they_are(tmp_path: Path) -> None:
    path, link, program = tmp_path / "out", tmp_path / "link", tmp_path / "program"
    path.write_bytes(b"before")
    path.chmod(0o640)
    link.symlink_to("out")
    with written(str(link), "it") as out:
        out.write(b"after")
    assert link.is_symlink()
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"after", 0o640)
    program.write_bytes(b"")
    program.chmod(0o755)
    with written(str(path), "it", like=str(program)):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/full", "No space left on device"),
        (".", "Is a directory"),
        ("not/there", "No such file or directory"),
    ],
)
def test_what_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(SoftsgxError, match=f"^{path}: cannot write it: {reason}$"),
        written(path, "it") as out,
    ):
        out.write(b"x")


def test_of_a_process_that_is_killed_nothing_stays(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from softsgx.image.output import Output\n"
        "output = Output(sys.argv[1]); output.file.write(b'x' * (4 << 20))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
