"""A project on django-tenants, and what its users see: one tenant, or another's.

``python -m tests.tenants.scenarios`` runs in a process of its own, because django-tenants takes a
whole project for itself. The schemas ``tenant0`` to ``tenant7`` and ``public`` each have a table
``owner`` with one row, the name of the schema.
"""

TENANTS = [f"tenant{number}" for number in range(8)]
