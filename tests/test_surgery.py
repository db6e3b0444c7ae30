"""Surgery: a smaller network that answers exactly as the big one whose units nobody reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    autoencoders,
    conv_autoencoders,
    cuts,
    grus,
    lstm_autoencoders,
    lstms,
    noise,
    randomised,
    variational_autoencoders,
)
from torch import Tensor

import pruning.groups
from detectors.errors import InvalidInputError
from detectors.training.networks import GRU, LSTM, Autoencoder, ConvAutoencoder, Network, Slice
from pruning.groups import Keep, dropped, expand
from pruning.surgery import masked, remove

EXACT = 1e-9
SMALL = {"encoder0": 5, "bottleneck": 3, "decoder0": 5}
drawn = settings(max_examples=200, deadline=None, derandomize=True)
recurrent = st.one_of(lstms(), grus())
networks = st.one_of(recurrent, autoencoders(), conv_autoencoders(), lstm_autoencoders(), variational_autoencoders())


def run(network: Network, points: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Residuals and last state over points [B, T, F], carried across a cut in the middle."""
    half = points.shape[1] // 2
    with torch.no_grad():
        first = network(points[:, :half], network.fresh(len(points)))
        second = network(points[:, half:], first.state)
    return torch.cat([first.residual, second.residual], dim=1), second.state


def assert_removal_is_masking(network: Network, keep: Keep, seed: int = 0) -> None:
    """The rule of surgery, over a sequence with carried state."""
    points = noise(2, 9, network.n_features, seed=seed)
    cut = remove(network, keep)

    wanted, _ = run(masked(network, keep), points)
    got, _ = run(cut, points)

    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= EXACT
    widths = {name: len(indices) for name, indices in keep.items()}
    assert cut.units == network.units | widths


@drawn
@given(cuts(lstms()))
def test_removing_units_of_an_lstm_equals_zeroing_what_reads_them(cut) -> None:
    """Whatever the widths, layers, features and keep-sets, in float64, over carried state."""
    assert_removal_is_masking(*cut)


@drawn
@given(cuts(autoencoders()))
def test_removing_units_of_an_autoencoder_equals_zeroing_what_reads_them(cut) -> None:
    """Whatever the window, widths, features and keep-sets, in float64, over carried state."""
    assert_removal_is_masking(*cut)


@drawn
@given(cuts(grus()))
def test_removing_units_of_a_gru_equals_zeroing_what_reads_them(cut) -> None:
    """Whatever the widths, layers, features and keep-sets, in float64, over carried state."""
    assert_removal_is_masking(*cut)


@drawn
@given(cuts(conv_autoencoders()))
def test_removing_filters_of_a_conv_autoencoder_equals_zeroing_what_reads_them(cut) -> None:
    """Whatever the window, depth, filters, features and keep-sets, in float64, over carried state."""
    assert_removal_is_masking(*cut)


@drawn
@given(cuts(lstm_autoencoders()))
def test_removing_units_of_an_lstm_autoencoder_equals_zeroing_what_reads_them(cut) -> None:
    """Coupled or both ways, whatever the window, widths, features and keep-sets, in float64, over carried state."""
    assert_removal_is_masking(*cut)


@drawn
@given(cuts(variational_autoencoders()))
def test_removing_units_of_a_variational_autoencoder_equals_zeroing_what_reads_them(cut) -> None:
    """Whatever the window, widths, features and keep-sets, in float64, over carried state."""
    assert_removal_is_masking(*cut)


@drawn
@given(cuts(recurrent))
def test_state_of_surviving_units_is_what_it_was(cut) -> None:
    """Carried state of the cut network is that of the kept units of the masked one: h of a layer, of an LSTM c too."""
    network, keep, seed = cut
    points = noise(2, 6, network.n_features, seed=seed)

    _, wide = run(masked(network, keep), points)
    _, narrow = run(remove(network, keep), points)

    each = len(wide) // len(network.groups())
    for i, group in enumerate(network.groups()):
        kept = keep.get(group.name, torch.arange(group.width))
        for part in range(i * each, (i + 1) * each):
            assert torch.allclose(narrow[part], wide[part][:, kept], rtol=0, atol=EXACT)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(cuts(networks))
def test_removing_nothing_changes_nothing(cut) -> None:
    """A keep-set of all units gives the same tensors, in a new network."""
    network, _, _ = cut

    same = remove(network, {})

    assert same is not network
    assert same.options == network.options
    for name, tensor in network.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
        assert same.state_dict()[name].data_ptr() != tensor.data_ptr()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cuts(networks))
def test_every_tensor_shrinks_by_exactly_its_slices(cut) -> None:
    """Sizes follow from the declared slices and from nothing else."""
    network, keep, _ = cut
    wanted = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    for group in network.groups():
        gone = group.width - len(keep.get(group.name, range(group.width)))
        for where in (*group.own, *group.consumers):
            wanted[where.tensor][where.axis] -= gone * where.blocks

    smaller = remove(network, keep)

    assert {name: list(tensor.shape) for name, tensor in smaller.state_dict().items()} == wanted
    assert smaller.parameters_count == sum(tensor.numel() for tensor in smaller.state_dict().values())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cuts(networks))
def test_two_forwards_are_equal_and_the_input_stays_as_it_was(cut) -> None:
    """A mis-sliced LSTM may answer differently each time; and what serves is never touched."""
    network, keep, seed = cut
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    points = noise(1, 8, network.n_features, seed=seed)

    smaller = remove(network, keep)
    masked(network, keep)

    assert torch.equal(run(smaller, points)[0], run(smaller, points)[0])
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), cuts(networks))
def test_two_removals_are_one(data, cut) -> None:
    """Cutting in stages gives the network that one cut with the joined keep-sets gives."""
    network, first, _ = cut
    halfway = remove(network, first)
    second = {
        group.name: torch.tensor(sorted(data.draw(st.sets(st.integers(0, group.width - 1), min_size=1))))
        for group in halfway.groups()
        if not group.protected
    }
    joined = {name: first.get(name, torch.arange(network.units[name]))[indices] for name, indices in second.items()}

    staged, direct = remove(halfway, second), remove(network, joined)

    for name, tensor in direct.state_dict().items():
        assert torch.equal(staged.state_dict()[name], tensor)


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
@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_the_property_catches_a_wrong_gate_layout(monkeypatch, kind, defect) -> None:
    """The test above is worth something: a planted defect of the indexing, right in all shapes, makes it fail."""
    network, keep = randomised(kind(2, (6, 5)), 3), {"layer0": torch.tensor([0, 2, 3]), "layer1": torch.tensor([1, 4])}
    assert_removal_is_masking(network, keep)

    monkeypatch.setattr(pruning.groups, "expand", defect)

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
