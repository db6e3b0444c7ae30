"""Structures: what can be made smaller beside widths, mildest first, and what it was before."""

from __future__ import annotations

import copy

import pytest
import torch
from fits import fitted, machine, untrained

from detectors.training.fit import chunks_over, held_out_loss
from detectors.training.fitted import Fitted
from detectors.training.networks import GRU, LSTM, Autoencoder, Network
from detectors.training.stretches import Lanes, Stretches, Windows
from pruning.structures import Structure, origins, restructured, structures

DATA = Stretches.of([machine(700)])
DEEP = {"encoder0": 24, "encoder1": 16, "bottleneck": 4, "decoder0": 16, "decoder1": 24}


def test_layers_leave_from_the_deepest_up() -> None:
    """The first of them never: nothing stands for what it reads."""
    assert structures(LSTM(2, (8, 8, 8))) == [
        Structure(),
        Structure(without=("layer2",)),
        Structure(without=("layer2", "layer1")),
    ]
    assert structures(GRU(2, (8,))) == [Structure()]


def test_levers_are_pulled_by_halves_down_to_their_smallest() -> None:
    """A window of 50 points becomes 25, 12, 8; milder combinations come before those of more steps."""
    found = structures(Autoencoder(2, 50, DEEP))

    assert found[0] == Structure()
    assert [dict(it.levers)["window"] for it in found if it.levers and not it.without] == [25, 12, 8]
    assert [it.without for it in found if not it.levers] == [
        (),
        ("decoder1",),
        ("decoder1", "decoder0"),
        ("decoder1", "decoder0", "encoder1"),
    ]
    assert len(found) == len(set(found)) == 4 * 4
    halves = {25: 1, 12: 2, 8: 3}
    steps = [len(it.without) + sum(halves[value] for _, value in it.levers) for it in found]
    assert steps == sorted(steps)


def test_the_members_of_an_ensemble_have_levers_and_layers_of_their_own() -> None:
    """Under the member's name."""
    found = structures(untrained("ensemble", 3, **{"lstm.layers": 2, "autoencoder.window": 20}).network)

    assert Structure(without=("lstm.layer1",)) not in found  # the autoencoder's layer lies deeper
    assert Structure(without=("autoencoder.decoder0", "lstm.layer1")) in found
    assert Structure(levers=(("autoencoder.window", 10),)) in found


def test_a_forest_can_be_made_shallow() -> None:
    """Down to half of its depth, in one step."""
    network = untrained("isolation_forest", 3).network

    assert structures(network) == [Structure(), Structure(levers=(("depth", network.height // 2),))]


def test_what_a_structure_says() -> None:
    """In words and as outcomes carry it; the network as it is says nothing and is false."""
    structure = Structure(("decoder0",), (("window", 25),))

    assert str(structure) == "without decoder0, window 25"
    assert structure.to_dict() == {"without": ["decoder0"], "levers": {"window": 25}}
    assert structure
    assert not Structure()
    assert (str(Structure()), Structure().to_dict()) == ("", {"without": [], "levers": {}})


def loss(detector: Fitted, network: Network) -> float:
    """Over points that a bypass was not regressed on."""
    return held_out_loss(network, list(chunks_over(DATA, detector.scaler, network, 7).chunks(4)))


@pytest.mark.parametrize(("kind", "gone"), [("lstm", "layer1"), ("gru", "layer1"), ("autoencoder", "decoder0")])
def test_a_bypass_is_repaired_where_points_are_given(kind: str, gone: str) -> None:
    """Sizes are the same without; the parent stays as it was."""
    detector, structure = fitted(kind, updates=150), Structure((gone,))
    before = copy.deepcopy(detector.network.state_dict())

    def shown(member: Network) -> Lanes | Windows:
        return chunks_over(DATA, detector.scaler, member, 0)

    bare, repaired = restructured(detector.network, structure), restructured(detector.network, structure, shown)

    wanted = {name: width for name, width in detector.network.units.items() if name != gone}
    assert bare.units == repaired.units == wanted
    assert loss(detector, repaired) < 0.6 * loss(detector, bare)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.network.state_dict().items())


def test_layers_and_levers_together() -> None:
    """All that a structure says is done, in every member."""
    network = untrained("ensemble", 3, **{"lstm.layers": 3, "autoencoder.window": 20}).network
    structure = Structure(("autoencoder.decoder0", "lstm.layer2", "lstm.layer1"), (("autoencoder.window", 10),))

    smaller = restructured(network, structure)

    assert set(smaller.units) == {"lstm.layer0", "autoencoder.encoder0", "autoencoder.bottleneck"}
    assert smaller.members["autoencoder"].window == 10
    assert set(network.units) > set(smaller.units)


def test_groups_know_what_they_were() -> None:
    """A layer that stands above a bypassed one moves down a place; others keep their names."""
    assert origins(LSTM(2, (8, 7, 6)), Structure(("layer1",))) == {"layer0": "layer0", "layer1": "layer2"}
    assert origins(LSTM(2, (8, 7, 6)), Structure()) == {name: name for name in ("layer0", "layer1", "layer2")}
    kept = ("encoder0", "encoder1", "bottleneck", "decoder1")
    assert origins(Autoencoder(2, 20, DEEP), Structure(("decoder0",), (("window", 10),))) == {it: it for it in kept}
