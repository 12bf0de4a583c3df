"""The report's page in a real browser: it draws, narrows and explains, asks no network, and obeys no text."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import browser as browsers
import pytest
from click.testing import CliRunner
from models import lenient
from pages import Seen, watched

from autoconv import settings
from autoconv.cli import main
from autoconv.environment import Environment
from autoconv.problem import Kind, Problem
from autoconv.record import Record, Status
from autoconv.report.report import Report, write
from autoconv.store import Selection, open_store, shipped
from autoconv.sweep import packaged_workloads, read_workload

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><b>bold</b>"
GPU = Environment(
    {"backend": "cuda", "device": f"GPU {HOSTILE}", "architecture": "sm_90", "mlx": "1.2.3"},
    {"os": HOSTILE, "driver": HOSTILE},
)
LAYERS = read_workload(packaged_workloads()["svd_unet"])
AWKWARD = Problem.parse(
    (2, 6, 7, 8, 4), (6, 3, 2, 1, 2), padding=([1, 0, 2], [0, 1, 1]), stride=(1, 2, 1), dilation=(2, 1, 1), groups=2
)
GRADIENT = Problem.parse((1, 4, 6, 6, 4), (8, 3, 3, 3, 4), dtype="float16", padding=1, kind=Kind.WEIGHT_GRADIENT)
FLIPPED = Problem.parse((1, 4, 6, 6, 4), (8, 1, 3, 3, 4), dtype="bfloat16", flip=True, input_dilation=(1, 2, 2))
LINK = "<a href='https://example.invalid/'>an algorithm</a>"
MINE = f"mine.py {LINK}"
TIMES = "\N{MULTIPLICATION SIGN}"
UNTIMED = Problem.parse((1, 4, 6, 6, 4), (8, 2, 3, 3, 4))
PLOTS = ("gains", "map", "speedups", "accuracy", "memory", "regret", "curves", "calibration", "failures")


def rows(problem: Problem, best: str, us: float, **fields: Any) -> list[Record]:
    made = {"run": "r", "created": 86400.0, "library": f"0.1.0 {HOSTILE}", **fields}
    algorithm, _, parameters = best.partition("(")
    best_one = Record(
        problem.key, GPU.id, algorithm, 1, parameters.rstrip(")"), Status.OK, (us,) * 6, 2e-7, 0, 2 * 10**6, **made
    )
    return [
        Record(problem.key, GPU.id, "native", 1, "", Status.OK, (1000.0,) * 6, 1e-7, 0, 10**6, **made),
        best_one,
        Record(problem.key, GPU.id, "im2col", 1, "axes=dhw", Status.FAILED, detail=HOSTILE, **made),
    ]


@pytest.fixture(scope="module")
def report(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report of 160 problems with a model, and of a few on a device with a hostile name, from a file with one."""
    folder = tmp_path_factory.mktemp("report")
    hostile = folder / "<b onclick='window.hacked = 3'>bold<script>.db"
    with closing(open_store(hostile)) as store:
        store.add_environment(GPU.id, dict(GPU.identity), dict(GPU.circumstances))
        store.add(AWKWARD, rows(AWKWARD, "depth_concat(edges=split)", 500.0))
        store.add(GRADIENT, rows(GRADIENT, "wgrad_convolution", 250.0))
        store.add(FLIPPED, rows(FLIPPED, "kd_decomposition(sum=float32)", 4000.0))
        unknown = Record(UNTIMED.key, GPU.id, LINK, 1, "", Status.FAILED, detail=HOSTILE, run="r", created=86400.0)
        store.add(UNTIMED, [unknown])
        store.name_network(MINE, {AWKWARD: 3, FLIPPED: 1})
        for layer, us in zip(LAYERS[:3], (500.0, 800.0, 990.0), strict=True):
            store.add(layer.problem, rows(layer.problem, "depth_concat(edges=split)", us))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "shipped_models", lambda _backend: [model_folder / "cpu.npz"])
        lenient(patch)
        return write(
            folder / "report.html",
            settings.from_environment({}),
            Selection(),
            None,
            [model_folder / "some.db", hostile],
        )


@pytest.fixture(scope="module")
def opened(browser: Browser, report: Report) -> Iterator[Seen]:
    with closing(browsers.new_page(browser)) as page:
        yield watched(page, report.file)


@pytest.fixture
def seen(opened: Seen) -> Seen:
    """The page, opened once and as it was then."""
    opened.page.keyboard.press("Escape")
    opened.page.mouse.move(0, 0)
    opened.page.evaluate("document.activeElement?.blur(); document.getElementById('reset').click()")
    opened.drawn()
    return opened


def test_every_plot_is_drawn_without_an_error_or_a_request(seen: Seen, report: Report) -> None:
    for plot in PLOTS:
        seen.bring(plot)
        assert seen.page.get_attribute(f"#{plot}-plot", "data-drawn") == "plot", plot
        assert seen.page.locator(f"#{plot}-plot svg.main-svg").count(), plot
        assert seen.points(plot) > 0, plot
    assert seen.count() == report.problems
    assert seen.errors == []
    assert seen.requests == [report.file.as_uri()]


def test_the_page_may_ask_no_network(browser: Browser, tmp_path: Path) -> None:
    write(tmp_path / "empty.html", settings.current(), Selection(), None)
    page = browsers.show(browsers.new_page(browser), tmp_path / "empty.html")
    blocked = page.evaluate(
        """async () => {
            const blocked = [];
            addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
            await fetch("https://example.invalid/").catch(() => {});
            const image = new Image();
            await new Promise((resolve) => { image.onerror = resolve; image.src = "https://example.invalid/x.png"; });
            return blocked;
        }"""
    )
    page.close()
    assert sorted(blocked) == ["connect-src", "img-src"]


def test_texts_of_a_database_stay_text(seen: Seen) -> None:
    page = seen.page
    for text in ("#device", "#filters", "#sources"):
        assert HOSTILE in (page.text_content(text) or ""), text
    assert HOSTILE in page.title()
    assert "<b onclick='window.hacked = 3'>bold<script>.db" in (page.text_content("#sources") or "")
    seen.choose("environment", "1")
    page.locator("#reasons button").first.click()
    assert HOSTILE in (page.text_content("#candidates") or "")
    assert page.locator("main b:not(.reasons b), main img, #explain b, #explain img").count() == 0
    assert page.evaluate("window.hacked") is None
    assert seen.errors == []


def test_what_plotly_draws_of_them_is_text_as_well(seen: Seen) -> None:
    """Plotly reads tags in its labels; a point's own text is not drawn by it, but set as text beside the pointer."""
    seen.choose("environment", "1")
    assert re.search("native|depth_concat|kd_decomposition|wgrad_convolution", hover(seen, "accuracy"))
    seen.bring("failures")
    assert LINK in (seen.page.text_content("#failures-plot") or "")
    assert seen.page.locator(".plot a, .plot img, .plot b").count() == 0


def test_gains_are_those_that_python_finds(seen: Seen, report: Report) -> None:
    shown = seen.page.evaluate("document.getElementById('gains-plot').data[0].text")
    expected = [found["weighted"] for found in report.gains.values() if found["weighted"] is not None]
    assert sorted(shown) == sorted(f"{gain:.2f}{TIMES}" for gain in expected)


@pytest.mark.parametrize(
    ("name", "value", "column"),
    [("dtype", "float16", "dtype"), ("kind", "weight_gradient", "what"), ("winner", "native", "winner")],
)
def test_a_filter_narrows_table_and_plots(seen: Seen, name: str, value: str, column: str) -> None:
    before, points = seen.count(), seen.points("accuracy")
    seen.choose(name, value)
    assert 0 < seen.count() < before
    assert 0 < seen.points("accuracy") < points
    texts = seen.table(column)
    assert len(texts) == min(seen.count(), len(texts))
    assert all(value.replace("_", " ") in text for text in texts)
    seen.page.click("#reset")
    seen.drawn()
    assert seen.count() == before


def test_a_network_s_filter_leaves_its_layers(seen: Seen) -> None:
    seen.choose("network", LAYERS[0].network)
    assert seen.count() >= 3
    assert all(LAYERS[0].network in text for text in seen.table("network"))
    assert seen.points("gains") == 1


def test_an_algorithm_that_was_tried_leaves_its_results_alone(seen: Seen) -> None:
    seen.choose("algorithm", "wgrad_convolution")
    assert seen.count() == 1
    seen.choose("algorithm", "im2col")
    seen.bring("failures")
    names = seen.page.evaluate("document.getElementById('failures-plot').data.length")
    assert seen.count() > 1
    assert names == 1


def test_a_range_of_speed_ups_leaves_what_is_in_it(seen: Seen) -> None:
    seen.type("least", "1.9")
    seen.type("most", "2.1")
    speeds = [float(text.removesuffix(TIMES)) for text in seen.table("speed")]
    assert speeds
    assert all(1.9 <= speed <= 2.1 for speed in speeds)
    assert len(speeds) == seen.count()


def test_the_search_finds_shapes_devices_and_winners(seen: Seen) -> None:
    seen.type("search", "x2,6,7,8,4 gpu")
    assert seen.count() == 1
    seen.type("search", "nothing has this name")
    assert seen.count() == 0
    seen.bring("map")
    assert seen.page.get_attribute("#map-plot", "data-drawn") == "none"
    assert "Nothing passes" in seen.page.inner_text("#map-plot")


def test_a_bar_selects_its_network(seen: Seen) -> None:
    bars = seen.page.locator("#gains-plot .bars .point path")
    seen.bring("gains")
    box = bars.first.bounding_box()
    assert box is not None
    seen.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    seen.page.wait_for_function("document.querySelector('#filters [name=network]').value !== ''")


def place_of_a_point(seen: Seen, plot: str) -> tuple[float, float]:
    """Where a plot's last point is on the screen: nothing is drawn over that."""
    seen.bring(plot)
    x, y = seen.page.evaluate(
        f"""() => {{
            const plot = document.getElementById("{plot}-plot");
            const {{ xaxis, yaxis }} = plot._fullLayout;
            const trace = plot.data.at(-1);
            const box = plot.getBoundingClientRect();
            const [x, y] = [xaxis.d2p(trace.x.at(-1)), yaxis.d2p(trace.y.at(-1))];
            return [box.x + xaxis._offset + x, box.y + yaxis._offset + y];
        }}"""
    )
    return x, y


def hover(seen: Seen, plot: str) -> str:
    """What is told of that point."""
    x, y = place_of_a_point(seen, plot)
    seen.page.mouse.move(x, y)
    seen.page.wait_for_timeout(200)  # Plotly lets some time pass between what it tells
    seen.page.mouse.move(x + 0.5, y)
    seen.page.wait_for_selector("#tip:not([hidden])")
    return seen.page.inner_text("#tip")


@pytest.mark.parametrize("plot", ["map", "accuracy", "memory"])
def test_a_click_on_a_point_explains_it(seen: Seen, plot: str) -> None:
    told = hover(seen, plot).splitlines()
    seen.page.mouse.click(*place_of_a_point(seen, plot))
    seen.page.wait_for_selector("#explain:not([hidden])")
    assert seen.page.inner_text("#explain-title") in told
    assert seen.page.evaluate("location.hash").startswith("#explain=")


def test_a_row_explains_itself_and_the_panel_closes(seen: Seen) -> None:
    seen.choose("environment", "1")
    seen.choose("network", LAYERS[0].network)
    row = seen.page.locator(".rows .row").first
    row.focus()
    seen.page.keyboard.press("Enter")
    panel = seen.page.locator("#explain")
    assert panel.is_visible()
    statuses = seen.page.locator("#candidates tbody tr td:nth-child(2)").all_inner_texts()
    assert sorted(statuses) == ["failed", "ok", "ok"]
    assert seen.page.locator("#candidates tr.chosen").count() == 1
    seen.page.keyboard.press("Escape")
    assert panel.is_hidden()
    assert "explain" not in seen.page.evaluate("location.hash")


def test_the_user_s_own_networks_come_first_and_are_told_from_those_known_by_their_shapes(seen: Seen) -> None:
    first, *rest = seen.page.evaluate("document.getElementById('gains-plot').layout.yaxis.ticktext")
    assert first.startswith("mine.py")
    assert first.strip().endswith("(yours)")
    assert not any("(yours)" in text for text in rest)
    tiles = seen.page.inner_text("#tiles")
    # Calls: three from 1000 to 500 us; of the other native stays, as the other way took 4000 us.
    assert f"1.60{TIMES}" in tiles
    assert MINE in tiles
    seen.choose("network", MINE)
    assert seen.count() == 2


@pytest.mark.parametrize("problem", [AWKWARD, GRADIENT, FLIPPED])
def test_an_address_explains_its_problem_and_the_command_is_the_same_one(
    seen: Seen, report: Report, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(report.file.parent)
    seen.page.evaluate(f"location.hash = {json.dumps(address_of(problem))}")
    seen.page.wait_for_selector("#explain:not([hidden])")
    assert str(problem.input_shape[0]) in seen.page.inner_text("#explain-title")
    command = seen.page.inner_text("#command")
    arguments = shlex.split(command)
    assert arguments[:2] == ["autoconv", "explain"]
    done = CliRunner().invoke(main, [*arguments[1:], "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["problem"] == problem.key
    assert Path(arguments[arguments.index("--database") + 1]).exists()


def address_of(problem: Problem) -> str:
    return f"#explain={GPU.id}/{quote(problem.key, safe='')}"


def test_a_page_opens_at_its_address(browser: Browser, report: Report) -> None:
    with closing(browsers.new_page(browser)) as page:
        watched(page, report.file, address_of(AWKWARD))
        assert page.is_visible("#explain")
        assert page.inner_text("#explain-title").startswith("2x6x7x8x4 * 6x3x2x1x2".replace("x", TIMES))


def test_an_address_of_nothing_explains_nothing(seen: Seen) -> None:
    seen.page.evaluate("location.hash = '#explain=none/%E0%A4%A'")
    seen.page.wait_for_timeout(100)
    assert seen.page.is_hidden("#explain")
    assert seen.errors == []


def brightness(page: Page, element: str = "document.body") -> int:
    """Of an element's background, from 0 to 765."""
    told = page.evaluate(f"getComputedStyle({element}).backgroundColor")
    return sum(map(int, re.findall(r"\d+", told)[:3]))


def test_the_look_follows_the_system_and_the_switch(browser: Browser, report: Report) -> None:
    with closing(browsers.new_page(browser, dark=True)) as page:
        seen = watched(page, report.file)
        ink = "document.getElementById('gains-plot').layout.font.color"
        assert brightness(page) < 150
        dark_ink = page.evaluate(ink)
        page.click("#look")
        seen.drawn()
        page.wait_for_function(f"{ink} !== {json.dumps(dark_ink)}")
        assert brightness(page) > 600
        page.click("#look")
        page.wait_for_function(f"{ink} === {json.dumps(dark_ink)}")
        assert brightness(page) < 150


def test_only_rows_in_sight_are_elements_and_the_last_can_be_reached(seen: Seen, report: Report) -> None:
    page = seen.page
    assert page.locator(".rows .row").count() < 60 < report.problems
    page.evaluate("document.querySelector('.rows').scrollTop = 1e9")
    page.wait_for_selector(f".rows .row[aria-rowindex='{report.problems}']")


def test_a_heading_sorts_up_and_down(seen: Seen) -> None:
    units = {"kFLOP": 1e-6, "MFLOP": 1e-3, "GFLOP": 1.0, "TFLOP": 1e3}

    def gflops() -> list[float]:
        return [float(number) * units[unit] for number, unit in map(str.split, seen.table("gflop"))]

    seen.page.locator(".heads [data-name=gflop] button").dispatch_event("click")
    assert gflops() == sorted(gflops(), reverse=True)
    most = gflops()[0]
    seen.page.locator(".heads [data-name=gflop] button").dispatch_event("click")
    assert gflops() == sorted(gflops())
    assert gflops()[0] < most


def test_a_phone_s_page_is_no_wider_than_the_phone(browser: Browser, report: Report) -> None:
    with closing(browsers.new_page(browser, width=390, height=844)) as page:
        seen = watched(page, report.file)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert not page.evaluate("document.getElementById('filters-box').open")
        page.locator(".rows .row").first.click()
        assert page.is_visible("#explain")
        assert page.evaluate("document.getElementById('explain').scrollWidth") <= 390
        assert seen.errors == []


def test_nothing_measured_is_said_with_what_to_do(browser: Browser, tmp_path: Path) -> None:
    write(tmp_path / "empty.html", settings.current(), Selection(), None)
    with closing(browsers.new_page(browser)) as page:
        seen = watched(page, tmp_path / "empty.html")
        assert "Nothing was measured yet" in page.inner_text("#empty")
        assert "autoconv sweep" in page.inner_text("#empty")
        assert page.is_hidden("#main")
        assert seen.errors == []
