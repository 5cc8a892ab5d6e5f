"""`python -m grafana.build`: writes what is generated, dashboards as JSON and the rules as an object of Prometheus Operator.

A test compares the files with what this would write.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana import job_type, nodes, overview, postgres, schedules, sql

FOLDER = Path(__file__).parent
RULES = FOLDER / "prometheus" / "rules.yaml"
PROMETHEUS_RULE = FOLDER.parent / "deploy" / "k8s" / "components" / "prometheus-rule" / "rules.yaml"
DASHBOARDS = (overview, job_type, nodes, schedules, postgres, sql)
HEAD = """\
# Written by `python -m grafana.build` from grafana/prometheus/rules.yaml: change that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: jobcluster
  labels:
    app.kubernetes.io/name: jobcluster
spec:
"""


def main() -> None:
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")


def files() -> Mapping[Path, str]:
    """Text of each file that is generated."""
    dashboards = {
        FOLDER / "dashboards" / f"{found['uid']}.json": json.dumps(found, indent=2, ensure_ascii=False) + "\n"
        for found in (as_json(module.dashboard()) for module in DASHBOARDS)
    }
    return {**dashboards, PROMETHEUS_RULE: HEAD + _indented_groups(RULES.read_text(encoding="utf-8"))}


def as_json(dashboard: object) -> dict[str, Any]:  # Any: JSON
    """Without what the SDK adds and Grafana's schema refuses: null in some places, `auto…` of variables that are no intervals."""
    parsed: dict[str, Any] = _without_nulls(json.loads(json.dumps(dashboard, cls=JSONEncoder)))
    for variable in parsed["templating"]["list"]:
        for name in ("auto", "auto_min", "auto_count"):
            variable.pop(name, None)
    return parsed


def _without_nulls(value: Any) -> Any:  # Any: JSON
    """The lowest step of thresholds keeps its null: there it says "from below"."""
    if isinstance(value, list):
        return [_without_nulls(part) for part in value]
    if isinstance(value, dict):
        is_step = value.keys() == {"value", "color"}
        return {key: _without_nulls(part) for key, part in value.items() if part is not None or is_step}
    return value


def _indented_groups(rules: str) -> str:
    """The rules are the object's spec, word for word, without the comment at their head."""
    groups = rules[rules.index("groups:") :]
    return "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(keepends=True))


if __name__ == "__main__":
    main()
