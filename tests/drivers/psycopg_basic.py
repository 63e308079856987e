"""What an application in Python relies on, with psycopg 3. Usage: psycopg_basic.py URL

Exits with 1 and a message at the first difference from PostgreSQL.
"""

import os
import sys
import threading
from datetime import datetime, timezone
from decimal import Decimal

import psycopg
from psycopg import errors, sql

URL = sys.argv[1]
# Runs of this script do not meet, nor do its threads.
TABLE = f"psycopg_{os.getpid()}"


def same(found, expected, what):
    if found != expected:
        raise AssertionError(f"{what}: expected {expected!r}, found {found!r}")


def refused(error, run, what):
    try:
        run()
    except error:
        return
    except psycopg.Error as other:
        raise AssertionError(f"{what}: expected {error.sqlstate}, found {other.sqlstate}: {other}")
    raise AssertionError(f"{what}: expected {error.sqlstate}, found success")


def connect(**options):
    return psycopg.connect(URL, autocommit=True, connect_timeout=20, **options)


def values(connection):
    # No parameters: a simple Query. With parameters: Parse, Bind, Execute.
    same(connection.execute("SELECT 1, 'a'").fetchone(), (1, "a"), "simple query")
    row = (7, None, "", "žluťoučký 🐘", b"\x00\xff", Decimal("1.50"), [1, 2, None], True)
    query = "SELECT %s::int, %s::text, %s::text, %s::text, %s::bytea, %s::numeric, %s::int[], %s::bool"
    same(connection.execute(query, row).fetchone(), row, "parameters in text")
    binary = connection.cursor(binary=True)
    same(binary.execute(query, row).fetchone(), row, "results in binary")
    same(connection.execute("SELECT 'ĝ' || %s", ("中文",)).fetchone(), ("ĝ中文",), "unicode")
    long = "x" * 3_000_000
    same(connection.execute("SELECT %s || %s", (long, "y")).fetchone(), (long + "y",), "a parameter of 3 MB")
    moment = datetime(2024, 2, 29, 12, 30, tzinfo=timezone.utc)
    same(connection.execute("SELECT %s::timestamptz", (moment,)).fetchone(), (moment,), "timestamp")
    same(connection.execute("SELECT FROM generate_series(1, 5)").rowcount, 5, "rows without columns")
    same(len(connection.execute("SELECT generate_series(1, %s)", (50_000,)).fetchall()), 50_000, "many rows")


def prepared(connection):
    for number in range(20):
        row = connection.execute("SELECT %s::int + 1, %s::text", (number, "n"), prepare=True).fetchone()
        same(row, (number + 1, "n"), "prepared statement")
    # The same text with other types is another statement.
    same(connection.execute("SELECT pg_typeof(%s)::text", (1.5,), prepare=True).fetchone(), ("double precision",), "type")
    same(connection.execute("SELECT pg_typeof(%s)::text", (Decimal(1),), prepare=True).fetchone(), ("numeric",), "type")


def transactions(connection):
    with connection.transaction():
        connection.execute(f"INSERT INTO {TABLE} VALUES (1, 'kept')")
        with connection.transaction(force_rollback=True):
            connection.execute(f"INSERT INTO {TABLE} VALUES (2, 'savepoint rolled back')")
    try:
        with connection.transaction():
            connection.execute(f"INSERT INTO {TABLE} VALUES (3, 'rolled back')")
            raise ValueError
    except ValueError:
        pass
    same(connection.execute(f"SELECT id, note FROM {TABLE}").fetchall(), [(1, "kept")], "after transactions")
    # A read right after one's own write, many times.
    for number in range(50):
        connection.execute(f"UPDATE {TABLE} SET note = %s WHERE id = 1", (str(number),))
        same(connection.execute(f"SELECT note FROM {TABLE} WHERE id = 1").fetchone(), (str(number),), "own write")
    connection.execute(f"DELETE FROM {TABLE}")


def faults(connection):
    refused(errors.SyntaxError, lambda: connection.execute("SELEC 1"), "syntax")
    refused(errors.UndefinedTable, lambda: connection.execute("SELECT * FROM no_such_table"), "missing table")
    refused(errors.DivisionByZero, lambda: connection.execute("SELECT 1 / %s::int", (0,)), "division by zero")
    connection.execute(f"INSERT INTO {TABLE} VALUES (1, 'first')")
    refused(
        errors.UniqueViolation,
        lambda: connection.execute(f"INSERT INTO {TABLE} VALUES (1, 'second')"),
        "unique violation",
    )
    try:
        connection.execute(f"INSERT INTO {TABLE} VALUES (1, 'second')")
    except psycopg.Error as error:
        same(error.diag.constraint_name, f"{TABLE}_pkey", "an error's constraint")
        same(error.diag.table_name, TABLE, "an error's table")
        same(error.diag.message_detail, "Key (id)=(1) already exists.", "an error's detail")
    connection.execute("BEGIN")
    refused(errors.DivisionByZero, lambda: connection.execute("SELECT 1 / 0"), "in a transaction")
    refused(errors.InFailedSqlTransaction, lambda: connection.execute("SELECT 1"), "in a failed transaction")
    same(connection.execute("COMMIT").statusmessage, "ROLLBACK", "commit of a failed transaction")
    same(connection.execute("SELECT 1").fetchone(), (1,), "after errors")
    connection.execute(f"DELETE FROM {TABLE}")


def session(connection):
    with connect(options="-c search_path=pg_catalog -c statement_timeout=12345ms") as other:
        same(other.execute("SHOW search_path").fetchone(), ("pg_catalog",), "startup option")
        same(other.execute("SHOW statement_timeout").fetchone(), ("12345ms",), "startup option")
        other.execute("SET TimeZone = 'Asia/Tokyo'")
        same(other.execute("SHOW TimeZone").fetchone(), ("Asia/Tokyo",), "SET")
        same(other.info.parameter_status("TimeZone"), "Asia/Tokyo", "parameter status")
    same(connection.execute("SHOW search_path").fetchone(), ('"$user", public',), "another client's startup option")


def copy(connection):
    cursor = connection.cursor()
    with cursor.copy(f"COPY {TABLE} FROM STDIN") as writer:
        for number in range(10_000):
            writer.write_row((number, f"ročník {number}" if number % 2 else None))
    same(connection.execute(f"SELECT count(*), count(note) FROM {TABLE}").fetchone(), (10_000, 5_000), "COPY FROM")
    with cursor.copy(f"COPY (SELECT * FROM {TABLE} ORDER BY id) TO STDOUT") as reader:
        reader.set_types(["int4", "text"])
        rows = list(reader.rows())
    same((len(rows), rows[0], rows[1]), (10_000, (0, None), (1, "ročník 1")), "COPY TO")

    def wrong():
        with cursor.copy(f"COPY {TABLE} FROM STDIN") as writer:
            writer.write("not a number\tx\n")

    refused(errors.InvalidTextRepresentation, wrong, "COPY of a wrong value")

    def given_up():
        with cursor.copy(f"COPY {TABLE} FROM STDIN") as writer:
            writer.write_row((20_000, "given up"))
            raise KeyError("given up")

    try:
        given_up()
    except KeyError:
        pass
    same(connection.execute(f"SELECT count(*) FROM {TABLE}").fetchone(), (10_000,), "after COPYs that failed")
    connection.execute(f"DELETE FROM {TABLE}")


def pipelines(connection):
    with connection.pipeline() as pipeline:
        inserts = [connection.execute(f"INSERT INTO {TABLE} VALUES (%s, %s)", (n, str(n))) for n in range(100)]
        found = connection.execute(f"SELECT count(*) FROM {TABLE}")
        pipeline.sync()
        same([cursor.rowcount for cursor in inserts], [1] * 100, "inserts in a pipeline")
        same(found.fetchone(), (100,), "a read in a pipeline")

    def failing():
        with connection.pipeline():
            connection.execute(f"INSERT INTO {TABLE} VALUES (200, 'undone')")
            connection.execute("SELECT 1 / 0")
            connection.execute(f"INSERT INTO {TABLE} VALUES (201, 'never run')")

    refused(errors.DivisionByZero, failing, "an error in a pipeline")
    same(connection.execute(f"SELECT count(*) FROM {TABLE}").fetchone(), (100,), "after the failed pipeline")
    connection.execute(f"DELETE FROM {TABLE}")


def cursors(connection):
    with connection.transaction(), connection.cursor(name="numbers") as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT generate_series(1, 1000)")
        same(sum(number for (number,) in cursor), 500_500, "server-side cursor")


def cancel(connection):
    timer = threading.Timer(0.3, connection.cancel)
    timer.start()
    refused(errors.QueryCanceled, lambda: connection.execute("SELECT pg_sleep(30)"), "cancel")
    timer.join()
    same(connection.execute("SELECT 1").fetchone(), (1,), "after a cancel")


def crowd():
    """20 connections at once, each with its own settings, statements and rows."""
    failures = []
    start = threading.Barrier(20)

    def one(client):
        try:
            with connect(application_name=f"crowd {client}") as connection:
                connection.execute("SELECT set_config('pgweir_test.client', %s, false)", (str(client),))
                start.wait(60)
                for turn in range(25):
                    key = 1000 + client * 100 + turn
                    with connection.transaction():
                        connection.execute(f"INSERT INTO {TABLE} VALUES (%s, %s)", (key, str(client)), prepare=True)
                    note = connection.execute(f"SELECT note FROM {TABLE} WHERE id = %s", (key,), prepare=True).fetchone()
                    same(note, (str(client),), "own row in the crowd")
                    setting = connection.execute("SELECT current_setting('pgweir_test.client')").fetchone()
                    same(setting, (str(client),), "own setting in the crowd")
                name = connection.execute("SHOW application_name").fetchone()
                same(name, (f"crowd {client}",), "own application_name in the crowd")
        except Exception as error:
            failures.append(f"client {client}: {error!r}")
            start.abort()

    threads = [threading.Thread(target=one, args=(client,)) for client in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise AssertionError("; ".join(failures[:3]))


def main():
    with connect() as connection:
        name = sql.Identifier(TABLE)
        connection.execute(sql.SQL("CREATE TABLE {} (id int PRIMARY KEY, note text)").format(name))
        try:
            for part in (values, prepared, transactions, faults, session, copy, pipelines, cursors, cancel):
                try:
                    part(connection)
                except Exception as error:
                    sys.exit(f"{part.__name__}: {type(error).__name__}: {error}")
            try:
                crowd()
            except Exception as error:
                sys.exit(f"crowd: {error}")
        finally:
            # On a connection of its own: this one may be unusable after a failure.
            with connect() as last:
                last.execute(sql.SQL("DROP TABLE {}").format(name))
    print("psycopg: all as expected")


main()
