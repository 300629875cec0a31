"""What is recorded of the tests: ``tests/support/recording.py`` writes it, the build reads it.

============== =========================================================================
``markers``    what an example shows: highlight and part markers, taken out
``places``     where a reader puts an example, what it needs and what it leaves
``recordings`` what an example printed when it was last run
``spans``      what its calls did then, for a picture
``proofs``     the tests that sentences name: their source and docstring
``runs``       what the tests did in the last recorded run
``seals``      whether a file is still what was recorded
============== =========================================================================

Plain functions, which need nothing but the standard library.
"""
