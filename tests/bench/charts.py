"""Charts: SVG as text, for a page that colours it.

Positions across are percentages and text has a size of its own, so that a chart fits any width
without getting too small to read. Colours are classes that `docs/_static/bench.css` defines, for
light and dark. Who is who is told by words, by dashes and by marks, too.
"""

import math
from html import escape
from itertools import pairwise

from tests.bench import UNFINISHED
from tests.bench.rows import BOUND, CHANNELS, GREEN, NATIVE, OURS

# Pixels.
BAR, GAP, HEADING, LINE, PLOT = 22, 4, 22, 18, 220
# How much of the width the longest bar takes: the figures stand beside it.
LONGEST = 80
COLOURS = {OURS: 0, CHANNELS: 1, NATIVE: 2, BOUND: 3, GREEN: 5}
OTHER = 4
MARKS = {
    0: '<circle r="4"/>',
    1: '<rect x="-4" y="-4" width="8" height="8"/>',
    2: '<path d="M0-5 5 4H-5z"/>',
    3: '<path d="M0-5 5 0 0 5-5 0z"/>',
    4: '<path d="M-4-4 4 4M-4 4 4-4"/>',
    5: '<path d="M0 5 5-4H-5z"/>',
}


def label(value, unit):
    """Return a figure with its unit, as a label has it, or that there is none."""
    if value is None:
        return UNFINISHED
    return f"{value:,.{0 if unit == '/s' else 1}f}{unit}"


def frame(title, words, height, body):
    """Return the picture, with what it is and what it says."""
    anchor = "chart-" + "".join(each if each.isalnum() else "-" for each in title.lower())
    return (
        f'<svg class="chart" role="img" width="100%" height="{height:g}" '
        f'aria-labelledby="{anchor}-title" aria-describedby="{anchor}-description">'
        f'<title id="{anchor}-title">{escape(title)}</title>'
        f'<desc id="{anchor}-description">{escape(words)}</desc>{"".join(body)}</svg>'
    )


def caption(title):
    """Return the title, above all else."""
    return f'<text class="chart-title" y="14">{escape(title)}</text>'


def bars(title, words, groups):
    """Return bars, by group; each group (heading, unit, {name: value}) has a scale of its own.

    A value of None is told in words, and has no bar.
    """
    body, y = [caption(title)], HEADING
    for heading, unit, values in groups:
        if heading:
            body.append(f'<text class="chart-heading" y="{y + 16}">{escape(heading)}</text>')
            y += HEADING
        longest = max([value for value in values.values() if value], default=1)
        for name, value in values.items():
            kind = f"timeline-colour-{COLOURS.get(name, OTHER)}"
            kind += " chart-ours" * (name in (OURS, GREEN))
            body.append(
                f'<svg class="chart-bar {kind}" y="{y}" width="100%" height="{BAR}">'
                '<rect class="chart-lane" width="100%" height="100%"/>'
                f'<rect width="{LONGEST * (value or 0) / longest:.2f}%" height="100%"/>'
                f'<text x="6" y="15">{escape(name)}</text>'
                f'<text class="chart-end" x="99%" y="15">{label(value, unit)}</text></svg>'
            )
            y += BAR + GAP
        y += GAP
    return frame(title, words, y, body)


def steps(most, log):
    """Return the values that have a line across."""
    if log:
        return [10**each for each in range(1, math.ceil(math.log10(most)) + 1)]
    step = 10 ** math.floor(math.log10(most))
    step = next(each for each in (step, step / 2, step / 5) if most / each >= 2.5)
    return [step * each for each in range(1, math.ceil(most / step) + 1)]


def lines(title, words, axis, points, series, *, log=False):
    """Return lines, each of values at *points*, which stand at equal distances.

    A line is broken where the value is None.
    """
    most = max(value for values in series.values() for value in values if value)
    grid = steps(most, log)
    base = math.log10(grid[0]) - 0.15 if log else 0
    top = math.log10(grid[-1]) if log else grid[-1]
    legend = math.ceil(len(series) / 2) * LINE
    above = HEADING + legend + LINE

    def across(i):
        return f"{6 + 88 * i / max(len(points) - 1, 1):.2f}%"

    def down(value):
        part = ((math.log10(value) if log else value) - base) / (top - base)
        return f"{above + PLOT * (1 - part):.1f}"

    body = [caption(title)]
    for each in grid:
        y = down(each)
        body.append(f'<line class="timeline-tick" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        body.append(f'<text class="timeline-label" y="{float(y) - 3:.1f}">{each:,.0f}</text>')
    body.append(
        f'<line class="chart-axis" x1="0" x2="100%" y1="{above + PLOT}" y2="{above + PLOT}"/>'
    )
    for i, point in enumerate(points):
        x, y = across(i), above + PLOT + LINE - 2
        body.append(f'<text class="timeline-label chart-middle" x="{x}" y="{y}">{point:,}</text>')
    y = above + PLOT + 2 * LINE - 2
    body.append(f'<text class="timeline-label chart-end" x="100%" y="{y}">{escape(axis)}</text>')
    # ormbridge comes last, above the others.
    for number, (name, values) in reversed(list(enumerate(series.items()))):
        colour = COLOURS.get(name, OTHER)
        column, line = number % 2, number // 2
        body.append(f'<g class="chart-line timeline-colour-{colour}">')
        x, y = 50 * column, HEADING + LINE * line + 10
        body.append(f'<svg class="chart-mark" x="{x}%" y="{y}"><g transform="translate(6)">')
        body.append(f'{MARKS[colour]}</g><text x="16" y="4">{escape(name)}</text></svg>')
        known = [(i, value) for i, value in enumerate(values) if value]
        for (i, one), (j, two) in pairwise(known):
            ends = f'x1="{across(i)}" y1="{down(one)}" x2="{across(j)}" y2="{down(two)}"'
            body.append(f"<line {ends}/>" * (j == i + 1))
        for i, value in known:
            unit = axis.removesuffix("s") if points[i] == 1 else axis
            said = escape(f"{name}, {points[i]:,} {unit}: {value:,.0f} a second")
            place = f'x="{across(i)}" y="{down(value)}"'
            body.append(
                f'<svg class="chart-mark" {place}><title>{said}</title>{MARKS[colour]}</svg>'
            )
        body.append("</g>")
    return frame(title, words, above + PLOT + 2 * LINE + 2, body)
