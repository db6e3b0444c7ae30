"""An isolation forest over the last W points (Liu, Ting & Zhou 2008), fitted by PyOD, as arrays and as one operation.

A tree splits at random columns and thresholds; strange points end near its root. The score of the paper is
s = 2^(-mean path / c(samples)), where a path is the depth of a leaf plus c(points that ended there in training), and
c(n) the mean path in a binary search tree of n points. Spread over features it becomes contributions: what a split
takes off the path that was expected before counts for the split's feature (Saabas 2014, "Interpreting random forests";
expected by the points of training), over all trees and over all columns of the window that belong to the feature.
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
from detectors.training.networks.base import Group, Normal, Options, Pass, Slice, TensorState, WindowNetwork
from detectors.training.stretches import Stretches, Windows
from detectors.training.trees import Trees, isolation_tree

DEFAULT_WINDOW = 1  # the point alone, as forests are commonly used: on labelled series longer windows found less
TREES, SAMPLES = 100, 256  # of the paper, of scikit-learn and of PyOD
GROWN_FROM = 20_000  # windows at most: a tree sees a few hundred, and windows of wide series are large
FLOOR = 1e-6  # of c(samples): what lowers the path by less is rounding; where nothing does, features share alike


class IsolationForest(WindowNetwork):
    """Trees over the flattened window, oldest point first, in scaled units.

    Its residual is the square root of each feature's part of the score s (0 to 1), so that its squares sum to s. The
    trees are buffers: the arrays of `detectors.training.trees.Trees`.

    Args:
        n_features: F.
        window: W, points.
        trees: Number of trees.
        samples: Windows that a tree is grown from.
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

    def __init__(
        self,
        n_features: int,
        window: int,
        trees: int,
        *,
        samples: int = SAMPLES,
        nodes: int | None = None,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.n_features, self.window, self.stride, self.samples = n_features, window, stride, samples
        size = (trees, nodes or 2 * samples - 1)
        # Until it has grown: balanced trees with random splits.
        node = torch.arange(size[1])[:, None]
        below = torch.where(2 * node + 2 < size[1], 2 * node + torch.tensor([1, 2]), node).expand(trees, -1, -1)
        self.register_buffer("column", torch.randint(window * n_features, size, dtype=torch.int32))
        self.register_buffer("threshold", torch.randn(size))
        self.register_buffer("below", below.to(torch.int32).contiguous())
        self.register_buffer("expected", torch.rand(size) + 0.5)

    @classmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Options) -> Self:
        """See `Network.build`; the group `trees`; options as in `options`."""
        return cls(
            n_features,
            int(options["window"]),
            units["trees"],
            samples=int(options["samples"]),
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
        """Window, stride, samples a tree, and nodes of the largest tree."""
        return {"window": self.window, "stride": self.stride, "samples": self.samples, "nodes": self.column.shape[1]}

    @property
    def height(self) -> int:
        """Splits above a leaf at the most: trees grow as deep as those of so many points are on average."""
        return math.ceil(math.log2(max(self.samples, 2)))

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
        """The trees. Nothing reads them but their mean, which fewer trees move: protected."""
        own = tuple(Slice(name, 0) for name in ("column", "threshold", "below", "expected"))
        return (Group("trees", len(self.column), own, (), protected=True),)

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
        for name, tensor in self.named_buffers():
            setattr(other, name, tensor[index])
        return other

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
            lowered.scatter_add_(1, at % self.n_features, before - path)
        share = (lowered / trees).clamp(min=FLOOR)
        share = share / share.sum(1, keepdim=True)
        part = torch.exp2(-path.mean(1, keepdim=True)) * share  # [N, F]
        shape = points.shape[:2]
        return Pass(part.sqrt().view(*shape, 1, -1), carried, {"trees": path.view(*shape, trees)})

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """One operation walks all trees; the outputs of a leaf hold all that they say of a point, n_targets = 1 + F.

        Their sums are log(s) / 2 and by how much the trees' mean path was lowered by splits on each feature.
        """
        nodes, lowered = self._trees.nodes(self.height, self.n_features)
        outputs = np.c_[-math.log(2) / 2 * nodes.expected, lowered] / len(self.column)  # [nodes, 1 + F]
        if self.n_features == 1:
            outputs = outputs[:, :1]  # the only feature makes all of the score
        window = self.draw_window(graph, point)
        sums = graph.trees(window, n_targets=outputs.shape[1], **nodes.onnx(outputs))
        if self.n_features == 1:
            return _normalised(graph, graph.op("Exp", sums), scale)
        half_log, lowers = graph.ops("Split", sums, graph.const([1, self.n_features], np.int64), outputs=2, axis=1)
        share = graph.op("Max", lowers, graph.const(FLOOR))
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
