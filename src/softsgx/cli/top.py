# SPDX-License-Identifier: Apache-2.0
"""Show what the platforms of this user's runs are doing: the EPC, the enclaves, the paging."""

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from softsgx.run.runs import Run

HELP = "show what the platforms of running programs are doing"

_INTERVAL, _SHORTEST, _LONGEST = 1.0, 0.05, 3600.0
# How long a run may take to answer; one that is stopped never does.
_PATIENCE = 5.0
# With somebody waiting before the screen.
_LIVE_PATIENCE = 1.0
_COUNTERS = ("pages", "resident", "evictions", "reloads")
# What is shown by the second.
_RATES = ("added", "evictions", "reloads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--pid", type=int, help="only the run of this `softsgx run`")
    parser.add_argument(
        "--interval",
        type=_interval,
        metavar="SECONDS",
        help=f"time between two looks (default {_INTERVAL:g}); with --json, go on looking",
    )
    parser.add_argument("--once", action="store_true", help="look once and print a plain table")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each look")


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not _SHORTEST <= seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text}: wanted are {_SHORTEST:g} to {_LONGEST:g} seconds"
        )
    return seconds


def main(args: argparse.Namespace) -> int:
    """Show the runs; 0 where there was one, 1 where there was none."""
    from softsgx.run.runs import ask  # noqa: PLC0415 (the help needs none of it)

    runs = ask(_PATIENCE, args.pid)
    if args.json:
        _print_json(runs)
    if not runs:
        return _nothing(args.pid)
    if args.json:
        while args.interval is not None and not args.once and runs:
            time.sleep(args.interval)
            runs = ask(_PATIENCE, args.pid)
            _print_json(runs)
    elif args.once or not _is_screen():
        print("\n".join(_lines(runs)))
    else:
        return _watch(runs, args.pid, args.interval or _INTERVAL)
    return 0


def _nothing(pid: int | None) -> int:
    from softsgx.run.control import directory  # noqa: PLC0415

    if pid is None:
        what = "no program of this user that has opened an SGX node runs under softsgx"
    else:
        what = (
            f"process {pid} is no `softsgx run` of this user whose programs have opened an SGX node"
        )
    print(f"softsgx: {what} (looked in {directory()})", file=sys.stderr)
    return 1


def _print_json(runs: "list[Run]") -> None:
    from json import dumps  # noqa: PLC0415

    told = [run.snapshot for run in runs if run.snapshot is not None]
    silent = [{"pid": run.pid, "problem": run.problem} for run in runs if run.snapshot is None]
    print(dumps({"runs": told, "silent": silent}), flush=True)


# -- a plain table ------------------------------------------------------------------------------


def _lines(runs: "list[Run]") -> list[str]:
    from softsgx.run.report import MARK  # noqa: PLC0415

    lines = [f"softsgx top ({MARK})"]
    for run in runs:
        lines.append("")
        if run.snapshot is None:
            lines.append(f"run {run.pid} {run.problem}")
            continue
        lines += [_title(run.snapshot), f"  EPC       {_epc(run.snapshot)}"]
        lines += [f"  paging    {_paging(run.snapshot)}", *_table(run.snapshot)]
    return lines


def _title(snapshot: dict[str, Any]) -> str:
    from shlex import join  # noqa: PLC0415

    command = join(snapshot["command"])
    # It is the user's own, and may still hold what a terminal obeys.
    shown = "".join(character if character.isprintable() else "?" for character in command)
    seconds = int(snapshot["seconds"])
    up = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"run {snapshot['pid']}  {snapshot['driver']}  {up}  {shown}"


def _epc(snapshot: dict[str, Any]) -> str:
    from softsgx.run.report import amount  # noqa: PLC0415

    pages, free = snapshot["epc_pages"], snapshot["epc_pages_free"]
    return (
        f"{pages - free} of {pages} pages in use ({amount(pages << 12)}), "
        f"{snapshot['epc_pages_peak']} at the peak"
    )


def _paging(snapshot: dict[str, Any]) -> str:
    return (
        f"{snapshot['evictions']} evictions, {snapshot['reloads']} reloads, "
        f"{snapshot['kills']} kills; backing: {snapshot['backing_pages']} pages, "
        f"{snapshot['backing_bytes']} bytes, {snapshot['backing_faults']} faults"
    )


def _rows(snapshot: dict[str, Any]) -> list[tuple[str, ...]]:
    """Give what the table says of each enclave: processes, base, size, counters."""
    from softsgx.run.report import amount  # noqa: PLC0415

    rows = []
    for enclave in snapshot["largest_enclaves"]:
        pids = ",".join(map(str, enclave["pids"][:3])) + ",..." * (len(enclave["pids"]) > 3)
        state = "killed" if enclave["kills"] else "" if enclave["initialized"] else "building"
        counts = (str(enclave[name]) for name in _COUNTERS)
        rows.append((pids, enclave["base"], amount(enclave["size"]), *counts, state))
    others = snapshot["other_enclaves"]
    if others["enclaves"]:
        counts = (str(others[name]) for name in _COUNTERS)
        rows.append((f"{others['enclaves']} others", "", "", *counts, ""))
    return rows


_HEADS = ("processes", "base", "size", *_COUNTERS, "")


def _table(snapshot: dict[str, Any]) -> list[str]:
    rows = [_HEADS, *_rows(snapshot)]
    if len(rows) == 1:
        return ["  no enclave"]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    return [
        "  "
        + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


# -- live ---------------------------------------------------------------------------------------


def _is_screen() -> bool:
    if not sys.stdout.isatty():
        return False
    from rich.console import Console  # noqa: PLC0415 (only this verb needs it)

    console = Console()
    return console.is_terminal and not console.is_dumb_terminal


def _watch(runs: "list[Run]", pid: int | None, interval: float) -> int:
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from softsgx.cli.keys import Keys  # noqa: PLC0415
    from softsgx.run.runs import ask  # noqa: PLC0415

    before: dict[int, dict[str, Any]] = {}
    live = Live(console=Console(), screen=True, auto_refresh=False)
    with Keys(live.stop, lambda: live.start(refresh=True)) as keys, live:
        while runs:
            live.update(_screen(runs, before), refresh=True)
            before = {run.pid: run.snapshot for run in runs if run.snapshot is not None}
            if keys.pressed("q", interval):
                return 0
            runs = ask(_LIVE_PATIENCE, pid)
    print("softsgx: what was shown has ended")
    return 0


def _screen(runs: "list[Run]", before: dict[int, dict[str, Any]]) -> "RenderableType":
    from rich.console import Group  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from softsgx.run.report import MARK  # noqa: PLC0415

    parts: list[RenderableType] = [Text(f"softsgx top ({MARK}); q quits", "dim", no_wrap=True)]
    for run in runs:
        parts.append(Text())
        if run.snapshot is None:
            parts.append(Text(f"run {run.pid} {run.problem}", "red"))
        else:
            parts += _shown(run.snapshot, before.get(run.pid))
    return Group(*parts)


def _shown(now: dict[str, Any], before: dict[str, Any] | None) -> "list[RenderableType]":
    from rich.progress_bar import ProgressBar  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    def line(text: str, style: str = "") -> Text:
        return Text(text, style, no_wrap=True, overflow="ellipsis")

    used = now["epc_pages"] - now["epc_pages_free"]
    bar = Table.grid(padding=(0, 1))
    bar.add_column(no_wrap=True)
    bar.add_row("  EPC", ProgressBar(total=now["epc_pages"], completed=used, width=30), _epc(now))
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for head in (*_HEADS[:-1], *(f"{name}/s" for name in _RATES), ""):
        table.add_column(head, justify="right", no_wrap=True)
    rates = _rates_of_enclaves(now, before)
    for row, rate in zip(_rows(now), rates, strict=True):
        table.add_row(*map(Text, (*row[:-1], *rate, row[-1])))
    total = _rates(now, before, _seconds(now, before))
    by_second = ", ".join(f"{rate} {name}/s" for rate, name in zip(total, _RATES, strict=True))
    parts: list[RenderableType] = [line(_title(now), "bold"), bar, line(f"  {_paging(now)}")]
    parts.append(line(f"  {by_second}", "cyan"))
    parts.append(table if table.row_count else line("  no enclave"))
    return parts


def _seconds(now: dict[str, Any], before: dict[str, Any] | None) -> float:
    # The process may be another one of the same number.
    if before is None or before["started"] != now["started"]:
        return 0.0
    return float(now["seconds"] - before["seconds"])


def _rates(now: dict[str, Any], before: dict[str, Any] | None, seconds: float) -> list[str]:
    if before is None or seconds <= 0:
        return ["-"] * len(_RATES)
    return [f"{(now[name] - before[name]) / seconds:.0f}" for name in _RATES]


def _rates_of_enclaves(now: dict[str, Any], before: dict[str, Any] | None) -> list[list[str]]:
    seconds = _seconds(now, before)
    known = {} if before is None else {e["number"]: e for e in before["largest_enclaves"]}
    rates = [_rates(e, known.get(e["number"]), seconds) for e in now["largest_enclaves"]]
    # The others are not the same ones each time.
    return rates + [["-"] * len(_RATES)] * bool(now["other_enclaves"]["enclaves"])
