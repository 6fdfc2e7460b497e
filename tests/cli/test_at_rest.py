# SPDX-License-Identifier: Apache-2.0
"""`softsgx inspect`, `verify` and `convert`, on files that are made here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from softsgx.arch.structures import Sigstruct
from softsgx.cli import main
from softsgx.errors import SoftsgxError
from softsgx.image import formats, sigstruct, stream
from softsgx.image.stream import Fill, Image, PageRun

PAGE = 4096
IMAGE = Image(
    0x10000,
    1,
    (
        PageRun(0x1000, PAGE, 0x205, Fill(0x90909090, PAGE), measured=True),
        PageRun(0, PAGE, 0x100, None, measured=True),
        PageRun(0x2000, 8 * PAGE, 0x203, None, measured=False),
    ),
)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("key") / "key.pem")
    sigstruct.generate_key(path)
    return path


@pytest.fixture
def enclave(tmp_path: Path, key: str) -> str:
    from softsgx.image import sgxs  # noqa: PLC0415

    path = tmp_path / "enclave.sgxs"
    with path.open("wb") as out:
        sgxs.write(IMAGE, out)
    options = ("--production", "--isvprodid", "7", "--isvsvn", "3", "--date", "20240229")
    out_path = str(tmp_path / "enclave.sig")
    assert main(["sign", str(path), "--key", key, "--out", out_path, *options]) == 0
    return str(path)


def said(capsys: pytest.CaptureFixture[str], status: int, *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments]) == status
    return capsys.readouterr().out


def test_verify_accepts_what_was_signed_and_names_what_was_changed(
    enclave: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = said(capsys, 0, "verify", enclave)
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["ok", "well-formed"],
        ["ok", "signature"],
        ["ok", "measurement"],
    ]
    css = Path(enclave).with_suffix(".sig")
    content = bytearray(css.read_bytes())
    for at, name in ((0, "well-formed"), (600, "signature"), (970, "measurement")):
        changed = bytearray(content)
        changed[at] ^= 0x40
        bad = css.with_name("bad.sig")
        bad.write_bytes(changed)
        result = json.loads(said(capsys, 1, "verify", enclave, "--sigstruct", str(bad), "--json"))
        wrong = [check["name"] for check in result["enclaves"][0]["checks"] if not check["ok"]]
        assert name in wrong
        assert not result["ok"]


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ("isvprodid = [7]\nisvsvn = 3\ndebug = false\nprovisionkey = false\ndate = '20240229'", ""),
        ("isvprodid = [1, 2]", "isvprodid"),
        ("isvsvn = 4", "isvsvn"),
        ("date = '20240301'", "date"),
        (f"mrsigner = ['{32 * '00'}']", "mrsigner"),
        (f"mrenclave = ['{32 * '00'}']", "mrenclave"),
    ],
)
def test_a_policy_decides(
    enclave: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str, wrong: str
) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text(policy)
    out = said(capsys, 1 if wrong else 0, "verify", enclave, "--policy", str(rules))
    assert [line.split()[1] for line in out.splitlines() if line.startswith("WRONG")] == (
        [wrong] if wrong else []
    )
    css = str(Path(enclave).with_suffix(".sig"))
    assert "- " in said(capsys, 1 if wrong else 0, "verify", css, "--policy", str(rules))


def test_an_enclave_that_starts_as_debug_is_refused_by_a_policy(
    enclave: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text("debug = false")
    for option, starts in (("--debug", "only as debug"), ("--swdefined=1", "either way")):
        out = str(tmp_path / "enclave.sig")
        assert main(["sign", enclave, "--key", key, "--out", out, option]) == 0
        verdict = said(capsys, 1, "verify", enclave, "--policy", str(rules))
        assert f"WRONG  debug          the enclave starts {starts}\n" in verdict


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ("isvsvn = '3'", "isvsvn: a number is wanted"),
        ("svn = 3", "svn: not known; the keys are mrsigner, "),
        ("mrsigner = ['00']", "mrsigner: a list of 32 bytes in hexadecimal each is wanted"),
        ("isvsvn", "not a policy: "),
    ],
)
def test_a_policy_that_says_nothing_clear_is_refused(
    enclave: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str, reason: str
) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text(policy)
    assert main(["verify", enclave, "--policy", str(rules)]) == 2
    error = capsys.readouterr().err
    assert f"{rules}: offset 0x0: {reason}" in error
    assert error.count("\n") == 1


def test_inspect_shows_every_field_of_a_sigstruct(
    enclave: str, capsys: pytest.CaptureFixture[str]
) -> None:
    css = str(Path(enclave).with_suffix(".sig"))
    fields = json.loads(said(capsys, 0, "inspect", css, "--json"))["sigstruct"]
    record = Sigstruct.decode(Path(css).read_bytes())
    assert set(Sigstruct.OFFSETS) <= set(fields)
    assert (fields["isvprodid"], fields["enclavehash"]) == (7, record.enclavehash.hex())
    assert (fields["starts"], fields["refused"]) == ("never as debug", None)
    text = said(capsys, 0, "inspect", enclave)
    assert "format                  sgxs\n" in text
    assert "attributes            0x4 (MODE64BIT)\n" in text
    assert "date                  20240229\n" in text


def test_inspect_shows_a_quote_and_names_what_is_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = (3).to_bytes(2, "little") + (2).to_bytes(2, "little") + bytes(44)
    body = bytes(64) + b"m" * 32 + bytes(288)
    certificates = b"-----BEGIN CERTIFICATE-----\nx\x1b[31m\n"
    signature = b"s" * 64 + b"k" * 64 + body + b"q" * 64 + (2).to_bytes(2, "little") + b"ad"
    signature += (5).to_bytes(2, "little") + len(certificates).to_bytes(4, "little") + certificates
    quote = tmp_path / "quote.bin"
    quote.write_bytes(header + body + len(signature).to_bytes(4, "little") + signature)
    found = json.loads(said(capsys, 0, "inspect", str(quote), "--json"))["quote"]
    assert (found["header"]["version"], found["report"]["mrenclave"]) == (3, "6d" * 32)
    assert found["qe_authentication_data"] == b"ad".hex()
    assert found["certification_data"]["type"] == 5
    assert "\x1b" not in said(capsys, 0, "inspect", str(quote))
    short = (len(signature) - 1).to_bytes(4, "little")
    quote.write_bytes(header + body + short + signature)
    assert main(["inspect", str(quote)]) == 2
    assert (
        "certification data, 0x23 bytes, is beyond the signature's end" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("kind", "more"),
    [(1, b""), (2, b""), (3, b"s" * 16 + b"t" * 48)],
    ids=["enclave", "TD", "TD 1.5"],
)
def test_inspect_shows_a_quote_of_version_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: int, more: bytes
) -> None:
    enclave = bytes(64) + b"m" * 32 + bytes(288)
    body = enclave if kind == 1 else bytes(136) + b"d" * 48 + bytes(400) + more
    inner = enclave + b"q" * 64 + (2).to_bytes(2, "little") + b"ad" + b"\5\0" + bytes(4)
    signature = b"s" * 64 + b"k" * 64 + b"\6\0" + len(inner).to_bytes(4, "little") + inner
    head = b"\5\0\2\0" + (0 if kind == 1 else 0x81).to_bytes(4, "little") + bytes(40)
    head += kind.to_bytes(2, "little") + len(body).to_bytes(4, "little")
    quote = tmp_path / "quote.bin"
    quote.write_bytes(head + body + len(signature).to_bytes(4, "little") + signature)
    found = json.loads(said(capsys, 0, "inspect", str(quote), "--json"))["quote"]
    assert found["header"]["version"] == 5
    assert found["attestation_key"] == b"k".hex() * 64
    assert found["qe_report"]["mrenclave"] == "6d" * 32
    if kind == 1:
        assert found["report"]["mrenclave"] == "6d" * 32
    else:
        assert found["td"]["mrtd"] == "64" * 48
        assert found["td"].get("mrservicetd") == ("74" * 48 if kind == 3 else None)
    quote.write_bytes(head[:-4] + b"\1\0\0\0" + body + bytes(400))
    assert main(["inspect", str(quote)]) == 2


def test_convert_writes_what_measures_the_same(
    enclave: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, css = tmp_path / "out.sgxs", tmp_path / "out.sig"
    text = said(capsys, 0, "convert", enclave, str(out), "--sigstruct-out", str(css))
    assert text.startswith(f"MRENCLAVE  {stream.measure(IMAGE).hex()}\n")
    assert "not canonical" in text
    (again,) = formats.read(str(out))
    assert stream.measure(again.image) == stream.measure(IMAGE) == again.expected
    assert main(["convert", enclave, str(out), "--canonical"]) == 2
    assert "a canonical stream of it is another enclave" in capsys.readouterr().err
    assert main(["convert", enclave, enclave]) == 2
    assert "is the file that is read" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["measure", "inspect", "verify", "diff"])
def test_a_full_disk_behind_standard_output_is_one_line(enclave: str, verb: str) -> None:
    files = [enclave, enclave] if verb == "diff" else [enclave]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        command = [sys.executable, "-m", "softsgx", verb, *files]
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "softsgx: standard output: No space left on device\n",
    )


def test_the_verbs_need_nothing_of_linux(enclave: str) -> None:
    script = (
        "import sys\n"
        "for name in ('fcntl', 'termios', 'resource', 'greenlet', 'elftools', 'rich', 'mmap'):\n"
        "    sys.modules[name] = None\n"
        "from softsgx.cli import main\n"
        "sys.exit(sum(main([verb, *arguments]) for verb, *arguments in (\n"
        "    ('measure', sys.argv[1]), ('measure', '--explain', sys.argv[1]),\n"
        "    ('diff', sys.argv[1], sys.argv[1]), ('inspect', sys.argv[1]), ('verify', sys.argv[1]))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, enclave], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_python_api_is_what_the_documentation_shows(enclave: str) -> None:
    (found,) = formats.read(enclave)
    assert stream.measure(found.image) == found.expected
    with pytest.raises(SoftsgxError, match="cannot read it: No such file"):
        formats.read(enclave + ".nothere")


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def test_signing_in_two_steps_gives_the_same_sigstruct(
    enclave: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ("--production", "--isvprodid", "7", "--isvsvn", "3", "--date", "20240229")
    digest, signature, public = (str(tmp_path / name) for name in ("tbs", "sig", "pub.pem"))
    assert main(["sign", enclave, "--digest-out", digest, *fields]) == 0
    openssl("dgst", "-sha256", "-sign", key, "-out", signature, digest)
    openssl("rsa", "-in", key, "-pubout", "-out", public)
    second = ("--signature", signature, "--public-key", public, "--digest", digest)
    out = tmp_path / "two.sig"
    assert main(["sign", enclave, *second, "--out", str(out)]) == 0
    assert out.read_bytes() == Path(enclave).with_suffix(".sig").read_bytes()

    changed = bytearray(Path(signature).read_bytes())
    changed[100] ^= 1
    Path(signature).write_bytes(changed)
    assert main(["sign", enclave, *second]) == 2
    assert f"{signature}: offset 0x0: " in capsys.readouterr().err
    assert main(["sign", enclave, *second, "--key", key]) == 2
    assert "one of --key, --digest-out and --signature" in capsys.readouterr().err
    other = bytearray(Path(digest).read_bytes())
    other[128 + 60] ^= 1  # of ENCLAVEHASH
    Path(digest).write_bytes(other)
    assert main(["sign", enclave, *second]) == 2
    assert f"but that of {enclave} is {stream.measure(IMAGE).hex()}" in capsys.readouterr().err


def test_fields_come_from_a_file_unless_an_option_says_otherwise(
    enclave: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "sign.toml", tmp_path / "configured.sig"
    config.write_text(
        "isvprodid = 9\nisvsvn = 2\nattributes = 0x84\nproduction = true\ndate = '20250102'\n"
        f"isvfamilyid = '{16 * 'ab'}'\n"
    )
    options = ["sign", enclave, "--key", key, "--config", str(config), "--out", str(out)]
    assert main([*options, "--isvsvn", "5"]) == 0
    css = Sigstruct.decode(out.read_bytes())
    assert (css.isvprodid, css.isvsvn, css.attributes, css.date) == (9, 5, 0x84, 0x20250102)
    assert (css.isvfamilyid, css.attributemask) == (b"\xab" * 16, 2**64 - 1)
    assert sigstruct.verify(out.read_bytes()) is None
    for line, reason in (
        ("isvprodid = 65536", "isvprodid: a number of 16 bits is wanted"),
        ("key = 'key.pem'", "key: one of the options that name fields is wanted"),
        ("debug = true\nproduction = true", "debug and production exclude each other"),
    ):
        config.write_text(line)
        assert main(options) == 2
        assert f"{config}: offset 0x0: {reason}\n" in capsys.readouterr().err
