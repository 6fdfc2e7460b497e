# SPDX-License-Identifier: Apache-2.0
"""The shape of the source tree: import direction, module length, licence lines."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "softsgx"

# What each room may import beside itself.
BELOW = {
    "errors": set(),
    "arch": {"errors"},
    "image": {"errors", "arch"},
    "cpu": {"errors", "arch", "image"},
    "driver": {"errors", "arch", "image", "cpu"},
    "run": {"errors", "arch", "image", "cpu", "driver"},
    "cli": {"errors", "arch", "image", "cpu", "driver", "run"},
    # The package itself: its version.  Nothing may be imported there, every start would pay for it.
    "__init__": set(),
    "__main__": {"cli"},
}
LONGEST_MODULE = 500
LICENCE = "SPDX-License-Identifier: Apache-2.0"
SOURCE_SUFFIXES = {".py", ".pyi", ".c", ".h", ".S", ".lds", ".map", ".sh", ".build"}
SOURCE_FOLDERS = ("bench", "conformance", "csrc", "examples", "src", "tests")

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything of this package that a module imports, at any depth."""
    package = ("softsgx", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            # `from softsgx import cpu` names a room in the second half.
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "softsgx")


def violations(path: Path) -> list[str]:
    room = room_of(path)
    return [
        f"{name_of(path)}:{line}: {room} may not import {name}"
        for line, name in imports(path)
        if (target := [*name.split("."), ""][1]) in BELOW
        and target not in BELOW[room] | {room, "__init__"}
    ]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    assert room_of(path) in BELOW, (
        f"{name_of(path)} is in no room: add it to BELOW with what it may import"
    )
    assert violations(path) == []


def test_an_import_upwards_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "arch").mkdir()
    module = tmp_path / "arch" / "bad.py"
    module.write_text(
        "import softsgx.cpu.epc\nfrom softsgx import driver\nfrom softsgx.errors import Fault\n"
        "def f():\n    from ..run import vdso\n    from . import leaves\n"
    )
    assert [text.split(": ")[1] for text in violations(module)] == [
        "arch may not import softsgx.cpu.epc",
        "arch may not import softsgx.driver",
        "arch may not import softsgx.run.vdso",
    ]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_short(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST_MODULE, f"{lines} lines: a module owns one thing, split it"


def test_every_source_file_names_its_licence() -> None:
    files = [
        path
        for folder in SOURCE_FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and path.suffix in SOURCE_SUFFIXES and "build" not in path.parts
    ]
    files += [
        ROOT / "Makefile",
        ROOT / "meson.build",
        ROOT / "pyproject.toml",
        ROOT / ".ci" / "run",
    ]
    # The first lines, not the first line: a script begins with its interpreter.
    unnamed = [
        name_of(path) for path in files if LICENCE not in "".join(path.read_text().splitlines()[:3])
    ]
    assert unnamed == []
