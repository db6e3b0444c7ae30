"""Detectors that PyOD has fitted, as detectors of this library: the same error for the same point, ready to be pruned.

The error is PyOD's `decision_function`, to the accuracy of float32: values are taken as float32, so a sensor whose mean
is many times its deviation loses what float32 can not hold. Nothing is smoothed, nothing is cut. PyOD's `threshold_` is
an error; the score there is -log10(contamination) of the points it is calibrated on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from detectors.errors import InvalidInputError
from detectors.training.calibrate import TAIL_POINTS, Calibration, Scaler
from detectors.training.error_forms import ErrorForm, Euclidean, FloatArray, Mahalanobis, Summed
from detectors.training.fit import seeded
from detectors.training.fitted import ErrorOptions, Fitted, View
from detectors.training.networks import Autoencoder, IsolationForest, Network, WindowedLSTM
from detectors.training.stretches import Stretches

Float64 = NDArray[np.float64]
AS_IT_IS = ErrorOptions(half_life=0.0)


class Imported(NamedTuple):
    """What was made of a PyOD detector.

    Attributes:
        network: With its weights.
        scaler: PyOD's own preprocessing, if it has one.
        form: From the residual to PyOD's score.
        scores: `decision_scores_` without rows that PyOD has filled.
    """

    network: Network
    scaler: Scaler
    form: ErrorForm
    scores: Float64


def import_pyod(detector: Any, features: Sequence[str] | None = None, normal: ArrayLike | None = None) -> Fitted:
    """Takes over a fitted PyOD detector.

    `AutoEncoder` and `VAE` judge a row by itself; their columns become the features (a window of rows that was laid out
    as columns counts as one point). `LSTMAD` predicts a row from the `window_size` rows before it and costs that many
    steps a point. The units of an `IForest` are its trees.

    A `VAE` draws its latent at random when it scores, so its scores differ from call to call. Here the latent is its
    mean: `model.decode(mu)`. Give `normal` for it, lest the scale of scores be that of the noisy ones.

    Args:
        detector: An `AutoEncoder`, `VAE`, `LSTMAD` or `IForest`. It stays as it is and shares nothing with the result.
        features: Names of the columns; None: x0, x1, ...
        normal: Rows [N, F] of normal points, in the order of time, that the score is calibrated on. None: on the
            scores of PyOD's own training rows, which PyOD keeps; what it learnt by heart then looks too good. An LSTMAD
            is also put into units of their deviation, without changing what it says: fine-tuning needs that where
            sensors differ in size.

    Raises:
        InvalidInputError: the detector is not fitted or not one of these, has a part that no network here has, or
            features or rows do not fit it.
    """
    names = (f"{known.__module__}.{known.__qualname__}" for known in type(detector).__mro__)
    read = next((READERS[name] for name in names if name in READERS), None)
    if read is None:
        raise InvalidInputError(
            f"a {type(detector).__name__} can not be imported.",
            field="detector",
            hint=f"Give a fitted {SUPPORTED} of PyOD, the object itself.",
        )
    if getattr(detector, "decision_scores_", None) is None:
        raise InvalidInputError(
            f"this {type(detector).__name__} is not fitted.", field="detector", hint="Call its `fit` first."
        )
    rows = None if normal is None else _rows(normal)
    with seeded(0), torch.no_grad():
        network, scaler, form, scores = read(detector, rows)
    n_features = network.n_features
    named = tuple(f"x{i}" for i in range(n_features)) if features is None else tuple(features)
    if len(named) != n_features:
        raise InvalidInputError(f"{len(named)} names for {n_features} columns.", field="features")
    fitted = Fitted(network, named, scaler, AS_IT_IS, (View(form, Calibration.fit(scores)),))
    if rows is None:
        return fitted
    if rows.shape[1] != n_features:
        raise InvalidInputError(f"rows have {rows.shape[1]} values for {n_features} columns.", field="normal")
    data = Stretches.of([rows]).longer_than(fitted.warm_up_points)
    data.require(fitted.warm_up_points + TAIL_POINTS, "the scale of a score")
    errors = fitted.errors(data)
    return replace(fitted, views=(View(form, Calibration.fit(errors)),))


def _autoencoder(detector: Any, _rows: FloatArray | None) -> Imported:
    """The last layer of the encoder is the bottleneck; it has an activation."""
    encoder, decoder = list(detector.model.encoder), list(detector.model.decoder)
    *hidden, output = [*encoder, *decoder]
    names = [*_numbered("encoder", encoder[:-1]), "bottleneck", *_numbered("decoder", decoder[:-1])]
    layers = [_folded(block) for block in hidden] + [_affine(output)]
    return _dense(detector, names, layers, _activation(hidden), active_bottleneck=True)


def _variational(detector: Any, _rows: FloatArray | None) -> Imported:
    """The layer that gives the mean of the latent is the bottleneck."""
    model = detector.model
    encoder, (*decoder, output) = list(model.encoder), list(model.decoder)
    if not isinstance(output.activation, nn.Identity):
        raise InvalidInputError(
            f"its output has the activation {_named(output)}.",
            field="detector.output_activation_name",
            hint="Only `identity` can be imported.",
        )
    names = [*_numbered("encoder", encoder), "bottleneck", *_numbered("decoder", decoder)]
    layers = [*map(_folded, encoder), _affine(model.encoder_mu), *map(_folded, [*decoder, output])]
    return _dense(detector, names, layers, _activation([*encoder, *decoder]), active_bottleneck=False)


def _dense(
    detector: Any,
    names: Iterable[str],
    layers: Sequence[tuple[Float64, Float64]],
    activation: str,
    *,
    active_bottleneck: bool,
) -> Imported:
    n_features = layers[0][0].shape[1]
    widths = {name: len(bias) for name, (_, bias) in zip(names, layers[:-1], strict=True)}
    network = Autoencoder(n_features, 1, widths, activation=activation, active_bottleneck=active_bottleneck)
    _fill(network, chain.from_iterable(layers))
    scaler = Scaler.identity(n_features)
    if detector.preprocessing:
        epsilon = 1e-8  # of pyod.utils.torch_utility.TorchDataset
        scale = np.asarray(detector.X_std, np.float64) + epsilon
        scaler = Scaler(np.asarray(detector.X_mean, np.float32), scale.astype(np.float32), None)
    return Imported(network, scaler, Euclidean(n_features), np.asarray(detector.decision_scores_, np.float64))


def _lstm(detector: Any, rows: FloatArray | None) -> Imported:
    """PyOD's LSTMAD takes values as they are; where rows tell their size, the first and the last weights absorb it."""
    weights = [_array(parameter) for parameter in detector.model_.parameters()]  # four a layer, then those of the head
    scaler = Scaler.identity(int(detector.n_channels_))
    if rows is not None and rows.shape[1] == detector.n_channels_:
        scaler = replace(Scaler.fit(rows), clip=None)
    center, scale = scaler.center.astype(np.float64), scaler.scale.astype(np.float64)
    weights[2] = weights[2] + weights[0] @ center
    weights[0] = weights[0] * scale
    weights[-2], weights[-1] = weights[-2] / scale[:, None], (weights[-1] - center) / scale
    widths = tuple(weights[i].shape[1] for i in range(1, len(weights) - 2, 4))
    network = WindowedLSTM(len(scale), widths, int(detector.window_size))
    _fill(network, weights)
    mean = np.asarray(detector.error_mu_, np.float64) / scale
    precision = np.asarray(detector.error_cov_inv_, np.float64) * np.outer(scale, scale)
    form = Mahalanobis(mean.astype(np.float32), precision.astype(np.float32))
    return Imported(network, scaler, form, np.asarray(detector.decision_scores_, np.float64)[network.lookback :])


def _forest(detector: Any, _rows: FloatArray | None) -> Imported:
    """PyOD's score is that of the paper, moved by scikit-learn's `offset_`."""
    n_features = int(detector.n_features_in_)
    network = IsolationForest(n_features, 1, len(detector.estimators_), samples=int(detector.max_samples_))
    network.take_over(detector)
    form = Summed(n_features, float(detector.offset_))
    return Imported(network, Scaler.identity(n_features), form, np.asarray(detector.decision_scores_, np.float64))


READERS: Mapping[str, Callable[[Any, FloatArray | None], Imported]] = {
    "pyod.models.auto_encoder.AutoEncoder": _autoencoder,
    "pyod.models.vae.VAE": _variational,
    "pyod.models.ts_lstm.LSTMAD": _lstm,
    "pyod.models.iforest.IForest": _forest,
}
SUPPORTED = "AutoEncoder, VAE, LSTMAD or IForest"
ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}


def _rows(normal: ArrayLike) -> FloatArray:
    rows = np.asarray(normal, np.float32)
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2:
        raise InvalidInputError(f"must be rows [N, F], not an array of {rows.ndim} axes.", field="normal")
    return rows


def _numbered(side: str, blocks: Sequence[nn.Module]) -> list[str]:
    return [f"{side}{i}" for i in range(len(blocks))]


def _activation(blocks: Iterable[Any]) -> str:
    """The one activation of the hidden layers."""
    found = {type(block.activation): _named(block) for block in blocks}
    (kind, name), *more = found.items()
    if kind not in ACTIVATIONS or more:
        raise InvalidInputError(
            f"its hidden layers have the activation {name}.",
            field="detector.hidden_activation_name",
            hint=f"Only {', '.join(ACTIVATIONS.values())} can be imported.",
        )
    return ACTIVATIONS[kind]


def _named(block: Any) -> str:
    return type(block.activation).__name__


def _folded(block: Any) -> tuple[Float64, Float64]:
    """Weight and bias of a PyOD `LinearBlock` as it scores: batch norm, which comes before the activation, included."""
    weight, bias = _affine(block.linear)
    if not block.batch_norm:
        return weight, bias
    norm = block.bn
    scale = _array(norm.weight) / np.sqrt(_array(norm.running_var) + norm.eps)
    return weight * scale[:, None], (bias - _array(norm.running_mean)) * scale + _array(norm.bias)


def _affine(layer: Any) -> tuple[Float64, Float64]:
    return _array(layer.weight), _array(layer.bias)


def _array(tensor: torch.Tensor) -> Float64:
    return tensor.detach().cpu().double().numpy()


def _fill(network: Network, weights: Iterable[Float64]) -> None:
    """Gives a network's parameters, in their order, these values."""
    for parameter, value in zip(network.parameters(), weights, strict=True):
        parameter.copy_(torch.from_numpy(value))
