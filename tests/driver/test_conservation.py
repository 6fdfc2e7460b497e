# SPDX-License-Identifier: Apache-2.0
"""Whatever is called in whatever order: no EPC page is lost, and the page array says what the EPCM says."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from softsgx.arch.ioctl import (
    SGX_IOC_ENCLAVE_ADD_PAGES,
    SGX_IOC_ENCLAVE_CREATE,
    SGX_IOC_ENCLAVE_INIT,
    SGX_PAGE_MEASURE,
    EnclaveAddPages,
    EnclaveCreate,
    EnclaveInit,
)
from softsgx.arch.secinfo import SECINFO_R, SECINFO_REG, SECINFO_TCS, SECINFO_W
from softsgx.arch.structures import Secinfo, Secs, Tcs
from softsgx.cpu.identity import Identity
from softsgx.cpu.model import Model
from softsgx.cpu.processor import Processor
from softsgx.driver.driver import Driver, EnclaveFile
from softsgx.driver.task import LocalTask
from softsgx.errors import DriverError

PAGE = 4096
EPC_PAGES = 40
BASE = 0x2000_0000

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.integers(0, 1), st.sampled_from([0x20000, 0x3000])),
        st.tuples(
            st.just("add"),
            st.integers(0, 1),
            st.tuples(st.integers(0, 34), st.integers(1, 34), st.integers(0, 3), st.booleans()),
        ),
        st.tuples(st.just("init"), st.integers(0, 1), st.none()),
        st.tuples(st.just("release"), st.integers(0, 1), st.none()),
    ),
    max_size=25,
)


class Machine:
    """Two enclave files on a small EPC, and a source whose tail is a hole or whose TCSs are bad."""

    def __init__(self) -> None:
        self.processor = Processor(Model(EPC_PAGES * PAGE), Identity.fresh(), EPC_PAGES)
        self.driver = Driver(self.processor)
        self.task = LocalTask()
        self.files = [self.driver.open_enclave(), self.driver.open_enclave()]
        self.added = 0
        place = self.task.memory.place
        tcs = Tcs.blank().encode()
        self.sources = [
            (place(bytes(40 * PAGE)), SECINFO_REG | SECINFO_R | SECINFO_W),
            (place(bytes(5 * PAGE)), SECINFO_REG | SECINFO_R),
            (place(tcs * 3 + b"\xff" * PAGE), SECINFO_TCS),
            (0xDEAD_0000, SECINFO_REG | SECINFO_R),
        ]

    def step(self, what: str, number: int, how: Any) -> None:
        place = self.task.memory.place
        if what == "release":
            assert self.files[number].release() == 0
            self.files[number] = self.driver.open_enclave()
        elif what == "create":
            secs = Secs.blank().replace(
                size=how, baseaddr=BASE, ssaframesize=1, attributes=4, xfrm=3
            )
            argument = EnclaveCreate(src=place(secs.encode()))
            self.ioctl(number, SGX_IOC_ENCLAVE_CREATE, place(argument.encode()))
        elif what == "init":
            argument = EnclaveInit(sigstruct=place(bytes(1808)))
            self.ioctl(number, SGX_IOC_ENCLAVE_INIT, place(argument.encode()))
        else:
            self.add(number, *how)

    def add(self, number: int, page: int, pages: int, source: int, measure: bool) -> None:
        file, (src, flags) = self.files[number], self.sources[source]
        argument = EnclaveAddPages(
            src=src,
            offset=page * PAGE,
            length=pages * PAGE,
            secinfo=self.task.memory.place(Secinfo(flags=flags).encode()),
            flags=SGX_PAGE_MEASURE if measure else 0,
            count=0,
        )
        before = len(file.encl.page_array)
        arg = self.task.memory.place(argument.encode())
        succeeded = self.ioctl(number, SGX_IOC_ENCLAVE_ADD_PAGES, arg)
        count = EnclaveAddPages.decode(self.task.memory.read(arg, 48)).count
        assert len(file.encl.page_array) - before == count // PAGE
        assert count == argument.length or not succeeded
        self.added += count // PAGE

    def ioctl(self, number: int, request: int, arg: int) -> bool:
        try:
            return self.files[number].ioctl(request, arg, self.task) == 0
        except DriverError:
            return False

    def check(self) -> None:
        epc = self.processor.epc
        epc.check()
        used = 0
        for encl in (file.encl for file in self.files):
            children = {}
            for run in encl.page_array.runs():
                for index, page in enumerate(run.epc):
                    children[page] = (run.first + index) * PAGE
            for page, address in children.items():
                assert (epc.owners[page], epc.addresses[page]) == (encl.secs_page, address)
            if encl.secs_page is not None:
                assert self.processor.enclaves[encl.secs_page].children == len(children)
                assert encl.page_cnt == 1 + len(children)
            assert len(encl.va_pages) == (encl.page_cnt + 511) // 512
            resident = len(children) + len(encl.va_pages) + (encl.secs_page is not None)
            assert encl.stats.resident == resident
            used += resident
        assert sum(epc.valid(page) for page in range(EPC_PAGES)) == used
        assert self.driver.epc.free_pages == EPC_PAGES - used
        total = self.driver.stats.total()
        assert (total.resident, total.added) == (used, self.added)
        assert set(self.driver.stats.live) == {file.encl for file in self.files}

    def end(self) -> None:
        for file in self.files:
            file.release()
        assert self.driver.stats.live == {}
        assert self.driver.stats.ended.resident == 0
        assert self.driver.epc.allocate_run(EPC_PAGES) == (0, EPC_PAGES)


@settings(max_examples=60)
@given(STEPS)
def test_no_page_is_lost_and_the_books_agree(steps: list[tuple[str, int, Any]]) -> None:
    machine = Machine()
    try:
        for step in steps:
            machine.step(*step)
            machine.check()
    finally:
        machine.end()


def test_a_file_that_was_never_created_has_no_secs() -> None:
    machine = Machine()
    machine.step("create", 1, 0x20000)
    file: EnclaveFile = machine.files[0]
    assert file.encl.secs_page is None
    assert file.release() == 0
    assert machine.files[1].encl.secs_page is not None
    machine.files[0] = machine.driver.open_enclave()
    machine.check()
    machine.end()
