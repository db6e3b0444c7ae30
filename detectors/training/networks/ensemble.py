"""Several networks as one detector: each judges for itself, and the mean of their scores is calibrated once more.

Scores have one scale whatever made them (-log10 of a tail probability), so they can be averaged. A forecaster and a
network that reconstructs windows fail differently: slow level shifts are predicted, but can not be reconstructed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from detectors.errors import InvalidInputError
from detectors.training.graph import Graph
from detectors.training.networks.autoencoder import Autoencoder
from detectors.training.networks.base import Group, Lever, Network, Normal, Options, Pass, Slice, TensorState
from detectors.training.networks.lstm import LSTM

SINGLE: dict[str, type[Network]] = {}
"""The kinds an ensemble can be made of; filled by the package."""
DEFAULT_MEMBERS = f"{LSTM.kind},{Autoencoder.kind}"


class Ensemble(Network):
    """Members in a row; groups, tensors and options carry the member's name before a dot.

    Args:
        members: By name, each over the same features; a name is its kind.
    """

    kind = "ensemble"
    dense_options: ClassVar[Mapping[str, tuple[int, int]]] = {}

    def __init__(self, members: Mapping[str, Network]) -> None:
        super().__init__()
        self.n_features = next(iter(members.values())).n_features
        self._members = nn.ModuleDict(dict(members))

    @property
    def members(self) -> Mapping[str, Network]:
        """By name."""
        return {name: member for name, member in self._members.items() if isinstance(member, Network)}

    @classmethod
    def build(cls, n_features: int, units: Mapping[str, int], options: Options) -> Self:
        """See `Network.build`; option `members` and those of each member."""
        return cls(
            {
                name: SINGLE[name].build(n_features, _of(units, name), _of(options, name))
                for name in str(options["members"]).split(",")
            }
        )

    @classmethod
    def dense(cls, n_features: int, options: Options) -> Self:
        """Option `members` (`lstm,autoencoder`), and those of a member as `lstm.width`."""
        names = str(options.get("members", DEFAULT_MEMBERS)).split(",")
        return cls({name: SINGLE[name].dense(n_features, _of(options, name)) for name in names})

    @classmethod
    def checked_options(cls, options: Options) -> dict[str, int | float | str | bool]:
        """See `Network.checked_options`."""
        members = options.get("members", DEFAULT_MEMBERS)
        names = members.split(",") if isinstance(members, str) else []
        if len(names) < 2 or len(set(names)) < len(names) or not set(names) <= set(SINGLE):
            raise InvalidInputError(
                "must be two or more different networks with commas between them.",
                field="options.members",
                hint=f"There are {', '.join(SINGLE)}.",
            )
        checked: dict[str, int | float | str | bool] = {"members": ",".join(names)}
        known = {f"{name}." for name in names}
        for key in options:
            if key != "members" and not any(key.startswith(prefix) for prefix in known):
                raise InvalidInputError(
                    "the ensemble has no such option.",
                    field=f"options.{key}",
                    hint=f"Put the member before it, as in `{names[0]}.width`; or name `members`.",
                )
        for name in names:
            given = _of(options, name)
            if "stride" in given:
                raise InvalidInputError("members of an ensemble score every point.", field=f"options.{name}.stride")
            try:
                mine = SINGLE[name].checked_options(given)
            except InvalidInputError as error:
                field = error.field.replace("options.", f"options.{name}.", 1)
                raise InvalidInputError(error.problem, field=field, hint=error.hint) from error
            checked |= {f"{name}.{key}": value for key, value in mine.items()}
        return checked

    @property
    def warm_up_points(self) -> int:
        """The longest of the members."""
        return max(member.warm_up_points for member in self.members.values())

    @property
    def blind_points(self) -> int:
        """The longest of the members."""
        return max(member.blind_points for member in self.members.values())

    @property
    def options(self) -> dict[str, int | float | str | bool]:
        """Names of the members and their options."""
        own: dict[str, int | float | str | bool] = {"members": ",".join(self.members)}
        for name, member in self.members.items():
            own |= {f"{name}.{key}": value for key, value in member.options.items()}
        return own

    @property
    def macs(self) -> int:
        """Of all members."""
        return sum(member.macs for member in self.members.values())

    def groups(self) -> tuple[Group, ...]:
        """Of all members."""
        return tuple(
            replace(
                group,
                name=f"{name}.{group.name}",
                reads=None if group.reads is None else f"{name}.{group.reads}",
                own=tuple(_moved(where, name) for where in group.own),
                consumers=tuple(_moved(where, name) for where in group.consumers),
            )
            for name, member in self.members.items()
            for group in member.groups()
        )

    def levers(self) -> tuple[Lever, ...]:
        """Of all members."""
        return tuple(
            replace(lever, name=f"{name}.{lever.name}")
            for name, member in self.members.items()
            for lever in member.levers()
        )

    def pulled(self, lever: str, value: int) -> Self:
        """See `Network.pulled`; the other members stay as they are."""
        name, _, own = lever.partition(".")
        return type(self)(self._copied({name: self.members[name].pulled(own, value)}))

    def without(self, group: str, mapping: Tensor, constant: Tensor) -> Network:
        """See `Network.without`; the other members stay as they are."""
        name, _, own = group.partition(".")
        return type(self)(self._copied({name: self.members[name].without(own, mapping, constant)}))

    def _copied(self, changed: Mapping[str, Network]) -> dict[str, Network]:
        """The members, those that were changed in place of what they were, the others as copies."""
        return {
            name: changed[name] if name in changed else copy.deepcopy(member) for name, member in self.members.items()
        }

    def with_members(self, members: Mapping[str, Network]) -> Network:
        """The same around other members."""
        return type(self)(members)

    def resized(self, units: Mapping[str, int]) -> Self:
        """Each member resized for itself: what is kept beside the widths is the member's to say."""
        return type(self)({name: member.resized(_of(units, name)) for name, member in self.members.items()})

    def fresh(self, batch: int) -> TensorState:
        """Of one member after the other."""
        return tuple(tensor for member in self.members.values() for tensor in member.fresh(batch))

    def forward(self, points: Tensor, state: TensorState) -> Pass:
        """Residuals of the members one after the other along R."""
        residuals: list[Tensor] = []
        carried: list[Tensor] = []
        activations: dict[str, Tensor] = {}
        at = 0
        for name, member in self.members.items():
            count = len(member.fresh(1))
            out = member(points, state[at : at + count])
            at += count
            residuals.append(out.residual)
            carried += out.state
            activations |= {f"{name}.{group}": values for group, values in out.activations.items()}
        return Pass(torch.cat(residuals, dim=2), tuple(carried), activations)

    def draw(self, graph: Graph, point: str, scale: Normal) -> str:
        """Never: `detectors.training.export` draws the members."""
        raise NotImplementedError("members are drawn one by one")


def _of(mapping: Mapping[str, int] | Options, name: str) -> dict[str, int]:
    return {key.removeprefix(f"{name}."): value for key, value in mapping.items() if key.startswith(f"{name}.")}  # type: ignore[misc]


def _moved(where: Slice, name: str) -> Slice:
    prefix = f"_members.{name}."
    return replace(
        where,
        tensor=prefix + where.tensor,
        bias=None if where.bias is None else prefix + where.bias,
        voices=tuple(f"{name}.{voice}" for voice in where.voices),
    )
