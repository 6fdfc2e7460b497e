# SPDX-License-Identifier: Apache-2.0
"""What a build from source has, where there is a C compiler and where there is none.

`make packages` installs both and uses them; here meson only says what it would build.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILERS = ("cc", "gcc", "clang")
IMAGE = "linux-vdso.so.1"

MESON = shutil.which("meson", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
pytestmark = pytest.mark.skipif(MESON is None, reason="meson is not installed")


def configure(
    build: Path, *options: str, compiler: bool = True
) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if key not in {"CC", "CFLAGS"}}
    if not compiler:
        folder = build.parent / "bin"
        folder.mkdir()
        for tool in ("sh", "ninja"):
            (folder / tool).symlink_to(shutil.which(tool, path=tool_path()) or "missing")
        environment["PATH"] = str(folder)
        assert not any(shutil.which(name, path=str(folder)) for name in COMPILERS)
    else:
        environment["PATH"] = tool_path()
    return subprocess.run(
        [str(MESON), "setup", str(build), str(ROOT), *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def tool_path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def installed(build: Path) -> str:
    """Return where the package and the image go, as meson plans it."""
    return (build / "meson-info" / "intro-install_plan.json").read_text()


def has_image(build: Path) -> bool:
    plan = json.loads(installed(build))
    return any(IMAGE in path for files in plan.values() for path in files)


def test_with_a_compiler_the_image_is_built_and_the_package_is_not_pure(tmp_path: Path) -> None:
    build = tmp_path / "build"
    run = configure(build)
    assert run.returncode == 0, run.stdout + run.stderr
    assert has_image(build)
    assert "{py_platlib}" in installed(build)
    assert "{py_purelib}" not in installed(build)


def test_without_a_compiler_the_package_is_pure_python(tmp_path: Path) -> None:
    build = tmp_path / "build"
    run = configure(build, compiler=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert not has_image(build)
    assert "{py_purelib}" in installed(build)
    assert "{py_platlib}" not in installed(build)
    assert "`softsgx run` will refuse" in run.stdout


def test_a_compiler_that_cannot_link_counts_as_none(tmp_path: Path) -> None:
    build = tmp_path / "build"
    native = tmp_path / "native.ini"
    native.write_text(f"[binaries]\nc = '{shutil.which('false')}'\n")
    run = configure(build, f"--native-file={native}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert not has_image(build)


@pytest.mark.parametrize("compiler", [True, False])
def test_the_image_can_be_left_out_and_insisted_on(tmp_path: Path, compiler: bool) -> None:
    build = tmp_path / "build"
    if compiler:
        assert configure(build, "-Dvdso=disabled").returncode == 0
        assert not has_image(build)
    else:
        run = configure(build, "-Dvdso=enabled", compiler=False)
        assert run.returncode == 1
        assert "Unknown compiler" in run.stdout


@pytest.mark.parametrize(
    ("system", "processor"), [("darwin", "aarch64"), ("windows", "x86_64"), ("linux", "aarch64")]
)
def test_another_machine_has_the_package_without_the_image(
    tmp_path: Path, system: str, processor: str
) -> None:
    build = tmp_path / "build"
    cross = tmp_path / "cross.ini"
    cross.write_text(
        f"[host_machine]\nsystem = '{system}'\ncpu_family = '{processor}'\n"
        f"cpu = '{processor}'\nendian = 'little'\n"
    )
    run = configure(build, f"--cross-file={cross}")
    assert run.returncode == 0, run.stdout + run.stderr
    assert not has_image(build)
    insisted = configure(tmp_path / "insisted", f"--cross-file={cross}", "-Dvdso=enabled")
    assert insisted.returncode == 1
    assert f"for x86-64 Linux; this is {system} on {processor}" in insisted.stdout
