"""`prunewatch plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detectors.errors import InvalidInputError
from server.commands.options import NameArgument, ServerOption, StoreOption, require_hub, store_path
from server.commands.score import scored
from server.csv_input import read_csv
from server.picture import chosen, counted, picture_of
from server.time_axis import Window

FORMATS = ("png", "svg", "pdf")


def plot(
    name: NameArgument,
    data: Annotated[Path, typer.Option(metavar="FILE", help="CSV of points to score and draw, oldest first.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture: .png, .svg or .pdf.")],
    warm: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV of points that came just before; not drawn.", show_default=False),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Draw these, in this order (default: the six that contributed most).",
            show_default=False,
        ),
    ] = None,
    from_row: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Draw from this row of the file on, counted from 0.", show_default=False),
    ] = None,
    to_row: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Draw up to the row before this one.", show_default=False)
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Draw from this time on, written as in the file.", show_default=False),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Draw only what is before this time.", show_default=False)
    ] = None,
    store: StoreOption = None,
    server: ServerOption = None,
) -> None:
    """Draw the points of a CSV file with their scores, what was flagged, and which features were to blame.

    At the top the score with the threshold, then a panel for each feature: the six with the largest share of the error
    of flagged points, or those of --features. Flagged stretches are shaded across all panels, and darker where a
    feature contributed most; the ten highest have a number and a row in the list below, with peak and top features.
    It is hatched where the detector was still warming up (give --warm). A column `label` is drawn as a band, to
    compare. Points are scored as `prunewatch score` does: all rows, from a fresh state, and no trace is left.

        prunewatch plot pump --data test.csv --warm train.csv --out pump.png
        prunewatch plot pump --data test.csv --out pump.svg --since 2024-05-01T12:00 --until 2024-05-01T18:00
        prunewatch plot pump --data test.csv --out pump.pdf --features flow,pressure --server 127.0.0.1:8001
    """
    root, kind = store_path(store, server), picture_format(out)
    require_hub("matplotlib")
    from server.drawing import draw

    window = Window(from_row, to_row, since, until)
    table, warmer = read_csv(data), read_csv(warm) if warm else None
    wanted = None if features is None else [name.strip() for name in features.split(",") if name.strip()]
    window.rows(table)  # what is wrong with window and features is said before anything is scored
    chosen(table.features, wanted)
    scores = scored(root, server, name, table, warmer, contributions=True)
    picture = picture_of(name, table, scores, window, wanted)
    draw(picture, out, kind)
    typer.echo(f"{out}: {scores.summary()}, {counted(len(picture.spans), 'flagged span')} drawn", err=True)


def picture_format(out: Path) -> str:
    """What the name of a picture asks for.

    Raises:
        InvalidInputError: it is no picture that can be written, or there is no place for it.

    >>> picture_format(Path("pump.SVG"))
    'svg'
    """
    kind = out.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InvalidInputError(
            f"a picture can not be {out.suffix!r}."
            if kind
            else "has no suffix, which says what kind of picture it is.",
            field=str(out),
            hint=f"Name a file that ends in {', '.join(f'.{it}' for it in FORMATS[:-1])} or .{FORMATS[-1]}.",
        )
    if out.is_dir():
        raise InvalidInputError("is a folder.", field=str(out), hint="Name a file.")
    if not out.parent.is_dir():
        raise InvalidInputError("there is no such folder.", field=str(out.parent), hint="Make it first.")
    return kind
