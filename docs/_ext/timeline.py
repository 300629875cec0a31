"""The ``timeline`` directive: what ran when, on which thread, drawn from a recorded run.

::

    ```{timeline} asgi/sockets_before
    :caption: Twenty sockets, one thread
    :scale: asgi/sockets_after
    ```

draws ``examples/recorded/asgi/sockets_before.timeline.json`` (see ``spans``) as a picture: a lane
for each thread, a bar for each call, a colour and a number for each request or socket, and how many
calls waited. ``scale`` draws it on the same scale as the timelines that it names, whichever is the
longest. The figures follow as a table that can be folded out. ``brief`` draws thin bars without
names, and says what the example printed in that run in place of the rest, which is folded away.

The picture is SVG in the page. Positions are percentages and text has a size of its own, so that it
fits any width without getting too small to read. Colours are classes that ``site.css`` defines.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from . import SAFE
from .proven import plural, table
from .record import spans
from .record.recordings import RecordingError, example_path, load, recording_path
from .record.spans import Span
from .record.words import enumerated

logger = logging.getLogger(__name__)

#: How many colours there are; after the last, the first one comes again.
COLOURS = 6
# Pixels.
LINE, BAR, GAP, STRIP = 14, 20, 6, 28
#: The same in brief: no line for the name of a thread, thin bars.
BRIEF = 0, 9, 3
#: What the environment is told of, but for the database: that only where there was a connection.
PACKAGES = ("Python", "Django", "Channels", "asgiref")
#: The narrowest picture that labels are made to fit, and the width of a letter.
NARROWEST, LETTER = 320, 6.2


class Timeline(SphinxDirective):
    """Draw one recorded run."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Callable[[str], Any]] | None] = {
        "caption": directives.unchanged_required,
        "scale": directives.unchanged_required,
        "brief": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        """Return the figure, or nothing if a recording does not hold."""
        name = self.arguments[0]
        if "caption" not in self.options:
            raise self.error(
                f"timeline '{name}' has no caption; say with ':caption:' what it shows"
            )
        figure = nodes.container("", classes=["timeline"])
        self.env.metadata[self.env.current_document.docname].setdefault("timelines", []).append(
            name
        )
        root = self.env.srcdir.parent
        timelines = []
        for each in (name, *self.options.get("scale", "").split()):
            self.env.note_dependency(example_path(root, spans.example_of(each)))
            self.env.note_dependency(spans.timeline_path(root, each))
            try:
                timelines.append(spans.load(root, each))
            except RecordingError as error:
                self.env.note_reread()  # so that the next build does not forget the warning
                logger.warning("%s", error, location=self.get_location(), type="timeline")
                return [figure]
        timeline, longest = timelines[0], max(end_of(each.spans) for each in timelines)
        caption = nodes.paragraph("", "", classes=["timeline-caption"])
        caption += self.parse_inline(self.options["caption"], lineno=self.lineno)[0]
        brief = "brief" in self.options
        picture = "".join(draw(name, caption.astext(), timeline.spans, longest, brief=brief))
        words = nodes.paragraph("", f"{told(timeline.spans)} {made(timeline)}")
        summary = "How it was recorded" if brief else "The figures as a table"
        folded = nodes.raw("", f"<details><summary>{summary}</summary>", format="html")
        self.env.note_dependency(recording_path(root, spans.example_of(name)))
        printed = nodes.paragraph("", printed_by(root, name), classes=["timeline-printed"])
        figure += [
            *([caption, printed] if brief else [caption]),
            nodes.raw("", picture, format="html"),
            *([folded, words] if brief else [words, folded]),
            figures(timeline.spans),
            nodes.raw("", "</details>", format="html"),
        ]
        return [figure]


def printed_by(root: Path, name: str) -> str:
    """Return what the example of the timeline *name* printed, or nothing if it is not recorded."""
    try:
        return "\n".join(load(root, spans.example_of(name)).output)
    except RecordingError:
        return ""  # closed_set reports it


def end_of(found: Iterable[Span]) -> float:
    """Return when the last span ended, in seconds."""
    return max(span.ended for span in found)


def told(found: tuple[Span, ...]) -> str:
    """Return in words what the picture shows."""
    calls = [span for span in found if not span.held]
    threads = {span.thread for span in found}
    opened = {number for span in found for number in span.connections}
    parts = [f"{plural(len(calls), 'call')} on {plural(len(threads), 'thread')}"]
    if opened:
        parts.append(plural(len(opened), "connection"))
    parts.append(f"{spans.most_at_once(found)} at a time at most")
    parts.append(f"all done after {milliseconds(end_of(found))} ms")
    return ", ".join(parts) + "."


def made(timeline: spans.Timeline) -> str:
    """Return when and with what the run was recorded."""
    found = timeline.environment
    said = [f"{word} {found[word.lower()]}" for word in PACKAGES if found.get(word.lower())]
    if found.get("database") and any(span.connections for span in timeline.spans):
        said.append(found["database"])
    return f"Recorded on {timeline.recorded} with {enumerated(said)}."


def milliseconds(seconds: float) -> str:
    """Return *seconds* in whole milliseconds."""
    return f"{seconds * 1000:,.0f}"


def figures(found: tuple[Span, ...]) -> nodes.table:
    """Return a table with a row for each span."""
    heads = ["In", "Call", "Thread", "Connection", "Asked (ms)", "Began (ms)", "Ended (ms)"]
    rows = (
        (
            span.where,
            "holds the thread" if span.held else span.call,
            span.thread,
            ", ".join(map(str, span.connections)) or "none",
            *map(milliseconds, (span.asked, span.began, span.ended)),
        )
        for span in found
    )
    return table(heads, rows, "timeline-table")


def draw(
    name: str, caption: str, found: tuple[Span, ...], longest: float, *, brief: bool = False
) -> Iterator[str]:
    """Yield the picture: how many calls wait, a lane for each thread, and the scale."""
    line, bar, gap = BRIEF if brief else (LINE, BAR, GAP)

    def across(seconds: float) -> str:
        return f"{100 * seconds / longest:.3f}%"

    anchor = nodes.make_id(f"timeline-{name}")
    threads = list(dict.fromkeys(span.thread for span in found))
    colours = {each: i % COLOURS for i, each in enumerate(dict.fromkeys(s.where for s in found))}
    waits = waiting(found, longest)
    top = STRIP + LINE + GAP if waits else 0
    height = top + len(threads) * (line + bar + gap) + LINE + GAP
    yield (
        f'<svg class="timeline-picture" role="img" width="100%" height="{height}" '
        f'aria-labelledby="{anchor}-title" aria-describedby="{anchor}-description">'
        f'<title id="{anchor}-title">{escape(caption)}</title>'
        f'<desc id="{anchor}-description">{escape(told(found))}</desc>'
    )
    for tick in ticks(longest):
        x = across(tick)
        yield f'<line class="timeline-tick" x1="{x}" x2="{x}" y1="0" y2="{height - LINE}"/>'
        label = f"{milliseconds(tick)}{' ms' if tick == 0 else ''}"
        yield f'<text class="timeline-label" x="{x}" y="{height - 2}">{label}</text>'
    if waits:
        most = max(count for _, _, count in waits)
        yield f'<text class="timeline-label" y="{LINE - 3}">waiting calls: {most} at most</text>'
        for since, until, count in waits:
            tall = STRIP * count / most
            yield (
                f'<rect class="timeline-waiting" x="{across(since)}" y="{LINE + STRIP - tall:.1f}" '
                f'width="{across(until - since)}" height="{tall:.1f}"/>'
            )
    for lane, thread in enumerate(threads):
        y = top + lane * (line + bar + gap) + line
        if not brief:
            yield f'<text class="timeline-label" y="{y - 3}">{escape(thread)}</text>'
        yield f'<rect class="timeline-lane" y="{y}" width="100%" height="{bar}"/>'
        here = [span for span in found if span.thread == thread]
        # What is held lies behind the calls.
        for span in sorted(here, key=lambda each: not each.held):
            kind = "held" if span.held else "call"
            room = (span.ended - span.began) / longest * NARROWEST
            inset = 0 if span.held or brief else 2
            yield (
                f'<svg class="timeline-{kind} timeline-colour-{colours[span.where]}" '
                f'x="{across(span.began)}" y="{y + inset}" '
                f'width="{across(span.ended - span.began)}" height="{bar - 2 * inset}">'
                f"<title>{escape(tooltip(span))}</title>"
                '<rect width="100%" height="100%"/>'
            )
            if not span.held and not brief and (text := label_of(span, room)):
                yield f'<text x="2" y="12">{escape(text)}</text>'
            yield "</svg>"
    yield "</svg>"


def tooltip(span: Span) -> str:
    """Return what a pointer over the bar shows."""
    doing = "holds the thread" if span.held else span.call
    times = f"{milliseconds(span.began)} to {milliseconds(span.ended)} ms"
    return f"{span.where}: {doing}, {times}, on {span.thread}"


def label_of(span: Span, room: float) -> str:
    """Return the longest label of *span* that fits into *room* pixels, or nothing."""
    number = re.search(r"\d+$", span.where)
    labels = [": ".join(filter(None, (span.where, span.call))), span.where, number and number[0]]
    return next((each for each in labels if each and len(each) * LETTER + 3 <= room), "")


def waiting(found: Iterable[Span], longest: float) -> list[tuple[float, float, int]]:
    """Return how many calls wait for a thread: [(since, until, calls)].

    A wait that is too short to be seen does not count.
    """
    calls = [span for span in found if not span.held and span.began - span.asked >= longest / 50]
    changes = sorted({time for span in calls for time in (span.asked, span.began)})
    steps = [
        (since, until, sum(span.asked <= since and until <= span.began for span in calls))
        for since, until in pairwise(changes)
    ]
    return [step for step in steps if step[2]]


def ticks(longest: float) -> list[float]:
    """Return three to five round times from zero on, in seconds."""
    step = 10.0 ** math.floor(math.log10(longest))
    step = next(each for each in (step, step / 2, step / 4, step / 5) if longest / each >= 2.2)
    return [step * i for i in range(int(longest * 0.93 / step) + 1)]


def check_timelines(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Warn of timelines that no page shows. The directive warns of those that do not hold."""
    root = env.srcdir.parent
    on_pages = {name for kept in env.metadata.values() for name in kept.get("timelines", ())}
    for name in spans.names(root):
        if name not in on_pages:
            path = spans.timeline_path(root, name).relative_to(root).as_posix()
            remedy = "show it with the 'timeline' directive or delete it"
            message = "%s: no page shows the timeline '%s'; %s"
            logger.warning(message, path, name, remedy, type="timeline")
    return []


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive."""
    app.add_directive("timeline", Timeline)
    app.connect("env-updated", check_timelines)
    return SAFE
