"""The recorded run: which tests passed, in which source, on which versions and databases.

``docs/_recorded/run.json`` is written by ``nox -s record`` (``tests/recording.py``) and read by
the build. A test is named by its pytest id without parameters, ``tests/guide/test_x.py::test_y``.
It passed in an environment if it ran there with every parameter and none failed or was skipped.

A record holds for the source it was made from (see ``proofs``). Once this changes the record proves
nothing, and :func:`check` says so until the next recording.

File format: ``environments`` is a list; in ``tests`` each id has the digest of its source, the day
of the record, and in ``passed`` and ``failed`` the positions of environments in the list.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import proofs
from .recordings import REMEDY

RUN = "docs/_recorded/run.json"


class RunError(ValueError):
    """A record that is missing or does not hold."""


@dataclass(frozen=True, order=True)
class Environment:
    """Versions a run was made with, and the database with its version; empty if not there."""

    database: str
    python: str
    django: str
    channels: str
    asgiref: str


@dataclass(frozen=True)
class Outcome:
    """What one test did: the environments it passed in and those it failed in."""

    sha256: str
    recorded: str
    passed: frozenset[Environment]
    failed: frozenset[Environment]


@dataclass
class Run:
    """The content of ``run.json``."""

    tests: dict[str, Outcome] = field(default_factory=dict)

    @property
    def environments(self) -> list[Environment]:
        """Every environment of the run, sorted."""
        return sorted({one for test in self.tests.values() for one in test.passed | test.failed})

    def add(
        self, environment: Environment, day: str, results: Mapping[str, tuple[str, bool]]
    ) -> None:
        """Merge the *results* of one run: test id to (digest of the source, whether it passed).

        What other environments did with the same source is kept; of other sources nothing is.
        """
        for test, (sha256, passed) in results.items():
            old = self.tests.get(test)
            if old is None or old.sha256 != sha256:
                old = Outcome(sha256, day, frozenset(), frozenset())
            here = frozenset({environment})
            self.tests[test] = Outcome(
                sha256,
                day,
                old.passed | here if passed else old.passed - here,
                old.failed - here if passed else old.failed | here,
            )


def load(root: Path) -> Run:
    """Return the recorded run.

    :raises RunError: if there is none or it is damaged.
    """
    path = root / RUN
    if not path.is_file():
        raise RunError(f"no run is recorded ({RUN} is missing); {REMEDY}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = [Environment(**each) for each in data["environments"]]
        return Run(
            {
                test: Outcome(
                    each["sha256"],
                    each["recorded"],
                    frozenset(known[i] for i in each["passed"]),
                    frozenset(known[i] for i in each["failed"]),
                )
                for test, each in data["tests"].items()
            }
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RunError(f"{RUN} is damaged ({error!r}); {REMEDY}") from error


def save(root: Path, run: Run) -> None:
    """Write *run*, sorted so that two recordings of the same day differ only in what changed."""
    known = run.environments
    positions = {environment: i for i, environment in enumerate(known)}

    def indices(environments: Iterable[Environment]) -> list[int]:
        return sorted(positions[each] for each in environments)

    tests = {
        test: {
            "sha256": each.sha256,
            "recorded": each.recorded,
            "passed": indices(each.passed),
            "failed": indices(each.failed),
        }
        for test, each in sorted(run.tests.items())
    }
    path = root / RUN
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"    {json.dumps(test)}: {json.dumps(each)}" for test, each in tests.items()]
    environments = [f"    {json.dumps(asdict(each))}" for each in known]
    path.write_text(
        '{\n  "environments": [\n'
        + ",\n".join(environments)
        + '\n  ],\n  "tests": {\n'
        + ",\n".join(lines)
        + "\n  }\n}\n",
        encoding="utf-8",
    )


def check(root: Path, run: Run, test: str) -> tuple[proofs.Proof, Outcome]:
    """Return the test and its record if the record holds.

    :raises UnknownTestError: if there is no such test.
    :raises RunError: if it is not recorded, changed since, or did not pass.
    """
    proof = proofs.find(root, test)
    outcome = run.tests.get(test)
    if outcome is None:
        raise RunError(f"test '{test}' is not in the recorded run; {REMEDY}")
    if outcome.sha256 != proof.sha256:
        raise RunError(
            f"test '{test}' ({proof.path}:{proof.line}) changed after it was recorded; {REMEDY}"
        )
    if outcome.failed:
        where = ", ".join(
            each.database or f"Python {each.python}" for each in sorted(outcome.failed)
        )
        raise RunError(
            f"test '{test}' failed in the recorded run ({where}); mend it, then {REMEDY}"
        )
    return proof, outcome
