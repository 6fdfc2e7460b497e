# SPDX-License-Identifier: Apache-2.0
"""Linux's side of SGX: device nodes, ioctls, the enclave object.  Every errno is born in this room."""
