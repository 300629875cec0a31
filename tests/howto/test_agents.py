"""The page ``howto/agents``: tools of a real MCP server, and of an agent with a played model."""

import asyncio

import pytest
from django.contrib.auth.models import Group, User
from mcp import Client
from mcp.server import MCPServer
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel

from ormbridge import database_sync_to_async, pinned, stats
from tests.core.gate import GUARD
from tests.support.ways import count_and_close

pytestmark = pytest.mark.django_db(transaction=True)


async def call(server, name, /, **arguments):
    """Call a tool of *server* as a client does, and return the answer in a line."""
    async with Client(server) as client:
        answer = await client.call_tool(name, arguments)
    return f"{name}: {' '.join(each.text for each in answer.content)}"


def played(*calls):
    """Return a model that wants these *calls*, at once, and then repeats what they returned."""

    def respond(messages, info):
        returned = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
        if returned:
            return ModelResponse([TextPart(str([part.content for part in returned]))])
        return ModelResponse([ToolCallPart(*each) for each in calls])

    return FunctionModel(respond)


async def test_mcp(ada, load_example, recorded):
    """A client of the server calls its tools, and their queries run on workers."""
    server = load_example("agents/mcp_server").mcp
    lines = [
        await call(server, "find_users", name="a"),
        await call(server, "add_to_team", name="ada", team="chess"),
    ]
    assert stats().threads == 1
    recorded("agents/mcp_server", "\n".join(lines))


async def test_tool_that_fails(ada, load_example):
    """The block of a tool leaves nothing behind if the tool fails."""
    server = load_example("agents/mcp_server").mcp
    answer = await call(server, "add_to_team", name="bob", team="chess")
    assert answer == "add_to_team: Error executing tool add_to_team"
    assert not await Group.objects.aexists()


async def test_plain_query_of_a_tool(ada, caplog):
    """It is refused; the client reads which tool failed, and the log has why."""
    server = MCPServer("users")

    @server.tool()
    async def count_users() -> int:
        return User.objects.count()

    assert await call(server, "count_users") == "count_users: Error executing tool count_users"
    assert "You cannot call this from an async context" in caplog.text


async def test_plain_function_as_a_tool(ada):
    """A tool that is a plain function runs on a thread of anyio, which is no worker."""
    server = MCPServer("users")
    server.add_tool(count_and_close)
    assert await call(server, "count_and_close") == "count_and_close: 1"
    assert stats().threads == 0


async def test_tools_of_an_agent(ada, load_example):
    """The same functions are tools of an agent of Pydantic AI."""
    module = load_example("agents/mcp_server")
    model = played(("find_users", {"name": "a"}))
    agent = Agent(model, tools=[module.find_users, module.add_to_team])
    assert (await agent.run("Who is there?")).output == "[['ada']]"


async def test_tools_at_the_same_time(gate):
    """Tools that the model wants at once run at the same time, each on a worker of its own."""

    @pinned()
    async def wait(number: int) -> str:
        return await database_sync_to_async(gate)()

    model = played(("wait", {"number": 1}), ("wait", {"number": 2}))
    answer = asyncio.create_task(Agent(model, tools=[wait]).run("Wait."))
    await gate.entered(2)
    assert stats().threads == 2
    gate.open.set()
    found = (await asyncio.wait_for(answer, GUARD)).output
    assert "ormbridge-worker-1" in found
    assert "ormbridge-worker-2" in found
