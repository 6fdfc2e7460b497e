# SPDX-License-Identifier: Apache-2.0
"""Run real programs that have nothing to do with SGX with and without `softsgx run`, and compare.

    programs.py [--install] [--json] [NAME...]

Each must give the same output and the same exit status both ways. All of them come from Debian's packages;
--install lets apt-get bring what is missing, else a program that is not there is told as "not tried", with
the package that has it. The kernel's SGX selftests have a run of their own (selftests.py).

Exit status: 0 all that were tried agree, 1 one differs, 2 a wrong argument.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SECONDS = 300

C_PROGRAM = """
#include <stdio.h>
#include <cpuid.h>
int main(void) { unsigned a, b, c, d; __cpuid(0, a, b, c, d); puts("from C"); return 7; }
"""
GO_PROGRAM = """
package main
import ("fmt"; "os"; "sync"; "time")
func main() {
	var wait sync.WaitGroup
	sum := make([]int, 8)
	for i := range sum { wait.Add(1); go func(i int) { defer wait.Done(); time.Sleep(time.Millisecond); sum[i] = i * i }(i) }
	wait.Wait()
	_, err := os.Stat("/nonexistent")
	fmt.Println(sum, err)
	os.Exit(3)
}
"""
JAVA_PROGRAM = """
import java.util.stream.*;
public class Main {
    public static void main(String[] args) {
        System.out.println(IntStream.range(0, 3_000_000).parallel().mapToLong(i -> i % 7).sum());
        System.exit(5);
    }
}
"""
NODE_PROGRAM = (
    "let s = 0; for (let i = 0; i < 3e6; i++) s += i % 11; console.log(s, "
    "require('fs').existsSync('/etc/passwd')); process.exitCode = 4;"
)
PYTHON_PROGRAM = (
    "import asyncio, concurrent.futures as f, hashlib, json, sqlite3, subprocess, sys\n"
    "with f.ThreadPoolExecutor(4) as pool: print(sum(pool.map(lambda n: n * n, range(999))))\n"
    "print(subprocess.run(['sh', '-c', 'echo child; exit 3']).returncode, flush=True)\n"
    "print(sqlite3.connect(':memory:').execute('select 6 * 7').fetchone(), "
    "hashlib.sha256(b'x' * 99999).hexdigest()); sys.exit(6)"
)
SHELL_PROGRAM = (
    "i=0; while [ $i -lt 30 ]; do /bin/echo $i | cat; i=$((i + 1)); done | sort -rn | head -3; "
    "(exit 9); echo $?; trap 'echo trapped' USR1; kill -USR1 $$; exit 8"
)


class Program(NamedTuple):
    """One program: what it needs on PATH, the package that has it, how to ask its version, what to run.

    `files` are written first; `prepare` is run natively before both runs.
    """

    name: str
    needs: str
    package: str
    version: tuple[str, ...]
    command: tuple[str, ...]
    files: dict[str, str] = {}  # noqa: RUF012  (never changed)
    prepare: tuple[str, ...] = ()


PROGRAMS = [
    Program(
        "dash",
        "dash",
        "dash",
        ("dpkg-query", "-Wf${Version}", "dash"),
        ("dash", "-c", SHELL_PROGRAM),
    ),
    Program("bash", "bash", "bash", ("bash", "--version"), ("bash", "-c", SHELL_PROGRAM)),
    Program(
        "gcc, linked and run",
        "gcc",
        "gcc libc6-dev",
        ("gcc", "--version"),
        ("sh", "-c", "gcc -O2 -o made a.c && ./made; echo $?"),
        {"a.c": C_PROGRAM},
    ),
    Program(
        "make -j2",
        "make",
        "make gcc libc6-dev",
        ("make", "--version"),
        ("sh", "-c", "make -s -j2 a b c && ./a; rm -f a b c"),
        dict.fromkeys(("a.c", "b.c", "c.c"), C_PROGRAM),
    ),
    Program(
        "static glibc",
        "gcc",
        "gcc libc6-dev",
        ("gcc", "--version"),
        ("./static",),
        {"a.c": C_PROGRAM},
        ("gcc", "-static", "-s", "-o", "static", "a.c"),
    ),
    Program(
        "static musl",
        "musl-gcc",
        "musl-tools",
        ("dpkg-query", "-Wf${Version}", "musl-tools"),
        ("./musl",),
        {"a.c": C_PROGRAM},
        ("musl-gcc", "-static", "-o", "musl", "a.c"),
    ),
    Program(
        "busybox",
        "busybox",
        "busybox-static",
        ("busybox",),
        ("busybox", "sh", "-c", "busybox ls -d / /etc; busybox seq 5 | busybox wc -l; exit 2"),
    ),
    Program(
        "Python", "python3", "python3", ("python3", "--version"), ("python3", "-c", PYTHON_PROGRAM)
    ),
    Program(
        "Perl",
        "perl",
        "perl",
        ("perl", "-e", "print $^V"),
        ("perl", "-e", "print `echo hi`; exit 3"),
    ),
    Program("Node.js", "node", "nodejs", ("node", "--version"), ("node", "-e", NODE_PROGRAM)),
    Program(
        "Java",
        "javac",
        "default-jdk-headless",
        ("javac", "-version"),
        ("java", "-cp", ".", "Main"),
        {"Main.java": JAVA_PROGRAM},
        ("javac", "Main.java"),
    ),
    Program(
        "Go, go build",
        "go",
        "golang-go",
        ("go", "version"),
        ("sh", "-c", "go build -o built main.go && ./built; echo $?; rm built"),
        {"main.go": GO_PROGRAM, "go.mod": "module main\n\ngo 1.18\n"},
    ),
    Program(
        "Go, stripped",
        "go",
        "golang-go",
        ("go", "version"),
        ("./stripped",),
        {"main.go": GO_PROGRAM, "go.mod": "module main\n\ngo 1.18\n"},
        ("go", "build", "-ldflags", "-s -w", "-o", "stripped", "main.go"),
    ),
    Program(
        "git",
        "git",
        "git",
        ("git", "--version"),
        ("sh", "-c", "git init -q r && cd r && git status -s && git log 2>&1; cd .. && rm -rf r"),
    ),
    Program(
        "tar and xz",
        "xz",
        "xz-utils tar",
        ("xz", "--version"),
        ("sh", "-c", "tar cf - /usr/include/linux 2>/dev/null | xz -T2 -1 | xz -d | sha256sum"),
    ),
    Program(
        "OpenSSL",
        "openssl",
        "openssl",
        ("openssl", "version"),
        ("sh", "-c", "head -c 9999999 /dev/zero | openssl dgst -sha512; openssl prime 1000003"),
    ),
    Program(
        "SQLite",
        "sqlite3",
        "sqlite3",
        ("sqlite3", "--version"),
        ("sqlite3", ":memory:", "select 6*7;"),
    ),
]


def install() -> None:
    packages = sorted({word for program in PROGRAMS for word in program.package.split()})
    missing = [p for p in PROGRAMS if shutil.which(p.needs) is None]
    if not missing:
        return
    print(f"installing {' '.join(packages)}", file=sys.stderr)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        subprocess.run(["apt-get", "-qq", *command], check=True, env=quiet, stdout=sys.stderr)


def run(command: list[str], cwd: Path) -> tuple[int, bytes, bytes, float]:
    environ = {
        **os.environ,
        "HOME": str(cwd),
        "GOCACHE": str(cwd / "gocache"),
        "GOFLAGS": "-mod=mod",
        "LC_ALL": "C.UTF-8",
        "SOFTSGX_STATE": str(cwd / "state"),
    }
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr, time.perf_counter() - begin


def version_of(program: Program) -> str:
    done = subprocess.run(program.version, capture_output=True, text=True, check=False)
    said = (done.stdout or done.stderr).strip()
    return said.splitlines()[0] if said else "unknown"


def try_one(program: Program, softsgx: str) -> dict[str, object]:
    row: dict[str, object] = {"name": program.name}
    if shutil.which(program.needs) is None:
        return {**row, "outcome": "not tried", "why": f"apt install {program.package}"}
    row["version"] = version_of(program)
    with tempfile.TemporaryDirectory(prefix="softsgx-programs-") as directory:
        cwd = Path(directory)
        for name, text in program.files.items():
            (cwd / name).write_text(text)
        if program.prepare:
            status, _, err, _ = run(list(program.prepare), cwd)
            if status:
                return {**row, "outcome": "not tried", "why": err.decode(errors="replace")[-200:]}
        run(list(program.command), cwd)
        native = run(list(program.command), cwd)
        ours = run([softsgx, "run", "--", *program.command], cwd)
    row["seconds"] = [round(ours[3], 3), round(native[3], 3)]
    if ours[:3] == native[:3]:
        return {**row, "outcome": "same"}
    what = ("exit status", "standard output", "standard error")
    parts = [
        f"{name}: {here!r:.200}, without softsgx {there!r:.200}"
        for name, here, there in zip(what, ours[:3], native[:3], strict=True)
        if here != there
    ]
    return {**row, "outcome": "DIFFERS", "why": "; ".join(parts)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Compare real programs with and without softsgx run."
    )
    parser.add_argument("--install", action="store_true", help="let apt-get bring what is missing")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead")
    parser.add_argument("name", nargs="*", help="try these only")
    args = parser.parse_args()
    known = {program.name: program for program in PROGRAMS}
    if unknown := set(args.name) - known.keys():
        parser.error(f"no such program: {', '.join(unknown)}; there are {', '.join(known)}")
    softsgx = shutil.which("softsgx")
    if softsgx is None:
        parser.error("the command softsgx is not on PATH: run `make programs`")
    if args.install:
        install()
    rows = []
    for program in PROGRAMS:
        if args.name and program.name not in args.name:
            continue
        rows.append(try_one(program, softsgx))
        if not args.json:
            row = rows[-1]
            ours, native = row.get("seconds", ("", ""))  # type: ignore[misc]  # a row holds what JSON does
            said = row.get("why", "")
            print(
                f"{row['outcome']!s:<10}{program.name:<22}{ours!s:>8}{native!s:>8}  "
                f"{row.get('version', '')}{': ' if said else ''}{said}",
                flush=True,
            )
    if args.json:
        print(json.dumps(rows, indent=2))
    return 1 if any(row["outcome"] == "DIFFERS" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
