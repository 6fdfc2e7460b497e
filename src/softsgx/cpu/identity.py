# SPDX-License-Identifier: Apache-2.0
"""What makes one processor differ from another: fuses, owner epoch, security versions.

It is not secret on a machine that has other users with root; softsgx is for development and tests.
"""

import os

from softsgx.arch.layout import Record, at, layout, raw
from softsgx.errors import SoftsgxError

_MAGIC = b"softsgx identity"
# A vector of 16 component versions, each beyond 0 so that an older one can be asked for.
_CPUSVN = bytes([2]) * 16


@layout(size=160)
class Identity(Record):
    """The file form of a processor's identity.

    ``root_key`` keys every derivation (CR_... of the manual), ``seal_fuses`` is CR_SEAL_FUSES,
    ``owner_epoch`` CR_SGXOWNEREPOCH, ``cpusvn`` CR_CPUSVN. Nothing derives from ``sealing_root``:
    CR_BASE_PK, which keys the paging crypto, is new at every start.
    """

    magic: bytes = at(0, raw(16))
    root_key: bytes = at(16, raw(16))
    seal_fuses: bytes = at(32, raw(16))
    owner_epoch: bytes = at(48, raw(16))
    cpusvn: bytes = at(64, raw(16))
    sealing_root: bytes = at(80, raw(16))

    @staticmethod
    def fresh() -> "Identity":
        """Return a new identity from the system's random numbers."""
        return Identity(
            magic=_MAGIC,
            root_key=os.urandom(16),
            seal_fuses=os.urandom(16),
            owner_epoch=os.urandom(16),
            cpusvn=_CPUSVN,
            sealing_root=os.urandom(16),
        )

    def to_bytes(self) -> bytes:
        """Return the file form."""
        return self.encode()

    @staticmethod
    def from_bytes(data: bytes) -> "Identity":
        """Read the file form; SoftsgxError if it is none."""
        if len(data) != Identity.SIZE or not data.startswith(_MAGIC):
            raise SoftsgxError(
                f"not a processor identity: {len(data)} bytes that begin with {data[:16]!r}; "
                f"{Identity.SIZE} that begin with {_MAGIC!r} are wanted"
            )
        return Identity.decode(data)
