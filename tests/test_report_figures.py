"""The figures of a report's page: drawn when they are near, and readable for a small network as for a large one."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browser as browsers
import pytest
from models import lenient
from pages import Seen, watched

from autoconv import settings
from autoconv.environment import Environment
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.report.report import Report, write
from autoconv.store import Selection, open_store, shipped

if TYPE_CHECKING:
    from playwright.sync_api import Browser

GPU = Environment({"backend": "cuda", "device": "a GPU", "architecture": "sm_90", "mlx": "1.2.3"}, {})
TIMES = "\N{MULTIPLICATION SIGN}"


def layer(channels: int, depth: int = 4) -> Problem:
    return Problem.parse((1, depth, 8, 8, channels), (8, 3, 3, 3, channels), padding=1)


# Of two problems one lies on the other: channels and frame are the same.
FIRST, MIDDLE, LAST = layer(3), layer(8), layer(8, depth=6)
HALF = Problem.parse((1, 4, 8, 8, 8), (8, 3, 3, 3, 8), padding=1, dtype="float16")
OWN, OTHER = "own.py", "other.py"


def rows(problem: Problem, us: float, *failed: str) -> list[Record]:
    """Native in 1000 us, another way in `us`, and one that failed for every reason."""

    made: dict[str, Any] = {"run": "r", "created": 86400.0, "library": "0.1.0"}
    native = Record(problem.key, GPU.id, "native", 1, "", Status.OK, (1000.0,) * 6, 1e-7, 0, 10**6, **made)
    other = Record(
        problem.key, GPU.id, "depth_concat", 1, "edges=split", Status.OK, (us,) * 6, 2e-7, 0, 2 * 10**6, **made
    )
    bad = (
        Record(problem.key, GPU.id, "depth_winograd", 1, "tile=2", Status.FAILED, detail=why, **made) for why in failed
    )
    return [native, other, *bad]


def written(folder: Path, *measured: tuple[Problem, list[Record]]) -> Report:
    """The report of a database with these problems and two networks that share one."""
    database = folder / "some.db"
    with closing(open_store(database)) as store:
        store.add_environment(GPU.id, dict(GPU.identity), {})
        for problem, records in measured:
            store.add(problem, records)
        store.name_network(OWN, {FIRST: 1, MIDDLE: 1})
        store.name_network(OTHER, {MIDDLE: 1, LAST: 9})
    return write(folder / "report.html", settings.from_environment({}), Selection(), None, [database])


@pytest.fixture(scope="module")
def small(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A small network's report, with a model."""
    why = "ValueError: {} is too many"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "shipped_models", lambda _backend: [model_folder / "cpu.npz"])
        lenient(patch)
        return written(
            tmp_path_factory.mktemp("small"),
            (FIRST, rows(FIRST, 500.0, why.format(3))),
            (MIDDLE, rows(MIDDLE, 800.0, why.format(8))),
            (LAST, rows(LAST, 900.0)),
            (HALF, rows(HALF, 1500.0)),
        )


@pytest.fixture(scope="module")
def modelled(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report on the device of a model."""
    out = tmp_path_factory.mktemp("modelled") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "shipped_models", lambda _backend: [model_folder / "cpu.npz"])
        lenient(patch)
        return write(out, settings.from_environment({}), Selection(), None, [model_folder / "some.db"])


@pytest.fixture(scope="module")
def opened(browser: Browser, small: Report) -> Iterator[Seen]:
    with closing(browsers.new_page(browser)) as page:
        yield watched(page, small.file)


@pytest.fixture
def seen(opened: Seen) -> Seen:
    """The small network's page, opened once and as it was then."""
    opened.page.evaluate("scrollTo(0, 0); document.getElementById('reset').click()")
    opened.drawn()
    return opened


def ticks(seen: Seen, plot: str, axis: str) -> list[str]:
    """What stands at the ticks of a plot's axis."""
    seen.bring(plot)
    return seen.texts(f"#{plot}-plot .{axis}tick text")


def range_of(seen: Seen, plot: str, axis: str) -> tuple[float, float]:
    """What a logarithmic axis spans."""
    low, high = seen.page.evaluate(f"document.getElementById('{plot}-plot')._fullLayout.{axis}axis.range")
    return 10**low, 10**high


def stale(seen: Seen) -> set[str]:
    """Figures that are not drawn, or not as the filter is now."""
    return set(seen.page.locator("figure[data-stale]").evaluate_all("all => all.map(figure => figure.id)"))


def test_a_figure_is_drawn_when_it_comes_near(browser: Browser, small: Report) -> None:
    with closing(browsers.new_page(browser, height=700)) as page:
        seen = watched(page, small.file)
        assert "failures" in stale(seen)
        assert "gains" not in stale(seen)
        assert page.locator("#failures-plot svg").count() == 0
        seen.bring("failures")
        assert page.locator("#failures-plot svg").count()
        page.evaluate("scrollTo(0, 0)")
        seen.choose("dtype", "float16")
        assert "failures" in stale(seen)
        seen.bring("failures")
        assert page.get_attribute("#failures-plot", "data-drawn") == "none"
        assert seen.errors == []


def test_paper_has_every_figure(browser: Browser, small: Report) -> None:
    with closing(browsers.new_page(browser, height=700)) as page:
        seen = watched(page, small.file)
        assert stale(seen)
        page.pdf()
        assert not stale(seen)
        assert all(page.locator(f"#{plot}-plot svg").count() for plot in ("map", "memory", "failures"))


def test_frames_of_one_size_lie_on_one_line_at_their_tick(seen: Seen) -> None:
    assert "64" in ticks(seen, "map", "y")
    assert len(ticks(seen, "map", "y")) >= 2
    low, high = range_of(seen, "map", "y")
    assert low < 64 < high
    assert high / low >= 4
    heights = seen.page.evaluate("document.getElementById('map-plot').data.flatMap(trace => trace.y)")
    assert all(abs(math.log(y / 64)) < 0.03 * math.log(high / low) for y in heights)


def test_channels_that_occur_are_ticks_and_a_point_alone_is_where_it_is(seen: Seen) -> None:
    assert ticks(seen, "map", "x") == ["3", "8"]
    channels = sorted(seen.page.evaluate("document.getElementById('map-plot').data.flatMap(trace => trace.x)"))
    assert len(channels) == 3
    assert channels[0] == 3
    assert channels[1] != channels[2]
    assert all(abs(x - 8) < 0.2 for x in channels[1:])


def test_a_phone_has_the_ticks_as_well(browser: Browser, small: Report) -> None:
    with closing(browsers.new_page(browser, width=390, height=844)) as page:
        seen = watched(page, small.file)
        assert ticks(seen, "map", "x") == ["3", "8"]
        assert "64" in ticks(seen, "map", "y")


def test_counts_have_whole_ticks_and_every_axis_two(seen: Seen) -> None:
    for plot, axis in (("speedups", "y"), ("failures", "x")):
        counts = ticks(seen, plot, axis)
        assert all(re.fullmatch(r"\d+", text) for text in counts)
        assert len(set(counts)) == len(counts) >= 2
    for plot, axis in (("speedups", "x"), ("accuracy", "x"), ("accuracy", "y"), ("memory", "x"), ("memory", "y")):
        assert len(set(ticks(seen, plot, axis))) >= 2, (plot, axis)


def height(seen: Seen, figure: str) -> float:
    seen.bring(figure)
    box = seen.page.locator(f"#{figure}").bounding_box()
    assert box is not None
    return box["height"]


def test_a_figure_is_no_higher_than_what_it_holds(seen: Seen) -> None:
    assert seen.points("gains") == 3
    assert height(seen, "gains") < 270
    seen.choose("dtype", "float16")
    assert height(seen, "failures") < 220
    assert "Nothing failed." in seen.page.inner_text("#failures-plot")


def test_a_failure_that_others_had_with_other_numbers_is_an_instance(seen: Seen) -> None:
    (told,) = seen.texts("#reasons button")
    assert told.startswith("failed, for instance: ValueError: ")
    assert seen.texts("#reasons b") == ["2"]
    seen.type("search", FIRST.key.split()[2])
    assert seen.texts("#reasons button") == ["failed: ValueError: 3 is too many"]


def test_with_a_network_selected_no_other_is_drawn_or_counted(seen: Seen) -> None:
    """Of another only the problems that they share would be there, whose gain is not its gain."""
    assert seen.points("gains") > 1
    seen.choose("network", OWN)
    shown = seen.page.evaluate("document.getElementById('gains-plot').data[0].text")
    # 1000 and 1000 us with native, 500 and 800 as chosen.
    assert shown == [f"1.54{TIMES}"]
    tile = seen.page.inner_text("#tiles > div:nth-child(2)")
    assert f"1.54{TIMES}" in tile
    assert OWN in tile
    assert "filter" not in tile


def test_gains_of_a_part_say_so(seen: Seen) -> None:
    seen.choose("dtype", "float32")
    seen.bring("gains")
    assert "of the problems that pass the filter" in seen.page.inner_text("#tiles > div:nth-child(2)")
    assert "that pass the filter" in seen.page.inner_text("#gains figcaption")
    seen.page.click("#reset")
    seen.drawn()
    assert "filter" not in seen.page.inner_text("#gains figcaption")


@pytest.mark.parametrize("width", [1366, 390])
def test_the_colours_stay_explained_beside_every_plot(browser: Browser, small: Report, width: int) -> None:
    with closing(browsers.new_page(browser, width=width, height=844)) as page:
        seen = watched(page, small.file)
        for plot in ("speedups", "accuracy", "memory"):
            seen.bring(plot)
            for name in ("native", "depth_concat"):
                chip = page.locator("#legend button", has_text=name)
                on_top = """chip => {
                    const { x, y, width, height } = chip.getBoundingClientRect();
                    return chip.contains(document.elementFromPoint(x + Math.min(width, 40) / 2, y + height / 2));
                }"""
                assert chip.evaluate(on_top), (plot, name)
        box = page.locator("#legend").bounding_box()
        assert box is not None
        assert box["height"] < 45


def test_a_legend_too_long_for_a_line_takes_another_and_on_a_phone_fades(browser: Browser, small: Report) -> None:
    with closing(browsers.new_page(browser, width=1000)) as page:
        seen = watched(page, small.file)
        place = page.locator("#legend")
        place.evaluate("legend => { for (let k = 0; k < 9; k++) legend.append(legend.lastChild.cloneNode(true)); }")
        lines = "legend => new Set([...legend.children].map((chip) => chip.getBoundingClientRect().top)).size"
        is_whole = "legend => legend.scrollWidth <= legend.clientWidth"
        fade = "legend => getComputedStyle(legend).maskImage"
        assert place.evaluate(lines) > 1
        assert place.evaluate(is_whole)
        assert place.evaluate(fade) == "none"
        page.set_viewport_size({"width": 390, "height": 844})
        seen.drawn()
        assert place.evaluate(lines) == 1
        assert not place.evaluate(is_whole)
        assert "gradient" in place.evaluate(fade)


def test_a_network_s_bar_cuts_its_long_name_in_the_middle(browser: Browser, tmp_path: Path) -> None:
    names = [f"3D U-Net (pytorch-3dunet f_maps={maps})" for maps in (32, 64)]
    database = tmp_path / "long.db"
    with closing(open_store(database)) as store:
        store.add_environment(GPU.id, dict(GPU.identity), {})
        store.add(FIRST, rows(FIRST, 500.0))
        for name in names:
            store.name_network(name, {FIRST: 1})
    report = write(tmp_path / "report.html", settings.from_environment({}), Selection(), None, [database])
    with closing(browsers.new_page(browser, width=390, height=844)) as page:
        told = ticks(watched(page, report.file), "gains", "y")
    assert len(told) == len(set(told)) == 2
    assert all(text.startswith("3D U-Net") and re.search(r"(32|64)\)", text) for text in told)


def test_on_paper_the_bars_of_many_networks_are_thinner_so_that_a_sheet_holds_them(
    browser: Browser, tmp_path: Path
) -> None:
    database = tmp_path / "many.db"
    with closing(open_store(database)) as store:
        store.add_environment(GPU.id, dict(GPU.identity), {})
        store.add(FIRST, rows(FIRST, 500.0))
        for number in range(40):
            store.name_network(f"network {number}", {FIRST: 1})
    report = write(tmp_path / "report.html", settings.from_environment({}), Selection(), None, [database])
    with closing(browsers.new_page(browser)) as page:
        seen = watched(page, report.file)
        seen.bring("gains")
        on_screen = page.evaluate("document.getElementById('gains-plot')._fullLayout.height")
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        on_paper = page.evaluate("document.getElementById('gains-plot')._fullLayout.height")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert on_screen > 40 * 20
        assert on_paper < 650  # of the thousand pixels of a sheet, where the figures at the top have theirs
        assert page.evaluate("document.getElementById('gains-plot')._fullLayout.height") == pytest.approx(on_screen)


def test_a_chip_selects_and_stays_where_it_is(seen: Seen) -> None:
    chips = seen.page.locator("#legend button")

    def names() -> list[str]:
        return [re.sub(r"\d", "", text) for text in chips.all_inner_texts()]

    before = names()
    chip = chips.filter(has_text="native")
    chip.click()
    seen.drawn()
    assert chip.get_attribute("aria-pressed") == "true"
    assert seen.count() == 1
    assert names() == before
    chip.click()
    seen.drawn()
    assert seen.count() == 4


@pytest.fixture(scope="module")
def model(browser: Browser, modelled: Report) -> Iterator[Seen]:
    with closing(browsers.new_page(browser)) as page:
        yield watched(page, modelled.file)


def test_every_name_in_the_model_s_plots_has_its_line_below(model: Seen) -> None:
    bars = ticks(model, "regret", "y")
    model.bring("curves")
    curves = model.page.evaluate("document.getElementById('curves-plot').data.map(trace => trace.name)")
    model.bring("calibration")
    points = model.texts("#calibration-plot .textpoint text")
    ways, intervals = (
        [text.split(": ", 1) for text in model.texts(f"#model .ways:nth-child({place}) li > :last-child")]
        for place in (1, 2)
    )
    assert {"predict", "auto", "native", "winner"} <= {*bars, *curves}
    assert sorted(name for name, _ in ways) == sorted({*bars, *curves})
    assert points
    assert [name for name, _ in intervals] == points
    assert all(text for _, text in (*ways, *intervals))
    assert "Regret is how much slower a choice is than the best" in model.page.inner_text("#model > p")


def test_no_number_of_a_bar_hides_another(model: Seen) -> None:
    model.bring("regret")
    boxes = model.page.locator("#regret-plot .bartext").evaluate_all(
        "all => all.map(text => text.getBoundingClientRect()).map(b => [b.left, b.right, b.top, b.bottom])"
    )
    assert len(boxes) >= 8
    for (left, right, top, bottom), (left2, right2, top2, bottom2) in itertools.combinations(boxes, 2):
        assert right <= left2 or right2 <= left or bottom <= top2 + 1 or bottom2 <= top + 1
