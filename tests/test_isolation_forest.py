"""The isolation forest: the score of the paper, spread over features, the same in scikit-learn, torch and the graph."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch
from fits import FOUR, fitted, machine
from numpy.typing import NDArray
from pyod.models.iforest import IForest
from sklearn.ensemble import IsolationForest as Peer
from strategies import assert_graph_is_network, forest, noise

from detectors.errors import InvalidInputError
from detectors.runtime import Runtime
from detectors.training.calibrate import Scaler
from detectors.training.export import step_graph
from detectors.training.fit import FitOptions, chunks_over, fit
from detectors.training.fitted import ErrorOptions, Fitted, load, save
from detectors.training.graph import Graph
from detectors.training.networks import Ensemble, IsolationForest, Network
from detectors.training.networks.base import Normal
from detectors.training.stretches import Stretches, Windows
from pruning.importance import Evidence, importance
from pruning.repair import remove_and_repair
from pruning.surgery import remove

NAMES = tuple("abcdefgh")


def rows(points: int, n_features: int, seed: int = 0) -> NDArray[np.float32]:
    """Independent sensors of different sizes, some of whose values repeat."""
    rng = np.random.default_rng(seed)
    return rng.normal(3, np.arange(1, n_features + 1), (points, n_features)).round(1).astype(np.float32)


def grown(n_features: int, seed: int = 0, points: int = 600, **options: int) -> IsolationForest:
    """A forest over unscaled rows."""
    network = IsolationForest.dense(n_features, {"trees": 30} | options)
    network.grow(Stretches((rows(points, n_features),)), Scaler.identity(n_features), seed)
    return network


def parts(network: IsolationForest, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each feature's part of the score of points [T, F], from a fresh state."""
    with torch.no_grad():
        residual = network(torch.from_numpy(points)[None], network.fresh(1)).residual
    return residual[0, :, 0].numpy() ** 2


def stepped(fitted: Fitted, raw: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores and contributions of one series through the runtime, a step after the other."""
    runtime = Runtime(step_graph(fitted))
    state, scores, contributions = runtime.fresh(1), [], []
    for step in raw.reshape(-1, runtime.stride, raw.shape[1]):
        out = runtime.step(np.ascontiguousarray(step[None] if runtime.stride > 1 else step), state)
        state = out.state
        scores.append(out.score[0])
        contributions.append(out.contribution[0])
    return np.array(scores), np.array(contributions)


@pytest.mark.parametrize("n_features", [1, 4])
@pytest.mark.parametrize("window", [1, 5])
def test_the_score_is_that_of_pyod_before_it_moves_it(n_features: int, window: int) -> None:
    """2^(-mean path / c(samples)), in float32 to a millionth, of windows seen and not; parts of features sum to it."""
    network = grown(n_features, seed=3, window=window)
    drawn = Windows([rows(600, n_features)], batch=601 - window, window=window, rng=np.random.default_rng(3))
    peer = IForest(n_estimators=30, max_samples=256, random_state=3)
    peer.fit(next(drawn.chunks(1)).points.numpy().reshape(601 - window, -1))
    points = np.concatenate([rows(600, n_features), 4 * rows(100, n_features, seed=9)])
    windows = np.lib.stride_tricks.sliding_window_view(points, window, axis=0).swapaxes(1, 2)

    each = parts(network, points)[window - 1 :]

    wanted = -peer.detector_.score_samples(windows.reshape(len(windows), -1))
    np.testing.assert_allclose(each.sum(axis=1), wanted, rtol=0, atol=1e-6)
    assert (each >= 0).all()
    assert wanted.max() > 0.6


def test_thresholds_between_neighbouring_floats_part_them_as_before() -> None:
    """scikit-learn's are float64: rounded to the nearest float32, half of these would send both values to one side."""
    low = np.float32(1000)
    values = np.array([low, np.nextafter(low, np.float32(2000))]).repeat(50)[:, None]
    peer = Peer(n_estimators=50, max_samples=64, random_state=0).fit(values)
    network = IsolationForest(1, 1, 50, samples=64)
    network.take_over(peer)

    assert all(tree.tree_.node_count == 3 for tree in peer.estimators_)
    np.testing.assert_allclose(parts(network, values)[:, 0], -peer.score_samples(values), rtol=0, atol=1e-6)


def test_trees_may_see_some_columns_only() -> None:
    """Columns of a tree are counted among its own; in the network among those of the window."""
    points = rows(500, 6)
    peer = Peer(n_estimators=40, max_features=0.5, random_state=0).fit(points)
    network = IsolationForest(6, 1, 40)
    network.take_over(peer)

    assert len({tuple(columns) for columns in peer.estimators_features_}) > 5
    np.testing.assert_allclose(parts(network, points).sum(axis=1), -peer.score_samples(points), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_features", [1, 4])
@pytest.mark.parametrize("options", [{}, {"window": 5}, {"window": 6, "stride": 3}, {"window": 4, "stride": 4}])
def test_the_graph_gives_the_scores_of_the_network(n_features: int, options) -> None:
    """Contributions of every due point to a hundred-thousandth, with smoothing and strides."""
    data = rows(500, n_features)
    detector = fit("isolation_forest", Stretches.of([data]), NAMES[:n_features], seed=0, options=options)
    raw = rows(240, n_features, seed=1)
    raw[150:160] *= 40

    scores, contributions = stepped(detector, raw)

    due = detector.trace(raw[None])
    stride = detector.network.stride
    wanted = due.contribution[0, stride - 1 :: stride]
    warm = ~np.isnan(wanted[:, 0])
    assert warm.sum() > 200 // stride
    np.testing.assert_allclose(contributions[warm], wanted[warm], rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores[warm], due.score[0, stride - 1 :: stride][warm], rtol=1e-3, atol=1e-4)
    assert scores[warm].max() > 2


def test_a_residual_is_normalised_where_an_error_form_asks() -> None:
    """The contract of every network: (residual - center) * inverse."""
    network, points = grown(2), rows(20, 2, seed=5)
    center, inverse = np.array([0.1, 0.2], np.float32), np.array([2.0, 3.0], np.float32)
    graph = Graph(2)
    z = network.draw(graph, "values", Normal(center, inverse))
    runtime = Runtime(graph.finish(graph.op("ReduceSum", z, graph.const([1], np.int64), keepdims=0), z))

    drawn = runtime.step(points, runtime.fresh(20)).contribution

    np.testing.assert_allclose(drawn, (np.sqrt(parts(network, points)) - center) * inverse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("feature", range(4))
def test_the_feature_that_is_far_out_has_the_largest_part(window: int, feature: int) -> None:
    """Wherever in the window it was; a usual point has a lower score."""
    network = grown(4, window=window, trees=100)
    points = np.full((7, 4), 3, np.float32)
    points[3, feature] = 40

    each = parts(network, points)

    struck = each[3 : 3 + window]
    assert (struck.argmax(axis=1) == feature).all()
    assert (struck.max(axis=1) > struck.sum(axis=1) / 2).all()
    assert struck.sum(axis=1).min() > each[-1].sum()


def test_a_saved_forest_scores_as_before() -> None:
    """Its trees have other sizes than those of a new one; padding changes nothing."""
    detector = fitted("isolation_forest")

    again = load(save(detector))

    raw = machine(200, seed=3)[None]
    np.testing.assert_array_equal(again.trace(raw).score, detector.trace(raw).score)
    assert step_graph(again) == step_graph(detector)
    assert again.network.options == detector.network.options


def test_the_seed_decides() -> None:
    """Same seed, same forest, whatever torch's generator says; another seed, another forest."""
    data = Stretches.of([machine(400)])
    first, second, other = (fit("isolation_forest", data, FOUR, seed=seed, options={"trees": 20}) for seed in (5, 5, 6))

    assert step_graph(first) == step_graph(second)
    assert step_graph(first) != step_graph(other)


def test_trees_of_few_points_are_grown_from_all() -> None:
    """c(samples) is that of the points there were."""
    network = grown(2, points=50)
    peer = IForest(n_estimators=30, max_samples=50, random_state=0).fit(rows(50, 2)[_order(50)])

    np.testing.assert_allclose(
        parts(network, rows(50, 2)).sum(axis=1), -peer.detector_.score_samples(rows(50, 2)), rtol=0, atol=1e-6
    )


def _order(points: int) -> NDArray[np.int64]:
    """In which `grow` draws the points themselves."""
    return np.random.default_rng(0).permutation(points)


def test_windows_do_not_reach_over_a_gap() -> None:
    """What lies between two stretches is not seen, nor a stretch that is shorter than the window."""
    low, high = np.zeros((40, 1), np.float32), np.ones((40, 1), np.float32)
    network = IsolationForest.dense(1, {"window": 4, "trees": 20})
    network.grow(Stretches((low, high, np.full((3, 1), 9, np.float32))), Scaler.identity(1), 0)
    points = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)[:, None]

    each = parts(network, points)[3:, 0]

    assert each[0] == pytest.approx(each[-1], rel=0.1)
    assert (network.threshold < 1).all()


@pytest.mark.parametrize("n_features", [1, 3])
def test_constant_features_judge_nothing(n_features: int) -> None:
    """No tree can split: every point gets one half, an equal part from each feature."""
    data = np.full((300, n_features), 7, np.float32)
    detector = fit("isolation_forest", Stretches.of([data]), NAMES[:n_features], seed=0)

    each = detector.trace(data[None, :100]).contribution[0, -1]
    scores, contributions = stepped(detector, data[:100])

    np.testing.assert_allclose(each, 0.5 / n_features, rtol=1e-5)
    np.testing.assert_allclose(contributions[-1], each, rtol=1e-5)
    assert np.isfinite(scores).all()
    assert detector.network.macs == 0


def test_a_constant_feature_beside_others_has_no_part() -> None:
    """Of the score of a strange point: it is never split on."""
    data = rows(300, 3)
    data[:, 1] = 7
    network = IsolationForest.dense(3, {"trees": 30})
    network.grow(Stretches((data,)), Scaler.identity(3), 0)

    each = parts(network, data)

    strange = each.sum(axis=1) > 0.5
    assert strange.sum() > 10
    assert (each[strange, 1] < 1e-4).all()


def test_its_size_is_that_of_its_trees() -> None:
    """Padding does not count; comparisons are bounded by how deep trees may grow."""
    network = grown(3)
    peer = IForest(n_estimators=30, max_samples=256, random_state=0).fit(rows(600, 3)[_order(600)])

    nodes = [tree.tree_.node_count for tree in peer.estimators_]
    leaves = np.concatenate([_leaf_depths(tree.tree_) for tree in peer.estimators_])
    assert network.parameters_count == 5 * sum(nodes)
    assert network.options["nodes"] == max(nodes)
    assert network.macs == round(30 * leaves.mean())
    assert network.height == 8 == leaves.max()
    assert network.units == {"trees": 30}


def _leaf_depths(tree) -> NDArray[np.int64]:
    return tree.compute_node_depths()[tree.children_left < 0] - 1


def test_a_resized_forest_is_made_of_its_own_trees() -> None:
    """`pruning.search` measures resized networks, in an ensemble too; the time of a forest depends on its trees."""
    network = grown(2, trees=10)
    points = rows(50, 2, seed=4)

    fewer = network.resized({"trees": 4})
    same = Ensemble({"isolation_forest": network}).resized({}).members["isolation_forest"]
    paths = [it(torch.from_numpy(points)[None], it.fresh(1)).activations["trees"] for it in (network, fewer, same)]

    assert fewer.units == {"trees": 4}
    assert torch.equal(paths[1], paths[0][..., :4])
    assert torch.equal(paths[2], paths[0])
    assert same is not network


def test_a_member_of_an_ensemble() -> None:
    """Its part of the mean score is spread over features like that of any other; the runtime agrees with torch."""
    options = {"members": "lstm,isolation_forest", "lstm.width": 8, "lstm.layers": 1, "isolation_forest.window": 3}
    data = machine(600)
    detector = fit("ensemble", Stretches.of([data]), FOUR, seed=0, options=options, how=FitOptions(updates=20))
    raw = machine(200, seed=2)
    raw[150:] += 5
    scores, contributions = stepped(detector, raw)

    trace = load(save(detector)).trace(raw[None])

    warm = ~np.isnan(trace.score[0])
    assert isinstance(detector.network, Ensemble)
    assert set(detector.network.units) == {"lstm.layer0", "isolation_forest.trees"}
    np.testing.assert_allclose(scores[warm], trace.score[0, warm], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(contributions[warm], trace.contribution[0, warm], rtol=1e-3, atol=1e-4)


def test_missing_values_are_carried_on_and_have_no_part() -> None:
    """As with every network."""
    error = ErrorOptions(missing="carry", half_life=0)
    detector = fit("isolation_forest", Stretches.of([machine(400)]), FOUR, seed=0, error=error)
    raw = machine(60, seed=2)
    raw[40:50, 1] = np.nan

    _, contributions = stepped(detector, raw)

    trace = detector.trace(raw[None])
    assert (contributions[40:50, 1] == 0).all()
    np.testing.assert_allclose(contributions, trace.contribution[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"window": 0}, "options.window"),
        ({"samples": 1}, "options.samples"),
        ({"trees": 0}, "options.trees"),
        ({"stride": 2}, "options.stride"),
        ({"window": 4, "stride": 5}, "options.stride"),
        ({"width": 8}, "options.width"),
    ],
)
def test_impossible_options_are_refused_by_name(options, field: str) -> None:
    """The stride is held against this kind's own window where none is given."""
    with pytest.raises(InvalidInputError) as error:
        IsolationForest.checked_options(options)

    assert error.value.field == field


def halved(detector: Fitted, criterion: str) -> tuple[Network, Network]:
    """Half of the trees, taken out plainly; and with weights by least squares."""
    network = detector.network
    chunks = chunks_over(Stretches.of([rows(500, 3)]), detector.scaler, network, 0)
    score = importance(criterion, Evidence(network, chunks, 0))["trees"]
    keep = {"trees": score.topk(len(score) // 2).indices.sort().values}
    return remove(network, keep), remove_and_repair(network, keep, chunks)


@pytest.mark.parametrize("criterion", ["random", "taylor"])
def test_least_squares_lets_the_kept_trees_speak_for_all(criterion: str) -> None:
    """Half of them, weighed anew, come closer to the score of all than their plain mean."""
    detector = fit("isolation_forest", Stretches.of([rows(500, 3)]), NAMES[:3], seed=0, options={"trees": 60})
    points = detector.scaler(rows(400, 3, seed=7))
    plain, repaired = halved(detector, criterion)
    plain.weight.mul_(2)

    wanted, mean, weighed = (parts(it, points).sum(axis=1) for it in (detector.network, plain, repaired))

    assert repaired.units == {"trees": 30}
    assert len(set(repaired.weight.flatten().tolist())) > 20
    assert repaired.offset != 0
    assert np.square(weighed - wanted).mean() < 0.85 * np.square(mean - wanted).mean()


def test_trees_are_judged_by_how_they_agree_with_all() -> None:
    """Whatever criterion is asked for: they have no gradients. Those that are chosen do better than any."""
    detector = fit("isolation_forest", Stretches.of([rows(500, 3)]), NAMES[:3], seed=0, options={"trees": 60})
    points = detector.scaler(rows(400, 3, seed=7))
    wanted = parts(detector.network, points).sum(axis=1).argsort().argsort()

    def agreement(criterion: str) -> float:
        plain, _ = halved(detector, criterion)
        return float(np.corrcoef(parts(plain, points).sum(axis=1).argsort().argsort(), wanted)[0, 1])

    assert agreement("taylor") > max(agreement("random"), 0.97)


@pytest.mark.parametrize("n_features", [1, 3])
def test_the_graph_has_the_weights_and_the_offset(n_features: int) -> None:
    """Weights that differ, an offset, fewer trees and a lower height: step by step what torch gives."""
    network = forest(n_features, 3, 20, 64, 2).float()
    keep = {"trees": torch.tensor([2, 3, 5, 8, 13])}
    points = noise(4, 40, n_features, dtype=torch.float32)

    for smaller in (network, remove(network, keep), remove(network, keep).pulled("depth", 4)):
        assert_graph_is_network(smaller, points, near=1e-5)


def test_features_share_as_the_trees_are_weighed() -> None:
    """A tree of no weight has no part in what is said of a feature either."""
    network = grown(2, trees=6)
    one = remove(network, {"trees": torch.tensor([4])})
    one.weight.fill_(1)
    network.weight.zero_()
    network.weight[4] = 1

    np.testing.assert_allclose(parts(network, rows(50, 2)), parts(one, rows(50, 2)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ensemble", [False, True])
def test_forests_of_older_stores_can_be_read(ensemble: bool) -> None:
    """They know no weights and no height: all trees count alike, to their full height."""
    options = {"members": "lstm,isolation_forest", "lstm.width": 8, "lstm.layers": 1} if ensemble else {}
    kind = "ensemble" if ensemble else "isolation_forest"
    detector = fit(kind, Stretches.of([machine(300)]), FOUR, seed=0, options=options, how=FitOptions(updates=5))
    content = save(detector)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["prunewatch"])
    tensors = safetensors.numpy.load(content)
    prefix = "network._members.isolation_forest." if ensemble else "network."
    for name in ("weight", "offset"):
        del tensors[prefix + name]
    del header["options"]["isolation_forest.height" if ensemble else "height"]

    old = load(safetensors.numpy.save(tensors, {"prunewatch": json.dumps(header)}))

    raw = machine(200, seed=3)[None]
    np.testing.assert_array_equal(old.trace(raw).score, detector.trace(raw).score)
    assert save(old) == content


@pytest.mark.slow
def test_networks_are_imported_without_scikit_learn() -> None:
    """It is needed to grow a forest only, and takes seconds."""
    code = "import sys, detectors.training.networks; sys.exit(bool({'sklearn', 'pyod'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
