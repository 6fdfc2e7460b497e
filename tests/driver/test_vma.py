# SPDX-License-Identifier: Apache-2.0
import errno

import pytest

from softsgx.driver import vma
from softsgx.driver.vma import PROT_READ, PROT_WRITE
from softsgx.errors import DriverError

RW = PROT_READ | PROT_WRITE


@pytest.mark.parametrize("advice", [0, 1, 2, vma.MADV_DONTFORK, vma.MADV_DONTDUMP])
def test_advice_that_suits_a_device_is_passed_on(advice: int) -> None:
    assert vma.check_madvise(advice, RW) is True


@pytest.mark.parametrize("advice", [vma.MADV_WILLNEED, vma.MADV_MERGEABLE, vma.MADV_HUGEPAGE])
def test_advice_without_effect_on_a_device_is_granted_and_not_passed_on(advice: int) -> None:
    assert vma.check_madvise(advice, RW) is False


@pytest.mark.parametrize(
    ("advice", "prot", "number"),
    [
        (vma.MADV_DONTNEED, RW, errno.EINVAL),
        (vma.MADV_DONTNEED_LOCKED, RW, errno.EINVAL),
        (vma.MADV_FREE, RW, errno.EINVAL),
        (vma.MADV_COLD, RW, errno.EINVAL),
        (vma.MADV_PAGEOUT, RW, errno.EINVAL),
        (vma.MADV_POPULATE_READ, RW, errno.EINVAL),
        (vma.MADV_POPULATE_WRITE, RW, errno.EINVAL),
        (vma.MADV_COLLAPSE, RW, errno.EINVAL),
        (vma.MADV_DOFORK, RW, errno.EINVAL),
        (vma.MADV_DODUMP, RW, errno.EINVAL),
        (vma.MADV_WIPEONFORK, RW, errno.EINVAL),
        (vma.MADV_REMOVE, PROT_READ, errno.EACCES),
        (vma.MADV_REMOVE, RW, errno.ENODEV),
        (vma.MADV_HWPOISON, RW, errno.EPERM),
        (12345, RW, errno.EINVAL),
    ],
)
def test_advice_that_would_touch_the_pages_is_refused(advice: int, prot: int, number: int) -> None:
    with pytest.raises(DriverError) as caught:
        vma.check_madvise(advice, prot)
    assert caught.value.errno == number


def test_an_enclave_mapping_may_shrink() -> None:
    vma.check_mremap(0x4000, 0x4000, 0)
    vma.check_mremap(0x4000, 0x1000, 1)


@pytest.mark.parametrize(
    ("old", "new", "flags", "number"),
    [
        (0x4000, 0x5000, 0, errno.EFAULT),
        (0x4000, 0x5000, 1, errno.EFAULT),
        (0, 0x1000, 1, errno.EFAULT),
        (0x4000, 0x4000, 1 | vma.MREMAP_DONTUNMAP, errno.EINVAL),
        (0x4000, 0x4000, 1 | vma.MREMAP_FIXED, errno.EINVAL),
    ],
)
def test_an_enclave_mapping_neither_grows_nor_moves(
    old: int, new: int, flags: int, number: int
) -> None:
    with pytest.raises(DriverError) as caught:
        vma.check_mremap(old, new, flags)
    assert caught.value.errno == number
