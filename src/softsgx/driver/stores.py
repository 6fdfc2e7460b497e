# SPDX-License-Identifier: Apache-2.0
"""The stores of all enclaves of one driver: what a new enclave gets, and what is in use already.

Owns the claims, so that no two enclaves write to the same place, and the eventfd that tells that a store
has answered after all.
"""

import _thread
import errno
import os
from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

from softsgx.driver.backing import Backing, KernelBacking
from softsgx.errors import DriverError


class Stretch(NamedTuple):
    """[start, end) of a file or of an address space; ``place`` tells which."""

    place: Hashable
    start: int
    end: int


class DefaultStore(Protocol):
    """What makes the store of an enclave whose program asks for none."""

    def make(self, size: int, stores: "Stores") -> Backing:
        """Return a store for an enclave of ``size`` bytes; OSError where there is none."""
        ...

    def close(self) -> None:
        """Give up what the stores have in common; all of them are closed."""
        ...


class KernelStores:
    """The driver's own stores: anonymous files."""

    def make(self, size: int, stores: "Stores") -> Backing:  # noqa: ARG002 - they have nothing in common
        """Return a store that is a file once it is needed."""
        return KernelBacking(size)

    def close(self) -> None:
        """Do nothing: they have nothing in common."""


class Stores:
    """The stores of one driver."""

    def __init__(self, default: DefaultStore | None = None) -> None:
        self._default = KernelStores() if default is None else default
        self._claims: dict[int, list[Stretch]] = {}
        self._next = 0
        # Readable when a store that has kept somebody waiting can be asked again; -1 at the end.
        self.ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = _thread.allocate_lock()

    def default(self, size: int) -> Backing:
        """Return the store of an enclave that has just been created; DriverError where there is none."""
        try:
            return self._default.make(size, self)
        except OSError as error:
            raise DriverError(
                error.errno or errno.EIO, f"no backing store for {size:#x} bytes: {error}"
            ) from error

    def claim(self, stretches: list[Stretch]) -> Callable[[], None]:
        """Enter stretches as in use and return what ends that; DriverError EBUSY if one is already."""
        for claimed in list(self._claims.values()):
            for ours in stretches:
                for theirs in claimed:
                    if (
                        ours.place == theirs.place
                        and ours.start < theirs.end
                        and theirs.start < ours.end
                    ):
                        raise DriverError(
                            errno.EBUSY,
                            f"{ours.start:#x}..{ours.end:#x} is, in part, another enclave's store",
                        )
        self._next += 1
        number = self._next
        self._claims[number] = stretches

        # Called by the thread that closes the store, which may be its worker.
        def release() -> None:
            self._claims.pop(number, None)

        return release

    def tell(self) -> None:
        """Tell, from any thread, that a store can be asked again."""
        with self._lock:
            if self.ready >= 0:
                os.eventfd_write(self.ready, 1)

    def close(self) -> None:
        """Give up what the stores have in common; the last one was closed, or will be once it answers."""
        self._default.close()
        with self._lock:
            if self.ready >= 0:
                os.close(self.ready)
                self.ready = -1
