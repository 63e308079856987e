"""Settings of Django's own tests, in Django's process: the databases, and a runner that writes each test's outcome."""

import json
import os
import unittest

from django.test.runner import DiscoverRunner

SERVER = {
    "ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": os.environ["PGPORT"], "USER": "postgres",
    "PASSWORD": os.environ["PGPASSWORD"],
}
DATABASES = {name: SERVER | {"NAME": f"django_{name}"} for name in ("default", "other")}
SECRET_KEY = "tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "django_outcomes.Runner"


class Result(unittest.TextTestResult):
    outcomes = {}

    def note(self, test, outcome):
        if Result.outcomes.get(test.id(), "passed") in ("passed", "skipped"):
            Result.outcomes[test.id()] = outcome

    def addSuccess(self, test):
        super().addSuccess(test)
        self.note(test, "passed")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.note(test, "skipped")

    def addExpectedFailure(self, test, error):
        super().addExpectedFailure(test, error)
        self.note(test, "skipped")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.note(test, f"failed: {error[1]}"[:500])

    def addError(self, test, error):
        super().addError(test, error)
        self.note(test, f"failed: {error[1]}"[:500])

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error:
            self.note(test, f"failed: {error[1]}"[:500])


class Runner(DiscoverRunner):
    def get_resultclass(self):
        return Result

    def suite_result(self, suite, result, **how):
        with open(os.environ["DJANGO_OUTCOMES"], "w") as file:
            json.dump(Result.outcomes, file)
        return super().suite_result(suite, result, **how)
