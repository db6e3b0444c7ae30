"""Isolation trees as arrays: out of scikit-learn, and into the one operation that ONNX has for trees.

From a node, 0 at the root, a row goes on to node `below[0]` where its value in `column` is at most `threshold`, else to
`below[1]`; a leaf is below itself. `expected` is the path that rows are to be expected to have at a node, at a leaf the
path itself: depth plus c(rows that ended there in training), in units of c(rows that the tree was grown from).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Trees(NamedTuple):
    """Trees of N nodes each, the smaller ones padded.

    Attributes:
        column: [trees, N], int32.
        threshold: [trees, N], float32.
        below: [trees, N, 2], int32.
        expected: [trees, N], float32.
    """

    column: Array
    threshold: Array
    below: Array
    expected: Array

    @classmethod
    def joined(cls, trees: Sequence[Trees]) -> Self:
        """One after the other, padded to the largest."""
        nodes = max(tree.column.shape[1] for tree in trees)
        return cls(*(np.concatenate(arrays) for arrays in zip(*(tree.padded(nodes) for tree in trees), strict=True)))

    def padded(self, nodes: int) -> Trees:
        """With leaves that nothing leads to."""
        trees, size = self.column.shape
        alone = np.arange(size, nodes, dtype=np.int32)[None, :, None]
        below = np.concatenate([self.below, np.broadcast_to(alone, (trees, nodes - size, 2))], axis=1)
        column, threshold, expected = (
            np.pad(array, [(0, 0), (0, nodes - size)]) for array in (self.column, self.threshold, self.expected)
        )
        return Trees(column, threshold, below, expected)

    def cut(self, height: int) -> Trees:
        """The same down to a depth: splits there become leaves, and what lay below them is gone.

        Args:
            height: Splits above a leaf at the most.
        """
        reached = np.zeros(self.column.shape, bool)
        leaf = self.below[..., 0] == np.arange(self.column.shape[1])
        for level in self.levels(height):
            reached[level.tree, level.node] = True
        leaf[level.tree, level.node] = True  # the last level
        number = reached.cumsum(axis=1, dtype=np.int32) - 1  # what a node will be called
        led = number[np.arange(len(number))[:, None, None], self.below]
        below = np.where(leaf[..., None], number[..., None], led)
        whole = self._replace(
            column=np.where(leaf, 0, self.column), threshold=np.where(leaf, 0, self.threshold), below=below
        )
        return Trees.joined([Trees(*(array[i, kept][None] for array in whole)) for i, kept in enumerate(reached)])

    def levels(self, height: int) -> Iterator[Nodes]:
        """The roots, then the nodes below them, and so on down to `height`; both children of a split side by side."""
        tree, node = np.arange(len(self.column)), np.zeros(len(self.column), np.int64)
        for _ in range(height + 1):
            level = Nodes(tree, node, *(array[tree, node] for array in self))
            yield level
            tree, node = np.repeat(tree[level.split], 2), level.below[level.split].ravel()

    def nodes(self, height: int, n_features: int) -> tuple[Nodes, Array]:
        """All nodes, tree by tree, and by how much the splits above each lowered its expected path.

        Returns:
            Nodes, and [nodes, F] by the feature of the split, which is its column modulo F.
        """
        levels, sums = list(self.levels(height)), [np.zeros((len(self.column), n_features), np.float32)]
        for upper, lower in pairwise(levels):
            lowered = np.repeat(sums[-1][upper.split], 2, axis=0)
            feature = np.repeat(upper.column[upper.split] % n_features, 2)
            lowered[np.arange(len(lowered)), feature] += np.repeat(upper.expected[upper.split], 2) - lower.expected
            sums.append(lowered)
        nodes = Nodes(*(np.concatenate(arrays) for arrays in zip(*levels, strict=True)))
        order = np.lexsort((nodes.node, nodes.tree))
        return Nodes(*(array[order] for array in nodes)), np.concatenate(sums)[order]


class Nodes(NamedTuple):
    """Some nodes of some trees, one a row.

    Attributes:
        tree: [n], which tree.
        node: [n], which node of it.
        column: [n].
        threshold: [n].
        below: [n, 2].
        expected: [n].
    """

    tree: Array
    node: Array
    column: Array
    threshold: Array
    below: Array
    expected: Array

    @property
    def split(self) -> Array:
        """Which are no leaves."""
        return np.asarray(self.below[:, 0] != self.node)

    def onnx(self, outputs: Array) -> dict[str, list[Any]]:
        """Attributes of a `TreeEnsembleRegressor` over these nodes (domain ai.onnx.ml, opset 3).

        Args:
            outputs: [n, targets], what a leaf adds to the sums; zeros are left out, save for the first target.
        """
        split = self.split
        left, right = np.where(split[:, None], self.below, 0).T
        leaf, target = np.nonzero(~split[:, None] & ((outputs != 0) | (np.arange(outputs.shape[1]) == 0)))
        attributes = {
            "nodes_treeids": self.tree,
            "nodes_nodeids": self.node,
            "nodes_modes": np.where(split, "BRANCH_LEQ", "LEAF"),
            "nodes_featureids": np.where(split, self.column, 0),
            "nodes_values": np.where(split, self.threshold, 0),
            "nodes_truenodeids": left,
            "nodes_falsenodeids": right,
            "target_treeids": self.tree[leaf],
            "target_nodeids": self.node[leaf],
            "target_ids": target,
            "target_weights": outputs[leaf, target],
        }
        return {name: array.tolist() for name, array in attributes.items()}


def isolation_tree(tree: Any, columns: Array, samples: int) -> Trees:
    """A tree of scikit-learn's `IsolationForest`.

    Args:
        tree: The `tree_` of one of its estimators.
        columns: Which columns of a row it was given.
        samples: Rows that it was grown from.
    """
    depth, rows = tree.compute_node_depths() - 1, tree.n_node_samples
    split = tree.children_left >= 0
    below = np.stack([tree.children_left, tree.children_right], axis=1)
    expected = depth + mean_path(rows)
    for level in range(depth.max() - 1, -1, -1):  # from the leaves up: the mean over the rows of both children
        here = np.flatnonzero(split & (depth == level))
        expected[here] = (rows * expected)[below[here]].sum(axis=1) / rows[here]
    # scikit-learn compares float32 with float64: the largest float32 up to the threshold parts float32 in the same way.
    threshold = tree.threshold.astype(np.float32)
    threshold = np.where(threshold > tree.threshold, np.nextafter(threshold, np.float32(-np.inf)), threshold)
    return Trees(
        np.where(split, columns[np.maximum(tree.feature, 0)], 0)[None].astype(np.int32),
        np.where(split, threshold, 0)[None].astype(np.float32),
        np.where(split[:, None], below, np.arange(len(split))[:, None])[None].astype(np.int32),
        (expected / max(float(mean_path(samples)), 1.0))[None].astype(np.float32),
    )


def mean_path(rows: int | Array) -> Array:
    """c(n), the mean length of an unsuccessful search in a binary search tree of n rows (Liu et al. 2008, eq. 1).

    >>> mean_path(np.array([1, 2, 256])).round(3).tolist()
    [0.0, 1.0, 10.245]
    """
    many = np.maximum(rows, 3).astype(np.float64)
    length = 2 * (np.log(many - 1) + np.euler_gamma) - 2 * (many - 1) / many
    return np.asarray(np.where(np.asarray(rows) > 2, length, np.asarray(rows) - 1.0))
