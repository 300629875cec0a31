"""The page ``start``: its files and its commands, in order, as a reader has them."""

import json
from concurrent.futures import ThreadPoolExecutor

from websockets.sync.client import connect

from docs._ext.record import recordings
from tests.core.gate import GUARD
from tests.settings import CHOICE
from tests.support.reader import reading, steps

if CHOICE == "sqlite":  # the story is one of SQLite

    def test_story_as_written(tmp_path, recorded):
        """Every file of the page is written and every command run; each does what it says.

        What the page shows as printed is printed, but for how long it took.
        """
        with reading(tmp_path / "empty") as reader:
            for kind, name, text in steps():
                if kind != "$":
                    reader.write(name, text)
                    continue
                output = recordings.masked(reader.run(name).splitlines())
                if text:
                    assert recordings.masked(text.splitlines()) == output
        for kind, _, _ in steps():
            if kind not in ("", "$"):
                recorded(kind, "")

    def test_many_sign_at_once(tmp_path):
        """Ten people sign the book of the page, five times each; no entry is lost."""

        def signs(name: str) -> None:
            with connect(f"ws://127.0.0.1:{reader.port}/sign/") as socket:
                for text in "abcde":
                    socket.send(json.dumps({"name": name, "text": text}))
                    socket.recv(timeout=GUARD)

        with reading(tmp_path / "empty") as reader:
            for kind, name, text in steps():
                if kind != "$":
                    reader.write(name, text)
                elif not name.startswith(("curl", "python3 mysite/talk.py", "python3 -m pytest")):
                    reader.run(name)
            with ThreadPoolExecutor(10) as people:
                for signed in [people.submit(signs, f"guest {i}") for i in range(10)]:
                    signed.result()
            book = json.loads(reader.run("curl --silent http://127.0.0.1:8000/"))
        assert len(book["entries"]) == 50
