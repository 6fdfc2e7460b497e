# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests."""

from hypothesis import settings

# A loaded machine makes a single example slow, which says nothing about the code.
settings.register_profile("softsgx", deadline=None)
settings.load_profile("softsgx")
