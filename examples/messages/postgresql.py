import select
import signal
import threading

import psycopg


def connect(**options):
    return psycopg.connect(dbname="postgres", autocommit=True, **options)


def query_after_an_error_in_a_transaction(one, other):
    with one.transaction():
        try:
            one.execute("SELECT 1 / 0")
        except psycopg.errors.DivisionByZero:
            one.execute("SELECT 1")


def slow_statement(one, other):
    one.execute("SET statement_timeout = '50ms'")
    one.execute("SELECT pg_sleep(30)")


def statement_that_somebody_cancels(one, other):
    one.execute("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(30)")


def wait_for_a_lock(one, other):
    one.execute("SET lock_timeout = '50ms'")
    with other.transaction():
        other.execute("UPDATE stock SET amount = 1 WHERE id = 1")
        one.execute("UPDATE stock SET amount = 2 WHERE id = 1")


def lock_without_waiting(one, other):
    with other.transaction(), one.transaction():
        other.execute("SELECT * FROM stock WHERE id = 1 FOR UPDATE")
        one.execute("SELECT * FROM stock WHERE id = 1 FOR UPDATE NOWAIT")


def two_transactions_in_another_order(one, other):
    one.execute("SET deadlock_timeout = '50ms'")
    other.execute("SET deadlock_timeout = '60s'")  # so that it is the one that goes on
    with other.transaction():
        other.execute("UPDATE stock SET amount = 1 WHERE id = 1")
        with one.transaction():
            one.execute("UPDATE stock SET amount = 2 WHERE id = 2")
            second = threading.Thread(
                target=other.execute, args=["UPDATE stock SET amount = 1 WHERE id = 2"]
            )
            second.start()
            try:
                one.execute("UPDATE stock SET amount = 2 WHERE id = 1")
            finally:
                one.execute("ROLLBACK")
                second.join()


def write_what_changed_meanwhile(one, other):
    one.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    with one.transaction():
        one.execute("SELECT * FROM stock")
        other.execute("UPDATE stock SET amount = 3 WHERE id = 1")
        one.execute("UPDATE stock SET amount = 4 WHERE id = 1")


def session_that_is_terminated(one, other):
    other.execute("SELECT pg_terminate_backend(%s)", [one.info.backend_pid])
    one.execute("SELECT 1")


def transaction_that_idles(one, other):
    one.execute("SET idle_in_transaction_session_timeout = '50ms'")
    with one.transaction():
        one.execute("SELECT 1")
        select.select([one], [], [], 30)  # until the server says that it is over
        one.execute("SELECT 1")


def query_on_a_closed_connection(one, other):
    one.close()
    one.execute("SELECT 1")


def fetch_from_a_closed_cursor(one, other):
    cursor = one.execute("SELECT 1")
    cursor.close()
    cursor.fetchone()


class TimeLimitError(Exception):
    pass


def query_that_a_signal_breaks_off(one, other):
    def stop(signal_number, frame):
        raise TimeLimitError

    def stop_when_it_runs():
        asleep = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
        while not other.execute(asleep, [one.info.backend_pid]).fetchone():
            pass
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

    signal.signal(signal.SIGALRM, stop)
    limit = threading.Thread(target=stop_when_it_runs)
    limit.start()
    try:
        one.execute("SELECT pg_sleep(30)")
    except TimeLimitError:
        one.execute("SELECT 1")
    finally:
        limit.join()
        one.close()


def drop_a_database_that_is_in_use(one, other):
    one.execute("CREATE DATABASE ormbridge_in_use")
    with psycopg.connect(dbname="ormbridge_in_use"):
        one.execute("DROP DATABASE ormbridge_in_use")


def query_of_a_table_that_is_not_there(one, other):
    one.execute("SELECT * FROM shop_order")


def server_that_does_not_run(one, other):
    psycopg.connect(host="127.0.0.1", port=1)


def host_without_an_address(one, other):
    psycopg.connect(host="database.invalid")


def option_of_sqlite(one, other):
    psycopg.connect(transaction_mode="IMMEDIATE")


def role_with_too_many_connections(one, other):
    one.execute("CREATE ROLE ormbridge_app LOGIN CONNECTION LIMIT 0")
    connect(user="ormbridge_app")


MISTAKES = [
    query_after_an_error_in_a_transaction,
    slow_statement,
    statement_that_somebody_cancels,
    wait_for_a_lock,
    lock_without_waiting,
    two_transactions_in_another_order,
    write_what_changed_meanwhile,
    session_that_is_terminated,
    transaction_that_idles,
    query_on_a_closed_connection,
    fetch_from_a_closed_cursor,
    query_that_a_signal_breaks_off,
    drop_a_database_that_is_in_use,
    query_of_a_table_that_is_not_there,
    server_that_does_not_run,
    host_without_an_address,
    option_of_sqlite,
    role_with_too_many_connections,
]

if __name__ == "__main__":
    with connect() as server:
        server.execute("CREATE TABLE stock (id int, amount int)")
        server.execute("INSERT INTO stock VALUES (1, 0), (2, 0)")
        try:
            for make in MISTAKES:
                with connect() as one, connect() as other:
                    try:
                        make(one, other)
                    except psycopg.Error as error:
                        first, *_ = str(error).splitlines()
                        print(f"{make.__name__}: {type(error).__name__}: {first}")
        finally:
            server.execute("DROP TABLE stock")
            server.execute("DROP DATABASE IF EXISTS ormbridge_in_use")
            server.execute("DROP ROLE IF EXISTS ormbridge_app")
