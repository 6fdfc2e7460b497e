# SPDX-License-Identifier: Apache-2.0
"""`softsgx sign`: the ways to sign give the same bytes, the fields come from options and from TOML, and mistakes are told."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softsgx.arch.structures import Sigstruct
from softsgx.cli import main
from softsgx.image import sigstruct

DATE = ("--date", "20261125")
SECOND = ("--signature", "s", "--public-key", "p", "--digest", "d")
NUMBERS = {
    "isvprodid": 16,
    "isvsvn": 16,
    "attributes": 64,
    "attribute-mask": 64,
    "xfrm": 64,
    "xfrm-mask": 64,
    "miscselect": 32,
    "misc-mask": 32,
    "swdefined": 32,
}
FIELD = {"attribute-mask": "attributemask", "xfrm-mask": "xfrmmask", "misc-mask": "miscmask"}
IDS = ("isvfamilyid", "isvextprodid")

some_fields = st.fixed_dictionaries(
    {"date": st.dates(min_value=dt.date(1000, 1, 1))},
    optional={
        **{name: st.integers(0, (1 << bits) - 1) for name, bits in NUMBERS.items()},
        **{name: st.binary(min_size=16, max_size=16) for name in IDS},
    },
)


class Signer:
    """A folder with an enclave, and a key as the files of its two halves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = str(folder / "key.pem")
        sigstruct.generate_key(self.key)
        self.private = sigstruct.load_key(self.key)
        self.public = self.public_half(self.private, "pub.pem")
        self.enclave = str(folder / "enclave.sgxs")
        Path(self.enclave).write_bytes(sgxs())

    def public_half(self, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, name: str) -> str:
        path = self.folder / name
        path.write_bytes(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        return str(path)

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def sign(self, *options: str) -> bytes:
        out = self.folder / "out.sigstruct"
        out.unlink(missing_ok=True)
        assert main(["sign", self.enclave, "--out", str(out), *options]) == 0
        signed = out.read_bytes()
        assert sigstruct.verify(signed) is None
        return signed

    def sign_elsewhere(self, *options: str) -> tuple[str, ...]:
        """Sign what the first step writes by what knows nothing of SGX; return the second's options."""
        tbs = Path(self.path("tbs"))
        tbs.unlink(missing_ok=True)
        assert main(["sign", self.enclave, "--digest-out", str(tbs), *options]) == 0
        signature = self.private.sign(tbs.read_bytes(), padding.PKCS1v15(), SHA256())
        Path(self.path("signature")).write_bytes(signature)
        return self.second_step()

    def second_step(self, **changes: str) -> tuple[str, ...]:
        given = {
            "signature": self.path("signature"),
            "public-key": self.public,
            "digest": self.path("tbs"),
        }
        given |= {name.replace("_", "-"): value for name, value in changes.items()}
        return tuple(word for name, value in given.items() for word in (f"--{name}", value))

    def toml(self, text: str) -> str:
        Path(self.path("fields.toml")).write_text(text)
        return self.path("fields.toml")


def sgxs() -> bytes:
    def record(name: bytes, *fields: tuple[int, int]) -> bytes:
        body = name.ljust(8, b"\0") + b"".join(
            value.to_bytes(size, "little") for value, size in fields
        )
        return body.ljust(64, b"\0")

    stream = record(b"ECREATE", (1, 4), (0x2000, 8)) + record(b"EADD", (0, 8), (0x205, 8))
    for chunk in range(0, 4096, 256):
        stream += record(b"EEXTEND", (chunk, 8)) + bytes(range(256))
    return stream


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return Signer(tmp_path_factory.mktemp("signer"))


@pytest.fixture(autouse=True)
def _no_date_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    return


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["sign", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("softsgx: ")
    assert captured.err.count("\n") == 1
    return captured.err[len("softsgx: ") : -1]


def as_options(fields: dict[str, Any]) -> list[str]:
    words = []
    for name, value in fields.items():
        text = f"{value.year:04}{value.month:02}{value.day:02}" if name == "date" else None
        text = text or (value.hex() if isinstance(value, bytes) else hex(value))
        words.append(f"--{name}={text}")
    return words


def as_toml(fields: dict[str, Any]) -> str:
    lines = [
        f'{name} = "{value.hex()}"' if isinstance(value, bytes) else f"{name} = {value}"
        for name, value in fields.items()
    ]
    return "\n".join(lines)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=some_fields, mode=st.sampled_from(["", "debug", "production"]))
def test_options_and_toml_and_two_steps_give_the_same_bytes(
    signer: Signer, fields: dict[str, Any], mode: str
) -> None:
    if mode == "production" and "attributes" in fields:
        fields["attributes"] &= ~2
    options = as_options(fields) + ([f"--{mode}"] if mode else [])
    signed = signer.sign("--key", signer.key, *options)
    toml = as_toml(fields) + (f"\n{mode} = true" if mode else "")
    assert signer.sign("--key", signer.key, "--config", signer.toml(toml)) == signed
    assert signer.sign(*signer.sign_elsewhere(*options)) == signed

    css = Sigstruct.decode(signed)
    assert f"{css.date:08x}" == fields.pop("date").strftime("%Y%m%d")
    free = {"attributes", "attribute-mask"} if mode else set()
    for name in fields.keys() - free:
        assert getattr(css, FIELD.get(name, name)) == fields[name]
    if mode:
        assert (css.attributes & 2, css.attributemask & 2) == (2 * (mode == "debug"), 2)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    what=st.sampled_from(["signature", "tbs"]),
    position=st.integers(0, 383),
    flip=st.integers(1, 255),
)
def test_no_byte_between_the_steps_can_be_changed(
    signer: Signer, capsys: pytest.CaptureFixture[str], what: str, position: int, flip: int
) -> None:
    second = signer.sign_elsewhere(*DATE)
    path = Path(signer.path(what))
    damaged = bytearray(path.read_bytes())
    damaged[position % len(damaged)] ^= flip
    path.write_bytes(damaged)
    out = signer.path("not")
    said = refused(capsys, signer.enclave, *second, "--out", out)
    assert said.startswith((signer.path("signature"), signer.path("tbs")))
    assert not Path(out).exists()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["signature", "public_key", "digest"]),
    content=st.one_of(
        st.binary(max_size=400),
        st.binary(min_size=256, max_size=256),
        st.binary(min_size=384, max_size=384),
    ),
)
def test_files_of_anything_are_refused_in_one_line(
    signer: Signer, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    signer.sign_elsewhere(*DATE)
    path = Path(signer.path("anything"))
    path.write_bytes(content)
    said = refused(capsys, signer.enclave, *signer.second_step(**{name: str(path)}))
    assert said.startswith(f"{path}: ")


def test_a_date_and_a_mode_are_read_from_the_file(signer: Signer) -> None:
    file = (
        "--key",
        signer.key,
        "--config",
        signer.toml("isvsvn = 3\ndate = 2024-02-29\ndebug = true\n"),
    )
    css = Sigstruct.decode(signer.sign(*file, "--isvsvn", "0"))
    assert (css.isvsvn, css.date, css.attributes & 2, css.attributemask & 2) == (
        0,
        0x20240229,
        2,
        2,
    )
    css = Sigstruct.decode(signer.sign(*file, "--production", *DATE))
    assert (css.isvsvn, css.date, css.attributes & 2, css.attributemask & 2) == (
        3,
        0x20261125,
        0,
        2,
    )


def test_both_steps_say_what_they_did(signer: Signer, capsys: pytest.CaptureFixture[str]) -> None:
    second = signer.sign_elsewhere(*DATE, "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["digest_file"] == signer.path("tbs")
    assert said["date"] == "20261125"
    assert "sigstruct" not in said
    css = Sigstruct.decode(signer.sign(*second, "--json"))
    said = json.loads(capsys.readouterr().out)
    assert said["mrsigner"] == sigstruct.mrsigner(css.modulus).hex()
    assert said["note"] == "Signed elsewhere; the signature was verified."
    signer.sign_elsewhere(*DATE)
    out = capsys.readouterr().out
    assert f"written    {signer.path('tbs')}: 256 bytes, dated 20261125" in out
    assert "MRSIGNER" not in out
    assert "testing" not in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("isvsvn = 65536", "offset 0x0: isvsvn: a number of 16 bits is wanted"),
        ("isvsvn = -1", "offset 0x0: isvsvn: a number of 16 bits is wanted"),
        ("isvsvn = true", "offset 0x0: isvsvn: a number of 16 bits is wanted"),
        ('xfrm = "3"', "offset 0x0: xfrm: a number of 64 bits is wanted"),
        ("swdefined = 1.0", "offset 0x0: swdefined: a number of 32 bits is wanted"),
        ('isvfamilyid = "00"', "offset 0x0: isvfamilyid: 16 bytes in hexadecimal"),
        ("isvextprodid = 0", "offset 0x0: isvextprodid: 16 bytes in hexadecimal"),
        ("debug = 1", "offset 0x0: debug: true or false is wanted"),
        ("date = 20261125", "offset 0x0: date: a date, as 2024-01-31"),
        ("date = 2026-11-25T00:00:00", "offset 0x0: date: a date, as 2024-01-31"),
        ("date = 0999-01-01", "offset 0x0: date: a date, as 2024-01-31"),
        ('date = "2026-11-25"', "offset 0x0: date: a date, as 2024-01-31"),
        ("[isvsvn]\nx = 1", "offset 0x0: isvsvn: a number of 16 bits is wanted"),
        ("isvsvn = ", "offset 0x0: not TOML: Invalid value (at end of document)"),
        ("x = " + "[" * 100_000, "offset 0x0: not TOML: "),
        ("#" * (1 << 20 | 1), "offset 0x100000: 1048577 bytes, too many for the fields"),
    ],
)
def test_a_mistake_in_the_file_is_named(
    signer: Signer, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = signer.toml(text)
    said = refused(capsys, signer.enclave, "--key", signer.key, "--config", path)
    assert said.startswith(f"{path}: {message}")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=64))
def test_a_file_of_anything_is_refused_in_one_line(
    signer: Signer, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = Path(signer.path("anything.toml"))
    path.write_bytes(content + b"\n=")
    said = refused(capsys, signer.enclave, "--key", signer.key, "--config", str(path))
    assert said.startswith(f"{path}: offset 0x0: not TOML: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no key given; wanted is one of --key, --digest-out and --signature"),
        (["--key", "k", "--digest-out", "d"], "--key and --digest-out given; wanted is one of"),
        (["--signature", "s"], "--signature needs --public-key and --digest"),
        (["--key", "k", "--public-key", "p"], "--public-key is for --signature"),
        (["--digest-out", "d", "--digest", "d"], "--digest is for --signature"),
        (["--digest-out", "d", "--generate-key"], "--generate-key makes a file"),
        (["--key", "pkcs11:object=x", "--generate-key"], "--generate-key makes a file"),
        (["--key", "pkcs11:object=x"], "pkcs11:object=x: names no library"),
        (["--digest-out", "d", "--out", "o"], "--out names the SIGSTRUCT, but --digest-out"),
        ([*SECOND, "--isvsvn", "0"], "--isvsvn given with --signature; the fields were signed"),
        ([*SECOND, "--attribute-mask", "1"], "--attribute-mask given with --signature"),
        ([*SECOND, "--production"], "--production given with --signature"),
        ([*SECOND, "--config", "c"], "--config given with --signature"),
        ([*SECOND, *DATE], "--date given with --signature"),
        (
            ["--digest-out", "/nonexistent/d"],
            "/nonexistent/d: cannot write what is to be signed: No",
        ),
        (["--key", "k", "--config", "/nonexistent/f"], "/nonexistent/f: cannot read it: No such"),
    ],
)
def test_options_that_do_not_fit_are_named(
    signer: Signer, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert refused(capsys, signer.enclave, *arguments).startswith(message)


def test_a_signature_or_public_key_of_another_kind_is_named(
    signer: Signer, capsys: pytest.CaptureFixture[str]
) -> None:
    signer.sign_elsewhere(*DATE)
    good, tbs = signer.path("signature"), signer.path("tbs")
    short = signer.path("short")
    Path(short).write_bytes(Path(good).read_bytes()[:256])
    other = signer.public_half(rsa.generate_private_key(public_exponent=3, key_size=3072), "other")
    usual = signer.public_half(
        rsa.generate_private_key(public_exponent=65537, key_size=2048), "usual"
    )
    curve = signer.public_half(ec.generate_private_key(ec.SECP256R1()), "curve")
    for changes, message in (
        (
            {"signature": short},
            f"{short}: offset 0x0: a signature of RSA-3072 has 384 bytes, this 256",
        ),
        (
            {"signature": signer.enclave},
            f"{signer.enclave}: offset 0x0: a signature of RSA-3072 has 384",
        ),
        ({"signature": "/dev/zero"}, "/dev/zero: not a regular file"),
        ({"public_key": other}, f"{good}: offset 0x0: "),
        ({"public_key": usual}, f"{usual}: SGX wants RSA-3072 with exponent 3"),
        ({"public_key": curve}, f"{curve}: SGX wants RSA-3072 with exponent 3"),
        ({"public_key": signer.key}, f"{signer.key}: not a PEM public key"),
        ({"public_key": "/nonexistent/p"}, "/nonexistent/p: cannot read the key: No such file"),
        ({"digest": good}, f"{good}: offset 0x0: 384 bytes, but --digest-out writes 256"),
    ):
        assert refused(capsys, signer.enclave, *signer.second_step(**changes)).startswith(message)
    content = bytearray(Path(tbs).read_bytes())
    content[0] ^= 1
    Path(tbs).write_bytes(content)
    said = refused(capsys, signer.enclave, *signer.second_step())
    assert said.startswith(f"{tbs}: offset 0x0: not what --digest-out wrote: HEADER is 07")
