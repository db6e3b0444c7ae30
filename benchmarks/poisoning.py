"""Can a stream that is poisoned a little in each cycle take the detector along? With the gate of parents, and without.

A detector is fitted on the training part of a series. Then come 20 cycles: each time the hub scores 400 more normal
points of the series, and the parent is trained on what was not flagged, as a cycle does it. In the attacks these points
are disturbed by a part of what the attacker wants to hide in the end: a shift of some features, or short bursts of it.
The attacker knows the detector: each time it goes as far as hardly any more points are flagged. At full size the first
detector flags the attack; it is taken when it flags less than half of that. In the honest runs nothing is disturbed:
what the gate refuses there it refuses wrongly.

Every run is made once without the gate, which only measures: at any limits it would have stopped an attack in the first
cycle that it refuses. Where that is not after the detector is taken, the attack is stopped in time. Attacks that take
the detector are made once more with the gate obeyed at its default limits: a refused cycle leaves the parent as it is.

Examples:
  python benchmarks/poisoning.py
  python benchmarks/poisoning.py --quick
  python benchmarks/poisoning.py --report

Runs that were made are kept, one line of JSON each; a benchmark that was killed goes on where it was. --quick makes
those of one network on one series, and keeps none.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import numpy as np
from detection_cells import Cell
from detection_series import Series, labelled_series
from numpy.typing import NDArray
from pruning_cells import append, read_all
from pruning_report import markdown

from server.reservoir import GUARD_POINTS

if TYPE_CHECKING:
    from detectors.training.fitted import Fitted
    from pruning.parent_gate import Golden, ParentLimits

CELLS = harness.ROOT / "benchmarks" / "cells" / "poisoning"
SERIES = (
    "skab/valve1/0",
    "cloud/mongodb-machine-rps/machine-01",
    "cloud/data-ingress-rate/ingress-02",
    "cloud/ecommerce-api-incoming-rps/api-01",
    "ucr/152_UCR_Anomaly_PowerDemand1_9000_18485_18821",
    "ucr/116_UCR_Anomaly_CIMIS44AirTemperature4_4000_5549_5597",
    "ucr/161_UCR_Anomaly_WalkingAceleration1_1500_2764_2995",
    "msl/F-7",
)
"""Of the tuned half, so that limits may be chosen by them; the third drifts by itself."""
QUICK_SERIES = SERIES[1:2]
QUICK_KINDS = ("autoencoder",)
KINDS = {"lstm": {"layers": 1, "width": 32}, "autoencoder": {"window": 16, "width": 32, "bottleneck": 8}}
ARMS = ("honest", "shift", "bursts")
CYCLES = 20
CYCLE_POINTS = 400
STEPS = np.array([0.0, 0.025, 0.05, 0.1, 0.2])
"""By how much of the whole an attack grows from one cycle to the next."""
NOTICED = 0.02
"""Share of the points that may be flagged beside those that are without the attack."""
TRAIN_ROWS = 3000
STREAMED_ROWS = 1024
"""As the trainer takes of streamed points where fewer came from files."""
SIZES = (2.0, 4.0, 8.0, 16.0)
"""Standard deviations of the training part; the attack is the smallest that the first detector flags."""
FLAGGED = 0.8
"""Share of the attack that it has to flag; where it flags less of the largest, there is nothing to take."""
TAKEN = 0.5
"""Of what the first detector flags."""
ATTACK_POINTS = 300
BURST_EVERY, BURST_POINTS = 50, 10
THRESHOLD = 3.0
KEYS = ("kind", "series", "arm", "gated", "seed")
QUALITIES, RECALLS, MOVEMENTS = (0.9, 0.95), (0.0, 0.5, 0.6, 0.7, 0.8, 0.9), (0.25, 0.5, 1.0)
"""Limits of the gate that are tried: each beside the defaults of the others."""


@dataclass(frozen=True)
class Attack:
    """What an attacker wants to hide.

    Attributes:
        offset: [F], at full size.
        bursts: Whether it comes in bursts; else it stays.
    """

    offset: NDArray[np.float32]
    bursts: bool

    def on(self, rows: NDArray[np.float32], share: float) -> NDArray[np.float32]:
        """Rows [N, F] with a share of it."""
        return rows + self._where(len(rows))[:, None] * np.float32(share) * self.offset

    def found(self, flagged: NDArray[np.bool_]) -> float:
        """Share that is found of an attack on rows whose flags [N] these are; the first rows warm up."""
        where = self._where(len(flagged)) > 0
        if not self.bursts:
            return float(flagged[where].mean())
        starts = np.flatnonzero(where & ~np.r_[False, where[:-1]])
        return float(np.mean([flagged[at : at + BURST_POINTS].any() for at in starts]))

    def _where(self, length: int) -> NDArray[np.float32]:
        at = np.arange(length) % BURST_EVERY
        return (at < BURST_POINTS if self.bursts else np.ones(length)).astype(np.float32)


@dataclass(frozen=True)
class Setting:
    """A series and its first detector."""

    train: NDArray[np.float32]
    stream: NDArray[np.float32]
    first: Fitted
    golden: Golden
    seed: int

    def attack(self, arm: str) -> Attack | None:
        """The smallest attack that the first detector flags; None where it flags none."""
        rng = np.random.default_rng(self.seed)
        n_features = self.train.shape[1]
        direction = np.zeros(n_features, np.float32)
        chosen = rng.permutation(n_features)[: max(1, round(0.4 * n_features))]
        direction[chosen] = rng.choice([-1.0, 1.0], len(chosen))
        scale = np.maximum(self.first.scaler.scale, 1e-6)
        for size in SIZES:
            attack = Attack((size * direction * scale).astype(np.float32), arm == "bursts")
            if self.finds(self.first, attack) >= FLAGGED:
                return attack
        return None

    def finds(self, detector: Fitted, attack: Attack) -> float:
        """Share of the attack at full size that a detector flags, after points as they always were."""
        before = self.train[-ATTACK_POINTS - detector.warm_up_points : -ATTACK_POINTS]
        rows = np.concatenate([before, attack.on(self.train[-ATTACK_POINTS:], 1.0)])
        return attack.found(_flags(detector, rows)[len(before) :])


def prepared(series: Series, kind: str, seed: int) -> Setting:
    """Fits the first detector; the stream is the normal rows of the test part, again and again where they are few."""
    from detectors.training.fit import divided, fit
    from detectors.training.stretches import Stretches
    from pruning.parent_gate import Golden

    train = series.train[-TRAIN_ROWS:].astype(np.float32)
    normal = series.test[~series.labels].astype(np.float32)
    wanted = CYCLES * CYCLE_POINTS
    stream = np.concatenate([normal] * -(-wanted // len(normal)))[:wanted]
    data = Stretches.of([train])
    first = fit(kind, data, series.features, seed=seed, options=KINDS[kind])
    held_out = divided(data, first.network, first.warm_up_points)[1]
    golden = Golden.of(first, held_out, seed)
    return Setting(train, stream, first, golden, seed)


def cell(setting: Setting, arm: str, limits: ParentLimits | None) -> Cell:
    """A run over all cycles: what the gate measured and how much of the attack was found after each.

    Args:
        setting: Where it runs.
        arm: One of `ARMS`.
        limits: Of a gate that is obeyed; None: it only measures.
    """
    from pruning.parent_gate import ParentLimits, judge_parent

    attack = None if arm == "honest" else setting.attack(arm)
    if arm != "honest" and attack is None:
        return {"skipped": "the first detector flags no attack"}
    parent, began = setting.first, time.process_time()
    rows, flags = np.empty((0, setting.train.shape[1]), np.float32), np.empty(0, np.bool_)
    checks: dict[str, list[float]] = {}
    refused, changed, found = [], [], [setting.finds(parent, attack) if attack else None]
    shares = [0.0]
    for turn in range(CYCLES):
        new = setting.stream[turn * CYCLE_POINTS : (turn + 1) * CYCLE_POINTS]
        before = rows[-200:] if len(rows) else setting.train[-200:]
        if attack:
            shares.append(_furthest(parent, attack, before, new, shares[-1]))
            new = attack.on(new, shares[-1])
        flags = np.r_[flags, _flags_after(parent, before, new)]
        rows = np.concatenate([rows, new])
        newer, was_changed = _cycled(parent, setting, rows, flags, turn)
        gate = judge_parent(setting.golden, newer, limits or ParentLimits())
        for check in gate.checks:
            checks.setdefault(check.name, []).append(round(check.value, 4))
        refused.append(not gate.passed)
        changed.append(was_changed)
        if gate.passed or limits is None:
            parent = newer
        found.append(round(setting.finds(parent, attack), 4) if attack else None)
    return {
        "checks": checks,
        "refused": refused,
        "changed": changed,
        "found": found,
        "shares": [round(share, 3) for share in shares[1:]],
        "size": float(np.abs(attack.offset / setting.first.scaler.scale).max()) if attack else 0.0,
        "cpu_seconds": time.process_time() - began,
    }


def _cycled(
    parent: Fitted, setting: Setting, rows: NDArray[np.float32], flags: NDArray[np.bool_], turn: int
) -> tuple[Fitted, bool]:
    """The parent after a cycle on what was not flagged, and whether it was trained on."""
    from detectors.training.stretches import Stretches
    from pruning.cycle import split
    from pruning.update import updated

    near = np.convolve(flags, np.ones(2 * GUARD_POINTS + 1), "same") > 0.5
    room = max(len(setting.train), STREAMED_ROWS)
    data = Stretches.of([setting.train, *_newest(rows, ~near, room)])
    training, held_out = split(parent, data)
    newer = updated(parent, training, held_out, seed=setting.seed + turn)
    return newer.parent, newer.changed


def _furthest(
    parent: Fitted, attack: Attack, before: NDArray[np.float32], new: NDArray[np.float32], share: float
) -> float:
    """How much of an attack hardly anybody notices, beginning with what the cycle before had of it."""
    quiet = _flags_after(parent, before, new).mean() + NOTICED
    tried = np.minimum(share + STEPS, 1.0)
    unnoticed = [it for it in tried if _flags_after(parent, before, attack.on(new, float(it))).mean() <= quiet]
    return float(max(unnoticed, default=share))


def _newest(rows: NDArray[np.float32], normal: NDArray[np.bool_], room: int) -> list[NDArray[np.float32]]:
    """Runs of normal rows, the newest so many of them."""
    kept = normal & (np.cumsum(normal[::-1])[::-1] <= room)
    edges = np.flatnonzero(np.diff(np.r_[False, kept, False].astype(np.int8)))
    return [rows[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _flags_after(detector: Fitted, before: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    return _flags(detector, np.concatenate([before, rows]))[len(before) :]


def _flags(detector: Fitted, rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    score = detector.trace(rows[None]).score[0]
    return np.nan_to_num(score, nan=-1.0) >= THRESHOLD


def fill(cells: Path, kinds: Iterable[str], series: tuple[str, ...], seeds: tuple[int, ...], deadline: float) -> None:
    """Makes the runs that are missing, until the deadline (of `time.monotonic`)."""
    from pruning.parent_gate import ParentLimits

    known = {tuple(it[key] for key in KEYS): it for it in read_all(cells, *KEYS)}
    read = {it.name: it for it in (reader() for reader in labelled_series()) if it.name in series}
    for seed, kind, name in product(seeds, kinds, series):
        setting: Setting | None = None
        for arm, gated in product(ARMS, (False, True)):
            key = (kind, name, arm, gated, seed)
            free = known.get((kind, name, arm, False, seed))
            if key in known or (gated and not (free and is_taken(free))):
                continue
            setting = setting or prepared(read[name], kind, seed)
            made = cell(setting, arm, ParentLimits() if gated else None)
            known[key] = dict(zip(KEYS, key, strict=True)) | made
            append(cells / f"{kind}--{name.replace('/', '--')}.jsonl", known[key])
            harness.say(f"{kind} {name} {arm}{' gated' if gated else ''}: {_said(made)}")
            if time.monotonic() > deadline:
                return


def _said(made: Cell) -> str:
    if "skipped" in made:
        return str(made["skipped"])
    last = {name: values[-1] for name, values in made["checks"].items() if values}
    return f"refused {sum(made['refused'])}, found {made['found'][0]} to {made['found'][-1]}, last {last}"


def taken_at(run: Cell) -> int:
    """The first cycle after which the detector is taken; one after the last where it never is."""
    found = np.array(run["found"], float)
    return int(np.append(np.flatnonzero(found < TAKEN * found[0]), CYCLES + 1)[0])


def is_taken(run: Cell) -> bool:
    """Whether an attack took the detector."""
    return "skipped" not in run and run["arm"] != "honest" and taken_at(run) <= CYCLES


def refusals(run: Cell, limits: ParentLimits) -> NDArray[np.bool_]:
    """Which cycles a gate with these limits refuses."""
    checks = run["checks"]
    refused = np.array(checks["movement"]) > limits.movement
    for name, limit in (("golden quality", limits.golden_quality), ("golden recall", limits.golden_recall)):
        if name in checks:
            refused |= np.array(checks[name]) < limit
    return refused


def is_stopped(run: Cell, limits: ParentLimits) -> bool:
    """Whether a gate with these limits refuses no later than the cycle after which the detector is taken."""
    return bool(refusals(run, limits)[: taken_at(run)].any())


def result(cells: Path) -> harness.Result:
    """All figures from the runs there are.

    Raises:
        harness.Skip: there are none.
    """
    from pruning.parent_gate import ParentLimits

    runs = [it for it in read_all(cells, *KEYS) if "skipped" not in it]
    free = [it for it in runs if not it["gated"]]
    attacks, honest = [it for it in free if it["arm"] != "honest"], [it for it in free if it["arm"] == "honest"]
    taken, obeyed = [it for it in attacks if is_taken(it)], [it for it in runs if it["gated"]]
    if not attacks or not honest:
        raise harness.Skip("there are no runs yet")
    now = ParentLimits()
    tried = [
        now,
        *(replace(now, golden_quality=it) for it in QUALITIES),
        *(replace(now, golden_recall=it) for it in RECALLS),
        *(replace(now, movement=it) for it in MOVEMENTS),
    ]
    found = [_found(taken, honest, limits) for limits in dict.fromkeys(tried)]
    kept = sum(not is_taken(it) for it in obeyed)
    heads = [
        "golden quality",
        "golden recall",
        "movement",
        "attacks stopped in time",
        "honest cycles refused",
        "honest runs refused in",
    ]
    obeyed_at = f"{now.golden_quality:g}, {now.golden_recall:g} and {now.movement:g}"
    told = (
        f"Without the gate {len(taken)} of {len(attacks)} attacks take the detector. {len(obeyed)} of those were made "
        f"again with the gate obeyed at {obeyed_at}: {len(obeyed) - kept} still do."
    )
    lines = [
        *markdown(
            ["network", "series", "run", "golden quality", "golden recall", "movement", "attack flagged"],
            [_row(it) for it in free],
        ),
        "",
        told,
        "",
        *markdown(heads, [_limits_row(it, len(taken), len(honest)) for it in found]),
    ]
    figures = {
        "attacks": len(attacks),
        "taken_without_gate": len(taken),
        "obeyed": len(obeyed),
        "kept_where_obeyed": kept,
        "limits": found,
    }
    return harness.Result(figures, {}, "\n".join(lines))


def _row(run: Cell) -> list[str]:
    """The worst that the gate measured in a run, and what was left of the attack."""
    checks, found = run["checks"], run["found"]
    worst = [f"{min(checks[name]):.2f}" if name in checks else "" for name in ("golden quality", "golden recall")]
    flagged = "" if found[0] is None else f"{found[0]:.2f} to {found[-1]:.2f}"
    return [run["kind"], run["series"], run["arm"], *worst, f"{max(checks['movement']):.2f}", flagged]


def _found(taken: list[Cell], honest: list[Cell], limits: ParentLimits) -> Cell:
    wrong = [int(refusals(it, limits).sum()) for it in honest]
    return {
        "golden_quality": limits.golden_quality,
        "golden_recall": limits.golden_recall,
        "movement": limits.movement,
        "stopped": sum(is_stopped(it, limits) for it in taken),
        "honest_cycles": sum(wrong),
        "honest_runs": sum(it > 0 for it in wrong),
    }


def _limits_row(found: Cell, taken: int, honest: int) -> list[str]:
    return [
        f"{found['golden_quality']:g}",
        f"{found['golden_recall']:g}",
        f"{found['movement']:g}",
        f"{found['stopped']} of {taken}",
        f"{found['honest_cycles'] / (CYCLES * honest):.0%}",
        f"{found['honest_runs']} of {honest}",
    ]


def main() -> None:
    """Runs as a script."""
    import torch

    parser = harness.parser(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after the run of that minute")
    parser.add_argument("--kinds", metavar="A,B", type=lambda text: text.split(","), help="these networks alone")
    parser.add_argument("--series", metavar="A,B", type=lambda text: tuple(text.split(",")), help="these series alone")
    parser.add_argument("--seeds", metavar="0,1", type=lambda it: tuple(map(int, it.split(","))), default=(0,))
    parser.add_argument("--report", action="store_true", help="only write the table, from the runs there are")
    parser.add_argument("--cells", type=Path, metavar="FOLDER", default=CELLS, help="where the runs are")
    args = parser.parse_args()
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * args.minutes
    try:
        if args.quick:
            with tempfile.TemporaryDirectory(prefix="prunewatch-bench-") as folder:
                fill(Path(folder), QUICK_KINDS, QUICK_SERIES, args.seeds, deadline)
                harness.publish("poisoning", result(Path(folder)), args)
            return
        if not args.report:
            fill(args.cells, args.kinds or list(KINDS), args.series or SERIES, args.seeds, deadline)
        harness.publish("poisoning", result(args.cells), args)
    except harness.Skip as reason:
        harness.skip("poisoning", reason, args)


if __name__ == "__main__":
    sys.exit(main())
