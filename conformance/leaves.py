# SPDX-License-Identifier: Apache-2.0
"""The table of the leaves, docs/leaves.md: made of the package and of the tests that name a leaf.

    python conformance/leaves.py            print it
    python conformance/leaves.py --write    write docs/leaves.md

A test names what it provokes: @pytest.mark.leaf("EWB", "#PF", "NOT_TRACKED"). tests/cpu/conftest.py sees that it does.
"""

import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import softsgx.cpu
from softsgx.arch.leaves import Encls, Enclu
from softsgx.cpu.model import ENCLS_OF, ENCLU_OF, FEATURES, Model

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "leaves.md"
TESTS = ROOT / "tests" / "cpu"
DONE = "done"
GP, PF = "#GP", "#PF"

# SDM volume 3D, chapter "SGX instruction references": the heading of each leaf's section there, and what a leaf may
# end in: its table of error codes and its lists of exceptions.
MANUAL = {
    "ECREATE": "Create an SECS page in the Enclave Page Cache",
    "EADD": "Add a Page to an Uninitialized Enclave",
    "EINIT": "Initialize an Enclave for Execution",
    "EREMOVE": "Remove a page from the EPC",
    "EDBGRD": "Read From a Debug Enclave",
    "EDBGWR": "Write to a Debug Enclave",
    "EEXTEND": "Extend Uninitialized Enclave Measurement by 256 Bytes",
    "ELDB": "Load an EPC Page and Mark its State",
    "ELDU": "Load an EPC Page and Mark its State",
    "EBLOCK": "Mark a page in EPC as Blocked",
    "EPA": "Add Version Array",
    "EWB": "Invalidate an EPC Page and Write out to Main Memory",
    "ETRACK": "Activates EBLOCK Checks",
    "EAUG": "Add a Page to an Initialized Enclave",
    "EMODPR": "Restrict the Permissions of an EPC Page",
    "EMODT": "Change the Type of an EPC Page",
    "ERDINFO": "Read Type and Status Information About an EPC Page",
    "ETRACKC": "Activates EBLOCK Checks",
    "ELDBC": "Load an EPC Page and Mark its State",
    "ELDUC": "Load an EPC Page and Mark its State",
    "EUPDATESVN": "Runtime microcode updates with Intel SGX (a paper of its own)",
    "EREPORT": "Create a Cryptographic Report of the Enclave",
    "EGETKEY": "Retrieves a Cryptographic Key",
    "EENTER": "Enters an Enclave",
    "ERESUME": "Re-Enters an Enclave",
    "EEXIT": "Exits an Enclave",
    "EACCEPT": "Accept Changes to an EPC Page",
    "EMODPE": "Extend an EPC Page Permissions",
    "EACCEPTCOPY": "Initialize a Pending Page",
    "EVERIFYREPORT2": "Verify a Cryptographic Report of a Trust Domain",
    "EDECCSSA": "Decrements TCS.CSSA",
}
OUTCOMES = {
    "ECREATE": (GP, PF),
    "EADD": (GP, PF),
    "EINIT": (
        *(GP, PF, "INVALID_SIG_STRUCT", "INVALID_SIGNATURE", "INVALID_MEASUREMENT"),
        *("INVALID_ATTRIBUTE", "INVALID_EINITTOKEN", "INVALID_CPUSVN"),
    ),
    "EREMOVE": (GP, PF, "CHILD_PRESENT", "ENCLAVE_ACT"),
    "EDBGRD": (GP, PF, "PAGE_NOT_DEBUGGABLE"),
    "EDBGWR": (GP, PF, "PAGE_NOT_DEBUGGABLE"),
    "EEXTEND": (GP, PF),
    "ELDB": (GP, PF, "MAC_COMPARE_FAIL"),
    "ELDU": (GP, PF, "MAC_COMPARE_FAIL"),
    "EBLOCK": (
        *(GP, PF, "EPC_PAGE_CONFLICT", "PG_INVLD", "PG_IS_SECS", "NOTBLOCKABLE", "BLKSTATE"),
    ),
    "EPA": (GP, PF),
    "EWB": (*(GP, PF, "PAGE_NOT_BLOCKED", "NOT_TRACKED", "CHILD_PRESENT", "VA_SLOT_OCCUPIED"),),
    "ETRACK": (GP, PF, "PREV_TRK_INCMPL"),
    "EAUG": (GP, PF),
    "EMODPR": (GP, PF, "EPC_PAGE_CONFLICT", "PAGE_NOT_MODIFIABLE"),
    "EMODT": (GP, PF, "EPC_PAGE_CONFLICT", "PAGE_NOT_MODIFIABLE"),
    "ERDINFO": (GP, PF, "PG_NONEPC", "EPC_PAGE_CONFLICT", "PG_INVLD"),
    "ETRACKC": (
        *(GP, PF, "EPC_PAGE_CONFLICT", "PG_INVLD", "TRACK_NOT_REQUIRED", "PREV_TRK_INCMPL"),
    ),
    "ELDBC": (GP, PF, "EPC_PAGE_CONFLICT", "MAC_COMPARE_FAIL"),
    "ELDUC": (GP, PF, "EPC_PAGE_CONFLICT", "MAC_COMPARE_FAIL"),
    "EUPDATESVN": (*("EPC_PAGE_CONFLICT", "EPC_NOT_READY", "INSUFFICIENT_ENTROPY", "NO_UPDATE"),),
    "EREPORT": (GP, PF),
    "EGETKEY": (
        *(GP, PF, "INVALID_ATTRIBUTE", "INVALID_CPUSVN", "INVALID_ISVSVN", "INVALID_KEYNAME"),
    ),
    "EENTER": (GP, PF),
    "ERESUME": (GP, PF),
    "EEXIT": (GP,),
    "EACCEPT": (GP, PF, "PAGE_ATTRIBUTES_MISMATCH", "NOT_TRACKED"),
    "EMODPE": (GP, PF),
    "EACCEPTCOPY": (GP, PF, "PAGE_ATTRIBUTES_MISMATCH"),
    "EVERIFYREPORT2": (GP, PF, "INVALID_REPORTMACSTRUCT", "INVALID_CPUSVN"),
    "EDECCSSA": (GP, PF),
}
# In the manual, and impossible here.
NEVER = {
    "EINIT": "UNMASKED_EVENT: no interrupt is pending while a leaf is carried out",
    "EBLOCK": "ENTRYEPOCH_LOCKED: no other processor is in the midst of ETRACK",
}

_HEAD = """\
# The leaves

One row for each leaf of ENCLS and ENCLU that the processor has, generated from the code by
`python conformance/leaves.py --write`. The manual is the SDM, volume 3D, chapter "SGX instruction references", with the
heading of the leaf's section there. The faults and codes are those of that section; each is provoked by one of the
tests of the last column, which `tests/cpu/conftest.py` sees to. Leaves of a feature are #GP without it
([processors](cli.md#processors)), all others belong to SGX1.
"""


class Leaf(NamedTuple):
    """One row: a leaf, where its code is, and its tests with what each says it provokes."""

    instruction: str
    name: str
    number: int
    feature: str
    function: str
    tests: dict[str, set[str]]


def leaves() -> Iterator[Leaf]:
    """Give the leaves of a processor with every feature, in the order of their numbers."""
    model = Model(features=frozenset(FEATURES))
    functions = _functions()
    tests = _tests()
    kinds: tuple[tuple[str, type[IntEnum], frozenset[int], dict[str, tuple[int, ...]]], ...] = (
        ("ENCLS", Encls, model.encls, ENCLS_OF),
        ("ENCLU", Enclu, model.enclu, ENCLU_OF),
    )
    for instruction, kind, has, of in kinds:
        features = {number: feature for feature, numbers in of.items() for number in numbers}
        for number in sorted(has):
            name = kind(number).name
            yield Leaf(
                instruction,
                name,
                number,
                features.get(number, "sgx1"),
                functions.get(name, ""),
                tests.get(name, {}),
            )


def _functions() -> dict[str, str]:
    """Give where the function of each leaf's name is defined."""
    found = {}
    for info in pkgutil.iter_modules(softsgx.cpu.__path__):
        module = importlib.import_module(f"softsgx.cpu.{info.name}")
        for name in MANUAL:
            function = getattr(module, name.lower(), None)
            if function is not None and function.__module__ == module.__name__:
                found[name] = f"cpu/{info.name}.py: {name.lower()}"
    return found


def _tests() -> dict[str, dict[str, set[str]]]:
    """Give the tests of each leaf: those that are marked with it, and what they say that they provoke."""
    found: dict[str, dict[str, set[str]]] = {}
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            where = f"{path.name}: {node.name}"
            for name, *outcomes in _marks(node):
                found.setdefault(name, {}).setdefault(where, set()).update(outcomes)
    return found


def _marks(node: ast.FunctionDef) -> Iterator[list[str]]:
    # Of the test, or of one of its parameters.
    for call in (each for decorator in node.decorator_list for each in ast.walk(decorator)):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.leaf":
            yield [ast.literal_eval(argument) for argument in call.args]


def table() -> str:
    """Make the whole document."""
    lines = [_HEAD]
    lines += ["| leaf | number | feature | manual | function | faults and codes | tests |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for leaf in leaves():
        tests = "<br>".join(f"`{test}`" for test in sorted(leaf.tests))
        cells = (
            f"{leaf.instruction}[{leaf.name}]",
            f"{leaf.number:02X}H",
            leaf.feature,
            f"{leaf.name}: {MANUAL[leaf.name]}",
            f"`{leaf.function}`" if leaf.function else "",
            " ".join(OUTCOMES[leaf.name]),
            tests,
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "In the manual, and impossible here:", ""]
    lines += [f"- {name}: {why}" for name, why in NEVER.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        TABLE.write_text(table())
    else:
        print(table(), end="")
