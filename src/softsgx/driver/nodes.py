# SPDX-License-Identifier: Apache-2.0
"""The device nodes of each driver; apart from the drivers, because every start of a run needs them."""

import errno

from softsgx.errors import SoftsgxError

# The drivers by name: see docs/drivers.md.
MAINLINE = "mainline"
DCAP = "dcap"
DCAP_1_5 = "dcap-1.5"
V16 = "v16"
ISGX = "isgx"

# The kinds of node.  An open file of ENCLAVE is one enclave; one of a legacy node, whose kind is its
# driver's name, serves those of all processes, each found by its address.
ENCLAVE = "enclave"
PROVISION = "provision"
LEGACY = (V16, ISGX, DCAP_1_5)


class Nodes:
    """The nodes of one driver.

    ``paths`` gives the kind of node behind a path, ``links`` what readlink says of those that udev makes
    as symbolic links, ``names`` the path of each kind that is none.  ``absent`` gives the errno of a path
    that is another driver's: there is no such node, even on a host that has one.
    """

    __slots__ = ("absent", "links", "names", "paths")

    def __init__(self, paths: dict[str, str], links: dict[str, str] | None = None) -> None:
        self.paths = paths
        self.links = {} if links is None else links
        self.names = {kind: path for path, kind in paths.items() if path not in self.links}
        self.absent: dict[str, int] = {}


DRIVERS = {
    MAINLINE: Nodes(
        {
            "/dev/sgx_enclave": ENCLAVE,
            "/dev/sgx_provision": PROVISION,
            "/dev/sgx/enclave": ENCLAVE,
            "/dev/sgx/provision": PROVISION,
        },
        {
            "/dev/sgx/enclave": "../sgx_enclave",
            "/dev/sgx/provision": "../sgx_provision",
        },
    ),
    DCAP: Nodes({"/dev/sgx/enclave": ENCLAVE, "/dev/sgx/provision": PROVISION}),
    DCAP_1_5: Nodes({"/dev/sgx": DCAP_1_5, "/dev/sgx_prv": PROVISION}),
    V16: Nodes({"/dev/sgx": V16}),
    ISGX: Nodes({"/dev/isgx": ISGX}),
}


def nodes_of(driver: str) -> Nodes:
    """Return the nodes of a driver by its name; SoftsgxError says which names there are."""
    nodes = DRIVERS.get(driver)
    if nodes is None:
        versions = ""
        if driver.startswith(DCAP):
            versions = (
                "; DCAP up to 1.3 is v16, 1.4 is dcap-1.5, 1.6 to 1.9 are dcap, later ones mainline"
            )
        raise SoftsgxError(f"--driver {driver}: wanted is one of {', '.join(DRIVERS)}{versions}")
    # A directory of nodes is none itself: it is left to the kernel.
    others = {path for other in DRIVERS.values() for path in other.paths} - nodes.paths.keys()
    directories = {path.rpartition("/")[0] for path in nodes.paths}
    nodes.absent = {
        path: errno.ENOTDIR if path.rpartition("/")[0] in nodes.paths else errno.ENOENT
        for path in others - directories
    }
    return nodes
