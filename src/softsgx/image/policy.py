# SPDX-License-Identifier: Apache-2.0
"""Whether an enclave is one that may be shipped: its SIGSTRUCT by itself, its measurement, and a policy.

A policy is a TOML file; every key may be left out, and one that is not known is a mistake of the user:

    mrsigner = ["hex", ...]           who may have signed
    mrenclave = ["hex", ...]          which measurements are allowed
    isvprodid = [1, ...]              which products
    isvsvn = 3                        the least security version
    debug = false                     false: the SIGSTRUCT must let no debug enclave start
    provisionkey = false              false: the SIGSTRUCT must not ask for the provisioning key
    date = "20240101"                 the earliest date of signing
    isvfamilyid = ["hex", ...]        of an enclave with KSS
    isvextprodid = ["hex", ...]
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from softsgx.arch.attributes import ATTRIBUTE_PROVISIONKEY
from softsgx.arch.structures import Sigstruct
from softsgx.image import sigstruct
from softsgx.image.file import File
from softsgx.image.inspection import debug_of
from softsgx.image.stream import measure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from softsgx.image.enclave import Enclave

_LARGEST = 1 << 20
_HEX = {"mrsigner": 32, "mrenclave": 32, "isvfamilyid": 16, "isvextprodid": 16}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``ok`` is None where it could not be."""

    name: str
    ok: bool | None
    text: str


def load(path: str) -> dict[str, Any]:
    """Read a policy; SoftsgxError says which key is wrong."""
    file = File.open(path)
    if file.size > _LARGEST:
        file.damaged(0, f"a policy of {file.size:#x} bytes")
    try:
        policy = tomllib.loads(file.read(0, file.size, "policy").decode())
    except (ValueError, RecursionError) as error:
        file.damaged(0, f"not a policy: {error}")
    for key, value in policy.items():
        reason = _mistake(key, value)
        if reason is not None:
            file.damaged(0, f"{key}: {reason}")
    return policy


def _mistake(key: str, value: Any) -> str | None:
    if key in _HEX:
        length = _HEX[key]
        good = isinstance(value, list) and all(
            isinstance(one, str) and _is_hex(one, length) for one in value
        )
        return None if good else f"a list of {length} bytes in hexadecimal each is wanted"
    if key == "isvprodid":
        good = isinstance(value, list) and all(type(one) is int for one in value)
        return None if good else "a list of numbers is wanted"
    if key == "isvsvn":
        return None if type(value) is int else "a number is wanted"
    if key in ("debug", "provisionkey"):
        return None if isinstance(value, bool) else "true or false is wanted"
    if key == "date":
        good = isinstance(value, str) and len(value) == 8 and value.isdecimal()
        return None if good else 'a date is wanted, as "20240101"'
    return "not known; the keys are " + ", ".join(
        (*_HEX, "isvprodid", "isvsvn", "debug", "provisionkey", "date")
    )


def _is_hex(text: str, length: int) -> bool:
    try:
        return len(bytes.fromhex(text)) == length
    except ValueError:
        return False


def check(enclave: Enclave, policy: dict[str, Any]) -> Iterator[Check]:
    """Yield what was looked at of an enclave; a check that failed is no reason to leave out the rest."""
    if enclave.sigstruct is None:
        yield Check("sigstruct", False, "there is none: the enclave is not signed")
        return
    yield from check_sigstruct(enclave.sigstruct, policy)
    mrenclave, expected = measure(enclave.image), enclave.expected
    yield Check(
        "measurement",
        mrenclave == expected,
        f"MRENCLAVE is {mrenclave.hex()}"
        + ("" if mrenclave == expected or expected is None else f", signed is {expected.hex()}"),
    )


def check_sigstruct(content: bytes, policy: dict[str, Any]) -> Iterator[Check]:
    """Yield what can be looked at of a SIGSTRUCT alone."""
    css = Sigstruct.decode(content)
    refused = sigstruct.format_error(content)
    yield Check(
        "well-formed", refused is None, refused or "the fixed fields are as EINIT wants them"
    )
    refused = sigstruct.signature_error(content)
    yield Check("signature", refused is None, refused or "RSA-3072, e = 3, with Q1 and Q2")
    mrsigner = sigstruct.mrsigner(css.modulus)
    values = {
        "mrsigner": mrsigner,
        "mrenclave": css.enclavehash,
        "isvfamilyid": css.isvfamilyid,
        "isvextprodid": css.isvextprodid,
    }
    for name, value in values.items():
        if name in policy:
            allowed = any(bytes.fromhex(one) == value for one in policy[name])
            yield Check(name, allowed, f"{value.hex()} is {'' if allowed else 'not '}allowed")
    if "isvprodid" in policy:
        allowed = css.isvprodid in policy["isvprodid"]
        yield Check("isvprodid", allowed, f"{css.isvprodid} is {'' if allowed else 'not '}allowed")
    if "isvsvn" in policy:
        least = policy["isvsvn"]
        yield Check("isvsvn", css.isvsvn >= least, f"{css.isvsvn}, at least {least} is wanted")
    if "debug" in policy:
        starts = debug_of(css)
        allowed = policy["debug"] or starts == "never as debug"
        yield Check("debug", allowed, f"the enclave starts {starts}")
    if "provisionkey" in policy:
        has = bool(css.attributes & ATTRIBUTE_PROVISIONKEY)
        allowed = policy["provisionkey"] or not has
        yield Check("provisionkey", allowed, "asked for" if has else "not asked for")
    if "date" in policy:
        date = f"{css.date:08x}"
        yield Check("date", date >= policy["date"], f"{date}, {policy['date']} or later is wanted")
