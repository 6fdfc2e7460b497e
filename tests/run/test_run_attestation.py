# SPDX-License-Identifier: Apache-2.0
"""Local attestation between two processes, each with an enclave of its own: see attestation.c."""

from collections import Counter
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Ended, Harness

pytestmark = pytest.mark.live

CALLER_BASE = 0x10000
GENUINE = Counter(["called: genuine", "served: genuine", "finished", "finished"])
FOREIGN = Counter(["called: wrong MAC", "served: wrong MAC", "finished", "finished"])


class Parties:
    """The command lines of both sides; the socket and the files are in the directory of a test."""

    def __init__(self, softsgx: "Harness", directory: Path) -> None:
        self._program = softsgx.program("attestation")
        self._daemon = softsgx.enclave()
        self._caller = softsgx.enclave(CALLER_BASE)
        self._directory = directory

    def daemon(self, what: str, name: str, *more: str) -> list[str]:
        return self._party(self._daemon, what, name, self._caller[1], *more)

    def caller(self, what: str, name: str) -> list[str]:
        return self._party(self._caller, what, name, self._daemon[1])

    def impostor(self, what: str, name: str) -> list[str]:
        """Give a caller that runs the daemon's enclave instead of its own."""
        return self._party(self._daemon, what, name, self._daemon[1])

    def _party(self, own: list[str | Path], what: str, name: str, *more: str | Path) -> list[str]:
        words = (self._program, *own, what, self._directory / name, *more)
        return [str(word) for word in words]


@pytest.fixture
def parties(softsgx: "Harness", tmp_path: Path) -> Parties:
    return Parties(softsgx, tmp_path)


def lines(*ended: "Ended") -> Counter[str]:
    """Give what was said, by however many, in any order."""
    for one in ended:
        assert one.status == 0, one
        assert not one.err, one
    return Counter(line for one in ended for line in one.out.splitlines())


# -- one run -----------------------------------------------------------------------------------


def test_daemon_and_client_attest_each_other(softsgx: "Harness", parties: Parties) -> None:
    daemon, caller = parties.daemon("serve", "socket", "1"), parties.caller("call", "socket")
    ended = softsgx.run("sh", "-c", f"{join(daemon)} & {join(caller)} && wait $!")
    assert lines(ended) == GENUINE


def test_the_daemon_may_be_started_by_a_shell_that_has_ended(
    softsgx: "Harness", parties: Parties, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    daemon = join(parties.daemon("serve", "socket", "3"))
    caller = join(parties.caller("call", "socket"))
    script = join(["sh", "-c", f"{daemon} >{said} & exit 0"])
    ended = softsgx.run("sh", "-c", f"{script} && {caller} && {caller} && exec {caller}")
    assert lines(ended) == Counter({"called: genuine": 3, "finished": 3})
    assert said.read_text().splitlines() == ["served: genuine"] * 3 + ["finished"]


def test_another_enclave_of_the_same_platform_is_told_apart(
    softsgx: "Harness", parties: Parties
) -> None:
    daemon, caller = parties.daemon("serve", "socket", "1"), parties.impostor("call", "socket")
    ended = softsgx.run("sh", "-c", f"{join(daemon)} & {join(caller)} && wait $!")
    assert lines(ended) == Counter(
        ["called: genuine", "served: wrong enclave", "finished", "finished"]
    )


def test_what_is_forged_is_refused(softsgx: "Harness", parties: Parties) -> None:
    # One call for each byte of a REPORT, and those that have names.
    count = 432 + 15
    daemon = parties.daemon("serve", "socket", str(count))
    forger = parties.caller("forge", "socket")
    said = lines(softsgx.run("sh", "-c", f"{join(daemon)} & {join(forger)}; wait $!"))
    assert not [line for line in said if line.startswith("not ok")]
    assert said["served: genuine"] == 5
    assert said["served: wrong nonce"] == 2
    assert said["served: wrong MAC"] == count - 7
    assert said["finished"] == 2


# -- two runs ----------------------------------------------------------------------------------


def _two_runs(
    softsgx: "Harness", parties: Parties, state: Path, others: Path
) -> tuple["Ended", "Ended"]:
    daemon = softsgx.command(*parties.daemon("serve", "socket", "1"), options=("--state", state))
    caller = softsgx.command(*parties.caller("call", "socket"), options=("--state", others))
    with softsgx.started(daemon) as serving, softsgx.started(caller) as calling:
        return softsgx.end_of(calling), softsgx.end_of(serving)


def test_two_runs_of_one_state_are_one_platform(
    softsgx: "Harness", parties: Parties, tmp_path: Path
) -> None:
    ended = _two_runs(softsgx, parties, tmp_path / "state", tmp_path / "state")
    assert lines(*ended) == GENUINE


def test_another_state_is_another_platform(
    softsgx: "Harness", parties: Parties, tmp_path: Path
) -> None:
    ended = _two_runs(softsgx, parties, tmp_path / "state", tmp_path / "other")
    assert lines(*ended) == FOREIGN


def test_a_report_outlives_its_run_on_its_platform(
    softsgx: "Harness", parties: Parties, tmp_path: Path
) -> None:
    state, other = ("--state", tmp_path / "state"), ("--state", tmp_path / "other")
    wrote = softsgx.run(*parties.caller("write", "report"), options=state)
    again = softsgx.run(*parties.caller("write", "again"), options=state)
    assert lines(wrote, again) == Counter({"finished": 2})
    read = [softsgx.run(*parties.daemon("read", "report"), options=one) for one in (state, other)]
    assert lines(read[0]) == Counter(["read: genuine", "finished"])
    assert lines(read[1]) == Counter(["read: wrong MAC", "finished"])
    # CR_REPORT_KEYID is made at each reset: KEYID differs, and so does the MAC; nothing else does.
    first, second = ((tmp_path / name).read_bytes() for name in ("report", "again"))
    assert first[:384] == second[:384]
    assert first[384:416] != second[384:416]
