# SPDX-License-Identifier: Apache-2.0
"""SIGSTRUCT: built, signed and verified.

Verifying is the checks that EINIT makes on the structure alone (SDM vol. 3D, EINIT), with a reason
in words and without a division. Signing needs the package `cryptography` and a key of the one kind
that SGX knows: RSA-3072 with exponent 3. Keys are files of the user's: for testing, not a vault.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from softsgx.arch.structures import (
    SIGSTRUCT_EXPONENT,
    SIGSTRUCT_HEADER,
    SIGSTRUCT_HEADER2,
    SIGSTRUCT_SIGNED,
    SIGSTRUCT_VENDOR_INTEL,
    Sigstruct,
)
from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

KEY_BITS = 3072
KEY_SIZE = KEY_BITS // 8

# EMSA-PKCS1-v1_5 with SHA-256 (RFC 8017, 9.2): these bytes, then the hash.
_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
SIG_PADDING = (
    b"\x00\x01" + b"\xff" * (KEY_SIZE - 3 - len(_DIGEST_INFO) - 32) + b"\x00" + _DIGEST_INFO
)


def signed_bytes(sigstruct: bytes) -> bytes:
    """Return what the signature covers: bytes 0..127 and 900..1027."""
    return b"".join(sigstruct[start:end] for start, end in SIGSTRUCT_SIGNED)


def mrsigner(modulus: bytes) -> bytes:
    """Return MRSIGNER of a signer: SHA-256 of SIGSTRUCT.MODULUS (384 bytes, little-endian)."""
    return sha256(modulus).digest()


def format_error(sigstruct: bytes) -> str | None:
    """Tell what EINIT would refuse as SGX_INVALID_SIG_STRUCT in the fixed and reserved fields."""
    if len(sigstruct) != Sigstruct.SIZE:
        return f"a SIGSTRUCT is {Sigstruct.SIZE} bytes, this is {len(sigstruct)}"
    css = Sigstruct.decode(sigstruct)
    if css.header != SIGSTRUCT_HEADER:
        return f"HEADER is {css.header.hex()}, not {SIGSTRUCT_HEADER.hex()}"
    if css.vendor not in (0, SIGSTRUCT_VENDOR_INTEL):
        return f"VENDOR is {css.vendor:#x}, neither 0 nor {SIGSTRUCT_VENDOR_INTEL:#x}"
    if css.header2 != SIGSTRUCT_HEADER2:
        return f"HEADER2 is {css.header2.hex()}, not {SIGSTRUCT_HEADER2.hex()}"
    if css.exponent != SIGSTRUCT_EXPONENT:
        return f"EXPONENT is {css.exponent}, not {SIGSTRUCT_EXPONENT}"
    if not Sigstruct.reserved_is_zero(sigstruct):
        return "reserved bytes are not zero"
    return None


def signature_error(sigstruct: bytes) -> str | None:
    """Tell what EINIT would refuse as SGX_INVALID_SIGNATURE: the RSA signature, with Q1 and Q2.

    The processor never divides: S**3 mod M is S*(S*S - Q1*M) - Q2*M, and that holds only if Q1 and
    Q2 are the quotients; so a wrong one is a wrong signature.
    """
    css = Sigstruct.decode(sigstruct)
    modulus = int.from_bytes(css.modulus, "little")
    signature = int.from_bytes(css.signature, "little")
    q1 = int.from_bytes(css.q1, "little")
    q2 = int.from_bytes(css.q2, "little")
    if not 1 <= signature < modulus:
        return "SIGNATURE is not between 1 and MODULUS"
    square = signature * signature - q1 * modulus
    if not 0 <= square < modulus:
        return "Q1 is not SIGNATURE**2 / MODULUS"
    cube = signature * square - q2 * modulus
    if not 0 <= cube < modulus:
        return "Q2 is not SIGNATURE * (SIGNATURE**2 mod MODULUS) / MODULUS"
    expected = SIG_PADDING + sha256(signed_bytes(sigstruct)).digest()
    if cube.to_bytes(KEY_SIZE, "big") != expected:
        return "the signature is not of this SIGSTRUCT's contents by this MODULUS"
    return None


def verify(sigstruct: bytes) -> str | None:
    """Tell why EINIT would refuse this SIGSTRUCT by itself, or None if it would not."""
    return format_error(sigstruct) or signature_error(sigstruct)


def unsigned(
    *,
    enclavehash: bytes,
    date: int,
    attributes: int,
    attributemask: int,
    xfrm: int,
    xfrmmask: int,
    miscselect: int = 0,
    miscmask: int = 0xFFFF_FFFF,
    isvprodid: int = 0,
    isvsvn: int = 0,
    isvfamilyid: bytes = bytes(16),
    isvextprodid: bytes = bytes(16),
    vendor: int = 0,
    swdefined: int = 0,
) -> Sigstruct:
    """Return a SIGSTRUCT without signer and signature; `date` is BCD, 0xYYYYMMDD."""
    return Sigstruct.blank().replace(
        header=SIGSTRUCT_HEADER,
        vendor=vendor,
        date=date,
        header2=SIGSTRUCT_HEADER2,
        swdefined=swdefined,
        miscselect=miscselect,
        miscmask=miscmask,
        isvfamilyid=isvfamilyid,
        attributes=attributes,
        xfrm=xfrm,
        attributemask=attributemask,
        xfrmmask=xfrmmask,
        enclavehash=enclavehash,
        isvextprodid=isvextprodid,
        isvprodid=isvprodid,
        isvsvn=isvsvn,
    )


def sign(css: Sigstruct, key: RSAPrivateKey) -> bytes:
    """Return the 1808 bytes of a SIGSTRUCT signed by an RSA-3072 key with exponent 3.

    SoftsgxError if the key is another kind. The result is the same for the same input and key.
    """
    from cryptography.hazmat.primitives.asymmetric import padding  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

    numbers = key.public_key().public_numbers()
    if key.key_size != KEY_BITS or numbers.e != SIGSTRUCT_EXPONENT:
        raise SoftsgxError(
            f"SGX signs with RSA-{KEY_BITS} and exponent {SIGSTRUCT_EXPONENT}; "
            f"this key is RSA-{key.key_size} with exponent {numbers.e}"
        )
    signature = key.sign(signed_bytes(css.encode()), padding.PKCS1v15(), SHA256())
    return assemble(css, key.public_key(), signature)


def assemble(css: Sigstruct, key: RSAPublicKey, signature: bytes) -> bytes:
    """Return the 1808 bytes of a SIGSTRUCT with a signature that was made elsewhere (384 bytes, big-endian).

    It was made over signed_bytes(), by RSASSA-PKCS1-v1_5 with SHA-256; SoftsgxError if it was not, or by another key.
    """
    modulus, number = key.public_numbers().n, int.from_bytes(signature, "big")
    if len(signature) != KEY_SIZE:
        raise SoftsgxError(
            f"a signature of RSA-{KEY_BITS} has {KEY_SIZE} bytes, this {len(signature)}"
            f"{'' if len(signature) < KEY_SIZE else ' or more'}"
        )
    if not 1 <= number < modulus:
        raise SoftsgxError("not a signature by this key: it is not between 1 and its modulus")
    q1, square = divmod(number * number, modulus)
    q2 = number * square // modulus

    def little(number: int) -> bytes:
        return number.to_bytes(KEY_SIZE, "little")

    signed = css.replace(
        modulus=little(modulus),
        exponent=SIGSTRUCT_EXPONENT,
        signature=little(number),
        q1=little(q1),
        q2=little(q2),
    ).encode()
    refused = signature_error(signed)
    if refused is not None:
        raise SoftsgxError(refused)
    return signed


def to_be_signed(content: bytes) -> Sigstruct:
    """Return a SIGSTRUCT without signer and signature of what is signed: the inverse of signed_bytes()."""
    (_, end), (start, last) = SIGSTRUCT_SIGNED
    return Sigstruct.decode(
        (content[:end].ljust(start, b"\0") + content[end : end + last - start]).ljust(
            Sigstruct.SIZE, b"\0"
        )
    )


def load_public_key(path: str) -> RSAPublicKey:
    """Read a PEM public key or certificate; SoftsgxError names the file and what is wrong with it."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415
    from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

    try:
        pem = Path(path).read_bytes()
    except OSError as error:
        raise SoftsgxError(f"{path}: cannot read the key: {error.strerror}") from error
    try:
        key = (
            load_pem_x509_certificate(pem).public_key()
            if b"BEGIN CERTIFICATE" in pem
            else load_pem_public_key(pem)
        )
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SoftsgxError(f"{path}: not a PEM public key or certificate") from error
    if not isinstance(key, RSAPublicKey) or (
        key.key_size != KEY_BITS or key.public_numbers().e != SIGSTRUCT_EXPONENT
    ):
        raise SoftsgxError(f"{path}: SGX wants RSA-{KEY_BITS} with exponent {SIGSTRUCT_EXPONENT}")
    return key


def load_key(path: str) -> RSAPrivateKey:
    """Read an unencrypted PEM private key; SoftsgxError names the file and what is wrong with it."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        load_pem_private_key,
    )

    try:
        pem = Path(path).read_bytes()
    except OSError as error:
        raise SoftsgxError(f"{path}: cannot read the key: {error.strerror}") from error
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:  # its answer to a key that needs a password
        raise SoftsgxError(f"{path}: the key is encrypted; give one without a password") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SoftsgxError(f"{path}: not a PEM private key") from error
    if not isinstance(key, RSAPrivateKey):
        raise SoftsgxError(f"{path}: not an RSA key, but SGX signs with RSA-{KEY_BITS}")
    if key.key_size != KEY_BITS or key.public_key().public_numbers().e != SIGSTRUCT_EXPONENT:
        raise SoftsgxError(
            f"{path}: RSA-{key.key_size} with exponent {key.public_key().public_numbers().e}; SGX "
            f"signs with RSA-{KEY_BITS} and exponent 3 (openssl genrsa -3 {KEY_BITS})"
        )
    return key


def generate_key(path: str) -> None:
    """Make an RSA-3072 key with exponent 3 in a new PEM file, mode 0600; SoftsgxError if it exists."""
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    key = generate_private_key(public_exponent=SIGSTRUCT_EXPONENT, key_size=KEY_BITS)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        # Never, not even for a moment, with the permissions that the umask leaves.
        with open(path, "xb", opener=_private) as file:
            file.write(pem)
    except OSError as error:
        raise SoftsgxError(f"{path}: cannot write the key: {error.strerror}") from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
