# SPDX-License-Identifier: Apache-2.0
"""What can fail: a user's mistake, a processor fault, an errno.  Below every other module.

The fourth outcome, the code that a leaf leaves in RAX, is a value and not an error: see arch.codes.
"""

# The vectors and page-fault bits are named in arch.exceptions; this module is below arch.
_UD = 6
_NM = 7
_GP = 13
_PF = 14


class SoftsgxError(Exception):
    """A user's mistake: the message says what was given, what was wanted and where."""


class Fault(Exception):
    """A processor exception: raised by cpu/, with nothing of the machine's state changed.

    ``address`` is the linear address that faulted (CR2), None for all vectors but #PF.
    """

    def __init__(self, vector: int, error_code: int, address: int | None, reason: str) -> None:
        super().__init__(vector, error_code, address, reason)
        self.vector = vector
        self.error_code = error_code
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        where = "" if self.address is None else f" at {self.address:#x}"
        return f"exception {self.vector} (error code {self.error_code:#x}){where}: {self.reason}"

    @classmethod
    def gp(cls, reason: str, error_code: int = 0) -> "Fault":
        """Return a general protection fault, #GP(error_code)."""
        return cls(_GP, error_code, None, reason)

    @classmethod
    def pf(cls, address: int, reason: str, error_code: int = 0) -> "Fault":
        """Return a page fault at a linear address; the error code is made of arch.exceptions.PFEC_*."""
        return cls(_PF, error_code, address, reason)

    @classmethod
    def ud(cls, reason: str) -> "Fault":
        """Return an invalid opcode fault, #UD."""
        return cls(_UD, 0, None, reason)

    @classmethod
    def nm(cls, reason: str) -> "Fault":
        """Return a device not available fault, #NM."""
        return cls(_NM, 0, None, reason)


class DriverError(Exception):
    """A system call's failure: raised by driver/ only, ``errno`` is positive."""

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(errno, reason)
        self.errno = errno
        self.reason = reason

    def __str__(self) -> str:
        return f"errno {self.errno}: {self.reason}"


class Misaligned(DriverError):
    """A system call's failure because a number that it was given is no multiple of a page's size."""
