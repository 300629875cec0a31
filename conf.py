"""Build the site: ``sphinx-build -c . docs build/html``. Sources are in ``docs/``.

The build needs no network and runs no example: see ``docs/_ext``.
"""

import contextlib
import datetime as dt
import gc
import importlib
import os
import sys
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import django
from django.conf import settings
from sphinx.application import Sphinx

import ormbridge

ROOT = Path(__file__).parent
# The extensions of the site are `docs._ext.*`.
sys.path.insert(0, str(ROOT))

# The reference imports the package, and Django wants settings before anything of it is imported.
if not settings.configured:
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
    )
    django.setup()

# Where things are, once they are somewhere: what is not yet, the pages do not speak of.
# Whether the package index has the package: until then it is installed from a checkout.
RELEASED = False
# The address of the repository, such as "https://github.com/owner/ormbridge/".
REPOSITORY = ""
# The address of the site, which Read the Docs tells.
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")

project = "ormbridge"
author = "the ormbridge authors"
release = version = ormbridge.__version__
# The day of the build, or the one that a reproducible build asks for.
day = dt.datetime.fromtimestamp(
    int(os.environ.get("SOURCE_DATE_EPOCH", dt.datetime.now(dt.UTC).timestamp())),
    tz=dt.UTC,
)
project_copyright = f"{day.year}, {author}"

# The release of sphinx-autodoc-typehints for Python 3.11 uses what Sphinx will drop.
warnings.filterwarnings("ignore", ".*_RstSnippetParser.set_application", DeprecationWarning)

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_reredirects",
    "sphinxext.opengraph",
    "notfound.extension",
    # A map of the site is a list of addresses.
    *(["sphinx_sitemap"] if html_baseurl else []),
    "docs._ext.examples",
    "docs._ext.claims",
    "docs._ext.search",
    "docs._ext.proven",
    "docs._ext.bench",
    "docs._ext.timeline",
    "docs._ext.llms",
    "docs._ext.calculator",
    "docs._ext.house",
    "docs._ext.closed_set",
]
exclude_patterns = ["_*", "README.md"]
templates_path = ["docs/_templates"]
nitpicky = True
# Types that Python documents under another name than the one they know themselves by.
nitpick_ignore = [
    ("py:class", "_contextvars.Context"),
    ("py:class", "concurrent.futures.thread.ThreadPoolExecutor"),
    # What atomic() and pinned() return: an asynchronous context manager that also decorates.
    ("py:class", "ormbridge.blocks.pinned.BlockManager"),
    # What stream() returns, and the type of its rows.
    ("py:class", "ormbridge.streaming.rows.Stream"),
]
# A block of code that names no language is shown as it is.
highlight_language = "text"

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
typehints_document_rtype_none = False
typehints_document_overloads = False

# Inventories are files of the repository, so that the build needs no network.
# `nox -s inventories` fetches them anew.
intersphinx_mapping = {
    name: (url, f"_inventories/{name}.inv")
    for name, url in {
        "python": "https://docs.python.org/3/",
        "django": "https://docs.djangoproject.com/en/6.1/",
        "channels": "https://channels.readthedocs.io/en/stable/",
    }.items()
}

html_theme = "furo"
html_title = "ormbridge"
html_static_path = ["docs/_static"]
html_css_files = ["site.css"]
html_js_files = [("here.js", {"defer": "defer"})]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": True,
}
# The way in: what the first page and the side bar say, and what machines read.

myst_enable_extensions += ["substitution"]
# How to install: `{{ install }}`, and with extras `{{ install_with % "postgres" }}`.
PACKAGE = "ormbridge" if RELEASED else "."
GET_IT = "" if RELEASED else f"$ git clone {REPOSITORY} && cd ormbridge\n" if REPOSITORY else ""
myst_substitutions = {
    "install": f"```console\n{GET_IT}$ python3 -m pip install {PACKAGE}\n```",
    "install_with": f"```console\n$ python3 -m pip install '{PACKAGE}[%s]'\n```",
    "not_released": ""
    if RELEASED
    else "There is no release yet: by its name alone, pip finds nothing.",
    "in_a_checkout": "" if RELEASED else ", in a checkout of the repository",
    "report": f"[Report an error]({REPOSITORY}issues)." if REPOSITORY else "",
}
html_css_files += ["way_in.css"]
html_favicon = "docs/_static/favicon.svg"
html_theme_options |= {
    # With it, each page has a button that edits it.
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": ["edit"] if REPOSITORY else [],
}
html_context = {"package": PACKAGE, "repository": REPOSITORY}
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/way_in.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
# The extension says as it is loaded that it can't draw a card for each page: there is one for all.
with contextlib.redirect_stdout(None):
    importlib.import_module("sphinxext.opengraph")
ogp_site_url = html_baseurl
ogp_image = "_static/card.png"
ogp_image_alt = "Twenty calls: 1.02 s through channels.db, 0.12 s through ormbridge"
ogp_social_cards = {"enable": False}  # one for all pages
ogp_enable_meta_description = True
# What a server sends for an address that is not there links with absolute paths.
notfound_urls_prefix = urlsplit(html_baseurl).path or "/"
notfound_context = {
    "title": "Page not found",
    "body": "<h1>Page not found</h1><p>There is no page at this address. "
    f'<a href="{notfound_urls_prefix}search.html">Search for what you need</a>, '
    f'or begin at the <a href="{notfound_urls_prefix}index.html">first page</a>.</p>',
}
sitemap_url_scheme = "{link}"
sitemap_excludes = ["search.html", "genindex.html", "404.html", "proven/*"]
# Pages that were renamed: old name to new, such as {"guide/old": "new.html"}.
redirects: dict[str, str] = {}

# Both have a contrast of at least 4.5 to 1 between code and its background.
pygments_style = "a11y-light"
pygments_dark_style = "a11y-dark"

# The button copies the code that is shown; what an example printed is no code, nor is a change.
copybutton_selector = "div.highlight:not(.example-output *):not(.change *) > pre"
copybutton_prompt_text = "$ "
# What an example no longer has is not copied with it.
copybutton_exclude = ".linenos, del"


def setup(app: Sphinx) -> None:
    """Build without looking for garbage: there is hardly any, and it took a seventh of the time."""
    gc.disable()
    app.connect("build-finished", lambda *_: gc.enable())
