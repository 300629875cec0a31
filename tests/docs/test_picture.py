"""The picture of the README is drawn from the recordings, and stands by itself."""

import xml.etree.ElementTree as ET

import pytest

from docs._ext.record import spans
from docs._scaffold import picture


def test_picture_is_what_the_recordings_draw():
    """The file is what the recordings draw; if not: ``python -m docs._scaffold.picture``."""
    assert picture.PICTURE.read_text(encoding="utf-8") == picture.picture()


def test_picture_stands_by_itself():
    """It is well-formed, has a bar for each recorded call, and asks for nothing else."""
    text = picture.picture()
    root = ET.fromstring(text)
    bars = [each for each in root.iter() if "timeline-call" in each.get("class", "")]
    assert sum(len(spans.load(picture.ROOT, name).spans) for name in picture.BOTH) == len(bars)
    assert [] == [each for each in ("<image", "@import", "url(", "<script") if each in text]


@pytest.mark.parametrize("name", picture.BOTH)
def test_all_bars_are_in_sight(name):
    """No lane is below the lower edge."""
    lanes = len({span.thread for span in spans.load(picture.ROOT, name).spans})
    assert 20 + picture.HEAD + 48 + lanes * 12 + 20 <= picture.HEIGHT
