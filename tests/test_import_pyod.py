"""Detectors of PyOD: what they say here is what they say there, and they can be pruned."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fits import FOUR, machine
from numpy.typing import NDArray
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.iforest import IForest
from pyod.models.pca import PCA
from pyod.models.ts_lstm import LSTMAD
from pyod.models.vae import VAE
from sklearn.ensemble import IsolationForest

from detectors.bundle import Lineage, read_bundle, write_bundle
from detectors.errors import InvalidInputError
from detectors.runtime import Runtime
from detectors.training.calibrate import Calibration
from detectors.training.export import step_graph, to_bundle
from detectors.training.fitted import Fitted, load
from detectors.training.import_pyod import import_pyod
from pruning.cycle import prune
from pruning.groups import prunable

PAGE = Path(__file__).parent.parent / "docs" / "pyod.md"
TRAIN, TEST = machine(500).astype(float), machine(200, seed=3).astype(float)
QUICK = {"epoch_num": 3, "verbose": 0, "random_state": 0}

MODELS = {
    "AutoEncoder": lambda: AutoEncoder(**QUICK, hidden_neuron_list=[16, 8, 3]),
    "AutoEncoder tanh": lambda: AutoEncoder(**QUICK, hidden_neuron_list=[12, 3], hidden_activation_name="tanh"),
    "AutoEncoder no batch norm": lambda: AutoEncoder(**QUICK, hidden_neuron_list=[12, 3], batch_norm=False),
    "AutoEncoder one layer": lambda: AutoEncoder(**QUICK, hidden_neuron_list=[3], hidden_activation_name="sigmoid"),
    "AutoEncoder raw": lambda: AutoEncoder(**QUICK, hidden_neuron_list=[12, 3], preprocessing=False),
    "VAE": lambda: VAE(**QUICK, encoder_neuron_list=[16, 9], decoder_neuron_list=[7, 11]),
    "VAE batch norm": lambda: VAE(**QUICK, batch_norm=True, hidden_activation_name="tanh", latent_dim=3),
    "LSTMAD": lambda: LSTMAD(window_size=12, hidden_size=9, n_layers=2, epochs=2),
    "LSTMAD one layer": lambda: LSTMAD(window_size=1, hidden_size=7, n_layers=1, epochs=2),
    "IForest": lambda: IForest(random_state=0),
    "IForest subsets": lambda: IForest(
        n_estimators=30, max_samples=64, max_features=0.5, bootstrap=True, random_state=0
    ),
}


@cache
def trained(name: str, n_features: int = 4) -> Any:
    """A model of PyOD, fitted once a run to the machine's first columns."""
    torch.manual_seed(0)
    return MODELS[name]().fit(TRAIN[:, :n_features])


def said_by_pyod(model: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Its `decision_function`; of a VAE the one it would have if it did not draw its latent."""
    if not isinstance(model, VAE):
        return model.decision_function(rows)
    scaled = torch.tensor((rows - model.X_mean) / (model.X_std + 1e-8), dtype=torch.float32)
    with torch.no_grad():
        mean, _ = model.model.encode(scaled)
        return (scaled - model.model.decode(mean)).double().norm(dim=1).numpy()


def stepped(graph: bytes, rows: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores [N] and contributions [N, F] of a step graph, point by point."""
    runtime = Runtime(graph)
    state, scores, contributions = runtime.fresh(1), [], []
    for row in rows.astype(np.float32):
        step = runtime.step(row[None], state)
        state = step.state
        scores.append(step.score[0])
        contributions.append(step.contribution[0])
    return np.array(scores), np.array(contributions)


def assert_same(got: NDArray[np.floating], wanted: NDArray[np.floating]) -> None:
    """Equal to 1e-5; where an error is a small difference of large numbers, to 1e-5 of what is usual."""
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * float(np.quantile(np.abs(wanted), 0.95)))


# The same error


@pytest.mark.parametrize("n_features", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_the_error_is_pyods_score(name: str, n_features: int) -> None:
    """In training form and in the graph that serves; contributions sum to it; no score where PyOD fills one in."""
    model, rows = trained(name, n_features), TEST[:, :n_features].copy()
    rows[150] *= 3  # far out
    wanted = said_by_pyod(model, rows)

    imported = import_pyod(model)
    trace = imported.trace(rows[None].astype(np.float32))
    scores, contributions = stepped(step_graph(imported), rows)

    warm = imported.warm_up_points
    assert warm == (model.window_size if isinstance(model, LSTMAD) else 0)
    assert_same(trace.error[0, warm:], wanted[warm:])
    assert_same(trace.contribution[0, warm:].sum(axis=1), wanted[warm:])
    assert_same(contributions[warm:].astype(float).sum(axis=1), wanted[warm:])
    assert np.isnan(trace.score[0, :warm]).all()
    np.testing.assert_allclose(scores[warm:], trace.score[0, warm:], rtol=1e-3, atol=1e-4)
    assert (np.diff(trace.score[0, warm:][np.argsort(wanted[warm:])]) > -1e-4).all()


@pytest.mark.parametrize("name", ["AutoEncoder", "LSTMAD", "IForest"])
def test_rows_to_calibrate_on_change_the_score_and_not_the_error(name: str) -> None:
    """LSTMAD is put into units of the rows' deviation by that, which cancels out."""
    model = trained(name)
    normal = machine(400, seed=8).astype(float)

    imported = import_pyod(model, normal=normal)

    warm = imported.warm_up_points
    assert_same(imported.trace(TEST[None].astype(np.float32)).error[0, warm:], said_by_pyod(model, TEST)[warm:])
    scores = imported.trace(normal[None].astype(np.float32)).score[0, warm:]
    assert (scores > 1).mean() == pytest.approx(0.1, abs=0.01)
    if name == "LSTMAD":
        np.testing.assert_allclose(imported.scaler.scale, normal.std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_pyods_threshold_is_the_score_of_its_contamination(name: str) -> None:
    """Calibrated on PyOD's own training scores, of which one in ten lies above `threshold_`."""
    model = trained(name)

    imported = import_pyod(model)

    assert imported.views[0].calibration.score(np.array([model.threshold_]))[0] == pytest.approx(1.0, abs=0.03)


def test_a_constant_column_is_treated_as_pyod_does() -> None:
    """Its deviation is zero, so PyOD divides by 1e-8: what stands still adds nothing, what moves outweighs all."""
    rows = TRAIN.copy()
    rows[:, 1] = 0.1
    model = AutoEncoder(**QUICK, hidden_neuron_list=[12, 3]).fit(rows)
    moved = rows[:50].copy()
    moved[25, 1] = 0.11

    imported = import_pyod(model)

    error = imported.trace(moved[None].astype(np.float32)).error[0]
    wanted = model.decision_function(moved)
    assert_same(np.delete(error, 25), np.delete(wanted, 25))
    assert error[25] == pytest.approx(wanted[25], rel=1e-4)


def test_contributions_name_the_sensor() -> None:
    """The one that was disturbed has the largest part."""
    rows = TEST.astype(np.float32)
    rows[60, 2] += 20
    for name in ("AutoEncoder", "LSTMAD", "IForest"):
        imported = import_pyod(trained(name), FOUR)

        assert imported.trace(rows[None]).contribution[0, 60].argmax() == 2
        assert imported.features == FOUR


# What becomes of it


@pytest.mark.parametrize("name", MODELS)
def test_it_survives_as_a_bundle(name: str, tmp_path: Path) -> None:
    """Written, verified, read: the same graph; loaded for training: the same detector. PyOD is gone."""
    imported = import_pyod(trained(name), FOUR)
    lineage = Lineage(cause="fit", seed=0, data_rows=len(TRAIN))
    bundle = to_bundle(imported, detector="pump", version=1, device_class="hub", lineage=lineage)
    write_bundle(bundle, tmp_path / "bundle")

    again = read_bundle(tmp_path / "bundle", bundle.hash, weights=True)
    reloaded = load(again.files["weights.safetensors"])

    rows = TEST[None].astype(np.float32)
    assert step_graph(reloaded) == again.graph
    assert np.array_equal(reloaded.trace(rows).score, imported.trace(rows).score, equal_nan=True)
    assert again.manifest.warm_up_points == imported.warm_up_points


def test_nothing_is_shared_and_nothing_is_drawn() -> None:
    """The model stays as it is, the detector is the same each time, and torch's generator goes on untouched."""
    model = trained("AutoEncoder")
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)

    first, second = import_pyod(model), import_pyod(model)
    with torch.no_grad():
        next(first.network.parameters()).zero_()

    assert torch.rand(1) == wanted
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert step_graph(second) == step_graph(import_pyod(model))


def test_what_may_be_pruned() -> None:
    """Hidden layers but the bottleneck; every layer of an LSTM; trees."""
    units = {name: [group.name for group in prunable(import_pyod(trained(name)).network)] for name in MODELS}

    assert units["AutoEncoder"] == ["encoder0", "encoder1", "decoder0", "decoder1"]
    assert units["AutoEncoder one layer"] == []
    assert units["VAE"] == ["encoder0", "encoder1", "decoder0", "decoder1"]
    assert units["LSTMAD"] == ["layer0", "layer1"]
    assert units["IForest"] == ["trees"]


def pruned(imported: Fitted, rows: NDArray[np.floating]) -> Fitted:
    """At least halved in bytes."""
    size = len(step_graph(imported)) // 2
    candidate = prune(imported, rows, size_bytes=size, batch=16)
    assert candidate.outcome.gate is not None
    ratio = next(check for check in candidate.outcome.gate.checks if check.name == "error")
    assert ratio.passed, ratio.detail
    assert candidate.child is not None
    assert len(step_graph(candidate.child)) <= size
    return candidate.child


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        LSTMAD(window_size=8, hidden_size=32, epochs=4),
        VAE(**QUICK, encoder_neuron_list=[64, 32], decoder_neuron_list=[32, 64], dropout_rate=0.0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_others_can_be_pruned_too(model: Any) -> None:
    """A child of half the size makes about the same error, with the form of its error fitted anew."""
    rows = machine(900).astype(float)
    torch.manual_seed(0)

    child = pruned(import_pyod(model.fit(rows), normal=rows), rows)

    score = child.trace(machine(400, seed=5)[None]).score[0, child.warm_up_points :]
    assert np.isfinite(score).all()
    assert 0.02 < (score > 1).mean() < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("program", ["estimate.py", "shrink.py"])
def test_the_programs_of_the_page_run(program: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """Line by line as docs/pyod.md has them; the second ends with a bundle of a faster detector."""
    (lines,) = re.findall(rf"```python\n(# {re.escape(program)}\n.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)

    exec(compile(lines, program, "exec"), {})

    printed = capsys.readouterr().out
    if program == "estimate.py":
        assert "2803" in printed
    else:
        assert printed.startswith("adopted")
        manifest = read_bundle(tmp_path / "plant").manifest
        assert manifest.network.units["encoder0"] < 256
        assert manifest.network.units["bottleneck"] == 8


# What can not be taken over


@pytest.mark.parametrize(
    ("make", "field", "message"),
    [
        (lambda: PCA().fit(TRAIN), "detector", "PCA can not be imported.*AutoEncoder, VAE, LSTMAD or IForest"),
        (lambda: IsolationForest().fit(TRAIN), "detector", "IsolationForest can not be imported.*IForest of PyOD"),
        (lambda: "model.pkl", "detector", "str can not be imported.*the object itself"),
        (MODELS["AutoEncoder"], "detector", "AutoEncoder is not fitted.*Call its `fit` first"),
        (MODELS["LSTMAD"], "detector", "LSTMAD is not fitted"),
        (
            lambda: AutoEncoder(**QUICK, hidden_activation_name="leaky_relu").fit(TRAIN),
            "detector.hidden_activation_name",
            "LeakyReLU.*Only relu, tanh, sigmoid can be imported",
        ),
        (
            lambda: VAE(**QUICK, output_activation_name="sigmoid").fit(TRAIN),
            "detector.output_activation_name",
            "Sigmoid.*Only `identity`",
        ),
    ],
)
def test_what_can_not_be_imported_says_what_can(make, field: str, message: str) -> None:
    """By name, with what to do."""
    with pytest.raises(InvalidInputError, match=message) as error:
        import_pyod(make())

    assert error.value.field == field


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"features": ["flow", "heat"]}, "features"),
        ({"normal": TRAIN[:, :3]}, "normal"),
        ({"normal": TRAIN[None]}, "normal"),
        ({"normal": TRAIN[:20]}, "data"),
        ({"normal": np.empty((0, 4))}, "data"),
    ],
)
def test_features_and_rows_must_fit(given, field: str) -> None:
    """Each is named."""
    with pytest.raises(InvalidInputError) as error:
        import_pyod(trained("LSTMAD"), **given)

    assert error.value.field == field


# Scores of errors below zero


def test_errors_below_zero_are_calibrated_like_others() -> None:
    """Of normal points one in ten scores above 1, whatever is subtracted from all errors; scores start at 0."""
    errors = np.random.default_rng(0).gamma(2.0, 0.05, 20_000)
    fresh = np.random.default_rng(1).gamma(2.0, 0.05, 20_000)
    for offset in (0.0, 0.13, 50.0):
        calibration = Calibration.fit(errors - offset)

        scores = calibration.score(fresh - offset)
        inside = calibration.score(np.linspace(errors.min(), errors.max(), 500) - offset)

        assert (scores > 1).mean() == pytest.approx(0.1, abs=0.015)
        assert scores.min() >= 0
        assert (np.diff(inside) > 0).all()
        assert (np.diff(calibration.knots) > 0).all()
        assert np.isfinite(calibration.score(np.array([-1e9, 1e9]))).all()


def test_equal_errors_below_zero_give_a_usable_scale() -> None:
    """What always was scores low, what is larger scores high."""
    calibration = Calibration.fit(np.full(100, -0.2))

    usual, larger = calibration.score(np.array([-0.2, 0.2]))

    assert usual < 1.5
    assert larger > 3
    assert np.isfinite(larger)
