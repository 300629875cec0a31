"""The way in: the first screen, what each page says of the package, and what machines read."""

import gzip
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import ormbridge
from docs._ext.record import recordings, spans
from tests.docs.conftest import ROOT, Site

SHOWN = ["index/before", "index/after", "asgi/http_only"]
#: What a page of the site says, in the order that it says it, between two tags.
WORDS = re.compile(r"<[^>]+>|\s+")


def build(path: Path, **values: str) -> Site:
    """Build the first page with the project's ``conf.py``, where *values* stand in their places.

    Pages that it links to are not there, so this is not strict: ``nox -s docs`` is.
    """
    site = Site(path)
    conf = (ROOT / "conf.py").read_text(encoding="utf-8")
    values["ROOT"] = repr(str(ROOT))
    for name, value in values.items():
        line = rf"^({re.escape(name)}(?:: .*)?) = .*$"
        conf, count = re.subn(line, rf"\1 = {value}", conf, flags=re.MULTILINE)
        assert count == 1, name
    site.write("conf.py", conf)
    shutil.copytree(ROOT / "docs/_inventories", site.path("docs/_inventories"))
    shutil.copytree(ROOT / "docs/_static", site.path("docs/_static"))
    shutil.copytree(ROOT / "docs/_templates", site.path("docs/_templates"))
    site.write("docs/index.md", (ROOT / "docs/index.md").read_text(encoding="utf-8"))
    site.write("docs/install.md", "# Install\n\nNothing here.\n")
    for name in SHOWN:
        source = recordings.example_path(ROOT, name).read_text(encoding="utf-8")
        site.write(f"examples/{name}.py", source)
        recorded = recordings.recording_path(ROOT, name)
        timelines = [spans.timeline_path(ROOT, name)] * name.startswith("index/")
        for each in (recorded, *timelines):
            path = each.relative_to(ROOT).as_posix()
            site.write(path, each.read_text(encoding="utf-8"))
    finished = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-c", ".", "docs", "out"],
        cwd=site.root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return site


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Build the site as it is configured."""
    return build(tmp_path_factory.mktemp("today"))


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Build the site as it will be configured, once the package and the site are somewhere."""
    return build(
        tmp_path_factory.mktemp("released"),
        RELEASED="True",
        REPOSITORY="'https://github.com/owner/ormbridge/'",
        html_baseurl="'https://site.example/'",
        redirects="{'set-up': 'install.html'}",
    )


def words(html: str) -> str:
    """Return what is to be read on a page."""
    return unescape(WORDS.sub(" ", html.partition("<article")[2].partition("</article>")[0]))


def meta(html: str, name: str) -> list[str]:
    """Return what the head of a page says of *name*."""
    found = re.findall(r"<meta ([^>]*)>", html)
    return [
        re.findall(r'content="([^"]*)"', each)[0]
        for each in found
        if re.search(rf'(?:name|property)="{name}"', each)
    ]


# The first screen.


def test_first_screen_has_it_all(today: Site):
    """What to install, the versions, the change and both results come before the first heading."""
    html = today.html("index")
    first = re.sub(r" +", " ", words(html).partition("See it for yourself")[0])
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.findall(r'(?:requires-python = "|Django|channels)>=([\d.]+)', project)
    for needed in [
        "python3 -m pip install .",
        *(
            f"{name} {version}+"
            for name, version in zip(["Python", "Django"], oldest, strict=False)
        ),
        "- from channels.db import database_sync_to_async",
        "+ from ormbridge import database_sync_to_async",
        *recordings.load(ROOT, "index/before").output,
        *recordings.load(ROOT, "index/after").output,
        "I start",
        "I run a whole app",
        "I have an error message",
    ]:
        assert needed.replace(" ", "") in first.replace(" ", ""), needed


def test_first_page_is_light(today: Site, record_property):
    """The page and all that it loads is less than 60 kB over the wire."""
    html = today.html("index")
    loaded = re.findall(r'(?:src|href)="(_static/[^"?]*)', html)
    files = [today.output / "index.html", *(today.output / each for each in set(loaded))]
    assert 8 < len(files)
    size = sum(len(gzip.compress(each.read_bytes())) for each in files)
    record_property("figure", f"The landing page takes {size / 1000:.1f} kB over the wire.")
    assert size < 60_000


# Today, and once it is released.


def test_side_bar_installs_from_a_checkout(today: Site):
    """Each page says the version, and how to install what is not on an index yet."""
    for page in ("index", "install"):
        side = today.html(page).partition('<div class="way-in">')[2].partition("</div>")[0]
        assert f"Version {ormbridge.__version__}" in side
        assert "<code>python3 -m pip install .</code>" in side


def test_side_bar_installs_from_the_index(released: Site):
    """One value in ``conf.py`` changes that on each page."""
    for page in ("index", "install"):
        html = released.html(page)
        assert "<code>python3 -m pip install ormbridge</code>" in html
        assert "pip install ." not in html
    assert "checkout" not in words(released.html("index"))


def test_no_link_leads_to_a_repository_that_is_not_there(today: Site):
    """Without an address no page can be edited, and no error be reported."""
    html = today.html("install")
    assert [] == [each for each in ("Edit this page", "Report an error") if each in html]


def test_repository_is_linked(released: Site):
    """With an address each page can be edited, and an error be reported."""
    html = released.html("install")
    links = re.findall(r'<a [^>]*href="https://github.com/owner/ormbridge/([^"]*)"', html)
    assert ["", "issues", "edit/main/docs/install.md"] == links
    assert "Edit this page" in html


# What machines read.


def test_description(today: Site):
    """The first page describes itself in a sentence, and other services show a card."""
    html = today.html("index")
    (description,) = meta(html, "description")
    assert 100 < len(description) < 250
    assert [description] == [" ".join(each.split()) for each in meta(html, "description")]
    assert meta(html, "og:image") == ["_static/card.png"]
    assert meta(html, "og:title") == ["Call the Django ORM from async code"]


def test_card_is_of_the_usual_size():
    """The card is a PNG of 1200 x 630 pixels."""
    head = (ROOT / "docs/_static/card.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert (1200, 630) == (int.from_bytes(head[16:20]), int.from_bytes(head[20:24]))


def test_address_of_the_site(released: Site):
    """With an address, a page names its own, a card has one, and all pages are on the map."""
    html = released.html("install")
    assert '<link rel="canonical" href="https://site.example/install.html"' in html
    assert meta(html, "og:image") == ["https://site.example/_static/card.png"]
    listed = (released.output / "sitemap.xml").read_text(encoding="utf-8")
    pages = re.findall(r"<loc>https://site.example/(.*?)</loc>", listed)
    assert sorted(pages) == ["index.html", "install.html"]


def test_old_name_leads_to_the_new_page(released: Site):
    """A page that was renamed is found under its old name, and is not on the map of the site."""
    assert 'http-equiv="refresh" content="0; url=install.html"' in released.html("set-up")
    assert "set-up" not in (released.output / "sitemap.xml").read_text(encoding="utf-8")


def test_page_that_is_not_there(today: Site):
    """The page for an address that is not there loads what it needs from the root."""
    html = today.html("404")
    assert '"/_static/site.css' in html
    assert "<h1" in html


def test_plain_text_has_the_code(today: Site):
    """``llms-full.txt`` holds the pages, code of the examples and all; ``llms.txt`` lists them."""
    full = (today.output / "llms-full.txt").read_text(encoding="utf-8")
    listed = (today.output / "llms.txt").read_text(encoding="utf-8")
    for name in SHOWN:
        source = recordings.example_path(ROOT, name).read_text(encoding="utf-8")
        assert f"```python\n{source.replace('  # <--', '').strip()}\n```" in full
    assert "```{" not in full
    assert "# Install\n" in full
    assert "- [Install](install.html): Nothing here" in listed
    assert "- [Call the Django ORM from async code](index.html): " in listed


def test_icon(today: Site):
    """The site has an icon of its own."""
    assert '<link rel="shortcut icon" href="_static/favicon.svg">' in today.html("index")
    assert (today.output / "_static/favicon.svg").is_file()


def test_build_that_is_served_is_as_strict():
    """``docs-live`` takes a warning for an error, as ``docs`` does."""
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    live = noxfile.partition("def docs_live")[2].partition("@nox")[0]
    assert '"-W"' in live
    assert '"-n"' in live


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height", "screens"), [(390, 844, 2), (1280, 800, 1)])
def test_result_is_near_the_top(
    today: Site,
    browser: Browser,
    width: int,
    height: int,
    screens: int,
    scheme: str,
    record_property,
):
    """Both results are seen within two screens of a phone or one of a desk; nothing sticks out."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto((today.output / "index.html").as_uri())
    results = page.locator(".timeline-printed").all()
    boxes = [each.bounding_box() for each in results]
    wide = page.evaluate("document.documentElement.scrollWidth")
    page.close()
    assert len(results) == 2
    screen = boxes[0]["y"] / height
    record_property(
        "figure", f"{width} px, {scheme}: the first result is {screen:.1f} screens down."
    )
    assert [] == [each for each in boxes if not each or each["y"] > screens * height]
    assert wide == width
