"""Derivation: whose units a child's are, what is trained, and in which stages."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from fits import fitted, machine
from strategies import assert_graph_is_network, noise

from detectors.training.fit import chunks_over
from detectors.training.fitted import Fitted
from detectors.training.networks import Network
from detectors.training.stretches import Lanes, Stretches, Windows
from pruning.damage import most_important
from pruning.derive import STAGE_UPDATES, UPDATES, Derivation, DeriveOptions
from pruning.groups import prunable
from pruning.importance import idle
from pruning.structures import Structure, restructured
from pruning.surgery import remove

TRAINED = 150
DATA = Stretches.of([machine(700)])
BARE = DeriveOptions("l2", repair=False, updates=0)


def to(parent: Fitted, width: int) -> dict[str, int]:
    """The same width for every group that may lose units."""
    return {group.name: min(width, group.width) for group in prunable(parent.network)}


def assert_same(one: Network, other: Network) -> None:
    """To the last bit."""
    tensors = other.state_dict()
    assert one.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("kind", ["lstm", "autoencoder", "ensemble", "isolation_forest"])
@pytest.mark.parametrize("width", [10, 3])
def test_kept_units_are_the_parents(kind: str, width: int) -> None:
    """Without repair and training a child is its parent's rows and columns, after one cut as after several."""
    parent = fitted(kind, updates=TRAINED)
    before = copy.deepcopy(parent.network.state_dict())
    derivation = Derivation(parent, DATA, BARE)

    child = derivation.down_to(to(parent, width))

    assert child.network.units == parent.network.units | to(parent, width)
    assert {name: len(units) for name, units in derivation.kept.items()} == child.network.units
    rows = {name: torch.tensor(units) for name, units in derivation.kept.items()}
    if kind == "ensemble":
        for name, member in child.network.members.items():
            own = {group: rows[f"{name}.{group}"] for group in member.units}
            assert_same(member, remove(parent.network.members[name], own))
    else:
        assert_same(child.network, remove(parent.network, rows))
    assert all(torch.equal(tensor, before[name]) for name, tensor in parent.network.state_dict().items())


def test_before_anything_is_cut_all_units_are_there() -> None:
    """Those of protected groups stay."""
    parent = fitted("autoencoder", updates=TRAINED)
    derivation = Derivation(parent, DATA, BARE)

    assert derivation.kept == {name: list(range(width)) for name, width in parent.network.units.items()}
    derivation.down_to({"encoder0": 5, "decoder0": 6})
    assert derivation.kept["bottleneck"] == [0, 1, 2, 3]


def test_the_most_important_units_are_kept() -> None:
    """By the criterion, of the dense network where half of them stay."""
    parent = fitted("lstm", updates=TRAINED)
    derivation = Derivation(parent, DATA, DeriveOptions("random", repair=False, updates=0, seed=7))

    derivation.down_to(to(parent, 8))

    generator = torch.Generator().manual_seed(7)
    wanted = [most_important(torch.rand(16, generator=generator), 8).tolist() for _ in range(2)]
    assert derivation.kept == dict(zip(("layer0", "layer1"), wanted, strict=True))


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
@pytest.mark.parametrize("updates", [0, 30])
def test_stages_are_cuts_one_after_the_other(kind: str, updates: int) -> None:
    """Asking for a quarter is asking for a half, and then for a quarter, with half of the updates each."""
    parent = fitted(kind, updates=TRAINED)
    at_once, by_hand = (
        Derivation(parent, DATA, DeriveOptions(updates=count, seed=3)) for count in (updates, updates // 2)
    )

    child = at_once.down_to(to(parent, 4))
    by_hand.down_to(to(parent, 8))
    other = by_hand.down_to(to(parent, 4))

    assert_same(child.network, other.network)
    assert at_once.kept == by_hand.kept


@pytest.mark.parametrize(
    ("width", "updates", "wanted"),
    [
        (8, 40, [40]),
        (4, 41, [20, 21]),
        (4, 2 * STAGE_UPDATES + 3, [STAGE_UPDATES, STAGE_UPDATES + 3]),
        (2, 10, [3, 3, 4]),
        (1, 2, [2]),
    ],
)
def test_updates_are_shared_between_the_stages(width: int, updates: int, wanted: list[int]) -> None:
    """As many as are asked for, in all; where there are many the last stage gets the most, where few only the last."""
    parent = fitted("autoencoder", updates=TRAINED)
    begun: list[str] = []
    told: list[int] = []

    def count(_stage: str, _done: float, _message: str) -> None:
        told[-1] += 1

    def stage(name: str) -> None:
        begun.append(name)
        if name == "fine-tune":
            told.append(0)

    Derivation(parent, DATA, DeriveOptions(updates=updates), stage=stage, progress=count).down_to(to(parent, width))

    assert told == wanted
    assert begun.count("prune") == {8: 1, 4: 2, 2: 3, 1: 4}[width]


def test_without_updates_nothing_is_trained() -> None:
    """Cut and repaired; a fine-tuned child of the same parent is another one with the same units."""
    parent, begun = fitted("lstm", updates=TRAINED), []
    bare = Derivation(parent, DATA, DeriveOptions(updates=0), stage=begun.append)
    tuned = Derivation(parent, DATA, DeriveOptions(updates=5))

    untrained, trained = (each.down_to(to(parent, 8)).network for each in (bare, tuned))

    assert begun == ["prune"]
    assert bare.kept == tuned.kept
    assert not torch.equal(untrained.head.bias, trained.head.bias)
    assert DeriveOptions().updates == UPDATES


def test_the_same_seed_gives_the_same_child() -> None:
    """To the last bit, through two stages with repair and training."""
    parent = fitted("autoencoder", updates=TRAINED)

    first, second = (Derivation(parent, DATA, DeriveOptions(updates=20, seed=4)).down_to(to(parent, 4)) for _ in "ab")

    assert_same(first.network, second.network)


def test_a_forest_is_not_fine_tuned() -> None:
    """It has no gradients: trees leave, and the weights of those that stay take over what they can."""
    parent, begun = fitted("isolation_forest"), []
    derivation = Derivation(parent, DATA, DeriveOptions(updates=50), stage=begun.append)

    child = derivation.down_to({"trees": 10}).network

    assert set(begun) == {"prune"}
    assert child.units == {"trees": 10}
    assert torch.equal(child.threshold, parent.network.threshold[derivation.kept["trees"], : child.threshold.shape[1]])
    assert not torch.allclose(child.weight, parent.network.weight[:10])


def switched_off(parent: Fitted, latents: list[int]) -> Fitted:
    """A detector whose given latents say what the prior says, whatever comes in."""
    network = copy.deepcopy(parent.network)
    for layer in ("mean", "log_variance"):
        for tensor in ("weight", "bias"):
            network.state_dict()[f"{layer}.{tensor}"][latents] = 0
    return parent.with_network(network)


def test_idle_latents_leave_first() -> None:
    """Before any cut and whatever the budget; the child scores in the runtime as in torch."""
    whole = fitted("variational_autoencoder", updates=TRAINED)
    silent = idle(whole.network, chunks_over(DATA, whole.scaler, whole.network, 0))["latent"].tolist()
    spoke = [unit for unit in range(4) if unit not in silent]
    parent = switched_off(whole, spoke[:1])
    derivation = Derivation(parent, DATA, DeriveOptions(updates=0))

    child = derivation.down_to({"encoder": 8, "decoder": 8}).network

    assert derivation.kept["latent"] == spoke[1:]
    assert child.units == {"encoder": 8, "latent": len(spoke) - 1, "decoder": 8}
    assert_graph_is_network(child, noise(2, 20, 4, dtype=torch.float32))


def test_without_repair_idle_latents_leave_without_it_too() -> None:
    """What is left is the parent's rows and columns."""
    parent = switched_off(fitted("variational_autoencoder", updates=TRAINED), [0, 1])
    derivation = Derivation(parent, DATA, BARE)

    child = derivation.down_to(to(parent, 16)).network

    assert derivation.kept["latent"] != [0, 1, 2, 3]
    assert_same(child, remove(parent.network, {"latent": torch.tensor(derivation.kept["latent"])}))


def test_one_latent_stays_where_all_are_idle() -> None:
    """A decoder needs something to read."""
    parent = switched_off(fitted("variational_autoencoder", updates=TRAINED), [0, 1, 2, 3])

    derivation = Derivation(parent, DATA, BARE)

    assert derivation.kept["latent"] == [0]


@pytest.mark.parametrize(
    ("kind", "gone"), [("lstm", "layer1"), ("autoencoder", "decoder0"), ("ensemble", "autoencoder.decoder0")]
)
def test_a_bypassed_layer_keeps_no_units(kind: str, gone: str) -> None:
    """It is named with none; the others are named by the parent's groups, and are trained against it."""
    parent, structure = fitted(kind, updates=TRAINED), Structure((gone,))

    def shown(member: Network) -> Lanes | Windows:
        return chunks_over(DATA, parent.scaler, member, 0)

    base = parent.with_network(restructured(parent.network, structure, shown))
    derivation = Derivation(parent, DATA, DeriveOptions(updates=5), base=base, structure=structure)

    child = derivation.down_to(to(base, 8))

    assert derivation.kept[gone] == []
    assert derivation.kept.keys() == parent.network.units.keys()
    assert {name: len(units) for name, units in derivation.kept.items() if units} == child.network.units
    assert gone not in child.network.units
    assert_graph_is_network(child.network, noise(2, 20, 4, dtype=torch.float32))


def test_a_child_keeps_its_parents_statistics_until_it_is_calibrated() -> None:
    """Features, scaler and views: the network alone is new."""
    parent = fitted("lstm", updates=TRAINED)

    child = Derivation(parent, DATA, BARE).down_to(to(parent, 8))

    assert replace(child, network=parent.network) == parent
