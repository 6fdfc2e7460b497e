# SPDX-License-Identifier: Apache-2.0
"""One run of a program under softsgx: a platform, a supervisor, and what is told at the end.

Owns the platform of the run and gives it back whatever happens.
"""

import gc
import os
import resource
import sys

from softsgx.cpu.model import DEFAULT_FEATURES, Model
from softsgx.driver.nodes import nodes_of
from softsgx.errors import SoftsgxError
from softsgx.run import numbers as n
from softsgx.run import signals
from softsgx.run.host import require_host
from softsgx.run.job import block_signals
from softsgx.run.observe import Observer
from softsgx.run.options import Options
from softsgx.run.spawn import TERMINAL, EndedEarly, Inherited, find_program, require_servable, spawn
from softsgx.run.vdso import VdsoImage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, NoReturn

    from softsgx.driver.platform import Platform
    from softsgx.driver.state import State
    from softsgx.driver.stores import DefaultStore
    from softsgx.run.aex_every import AexEvery
    from softsgx.run.extraction import Extraction
    from softsgx.run.gdb_stub import GdbStub


def xsave_sizes(vdso: VdsoImage, xcr0: int) -> dict[int, tuple[int, int]]:
    """Ask the host where its XSAVE components lie: size and offset by component (CPUID.0DH)."""
    return {
        component: vdso.native_cpuid(0xD, component)[:2]
        for component in range(2, 63)
        if xcr0 >> component & 1
    }


def ignored_signals() -> int:
    """Give the signals that this process was started with ignored; bit n - 1 is signal n.

    SoftsgxError where it is traced: the tracer would have its programs, which softsgx must have.
    """
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"TracerPid:") and int(line[10:]):
                raise SoftsgxError(
                    "softsgx run cannot itself be traced: not by gdb or strace, not by softsgx run"
                )
            if line.startswith(b"SigIgn:"):
                return int(line.split()[1], 16)
    return 0


# The supervisor's own, and those of one program with an enclave.
_FEWEST_FILES = 32


def raise_limits() -> dict[int, tuple[int, int]]:
    """Raise this process's limits as far as it may; give those of before, soft and hard, by number.

    Raises SoftsgxError where a run cannot work within them.
    """
    before = {}
    # Each process of the run and each enclave takes some files; an enclave's memory is a file.
    for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
        try:
            soft, hard = before[number] = resource.getrlimit(number)
            if soft != hard:
                resource.setrlimit(number, (hard, hard))
        except OSError as error:
            raise SoftsgxError(f"this host forbids prlimit64 ({error.strerror})") from error
    files = before[resource.RLIMIT_NOFILE][1]
    if files != resource.RLIM_INFINITY and files < _FEWEST_FILES:
        raise SoftsgxError(
            f"{files} files may be open at once, {_FEWEST_FILES} are needed: raise `ulimit -Hn`"
        )
    most = before[resource.RLIMIT_FSIZE][1]
    if most != resource.RLIM_INFINITY:
        raise SoftsgxError(
            f"files may have {most} bytes at most, and an enclave's memory is a file whose offset is "
            "the address: raise `ulimit -f`, the hard limit"
        )
    return before


def _default_store(backing: str) -> "DefaultStore | None":
    # What every driver has without being told; that of most runs never comes into being.
    if backing == "kernel":
        return None
    from softsgx.driver.default_stores import default_store  # noqa: PLC0415

    return default_store(backing)


def _require_policy(policy: str) -> None:
    # As with the stores: a run that says nothing pays nothing.
    if policy != "2q":
        from softsgx.driver.policy import require_policy  # noqa: PLC0415

        require_policy(policy)


def _features(cpu: str) -> frozenset[str]:
    # As with the stores again.
    if cpu == "default":
        return DEFAULT_FEATURES
    from softsgx.cpu.named_models import features_of  # noqa: PLC0415

    return features_of(cpu)


def _aex_every(text: str | None, *, debugged: bool) -> "AexEvery | None":
    if text is None:
        return None
    from softsgx.run.aex_every import aex_every  # noqa: PLC0415

    every = aex_every(text)
    if every.instructions and debugged:
        raise SoftsgxError(
            f"--aex-every {text} and --gdb: both step the program; with --gdb give a time, as 1ms"
        )
    return every


def _gdb_stub(port: int, observer: Observer, vdso: VdsoImage, xcr0: int) -> "GdbStub":
    from softsgx.run.gdb_registers import Registers  # noqa: PLC0415  (few runs are debugged)
    from softsgx.run.gdb_stub import GdbStub  # noqa: PLC0415

    ymm_high = xsave_sizes(vdso, xcr0).get(2, (0, 0))[1]
    return GdbStub(port, observer, Registers(xcr0, ymm_high))


def run_program(
    argv: list[str],
    *,
    epc: int,
    cpu: str = "default",
    state: "State",
    driver: str,
    backing: str = "kernel",
    policy: str = "2q",
    trace: "IO[str] | None" = None,
    stats: bool = False,
    stats_json: "IO[str] | None" = None,
    kill_on_exit: bool = False,
    leave_text: bool = False,
    fast_path: bool = True,
    aex_every: str | None = None,
    gdb: int | None = None,
    isolation: str = "none",
    observer: Observer | None = None,
    extraction: "Extraction | None" = None,
) -> int:
    """Run a program and all its descendants, over the driver of that name; give the first one's wait status.

    `cpu` names the processor that they find (cpu/named_models.py).
    `backing` is what default_stores.default_store takes: where the enclaves' evicted pages go; `policy`
    names which of them go first (driver/nodes.py). `stats`
    says on standard error what happened, `stats_json` takes it as one JSON object. With `leave_text` no
    byte of any program's text is changed, without `fast_path` every EENTER and EEXIT traps. `aex_every` says
    how often threads are made to leave their enclave (run/aex_every.py). At the port `gdb`, gdb may debug the program. `isolation` is none or strict
    (run/isolation.py). `observer` is told of everything, if it is given, instead of one that is made of
    `trace`, `stats` and `stats_json`. `extraction` takes the enclaves as they are built.
    """
    nodes = nodes_of(driver)
    _require_policy(policy)
    features = _features(cpu)
    exits = _aex_every(aex_every, debugged=gdb is not None)
    if isolation not in ("none", "strict"):
        raise SoftsgxError(f"--isolation {isolation}: wanted is none or strict")
    require_host()
    program = find_program(argv[0])
    require_servable(program)
    ignored = ignored_signals()
    # The kernel keeps no wait status of a child for whoever ignores SIGCHLD.
    signals.set_default(n.SIGCHLD)
    limits = raise_limits()
    vdso = VdsoImage.load()
    xcr0 = vdso.native_xgetbv(0)
    report = stats or stats_json is not None
    if observer is None:
        observer = Observer(trace, command=argv, report=report)
    model = Model(epc, xcr0, xsave_sizes(vdso, xcr0), vdso.native_cpuid(0)[0], features)
    vdso.answer_cpuid_by(model.cpuid_rows)
    state.prepare()
    default = _default_store(backing)
    stub = _gdb_stub(gdb, observer, vdso, xcr0) if gdb is not None else None

    def platform() -> "Platform":
        from softsgx.driver.platform import Platform  # noqa: PLC0415  (see Supervisor)

        made = Platform(model=model, state=state, driver=driver, backing=default, policy=policy)
        if extraction is not None:
            extraction.openers = observer.openers
            made.driver.builds = extraction
        return made

    slow = {
        "--no-fast-path": not fast_path,
        "--trace": trace is not None,
        "--gdb": gdb is not None,
        "--isolation strict": isolation == "strict",
        "--aex-every by instructions": exits is not None and bool(exits.instructions),
    }
    options = Options(
        xcr0,
        aex_every=exits,
        strict=isolation == "strict",
        leave_text=leave_text,
        slow=", ".join(option for option, given in slow.items() if given),
    )
    mask = block_signals()
    # The terminal's own signals go to the program; the supervisor ends when it does.
    signals.ignore(*TERMINAL)
    try:
        pid, listener = spawn(program, argv, Inherited(mask, ignored, limits))
    except EndedEarly as ended:
        return ended.status
    # A tenth of a start's time, in which the kernel carries out the program's exec.
    from softsgx.run.supervisor import Supervisor  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    supervisor = Supervisor(
        platform,
        model,
        vdso,
        observer,
        options,
        nodes,
        kill_on_exit=kill_on_exit,
        detours=trace is None and not report,
        gdb=stub,
    )
    status = supervisor.follow(pid, listener, mask, ignored)
    if report:
        _report(observer, model, stats, stats_json)
    return status


def _report(observer: Observer, model: Model, stats: bool, stats_json: "IO[str] | None") -> None:
    from softsgx.run.report import Report  # noqa: PLC0415  (few runs are asked)

    report = Report(observer, model.epc_bytes // n.PAGE_SIZE)
    if stats:
        sys.stderr.write(report.as_text())
    if stats_json is not None:
        from json import dumps  # noqa: PLC0415

        try:
            with stats_json:
                stats_json.write(dumps(report.as_object(), indent=2) + "\n")
        except OSError as error:
            # The status to come is the program's own.
            observer.warn(f"--stats-json {stats_json.name}: {error.strerror}")


def exit_like(status: int) -> "NoReturn":
    """End with the exit code of a wait status, or by the signal that the program died of."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Its reader has left.
            continue
    if os.WIFEXITED(status):
        # Nothing is left to be cleaned up, and the interpreter's own end takes 8 ms.
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    # The program has left its core dump; a second one, of the supervisor, would only mislead.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signals.set_default(number)
    signals.unblock(signals.bits(number))
    os.kill(os.getpid(), number)
    os._exit(128 + number)
