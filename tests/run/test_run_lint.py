# SPDX-License-Identifier: Apache-2.0
"""`softsgx lint -- PROGRAM`: what a program does that silicon would punish, and what it does not find."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

PAGE = 4096


class Linted(NamedTuple):
    """What became of a lint, and what the program has said of itself."""

    status: int
    said: dict[str, int]
    files: list[dict[str, Any]]
    out: str
    err: str

    @property
    def program(self) -> dict[str, Any]:
        return self.files[0]

    def of(self, rule: str) -> list[dict[str, Any]]:
        return [finding for finding in self.program["findings"] if finding["rule"] == rule]


@pytest.fixture
def lint(softsgx: "Harness", tmp_path: Path) -> Any:
    """Lint tests/run/programs/linted.c, which is told what to do."""

    def run(*what: str, clean: bool = True, options: tuple[str, ...] = ()) -> Linted:
        name = "linted_clean_enclave" if clean else "linted_enclave"
        program = softsgx.program("linted")
        path = tmp_path / "findings.json"
        words = (*options, "--json", "--output", path, "--state", softsgx.state, "--", program)
        command = [
            sys.executable,
            "-m",
            "softsgx",
            "lint",
            *words,
            *softsgx.enclave_of(name),
            *what,
        ]
        ended = softsgx.complete([str(word) for word in command])
        lines = [line.split() for line in ended.out.splitlines()]
        said = {line[0]: int(line[1], 16) for line in lines if len(line) == 2}
        files = json.loads(path.read_text())["files"]
        return Linted(ended.status, said, files, ended.out, ended.err)

    return run


def test_a_program_that_does_nothing_wrong_is_clean(lint: Any) -> None:
    result = lint("clean")
    assert (result.status, result.err) == (0, "")
    assert result.out.endswith("finished\n")
    program, enclave = result.files
    assert (program["findings"], enclave["findings"]) == ([], [])
    assert (program["status"], program["signal"]) == (0, None)
    # Without SECS and VA page, which are among the EPC's.
    assert program["pages"] == enclave["pages"] + 2


def test_touches_from_outside_are_told_once_for_each_instruction(lint: Any) -> None:
    result = lint("touch", "fork", "thread")
    assert result.status == 1
    said, found = result.said, result.of("enclave-touched")
    assert result.program["findings"] == found
    read, written = found
    assert [finding["access"] for finding in found] == ["read", "write"]
    assert int(read["address"], 16) == said["read"]
    assert int(read["offset"], 16) == said["read"] - said["start"]
    assert Path(read["module"]).name == "linted"
    assert read["symbol"].startswith("peek")
    assert int(read["touched"], 16) == said["kept"]
    # Three by the loop, one by a child, one by another thread.
    assert read["count"] == 5
    assert (read["pid"], read["tid"]) == (said["pid"], said["pid"])
    assert int(written["address"], 16) == said["write"]
    assert written["symbol"].startswith("poke")
    assert written["count"] == 1
    assert "gives FF" in read["reason"]
    assert "dropped" in written["reason"]


def test_the_thread_that_touches_is_named(lint: Any) -> None:
    result = lint("thread")
    (read,) = result.of("enclave-touched")
    assert (read["pid"], read["tid"]) == (result.said["pid"], result.said["tid"])
    assert result.said["tid"] != result.said["pid"]


def test_a_system_call_that_is_given_enclave_memory_is_not_found(lint: Any) -> None:
    result = lint("system-call")
    assert result.said["refused"] == 1
    assert (result.status, result.program["findings"]) == (0, [])


def test_an_illegal_instruction_that_was_executed(lint: Any) -> None:
    result = lint("cpuid", "ud2", clean=False)
    assert result.status == 1
    # UD2 is #UD on any processor.
    (found,) = result.program["findings"]
    assert found["rule"] == "illegal-instruction-executed"
    assert (found["instruction"], found["exception"], found["count"]) == ("cpuid", "#UD", 2)
    assert int(found["address"], 16) == result.said["cpuid"]
    enclave = result.files[1]
    assert found["module"] == enclave["file"] == f"enclave {enclave['mrenclave'][:16]}"
    assert int(found["offset"], 16) == result.said["cpuid"] - result.said["base"]
    # It is not told again as one that may be data.
    assert enclave["findings"] == []


def test_the_code_of_an_enclave_is_looked_at(lint: Any) -> None:
    result = lint("clean", clean=False)
    assert (result.status, result.program["findings"]) == (1, [])
    (found,) = result.files[1]["findings"]
    assert (found["rule"], found["instruction"]) == ("illegal-instruction", "cpuid")
    assert int(found["address"], 16) == result.said["cpuid"] - result.said["base"]
    # Control flow comes to it from TCS.OENTRY.
    assert found["certain"]


def test_leaves_that_are_refused(lint: Any) -> None:
    result = lint("ereport", "eenter")
    assert result.status == 1
    report, enter = result.program["findings"]
    assert (report["rule"], report["leaf"], report["exception"]) == (
        "leaf-refused",
        "EREPORT",
        "#GP",
    )
    assert int(report["address"], 16) == result.said["ereport"]
    assert "aligned" in report["reason"]
    assert (enter["rule"], enter["leaf"], enter["count"]) == ("leaf-refused", "EENTER", 2)
    assert (enter["module"], enter["symbol"]) == ("[vdso]", "__vdso_sgx_enter_enclave")
    assert "not page aligned" in enter["reason"]


def test_an_exit_without_eexit(lint: Any) -> None:
    result = lint("jump")
    (found,) = result.program["findings"]
    assert (found["rule"], found["exception"]) == ("left-without-eexit", "#GP")
    assert int(found["address"], 16) == result.said["ud2"]


def test_arguments_that_the_driver_refuses(lint: Any) -> None:
    result = lint("arguments")
    assert [result.said[name] for name in ("ECREATE", "source", "length", "offset")] == [1] * 4
    found = result.program["findings"]
    assert [finding["rule"] for finding in found] == ["argument-refused"] * 3
    assert [(finding["call"].split("_", 2)[2], finding["errno"]) for finding in found] == [
        ("ENCLAVE_CREATE", "EIO"),
        ("ENCLAVE_ADD_PAGES", "EINVAL"),
        ("ENCLAVE_ADD_PAGES", "EINVAL"),
    ]
    assert all("aligned" in finding["reason"] for finding in found)


def test_an_epc_that_is_too_small(lint: Any) -> None:
    pages = lint("clean").program["pages"]
    assert lint("clean", options=("--part", f"{4 * pages}K")).status == 0
    result = lint("clean", options=("--part", f"{4 * (pages - 1)}K"))
    assert result.status == 1
    (found,) = result.program["findings"]
    assert (found["rule"], found["pages"], found["part_pages"]) == ("epc", pages, pages - 1)


@pytest.mark.parametrize(
    ("what", "status", "signal", "word"),
    [("fail", 7, None, "exit status 7"), ("die", None, "SIGTERM", "killed by SIGTERM")],
)
def test_a_program_that_fails(
    lint: Any, what: str, status: int | None, signal: str | None, word: str
) -> None:
    result = lint(what)
    assert result.status == 3
    assert (result.program["status"], result.program["signal"]) == (status, signal)
    assert any(word in note for note in result.program["notes"])
    # Findings are what a lint is for.
    assert lint("touch", what).status == 1


def test_findings_go_to_standard_error_when_all_has_ended(softsgx: "Harness") -> None:
    program, enclave = softsgx.program("linted"), softsgx.enclave_of("linted_clean_enclave")
    command = [sys.executable, "-m", "softsgx", "lint", "--state", softsgx.state, "--"]
    ended = softsgx.complete([str(word) for word in (*command, program, *enclave, "touch")])
    assert ended.status == 1
    assert ended.out.endswith("finished\n")
    read, written, *notes = ended.err.splitlines()
    assert " <peek" in read
    assert "a read of enclave memory from outside gives FF" in read
    assert ", 3 times)" in read
    assert " <poke" in written
    assert "a write to enclave memory from outside is dropped" in written
    assert [note.split(": ")[1] for note in notes] == ["note", "nothing found"]


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (("--",), 2, "-- PROGRAM"),
        ((), 2, "-- PROGRAM"),
        (("/etc/passwd", "--", "true"), 2, "one of the two"),
        (("--part", "z80", "--", "true"), 2, "neither a processor"),
        (("--epc", "5", "--", "true"), 2, "not a multiple"),
        (("--epc", "1M", "/etc/passwd"), 2, "is for a program"),
        (("--output", "/nonexistent/file", "--", "true"), 2, "No such file"),
        (("--", "/nonexistent/program"), 127, "/nonexistent/program"),
    ],
)
def test_mistakes(softsgx: "Harness", words: tuple[str, ...], status: int, reason: str) -> None:
    ended = softsgx.complete([sys.executable, "-m", "softsgx", "lint", *words])
    assert (ended.status, ended.out) == (status, "")
    assert reason in ended.err


def test_a_program_without_an_enclave_says_so(softsgx: "Harness") -> None:
    command = [sys.executable, "-m", "softsgx", "lint", "--state", str(softsgx.state), "--", "true"]
    ended = softsgx.complete(command)
    assert (ended.status, ended.out) == (0, "")
    assert "true: note: it has made no enclave" in ended.err


def test_a_trace_of_a_strict_run_has_the_touches(softsgx: "Harness", tmp_path: Path) -> None:
    path = tmp_path / "trace"
    program, enclave = softsgx.program("linted"), softsgx.enclave_of("linted_clean_enclave")
    options = ("--isolation", "strict", "--trace", path)
    ended = softsgx.run(program, *enclave, "touch", options=options)
    assert ended.status == 0, ended
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    touches = [(line["access"], line["rip"]) for line in lines if "touched" in line]
    said = dict(line.split() for line in ended.out.splitlines() if " " in line)
    assert touches == [("read", said["read"])] * 3 + [("write", said["write"])]
