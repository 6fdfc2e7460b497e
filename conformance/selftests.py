# SPDX-License-Identifier: Apache-2.0
"""Run the Linux kernel's SGX selftests, unmodified, under `softsgx run`, as root and as a user.

Each is done on the processor of a run without options, and on one that has SGX1 only.

The sources come from Debian's package linux-source-6.1 into build/conformance, which git ignores:
no line of the kernel is kept in this project. The harness of that kernel cannot run one test by
name, so each round is one run of test_sgx whose TAP output is read test by test.

Exit status: 0 when every test does at least what expected.txt says, 1 when one does not,
77 when it could not be tried (no network, no compiler, ...), with the missing thing named. A round
that cannot be tried here (root's, by a user; a user's, in a clone that no user may enter) is named
and not counted.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / "build" / "conformance"
KERNEL_PACKAGE = "linux-source-6.1"
KERNEL = CACHE / KERNEL_PACKAGE
SELFTESTS = KERNEL / "tools" / "testing" / "selftests"
PROGRAM = SELFTESTS / "sgx" / "test_sgx"
ENCLAVE = SELFTESTS / "sgx" / "test_encl.elf"
# test_sgx and what its Makefile and its sources include, nothing else of the kernel.
MEMBERS = [
    "tools/testing/selftests/sgx",
    "tools/testing/selftests/kselftest.h",
    "tools/testing/selftests/kselftest_harness.h",
    "tools/testing/selftests/lib.mk",
    "tools/testing/selftests/x86/check_cc.sh",
    "tools/testing/selftests/x86/trivial_64bit_program.c",
    "tools/include",
    "arch/x86/include/asm/sgx.h",
    "arch/x86/include/asm/enclu.h",
    "arch/x86/include/uapi/asm/sgx.h",
]
# What is expected, by the processor that the run has.
EXPECTED = {"default": "expected.txt", "sgx1": "expected-sgx1.txt"}
TOOLS = {"gcc": "gcc", "make": "make", "dpkg-deb": "dpkg", "tar": "tar", "xz": "xz-utils"}
ORDINARY = 65534
# The harness ends a test after 30 s; one test is allowed 900 s by its author, which no test that
# passes today needs. The whole run is bounded, and a test without a verdict by then has failed.
RUN_SECONDS = 300
STATUS_REGRESSED = 1
STATUS_NOT_TRIED = 77


class Outcome(NamedTuple):
    """What one test gave: verdict is `ok`, `skip` or `FAIL`; reason is empty for `ok`."""

    verdict: str
    reason: str

    def __str__(self) -> str:
        return self.verdict if not self.reason else f"{self.verdict}: {self.reason}"


def not_tried(reason: str) -> NoReturn:
    print(f"conformance: not tried: {reason}", file=sys.stderr)
    sys.exit(STATUS_NOT_TRIED)


# --- fetch and build -------------------------------------------------------------------------


def fetch(package: str) -> Path:
    """Return the .deb of `package` in the cache, downloaded when it is not there yet."""
    if found := sorted(CACHE.glob(f"{package}_*.deb")):
        return found[-1]
    if shutil.which("apt-get") is None:
        not_tried(f"apt-get is missing: package {package} can only be fetched on a Debian system")
    print(f"conformance: fetching {package} into {CACHE}", flush=True)
    download = ["apt-get", "-q", "download", package]
    first = subprocess.run(download, cwd=CACHE, capture_output=True, text=True, check=False)
    if first.returncode != 0:
        # The lists of a fresh image are empty, and those of an old one name versions that are gone.
        update = subprocess.run(
            ["apt-get", "-q", "update"], capture_output=True, text=True, check=False
        )
        again = subprocess.run(download, cwd=CACHE, capture_output=True, text=True, check=False)
        if again.returncode != 0:
            said = (again.stderr.strip() or update.stderr.strip() or first.stderr.strip())[-600:]
            not_tried(f"package {package} cannot be fetched (offline?). apt-get says:\n{said}")
    found = sorted(CACHE.glob(f"{package}_*.deb"))
    if not found:
        not_tried(f"apt-get download {package} left no {package}_*.deb in {CACHE}")
    return found[-1]


def extract_sources(package: Path) -> None:
    """Extract MEMBERS out of the kernel's tar, which is inside the package."""
    shutil.rmtree(KERNEL, ignore_errors=True)
    members = " ".join(f"{KERNEL_PACKAGE}/{member}" for member in MEMBERS)
    pipeline = (
        f"set -o pipefail; dpkg-deb --fsys-tarfile '{package}'"
        f" | tar -xO ./usr/src/{KERNEL_PACKAGE}.tar.xz | tar -xJ -C '{CACHE}' {members}"
    )
    done = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        not_tried(f"{package.name} does not hold the selftests as expected:\n{done.stderr[-600:]}")


def has_openssl_headers(environ: dict[str, str]) -> bool:
    probe = subprocess.run(
        ["gcc", "-x", "c", "-", "-lcrypto", "-o", os.devnull],
        input="#include <openssl/pem.h>\nint main(void) { return EVP_PKEY_new() == 0; }\n",
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return probe.returncode == 0


def build_environment() -> dict[str, str]:
    """Return the environment to build in: OpenSSL is the system's, else one fetched aside."""
    # The kernel's Makefile would take an outer `make conformance` for one of its own.
    outer = {"MAKELEVEL", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "OUTPUT"}
    environ = {name: value for name, value in os.environ.items() if name not in outer}
    if has_openssl_headers(environ):
        return environ
    print("conformance: libssl-dev is not installed; using a fetched copy", flush=True)
    root = CACHE / "openssl"
    # libssl-dev holds the headers and a link to the library, which is in libssl3.
    for package in ("libssl-dev", "libssl3"):
        subprocess.run(["dpkg-deb", "-x", fetch(package), root], check=True)
    machine = "x86_64-linux-gnu"
    environ["CPATH"] = f"{root}/usr/include:{root}/usr/include/{machine}"
    environ["LIBRARY_PATH"] = f"{root}/usr/lib/{machine}"
    if not has_openssl_headers(environ):
        not_tried("test_sgx needs OpenSSL's headers: install libssl-dev")
    return environ


def build() -> None:
    """Build test_sgx and its enclave with the kernel's own Makefile."""
    if PROGRAM.exists() and ENCLAVE.exists():
        return
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            not_tried(f"{tool} is missing: install {package}")
    CACHE.mkdir(parents=True, exist_ok=True)
    extract_sources(fetch(KERNEL_PACKAGE))
    log = CACHE / "build.log"
    with log.open("w") as output:
        made = subprocess.run(
            ["make", "-C", SELFTESTS / "sgx", f"OUTPUT={SELFTESTS / 'sgx'}"],
            env=build_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if made.returncode != 0 or not PROGRAM.exists() or not ENCLAVE.exists():
        not_tried(f"test_sgx does not build:\n{log.read_text()[-1500:]}")


# --- run -------------------------------------------------------------------------------------


def test_names() -> list[str]:
    """Return the names of the tests that the source of test_sgx defines, in its order."""
    source = (SELFTESTS / "sgx" / "main.c").read_text()
    return re.findall(r"^TEST_F(?:_TIMEOUT)?\(enclave, (\w+)", source, re.MULTILINE)


def why(output: list[str]) -> str:
    """Pick the reason of a failure out of what a test printed: its perror, else its assertion."""
    spoken = [line for line in output if line and not line.startswith("#")]
    if spoken:
        return spoken[0]
    for line in output:
        if told := re.match(r"# \w+\.c:(\d+):\w+:(.*)", line):
            return f"main.c:{told[1]}: {told[2]}"
    return next((line.lstrip("# ") for line in output if line), "no output")


def read_tap(lines: list[str]) -> tuple[dict[str, Outcome], str]:
    """Read the harness's output; return the outcomes and what was said outside of every test."""
    outcomes: dict[str, Outcome] = {}
    name = ""
    output: list[str] = []
    for line in lines:
        if line.startswith("softsgx: warning: "):
            continue  # advice of ours, beside the harness's own words
        if begin := re.match(r"#  RUN +enclave\.(\w+)", line):
            name, output = begin[1], []
        elif skip := re.match(r"ok \d+ # SKIP (.*)", line):
            outcomes[name], name, output = Outcome("skip", skip[1]), "", []
        elif re.match(r"ok \d+ ", line):
            outcomes[name], name, output = Outcome("ok", ""), "", []
        elif re.match(r"not ok \d+ ", line):
            outcomes[name], name, output = Outcome("FAIL", why(output)), "", []
        else:
            output.append(line)
    return outcomes, f"{name}: {why(output)}" if name else why(output)


def output_within(command: list[str], cwd: str, environ: dict[str, str], into: IO[bytes]) -> str:
    """Run `command` for at most RUN_SECONDS; return how it ended, in words."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=into,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            status = process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"ended after {RUN_SECONDS} s"
    return f"exit status {status}"


def as_user(uid: int) -> list[str]:
    """Return the words before a command that make it run as `uid` without groups or privileges."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]


def out_of_reach(uid: int) -> str:
    """Return why `uid` cannot run the installed softsgx in a scratch directory; empty if it can."""
    if shutil.which("setpriv") is None:
        return "setpriv is missing: install util-linux"
    ways = [Path(sys.prefix), Path(sys.executable).resolve().parent, Path(tempfile.gettempdir())]
    folders = sorted({folder for way in ways for folder in (way, *way.parents)})
    enter = 'for folder; do test -x "$folder" || { echo "$folder"; exit 1; }; done'
    for command in (["sh", "-c", enter, "sh", *folders], [sys.executable, "-c", "import softsgx"]):
        done = subprocess.run(
            [*as_user(uid), *command], cwd="/", capture_output=True, text=True, check=False
        )
        if closed := done.stdout.strip():
            return f"uid {uid} may not enter {closed}: clone where others may enter"
        if done.returncode != 0:
            return f"uid {uid} cannot run {sys.executable}: {done.stderr.strip()[-300:]}"
    return ""


def run_as(uid: int, names: list[str], cpu: str) -> dict[str, Outcome]:
    """Run test_sgx under `softsgx run --cpu CPU` as user `uid` in a home of its own."""
    softsgx = shutil.which("softsgx")
    if softsgx is None:
        not_tried("the command softsgx is not on PATH: run `make conformance`")
    options = os.environ.get("RUN_OPTIONS", "").split()
    command = [softsgx, "run", "--cpu", cpu, *options, "--", "./test_sgx"]
    with tempfile.TemporaryDirectory(prefix="softsgx-conformance-") as home:
        shutil.copy2(PROGRAM, home)
        shutil.copy2(ENCLAVE, home)
        environ = {"PATH": os.environ["PATH"], "HOME": home, "LC_ALL": "C"}
        if uid != os.geteuid():
            os.chown(home, uid, uid)
            command = [*as_user(uid), *command]
        log = CACHE / f"output-{'root' if uid == 0 else 'user'}-{cpu}.txt"
        with log.open("wb") as output:
            ended = output_within(command, home, environ, output)
    outcomes, outside = read_tap(log.read_text(errors="replace").splitlines())
    lost = Outcome("FAIL", f"no verdict; the run's {ended}; last said: {outside}")
    return {name: outcomes.get(name, lost) for name in names}


# --- judge -----------------------------------------------------------------------------------


def expectations(name: str) -> dict[str, Outcome]:
    expected: dict[str, Outcome] = {}
    for line in (HERE / name).read_text().splitlines():
        if line and not line.startswith("#"):
            name, verdict = line.split(maxsplit=1)
            kind, _, reason = verdict.partition(": ")
            expected[name] = Outcome(kind, reason)
    return expected


def is_regression(outcome: Outcome, expected: Outcome) -> bool:
    """Tell whether a test did worse than expected, or differs for a reason that is not known."""
    if outcome.verdict == "ok":
        return False
    return outcome.verdict != expected.verdict or expected.reason not in outcome.reason


def report(who: str, outcomes: dict[str, Outcome], expected: dict[str, Outcome]) -> int:
    """Print a line a test; return the number of regressions."""
    print(f"test_sgx {who}", flush=True)
    regressions = 0
    for name, outcome in outcomes.items():
        print(f"{name} {outcome}")
        wanted = expected.get(name, Outcome("ok", ""))
        if is_regression(outcome, wanted):
            regressions += 1
            print(f"  ^ regression: expected `{wanted}`")
        elif outcome.verdict == "ok" and wanted.verdict != "ok":
            print(f"  ^ better than expected (`{wanted}`): bring its file up to date")
    passed = sum(outcome.verdict == "ok" for outcome in outcomes.values())
    print(f"passed {passed} of {len(outcomes)}\n", flush=True)
    return regressions


def main() -> int:
    if os.uname().machine != "x86_64":
        not_tried("the selftests are for x86-64")
    build()
    names = test_names()
    expected = {cpu: expectations(name) for cpu, name in EXPECTED.items()}
    for cpu, name in EXPECTED.items():
        if set(names) != set(expected[cpu]):
            not_tried(
                f"{name} and {KERNEL_PACKAGE} name different tests: "
                f"{sorted(set(names) ^ set(expected[cpu]))}"
            )
    if os.geteuid() != 0:
        print("conformance: not tried as root: this user is not root\n")
        rounds = [("as an ordinary user", os.geteuid())]
    else:
        rounds = [("as root", 0), ("as an ordinary user", ORDINARY)]
    regressions = 0
    for who, uid in rounds:
        if uid != os.geteuid() and (reason := out_of_reach(uid)):
            print(f"conformance: not tried {who}: {reason}")
            continue
        for cpu in EXPECTED:
            outcomes = run_as(uid, names, cpu)
            regressions += report(f"{who} (uid {uid}), --cpu {cpu}", outcomes, expected[cpu])
    return STATUS_REGRESSED if regressions else 0


if __name__ == "__main__":
    sys.exit(main())
