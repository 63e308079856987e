"""PostgreSQL's own regression suite: its files in the schedule's order, one after the other, by psql.

A file passes if what psql prints is what PostgreSQL expects, as pg_regress judges: one of the expected files, blanks
aside.
"""

import difflib
import glob
import os
import re
import shutil
import subprocess

import fetch
from servers import account, environment, programs

PACKAGES = "15.18-0+deb12u1"
HEADERS = ("postgresql-server-dev-15", "libpq-dev")
DATABASE = "regression"
# As pg_regress starts psql and sets up the database.
PREPARE = tuple(
    f"ALTER DATABASE {DATABASE} SET {setting}"
    for setting in ("lc_messages TO 'C'", "lc_monetary TO 'C'", "lc_numeric TO 'C'", "lc_time TO 'C'",
                    "bytea_output TO 'hex'", "timezone_abbreviations TO 'Default'")
)
PSQL = ["psql", "-X", "-a", "-q", "-d", DATABASE, "-v", "HIDE_TABLEAM=on", "-v", "HIDE_TOAST_COMPRESSION=on"]
SETTINGS = {"PGTZ": "America/Los_Angeles", "PGDATESTYLE": "Postgres, MDY", "PGOPTIONS": "-c intervalstyle=postgres_verbose",
            "LC_MESSAGES": "C", "LC_ALL": "C"}


def library(source):
    """The suite's functions in C, built by the headers of Debian's package."""
    def build(folder):
        server, client = (fetch.debian_binary(package, PACKAGES) for package in HEADERS)
        for name in os.listdir(f"{programs()}/../lib"):
            os.symlink(f"{programs()}/../lib/{name}", f"{folder}/{name}")
        fetch.run("cc", "-shared", "-fPIC", "-O1", "-w", f"-I{server}/usr/include/postgresql/15/server",
                  f"-I{client}/usr/include/postgresql", "-o", f"{folder}/regress.so", f"{source}/regress.c")
    return fetch.once(f"regress-{PACKAGES}.lib", build)


def schedule(source):
    with open(f"{source}/parallel_schedule") as file:
        return [name for line in file if line.startswith("test:") for name in line.split()[1:]]


def run(port, folder, only):
    source = os.path.join(fetch.debian_source("postgresql-15", PACKAGES), "src/test/regress")
    work = os.path.join(folder, "work")
    shutil.copytree(source, work)
    os.makedirs(f"{work}/results")
    shutil.copytree(library(source), f"{work}/lib", symlinks=True)
    own_by_server(work)
    names = {"PG_ABS_SRCDIR": work, "PG_ABS_BUILDDIR": work, "PG_LIBDIR": f"{work}/lib", "PG_DLSUFFIX": ".so"}
    outcomes = {}
    for test in schedule(source):
        # Most need what test_setup has made.
        if only and test not in (*only.split(","), "test_setup"):
            continue
        env = environment(port, DATABASE, **SETTINGS, **names, PGAPPNAME=f"pg_regress/{test}")
        outcomes[test] = run_file(test, work, env)
    return outcomes


def run_file(test, work, env):
    result = f"{work}/results/{test}.out"
    with open(f"{work}/sql/{test}.sql") as text, open(result, "w") as output:
        try:
            subprocess.run(PSQL, env=env, stdin=text, stdout=output, stderr=output, cwd=work, timeout=300)
        except subprocess.TimeoutExpired:
            return "more than 300 s"
    found = lines(result)
    expected = [lines(name) for name in (f"{work}/expected/{test}.out", *sorted(glob.glob(f"{work}/expected/{test}_[0-9].out")))
                if os.path.exists(name)]
    if any(found == one for one in expected):
        return "passed"
    return "\n".join(difflib.unified_diff(expected[0], found, "expected", "found", n=0, lineterm=""))


def differing(outcome):
    """First and last line of each place of the expected file where an outcome differs."""
    places = re.findall(r"^@@ -(\d+)(?:,(\d+))? ", outcome, re.MULTILINE)
    return [(int(first), int(first) + max(int(count or 1) - 1, 0)) for first, count in places]


def lines(path):
    """Lines with blanks folded, as `diff -w` compares."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return ["".join(line.split()) for line in file]


def own_by_server(work):
    """The server reads and writes there too."""
    own = account()
    for folder, _, _ in os.walk(work):
        if own:
            os.chown(folder, own["user"], own["group"])
