"""What may be inside a step graph: our exports pass, whatever else a file can bring is refused before it is loaded."""

from __future__ import annotations

import io
import json
import pickle
import random
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import joblib
import numpy as np
import onnx
import pytest
import torch
from fits import SMALL, untrained
from graphs import ewma_bundle, ewma_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from detectors.archive import load_bundle, pack_bundle
from detectors.bundle import GRAPH, MANIFEST, make_bundle, write_bundle
from detectors.embedded import Detector
from detectors.errors import CorruptBundleError
from detectors.graph_check import MAX_GRAPH_BYTES, check_graph
from detectors.runtime import Runtime
from detectors.served import Served
from detectors.training.export import step_graph
from detectors.training.fitted import ErrorOptions
from detectors.trial import try_bundles

FOUR = 4
SECONDS, MEMORY = 1.0, 4 << 20
"""In which anything is refused."""


@cache
def exported(kind: str, missing: str = "reject") -> bytes:
    """A step graph of ours."""
    return step_graph(untrained(kind, FOUR, error=ErrorOptions(missing=missing)))


@pytest.mark.promise("S5/6")
@pytest.mark.parametrize("missing", ["reject", "carry"])
@pytest.mark.parametrize("kind", SMALL)
def test_every_export_of_ours_passes(kind: str, missing: str) -> None:
    """All kinds of networks, with and without missing values, also beside what their manifest says."""
    fitted = untrained(kind, FOUR)

    check_graph(exported(kind, missing), fitted.network.parameters_count)


def refused(graph: bytes, match: str | None = None) -> None:
    """Fails unless a file is refused, quickly and without memory."""
    began = time.process_time()
    with pytest.raises(CorruptBundleError, match=match):
        check_graph(graph)
    assert time.process_time() - began < SECONDS
    tracemalloc.start()
    try:
        with pytest.raises(CorruptBundleError):
            check_graph(graph)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY
    with pytest.raises(CorruptBundleError):
        Runtime(graph)


class Evil:
    """Would run when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code of a file was run",))


def saved(save: Callable[[object, io.BytesIO], object]) -> bytes:
    """What a library writes of something that runs code when it is read."""
    file = io.BytesIO()
    save({"weights": Evil()}, file)
    return file.getvalue()


def slipping(kind: bytes) -> bytes:
    """A tar with a member that leaves the folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("../../step.onnx")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    return file.getvalue()


FOREIGN = {
    "nothing": b"",
    "zeros": bytes(1 << 20),
    "pickle": pickle.dumps(Evil()),
    "old pickle": pickle.dumps(Evil(), protocol=0),
    "torch": saved(torch.save),
    "old torch": saved(lambda what, file: torch.save(what, file, _use_new_zipfile_serialization=False)),
    "joblib": saved(joblib.dump),
    "numpy": saved(lambda what, file: np.save(file, np.array([what], object), allow_pickle=True)),
    "tar": slipping(tarfile.REGTYPE),
    "tar with a link": slipping(tarfile.SYMTYPE),
    "script": b"#!/bin/sh\ntouch /tmp/owned\n",
    "endless length": b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + bytes(99),
    "groups": b"\x0b" * 100_000,
    "noise": random.Random(1).randbytes(1 << 20),
}


@pytest.mark.promise("S5/6")
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_onnx_file_is_refused(name: str) -> None:
    """Files of other formats, above all of those that run code when they are read."""
    refused(FOREIGN[name])


def node(kind: str, *inputs: str, **attributes) -> onnx.NodeProto:
    """An operation beside those of the graph; nobody takes what it makes."""
    return helper.make_node(kind, inputs or ["values"], ["beside"], **attributes)


def inner() -> onnx.GraphProto:
    """A graph for inside an attribute."""
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "inner", [info], [info])


def edited(edit: Callable[[onnx.ModelProto], object]) -> bytes:
    """A sound graph with one thing done to it."""
    model = onnx.load_model_from_string(ewma_graph(2))
    edit(model)
    return model.SerializeToString()


def adds(*args, **kwargs) -> Callable[[onnx.ModelProto], object]:
    """An edit: one more operation."""
    return lambda model: model.graph.node.append(node(*args, **kwargs))


def constant(**fields) -> Callable[[onnx.ModelProto], object]:
    """An edit: one more constant, as it says."""
    return lambda model: model.graph.initializer.append(TensorProto(name="more", **fields))


def _external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")


def _external_only_named(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")


def _nested_types(model: onnx.ModelProto) -> None:
    kind = model.graph.input[0].type
    kind.Clear()
    for _ in range(90):
        kind = kind.sequence_type.elem_type
    kind.tensor_type.elem_type = 1


def _nested_graphs(model: onnx.ModelProto) -> None:
    graph = inner()
    for _ in range(20):
        outer = inner()
        outer.node.append(helper.make_node("If", ["x"], ["z"], then_branch=graph, else_branch=graph))
        graph = outer if len(outer.SerializeToString()) < 1 << 20 else graph
    model.graph.node.append(helper.make_node("If", ["values"], ["z"], then_branch=graph, else_branch=graph))


def _function(model: onnx.ModelProto) -> None:
    called = helper.make_function("own", "Add", ["a", "b"], ["c"], [helper.make_node("Mul", ["a", "b"], ["c"])], [])
    model.functions.append(called)


def _wide_input(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 1 << 40


def _of_type(kind: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input[1].type.tensor_type.elem_type = kind

    return edit


def _padded(by: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 0, by]), "by"))
        model.graph.node.append(node("Pad", "values", "by"))

    return edit


ODD_GRAPHS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "external data": _external,
    "external data beside its own": _external_only_named,
    "a function": _function,
    "training": lambda model: model.training_info.add().algorithm.CopyFrom(inner()),
    "metadata": lambda model: model.metadata_props.add(key="ort_config", value="{}"),
    "words for people": lambda model: setattr(model, "doc_string", "x" * 100_000),
    "an If": adds("If", then_branch=inner(), else_branch=inner()),
    "a Loop": adds("Loop", body=inner()),
    "a Scan": adds("Scan", body=inner(), num_scan_inputs=1),
    "graphs in graphs": _nested_graphs,
    "types in types": _nested_types,
    "a graph in an operation that takes none": adds("Add", "values", "values", body=inner()),
    "a tensor in an attribute": adds("Add", value=numpy_helper.from_array(np.zeros(3))),
    "a reference": lambda model: model.graph.node[0].attribute.add(name="axis", ref_attr_name="x", type=2),
    "another domain": adds("Gelu", domain="com.microsoft"),
    "another domain, declared": lambda model: model.opset_import.add(domain="com.microsoft", version=1),
    "a library": adds("Run", domain="../../lib.so"),
    "an unheard-of operation": adds("Exec"),
    "a tensor of any size": adds("ConstantOfShape", "values"),
    "a range": adds("Range", "axis", "axis", "axis"),
    "an expansion": adds("Expand", "values", "axis"),
    "a constant with a graph's word": adds("Constant", value_string="x"),
    "random numbers": adds("RandomNormalLike"),
    "an opset of the future": lambda model: setattr(model.opset_import[0], "version", 99),
    "an opset of the past": lambda model: setattr(model.opset_import[0], "version", 1),
    "no opset": lambda model: model.ClearField("opset_import"),
    "another format version": lambda model: setattr(model, "ir_version", 99),
    "no graph": lambda model: model.ClearField("graph"),
    "a giant constant without bytes": constant(dims=[1 << 20, 1 << 20], data_type=1),
    "a giant constant with few bytes": constant(dims=[1 << 62, 4], data_type=1, raw_data=b"1234"),
    "a shape that overflows": constant(dims=[1 << 32, 1 << 32], data_type=1, raw_data=b""),
    "a negative shape": constant(dims=[-1], data_type=1, raw_data=b"1234"),
    "words in a tensor": constant(dims=[1], data_type=8, string_data=[b"x"]),
    "numbers one by one": constant(dims=[4], data_type=1, float_data=[1.0, 2.0, 3.0, 4.0]),
    "a type that is none": constant(dims=[1], data_type=77, raw_data=b"1234"),
    "a sparse constant": lambda model: model.graph.sparse_initializer.add().dims.append(1 << 40),
    "a long name": lambda model: setattr(model.graph.node[0], "name", "x" * 100_000),
    "a name with a NUL": lambda model: setattr(model.graph.node[0], "name", "a\0b"),
    "a name with a line": lambda model: setattr(model.graph.node[0], "name", "a\nb"),
    "a name in other letters": lambda model: setattr(model.graph, "name", "\u202eb\u0430d"),
    "a giant state": _wide_input,
    "a state of words": _of_type(8),
    "a state of doubles": _of_type(11),
    "a pad without end": _padded(1 << 40),
    "a pad that is computed": adds("Pad", "values", "state.mean"),
    "too many operations": lambda model: model.graph.node.extend([node("Abs")] * 11_000),
    "too many fields": lambda model: model.graph.node[0].input.extend(["values"] * 70_000),
}


@pytest.mark.promise("S5/6")
@pytest.mark.parametrize("name", ODD_GRAPHS)
def test_what_a_step_graph_does_not_need_is_refused(name: str) -> None:
    """External data, code, graphs in graphs, other operations, sizes without bound: in a second, with flat memory."""
    refused(edited(ODD_GRAPHS[name]), match="this is no step graph")


def test_what_is_done_to_the_graphs_above_is_what_is_refused() -> None:
    """The graph without it passes."""
    check_graph(edited(lambda model: model.graph.node))
    check_graph(edited(_padded(3)))


LENGTHY = {
    "numbers": b"\x3dabcd" * (MAX_GRAPH_BYTES // 5),
    "integers": b"\x40\x01" * (MAX_GRAPH_BYTES // 2),
    "words": b"\x4a\x04LEAF" * (MAX_GRAPH_BYTES // 6),
    "both by turns": b"\x3dabcd\x40\x01" * (MAX_GRAPH_BYTES // 7),
    "strings": b"\x4a\x00" * (MAX_GRAPH_BYTES // 2),
}


@pytest.mark.promise("S5/6")
@pytest.mark.parametrize("name", LENGTHY)
def test_a_long_file_does_not_take_long(name: str) -> None:
    """Repeated numbers are passed over at once, and fields are counted: the largest file allowed takes a second."""
    attribute = LENGTHY[name][: MAX_GRAPH_BYTES - 100]
    graph = b"\x08\x08" + nested(8, b"\x10\x11") + nested(7, nested(1, nested(5, attribute)))
    assert MAX_GRAPH_BYTES - 200 < len(graph) <= MAX_GRAPH_BYTES

    began = time.process_time()
    with pytest.raises(CorruptBundleError):
        check_graph(graph)

    assert time.process_time() - began < SECONDS
    with pytest.raises(CorruptBundleError, match="MiB"):
        check_graph(graph + bytes(200))


def nested(number: int, content: bytes) -> bytes:
    """A field of bytes on the wire."""
    size, rest = b"", len(content)
    while rest > 0x7F:
        size, rest = size + bytes([rest & 0x7F | 0x80]), rest >> 7
    return bytes([number << 3 | 2]) + size + bytes([rest]) + content


@pytest.mark.promise("S5/6")
@pytest.mark.parametrize("kind", ["lstm", "lstm_autoencoder", "isolation_forest"])
def test_a_file_that_ends_early_is_refused(kind: str) -> None:
    """Wherever it ends."""
    whole = exported(kind)
    rng = random.Random(kind)

    for end in {*range(64), *(rng.randrange(len(whole)) for _ in range(300))}:
        with pytest.raises(CorruptBundleError):
            Runtime(whole[:end])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An export of ours with bytes that were changed, put in, taken out or doubled."""
    content = bytearray(exported(draw(st.sampled_from(sorted(SMALL)))))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content) - 1))
        piece = draw(st.binary(max_size=12))
        size = draw(st.integers(0, 40))
        how = draw(st.sampled_from(["change", "insert", "remove", "double"]))
        if how == "change":
            content[at : at + len(piece)] = piece
        elif how == "insert":
            content[at:at] = piece
        elif how == "remove":
            del content[at : at + size]
        else:
            content[at:at] = content[at : at + size]
    return bytes(content)


@pytest.mark.promise("S5/6")
@settings(max_examples=2000, deadline=None, derandomize=True)
@given(graph=damaged())
def test_damaged_exports_never_crash_what_reads_them(graph: bytes) -> None:
    """Thousands of files that are nearly ours: each passes or is refused with our error, none with another."""
    began = time.process_time()
    with suppress(CorruptBundleError):
        check_graph(graph, 1 << 20)
    assert time.process_time() - began < SECONDS


@pytest.mark.promise("S5/6")
def test_more_numbers_than_the_network_has_are_refused() -> None:
    """A manifest that says three parameters does not come with a million numbers."""
    matrix = numpy_helper.from_array(np.zeros((1000, 1000), np.float32), "matrix")
    graph = edited(lambda model: model.graph.initializer.append(matrix))
    bundle = ewma_bundle("pump")
    fields = bundle.manifest.model_dump(exclude={"files"})

    with pytest.raises(CorruptBundleError, match=r"holds 100.* numbers, and the network has 3 parameters"):
        Served.load(make_bundle({GRAPH: graph}, **fields))

    check_graph(graph, parameters=10**6)


def bomb() -> bytes:
    """A graph of a few kilobytes whose step makes a tensor of 64 GiB: a column times a row."""

    def edit(model: onnx.ModelProto) -> None:
        side = np.zeros(1 << 17, np.float32)
        for name, array in (("column", side[:, None]), ("row", side[None])):
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        model.graph.node[0].input[0] = "point"
        model.graph.node.insert(0, helper.make_node("ReduceMean", ["values"], ["mean"], keepdims=0))
        model.graph.node.insert(1, helper.make_node("Mul", ["column", "mean"], ["tall"]))
        model.graph.node.insert(2, helper.make_node("Mul", ["tall", "row"], ["giant"]))
        model.graph.node.insert(3, helper.make_node("ReduceMax", ["giant"], ["most"], keepdims=0))
        model.graph.node.insert(4, helper.make_node("Add", ["values", "most"], ["point"]))

    return edited(edit)


@pytest.mark.promise("S5/6")
def test_what_only_a_step_shows_is_found_in_a_child(tmp_path: Path) -> None:
    """A graph that passes every look and takes 64 GiB to step is refused, and this process has not loaded it."""
    graph = bomb()
    check_graph(graph)
    fields = ewma_bundle("pump").manifest.model_dump(exclude={"files"})
    harmful = make_bundle({GRAPH: graph}, **fields)
    for bundle in (harmful, ewma_bundle("pump")):
        write_bundle(bundle, tmp_path / bundle.hash)
        pack_bundle(tmp_path / bundle.hash, bundle.hash, tmp_path / f"{bundle.hash}.tar")
    sound = ewma_bundle("pump").hash

    for path in (tmp_path / f"{harmful.hash}.tar", tmp_path / harmful.hash):
        with pytest.raises(CorruptBundleError, match="can not be stepped"):
            load_bundle(path)
    with pytest.raises(CorruptBundleError) as error:
        try_bundles([tmp_path / sound, tmp_path / harmful.hash, tmp_path / sound])

    assert error.value.field == str(tmp_path / harmful.hash / GRAPH)
    assert Detector.load(tmp_path / f"{sound}.tar").features == ["f1", "f2"]


@pytest.mark.promise("S5/6")
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.REGTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_an_archive_decides_no_place(tmp_path: Path, kind: bytes) -> None:
    """Members that climb out, links and devices: nothing is written beside what was expected, or it is refused."""
    bundle = ewma_bundle("pump")
    contents = {MANIFEST: json.dumps(bundle.manifest.model_dump(mode="json")).encode(), GRAPH: bundle.graph}
    secret = tmp_path / "secret"
    secret.write_bytes(bundle.graph)
    for harmful in (f"../{tmp_path.name}-out", str(tmp_path / "out"), GRAPH):
        file = tmp_path / "evil.tar"
        with tarfile.open(file, "w") as archive:
            for name, content in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                if name != harmful:
                    archive.addfile(member, io.BytesIO(content))
            member = tarfile.TarInfo(harmful)
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
        before = sorted(tmp_path.rglob("*"))

        if harmful == GRAPH:
            with pytest.raises(CorruptBundleError):
                load_bundle(file)
        else:
            load_bundle(file).manifest.version  # noqa: B018  (the members that nobody asked for are passed over)

        assert sorted(tmp_path.rglob("*")) == before
        assert not list(tmp_path.parent.glob("*-out"))
