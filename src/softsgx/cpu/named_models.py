# SPDX-License-Identifier: Apache-2.0
"""The processors that `--cpu` picks: a name, then features that are added to it or taken away.

Owns the names. `sgx1` is a processor with SGX1 and nothing else, as Intel's of 2015 to 2018 are; `sgx2` has what
came with SGX2 on the servers of 2021; `default` is everything that is built and that something here can use.
"""

from softsgx.cpu.model import DEFAULT_FEATURES, FEATURES
from softsgx.errors import SoftsgxError

MODELS = {
    "default": DEFAULT_FEATURES,
    "sgx1": frozenset[str](),
    "sgx2": frozenset({"sgx2", "exinfo", "kss", "oversub"}),
}


def features_of(text: str) -> frozenset[str]:
    """Read what `--cpu` was given, as ``sgx1,+kss`` or ``default,-aex-notify``; SoftsgxError."""
    name, *changes = text.split(",")
    if name[:1] in ("+", "-"):
        name, changes = "default", [name, *changes]
    if name not in MODELS:
        raise SoftsgxError(
            f"--cpu {text}: {name!r} is no model; wanted is one of {', '.join(MODELS)}"
        )
    features = set(MODELS[name])
    for change in changes:
        feature = change.lstrip("+-")
        if change[:1] not in ("+", "-") or change[1:] != feature or feature not in FEATURES:
            raise SoftsgxError(
                f"--cpu {text}: {change!r} is no change of a feature; wanted is + or - and one of "
                f"{', '.join(FEATURES)}"
            )
        if change[0] == "+":
            features.add(feature)
        else:
            features.discard(feature)
    return frozenset(features)
