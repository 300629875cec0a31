"""What the tests of ``howto/`` share: the fixtures of the guide, and servers of their own."""

from tests.guide.conftest import ada, load_example, run_example, run_script

__all__ = ["ada", "load_example", "run_example", "run_script"]
