"""Settings: what each may be, where it comes from, and how far a change reaches."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoconv import settings
from autoconv.errors import AutoconvError, SettingsError
from autoconv.settings import (
    VARIABLES,
    Policy,
    Settings,
    Stall,
    as_dict,
    configure,
    current,
    from_environment,
    parse_bytes,
    using,
    with_changes,
)


@pytest.fixture(autouse=True)
def defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts from the defaults, and what it configures is undone."""
    monkeypatch.setattr(settings, "_configured", from_environment({}))


NAMES = list(Settings.__dataclass_fields__)


# Values

GOOD: list[tuple[str, object, object]] = [
    *(("policy", policy, Policy(policy)) for policy in ("auto", "measure", "predict", "record", "off")),
    ("policy", Policy.OFF, Policy.OFF),
    ("accuracy", "native", "native"),
    ("accuracy", "strict", "strict"),
    ("accuracy", "1e-3", 1e-3),
    ("accuracy", 1e-3, 1e-3),
    ("accuracy", 1, 1.0),
    ("memory_limit", None, None),
    ("memory_limit", "default", None),
    ("memory_limit", 10**9, 10**9),
    ("memory_limit", "8GB", 8 * 10**9),
    ("memory_limit", " 1.5 gib ", 3 * 2**29),
    ("memory_limit", "8e9", 8 * 10**9),
    ("memory_limit", "512MiB", 2**29),
    ("memory_limit", "12", 12),
    ("budget_ms", 250, 250.0),
    ("budget_ms", "1e3", 1000.0),
    ("stall", "2+5%", Stall(2.0, 0.05)),
    ("stall", "0", Stall(0.0, 0.0)),
    ("stall", "1.5s + 2.5 %", Stall(1.5, 0.025)),
    ("stall", 3, Stall(3.0, 0.0)),
    ("stall", 0.00001, Stall(0.00001, 0.0)),
    ("stall", Stall(7.0, 0.5), Stall(7.0, 0.5)),
    ("database", "a/b.db", Path("a/b.db")),
    ("database", Path("a/b.db"), Path("a/b.db")),
    ("database", "~/b.db", Path.home() / "b.db"),
    ("database", "", None),
    ("database", None, None),
    ("readonly", True, True),
]

BAD: list[tuple[str, object]] = [
    *(("policy", value) for value in ("fast", "", "AUTO ", None, 3)),
    *(("accuracy", value) for value in ("good", "", 0, -1e-3, True, None, float("nan"), "inf", b"native", [1e-3])),
    *(("memory_limit", value) for value in ("lots", "", "GB", "8XB", "1.2.3", 0, "0GB", -1, True, 1.5j, "-8GB")),
    *(("memory_limit", value) for value in ("0.1", "1e400", float("inf"), float("nan"))),
    *(("budget_ms", value) for value in (0, -5, "soon", None, True, float("inf"), float("nan"))),
    *(("stall", value) for value in ("soon", "", -1, "2+", "5%", "2+5", "1.2.3", None, True, "2+5%+1")),
    *(("database", value) for value in (5, b"file.db", ["file.db"], "~no-such-user-here/autoconv.db")),
    *(("readonly", value) for value in (1, 0, "yes", None)),
]


@pytest.mark.parametrize(("name", "value", "meant"), GOOD, ids=repr)
def test_a_value_is_understood(name: str, value: object, meant: object) -> None:
    configure(**{name: value})  # type: ignore[arg-type]
    found = getattr(current(), name)
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(("name", "value"), BAD, ids=repr)
def test_a_value_that_cannot_be_is_refused_by_name_and_changes_nothing(name: str, value: object) -> None:
    configure(accuracy="strict")
    before = current()
    changes: Any = {"budget_ms": 7} | {name: value}
    for change in (lambda: configure(**changes), lambda: using(**changes).__enter__()):
        with pytest.raises(SettingsError, match=name) as caught:
            change()
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, AutoconvError)
        assert current() is before


def test_a_setting_that_there_is_not_is_refused() -> None:
    before = current()
    with pytest.raises(SettingsError, match="there is no setting 'polcy'; there are policy, "):
        configure(polcy="auto", budget_ms=7)  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match="token"):
        configure(token=3)  # type: ignore[call-arg]
    assert current() is before


UNITS = {"": 1, "B": 1}
for power, letter in enumerate("KMGT", 1):
    UNITS |= {letter: 1000**power, f"{letter}B": 1000**power, f"{letter}iB": 1024**power}


@given(
    st.integers(1, 10**6),
    st.sampled_from(sorted(UNITS)),
    st.sampled_from([str.upper, str.lower, str.title]),
    st.sampled_from(["", " ", "  "]),
)
def test_bytes_are_read_in_any_unit_and_case(count: int, unit: str, case: Any, space: str) -> None:
    assert parse_bytes(f"{space}{count}{space}{case(unit)}{space}") == count * UNITS[unit]


@given(st.integers(1, 2**53))
def test_bytes_as_a_number_stay_what_they_are(count: int) -> None:
    assert parse_bytes(count) == count == parse_bytes(str(count))


@given(st.from_regex(r"\A\s*[0-9.]{1,5}(e[+-]?[0-9]{1,3})?\s*([KMGT]?(i?B)?|[a-z]{1,2})\s*\Z"))
def test_whatever_is_read_as_bytes_is_over_none_or_refused(text: str) -> None:
    try:
        found = parse_bytes(text)
    except SettingsError:
        return
    assert found is not None
    assert found > 0


# One object for equal settings


def test_equal_settings_are_one_object() -> None:
    base = from_environment({})
    first = with_changes(base, {"accuracy": "1e-3", "stall": "2+5%"})
    second = with_changes(base, {"accuracy": 0.001})
    assert first is second
    assert with_changes(first, {"accuracy": "native"}) is base
    assert with_changes(base, {}) is base


def test_different_settings_are_different_objects() -> None:
    base = from_environment({})
    changed = [with_changes(base, {name: meant}) for name, _, meant in GOOD if meant != getattr(base, name)]
    everything = {base, *changed}
    assert len(everything) > 10
    assert len({repr(s) for s in everything}) == len(everything)


def test_settings_made_in_many_threads_at_once_are_one_object() -> None:
    found: list[Settings] = []
    gate = threading.Barrier(8)

    def make() -> None:
        gate.wait()
        found.append(with_changes(from_environment({}), {"budget_ms": 123.456}))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(s) for s in found}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"policy": "off", "accuracy": 1e-3, "memory_limit": "8GB", "database": "x.db", "readonly": True},
        {"stall": "0"},
        {"stall": "1.5+10%"},
        {"stall": "3+2.5%"},
    ],
    ids=str,
)
def test_settings_survive_being_written_as_json(changes: dict[str, object]) -> None:
    made = with_changes(from_environment({}), changes)
    written = json.loads(json.dumps(as_dict(made)))
    assert sorted(written) == sorted(NAMES)
    assert with_changes(from_environment({}), written) is made


# Where they come from


def test_every_setting_s_variable_is_read() -> None:
    found = from_environment(
        {
            "AUTOCONV_POLICY": "record",
            "AUTOCONV_ACCURACY": "strict",
            "AUTOCONV_MEMORY_LIMIT": "8GB",
            "AUTOCONV_BUDGET_MS": "100",
            "AUTOCONV_STALL": "1+1%",
            "AUTOCONV_DATABASE": "/x/y.db",
        }
    )
    wanted = Settings(Policy.RECORD, "strict", 8 * 10**9, 100.0, Stall(1.0, 0.01), Path("/x/y.db"))
    assert as_dict(found) == as_dict(wanted)


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_that_is_empty_is_not_set(variable: str) -> None:
    assert from_environment({variable: ""}) is from_environment({})


@pytest.mark.parametrize("variable", sorted(VARIABLES.keys() - {"AUTOCONV_DATABASE"}))
def test_a_variable_that_cannot_be_is_named(variable: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable}: {VARIABLES[variable]} must be .*'nonsense'"):
        from_environment({variable: "nonsense"})


def test_other_variables_are_not_read() -> None:
    assert from_environment({"AUTOCONV_PATCH": "nonsense", "POLICY": "off", "HOME": "x"}) is from_environment({})


def test_using_wins_over_configure_and_the_innermost_over_the_others() -> None:
    configure(policy="record", accuracy="strict", budget_ms=1)
    with using(policy="measure", budget_ms=2) as outer:
        assert current() is outer
        with using(budget_ms=3):
            assert (current().policy, current().accuracy, current().budget_ms) == (Policy.MEASURE, "strict", 3.0)
        assert current() is outer
    assert (current().policy, current().budget_ms) == (Policy.RECORD, 1.0)


def test_using_ends_with_an_error_too() -> None:
    before = current()
    with pytest.raises(KeyError), using(policy="off"):
        raise KeyError
    assert current() is before


def test_using_is_this_thread_s_alone_and_configure_is_everyone_s() -> None:
    seen: list[Policy] = []
    configure(policy="record")
    with using(policy="off"):
        thread = threading.Thread(target=lambda: seen.append(current().policy))
        thread.start()
        thread.join()
    assert seen == [Policy.RECORD]


def test_using_is_this_context_s_alone() -> None:
    other = contextvars.copy_context()
    with contextlib.ExitStack() as kept_open:
        other.run(kept_open.enter_context, using(policy="off"))
        assert other.run(current).policy is Policy.OFF
        assert current().policy is Policy.AUTO
        other.run(kept_open.close)
    assert other.run(current).policy is Policy.AUTO


# What is written about them


def rows_of_the_table() -> Mapping[str, str]:
    """Rows of the module's table by what their first two columns name."""
    found: dict[str, str] = {}
    for line in (settings.__doc__ or "").splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("| ").split("|")]
        if line.startswith("|"):
            found |= {cell: line for cell in cells[:2] if cell and "-" not in cell}
    return found


@pytest.mark.parametrize("variable", [*VARIABLES, "AUTOCONV_LOG"])
def test_every_variable_is_documented_beside_its_setting(variable: str) -> None:
    line = rows_of_the_table()[variable]
    if variable in VARIABLES:
        assert f"`{VARIABLES[variable]}`" in line


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_documented_wherever_it_is_taken(name: str) -> None:
    assert name in rows_of_the_table()
    assert f"{name}: " in inspect.cleandoc(configure.__doc__ or "")
    assert f"{name}: " in inspect.cleandoc(Settings.__doc__ or "")
    assert name in settings.Changes.__annotations__


@pytest.mark.parametrize("policy", Policy)
def test_every_policy_is_documented(policy: Policy) -> None:
    assert f"| `{policy}` |" in inspect.cleandoc(Policy.__doc__ or "")
    assert f'"{policy}"' in (configure.__doc__ or "")
    assert f"`{policy}`" in rows_of_the_table()["AUTOCONV_POLICY"]


# The log


def run_python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


SPEAK = (
    "import logging, autoconv.settings; autoconv.settings.current(); logging.getLogger('autoconv.x').info('hear me')"
)


@pytest.mark.parametrize(("level", "heard"), [("", ""), ("debug", "autoconv.x: hear me\n"), ("WARNING", "")])
def test_the_log_is_quiet_unless_it_is_asked_for(level: str, heard: str) -> None:
    done = run_python(SPEAK, AUTOCONV_LOG=level)
    assert (done.returncode, done.stderr) == (0, heard)


def test_a_level_that_there_is_not_is_named() -> None:
    done = run_python(SPEAK, AUTOCONV_LOG="loud")
    assert done.returncode != 0
    assert "SettingsError: AUTOCONV_LOG: level must be one of" in done.stderr
