"""The networks a detector can have, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from detectors.errors import InvalidInputError
from detectors.training.networks.autoencoder import Autoencoder
from detectors.training.networks.base import Group, Lever, Network, Pass, Slice, WindowNetwork
from detectors.training.networks.conv_autoencoder import ConvAutoencoder
from detectors.training.networks.ensemble import SINGLE, Ensemble
from detectors.training.networks.gru import GRU
from detectors.training.networks.isolation_forest import IsolationForest
from detectors.training.networks.lstm import LSTM
from detectors.training.networks.lstm_autoencoder import LSTMAutoencoder
from detectors.training.networks.variational_autoencoder import VariationalAutoencoder
from detectors.training.networks.windowed_lstm import WindowedLSTM

SINGLE.update(
    {
        network.kind: network
        for network in (
            LSTM,
            Autoencoder,
            GRU,
            ConvAutoencoder,
            LSTMAutoencoder,
            VariationalAutoencoder,
            IsolationForest,
        )
    }
)
KINDS: Mapping[str, type[Network]] = {**SINGLE, Ensemble.kind: Ensemble}
"""What users may choose."""
IMPORTED: Mapping[str, type[Network]] = {WindowedLSTM.kind: WindowedLSTM}
"""What only detectors that were trained elsewhere have (`detectors.training.import_pyod`)."""


def network_class(kind: str) -> type[Network]:
    """The class of a network kind.

    Raises:
        InvalidInputError: there is none of that name.
    """
    known = {**KINDS, **IMPORTED}
    if kind not in known:
        raise InvalidInputError(
            f"{kind!r} is not a network.", field="network", hint=f"Choose one of: {', '.join(KINDS)}."
        )
    return known[kind]


__all__ = [
    "GRU",
    "IMPORTED",
    "KINDS",
    "LSTM",
    "Autoencoder",
    "ConvAutoencoder",
    "Ensemble",
    "Group",
    "IsolationForest",
    "LSTMAutoencoder",
    "Lever",
    "Network",
    "Pass",
    "Slice",
    "VariationalAutoencoder",
    "WindowNetwork",
    "WindowedLSTM",
    "network_class",
]
