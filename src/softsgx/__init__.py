# SPDX-License-Identifier: Apache-2.0
"""The Intel SGX driver and processor in user space: never for secrets, for development and tests."""

__version__ = "0.1.0"
