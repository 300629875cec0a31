"""Draw the picture of the README: the two timelines of the landing page, in one file.

::

    python -m docs._scaffold.picture

It is what the directive ``timeline`` draws on the page, with the colours of ``site.css`` in it, so
that it stands by itself; a test compares the file with what this draws today.
"""

import re
import shutil
from pathlib import Path

from docs._ext.record import recordings, spans
from docs._ext.timeline import draw, end_of

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "_static" / "before-and-after.svg"
CARD = ROOT / "docs" / "_static" / "card.png"
BOTH = {"index/before": "channels.db, one thread", "index/after": "ormbridge, ten threads"}
WIDTH, HEIGHT, GAP, HEAD = 720, 268, 24, 44
STYLE = """
svg {{ font: 11px system-ui, sans-serif }}
.ground {{ fill: {ground} }}
.title {{ fill: {ink}; font-size: 15px; font-weight: 600 }}
.printed {{ fill: {ink}; font: 13px monospace }}
.timeline-label {{ fill: {label} }}
.timeline-lane {{ fill: {lane} }}
.timeline-tick {{ stroke: {lane} }}
.timeline-waiting {{ fill: {label}; opacity: 0.4 }}
.timeline-call rect {{ fill: {bar}; stroke: {edge}; stroke-width: 2px }}
"""
LIGHT = {"ground": "#ffffff", "ink": "#14181f", "label": "#50565f", "lane": "#eceff3"}
DARK = {"ground": "#131416", "ink": "#eef1f5", "label": "#a9b0ba", "lane": "#26292e"}


def picture() -> str:
    """Return the picture as SVG."""
    css = (ROOT / "docs/_static/site.css").read_text(encoding="utf-8")
    bars, edges = re.findall(r"--bar-0: (.*);", css), re.findall(r"--bar-0-edge: (.*);", css)
    light = STYLE.format(**LIGHT, bar=bars[0], edge=edges[0])
    dark = STYLE.format(**DARK, bar=bars[-1], edge=edges[-1])
    found = {name: spans.load(ROOT, name).spans for name in BOTH}
    longest = max(map(end_of, found.values()))
    column = (WIDTH - 3 * GAP) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<style>{light}@media (prefers-color-scheme: dark) {{{dark}}}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
    ]
    for number, (name, title) in enumerate(BOTH.items()):
        (printed,) = recordings.load(ROOT, name).output
        parts += [
            f'<svg x="{GAP + number * (column + GAP):.0f}" y="20" width="{column:.0f}">',
            f'<text class="title" y="14">{title}</text>',
            f'<text class="printed" y="34">{printed}</text>',
            f'<svg y="{HEAD}">',
            *draw(name, title, found[name], longest, brief=True),
            "</svg></svg>",
        ]
    return "\n".join([*parts, "</svg>", ""])


def render_card() -> None:
    """Render the picture below the title of the site, in the size that services ask for."""
    from playwright.sync_api import sync_playwright

    page = f"""<body style="margin: 0; padding: 60px; font: 28px system-ui, sans-serif">
        <div style="font-size: 64px; font-weight: 700">ormbridge</div>
        <p style="margin: 8px 0 24px">Call the Django ORM from async code, many calls at a time</p>
        <div style="width: 1080px">{picture()}</div>"""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 1200, "height": 630}, color_scheme="light")
        tab.set_content(page)
        tab.screenshot(path=CARD)
        browser.close()


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    render_card()
