"""Export measurements to one file that others can read."""

from __future__ import annotations

from pathlib import Path

import click

from autoconv.errors import StoreError
from autoconv.store import default_path, export


@click.command(epilog="Example: python scripts/export_db.py --database autoconv.db m3-max.jsonl")
@click.option(
    "--database",
    type=click.Path(path_type=Path),
    default=default_path,
    show_default="the user's own",
    help="The database to read.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.argument("out", type=click.Path(path_type=Path))
def main(database: Path, out: Path, force: bool) -> None:
    """Write all measurements to OUT: a SQLite copy (.db, .sqlite) or JSON lines (.jsonl).

    No host name, path or pid leaves with them.
    """
    try:
        exported = export(database, out, force=force)
    except (StoreError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {exported.records} records of {exported.environments} environments")


if __name__ == "__main__":
    main()
