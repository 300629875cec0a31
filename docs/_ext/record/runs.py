"""The recorded run: which tests passed, in which source, on which versions and databases.

``docs/_recorded/run.json`` is written by ``nox -s record`` (``tests/support/recording.py``) and
read by the build. A test is named by its pytest id without parameters, such as
``tests/guide/test_x.py::test_y``.
It passed in an environment if it ran there with every parameter and none failed or was skipped.

A record holds for the source it was made from (see ``proofs``). Once this changes the record proves
nothing, and :func:`check` says so until the next recording.

File format: ``environments`` is a list; in ``tests`` each id has the digest of its source, the day
since which it is as recorded, in ``passed`` and ``failed`` the positions of environments in the
list, and the seal of all this.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import proofs
from .recordings import REMEDY
from .seals import BROKEN, seal

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

    @property
    def kind(self) -> tuple[str, ...]:
        """What a newer run of the same kind replaces: database, Python and Django, as 3.13."""
        minors = [".".join(each.split(".")[:2]) for each in (self.python, self.django)]
        return (self.database.partition(" ")[0], *minors)


@dataclass(frozen=True)
class Outcome:
    """What one test did: the environments it passed in and those it failed in."""

    sha256: str
    recorded: str
    passed: frozenset[Environment]
    failed: frozenset[Environment]

    @property
    def seal(self) -> str:
        """The seal; the name of the test is not in it: the digest of the source stands for that."""
        where = {
            name: [asdict(each) for each in sorted(found)]
            for name, found in (("passed", self.passed), ("failed", self.failed))
        }
        return seal({"sha256": self.sha256, "recorded": self.recorded, **where})


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

        What environments of other kinds did with the same source is kept, and the day of it; of
        other sources nothing is.
        """
        here = {environment}
        for test, (sha256, passed) in results.items():
            old = self.tests.get(test)
            kept: list[set[Environment]] = [set(), set()]
            if old is not None and old.sha256 == sha256:
                kept = [
                    {each for each in found if each.kind != environment.kind}
                    for found in (old.passed, old.failed)
                ]
            self.tests[test] = Outcome(
                sha256,
                min(day, old.recorded) if old is not None and any(kept) else day,
                frozenset(kept[0] | here if passed else kept[0]),
                frozenset(kept[1] if passed else kept[1] | here),
            )


def load(root: Path, *, mend: bool = False) -> Run:
    """Return the recorded run.

    :param mend: whether to leave out what was edited, for whoever records it anew.
    :raises RunError: if there is none, or it is damaged or edited.
    """
    path = root / RUN
    if not path.is_file():
        raise RunError(f"no run is recorded ({RUN} is missing); {REMEDY}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = [Environment(**each) for each in data["environments"]]
        seals = {test: each.get("seal") for test, each in data["tests"].items()}
        found = {
            test: Outcome(
                each["sha256"],
                each["recorded"],
                frozenset(known[i] for i in each["passed"]),
                frozenset(known[i] for i in each["failed"]),
            )
            for test, each in data["tests"].items()
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise RunError(f"{RUN} is damaged ({error!r}); {REMEDY}") from error
    edited = [test for test, outcome in found.items() if outcome.seal != seals[test]]
    if edited and not mend:
        raise RunError(f"{RUN} {BROKEN} ({len(edited)} tests, '{edited[0]}' the first); {REMEDY}")
    return Run({test: outcome for test, outcome in found.items() if test not in edited})


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
            "seal": each.seal,
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
        raise RunError(f"test '{test}' is not in the recorded run; {REMEDY} -- {test}")
    if outcome.sha256 != proof.sha256:
        raise RunError(
            f"test '{test}' ({proof.path}:{proof.line}) changed after it was recorded; "
            f"{REMEDY} -- {test}"
        )
    if outcome.failed:
        where = ", ".join(
            each.database or f"Python {each.python}" for each in sorted(outcome.failed)
        )
        raise RunError(
            f"test '{test}' failed in the recorded run ({where}); mend it, then {REMEDY} -- {test}"
        )
    return proof, outcome
