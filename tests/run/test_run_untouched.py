# SPDX-License-Identifier: Apache-2.0
"""What runs under softsgx and does not concern SGX: it runs as it does without softsgx."""

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Ended, Harness

pytestmark = pytest.mark.live

SIGILL_BIT = 1 << 3


def natively(*argv: str | Path, cwd: Path) -> "Ended":
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, timeout=20)
    return (done.returncode, done.stdout, done.stderr)  # type: ignore[return-value]


def elf32(code: bytes) -> bytes:
    """Make a static 32-bit program of one segment."""
    base, headers = 0x08048000, 52 + 32
    size = headers + len(code)
    ident = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    entry = base + headers
    header = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 40, 0, 0)
    segment = struct.pack("<IIIIIIII", 1, 0, base, base, size, size, 7, 4096)
    return ident + header + segment + code


# write(1, message, 10); cpuid; exit(7): system calls by INT 80H, as a 32-bit program makes them.
MESSAGE = b"in 32 bit\n"
CODE32 = (
    bytes.fromhex("b804000000 bb01000000 b9")  # mov $4,%eax; mov $1,%ebx; mov $message,%ecx
    + struct.pack("<I", 0x08048000 + 52 + 32 + 38)
    + bytes.fromhex("ba0a000000 cd80")  # mov $10,%edx; int $0x80
    + bytes.fromhex("31c0 0fa2")  # xor %eax,%eax; cpuid
    + bytes.fromhex("b801000000 bb07000000 cd80")  # mov $1,%eax; mov $7,%ebx; int $0x80
).ljust(38, b"\x90") + MESSAGE


# -- threads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cpuid", "enter"])
@pytest.mark.parametrize(
    ("pace", "turns", "opens"), [("apart", "10000", "500"), ("together", "4", "3000")]
)
def test_files_open_while_another_thread_stops_all_the_time(
    softsgx: "Harness", mode: str, pace: str, turns: str, opens: str
) -> None:
    softsgx.checked("spin_open", mode, pace, turns, opens)


# -- files -----------------------------------------------------------------------------------


def test_a_shared_mapping_of_text_leaves_the_file_as_it_is(
    softsgx: "Harness", tmp_path: Path
) -> None:
    library = softsgx.program("cpuid_text.so", "-shared", "-fPIC")
    copy = tmp_path / "text.so"
    shutil.copy(library, copy)
    before = copy.read_bytes()
    assert b"\x0f\xa2" in before
    mapping = softsgx.program("text_mapping")
    private = softsgx.run(mapping, copy, "private")
    # The control: these CPUIDs are found, where finding them harms nobody.
    assert (private.status, private.out) == (0, "changed\n"), private
    assert copy.read_bytes() == before
    shared = softsgx.run(mapping, copy, "shared")
    assert (shared.status, shared.out) == (0, "same\n"), shared
    assert copy.read_bytes() == before


def test_what_lies_behind_a_changed_text_is_not_written_to(softsgx: "Harness") -> None:
    neighbour = softsgx.program("text_neighbour")
    ended = softsgx.run(neighbour)
    # The control: CPUID itself was changed. RET leaves no room for a jump.
    assert (ended.status, ended.out) == (0, "0b b\n"), ended
    assert subprocess.run([neighbour], check=True, capture_output=True).stdout == b"a2 b\n"


def test_what_cannot_be_mapped_is_refused_as_the_kernel_does(
    softsgx: "Harness", tmp_path: Path
) -> None:
    program = softsgx.program("fifo_text")
    wanted = natively(program, cwd=tmp_path)
    assert "fifo, read only: 19" in wanted[1]  # ENODEV
    assert tuple(softsgx.run(program, cwd=tmp_path)) == wanted


# -- programs --------------------------------------------------------------------------------


def test_a_32_bit_program_is_refused_by_name(softsgx: "Harness", tmp_path: Path) -> None:
    program = tmp_path / "program32"
    program.write_bytes(elf32(CODE32))
    program.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(f"#! {program} x\n")
    script.chmod(0o755)
    for given in (program, script):
        ended = softsgx.run(given)
        assert (ended.status, ended.out) == (126, ""), ended
        assert ended.err.count("\n") == 1
        assert ended.err.startswith(f"softsgx: {program}")
        assert "32-bit" in ended.err
        assert "x86-64" in ended.err


def test_a_32_bit_program_runs_with_one_warning(softsgx: "Harness", tmp_path: Path) -> None:
    program = tmp_path / "program32"
    program.write_bytes(elf32(CODE32))
    program.chmod(0o755)
    try:
        native = natively(program, cwd=tmp_path)
    except OSError:
        pytest.skip("this kernel runs no 32-bit programs")
    assert native[:2] == (7, MESSAGE.decode())
    ended = softsgx.run("sh", "-c", f"{program}; {program}; exec {program}")
    assert (ended.status, ended.out) == (native[0], 3 * native[1]), ended
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("softsgx: warning: ")
    assert str(program) in ended.err
    assert "32-bit" in ended.err


def test_a_32_bit_program_among_others(softsgx: "Harness", tmp_path: Path) -> None:
    program = tmp_path / "program32"
    program.write_bytes(elf32(CODE32))
    program.chmod(0o755)
    if shutil.which("sh") is None:
        pytest.skip("there is no shell")
    try:
        natively(program, cwd=tmp_path)
    except OSError:
        pytest.skip("this kernel runs no 32-bit programs")
    ended = softsgx.run("sh", "-c", f"{program}; echo $?; {program} | cat; echo after")
    wanted = f"{MESSAGE.decode()}7\n{MESSAGE.decode()}after\n"
    assert (ended.status, ended.out) == (0, wanted), ended


@pytest.mark.parametrize("how", ["directly", "from a shell"])
def test_a_program_that_may_be_run_but_not_read(
    softsgx: "Harness", ordinary_user: int | None, how: str
) -> None:
    if ordinary_user is None:
        pytest.skip("needs root: the file must belong to another user")
    program = softsgx.directory / "unreadable"
    if not program.exists():
        shutil.copy(shutil.which("env") or "/usr/bin/env", program)
        program.chmod(0o711)
    line = ["sh", "-c", "echo $0 in the program; exit 43"]
    argv = [program, *line] if how == "directly" else ["sh", "-c", f'{program} "$@"; exit $?', *"-"]
    ended = softsgx.run(*argv, *(line if how != "directly" else []), uid=ordinary_user)
    assert (ended.status, ended.out) == (43, "sh in the program\n"), ended
    assert ended.err.startswith("softsgx: warning: "), ended


PRIVILEGED = [(0o4755, "setuid to uid"), (0o2755, "setgid to gid")]


@pytest.mark.parametrize(("mode", "said"), PRIVILEGED)
def test_a_program_with_privilege_is_refused_by_name_and_runs_without_deeper(
    softsgx: "Harness", ordinary_user: int | None, mode: int, said: str
) -> None:
    if ordinary_user is None:
        pytest.skip("needs root: the file must belong to another user")
    program = softsgx.directory / f"privileged-{mode:o}"
    shutil.copy(shutil.which("id") or "/usr/bin/id", program)
    program.chmod(mode)
    ended = softsgx.run(program, "-u", uid=ordinary_user)
    assert (ended.status, ended.out) == (126, ""), ended
    assert ended.err.count("\n") == 1
    assert said in ended.err
    assert "no_new_privs" in ended.err
    deeper = softsgx.run("sh", "-c", f"{program} -u; {program} -g", uid=ordinary_user)
    assert (deeper.status, deeper.out) == (0, f"{ordinary_user}\n{ordinary_user}\n"), deeper
    assert deeper.err.count("\n") == 1, deeper
    assert said in deeper.err
    # To whom the file gives nothing, it is a program as any other.
    assert tuple(softsgx.run(program, "-u")) == (0, f"{os.geteuid()}\n", "")


def test_a_program_that_traces_is_told_why_it_cannot(softsgx: "Harness") -> None:
    ended = softsgx.run(softsgx.program("traces"))
    assert (ended.status, ended.out) == (0, "TRACEME 1\nSEIZE 1\nATTACH 1\noutside 3\n"), ended
    assert ended.err.count("\n") == 1, ended
    assert "one tracer" in ended.err


@pytest.mark.parametrize("tool", ["strace", "gdb"])
def test_a_tracer_fails_as_it_does_where_it_may_not_trace(softsgx: "Harness", tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is missing")
    options = {"strace": ["-f"], "gdb": ["-nx", "-batch", "-ex", "run", "--args"]}[tool]
    ended = softsgx.run(tool, *options, "/bin/true")
    assert ended.status != 0 or tool == "gdb", ended
    assert "softsgx: warning: process" in ended.err
    assert "one tracer" in ended.err


@pytest.mark.parametrize(
    ("name", "text"), [("bad-interpreter", "#!/nonexistent/sh\n"), ("no-shebang", "exit 5\n")]
)
def test_what_cannot_be_executed_is_said_in_a_line(
    softsgx: "Harness", tmp_path: Path, name: str, text: str
) -> None:
    program = tmp_path / name
    program.write_text(text)
    program.chmod(0o755)
    for _ in range(20):
        ended = softsgx.run(program)
        assert ended.status in (126, 127), ended
        assert not ended.out
        assert str(program) in ended.err
        assert ended.err.count("\n") == 1


def test_an_exec_that_fails_leaves_the_program_as_it_was(
    softsgx: "Harness", tmp_path: Path
) -> None:
    program = tmp_path / "bad"
    program.write_text("#!/nonexistent/sh\n")
    program.chmod(0o755)
    plain = tmp_path / "plain"
    plain.write_text("exit 5\n")
    plain.chmod(0o755)
    # env executes by itself, as execvp does: what has no first line is read by a shell.
    wanted = natively("env", plain, cwd=tmp_path)
    assert tuple(softsgx.run("env", plain)) == wanted == (5, "", "")
    script = f"i=0; while [ $i -lt 20 ]; do {program} 2>/dev/null; echo $?; i=$((i + 1)); done"
    wanted = natively("sh", "-c", script, cwd=tmp_path)
    assert wanted[1].split() in (["126"] * 20, ["127"] * 20)
    assert tuple(softsgx.run("sh", "-c", script)) == wanted


# -- signals ---------------------------------------------------------------------------------


def masks(out: str) -> list[tuple[str, int]]:
    """Read the lines "WHEN NAME: MASK"; give name and mask."""
    return [(line.split()[1], int(line.split()[2], 16) & SIGILL_BIT) for line in out.splitlines()]


@pytest.mark.parametrize("mode", ["ignore"])
@pytest.mark.parametrize("by", ["the caller", "a program"])
def test_cpuid_leaves_an_inherited_state_of_sigill(softsgx: "Harness", mode: str, by: str) -> None:
    program = str(softsgx.program("fault_signal_state"))
    look, set_first = [program, "look"], [program, mode]
    if by == "the caller":
        ended = softsgx.complete([*set_first, *softsgx.command(*look)])
    else:
        ended = softsgx.run(*set_first, *look)
    blocked = 0 if mode == "ignore" else SIGILL_BIT
    ignored = 0 if mode == "block" else SIGILL_BIT
    assert masks(ended.out) == [("SigBlk:", blocked), ("SigIgn:", ignored)] * 4, ended
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("mode", ["ignoring"])
def test_cpuid_leaves_a_state_of_sigill_that_the_program_sets(
    softsgx: "Harness", mode: str
) -> None:
    ended = softsgx.run(softsgx.program("fault_signal_state"), mode)
    blocked, ignored = (SIGILL_BIT, 0) if mode == "blocking" else (0, SIGILL_BIT)
    assert masks(ended.out) == [("SigBlk:", blocked), ("SigIgn:", ignored)] * 4, ended
    assert (ended.status, ended.err) == (0, "")


# -- output and trees --------------------------------------------------------------------------


def test_output_is_passed_on_untouched(softsgx: "Harness") -> None:
    script = r"printf 'a\nb\0c\377'; printf 'to\tstderr' >&2; head -c 300000 /dev/zero"
    command = softsgx.command("sh", "-c", script)
    done = subprocess.run(command, capture_output=True, check=False, timeout=20)
    assert done.returncode == 0
    assert done.stdout == b"a\nb\0c\xff" + bytes(300000)
    assert done.stderr == b"to\tstderr"


@pytest.mark.parametrize("given", [[], ["LC_CTYPE=C.UTF-8"], ["LC_ALL=C", "LC_CTYPE=de_DE"]])
def test_the_environment_is_the_callers(softsgx: "Harness", given: list[str]) -> None:
    # Python sets LC_CTYPE where it finds the C locale.
    words = [f"HOME={softsgx.directory}", *given]
    command = ["env", "-i", *words, *softsgx.command("/usr/bin/env")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert sorted(done.stdout.splitlines()) == sorted(words), done


def test_input_is_passed_on_untouched(softsgx: "Harness") -> None:
    data = os.urandom(200000)
    done = subprocess.run(
        softsgx.command("cat"), input=data, capture_output=True, check=False, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_pipelines(softsgx: "Harness") -> None:
    script = (
        "seq 1 3000 | grep -v 7 | sort -rn | head -n 2; (sleep 0.05; echo late) & "
        "false | true; echo $?; true | sh -c 'exit 9'; echo $?; wait; seq 1 100000 | head -n 1"
    )
    ended = softsgx.run("sh", "-c", script)
    assert (ended.status, ended.err) == (0, ""), ended
    lines = ended.out.split()
    # What runs in the background is said whenever it gets its turn, but within the wait.
    assert lines.index("late") < lines.index("1")
    lines.remove("late")
    assert lines == ["3000", "2999", "0", "9", "1"]


def test_the_run_lasts_as_long_as_the_last_descendant(softsgx: "Harness") -> None:
    ended = softsgx.run("sh", "-c", "(sleep 0.4; echo later; exit 8) & echo first; exit 4")
    assert tuple(ended) == (4, "first\nlater\n", "")
