#!/usr/bin/env python3
"""Runs other people's test suites at Postgres itself and through pgweir, and compares test by test.

    tests/suites/run.py asyncpg psycopg2            directly, in session mode, in transaction mode, and that with replicas
    tests/suites/run.py asyncpg --mode transaction  that alone, against the outcomes that are there
    tests/suites/run.py asyncpg --only NAME         some tests, whose outcomes are shown and not kept
    tests/suites/run.py --compare                   no run: what there is, as a table

Outcomes are kept under target/suites. The exit code is 1 where a test passes directly and not through pgweir, unless
known.toml names it.
"""

import argparse
import contextlib
import fnmatch
import json
import os
import shutil
import tempfile
import time
import tomllib

import fetch
import regress
from servers import HERE, Interleaved, Pgweir, Postgres, Replica
from suites import SUITES

# `replicas` is transaction mode with two of them.
THROUGH = ["session", "transaction", "replicas"]


def outcomes_path(suite, mode):
    return os.path.join(fetch.STORE, "outcomes", suite.name, mode)


def run(suite, mode, only):
    folder = outcomes_path(suite, f"{mode}.only" if only else mode)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="suites."))
        os.chmod(scratch, 0o755)
        server = stack.enter_context(Postgres(scratch, os.path.join(folder, "postgres.log")))
        log = os.path.join(folder, "proxy.log")
        servers = [server]
        for number in range(2 if mode == "replicas" else 0):
            servers.append(stack.enter_context(Replica(scratch, os.path.join(folder, f"replica{number}.log"), server)))
        rotates = mode in ("transaction", "replicas")
        if mode == "direct":
            front = server
        elif rotates:
            front = stack.enter_context(Pgweir(scratch, log, servers, "transaction", suite.connections))
        else:
            front = stack.enter_context(Pgweir(scratch, log, servers, "session", 100))
        suite.prepared(server.port)
        interleaved = Interleaved(front.port, suite.database) if rotates else contextlib.nullcontext()
        with interleaved:
            found = suite.run(front.port, folder, only)
        if rotates:
            found["(two clients in between)"] = "; ".join(interleaved.trouble) or "passed"
        alive = front.child.poll() is None
    if mode != "direct":
        found["(the proxy lives)"] = "passed" if alive else "it does not"
    with open(os.path.join(folder, "outcomes.json"), "w") as file:
        json.dump(found, file, indent=1, sort_keys=True)
    for test, outcome in sorted(found.items()) if only else ():
        print(f"    {test}: {outcome}")
    print(f"{suite.name} {mode}: {summary(found)}, {time.monotonic() - started:.0f} s", flush=True)


def read(suite, mode):
    with contextlib.suppress(FileNotFoundError), open(os.path.join(outcomes_path(suite, mode), "outcomes.json")) as file:
        return json.load(file)


def summary(found):
    passed = sum(outcome == "passed" for outcome in found.values())
    skipped = sum(outcome == "skipped" for outcome in found.values())
    return f"{passed} passed, {len(found) - passed - skipped} failed, {skipped} skipped"


def excuses(entry, test, outcome):
    if not any(fnmatch.fnmatchcase(test, pattern) for pattern in entry["tests"]):
        return False
    places = regress.differing(outcome)
    within = [any(low <= first and last <= high for low, high in entry.get("lines", [])) for first, last in places]
    return "lines" not in entry or bool(within) and all(within)


def compare(suite, mode, known):
    """The tests that pass directly and not so, and are not known; prints all of them."""
    direct, found = read(suite, "direct"), read(suite, mode)
    if direct is None or found is None:
        return []
    lost = [test for test, outcome in sorted(found.items())
            if outcome != "passed" and direct.get(test, "passed") == "passed"]
    lost += [test for test, outcome in sorted(direct.items()) if outcome == "passed" and test not in found]
    entries = [entry for entry in known if suite.name in entry["suites"] and mode in entry["modes"]]
    surprises = [test for test in lost if not any(excuses(entry, test, found.get(test, "")) for entry in entries)]
    print(f"{suite.name} {suite.version}: {mode}: {summary(found)}; directly {summary(direct)}; "
          f"{len(lost)} lost, {len(surprises)} of them unexpectedly")
    for test in surprises:
        print(f"    {test}: {found.get(test, 'not run').splitlines()[:1]}")
    return surprises


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(suite.name for suite in SUITES))
    parser.add_argument("--mode", action="append", choices=["direct", *THROUGH])
    parser.add_argument("--only", metavar="NAME")
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args()
    by_name = {suite.name: suite for suite in SUITES}
    unknown = [name for name in options.suites if name not in by_name]
    if unknown:
        parser.error(f"no such suite: {', '.join(unknown)}")
    chosen = [by_name[name] for name in options.suites] or SUITES
    with open(os.path.join(HERE, "known.toml"), "rb") as file:
        known = tomllib.load(file)["known"]
    surprises = []
    for suite in chosen:
        for mode in options.mode or suite.modes:
            if not options.compare and mode in suite.modes:
                run(suite, mode, options.only)
        if options.only:
            continue
        for mode in THROUGH:
            surprises += compare(suite, mode, known)
    raise SystemExit(1 if surprises else 0)


if __name__ == "__main__":
    main()
