# SPDX-License-Identifier: Apache-2.0
"""The enclave object of the drivers that do not know what a page was added with.

Owns what Encl owns.  These drivers keep no vm_max_prot: a mapping may ask for anything, and the EPCM alone
keeps a page from more than its SECINFO.  So each page gets what both the mapping and its SECINFO allow, and
an access beyond is the EPCM's page fault, not the driver's SIGBUS.
"""

from softsgx.driver.encl import Encl
from softsgx.driver.page_array import PageRun
from softsgx.driver.vma import PROT_READ, PROT_RWX, PROT_WRITE


class EpcmEncl(Encl):
    """An enclave whose mappings the EPCM judges, page by page."""

    # Of these drivers isgx could; here none does.
    augmented = False

    @staticmethod
    def page_prot(run: PageRun, prot: int) -> int:
        """Return what a VMA of protection ``prot`` gives of a page: what SECINFO allows, too."""
        # Page tables have no write without read.
        reads = PROT_READ if prot & PROT_WRITE else 0
        return (prot & PROT_RWX | reads) & run.vm_max_prot

    def watched_prot(self, run: PageRun, prot: int) -> int:
        """Return the same: SECINFO's permissions are those of the mapping."""
        return self.page_prot(run, prot)

    def load_page_in_vma(self, address: int, vma_prot: int, end: int = 0) -> str | None:  # noqa: ARG002 - any VMA will do
        """Answer a fault as Encl does, but once the enclave is initialized only, and in any VMA."""
        if not self.initialized:
            return f"the enclave is not initialized: nothing is mapped at {address:#x}"
        return super().load_page_in_vma(address, 0, end)
