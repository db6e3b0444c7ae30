"""What a step graph may contain. Read with a reader of our own before ONNX Runtime sees a byte of it.

ONNX can name files to read, code to load, loops and graphs inside graphs; a step graph needs none of these. So the rule
is the other way round: the fields, operations, types and sizes below are what `detectors.training.graph` writes, and
anything else is refused, also what a later ONNX may bring. Contract of inputs and outputs: `detectors.runtime`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

from detectors.errors import CorruptBundleError
from detectors.wire import Budget, Run, Value, WireError, fields, floats_of, integers_of, signed, words_of

_NAMES = """
Abs Add Cast Clip Concat ConstantOfShape Div Equal Erf Exp Floor Gather Gemm Greater HardSigmoid Identity IsNaN
Less Log LSTM MatMul Max Min Mul Neg Pad Pow ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Sigmoid Slice
Softplus Split Sqrt Squeeze Sub Tanh TopK Transpose Unsqueeze Where
"""
OPERATIONS = frozenset(_NAMES.split())
"""Of ONNX's main domain: what our exports use and the plain arithmetic beside it. None reads files, holds a graph, or
makes a tensor of a size that it computes (Expand, Range, Tile, Resize). ConstantOfShape stands for weights in graphs
that are only measured (`detectors.training.light`): its shape is a constant, and it counts as if written out."""
TREE_OPERATIONS = frozenset({"TreeEnsembleRegressor"})
DOMAINS = {"": (OPERATIONS, range(13, 24)), "ai.onnx.ml": (TREE_OPERATIONS, range(1, 4))}
"""Operations and opset versions by domain."""
IR_VERSIONS = range(7, 12)
MAX_GRAPH_BYTES = 64 << 20
MAX_FIELDS = 60_000
"""Reading them takes a fraction of a second; our largest exports have a few thousand."""
MAX_NODES = 10_000
MAX_NAME_BYTES = 128
MAX_RANK = 6
MAX_STATE_NUMBERS = 1 << 22
"""Of one series, over all its states: 16 MiB."""
MAX_PADDING = 1 << 12
SPARE_NUMBERS, NUMBERS_A_PARAMETER = 1 << 18, 4
"""A graph has the network's parameters, and beside them scales, calibration and selections."""
_TYPES = {1: 4, 6: 4, 7: 8, 9: 1}
"""Bytes of a number of each type of tensor: float, int32, int64, bool."""
_NAME = re.compile(rb"[A-Za-z0-9_./:-]*")
_MODES = (b"BRANCH_LEQ", b"BRANCH_LT", b"BRANCH_GTE", b"BRANCH_GT", b"BRANCH_EQ", b"BRANCH_NEQ", b"LEAF")
_ATTRIBUTE_RUNS = (floats_of(7), integers_of(8), words_of(9, _MODES))
_FLOAT = 1
_Readers = dict[int, Callable[[Value], object]]


def check_graph(graph: bytes, parameters: int | None = None) -> None:
    """Refuses what is no step graph of ours. Takes under a second and no memory to speak of, whatever it is given.

    Args:
        graph: The bytes of `step.onnx`.
        parameters: Of the network inside, as the manifest says; None: it is not known.

    Raises:
        CorruptBundleError: says what is not allowed.
    """
    check = _Check()
    if len(graph) > MAX_GRAPH_BYTES:
        raise _refused(f"it has {len(graph)} bytes; at most {MAX_GRAPH_BYTES >> 20} MiB can be loaded.")
    try:
        check.model(memoryview(graph))
    except WireError as error:
        raise _refused(f"it is no ONNX file ({error}).") from error
    if parameters is not None and check.numbers > SPARE_NUMBERS + NUMBERS_A_PARAMETER * max(parameters, 0):
        raise _refused(f"it holds {check.numbers} numbers, and the network has {parameters} parameters.")


class _Check:
    """One reading of one graph. Each method reads a message of `onnx.proto`, and names the fields that it may have."""

    def __init__(self) -> None:
        self.numbers = 0
        """In constants."""
        self._budget = Budget(MAX_FIELDS)
        self._nodes = 0
        self._states = 0
        self._padding: set[bytes] = set()
        self._small: set[bytes] = set()
        """Constants that a tensor may be padded by."""
        self._filled: set[bytes] = set()
        """Shapes of tensors that are filled with one number."""
        self._shapes: dict[bytes, int] = {}
        """Constants that are shapes, with how many numbers such a tensor has."""

    def model(self, message: memoryview) -> None:
        opsets: list[str] = []
        graphs: list[memoryview] = []
        self._read(
            "model",
            message,
            {
                1: partial(_within, "IR version", IR_VERSIONS),
                2: partial(_word, "producer"),
                3: partial(_word, "producer"),
                7: lambda value: graphs.append(_bytes(value)),
                8: lambda value: opsets.append(self._opset(_bytes(value))),
            },
        )
        if len(graphs) != 1 or "" not in opsets:
            raise _refused("it is no ONNX model with one graph and an opset.")
        self._graph(graphs[0])

    def _opset(self, message: memoryview) -> str:
        said: dict[int, Value] = dict(self._seen("opset", message, {1, 2}))
        domain = _word("domain", said.get(1, memoryview(b"")))
        if domain not in DOMAINS:
            raise _refused(f"it uses the domain {domain!r}.")
        _within(f"opset of {domain or 'ai.onnx'}", DOMAINS[domain][1], said.get(2, 0))
        return domain

    def _graph(self, message: memoryview) -> None:
        readers: _Readers = {
            1: lambda value: self._node(_bytes(value)),
            2: partial(_word, "name"),
            5: lambda value: self._constant(_bytes(value)),
            11: lambda value: self._tensor(_bytes(value)),
            12: lambda value: self._tensor(_bytes(value)),
        }
        self._read("graph", message, readers)
        if self._padding - self._small:
            raise _refused("it pads by more than a small constant.")
        if self._filled - set(self._shapes):
            raise _refused("it fills a tensor whose shape is no constant.")
        self.numbers += sum(self._shapes[it] for it in self._filled)
        if self.numbers > MAX_GRAPH_BYTES // 4:
            raise _refused(f"it holds {self.numbers} numbers.")

    def _node(self, message: memoryview) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _refused(f"it has more than {MAX_NODES} operations.")
        inputs: list[bytes] = []
        attributes: list[memoryview] = []
        kind = domain = ""
        for number, value in self._seen("operation", message, {1, 2, 3, 4, 5, 7}):
            if number == 5:
                attributes.append(_bytes(value))
                continue
            word = _word("name", value)
            if number == 1:
                inputs.append(word.encode())
            elif number == 4:
                kind = word
            elif number == 7:
                domain = word
        if domain not in DOMAINS or kind not in DOMAINS[domain][0]:
            raise _refused(f"it uses the operation {kind!r}{f' of {domain!r}' if domain else ''}.")
        for attribute in attributes:
            self._attribute(attribute, fills=kind == "ConstantOfShape")
        if kind == "Pad":
            self._padding.update(inputs[1:2])
        if kind == "ConstantOfShape":
            self._filled.update(inputs[:1])

    def _attribute(self, message: memoryview, *, fills: bool) -> None:
        """Numbers, words and lists of them; a tensor only to fill another with: no graphs, types or references."""
        readers: _Readers = dict.fromkeys((1, 4, 9), partial(_word, "attribute"))
        if fills:
            readers[5] = lambda value: self._constant(_bytes(value))
        readers |= dict.fromkeys((2, 3, 7, 8, 20), lambda _: None)
        self._read("attribute", message, readers, _ATTRIBUTE_RUNS)

    def _constant(self, message: memoryview) -> None:
        """A tensor whose bytes stand in it, as many as its shape says."""
        sizes: list[int] = []
        kind, name, raw = 0, "", memoryview(b"")
        for number, value in self._seen("constant", message, {1, 2, 8, 9}):
            if number == 1:
                sizes += [signed(_number(value))]
            elif number == 2:
                kind = _number(value)
            elif number == 8:
                name = _word("name", value)
            else:
                raw = _bytes(value)
        if kind not in _TYPES or _count(sizes) * _TYPES[kind] != len(raw):
            raise _refused("a constant is not what its type and shape say.")
        self.numbers += _count(sizes)
        if kind == 7 and len(raw) <= 16 * MAX_RANK:
            whole = raw.cast("q")
            if all(0 <= it <= MAX_PADDING for it in whole):
                self._small.add(name.encode())
            if len(whole) <= MAX_RANK and all(it >= 0 for it in whole):
                self._shapes[name.encode()] = _count(list(whole))

    def _tensor(self, message: memoryview) -> None:
        """An input or output: float32, the batch first, all else of a fixed size."""
        sizes: list[int] = []
        found = 0
        for number, value in self._seen("tensor", message, {1, 2}):
            if number == 1:
                _word("name", value)
                continue
            for _, tensor in self._seen("type", _bytes(value), {1}):
                for at, part in self._seen("tensor type", _bytes(tensor), {1, 2}):
                    if at == 1:
                        found = _number(part)
                    else:
                        sizes += [self._size(_bytes(dim)) for _, dim in self._seen("shape", _bytes(part), {1})]
        if found != _FLOAT or not sizes:
            raise _refused("an input or output is no float32 tensor with a shape.")
        self._states += _count(sizes[1:])
        if self._states > 4 * MAX_STATE_NUMBERS:  # inputs and outputs, states and points
            raise _refused("what it takes and gives is too large.")

    def _size(self, message: memoryview) -> int:
        """One axis; 1 where it has a name or nothing, as that of the batch has."""
        size = 1
        for number, value in self._seen("axis", message, {1, 2}):
            if number == 1:
                size = signed(_number(value))
            else:
                _word("axis", value)
        return size

    def _read(self, what: str, message: memoryview, readers: _Readers, runs: tuple[Run, ...] = ()) -> None:
        for number, value in fields(message, self._budget, runs):
            reader = readers.get(number)
            if reader is None:
                raise _refused(f"field {number} of {_article(what)} is not allowed.")
            reader(value)

    def _seen(self, what: str, message: memoryview, allowed: set[int]) -> Iterator[tuple[int, Value]]:
        for number, value in fields(message, self._budget):
            if number not in allowed:
                raise _refused(f"field {number} of {_article(what)} is not allowed.")
            yield number, value


def _count(sizes: list[int]) -> int:
    """Numbers in a tensor."""
    if len(sizes) > MAX_RANK or any(it < 0 for it in sizes):
        raise _refused("a shape is none.")
    count = 1
    for size in sizes:
        count *= size
        if count > 1 << 40:
            raise _refused("a shape is too large.")
    return count


def _word(what: str, value: Value) -> str:
    raw = _bytes(value)
    if len(raw) > MAX_NAME_BYTES or not _NAME.fullmatch(raw):
        raise _refused(f"{_article(what)} is too long, or has other than plain letters.")
    return bytes(raw).decode("ascii")


def _within(what: str, allowed: range, value: Value) -> None:
    if _number(value) not in allowed:
        raise _refused(f"its {what} is {_number(value)}; {allowed.start} to {allowed.stop - 1} can be loaded.")


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise WireError("a number in the place of bytes")
    return value


def _number(value: Value) -> int:
    if not isinstance(value, int):
        raise WireError("bytes in the place of a number")
    return value


def _article(what: str) -> str:
    return f"{'an' if what[0] in 'aeio' else 'a'} {what}"


def _refused(problem: str) -> CorruptBundleError:
    return CorruptBundleError(
        f"this is no step graph: {problem}", field="step.onnx", hint="Fit it with prunewatch, or export it again."
    )
