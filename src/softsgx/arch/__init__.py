# SPDX-License-Identifier: Apache-2.0
"""What the manual and the kernel's headers print: records by offset, numbers, bits.  No state, no I/O."""
