"""50 clients with the bridge and without, live on one page: ``nox -s demo``."""
