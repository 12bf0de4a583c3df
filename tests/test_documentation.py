"""What is written for users: every example runs, every command that is shown can be given, and nothing is left out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import mlx.core as mx
import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import autoconv
from autoconv import settings
from autoconv._backend import mx_conv3d
from autoconv.cli import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])
"""Blocks of Python, and `<!-- invisible-code-block: python` for what a reader need not see; `<!-- skip: next -->`."""


def by_name(page: Path) -> str:
    return page.stem


def text_of(*pages: Path) -> str:
    return "\n".join(page.read_text() for page in pages)


# Examples


@pytest.mark.usefixtures("qualified")
@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_the_examples_of_a_page_run_one_after_another(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mx.random.seed(0)
    try:
        for example in EXAMPLES.parse(page).examples():
            example.evaluate()
        assert mx.conv3d is mx_conv3d, "an example left MLX patched"
    finally:
        autoconv.unpatch()


def test_nearly_every_block_of_python_is_run() -> None:
    """A page of which nothing is run would pass as well."""
    blocks = [(page, page.read_text().count("\n```python\n")) for page in PAGES]
    skipped = sum(text_of(page).count("<!-- skip: next -->") for page in PAGES)
    assert sum(count for _, count in blocks) >= 15
    assert skipped <= 1
    for page, count in blocks:
        parsed = [e for e in EXAMPLES.parse(page).examples() if "source" in str(e.region.lexemes)]
        assert len(parsed) >= count, page


def test_readme_is_one_page() -> None:
    assert len(text_of(README).splitlines()) <= 180
    assert len(text_of(README).split()) <= 1850


def test_every_test_that_a_promise_names_is_there() -> None:
    named = re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", text_of(ROOT / "docs" / "guarantees.md"))
    assert len(named) > 50
    for file, test in named:
        defined = f"\ndef {test}(" if test else "\ndef test_"
        assert defined in text_of(ROOT / "tests" / file), f"{file}::{test}"


# Commands


def lines_of(page: Path) -> Iterator[list[str]]:
    """The words of every `autoconv` command in a page's consoles, without what the shell makes of the rest."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "autoconv" in words and words[:1] != ["pip"]:
                yield words[words.index("autoconv") + 1 :]


COMMANDS = [(page, words) for page in PAGES for words in lines_of(page)]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: getattr(value, "stem", None) or value[0])
def test_every_command_that_is_shown_can_be_given(page: Path, words: list[str]) -> None:
    """It is read as on a command line, down to each option and its value; `test_documented_commands.py` runs it."""
    name, *rest = words
    command = main.commands[name]
    try:
        command.make_context(name, list(rest))
    except click.exceptions.UsageError as error:
        pytest.fail(f"{page.name}: autoconv {' '.join(words)}: {error.format_message()}")


def test_a_command_with_an_option_that_there_is_not_cannot() -> None:
    with pytest.raises(pytest.fail.Exception, match="frobnicate"):
        test_every_command_that_is_shown_can_be_given(README, ["sweep", "--frobnicate"])
    assert len(COMMANDS) > 30


# Completeness


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_is_documented(name: str) -> None:
    assert f"| `autoconv {name}` |" in text_of(ROOT / "docs" / "commands.md")
    assert f"autoconv {name}" in text_of(README)


SCRIPTS = ("AUTOCONV_BACKEND", "AUTOCONV_PYTHON")


@pytest.mark.parametrize("variable", [*settings.VARIABLES, "AUTOCONV_PATCH", "AUTOCONV_LOG", *SCRIPTS])
def test_every_variable_is_documented(variable: str) -> None:
    assert f"`{variable}`" in text_of(ROOT / "docs" / "settings.md")


def test_every_variable_that_is_read_is_one_of_these() -> None:
    source = text_of(*(ROOT / "autoconv").rglob("*.py"), *(p for p in (ROOT / "scripts").iterdir() if p.is_file()))
    read = set(re.findall(r"\bAUTOCONV_[A-Z_]*[A-Z]\b", source))
    assert read == {*settings.VARIABLES, "AUTOCONV_PATCH", "AUTOCONV_LOG", *SCRIPTS}


def test_every_public_name_is_in_the_api() -> None:
    api = text_of(ROOT / "docs" / "api.md")
    errors = {name for name in autoconv.__all__ if name in vars(autoconv.errors)}
    for name in set(autoconv.__all__) - errors - {"__version__"}:
        assert re.search(rf":: autoconv\.{name}$", api, re.MULTILINE), name
    assert ":: autoconv.errors" in api


def test_every_page_is_in_the_index() -> None:
    index = text_of(ROOT / "docs" / "index.md").splitlines()
    assert {page.stem for page in PAGES[1:]} - {"index"} <= set(index)


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text_of(page)):
        found = (page.parent / target).resolve()
        assert found.exists(), target
        if page.parent.name == "docs":
            assert found.is_relative_to(ROOT / "docs"), f"{target} is no page of the site"
