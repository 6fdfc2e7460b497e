# SPDX-License-Identifier: Apache-2.0
"""`python -m softsgx`."""

import sys

from softsgx.cli import main

sys.exit(main())
