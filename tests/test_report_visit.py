"""A visit to the report's page: one finds what one types, goes back, prints, and reads it on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import browser as browsers
import pytest

from autoconv import environment, settings
from autoconv._backend import mx
from autoconv.problem import Problem
from autoconv.record import Record, Status
from autoconv.report.report import write
from autoconv.store import Selection, open_store, shipped

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HERE = environment.of(mx.default_device())
TIMES = "\N{MULTIPLICATION SIGN}"
MINE = "matrix_x3d.py"
LONG_NAMES = tuple(f"network_of_a_long_name, Wan2.1, nnU-Net, f_maps={maps}" for maps in (32, 64))
CUBE = Problem.parse((1, 4, 8, 8, 8), (16, 3, 3, 3, 8), padding=1)
TINY = Problem.parse((1, 2, 4, 4, 4), (4, 1, 1, 1, 4), dtype="float16")
PATCHES = Problem.parse((1, 50, 256, 256, 3), (1152, 2, 8, 8, 3), stride=(2, 8, 8), dtype="bfloat16")
LARGE = Problem.parse((1, 16, 96, 96, 512), (512, 3, 3, 3, 512))
OTHERS = [Problem.parse((1, 4, 20 + i, 30, 2), (2, 1, 1, 1, 2), stride=3) for i in range(70)]
NATIVE_US = 1000.0


def found(problem: Problem, winner_us: float) -> list[Record]:
    """Native, a winner, and what was given up after a cold turn and a warm one."""

    samples = {
        ("native", ""): (NATIVE_US,) * 6,
        ("kd_decomposition", "sum=float32"): (winner_us,) * 6,
        ("depth_concat", "edges=split"): (3000.0, 400.0),
    }
    return [
        Record(problem.key, HERE.id, name, 1, parameters, Status.OK, times, 1e-7, 0, 10**6, run="r", created=1.0)
        for (name, parameters), times in samples.items()
    ]


def write_report(folder: Path, own: list[Problem], came: list[Problem]) -> Path:
    """A page of what was measured here, 1.25 times as fast as native, and of what came with the package, twice."""
    database, with_package = folder / "mine.db", folder / "came.db"
    for path, problems, us in ((database, own, NATIVE_US / 1.25), (with_package, came, NATIVE_US / 2)):
        with closing(open_store(path)) as store:
            store.add_environment(HERE.id, dict(HERE.identity), dict(HERE.circumstances))
            for problem in problems:
                store.add(problem, found(problem, us))
            if path == database:
                store.name_network(MINE, dict.fromkeys(own, 1))
                for name, problem in zip(LONG_NAMES, own, strict=False):
                    store.name_network(name, {problem: 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "shipped_files", lambda: [with_package])
        patch.setattr(shipped, "shipped_models", lambda _backend: [])
        write(
            folder / "report.html", settings.from_environment({"AUTOCONV_DATABASE": str(database)}), Selection(), HERE
        )
    return folder / "report.html"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two problems of the user's own network, and 72 that came with the package."""
    return write_report(tmp_path_factory.mktemp("visit"), [CUBE, TINY], [PATCHES, LARGE, *OTHERS])


@pytest.fixture(scope="module")
def opened(browser: Browser, report: Path) -> Iterator[Page]:
    with closing(browsers.new_page(browser)) as page:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield browsers.show(page, report)
        assert errors == []


@pytest.fixture
def page(opened: Page) -> Page:
    """The page, opened once and as it was then, but for its history."""
    opened.emulate_media(media="screen")
    opened.keyboard.press("Escape")
    opened.evaluate("""() => {
        document.activeElement?.blur();
        document.getElementById("reset").click();
        const order = document.querySelector("#sort select");
        order.value = "yours";
        order.dispatchEvent(new Event("change"));
    }""")
    drawn(opened)
    return opened


def drawn(page: Page) -> None:
    page.wait_for_function("document.documentElement.dataset.ready")


def choose(page: Page, name: str, value: str) -> None:
    page.select_option(f"#filters [name={name}]", value)
    drawn(page)


def search(page: Page, text: str) -> None:
    page.fill("#filters [name=search]", text)
    page.wait_for_function("text => new URLSearchParams(location.hash.slice(1)).get('search') === text", arg=text)
    drawn(page)


def texts(page: Page, column: str) -> list[str]:
    return [text.strip() for text in page.locator(f".rows .row .{column}").all_inner_texts()]


def count(page: Page) -> str:
    return page.inner_text("#count")


def back(page: Page) -> None:
    page.evaluate("history.back()")
    page.wait_for_timeout(100)  # what it changes is drawn at once, and not known beforehand
    drawn(page)


CUBE_TOLD = f"1{TIMES}4{TIMES}8{TIMES}8{TIMES}8 * 16{TIMES}3{TIMES}3{TIMES}3{TIMES}8"


@pytest.mark.parametrize(
    ("typed", "problems"),
    [
        ("3x3x3", {CUBE, LARGE}),  # and no stride of three
        ("3X3X3", {CUBE, LARGE}),
        ("3, 3, 3", {CUBE, LARGE}),
        (f"3{TIMES}3{TIMES}3", {CUBE, LARGE}),
        ("3*3*3", {CUBE, LARGE}),
        ("3x3x", {CUBE, LARGE}),  # on the way there
        (f"3{TIMES}3{TIMES}", {CUBE, LARGE}),
        ("1x50x256x256x3", {PATCHES}),
        ("(3,3,3)", {CUBE, LARGE}),
        ("[3, 3, 3]", {CUBE, LARGE}),
        ("(3, 3, 3,)", {CUBE, LARGE}),
        ("[1, 50, 256, 256, 3]", {PATCHES}),
        ("[1, 50, 256", {PATCHES}),
        ("(1, 4, 8, 8, 8), (16, 3, 3, 3, 8)", {CUBE}),
        ("kd_decomposition(sum=float32) 1152", {PATCHES}),
        ("wan21", {CUBE, TINY}),
        ("Wan2.1", {CUBE, TINY}),
        ("nnunet", {CUBE, TINY}),
        ("nn_u_net", {CUBE, TINY}),
        ("...", set()),  # is no name without its letters
        ("0x256x256x3", set()),  # a size is a whole number
        (CUBE_TOLD, {CUBE}),
        (CUBE_TOLD.replace(TIMES, "x"), {CUBE}),
        (CUBE.key, {CUBE}),
        ("float16", {TINY}),
        ("bfloat16", {PATCHES}),
        ("x3d", {CUBE, TINY}),
        ("Matrix_X", {CUBE, TINY}),
        ("decomposition 256", {PATCHES}),
    ],
)
def test_a_search_finds_what_is_typed_as_autoconv_writes_it(page: Page, typed: str, problems: set[Problem]) -> None:
    search(page, typed)
    assert count(page) == f"{len(problems)} of 74 problems"
    sizes = {text.split(",")[0] for text in texts(page, "what")}
    assert sizes == {" * ".join(TIMES.join(map(str, s)) for s in (p.input_shape, p.weight_shape)) for p in problems}


def test_the_filter_is_in_the_address_and_the_way_back_undoes_it(page: Page) -> None:
    choose(page, "dtype", "bfloat16")
    choose(page, "winner", "kd_decomposition")
    assert page.evaluate("location.hash") == "#dtype=bfloat16&winner=kd_decomposition"
    back(page)
    assert page.input_value("[name=winner]") == ""
    assert count(page) == "1 of 74 problems"
    back(page)
    assert page.input_value("[name=dtype]") == ""
    assert count(page) == "74 of 74 problems"
    assert "#" not in page.url
    page.go_forward()
    drawn(page)
    assert count(page) == "1 of 74 problems"


def test_a_filter_is_there_again_when_the_page_is_loaded_again(page: Page) -> None:
    choose(page, "source", page.locator("[name=source] option", has_text="mine.db").get_attribute("value") or "")
    choose(page, "environment", "0")
    search(page, "3x3x3")
    page.reload()
    drawn(page)
    assert count(page) == "1 of 74 problems"
    assert page.input_value("[name=search]") == "3x3x3"
    assert HERE.id in page.url


def test_an_address_that_no_longer_holds_filters_nothing(page: Page) -> None:
    page.evaluate(
        "location.hash = '#network=gone&environment=7&dtype=int3&least=many&nothing=1&search=%E0%A4%A&explain=a/b'"
    )
    page.reload()
    drawn(page)
    assert count(page) == "74 of 74 problems"
    assert "#" not in page.url
    page.evaluate("location.hash = '#network=gone&dtype=bfloat16'")
    page.wait_for_function("location.hash === '#dtype=bfloat16'")
    drawn(page)
    assert count(page) == "1 of 74 problems"


def test_what_is_typed_into_a_field_is_one_step_to_go_back_over(page: Page) -> None:
    choose(page, "dtype", "float32")
    steps = page.evaluate("history.length")
    page.fill("[name=search]", " ")  # is nothing, and no step
    page.wait_for_timeout(200)
    search(page, "3x3")
    search(page, "3x3x3")
    assert page.evaluate("history.length") == steps + 1
    assert page.evaluate("location.hash") == "#dtype=float32&search=3x3x3"
    back(page)
    assert page.evaluate("location.hash") == "#dtype=float32"
    assert page.input_value("[name=search]") == ""
    search(page, "4x4")  # the field was never left, yet another step begins
    back(page)
    assert page.evaluate("location.hash") == "#dtype=float32"


def test_what_is_typed_before_a_choice_is_a_step_even_if_it_was_not_yet_taken_in(page: Page) -> None:
    choose(page, "dtype", "float32")
    page.locator("[name=least]").press_sequentially("1.5")
    page.locator("[name=winner]").focus()
    choose(page, "winner", "kd_decomposition")
    search(page, "3x3x3")
    for hash_before in (
        "#dtype=float32&winner=kd_decomposition&least=1.5",
        "#dtype=float32&least=1.5",
        "#dtype=float32",
    ):
        back(page)
        assert set(page.evaluate("location.hash")[1:].split("&")) == set(hash_before[1:].split("&"))


def test_a_problem_is_explained_beside_the_filter_in_one_address(page: Page) -> None:
    choose(page, "dtype", "bfloat16")
    page.locator(".rows .row").first.click()
    assert page.evaluate("location.hash").startswith("#dtype=bfloat16&explain=")
    page.reload()
    drawn(page)
    assert count(page) == "1 of 74 problems"
    assert page.inner_text("#explain-title").startswith(f"1{TIMES}50{TIMES}256")


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.dataset.row ?? ''"))


@pytest.mark.parametrize("way", ["back", "Escape"])
def test_what_closes_an_explanation_gives_the_focus_back_to_its_row(page: Page, way: str) -> None:
    row = page.locator(".rows .row").nth(3)
    number = row.get_attribute("data-row")
    row.focus()
    page.keyboard.press("Enter")
    assert focused(page) == ""
    page.evaluate("dispatchEvent(new Event('resize'))")  # rows are made anew
    if way == "back":
        back(page)
    else:
        page.keyboard.press(way)
    assert page.is_hidden("#explain")
    assert focused(page) == number
    assert "#" not in page.url


def test_what_was_opened_and_closed_is_no_step_of_its_own(page: Page) -> None:
    choose(page, "dtype", "float32")
    steps = page.evaluate("history.length")
    page.locator(".rows .row").first.click()
    page.keyboard.press("Escape")
    choose(page, "dtype", "bfloat16")
    assert page.evaluate("history.length") == steps + 1
    back(page)
    assert page.input_value("[name=dtype]") == "float32"
    assert page.is_hidden("#explain")


def test_a_link_to_a_section_leaves_the_filter_in_the_address(page: Page) -> None:
    choose(page, "dtype", "bfloat16")
    page.click("nav a[href='#problems']")
    assert page.evaluate("location.hash") == "#dtype=bfloat16"
    assert page.evaluate("document.activeElement.id") == "problems"


def test_the_look_is_kept_where_something_can_be(page: Page) -> None:
    page.click("#look")
    page.reload()
    drawn(page)
    assert page.evaluate("document.documentElement.dataset.look") == "dark"
    page.click("#look")
    assert page.evaluate("document.documentElement.dataset.look") == "light"


def test_a_page_that_may_keep_nothing_changes_its_look_all_the_same(browser: Browser, report: Path) -> None:
    with closing(browsers.new_page(browser)) as page:
        page.add_init_script(
            "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('', 'SecurityError'); } })"
        )
        browsers.show(page, report)
        page.click("#look")
        assert page.evaluate("document.documentElement.dataset.look") == "dark"


def test_the_user_s_own_rows_stand_first_and_the_page_says_whose_there_are(page: Page) -> None:
    page.reload()
    drawn(page)
    assert texts(page, "network")[:3] == [f"{MINE} +1", f"{MINE} +1", "random and others"]
    assert texts(page, "speed")[:3] == [f"1.25{TIMES}", f"1.25{TIMES}", f"2.00{TIMES}"]
    told = "2 measured here, 72 came with autoconv"
    assert told in page.inner_text("#tiles")
    assert page.inner_text("#mix").startswith(f"74 problems: {told}. The table begins with {MINE}, ")
    page.click("#mix button")
    drawn(page)
    assert count(page) == "2 of 74 problems"
    page.click("#mix button")
    drawn(page)
    assert count(page) == "74 of 74 problems"


def test_one_is_no_plural(browser: Browser, tmp_path: Path) -> None:
    with closing(browsers.new_page(browser)) as page:
        browsers.show(page, write_report(tmp_path, [CUBE], []))
        assert count(page) == "1 of 1 problem"
        assert page.is_hidden("#mix")


def test_work_has_a_unit_and_three_digits(page: Page) -> None:
    page.locator(".heads [data-name=gflop] button").dispatch_event("click")
    multiply_adds = 14 * 94 * 94 * 512 * 27 * 512
    assert texts(page, "gflop")[0] == f"{2 * multiply_adds / 1e12:.2f} TFLOP"
    page.locator(".heads [data-name=gflop] button").dispatch_event("click")
    assert texts(page, "gflop")[0] == f"{2 * 2 * 4 * 4 * 4 * 4 / 1e3:.2f} kFLOP"


def test_a_row_names_the_network_one_filters_by_and_tells_all(page: Page) -> None:
    both = sorted((MINE, LONG_NAMES[1]))
    choose(page, "dtype", "float16")
    cell = page.locator(".rows .row .network")
    assert texts(page, "network") == [f"{MINE} +1"]
    assert sorted((cell.get_attribute("title") or "").split("\n")) == both
    choose(page, "network", LONG_NAMES[1])
    (told,) = texts(page, "network")
    assert re.fullmatch(r"net.*\N{HORIZONTAL ELLIPSIS}.*64 \+1", told)
    assert sorted((cell.get_attribute("title") or "").split("\n")) == both
    assert cell.evaluate("cell => cell.scrollWidth <= cell.clientWidth")


def test_figures_of_the_user_s_own_and_of_all_say_which_they_are(page: Page) -> None:
    notes = page.locator("#tiles dd:last-child")
    own, *others = notes.all_inner_texts()[1:]
    assert "of yours" in own
    assert all("yours and others" in note for note in others)
    page.click("#mix button")
    drawn(page)
    assert not any("others" in note for note in notes.all_inner_texts())


def test_fields_of_one_row_stand_on_one_line(page: Page) -> None:
    boxes = page.locator("#filters :is(select, input, button)").evaluate_all(
        "all => all.map(field => field.getBoundingClientRect()).map(box => [box.top, box.height])"
    )
    assert len({top for top, _ in boxes}) == 2
    assert len({height for _, height in boxes}) == 1


def height(page: Page, selector: str) -> float:
    box = page.locator(selector).bounding_box()
    assert box is not None
    return box["height"]


def test_the_table_is_as_high_as_its_rows_up_to_a_screen(page: Page) -> None:
    assert 500 < height(page, ".rows") <= 620
    choose(page, "network", MINE)
    assert height(page, ".rows") == pytest.approx(2 * height(page, ".rows .row >> nth=0"), abs=2)
    search(page, "nothing has this name")
    assert "Nothing passes" in page.inner_text("#table")


def test_a_ratio_that_is_not_that_of_the_times_says_what_it_rests_on(page: Page) -> None:
    page.locator(".rows .row").first.click()
    row = page.locator("#candidates tr", has_text="depth_concat")
    # Of 3000 and 400 us the second judges: native's 1000 are 2.5 times that, whatever the median of both.
    assert row.locator("[data-name=time]").inner_text().split("\n") == ["1.70 ms", "judged 400 \N{MICRO SIGN}s"]
    assert row.locator("[data-name='vs native']").inner_text() == f"2.50{TIMES}"
    assert "judged" not in page.locator("#candidates tr", has_text="kd_decomposition").inner_text()
    assert "every second" in page.inner_text("#ratios")


def colours(page: Page) -> tuple[int, int]:
    """Brightness of the ink and of what is behind it, from 0 to 765."""
    told = page.evaluate("(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))")
    ink, back = (sum(map(int, re.findall(r"\d+", text)[:3])) for text in told)
    return ink, back


def test_paper_has_light_colours_plots_of_its_width_and_a_list_of_rows(browser: Browser, report: Path) -> None:
    with closing(browsers.new_page(browser, dark=True)) as page:
        browsers.show(page, report, "#search=kd_decomposition")
        ink, behind = colours(page)
        assert ink > behind
        page.evaluate("document.documentElement.dataset.look = 'dark'")  # chosen, beside the system's own
        wide = height(page, "#gains-plot"), page.evaluate("document.getElementById('map-plot')._fullLayout.width")
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        ink, behind = colours(page)
        assert (ink < 200, behind) == (True, 3 * 255)
        for selector in (".top", "#filters-box", ".table", "#sort", "#mix button"):
            assert page.is_hidden(selector), selector
        assert page.locator("#printed tbody tr").count() == 50
        assert page.inner_text("#printed p") == "The first 50 of 74 problems; only search kd_decomposition."
        for plot in ("gains", "map"):
            sizes = f"(plot => [plot._fullLayout.width, plot.clientWidth])(document.getElementById('{plot}-plot'))"
            drawn_width, room = page.evaluate(sizes)
            assert drawn_width == pytest.approx(room, abs=1)
            assert room < 700
        page.emulate_media(media="screen", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        ink, behind = colours(page)
        assert ink > behind
        assert page.locator("#printed *").count() == 0
        again = height(page, "#gains-plot"), page.evaluate("document.getElementById('map-plot')._fullLayout.width")
        assert again == pytest.approx(wide, abs=1)


def test_paper_keeps_the_colours_of_signs_and_breaks_between_what_belongs_together(page: Page) -> None:
    page.emulate_media(media="print")

    def style(selector: str, name: str) -> str:
        return str(page.locator(selector).first.evaluate("(element, name) => getComputedStyle(element)[name]", name))

    assert style("#legend .glyph", "printColorAdjust") == "exact"
    assert style("#problems h2", "breakAfter") == "avoid"
    assert style("#gains figcaption", "breakAfter") == "avoid"
    assert style("#legend", "flexWrap") == "wrap"


def test_printing_tells_the_page_before_and_after(page: Page) -> None:
    page.evaluate(
        "addEventListener('beforeprint', () => { window.rows = document.querySelectorAll('#printed tr').length; })"
    )
    page.pdf()
    assert page.evaluate("window.rows") == 51
    assert page.locator("#printed tr").count() == 0


def test_an_explanation_that_is_open_is_what_is_printed(page: Page) -> None:
    page.locator(".rows .row").first.click()
    page.emulate_media(media="print")
    assert page.is_visible("#candidates")
    assert page.is_hidden("main")


@pytest.fixture(scope="module")
def phone(browser: Browser, report: Path) -> Iterator[Page]:
    with closing(browsers.new_page(browser, width=390, height=844)) as made:
        yield browsers.show(made, report)


def test_on_a_phone_rows_are_sorted_by_a_choice(phone: Page) -> None:
    assert phone.input_value("#sort select") == "yours"
    phone.select_option("#sort select", "gflop")
    assert texts(phone, "what")[0].startswith(f"1{TIMES}16{TIMES}96")
    phone.click("#sort button")
    assert texts(phone, "what")[0].startswith(f"1{TIMES}2{TIMES}4{TIMES}4")


def test_on_a_phone_a_row_tells_its_dtype_and_its_network(phone: Page) -> None:
    phone.select_option("#sort select", "yours")
    cell = phone.locator(".rows .row .network").first
    assert cell.is_visible()
    assert cell.inner_text() == f"{MINE} +1"
    assert re.search("float", cell.evaluate("cell => getComputedStyle(cell, '::before').content + cell.dataset.dtype"))
    inside = """cell => {
        const [of, row] = [cell, cell.parentElement].map((element) => element.getBoundingClientRect());
        return of.top >= row.top && of.bottom <= row.bottom && cell.scrollWidth <= cell.clientWidth;
    }"""
    assert cell.evaluate(inside)


@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_nothing_is_cut_off(phone: Page, width: int) -> None:
    phone.set_viewport_size({"width": width, "height": 844})
    for link in phone.locator("nav a:visible").all():
        box = link.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= width
    assert phone.evaluate("(nav => nav.scrollWidth <= nav.clientWidth)(document.querySelector('nav'))")
    origins = "(place => place.scrollWidth <= place.clientWidth)(document.querySelector('#origins .scroll'))"
    assert phone.evaluate(origins)


def test_where_there_is_room_headings_sort_alone(page: Page) -> None:
    assert page.is_hidden("#sort")
    assert page.is_visible(".heads")


def test_links_that_lead_nowhere_are_hidden(page: Page) -> None:
    assert page.is_hidden("nav a[href='#model']") == (page.locator("#model").count() == 0)
    assert page.is_visible("nav a[href='#problems']")


def test_a_page_of_nothing_says_which_commands_fill_it(browser: Browser, tmp_path: Path) -> None:
    write(tmp_path / "empty.html", settings.current(), Selection(), None)
    with closing(browsers.new_page(browser)) as page:
        browsers.show(page, tmp_path / "empty.html")
        commands = page.locator("#empty code").all_inner_texts()
        assert commands[:3] == [
            "autoconv run --policy record -- program.py",
            "autoconv sweep --pending",
            "autoconv report out.html",
        ]
        assert "autoconv demo" in commands
        assert page.locator("nav a:visible").count() == 0
