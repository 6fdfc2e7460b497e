# SPDX-License-Identifier: Apache-2.0
"""The files of made_files.py, for tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# For helpers that are no tests.
sys.path.insert(0, str(Path(__file__).parent))

from made_files import MAKERS, Ledger, Made, elf, with_older_metadata

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session", params=MAKERS)
def made(request: pytest.FixtureRequest) -> Made:
    """One file of each format."""
    return MAKERS[request.param]()


@pytest.fixture(scope="session")
def make() -> dict[str, Callable[[], Made]]:
    """Return what makes the files, by format."""
    return MAKERS


@pytest.fixture(scope="session")
def ledger() -> type[Ledger]:
    """Return the class of the manual's measurement."""
    return Ledger


@pytest.fixture(scope="session")
def older() -> Callable[[bytes], bytes]:
    """Return what makes a file of two metadata of one."""
    return with_older_metadata


@pytest.fixture(scope="session")
def shared_object() -> Callable[..., bytes]:
    """Return what makes a shared object of segments and sections."""
    return elf
