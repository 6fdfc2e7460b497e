# SPDX-License-Identifier: Apache-2.0
"""Copying between the driver and its caller's memory, where a bad pointer is -EFAULT (kernel: uaccess.h)."""

import errno
from typing import TYPE_CHECKING

from softsgx.driver.vma import TASK_SIZE
from softsgx.errors import DriverError, Fault

if TYPE_CHECKING:
    from softsgx.driver.task import Task


def copy_from_user(task: "Task", address: int, length: int, what: str) -> bytes:
    """Return so many bytes of the caller's memory; DriverError EFAULT says ``what`` cannot be read."""
    try:
        with task.memory.user_access() as window:
            return window.read(address, length)
    except Fault as fault:
        raise DriverError(
            errno.EFAULT, f"{what} at {address:#x} cannot be read: {fault}"
        ) from fault


def copy_some_from_user(task: "Task", address: int, length: int) -> tuple[bytes, int]:
    """Return so many bytes of the caller's memory and 0; or nothing, and how many could not be copied.

    The number is what copy_from_user returns, for drivers that return it themselves.
    """
    if address > TASK_SIZE - length:
        return b"", length
    try:
        with task.memory.user_access() as window:
            return window.read(address, length), 0
    except Fault as fault:
        return b"", length - ((fault.address or address) - address)


def copy_to_user(task: "Task", address: int, data: bytes, what: str) -> None:
    """Store the bytes in the caller's memory; DriverError EFAULT says ``what`` cannot be written."""
    try:
        with task.memory.user_access() as window:
            window.write(address, data)
    except Fault as fault:
        raise DriverError(
            errno.EFAULT, f"{what} at {address:#x} cannot be written: {fault}"
        ) from fault
