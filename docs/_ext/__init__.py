"""The Sphinx extensions of this site: what the pages show is what the tests ran.

============== =========================================================================
``examples``   the ``example`` directive
``claims``     footnotes that name the test behind a sentence
``proven``     the ``proven`` directive: every claim with its test
``bench``      the ``benchmark`` directive: figures of the last recorded benchmark
``timeline``   the ``timeline`` directive: a picture of a recorded run
``change``     the ``change`` directive: the lines in which two examples differ
``llms``       the site as plain text, code and all: ``llms.txt`` and ``llms-full.txt``
``calculator`` the ``calculator`` directive: whether the connections of all processes fit
``house``      the ``house`` and ``source`` directives: the package, drawn and quoted
``search``     the sections of the site and their names, for the search
``closed_set`` nothing on a page that was not run, nothing run that no page shows
============== =========================================================================

What they read is recorded by the tests: ``record`` is what both share. The build only reads: it
runs no example and no test.
"""

#: What each extension says of itself. What it keeps of a page is in ``env.metadata``, which Sphinx
#: keeps in order: forgotten with the page, and merged where several processes read. The tests
#: import ``record`` where there is no Sphinx, so nothing of that is imported here.
SAFE = {"version": "1", "env_version": 2, "parallel_read_safe": True, "parallel_write_safe": True}
