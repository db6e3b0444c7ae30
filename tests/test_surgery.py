"""Surgery: a smaller network that answers exactly as the big one whose units nobody reads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    NETWORKS,
    assert_graph_is_network,
    cuts,
    forest,
    keeps,
    may_leave,
    noise,
    randomised,
)
from torch import Tensor

import pruning.groups
from detectors.errors import InvalidInputError
from detectors.training.networks import (
    GRU,
    LSTM,
    Autoencoder,
    ConvAutoencoder,
    Ensemble,
    LSTMAutoencoder,
    Network,
    Pass,
    Slice,
    VariationalAutoencoder,
    WindowedLSTM,
)
from pruning.groups import Keep, dropped, expand
from pruning.surgery import masked, remove

EXACT = 1e-9
SMALL = {"encoder0": 5, "bottleneck": 3, "decoder0": 5}
Rule = Callable[[Network, Keep, int, st.DataObject], None]
EXAMPLES: dict[Rule, int] = {}
"""Rules that every network keeps, and how many architectures of each kind are drawn for them."""
LONG = 5  # times as many in the long suite


def drawn(examples: int) -> Callable[[Rule], Rule]:
    """Puts a rule into the table."""

    def put(rule: Rule) -> Rule:
        EXAMPLES[rule] = examples
        return rule

    return put


def hold(rule: Rule, kind: str, how: settings) -> None:
    """Draws networks of a kind, units to keep and points, and holds the rule against them."""

    @settings(how, deadline=None)
    @given(cuts(NETWORKS[kind]), st.data())
    def each(cut, data) -> None:
        rule(*cut, data)

    each()


def run(network: Network, points: Tensor) -> Pass:
    """What a network makes of points [B, T, F], carried across a cut in the middle, and its last state."""
    half = points.shape[1] // 2
    with torch.no_grad():
        first = network(points[:, :half], network.fresh(len(points)))
        second = network(points[:, half:], first.state)
    said = {name: torch.cat([each, second.activations[name]], dim=1) for name, each in first.activations.items()}
    return Pass(torch.cat([first.residual, second.residual], dim=1), second.state, said)


def assert_removal_is_masking(network: Network, keep: Keep, seed: int = 0) -> None:
    """The rule of surgery, over a sequence with carried state: residuals, and whatever kept units say."""
    points = noise(2, 9, network.n_features, seed=seed)
    cut = remove(network, keep)

    wanted, got = run(masked(network, keep), points), run(cut, points)

    assert got.residual.shape == wanted.residual.shape
    assert float((got.residual - wanted.residual).abs().max()) <= EXACT
    assert got.activations.keys() == wanted.activations.keys()
    for name, said in got.activations.items():
        group = name.partition("/")[0]  # of a voice
        kept = keep.get(group, torch.arange(network.units[group]))
        assert float((said - wanted.activations[name][..., kept]).abs().max()) <= EXACT, name
    widths = {name: len(indices) for name, indices in keep.items()}
    assert cut.units == network.units | widths


# What every network keeps


@drawn(200)
def removing_units_equals_zeroing_what_reads_them(network, keep, seed, data) -> None:
    """Whatever the sizes and keep-sets, in float64, over carried state."""
    assert_removal_is_masking(network, keep, seed)


@drawn(20)
def removing_nothing_changes_nothing(network, keep, seed, data) -> None:
    """A keep-set of all units gives the same tensors, in a new network."""
    same = remove(network, {})

    assert same is not network
    assert same.options == network.options
    for name, tensor in network.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
        assert same.state_dict()[name].data_ptr() != tensor.data_ptr()


@drawn(20)
def every_tensor_shrinks_by_exactly_its_slices(network, keep, seed, data) -> None:
    """Sizes follow from the declared slices and from nothing else."""
    wanted = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    for group in network.groups():
        gone = group.width - len(keep.get(group.name, range(group.width)))
        for where in (*group.own, *group.consumers):
            wanted[where.tensor][where.axis] -= gone * where.blocks * where.inner

    smaller = remove(network, keep)

    assert {name: list(tensor.shape) for name, tensor in smaller.state_dict().items()} == wanted
    if not list(smaller.buffers()):  # a forest counts its nodes
        assert smaller.parameters_count == sum(tensor.numel() for tensor in smaller.state_dict().values())


@drawn(20)
def two_forwards_are_equal_and_the_input_stays_as_it_was(network, keep, seed, data) -> None:
    """A mis-sliced LSTM may answer differently each time; and what serves is never touched."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    points = noise(1, 8, network.n_features, seed=seed)

    smaller = remove(network, keep)
    masked(network, keep)

    assert torch.equal(run(smaller, points).residual, run(smaller, points).residual)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


@drawn(30)
def removals_in_any_order_are_one(network, keep, seed, data) -> None:
    """One cut after the other, the other way round, and both at once give the same tensors."""
    first, second, both = {}, {}, {}
    other = data.draw(keeps(network))
    for group in network.groups():
        one, two = (kept.get(group.name, torch.arange(group.width)) for kept in (keep, other))
        joined = one[torch.isin(one, two)]
        if len(joined) and may_leave(group):
            first[group.name], second[group.name], both[group.name] = one, two, joined

    def staged(early: Keep, late: Keep) -> Network:
        left = {name: torch.isin(units, late[name]).nonzero().flatten() for name, units in early.items()}
        return remove(remove(network, early), left)

    direct = remove(network, both)

    for way in (staged(first, second), staged(second, first)):
        assert way.units == direct.units
        for name, tensor in direct.state_dict().items():
            assert torch.equal(way.state_dict()[name], tensor)


@drawn(8)
def the_graph_is_the_network(network, keep, seed, data) -> None:
    """What is cut is exported like any other, and gives in the runtime what it gives in torch, in float32."""
    calm = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in calm.parameters():
            parameter.mul_(0.5)  # so that a recurrent network does not make much of a rounding

    smaller = remove(calm, keep).float()

    assert_graph_is_network(smaller, noise(2, 9, network.n_features, seed=seed, dtype=torch.float32))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("rule", EXAMPLES, ids=lambda rule: rule.__name__)
def test_every_network_keeps_every_rule(rule: Rule, kind: str) -> None:
    """The table above, for each kind: sizes, weights, keep-sets and points are drawn, the same ones each time."""
    hold(rule, kind, settings(max_examples=EXAMPLES[rule], derandomize=True))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("rule", EXAMPLES, ids=lambda rule: rule.__name__)
def test_many_networks_keep_every_rule(rule: Rule, kind: str) -> None:
    """The same for more architectures, other ones each time."""
    hold(rule, kind, settings(max_examples=LONG * EXAMPLES[rule], database=None, print_blob=True))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cuts(st.one_of(NETWORKS["lstm"], NETWORKS["gru"])))
def test_state_of_surviving_units_is_what_it_was(cut) -> None:
    """Carried state of the cut network is that of the kept units of the masked one: h of a layer, of an LSTM c too."""
    network, keep, seed = cut
    points = noise(2, 6, network.n_features, seed=seed)

    wide = run(masked(network, keep), points).state
    narrow = run(remove(network, keep), points).state

    each = len(wide) // len(network.groups())
    for i, group in enumerate(network.groups()):
        kept = keep.get(group.name, torch.arange(group.width))
        for part in range(i * each, (i + 1) * each):
            assert torch.allclose(narrow[part], wide[part][:, kept], rtol=0, atol=EXACT)


# Keep-sets


def test_the_network_keeps_its_type_of_number() -> None:
    """Float32 in, float32 out."""
    network = LSTM(2, (4,))

    assert {t.dtype for t in remove(network, {"layer0": torch.tensor([1, 2])}).state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("keep", "field"),
    [
        ({"bottleneck": torch.tensor([0])}, "keep.bottleneck"),
        ({"attention": torch.tensor([0])}, "keep"),
        ({"encoder0": torch.tensor([2, 1])}, "keep.encoder0"),
        ({"encoder0": torch.tensor([1, 1])}, "keep.encoder0"),
        ({"encoder0": torch.tensor([], dtype=torch.int64)}, "keep.encoder0"),
        ({"encoder0": torch.tensor([0, 5])}, "keep.encoder0"),
        ({"encoder0": torch.tensor([-1, 2])}, "keep.encoder0"),
        ({"encoder0": torch.tensor([False, True])}, "keep.encoder0"),
        ({"encoder0": torch.tensor([0.0, 1.7])}, "keep.encoder0"),
    ],
    ids=["protected", "unknown", "unsorted", "repeated", "empty", "too large", "negative", "mask", "fraction"],
)
@pytest.mark.parametrize("surgery", [remove, masked])
def test_bad_keep_sets_are_refused_by_name(surgery, keep, field: str) -> None:
    """Protected, unknown, unsorted, repeated, empty, out-of-range sets and masks: an error that names the group."""
    network = Autoencoder(2, 3, SMALL)

    with pytest.raises(InvalidInputError) as error:
        surgery(network, keep)

    assert error.value.field == field


def test_an_unknown_group_names_the_known_ones() -> None:
    """What to do stands in the error."""
    with pytest.raises(InvalidInputError, match="layer0, layer1"):
        remove(LSTM(1, (2, 2)), {"layer2": torch.tensor([0])})


def test_a_protected_group_may_be_named_whole() -> None:
    """Keeping all of it is no pruning."""
    network = randomised(Autoencoder(2, 3, SMALL), 0)

    assert remove(network, {"bottleneck": torch.arange(3)}).units == network.units


def test_expand_and_dropped_by_hand() -> None:
    """Unit j of a four-gate tensor of width 3 is at j, 3 + j, 6 + j, 9 + j; what is not kept is dropped."""
    gates = expand(torch.tensor([0, 2]), 3, Slice("w", 0, blocks=4))

    assert gates.tolist() == [0, 2, 3, 5, 6, 8, 9, 11]
    assert dropped(torch.tensor([0, 2]), 5).tolist() == [1, 3, 4]


DEEP = {"encoder0": 6, "encoder1": 5, "bottleneck": 3, "decoder0": 5, "decoder1": 6}
FIXED: dict[str, Callable[[], Network]] = {
    "lstm": lambda: randomised(LSTM(2, (6, 5)), 3),
    "gru": lambda: randomised(GRU(2, (6, 5)), 3),
    "autoencoder": lambda: randomised(Autoencoder(2, 4, DEEP), 3),
    "conv_autoencoder": lambda: randomised(ConvAutoencoder(2, 9, DEEP), 3),
    "coupled lstm_autoencoder": lambda: randomised(LSTMAutoencoder(2, 4, 5), 3),
    "bidirectional lstm_autoencoder": lambda: randomised(LSTMAutoencoder(2, 4, 5, decoder_width=6), 3),
    "variational_autoencoder": lambda: randomised(
        VariationalAutoencoder(2, 4, {"encoder": 6, "latent": 4, "decoder": 5}), 3
    ),
    "isolation_forest": lambda: forest(2, 3, 6, 16, 3),
    "windowed_lstm": lambda: randomised(WindowedLSTM(2, (6, 5), 3), 3),
    "ensemble": lambda: Ensemble({"lstm": randomised(LSTM(2, (6, 5)), 3), "isolation_forest": forest(2, 1, 6, 16, 3)}),
}
GATED = ("lstm", "gru", "coupled lstm_autoencoder", "bidirectional lstm_autoencoder", "windowed_lstm")


@pytest.mark.parametrize(
    "defect",
    [
        lambda units, _width, where: torch.cat([units * where.blocks + block for block in range(where.blocks)]),
        lambda units, width, where: torch.cat(
            [(units + block) % width + block * width for block in range(where.blocks)]
        ),
    ],
    ids=["gates interleaved", "another unit in each gate"],
)
@pytest.mark.parametrize("kind", GATED)
def test_the_property_catches_a_wrong_gate_layout(monkeypatch, kind: str, defect) -> None:
    """The rule above is worth something: a planted defect of the indexing, right in all shapes, makes it fail."""
    network = FIXED[kind]()
    keep = {group.name: torch.tensor([0, 2, 3]) for group in network.groups()}
    assert_removal_is_masking(network, keep)

    monkeypatch.setattr(pruning.groups, "expand", defect)

    with pytest.raises(AssertionError):
        assert_removal_is_masking(network, keep)


@pytest.mark.parametrize("kind", FIXED)
def test_the_property_catches_a_shift_in_any_slice(monkeypatch, kind: str) -> None:
    """Of each slice in turn, of every group, the neighbours of the kept units are taken: all else is right."""
    network, right = FIXED[kind](), pruning.groups.expand
    for group in filter(may_leave, network.groups()):
        keep = {group.name: dropped(torch.tensor([1]), group.width)}
        assert_removal_is_masking(network, keep)
        for planted in (*group.own, *group.consumers):

            def shifted(units: Tensor, width: int, where: Slice, planted: Slice = planted) -> Tensor:
                return right((units + 1) % width if where == planted else units, width, where)

            with monkeypatch.context() as patch:
                patch.setattr(pruning.groups, "expand", shifted)
                with pytest.raises(AssertionError):
                    assert_removal_is_masking(network, keep)


def test_the_property_catches_swapped_axes_of_a_transposed_convolution(monkeypatch) -> None:
    """Its weight is (in, out, kernel): taken for (out, in, kernel), with as many units on either side, it must show."""
    widths = {"encoder0": 4, "encoder1": 4, "bottleneck": 2, "decoder0": 4, "decoder1": 4}
    network = randomised(ConvAutoencoder(2, 9, widths), 3)
    keep = {"decoder0": torch.tensor([0, 2]), "decoder1": torch.tensor([1, 2])}
    assert_removal_is_masking(network, keep)

    def swapped(where: Slice) -> Slice:
        return replace(where, axis=1 - where.axis) if where.tensor == "layers.decoder1.weight" else where

    right = ConvAutoencoder.groups
    monkeypatch.setattr(
        ConvAutoencoder,
        "groups",
        lambda network: [
            replace(group, own=tuple(map(swapped, group.own)), consumers=tuple(map(swapped, group.consumers)))
            for group in right(network)
        ],
    )

    with pytest.raises(AssertionError):
        assert_removal_is_masking(network, keep)
