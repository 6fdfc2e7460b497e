# SPDX-License-Identifier: Apache-2.0
"""Signing by a key that stays in a token: a hardware security module, a smart card, SoftHSM.

The key is named by a URI of RFC 7512, which also says whose library speaks to the token:

    pkcs11:token=signing;object=enclaves?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/run/pin

The token hashes and signs the 256 signed bytes (CKM_SHA256_RSA_PKCS). Its answer is verified before it is used.
Needs the package `python-pkcs11`; the library is code of its maker's, loaded into this process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from softsgx.arch.structures import SIGSTRUCT_EXPONENT
from softsgx.errors import SoftsgxError
from softsgx.image.sigstruct import KEY_BITS, assemble, signed_bytes

if TYPE_CHECKING:
    from softsgx.arch.structures import Sigstruct

SCHEME = "pkcs11:"
PIN_VARIABLE = "SOFTSGX_PIN"

_PATH = ("token", "serial", "object", "id", "type")
_QUERY = ("module-path", "pin-source", "pin-value")


class KeyUri:
    """The parts of a URI that say which key of which token, and how to get to it."""

    def __init__(self, uri: str) -> None:
        """Read it; SoftsgxError says what is wrong with it."""
        path, _, query = uri.removeprefix(SCHEME).partition("?")
        parts = _parts(path, ";", _PATH) | _parts(query, "&", _QUERY)
        # In messages, which must not show a PIN.
        self.name = SCHEME + path
        if parts.get("type", b"private") != b"private":
            raise SoftsgxError(f"{self.name}: type is not private, but a private key signs")
        if not {"object", "id"} & parts.keys():
            raise SoftsgxError(f"{self.name}: names no key; wanted is object=LABEL or id=%01%02")
        if "module-path" not in parts:
            raise SoftsgxError(
                f"{self.name}: names no library; wanted is ?module-path=/usr/lib/... at its end"
            )
        self.token = _text(parts, "token")
        self.serial = parts.get("serial")
        self.label = _text(parts, "object")
        self.id = parts.get("id")
        self.module_path = os.fsdecode(parts["module-path"])
        self._pin = _text(parts, "pin-value")
        self._pin_source = _text(parts, "pin-source")

    def pin(self) -> str | None:
        """Return the PIN: the URI's, a file's without its last newline, or the environment's."""
        if self._pin is not None:
            return self._pin
        if self._pin_source is None:
            return os.environ.get(PIN_VARIABLE)
        path = self._pin_source.removeprefix("file:")
        try:
            return Path(path).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise SoftsgxError(f"{path}: cannot read the PIN: {reason}") from error


def sign(css: Sigstruct, uri: KeyUri) -> bytes:
    """Return the 1808 bytes of a SIGSTRUCT that the key of this URI has signed.

    SoftsgxError if there is no such key, if it is of another kind, or if the token refuses.
    """
    try:
        import pkcs11  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SoftsgxError(
            f"{uri.name}: needs the package python-pkcs11: pip install 'softsgx[pkcs11]'"
        ) from error
    pin = uri.pin()
    try:
        token = pkcs11.lib(uri.module_path).get_token(
            token_label=uri.token, token_serial=uri.serial
        )
        with token.open(user_pin=pin) as session:
            key = session.get_key(
                object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=uri.label, id=uri.id
            )
            return _sign(css, key, uri.name)
    except pkcs11.exceptions.PKCS11Error as error:
        # Most of its errors are the codes of PKCS#11 without a text.
        reason = str(error) or type(error).__name__
        if isinstance(error, pkcs11.exceptions.NoSuchKey):
            reason = "no such private key" + (
                "" if pin is not None else f" that can be seen without a PIN (${PIN_VARIABLE})"
            )
        raise SoftsgxError(f"{uri.name}: {reason}") from error


# What a key can do is put into its class when the token has said it, where no type checker sees it.
def _sign(css: Sigstruct, key: Any, name: str) -> bytes:
    import pkcs11  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers  # noqa: PLC0415

    if key.key_type != pkcs11.KeyType.RSA:
        raise SoftsgxError(f"{name}: not an RSA key")
    modulus = int.from_bytes(key[pkcs11.Attribute.MODULUS], "big")
    try:
        exponent = int.from_bytes(key[pkcs11.Attribute.PUBLIC_EXPONENT], "big")
    except pkcs11.exceptions.AttributeTypeInvalid:
        # A private key need not have it; then the signature shows it.
        exponent = SIGSTRUCT_EXPONENT
    if (modulus.bit_length(), exponent) != (KEY_BITS, SIGSTRUCT_EXPONENT):
        raise SoftsgxError(
            f"{name}: RSA-{modulus.bit_length()} with exponent {exponent}; SGX signs with "
            f"RSA-{KEY_BITS} and exponent {SIGSTRUCT_EXPONENT}"
        )
    signature = key.sign(signed_bytes(css.encode()), mechanism=pkcs11.Mechanism.SHA256_RSA_PKCS)
    try:
        return assemble(css, RSAPublicNumbers(exponent, modulus).public_key(), signature)
    except (SoftsgxError, ValueError) as error:
        raise SoftsgxError(f"{name}: the token's answer is wrong: {error}") from error


def _parts(text: str, separator: str, known: tuple[str, ...]) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        key, equals, value = part.partition("=")
        if key not in known or not equals:
            raise SoftsgxError(
                f"{SCHEME} URI: {key!r} is not known {'before' if separator == ';' else 'behind'} its "
                f"question mark; wanted is {', '.join(known)}, each with = and a value"
            )
        if key in parts:
            raise SoftsgxError(f"{SCHEME} URI: {key!r} is given twice")
        parts[key] = unquote_to_bytes(value)
    return parts


def _text(parts: dict[str, bytes], key: str) -> str | None:
    if key not in parts:
        return None
    try:
        return parts[key].decode()
    except UnicodeDecodeError as error:
        raise SoftsgxError(f"{SCHEME} URI: {key!r} is not UTF-8") from error
