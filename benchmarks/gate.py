"""Does the gate let sound children in and keep damaged ones out? From the cells of the pruning benchmark; fits nothing.

Every child there was judged without labels, and measured with them. It is damaged where average precision or VUS-PR on
the labels is more than 0.05 below the parent's, sound where both are at most 0.02 below; between the two it does not
count. Thresholds of the four quality checks are chosen on the tuned half of the sets, so that the
share of damaged children that are let in and that of sound ones kept out are least together; the other half shows what
that is worth.

Examples:
  python benchmarks/pruning_grid.py
  python benchmarks/gate.py
  python benchmarks/gate.py --json gate.json

Budgets are left aside: whether a child is fast enough is no question of quality. --quick does the same on a coarser
grid of thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import harness
import pruning_series
from detection_cells import Cell
from pruning_cells import read_all
from pruning_figures import passed
from pruning_grid import CELLS, KEYS
from pruning_report import markdown

from pruning.gate import GateLimits

DAMAGED, SOUND = 0.05, 0.02
"""Points of average precision or VUS-PR below the parent."""
GRID = {
    "error_ratio": (3.0, 2.5, 2.0, 1.75, 1.5, 1.25),
    "alarm_jaccard": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "tail_agreement": (-1.0, 0.0, 0.15, 0.3, 0.45, 0.6, 0.75),
    "injected_drop": (0.1, 0.05, 0.03, 0.02, 0.01),
}
"""Thresholds, each from the loosest to the strictest."""
QUICK_STEP = 2


@dataclass(frozen=True)
class Rates:
    """How a gate does on some children.

    Attributes:
        damaged: How many there are.
        let_in: How many of them it lets in.
        sound: How many there are.
        kept_out: How many of them it keeps out.
    """

    damaged: int
    let_in: int
    sound: int
    kept_out: int

    @property
    def errors(self) -> float:
        """Both shares together: there are far fewer damaged children than sound ones."""
        return self.let_in / max(self.damaged, 1) + self.kept_out / max(self.sound, 1)


def damaged(cell: Cell) -> bool | None:
    """By labels; None: between damaged and sound."""
    worst = min(cell["ap"] - cell["parent_ap"], cell["vus_pr"] - cell["parent_vus_pr"])
    if worst < -DAMAGED:
        return True
    return False if worst >= -SOUND else None


def rates(cells: Iterable[Cell], limits: GateLimits) -> Rates:
    """Of a gate with these thresholds; the alarm rate is checked too."""
    bad = let_in = good = kept_out = 0
    for cell in cells:
        verdict = damaged(cell)
        enters = passed(cell["checks"], limits) and cell["alarm_rate_passed"]
        bad += verdict is True
        let_in += verdict is True and enters
        good += verdict is False
        kept_out += verdict is False and not enters
    return Rates(bad, let_in, good, kept_out)


def chosen(cells: list[Cell], step: int = 1) -> GateLimits:
    """The thresholds of the grid with the least errors; of equals the loosest.

    Args:
        cells: Of the tuned half.
        step: Every so many thresholds of each check.
    """
    return min(_candidates(step), key=lambda it: rates(cells, it[1]).errors + it[0] * 1e-6)[1]


def _candidates(step: int) -> Iterator[tuple[int, GateLimits]]:
    """Thresholds with how many steps they are from the loosest, all checks together."""
    for values in product(*(list(enumerate(it))[::step] for it in GRID.values())):
        strictness = sum(rank for rank, _ in values)
        yield strictness, GateLimits(**dict(zip(GRID, (value for _, value in values), strict=True)))


def result(folder: Path, step: int = 1) -> harness.Result:
    """Both error rates on both halves, at the present and at the chosen thresholds.

    Raises:
        harness.Skip: there are no children of the tuned half.
    """
    cells = [cell for cell in read_all(folder, *KEYS) if cell["built"]]
    halves = {
        "tuned half": [cell for cell in cells if pruning_series.tuned(cell["series"])],
        "reported half": [cell for cell in cells if not pruning_series.tuned(cell["series"])],
    }
    if not halves["tuned half"]:
        raise harness.Skip("there are no cells of the pruning benchmark yet")
    best = chosen(halves["tuned half"], step)
    rows, figures = [], {}
    for name, limits in (("now", GateLimits()), ("chosen", best)):
        for half, own in halves.items():
            found = rates(own, limits)
            figures[f"{name}, {half}"] = asdict(found) | asdict(limits)
            rows.append([name, half, _share(found.let_in, found.damaged), _share(found.kept_out, found.sound)])
    heads = ["thresholds", "", "damaged children let in", "sound children kept out"]
    thresholds = markdown(["", *GRID], [[name, *(f"{getattr(it, key):g}" for key in GRID)] for name, it in _both(best)])
    lines = [*markdown(heads, rows), "", *thresholds, "", f"{len(cells)} children."]
    harness.say("chosen: " + ", ".join(f"{key}: {value:g}" for key, value in asdict(best).items()))
    return harness.Result(figures, {}, "\n".join(lines))


def _both(best: GateLimits) -> tuple[tuple[str, GateLimits], ...]:
    return ("now", GateLimits()), ("chosen", best)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})" if whole else "none"


def main() -> None:
    """Runs as a script."""
    parser = harness.parser(__doc__ or "")
    parser.add_argument("--cells", type=Path, metavar="FOLDER", default=CELLS, help="of the pruning benchmark")
    args = parser.parse_args()
    try:
        harness.publish("gate", result(args.cells, QUICK_STEP if args.quick else 1), args)
    except harness.Skip as reason:
        harness.skip("gate", reason, args)


if __name__ == "__main__":
    main()
