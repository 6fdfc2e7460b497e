# SPDX-License-Identifier: Apache-2.0
"""SIGSTRUCT: what is signed verifies, and every byte of it counts."""

from __future__ import annotations

import stat
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from softsgx.arch.structures import Sigstruct
from softsgx.errors import SoftsgxError
from softsgx.image import sigstruct


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=3, key_size=3072)


def some_sigstruct() -> Sigstruct:
    return sigstruct.unsigned(
        enclavehash=bytes(range(32)),
        date=0x20261123,
        attributes=0x4,
        attributemask=0xFFFF_FFFF_FFFF_FFFD,
        xfrm=3,
        xfrmmask=3,
        isvprodid=7,
        isvsvn=9,
    )


@pytest.fixture(scope="module")
def signed(key: rsa.RSAPrivateKey) -> bytes:
    return sigstruct.sign(some_sigstruct(), key)


def test_a_signed_sigstruct_verifies(signed: bytes) -> None:
    assert len(signed) == 1808
    assert sigstruct.verify(signed) is None


def test_the_fixed_fields_are_where_the_manual_prints_them(signed: bytes) -> None:
    assert signed[0:16].hex() == "06000000e10000000000010000000000"
    assert signed[20:24] == bytes.fromhex("23112620")
    assert signed[24:40].hex() == "01010000600000006000000001000000"
    assert signed[512:516] == b"\x03\0\0\0"
    assert signed[960:992] == bytes(range(32))
    assert signed[1024:1028] == b"\x07\0\x09\0"


def test_an_independent_rsa_accepts_the_signature(signed: bytes, key: rsa.RSAPrivateKey) -> None:
    signature = signed[516:900][::-1]
    key.public_key().verify(
        signature, signed[:128] + signed[900:1028], padding.PKCS1v15(), SHA256()
    )


def test_q1_and_q2_are_the_quotients_of_the_manual(signed: bytes) -> None:
    modulus, signature, q1, q2 = (
        int.from_bytes(signed[start : start + 384], "little") for start in (128, 516, 1040, 1424)
    )
    assert q1 == signature**2 // modulus
    assert q2 == (signature**3 - q1 * signature * modulus) // modulus


def test_mrsigner_is_the_hash_of_the_little_endian_modulus(
    signed: bytes, key: rsa.RSAPrivateKey
) -> None:
    modulus = key.public_key().public_numbers().n.to_bytes(384, "little")
    assert sigstruct.mrsigner(signed[128:512]) == sha256(modulus).digest()


def test_signing_the_same_again_gives_the_same(signed: bytes, key: rsa.RSAPrivateKey) -> None:
    assert sigstruct.sign(some_sigstruct(), key) == signed


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 1807), flip=st.integers(1, 255))
def test_no_byte_can_be_changed(signed: bytes, position: int, flip: int) -> None:
    damaged = bytearray(signed)
    damaged[position] ^= flip
    assert sigstruct.verify(bytes(damaged)) is not None


@pytest.mark.parametrize(
    ("position", "value", "reason"),
    [
        (15, 0x80, "HEADER is"),
        (16, 1, "VENDOR is 0x1"),
        (24, 2, "HEADER2 is"),
        (44, 1, "reserved"),
        (127, 1, "reserved"),
        (512, 5, "EXPONENT is 5"),
        (908, 1, "reserved"),  # CET_ATTRIBUTES, which is not modelled
        (992, 1, "reserved"),
        (1039, 1, "reserved"),
    ],
)
def test_a_wrong_fixed_field_is_named(
    signed: bytes, position: int, value: int, reason: str
) -> None:
    damaged = bytearray(signed)
    damaged[position] = value
    assert reason in str(sigstruct.format_error(bytes(damaged)))


def test_an_intel_vendor_is_as_good_as_none(key: rsa.RSAPrivateKey) -> None:
    css = some_sigstruct().replace(vendor=0x8086)
    assert sigstruct.verify(sigstruct.sign(css, key)) is None


@pytest.mark.parametrize(("field", "reason"), [("q1", "Q1"), ("q2", "Q2")])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_quotient_is_a_wrong_signature(
    signed: bytes, field: str, reason: str, change: int
) -> None:
    css = Sigstruct.decode(signed)
    quotient = int.from_bytes(getattr(css, field), "little") + change
    wrong = css.replace(**{field: quotient.to_bytes(384, "little")}).encode()
    assert sigstruct.format_error(wrong) is None
    assert str(sigstruct.signature_error(wrong)).startswith(reason)


def test_a_signature_is_less_than_the_modulus(signed: bytes) -> None:
    css = Sigstruct.decode(signed)
    for signature in (bytes(384), css.modulus, b"\xff" * 384):
        wrong = css.replace(signature=signature).encode()
        assert "between 1 and MODULUS" in str(sigstruct.signature_error(wrong))


def test_a_modulus_of_zero_is_refused_without_a_division() -> None:
    assert sigstruct.signature_error(bytes(1808)) is not None


def test_a_signature_of_other_contents_is_refused(signed: bytes) -> None:
    wrong = Sigstruct.decode(signed).replace(isvsvn=10).encode()
    assert "contents" in str(sigstruct.signature_error(wrong))


@pytest.mark.parametrize("length", [0, 1807, 1809])
def test_another_length_is_refused(length: int) -> None:
    assert "1808" in str(sigstruct.verify(bytes(length)))


def write_pem(path: Path, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(path)


def test_a_generated_key_is_private_to_its_owner_and_signs(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    sigstruct.generate_key(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    signed = sigstruct.sign(some_sigstruct(), sigstruct.load_key(str(path)))
    assert sigstruct.verify(signed) is None


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("precious")
    with pytest.raises(SoftsgxError, match="File exists"):
        sigstruct.generate_key(str(path))
    assert path.read_text() == "precious"


def test_a_key_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    usual = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    write_pem(path, usual)
    with pytest.raises(SoftsgxError, match="RSA-2048 with exponent 65537"):
        sigstruct.load_key(str(path))
    with pytest.raises(SoftsgxError, match="RSA-2048 with exponent 65537"):
        sigstruct.sign(some_sigstruct(), usual)
    write_pem(path, ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(SoftsgxError, match=r"key\.pem: not an RSA key"):
        sigstruct.load_key(str(path))


def test_a_key_with_a_password_is_refused(tmp_path: Path, key: rsa.RSAPrivateKey) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    )
    with pytest.raises(SoftsgxError, match="encrypted"):
        sigstruct.load_key(str(path))


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"-----BEGIN PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(SoftsgxError, match="not a PEM private key"):
        sigstruct.load_key(str(path))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(SoftsgxError, match="nokey: cannot read the key: No such file"):
        sigstruct.load_key(str(tmp_path / "nokey"))
