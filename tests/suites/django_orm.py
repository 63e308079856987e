"""Django's own tests of what talks to a database, by psycopg 3."""

import json
import os
import shutil
import subprocess

import fetch
from servers import HERE, environment

VERSION = "5.2.8"
LABELS = (
    "aggregation", "aggregation_regress", "annotations", "async", "backends", "basic", "bulk_create", "cache", "composite_pk",
    "constraints", "custom_columns", "dates", "datetimes", "db_functions", "db_typecasts", "db_utils", "defer", "delete", "distinct_on_fields",
    "expressions", "expressions_case", "expressions_window", "filtered_relation", "foreign_object", "get_or_create", "indexes", "inspectdb",
    "introspection", "lookup", "many_to_many", "migrations", "model_fields", "model_inheritance", "multiple_database", "or_lookups",
    "ordering", "postgres_tests", "prefetch_related", "queries", "queryset_pickle", "raw_query", "schema", "select_for_update", "sessions_tests",
    "timezones", "transaction_hooks", "transactions", "update", "xor_lookups",
)


def run(port, folder, only):
    python = fetch.venv("django", f"Django=={VERSION}", "psycopg[binary,pool]==3.2.13", "pytz")
    shutil.copytree(os.path.join(fetch.sdist("Django", VERSION), "tests"), os.path.join(folder, "tests"))
    outcomes = os.path.join(folder, "django.json")
    env = environment(port, PYTHONPATH=HERE, DJANGO_OUTCOMES=outcomes, PYTHONDONTWRITEBYTECODE="1")
    command = [python, "runtests.py", "--settings=django_outcomes", "--parallel=1", "--noinput", *(["-k", only] if only else []), *LABELS]
    with open(os.path.join(folder, "output.txt"), "w") as output:
        subprocess.run(command, cwd=os.path.join(folder, "tests"), env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    with open(outcomes) as file:
        return json.load(file)
