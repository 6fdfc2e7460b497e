# SPDX-License-Identifier: Apache-2.0
"""Where some bytes lie in the segments of an ELF file, for tables of a file without section headers.

What is searched and what is found are bounded: a hostile file costs a second or two.
"""

from collections.abc import Iterator

from softsgx.run.cpuid_sites import Elf

_PT_LOAD = 1
_STEP = 1 << 20
_SEARCH_LIMIT = 512 << 20
_FOUND_LIMIT = 64


def addresses_of(elf: Elf, pattern: bytes) -> Iterator[int]:
    """Give the addresses at which the loaded segments of the file hold these bytes."""
    found = 0
    left = _SEARCH_LIMIT
    for kind, _, offset, address, _, length, _, _ in elf.segments:
        if kind != _PT_LOAD:
            continue
        end = min(length, elf.size - offset, left)
        for start in range(0, end, _STEP):
            # With as much of the next step as a match that begins in this one may need.
            chunk = elf.read(offset + start, min(_STEP + len(pattern) - 1, length - start))
            at = chunk.find(pattern)
            while at >= 0:
                yield address + start + at
                found += 1
                if found == _FOUND_LIMIT:
                    return
                at = chunk.find(pattern, at + 1)
        left -= max(end, 0)
