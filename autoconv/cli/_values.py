"""Values of options: durations and sizes as people write them."""

from __future__ import annotations

from typing import Any

import click


class Duration(click.ParamType[float]):
    """Seconds, from text such as `90`, `30m`, `1.5h` or `180d`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        if isinstance(value, float):
            return value
        from autoconv.errors import SettingsError
        from autoconv.settings import parse_seconds

        try:
            return parse_seconds(value)
        except SettingsError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[int]):
    """Bytes, from text such as `100MB`, `1GiB` or `5e8`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes."""
        if isinstance(value, int):
            return value
        from autoconv.errors import SettingsError
        from autoconv.settings import parse_bytes

        try:
            found = parse_bytes(value)
        except SettingsError:
            found = None
        if found is None:
            self.fail(f"{value!r} is no size such as 100MB or 1GB", param, ctx)
        return found
