"""The suites: where each comes from, how it is started, how its outcomes are read.

A suite is a function of the server's port, a folder for its files, and `only`. It returns a dict of test to outcome: "passed",
"skipped", or why not. `only`, if not None, chooses among the tests.
"""

import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Callable

import django_orm
import fetch
import golang
import isolation
import libpq
import regress
import tokio_postgres
from servers import PASSWORD, environment, psql

PYTEST = ("pytest==8.4.2", "pytest-timeout==2.4.0")


@dataclass
class Suite:
    name: str
    version: str
    run: Callable
    # The database it works in, and connections of transaction mode.
    database: str
    connections: int
    # Statements for that database, as the superuser and directly.
    prepare: tuple = ()
    # Some ask servers for their process ids: for them each session needs one of its own.
    modes: tuple = ("direct", "session", "transaction", "replicas")

    def prepared(self, port):
        if self.database != "postgres":
            psql(port, f"CREATE DATABASE {self.database}")
        psql(port, *self.prepare, database=self.database)


def pytest(python, folder, arguments, env, cwd, only):
    """Outcomes by pytest's identifiers."""
    report = os.path.join(folder, "report.xml")
    with open(os.path.join(folder, "output.txt"), "w") as output:
        subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "--timeout=120",
                        *arguments, *(["-k", only] if only else [])], cwd=cwd, env=env,
                       stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [part for part in case if part.tag in ("failure", "error")]
        skipped = case.find("skipped") is not None
        name = f"{case.get('classname')}.{case.get('name')}"
        outcomes[name] = bad[0].get("message", "")[:500] if bad else "skipped" if skipped else "passed"
    return outcomes


def tests_alone(source, folder, name):
    """A copy of the tests without the package beside them, so that the installed one is imported."""
    copy = os.path.join(folder, name)
    shutil.copytree(os.path.join(source, name), copy)
    return folder


def asyncpg(port, folder, only):
    version = "0.32.0"
    python = fetch.venv("asyncpg", f"asyncpg=={version}", "uvloop", "distro", *PYTEST)
    cwd = tests_alone(fetch.sdist("asyncpg", version), folder, "tests")
    return pytest(python, folder, ["tests"], environment(port, PGHOST="127.0.0.1"), cwd, only)


def psycopg2(port, folder, only):
    version = "2.9.13"
    python = fetch.venv("psycopg2", f"psycopg2-binary=={version}", *PYTEST)
    cwd = tests_alone(fetch.sdist("psycopg2", version), folder, "tests")
    return pytest(python, folder, ["tests"], environment(port, "psycopg2_test", PSYCOPG2_TEST_REPL_DSN=""), cwd, only)


def pg8000(port, folder, only):
    version = "1.31.6"
    python = fetch.venv("pg8000", f"pg8000=={version}", "pytest-benchmark", "pytz", *PYTEST)
    cwd = tests_alone(fetch.sdist("pg8000", version), folder, "test")
    arguments = ["test", "--ignore-glob=*/auth/*", "--ignore=test/test_readme.py", "--benchmark-disable"]
    return pytest(python, folder, arguments, environment(port), cwd, only)


def sqlalchemy(driver):
    """Those of its tests that are about PostgreSQL's dialect, or about connections of any database."""
    def run(port, folder, only):
        version = "2.0.44"
        python = fetch.venv("sqlalchemy", "greenlet", "typing-extensions", "psycopg2-binary==2.9.13", "asyncpg==0.32.0",
                            "psycopg[binary]==3.2.13", *PYTEST)
        source = fetch.sdist("sqlalchemy", version)
        # They import what is in the folder beside them, and only that.
        for part in ("test", "lib"):
            cwd = tests_alone(source, folder, part)
        for settings in ("setup.cfg", "pyproject.toml"):
            shutil.copy(os.path.join(source, settings), cwd)
        url = f"postgresql+{driver}://postgres:{PASSWORD}@127.0.0.1:{port}/sqlalchemy"
        parts = ["dialect/postgresql", "engine/test_execute.py", "engine/test_reconnect.py", "engine/test_transaction.py"]
        arguments = [*(f"test/{part}" for part in parts), "--backend-only", f"--dburi={url}", "-p", "no:warnings"]
        return pytest(python, folder, arguments, environment(port, "sqlalchemy"), cwd, only)
    return run


HSTORE = ("CREATE EXTENSION hstore",)
SQLALCHEMY = (*HSTORE, "CREATE EXTENSION citext", "CREATE SCHEMA test_schema", "CREATE SCHEMA test_schema_2",
              "ALTER DATABASE sqlalchemy SET default_text_search_config = 'english'")
SUITES = [
    Suite("regress", "15.18", regress.run, regress.DATABASE, 5, regress.PREPARE),
    Suite("libpq-pipeline", "15.18", libpq.run, libpq.DATABASE, 5),
    Suite("isolation", "15.18", isolation.run, isolation.DATABASE, 5, isolation.PREPARE, ("direct", "session")),
    Suite("asyncpg", "0.32.0", asyncpg, "postgres", 12),
    Suite("psycopg2", "2.9.13", psycopg2, "psycopg2_test", 5, HSTORE),
    Suite("pg8000", "1.31.6", pg8000, "postgres", 5, HSTORE),
    Suite("sqlalchemy-psycopg2", "2.0.44", sqlalchemy("psycopg2"), "sqlalchemy", 5, SQLALCHEMY),
    Suite("sqlalchemy-asyncpg", "2.0.44", sqlalchemy("asyncpg"), "sqlalchemy", 5, SQLALCHEMY),
    Suite("sqlalchemy-psycopg", "2.0.44", sqlalchemy("psycopg"), "sqlalchemy", 5, SQLALCHEMY),
    Suite("sqlalchemy-psycopg_async", "2.0.44", sqlalchemy("psycopg_async"), "sqlalchemy", 5, SQLALCHEMY),
    Suite("django", django_orm.VERSION, django_orm.run, "postgres", 5),
    *(Suite(name, version, golang.suite(package, path, "gotest"), "gotest", connections, golang.PREPARE)
      for name, version, package, path, connections in golang.SUITES),
    Suite("tokio-postgres", tokio_postgres.VERSION, tokio_postgres.run, tokio_postgres.DATABASE, 5, tokio_postgres.PREPARE),
]
