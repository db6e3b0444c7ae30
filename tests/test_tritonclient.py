"""Existing clients work as they are: the real tritonclient, in an environment of its own, against a real hub.

The environment is made once in `.cache/tritonclient` of the checkout (tritonclient needs a protobuf that the hub's own
environment need not have); where the package index can not be reached these tests are skipped, and say so.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NOW, publish
from graphs import ewma_bundle

from detectors.stamps import Status
from prunewatch.client import Client
from server.app import Hub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent
REQUIREMENT = "tritonclient[grpc]==2.73.0"
FOLDER = ROOT / ".cache" / "tritonclient"
DRIVER = Path(__file__).with_name("tritonclient_driver.py")
RNG = np.random.default_rng(13)


@pytest.fixture(scope="session")
def triton_python() -> Path:
    """The interpreter of an environment that has tritonclient."""
    python, done = FOLDER / "bin" / "python", FOLDER / "installed"
    if not done.is_file() or done.read_text() != REQUIREMENT:
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries", "1", REQUIREMENT]
        ended = subprocess.run(install, check=False, capture_output=True, text=True)
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"{REQUIREMENT} can not be installed: {last}")
        done.write_text(REQUIREMENT)
    return python


class Driver:
    """A process with tritonclient that calls a hub."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self._process = process
        self._address = address

    async def __call__(self, do: str, **given: Any) -> Any:
        """What one function of the driver gives."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, "address": self._address, **given}).encode() + b"\n")
        await self._process.stdin.drain()
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        assert line, "the driver has ended"
        return json.loads(line)


@pytest.fixture
async def triton(triton_python: Path, hub: Hub):
    """Calls `hub` through tritonclient."""
    process = await asyncio.create_subprocess_exec(
        triton_python, DRIVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=64 << 20
    )
    yield Driver(process, f"127.0.0.1:{hub.listener.port}")
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 30) == 0


@pytest.fixture
async def pump(hub: Hub) -> Hub:
    """`hub` with `pump` and its twin, of two features, which take row numbers."""
    for name in ("pump", "twin"):
        await publish(hub, ewma_bundle(name), time="index")
    return hub


def drawn(*shape: int) -> np.ndarray:
    """Random points."""
    return RNG.normal(size=shape).astype(np.float32)


def request(values: np.ndarray, *, datatype: str = "FP32", model: str = "pump", **given: Any) -> dict[str, Any]:
    """Arguments of tritonclient's `infer`; `given` may have inputs beside `values`."""
    inputs = {"values": (datatype, values.tolist()), **given.pop("inputs", {})}
    return {"model_name": model, "inputs": inputs, **given}


def scores(answer: dict[str, Any]) -> bytes:
    """The bits of the scores."""
    return bytes.fromhex(answer["outputs"]["score"]["hex"])


async def test_everything_that_can_be_asked_is_answered(pump: Hub, triton: Driver) -> None:
    """Health, metadata, configuration and index are what tritonclient's methods make of them."""
    about = await triton("ask", method="get_server_metadata", as_json=True)
    metadata = await triton("ask", method="get_model_metadata", model_name="pump", as_json=True)
    config = await triton("ask", method="get_model_config", model_name="pump", as_json=True)
    index = await triton("ask", method="get_model_repository_index", as_json=True)

    assert await triton("ask", method="is_server_live")
    assert await triton("ask", method="is_server_ready")
    ready = [await triton("ask", method="is_model_ready", model_name=name) for name in ("pump", "none")]
    assert ready == [True, False]
    assert about["name"] == "prunewatch"
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"][0] == {"name": "values", "datatype": "FP32", "shape": ["-1", "2"]}
    assert [it["data_type"] for it in config["config"]["input"]] == ["TYPE_FP32", "TYPE_INT64", "TYPE_STRING"]
    assert config["config"]["input"][1]["optional"] is True
    assert config["config"]["parameters"]["warm_up_points"] == {"string_value": "3"}
    assert [(it["name"], it["state"]) for it in index["models"]] == [("pump", "READY"), ("twin", "READY")]


@pytest.mark.parametrize("sequence", [42, "north"])
async def test_both_clients_score_one_series_bit_for_bit(
    pump: Hub, triton: Driver, client: Client, sequence: int | str
) -> None:
    """A series whose points come from tritonclient and from ours in turn scores as its twin, which only ours feeds."""
    values = drawn(40, 2)

    first = await triton("infer", **request(values[:10], sequence_id=sequence, sequence_start=True))
    second = await client.score("pump", series=[str(sequence)], values=values[10:20])
    third = await triton("infer", **request(values[20:30], sequence_id=sequence))
    fourth = await client.score("pump", series=[str(sequence)], values=values[30:])
    twin = await client.score("twin", series=["x"], values=values)

    together = scores(first) + second.scores.tobytes() + scores(third) + fourth.scores.tobytes()
    assert together == twin.scores.tobytes()
    assert first["version"] == "1"
    assert {name: (it["dtype"], it["shape"]) for name, it in first["outputs"].items()} == {
        "score": ("float32", [10]),
        "status": ("uint8", [10]),
        "anomaly": ("bool", [10]),
        "threshold": ("float32", [1]),
    }
    assert first["outputs"]["status"]["hex"] == bytes([Status.WARMING_UP] * 3 + [Status.OK] * 7).hex()
    assert pump.host.get("pump").accepted == 40


async def test_streams_score_bit_for_bit(pump: Hub, triton: Driver, client: Client) -> None:
    """`async_stream_infer` sends without waiting; answers come in order, errors as errors of their message."""
    values = drawn(30, 2)
    requests = [request(point[None], sequence_id="s", request_id=str(i)) for i, point in enumerate(values)]
    requests.insert(10, request(values[:1], model="none", request_id="unknown"))
    requests.insert(20, request(drawn(1, 3), sequence_id="s", request_id="wide"))

    answers = await triton("stream", requests=requests)
    twin = await client.score("twin", series=["x"], values=values)

    errors = {i: it["error"] for i, it in enumerate(answers) if "error" in it}
    assert sorted(errors) == [10, 20]
    assert errors[10].startswith("model_name: there is no model 'none'.")
    assert errors[20].startswith("values: these points have 3 features, the detector has 2.")
    good = [it for it in answers if "error" not in it]
    assert [it["id"] for it in good] == [str(i) for i in range(30)]
    assert b"".join(map(scores, good)) == twin.scores.tobytes()


async def test_sequences_start_and_end(pump: Hub, triton: Driver, client: Client) -> None:
    """`sequence_start` and `sequence_end` as the library sends them: an id may be used again for something else."""
    values = drawn(24, 2)
    flags = [{"sequence_start": True}, {}, {"sequence_end": True}] * 2
    requests = [
        request(part, sequence_id=7, **given) for part, given in zip(values.reshape(6, 4, 2), flags, strict=True)
    ]

    about = await triton("ask", method="get_server_metadata", as_json=True)
    answers = [await triton("infer", **it) for it in requests[:3]] + await triton("stream", requests=requests[3:])
    twins = [await client.score("twin", series=[name], values=values[i : i + 12]) for i, name in ((0, "x"), (12, "y"))]

    assert "sequence" in about["extensions"]
    assert b"".join(map(scores, answers)) == b"".join(twin.scores.tobytes() for twin in twins)
    assert [it async for it in client.series("pump")] == []
    assert pump.host.get("pump").accepted == 24


async def test_many_requests_at_once(pump: Hub, triton: Driver, client: Client) -> None:
    """`async_infer` has all its requests on their way together; every series scores as its twin does."""
    values = drawn(16, 12, 2)

    answers = await triton("async_infer", requests=[request(it, sequence_id=i + 1) for i, it in enumerate(values)])

    for i, answer in enumerate(answers):
        twin = await client.score("twin", series=[str(i)], values=values[i])
        assert scores(answer) == twin.scores.tobytes()


async def test_the_asyncio_client_works_too(pump: Hub, triton: Driver, client: Client) -> None:
    """`tritonclient.grpc.aio`: calls, then a stream, of one series."""
    values = drawn(8, 2)
    requests = [request(values[:4], sequence_id=1), request(values[4:], sequence_id=1)]

    answers = await triton("aio", requests=requests)
    twin = await client.score("twin", series=["x"], values=np.concatenate([values, values]))

    assert b"".join(map(scores, answers)) == twin.scores.tobytes()


async def test_windows_and_many_series(pump: Hub, triton: Driver, client: Client) -> None:
    """Windows start afresh as an ephemeral score does; `series` and `stamps` name the points of many series."""
    windows, values = drawn(2, 9, 2), drawn(6, 2)
    names = ["a", "b", "b", "a", "a", "b"]
    others = {"series": ("BYTES", names), "stamps": ("INT64", [0, 0, 1, 1, 2, 2])}

    fresh = await triton("infer", **request(windows))
    many = await triton("infer", **request(values, inputs=others, outputs=["contributions", "score"]))
    again = await triton("infer", **request(values, inputs=others, outputs=["status"]))
    alone = [await client.score("twin", values=window, ephemeral=True) for window in windows]
    twin = await client.score("twin", series=["a", "b"], series_index=[0, 1, 1, 0, 0, 1], values=values)

    assert fresh["outputs"]["score"]["shape"] == [2, 9]
    assert scores(fresh) == b"".join(it.scores.tobytes() for it in alone)
    assert scores(many) == twin.scores.tobytes()
    assert many["outputs"]["contributions"]["shape"] == [6, 2]
    assert again["outputs"]["status"]["hex"] == bytes([Status.LATE, Status.LATE] * 2 + [Status.DUPLICATE] * 2).hex()


async def test_typed_contents_score_bit_for_bit(pump: Hub, triton: Driver, client: Client) -> None:
    """Numbers instead of bytes, as KServe's clients send them, over tritonclient's own stubs."""
    values = drawn(9, 2)

    answer = await triton("typed", model_name="pump", values=values.tolist(), sequence_id="t")
    twin = await client.score("twin", series=["x"], values=values)

    assert scores(answer) == twin.scores.tobytes()


async def test_time_stamps(hub: Hub, triton: Driver, client: Client) -> None:
    """Nanoseconds go through int64 unharmed; without them a series of a detector with time is refused."""
    await publish(hub, ewma_bundle("pump"))
    values, stamps = drawn(5, 2), (NOW + np.arange(5)).tolist()

    taken = await triton("infer", **request(values, inputs={"stamps": ("INT64", stamps)}, sequence_id=1))
    refused = await triton("infer", **request(values, sequence_id=1))

    assert taken["outputs"]["status"]["hex"] == bytes([Status.WARMING_UP] * 3 + [Status.OK] * 2).hex()
    assert refused["status"] == "StatusCode.INVALID_ARGUMENT"
    assert refused["error"].startswith("stamps: this detector wants time stamps.")


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        (request(drawn(1, 2), model="none"), "NOT_FOUND", "model_name: there is no model 'none'."),
        (request(drawn(1, 2), model_version="9"), "NOT_FOUND", "model_version: version '9' of 'pump' does not serve."),
        (request(drawn(4, 3)), "INVALID_ARGUMENT", "values: these points have 3 features, the detector has 2."),
        (request(drawn(2)), "INVALID_ARGUMENT", "values: the shape is [2]."),
        (request(drawn(1, 2), datatype="FP64"), "INVALID_ARGUMENT", "values: the datatype is 'FP64', not FP32."),
        (request(drawn(1, 2), outputs=["OUTPUT0"]), "INVALID_ARGUMENT", "outputs: there is no output 'OUTPUT0'."),
        (request(drawn(1, 2), parameters={"mode": "dead"}), "INVALID_ARGUMENT", "mode: there is no mode 'dead'."),
    ],
)
async def test_errors_reach_the_client(pump: Hub, triton: Driver, asked: dict, status: str, words: str) -> None:
    """Code and words of what can not be used are those that InferenceServerException has."""
    answer = await triton("infer", **asked)

    assert answer["status"] == f"StatusCode.{status}"
    assert answer["error"].startswith(words)


async def test_what_is_not_served_says_so(pump: Hub, triton: Driver) -> None:
    """Statistics and loading of models are UNIMPLEMENTED."""
    for method in ("get_inference_statistics", "load_model"):
        answer = await triton("ask", method=method, model_name="pump")
        assert answer["status"] == "StatusCode.UNIMPLEMENTED"


async def test_the_example_of_the_documentation_runs(
    triton_python: Path, hub: Hub, client: Client, tmp_path: Path
) -> None:
    """docs/inference-protocol.md scores a CSV; only the server's address is replaced."""
    await publish(hub, ewma_bundle("pump"))
    page = (ROOT / "docs" / "inference-protocol.md").read_text()
    (source,) = re.findall(r"^```python\n# triton.py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "triton.py").write_text(source.replace("127.0.0.1:8001", f"127.0.0.1:{hub.listener.port}"))
    rows = np.column_stack([1_700_000_000 + np.arange(20), drawn(20, 2)])
    rows[15, 1:] = 12
    np.savetxt(tmp_path / "test.csv", rows, "%.10g", delimiter=",", header="time,flow,pressure", comments="")

    process = await asyncio.create_subprocess_exec(
        triton_python, "triton.py", cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    printed = (await process.communicate())[0].decode()

    assert process.returncode == 0, printed
    score, threshold, anomalies, version = printed.split()
    assert (float(threshold), anomalies, version) == (3.0, "[15]", "1")
    again = await client.score("pump", series=["alone"], values=rows[:, 1:], ephemeral=True)
    assert float(score) == pytest.approx(float(again.scores[-1]))


COMPARED = """
import sys
for module in sys.argv[1:]:
    __import__(module)
from prunewatch import inference
from tritonclient.grpc import service_pb2
theirs, ours = service_pb2.DESCRIPTOR.pool, inference.POOL
assert theirs is not ours
seen = 0
def compare(name):
    global seen
    mine, other = ours.FindMessageTypeByName(name), theirs.FindMessageTypeByName(name)
    for field in mine.fields:
        twin = other.fields_by_name[field.name]
        shape = lambda it: (it.number, it.type, it.is_repeated, it.message_type and it.message_type.full_name)
        assert shape(field) == shape(twin), field.full_name
        if field.enum_type:
            for value in field.enum_type.values:
                assert twin.enum_type.values_by_name[value.name].number == value.number, value.name
        seen += 1
    for nested in mine.nested_types:
        compare(nested.full_name)
file = ours.FindFileByName("prunewatch/inference/inference.proto")
for name in file.message_types_by_name:
    compare(f"inference.{name}")
served = theirs.FindServiceByName(inference.SERVICE_NAME)
for method in inference.SERVICE.methods:
    twin = served.methods_by_name[method.name]
    shape = lambda it: (it.input_type.full_name, it.output_type.full_name, it.client_streaming, it.server_streaming)
    assert shape(method) == shape(twin), method.name
print(seen)
"""


@pytest.mark.parametrize("order", [("prunewatch.inference", "tritonclient.grpc"), ("tritonclient.grpc", "numpy")])
def test_both_live_in_one_process_and_speak_one_language(triton_python: Path, order: tuple[str, str]) -> None:
    """Whichever is imported first; every field, enum value and method that we have is theirs too, number by number."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "compared.py").write_text(COMPARED)
        ended = subprocess.run(
            [triton_python, Path(folder) / "compared.py", *order],
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT / "proto")},
            capture_output=True,
            text=True,
        )

    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 80
