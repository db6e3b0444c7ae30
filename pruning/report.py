"""What pruning took away: which units and what they responded to, and what groups cost.

Everything is computed once, when a child has been built, and kept with its cycle as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detectors.training.fit import Runner, chunks_over
from detectors.training.fitted import Fitted
from detectors.training.networks import Group, Network
from detectors.training.stretches import Lanes, Stretches, Windows
from pruning.groups import dropped
from pruning.importance import Evidence, importance
from pruning.repair import CHUNKS, activations, regress
from pruning.sensors import sensors
from pruning.structures import Structure, origins, restructured
from pruning.table import Cost, Table, Tables, Units, table_key

Json = dict[str, Any]

DETAILED = 5  # removed units of a group that are described one by one
CLOSEST = 3  # features that are named for each
STILL = 1e-9  # variance below which something says nothing


def report_on(
    parent: Fitted,
    child: Fitted,
    kept: Mapping[str, Sequence[int]],
    structure: Structure,
    held_out: Stretches,
    *,
    criterion: str,
    seed: int,
    batch: int,
    tables: Tables,
    where: Mapping[str, str] | None = None,
) -> Json:
    """What a cycle reports of the child that it built; JSON all through, no NaN.

    Args:
        parent: The dense detector.
        child: Calibrated.
        kept: The parent's units that are still in the child, by group (`Candidate.kept`).
        structure: What was done to the parent before its widths were cut.
        held_out: Normal points.
        criterion: Importance by which units were chosen.
        seed: Of the points that are looked at and of the anomalies that are injected.
        batch: Points a step, for the latency table.
        tables: Where latency tables are kept; nothing is measured.
        where: What the table is of; None: this machine.
    """
    table = tables.get(table_key(parent.with_network(restructured(parent.network, structure)), batch, where))
    return {
        "criterion": criterion,
        "seed": seed,
        "held_out_points": len(held_out),
        "removed": removed(parent, kept, held_out, criterion, seed),
        "levers": _levers(parent.network, structure),
        "cost": {
            "groups": group_costs(parent.network, child.network, structure, table),
            "parameters": _both(parent.network.parameters_count, child.network.parameters_count),
            "macs": _both(parent.network.macs, child.network.macs),
        },
        "sensors": sensors(child, held_out, seed),
    }


# what was removed


class Heard(NamedTuple):
    """What units say beside what features are, at N normal points.

    Attributes:
        said: For each group [N, H]; where a unit speaks several times for a point, on average.
        loudness: For each group [H], the mean of what it says without its sign.
        features: Scaled values [N, F]: the `value` at the point, and for networks that see a window its `window mean`.
    """

    said: dict[str, Tensor]
    loudness: dict[str, Tensor]
    features: dict[str, Tensor]


def removed(
    parent: Fitted, kept: Mapping[str, Sequence[int]], held_out: Stretches, criterion: str, seed: int
) -> list[Json]:
    """For each group of the parent the units that are gone, why, and what they responded to.

    Args:
        parent: The dense detector.
        kept: Units that stay, by group; none of a layer that was bypassed.
        held_out: Normal points.
        criterion: Importance.
        seed: Of the points that are looked at.
    """
    found = []
    for name, member in parent.network.members.items():
        prefix = f"{name}." if name else ""
        chunks = chunks_over(held_out, parent.scaler, member, seed)
        scores = importance(criterion, Evidence(member, chunks, seed))
        heard, seen = listened(member, chunks), activations(member, chunks)
        for group in member.groups():
            stay = torch.tensor(kept[prefix + group.name], dtype=torch.int64)
            gone = dropped(stay, group.width)
            fate = {
                "group": prefix + group.name,
                **_both(group.width, len(stay)),
                "how": _how(group, len(stay)),
                "trained": member.learned_by_gradient,
                "criterion": None,
                "removed": gone.tolist(),
                "share": 0.0,
                "units": [],
                "rest": None,
            }
            if len(gone):
                used = group.criterion if group.criterion and criterion != "random" else criterion
                by = seen[group.name][:, stay] if len(stay) else seen[group.reads or group.name]
                said_by_kept = explained(by, seen[group.name][:, gone])
                fate |= {
                    "criterion": used,
                    **_told(parent.features, group, gone, scores[group.name], said_by_kept, heard),
                }
            found.append(fate)
    return found


def _how(group: Group, width: int) -> str:
    if width == group.width:
        return "kept"
    if not width:
        return "layer bypassed"
    return "idle units removed" if group.protected else "units removed"


def _told(
    features: Sequence[str], group: Group, gone: Tensor, scores: Tensor, said_by_kept: Tensor, heard: Heard
) -> Json:
    """Removed units of a group: the most important ones in detail, the rest summed up."""
    shares = scores / scores.sum().clamp(min=1e-30)
    order = shares[gone].argsort(descending=True, stable=True)
    loudness = heard.loudness[group.name]
    first, rest = order[:DETAILED], order[DETAILED:]
    units = [
        {
            "unit": int(gone[i]),
            "share": float(shares[gone[i]]),
            "mean_output": float(loudness[gone[i]]),
            "explained": float(said_by_kept[i]),
            "responds_to": responses(features, heard, group.name, int(gone[i])),
        }
        for i in first
    ]
    summed = {
        "units": len(rest),
        "share": float(shares[gone[rest]].sum()),
        "mean_output": float(loudness[gone[rest]].mean()),
        "explained": float(said_by_kept[rest].mean()),
    }
    return {"share": float(shares[gone].sum()), "units": units, "rest": summed if len(rest) else None}


@torch.no_grad()
def listened(member: Network, chunks: Lanes | Windows) -> Heard:
    """Runs a network over normal points and keeps what its units say of each."""
    run = Runner(member)
    said: dict[str, list[Tensor]] = {group.name: [] for group in member.groups()}
    loud: dict[str, list[Tensor]] = {name: [] for name in said}
    features: dict[str, list[Tensor]] = {"value": [], **({"window mean": []} if member.window else {})}
    for chunk in chunks.chunks(CHUNKS):
        out = run(chunk)
        for name, means in said.items():
            values = out.activations[name][chunk.counted]  # [n, ..., H]
            spoken = values.reshape(len(values), -1, values.shape[-1])
            means.append(spoken.mean(dim=1))
            loud[name].append(spoken.abs().mean(dim=1))
        if member.window:
            features["value"].append(chunk.points[:, -1])
            features["window mean"].append(chunk.points.mean(dim=1))
        else:
            features["value"].append(chunk.points[chunk.counted])
    return Heard(
        {name: torch.cat(parts) for name, parts in said.items()},
        {name: torch.cat(parts).mean(dim=0) for name, parts in loud.items()},
        {name: torch.cat(parts) for name, parts in features.items()},
    )


def responses(names: Sequence[str], heard: Heard, group: str, unit: int) -> list[Json]:
    """The features that a unit follows most, best first, each once; `correlation` is Pearson's, with its sign.

    Args:
        names: Of the F features.
        heard: Normal points.
        group: The unit's group.
        unit: Its index.
    """
    said = heard.said[group][:, unit]
    by = {kind: correlations(said, values) for kind, values in heard.features.items()}
    kinds, strength = list(by), torch.stack(list(by.values()))  # [kinds, F]
    best = strength.abs().argmax(dim=0)
    closest = strength.abs().amax(dim=0).argsort(descending=True, stable=True)[:CLOSEST].tolist()
    return [
        {"feature": names[i], "of": kinds[int(best[i])], "correlation": float(strength[best[i], i])} for i in closest
    ]


def correlations(said: Tensor, values: Tensor) -> Tensor:
    """Pearson's correlation of [N] with each column of [N, F]; 0 where either stands still.

    >>> t = torch.arange(4.0)
    >>> correlations(t, torch.stack([2 * t, -t, torch.ones(4)], dim=1)).tolist()
    [1.0, -1.0, 0.0]
    """
    x, y = said.double() - said.double().mean(), values.double() - values.double().mean(dim=0)
    both = x.square().mean() * y.square().mean(dim=0)
    found = (x[:, None] * y).mean(dim=0) / both.clamp(min=STILL**2).sqrt()
    return torch.where(both > STILL**2, found, 0.0).clamp(-1, 1)


def explained(by: Tensor, gone: Tensor) -> Tensor:
    """R^2 [D], 0 to 1, of the least squares that repair units [N, D] from others [N, K]; 1 for what is constant."""
    mapping, constant = regress(by, gone)
    left = (gone.double() - by.double() @ mapping - constant).square().mean(dim=0)
    variance = gone.double().var(dim=0, correction=0)
    return torch.where(variance > STILL, 1 - left / variance.clamp(min=STILL), 1.0).clamp(0, 1)


def _levers(network: Network, structure: Structure) -> list[Json]:
    before = {lever.name: lever.value for lever in network.levers()}
    return [{"lever": name, **_both(before[name], value)} for name, value in structure.levers]


# what groups cost


def group_costs(parent: Network, child: Network, structure: Structure, table: Table | None) -> list[Json]:
    """Of each group of the parent, before and after: numbers and bytes in all its tensors, and time of a step.

    A weight between two groups counts for both; padding is no parameter. Time is what a step takes longer than with the
    group at the narrowest width of the latency table, at the level that is nearest; None without a table, and where
    groups have no widths.

    Args:
        parent: The dense network.
        child: The pruned one.
        structure: What was done before widths were cut.
        table: Of the restructured parent.
    """
    names = {before: now for now, before in origins(parent, structure).items()}
    theirs, ours = (_whose(network) for network in (parent, child))
    found = []
    for name in (group.name for group in parent.groups()):
        now = names.get(name)
        held, left = _held(*theirs[name]), _held(*ours[now]) if now else (0, 0)
        times = None
        if table is not None and now is not None and now in table.levels[0].alone:
            dense = table.levels[0].units
            times = _both(_seconds(table, dense, now), _seconds(table, {it: ours[it][1].width for it in dense}, now))
        found.append(
            {
                "group": name,
                "parameters": _both(held[0], left[0]),
                "bytes": _both(held[1], left[1]),
                "step_seconds": times,
            }
        )
    return found


def _whose(network: Network) -> dict[str, tuple[Network, Group]]:
    """Groups of a network by name, each with the member that it is of."""
    return {
        f"{name}.{group.name}" if name else group.name: (member, group)
        for name, member in network.members.items()
        for group in member.groups()
    }


def _held(member: Network, group: Group) -> tuple[int, int]:
    """Parameters and bytes of the tensors that know the units of a group.

    What learns without gradients has one group, which knows all of it, and says itself what of its tensors is padding.
    """
    state = member.state_dict()
    tensors = [state[name] for name in {where.tensor for where in (*group.own, *group.consumers)}]
    numbers = sum(it.numel() for it in tensors) if member.learned_by_gradient else member.parameters_count
    return numbers, sum(it.numel() * it.element_size() for it in tensors)


def _seconds(table: Table, units: Units, name: str) -> float:
    """By how much a group at its width makes a step longer than at its narrowest, by the level nearest to `units`."""

    def distance(level: Units) -> float:
        return sum(abs(float(np.log(units[it] / width))) for it, width in level.items())

    costs: Mapping[int, Cost] = min(table.levels, key=lambda level: distance(level.units)).alone[name]
    nearest = min(costs, key=lambda width: abs(width - units[name]))
    return max(0.0, costs[nearest].p50_seconds - costs[min(costs)].p50_seconds)


def _both(before: float, after: float) -> Json:
    return {"before": before, "after": after}
