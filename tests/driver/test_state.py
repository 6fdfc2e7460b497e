# SPDX-License-Identifier: Apache-2.0
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from softsgx.driver.platform import Platform
from softsgx.driver.state import State, default_path
from softsgx.errors import SoftsgxError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    first = State(tmp_path / "deep" / "state").identity()
    assert State(tmp_path / "deep" / "state").identity() == first
    assert State(tmp_path / "other").identity() != first


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        State(tmp_path / "state").identity()
    finally:
        os.umask(old)
    assert mode(tmp_path / "state") == 0o700
    assert mode(tmp_path / "state" / "identity") == 0o600
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["identity"]


def test_what_a_killed_one_was_writing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "identity.new").write_bytes(b"x" * 1000)
    identity = State(tmp_path / "state").identity()
    assert [file.name for file in (tmp_path / "state").iterdir()] == ["identity"]
    assert State(tmp_path / "state").identity() == identity


def test_a_temporary_state_is_deleted() -> None:
    state = State.temporary()
    state.identity()
    assert mode(Path(state.path)) == 0o700
    state.close()
    assert not Path(state.path).exists()


def test_a_lasting_state_is_not_deleted(tmp_path: Path) -> None:
    with Platform(epc=1 << 20, state=State(tmp_path / "state")) as platform:
        identity = platform.processor.identity
    assert State(tmp_path / "state").identity() == identity


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[:0], "too short"),
        (lambda data: data[:40], "checksum"),
        (lambda data: b"x" + data[1:], "does not begin"),
        (lambda data: data[:16] + b"\x02" + data[17:], "version is 2"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "checksum"),
        (lambda data: data + b"\0", "checksum"),
    ],
)
def test_a_corrupt_identity_is_said_by_name_and_not_replaced(
    tmp_path: Path, spoil: object, said: str
) -> None:
    State(tmp_path / "state").identity()
    file = tmp_path / "state" / "identity"
    spoiled = spoil(file.read_bytes())
    file.write_bytes(spoiled)
    with pytest.raises(SoftsgxError, match=said) as caught:
        State(tmp_path / "state").identity()
    assert str(file) in str(caught.value)
    assert file.read_bytes() == spoiled


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(SoftsgxError, match="chmod 0700"):
        State(tmp_path / "state").identity()


def test_an_identity_that_others_can_read_is_refused(tmp_path: Path) -> None:
    State(tmp_path / "state").identity()
    (tmp_path / "state" / "identity").chmod(0o644)
    with pytest.raises(SoftsgxError, match="chmod 0600"):
        State(tmp_path / "state").identity()


def test_a_file_in_place_of_the_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(SoftsgxError, match=r"state directory .*state: File exists"):
        State(tmp_path / "state").identity()


def _first_use(path: str, queue: "multiprocessing.Queue[bytes]") -> None:
    queue.put(State(path).identity().to_bytes())


def test_first_uses_at_the_same_time_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_first_use, args=(str(tmp_path / "state"), queue)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    identities = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert identities == {State(tmp_path / "state").identity().to_bytes()}


def test_where_a_state_is_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("SOFTSGX_STATE", "/some/where")
    assert default_path() == "/some/where"
    monkeypatch.setenv("SOFTSGX_STATE", "")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert default_path() == "/var/state/softsgx"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_path() == "/home/somebody/.local/state/softsgx"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_path() == "/home/somebody/.local/state/softsgx"
