# SPDX-License-Identifier: Apache-2.0
"""The names of processors, and the changes of their features."""

import pytest

from softsgx.cpu.model import DEFAULT_FEATURES, FEATURES, Model
from softsgx.cpu.named_models import MODELS, features_of
from softsgx.errors import SoftsgxError


def test_a_name_alone_is_its_features() -> None:
    assert features_of("sgx1") == frozenset()
    assert features_of("sgx2") == {"sgx2", "exinfo", "kss", "oversub"}
    assert features_of("default") == DEFAULT_FEATURES


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("sgx1,+kss", {"kss"}),
        ("sgx1,+kss,+exinfo,-kss", {"exinfo"}),
        ("sgx1,-kss", set()),
        ("-kss", DEFAULT_FEATURES - {"kss"}),
        ("+kss,-exinfo", DEFAULT_FEATURES - {"exinfo"}),
        ("default,-aex-notify", DEFAULT_FEATURES - {"aex-notify"}),
    ],
)
def test_changes_are_made_in_order(text: str, features: set[str]) -> None:
    assert features_of(text) == features
    assert Model(features=features_of(text)).features == features


@pytest.mark.parametrize(
    "text", ["", "sgx3", "SGX1", "sgx1,kss", "sgx1,", "sgx1,+", "sgx1,++kss", "sgx1,+-kss", "+sgx1"]
)
def test_what_is_no_model_is_refused_with_what_there_is(text: str) -> None:
    with pytest.raises(SoftsgxError, match=r"^--cpu .*wanted is") as refused:
        features_of(text)
    message = str(refused.value)
    assert all(name in message for name in MODELS) or all(name in message for name in FEATURES)


def test_every_model_is_made_of_known_features() -> None:
    assert all(features <= set(FEATURES) for features in MODELS.values())
