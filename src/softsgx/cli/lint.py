# SPDX-License-Identifier: Apache-2.0
"""Say what a processor with SGX would punish, of an enclave file, of a program or of a run that has ended."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence
    from typing import IO

    from softsgx.cpu.parts import Part
    from softsgx.image.code import Code
    from softsgx.run.lint_observer import LintObserver

_PAGE = 4096
_VA_SLOTS = 512
_UNITS = {"K": 10, "M": 20, "G": 30}
_EPC = 128 << 20
# The reclaimer keeps some pages free: a run that uses a part's EPC up must be able to show it.
_MORE = 16 << 20
_PROGRAM_FAILED = 3
# What of the machine of `softsgx run` can be chosen here as well.
_OF_RUN = ("epc", "cpu", "driver", "state")


def parse(arguments: Sequence[str]) -> Namespace | None:
    """Read a command line with a program, which argparse would take for files."""
    if "--" not in arguments:
        return None
    from argparse import ArgumentParser  # noqa: PLC0415

    at = list(arguments).index("--")
    parser = ArgumentParser(prog="softsgx lint", description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    args = parser.parse_args(arguments[:at])
    args.program = list(arguments[at + 1 :])
    if args.files or not args.program:
        raise SoftsgxError("lint: wanted is FILE... or -- PROGRAM [ARG...], one of the two")
    return args


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.usage = "softsgx lint [options] FILE... | softsgx lint [options] -- PROGRAM [ARG ...]"
    parser.set_defaults(program=[])
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="enclave (ELF or SGXS), or what `softsgx run --stats-json` has written",
    )
    parser.add_argument(
        "--part",
        metavar="NAME",
        help="a processor, or the size of its EPC such as 93M: say what would not fit",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--output", metavar="FILE", help="write the findings there, not on standard output or error"
    )
    of_run = parser.add_argument_group("with PROGRAM, as `softsgx run` has them")
    of_run.add_argument("--epc", metavar="SIZE", help="EPC size (default 128M, or more for --part)")
    of_run.add_argument("--cpu", metavar="MODEL", help="the processor that programs find")
    of_run.add_argument("--driver", metavar="NAME", help="whose nodes and ioctls they find")
    of_run.add_argument("--state", metavar="DIR", help="the platform's identity")


def main(args: Namespace) -> int:
    """Print the findings; returns 1 where there are any."""
    part = _part(args.part) if args.part is not None else None
    if args.program:
        return _lint_program(args, part)
    if not args.files:
        raise SoftsgxError("lint: wanted is FILE... or -- PROGRAM [ARG...]")
    for name in _OF_RUN:
        if getattr(args, name) is not None:
            raise SoftsgxError(f"--{name} is for a program: softsgx lint --{name} ... -- PROGRAM")
    output = _output(args.output)
    told = [_lint(path, part) for path in args.files]
    return _tell(told, args, output or sys.stdout)


def _output(path: str | None) -> IO[str] | None:
    if path is None:
        return None
    try:
        return open(path, "w", encoding="utf-8", errors="surrogateescape")  # noqa: PTH123
    except OSError as error:
        raise SoftsgxError(f"--output {path}: {error.strerror}") from error


def _tell(told: list[dict[str, Any]], args: Namespace, output: IO[str]) -> int:
    findings = sum(len(file["findings"]) for file in told)
    if args.json:
        import json  # noqa: PLC0415

        from softsgx import __version__  # noqa: PLC0415

        lines = [json.dumps({"softsgx": __version__, "findings": findings, "files": told})]
    else:
        lines = [line for file in told for line in _lines(file)]
    try:
        output.writelines(line + "\n" for line in lines)
        output.flush()
        if args.output is not None:
            output.close()
    except BrokenPipeError:
        raise
    except OSError as error:
        if args.output is not None:
            # Python 3.13 complains where an object goes that still has something to write.
            with suppress(OSError):
                output.close()
        where = f"--output {args.output}" if args.output is not None else "the findings"
        raise SoftsgxError(f"{where}: {error.strerror}") from error
    return 1 if findings else 0


def _lines(file: dict[str, Any]) -> list[str]:
    name = file["file"]
    lines = [_line(name, finding) for finding in file["findings"]]
    lines += [f"{name}: note: {note}" for note in file["notes"]]
    return lines if file["findings"] else [*lines, f"{name}: nothing found"]


def _part(name: str) -> tuple[str, Part]:
    from softsgx.cpu.parts import PARTS, Part  # noqa: PLC0415

    if name in PARTS:
        return name, PARTS[name]
    digits, unit = (name[:-1], _UNITS[name[-1]]) if name[-1:] in _UNITS else (name, 0)
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 15 or not int(digits):
        known = ", ".join(PARTS)
        raise SoftsgxError(
            f"--part {name}: neither a processor that is known ({known}) nor a size such as 93M"
        )
    return name, Part(int(digits) << unit, True, "given")


def _lint(path: str, part: tuple[str, Part] | None) -> dict[str, Any]:
    stats = _stats(path)
    if stats is not None:
        return _lint_run(path, stats, part)
    from softsgx.image import code  # noqa: PLC0415

    enclave = code.read(path)
    findings = _illegal(path, enclave, part)
    pages = _pages(path, enclave.pages)
    notes = []
    if not enclave.functions:
        notes.append("no symbols: nothing is certain, for data may be taken for code")
    if part is not None and pages is None:
        notes.append(
            "heap, stacks and threads are not in the file: run it with --stats-json, and lint that"
        )
    elif part is not None and pages is not None:
        # With the SECS, and a VA slot for each of them.
        all_pages = pages + 1
        findings += _beyond(all_pages + -(-all_pages // _VA_SLOTS), part, "the enclave's pages")
    kind = {"kind": enclave.kind, "pages": pages}
    return {"file": path, **kind, "findings": findings, "notes": notes}


def _illegal(path: str, enclave: Code, part: tuple[str, Part] | None) -> list[dict[str, Any]]:
    try:
        from softsgx.image import illegal  # noqa: PLC0415
    except ModuleNotFoundError as error:
        # Not on every machine is there a wheel of it.
        if error.name != "iced_x86":
            raise
        raise SoftsgxError(
            f"{path}: lint reads instructions by the package iced-x86, which is not installed here"
        ) from error

    return [
        {
            "rule": "illegal-instruction",
            "address": hex(found.offset),
            "symbol": found.symbol,
            "instruction": found.instruction,
            "exception": "#UD",
            "reason": found.reason,
            "here": found.here,
            "certain": found.certain,
        }
        for found in illegal.find(enclave, sgx2=part is None or part[1].sgx2)
    ]


def _pages(path: str, of_file: int | None) -> int | None:
    """Return how many pages a loader adds; what the file alone has where no loader would take it."""
    from softsgx.image import formats  # noqa: PLC0415

    try:
        # Of several, the newest loader's.
        return formats.read(path)[0].image.pages
    except SoftsgxError:
        return of_file


def _stats(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            if file.read(1) != b"{":
                return None
            file.seek(0)
            import json  # noqa: PLC0415

            stats = json.load(file)
    except OSError as error:
        raise SoftsgxError(f"{path}: cannot read it: {error.strerror}") from error
    except ValueError as error:
        raise SoftsgxError(f"{path}: not the JSON of a run: {error}") from error
    if not isinstance(stats, dict) or not isinstance(stats.get("epc_pages_peak"), int):
        raise SoftsgxError(f"{path}: not what `softsgx run --stats-json` writes")
    return stats


def _lint_run(path: str, stats: dict[str, Any], part: tuple[str, Part] | None) -> dict[str, Any]:
    peak, notes = stats["epc_pages_peak"], []
    findings = _beyond(peak, part, "the pages in use at once") if part is not None else []
    if part is None:
        notes.append("without --part there is nothing to compare the run with")
    if stats.get("evictions"):
        notes.append(
            f"its EPC of {stats.get('epc_pages')} pages was full: it may need more than {peak}; run it with "
            "a larger --epc"
        )
    return {"file": path, "kind": "run", "pages": peak, "findings": findings, "notes": notes}


def _lint_program(args: Namespace, part: tuple[str, Part] | None) -> int:
    import os  # noqa: PLC0415

    if sys.platform != "linux":
        raise SoftsgxError(
            f"lint of a program needs x86-64 Linux, this is {sys.platform}; of a file it works here"
        )
    from softsgx.cli import run  # noqa: PLC0415
    from softsgx.driver.state import State  # noqa: PLC0415
    from softsgx.run.lint_observer import LintObserver  # noqa: PLC0415
    from softsgx.run.session import run_program  # noqa: PLC0415
    from softsgx.run.spawn import ProgramNotFound  # noqa: PLC0415

    given = run.Given()
    epc = max(_EPC, (part[1].epc if part is not None else 0) // _PAGE * _PAGE + _MORE)
    output = _output(args.output)
    observer = LintObserver(command=args.program)
    try:
        status = run_program(
            args.program,
            epc=run.size(args.epc) if args.epc is not None else epc,
            cpu=args.cpu or given.cpu,
            state=State(args.state),
            driver=args.driver or given.driver,
            isolation="strict",
            observer=observer,
        )
        program = _program(args.program[0], status, observer, part)
        told = [program, *_images(observer, part, program["findings"])]
    except ProgramNotFound as missing:
        sys.stderr.write(f"softsgx: {missing}\n")
        return missing.status
    finally:
        observer.close()
    found = _tell(told, args, output or sys.stderr)
    # What it has not come to was not looked at.
    failed = not os.WIFEXITED(status) or os.WEXITSTATUS(status)
    return found or (_PROGRAM_FAILED if failed else 0)


def _program(
    name: str, status: int, observer: LintObserver, part: tuple[str, Part] | None
) -> dict[str, Any]:
    import os  # noqa: PLC0415
    import signal  # noqa: PLC0415

    peak, pages, evictions = observer.epc()
    findings, notes = observer.findings(), []
    if part is not None:
        findings += _beyond(peak, part, "the pages in use at once")
    else:
        notes.append(f"{peak} pages of EPC in use at once")
    if evictions:
        notes.append(
            f"its EPC of {pages} pages was full: it may need more than {peak}; use a larger --epc"
        )
    exited = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    number = os.WTERMSIG(status) if exited is None else 0
    # No signal.Signals has a name for a real-time one.
    names = {s.value: s.name for s in signal.Signals}
    killed = names.get(number, f"signal {number}") if number else None
    if exited:
        notes.append(f"the program has failed: exit status {exited}; the rest of it was not seen")
    elif killed:
        notes.append(f"the program was killed by {killed}; the rest of it was not seen")
    if not observer.enclaves:
        notes.append("it has made no enclave")
    ended = {"status": exited, "signal": killed}
    return {
        "file": name,
        "kind": "program",
        "pages": peak,
        **ended,
        "findings": findings,
        "notes": notes,
    }


def _images(
    observer: LintObserver, part: tuple[str, Part] | None, done: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    from softsgx.run.lint_observer import enclave_name  # noqa: PLC0415

    told = []
    # What was executed is told already, and was no data.
    executed = {
        (finding["module"], finding["offset"])
        for finding in done
        if finding["rule"] == "illegal-instruction-executed"
    }
    for mrenclave, code in observer.images():
        name = enclave_name(mrenclave)
        findings = [
            {**finding, "symbol": ""}
            for finding in (_illegal(name, code, part) if code is not None else [])
            if (name, finding["address"]) not in executed
        ]
        notes = [] if code is not None else ["its code was not looked at: lost, or above 64 MiB"]
        pages = code.pages if code is not None else None
        file = {"file": name, "kind": "enclave", "mrenclave": mrenclave, "pages": pages}
        told.append({**file, "findings": findings, "notes": notes})
    return told


def _beyond(pages: int, part: tuple[str, Part], what: str) -> list[dict[str, Any]]:
    name, (epc, _, source) = part
    if pages * _PAGE <= epc:
        return []
    return [
        {
            "rule": "epc",
            "pages": pages,
            "part": name,
            "part_pages": epc // _PAGE,
            "source": source,
            "reason": f"{what} are more than its EPC holds: they are paged",
            "here": "as large as --epc says",
            "certain": True,
        }
    ]


def _line(path: str, finding: dict[str, Any]) -> str:
    if finding["rule"] == "epc":
        return (
            f"{path}: {finding['pages']} pages, {finding['part']} has {finding['part_pages']}: "
            f"{finding['reason']} ({finding['source']})"
        )
    symbol = f" <{finding['symbol']}>" if finding["symbol"] else ""
    if "count" in finding:
        where = f" {finding['module']}+{finding['offset']}" if finding["module"] else ""
        touched = f" (it is at {finding['touched']})" if "touched" in finding else ""
        times = f", {finding['count']} times" if finding["count"] > 1 else ""
        return (
            f"{path}: {finding['address']}{where}{symbol}: {finding['reason']}{touched}; "
            f"{finding['here']} (thread {finding['tid']}{times})"
        )
    doubt = "" if finding["certain"] else " (unless it is data)"
    return (
        f"{path}: {finding['address']}{symbol}: {finding['instruction']}: {finding['exception']} inside: "
        f"{finding['reason']}; {finding['here']}{doubt}"
    )
