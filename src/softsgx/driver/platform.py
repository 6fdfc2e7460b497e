# SPDX-License-Identifier: Apache-2.0
"""One platform: a processor with its EPC, and the driver over it.  The entrance of the Python API.

with Platform(epc=64 << 20, state=State.temporary()) as platform:
    enclave = platform.open_enclave()
    enclave.create(Secs.blank().replace(size=0x10000, ssaframesize=1, attributes=4, xfrm=3).encode())
    enclave.add_pages(0, code, SECINFO_REG | SECINFO_R | SECINFO_X)
    enclave.init(sigstruct)
"""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from softsgx.arch.secinfo import PAGE_SIZE
from softsgx.cpu.model import Model
from softsgx.cpu.processor import Processor
from softsgx.driver.driver import Driver
from softsgx.driver.local import LocalEnclave
from softsgx.driver.nodes import MAINLINE, nodes_of
from softsgx.driver.policy import Policy, policy_named
from softsgx.driver.state import State
from softsgx.driver.stores import DefaultStore

if TYPE_CHECKING:
    from softsgx.driver.local_legacy import MappedEnclave

_XCR0_LEGACY = 0x7


class Platform:
    """A processor and its driver: ``.processor`` and ``.driver``.

    ``epc`` is the EPC's size in bytes, a multiple of 4096; ``model`` is what the processor claims to be,
    made of ``epc`` and ``xcr0`` by default, else its EPC size counts; ``state`` is where its identity
    lives, the user's own by default; ``backing`` makes the stores of enclaves whose program chooses none,
    by default anonymous files; ``driver`` is the name of a driver (driver/nodes.py); ``policy`` says which
    page gives way when the EPC is full, by its name or as an object (driver/policy.py); without ``queue``
    the ADD_PAGE of the older drivers adds by itself (driver/add_page_queue.py).
    """

    def __init__(
        self,
        *,
        epc: int = 128 << 20,
        model: Model | None = None,
        state: State | None = None,
        xcr0: int = _XCR0_LEGACY,
        backing: DefaultStore | None = None,
        driver: str = MAINLINE,
        policy: str | Policy = "2q",
        queue: bool = True,
    ) -> None:
        nodes_of(driver)  # which says what is wrong with the name
        model = Model(epc, xcr0) if model is None else model
        self.state = State() if state is None else state
        self.processor = Processor(model, self.state.identity(), model.epc_bytes // PAGE_SIZE)
        if isinstance(policy, str):
            policy = policy_named(policy, self.processor.epc.pages)
        self.driver = Driver(self.processor, backing, driver, policy, queue=queue)
        self._enclaves: list[LocalEnclave | MappedEnclave] = []

    def open_enclave(self) -> LocalEnclave:
        """Open the node of enclaves for the Python process; ``close`` of the platform ends what is left open."""
        enclave = LocalEnclave(self.driver)
        self._enclaves.append(enclave)
        return enclave

    def map_enclave(self, size: int, base: int | None = None) -> "MappedEnclave":
        """Map the node of v16, isgx or DCAP 1.5 for one enclave, at a base or where there is room."""
        from softsgx.driver.local_legacy import MappedEnclave  # noqa: PLC0415  (few want it)

        enclave = MappedEnclave(self.driver, size, base)
        self._enclaves.append(enclave)
        return enclave

    def close(self) -> None:
        """End the enclaves opened here and delete a temporary state."""
        while self._enclaves:
            self._enclaves.pop().close()
        self.driver.close()
        self.state.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
