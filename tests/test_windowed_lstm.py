"""The LSTM that reads its window anew for each point: what detectors from PyOD's LSTMAD become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fits import FOUR, machine
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import FEATURES, SEEDS, WIDTHS, keeps, noise, randomised
from torch import Tensor

from detectors.runtime import Runtime
from detectors.training.calibrate import Scaler
from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, fit
from detectors.training.fitted import ErrorOptions, calibrated, load, save
from detectors.training.networks import KINDS, LSTM, Network, WindowedLSTM, network_class
from detectors.training.stretches import Stretches
from pruning.surgery import masked, remove


@st.composite
def windowed_cuts(draw: st.DrawFn) -> tuple[Network, dict[str, Tensor], int]:
    """Networks of one to three layers that look back one to six points; units to keep; a seed for points."""
    widths = tuple(draw(st.lists(WIDTHS, min_size=1, max_size=3)))
    network = randomised(WindowedLSTM(draw(FEATURES), widths, draw(st.integers(1, 6))), draw(SEEDS))
    return network, draw(keeps(network)), draw(SEEDS)


def odd() -> WindowedLSTM:
    """Sizes that differ from each other."""
    network = randomised(WindowedLSTM(3, (11, 7), 5), 5)
    assert isinstance(network, WindowedLSTM)
    return network


def test_it_predicts_what_a_carried_lstm_would_from_a_fresh_state() -> None:
    """Point t: the five points before it through the same weights, nothing else."""
    network, points = odd(), noise(2, 20, 3)
    carried = LSTM(3, (11, 7)).double()
    carried.load_state_dict(network.state_dict())

    residual = network(points, network.fresh(2)).residual

    for t in range(5, 20):
        window = carried(points[:, t - 5 : t + 1], carried.fresh(2)).residual
        assert torch.allclose(residual[:, t], window[:, -1], rtol=0, atol=1e-12)


def test_however_a_series_is_cut_the_residuals_are_the_same() -> None:
    """Its state is the last five points."""
    network, points = odd(), noise(3, 30, 3)
    whole = network(points, network.fresh(3))

    state, parts = network.fresh(3), []
    for chunk in points.split([1, 3, 14, 2, 10], dim=1):
        parts.append(network(chunk, state))
        state = parts[-1].state

    assert torch.allclose(torch.cat([p.residual for p in parts], dim=1), whole.residual, rtol=0, atol=1e-12)
    assert torch.equal(state[0], points[:, -5:])
    assert whole.residual.shape == (3, 30, 1, 3)
    assert whole.activations["layer1"].shape == (3, 30, 5, 7)
    assert (network.warm_up_points, network.blind_points) == (5, 5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(windowed_cuts())
def test_removing_units_is_zeroing_what_reads_them(cut) -> None:
    """Exactly, for drawn widths, depths, windows and keep-sets."""
    network, keep, seed = cut
    points = noise(2, 12, network.n_features, seed=seed)

    smaller, silent = remove(network, keep), masked(network, keep)

    assert smaller.options == network.options
    assert torch.allclose(
        smaller(points, smaller.fresh(2)).residual, silent(points, silent.fresh(2)).residual, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("lookback", [1, 9])
def test_the_graph_says_what_the_network_says(layers: int, lookback: int) -> None:
    """LSTM operators with ONNX's order of gates, over many series at once."""
    data = Stretches.of([machine(300)])
    torch.manual_seed(0)
    network = WindowedLSTM(4, (12, 7)[:layers], lookback)
    detector = calibrated(network, FOUR, Scaler.fit(data.rows), data, ErrorOptions(half_life=2.0))
    raw = np.stack([machine(60, seed=seed) for seed in range(16)])
    wanted = detector.trace(raw)

    runtime = Runtime(step_graph(detector))
    state, scores, contributions = runtime.fresh(16), [], []
    for t in range(60):
        step = runtime.step(np.ascontiguousarray(raw[:, t]), state)
        state = step.state
        scores.append(step.score)
        contributions.append(step.contribution)

    warm = detector.warm_up_points
    np.testing.assert_allclose(np.stack(scores, 1)[:, warm:], wanted.score[:, warm:], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        np.stack(contributions, 1)[:, warm:], wanted.contribution[:, warm:], rtol=1e-3, atol=1e-5
    )
    assert runtime.state_shapes[0] == (lookback * 4,)


def test_it_can_be_trained_and_kept() -> None:
    """Its predictions get better than the mean of a feature; weights come back as they were."""
    data = Stretches.of([machine(700)])
    options = {"layers": 1, "width": 16, "lookback": 8}

    trained = fit("windowed_lstm", data, FOUR, seed=0, options=options, how=FitOptions(updates=150))

    again = load(save(trained))
    points = machine(300, seed=4)
    scaled = torch.from_numpy(trained.scaler(points))[None]
    with torch.no_grad():
        residual = trained.network(scaled, trained.network.fresh(1)).residual[0, 8:]
    assert float(residual.square().mean()) < 0.5 * float(scaled[:, 8:].square().mean())
    assert np.array_equal(again.trace(points[None]).score, trained.trace(points[None]).score, equal_nan=True)
    assert again.network.options == {"lookback": 8}


def test_users_are_not_offered_it() -> None:
    """It costs a window of steps a point; it is there for detectors that come from elsewhere."""
    assert "windowed_lstm" not in KINDS
    assert network_class("windowed_lstm") is WindowedLSTM
    assert WindowedLSTM(3, (4, 5), 6).macs == 6 * (LSTM(3, (4, 5)).macs - 15) + 15
