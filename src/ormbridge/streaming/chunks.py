"""Read a queryset in chunks, on the thread that owns the connection (a part of step 4 of a call).

What Django's ``iterator()`` does, with a server-side cursor for ``raw()`` as well.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from traceback import walk_tb
from typing import Any

from django.db import DatabaseError, connections
from django.db.models.query import QuerySet, RawModelIterable, RawQuerySet
from django.db.models.sql.query import RawQuery


def read_chunks(
    queryset: QuerySet[Any, Any] | RawQuerySet[Any], chunk_size: int
) -> Generator[list[Any], None, list[Any]]:
    """Yield lists of *chunk_size* rows, and return the last one, which is shorter or empty.

    An error follows the rows before it.
    """
    if isinstance(queryset, RawQuerySet):
        rows: Iterator[Any] = _raw_rows(queryset, chunk_size)
    else:
        rows = queryset.iterator(chunk_size=chunk_size)
    while True:
        chunk: list[Any] = []
        try:
            chunk.extend(islice(rows, chunk_size))
        except Exception as error:
            # Below a frame nobody else closes what the traceback would keep open.
            for frame, _ in walk_tb(error.__traceback__):
                if frame.f_globals.get("__name__", "").startswith("django.db.models."):
                    frame.clear()
            yield chunk
            raise
        if len(chunk) < chunk_size:
            return chunk
        yield chunk


class _ChunkedRawQuery(RawQuery):
    """A query written by hand, read in chunks, from a server-side cursor where there is one.

    Django's own takes an ordinary cursor, which has the whole result in memory on PostgreSQL.
    """

    def __init__(self, query: RawQuery, using: str, chunk_size: int) -> None:
        super().__init__(query.sql, using, query.params)
        self._chunk_size = chunk_size

    def __iter__(self) -> Iterator[Any]:
        """Execute the query, and return its rows."""
        connection = connections[self.using]
        adapt = connection.ops.adapt_unknown_value
        params: Any = self.params
        if isinstance(params, Mapping):
            params = {name: adapt(value) for name, value in params.items()}
        elif params is not None:
            params = tuple(map(adapt, params))
        in_memory = connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS")
        self.cursor = connection.cursor() if in_memory else connection.chunked_cursor()
        try:
            self.cursor.execute(self.sql, params)
            # psycopg2 knows the columns of a server-side cursor only once it has fetched.
            fetch = functools.partial(self.cursor.fetchmany, self._chunk_size)
            first, end = fetch(), connection.features.empty_fetchmany_value
        except Exception:
            with suppress(DatabaseError):
                self.cursor.close()
            raise
        return chain(first, chain.from_iterable(iter(fetch, end)))


def _raw_rows(queryset: RawQuerySet[Any], chunk_size: int) -> Iterator[Any]:
    """Do for a ``RawQuerySet`` what ``QuerySet.iterator()`` does: by the same function."""
    chunked: Any = copy.copy(queryset)
    chunked.query = _ChunkedRawQuery(queryset.query, queryset.db, chunk_size)
    chunked._iterable_class = RawModelIterable
    return QuerySet._iterator(chunked, True, chunk_size)  # type: ignore[attr-defined, no-any-return]
