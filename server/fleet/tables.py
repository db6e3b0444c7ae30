"""What graphs cost on the devices of a class: of many devices' answers one table that no single one can steer.

Each device measures all graphs beside the reference in one run, so its figures are taken as ratios to that: a device
that is slower than its class mates tears no hole into the table. Of each ratio, and of the reference's time, the median
over devices counts. While fewer than a third of them lie, it lies between figures of honest ones.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from detectors.bundle import replaced, write_durably
from pruning.costs import FolderTables, Grid
from server.fleet.reports import ProbeReport
from server.layout import TABLES

Costs = Mapping[str, tuple[float, float]]
"""p50 and p99 of a step in seconds, by the graph's sha256."""
SHORTEST, LONGEST = 1e-7, 60.0
"""Seconds that a step can take: a call of the runtime takes microseconds, and nobody waits a minute for a point."""
MOST_ANSWERS = 64
"""Devices whose answers a table rests on, the newest."""
MOST_PROBES = 16
"""Of a table, whose answers are still taken."""
SUFFIX = ".grid"
logger = logging.getLogger("prunewatch.fleet.tables")


def believable(costs: Costs, graphs: Collection[str], reference: str) -> bool:
    """Whether an answer can be true: figures of graphs that were asked about, the reference among them, none absurd.

    One absurd figure is enough: whoever is wrong there is not asked for the others.
    """
    return reference in costs and all(
        sha256 in graphs and math.isfinite(p50) and math.isfinite(p99) and SHORTEST <= p50 <= p99 <= LONGEST
        for sha256, (p50, p99) in costs.items()
    )


def of_class(answers: Collection[Costs], reference: str) -> dict[str, tuple[float, float]]:
    """What graphs cost on a class: medians over devices of the ratios to the reference, times its median.

    Args:
        answers: One of each device, believable.
        reference: The graph that each device measured the others beside.

    Returns:
        Costs of the graphs that more than half of the devices have measured.
    """
    if not answers:
        return {}
    usual = float(np.median([costs[reference][0] for costs in answers]))
    found = {}
    for sha256 in dict.fromkeys(name for costs in answers for name in costs):
        ratios = [
            (costs[sha256][0] / costs[reference][0], costs[sha256][1] / costs[reference][0])
            for costs in answers
            if sha256 in costs
        ]
        if 2 * len(ratios) > len(answers):
            p50, p99 = (float(it) for it in np.median(ratios, axis=0) * usual)
            found[sha256] = p50, max(p50, p99)
    return found


@dataclass(frozen=True)
class Answer:
    """What a device said.

    Attributes:
        asked: When it was asked, in seconds since the epoch.
        runtime: Version of ONNX Runtime that it measured in; empty: it did not say.
        costs: See `Costs`.
    """

    asked: float
    runtime: str
    costs: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class ClassTable:
    """The table of a detector's networks on a device class, as far as it is known.

    Attributes:
        detector: The detector.
        device_class: The class.
        parent: Hash of the parent whose networks the grid has.
        grid: The graphs.
        made: When the grid was made, in seconds since the epoch.
        probes: When each probe was begun, in seconds since the epoch, by its id.
        answers: The newest of each device.
    """

    detector: str
    device_class: str
    parent: str
    grid: Grid
    made: float
    probes: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)

    def asking(self, probe_id: str, now: float) -> Self:
        """With one more probe whose answers are taken."""
        probes = dict(sorted({**self.probes, probe_id: now}.items(), key=lambda it: it[1])[-MOST_PROBES:])
        return replace(self, probes=probes)

    def answered(self, report: ProbeReport) -> Self | None:
        """With the answer of a device; None where it is not to be taken.

        That is: it answers none of these probes, one that is not newer than what the device has answered before (a
        replay), or can not be true.
        """
        asked, known = self.probes.get(report.probe_id), self.answers.get(report.device)
        if asked is None or (known is not None and asked <= known.asked):
            return None
        if report.batch != self.grid.batch or not believable(report.costs, self.grid.bytes, self.grid.reference):
            return None
        answer = Answer(asked, str(report.conditions.get("runtime", ""))[:80], dict(report.costs))
        newest = sorted({**self.answers, report.device: answer}.items(), key=lambda it: it[1].asked)[-MOST_ANSWERS:]
        return replace(self, answers=dict(newest))

    @property
    def runtime(self) -> str:
        """The version of ONNX Runtime that most of the answers are of; of as many, the newer."""
        versions = [answer.runtime for answer in self.answers.values()]
        newest = {
            version: max(it.asked for it in self.answers.values() if it.runtime == version) for version in versions
        }
        return max(newest, key=lambda it: (versions.count(it), newest[it]), default="")

    @property
    def counted(self) -> dict[str, Answer]:
        """The answers that the table rests on: those in the runtime of most devices."""
        return {device: answer for device, answer in self.answers.items() if answer.runtime == self.runtime}

    @property
    def age_from(self) -> float:
        """When the newest of them was asked for, in seconds since the epoch; 0: there are none."""
        return max((it.asked for it in self.counted.values()), default=0.0)

    def costs(self) -> dict[str, tuple[float, float]]:
        """What graphs cost on the class."""
        return of_class([it.costs for it in self.counted.values()], self.grid.reference)

    def to_json(self) -> str:
        """As files keep it."""
        return json.dumps({**asdict(self), "grid": self.grid.to_json()})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse.

        Raises:
            ValueError: this is none.
        """
        try:
            content = json.loads(text)
            answers = {
                device: Answer(it["asked"], it["runtime"], {name: (a, b) for name, (a, b) in it["costs"].items()})
                for device, it in content.pop("answers").items()
            }
            return cls(**{**content, "grid": Grid.from_json(content["grid"]), "answers": answers})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("no table of a class") from error


class ClassTables:
    """Tables of device classes in a store. They may be emptied at any time: devices are asked again.

    Args:
        root: The store's folder.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / TABLES
        self._tables = FolderTables(self._folder)

    def get(self, device_class: str, detector: str) -> ClassTable | None:
        """What is known; None where nothing is."""
        try:
            return ClassTable.from_json(self._path(device_class, detector).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def put(self, table: ClassTable) -> None:
        """Keeps what is known, and the table itself where cycles look for it.

        A table that is not whole yet, or that can not be written, is not there: cycles are planned on the hub's times.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replaced(self._path(table.device_class, table.detector)) as partial:
                write_durably(partial, table.to_json().encode())
            if costs := table.costs():
                self._tables.put(table.grid.key, table.grid.table(costs))
        except ValueError:
            logger.warning("what devices of %s measured for %s makes no table", table.device_class, table.detector)
        except OSError:
            logger.exception("the table of %s for %s could not be written", table.device_class, table.detector)

    def all(self) -> list[ClassTable]:
        """Of all classes and detectors."""
        found = []
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            device_class, _, detector = path.name.removesuffix(SUFFIX).partition(".")
            if (table := self.get(device_class, detector)) is not None:
                found.append(table)
        return found

    def remove(self, device_class: str, detector: str) -> None:
        """Forgets what is known; the table goes with its age."""
        self._path(device_class, detector).unlink(missing_ok=True)

    def _path(self, device_class: str, detector: str) -> Path:
        return self._folder / f"{device_class}.{detector}{SUFFIX}"  # no name has a dot
