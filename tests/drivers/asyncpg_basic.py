"""What an application in Python relies on, with asyncpg. Usage: asyncpg_basic.py URL

Exits with 1 and a message at the first difference from PostgreSQL.
"""

import asyncio
import io
import ipaddress
import json
import os
import sys
import uuid
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import asyncpg
from expect import refused, same, told, within

URL = sys.argv[1]
# Runs of this script do not meet.
TABLE = f"asyncpg_{os.getpid()}"
COLOUR = f"{TABLE}_colour"
POINT = f"{TABLE}_point"


async def connect(**options):
    return await asyncpg.connect(URL, timeout=20, **options)


async def values(connection):
    row = (
        7,
        "žluťoučký 🐘",
        b"\x00\xff",
        Decimal("1.50"),
        [1, None, 3],
        uuid.UUID(int=1),
        datetime(2024, 2, 29, 12, 30, tzinfo=timezone.utc),
        date(2024, 2, 29),
        timedelta(days=1, seconds=5),
        ipaddress.ip_address("10.0.0.1"),
        asyncpg.Range(1, 5),
        None,
    )
    types = "int text bytea numeric int[] uuid timestamptz date interval inet int4range text".split()
    query = "SELECT " + ", ".join(f"${n}::{name}" for n, name in enumerate(types, 1))
    same(tuple(await connection.fetchrow(query, *row)), row, "values in binary")
    same(await connection.fetchval("SELECT length($1)", "x" * 3_000_000), 3_000_000, "a parameter of 3 MB")
    same(len(await connection.fetch("SELECT generate_series(1, $1::int)", 50_000)), 50_000, "many rows")
    same(await connection.execute("SELECT 1; SELECT 2; SELECT 3"), "SELECT 1", "several statements")
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    same(await connection.fetchval("SELECT $1::jsonb", {"a": [1, None]}), {"a": [1, None]}, "a codec")


async def own_types(connection):
    # The driver asks the catalogs for types that it does not know, between Parse and Bind of the query.
    same(await connection.fetchval(f"SELECT $1::{COLOUR}", "red"), "red", "an enum")
    same(await connection.fetchval(f"SELECT $1::{COLOUR}[]", ["red", "blue"]), ["red", "blue"], "an array of enums")
    same(tuple(await connection.fetchval(f"SELECT $1::{POINT}", (1, "blue"))), (1, "blue"), "a composite")
    await connection.reload_schema_state()
    same(tuple(await connection.fetchval(f"SELECT ROW(2, 'red')::{POINT}")), (2, "red"), "a composite, asked again")


async def prepared(connection):
    # More than the driver keeps, so that it closes some; in turns, so that each meets every other.
    for turn in range(2):
        for number in range(150):
            found = await connection.fetchval(f"SELECT $1::int + {number}", turn)
            same(found, turn + number, "statements of the cache")
    statement = await connection.prepare(f"SELECT id, note FROM {TABLE} WHERE id = $1")
    same([p.name for p in statement.get_parameters()], ["int4"], "a statement's parameters")
    same([a.name for a in statement.get_attributes()], ["id", "note"], "a statement's columns")
    for number in range(20):
        same(await statement.fetchrow(number), None, "a prepared statement")
    same((await statement.explain(1))[0]["Plan"]["Node Type"] != "", True, "explain of a prepared statement")


async def schema_changes(connection):
    other = await connect()
    # On a replica it would be promised nothing of what the first client writes.
    await other.execute("SET pgweir.route = 'primary'")
    await connection.execute(f"INSERT INTO {TABLE} VALUES (1, 'one')")
    for number in range(3):
        query = f"SELECT * FROM {TABLE} WHERE id = $1"
        width = len(await connection.fetchrow(query, 1))
        same(width, 2 + number, "columns")
        same(len(await other.fetchrow(query, 1)), width, "columns that the other client sees")
        await connection.execute(f"ALTER TABLE {TABLE} ADD COLUMN more{number} int")
    await connection.execute(f"ALTER TABLE {TABLE} DROP COLUMN more0, DROP COLUMN more1, DROP COLUMN more2")
    await connection.execute(f"DELETE FROM {TABLE}")
    await other.close()


async def transactions(connection):
    async with connection.transaction():
        await connection.execute(f"INSERT INTO {TABLE} VALUES (1, 'kept')")
        try:
            async with connection.transaction():
                await connection.execute(f"INSERT INTO {TABLE} VALUES (2, 'savepoint rolled back')")
                raise ValueError
        except ValueError:
            pass
        same(await connection.fetchval(f"SELECT count(*) FROM {TABLE}"), 1, "in the transaction")
    for isolation in ("serializable", "repeatable_read", "read_committed"):
        async with connection.transaction(isolation=isolation, readonly=True, deferrable=isolation == "serializable"):
            shown = await connection.fetchval("SHOW transaction_isolation")
            same(shown, isolation.replace("_", " "), "isolation")
            insert = connection.execute(f"INSERT INTO {TABLE} VALUES (3, '')")
            try:
                async with connection.transaction():
                    await insert
            except asyncpg.ReadOnlySQLTransactionError:
                pass
            else:
                raise AssertionError("a write in a read-only transaction")
    for number in range(50):
        await connection.execute(f"UPDATE {TABLE} SET note = $1", str(number))
        same(await connection.fetchval(f"SELECT note FROM {TABLE}"), str(number), "own write")
    await connection.execute(f"DELETE FROM {TABLE}")


async def cursors(connection):
    async with connection.transaction():
        total = 0
        async for record in connection.cursor("SELECT generate_series(1, $1::int)", 1000, prefetch=30):
            total += record[0]
        same(total, 500_500, "a cursor's rows")
        cursor = await connection.cursor("SELECT generate_series(1, 100)")
        same(await cursor.forward(10), 10, "moved")
        same((await cursor.fetchrow())[0], 11, "the row after a move")
        # Two portals at once.
        second = await connection.cursor("SELECT generate_series(1, 100) * 2")
        same([(await second.fetchrow())[0], (await cursor.fetchrow())[0]], [2, 12], "two cursors")


async def faults(connection):
    await refused("42601", connection.fetch("SELEC 1"), "syntax")
    await refused("42P01", connection.fetch("SELECT * FROM no_such_table"), "missing table")
    await refused("22012", connection.fetch("SELECT 1 / $1::int", 0), "division by zero")
    await connection.execute(f"INSERT INTO {TABLE} VALUES (1, 'first')")
    error = await refused("23505", connection.execute(f"INSERT INTO {TABLE} VALUES ($1, '')", 1), "unique violation")
    same((error.constraint_name, error.detail), (f"{TABLE}_pkey", "Key (id)=(1) already exists."), "its fields")
    many = connection.executemany(f"INSERT INTO {TABLE} VALUES ($1, 'many')", [(n,) for n in (5, 6, 1, 7)])
    await refused("23505", many, "one of many")
    same(await connection.fetchval(f"SELECT count(*) FROM {TABLE}"), 1, "none of many")
    await connection.execute(f"DELETE FROM {TABLE}")


async def many(connection):
    rows = [(n, str(n)) for n in range(10_000)]
    await connection.executemany(f"INSERT INTO {TABLE} VALUES ($1, $2)", rows)
    same([tuple(r) for r in await connection.fetch(f"SELECT * FROM {TABLE} ORDER BY id")], rows, "executemany")
    found = await connection.fetchmany(f"DELETE FROM {TABLE} WHERE id = $1 RETURNING note", [(1,), (2,), (20_000,)])
    same([r["note"] for r in found], ["1", "2"], "fetchmany")
    await connection.execute(f"DELETE FROM {TABLE}")


async def copy(connection):
    rows = [(n, f"ročník {n}" if n % 2 else None) for n in range(10_000)]
    same(await connection.copy_records_to_table(TABLE, records=rows), "COPY 10000", "COPY FROM in binary")
    out = io.BytesIO()
    same(await connection.copy_from_query(f"SELECT * FROM {TABLE} WHERE id < $1 ORDER BY id", 2, output=out), "COPY 2", "")
    same(out.getvalue(), "0\t\\N\n1\tročník 1\n".encode(), "COPY TO")
    await connection.execute(f"DELETE FROM {TABLE}")
    source = io.BytesIO(b"1,one\n2,two\n")
    same(await connection.copy_to_table(TABLE, source=source, format="csv"), "COPY 2", "COPY FROM csv")
    wrong = connection.copy_to_table(TABLE, source=io.BytesIO(b"x,y\n"), format="csv")
    await refused("22P02", wrong, "COPY of a wrong value")
    # An encoder's error in the middle: the driver sends CopyFail.
    try:
        await connection.copy_records_to_table(TABLE, records=[(3, "three"), ("no number", "four")])
    except (asyncpg.DataError, TypeError, asyncpg.QueryCanceledError):
        pass
    else:
        raise AssertionError("COPY given up: success")
    same(await connection.fetchval(f"SELECT count(*) FROM {TABLE}"), 2, "after COPYs that failed")
    await connection.execute(f"DELETE FROM {TABLE}")


async def session(connection):
    settings = {"search_path": "pg_catalog", "statement_timeout": "12345ms", "application_name": "asyncpg's own"}
    other = await connect(server_settings=settings)
    for name, value in settings.items():
        same(await other.fetchval(f"SHOW {name}"), value, "server_settings")
    await other.execute("SET TimeZone = 'Asia/Tokyo'; SET search_path = public")
    same(other.get_settings().TimeZone, "Asia/Tokyo", "parameter status")
    # What the driver's pool does between two users of a connection.
    await other.reset()
    same(await other.fetchval("SHOW search_path"), "pg_catalog", "search_path after a reset")
    await other.execute("CREATE TEMPORARY TABLE own (a int)")
    await other.execute("INSERT INTO own SELECT generate_series(1, 3)")
    same(await other.fetchval("SELECT sum(a) FROM own"), 6, "a temporary table")
    await refused("42P01", connection.fetchval("SELECT sum(a) FROM own"), "another client's temporary table")
    same(await other.fetchval("SELECT pg_try_advisory_lock($1)", os.getpid()), True, "a lock")
    same(await connection.fetchval("SELECT pg_try_advisory_lock($1)", os.getpid()), False, "another's lock")
    await other.close()
    same(await connection.fetchval("SHOW search_path"), '"$user", public', "another client's search_path")


async def notifications(connection):
    heard = asyncio.Queue()
    channel = f"Channel {os.getpid()}"
    await connection.add_listener(channel, lambda _, pid, name, payload: heard.put_nowait((name, payload)))
    other = await connect()
    for number in range(5):
        await other.execute("SELECT pg_notify($1, $2)", channel, str(number))
        same(await within(heard.get(), "a notification"), (channel, str(number)), "a notification")
    async with connection.transaction():
        await connection.execute("SELECT pg_notify($1, 'own')", channel)
    same(await within(heard.get(), "an own notification"), (channel, "own"), "an own notification")
    notices = asyncio.Queue()
    connection.add_log_listener(lambda _, message: notices.put_nowait(message.message))
    await connection.execute("DO $$ BEGIN RAISE NOTICE 'ahoj'; END $$")
    same(await within(notices.get(), "a notice"), "ahoj", "a notice")
    await other.close()


async def cancel(connection):
    for _ in range(3):
        try:
            await connection.fetch("SELECT pg_sleep(60)", timeout=0.2)
        except asyncio.TimeoutError:
            pass
        else:
            raise AssertionError("no timeout")
        same(await connection.fetchval("SELECT 1"), 1, "after a timeout")


async def crowd(_):
    """20 tasks over a pool of the driver's own, which resets connections between them."""
    async with asyncpg.create_pool(URL, min_size=2, max_size=10) as pool:

        async def one(client):
            for turn in range(10):
                async with pool.acquire() as connection:
                    key = 1000 + client * 100 + turn
                    unset = await connection.fetchval("SELECT current_setting('pgweir_test.client', true)")
                    same(unset in (None, ""), True, "a setting after a reset")
                    await connection.execute("SELECT set_config('pgweir_test.client', $1, false)", str(client))
                    async with connection.transaction():
                        await connection.execute(f"INSERT INTO {TABLE} VALUES ($1, $2)", key, str(client))
                    note = await connection.fetchval(f"SELECT note FROM {TABLE} WHERE id = $1", key)
                    same(note, str(client), "own row in the crowd")
                    setting = await connection.fetchval("SELECT current_setting('pgweir_test.client')")
                    same(setting, str(client), "own setting in the crowd")

        await asyncio.gather(*(one(client) for client in range(20)))


PARTS = (
    values,
    own_types,
    prepared,
    schema_changes,
    transactions,
    cursors,
    faults,
    many,
    copy,
    session,
    notifications,
    cancel,
    crowd,
)


async def main():
    connection = await connect()
    await connection.execute(
        f"CREATE TABLE {TABLE} (id int PRIMARY KEY, note text);"
        f"CREATE TYPE {COLOUR} AS ENUM ('red', 'blue'); CREATE TYPE {POINT} AS (x int, colour {COLOUR})"
    )
    try:
        for part in PARTS:
            try:
                await part(connection)
            except Exception as error:
                sys.exit(told(part, error))
    finally:
        # On a connection of its own: this one may be unusable after a failure.
        last = await connect()
        await last.execute(f"DROP TABLE {TABLE}; DROP TYPE {POINT}; DROP TYPE {COLOUR}")
        await last.close()
    await connection.close()
    print("asyncpg: all as expected")


asyncio.run(main())
