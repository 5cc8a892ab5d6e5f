"""What all dashboards have around their panels: uid, variables, links; marks of starts, versions, deploys and alerts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery as AnnotationBuilder,
)
from grafana_foundation_sdk.builders.dashboard import (
    AnnotationTarget,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.dashboard import (
    AnnotationQuery,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Panel,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from grafana.panels import POSTGRES, PROMETHEUS
from grafana.promql import OF_CLUSTER, OF_TYPE, of_cluster

TAG = "jobcluster"
ANY = ".*"
"""What "All" stands for: it matches where there is no such label."""


def address(name: str, variables: str = "") -> str:
    """Of another dashboard, with the chosen data source, cluster and time. variables: further ones, each with & before it."""
    return f"/d/jobcluster-{name}?${{datasource:queryparam}}&${{cluster:queryparam}}&${{__url_time_range}}{variables}"


TO_TYPE = ("Look at this job type", address("job-type", "&var-job_type=${__data.fields.job_type}"))
TO_NODE = ("Look at this node", address("nodes", "&var-node=${__data.fields.instance}"))


def on_prometheus(
    name: str, title: str, description: str, variables: Sequence[Builder[VariableModel]] = ()
) -> Dashboard:
    """A dashboard without panels. variables: beside data source and cluster."""
    source = DatasourceVariable("datasource").label("Data source").type("prometheus")
    cluster = choice("cluster", "Cluster", "label_values(cluster_build_info, cluster)")
    return _dashboard(name, title, description, [source, cluster, *variables], _marks())


def on_postgres(name: str, title: str, description: str, variables: Sequence[Builder[VariableModel]]) -> Dashboard:
    """The same for a data source that is the database itself."""
    source = DatasourceVariable("postgres").label("Data source").type("grafana-postgresql-datasource")
    starts = (
        "SELECT started_at AS time, 'node started' AS title, hostname || ' ' || version AS text"
        " FROM cluster.nodes WHERE $__timeFilter(started_at)"
    )
    query = {"refId": "Anno", "format": "table", "rawQuery": True, "editorMode": "code", "rawSql": starts}
    marks = [_Mark("Node starts", POSTGRES, "blue", {"target": query}), _deploys()]
    return _dashboard(name, title, description, [source, *variables], marks)


def _dashboard(
    name: str,
    title: str,
    description: str,
    variables: Sequence[Builder[VariableModel]],
    marks: Sequence[Builder[AnnotationQuery]],
) -> Dashboard:
    dashboard = (
        Dashboard(f"Job cluster / {title}")
        .uid(f"jobcluster-{name}")
        .description(description)
        .tags([TAG])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .variables(list(variables))
        .annotations(list(marks))
    )
    others = DashboardLink("Job cluster").type(DashboardLinkType.DASHBOARDS).tags([TAG])
    return dashboard.link(others.include_vars(True).keep_time(True).as_dropdown(False))


def fill(dashboard: Dashboard, *parts: Builder[Panel] | Row) -> model.Dashboard:
    """With these headings and panels, numbered, from left to right and from top to bottom."""
    for part in parts:
        dashboard = dashboard.with_row(part) if isinstance(part, Row) else dashboard.with_panel(part)
    built = dashboard.build()
    for number, panel in enumerate(built.panels or [], 1):
        panel.id_val = number
    return built


# --- variables ---


def choice(name: str, label: str, query: str, source: DataSourceRef = PROMETHEUS) -> QueryVariable:
    """One, some, or all of the values of a label."""
    return (
        _listed(name, label, query, source)
        .multi(True)
        .include_all(True)
        .all_value(ANY)
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def single(name: str, label: str, query: str) -> QueryVariable:
    """One row of an SQL query with __value and __text."""
    return _listed(name, label, query, POSTGRES).multi(False)


def _listed(name: str, label: str, query: str, source: DataSourceRef) -> QueryVariable:
    text: dict[str, object] = {"query": query, "refId": "StandardVariableQuery"}
    variable = QueryVariable(name).label(label).datasource(source).query(query if source is POSTGRES else text)
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)


JOB_TYPES = choice("job_type", "Job type", f"label_values(cluster_jobs_count_limit{{{OF_CLUSTER}}}, job_type)")
QUEUES = choice("queue", "Queue", f"label_values(cluster_jobs{{{OF_CLUSTER}, {OF_TYPE}}}, queue)")
NODES = choice("node", "Node", f"label_values(cluster_build_info{{{OF_CLUSTER}}}, instance)")


# --- marks ---


class _Mark(Builder[AnnotationQuery]):
    """more: what Grafana's data sources read beside what the SDK knows."""

    def __init__(self, name: str, source: DataSourceRef, color: str, more: dict[str, Any]) -> None:  # Any: JSON
        self._query = _Annotation(name=name, datasource=source, icon_color=color, enable=True)
        self._query.more = more

    def build(self) -> AnnotationQuery:
        return self._query


class _Annotation(AnnotationQuery):
    more: dict[str, Any]  # Any: JSON

    def to_json(self) -> dict[str, object]:
        return super().to_json() | self.more


def _marks() -> list[Builder[AnnotationQuery]]:
    build = of_cluster("cluster_build_info")
    versions = f"count by (version) ({build}) unless count by (version) ({build} offset 10m)"
    starts = f"{of_cluster('process_start_time_seconds')} * 1000 and on (job, instance) {build}"
    alerts = of_cluster("ALERTS", 'alertname=~"Cluster.+"', 'alertstate="firing"')
    return [
        _mark("Node starts", "blue", starts, "node started", "{{instance}}", useValueForTime=True),
        _mark("New versions", "purple", versions, "new version", "{{version}}"),
        _mark("Alerts", "red", f"max by (alertname, job_type) ({alerts})", "{{alertname}}", "{{job_type}}"),
        _deploys(),
    ]


def _mark(name: str, color: str, query: str, title: str, text: str, **more: object) -> Builder[AnnotationQuery]:
    return _Mark(
        name, PROMETHEUS, color, {"expr": query, "step": "60s", "titleFormat": title, "textFormat": text, **more}
    )


def _deploys() -> Builder[AnnotationQuery]:
    """That somebody has written with Grafana's API, tagged `jobcluster-deploy`."""
    target = AnnotationTarget().type("tags").tags(["jobcluster-deploy"]).limit(100).match_any(False)
    source = DataSourceRef(type_val="grafana", uid="-- Grafana --")
    return AnnotationBuilder().name("Deploys").datasource(source).enable(True).icon_color("green").target(target)
