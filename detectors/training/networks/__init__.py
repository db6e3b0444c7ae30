"""The networks a detector can have, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from detectors.errors import InvalidInputError
from detectors.training.networks.autoencoder import Autoencoder
from detectors.training.networks.base import Group, Network, Pass, Slice
from detectors.training.networks.lstm import LSTM

KINDS: Mapping[str, type[Network]] = {network.kind: network for network in (LSTM, Autoencoder)}


def network_class(kind: str) -> type[Network]:
    """The class of a network kind.

    Raises:
        InvalidInputError: there is none of that name.
    """
    if kind not in KINDS:
        raise InvalidInputError(
            f"{kind!r} is not a network.", field="network", hint=f"Choose one of: {', '.join(KINDS)}."
        )
    return KINDS[kind]


__all__ = ["KINDS", "LSTM", "Autoencoder", "Group", "Network", "Pass", "Slice", "network_class"]
