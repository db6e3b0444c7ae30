"""The runtime: graphs that follow the contract run, all others are refused as corrupt."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from graphs import ewma_graph, ewma_scores
from onnx import TensorProto, helper

from detectors.errors import CorruptBundleError
from detectors.runtime import Runtime


def changed(edit) -> bytes:
    """The test graph with `edit` done to it."""
    model = onnx.load_model_from_string(ewma_graph(2))
    edit(model.graph)
    return bytes(model.SerializeToString())


def rename(old: str, new: str):
    """Renames a tensor everywhere."""

    def edit(graph) -> None:
        for node in graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new
        for value in (*graph.input, *graph.output):
            if value.name == old:
                value.name = new

    return edit


def symbolic(name: str, axis: int):
    """Leaves the size of an axis of an input open."""

    def edit(graph) -> None:
        value = next(value for value in graph.input if value.name == name)
        value.type.tensor_type.shape.dim[axis].dim_param = "F"
        for output in graph.output:
            for dim in output.type.tensor_type.shape.dim[1:]:
                dim.dim_param = "F"

    return edit


def swapped_outputs(graph) -> None:
    """Contribution before score."""
    first, second = graph.output[0], graph.output[1]
    names = [second, first, graph.output[2]]
    copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in names]
    del graph.output[:]
    graph.output.extend(copies)


def without_state_output(graph) -> None:
    """The state goes in and does not come out."""
    del graph.output[2]


def integer_state(graph) -> None:
    """A state of another type, cast inside."""
    value = next(value for value in graph.input if value.name == "state.mean")
    value.type.tensor_type.elem_type = TensorProto.INT64
    graph.node.insert(0, helper.make_node("Cast", ["state.mean"], ["mean"], to=TensorProto.FLOAT))
    for node in list(graph.node)[1:]:
        for i, name in enumerate(node.input):
            if name == "state.mean":
                node.input[i] = "mean"


def test_a_step_does_what_the_graph_says() -> None:
    """Two series of one batch, carried over twenty points."""
    runtime = Runtime(ewma_graph(3))
    values = np.random.default_rng(0).standard_normal((2, 20, 3)).astype(np.float32)

    state, scores = runtime.fresh(2), []
    for t in range(20):
        step = runtime.step(np.ascontiguousarray(values[:, t]), state)
        state = step.state
        scores.append(step.score)
        np.testing.assert_allclose(step.contribution.sum(axis=1), step.score, rtol=1e-5)

    wanted = [ewma_scores(series, warm_up_points=0) for series in values]
    np.testing.assert_allclose(np.stack(scores, axis=1), wanted, rtol=1e-5)


def test_sizes_come_from_the_graph() -> None:
    """Features, state shapes and bytes; fresh state is zeros, float32, one row a series."""
    runtime = Runtime(ewma_graph(5))

    assert (runtime.n_features, runtime.state_shapes, runtime.state_bytes) == (5, ((5,),), 20)
    (fresh,) = runtime.fresh(3)
    assert (fresh.shape, fresh.dtype) == ((3, 5), np.float32)
    assert not fresh.any()


def test_stepping_changes_neither_values_nor_state() -> None:
    """What is passed in stays; the same input gives the same bits."""
    runtime = Runtime(ewma_graph(2))
    values, state = np.full((4, 2), 2.0, np.float32), (np.full((4, 2), 0.5, np.float32),)

    first, second = runtime.step(values, state), runtime.step(values, state)

    assert first.score.tobytes() == second.score.tobytes()
    assert (values == 2).all()
    assert (state[0] == 0.5).all()


@pytest.mark.parametrize("batch", [0, 1, 2, 257])
def test_any_batch_runs(batch: int) -> None:
    """The batch axis is free, none at all included."""
    runtime = Runtime(ewma_graph(2))

    step = runtime.step(np.ones((batch, 2), np.float32), runtime.fresh(batch))

    assert step.score.shape == (batch,)


def test_results_can_be_written_to() -> None:
    """The scorer marks points of the warm-up in place."""
    runtime = Runtime(ewma_graph(2))
    step = runtime.step(np.ones((2, 2), np.float32), runtime.fresh(2))

    step.contribution[0] = 0
    step.state[0][1] = 7

    assert step.contribution[0].tolist() == [0, 0]


def test_threads_may_share_a_runtime() -> None:
    """Nothing is kept between steps."""
    runtime = Runtime(ewma_graph(2))
    batches = np.random.default_rng(0).standard_normal((64, 8, 2)).astype(np.float32)

    def score(values: np.ndarray) -> bytes:
        return runtime.step(values, runtime.fresh(8)).score.tobytes()

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(score, batches))

    assert together == [score(values) for values in batches]


@pytest.mark.parametrize("graph", [b"", b"nonsense", b"\x08\x08", ewma_graph(2)[:-40], b"\0" * 500])
def test_what_is_no_graph_is_refused(graph: bytes) -> None:
    """An error of ours, without the runtime's own words."""
    with pytest.raises(CorruptBundleError, match=r"step\.onnx"):
        Runtime(graph)


@pytest.mark.parametrize(
    "edit",
    [
        rename("values", "x"),
        rename("score", "anomaly"),
        rename("contribution", "share"),
        rename("state.mean", "mean"),
        rename("state.mean.next", "state.mean.new"),
        rename("state.mean.next", "state.other.next"),
        swapped_outputs,
        without_state_output,
        integer_state,
        symbolic("values", 1),
        symbolic("state.mean", 1),
    ],
    ids=lambda edit: getattr(edit, "__name__", "edit"),
)
def test_graphs_that_break_the_contract_are_refused(edit) -> None:
    """Other names, order or types, a state that is not carried, widths left open."""
    with pytest.raises(CorruptBundleError):
        Runtime(changed(edit))


def test_the_runtime_library_does_not_phone_home() -> None:
    """Its telemetry is switched off before it is imported."""
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
