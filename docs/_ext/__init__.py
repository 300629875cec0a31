"""The Sphinx extensions of this site: what the pages show is what the tests ran.

============== =========================================================================
``markers``    what an example shows: highlight and part markers, taken out
``recordings`` what an example printed when it was last run
``proofs``     the tests that sentences name: their source and docstring
``runs``       what the tests did in the last recorded run
``examples``   the ``example`` directive
``claims``     the ``claim`` role: a sentence names the test that proves it
``proven``     the ``proven`` directive: every claim with its test
``bench``      the ``benchmark`` directive: figures of the last recorded benchmark
``closed_set`` nothing on a page that was not run, nothing run that no page shows
============== =========================================================================

The first four are plain functions that the build and ``tests/recording.py`` share; they need
nothing but the standard library. The build only reads: it runs no example and no test.
"""
