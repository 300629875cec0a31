"""What type checkers see of a function that goes through the bridge. Nothing here runs.

``test_reveal.py`` has mypy and pyright read this file. ``# reveals:`` states the type that both
must name on a line, ``# refused`` that both must find an error there, and no other line may have
one.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar, overload, reveal_type

from django.contrib.auth.models import User

from ormbridge import atomic, database_sync_to_async, pinned, stream

T = TypeVar("T")


def get_name(user: int, *, upper: bool = False) -> str:
    return str(user)


def first(rows: Sequence[T]) -> T:
    return rows[0]


@overload
def find(key: int) -> int: ...
@overload
def find(key: str, upper: bool) -> str: ...
def find(key: Any, upper: bool = False) -> Any:
    return key


@database_sync_to_async
def decorated(user: int, *, upper: bool = False) -> str:
    return str(user)


@database_sync_to_async
def nothing() -> None:
    return None


@database_sync_to_async(thread_sensitive=False)
def with_options(user: int) -> str:
    return str(user)


class Reader:
    @database_sync_to_async
    def method(self, user: int) -> str:
        return str(user)

    @staticmethod
    @database_sync_to_async
    def static(user: int) -> str:
        return str(user)

    @database_sync_to_async
    @staticmethod
    def static_inside(user: int) -> str:
        return str(user)

    @classmethod
    @database_sync_to_async
    def of_class(cls, user: int) -> str:
        return str(user)

    @staticmethod
    @database_sync_to_async
    def static_alone() -> str:
        return ""

    def plain(self, user: int) -> str:
        return str(user)

    @classmethod
    def plain_of_class(cls, user: int) -> "Reader":
        return cls()


class Store(Generic[T]):
    def __init__(self, row: T) -> None:
        self.row = row

    @database_sync_to_async
    def get(self, key: int) -> T:
        return self.row


async def inline_form() -> None:
    bridged = database_sync_to_async(get_name)
    reveal_type(bridged)  # reveals: (user: int, *, upper: bool = ...) -> Coroutine[Any, Any, str]
    await reveal_type(bridged(1))  # reveals: Coroutine[Any, Any, str]
    reveal_type(await bridged(1, upper=True))  # reveals: str
    await bridged("1")  # refused
    await bridged()  # refused
    await bridged(1, lower=True)  # refused
    database_sync_to_async(1)  # refused


async def inline_form_with_options() -> None:
    with ThreadPoolExecutor() as executor:
        bridged = database_sync_to_async(get_name, thread_sensitive=False, executor=executor)
        reveal_type(await bridged(1))  # reveals: str
    database_sync_to_async(get_name, thread_sensitive="no")  # refused


async def inline_form_of_methods() -> None:
    reader = Reader()
    reveal_type(await database_sync_to_async(reader.plain)(1))  # reveals: str
    await database_sync_to_async(reader.plain)("1")  # refused
    reveal_type(await database_sync_to_async(Reader.plain)(reader, 1))  # reveals: str
    reveal_type(await database_sync_to_async(Reader.plain_of_class)(1))  # reveals: Reader
    reveal_type(await database_sync_to_async(Reader)())  # reveals: Reader


async def inline_form_of_generics() -> None:
    reveal_type(await database_sync_to_async(first)([1]))  # reveals: int


async def inline_form_of_overloads() -> None:
    bridged = database_sync_to_async(find)
    reveal_type(await bridged(1))  # reveals: int
    reveal_type(await bridged("1", True))  # reveals: str
    reveal_type(await database_sync_to_async(find, thread_sensitive=True)(1))  # reveals: int
    await bridged("1")  # refused
    await bridged(1, True)  # refused
    reveal_type(await database_sync_to_async(lambda: find("1", True))())  # reveals: str


async def decorator_form() -> None:
    reveal_type(decorated)  # reveals: (user: int, *, upper: bool = ...) -> Coroutine[Any, Any, str]
    reveal_type(await decorated(1, upper=True))  # reveals: str
    await reveal_type(nothing())  # reveals: Coroutine[Any, Any, None]
    reveal_type(await with_options(1))  # reveals: str
    await decorated("1")  # refused
    await with_options("1")  # refused
    await nothing(1)  # refused


async def decorator_form_of_methods() -> None:
    reader = Reader()
    reveal_type(reader.method)  # reveals: (user: int) -> Coroutine[Any, Any, str]
    reveal_type(Reader.method)  # reveals: (self: Reader, user: int) -> Coroutine[Any, Any, str]
    reveal_type(await reader.method(1))  # reveals: str
    reveal_type(await Reader.method(reader, 1))  # reveals: str
    await reader.method("1")  # refused
    await reader.method(reader, 1)  # refused
    await Reader.method(1)  # refused


async def decorator_form_of_static_methods() -> None:
    reveal_type(await Reader.static(1))  # reveals: str
    reveal_type(await Reader().static(1))  # reveals: str
    reveal_type(await Reader.static_inside(1))  # reveals: str
    reveal_type(await Reader().static_alone())  # reveals: str
    await Reader.static("1")  # refused
    await Reader().static("1")  # refused
    await Reader.static_inside("1")  # refused


async def decorator_form_of_class_methods() -> None:
    reveal_type(await Reader.of_class(1))  # reveals: str
    reveal_type(await Reader().of_class(1))  # reveals: str
    await Reader.of_class("1")  # refused
    await Reader().of_class("1")  # refused


async def decorator_form_of_generics() -> None:
    store = Store("row")
    reveal_type(await store.get(1))  # reveals: str
    await store.get("1")  # refused


@atomic
async def in_transaction(user: int) -> str:
    return str(user)


class Bank:
    @atomic(using="accounts", durable=True)
    async def transfer(self, amount: int) -> bool:
        return amount > 0

    @pinned()
    async def lock(self, key: int) -> None:
        return None


async def blocks() -> None:
    reveal_type(in_transaction)  # reveals: (user: int) -> Coroutine[Any, Any, str]
    reveal_type(await in_transaction(1))  # reveals: str
    await in_transaction("1")  # refused
    reveal_type(await Bank().transfer(1))  # reveals: bool
    await Bank().transfer("1")  # refused
    reveal_type(await Bank().lock(1))  # reveals: None
    atomic(get_name)  # refused
    atomic(1)  # refused
    with atomic():  # refused
        pass
    async with atomic("accounts", savepoint=False) as value:
        reveal_type(value)  # reveals: None
    async with pinned() as value:
        reveal_type(value)  # reveals: None


async def streams() -> None:
    async for user in stream(User.objects.all()):
        reveal_type(user)  # reveals: User
    async with stream(User.objects.raw("SELECT 1")) as rows:
        async for row in rows:
            reveal_type(row)  # reveals: User
    stream([1])  # refused
