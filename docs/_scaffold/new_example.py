"""Begin an example: the file, its test, and its section of a page; ``nox -s new-example``.

::

    python docs/_scaffold/new_example.py transactions/transfer "Move money"

Where the page is not there, it begins that as well. It prints the id of the test, by which nox
then records what the example prints. It needs nothing but the standard library.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

EXAMPLE = """\
import asyncio

import django
from django.conf import settings

settings.configure(
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "{name}.sqlite3"}}}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command

from ormbridge import database_sync_to_async


def get_name():
    return User.objects.get().username


async def main():
    username = await database_sync_to_async(get_name)()  # <--
    print(f"Hello, {{username}}")


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    User.objects.get_or_create(username="ada")
    asyncio.run(main())
"""
MODULE = '"""The page ``{page}``: its examples, and the claims it makes."""\n'
TEST = '''

def test_{name}(run_example, recorded):
    """The example prints what its page shows."""
    recorded("{folder}/{name}", run_example("{folder}/{name}", "-W", "error"))
'''
SECTION = """
## {title}

The user's name is read in a thread, and the coroutine waits for it.[^{label}]

```{{example}} {folder}/{name}
:output:
```

[^{label}]: {test}
"""


def titled(name: str) -> str:
    """Return *name* as a title: ``move_money`` is "Move money"."""
    return name.replace("_", " ").capitalize()


def add(path: Path, text: str) -> None:
    """Add *text* to the end of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def page_of(folder: str, root: Path) -> Path:
    """Return the file of the page; a new one is a page of the guide, at the end of its contents."""
    stem = folder.replace("_", "-")
    found = [each for each in (root / "docs").rglob(f"{stem}.md") if "_" not in each.parent.name]
    if found:
        return found[0]
    page = root / "docs" / "guide" / f"{stem}.md"
    add(page, f"# {titled(folder)}\n\nSay in a sentence what a reader finds here.\n")
    index = root / "docs" / "index.md"
    text, count = re.subn(
        r"((?:^guide/[\w-]+\n)+)", rf"\g<1>guide/{stem}\n", index.read_text(), flags=re.MULTILINE
    )
    assert count == 1, "docs/index.md has one list of the pages of the guide"
    index.write_text(text, encoding="utf-8")
    return page


def tests_of(folder: str, page: str, root: Path) -> Path:
    """Return the file with the tests of the page; a new one begins with what it is for."""
    place = root / "tests" / ("howto" if page.startswith("howto/") else "guide")
    own = place / f"test_{folder}.py"
    for path in [own, *sorted(place.glob("test_*.py"))]:
        if path.exists() and f'"{folder}/' in path.read_text(encoding="utf-8"):
            return path
    if not own.exists():
        add(own, MODULE.format(page=page))
    return own


def refusal(name: str, root: Path) -> str:
    """Return why there can be no example *name*, or nothing."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*/[a-z][a-z0-9_]*", name):
        return f"{name!r} is no name: write page/what, such as transactions/transfer"
    folder, _, file = name.partition("/")
    if (root / "examples" / f"{name}.py").exists():
        return f"examples/{name}.py is there already: choose another name"
    if file in sys.stdlib_module_names:
        return f"{file}.py, pasted, would hide Python's own module: choose another name"
    if folder == "recorded" or (root / "examples" / folder / "__init__.py").exists():
        return f"examples/{folder} belongs to no page: choose another name"
    return ""


def begin(name: str, title: str, root: Path = ROOT) -> str:
    """Write the files of the example *name*, and return the id of its test.

    :raises SystemExit: if there can be no such example.
    """
    if reason := refusal(name, root):
        raise SystemExit(reason)
    folder, _, file = name.partition("/")
    page = page_of(folder, root)
    tests = tests_of(folder, page.relative_to(root / "docs").with_suffix("").as_posix(), root)
    shown = tests.relative_to(root).as_posix()
    if f"def test_{file}(" in tests.read_text(encoding="utf-8"):
        raise SystemExit(f"{shown} has a test_{file} already: choose another name")
    test = f"{shown}::test_{file}"
    label = file.replace("_", "-")
    if f"[^{label}]" in page.read_text(encoding="utf-8"):
        label = f"example-{label}"
    words = {"folder": folder, "name": file, "label": label, "test": test}
    add(root / "examples" / f"{name}.py", EXAMPLE.format(**words))
    add(tests, TEST.format(**words))
    add(page, SECTION.format(title=title or titled(file), **words))
    return test


def main() -> None:
    """Begin the example that the command line names."""
    parser = argparse.ArgumentParser(description="Begin an example.")
    parser.add_argument("name", help="its page and name: transactions/transfer")
    parser.add_argument("title", nargs="?", default="", help="the title of its section")
    options = parser.parse_args()
    sys.stdout.write(begin(options.name, options.title) + "\n")


if __name__ == "__main__":
    main()
