# SPDX-License-Identifier: Apache-2.0
"""Enclaves at rest: measure, read, sign and verify. No device, no processor state."""
