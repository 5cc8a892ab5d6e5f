"""All settings as an environment file: for `.env`, systemd's EnvironmentFile and containers. Values are not quoted."""

from __future__ import annotations

import textwrap


def environment_file() -> str:
    """Every setting, commented out with its default. What depends on the machine, or has no default, is left empty."""
    from cluster.settings import Settings

    parts = []
    fields = Settings.model_fields.values()
    for field, (variable, value, _, meaning) in zip(fields, Settings().describe(), strict=True):
        parts.append(textwrap.fill(meaning, 88, initial_indent="# ", subsequent_indent="# "))
        parts.append(f"# {variable}={'' if field.default_factory else value}\n")
    return "\n".join(parts)
