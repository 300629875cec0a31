"""django-tenants under the line: nobody sees the tables of another one's tenant."""

import pytest

from tests.settings import CHOICE
from tests.tenants.runs import new_database, scenarios

RESET = "examples.connections.reset_tenants.reset_tenant"
#: What each kind of user sees, each time that it looks.
EXPECTED = {
    "requests": {"own": 400},
    "requests without a tenant": {"public": 80},
    "after release()": {"public": 48},
    "while the request of a task runs": {"own": 24},
    "retried": {"own": 16},
    "after a cancelled call": {"own": 32},
    "raising": {"status 500": 16},
    "sockets: one call": {"own": 24},
    "sockets: two calls": {"public": 24},
    "sockets without a tenant": {"public": 48},
    "sockets: pinned()": {"own": 12},
    "sockets: retried": {"public": 6},
    "tasks that outlive their request": {"public": 72},
    "calls outside of the middleware": {"public": 12},
}
if CHOICE == "postgresql":  # django-tenants knows no other

    @pytest.fixture(scope="module")
    def database():
        """Return the name of a database with eight tenants."""
        with new_database() as name:
            yield name

    def without_a_choice(seen):
        """Leave out the calls that ask for any worker: they may get the request's."""
        assert seen.pop("thread_sensitive=False").keys() <= {"own", "public"}
        return seen

    @pytest.mark.parametrize("age", [0, 60, None])
    @pytest.mark.parametrize("middleware", [True, False], ids=["middleware", "by-hand"])
    def test_nobody_sees_another_tenant(database, middleware, age, recorded):
        """With RESET, 240 requests at once, sockets and tasks see their own tenant, or public."""
        seen = scenarios(database, middleware=middleware, age=age, RESET=RESET)
        assert without_a_choice(seen) == EXPECTED
        recorded("connections/reset_tenants", "")

    def test_search_path_that_is_set_once(database):
        """The same where django-tenants sets the search_path once for each set_tenant()."""
        seen = scenarios(database, middleware=True, limit=True, RESET=RESET)
        assert without_a_choice(seen) == EXPECTED

    def test_socket_with_a_worker_of_its_own_keeps_its_tenant(database):
        """With WEBSOCKET_LEASE "connection" a socket sets its tenant once."""
        lease = {"RESET": RESET, "WEBSOCKET_LEASE": "connection"}
        seen = without_a_choice(scenarios(database, middleware=True, **lease))
        kept = {"sockets: two calls": {"own": 24}, "sockets: retried": {"own": 6}}
        assert seen == {**EXPECTED, **kept}

    def test_lease_of_a_call_loses_the_tenant(database):
        """With HTTP_LEASE "call", what the middleware sets is cleared before the view runs."""
        seen = scenarios(database, middleware=True, RESET=RESET, HTTP_LEASE="call")
        assert seen["requests"] == {"public": 400}
        assert all("foreign" not in answers for answers in seen.values())

    def test_tenant_of_a_call(database, recorded):
        """Set on the worker, a call sees its own tenant; set around the call, it does not."""
        assert scenarios(database, "calls", RESET=RESET) == {
            "in the function": {"own": 8},
            "on the worker of pinned()": {"own": 8},
            "around the call": {"public": 8},
            "around the call, in pinned()": {"public": 8},
        }
        recorded("connections/tenant_of_a_call", "")

    @pytest.mark.parametrize("middleware", [True, False], ids=["middleware", "by-hand"])
    def test_without_reset_a_tenant_leaks(database, middleware):
        """Without RESET, who sets no tenant sees that of somebody else."""
        seen = scenarios(database, middleware=middleware)
        assert seen["requests"] == {"own": 400}
        # Who comes to which worker, and after whom, is up to the machine.
        for kind in [
            "after release()",
            "sockets: two calls",
            "sockets without a tenant",
            "tasks that outlive their request",
            "calls outside of the middleware",
        ]:
            assert seen[kind]["foreign"] > 0, kind
        # TenantMainMiddleware begins each request in the public schema.
        leaks = seen["requests without a tenant"].get("foreign", 0) > 0
        assert leaks is not middleware
