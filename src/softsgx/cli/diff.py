# SPDX-License-Identifier: Apache-2.0
"""Say why two enclaves differ: the first record of the measurement that does, then every page, then the SIGSTRUCTs.

Exit status 0 if nothing differs but signatures, 1 if something does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softsgx.arch.secinfo import PAGE_SIZE

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from softsgx.image.difference import Pages
    from softsgx.image.names import Names

# So many names of a stretch of pages are printed; JSON has all.
_NAMES = 8


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    from softsgx.cli.measure import add_large  # noqa: PLC0415

    parser.add_argument("first", metavar="A", help="an enclave, as `softsgx measure` reads it")
    parser.add_argument("second", metavar="B", help="another")
    parser.add_argument(
        "--ssaframesize", type=int, default=1, metavar="PAGES", help="as for `softsgx measure`"
    )
    parser.add_argument("--libpal", metavar="FILE", help="Gramine's libpal.so, of A and B")
    parser.add_argument("--libpal-b", metavar="FILE", help="Gramine's libpal.so, of B if another")
    add_large(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: Namespace) -> int:
    """Print what differs; returns 1 if something does."""
    from softsgx.image import difference, formats, stream  # noqa: PLC0415
    from softsgx.image.names import Names  # noqa: PLC0415

    options = {"ssaframesize": args.ssaframesize, "large": args.large}
    one = formats.read(args.first, libpal=args.libpal, **options)[0]
    other = formats.read(args.second, libpal=args.libpal_b or args.libpal, **options)[0]
    names = Names(args.first, one), Names(args.second, other)
    hashes = stream.measure(one.image).hex(), stream.measure(other.image).hex()
    first = difference.first(one.image, other.image)
    pages = difference.pages(one.image, other.image)
    fields = difference.fields(one, other)
    where = None if first is None else first.offset if first.byte is None else first.byte
    facts: dict[str, Any] = {
        "a": {"file": args.first, "format": one.format, "mrenclave": hashes[0]},
        "b": {"file": args.second, "format": other.format, "mrenclave": hashes[1]},
        "same_mrenclave": hashes[0] == hashes[1],
        "first": None
        if first is None
        else {
            "leaf": first.leaf,
            "offset": first.offset,
            "place": "" if where is None else names[0].place(where),
            "a": first.one,
            "b": first.other,
        },
        "pages": [_facts(found, names) for found in pages],
        "sigstruct": [{"field": name, "a": a, "b": b} for name, a, b in fields],
    }
    if args.json:
        import json  # noqa: PLC0415

        print(json.dumps(facts))
    else:
        _print(facts)
    return 1 if first is not None or pages or fields else 0


def _facts(found: Pages, names: tuple[Names, Names]) -> dict[str, Any]:
    sections: dict[str, None] = {}
    symbols: dict[str, None] = {}
    for part in names:
        if not found.chunks:
            sections.update(dict.fromkeys(part.sections(found.offset, found.length)))
        for first, last in found.chunks:
            sections.update(dict.fromkeys(part.sections(first, last + 1 - first)))
            symbols.update(dict.fromkeys(part.symbols(first, last + 1 - first)))
    return {
        "kind": found.kind,
        "offset": found.offset,
        "pages": found.length // PAGE_SIZE,
        "a": found.one,
        "b": found.other,
        "chunks": found.chunks,
        "sections": list(sections),
        "symbols": list(symbols),
    }


def _print(facts: dict[str, Any]) -> None:
    for letter in ("a", "b"):
        side = facts[letter]
        print(f"{letter.upper()}  {side['mrenclave']}  {side['file']} ({side['format']})")
    first = facts["first"]
    if first is None:
        print("MRENCLAVE is the same, record by record")
    else:
        where = "" if first["offset"] is None else f" at {first['offset']:#x}"
        place = f" in {first['place']}" if first["place"] else ""
        print(f"first difference: {first['leaf']}{where}{place}: {first['a']}, but {first['b']}")
    if first is not None and not facts["pages"] and first["offset"] is not None:
        print("all pages are the same: only their order differs, or what of them is measured")
    for found in facts["pages"]:
        start, count = found["offset"], found["pages"]
        text = f"{start:#12x} .. {start + count * PAGE_SIZE:#12x}  {count:6} pages  {found['kind']}"
        if found["kind"] == "content":
            text += f" of {len(found['chunks'])} chunks" + (f", {found['a']}" if found["a"] else "")
        elif found["b"]:
            text += f": {found['a']}, but {found['b']}"
        else:
            text += f": {found['a']}"
        print("  ".join((text, *_short(found["sections"]), *_short(found["symbols"], "<{}>"))))
    for line in facts["sigstruct"]:
        print(f"SIGSTRUCT {line['field'].upper()}: {line['a']}, but {line['b']}")


def _short(names: list[str], pattern: str = "{}") -> list[str]:
    shown = ", ".join(pattern.format(name) for name in names[:_NAMES])
    more = len(names) - _NAMES
    return [shown + (f" and {more} more" if more > 0 else "")] if shown else []
