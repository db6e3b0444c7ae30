"""Makes the dashboards that Grafana is provisioned with (dashboards/*.json) of their short form (boards/*.yml).

python deploy/grafana/generate.py [--check]     --check writes nothing and says what differs

A board has panels in order: `row` begins a group; a `graph` has lines, a `figure` one big number, both with `queries`
(what a line is called: its expression) and a `unit` of Grafana's; a `table` has `columns` and a row for each value of
the labels `by`. `span` is of 24 columns; `colours` begin at a value. `text` explains a panel to whoever looks at it.

Needs `grafana-foundation-sdk` of the development tools.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

HERE = Path(__file__).parent
BOARDS, DASHBOARDS = HERE / "boards", HERE / "dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "prunewatch"
Panel = Mapping[str, Any]


def main() -> int:
    """Writes or checks; 1 where a file was not what it should be."""
    files = {
        path.with_suffix(".json").name: rendered(yaml.safe_load(path.read_text())) for path in BOARDS.glob("*.yml")
    }
    wrong = [name for name, text in files.items() if _text(DASHBOARDS / name) != text]
    wrong += [path.name for path in DASHBOARDS.glob("*.json") if path.name not in files]
    if "--check" in sys.argv[1:]:
        for name in sorted(wrong):
            print(f"deploy/grafana/dashboards/{name} is not what generate.py makes; run it")
        return bool(wrong)
    for name, text in files.items():
        (DASHBOARDS / name).write_text(text, encoding="utf-8")
    return 0


def rendered(board: Mapping[str, Any]) -> str:
    """A dashboard as Grafana reads it. All link to each other and keep the choice of the datasource."""
    made = (
        dashboard.Dashboard(board["title"])
        .uid(board["uid"])
        .description(board["text"])
        .tags([TAG])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink(TAG)
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Datasource").type("prometheus"))
    )
    for it in board.get("variables", ()):
        made = made.with_variable(
            dashboard.QueryVariable(it["name"])
            .label(it["label"])
            .datasource(SOURCE)
            .query(it["query"])
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(models.VariableSort.ALPHABETICAL_ASC)
            .include_all(it["several"])
            .multi(it["several"])
        )
    for it in board.get("marks", ()):
        mark = dashboard.AnnotationQuery().name(it["name"]).datasource(SOURCE).enable(True)
        made = made.annotation(mark.icon_color(it["colour"]).expr(it["expr"]))
    for it in board["panels"]:
        made = made.with_row(dashboard.Row(it["row"])) if "row" in it else made.with_panel(panel(it))
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


def panel(it: Panel) -> timeseries.Panel | stat.Panel | table.Panel:
    """One panel."""
    if "table" in it:
        return listing(it)
    made = figure(it) if "figure" in it else graph(it)
    for at, (legend, expr) in enumerate(it["queries"].items()):
        made = made.with_target(prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(_ref(at)))
    return made.description(it["text"]).datasource(SOURCE).unit(it["unit"])


def graph(it: Panel) -> timeseries.Panel:
    """Lines over time; dashed ones where `colours` change."""
    legend = (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.TABLE)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    made = (
        timeseries.Panel()
        .title(it["graph"])
        .span(it.get("span", 12))
        .height(8)
        .fill_opacity(8)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    )
    if "colours" in it:
        dashed = common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
        made = made.thresholds(_thresholds(it["colours"])).thresholds_style(dashed)
    return made


def figure(it: Panel) -> stat.Panel:
    """One number, or one for each time series."""
    return (
        stat.Panel()
        .title(it["figure"])
        .span(it.get("span", 4))
        .height(4)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(it.get("colours", {"base": "green"})))
    )


def listing(it: Panel) -> table.Panel:
    """A table: each column is asked for by itself, and the answers are joined."""
    made = table.Panel().title(it["table"]).description(it["text"]).datasource(SOURCE).span(24).height(9)
    shown = {}
    for at, (name, column) in enumerate(it["columns"].items()):
        query = prometheus.Dataquery().expr(column["expr"]).format(PromQueryFormat.TABLE).instant().ref_id(_ref(at))
        unit = models.DynamicConfigValue(id_val="unit", value=column["unit"])
        made = made.with_target(query).override_by_name(name, [unit])
        shown[f"Value #{_ref(at)}"] = name
    order = {name: at for at, name in enumerate([*it["by"], *shown])}
    for name, options in (
        ("merge", {}),
        ("organize", {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": shown}),
    ):
        made = made.with_transformation(models.DataTransformerConfig(id_val=name, options=options))
    return made


def _thresholds(colours: Mapping[str | float, str]) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=None if at == "base" else float(at), color=it) for at, it in colours.items()]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _ref(at: int) -> str:
    return chr(ord("A") + at)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
