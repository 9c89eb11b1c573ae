"""A report in a real browser: nothing is fetched, charts answer, keyboard, phone, print, no JavaScript, accessibility.

`make test` brings a Chromium and axe-core where it can (tools/browser.sh); without one, what needs it is skipped.
"""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from browsers import DARK, LIGHT, PHONE, WIDE, chromium, needs_axe, violations
from small_reports import HEADLINES, entry, losses, three_stages, write_run

from faisca import cli
from faisca.report.page import render
from faisca.report.recorded import read_runs
from faisca.report.tokens import StageTokens, Token

LOSS = "[data-chart=pretrain-loss]"

pytest.importorskip("playwright.sync_api", reason="playwright is missing: make install brings it")
pytestmark = pytest.mark.xdist_group("report in a browser")  # one process opens it


browser = pytest.fixture(chromium, scope="module")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of one run, with scored tokens, and one of two."""
    folder = tmp_path_factory.mktemp("reports")
    runs = [
        three_stages(folder / "torch"),
        three_stages(folder / "mlx", {"pretrain": {"learning_rate": 2e-3}, "sft": {"learning_rate": 1e-4}}),
    ]
    words = [Token("Governo", 0.9), Token(" aprova", 0.3), Token(" <i>", 0.1), Token(" o", 0.02), Token("¶", 0.004)]
    scored = [StageTokens("Pre-training", [words]), StageTokens("Fine-tuning", [], "no such device")]
    found = {"one": render(read_runs(runs[:1]), [scored], "now"), "two": render(read_runs(runs), [scored, None], "now")}
    for name, page in found.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in found}


@pytest.fixture
def visit(browser, pages):
    """Open a page; every request and every complaint of the browser is noted, and there may be none."""
    contexts, noted = [], []

    def opened(name: str, **how):
        context = browser.new_context(**{"viewport": WIDE, "color_scheme": "light", **how})
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: noted.append(request.url))
        page.on("console", lambda message: noted.append(message.text))
        page.on("pageerror", lambda error: noted.append(str(error)))
        address = (pages[name] if name in pages else Path(name)).as_uri()
        page.goto(address)
        noted.remove(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not noted


def seen(page, selector: str) -> bool:
    return page.locator(selector).first.is_visible()


def ends(page) -> list[float]:
    """What the first chart shows of its axis."""
    return page.evaluate("[plots[0].plot.scales.x.min, plots[0].plot.scales.x.max]")


def value(page, name: str) -> str:
    return page.locator(f'{LOSS} .legend [data-name="{name}"] b').first.inner_text()


# --- looking ------------------------------------------------------------------------------------


def test_charts_are_drawn_and_nothing_is_fetched(visit):
    page = visit("one")
    assert page.locator(".uplot canvas").count() == page.locator("[data-chart]").count() > 10
    assert not seen(page, ".static")
    inked = page.evaluate(
        "const c = document.querySelector('.uplot canvas');"
        "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((part, i) => i % 4 === 3 && part).length"
    )
    assert inked > 1000
    assert page.locator("h1").inner_text() == "torch"


def test_what_the_policy_forbids_does_not_happen(browser, pages):
    """Even where something got into the page: a server that counts its visitors has none."""
    came: list[str] = []

    class Counting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came.append(self.path)
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Counting) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        context = browser.new_context()
        page = context.new_page()
        page.goto(pages["one"].as_uri())
        refused = page.evaluate("(a) => fetch(a + '/fetch').then(() => 'fetched', (error) => error.name)", address)
        page.evaluate("(a) => document.body.insertAdjacentHTML('beforeend', `<img src=${a}/image>`)", address)
        page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'hacked = 1'}))")
        page.wait_for_function("document.images[0].complete")
        assert refused == "TypeError" and page.evaluate("typeof hacked") == "undefined"
        page.goto(f"{address}/here")
        context.close()
        server.shutdown()
    assert came == ["/here"]


def test_titles_with_scripts_in_them_are_titles(visit, tmp_path):
    evil = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    records = [*losses("pretrain", 3, 0.0), {"stage": "pretrain", "step": 3, "seconds": 1.0, "samples": [evil]}]
    run = write_run(tmp_path / "run", records, [entry("pretrain", 3, samples_after=[evil])], {"data": {"source": evil}})
    assert cli.main(["report", str(run), "--no-probabilities"]) == 0
    page = visit(str(run / "report.html"))
    assert page.evaluate("window.hacked") is None
    assert page.locator(".headline", has_text="onerror").count() == 2


@pytest.mark.parametrize("name", ["one", "two"])
def test_it_fits_a_phone(visit, name):
    page = visit(name, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    box = page.locator(f"{LOSS} canvas").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]


def test_without_javascript_it_reads_as_well(visit):
    page = visit("two", java_script_enabled=False)
    assert seen(page, f"{LOSS} .static") and not seen(page, ".scripted")
    assert page.locator("#outcome td", has_text="0.500 → 0.500").first.is_visible()
    assert page.get_by_text(HEADLINES[0]).first.is_visible()


def test_printed_it_is_light_and_has_drawings(visit):
    page = visit("one", color_scheme="dark")
    page.emulate_media(media="print")
    assert seen(page, f"{LOSS} .static") and not seen(page, ".uplot") and not seen(page, "nav")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == LIGHT
    page.emulate_media(media="screen")


# --- using --------------------------------------------------------------------------------------


def test_the_pointer_reads_values(visit):
    page = visit("one")
    last = value(page, "validation")
    over = page.locator(f"{LOSS} .u-over")
    over.hover(position={"x": 0.5 * over.bounding_box()["width"], "y": 40})
    data = json.loads(page.locator("#data").text_content())["charts"]["pretrain-loss"]
    curve = next(one for one in data["curves"] if one["name"] == "validation")
    assert value(page, "validation") == f"{curve['y'][2]:.4g}" != last  # step 30 of 60
    assert "tokens" in page.locator(f"{LOSS} .at").inner_text()
    page.mouse.move(5, 5)
    assert value(page, "validation") == last


def test_dragging_zooms_and_a_double_click_shows_all_again(visit):
    page = visit("one")
    over = page.locator(f"{LOSS} .u-over")
    over.scroll_into_view_if_needed()
    whole, box = ends(page), over.bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 50, steps=4)
    page.mouse.up()
    low, high = ends(page)
    assert low == pytest.approx(0.25 * whole[1], rel=0.05) and high == pytest.approx(0.75 * whole[1], rel=0.05)
    page.mouse.dblclick(box["x"] + 100, box["y"] + 50)
    assert ends(page) == whole


def test_curves_can_be_drawn_against_steps_and_time(visit):
    page = visit("one")
    assert ends(page) == [0, 60 * 256]
    page.locator("#pretrain .axes label", has_text="steps").click()
    assert ends(page) == [0, 60]
    page.locator("#pretrain .axes label", has_text="time").click()
    assert ends(page)[1] == pytest.approx(5.9)


def test_runs_and_curves_can_be_left_out(visit):
    page = visit("two")
    shown = "plots[0].plot.series.filter((one) => one.show && one.curve).map((one) => one.curve.run + one.curve.name)"
    measures = ("training", "validation", ".pt validation")
    assert set(page.evaluate(shown)) == {f"{run}{name}" for run in (0, 1) for name in measures}
    page.locator(f"{LOSS} .legend button", has_text="mlx validation").click()
    assert "1validation" not in page.evaluate(shown)
    first, second = page.locator("[data-toggle-run]").all()
    first.click()
    assert first.get_attribute("aria-pressed") == "false"
    assert {name[0] for name in page.evaluate(shown)} == {"1"}
    assert not seen(page, "#outcome td[data-run='0']") and seen(page, "#outcome td[data-run='1']")
    second.click()  # the last one stays
    assert second.get_attribute("aria-pressed") == "true"
    first.click()
    assert seen(page, "#outcome td[data-run='0']")


def test_the_keyboard_reaches_and_reads_a_chart(visit):
    page = visit("one")
    page.locator("#pretrain .axes input").first.focus()
    for _ in range(5):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('plot')"):
            break
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    said = page.locator(f"{LOSS} .spoken").inner_text()
    assert said.startswith("15.1 k tokens: training ") and "validation" in said
    page.keyboard.press("+")
    assert ends(page)[0] > 0
    page.keyboard.press("Escape")
    assert ends(page) == [0, 60 * 256]


def test_a_tokens_probability_is_shown_and_read(visit):
    page = visit("one")
    page.locator(".tokens .t").nth(1).hover()
    assert page.locator(".tip").inner_text() == "aprova 30 %"
    page.locator(".tokens").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".tip").inner_text() == "<i> 10 %"
    assert page.get_by_text("Left out: no such device").is_visible()


def test_the_theme_follows_the_system_until_one_is_chosen(visit):
    page = visit("one", color_scheme="dark")
    back = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(back) == DARK
    page.locator("#theme").click()
    assert page.evaluate(back) == LIGHT and page.locator("#theme").inner_text() == "theme: light"
    again = page.context.new_page()
    again.goto(page.url)
    assert again.evaluate(back) == LIGHT


def test_only_what_differs(visit):
    page = visit("two")
    assert seen(page, "#configuration tr.same")
    page.locator("#only-changed").check()
    assert not seen(page, "#configuration tr.same")
    rows = page.locator("#configuration tr.changed th").all_inner_texts()
    assert rows == ["learning_rate", "learning_rate"]


# --- for everybody ------------------------------------------------------------------------------


@needs_axe
@pytest.mark.parametrize("how", [{"color_scheme": "light"}, {"color_scheme": "dark", "viewport": PHONE}], ids=str)
def test_axe_finds_nothing(visit, how):
    """Contrast, names, roles, order: every rule of axe-core, with the details open and a run left out."""
    page = visit("two", **how)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.locator("[data-toggle-run='1']").click()
    page.locator(".tokens .t").nth(4).hover()
    assert violations(page) == []
