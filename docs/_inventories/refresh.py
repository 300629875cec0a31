"""Fetch the published inventories of the projects that the site links to. Needs the network.

Which ones is said once, by ``intersphinx_mapping`` in ``conf.py``. Each replaces the file of the
same project in this directory; nothing is replaced unless all could be fetched.
"""

import runpy
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urljoin

HERE = Path(__file__).parent
HEADER = b"# Sphinx inventory version 2\n"
# Where a site keeps its inventory, if not in `objects.inv`.
ELSEWHERE = {"django": "_objects/"}


def fetch(name: str, site: str) -> bytes:
    """Return the inventory that *site* publishes."""
    address = urljoin(site, ELSEWHERE.get(name, "objects.inv"))
    request = urllib.request.Request(address, headers={"User-Agent": "ormbridge-docs"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
    if not content.startswith(HEADER):
        sys.exit(f"{address} is not a Sphinx inventory: it begins with {content[:40]!r}")
    return content


def main() -> None:
    """Fetch all, then write all."""
    sites = runpy.run_path(str(HERE.parents[1] / "conf.py"))["intersphinx_mapping"]
    fetched = {name: fetch(name, site) for name, (site, _) in sites.items()}
    for name, content in fetched.items():
        (HERE / f"{name}.inv").write_bytes(content)
        sys.stdout.write(f"{name}.inv: {len(content)} bytes\n")


if __name__ == "__main__":
    main()
