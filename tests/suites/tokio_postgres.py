"""tokio-postgres's own tests, in a package of their own: without what they have beside for other crates' types, and without
those of host lists (`runtime`)."""

import glob
import json
import os
import re
import shutil
import subprocess

import fetch
from servers import PASSWORD, environment

VERSION = "0.7.18"
DATABASE = "postgres"
MANIFEST = f"""
[package]
name = "suite"
version = "0.0.0"
edition = "2024"
[dependencies]
bytes = "1"
futures-channel = "0.3"
futures-util = {{ version = "0.3", features = ["sink"] }}
pin-project-lite = "0.2"
postgres-types = "0.2"
tokio = {{ version = "1", features = ["full"] }}
tokio-postgres = "={VERSION}"
[[test]]
name = "test"
path = "test/main.rs"
[workspace]
"""
PREPARE = (
    *(f"CREATE ROLE {name}_user LOGIN PASSWORD 'password'" for name in ("pass", "scram")),
    "SET password_encryption = 'md5'", "CREATE ROLE md5_user LOGIN PASSWORD 'password'",
    *(f"CREATE EXTENSION {name}" for name in ("hstore", "citext", "ltree")),
)


def program():
    def build(folder):
        os.makedirs(f"{folder}/test")
        with open(f"{folder}/Cargo.toml", "w") as file:
            file.write(MANIFEST)
        with open(f"{folder}/test/main.rs", "w") as file:
            file.write("")
        packages = json.loads(fetch.run("cargo", "metadata", "--quiet", "--format-version", "1", cwd=folder))["packages"]
        manifest = next(package["manifest_path"] for package in packages if package["name"] == "tokio-postgres")
        shutil.copytree(os.path.join(os.path.dirname(manifest), "tests", "test"), f"{folder}/test", dirs_exist_ok=True)
        for path in glob.glob(f"{folder}/test/**/*.rs", recursive=True):
            with open(path) as file:
                text = file.read()
            text = text.replace('"127.0.0.1:5433"', 'format!("127.0.0.1:{}", std::env::var("PGPORT").unwrap())')
            with open(path, "w") as file:
                file.write(text.replace("user=postgres", f"user=postgres password={PASSWORD}"))
        fetch.run("cargo", "test", "--quiet", "--no-run", cwd=folder)
    return fetch.once(f"tokio-postgres-{VERSION}.tests", build)


def run(port, folder, only):
    command = ["cargo", "test", "--quiet", "--offline", "--", "--format=pretty", "--test-threads=4"]
    done = subprocess.run([*command, *([only] if only else [])], cwd=program(), env=environment(port, DATABASE), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    with open(os.path.join(folder, "output.txt"), "w") as file:
        file.write(done.stdout)
    outcomes = {"ok": "passed", "ignored": "skipped", "FAILED": "failed: output.txt says why"}
    return {test: outcomes[outcome] for test, outcome in
            re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (ok|ignored|FAILED)", done.stdout, re.MULTILINE)}
