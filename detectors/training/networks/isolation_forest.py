"""An isolation forest over the last W points (Liu, Ting & Zhou 2008), fitted by PyOD, as arrays and as one operation.

A tree splits at random columns and thresholds; strange points end near its root. The score of the paper is
s = 2^(-mean path / c(samples)), where a path is the depth of a leaf plus c(points that ended there in training), and
c(n) the mean path in a binary search tree of n points. Spread over features it becomes contributions: what a split
takes off the path that was expected before counts for the split's feature (Saabas 2014, "Interpreting random forests";
expected by the points of training), over all trees and over all columns of the window that belong to the feature.

The mean is a weighted sum, at first of equal weights: when trees leave, least squares can let the others speak for
them (`pruning.repair`). A forest can also be cut at a depth, where nodes know the path that is to be expected of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from detectors.training.calibrate import Scaler
from detectors.training.graph import Graph
from detectors.training.networks.base import Group, Lever, Normal, Options, Pass, Slice, TensorState, WindowNetwork
from detectors.training.stretches import Stretches, Windows
from detectors.training.trees import Trees, isolation_tree

DEFAULT_WINDOW = 1  # the point alone, as forests are commonly used: on labelled series longer windows found less
TREES, SAMPLES = 100, 256  # of the paper, of scikit-learn and of PyOD
GROWN_FROM = 20_000  # windows at most: a tree sees a few hundred, and windows of wide series are large
FLOOR = 1e-6  # of c(samples): what lowers the path by less is rounding; where nothing does, features share alike


class IsolationForest(WindowNetwork):
    """Trees over the flattened window, oldest point first, in scaled units.

    Its residual is the square root of each feature's part of the score s (0 to 1), so that its squares sum to s. The
    trees are buffers: the arrays of `detectors.training.trees.Trees`; so are the weights of their paths.

    Args:
        n_features: F.
        window: W, points.
        trees: Number of trees.
        samples: Windows that a tree is grown from.
        height: Splits above a leaf at the most; None: as deep as those of so many points are on average.
        nodes: Of the largest tree; None: as many as there can be.
        stride: Score every so many points.
    """

    kind = "isolation_forest"
    learned_by_gradient = False
    dense_options: ClassVar[Mapping[str, tuple[int, int]]] = {
        "window": (1, 1024),
        "trees": (1, 1000),
        "samples": (2, 4096),
        "stride": (1, 1024),
    }
    column: Tensor  # [trees, nodes], int32
    threshold: Tensor  # [trees, nodes]
    below: Tensor  # [trees, nodes, 2], int32
    expected: Tensor  # [trees, nodes]
    weight: Tensor  # [trees, 1]
    offset: Tensor  # [1]

    def __init__(
        self,
        n_features: int,
        window: int,
        trees: int,
        *,
        samples: int = SAMPLES,
        height: int | None = None,
        nodes: int | None = None,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.n_features, self.window, self.stride, self.samples = n_features, window, stride, samples
        self.height = math.ceil(math.log2(max(samples, 2))) if height is None else height
        size = (trees, nodes or 2 * samples - 1)
        # Until it has grown: balanced trees with random splits.
        node = torch.arange(size[1])[:, None]
        below = torch.where(2 * node + 2 < size[1], 2 * node + torch.tensor([1, 2]), node).expand(trees, -1, -1)
        self.register_buffer("column", torch.randint(window * n_features, size, dtype=torch.int32))
        self.register_buffer("threshold", torch.randn(size))
        self.register_buffer("below", below.to(torch.int32).contiguous())
        self.register_buffer("expected", torch.rand(size) + 0.5)
        self.register_buffer("weight", torch.full((trees, 1), 1 / trees))
        self.register_buffer("offset", torch.zeros(1))

    @classmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Options) -> Self:
        """See `Network.build`; the group `trees`; options as in `options`."""
        return cls(
            n_features,
            int(options["window"]),
            units["trees"],
            samples=int(options["samples"]),
            height=int(options["height"]) if "height" in options else None,
            nodes=int(options["nodes"]),
            stride=int(options["stride"]),
        )

    @classmethod
    def dense(cls, n_features: int, options: Options) -> Self:
        """Options `window` (1: the point alone), `trees` (100), `samples` (256 windows a tree) and `stride` (1)."""
        return cls(
            n_features,
            int(options.get("window", DEFAULT_WINDOW)),
            int(options.get("trees", TREES)),
            samples=int(options.get("samples", SAMPLES)),
            stride=int(options.get("stride", 1)),
        )

    @classmethod
    def checked_options(cls, options: Options) -> dict[str, int | float | str | bool]:
        """See `Network.checked_options`; the window is this kind's own unless it is given."""
        return super().checked_options({"window": DEFAULT_WINDOW, **options})

    @property
    def options(self) -> dict[str, int | float | str | bool]:
        """Window, stride, samples and height of a tree, and nodes of the largest."""
        return {
            "window": self.window,
            "stride": self.stride,
            "samples": self.samples,
            "height": self.height,
            "nodes": self.column.shape[1],
        }

    @property
    def macs(self) -> int:
        """Comparisons instead: the mean depth of a leaf, for every tree."""
        leaves = [int((~level.split).sum()) for level in self._trees.levels(self.height)]
        return round(len(self.column) * float(np.average(range(len(leaves)), weights=leaves)))

    @property
    def parameters_count(self) -> int:
        """Five for every node: its column, threshold, two nodes below, and expected path; padding does not count."""
        splits = int((self.below[..., 0] != torch.arange(self.column.shape[1])).sum())
        return 5 * (2 * splits + len(self.column))

    def groups(self) -> tuple[Group, ...]:
        """The trees, read by their weighted mean. Without gradients, they are judged by how they agree with all."""
        own = tuple(Slice(name, 0) for name in Trees._fields)
        read = (Slice("weight", 0, bias="offset"),)
        return (Group("trees", len(self.column), own, read, criterion="agreement"),)

    def levers(self) -> tuple[Lever, ...]:
        """The depth of the trees, down to half of it."""
        return (Lever("depth", self.height, max(1, self.height // 2)),)

    def pulled(self, lever: str, value: int) -> Self:
        """See `Network.pulled`; a node at the new depth becomes a leaf with the path that was to be expected there.

        Raises:
            InvalidInputError: a depth beyond the lever's range.
        """
        if lever != "depth":
            return super().pulled(lever, value)
        self.levers()[0].require(value)
        cut = self._trees.cut(value)
        tensors = {**self.state_dict(), **{name: torch.from_numpy(array) for name, array in cut._asdict().items()}}
        return self.rebuilt(self.units, {**self.options, "height": value, "nodes": cut.column.shape[1]}, tensors)

    def grow(self, training: Stretches, scaler: Scaler, seed: int) -> None:
        """Fits PyOD's isolation forest to windows of the scaled training points and takes its trees over."""
        from pyod.models.iforest import IForest  # noqa: PLC0415  (imports scikit-learn: seconds, needed only here)

        parts = [scaler(part) for part in training.longer_than(self.window - 1).parts]
        count = min(sum(len(part) - self.window + 1 for part in parts), GROWN_FROM)
        drawn = Windows(parts, batch=count, window=self.window, rng=np.random.default_rng(seed))
        windows = next(drawn.chunks(1)).points.numpy().reshape(count, -1)  # [N, W * F]
        samples = min(self.samples, count)
        forest = IForest(n_estimators=len(self.column), max_samples=samples, random_state=seed % 2**32)
        self.take_over(forest.fit(windows))

    def take_over(self, forest: Any) -> None:
        """Takes the trees of a fitted `IForest` of PyOD, or `IsolationForest` of scikit-learn, over flat windows.

        Args:
            forest: Of as many trees as this one, none from more samples than its own are.
        """
        grown = [
            isolation_tree(tree.tree_, columns, int(forest.max_samples_))
            for tree, columns in zip(forest.estimators_, forest.estimators_features_, strict=True)
        ]
        self.column, self.threshold, self.below, self.expected = map(torch.from_numpy, Trees.joined(grown))

    def resized(self, units: Mapping[str, int]) -> Self:
        """The first of its own trees (more: once more from the first), since time and bytes depend on them."""
        other = super().resized(units)
        index = torch.arange(len(other.column)) % len(self.column)
        for name in Trees._fields:
            setattr(other, name, getattr(self, name)[index])
        return other

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Forests of older bundles have no weights: all trees count alike."""
        for name in ("weight", "offset"):
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """All trees are walked at once, from split to split; activations are the paths in units of c(samples)."""
        windows, carried = self.windows(points, state)
        flat = windows.reshape(-1, self.window * self.n_features)  # [N, W * F]
        trees, nodes = self.column.shape
        column, threshold = self.column.flatten().long(), self.threshold.flatten()
        below, expected = self.below.view(-1, 2), self.expected.flatten()
        first = torch.arange(trees) * nodes  # of each tree in the flat arrays
        node = first.expand(len(flat), -1)  # [N, trees]
        path = expected[node]
        lowered = flat.new_zeros(len(flat), self.n_features)
        for _ in range(self.height):
            at = column[node]
            node = first + below[node, (flat.gather(1, at) > threshold[node]).long()]
            before, path = path, expected[node]
            lowered.scatter_add_(1, at % self.n_features, (before - path) * self.weight.T)
        share = lowered.clamp(min=FLOOR)
        share = share / share.sum(1, keepdim=True)
        part = torch.exp2(-(path @ self.weight + self.offset)) * share  # [N, F]
        shape = points.shape[:2]
        return Pass(part.sqrt().view(*shape, 1, -1), carried, {"trees": path.view(*shape, trees)})

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """One operation walks all trees; the outputs of a leaf hold all that they say of a point, n_targets = 1 + F.

        Their sums are log(s) / 2 and by how much the trees' mean path was lowered by splits on each feature. The weight
        of a tree is in its leaves; the offset is in those of the first, since every point ends in one of them.
        """
        nodes, lowered = self._trees.nodes(self.height, self.n_features)
        path = nodes.expected[:, None] * self.weight.numpy()[nodes.tree]
        path[nodes.tree == 0] += self.offset.numpy()
        outputs = np.c_[-math.log(2) / 2 * path, lowered * self.weight.numpy()[nodes.tree]]  # [nodes, 1 + F]
        if self.n_features == 1:
            outputs = outputs[:, :1]  # the only feature makes all of the score
        window = self.draw_window(graph, point)
        sums = graph.trees(window, n_targets=outputs.shape[1], **nodes.onnx(outputs))
        if self.n_features == 1:
            return _normalised(graph, graph.op("Exp", sums), scale)
        half_log, lowers = graph.ops("Split", sums, graph.const([1, self.n_features], np.int64), outputs=2, axis=1)
        share = graph.op("Max", lowers, graph.number(FLOOR))
        share = graph.op("Div", share, graph.op("ReduceSum", share, graph.const([1], np.int64), keepdims=1))
        return _normalised(graph, graph.op("Mul", graph.op("Sqrt", share), graph.op("Exp", half_log)), scale)

    @property
    def _trees(self) -> Trees:
        return Trees(self.column.numpy(), self.threshold.numpy(), self.below.numpy(), self.expected.numpy())


def _normalised(graph: Graph, residual: str, scale: Normal) -> str:
    """As the network's contract has it; the error form of a forest asks for nothing."""
    if scale.center.any():
        residual = graph.op("Sub", residual, graph.const(scale.center))
    return residual if (scale.inverse == 1).all() else graph.op("Mul", residual, graph.const(scale.inverse))
