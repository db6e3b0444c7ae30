"""Importance: what each criterion says by hand, of units that nobody reads or needs, and of every kind of network."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from fits import fitted, machine, untrained
from scipy.stats import spearmanr
from strategies import noise, randomised
from torch import Tensor

from detectors.errors import InvalidInputError
from detectors.training.fit import Runner, chunks_over, training_loss
from detectors.training.fitted import Fitted
from detectors.training.networks import LSTM, Autoencoder, Group, Network, Slice
from detectors.training.stretches import Lanes, Stretches, Windows
from pruning.groups import prunable
from pruning.importance import CRITERIA, DEFAULT, IDLE, Evidence, idle, importance
from pruning.surgery import masked

TRAINED = 150  # updates: enough for units to matter differently
PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
ANYWHERE = [name for name in CRITERIA if name != "kl"]


def chunks(network: Network, detector: Fitted, seed: int = 0) -> Lanes | Windows:
    """Lanes or windows of points that the detector was fitted to."""
    return chunks_over(Stretches.of([machine(700)]), detector.scaler, network, seed)


@dataclass(frozen=True)
class Told:
    """A module of somebody's own: evidence that is simply given."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    slopes: tuple[Mapping[str, Tensor], ...] = ()
    said: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0

    def tensors(self) -> Mapping[str, Tensor]:
        """As given."""
        return self.weights

    def seen(self) -> Mapping[str, Tensor]:
        """As given."""
        return self.said

    def gradients(self) -> Iterator[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
        """As given, batch by batch."""
        for each in self.slopes:
            yield self.weights, each


TWO = (Group("units", 2, (Slice("made", 0),), (Slice("read", 1), Slice("again", 1, blocks=2))),)
"""Two units that are read in two places, in one of them twice."""
WEIGHTS = {
    "made": torch.tensor([[1.0, -2.0], [0.5, 0.0]]),
    "read": torch.tensor([[3.0, -1.0]]),
    "again": torch.tensor([[1.0, 2.0, -1.0, 4.0]]),
}


# By hand


def test_l1_by_hand() -> None:
    """Absolute values of all that belongs to a unit, made or read, block by block."""
    assert CRITERIA["l1"](Told(WEIGHTS), TWO)["units"].tolist() == [3 + 3 + 1 + 1, 0.5 + 1 + 2 + 4]


def test_l2_of_an_lstm_by_hand() -> None:
    """All gate rows and biases of the unit, its recurrent column and the head's column, squared, summed, rooted."""
    network = randomised(LSTM(2, (3,)), 1)
    layer, head = network.layers[0].requires_grad_(False), network.head.weight.detach()
    wanted = []
    for unit in range(3):
        rows = [unit, 3 + unit, 6 + unit, 9 + unit]
        made = sum(float(getattr(layer, f"{name}_l0")[rows].square().sum()) for name in PARTS)
        read = float(layer.weight_hh_l0[:, unit].square().sum() + head[:, unit].square().sum())
        wanted.append((made + read) ** 0.5)

    scores = importance("l2", Evidence(network, None, 0))

    assert scores["layer0"].tolist() == pytest.approx(wanted)


def test_l2_of_an_autoencoder_by_hand() -> None:
    """Row, bias and next column; the bottleneck is not offered."""
    network = randomised(Autoencoder(2, 3, {"encoder0": 4, "bottleneck": 2, "decoder0": 5}), 1).requires_grad_(False)
    decoder, output = network.layers["decoder0"], network.layers["output"]
    wanted = [
        float(decoder.weight[unit].square().sum() + decoder.bias[unit].square() + output.weight[:, unit].square().sum())
        ** 0.5
        for unit in range(5)
    ]

    scores = importance("l2", Evidence(network, None, 0))

    assert set(scores) == {"encoder0", "decoder0"}
    assert scores["decoder0"].tolist() == pytest.approx(wanted)


def test_activation_by_hand() -> None:
    """The mean of absolute values over points."""
    said = {"units": torch.tensor([[1.0, -3.0], [-1.0, 1.0]])}

    assert CRITERIA["activation"](Told(said=said), TWO)["units"].tolist() == [1.0, 2.0]


SLOPES = tuple(
    {"read": torch.tensor([each]), "again": torch.tensor([[1.0, 0.0, 0.0, 0.5]])} for each in ([2.0, 3.0], [-1.0, 1.0])
)


def test_taylor_by_hand() -> None:
    """Gradient times weight summed over everything that reads the unit, squared batch by batch."""
    scores = CRITERIA["taylor"](Told(WEIGHTS, SLOPES), TWO)

    assert scores["units"].tolist() == [(6 + 1) ** 2 + (-3 + 1) ** 2, (-3 + 2) ** 2 + (-1 + 2) ** 2]


def test_fisher_by_hand() -> None:
    """Half of each squared gradient times squared weight, summed over weights and batches."""
    scores = CRITERIA["fisher"](Told(WEIGHTS, SLOPES), TWO)

    assert scores["units"].tolist() == [(36 + 1 + 9 + 1) / 2, (9 + 4 + 1 + 4) / 2]


def test_reconstruction_by_hand() -> None:
    """Variance times squared outgoing weights, where units know nothing of each other; a sum is worth none."""
    said = noise(4000, 3, dtype=torch.float32) * torch.tensor([1.0, 2.0, 3.0])
    free = Group("units", 3, (), (Slice("read", 1),))
    bound = Group("units", 4, (), (Slice("read", 1),))
    weights = torch.tensor([[1.0, 1.0, 0.5, 1.0], [0.0, 1.0, 0.0, 1.0]])

    alone = CRITERIA["reconstruction"](Told({"read": weights[:, :3]}, said={"units": said}), (free,))["units"]
    said = torch.cat([said, said.sum(dim=1, keepdim=True)], dim=1)
    summed = CRITERIA["reconstruction"](Told({"read": weights}, said={"units": said}), (bound,))["units"]

    assert alone.tolist() == pytest.approx([1 * 1, 4 * 2, 9 * 0.25], rel=0.1)
    assert float(summed.max()) < 0.1


def test_divergence_by_hand() -> None:
    """The mean over points, in nats."""
    said = {"units/divergence": torch.tensor([[0.5, 0.0], [1.5, 0.25]])}

    assert CRITERIA["kl"](Told(said=said), TWO)["units"].tolist() == [1.0, 0.125]


def test_trees_are_chosen_one_after_the_other() -> None:
    """First who agrees best with all, then who makes the mean of those chosen agree best, and so on (Spearman)."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(300, 1))
    votes = common + rng.normal(size=(300, 8)) * rng.uniform(0.2, 3, 8)
    whole, left, chosen = votes.mean(axis=1), list(range(8)), []
    while left:
        best = max(left, key=lambda tree: spearmanr(votes[:, [*chosen, tree]].mean(axis=1), whole).statistic)
        chosen.append(best)
        left.remove(best)
    trees = Group("trees", 8, (), (Slice("weight", 0),), criterion="agreement")

    scores = CRITERIA["agreement"](Told(said={"trees": torch.from_numpy(votes)}), (trees,))["trees"]

    assert scores.argsort(descending=True).tolist() == chosen
    assert sorted(scores.tolist()) == [1, 2, 3, 4, 5, 6, 7, 8]


# Of every kind of network

KINDS = {
    "lstm": lambda: untrained("lstm", 4),
    "gru": lambda: untrained("gru", 4),
    "windowed_lstm": lambda: untrained("windowed_lstm", 4),
    "autoencoder": lambda: untrained("autoencoder", 4),
    "conv_autoencoder": lambda: untrained("conv_autoencoder", 4),
    "lstm_autoencoder": lambda: untrained("lstm_autoencoder", 4),
    "bidirectional": lambda: untrained("lstm_autoencoder", 4, bidirectional=1),
    "variational_autoencoder": lambda: untrained("variational_autoencoder", 4),
    "isolation_forest": lambda: untrained("isolation_forest", 4),
}


@pytest.mark.parametrize("criterion", ANYWHERE)
@pytest.mark.parametrize("kind", KINDS)
def test_every_criterion_judges_every_network(kind: str, criterion: str) -> None:
    """A finite number of at least zero for each unit that may go, the same for the same seed; nothing is changed."""
    detector = KINDS[kind]()
    network, before = detector.network, copy.deepcopy(detector.network.state_dict())

    first, second = (importance(criterion, Evidence(network, chunks(network, detector), 3)) for _ in range(2))

    offered = [group for group in network.groups() if not group.protected or group.criterion]
    assert {name: tuple(scores.shape) for name, scores in first.items()} == {it.name: (it.width,) for it in offered}
    for name, scores in first.items():
        assert torch.equal(scores, second[name])
        assert scores.isfinite().all()
        assert (scores >= 0).all()
        assert len(scores.unique()) > 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("kind", ["lstm", "autoencoder"])
def test_only_latents_have_a_divergence(kind: str) -> None:
    """Of a network without latents it is refused, with the group."""
    detector = untrained(kind, 4)
    evidence = Evidence(detector.network, chunks(detector.network, detector), 0)

    with pytest.raises(InvalidInputError, match="no latents") as error:
        importance("kl", evidence)

    assert error.value.field == "criterion"


def test_the_other_groups_beside_latents_are_judged_by_the_default() -> None:
    """Asked for the divergence, which they have none of."""
    detector = untrained("variational_autoencoder", 4)
    network = detector.network

    wanted, found = (importance(how, Evidence(network, chunks(network, detector), 0)) for how in (DEFAULT, "kl"))

    assert found.keys() == {"encoder", "latent", "decoder"}
    assert all(torch.equal(scores, wanted[name]) for name, scores in found.items())


def test_groups_with_a_measure_of_their_own_are_judged_by_it() -> None:
    """Latents by divergence and trees by agreement, whatever is asked for; but for `random`, the baseline."""
    variational, forest = untrained("variational_autoencoder", 4), untrained("isolation_forest", 4)
    latents, trees = (Evidence(it.network, chunks(it.network, it), 0) for it in (variational, forest))
    group = variational.network.groups()[1]

    def fresh(evidence: Evidence, detector: Fitted) -> Evidence:
        return Evidence(evidence.network, chunks(evidence.network, detector), 0)

    own = CRITERIA["kl"](latents, (group,))["latent"]
    assert torch.equal(importance("l2", fresh(latents, variational))["latent"], own)
    assert not torch.equal(importance("random", latents)["latent"], own)
    assert torch.equal(
        importance("l1", fresh(trees, forest))["trees"], importance("taylor", fresh(trees, forest))["trees"]
    )
    assert not torch.equal(importance("random", trees)["trees"], importance("agreement", fresh(trees, forest))["trees"])


def ablation(network: Network, judged: list) -> dict[str, np.ndarray]:
    """Rise of the loss over the same chunks when nothing reads one unit, unit by unit."""

    def total(candidate: Network) -> float:
        run = Runner(candidate)
        with torch.no_grad():
            return float(sum(training_loss(run(chunk), chunk.counted) for chunk in judged))

    base = total(network)
    return {
        group.name: np.array(
            [
                total(masked(network, {group.name: torch.tensor([i for i in range(group.width) if i != unit])})) - base
                for unit in range(group.width)
            ]
        )
        for group in prunable(network)
    }


def ranks(values: np.ndarray) -> np.ndarray:
    """Place of each value."""
    return np.argsort(np.argsort(values))


@pytest.mark.parametrize(
    ("criterion", "least"), [("taylor", 0.5), ("fisher", 0.4), ("activation", 0.0), ("l1", -0.2), ("l2", -0.2)]
)
def test_importance_ranks_units_as_ablation_does(criterion: str, least: float) -> None:
    """Gradients agree with taking out each unit by itself; sizes of weights need only not be nonsense."""
    detector = fitted("lstm", updates=TRAINED)
    network = detector.network
    truth = ablation(network, list(chunks(network, detector).chunks(4)))

    scores = importance(criterion, Evidence(network, chunks(network, detector), 0))

    agreement = [np.corrcoef(ranks(scores[name].numpy()), ranks(truth[name]))[0, 1] for name in truth]
    assert np.mean(agreement) > least


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "reconstruction"])
@pytest.mark.parametrize("kind", ["lstm", "autoencoder", "gru", "conv_autoencoder", "lstm_autoencoder"])
def test_a_unit_that_nobody_reads_is_worth_nothing(kind: str, criterion: str) -> None:
    """Exactly zero, and the least of all, by every criterion that asks what comes of a unit."""
    detector = untrained(kind, 4)
    groups = prunable(detector.network)
    others = {group.name: torch.tensor([i for i in range(group.width) if i != 3]) for group in groups}
    network = masked(detector.network, others)

    scores = importance(criterion, Evidence(network, chunks(network, detector), 0))

    for values in scores.values():
        assert values[3] == 0
        assert values.argmin() == 3 or (values == 0).sum() > 1  # a ReLU can be dead by itself
        assert (values > 0).sum() > len(values) // 2


def test_a_unit_that_another_repeats_is_cheap_to_rebuild() -> None:
    """Both of the pair by far, though by the size of their weights they are worth as much as any."""
    detector = fitted("lstm", updates=TRAINED)
    network = copy.deepcopy(detector.network)
    tensors, width = network.state_dict(), 16
    for name in PARTS:
        tensor = tensors[f"layers.0.{name}_l0"]
        for gate in range(4):
            tensor[gate * width + 5] = tensor[gate * width + 2]

    scores = importance("reconstruction", Evidence(network, chunks(network, detector), 0))["layer0"]

    others = scores[[unit for unit in range(width) if unit not in {2, 5}]]
    assert max(scores[2], scores[5]) < 0.2 * others.median()
    assert set(scores.argsort()[:2].tolist()) == {2, 5}


def test_random_importance_follows_its_seed() -> None:
    """The same seed the same numbers, another seed others."""
    network = LSTM(2, (16, 8))

    first, second, other = (importance("random", Evidence(network, None, seed)) for seed in (1, 1, 2))

    assert {name: len(values) for name, values in first.items()} == network.units
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["layer0"], other["layer0"])


def test_an_unknown_criterion_names_the_known_ones() -> None:
    """What to do stands in the error."""
    known = ["random", "l1", "l2", "activation", "taylor", "fisher", "reconstruction", "kl", "agreement"]

    with pytest.raises(InvalidInputError, match=", ".join(known)) as error:
        importance("magic", Evidence(LSTM(1, (2,)), None, 0))

    assert error.value.field == "criterion"
    assert list(CRITERIA) == known


def test_latents_that_say_nothing_are_idle() -> None:
    """Those that the fit has switched off: mean and variance are the prior's whatever comes in; others are not."""
    detector = fitted("variational_autoencoder", updates=TRAINED)
    network = copy.deepcopy(detector.network)
    kept = [unit for unit in range(4) if unit not in idle(network, chunks(network, detector))["latent"].tolist()]
    off = kept[0]
    for layer in ("mean", "log_variance"):
        network.state_dict()[f"{layer}.weight"][off] = 0
        network.state_dict()[f"{layer}.bias"][off] = 0.5 * IDLE

    assert off in idle(network, chunks(network, detector))["latent"].tolist()
    assert not set(kept[1:]) & set(idle(network, chunks(network, detector))["latent"].tolist())


@pytest.mark.parametrize("kind", ["lstm", "autoencoder", "isolation_forest"])
def test_nothing_is_idle_where_nothing_could_tell(kind: str) -> None:
    """Only latents can be told; a dead unit of another kind leaves by its importance."""
    detector = untrained(kind, 4)

    assert idle(detector.network, chunks(detector.network, detector)) == {}
