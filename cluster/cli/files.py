"""Files that commands write into a project: never over one that is there."""

from __future__ import annotations

from pathlib import Path

import typer

from cluster.errors import ClusterError


def write_new(path: str, text: str) -> None:
    """Writes the file and says so, or says that it was there and is left alone. path: below the working directory."""
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as writing:
            writing.write(text)
    except FileExistsError:
        if not file.exists():  # its folder is a file
            raise ClusterError(f"can't write {path}: {file.parent} is not a folder") from None
        typer.echo(f"{path}: exists, left alone")
    except OSError as error:
        raise ClusterError(f"can't write {path}: {error.strerror}") from error
    else:
        typer.echo(f"{path}: written")
