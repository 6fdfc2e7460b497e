# SPDX-License-Identifier: Apache-2.0
"""The names of the device nodes; apart from the driver, because every start of a run needs them."""

ENCLAVE = "enclave"
PROVISION = "provision"

# Path to kind; every other path below /dev that has to do with SGX does not exist.
NODES = {
    "/dev/sgx_enclave": ENCLAVE,
    "/dev/sgx_provision": PROVISION,
    "/dev/sgx/enclave": ENCLAVE,
    "/dev/sgx/provision": PROVISION,
}
# Those that udev makes as symbolic links, with readlink's answer.
LINKS = {
    "/dev/sgx/enclave": "../sgx_enclave",
    "/dev/sgx/provision": "../sgx_provision",
}
