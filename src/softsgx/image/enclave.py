# SPDX-License-Identifier: Apache-2.0
"""An enclave that was read from a file, of whatever format: its image, and what the file says of it besides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from softsgx.arch.structures import SIGSTRUCT_SIGNED, Sigstruct

if TYPE_CHECKING:
    from softsgx.image.stream import Image


@dataclass(frozen=True, slots=True)
class Enclave:
    """One enclave of a file; a file of the Intel SDK may describe several, for older and newer loaders.

    ``format`` is the format's name and ``variant`` tells the enclaves of one file apart. ``sigstruct`` is the
    SIGSTRUCT that came with it, at ``sigstruct_at`` in the file ``sigstruct_file``; ``fields`` are what else the
    format says. An ELF file's address 0 is at ``image_at`` from the enclave's base. ``place`` is where its own file has
    room for a SIGSTRUCT, if it has.
    """

    format: str
    image: Image
    variant: str = ""
    sigstruct: bytes | None = None
    sigstruct_at: int = 0
    sigstruct_file: str = ""
    fields: dict[str, int | str] = field(default_factory=dict)
    image_at: int = 0
    place: int | None = None

    @property
    def expected(self) -> bytes | None:
        """Return the MRENCLAVE that the SIGSTRUCT signs; None without one."""
        return None if self.sigstruct is None else Sigstruct.decode(self.sigstruct).enclavehash


def signed_or_none(content: bytes) -> bytes | None:
    """Return a SIGSTRUCT's bytes, None where the format left its place empty.

    A file that is not signed yet has zeros there, the Intel SDK also the fields without a signer.
    """
    modulus = Sigstruct.decode(content).modulus
    return content if any(modulus) and len(content) >= SIGSTRUCT_SIGNED[1][1] else None
