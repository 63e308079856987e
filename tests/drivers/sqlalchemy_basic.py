"""What an application in Python relies on, with SQLAlchemy 2. Usage: sqlalchemy_basic.py URL

On psycopg the whole, on asyncpg the mapping once more. Exits with 1 and a message at the first difference from
PostgreSQL.
"""

import asyncio
import enum
import os
import sys
import threading

from expect import same, told
from sqlalchemy import Enum, ForeignKey, Index, String, create_engine, func, insert, inspect, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

URL = sys.argv[1]
# Runs of this script do not meet.
SCHEMA = f"sqlalchemy_{os.getpid()}"


class Base(DeclarativeBase):
    pass


class Colour(enum.Enum):
    red = 1
    blue = 2


class Owner(Base):
    __tablename__ = "owner"
    __table_args__ = {"schema": SCHEMA, "comment": "who owns"}
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(30), unique=True)
    things: Mapped[list["Thing"]] = relationship(back_populates="owner", order_by="Thing.id")


class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey(f"{SCHEMA}.owner.id"))
    colour: Mapped[Colour] = mapped_column(Enum(Colour, schema=SCHEMA))
    tags: Mapped[list[str]] = mapped_column(ARRAY(String))
    more: Mapped[dict] = mapped_column(JSONB, default=dict)
    owner: Mapped[Owner] = relationship(back_populates="things")
    __table_args__ = (Index("thing_by_colour", "colour"), {"schema": SCHEMA})


def refused(sqlstate, run, what):
    try:
        run()
    except DBAPIError as error:
        same(error.orig.sqlstate, sqlstate, f"{what} ({error.orig})")
        return
    raise AssertionError(f"{what}: expected {sqlstate}, found success")


def owner(name, things):
    things = [Thing(colour=Colour.red, tags=[name, str(n)], more={"n": n}) for n in range(things)]
    return Owner(name=name, things=things)


def mapping(engine):
    with Session(engine) as session:
        session.add_all([owner("ada", 3), owner("bob", 0)])
        session.commit()
        found = session.scalars(select(Owner).options(selectinload(Owner.things)).order_by(Owner.name)).all()
        same([(o.name, len(o.things)) for o in found], [("ada", 3), ("bob", 0)], "objects")
        same(found[0].things[2].tags, ["ada", "2"], "an array")
        found[0].things[2].more = {"deep": [1, None]}
        found[0].things[1].colour = Colour.blue
        session.flush()
        same(session.scalar(select(Thing.more["deep"][0].as_integer()).where(Thing.more.has_key("deep"))), 1, "JSON")
        session.rollback()
        same(session.scalar(select(func.count()).where(Thing.colour == Colour.blue)), 0, "after a rollback")
        session.add(owner("ada", 0))
        try:
            session.commit()
        except IntegrityError as error:
            same(error.orig.diag.constraint_name, "owner_name_key", "the constraint's name")
            session.rollback()
        else:
            raise AssertionError("a name given twice")
        with session.begin_nested() as savepoint:
            session.execute(update(Owner).values(name="x" + Owner.name))
            savepoint.rollback()
        locked = session.scalars(select(Owner).with_for_update(skip_locked=True).order_by(Owner.name)).all()
        same([o.name for o in locked], ["ada", "bob"], "after a savepoint's rollback")


def many(engine):
    with engine.begin() as connection:
        statement = insert(Owner).returning(Owner.id, sort_by_parameter_order=True)
        ids = connection.scalars(statement, [{"name": f"many {n}"} for n in range(3000)]).all()
        same((len(ids), sorted(ids) == ids), (3000, True), "many rows inserted")
        again = upsert(Owner).values(name="many 7")
        again = again.on_conflict_do_update(index_elements=["name"], set_={"name": "many seven"}).returning(Owner.id)
        same(connection.scalar(again), ids[7], "ON CONFLICT")
    with engine.connect() as connection:
        rows = connection.execution_options(yield_per=100).execute(select(Owner.id).where(Owner.name.like("many%")))
        same(sum(len(part) for part in rows.partitions()), 3000, "rows of a server-side cursor")


def reflection(engine):
    with engine.connect() as connection:
        found = inspect(connection)
        same(sorted(found.get_table_names(SCHEMA)), ["owner", "thing"], "tables")
        columns = [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns("thing", SCHEMA)][:3]
        same(columns, [("id", "INTEGER", False), ("owner_id", "INTEGER", False), ("colour", "VARCHAR(4)", False)], "columns")
        same(found.get_foreign_keys("thing", SCHEMA)[0]["referred_table"], "owner", "a foreign key")
        same([i["name"] for i in found.get_indexes("thing", SCHEMA)], ["thing_by_colour"], "indexes")
        same(found.get_table_comment("owner", SCHEMA), {"text": "who owns"}, "a comment")
        same(found.get_enums(SCHEMA)[0]["labels"], ["red", "blue"], "an enum")
        same(found.get_unique_constraints("owner", SCHEMA)[0]["name"], "owner_name_key", "a constraint")


def connections(engine):
    for level in ("SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"):
        with engine.connect().execution_options(isolation_level=level) as connection:
            same(connection.scalar(text("SHOW transaction_isolation")), level.lower(), "isolation")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"SET search_path = {SCHEMA}"))
        same(connection.scalar(text("SELECT count(*) FROM owner")) > 0, True, "search_path")
        connection.execute(text("CREATE TEMPORARY TABLE kept AS SELECT 1 AS a"))
        same(connection.scalar(text("SELECT a FROM kept")), 1, "a temporary table")
        connection.execute(text("VACUUM owner"))
        connection.execute(text("DROP TABLE kept; RESET search_path"))
    read_only = {"isolation_level": "SERIALIZABLE", "postgresql_readonly": True, "postgresql_deferrable": True}
    with engine.connect().execution_options(**read_only) as connection:
        write = text(f"INSERT INTO {SCHEMA}.owner (name) VALUES ('no')")
        refused("25006", lambda: connection.execute(write), "a write in a read-only transaction")
        connection.rollback()
    with engine.connect() as connection:
        refused("42P01", lambda: connection.execute(text("SELECT * FROM owner")), "another's search_path")


def crowd(engine):
    failures = []

    def one(client):
        try:
            for turn in range(15):
                with Session(engine) as session, session.begin():
                    session.scalar(select(func.set_config("pgweir_test.client", str(client), True)))
                    session.add(owner(f"crowd {client} {turn}", 2))
                    session.flush()
                    setting = session.scalar(select(func.current_setting("pgweir_test.client")))
                    same(setting, str(client), "own setting in the crowd")
                with Session(engine) as session:
                    found = session.scalars(select(Owner).where(Owner.name == f"crowd {client} {turn}")).one()
                    same(len(found.things), 2, "own rows in the crowd")
        except Exception as error:
            failures.append(f"client {client}: {error!r}")

    threads = [threading.Thread(target=one, args=(client,)) for client in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise AssertionError("; ".join(failures[:3]))


async def on_asyncpg(url):
    engine = create_async_engine(url, pool_pre_ping=True)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        session.add(owner("async", 3))
        await session.commit()
        query = select(Owner).where(Owner.name == "async").options(selectinload(Owner.things))
        found = (await session.scalars(query)).one()
        same([t.colour for t in found.things], [Colour.red] * 3, "objects")
        async with session.begin_nested() as savepoint:
            await session.execute(update(Owner).values(name="x" + Owner.name))
            await savepoint.rollback()
        streamed = await session.stream(select(Owner.id).execution_options(yield_per=100))
        same(len([row async for row in streamed]), await session.scalar(select(func.count(Owner.id))), "streamed rows")
    await engine.dispose()


def asyncpg(_):
    asyncio.run(on_asyncpg(URL.replace("postgresql:", "postgresql+asyncpg:")))


def main():
    engine = create_engine(URL.replace("postgresql:", "postgresql+psycopg:"), pool_pre_ping=True, pool_size=5)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        Base.metadata.create_all(connection)
    try:
        for part in (mapping, many, reflection, connections, crowd, asyncpg):
            try:
                part(engine)
            except Exception as error:
                sys.exit(told(part, error))
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))
    engine.dispose()
    print("SQLAlchemy: all as expected")


main()
