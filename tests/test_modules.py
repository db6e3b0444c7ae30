"""Modules of one's own: what is found in them, that taking it out is exact, and what the one call makes of them."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fits import untrained
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS, noise
from torch import Tensor, nn
from torch.nn import functional as F

import pruning
from detectors.errors import InvalidInputError, PreconditionError
from detectors.training.networks import LSTM
from pruning.importance import CRITERIA
from pruning.modules.evidence import ModuleEvidence
from pruning.modules.plan import plan
from pruning.modules.prune import APPLICABLE
from pruning.modules.surgery import masked, remove
from pruning.modules.widths import share
from pruning.repair import repair

PAGE = Path(__file__).parent.parent / "docs" / "modules.md"
B, T = 3, 6


class Forward(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, forward, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self._forward = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor):
        """Whatever it was given."""
        return self._forward(self, x)


def unsettled(module: nn.Module, seed: int) -> nn.Module:
    """In float64, with no parameter or statistic at a value where a lost one would not show."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(drawn.abs() + 0.3 if "var" in name else drawn * 0.5)
    return module


def outputs(module: nn.Module, x: Tensor) -> Tensor:
    """Of a module in evaluation mode."""
    with torch.no_grad():
        return module.eval()(x)


# Drawn modules: stages over [B, T, F], a neck, and a head


class Drawn(nn.Module):
    """Stages in a row; each is traced as what it is."""

    def __init__(self, stages: list[tuple[str, nn.ModuleDict]], scale: Tensor | None) -> None:
        super().__init__()
        self.kinds = [kind for kind, _ in stages]
        self.stages = nn.ModuleList(layers for _, layers in stages)
        self.scale = None if scale is None else nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, F] -> [B, 2]."""
        for kind, at in zip(self.kinds, self.stages, strict=True):
            x = STAGES[kind](at, x)
        return x


def _residual(at, x):
    return x + at["out"](torch.tanh(at["in"](x)))


def _wave(at, x):
    return F.relu(at["norm"](at["conv"](x.transpose(1, 2)))).permute(0, 2, 1)


def _up(at, x):
    return at["conv"](torch.transpose(x, 1, 2)).transpose(-1, -2).sigmoid()


def _time_first(at, x):
    return at["layer"](x.transpose(0, 1))[0].transpose(0, 1)


def _states(at, x):
    layer = at["layer"]
    h = layer(x)[1][0] if isinstance(layer, nn.LSTM) else layer(x)[1]
    return at["head"](torch.cat([h[0], h[-1]], dim=1))


def _coupled(at, x):
    _, state = at["encoder"](x)
    return at["decoder"](x.flip(1), state)[0]


STAGES = {
    "linear": lambda at, x: at["act"](at["layer"](x)),
    "norm": lambda at, x: at["norm"](at["layer"](x)) * 2 - 1,
    "recurrent": lambda at, x: at["drop"](at["layer"](x)[0]),
    "time first": _time_first,
    "residual": _residual,
    "wave": _wave,
    "up": _up,
    "coupled": _coupled,
    "flat": lambda at, x: at["head"](at["norm"](at["in"](x.flatten(1)))),
    "flat channels": lambda at, x: at["head"](x.transpose(1, 2).reshape(x.size(0), -1)),
    "last": lambda at, x: at["head"](x[:, -1]),
    "mean": lambda at, x: at["head"](x.mean(dim=1)),
    "states": _states,
}
MIDDLE = ("linear", "norm", "recurrent", "time first", "residual", "wave", "up", "coupled")
END = ("flat", "flat channels", "last", "mean", "states")
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.LeakyReLU)


@st.composite
def modules(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A module of up to four stages, and examples of its inputs."""
    features = width = draw(st.integers(1, 4))
    length = T
    stages: list[tuple[str, nn.ModuleDict]] = []
    for kind in (*draw(st.lists(st.sampled_from(MIDDLE), min_size=1, max_size=3)), draw(st.sampled_from(END))):
        layers, width, length = _stage(draw, kind, width, length)
        stages.append((kind, nn.ModuleDict(layers)))
    seed = draw(SEEDS)
    return unsettled(Drawn(stages, None), seed), noise(B, T, features, seed=seed)


def _stage(draw: st.DrawFn, kind: str, given: int, length: int) -> tuple[dict[str, nn.Module], int, int]:  # noqa: PLR0911
    """Layers of a stage, and the width and length of what they make."""
    width, flag, bias = draw(st.integers(2, 9)), draw(st.booleans()), draw(st.booleans())
    recurrent = draw(st.sampled_from([nn.LSTM, nn.GRU]))
    made = 2 * width if flag else width
    match kind:
        case "linear":
            return (
                {"layer": nn.Linear(given, width, bias=bias), "act": draw(st.sampled_from(ACTIVATIONS))()},
                width,
                length,
            )
        case "norm":
            norm = nn.LayerNorm(width, elementwise_affine=flag)
            return {"layer": nn.Linear(given, width), "norm": norm}, width, length
        case "recurrent":
            layer = recurrent(given, width, batch_first=True, bidirectional=flag, bias=bias)
            return {"layer": layer, "drop": nn.Dropout(0.3)}, made, length
        case "time first":
            return {"layer": recurrent(given, width, bidirectional=flag, bias=bias)}, made, length
        case "residual":
            return {"in": nn.Linear(given, width, bias=bias), "out": nn.Linear(width, given)}, given, length
        case "wave":
            norm = nn.BatchNorm1d(width, affine=flag)
            return {"conv": nn.Conv1d(given, width, 3, padding=1, bias=bias), "norm": norm}, width, length
        case "up":
            return {"conv": nn.ConvTranspose1d(given, width, 2, stride=2, bias=bias)}, width, 2 * length
        case "coupled":
            encoder, decoder = (recurrent(given, width, batch_first=True, bidirectional=flag) for _ in range(2))
            return {"encoder": encoder, "decoder": decoder}, made, length
        case "flat":
            layer, norm = nn.Linear(given * length, width), nn.BatchNorm1d(width)
            return {"in": layer, "norm": norm, "head": nn.Linear(width, 2)}, 2, 1
        case "flat channels":
            return {"head": nn.Linear(given * length, 2)}, 2, 1
        case "states":
            layer = recurrent(given, width, batch_first=True, bidirectional=flag)
            return {"layer": layer, "head": nn.Linear(2 * width, 2)}, 2, 1
        case _:
            return {"head": nn.Linear(given, 2)}, 2, 1


@settings(max_examples=150, deadline=None)
@given(drawn=modules(), seed=SEEDS)
def test_removing_units_and_not_reading_them_are_the_same(drawn, seed: int) -> None:
    """For any module of layers that can be followed, to 1e-9 in float64; the module that is given stays as it was."""
    module, x = drawn
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    found = plan(module, x)
    keep = {}
    for group in found.groups:
        many = int(torch.randint(1, group.width + 1, (), generator=generator))
        keep[group.name] = torch.randperm(group.width, generator=generator)[:many].sort().values

    smaller, hidden = remove(module, found, keep), masked(module, found, keep)

    torch.testing.assert_close(outputs(smaller, x), outputs(hidden, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(outputs(smaller, x), outputs(smaller, x), rtol=0, atol=0)
    assert {name: len(kept) for name, kept in keep.items()} == plan(smaller, x).units | {
        name: 1 for name, kept in keep.items() if len(kept) == 1
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@settings(max_examples=60, deadline=None)
@given(drawn=modules())
def test_every_layer_is_offered_or_told_why_not(drawn) -> None:
    """Layers that make units are in a group, or protected for one of the reasons that drawn modules have."""
    module, x = drawn

    found = plan(module, x)

    offered = {layer for layers in found.layers.values() for layer in layers}
    making = (nn.Linear, nn.Conv1d, nn.ConvTranspose1d, nn.LSTM, nn.GRU)
    named = {name for name, layer in module.named_modules() if isinstance(layer, making)}
    assert offered | set(found.protected) == named
    assert not offered & set(found.protected)
    assert set(found.protected.values()) <= {
        "its units are the module's output",
        "its units meet values that no unit makes",  # a residual around the input
        "its units meet others that lie in another order",  # one around a layer after both directions of another
        "it has one unit",
    }


# What is found


def encoder_decoder() -> nn.Module:
    """EncDec-AD: the decoder starts from the encoder's state."""

    def forward(self, x):
        _, (h, c) = self.encoder(x)
        out, _ = self.decoder(x.new_zeros(x.shape[0], x.shape[1], 2), (h, c))
        return self.head(out)

    encoder, decoder = nn.LSTM(3, 8, batch_first=True), nn.LSTM(2, 8, batch_first=True)
    return Forward(forward, encoder=encoder, decoder=decoder, head=nn.Linear(8, 3))


def repeat_vector() -> nn.Module:
    """The last state, repeated for each step of the decoder."""

    def forward(self, x):
        _, (h, _) = self.encoder(x)
        again = h.squeeze(0).unsqueeze(1).repeat(1, x.size(1), 1)
        return self.head(self.decoder(again)[0])

    encoder, decoder = nn.LSTM(3, 8, batch_first=True), nn.LSTM(8, 6, batch_first=True)
    return Forward(forward, encoder=encoder, decoder=decoder, head=nn.Linear(6, 3))


def convolutional() -> nn.Module:
    """Flattened filters, and units that become filters again."""
    return nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * T, 5), nn.Tanh(),
        nn.Linear(5, 4 * T), nn.Unflatten(1, (4, T)), nn.ConvTranspose1d(4, 3, 3, padding=1),
    )  # fmt: skip


def learned_state() -> nn.Module:
    """First states that are parameters, and a learned scale."""

    def forward(self, x):
        many = x.size(0)
        out, _ = self.layer(x, (self.h.expand(-1, many, -1), self.c.expand(-1, many, -1)))
        return self.head(out * self.scale)

    start = [nn.Parameter(torch.zeros(1, 1, 8)) for _ in range(2)]
    layer, scale = nn.LSTM(3, 8, batch_first=True), nn.Parameter(torch.ones(8))
    return Forward(forward, layer=layer, h=start[0], c=start[1], scale=scale, head=nn.Linear(8, 2))


def images() -> nn.Module:
    """Two-dimensional filters and pools, over windows taken as images."""

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.conv(x.unsqueeze(1)))))
        return self.head(self.deeper(x).amax((2, 3)))

    conv, deeper = nn.Conv2d(1, 6, (3, 2)), nn.Conv2d(6, 5, 1)
    return Forward(
        forward, conv=conv, norm=nn.BatchNorm2d(6), pool=nn.AvgPool2d((2, 1)), deeper=deeper, head=nn.Linear(5, 2)
    )


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (encoder_decoder, {"encoder": ("encoder", "decoder")}),
        (repeat_vector, {"encoder": ("encoder",), "decoder": ("decoder",)}),
        (convolutional, {"0": ("0",), "4": ("4",), "6": ("6",)}),
        (learned_state, {"layer": ("layer",)}),
        (images, {"conv": ("conv",), "deeper": ("deeper",)}),
    ],
)
def test_what_leaves_together_is_one_group(make, layers) -> None:
    """Units of known architectures, coupled where one layer starts from the other's state; removal is exact."""
    module, x = unsettled(make(), 1), noise(B, 3, T) if make is convolutional else noise(B, T, 3)

    found = plan(module, x)

    assert found.layers == layers
    assert list(found.protected.values()) == ["its units are the module's output"]
    keep = {group.name: torch.arange(0, group.width, 2) for group in found.groups}
    smaller = remove(module, found, keep)
    torch.testing.assert_close(outputs(smaller, x), outputs(masked(module, found, keep), x), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(outputs(smaller, x), outputs(module, x))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in module.parameters())


def test_units_that_become_filters_leave_with_all_their_positions() -> None:
    """24 outputs that a view makes four filters of are four units; the view follows."""
    module = unsettled(convolutional(), 2)
    found = plan(module, noise(B, 3, T))

    smaller = remove(module, found, {"6": torch.tensor([0, 3])})

    assert found.units["6"] == 4
    assert smaller[6].out_features == 2 * T
    assert tuple(smaller[7].unflattened_size) == (2, T)
    assert torch.equal(smaller[6].bias, torch.cat([module[6].bias[:T], module[6].bias[3 * T :]]))


def test_layers_know_their_new_sizes() -> None:
    """Attributes agree with weights, and the modes and frozen weights are those of the original."""
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    module[0].weight.requires_grad_(requires_grad=False)
    module[1].eval()

    result = pruning.prune(module, noise(60, 4, dtype=torch.float32), units={"0": 5, "2": 3}, updates=3)

    small = result.module
    sizes = [(it.in_features, it.out_features) for it in small if isinstance(it, nn.Linear)]
    assert sizes == [(4, 5), (5, 3), (3, 2)]
    assert (small[1].normalized_shape, small[3].num_features) == ((5,), 3)
    assert [layer.training for layer in small] == [True, False, True, True, True]
    assert small[0].weight.requires_grad is False
    assert torch.equal(small[0].weight, module[0].weight[result.kept["0"]])


def _attends(self, x):
    weights = self.query(x) @ self.key(x).transpose(1, 2)
    return self.head(weights.softmax(-1) @ x)


LINEARS = {"one": nn.Linear(3, 8), "two": nn.Linear(8, 8), "head": nn.Linear(8, 2)}


@pytest.mark.parametrize(
    ("make", "layer", "why"),
    [
        (
            lambda: Forward(lambda m, x: m.head(x + m.one(x)), one=nn.Linear(3, 3), head=nn.Linear(3, 2)),
            "one",
            "no unit",
        ),
        (
            lambda: Forward(
                lambda m, x: m.head(torch.cat([x, m.one(x)], -1)), one=nn.Linear(3, 8), head=nn.Linear(11, 2)
            ),
            "one",
            "concatenated",
        ),
        (
            lambda: Forward(
                lambda m, x: m.head(m.one(x).view(-1, T * 8)), one=nn.Linear(3, 8), head=nn.Linear(T * 8, 2)
            ),
            "one",
            "48, written down",
        ),
        (lambda: Forward(lambda m, x: m.head(F.normalize(m.one(x), dim=-1)), **LINEARS), "one", "normalize"),
        (lambda: Forward(lambda m, x: m.one(x).sum(-1), **LINEARS), "one", "summed up"),
        (lambda: Forward(lambda m, x: m.head(m.one(x).softmax(-1)), **LINEARS), "one", "by one another"),
        (lambda: Forward(lambda m, x: m.one(x)[..., :4], **LINEARS), "one", "picks some"),
        (lambda: Forward(lambda m, x: (m.head(m.one(x)), m.one(x)), **LINEARS), "one", "output"),
        (
            lambda: Forward(_attends, query=nn.Linear(3, 8), key=nn.Linear(3, 8), head=nn.Linear(3, 2)),
            "key",
            "matmul",
        ),
        (lambda: Forward(lambda m, x: m.head(m.one(x) / m.one.out_features**0.5), **LINEARS), "head", "output"),
        (
            lambda: nn.Sequential(nn.Linear(3, 8), nn.InstanceNorm1d(T), nn.Linear(8, 2)),
            "0",
            "1 .InstanceNorm1d. is no layer",
        ),
        (lambda: nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 2)), "0", "one unit"),
        (
            lambda: nn.Sequential(
                nn.Linear(3, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 2)
            ),
            "1",
            "no layer that can be pruned",
        ),
        (lambda: nn.Sequential(nn.Conv1d(T, 8, 1), nn.Conv1d(8, 8, 1, groups=8), nn.Conv1d(8, 2, 1)), "1", "in groups"),
        (
            lambda: Forward(
                lambda m, x: m.head(m.layer(x, (x.new_zeros(1, B, 8), x.new_zeros(1, B, 8)))[0]),
                layer=nn.LSTM(3, 8, batch_first=True),
                head=nn.Linear(8, 2),
            ),
            "layer",
            "no unit makes",
        ),
    ],
)
def test_what_can_not_be_followed_is_protected_and_told(make, layer: str, why: str) -> None:
    """By layer, in words; whatever is offered beside it is exact."""
    module, x = unsettled(copy.deepcopy(make()), 3), noise(B, T, 3)

    found = plan(module, x)

    assert re.search(why, found.protected[layer])
    keep = {group.name: torch.arange(0, group.width, 2) for group in found.groups}
    smaller = remove(module, found, keep)
    torch.testing.assert_close(smaller(x), masked(module, found, keep)(x), rtol=1e-9, atol=1e-9)


def test_shared_weights_are_protected() -> None:
    """A weight that two layers own can not be cut for one of them."""
    module = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)).double()
    module[2].weight = module[1].weight

    found = plan(module, noise(B, 3))

    assert not found.groups
    assert "shared" in found.protected["1"]


def test_a_layer_that_is_called_twice_is_one_layer() -> None:
    """Its input and its output are the same units."""
    module = Forward(lambda m, x: m.head(m.two(m.two(m.one(x)))), **copy.deepcopy(LINEARS))

    found = plan(unsettled(module, 4), noise(B, T, 3))

    assert found.layers == {"one": ("one", "two")}


def test_code_that_depends_on_sizes_is_found_out_by_trying() -> None:
    """What no analysis of the graph sees, running the smaller module does."""

    def forward(self, x):
        said = self.one(x)
        return self.head(said) * said.size(-1)

    module = Forward(forward, one=nn.Linear(3, 8), head=nn.Linear(8, 2))

    assert plan(unsettled(module, 5), noise(B, T, 3)).protected["one"].startswith("removing some of its units changes")


def test_a_bottleneck_stays_where_asked() -> None:
    """`protect` names layers; one that makes no units is an error."""
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(3, 8), nn.Linear(8, 4)).double()
    x = noise(B, 4)

    assert plan(module, x, protect=["1"]).layers == {"0": ("0",), "2": ("2",)}
    assert plan(module, x, protect=["1"]).protected["1"] == "asked for"
    with pytest.raises(InvalidInputError, match="no layer 'neck' makes units"):
        plan(module, x, protect=["neck"])


def branching(m, x):
    """Control flow that depends on values."""
    return m.head(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Forward(branching, head=nn.Linear(3, 3)), "can not be traced.*Move branches"),
        (nn.Sequential(nn.Linear(5, 2)), "does not run on the inputs"),
        (nn.LSTM(3, 8, num_layers=2), "a lone LSTM has no units but its outputs"),
        (nn.Sequential(nn.LSTM(3, 8, num_layers=2)), "'0' has 2 layers.*one layer each"),
        (LSTM(3, (8,)), "statistics around it"),
        ("model.pt", "str can not be pruned"),
    ],
)
def test_what_can_not_be_pruned_says_what_to_do(module, message: str) -> None:
    """As an error of the user's input."""
    with pytest.raises((InvalidInputError, PreconditionError), match=message):
        pruning.prune(module, noise(B, T, 3, dtype=torch.float32), keep=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of"),
        ({"keep": 0.5, "speedup": 2}, "exactly one of"),
        ({"keep": 0.0}, "no share"),
        ({"speedup": 0.5}, "slower"),
        ({"units": {"0": 9}}, "9 is not between 1 and 8"),
        ({"units": {"2": 1}}, "units.2: its units are the module's output"),
        ({"units": {"magic": 1}}, "no such layer"),
        ({"keep": 0.5, "criterion": "kl"}, "no criterion for modules"),
        ({"keep": 0.5, "loss": nn.functional.l1_loss}, "needs targets"),
        ({"keep": 0.5, "targets": torch.zeros(2, 2)}, "2 for 20 examples"),
        ({"keep": 0.5, "updates": -1}, "negative"),
        ({"keep": 0.5, "batch": 0}, "not positive"),
        ({"keep": 0.5, "max_error": float("nan")}, "max_error: nan is no error"),
        ({"keep": 0.5, "targets": torch.full((20, 2), torch.inf)}, "targets: 40 of 40 values are not finite"),
        ({"p50": "2ms"}, "p50: pruning a module has no such option. It takes targets, loss, speedup, keep, units"),
    ],
)
def test_options_that_can_not_be_are_refused(options, message: str) -> None:
    """Before anything is done."""
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    with pytest.raises(InvalidInputError, match=message):
        pruning.prune(module, torch.ones(20, 4), **options)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (torch.full((20, 4), torch.nan), "inputs: 80 of 80 values are not finite. Leave out"),
        (torch.tensor([[1.0, torch.inf, 2.0, 3.0]] * 20), "inputs: 20 of 80 values are not finite"),
        (torch.ones(15, 4), "inputs: 15 examples are too few, 16 are needed"),
        (torch.ones(20, 3), r"does not run on the inputs: .*\. Give one tensor"),
    ],
)
def test_examples_that_say_nothing_are_refused(examples: Tensor, message: str) -> None:
    """Not finite, too few or of another shape: sentences that end where the hint begins."""
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    with pytest.raises(InvalidInputError, match=message):
        pruning.prune(module, examples, keep=0.5)


def test_options_of_a_detector_are_told_from_those_of_a_module() -> None:
    """The keyword is named, and so are those that there are."""
    with pytest.raises(InvalidInputError, match=r"keep: pruning a detector has no such option. It takes p50_seconds"):
        pruning.prune(untrained("lstm", 3), torch.ones(400, 3).numpy(), keep=0.5)


# What the call makes of it


def teacher(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A forecaster that has learned a little: more units than it needs, examples, and what comes next."""
    torch.manual_seed(seed)
    time = torch.arange(T + 1) + 20 * torch.rand(400, 1)
    series = torch.stack([torch.sin(time / 2), torch.cos(time / 3)], dim=2) + 0.05 * torch.randn(400, T + 1, 2)
    x, y = series[:, :-1], series[:, -1]
    module = Forward(
        lambda m, x: m.head(m.norm(m.layer(x)[0][:, -1])),
        layer=nn.LSTM(2, 32, batch_first=True),
        norm=nn.LayerNorm(32),
        head=nn.Linear(32, 2),
    )
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.mse_loss(module(x), y).backward()
        optimizer.step()
    return module, x, y


@pytest.fixture(scope="module")
def forecaster() -> tuple[nn.Module, Tensor, Tensor]:
    """Trained once; no test may change it."""
    return teacher()


def test_half_the_units_say_nearly_the_same(forecaster) -> None:
    """Taylor, repair and fine-tuning; the original is untouched, and the same seed gives the same module."""
    module, x, y = forecaster
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    result = pruning.prune(module, x, y, keep=0.5, updates=100)
    again = pruning.prune(module, x, y, keep=0.5, updates=100)

    assert (result.outcome, result.reason) == ("adopted", "")
    assert (result.units_before, result.units_after) == ({"layer": 32}, {"layer": 16})
    assert result.parameters_after < result.parameters_before / 2
    assert result.error < 0.02
    assert F.mse_loss(outputs(result.module, x), y) < 1.2 * F.mse_loss(outputs(module, x), y)
    assert torch.equal(outputs(result.module, x), outputs(again.module, x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert result.module.layer.hidden_size == len(result.kept["layer"]) == 16


def test_repair_rebuilds_what_removed_units_said(forecaster) -> None:
    """Without a gradient step it is much nearer to the original than plain removal, and needs no targets."""
    module, x, _ = forecaster

    plain, mended = (
        pruning.prune(module, x, keep=0.5, updates=0, criterion="l2", repair=repaired).error
        for repaired in (False, True)
    )

    assert mended < plain / 2


@pytest.mark.parametrize("criterion", APPLICABLE)
def test_every_criterion_judges_modules(forecaster, criterion: str) -> None:
    """One finite, non-negative number a unit, with targets or without; a dead unit is the least but for `random`."""
    module, x, y = copy.deepcopy(forecaster[0]), forecaster[1], forecaster[2]
    with torch.no_grad():
        for name, tensor in module.layer.named_parameters():
            tensor.view(4, 32, *tensor.shape[1:])[:, 7] = 0
            if name == "weight_hh_l0":
                tensor[:, 7] = 0
        module.norm.weight[7] = module.norm.bias[7] = 0
        module.head.weight[:, 7] = 0
    found = plan(module, x)

    for targets in (None, y):
        evidence = ModuleEvidence(module.eval(), found, (x,), targets, F.mse_loss, 0)
        score = CRITERIA[criterion](evidence, found.groups)["layer"]
        assert score.shape == (32,)
        assert bool((score.isfinite() & (score >= 0)).all())
        assert criterion == "random" or int(score.argmin()) == 7


def test_a_unit_that_others_say_again_is_repaired_away() -> None:
    """Filters that a view flattens, both directions of a layer: what a copy says, the kept one takes over exactly."""
    module = unsettled(
        Forward(
            lambda m, x: m.head(m.layer(m.conv(x.transpose(1, 2)).transpose(1, 2))[0].flatten(1)),
            conv=nn.Conv1d(3, 4, 1),
            layer=nn.GRU(4, 6, batch_first=True, bidirectional=True),
            head=nn.Linear(12 * T, 2),
        ),
        6,
    )
    with torch.no_grad():
        module.conv.weight[3], module.conv.bias[3] = module.conv.weight[1], module.conv.bias[1]
    x = noise(60, T, 3)
    found = plan(module, x)
    seen = ModuleEvidence(module, found, (x,), None, F.mse_loss, 0).seen()
    keep = {"conv": torch.tensor([0, 1, 2]), "layer": torch.arange(6)}
    prepared = copy.deepcopy(module)

    repair(prepared.state_dict(), found.groups, keep, seen)

    torch.testing.assert_close(outputs(remove(prepared, found, keep), x), outputs(module, x), rtol=1e-2, atol=1e-2)
    assert not torch.allclose(outputs(remove(module, found, keep), x), outputs(module, x), atol=0.1)


@pytest.mark.slow
def test_a_speed_up_is_measured_and_met_or_told_why_not() -> None:
    """The widest rung that is fast enough; below the floor nothing is built."""
    torch.manual_seed(0)
    module = Forward(
        lambda m, x: m.head(m.layer(x)[0]), layer=nn.LSTM(3, 160, batch_first=True), head=nn.Linear(160, 3)
    )
    x = torch.randn(120, 20, 3)

    met, missed = (pruning.prune(module, x, speedup=speedup, updates=5) for speedup in (2, 1000))

    assert met.outcome == "adopted"
    assert met.speedup >= 2
    assert 8 < met.units_after["layer"] < 160
    assert (missed.outcome, missed.module) == ("rejected", None)
    assert "beyond the floor" in missed.reason
    assert missed.units_after == {"layer": 8}


def test_what_strays_too_far_is_rejected(forecaster) -> None:
    """`max_error` is a gate; what was built is handed back to look at."""
    module, x, _ = forecaster

    result = pruning.prune(module, x, units={"layer": 1}, updates=0, max_error=1e-6)

    assert result.outcome == "rejected"
    assert "is above 1e-06" in result.reason
    assert "keep more units" in result.reason
    assert result.module is not None


def test_a_module_that_lost_what_it_said_is_rejected_unless_asked_for(forecaster) -> None:
    """Without a word about errors too: half the variance is too much."""
    module, x, _ = forecaster
    lost = {"units": {"layer": 1}, "updates": 0, "criterion": "random", "repair": False}

    result, wanted = pruning.prune(module, x, **lost), pruning.prune(module, x, **lost, max_error=None)

    assert (result.outcome, wanted.outcome) == ("rejected", "adopted")
    assert result.error == wanted.error > 0.5
    assert "is above 0.5" in result.reason


def test_modules_of_several_inputs_and_outputs() -> None:
    """A tuple of tensors for the arguments; outputs in any nesting; a loss of one's own."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 24), nn.Linear(2, 24), nn.Linear(24, 4)

        def forward(self, a, b):
            both = torch.relu(self.left(a) + self.right(b))
            return {"mean": self.head(both), "rest": (self.head(-both),)}

    torch.manual_seed(0)
    inputs = torch.randn(90, 3), torch.randn(90, 2)

    result = pruning.prune(
        Two(), inputs, torch.randn(90, 4), loss=lambda out, y: F.l1_loss(out["mean"], y), keep=0.3, updates=10
    )

    assert result.units_after == {"left": 8}
    assert result.layers == {"left": ("left", "right")}
    assert result.module.right.out_features == 8
    assert result.module(*inputs)["mean"].shape == (90, 4)


def test_wide_groups_keep_multiples_of_eight() -> None:
    """Odd widths are no faster; narrow groups keep at least one unit."""
    module = nn.Sequential(nn.Linear(4, 50), nn.Linear(50, 20), nn.Linear(20, 6), nn.Linear(6, 2))
    found = plan(module, torch.ones(3, 4))

    assert share(found, 0.5) == {"0": 24, "1": 8, "2": 3}
    assert share(found, 0.01) == {"0": 8, "1": 8, "2": 1}
    assert share(found, 1.0) == {"0": 50, "1": 20, "2": 6}


# The page, and what must load without torch


@pytest.mark.slow
def test_the_program_of_the_page_runs(tmp_path: Path) -> None:
    """Line by line as docs/modules.md has it, in ten lines or a few more."""
    programs = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL)

    printed = {}
    for name, lines in programs:
        (tmp_path / name).write_text(lines)
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, name], cwd=tmp_path, env=alone, capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stderr
        printed[name] = done.stdout

    assert list(printed) == ["shrink_mine.py"]
    assert printed["shrink_mine.py"].startswith("adopted {'encoder': 64} {'encoder': 32}")
    assert sum(bool(line.strip()) for line in programs[0][1].splitlines()) <= 14


def test_every_layer_that_is_followed_is_on_the_page() -> None:
    """docs/modules.md names each supported layer that has weights."""
    from pruning.modules.layers import ELEMENTWISE, LAYERS, POOLS

    for layer in LAYERS:
        if layer not in {*ELEMENTWISE, *POOLS}:
            assert f"`{layer.__name__}`" in PAGE.read_text()


def test_the_words_of_an_outcome_load_without_torch() -> None:
    """`pruning.prune` is fetched when it is asked for, not before."""
    code = """
import sys, pruning, pruning.outcome
assert "torch" not in sys.modules
pruning.prune
assert "torch" in sys.modules
"""

    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'pruned'"):
        _ = pruning.pruned
