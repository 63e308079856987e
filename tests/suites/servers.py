"""What the suites run against: a PostgreSQL of their own, with replicas, and pgweir before it."""

import glob
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PASSWORD = "suites"
START = 60  # seconds
KILLED = "terminating connection due to administrator command"


def account():
    """Whom servers run as: not root, which they refuse."""
    if os.geteuid() != 0:
        return {}
    postgres = pwd.getpwnam("postgres")
    return {"user": postgres.pw_uid, "group": postgres.pw_gid, "extra_groups": []}


def programs():
    """Where initdb and postgres are."""
    named = os.environ.get("PGWEIR_PG_BIN")
    found = [named] if named else sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not found:
        raise SystemExit("suites: no PostgreSQL found: run `make setup`")
    return found[-1]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Process:
    """A server that is stopped at the end of a `with`."""

    def __init__(self, command, log, port, **how):
        self.port = port
        self.log = open(log, "ab")
        self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, **how)

    def wait_for(self, ready):
        deadline = time.monotonic() + START
        while not ready():
            if self.child.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise SystemExit(f"suites: not started: {self.child.args[0]}; see {self.log.name}")
            time.sleep(0.05)

    def stop(self, signal_name="terminate"):
        if self.child.poll() is None:
            getattr(self.child, signal_name)()
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def environment(port, database="postgres", user="postgres", **more):
    """What libpq's clients need to connect; nothing of the caller's own PG* variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    own = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": user, "PGDATABASE": database, "PGPASSWORD": PASSWORD}
    return clean | own | {"LC_ALL": "C.UTF-8"} | more


def psql(port, *statements, database="postgres"):
    if not statements:
        return ""
    commands = [part for statement in statements for part in ("-c", statement)]
    done = subprocess.run(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *commands], env=environment(port, database),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"suites: {statements}: {done.stderr}")
    return done.stdout.strip()


class Postgres(Process):
    """A new cluster under `folder`, with password authentication and what the suites expect of a server."""

    SETTINGS = {
        "fsync": "off", "max_connections": "150", "max_prepared_transactions": "20", "wal_level": "logical",
        "max_wal_senders": "10", "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
        "max_locks_per_transaction": "256",
    }

    def __init__(self, folder, log):
        self.data = tempfile.mkdtemp(prefix="data.", dir=folder)
        how = account()
        if how:
            os.chown(self.data, how["user"], how["group"])
        how["cwd"] = "/"
        secret = os.path.join(self.data, "..", "secret")
        with open(secret, "w") as file:
            file.write(PASSWORD)
        os.chmod(secret, 0o644)
        initdb = [f"{programs()}/initdb", "--no-sync", "--encoding=UTF8", "--locale=C", "-A", "scram-sha-256",
                  "-U", "postgres", "--pwfile", secret, "-D", self.data]
        made = subprocess.run(initdb, env=environment(1), capture_output=True, text=True, **how)
        if made.returncode:
            raise SystemExit(f"suites: initdb: {made.stdout}{made.stderr}")
        port = free_port()
        self.settings = [part for name, value in self.SETTINGS.items() for part in ("-c", f"{name}={value}")]
        super().__init__([f"{programs()}/postgres", "-D", self.data, "-p", str(port), *self.settings], log, port,
                         env=environment(1), **how)
        self.wait_for(lambda: is_ready(port))

    def stop(self, signal_name="terminate"):
        # Fast shutdown: smart would wait for clients that a suite has left behind.
        if self.child.poll() is None:
            self.child.send_signal(2)
        Process.stop(self, signal_name)
        shutil.rmtree(self.data, ignore_errors=True)


class Replica(Process):
    """A streaming replica of that server."""

    def __init__(self, folder, log, primary):
        self.data = tempfile.mkdtemp(prefix="replica.", dir=folder)
        how = account()
        if how:
            os.chown(self.data, how["user"], how["group"])
        how["cwd"] = "/"
        copy = [f"{programs()}/pg_basebackup", "-R", "-X", "stream", "-c", "fast", "--no-sync", "-D", self.data]
        made = subprocess.run(copy, env=environment(primary.port), capture_output=True, text=True, **how)
        if made.returncode:
            raise SystemExit(f"suites: pg_basebackup: {made.stdout}{made.stderr}")
        port = free_port()
        super().__init__([f"{programs()}/postgres", "-D", self.data, "-p", str(port), *primary.settings], log, port,
                         env=environment(1), **how)
        self.wait_for(lambda: is_ready(port))

    stop = Postgres.stop


def is_ready(port):
    return subprocess.run(["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode == 0


class Pgweir(Process):
    """The debug build, in front of a primary and its replicas, for any database and any user of it."""

    def __init__(self, folder, log, servers, mode, connections):
        port = free_port()
        config = os.path.join(folder, "pgweir.toml")
        nodes = "".join(f"""
[[databases.nodes]]
host = "127.0.0.1"
port = {server.port}
role = "{"replica" if isinstance(server, Replica) else "primary"}"
""" for server in servers)
        with open(config, "w") as file:
            file.write(f"""
[listen]
address = "127.0.0.1:{port}"
shutdown_grace = "1s"
workers = 2
[admin]
http = ""
users = ["postgres"]
[auth]
query = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin"
query_user = "postgres"
query_database = "postgres"
[pool]
mode = "{mode}"
reset = "{"close" if mode == "session" else "discard"}"
min = 0
max = {connections}
acquire_timeout = "20s"
[statements]
slow_log = ""
[[databases]]
name = "*"
tls = "disable"
{nodes}
[[users]]
name = "postgres"
password = "{PASSWORD}"
replication = true
""")
        binary = os.environ.get("PGWEIR", os.path.join(ROOT, "target", "debug", "pgweir"))
        super().__init__([binary, "run", "--config", config], log, port)
        self.wait_for(lambda: is_ready(port))


class Interleaved:
    """Two more clients of the same database. They use connections in between, so that others do not get the same one
    again and again, and leave their settings on them. `trouble` tells where they met anybody's but their own."""

    def __init__(self, port, database):
        self.stopped = threading.Event()
        self.trouble = []
        self.threads = [threading.Thread(target=self.work, args=(port, database, number)) for number in range(2)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def work(self, port, database, number):
        own = f"client{number}|pg_catalog|1MB"
        child = subprocess.Popen(["psql", "-XAtq"], env=environment(port, database), text=True, stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        child.stdin.write(f"SET search_path = pg_catalog; SET TimeZone = 'Asia/Tokyo'; SET suites.client = 'client{number}';\n")
        # SHOW takes no snapshot: no VACUUM and no CREATE INDEX CONCURRENTLY of the suite has to wait for this.
        ask = "SHOW suites.client;\nSHOW search_path;\nSHOW work_mem;\n"
        while not self.stopped.wait(random.uniform(0, 0.004)):
            child.stdin.write("BEGIN;\nSET LOCAL work_mem = '1MB';\n")
            child.stdin.flush()
            time.sleep(random.uniform(0, 0.004))
            child.stdin.write(f"{ask}COMMIT;\n")
            child.stdin.flush()
            found = "|".join(child.stdout.readline().strip() for _ in range(3))
            if KILLED in found:
                # Some suites end all connections that they find.
                child.wait()
                return self.stopped.is_set() or self.work(port, database, number)
            if found != own:
                self.trouble.append(f"client{number} found {found}")
                break
        child.stdin.close()
        rest = child.stdout.read().strip()
        if rest and not self.trouble:
            self.trouble.append(f"client{number} was told {rest}")
        child.wait()
