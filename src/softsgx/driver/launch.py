# SPDX-License-Identifier: Apache-2.0
"""EINIT as a driver executes it: from copies in its own memory, with the launch key hash of its choice.

Owns nothing.  What the outcome is told as, is each driver's own.
"""

from typing import TYPE_CHECKING

from softsgx.arch.structures import Einittoken
from softsgx.cpu.einit import einit
from softsgx.cpu.epc import Epc
from softsgx.cpu.memory import HeldMemory

if TYPE_CHECKING:
    from softsgx.arch.codes import LeafCode
    from softsgx.driver.encl import Encl

NO_TOKEN = bytes(Einittoken.SIZE)


def signer_hash(modulus: bytes) -> bytes:
    """Return MRSIGNER, which in IA32_SGXLEPUBKEYHASH lets its own enclaves start without a token."""
    import hashlib  # noqa: PLC0415  # a program that inits no enclave need not pay for it

    return hashlib.sha256(modulus).digest()


def launch(
    encl: "Encl", sigstruct: bytes, lepubkeyhash: bytes, einittoken: bytes = NO_TOKEN
) -> "LeafCode":
    """Write the launch key hash, execute EINIT and return its code; Fault."""
    cpu = encl.cpu
    cpu.ia32_sgxlepubkeyhash = lepubkeyhash
    memory = HeldMemory()
    token = memory.place(einittoken)
    secs = Epc.address(encl.created_secs())
    code = einit(cpu, memory, memory.place(sigstruct), secs, token)
    if not code and encl.builds is not None:
        encl.builds.initialized(encl, sigstruct)
    return code
