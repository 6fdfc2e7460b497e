# SPDX-License-Identifier: Apache-2.0
"""`softsgx measure` and `softsgx sign`, on the example's enclave as the C compiler makes it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from softsgx.arch.structures import Sigstruct
from softsgx.cli import main
from softsgx.image import elf, sigstruct, stream

EXAMPLE = Path(__file__).parents[2] / "examples" / "hello"


@pytest.fixture(scope="module")
def enclave(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("enclave") / "enclave.elf"
    subprocess.run(
        [
            "cc",
            *("-O2", "-ffreestanding", "-fpie", "-mgeneral-regs-only", "-fno-stack-protector"),
            *("-fcf-protection=none", "-fno-tree-loop-distribute-patterns", "-nostdlib", "-static"),
            *("-no-pie", f"-Wl,-T,{EXAMPLE / 'enclave.lds'}", "-Wl,--build-id=none"),
            *("-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096", "-o", out),
            *(EXAMPLE / "enclave.S", EXAMPLE / "enclave.c"),
        ],
        check=True,
    )
    return str(out)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("key") / "key.pem")
    sigstruct.generate_key(path)
    return path


def signed(enclave: str, key: str, tmp_path: Path, *options: str) -> Sigstruct:
    out = tmp_path / "out.sigstruct"
    assert main(["sign", enclave, "--key", key, "--out", str(out), *options]) == 0
    content = out.read_bytes()
    assert sigstruct.verify(content) is None
    return Sigstruct.decode(content)


def test_measure_prints_mrenclave_and_the_pages(
    enclave: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", enclave]) == 0
    out = capsys.readouterr().out
    assert f"MRENCLAVE  {stream.measure(elf.read(enclave)).hex()}\n" in out
    assert "2 threads, SIZE 0x10000, SSAFRAMESIZE 1" in out
    assert "0x0 ..   0x2000  TCS      measured" in out
    assert "0x2000 ..   0x3000  REG R-X  measured" in out


def test_measure_json_says_the_same(enclave: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "--json", "--ssaframesize", "2", enclave]) == 0
    said = json.loads(capsys.readouterr().out)
    image = elf.read(enclave, 2)
    assert said["mrenclave"] == stream.measure(image).hex()
    assert said["mrenclave"] != stream.measure(elf.read(enclave, 1)).hex()
    assert (said["size"], said["threads"], said["ssaframesize"]) == (0x10000, 2, 2)
    assert sum(run["length"] for run in said["runs"]) == said["pages"] * 4096
    assert said["runs"][0] == {
        "offset": 0,
        "length": 0x2000,
        "secinfo_flags": 0x100,
        "measured": True,
        "name": "",
    }
    assert (said["format"], said["sigstruct"], said["others"]) == ("elf", "none", [])


def test_measure_compares_with_the_sigstruct_beside_the_file(
    enclave: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.elf"
    copy.write_bytes(Path(enclave).read_bytes())
    assert main(["sign", str(copy), "--key", key]) == 0
    assert main(["measure", str(copy)]) == 0
    assert f"SIGSTRUCT  signs this MRENCLAVE ({copy}.sigstruct" in capsys.readouterr().out
    assert main(["measure", str(copy), "--ssaframesize", "2"]) == 1
    out = capsys.readouterr().out
    signed_mrenclave = stream.measure(elf.read(enclave)).hex()
    assert f"SIGSTRUCT  DOES NOT sign this MRENCLAVE but {signed_mrenclave}" in out
    assert main(["measure", "--json", str(copy), "--ssaframesize", "2"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["sigstruct"], said["sigstruct_mrenclave"]) == ("differs", signed_mrenclave)


def test_the_ledger_ends_with_mrenclave_and_names_sections(
    enclave: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", "--explain", enclave]) == 0
    out = capsys.readouterr().out
    mrenclave = stream.measure(elf.read(enclave)).hex()
    rows = [line for line in out.split("\n\n")[0].splitlines()[2:] if line]
    assert "ECREATE: SIZE 0x10000, SSAFRAMESIZE 1" in rows[0]
    assert mrenclave[:16] in rows[-1]
    assert any("REG R-X  yes" in row and ".text" in row for row in rows)
    assert main(["measure", "--explain", "--json", enclave]) == 0
    ledger = json.loads(capsys.readouterr().out)["ledger"]
    assert ledger[-1]["hash"] == mrenclave
    assert sum(entry.get("pages", 0) for entry in ledger) == elf.read(enclave).pages


def test_sign_writes_a_sigstruct_of_the_measurement(
    enclave: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    css = signed(enclave, key, tmp_path, "--date", "20240229", "--isvprodid", "0x10")
    assert css.enclavehash == stream.measure(elf.read(enclave))
    assert (css.date, css.isvprodid, css.isvsvn, css.vendor) == (0x20240229, 16, 0, 0)
    out = capsys.readouterr().out
    assert f"MRENCLAVE  {css.enclavehash.hex()}" in out
    assert f"MRSIGNER   {sigstruct.mrsigner(css.modulus).hex()}" in out
    assert "for testing only" in out


def test_sign_json(
    enclave: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    css = signed(enclave, key, tmp_path, "--json", "--isvsvn", "3")
    said = json.loads(capsys.readouterr().out)
    assert said["mrenclave"] == css.enclavehash.hex()
    assert said["mrsigner"] == sigstruct.mrsigner(css.modulus).hex()
    assert said["isvsvn"] == css.isvsvn == 3
    assert "testing" in said["note"]


@pytest.mark.parametrize(
    ("options", "attributes", "attributemask"),
    [
        ([], 0x4, 0xFFFF_FFFF_FFFF_FFFD),
        (["--debug"], 0x6, 0xFFFF_FFFF_FFFF_FFFF),
        (["--production"], 0x4, 0xFFFF_FFFF_FFFF_FFFF),
        (["--attributes", "0x84", "--attribute-mask", "0x80"], 0x84, 0x80),
        (["--attribute-mask", "0", "--production"], 0x4, 0x2),
    ],
)
def test_debug_is_free_unless_the_signer_decides(
    enclave: str, key: str, tmp_path: Path, options: list[str], attributes: int, attributemask: int
) -> None:
    css = signed(enclave, key, tmp_path, *options)
    assert (css.attributes, css.attributemask) == (attributes, attributemask)


def test_sign_puts_every_field_where_it_belongs(enclave: str, key: str, tmp_path: Path) -> None:
    options = {
        "--xfrm": "0xe7",
        "--xfrm-mask": "0xff",
        "--miscselect": "1",
        "--misc-mask": "0xfffffffe",
        "--swdefined": "77",
        "--isvfamilyid": "0f" * 16,
        "--isvextprodid": "1e" * 16,
    }
    css = signed(enclave, key, tmp_path, *(word for pair in options.items() for word in pair))
    assert (css.xfrm, css.xfrmmask) == (0xE7, 0xFF)
    assert (css.miscselect, css.miscmask, css.swdefined) == (1, 0xFFFF_FFFE, 77)
    assert (css.isvfamilyid, css.isvextprodid) == (b"\x0f" * 16, b"\x1e" * 16)


def test_sign_is_reproducible_with_source_date_epoch(
    enclave: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert signed(enclave, key, tmp_path).date == 0x20231114
    assert signed(enclave, key, tmp_path) == signed(enclave, key, tmp_path)


def test_generate_key_makes_a_key_once(enclave: str, tmp_path: Path) -> None:
    key = tmp_path / "new.pem"
    first = signed(enclave, str(key), tmp_path, "--generate-key")
    pem = key.read_bytes()
    second = signed(enclave, str(key), tmp_path, "--generate-key")
    assert key.read_bytes() == pem
    assert first.modulus == second.modulus


def test_the_default_output_is_beside_the_enclave(enclave: str, key: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.elf"
    copy.write_bytes(Path(enclave).read_bytes())
    assert main(["sign", str(copy), "--key", key]) == 0
    assert sigstruct.verify((tmp_path / "copy.elf.sigstruct").read_bytes()) is None


def test_a_changed_page_changes_the_measurement(enclave: str, tmp_path: Path) -> None:
    content = bytearray(Path(enclave).read_bytes())
    before = stream.measure(elf.read(enclave))
    content[0x3000] ^= 1  # the first byte of the code
    changed = tmp_path / "changed.elf"
    changed.write_bytes(content)
    assert stream.measure(elf.read(str(changed))) != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--date", "20230229"], "--date 20230229: not a date as YYYYMMDD"),
        (["--date", "202611"], "--date 202611: not a date"),
        (["--date", "today"], "--date today: not a date"),
        (["--production", "--attributes", "0x6"], "--production, but --attributes 0x6 has DEBUG"),
        (["--ssaframesize", "0"], "SSAFRAMESIZE is from 1 to 16777216 pages, 0 was given"),
        (["--out", "/nonexistent/x"], "/nonexistent/x: cannot write the SIGSTRUCT: No such file"),
        (["--key", "/nonexistent/k"], "/nonexistent/k: cannot read the key: No such file"),
        (
            ["--key", "/nonexistent/k", "--generate-key"],
            "/nonexistent/k: cannot write the key: No such file",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    enclave: str,
    key: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    out = str(tmp_path / "out")
    assert main(["sign", enclave, "--key", key, "--out", out, *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"softsgx: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("--isvprodid", "65536", "16-bit number"),
        ("--isvsvn", "-1", "16-bit number"),
        ("--xfrm", "all", "64-bit number"),
        ("--isvfamilyid", "0102", "16 bytes in hexadecimal"),
    ],
)
def test_a_number_that_does_not_fit_its_field_is_refused(
    enclave: str,
    key: str,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    kind: str,
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["sign", enclave, "--key", key, f"{option}={value}"])
    assert end.value.code == 2
    assert f"argument {option}: invalid {kind} value: '{value}'" in capsys.readouterr().err


def test_a_damaged_enclave_is_refused_by_both_verbs(
    enclave: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.elf"
    cut.write_bytes(Path(enclave).read_bytes()[:0x3100])
    for arguments in (["measure", str(cut)], ["sign", str(cut), "--key", key]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"softsgx: {cut}: offset 0x78: segment's content, ")
        assert "is cut off: the file has 0x3100 bytes" in error
    assert not (tmp_path / "cut.elf.sigstruct").exists()
