# SPDX-License-Identifier: Apache-2.0
"""Verify an enclave file or a SIGSTRUCT: well-formed, rightly signed, rightly measured, and by a policy.

Exit status 0 if all is right, 1 if something is not, 2 if a file cannot be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from softsgx.image.policy import Check


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    from softsgx.cli.measure import add_reading  # noqa: PLC0415

    parser.add_argument(
        "file", metavar="FILE", help="enclave, as `softsgx measure` reads it, or SIGSTRUCT"
    )
    parser.add_argument(
        "--policy",
        metavar="POLICY.toml",
        help="what is allowed; without one only FILE itself is looked at",
    )
    add_reading(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: Namespace) -> int:
    """Print what was looked at; returns 1 if something is not right."""
    from softsgx.arch.structures import Sigstruct  # noqa: PLC0415
    from softsgx.cli.measure import read  # noqa: PLC0415
    from softsgx.image import formats, policy  # noqa: PLC0415
    from softsgx.image.file import File  # noqa: PLC0415

    rules = policy.load(args.policy) if args.policy is not None else {}
    file = File.open(args.file)
    if formats.is_sigstruct(file):
        content = file.read(0, Sigstruct.SIZE, "SIGSTRUCT")
        looked = [("", list(policy.check_sigstruct(content, rules)))]
        unmeasured = policy.Check("measurement", None, "a SIGSTRUCT alone: nothing to measure")
        looked[0][1].append(unmeasured)
    else:
        looked = [
            (enclave.variant, list(policy.check(enclave, rules)))
            for enclave in read(args.file, args)
        ]
    right = all(check.ok is not False for _, checks in looked for check in checks)
    if args.json:
        import json  # noqa: PLC0415

        enclaves = [
            {"variant": variant, "checks": [_facts(check) for check in checks]}
            for variant, checks in looked
        ]
        print(json.dumps({"file": args.file, "ok": right, "enclaves": enclaves}))
        return 0 if right else 1
    for variant, checks in looked:
        if variant:
            print(f"{args.file}: {variant}")
        for check in checks:
            verdict = {True: "ok", False: "WRONG", None: "-"}[check.ok]
            print(f"{verdict:6} {check.name:14} {check.text}")
    return 0 if right else 1


def _facts(check: Check) -> dict[str, Any]:
    return {"name": check.name, "ok": check.ok, "text": check.text}
