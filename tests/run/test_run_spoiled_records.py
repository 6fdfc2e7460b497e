# SPDX-License-Identifier: Apache-2.0
"""Programs that write what they like to the records that are mapped into them: the harm is theirs alone."""

import os
from typing import TYPE_CHECKING

import pytest

from softsgx.run.vdso import VdsoImage

if TYPE_CHECKING:
    from conftest import Harness

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(
        "--no-fast-path" in os.environ.get("RUN_OPTIONS", ""), reason="nobody looks for the records"
    ),
]


@pytest.mark.parametrize("seed", ["4", "5"])
def test_who_spoils_its_records_harms_itself_only(softsgx: "Harness", seed: str) -> None:
    words = (softsgx.program("spoiled_records"), *softsgx.enclave_of("transitions_enclave"))
    # That nobody speaks of an internal error is looked at for every run.
    ended = softsgx.run(*words, seed, str(VdsoImage.load().table))
    assert "not ok" not in ended.out, ended
    assert ended.out.endswith("finished\n"), ended
    assert ended.status == 0, ended
    assert all(line.endswith("; it is killed") for line in ended.err.splitlines()), ended
