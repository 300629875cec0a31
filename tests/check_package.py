"""Check the package that was installed, without extras: ``nox -s package`` runs this."""

import sys
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec

import ormbridge

wrong = {
    f"imported from {ormbridge.__file__}": "site-packages" not in ormbridge.__file__,
    f"{ormbridge.__version__} is installed as {version('ormbridge')}": (
        version("ormbridge") != ormbridge.__version__
    ),
    "py.typed is missing": not files("ormbridge").joinpath("py.typed").is_file(),
    "the pytest plugin is missing": find_spec("pytest_ormbridge") is None,
    "Channels is installed, without the extra": find_spec("channels") is not None,
}
sys.exit("; ".join(problem for problem, found in wrong.items() if found) or None)
