"""Go's drivers with their own tests, as Debian packages them, by a Go toolchain that is unpacked and not installed."""

import json
import os
import re
import subprocess

import fetch
from servers import PASSWORD, environment

TOOLCHAIN = "golang-1.19-go"
# What only their tests build upon.
BESIDE = ("golang-github-jackc-pgmock-dev", "golang-github-masterminds-semver-dev")
# Of pgx's test setup, for all of Go's drivers.
# Name, version, Debian's package, what is imported, connections of transaction mode.
SUITES = (
    ("lib-pq", "1.10.7", "golang-github-lib-pq-dev", "github.com/lib/pq", 5),
    ("pgx", "4.15.0", "golang-github-jackc-pgx-v4-dev", "github.com/jackc/pgx/v4", 12),
    ("pgconn", "1.11.0", "golang-github-jackc-pgconn-dev", "github.com/jackc/pgconn", 5),
)
PREPARE = ("CREATE EXTENSION hstore", "CREATE EXTENSION ltree", "CREATE DOMAIN uint64 AS numeric(20,0)",
           "CREATE ROLE pgx_pw LOGIN SUPERUSER PASSWORD 'secret'")


def unpacked(package):
    """The toolchain, the driver, and all Go code that it builds upon."""
    def fill(folder):
        asked = ["depends", "--recurse", *(f"--no-{kind}" for kind in
                 ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")), package, *BESIDE, TOOLCHAIN]
        found = fetch.apt(*asked, program="apt-cache")
        packages = sorted(set(re.findall(r"^(golang-\S+)$", found, re.MULTILINE)))
        fetch.apt("download", "-qq", *packages, cwd=folder)
        fetch.unpack_debian(folder)
    return fetch.once(f"{package}.go", fill)


def suite(package, import_path, database):
    def run(port, folder, only):
        files = unpacked(package)
        url = f"host=127.0.0.1 port={port} user=postgres password={PASSWORD} dbname={database}"
        env = environment(
            port, database, GO111MODULE="off", GOPATH=f"{files}/usr/share/gocode", GOROOT=f"{files}/usr/lib/go-1.19",
            GOCACHE=os.path.join(fetch.STORE, "go.cache"), GOFLAGS="-vet=off", CGO_ENABLED="0", PGSSLMODE="disable",
            PGX_TEST_DATABASE=url, PGX_TEST_CONN_STRING=url, PGX_TEST_TCP_CONN_STRING=url)
        command = [f"{files}/usr/lib/go-1.19/bin/go", "test", "-json", "-count=1", "-p=1", "-timeout=300s",
                   *(["-run", only] if only else []), f"{import_path}/..."]
        done = subprocess.run(command, cwd=files, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        with open(os.path.join(folder, "output.txt"), "w") as output:
            output.write(done.stdout)
        return outcomes(done.stdout)
    return run


def outcomes(printed):
    """Of `go test -json`, by package and test."""
    words = {"pass": "passed", "skip": "skipped", "fail": "failed: output.txt says why"}
    found = {}
    for line in printed.splitlines():
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("Test") and event["Action"] in words:
            found[f"{event['Package']}.{event['Test']}"] = words[event["Action"]]
    return found
