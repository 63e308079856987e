"""libpq's own test of pipelines (`src/test/modules/libpq_pipeline`): where PostgreSQL keeps a trace of the messages, it must
be the same."""

import os
import subprocess

import fetch
import regress
from servers import environment

DATABASE = "postgres"
ROWS = "700"


def program(source):
    def build(folder):
        server, client = (fetch.debian_binary(package, regress.PACKAGES) for package in regress.HEADERS)
        fetch.run("cc", "-O1", "-w", f"-I{client}/usr/include/postgresql", f"-I{server}/usr/include/postgresql/15/server",
                  f"-I{source}/../../../interfaces/libpq", "-o", f"{folder}/libpq_pipeline", f"{source}/libpq_pipeline.c",
                  f"-L{server}/usr/lib/postgresql/15/lib", "-l:libpq.so.5", "-lpgcommon", "-lpgport")
    return fetch.once(f"libpq_pipeline-{regress.PACKAGES}.bin", build) + "/libpq_pipeline"


def run(port, folder, only):
    source = os.path.join(fetch.debian_source("postgresql-15", regress.PACKAGES), "src/test/modules/libpq_pipeline")
    binary = program(source)
    outcomes = {}
    for test in fetch.run(binary, "tests").split():
        if only and test != only:
            continue
        trace = os.path.join(folder, f"{test}.trace")
        done = subprocess.run([binary, "-r", ROWS, "-t", trace, test, ""], env=environment(port, DATABASE),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        expected = f"{source}/traces/{test}.trace"
        outcome = "passed" if done.returncode == 0 else done.stderr or f"ended with {done.returncode}"
        if outcome == "passed" and os.path.exists(expected) and read(expected) != read(trace):
            outcome = f"other messages: {trace}"
        outcomes[test] = outcome
    return outcomes


def read(path):
    with open(path) as file:
        return file.read()
