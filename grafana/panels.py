"""Panels as our dashboards have them. None is without a unit, thresholds, and a description that says what to do when it is red."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import DashboardLink, Row, ThresholdsConfig
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as model
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Panel,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")
POSTGRES = DataSourceRef(type_val="grafana-postgresql-datasource", uid="${postgres}")
"""A variable of another name: links between dashboards hand on the chosen ones."""
GREEN, AMBER, RED, BLUE = "green", "orange", "red", "blue"

Steps: TypeAlias = Sequence[tuple[float | None, str]]
"""From which value on which colour; None: from below. Green where nothing is said."""
OUTCOMES = {
    "succeeded": "green",
    "snoozed": "blue",
    "cancelled": "light-blue",
    "retry": "orange",
    "failed": "red",
    "timed_out": "dark-red",
    "crashed": "purple",
}
"""The colour of each outcome, wherever it is drawn."""


@dataclass(frozen=True)
class Words:
    """What a panel says of itself. shows: what is seen; red: what to do when it is red."""

    title: str
    shows: str
    red: str

    @property
    def description(self) -> str:
        return f"{self.shows}\n\n**Red:** {self.red}"


@dataclass(frozen=True)
class Query:
    """PromQL, or SQL where `sql` says so. legend: of a line; in a table the name of the column."""

    text: str
    legend: str = ""
    sql: bool = False


@dataclass(frozen=True)
class Column:
    """How a column of a table is shown. links: title and URL; texts: what stands in place of which value, and the colour of
    its ground; empty: none."""

    unit: str = ""
    steps: Steps = ()
    link: tuple[str, str] | None = None
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    width: int | None = None

    def properties(self) -> list[DynamicConfigValue]:
        found: list[tuple[str, object]] = []
        if self.unit:
            found.append(("unit", self.unit))
        if self.steps:
            found.append(("thresholds", thresholds(self.steps).build()))
        if self.link is not None:
            title, url = self.link
            found.append(("links", [{"title": title, "url": url}]))
        if self.texts:
            found.append(("mappings", [mapping(self.texts)]))
        if self.steps or any(color for _, color in self.texts.values()):
            found.append(("custom.cellOptions", {"type": "color-background", "mode": "basic"}))
        if self.width is not None:
            found.append(("custom.width", self.width))
        return [DynamicConfigValue(id_val=name, value=value) for name, value in found]


# --- panels ---


def number(
    words: Words, query: Query, unit: str, steps: Steps, *, width: int = 4, link: str = "", no_value: str = "none"
) -> Builder[Panel]:
    """As it is now: an older value must not be taken for it. link: of the dashboard to look at next."""
    panel = _stat(words, query, unit, steps, width=width, height=4).no_value(no_value)
    panel = panel.color_mode(model.BigValueColorMode.VALUE)
    if link:
        panel = panel.data_links([DashboardLink("Look closer").type(DashboardLinkType.LINK).url(link)])
    return panel


def sentence(words: Words, query: Query, texts: Mapping[str, tuple[str, str]]) -> Builder[Panel]:
    """A number that stands for a sentence, on a ground of its colour, as wide as the page."""
    panel = _stat(words, query, "none", ((1, AMBER), (2, RED)), width=24, height=4).mappings([mapping(texts)])
    panel = panel.no_value("No data: is Prometheus there, and does it reach the nodes?" if not query.sql else "No data")
    return panel.color_mode(model.BigValueColorMode.BACKGROUND_SOLID)


def lines(
    words: Words,
    queries: Sequence[Query],
    unit: str,
    steps: Steps,
    *,
    width: int = 12,
    stacked: bool = False,
    highest: float | None = None,
    colors: Mapping[str, str] | None = None,
) -> Builder[Panel]:
    """Over time. The thresholds are dashed lines. colors: of lines, by name or /expression/."""
    panel = (
        timeseries.Panel()
        .title(words.title)
        .description(words.description)
        .datasource(_source(queries))
        .targets(_targets(queries, "time_series", instant=False))
        .unit(unit)
        .min(0)
        .thresholds(thresholds(steps))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(model.GraphThresholdsStyleMode.DASHED))
        .fill_opacity(30 if stacked else 8)
        .show_points(model.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(model.LegendDisplayMode.LIST)
            .placement(model.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(model.TooltipDisplayMode.MULTI).sort(model.SortOrder.DESCENDING))
        .height(8)
        .span(width)
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(model.StackingMode.NORMAL).group("A"))
    for name, color in (colors or {}).items():
        fixed = DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})
        panel = (panel.override_by_regexp if name.startswith("/") else panel.override_by_name)(name, [fixed])
    return panel if highest is None else panel.max(highest)


def heat(words: Words, query: Query, steps: Steps, *, width: int = 12) -> Builder[Panel]:
    """How many fell into each bucket of seconds. The thresholds colour nothing here: the description names them."""
    return (
        heatmap.Panel()
        .title(words.title)
        .description(words.description)
        .datasource(_source([query]))
        .targets(_targets([query], "heatmap", instant=False))
        .unit("s")
        .thresholds(thresholds(steps))
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
        .y_axis(heatmap.YAxisConfig().unit("s").axis_placement(model.AxisPlacement.LEFT))
        .cell_values(heatmap.CellValues().unit("none"))
        .hide_y_histogram()
        .show_legend()
        .height(8)
        .span(width)
    )


def rows(
    words: Words,
    queries: Sequence[Query],
    columns: Mapping[str, Column],
    *,
    unit: str = "none",
    steps: Steps = ((1e9, RED),),
    width: int = 24,
    height: int = 8,
    no_value: str = "",
    worst: str = "",
) -> Builder[Panel]:
    """A table; of several queries, the rows with the same labels are one. columns: in order, by name.

    no_value: of all of it. worst: the column whose largest values come first.
    """
    panel = (
        table.Panel()
        .title(words.title)
        .description(words.description)
        .datasource(_source(queries))
        .targets(_targets(queries, "table", instant=True))
        .unit(unit)
        .thresholds(thresholds(steps))
        .no_value(no_value)
        .filterable(True)
        .height(height)
        .span(width)
    )
    if worst:
        panel = panel.sort_by([common.TableSortByFieldState().display_name(worst).desc(True)])
    if no_value:
        panel = panel.override_by_regexp("/.*/", [DynamicConfigValue(id_val="noValue", value="–")])  # of a cell
    for name, column in columns.items():
        if properties := column.properties():
            panel = panel.override_by_name(name, properties)
    if queries[0].sql:
        return panel
    many = len(queries) > 1
    values = {f"Value #{chr(65 + at)}" if many else "Value": query.legend for at, query in enumerate(queries)}
    order = {next((old for old, new in values.items() if new == name), name): at for at, name in enumerate(columns)}
    hidden = {"Time": True} | {old: True for old, new in values.items() if not new}
    organize = {"excludeByName": hidden, "indexByName": order, "renameByName": {a: b for a, b in values.items() if b}}
    transformations = [DataTransformerConfig("merge", options={})] if many else []
    return panel.transformations([*transformations, DataTransformerConfig("organize", options=organize)])


def row(title: str) -> Row:
    """A heading."""
    return Row(title)


# --- their parts ---


def thresholds(steps: Steps) -> ThresholdsConfig:
    ladder = [Threshold(value=value, color=color) for value, color in steps]
    if not steps or steps[0][0] is not None:
        ladder.insert(0, Threshold(value=None, color=GREEN))
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(ladder)


def mapping(texts: Mapping[str, tuple[str, str]]) -> ValueMap:
    """Text and colour in place of each value."""
    return ValueMap(
        options={
            value: ValueMappingResult(text=text, color=color or None, index=at)
            for at, (value, (text, color)) in enumerate(texts.items())
        }
    )


def _stat(words: Words, query: Query, unit: str, steps: Steps, *, width: int, height: int) -> stat.Panel:
    return (
        stat.Panel()
        .title(words.title)
        .description(words.description)
        .datasource(_source([query]))
        .targets(_targets([query], "table" if query.sql else "time_series", instant=True))
        .unit(unit)
        .thresholds(thresholds(steps))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .text_mode(model.BigValueTextMode.VALUE)
        .graph_mode(model.BigValueGraphMode.NONE)
        .height(height)
        .span(width)
    )


def _source(queries: Sequence[Query]) -> DataSourceRef:
    return POSTGRES if queries[0].sql else PROMETHEUS


def _targets(
    queries: Sequence[Query], shape: Literal["time_series", "table", "heatmap"], *, instant: bool
) -> list[Builder[Dataquery]]:
    return [_target(query, chr(65 + at), shape, instant=instant) for at, query in enumerate(queries)]


def _target(query: Query, ref_id: str, shape: str, *, instant: bool) -> Builder[Dataquery]:
    if query.sql:
        return _Built(SqlQuery(query.text, ref_id, shape))
    built = prometheus.Dataquery().expr(query.text).ref_id(ref_id).datasource(PROMETHEUS).format(PromQueryFormat(shape))
    if query.legend:
        built = built.legend_format(query.legend)
    if shape == "heatmap":
        built = built.legend_format("{{le}}")
    return built.instant() if instant else built.range()


class SqlQuery(Dataquery):
    """A query of Grafana's Postgres data source, for which the SDK has no class."""

    def __init__(self, text: str, ref_id: str, shape: str) -> None:
        self._text, self._ref_id, self._shape = text, ref_id, shape

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        return {
            "refId": self._ref_id,
            "datasource": POSTGRES,
            "format": self._shape,
            "rawQuery": True,
            "editorMode": "code",
            "rawSql": self._text,
        }


class _Built(Builder[Dataquery]):
    def __init__(self, query: Dataquery) -> None:
        self._query = query

    def build(self) -> Dataquery:
        return self._query
