"""PostgreSQL's own tests of sessions beside each other (`src/test/isolation`): who waits for whom is told by the process ids
of servers, so in session mode alone."""

import difflib
import glob
import os
import subprocess

import fetch
import regress
from servers import environment

DATABASE = "isolation_regression"
PREPARE = tuple(statement.replace(regress.DATABASE, DATABASE) for statement in regress.PREPARE)


def program(source):
    def build(folder):
        server, client = (fetch.debian_binary(package, regress.PACKAGES) for package in regress.HEADERS)
        fetch.run("cc", "-O1", "-w", f"-I{source}", f"-I{client}/usr/include/postgresql",
                  f"-I{client}/usr/include/postgresql/internal", f"-I{server}/usr/include/postgresql/15/server",
                  "-o", f"{folder}/isolationtester", f"{source}/isolationtester.c", f"{source}/specparse.c",
                  f"-L{server}/usr/lib/postgresql/15/lib", "-l:libpq.so.5", "-lpgcommon", "-lpgport", "-lm")
    return fetch.once(f"isolation-{regress.PACKAGES}.bin", build) + "/isolationtester"


def schedule(source):
    with open(f"{source}/isolation_schedule") as file:
        return [name for line in file if line.startswith("test:") for name in line.split()[1:]]


def run(port, folder, only):
    source = os.path.join(fetch.debian_source("postgresql-15", regress.PACKAGES), "src/test/isolation")
    binary = program(source)
    tests = [test for test in schedule(source) if not only or test in only.split(",")]
    return {test: run_spec(binary, source, test, port, folder) for test in tests}


def run_spec(binary, source, test, port, folder):
    result = f"{folder}/{test}.out"
    env = environment(port, DATABASE, **regress.SETTINGS, PGAPPNAME=f"isolation/{test}")
    with open(f"{source}/specs/{test}.spec") as text, open(result, "w") as output:
        try:
            subprocess.run([binary, f"dbname={DATABASE}"], env=env, stdin=text, stdout=output, stderr=output, timeout=300)
        except subprocess.TimeoutExpired:
            return "more than 300 s"
    found = regress.lines(result)
    expected = [regress.lines(name) for name in sorted(glob.glob(f"{source}/expected/{test}.out") +
                                                      glob.glob(f"{source}/expected/{test}_[0-9].out"))]
    if found in expected:
        return "passed"
    return "\n".join(difflib.unified_diff(expected[0], found, "expected", "found", n=0, lineterm=""))
