"""A copy to look through, by Datasette for one: winners that are kept rather than found anew, views in order.

To find the winners of 4,500 problems anew takes half a second, nearly all of it the medians of samples in JSON.
Datasette does so for the page, for each facet, which may take 0.2 s, and for each column that could be one. So such a
copy keeps the rows of `winners` in a table of its own, and the view reads that. They are those of the moment of the
copy: what is added to it later is not among them, and another export of it makes them anew.
"""

from __future__ import annotations

import sqlite3

from autoconv.warn import warn_now

KEPT = "winners_kept"
"""The table of the winners."""

ENVIRONMENTS = "measured_environments"
"""The view of the environments: `environments` is the table of their JSON."""

# All that an identity and circumstances may hold, and what was seen of it. json_each: see `migrations`.
_ENVIRONMENTS = f"""
    CREATE VIEW {ENVIRONMENTS} AS
    SELECT
        key AS environment,
        (SELECT value FROM json_each(identity) WHERE key = 'backend') AS backend,
        (SELECT value FROM json_each(identity) WHERE key = 'device') AS device,
        (SELECT value FROM json_each(identity) WHERE key = 'architecture') AS architecture,
        (SELECT value FROM json_each(identity) WHERE key = 'gpu_cores') AS gpu_cores,
        (SELECT round(value / 1e9, 1) FROM json_each(identity) WHERE key = 'working_set') AS working_set_gb,
        (SELECT round(value / 1e9, 1) FROM json_each(circumstances) WHERE key = 'memory_bytes') AS memory_gb,
        (SELECT value FROM json_each(identity) WHERE key = 'mlx') AS mlx,
        (
            SELECT group_concat(key || '=' || value, ' ') FROM json_each(identity) WHERE substr(key, 1, 4) = 'MLX_'
        ) AS variables,
        (SELECT value FROM json_each(identity) WHERE key = 'macos') AS macos,
        (SELECT value FROM json_each(circumstances) WHERE key = 'os') AS os,
        (SELECT value FROM json_each(circumstances) WHERE key = 'driver') AS driver,
        (SELECT value FROM json_each(circumstances) WHERE key = 'cudnn') AS cudnn,
        (SELECT value FROM json_each(identity) WHERE key = 'cpu') AS cpu,
        (SELECT value FROM json_each(identity) WHERE key = 'blas') AS blas,
        (SELECT value FROM json_each(identity) WHERE key = 'blas_threads') AS blas_threads,
        (SELECT value FROM json_each(circumstances) WHERE key = 'python') AS python,
        (SELECT value FROM json_each(circumstances) WHERE key = 'power') AS power,
        (SELECT count(DISTINCT problem) FROM runs WHERE runs.environment = environments.id) AS problems,
        (SELECT date(min(created), 'unixepoch') FROM runs WHERE runs.environment = environments.id) AS first,
        (SELECT date(max(created), 'unixepoch') FROM runs WHERE runs.environment = environments.id) AS last
    FROM environments
    WHERE identity IS NOT NULL
"""

ORDER = ("winners", "gains", "failures", "devices", ENVIRONMENTS, "results", "times")
"""The views, in the order in which Datasette lists them: that in which they were made."""


def arrange(copy: sqlite3.Connection) -> None:
    """Keep the winners of a copy of the newest schema, and make its views anew, in order.

    What its author may have put in place of a view is not asked anything. Where a row is damaged, so that no winners
    are found, the view stays as it is.
    """
    undo(copy, always=True)
    made = _views() | {ENVIRONMENTS: _ENVIRONMENTS}
    try:
        copy.execute(f"CREATE TABLE {KEPT} AS SELECT * FROM winners")
    except sqlite3.OperationalError as error:
        warn_now(f"a row is damaged ({error}): the view winners will not answer")
    else:
        made["winners"] = f"CREATE VIEW winners AS SELECT * FROM {KEPT}"
    _drop(copy, *ORDER)
    for name in ORDER:
        copy.execute(made[name])


def undo(copy: sqlite3.Connection, *, always: bool = False) -> None:
    """Bring the views of an arranged copy back to those of its schema; any other copy's only if that is asked."""
    if always or copy.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (KEPT,)).fetchone():
        _drop(copy, KEPT, *ORDER)
        for statement in _views().values():
            copy.execute(statement)


def _views() -> dict[str, str]:
    from autoconv.store.migrations import VIEWS  # which imports sqlite-utils

    return VIEWS


def _drop(copy: sqlite3.Connection, *names: str) -> None:
    """Drop what has one of these names, be it a table or a view."""
    asked = "SELECT type FROM sqlite_master WHERE lower(name) = ? AND type IN ('table', 'view')"
    for name in names:
        for (type_,) in copy.execute(asked, (name,)).fetchall():
            copy.execute(f"DROP {type_} {name}")
