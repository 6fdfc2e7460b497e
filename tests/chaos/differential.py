# SPDX-License-Identifier: Apache-2.0
"""Runs random programs of entries, exits, faults and signals with every transition by a trap, and without: equal results.

Each seed is one run of tests/run/programs/random_transitions.c, under `softsgx run --no-fast-path`, without the
option, and with exits at any moment. What differs is kept, as files that begin with the seed.
"""

import argparse
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "run"))
from conftest import Harness  # noqa: E402

_EXITS = ("--aex-every", "2ms")
# By name, options and more words; each pair must print the same.
PAIRS = {
    "as it is": {"trapped": ("--no-fast-path",), "fast": ()},
    "interrupted": {"trapped": ("--no-fast-path", *_EXITS), "fast": _EXITS},
}


def outcomes(harness: Harness, seed: int, steps: int, how: str) -> dict[str, str]:
    """Run a seed both ways; return what each has printed, and how it has ended."""
    words = (harness.program("random_transitions"), *harness.enclave_of("transitions_enclave"))
    more = (str(seed), str(steps), *(("interrupted",) if how == "interrupted" else ()))
    told = {}
    for way, options in PAIRS[how].items():
        status, out, err = harness.run(*words, *more, options=options)
        told[way] = f"{out}{err}status {status}\n"
    return told


def equal(told: dict[str, str]) -> bool:
    """Tell whether both have ended well, with the same."""
    trapped, fast = told.values()
    return trapped == fast and trapped.endswith("finished\nstatus 0\n") and "WRONG" not in trapped


def main() -> int:
    """Try seeds for some time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, help="of the first")
    parser.add_argument("--count", type=int, help="so many seeds, however long they take")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--keep", type=Path, default=Path("build/differential"))
    args = parser.parse_args()
    first = secrets.randbelow(1 << 32) if args.seed is None else args.seed
    end = time.monotonic() + args.seconds
    os.environ.setdefault("SOFTSGX_TEST_PATIENCE", "90")
    tried = 0
    bad: list[int] = []
    with tempfile.TemporaryDirectory(prefix="softsgx-differential-") as directory:
        harness = Harness(Path(directory))
        while tried < args.count if args.count else time.monotonic() < end:
            seed = first + tried
            tried += 1
            for how in PAIRS:
                told = outcomes(harness, seed, args.steps, how)
                if equal(told):
                    continue
                bad.append(seed)
                print(f"seed {seed}, {how}: not equal", flush=True)
                args.keep.mkdir(parents=True, exist_ok=True)
                for way, out in told.items():
                    (args.keep / f"{seed}-{how}-{way}").write_text(out)
    print(f"{tried} seeds from {first} on, {len(bad)} with differences")
    if bad:
        print(f"kept in {args.keep}; SEED={bad[0]} COUNT=1 repeats the first")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
