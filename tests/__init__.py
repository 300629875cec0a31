"""The tests of ormbridge.

They mirror the tree: a folder for each of the package, ``tests/guide`` for the pages and their
examples, ``tests/howto`` for those that name other packages, ``tests/docs`` for the machinery of
the site. ``tests/core`` needs nothing of the others. What is no test, and is shared, is in
``tests/support``.
"""
