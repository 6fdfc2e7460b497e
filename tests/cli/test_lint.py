# SPDX-License-Identifier: Apache-2.0
"""`softsgx lint`: findings with address and reason, exit status 0, 1 or 2."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from softsgx.cpu.parts import PARTS


def lint(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "softsgx", "lint", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def image(tmp_path: Path) -> Any:
    def build(body: str, *options: str, name: str = "enclave.so") -> Path:
        source, path = tmp_path / "e.s", tmp_path / name
        source.write_text(f".globl enter\n.type enter,@function\nenter: {body}\nret\n")
        command = ["cc", "-nostdlib", *(options or ("-shared",)), "-o", path, source]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        return path

    return build


def stats(tmp_path: Path, **changes: int) -> Path:
    path = tmp_path / "stats.json"
    path.write_text(
        json.dumps({"epc_pages": 1000, "epc_pages_peak": 900, "evictions": 0, **changes})
    )
    return path


def test_a_finding_names_address_symbol_and_reason(image: Any) -> None:
    path = image("nop\ncpuid")
    result = lint(path)
    assert result.returncode == 1
    assert result.stderr == ""
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{path}: 0x")
    assert " <enter+0x1>: cpuid: #UD inside: " in line
    assert "unless it is data" not in line
    told = json.loads(lint("--json", path).stdout)
    assert told["findings"] == 1
    (finding,) = told["files"][0]["findings"]
    assert finding["rule"] == "illegal-instruction"
    assert (finding["symbol"], finding["certain"]) == ("enter+0x1", True)
    assert int(finding["address"], 16)


def test_nothing_found_is_status_0(image: Any) -> None:
    path = image("nop")
    result = lint(path)
    assert (result.returncode, result.stdout) == (0, f"{path}: nothing found\n")
    assert json.loads(lint(path, "--json").stdout)["findings"] == 0


def test_findings_can_be_written_to_a_file(image: Any, tmp_path: Path) -> None:
    path, output = image("nop\ncpuid"), tmp_path / "findings"
    printed = lint(path).stdout
    result = lint(path, "--output", output)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "")
    assert output.read_text() == printed
    full = lint(path, "--output", "/dev/full")
    assert (full.returncode, full.stdout) == (2, "")
    assert full.stderr.startswith("softsgx: --output /dev/full: ")
    assert full.stderr.count("\n") == 1


def test_a_part_without_sgx2_and_one_with(image: Any) -> None:
    path = image("rdtsc")
    assert lint(path).returncode == 0
    assert lint(path, "--part", "xeon-gold-5315y").returncode == 0
    old = lint(path, "--part", "xeon-e-2276g")
    assert old.returncode == 1
    assert "rdtsc: #UD inside: legal from SGX2 on" in old.stdout
    assert "--stats-json" in old.stdout


def test_a_file_that_does_not_fit(image: Any) -> None:
    path = image("nop\n.bss\n.zero 400000", "-static", "-no-pie")
    result = lint(path, "--part", "100K", "--json")
    assert result.returncode == 1
    (finding,) = json.loads(result.stdout)["files"][0]["findings"]
    assert finding["rule"] == "epc"
    assert finding["pages"] > finding["part_pages"] == 25
    assert lint(path, "--part", "1M").returncode == 0


def test_what_a_loader_adds_is_counted(tmp_path: Path) -> None:
    example, path = Path(__file__).parents[2] / "examples" / "hello", tmp_path / "enclave.elf"
    flags = ["-O2", "-ffreestanding", "-fpie", "-mgeneral-regs-only", "-fno-stack-protector"]
    flags += ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]
    flags += ["-Wl,-z,max-page-size=4096", f"-Wl,-T,{example / 'enclave.lds'}"]
    sources = [example / "enclave.S", example / "enclave.c"]
    subprocess.run(["cc", *flags, "-o", path, *sources], check=True)
    command = [sys.executable, "-m", "softsgx", "measure", path, "--json"]
    measured = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    told = json.loads(lint(path, "--json").stdout)["files"][0]
    assert told["pages"] == measured["pages"]
    # With the SECS and one VA page.
    exactly = f"{4 * (measured['pages'] + 2)}K"
    assert '"rule": "epc"' not in lint(path, "--json", "--part", exactly).stdout
    short = f"{4 * (measured['pages'] + 1)}K"
    assert '"rule": "epc"' in lint(path, "--json", "--part", short).stdout


def test_a_run_that_does_not_fit(tmp_path: Path) -> None:
    part = PARTS["xeon-e-2276g"]
    fits, too_many = part.epc // 4096, part.epc // 4096 + 1
    path = stats(tmp_path, epc_pages_peak=fits)
    assert lint(path, "--part", "xeon-e-2276g").returncode == 0
    path = stats(tmp_path, epc_pages_peak=too_many, evictions=3)
    result = lint(path, "--part", "xeon-e-2276g")
    assert result.returncode == 1
    assert f"{too_many} pages, xeon-e-2276g has {fits}" in result.stdout
    assert part.source in result.stdout
    assert "a larger --epc" in result.stdout
    assert "nothing to compare" in lint(path).stdout


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ("{", (), "not the JSON of a run"),
        ("{}", (), "not what `softsgx run --stats-json` writes"),
        ("hello", (), "neither an ELF file nor SGXS"),
        ('{"epc_pages_peak": 1}', ("--part", "z80"), "neither a processor that is known"),
        ('{"epc_pages_peak": 1}', ("--part", "0"), "neither a processor that is known"),
        ('{"epc_pages_peak": 1}', ("--frob",), "unrecognized arguments"),
    ],
)
def test_mistakes_are_status_2(
    tmp_path: Path, content: str, options: tuple[str, ...], reason: str
) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    result = lint(path, *options)
    assert (result.returncode, result.stdout) == (2, "")
    assert reason in result.stderr


def test_parts_are_plausible_and_cited() -> None:
    for name, part in PARTS.items():
        assert name == name.lower()
        assert part.epc % 4096 == 0
        assert part.epc >= 93 << 20
        assert part.source
