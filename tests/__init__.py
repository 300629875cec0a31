"""The tests of ormbridge.

They mirror the tree: ``tests/test_<module>.py`` for the package, ``tests/guide`` for the
pages and their examples, ``tests/docs`` for the machinery of the site.
"""
