import select
import threading
from contextlib import closing, suppress

import MySQLdb


def connect():
    return MySQLdb.connect(read_default_file="my.cnf", database="mysql", autocommit=True)


def run(connection, *statements):
    with closing(connection.cursor()) as cursor:
        for each in statements:
            cursor.execute(each)


def wait_for_a_lock(one, other):
    run(other, "BEGIN", "UPDATE stock SET amount = 1 WHERE id = 1")
    run(one, "SET innodb_lock_wait_timeout = 1", "UPDATE stock SET amount = 2 WHERE id = 1")


def two_transactions_in_another_order(one, other):
    run(other, "BEGIN", *[f"UPDATE stock SET amount = 1 WHERE id = {n}" for n in (1, 3, 4)])
    run(one, "BEGIN", "UPDATE stock SET amount = 2 WHERE id = 2")  # has less to lose
    statement = "UPDATE stock SET amount = 1 WHERE id = 2"
    second = threading.Thread(target=run, args=[other, statement])
    second.start()
    try:
        run(one, "UPDATE stock SET amount = 2 WHERE id = 1")
    finally:
        second.join()


def slow_statement(one, other):
    run(one, "SET STATEMENT max_statement_time = 0.05 FOR SELECT SLEEP(30)")


def statement_that_somebody_cancels(one, other):
    run(one, f"KILL QUERY {one.thread_id()}")


def session_that_is_terminated(one, other):
    run(other, f"KILL {one.thread_id()}")
    run(one, "SELECT 1")


def session_that_idles(one, other):
    run(one, "SET wait_timeout = 1")
    select.select([one.fileno()], [], [], 30)  # until the server has closed it
    run(one, "SELECT 1")


def query_while_another_is_read(one, other):
    one.query("SELECT 1")
    one.query("SELECT 2")


def query_on_a_closed_connection(one, other):
    one.close()
    run(one, "SELECT 1")


def write_what_changed_meanwhile(one, other):
    run(one, "SET innodb_snapshot_isolation = ON", "BEGIN", "SELECT * FROM stock")
    run(other, "UPDATE stock SET amount = 3 WHERE id = 1")
    run(one, "UPDATE stock SET amount = 4 WHERE id = 1")


def server_that_does_not_run(one, other):
    MySQLdb.connect(host="127.0.0.1", port=1)


MISTAKES = [
    wait_for_a_lock,
    two_transactions_in_another_order,
    slow_statement,
    statement_that_somebody_cancels,
    session_that_is_terminated,
    session_that_idles,
    query_while_another_is_read,
    query_on_a_closed_connection,
    write_what_changed_meanwhile,
    server_that_does_not_run,
]

if __name__ == "__main__":
    server = connect()
    run(server, "CREATE TABLE stock (id int PRIMARY KEY, amount int)")
    run(server, "INSERT INTO stock VALUES (1, 0), (2, 0), (3, 0), (4, 0)")
    try:
        for make in MISTAKES:
            one, other = connect(), connect()
            try:
                make(one, other)
            except MySQLdb.Error as error:
                print(f"{make.__name__}: {type(error).__name__}: {error}")
            finally:
                for each in (one, other):
                    with suppress(MySQLdb.Error):
                        each.close()
    finally:
        run(server, "DROP TABLE stock")
