# SPDX-License-Identifier: Apache-2.0
"""What `softsgx run` was told that concerns those programs only that use SGX.

Owns nothing; it is made before anybody knows whether there will be one.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from softsgx.run.aex_every import AexEvery


class Options:
    """How enclaves are served: XCR0, exits that no event causes, strict isolation, and the fast path.

    `slow` says why no transition may be made without a trap; empty where it may.
    """

    __slots__ = ("aex_every", "leave_text", "slow", "strict", "xcr0")

    def __init__(
        self,
        xcr0: int,
        *,
        aex_every: "AexEvery | None" = None,
        strict: bool = False,
        leave_text: bool = False,
        slow: str = "",
    ) -> None:
        self.xcr0 = xcr0
        self.aex_every = aex_every
        self.strict = strict
        self.leave_text = leave_text
        self.slow = slow
