"""What type checkers see of a function that goes through the bridge. Nothing here runs.

``test_reveal.py`` has mypy and pyright read this file. ``# reveals:`` states the type that both
must name on a line, ``# refused`` that both must find an error there, and no other line may have
one.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar, reveal_type

from ormbridge import database_sync_to_async

T = TypeVar("T")


def get_name(user: int, *, upper: bool = False) -> str:
    return str(user)


def first(rows: Sequence[T]) -> T:
    return rows[0]


@database_sync_to_async
def decorated(user: int, *, upper: bool = False) -> str:
    return str(user)


@database_sync_to_async
def nothing() -> None:
    return None


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
    reveal_type(bridged)  # reveals: DatabaseSyncToAsync[[user: int, *, upper: bool = ...], str]
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


async def decorator_form() -> None:
    reveal_type(decorated)  # reveals: DatabaseSyncToAsync[[user: int, *, upper: bool = ...], str]
    reveal_type(await decorated(1, upper=True))  # reveals: str
    await reveal_type(nothing())  # reveals: Coroutine[Any, Any, None]
    await decorated("1")  # refused
    await nothing(1)  # refused


async def decorator_form_of_methods() -> None:
    reader = Reader()
    reveal_type(reader.method)  # reveals: (user: int) -> Coroutine[Any, Any, str]
    reveal_type(Reader.method)  # reveals: DatabaseSyncToAsync[[self: Reader, user: int], str]
    reveal_type(await reader.method(1))  # reveals: str
    reveal_type(await Reader.method(reader, 1))  # reveals: str
    await reader.method("1")  # refused
    await reader.method(reader, 1)  # refused
    await Reader.method(1)  # refused


async def decorator_form_of_static_methods() -> None:
    reveal_type(await Reader.static(1))  # reveals: str
    reveal_type(await Reader().static(1))  # reveals: str
    reveal_type(await Reader.static_inside(1))  # reveals: str
    reveal_type(await Reader().static_inside(1))  # reveals: str
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
