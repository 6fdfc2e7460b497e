# SPDX-License-Identifier: Apache-2.0
"""Unmodified programs: the tracee, its filters, the synthetic vDSO, signals and AEX."""
