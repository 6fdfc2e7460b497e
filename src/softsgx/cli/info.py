# SPDX-License-Identifier: Apache-2.0
"""Show what this host offers to a run, what the platform claims to be, and what it does not model."""

import argparse
from typing import TYPE_CHECKING

from softsgx import __version__
from softsgx.errors import SoftsgxError

if TYPE_CHECKING:
    from softsgx.cpu.model import Model
    from softsgx.run.host import Probe

HELP = "show what this machine offers and what the platform claims"

WARNING = "SGX in software: for development and tests, never for secrets."

# What differs from silicon: name, and what happens instead.
NOT_MODELLED = (
    (
        "the accessed bit",
        "which page gives way is told by how soon it was wanted again: --epc-policy",
    ),
    ("AEX by a shootdown", "a page that goes out drives no thread out of its enclave"),
    ("SGX2 of the driver isgx", "its ioctls give ENOSYS, and no touch adds a page"),
    ("CET", "not claimed: CREATE gives EIO, and INIT gives EINVAL"),
    ("ENCLV, virtual EPC", "#UD; there is no /dev/sgx_vepc"),
    ("32-bit enclaves", "they can be built and measured; EENTER is #GP"),
    ("enclaves of 2^47 bytes and more", "not claimed: CREATE gives EIO"),
    ("32-bit host programs", "they run without SGX, with a warning"),
    ("mremap that moves enclave memory", "EINVAL"),
    ("poisoning enclave pages", "MADV_HWPOISON and MADV_SOFT_OFFLINE give EPERM"),
    (
        "provisioning and quoting",
        "no PCE, no QE, no certificate of Intel: nothing attests remotely",
    ),
    ("isolation", "host code can touch enclave memory, unless by run --isolation strict"),
    ("the abort page", "who reads enclave memory sees it, and SIGBUS or EFAULT where no page is"),
    ("encrypted memory", "enclave memory is ordinary memory of the program"),
    ("CPUID outside of functions of program files", "generated code sees the host's CPUID"),
    (
        "instructions that are #UD inside",
        "those the host executes for a user (SGDT, MOV to a segment) succeed",
    ),
    ("CPUID inside", "#UD at four places of an enclave; at others it gives the host's answer"),
    (
        "a page in ELRANGE that is no EPC page",
        "an access from inside reaches what the host has mapped there",
    ),
    ("XCR0 inside", "stays the host's: XGETBV tells it, and a smaller XFRM does not disable AVX"),
    ("fetching outside ELRANGE", "enclave code that jumps out runs on, until its next trap"),
    ("AEX by the machine's interrupts", "only signals and exceptions cause one: run --aex-every"),
    ("debugging inside", "by run --gdb; ptrace has one tracer, which is softsgx"),
)

_LEAF_SGX = 0x12
_SUBLEAVES = 4
_CPUID_REGISTERS = ("eax", "ebx", "ecx", "edx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--cpu",
        default="default",
        metavar="MODEL",
        help="show the processor that `softsgx run --cpu MODEL` has",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def main(args: argparse.Namespace) -> int:
    """Print what was found; 0 where `softsgx run` can work, 1 where it cannot."""
    from softsgx.run.host import ESSENTIAL, probe_host  # noqa: PLC0415 (the help needs none of it)

    model = claims(args.cpu)
    probes = probe_host()
    missing = [probe for probe in probes if probe.need == ESSENTIAL and not probe.ok]
    if args.json:
        from json import dumps  # noqa: PLC0415

        print(dumps(_object(probes, model, args.cpu, not missing), indent=2))
    else:
        print("\n".join(_lines(probes, model, args.cpu, missing)))
    return 1 if missing else 0


def claims(cpu: str = "default") -> "Model | None":
    """Make the processor model that a run on this host has; None where XCR0 is unknown."""
    from softsgx.cpu.model import Model  # noqa: PLC0415
    from softsgx.cpu.named_models import features_of  # noqa: PLC0415
    from softsgx.run.session import xsave_sizes  # noqa: PLC0415
    from softsgx.run.vdso import VdsoImage  # noqa: PLC0415

    features = features_of(cpu)
    try:
        vdso = VdsoImage.load()
        xcr0 = vdso.native_xgetbv()
        return Model(xcr0=xcr0, xsave_sizes=xsave_sizes(vdso, xcr0), features=features)
    except (SoftsgxError, OSError):
        # The probe of XCR0 says why.
        return None


def _object(probes: "list[Probe]", model: "Model | None", cpu: str, run: bool) -> dict[str, object]:
    return {
        "softsgx": __version__,
        "warning": WARNING,
        "run": run,
        "host": [
            {
                "name": probe.name,
                "need": probe.need,
                "ok": probe.ok,
                "value": probe.value,
                "purpose": probe.purpose,
                "fix": "" if probe.ok else probe.fix,
            }
            for probe in probes
        ],
        "platform": None if model is None else _claimed(model, cpu),
        "not_modelled": [{"name": name, "instead": instead} for name, instead in NOT_MODELLED],
    }


def _claimed(model: "Model", cpu: str) -> dict[str, object]:
    from softsgx.cpu.named_models import MODELS  # noqa: PLC0415
    from softsgx.driver.nodes import DRIVERS, MAINLINE  # noqa: PLC0415

    return {
        "cpu": cpu,
        "features": sorted(model.features),
        "models": {name: sorted(features) for name, features in MODELS.items()},
        "epc_bytes": model.epc_bytes,
        "attributes": model.attributes,
        "xfrm": model.xfrm,
        "miscselect": model.miscselect,
        "cpuid": {
            f"{_LEAF_SGX:#x}.{subleaf}": dict(zip(_CPUID_REGISTERS, registers, strict=True))
            for subleaf, registers in _cpuid(model)
        },
        "nodes": sorted(DRIVERS[MAINLINE].paths),
        "drivers": {name: sorted(nodes.paths) for name, nodes in DRIVERS.items()},
    }


def _names(features: frozenset[str]) -> str:
    return " ".join(sorted(features)) or "none"


def _cpuid(model: "Model") -> list[tuple[int, tuple[int, int, int, int]]]:
    # Nothing of leaf 12H is the host's.
    return [(sub, model.cpuid(_LEAF_SGX, sub, (0, 0, 0, 0))) for sub in range(_SUBLEAVES)]


def _lines(
    probes: "list[Probe]", model: "Model | None", cpu: str, missing: "list[Probe]"
) -> list[str]:
    lines = [f"softsgx {__version__}. {WARNING}", "", "This host"]
    width = max(len(probe.name) for probe in probes)
    for probe in probes:
        mark = "ok" if probe.ok else "MISSING" if probe in missing else "no"
        lines.append(f"  {mark:<7} {probe.name:<{width}}  {probe.value}")
        if not probe.ok:
            lines.append(f"          {probe.purpose}" + (f"; {probe.fix}" if probe.fix else ""))
    lines += ["", *_claimed_lines(model, cpu), "", "Not modelled, and what happens instead"]
    for name, instead in NOT_MODELLED:
        lines += [f"  {name}", f"      {instead}"]
    lines.append("")
    if missing:
        lines.append("`softsgx run` cannot work here:")
        lines += [f"  {probe.name} ({probe.value}): {probe.fix}" for probe in missing]
    else:
        lines.append("`softsgx run` can work here.")
    return lines


def _claimed_lines(model: "Model | None", cpu: str) -> list[str]:
    if model is None:
        return ["The platform is unknown, because this processor cannot be asked: see XCR0 above"]
    from softsgx.cpu.model import FEATURES  # noqa: PLC0415
    from softsgx.cpu.named_models import MODELS  # noqa: PLC0415
    from softsgx.driver.nodes import DRIVERS, MAINLINE  # noqa: PLC0415

    lines = [
        f"The platform of `softsgx run --cpu {cpu}`: SGX1 with flexible launch control, and its features",
        f"  features    {_names(model.features)}",
        f"    without   {_names(frozenset(FEATURES) - model.features)}",
        *(
            f"    {name:<9} {_names(features)} (run --cpu {name})"
            for name, features in MODELS.items()
            if name != cpu
        ),
        f"  EPC         {model.epc_bytes >> 20} MiB (run --epc SIZE)",
        f"  ATTRIBUTES  {model.attributes:#x}",
        f"  XFRM        {model.xfrm:#x}",
        f"  MISCSELECT  {model.miscselect:#x}",
    ]
    for subleaf, registers in _cpuid(model):
        values = " ".join(
            f"{name.upper()}={value:08x}"
            for name, value in zip(_CPUID_REGISTERS, registers, strict=True)
        )
        lines.append(f"  CPUID.12H.{subleaf}  {values}")
    lines.append(f"  nodes       {' '.join(sorted(DRIVERS[MAINLINE].paths))}")
    lines += [
        f"    {name:<10}{' '.join(sorted(nodes.paths))} (run --driver {name})"
        for name, nodes in DRIVERS.items()
        if name != MAINLINE
    ]
    return lines
