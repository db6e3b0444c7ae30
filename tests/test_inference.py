"""What the Open Inference Protocol promises, over a real connection and without any client library."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from conftest import NOW, eventually, hub_settings, publish
from google.protobuf import descriptor_pb2, descriptor_pool
from graphs import ewma_bundle, ewma_scores
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from inference_calls import METHODS, Caller, arrays, infer_request, path

from detectors.stamps import Status
from prunewatch import inference
from prunewatch.client import Client
from server.app import Hub
from server.config import DetectorConfig
from server.edge import Edge
from server.inference_points import MODES
from server.inference_tensors import INPUTS, OUTPUTS

RNG = np.random.default_rng(11)
INTERNALS = ("Traceback", "<class", "object at 0x", "google.protobuf", "site-packages", ".py", "DecodeError")


@pytest.fixture
async def pump(hub: Hub) -> Hub:
    """`hub` with a fitted detector `pump` of two features, which takes row numbers; its threshold is 3."""
    await publish(hub, ewma_bundle("pump"), time="index")
    return hub


@pytest.fixture
async def caller(hub: Hub):
    """A connection to `hub`."""
    async with Caller(hub.listener.port) as connected:
        yield connected


def drawn(*shape: int) -> np.ndarray:
    """Random points."""
    return RNG.normal(size=shape).astype(np.float32)


async def refused(call) -> tuple[grpc.StatusCode, str]:
    """Code and words of the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


def series_of(hub: Hub, detector: str = "pump") -> dict[str, int]:
    """Live series and how many points each has seen."""
    table = hub.host.get(detector)._scorer.series
    return {name: int(table.seen[table.slots([name])[0]]) for name in list(table.names)}


# what there is


async def test_a_server_says_what_it_is(pump: Hub, caller: Caller) -> None:
    """It is live, ready, named, and claims the extensions of Triton's that it keeps to."""
    live, ready = await caller.ask("ServerLive"), await caller.ask("ServerReady")
    about = await caller.ask("ServerMetadata")

    assert (live.live, ready.ready) == (True, True)
    assert (about.name, list(about.extensions)) == ("prunewatch", ["model_configuration", "parameters", "sequence"])
    assert about.version


async def test_a_server_that_drains_is_live_and_not_ready(pump: Hub, caller: Caller) -> None:
    """Callers are sent elsewhere before it ends; what it still gets it answers."""
    await pump.listener.announce_end()

    assert (await caller.ask("ServerLive")).live
    assert not (await caller.ask("ServerReady")).ready
    assert not (await caller.ask("ModelReady", name="pump")).ready
    assert len((await caller.infer("pump", values=drawn(1, 2)))["score"]) == 1


async def test_a_model_is_ready_when_its_detector_scores(pump: Hub, caller: Caller) -> None:
    """Ready means: some version serves, or the one that was asked for; what does not exist is not ready."""
    await pump.roster.create("young", {})
    asked = [("pump", ""), ("pump", "1"), ("pump", "2"), ("young", ""), ("none", ""), ("../pump", "")]

    ready = [(await caller.ask("ModelReady", name=name, version=version)).ready for name, version in asked]

    assert ready == [True, True, False, False, False, False]


async def test_metadata_list_inputs_and_outputs(pump: Hub, caller: Caller) -> None:
    """Names, datatypes and shapes are those that ModelInfer takes and gives; sizes that are not known are -1."""
    await pump.roster.create("young", {})

    told = await caller.ask("ModelMetadata", name="pump")
    young = await caller.ask("ModelMetadata", name="young")

    assert (told.name, list(told.versions), told.platform) == ("pump", ["1"], "prunewatch_onnx")
    assert [(it.name, it.datatype, list(it.shape)) for it in told.inputs] == [
        ("values", "FP32", [-1, 2]),
        ("stamps", "INT64", [-1]),
        ("series", "BYTES", [-1]),
    ]
    assert [(it.name, it.datatype, list(it.shape)) for it in told.outputs] == [
        ("score", "FP32", [-1]),
        ("status", "UINT8", [-1]),
        ("anomaly", "BOOL", [-1]),
        ("threshold", "FP32", [1]),
        ("contributions", "FP32", [-1, 2]),
        ("version", "INT64", [-1]),
    ]
    assert (list(young.versions), list(young.inputs[0].shape)) == ([], [-1, -1])


async def test_every_output_that_is_listed_is_answered_as_it_is_listed(pump: Hub, caller: Caller) -> None:
    """ModelMetadata and ModelInfer agree on name, datatype and shape of each output."""
    told = await caller.ask("ModelMetadata", name="pump")
    request = infer_request("pump", values=drawn(5, 2), outputs=tuple(it.name for it in told.outputs))

    response = await caller.ask("ModelInfer", request)

    listed = [(it.name, it.datatype, [5 if size == -1 else size for size in it.shape]) for it in told.outputs]
    assert [(it.name, it.datatype, list(it.shape)) for it in response.outputs] == listed
    assert {name: len(array) for name, array in arrays(response).items()} == dict.fromkeys(
        (it.name for it in told.outputs), 5
    ) | {"threshold": 1}


async def test_configuration_and_index_for_tools(pump: Hub, caller: Caller) -> None:
    """ModelConfig repeats inputs and outputs, with facts of the detector; the index has all detectors or ready ones."""
    await pump.roster.create("young", {})

    config = (await caller.ask("ModelConfig", name="pump")).config
    models = (await caller.ask("RepositoryIndex")).models
    ready = (await caller.ask("RepositoryIndex", ready=True)).models

    assert (config.name, config.max_batch_size, config.backend) == ("pump", 0, "prunewatch")
    assert [(it.name, it.data_type, list(it.dims), it.optional) for it in config.input] == [
        ("values", 11, [-1, 2], False),
        ("stamps", 9, [-1], True),
        ("series", 13, [-1], True),
    ]
    assert [it.data_type for it in config.output] == [11, 2, 1, 11, 11, 9]
    facts = {name: it.string_value for name, it in config.parameters.items()}
    assert json.loads(facts.pop("features")) == ["f1", "f2"]
    assert facts == {"threshold": "3.0", "time": "index", "warm_up_points": "3"}
    assert [(it.name, it.version, it.state) for it in models] == [("pump", "1", "READY"), ("young", "", "UNAVAILABLE")]
    assert "learns" in models[1].reason
    assert [it.name for it in ready] == ["pump"]
    assert await refused(caller.ask("RepositoryIndex", repository_name="x")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "repository_name: there is one repository. Leave it out.",
    )


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig"])
async def test_what_does_not_exist_is_not_found(pump: Hub, caller: Caller, method: str) -> None:
    """The error names the model or the version that was asked for, and what there is instead."""
    model = await refused(caller.ask(method, name="none"))
    version = await refused(caller.ask(method, name="pump", version="7"))

    assert model == (grpc.StatusCode.NOT_FOUND, "name: there is no model 'none'. There are: pump.")
    assert version[0] is grpc.StatusCode.NOT_FOUND
    assert version[1] == (
        "version: version '7' of 'pump' does not serve. Version 1 does; leave it empty for whatever serves."
    )


# points of series


async def test_a_sequence_is_a_series(pump: Hub, caller: Caller, client: Client) -> None:
    """Points with a sequence_id go on from its state, are kept and counted, and can be gone on with natively."""
    values = drawn(30, 2)

    first = await caller.infer("pump", values=values[:10], parameters={"sequence_id": "a"})
    native = await client.score("pump", series=["a"], values=values[10:20])
    last = await caller.infer("pump", values=values[20:], parameters={"sequence_id": "a"})

    together = np.concatenate([first["score"], native.scores, last["score"]])
    np.testing.assert_allclose(together, ewma_scores(values), rtol=1e-5)
    assert first["status"].tolist() == [Status.WARMING_UP] * 3 + [Status.OK] * 7
    assert first["threshold"].tolist() == [3.0]
    hosted = pump.host.get("pump")
    assert (hosted.accepted, hosted.points_kept, series_of(pump)) == (30, 30, {"a": 30})
    labels = {"detector": "pump", "status": "ok"}
    assert pump.metrics.registry.get_sample_value("prunewatch_points_total", labels) == 27


async def test_numbers_and_text_name_the_same_series(pump: Hub, caller: Caller) -> None:
    """A sequence_id of 7 and of "7" is one series; ids that a client had to squeeze into int64 are unsigned again."""
    request = infer_request("pump", values=drawn(1, 2))
    request.parameters["sequence_id"].uint64_param = 2**64 - 1
    for sequence in (7, "7", -1):
        await caller.infer("pump", values=drawn(1, 2), parameters={"sequence_id": sequence})
    await caller.ask("ModelInfer", request)

    assert series_of(pump) == {"7": 2, str(2**64 - 1): 2}


async def test_a_sequence_that_starts_begins_anew(pump: Hub, caller: Caller) -> None:
    """State and stamps of the series before are forgotten; without a start it goes on; other series do not notice."""
    values = drawn(24, 2)
    a = {"sequence_id": 5, "priority": 1, "timeout": 9}
    start = a | {"sequence_start": True}

    first = await caller.infer("pump", values=values[:8], parameters=start)
    await caller.infer("pump", values=values[:4], parameters={"sequence_id": 6, "sequence_start": False})
    begun = await caller.infer(
        "pump", values=values[8:16], stamps=np.arange(8), parameters=a | {"sequence_start": True}
    )
    last = await caller.infer("pump", values=values[16:], parameters=a)
    late = await caller.infer("pump", values=values[:1], stamps=np.array([3]), parameters=a)

    np.testing.assert_allclose(first["score"], ewma_scores(values[:8]), rtol=1e-5)
    together = np.concatenate([begun["score"], last["score"]])
    np.testing.assert_allclose(together, ewma_scores(values[8:]), rtol=1e-5)
    assert late["status"].tolist() == [Status.LATE]
    assert series_of(pump) == {"6": 4, "5": 16}
    assert pump.host.get("pump").points_kept == 28


async def test_a_sequence_that_ends_is_let_go(pump: Hub, caller: Caller) -> None:
    """After its points were scored, and recorded; a message may be a whole sequence."""
    values = drawn(16, 2)
    flags = {"sequence_id": "whole", "sequence_start": True, "sequence_end": True}

    await caller.infer("pump", values=values[:8], parameters={"sequence_id": 1, "sequence_start": True})
    end = await caller.infer("pump", values=values[8:], parameters={"sequence_id": 1, "sequence_end": True})
    between = series_of(pump)
    wholes = [await caller.infer("pump", values=part, parameters=flags) for part in (values[:8], values[8:])]

    np.testing.assert_allclose(end["score"], ewma_scores(values)[8:], rtol=1e-5)
    for part, whole in zip((values[:8], values[8:]), wholes, strict=True):
        np.testing.assert_allclose(whole["score"], ewma_scores(part), rtol=1e-5)
    assert between == series_of(pump) == {}
    assert pump.host.get("pump").points_kept == 32


async def test_all_series_of_a_request_start_and_end(pump: Hub, caller: Caller) -> None:
    """Those that `series` names as well; in a stream as in a call."""
    values = drawn(6, 2)
    start, end = ({"sequence_start": True}, {"sequence_end": True})
    asked = [{}, start, end, {}]
    requests = [infer_request("pump", values=values, series=list("aaabbb"), parameters=it) for it in asked]
    requests.append(infer_request("pump", values=values[:1], series=["c"]))

    answers = await caller.stream(requests)

    statuses = [arrays(it.infer_response)["status"].tolist() for it in answers]
    warm, ok = [Status.WARMING_UP] * 6, [Status.OK] * 6
    assert statuses == [warm, warm, ok, warm, warm[:1]]
    assert series_of(pump) == {"a": 3, "b": 3, "c": 1}


async def test_ephemeral_points_start_and_end_nothing(pump: Hub, caller: Caller) -> None:
    """They leave no trace, so the live series of that name stays."""
    await caller.infer("pump", values=drawn(4, 2), parameters={"sequence_id": 1})
    flags = {"sequence_start": True, "sequence_end": True}

    await caller.infer("pump", values=drawn(4, 2), parameters={"sequence_id": 1, "mode": "ephemeral", **flags})
    await caller.infer("pump", values=drawn(4, 2), parameters=flags)

    assert series_of(pump) == {"1": 4}


async def test_the_first_sequence_tells_the_width(hub: Hub, caller: Caller) -> None:
    """A detector that has seen nothing takes a sequence that starts."""
    await hub.roster.create("young", {"time": "index"})
    flags = {"sequence_id": 1, "sequence_start": True}

    reply = await caller.infer("young", values=drawn(2, 3), parameters=flags)

    assert reply["status"].tolist() == [Status.LEARNING] * 2
    assert series_of(hub, "young") == {"1": 2}


async def test_a_request_that_can_not_be_used_starts_and_ends_nothing(tmp_path: Path) -> None:
    """Whatever is wrong with it; nor does a start or an end that can not be written, and then points are safe."""
    detectors = {"pump": {"features": ["f1", "f2"], "time": "index", "max_series": 3}}
    hub = Hub(hub_settings(tmp_path, detectors=detectors))
    await hub.start()
    await publish(hub, ewma_bundle("pump"))
    flags = {"sequence_start": True, "sequence_end": True}
    async with Caller(hub.listener.port) as caller:
        await caller.infer("pump", values=drawn(10, 2), series=["a", "b"] * 5)
        for bad in ({"values": drawn(1, 3)}, {"stamps": np.arange(3)}, {"outputs": ("OUTPUT0",)}):
            given = {"values": drawn(2, 2), "series": ["a", "b"], **bad}
            assert (await refused(caller.infer("pump", parameters=flags, **given)))[0].name == "INVALID_ARGUMENT"
        many = caller.infer("pump", values=drawn(4, 2), series=list("abcd"), parameters=flags)
        assert (await refused(many))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert series_of(hub) == {"a": 5, "b": 5}

        hub.host.get("pump")._shelf.close()  # as good as a full disk: nothing can be written any more
        start = caller.infer("pump", values=drawn(2, 2), series=["a", "b"], parameters={"sequence_start": True})
        assert (await refused(start))[0] is grpc.StatusCode.INTERNAL
        assert series_of(hub) == {"a": 5, "b": 5}
        end = await caller.infer("pump", values=drawn(2, 2), series=["a", "b"], parameters={"sequence_end": True})
    stays = series_of(hub)
    await hub.stop()

    assert end["status"].tolist() == [Status.OK] * 2
    assert stays == {"a": 6, "b": 6}


async def test_stamps_are_judged_as_everywhere(hub: Hub, caller: Caller, client: Client) -> None:
    """Nanoseconds come as INT64; late and repeated points are not taken; a series without stamps is refused."""
    await publish(hub, ewma_bundle("pump"))
    stamps = NOW + np.array([0, 1, 1, -5, 2])

    reply = await caller.infer("pump", values=drawn(5, 2), stamps=stamps, parameters={"sequence_id": 1})
    code, words = await refused(caller.infer("pump", values=drawn(1, 2), parameters={"sequence_id": 1}))
    fresh = await caller.infer("pump", values=drawn(4, 2))

    warm, again, late = Status.WARMING_UP, Status.DUPLICATE, Status.LATE
    assert reply["status"].tolist() == [warm, warm, again, late, warm]
    assert np.isnan(reply["score"]).all()
    assert (code, words.partition(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "stamps")
    assert fresh["status"].tolist() == [warm] * 3 + [Status.OK]  # points that leave no trace need none
    assert series_of(hub) == {"1": 3}


async def test_many_series_in_one_request(pump: Hub, caller: Caller) -> None:
    """`series` names the series of each point; points of one series are taken in their order."""
    values = drawn(12, 2)
    names = ["b", "a", "a", "b", "b", "a", "b", "a", "b", "b", "a", "ü"]

    reply = await caller.infer("pump", values=values, series=names)

    for name in ("a", "b"):
        rows = [i for i, it in enumerate(names) if it == name]
        np.testing.assert_allclose(reply["score"][rows], ewma_scores(values[rows]), rtol=1e-5)
    assert series_of(pump) == {"b": 6, "a": 5, "ü": 1}


async def test_one_point_of_each_series(pump: Hub, caller: Caller) -> None:
    """A request with one point for each of many series scores as if each had been sent alone."""
    values = drawn(6, 3, 2)

    replies = [await caller.infer("pump", values=points, series=["x", "y", "z"]) for points in values]

    for i in range(3):
        np.testing.assert_allclose([it["score"][i] for it in replies], ewma_scores(values[:, i]), rtol=1e-5)


async def test_anomalies_are_kept_and_announced(pump: Hub, caller: Caller, client: Client) -> None:
    """What a sequence raises is an anomaly like any other, and is in the list that people read."""
    values = np.zeros((6, 2), np.float32)
    values[5] = [4, 12]

    reply = await caller.infer("pump", values=values, parameters={"sequence_id": 9})
    kept = [it async for it in client.anomalies("pump")]

    assert reply["anomaly"].tolist() == [False] * 5 + [True]
    assert [(it.series, it.stamp, it.score) for it in kept] == [("9", 5, 8.0)]


async def test_the_first_points_tell_the_width(hub: Hub, caller: Caller) -> None:
    """A detector that learns takes points of a sequence, answers LEARNING and no version, and then knows its width."""
    await hub.roster.create("young", {"time": "index"})
    request = infer_request("young", values=drawn(2, 3), parameters={"sequence_id": "a"})

    response = await caller.ask("ModelInfer", request)

    assert (response.model_name, response.model_version) == ("young", "")
    assert arrays(response)["status"].tolist() == [Status.LEARNING] * 2
    assert hub.host.get("young").n_features == 3
    assert await refused(caller.infer("young", version="1", values=drawn(1, 3))) == (
        grpc.StatusCode.NOT_FOUND,
        "model_version: version '1' of 'young' does not serve. It has none yet; leave it empty.",
    )


# windows


async def test_points_of_no_sequence_start_afresh(pump: Hub, caller: Caller) -> None:
    """Without a sequence_id, 0 and "" mean the same, points start from a fresh state and leave no trace."""
    values = drawn(8, 2)

    replies = [
        await caller.infer("pump", values=values, parameters=parameters)
        for parameters in ({}, {"sequence_id": 0}, {"sequence_id": ""})
    ]

    for reply in replies:
        np.testing.assert_allclose(reply["score"], ewma_scores(values), rtol=1e-5)
    hosted = pump.host.get("pump")
    assert (hosted.accepted, hosted.points_kept, series_of(pump)) == (0, 0, {})


async def test_windows_know_nothing_of_each_other(pump: Hub, caller: Caller) -> None:
    """Values of shape [B, T, F] are B windows, each scored from a fresh state; outputs have their shape."""
    values = drawn(3, 7, 2)

    reply = await caller.infer("pump", values=values, outputs=("contributions", "score", "version", "status"))

    assert {name: array.shape for name, array in reply.items()} == {
        "contributions": (3, 7, 2),
        "score": (3, 7),
        "version": (3, 7),
        "status": (3, 7),
    }
    for window, scores in zip(values, reply["score"], strict=True):
        np.testing.assert_allclose(scores, ewma_scores(window), rtol=1e-5)
    assert series_of(pump) == {}


async def test_windows_of_one_point(pump: Hub, caller: Caller) -> None:
    """The shortest windows are windows too."""
    reply = await caller.infer("pump", values=drawn(4, 1, 2))

    assert reply["status"].tolist() == [[Status.WARMING_UP]] * 4


async def test_one_window_may_belong_to_a_sequence(pump: Hub, caller: Caller) -> None:
    """Clients that always send a batch dimension of 1 can score a series; answers have their shape."""
    values = drawn(1, 6, 2)

    reply = await caller.infer("pump", values=values, parameters={"sequence_id": 3})

    np.testing.assert_allclose(reply["score"], ewma_scores(values[0])[None], rtol=1e-5)
    assert series_of(pump) == {"3": 6}


async def test_the_mode_can_be_said(pump: Hub, caller: Caller) -> None:
    """`mode: ephemeral` scores named series without a trace; `live` insists on a series."""
    values = drawn(6, 2)
    ephemeral = {"mode": "ephemeral"}

    named = await caller.infer("pump", values=values, series=list("ababab"), parameters=ephemeral)
    sequence = await caller.infer("pump", values=values, parameters={**ephemeral, "sequence_id": 1})
    live = await refused(caller.infer("pump", values=values, parameters={"mode": "live"}))

    np.testing.assert_allclose(sequence["score"], ewma_scores(values), rtol=1e-5)
    assert named["status"].tolist() == [Status.WARMING_UP] * 6
    assert (live[0], live[1].partition(":")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "sequence_id")
    assert series_of(pump) == {}


# how it is asked and answered


async def test_outputs_are_those_asked_for(pump: Hub, caller: Caller) -> None:
    """In the order asked for; without any, the usual ones; id and version come back."""
    request = infer_request("pump", id="r1", version="1", values=drawn(5, 2), outputs=("version", "score"))

    some = await caller.ask("ModelInfer", request)
    usual = await caller.infer("pump", values=drawn(5, 2))

    assert (some.id, some.model_name, some.model_version) == ("r1", "pump", "1")
    assert list(arrays(some)) == ["version", "score"]
    assert arrays(some)["version"].tolist() == [1] * 5
    assert list(usual) == ["score", "status", "anomaly", "threshold"]


@pytest.mark.slow
async def test_each_point_names_its_version(pump: Hub, caller: Caller) -> None:
    """Where another version takes over within a request, `version` says of each point which one scored it."""
    values = np.zeros((40_000, 2), np.float32)
    request = infer_request("pump", values=values, outputs=("version", "score"), parameters={"sequence_id": 1})

    answering = asyncio.create_task(caller.ask("ModelInfer", request))
    await eventually(lambda: asyncio.sleep(0, series_of(pump)))
    await publish(pump, ewma_bundle("pump", version=2))
    response = await answering

    versions = arrays(response)["version"].tolist()
    assert (versions[0], versions[-1], response.model_version) == (1, 2, "2")
    assert versions == sorted(versions)


async def test_contributions_are_shares_of_the_error(pump: Hub, caller: Caller) -> None:
    """Each point that has a score has each feature's share of its error; others have zeros."""
    values = np.array([[0, 0]] * 4 + [[1, 3], [5, 0]], np.float32)

    reply = await caller.infer("pump", values=values, outputs=("contributions",))

    expected = [[0, 0]] * 4 + [[0.25, 0.75], [4.9 / 5.2, 0.3 / 5.2]]
    np.testing.assert_allclose(reply["contributions"], expected, rtol=1e-5)


async def test_typed_contents_score_as_raw_ones(pump: Hub, caller: Caller) -> None:
    """KServe's clients send numbers, Triton's bytes; the scores are the same to the bit."""
    given = {"values": drawn(6, 2), "stamps": np.arange(6), "series": list("aabbab")}

    raw, typed = [
        await caller.infer("pump", **given, typed=typed, parameters={"mode": "ephemeral"}) for typed in (False, True)
    ]

    assert raw["score"].tobytes() == typed["score"].tobytes()
    assert raw["status"].tobytes() == typed["status"].tobytes()


def with_inputs(**changes):
    """A request with one good sequence, changed: fields of the tensor `values`, or of the request."""
    request = infer_request("pump", values=drawn(2, 2), parameters={"sequence_id": "a"})
    tensor = request.inputs[0]
    for name, value in changes.items():
        if name == "shape":
            tensor.shape[:] = value
        elif name == "raw":
            request.raw_input_contents[:] = value
        else:
            setattr(tensor, name, value)
    return request


def shared(*, of_output: bool):
    """A request for shared memory."""
    request = with_inputs()
    tensor = request.outputs.add(name="score") if of_output else request.inputs[0]
    tensor.parameters["shared_memory_region"].string_param = "region"
    return request


def both_contents():
    """Raw and typed contents."""
    request = with_inputs()
    request.inputs[0].contents.fp32_contents.append(1)
    return request


def other_contents():
    """FP32 with doubles beside them."""
    request = with_inputs(raw=[])
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    request.inputs[0].contents.fp64_contents.extend([1, 2, 3, 4])
    return request


def no_utf8():
    """A name that is no text."""
    request = infer_request("pump", values=drawn(1, 2), series=["a"])
    request.raw_input_contents[1] = b"\x01\0\0\0\xff"
    return request


def cut_names():
    """Names that end too early."""
    request = infer_request("pump", values=drawn(1, 2), series=["a"])
    request.raw_input_contents[1] = b"\x05\0\0\0ab"
    return request


def one(**given):
    """A request of a sequence."""
    parameters = {"sequence_id": "a"} | given.pop("parameters", {})
    return infer_request("pump", **{"values": drawn(2, 2), "parameters": parameters, **given})


def one_input_twice():
    """The same input again."""
    request = with_inputs()
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])
    return request


BAD = {
    "no inputs": (lambda: infer_request("pump"), "values"),
    "no points": (lambda: one(values=np.zeros((0, 2), np.float32)), "values"),
    "one dimension": (lambda: one(values=drawn(2)), "values"),
    "four dimensions": (lambda: one(values=drawn(1, 1, 2, 2)), "values"),
    "too wide": (lambda: one(values=drawn(4, 3)), "values"),
    "too narrow": (lambda: one(values=drawn(4, 1)), "values"),
    "windows of a sequence": (lambda: one(values=drawn(2, 3, 2)), "values"),
    "windows of series": (
        lambda: infer_request("pump", values=drawn(1, 2, 2), series=["a", "a"]),
        "values",
    ),
    "doubles": (lambda: one(values=np.zeros((2, 2))), "values"),
    "an unknown datatype": (lambda: with_inputs(datatype="x" * 1000), "values"),
    "no datatype": (lambda: with_inputs(datatype=""), "values"),
    "an unknown input": (lambda: with_inputs(name="INPUT0" * 100), "inputs"),
    "an input twice": (one_input_twice, "values"),
    "a negative size": (lambda: with_inputs(shape=[-1, 2]), "values"),
    "an absurd size": (lambda: with_inputs(shape=[2**62, 2**62]), "values"),
    "nothing of an absurd size": (lambda: with_inputs(shape=[0, 2**63 - 1], raw=[b""]), "values"),
    "absurd dimensions": (lambda: with_inputs(shape=[1] * 1000), "values"),
    "half a float": (lambda: with_inputs(raw=[b"123"]), "values"),
    "too few bytes": (lambda: with_inputs(raw=[bytes(8)]), "values"),
    "too much raw": (lambda: with_inputs(raw=[bytes(16), b""]), "raw_input_contents"),
    "contents twice": (both_contents, "values"),
    "no contents": (lambda: with_inputs(raw=[]), "values"),
    "other contents": (other_contents, "values"),
    "shared memory": (lambda: shared(of_output=False), "values"),
    "shared memory for outputs": (lambda: shared(of_output=True), "outputs"),
    "an unknown output": (lambda: one(outputs=("OUTPUT0" * 100,)), "outputs"),
    "an output twice": (lambda: one(outputs=("score", "score")), "outputs"),
    "stamps do not fit": (lambda: one(stamps=np.arange(3)), "stamps"),
    "stamps of another shape": (lambda: one(stamps=np.arange(2)[None]), "stamps"),
    "short stamps": (lambda: one(stamps=np.arange(2, dtype=np.int32)), "stamps"),
    "too few names": (lambda: infer_request("pump", values=drawn(2, 2), series=["a"]), "series"),
    "an empty name": (lambda: infer_request("pump", values=drawn(1, 2), series=[""]), "series"),
    "a long name": (lambda: infer_request("pump", values=drawn(1, 2), series=["x" * 300]), "series"),
    "a long sequence_id": (lambda: one(parameters={"sequence_id": "x" * 300}), "series"),
    "a name that is no text": (no_utf8, "series"),
    "names that are cut": (cut_names, "series"),
    "the series twice": (lambda: one(series=["a", "b"]), "series"),
    "a sequence_id that is none": (lambda: one(parameters={"sequence_id": 1.5}), "sequence_id"),
    "an unknown mode": (lambda: one(parameters={"mode": "x" * 1000}), "mode"),
    "a mode that is no text": (lambda: one(parameters={"mode": True}), "mode"),
    "a start that is no truth": (lambda: one(parameters={"sequence_start": 1}), "sequence_start"),
    "an end that is no truth": (lambda: one(parameters={"sequence_end": "true"}), "sequence_end"),
    "a long id": (lambda: one(id="x" * 100_000), "id"),
    "too many points": (lambda: one(values=np.zeros((65_537, 2), np.float32)), "values"),
}


@pytest.mark.promise("I2")
@pytest.mark.parametrize("change", BAD)
async def test_bad_requests_name_the_input_and_change_nothing(pump: Hub, caller: Caller, change: str) -> None:
    """What can not be used is INVALID_ARGUMENT in few words that begin with the input's name; no series appears."""
    make, field = BAD[change]

    code, words = await refused(caller.ask("ModelInfer", make()))

    assert (code, words.partition(": ")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert len(words) < 400
    assert series_of(pump) == {}


async def test_classification_is_refused(pump: Hub, caller: Caller) -> None:
    """Triton's classification of outputs makes no sense of scores."""
    request = one(outputs=("score",))
    request.outputs[0].parameters["classification"].int64_param = 3

    assert (await refused(caller.ask("ModelInfer", request)))[1].startswith("outputs: output 'score' can not come with")


async def test_unknown_models_are_not_found(pump: Hub, caller: Caller) -> None:
    """An unknown detector, whatever it is called, and a version that does not serve are NOT_FOUND."""
    unknown = await refused(caller.infer("x" * 10_000, values=drawn(1, 2)))
    version = await refused(caller.infer("pump", version="2", values=drawn(1, 2), parameters={"sequence_id": 1}))

    assert (unknown[0], version[0]) == (grpc.StatusCode.NOT_FOUND,) * 2
    assert (unknown[1][:11], len(unknown[1]) < 400) == ("model_name:", True)
    assert version[1].startswith("model_version: version '2' of 'pump' does not serve. Version 1 does")
    assert series_of(pump) == {}


async def test_an_answer_that_could_not_be_sent_is_refused_before_points_are_taken(tmp_path: Path) -> None:
    """An answer may be larger than what was sent; then the points are not taken, instead of lost on the way back."""
    hub = Hub(hub_settings(tmp_path, max_message_bytes=65536))
    await hub.start()
    await publish(hub, ewma_bundle("pump", n_features=2), time="index")
    sequence = {"sequence_id": "a"}
    async with Caller(hub.listener.port) as caller:
        values = drawn(7000, 2)
        code, words = await refused(
            caller.infer("pump", values=values, outputs=("contributions", "score"), parameters=sequence)
        )
        before = series_of(hub)
        reply = await caller.infer("pump", values=values, outputs=("contributions",), parameters=sequence)
    await hub.stop()

    assert (code, words.partition(":")[0], before) == (grpc.StatusCode.INVALID_ARGUMENT, "outputs", {})
    assert reply["contributions"].shape == (7000, 2)


async def test_points_outlive_no_deleted_detector(pump: Hub, caller: Caller, client: Client) -> None:
    """A detector that is deleted is a model that there is not."""
    await client.delete("pump")

    assert (await refused(caller.infer("pump", values=drawn(1, 2))))[0] is grpc.StatusCode.NOT_FOUND


# streams


async def test_a_stream_answers_each_message_in_order(pump: Hub, caller: Caller) -> None:
    """Messages of a stream are those of ModelInfer: any detector, any series, each with its id."""
    values = drawn(10, 2)
    await publish(pump, ewma_bundle("fan", version=1, n_features=1), time="index")
    requests = [
        infer_request("pump", id="1", values=values[:5], parameters={"sequence_id": 1}),
        infer_request("fan", id="2", values=drawn(4, 1)),
        infer_request("pump", id="3", values=values[5:], parameters={"sequence_id": 1}),
    ]

    answers = await caller.stream(requests)

    assert [it.infer_response.id for it in answers] == ["1", "2", "3"]
    assert [it.error_message for it in answers] == [""] * 3
    assert all(it.infer_response.parameters["triton_final_response"].bool_param for it in answers)
    scores = [arrays(it.infer_response)["score"] for it in answers]
    np.testing.assert_allclose(np.concatenate([scores[0], scores[2]]), ewma_scores(values), rtol=1e-5)


async def test_a_bad_message_does_not_end_a_stream(pump: Hub, caller: Caller) -> None:
    """Each message that can not be used, garbage too, gets its error and the id of its request; the next is scored."""
    values = drawn(2, 2)
    bad = [make() for make, _ in BAD.values()]
    good = [infer_request("pump", values=values[i : i + 1], parameters={"sequence_id": 1}) for i in (0, 1)]
    unknown = infer_request("none", id="u", values=values)

    answers = await caller.stream([good[0], unknown, b"\xff\xff\xff", *bad, good[1]])

    assert [bool(it.error_message) for it in answers] == [False, True, True, *[True] * len(bad), False]
    assert (answers[1].infer_response.id, answers[1].infer_response.model_name) == ("u", "none")
    assert all(it.infer_response.parameters["triton_final_response"].bool_param for it in answers)
    assert answers[1].error_message == "model_name: there is no model 'none'. There are: pump."
    assert answers[2].error_message == "the message is not a valid protobuf of this method's request. Check the client."
    assert not [word for word in INTERNALS for it in answers if word in it.error_message]
    assert series_of(pump) == {"1": 2}
    timed = {"method": "GRPCInferenceService/ModelStreamInfer"}
    assert pump.metrics.registry.get_sample_value("prunewatch_message_seconds_count", timed) == len(answers)


async def test_streams_and_calls_interleave(pump: Hub, caller: Caller, client: Client) -> None:
    """Many clients of both protocols at once, each with its series: every series scores as if it were alone."""
    values = drawn(8, 20, 2)

    async def triton(i: int) -> np.ndarray:
        parts = [
            await caller.infer("pump", values=values[i, t : t + 1], parameters={"sequence_id": i + 1})
            for t in range(20)
        ]
        return np.concatenate([it["score"] for it in parts])

    async def native(i: int) -> np.ndarray:
        parts = [await client.score("pump", series=[f"n{i}"], values=values[i, t : t + 1]) for t in range(20)]
        return np.concatenate([it.scores for it in parts])

    ours = await asyncio.gather(*(triton(i) for i in range(8)))
    both = await asyncio.gather(*(kind(i) for i in range(8) for kind in (triton, native)))

    for i in range(8):
        np.testing.assert_allclose(ours[i], ewma_scores(values[i]), rtol=1e-5)
        twice = ewma_scores(np.concatenate([values[i], values[i]]))[20:]
        np.testing.assert_allclose(both[2 * i], twice, rtol=1e-5)
        assert both[2 * i + 1].tobytes() == ours[i].tobytes()


# what is not asked for


@pytest.mark.parametrize("method", METHODS)
async def test_bytes_that_are_no_protobuf_are_invalid_arguments(pump: Hub, caller: Caller, method: str) -> None:
    """Garbage on any method is INVALID_ARGUMENT, or the answer to that message, in words of ours."""
    garbage = b"\xff\xff\xff\xff"
    if METHODS[method].client_streaming:
        (answer,) = await caller.stream([garbage])
        words = answer.error_message
    else:
        code, words = await refused(caller.channel.unary_unary(path(method))(garbage))
        assert code is grpc.StatusCode.INVALID_ARGUMENT

    assert "not a valid protobuf" in words
    assert not [it for it in INTERNALS if it in words]


async def test_methods_that_are_not_served_are_unimplemented(pump: Hub, caller: Caller) -> None:
    """What Triton has beyond this says UNIMPLEMENTED, which its clients understand."""
    for method in ("ModelStatistics", "RepositoryModelLoad", "SystemSharedMemoryStatus", "TraceSetting"):
        code, _ = await refused(caller.channel.unary_unary(path(method))(b""))
        assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_and_health_know_the_service(pump: Hub, caller: Caller) -> None:
    """No tool needs files: the service is listed and described beside the others, and has a health of its own."""
    ask = reflection_pb2.ServerReflectionRequest
    questions = [
        ask(list_services=""),
        ask(file_containing_symbol=inference.SERVICE_NAME),
        ask(file_containing_symbol="prunewatch.v1.ScoringService"),
        ask(file_by_filename="prunewatch/inference/inference.proto"),
        ask(file_containing_symbol="inference.None"),
        ask(all_extension_numbers_of_type="inference.ModelInferRequest"),
    ]

    call = reflection_pb2_grpc.ServerReflectionStub(caller.channel).ServerReflectionInfo(iter(questions))
    listed, ours, native, by_name, unknown, extensions = [answer async for answer in call]
    health = await health_pb2_grpc.HealthStub(caller.channel).Check(
        health_pb2.HealthCheckRequest(service=inference.SERVICE_NAME)
    )

    names = {it.name for it in listed.list_services_response.service}
    assert {inference.SERVICE_NAME, "prunewatch.v1.ScoringService", "grpc.health.v1.Health"} <= names
    (raw,) = ours.file_descriptor_response.file_descriptor_proto
    file = descriptor_pb2.FileDescriptorProto.FromString(raw)
    assert {it.name for it in file.service[0].method} == set(METHODS)
    assert by_name.file_descriptor_response == ours.file_descriptor_response
    assert native.file_descriptor_response.file_descriptor_proto
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert extensions.all_extension_numbers_response.base_type_name == "inference.ModelInferRequest"
    assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_every_input_and_output_is_documented() -> None:
    """docs/inference-protocol.md has a row for each, with its datatype."""
    page = (Path(__file__).parent.parent / "docs" / "inference-protocol.md").read_text()

    for kind in (*INPUTS.values(), *OUTPUTS.values()):
        assert f"| `{kind.name}` | `{kind.datatype}` |" in page
    for mode in MODES:
        assert f"`{mode}`" in page


def test_the_default_pool_is_left_alone() -> None:
    """Nothing of the package `inference` is registered where a client library would register its own."""
    for find, name in (
        ("FindFileByName", "prunewatch/inference/inference.proto"),
        ("FindMessageTypeByName", "inference.ModelInferRequest"),
        ("FindServiceByName", inference.SERVICE_NAME),
    ):
        with pytest.raises(KeyError):
            getattr(descriptor_pool.Default(), find)(name)


async def test_an_edge_serves_it_too() -> None:
    """A device answers the same protocol, with its one bundle as the one model."""
    settings = hub_settings(Path("unused"))
    edge = Edge(ewma_bundle("pump", version=4), settings, config=DetectorConfig(time="index"))
    await edge.start()
    values = drawn(6, 2)
    async with Caller(edge.listener.port) as caller:
        models = (await caller.ask("RepositoryIndex")).models
        response = await caller.ask("ModelInfer", infer_request("pump", values=values, parameters={"sequence_id": 1}))
    await edge.stop()

    assert [(it.name, it.version, it.state) for it in models] == [("pump", "4", "READY")]
    assert response.model_version == "4"
    np.testing.assert_allclose(arrays(response)["score"], ewma_scores(values), rtol=1e-5)
