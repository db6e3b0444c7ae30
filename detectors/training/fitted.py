"""A detector while it can still be trained: the network and the statistics around it, and what they make of points."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.errors import CorruptBundleError
from detectors.training.calibrate import Calibration, Scaler
from detectors.training.error_forms import FORMS, Aggregate, ErrorForm, FloatArray, Robust, Summed
from detectors.training.networks import Network, network_class
from detectors.training.stretches import Missing, Stretches, carried

SCALE_POINTS = 2000  # points whose residuals the error form is fitted to
EVALUATION_POINTS = 512  # points a forward pass when whole stretches are run through: bounds memory of window networks
SETTLE_HALF_LIVES = 4  # after so many the smoothed error has forgotten what it began with (to a sixteenth)


@dataclass(frozen=True)
class ErrorOptions:
    """How residuals become one error.

    Attributes:
        half_life: Points after which an error counts half; 0: no smoothing. What judges a point gets an exponentially
            weighted mean of its errors; what reconstructs a window weighs its positions so, and needs no state for it.
        aggregate: Over features: the mean, or the mean of the worst few.
        missing: `reject` points with missing values, or `carry` the last value on; a carried one contributes nothing.
    """

    half_life: float = 5.0
    aggregate: Aggregate = "worst"
    missing: Missing = "reject"


@dataclass(frozen=True)
class View:
    """The way of one member of the network from residual to score."""

    form: ErrorForm
    calibration: Calibration


class Trace(NamedTuple):
    """What a detector makes of points [B, T, F]; NaN where there is no score.

    Attributes:
        contribution: [B, T, F]; sums to the error.
        error: [B, T].
        score: [B, T].
    """

    contribution: FloatArray
    error: FloatArray
    score: FloatArray


@dataclass(frozen=True)
class Fitted:
    """Network, scales and calibration: everything that `detectors.training.export` draws into one graph.

    Attributes:
        network: One network, or an ensemble of several members.
        features: F names.
        scaler: Of the inputs.
        how: How residuals become one error.
        views: For each member of the network.
        combined: Calibrates the mean score of several members; None where there is one.
        trim: Share of normal points that may be anomalies: so much of the largest errors counts in no calibration.
    """

    network: Network
    features: tuple[str, ...]
    scaler: Scaler
    how: ErrorOptions
    views: tuple[View, ...]
    combined: Calibration | None = None
    trim: float = 0.0

    @property
    def warm_up_points(self) -> int:
        """Points of a series that must have gone before until a score means something."""
        return warm_up(self.network, self.how)

    def traces(self, raw: FloatArray) -> Iterator[Trace]:
        """Runs raw points [B, T, F] from a fresh state, in blocks of time."""
        for start, errors in member_errors(self.network, self.scaler, self.how, [v.form for v in self.views], raw):
            yield self._judged(errors, start)

    def trace(self, raw: FloatArray) -> Trace:
        """The same in one piece."""
        parts = list(self.traces(raw))
        return Trace(*(np.concatenate([part[i] for part in parts], axis=1) for i in range(3)))

    def errors(self, stretches: Stretches) -> FloatArray:
        """Errors [N] of all points in order; NaN where there is no score."""
        return np.concatenate([self.trace(part[None]).error[0] for part in stretches.parts])

    def scores(self, stretches: Stretches) -> FloatArray:
        """Scores [N] of all points in order; NaN where there is none."""
        return np.concatenate([self.trace(part[None]).score[0] for part in stretches.parts])

    def recalibrated(self, stretches: Stretches, seen: Stretches | None = None) -> Fitted:
        """The same network with error forms and calibrations fitted anew to normal points; see `calibrated`.

        Needed after every change of the network: a pruned detector with its parent's scale floods the user.
        """
        forms = [view.form for view in self.views]
        return calibrated(
            self.network, self.features, self.scaler, stretches, self.how, forms, seen=seen, trim=self.trim
        )

    def with_network(self, network: Network) -> Fitted:
        """The same statistics around another network (until it is recalibrated), which may see a shorter window."""
        views = tuple(
            replace(view, form=view.form.newest(member.positions))
            for view, member in zip(self.views, network.members.values(), strict=True)
        )
        return replace(self, network=network, views=views)

    def _judged(self, errors: Sequence[FloatArray], start: int) -> Trace:
        """Contributions [B, t, F] of each member -> the detector's trace."""
        if self.combined is None:
            contribution = errors[0]
            error = contribution.sum(axis=-1)
            score = self.views[0].calibration.score(error)
        else:
            shares = [
                _shared(each, view.calibration, len(errors)) for each, view in zip(errors, self.views, strict=True)
            ]
            contribution = np.sum(shares, axis=0, dtype=np.float32)
            error = contribution.sum(axis=-1)
            score = self.combined.score(error)
        unscored = ~scored(self.network, self.how, start, error.shape[1])
        contribution[:, unscored], error[:, unscored], score[:, unscored] = np.nan, np.nan, np.nan
        return Trace(contribution, error, score)


def warm_up(network: Network, how: ErrorOptions) -> int:
    """Points before the first score: the network's own, and until every smoothed error has settled."""
    settle = int(np.ceil(SETTLE_HALF_LIVES * how.half_life))
    smoothed = [member.blind_points + settle for member in network.members.values() if member.positions == 1]
    return max(network.warm_up_points, *smoothed, 0)


def kept(member: Network, how: ErrorOptions) -> float:
    """Share of the smoothed error that a step keeps, 2^(-stride / half_life); 0 where nothing is smoothed."""
    return 0.0 if how.half_life <= 0 or member.positions > 1 else float(0.5 ** (member.stride / how.half_life))


def scored(network: Network, how: ErrorOptions, start: int, length: int) -> NDArray[np.bool_]:
    """Which points of a fresh series have a score, from point `start` on: warm and due."""
    at = np.arange(start, start + length)
    return np.asarray((at >= warm_up(network, how)) & ((at + 1) % network.stride == 0))


def calibrated(
    network: Network,
    features: tuple[str, ...],
    scaler: Scaler,
    stretches: Stretches,
    how: ErrorOptions | None = None,
    forms: Sequence[ErrorForm] | None = None,
    *,
    seen: Stretches | None = None,
    trim: float = 0.0,
) -> Fitted:
    """Puts a trained network and statistics of normal points together.

    Args:
        network: Trained.
        features: F names.
        scaler: Of its inputs.
        stretches: Normal points it was not trained on.
        how: How residuals become one error.
        forms: Of each member, to be refitted; None: as suits the member.
        seen: Normal points it was trained on: they count where their errors are larger (see `Calibration.fit`).
        trim: Share of either that may be anomalies: the largest errors are left out.
    """
    how = how or ErrorOptions()
    members = list(network.members.values())
    blank = forms or [blank_form(member, how) for member in members]
    sampled = _sample(network, scaler, how, stretches)
    known = [form.refitted(rows, len(stretches)) for form, rows in zip(blank, sampled, strict=True)]

    def collected(points: Stretches) -> list[FloatArray]:
        """Contributions [N, F] of each member at all points that have a score."""
        kept_rows: list[list[FloatArray]] = [[np.empty((0, len(features)), np.float32)] for _ in members]
        for part in points.parts:
            for start, errors in member_errors(network, scaler, how, known, part[None]):
                counted = scored(network, how, start, errors[0].shape[1])
                for rows, each in zip(kept_rows, errors, strict=True):
                    rows.append(each[0, counted])
        return [np.concatenate(rows) for rows in kept_rows]

    ours, theirs = collected(stretches), collected(seen or Stretches(()))
    views = tuple(
        View(form, Calibration.fit(mine.sum(axis=-1), other.sum(axis=-1), trim))
        for form, mine, other in zip(known, ours, theirs, strict=True)
    )
    if len(views) == 1:
        return Fitted(network, features, scaler, how, views, trim=trim)

    def mean_score(contributions: list[FloatArray]) -> FloatArray:
        shares = [_shared(each, view.calibration, len(views)) for each, view in zip(contributions, views, strict=True)]
        return np.asarray(np.sum(shares, axis=0).sum(axis=-1), np.float32)

    combined = Calibration.fit(mean_score(ours), mean_score(theirs), trim)
    return Fitted(network, features, scaler, how, views, combined, trim)


def blank_form(member: Network, how: ErrorOptions) -> ErrorForm:
    """The error form of a network that was fitted here, before its statistics are."""
    if member.learned_by_gradient:
        return Robust.blank(
            member.n_features, positions=member.positions, half_life=how.half_life, aggregate=how.aggregate
        )
    return Summed(member.n_features)


def member_errors(
    network: Network, scaler: Scaler, how: ErrorOptions, forms: Sequence[ErrorForm], raw: FloatArray
) -> Iterator[tuple[int, list[FloatArray]]]:
    """Smoothed contributions of each member for raw points [B, T, F] from a fresh state.

    Yields:
        First point of the block, and [B, t, F] for each member.
    """
    points, known = prepared(scaler, raw, how)
    keep = [np.float32(kept(member, how)) for member in network.members.values()]
    smooth: list[FloatArray | None] = [None] * len(forms)
    for start, residuals in residual_blocks(network, points):
        out: list[FloatArray] = []
        for i, (form, residual) in enumerate(zip(forms, residuals, strict=True)):
            batch, length, positions = residual.shape[:3]
            mask = None if known is None else _windowed(known, start, length, positions)
            flat = residual.reshape(-1, *residual.shape[2:])
            each = form(flat, None if mask is None else mask.reshape(flat.shape)).reshape(batch, length, -1)
            if keep[i]:
                each, smooth[i] = _smoothed(each, smooth[i], keep[i], start, network.stride)
            out.append(each)
        yield start, out


def prepared(scaler: Scaler, raw: FloatArray, how: ErrorOptions) -> tuple[FloatArray, FloatArray | None]:
    """Scaled points [B, T, F], and which values were there (None: all): missing ones carry the last on."""
    points = scaler(raw)
    if how.missing == "reject" or np.isfinite(points).all():
        return points, None
    filled, known = carried(points)
    return np.nan_to_num(filled, nan=0.0), known.astype(np.float32)


def residual_blocks(network: Network, points: FloatArray) -> Iterator[tuple[int, list[FloatArray]]]:
    """Raw residuals of scaled points [B, T, F] from a fresh state: first point, and [B, t, R, F] for each member."""
    members = list(network.members.values())
    states = [member.fresh(len(points)) for member in members]
    span = max(1, EVALUATION_POINTS // len(points))
    for start in range(0, points.shape[1], span):
        chunk = torch.from_numpy(np.ascontiguousarray(points[:, start : start + span]))
        block = []
        for i, member in enumerate(members):
            with torch.no_grad():
                out = member(chunk, states[i])
            states[i] = out.state
            block.append(out.residual.numpy())
        yield start, block


def mean_residuals(network: Network, scaler: Scaler, stretches: Stretches) -> Iterator[FloatArray]:
    """Mean squared residual [t] of each point that may be trained on, in scaled units; members count alike."""
    for part in stretches.filled().parts:
        for start, blocks in residual_blocks(network, scaler(part)[None]):
            errors = np.mean([np.square(block[0]).mean(axis=(1, 2)) for block in blocks], axis=0)
            yield errors[max(network.warm_up_points - start, 0) :]


def _sample(network: Network, scaler: Scaler, how: ErrorOptions, stretches: Stretches) -> list[FloatArray]:
    """Residuals of each member, [N, F] over points and positions; enough to fit an error form to."""
    step = max(1, len(stretches) // SCALE_POINTS)  # windows of wide series would not fit into a device's memory
    collected: list[list[FloatArray]] = [[] for _ in network.members]
    for part in stretches.parts:
        points, _ = prepared(scaler, part[None], how)
        for start, blocks in residual_blocks(network, points):
            for rows, block in zip(collected, blocks, strict=True):
                rows.append(block[0, max(network.warm_up_points - start, 0) :: step].reshape(-1, block.shape[-1]))
    return [np.concatenate(rows) for rows in collected]


def _smoothed(
    each: FloatArray, before: FloatArray | None, keep: np.float32, start: int, stride: int
) -> tuple[FloatArray, FloatArray]:
    """Exponentially weighted over the due points of [B, t, F]; between them the last value stands."""
    now = np.zeros((len(each), each.shape[2]), np.float32) if before is None else before
    out = np.empty_like(each)
    for t in range(each.shape[1]):
        if (start + t + 1) % stride == 0:
            now = each[:, t] + (now - each[:, t]) * keep
        out[:, t] = now
    return out, now


def _windowed(known: FloatArray, start: int, length: int, positions: int) -> FloatArray:
    """Which values of the window that ends at each point were there: [B, t, R, F]; before the first point all were."""
    padded = np.pad(known, ((0, 0), (positions - 1, 0), (0, 0)), constant_values=1.0)
    windows = np.lib.stride_tricks.sliding_window_view(padded, positions, axis=1)  # [B, T, F, R]
    return windows[:, start : start + length].swapaxes(2, 3)


def _shared(contribution: FloatArray, calibration: Calibration, members: int) -> FloatArray:
    """A member's part of the mean score, spread over features as they contribute to its error."""
    error = contribution.sum(axis=-1, keepdims=True)
    share = contribution / np.maximum(error, np.float32(1e-12))
    return np.asarray(share * calibration.score(error) / np.float32(members), np.float32)


def mean_square(residual: Tensor) -> Tensor:
    """Squared residual by point, [B, T] of [B, T, R, F]: the training loss before trimming."""
    return residual.square().mean(dim=(2, 3))


def save(fitted: Fitted) -> bytes:
    """`weights.safetensors`: tensors of the network and of the statistics, sizes in the header. No code, no pickle."""
    tensors = {f"network.{name}": value.numpy() for name, value in fitted.network.state_dict().items()}
    tensors |= {"scaler.center": fitted.scaler.center, "scaler.scale": fitted.scaler.scale}
    for i, view in enumerate(fitted.views):
        tensors |= {f"view{i}.form.{name}": np.asarray(value) for name, value in view.form.arrays().items()}
        tensors |= _calibration_arrays(f"view{i}.", view.calibration)
    if fitted.combined is not None:
        tensors |= _calibration_arrays("combined.", fitted.combined)
    header = {
        "kind": fitted.network.kind,
        "features": list(fitted.features),
        "units": fitted.network.units,
        "options": fitted.network.options,
        "input_clip": fitted.scaler.clip,
        "forms": [view.form.name for view in fitted.views],
        "error": {
            "half_life": fitted.how.half_life,
            "aggregate": fitted.how.aggregate,
            "missing": fitted.how.missing,
        },
        "trim": fitted.trim,
    }
    return bytes(
        safetensors.numpy.save(
            {k: np.ascontiguousarray(v) for k, v in tensors.items()}, {"prunewatch": json.dumps(header)}
        )
    )


def load(content: bytes) -> Fitted:
    """The inverse of `save`.

    Raises:
        CorruptBundleError: these are not weights that `save` wrote.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["prunewatch"])
        tensors = safetensors.numpy.load(content)
        features = tuple(header["features"])
        network = network_class(header["kind"]).build(len(features), header["units"], header["options"])
        network.load_state_dict({name: torch.from_numpy(v) for name, v in _under(tensors, "network.").items()})
        views = tuple(
            View(
                FORMS[form].of(_under(tensors, f"view{i}.form.")),
                _calibration(_under(tensors, f"view{i}.")),
            )
            for i, form in enumerate(header["forms"])
        )
        combined = _calibration(_under(tensors, "combined.")) if len(views) > 1 else None
        scaler = Scaler(tensors["scaler.center"], tensors["scaler.scale"], header["input_clip"])
        trim = float(header.get("trim", 0.0))  # files of older versions do not say it
        return Fitted(network, features, scaler, ErrorOptions(**header["error"]), views, combined, trim)
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise CorruptBundleError(
            "holds no weights that this version of prunewatch can read.",
            field="weights.safetensors",
            hint="Fit the detector again.",
        ) from error


def _calibration_arrays(prefix: str, calibration: Calibration) -> dict[str, NDArray[np.floating]]:
    return {
        f"{prefix}knots": calibration.knots,
        f"{prefix}levels": calibration.levels,
        f"{prefix}tail": np.array([calibration.tail_shape, calibration.tail_scale]),
    }


def _calibration(arrays: Mapping[str, NDArray[Any]]) -> Calibration:
    shape, scale = (float(value) for value in arrays["tail"])
    return Calibration(arrays["knots"], arrays["levels"], shape, scale)


def _under(tensors: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
