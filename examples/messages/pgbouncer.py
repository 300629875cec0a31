import psycopg


def connect(**options):
    return psycopg.connect(dbname="postgres", autocommit=True, **options)


def cursor_in_another_session(one, other):
    # As Django's iterator() does outside of a transaction.
    one.execute("DECLARE _django_curs_1_sync_1 CURSOR WITH HOLD FOR SELECT generate_series(1, 10)")
    other.execute("BEGIN")  # takes the session that has the cursor
    one.execute("FETCH 5 FROM _django_curs_1_sync_1")


def cursor_that_somebody_else_has_open(one, other):
    # Its name says which thread, and how many it had before: two processes may have the same.
    for each in (one, other):
        each.execute("DECLARE _django_curs_1_sync_1 CURSOR WITH HOLD FOR SELECT 1")


def statement_prepared_in_another_session(one, other):
    one.prepare_threshold = 0
    one.execute("SELECT 1")
    other.execute("BEGIN")
    one.execute("SELECT 1")


def statement_that_somebody_else_prepared(one, other):
    for each in (one, other):
        each.prepare_threshold = 0
        each.execute("SELECT 1")


def parameter_of_the_session(one, other):
    connect(options="-c search_path=shop")


def more_clients_than_there_may_be(one, other):
    with connect():
        connect()


def no_session_in_time(one, other):
    one.execute("BEGIN")
    other.execute("BEGIN")
    with connect() as third:
        third.execute("SELECT 1")


MISTAKES = [
    cursor_in_another_session,
    cursor_that_somebody_else_has_open,
    statement_prepared_in_another_session,
    statement_that_somebody_else_prepared,
    parameter_of_the_session,
    more_clients_than_there_may_be,
    no_session_in_time,
]

if __name__ == "__main__":
    for make in MISTAKES:
        with connect() as one, connect() as other:
            try:
                make(one, other)
            except psycopg.Error as error:
                first, *_ = str(error).splitlines()
                print(f"{make.__name__}: {type(error).__name__}: {first}")
