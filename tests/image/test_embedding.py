# SPDX-License-Identifier: Apache-2.0
"""`softsgx sign --embed`: the SIGSTRUCT in the file of its enclave, which is the same enclave then."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softsgx.arch.structures import Sigstruct
from softsgx.cli import main
from softsgx.image import formats, sigstruct, stream

EMBEDDED = (
    "intel-sdk",
    "intel-sdk-elrange",
    "intel-sdk-two",
    "open-enclave",
    "open-enclave-zero-base",
)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("key") / "key.pem")
    sigstruct.generate_key(path)
    return path


@pytest.fixture(params=EMBEDDED)
def unsigned(
    request: pytest.FixtureRequest,
    make: dict[str, Any],
    older: Callable[[bytes], bytes],
    tmp_path: Path,
) -> Path:
    path = tmp_path / "enclave.so"
    name = request.param.removesuffix("-two")
    content = make[name]().content
    path.write_bytes(content if name == request.param else older(content))
    path.chmod(0o750)
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["sign", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("in_place", [False, True], ids=["another file", "in its place"])
def test_a_file_that_was_signed_is_verified_and_is_the_same_enclave(
    unsigned: Path, key: str, tmp_path: Path, in_place: bool
) -> None:
    out = unsigned if in_place else tmp_path / "signed.so"
    before, content = formats.read(str(unsigned)), unsigned.read_bytes()
    measured = [stream.measure(enclave.image) for enclave in before]
    assert main(["verify", str(unsigned)]) == 1
    options = ("--key", key, "--production", "--isvsvn", "3", "--date", "20240229")
    assert main(["sign", str(unsigned), "--embed", str(out), *options]) == 0
    assert main(["verify", str(out)]) == 0
    after = formats.read(str(out))
    assert [stream.measure(enclave.image) for enclave in after] == measured
    assert [enclave.expected for enclave in after] == measured
    signed = bytearray(out.read_bytes())
    for enclave in after:
        assert enclave.place is not None
        assert enclave.sigstruct is not None
        assert Sigstruct.decode(enclave.sigstruct).isvsvn == 3
        signed[enclave.place : enclave.place + Sigstruct.SIZE] = bytes(Sigstruct.SIZE)
    # Nothing else has changed, and beside it nothing was written.
    assert signed == content
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert {path.name for path in tmp_path.iterdir()} == {unsigned.name, out.name}


def test_both_steps_and_a_sigstruct_alone_give_what_one_step_embeds(
    make: dict[str, Any], key: str, tmp_path: Path
) -> None:
    path, one, two, css = (tmp_path / name for name in ("e.so", "one.so", "two.so", "e.sig"))
    path.write_bytes(make["intel-sdk"]().content)
    fields = ("--isvprodid", "7", "--date", "20240229")
    sign = ["sign", str(path)]
    assert main([*sign, "--embed", str(one), "--out", str(css), "--key", key, *fields]) == 0
    digest, signature, public = (str(tmp_path / name) for name in ("tbs", "sig", "pub.pem"))
    assert main([*sign, "--digest-out", digest, *fields]) == 0
    for command in (
        ("dgst", "-sha256", "-sign", key, "-out", signature, digest),
        ("rsa", "-in", key, "-pubout", "-out", public),
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    second = ("--signature", signature, "--public-key", public, "--digest", digest)
    assert main([*sign, "--embed", str(two), *second]) == 0
    assert one.read_bytes() == two.read_bytes()
    (enclave,) = formats.read(str(one))
    assert enclave.sigstruct == css.read_bytes()


def test_what_would_not_start_is_refused(
    make: dict[str, Any], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "e.so", tmp_path / "out.so"
    path.write_bytes(make["intel-sdk"]().content)
    for option, value, said in (
        (
            "--attributes",
            "0x84",
            "attributes 0x4, but of 0xfffffffffffffffd the SIGSTRUCT lets only 0x84",
        ),
        (
            "--miscselect",
            "1",
            "desired_misc_select 0x0, but of 0xffffffff the SIGSTRUCT lets only 0x1",
        ),
        (
            "--xfrm",
            "0x1",
            "xfrm 0x3, but of 0x3 the SIGSTRUCT lets only 0x1 start; --xfrm 0x3 fits",
        ),
    ):
        error = refused(capsys, path, "--embed", out, "--key", key, option, value)
        assert f"{path}: metadata 3.3 has {said}" in error
        mask = {
            "--miscselect": "--misc-mask",
            "--attributes": "--attribute-mask",
            "--xfrm": "--xfrm-mask",
        }
        good = [str(path), "--embed", str(out), "--key", key, option, value, mask[option], "0"]
        assert main(["sign", *good]) == 0
        out.unlink()


def test_what_has_no_place_for_it_is_refused(
    make: dict[str, Any],
    older: Callable[[bytes], bytes],
    key: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = tmp_path / "e", tmp_path / "out"
    path.write_bytes(make["sgxs"]().content)
    error = refused(capsys, path, "--embed", out, "--key", key)
    assert f"{path}: sgxs has no place for a SIGSTRUCT inside\n" in error
    error = refused(capsys, path, "--embed", out, "--digest-out", out)
    assert "--embed needs a SIGSTRUCT, but --digest-out makes none yet" in error
    assert "not a regular file" in refused(capsys, path, "--embed", "/dev/null", "--key", key)
    path.write_bytes(older(make["intel-sdk"]().content))
    second = ("--signature", key, "--public-key", key, "--digest", key)
    error = refused(capsys, path, "--embed", out, *second)
    assert f"--embed: {path} has 2 metadata to be signed, and --signature is of one\n" in error
    assert list(tmp_path.iterdir()) == [path]
