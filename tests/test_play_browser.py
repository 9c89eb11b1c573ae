"""`faisca play` in a browser: writing, tokens, conversations, keyboard, phone, dark, several tabs, accessibility."""

import re
from pathlib import Path

import pytest
from browsers import DARK, LIGHT, PHONE, WIDE, chromium, needs_axe, violations
from small_chats import CHATML, chat_tokenizer
from small_play import SETTINGS, Slow, loaded, served, write_stages

from faisca.backend import load_backend

pytest.importorskip("mlx.core", reason="the page is of both backends")
expect = pytest.importorskip("playwright.sync_api", reason="playwright is missing: make install brings it").expect

expect.set_options(timeout=60_000)
pytestmark = pytest.mark.xdist_group("play in a browser")  # one process opens it
browser = pytest.fixture(chromium, scope="module")
NAMED = {name: SETTINGS[name] for name in ("temperature", "top_k", "top_p", "max_new_tokens", "seed")}
FIRST = ".column >> visible=true >> nth=0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stages whose tokenizer has a chat template."""
    return write_stages(tmp_path_factory.mktemp("play"), chat_tokenizer(CHATML), context=96)


@pytest.fixture(scope="module")
def address(run: Path):
    with served(run) as found:
        yield found


@pytest.fixture
def visit(browser, address):
    """Open the page; it asks nobody else, and the browser has nothing to complain of."""
    contexts, noted = [], []

    def opened(**how):
        context = browser.new_context(**{"viewport": WIDE, "color_scheme": "light", **how})
        contexts.append(context)
        return in_context(context)

    def in_context(context):
        page = context.new_page()
        page.on("request", lambda request: None if request.url.startswith(address) else noted.append(request.url))
        page.on("console", lambda message: noted.append(message.text))
        page.on("pageerror", lambda error: noted.append(str(error)))
        page.goto(address)
        expect(page.locator(".column")).to_have_count(6)
        for name, value in SETTINGS.items():
            page.locator(f"#{name}").fill(str(value))
        return page

    opened.again = in_context
    yield opened
    for context in contexts:
        context.close()
    assert not noted


def write(page, prompt: str = "Governo") -> None:
    page.locator("#prompt").fill(prompt)
    page.locator("#prompt").press("Enter")
    written(page)


def written(page) -> None:
    expect(page.locator("#status")).to_have_text("written")


def lines(page, column: str = FIRST) -> list[str]:
    """The texts of a column, as `faisca generate` would print them."""
    found = page.locator(column).locator(".tokens").all_text_contents()
    return [" ".join(text.removesuffix("¶").split()) for text in found]


def expected(run: Path, column: str) -> list[str]:
    return loaded(run, column).generate("Governo", 2, **NAMED)


def plain(texts: list[str]) -> list[str]:
    """Without what a page shows as a space."""
    return ["".join(c for c in text if c.isprintable() and c not in " \ufffd") for text in texts]


# --- headlines ----------------------------------------------------------------------------------


def test_each_stage_writes_on_each_backend(visit, run):
    page = visit()
    assert page.title() == "small – Faísca play"
    page.get_by_label("mlx", exact=True).check()
    write(page)
    for column in ("pretrain/torch", "sft/torch", "grpo/torch", "pretrain/mlx", "sft/mlx", "grpo/mlx"):
        titles = {"pretrain": "Pre-training", "sft": "Fine-tuning", "grpo": "GRPO"}
        stage, backend = column.split("/")
        shown = lines(page, f"[aria-label='{titles[stage]}, {backend}']")
        assert plain(shown) == plain(expected(run, column))
    command = page.locator(FIRST).locator(".terminal")
    command.locator("summary").click()
    assert "--backend torch --device cpu -n 2 --prompt=Governo --seed 3" in command.locator("code").inner_text()


def test_stages_and_backends_can_be_left_out(visit):
    page = visit()
    expect(page.locator(".column >> visible=true")).to_have_count(3)
    page.get_by_label("Fine-tuning", exact=True).uncheck()
    page.get_by_label("mlx", exact=True).check()
    expect(page.locator(".column >> visible=true")).to_have_count(4)
    for one in page.locator("[name=backend]").all():
        one.uncheck()
    assert page.locator("#write").is_disabled()


def test_a_token_has_alternatives_and_another_goes_on(visit):
    page = visit()
    write(page)
    before = lines(page)
    token = page.locator(FIRST).locator(".line").first.locator(".t").nth(2)
    token.click()
    rows = page.locator(".panel tbody tr")
    expect(rows).to_have_count(12)
    assert re.fullmatch(r".+\n?.*%.*", rows.first.inner_text(), re.DOTALL)
    other = page.locator(".panel tr:not(.taken) .choice").first
    chosen = other.inner_text()
    other.click()
    expect(page.locator(".branch")).to_have_count(1)
    written(page)
    after = lines(page)
    assert after[0] == before[0] and after[2:] == before[1:] and len(after) == 3
    forced = page.locator(".branch .forced")
    expect(forced).to_have_count(1)
    assert forced.inner_text().strip() in (chosen.lstrip("␣"), "") or chosen.startswith("⟨")
    expect(page.locator(".panel")).to_have_count(0)


def test_tokens_are_shaded_by_their_probability(visit):
    page = visit()
    write(page)
    for token in page.locator(FIRST).locator(".t").all():
        shade, said = token.get_attribute("class"), token.get_attribute("title")
        value = 0.0005 if said.startswith("<") else float(said.removesuffix(" %")) / 100
        levels = [sum(value < least for least in (0.5, 0.2, 0.05, 0.01)) for value in (value - 0.006, value + 0.006)]
        assert any(f"l{level}" in shade for level in range(min(levels), max(levels) + 1)), (shade, said)
        assert token.get_attribute("aria-label").endswith(said)


def test_sliders_change_what_is_written(visit, run):
    page = visit()
    page.locator("#temperature").fill("0")
    write(page)
    assert page.locator("#temperature-shown").inner_text() == "0"
    first, second = lines(page)
    assert first == second  # the likeliest token, whatever the draws
    page.locator("#top_p").fill("1")
    page.locator("#top_k").fill("0")
    assert page.locator("#top_p-shown").inner_text() == page.locator("#top_k-shown").inner_text() == "off"
    page.locator("#temperature").fill("1.5")
    page.locator("#another").click()
    written(page)
    seed = int(page.locator("#seed").input_value())
    named = NAMED | {"seed": seed, "temperature": 1.5, "top_k": 0, "top_p": 1.0}
    assert seed != 3 and plain(lines(page)) == plain(loaded(run, "pretrain/torch").generate("Governo", 2, **named))


# --- conversations ------------------------------------------------------------------------------


def test_a_conversation_goes_on_and_an_answer_can_be_changed(visit, run):
    page = visit()
    page.get_by_text("Conversation", exact=True).click()
    page.locator("#max_new_tokens").fill("12")
    model, messages = loaded(run, "pretrain/torch"), []
    for turn, said in enumerate(("Olá", "Adeus")):
        write(page, said)
        messages.append({"role": "user", "content": said})
        answer = model.chat(messages, **(NAMED | {"seed": NAMED["seed"] + turn}))
        assert plain(lines(page)[-1:]) == plain([answer])
        messages.append({"role": "assistant", "content": answer})
    expect(page.locator(FIRST).locator(".said")).to_have_text(["Olá", "Adeus"])
    page.locator(FIRST).locator(".line").first.locator(".t").first.click()
    page.locator(".panel tr:not(.taken) .choice").first.click()
    written(page)
    expect(page.locator(FIRST).locator(".said")).to_have_text(["Olá"])  # what followed was said to another answer
    expect(page.locator(FIRST).locator(".forced")).to_have_count(1)
    page.locator("#anew").click()
    expect(page.locator(".line, .said")).to_have_count(0)


# --- keyboard, tabs, faults ---------------------------------------------------------------------


def focused(page) -> str:
    return page.locator(":focus").get_attribute("aria-label") or page.locator(":focus").inner_text()


def test_the_keyboard_alone_does_it(visit):
    page = visit()
    write(page)
    token = page.locator(FIRST).locator(".t").first
    token.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    here = focused(page)
    page.keyboard.press("Enter")
    expect(page.locator(".panel .choice")).to_have_count(12)
    expect(page.locator(".panel .choice:focus")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator(".panel")).to_have_count(0)
    assert focused(page) == here
    page.keyboard.press("Enter")
    expect(page.locator(".panel .choice:focus")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".branch .forced")).to_have_count(1)
    written(page)
    expect(page.locator(".branch .t:focus")).to_have_count(1)


def test_two_tabs_do_not_disturb_each_other(visit):
    first = visit()
    second = visit.again(first.context)
    write(first)
    before = lines(first)
    second.locator("#prompt").fill("Lisboa")
    second.locator("#prompt").press("Enter")
    second.close()  # in the middle of it
    write(first)
    assert lines(first) == before and all(line.startswith("Governo") for line in before)


def test_enter_before_the_page_knows_its_run_does_nothing(browser, address):
    """A page that is slow to hear of its run neither reloads nor forgets what was typed meanwhile."""
    page, waiting = browser.new_page(), []
    page.route("**/run", lambda route: waiting.append(route))
    page.goto(address)
    while not waiting:
        page.wait_for_timeout(10)
    page.locator("#prompt").fill("Governo")
    page.locator("#prompt").press("Enter")
    assert page.locator("#write").is_disabled()
    waiting[0].continue_()
    expect(page.locator("#write")).to_be_enabled()
    assert page.locator("#prompt").input_value() == "Governo" and "?" not in page.url and len(waiting) == 1
    page.close()


def test_tokens_come_one_by_one_until_they_are_stopped(browser, run):
    """Texts that never end: some of it can be read, Stop ends them, and so does closing the tab."""
    backend = Slow(load_backend("torch"))
    with served(run, backend.load) as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#write")).to_be_enabled()
        for ending in (page.locator("#write").click, page.close):
            page.locator("#prompt").press("Enter")
            expect(page.locator(FIRST).locator(".t").nth(20)).to_be_visible()
            assert page.locator("#write").inner_text() == "Stop" and not backend.left.acquire(blocking=False)
            ending()
            assert all(backend.left.acquire(timeout=60) for _ in range(3)), "a column goes on for nobody"
            if not page.is_closed():
                expect(page.locator(FIRST).locator(".state")).to_have_text("stopped")
                expect(page.locator("#write")).to_have_text("Write")


def test_what_fails_is_said_in_its_column_and_writing_goes_on(visit):
    page = visit()
    write(page, "palavra " * 60)
    expect(page.locator(FIRST).locator(".problem")).to_contain_text("context is 96")
    write(page)
    expect(page.locator(".problem")).to_have_count(0)
    assert len(lines(page)) == 2
    page.locator("#rows").fill("99")
    page.locator("#prompt").press("Enter")
    assert page.locator("#rows:invalid").count() == 1 and len(lines(page)) == 2


def test_a_prompt_with_tags_is_a_prompt(visit):
    page = visit()
    write(page, "<img src=x onerror=alert(1)><script>alert(1)</script>")
    assert page.locator("main img, main script").count() == 0
    assert lines(page)[0].startswith("<img src=x onerror=alert(1)><script>")


# --- for everybody ------------------------------------------------------------------------------


def width(page) -> int:
    return page.locator("html").evaluate("(root) => root.scrollWidth")


def background(page) -> str:
    return page.locator("body").evaluate("(body) => getComputedStyle(body).backgroundColor")


def test_it_fits_a_phone(visit):
    page = visit(viewport=PHONE)
    write(page, "Governo anuncia novas medidas para os hospitais")
    page.locator(FIRST).locator(".t").nth(1).click()
    expect(page.locator(".panel .choice")).to_have_count(12)
    assert width(page) == PHONE["width"]


def test_the_theme_follows_the_system_until_one_is_chosen(visit):
    page = visit(color_scheme="dark")
    assert background(page) == DARK
    page.locator("#theme").click()
    assert background(page) == LIGHT and page.locator("#theme").inner_text() == "theme: light"
    assert background(visit.again(page.context)) == LIGHT


@needs_axe
@pytest.mark.parametrize("how", [{"color_scheme": "light"}, {"color_scheme": "dark", "viewport": PHONE}], ids=str)
def test_axe_finds_nothing(visit, how):
    """Contrast, names, roles, order: with everything open, in headlines and in a conversation."""
    page = visit(**how, bypass_csp=True)  # axe is put into the page
    write(page)
    page.locator(FIRST).locator(".t").nth(1).click()
    page.locator(".panel tr:not(.taken) .choice").first.click()
    written(page)
    page.locator(".branch .t").last.click()
    page.locator(FIRST).locator("summary").click()
    expect(page.locator(".panel .choice")).to_have_count(12)
    assert violations(page) == []
    page.get_by_text("Conversation", exact=True).click()
    page.locator("#max_new_tokens").fill("12")
    write(page, "Olá")
    page.locator(FIRST).locator(".t").first.click()
    expect(page.locator(".panel .choice")).to_have_count(12)
    assert violations(page) == []
