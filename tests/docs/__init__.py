"""Tests of the site's machinery. They need Sphinx: ``nox -s tests-docs``."""
