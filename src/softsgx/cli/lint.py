# SPDX-License-Identifier: Apache-2.0
"""Say what a processor with SGX would punish, of an enclave file or of a run that has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from softsgx.cpu.parts import Part

_PAGE = 4096
_VA_SLOTS = 512
_UNITS = {"K": 10, "M": 20, "G": 30}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="enclave (ELF or SGXS), or what `softsgx run --stats-json` has written",
    )
    parser.add_argument(
        "--part",
        metavar="NAME",
        help="a processor, or the size of its EPC such as 93M: say what would not fit",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: Namespace) -> int:
    """Print the findings; returns 1 where there are any."""
    part = _part(args.part) if args.part is not None else None
    told = [_lint(path, part) for path in args.files]
    findings = sum(len(file["findings"]) for file in told)
    if args.json:
        import json  # noqa: PLC0415

        from softsgx import __version__  # noqa: PLC0415

        print(json.dumps({"softsgx": __version__, "findings": findings, "files": told}))
        return 1 if findings else 0
    for file in told:
        for finding in file["findings"]:
            print(_line(file["file"], finding))
        for note in file["notes"]:
            print(f"{file['file']}: note: {note}")
        if not file["findings"]:
            print(f"{file['file']}: nothing found")
    return 1 if findings else 0


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
    try:
        from softsgx.image import code, illegal  # noqa: PLC0415
    except ModuleNotFoundError as error:
        # Not on every machine is there a wheel of it.
        if error.name != "iced_x86":
            raise
        raise SoftsgxError(
            f"{path}: lint reads instructions by the package iced-x86, which is not installed here"
        ) from error

    enclave = code.read(path)
    findings: list[dict[str, Any]] = [
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
    doubt = "" if finding["certain"] else " (unless it is data)"
    return (
        f"{path}: {finding['address']}{symbol}: {finding['instruction']}: {finding['exception']} inside: "
        f"{finding['reason']}; {finding['here']}{doubt}"
    )
