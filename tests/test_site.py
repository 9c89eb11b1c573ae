"""The site: a row a definition, none without a partner; every link leads somewhere; read in a browser, offline.

It is built once, in a copy of the checkout that holds nothing else (no build, no environment), as `make docs` does.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from browsers import chromium, needs_axe, violations
from PIL import Image

ROOT = Path(__file__).parent.parent
SITE = ROOT / "tools" / "site"
sys.path.insert(0, str(SITE))

import words  # noqa: E402
from book import book, places  # noqa: E402
from build_site import EXAMPLE  # noqa: E402
from chapters import CHAPTERS, TWINS, Chapter, chapters, modules_of  # noqa: E402
from definitions import SiteError, read  # noqa: E402
from links import problems  # noqa: E402
from marks import code, differing, pieces  # noqa: E402
from pairs import merged, twin_rows  # noqa: E402
from picture import shown_code  # noqa: E402
from reads import uses  # noqa: E402
from test_twins import public_signatures  # noqa: E402

PARTS = ("faisca", *TWINS, "benchmarks", "docs", "lessons", "parity_tests", "tests", "tools")
FILES = ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff")
PHONE, WIDE = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
pytestmark = pytest.mark.xdist_group("site")  # one process builds it


# --- rows ---------------------------------------------------------------------------------------


def plant(root: Path, torch: str, mlx: str, module: str = "model") -> Path:
    """Twins of one module, and the boundary."""
    for twin, text in zip(TWINS, (torch, mlx), strict=True):
        (root / twin).mkdir(exist_ok=True)
        (root / twin / f"{module}.py").write_text(text)
    (root / "faisca").mkdir(exist_ok=True)
    shutil.copy(ROOT / "faisca" / "backend.py", root / "faisca")
    return root


def test_every_public_definition_of_the_twins_has_a_row():
    """Counted by the reader of tests/test_twins.py, which is another; `__init__` stands with its class."""
    rows = [row for _, rows in book().values() for row in rows]
    shown = {(row.torch.path, row.title) for row in rows if row.torch and row.mlx}
    expected = {
        (f"faisca_torch/{module}.py", name)
        for module in modules_of("faisca_torch")
        for name, _ in public_signatures(ROOT / "faisca_torch" / f"{module}.py")
        if not name.endswith(".__init__")
    }
    assert len(expected) > 60 and expected <= shown
    assert len({(name, row.anchor) for name, (_, rows) in book().items() for row in rows}) == len(rows)


def test_every_private_definition_has_a_row_too_or_a_word_why():
    placed = places()
    for twin in TWINS:
        for module in modules_of(twin):
            definitions = read(f"{twin}/{module}.py").definitions
            assert definitions and all((one.path, one.name) in placed for one in definitions)


def test_the_chapters_stand_in_reading_order():
    order = ["numbers", "model", "loss", "optimiser", "step", "sampling", "grpo", "adapters", "processes", "proof"]
    assert [name for name in order if name in book()] == list(book())
    assert [chapter.name for chapter in CHAPTERS] == order
    assert set(order) - set(book()) <= {"adapters"}


def test_rows_follow_the_files():
    rows = [row for row in book()["model"][1] if row.torch]
    files = ("faisca_torch/model.py", "faisca_torch/cache.py", "faisca_torch/experts.py")
    expected = [one.name for path in files for one in read(path).definitions]
    assert [row.title for row in rows] == expected
    assert merged(["a", "c"], ["x", "a", "b", "c", "d"]) == ["x", "a", "b", "c", "d"]


def test_a_public_definition_without_a_partner_is_an_error(tmp_path):
    plant(tmp_path, "def one(): ...\n\n\ndef two(): ...\n", "def one(): ...\n")
    with pytest.raises(SiteError, match=r"^faisca_torch/model.py:4: two has no partner in faisca_mlx/model.py$"):
        twin_rows("model", tmp_path)


def test_a_public_method_without_a_partner_is_an_error(tmp_path):
    plant(tmp_path, "class A:\n    x = 1\n", "class A:\n    def __call__(self): ...\n")
    with pytest.raises(SiteError, match=r"^faisca_mlx/model.py:2: A.forward has no partner in faisca_torch/model.py$"):
        twin_rows("model", tmp_path)


def test_private_ones_and_constants_may_stand_alone(tmp_path):
    plant(tmp_path, "def one(): ...\n", "BLOCK = 16\n\n\ndef _help(): ...\n\n\ndef one(): return _help()\n")
    rows = twin_rows("model", tmp_path)
    assert [(row.title, row.torch is None) for row in rows] == [("BLOCK", True), ("_help", True), ("one", False)]


def test_a_module_without_a_partner_or_a_place_is_an_error(tmp_path):
    plant(tmp_path, "", "")
    table = (Chapter("model", "The model", "", ("model",)),)
    assert [modules for _, modules in chapters(tmp_path, table)] == [["model"]]
    (tmp_path / "faisca_torch" / "extra.py").write_text("")
    with pytest.raises(SiteError, match=r"^faisca_torch/extra.py has no partner in faisca_mlx/"):
        chapters(tmp_path, table)
    (tmp_path / "faisca_mlx" / "extra.py").write_text("")
    with pytest.raises(SiteError, match=r"faisca_torch/extra.py stands in 0 chapters: .* tools/site/chapters.py"):
        chapters(tmp_path, table)


def test_what_differs_is_bold_and_nothing_else(tmp_path):
    plant(
        tmp_path, "def f(x: Tensor):\n    return x.to(x.dtype)\n", "def f(x: mx.array):\n    return x.astype(x.dtype)\n"
    )
    (row,) = twin_rows("model", tmp_path)
    ours, theirs = pieces(row.torch), pieces(row.mlx)
    bold = [[side[i][1] for i in sorted(differing(side, other))] for side, other in ((ours, theirs), (theirs, ours))]
    assert bold == [["Tensor", "to"], ["mx", ".", "array", "astype"]]
    shown = re.sub(r"</?(span|wbr)[^>]*>", "", code(row.mlx, differing(theirs, ours)))
    assert re.findall(r"<b>(.*?)</b>", shown) == ["mx.array", "astype"]
    assert "<b>" not in code(row.torch, differing(ours, ours))


def test_the_code_shown_is_the_code():
    """Line by line, with the numbers that it has in its file; the docstring stands above it."""
    one = read("faisca_torch/model.py").find("rotate")
    source = (ROOT / one.path).read_text().splitlines()
    assert [source[number - 1].rstrip() for number, _ in one.lines] == [line for _, line in one.lines]
    assert one.docstring and one.docstring not in code(one) and len(one.lines) == one.last - one.first
    shown = re.findall(r'data-n="(\d+)"[^>]*>(.*?)</span>(?=<span class="row-line"|</pre>)', code(one))
    assert [int(number) for number, _ in shown] == [number for number, _ in one.lines]


def test_what_both_say_is_said_once():
    assert words.parted("Same. Here a.", "Same. Here b.") == ("Same.", "Here a.", "Here b.")
    assert words.parted("Same.", "Same.") == ("Same.", "", "")
    assert words.markdown("`a_b` * [x] <s>") == "`a_b` \\* \\[x\\] \\<s\\>"


def test_a_row_names_what_it_takes_from_the_core():
    (row,) = [row for row in book()["model"][1] if row.anchor == "model.Attention.attend"]
    found = {use.name: use for use in uses(row)}
    assert {"config.num_heads", "config.attention_dropout", "runtime.attention"} <= found.keys()
    use = found["config.num_heads"]
    assert "num_heads" in (ROOT / use.path).read_text().splitlines()[use.line - 1] and use.about == "attention heads"
    (step,) = [row for row in book()["step"][1] if row.anchor == "train.train_step"]
    assert step.core.path == "faisca/backend.py" and step.core.name == "Backend.train_step"


# --- the build ----------------------------------------------------------------------------------


def copied(folder: Path) -> Path:
    """What a clean checkout has of what the site is made of."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


def build(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, checkout / "tools" / "site" / "build_site.py", *arguments]
    return subprocess.run(command, cwd=checkout.parent, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    checkout = copied(tmp_path_factory.mktemp("checkout"))
    (checkout / "docs" / "pt").mkdir(exist_ok=True)
    (checkout / "docs" / "pt" / "planted.md").write_text(
        "# Título\n\n[Em inglês](../parity.md), [tudo](../../README.md)\n"
    )
    done = build(checkout, "--repository", "https://example.org/owner/name/blob/main")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+ rows in \d+ chapters; read .*/build/site/html/index.html\n", done.stdout)
    return checkout / "build" / "site" / "html"


def test_a_planted_definition_fails_the_build(tmp_path):
    checkout = copied(tmp_path)
    with (checkout / "faisca_mlx" / "losses.py").open("a") as file:
        file.write("\n\ndef another_loss() -> None: ...\n")
    done = build(checkout)
    line = len((checkout / "faisca_mlx" / "losses.py").read_text().splitlines())
    assert done.returncode == 1
    assert done.stderr == f"faisca_mlx/losses.py:{line}: another_loss has no partner in faisca_torch/losses.py\n"
    assert not (checkout / "build").exists()


def test_each_row_and_its_source_lead_to_each_other(site):
    page = (site / "twins" / "model.html").read_text()
    first = read("faisca_mlx/model.py").find("Attention.attend").first
    assert 'id="model.Attention.attend"' in page and f'href="../source/faisca_mlx/model.py.html#L{first}"' in page
    source = (site / "source" / "faisca_mlx" / "model.py.html").read_text()
    line = re.search(rf'<span class="src-line" id="L{first}".*', source)[0]
    assert 'href="../../twins/model.html#model.Attention.attend"' in line
    assert 'href="https://example.org/owner/name/blob/main/faisca_mlx/model.py"' in source


def test_every_document_is_on_the_site(site):
    documents = [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/pt/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    front = (site / "index.html").read_text()
    for document in documents:
        page = document.relative_to(ROOT).with_suffix(".html")
        assert (site / page).is_file() and f'href="{page}"' in front, page
    assert '<html class="no-js" lang="pt"' in (site / "docs" / "pt" / "planted.html").read_text()
    for name in ("faisca.run", "faisca.load", "faisca.LoadedModel.generate", "faisca.backend.Backend.train_step"):
        assert f'id="{name}"' in (site / "api.html").read_text()
    assert 'href="../twins/loss.html#losses.linear_cross_entropy"' in (site / "docs" / "mlx.html").read_text()


def test_every_link_leads_somewhere(site):
    assert problems(site) == []
    assert len(list(site.rglob("*.html"))) > 100


PLANTED = {
    '<a href="absent.html">x</a>': "index.html: absent.html leads to no file",
    '<a href="other.html#absent">x</a>': "index.html: other.html#absent leads to no such place on the page",
    '<a href="#absent">x</a>': "index.html: #absent leads to no such place on the page",
    '<script src="https://example.org/x.js"></script>': "index.html: script fetches https://example.org/x.js",
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_link_is_found(planted, tmp_path):
    (tmp_path / "other.html").write_text('<p id="here">')
    (tmp_path / "index.html").write_text('<a href="other.html#here">x</a><a href="https://example.org">y</a>')
    assert problems(tmp_path) == []
    (tmp_path / "index.html").write_text(planted)
    assert problems(tmp_path) == [PLANTED[planted]]
    done = subprocess.run([sys.executable, SITE / "links.py", tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, PLANTED[planted] + "\n")


def test_nothing_but_pages_is_no_site(tmp_path):
    assert problems(tmp_path) == [f"{tmp_path}: no page there"]
    (tmp_path / "x.css").write_text("@import url(//example.org/font.css)")
    (tmp_path / "index.html").write_text("")
    assert problems(tmp_path) == ["x.css: a style fetches what is not the site's"]


def test_the_workflow_builds_what_make_builds():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "site.yml").read_text())
    steps = workflow["jobs"]["build"]["steps"]
    (command,) = [step["run"] for step in steps if "run" in step]
    assert command.split()[:2] == ["make", "docs"]
    assert re.search(
        r"^docs: install\n\t\S+python tools/site/build_site.py", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    (uploaded,) = [step["with"]["path"] for step in steps if "upload" in step.get("uses", "")]
    assert uploaded == "build/site/html"


def test_readmes_picture_is_of_the_code():
    """After a change of the row that it shows: `make docs`, then `python tools/site/picture.py`."""
    picture = ROOT / "docs" / "images" / "twins.png"
    with Image.open(picture) as image:
        assert image.info["code"] == shown_code(next(row for row in book()[EXAMPLE[0]][1] if row.anchor == EXAMPLE[1]))
    first_screen = (ROOT / "README.md").read_text().splitlines()[:20]
    assert any("(docs/images/twins.png)" in line for line in first_screen) and picture.stat().st_size < 200_000


# --- in a browser -------------------------------------------------------------------------------


browser = pytest.fixture(chromium, scope="module")


@pytest.fixture
def visit(browser, site):
    """Open a page from its file, without a network; what it asks of anywhere else, and every complaint, is noted."""
    contexts, noted = [], []

    def opened(name: str, **how):
        how = {"viewport": WIDE, "color_scheme": "light", "reduced_motion": "reduce", "offline": True, **how}
        contexts.append(browser.new_context(**how))
        page = contexts[-1].new_page()
        page.on("request", lambda request: request.url.startswith(site.as_uri()) or noted.append(request.url))
        page.on("console", lambda message: message.type == "log" or noted.append(message.text))  # furo says its theme
        page.on("pageerror", lambda error: noted.append(str(error)))
        page.goto(site.joinpath(name.partition("#")[0]).as_uri() + "".join(name.partition("#")[1:]))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not noted


def box(page, selector: str) -> dict[str, float]:
    return page.locator(selector).first.bounding_box()


ATTEND = "section:has(> [id='model.Attention.attend']) > .row"


def test_three_columns_on_a_desk_and_one_on_a_phone(visit):
    page = visit("twins/model.html")
    core, torch, mlx = (box(page, f"{ATTEND} .{side}") for side in ("core", "torch", "mlx"))
    assert core["y"] == torch["y"] == mlx["y"] and core["x"] < torch["x"] < mlx["x"]
    weights = page.locator(f"{ATTEND} b").first.evaluate("(one) => getComputedStyle(one).fontWeight")
    assert int(weights) >= 700
    page = visit("twins/model.html", viewport=PHONE)
    core, torch, mlx = (box(page, f"{ATTEND} .{side}") for side in ("core", "torch", "mlx"))
    assert core["x"] == torch["x"] == mlx["x"] and core["y"] < torch["y"] < mlx["y"]


@pytest.mark.parametrize("name", ["index.html", "twins/model.html", "source/faisca_mlx/model.py.html"])
def test_nothing_is_wider_than_a_phone(visit, name):
    page = visit(name, viewport=PHONE)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]


def test_the_keyboard_goes_to_the_source_and_back(visit):
    page = visit("twins/model.html")
    link = page.locator(f"{ATTEND} .mlx .where a").first
    page.locator(f"{ATTEND} .torch .where a").first.focus()
    page.keyboard.press("Tab")
    assert link.evaluate("(one) => one === document.activeElement")
    page.keyboard.press("Enter")
    page.wait_for_url("**/source/faisca_mlx/model.py.html#L*")
    first = read("faisca_mlx/model.py").find("Attention.attend").first
    target = page.locator(":target")
    assert target.get_attribute("id") == f"L{first}" and "def attend" in target.inner_text()
    target.locator("a.back").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/twins/model.html#model.Attention.attend")


def test_the_theme_that_is_chosen_holds_for_the_source_too(visit):
    back = "getComputedStyle(document.body).backgroundColor"
    page = visit("index.html", color_scheme="light")
    light = page.evaluate(back)
    while page.evaluate("document.body.dataset.theme") != "dark":
        page.locator(".theme-toggle:visible").click()
    dark = page.evaluate(back)
    assert dark != light
    page.goto(page.url.replace("index.html", "source/faisca_mlx/model.py.html"))
    assert page.evaluate(back) == dark


def test_search_finds_a_definition(visit):
    page = visit("search.html")
    page.goto(page.url.partition("?")[0] + "?q=linear_cross_entropy")
    page.wait_for_selector(".search a[href*='twins/loss.html'], #search-results a[href*='twins/loss.html']")


@needs_axe
@pytest.mark.parametrize("how", [{"color_scheme": "light"}, {"color_scheme": "dark", "viewport": PHONE}], ids=str)
@pytest.mark.parametrize(
    "name", ["index.html", "twins/loss.html", "docs/benchmarks.html", "api.html", "source/faisca_mlx/sums.py.html"]
)
def test_axe_finds_nothing(visit, name, how):
    """Contrast, names, roles, order: every rule of axe-core, with the details open."""
    page = visit(name, **how)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert violations(page) == []
