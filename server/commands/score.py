"""`prunewatch score`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from detectors.errors import PreconditionError
from detectors.runtime import FloatArray
from server.commands.options import NameArgument, ServerOption, StoreOption, require_hub, store_path
from server.commands.progress import Report, progress
from server.config import HUB, load_detector_config
from server.csv_input import Table, joined, read_csv
from server.scores_csv import Scores, write_scores


def score(
    name: NameArgument,
    data: Annotated[Path, typer.Option(metavar="FILE", help="CSV of points to score, oldest first.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the scores go.")],
    warm: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV of points that came just before; not in the output.", show_default=False
        ),
    ] = None,
    store: StoreOption = None,
    server: ServerOption = None,
) -> None:
    """Score the points of a CSV file with the version that serves.

    The score is -log10 of how rare a point's error is among normal points: 3 means one in a thousand; at or above the
    threshold it is an anomaly. Scoring starts from a fresh state and leaves no trace in the detector; the first points
    have no score until enough went before, unless --warm gives them. A server gives exactly the same scores.

        prunewatch score pump --data test.csv --out scores.csv
        prunewatch score pump --data test.csv --warm train.csv --out scores.csv --server 127.0.0.1:8001
    """
    root = store_path(store, server)
    table, warmer = read_csv(data), read_csv(warm) if warm else None
    scores = scored(root, server, name, table, warmer)
    write_scores(out, table.stamp_text, scores)
    typer.echo(f"{out}: {scores.summary()}", err=True)


def scored(
    root: Path, server: str | None, name: str, table: Table, warmer: Table | None, *, contributions: bool = False
) -> Scores:
    """Scores with what serves, in a store or on a server, and shows progress; leaves no trace.

    Args:
        root: The store, where no server is asked.
        server: The server to ask.
        name: The detector.
        table: The points.
        warmer: Points that came just before.
        contributions: Also say what each feature contributed to anomalies.
    """
    with progress() as report:
        if server is None:
            return score_in_store(root, name, table, warmer, report, contributions=contributions)
        from server.commands import remote

        return remote.ask(
            server,
            lambda client: remote.score(client, name, table, warmer, report, contributions=contributions),
        )


def score_in_store(
    root: Path, name: str, table: Table, warmer: Table | None, report: Report, *, contributions: bool = False
) -> Scores:
    """Scores in this process with what serves on the hub; needs neither torch nor pandas."""
    require_hub("sqlalchemy", "pyarrow")
    from detectors.scorer import Scored, Scorer, score_alone
    from detectors.served import Served
    from detectors.stamps import StampPolicy
    from server.anomalies import shares_of
    from server.store import Store

    with Store.open(root, create=False) as store:
        row, serving = store.catalog.get_detector(name), store.catalog.serving(name, HUB)
        if serving is None:
            raise PreconditionError(f"{name!r} is still learning.", field="name", hint="Fit it first.")
        bundle = store.read_bundle(serving.bundle_hash)
    config, served = load_detector_config(row.config), Served.load(bundle, serving.version)
    stamps, values, warm_rows = joined(table, warmer, bundle.manifest.features, index=config.time == "index")
    scorer = Scorer(served, policy=StampPolicy(duplicate=config.duplicate, max_gap=config.gap_nanoseconds))
    threshold = np.float32(config.threshold)
    parts: list[Scored] = []
    shares: dict[int, FloatArray] = {}
    rows = 0
    for part in score_alone(scorer, name, stamps, values):
        parts.append(part)
        if contributions:
            flagged = np.flatnonzero(part.score >= threshold)  # not where there is none
            shares |= zip((rows - warm_rows + flagged).tolist(), shares_of(part.contribution[flagged]), strict=True)
        rows += len(part.status)
        report("scoring", rows / len(stamps), f"{rows} of {len(stamps)} points")
    return Scores(
        status=np.concatenate([part.status for part in parts])[warm_rows:],
        score=np.concatenate([part.score for part in parts])[warm_rows:],
        threshold=threshold,
        version=np.full(len(table), served.version, np.int64),
        features=bundle.manifest.features,
        contributions={row: each for row, each in shares.items() if row >= 0},
    )
