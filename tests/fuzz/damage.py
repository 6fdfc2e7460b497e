# SPDX-License-Identifier: Apache-2.0
"""What is done to a file: cut off, flipped, a field set to an extreme, parts of others put into it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

_EXTREMES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0xFFFF, 1 << 20)
_LARGE = tuple(
    (1 << bits) + off for bits in (31, 32, 36, 40, 47, 48, 63, 64) for off in (-0x1000, -1, 0)
)
_NUMBER = re.compile(rb"0x[0-9a-fA-F]+|[0-9]+")
_HOW_OFTEN = (1, 1, 1, 2, 3, 5)


def damaged(chance: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return a file that is damaged in a few places."""
    for _ in range(chance.choice(_HOW_OFTEN)):
        if content:
            content = chance.choice(_WAYS)(chance, content, others)
    return content


# Records, tables and headers are not where a file has the same byte again and again.
def _somewhere(chance: Random, content: bytes) -> int:
    at = chance.randrange(len(content))
    for _ in range(20):
        if len(set(content[at : at + 16])) > 1:
            break
        at = chance.randrange(len(content))
    return at


def _cut(chance: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    length = (
        _somewhere(chance, content) if chance.random() < 0.7 else chance.randrange(len(content))
    )
    return content[:length]


def _flipped(chance: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at = _somewhere(chance, content)
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def _extreme(chance: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    width = chance.choice((1, 2, 4, 4, 8, 8))
    at = _somewhere(chance, content) & -width
    values = (*_EXTREMES, *_LARGE, len(content), len(content) - at, at, chance.getrandbits(64))
    value = chance.choice(values)
    if chance.random() < 0.3:
        value += int.from_bytes(content[at : at + width], "little")
    field = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
    return content[:at] + field + content[at + width :]


def _number(chance: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    numbers = list(_NUMBER.finditer(content)) if b"\0" not in content[:64] else []
    if not numbers:
        return _extreme(chance, content, others)
    found = chance.choice(numbers)
    values = (*map(str, (*_EXTREMES, *_LARGE)), "-1", "0.5", "9" * 5000, "true")
    return content[: found.start()] + chance.choice(values).encode() + content[found.end() :]


def _spliced(chance: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    other = chance.choice((content, chance.choice(others)))
    at, start = _somewhere(chance, content), _somewhere(chance, other)
    length = chance.choice((8, 64, 320, 5184, len(other)))
    part = other[start : start + length]
    behind = at if chance.random() < 0.5 else at + len(part)
    return content[:at] + part + content[behind:]


def _dropped(chance: Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at = _somewhere(chance, content)
    return content[:at] + content[at + chance.choice((1, 8, 64, 320, 5184)) :]


_WAYS: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    _cut,
    _flipped,
    _flipped,
    _extreme,
    _extreme,
    _extreme,
    _extreme,
    _extreme,
    _number,
    _spliced,
    _dropped,
)
