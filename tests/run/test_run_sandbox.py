# SPDX-License-Identifier: Apache-2.0
"""Runs in a sandbox that refuses system calls, as containers have one."""

import errno
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = pytest.mark.live

PROCESS_VM_READV, PROCESS_VM_WRITEV = 310, 311
PIDFD_OPEN, PIDFD_GETFD = 434, 438
# The second is how a profile answers for what is newer than itself.
ERRORS = (errno.EPERM, errno.ENOSYS)


@pytest.mark.parametrize("error", ERRORS)
def test_what_a_run_can_do_without(softsgx: "Harness", error: int) -> None:
    refused = (PIDFD_OPEN, PIDFD_GETFD, PROCESS_VM_READV, PROCESS_VM_WRITEV)
    program = softsgx.program("counted")
    command = softsgx.command(program, *softsgx.enclave())
    ended = softsgx.complete([*softsgx.refusing(str(error), refused), *command])
    assert (ended.status, ended.err) == (0, ""), ended
