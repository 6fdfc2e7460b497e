# SPDX-License-Identifier: Apache-2.0
"""Signing by a key in a token, with SoftHSM2 (Debian: softhsm2)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from softsgx.arch.structures import Sigstruct
from softsgx.cli import main
from softsgx.errors import SoftsgxError
from softsgx.image import pkcs11, sigstruct
from softsgx.image.pkcs11 import KeyUri, sign

LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
)
MODULE = next((path for path in LIBRARIES if Path(path).exists()), "")
PIN = "1234"


class Token:
    """A token of SoftHSM2 in a directory of its own, with the keys of files imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = "softsgx test"
        self._util("--init-token", "--free", "--label", self.name, "--so-pin", "12345678")

    def _util(self, *arguments: str) -> None:
        subprocess.run(["softhsm2-util", "--pin", PIN, *arguments], check=True, capture_output=True)

    def add(self, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, label: str, id_: str) -> str:
        path = self.folder / f"{label}.pem"
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._util("--import", str(path), "--token", self.name, "--label", label, "--id", id_)
        return str(path)

    def uri(self, key: str, *, module: str = MODULE, pin: str = f"&pin-value={PIN}") -> str:
        return f"pkcs11:token={quote(self.name)};{key}?module-path={quote(module)}{pin}"


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    if not MODULE or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM2 is not installed (Debian: softhsm2)")
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed (softsgx[pkcs11])")
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    # The library reads it when it is loaded, once a process: no other test may have another.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
        token = Token(folder)
        token.add(rsa.generate_private_key(public_exponent=3, key_size=3072), "sgx", "a1b2")
        token.add(rsa.generate_private_key(public_exponent=65537, key_size=3072), "usual", "a1b3")
        token.add(ec.generate_private_key(ec.SECP256R1()), "curve", "a1b4")
        # Loaded while it is so.
        sign(some_sigstruct(), KeyUri(token.uri("object=sgx")))
    return token


def some_sigstruct() -> Sigstruct:
    return sigstruct.unsigned(
        enclavehash=bytes(range(32)),
        date=0x20261123,
        attributes=0x4,
        attributemask=0xFFFF_FFFF_FFFF_FFFD,
        xfrm=3,
        xfrmmask=3,
        isvsvn=9,
    )


@pytest.mark.parametrize("key", ["object=sgx", "id=%a1%b2", "id=%A1%B2;object=sgx;type=private"])
def test_a_token_signs_what_the_key_in_a_file_signs(token: Token, key: str) -> None:
    signed = sign(some_sigstruct(), KeyUri(token.uri(key)))
    assert sigstruct.verify(signed) is None
    in_file = sigstruct.load_key(str(token.folder / "sgx.pem"))
    assert signed == sigstruct.sign(some_sigstruct(), in_file)


def test_the_verb_signs_by_a_token(
    token: Token, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enclave = tmp_path / "enclave.sgxs"
    enclave.write_bytes(
        b"ECREATE\0\x01\0\0\0\0\x20".ljust(64, b"\0")
        + b"EADD".ljust(16, b"\0")
        + b"\x05\x02".ljust(48, b"\0")
    )
    arguments = ["sign", str(enclave), "--date", "20261125"]
    by_token = tmp_path / "by-token"
    in_file = tmp_path / "in-file"
    assert main([*arguments, "--key", token.uri("object=sgx"), "--out", str(by_token)]) == 0
    out = capsys.readouterr().out
    assert "(pkcs11:token=softsgx%20test;object=sgx)" in out
    assert f"pin-value={PIN}" not in out
    assert "Signed elsewhere" in out
    key = str(token.folder / "sgx.pem")
    assert main([*arguments, "--key", key, "--out", str(in_file)]) == 0
    assert by_token.read_bytes() == in_file.read_bytes()


def test_the_pin_can_come_from_a_file_and_from_the_environment(
    token: Token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pin"
    file.write_text(f"{PIN}\n")
    for source in (f"&pin-source={file}", f"&pin-source=file:{file}"):
        sign(some_sigstruct(), KeyUri(token.uri("object=sgx", pin=source)))
    with pytest.raises(SoftsgxError, match=r"no such private key that can be seen without a PIN"):
        sign(some_sigstruct(), KeyUri(token.uri("object=sgx", pin="")))
    monkeypatch.setenv("SOFTSGX_PIN", PIN)
    sign(some_sigstruct(), KeyUri(token.uri("object=sgx", pin="")))


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("object=other", {}, "no such private key"),
        (
            "object=usual",
            {},
            "object=usual: RSA-3072 with exponent 65537; SGX signs with RSA-3072 and exponent 3",
        ),
        ("object=curve", {}, "not an RSA key"),
        ("object=sgx", {"pin": "&pin-value=9999"}, "PinIncorrect"),
        ("object=sgx", {"module": "/nonexistent/p11.so"}, "/nonexistent/p11.so"),
        (
            "object=sgx",
            {"pin": "&pin-source=/nonexistent/pin"},
            "cannot read the PIN: No such file",
        ),
    ],
)
def test_what_a_token_refuses_is_one_line_without_the_pin(
    token: Token, key: str, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(SoftsgxError) as refusal:
        sign(some_sigstruct(), KeyUri(token.uri(key, **changes)))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "pin-value" not in str(refusal.value)


def test_a_token_that_is_not_there_is_named(token: Token) -> None:
    uri = f"pkcs11:token=elsewhere;object=sgx?module-path={MODULE}&pin-value={PIN}"
    assert token.name != "elsewhere"
    with pytest.raises(SoftsgxError, match="pkcs11:token=elsewhere;object=sgx: No token matching"):
        sign(some_sigstruct(), KeyUri(uri))


# -- the URI, without a token ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pkcs11:", "pkcs11:: names no key"),
        ("pkcs11:token=t?module-path=/m", "pkcs11:token=t: names no key; wanted is object=LABEL"),
        ("pkcs11:object=k", "pkcs11:object=k: names no library; wanted is ?module-path="),
        ("pkcs11:object=k;type=cert?module-path=/m", "type is not private"),
        ("pkcs11:object=k;slot-id=1?module-path=/m", "'slot-id' is not known before its question"),
        ("pkcs11:object=k?module-path=/m&pin=1", "'pin' is not known behind its question mark"),
        ("pkcs11:object=k;object=j?module-path=/m", "'object' is given twice"),
        ("pkcs11:object?module-path=/m", "'object' is not known before"),
        ("pkcs11:object=%ff?module-path=/m", "'object' is not UTF-8"),
    ],
)
def test_a_mistake_in_the_uri_is_named(uri: str, message: str) -> None:
    with pytest.raises(SoftsgxError) as refusal:
        KeyUri(uri)
    assert message in str(refusal.value)


def test_without_the_package_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(SoftsgxError, match=r"pip install 'softsgx\[pkcs11\]'"):
        sign(some_sigstruct(), KeyUri("pkcs11:object=k?module-path=/m"))


class Confused:
    """A key of a token that signs something else."""

    def __init__(self, private: rsa.RSAPrivateKey) -> None:
        self.private = private
        self.key_type = 0  # KeyType.RSA

    def __getitem__(self, attribute: int) -> bytes:
        numbers = self.private.public_key().public_numbers()
        number = {0x120: numbers.n, 0x122: numbers.e}[attribute]
        return number.to_bytes((number.bit_length() + 7) // 8, "big")

    def sign(self, data: bytes, mechanism: object) -> bytes:
        assert mechanism is not None
        return self.private.sign(data + b"more", padding.PKCS1v15(), SHA256())


def test_what_a_token_answers_is_verified() -> None:
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed (softsgx[pkcs11])")
    key = Confused(rsa.generate_private_key(public_exponent=3, key_size=3072))
    with pytest.raises(SoftsgxError, match="k: the token's answer is wrong: the signature is not"):
        pkcs11._sign(some_sigstruct(), key, "k")
