# SPDX-License-Identifier: Apache-2.0
"""The SGX processor: EPC, leaves, transitions, keys, CPUID.  It knows nothing of Linux."""
