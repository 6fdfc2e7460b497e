#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The conformance run: the Linux kernel's own SGX selftests under `softsgx run`.
# Exit status: 0 all that is expected passes, 1 something regressed, 77 it could not be tried.
set -eu
exec python3 "$(dirname "$0")/selftests.py" "$@"
