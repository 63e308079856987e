//! Clients that die at the worst moment: nothing of theirs is committed, and no connection is lost or handed on dirty.

use crate::support::{LIMIT, Pgweir, Raw, Role, cluster, wait_until};
use crate::wait_for_waiting;

/// A pool of two connections, for a role that has a table of its own.
struct Scene<'a> {
    role: Role<'a>,
    pgweir: Pgweir,
}

impl<'a> Scene<'a> {
    fn new(name: &'a str) -> Scene<'a> {
        let role = Role::create(cluster().primary(), name);
        role.directly(&format!("CREATE TABLE {name} (n int); ALTER TABLE {name} OWNER TO {name}"));
        let builder = Pgweir::builder().cluster(cluster(), &[]).user(name, name);
        // A lost connection shows as a wait that has no end.
        let pgweir = builder.set("pool.max", 2).set("pool.acquire_timeout", "10s").start();
        Scene { role, pgweir }
    }

    fn client(&self) -> Raw {
        Raw::connect(self.pgweir.port(), self.role.name)
    }

    fn insert(&self) -> String {
        format!("INSERT INTO {} VALUES (1)", self.role.name)
    }

    /// Whatever the dead have left is gone from the server, and both places of the pool can be used at once.
    fn assert_clean(&self) {
        wait_until(LIMIT, "an end to what was left", || self.role.activity_where("pid", "state <> 'idle'").is_empty());
        let mut clients = [self.client(), self.client()];
        for client in &mut clients {
            assert_eq!(client.run("BEGIN"), b'T');
            assert_eq!(client.run(&self.insert()), b'T');
        }
        for client in &mut clients {
            assert_eq!(client.run("ROLLBACK"), b'I');
        }
        assert_eq!(self.role.directly(&format!("SELECT count(*) FROM {}", self.role.name)), "0");
    }
}

#[test]
fn in_a_transaction_fifty_times() {
    let scene = Scene::new("gone_transaction");
    for round in 0..50 {
        let mut client = scene.client();
        client.run("BEGIN");
        client.query(&scene.insert()).flush();
        // Sometimes before the answer is read, or even there.
        if round % 2 == 0 {
            client.until_ready();
        }
    }
    scene.assert_clean();
}

#[test]
fn in_a_copy_from_the_client() {
    let scene = Scene::new("gone_copy_in");
    let copy = format!("COPY {} FROM STDIN", scene.role.name);
    for round in 0..6 {
        let mut client = scene.client();
        match round % 2 {
            0 => client.query(&copy),
            _ => client.execute(&copy).frame(b'H', b""),
        };
        client.flush().until(b'G');
        client.frame(b'd', b"1\n").flush();
        if round > 2 {
            client.bytes(b"d\0\0\0\x64half of a frame").flush();
        }
    }
    scene.assert_clean();
}

#[test]
fn with_results_unread() {
    let scene = Scene::new("gone_unread");
    let big = "SELECT repeat('x', 1000) FROM generate_series(1, 100000)";
    for sql in [big, &format!("COPY ({big}) TO STDOUT"), &format!("{big}; {}", scene.insert())] {
        let mut client = scene.client();
        client.query(sql).flush().receive();
    }
    scene.assert_clean();
}

#[test]
fn while_a_statement_runs() {
    let scene = Scene::new("gone_running");
    let mut client = scene.client();
    client.query("SELECT pg_sleep(3600)").flush();
    wait_until(LIMIT, "the statement", || scene.role.activity_where("pid", "state = 'active'").len() == 1);
    drop(client);
    scene.assert_clean();
}

#[test]
fn before_the_sync() {
    let scene = Scene::new("gone_unsynced");
    let insert = scene.insert();
    for _ in 0..3 {
        let mut read = scene.client();
        read.execute(&insert).frame(b'H', b"").flush().until(b'C');
        drop(read);
        let mut unread = scene.client();
        unread.execute(&insert).frame(b'H', b"").flush();
        drop(unread);
        let mut parsed = scene.client();
        parsed.frame(b'P', format!("\0{insert}\0\0\0").as_bytes()).frame(b'H', b"").flush().until(b'1');
    }
    scene.assert_clean();
}

/// Whoever had the connection in between would commit the insert, or lose it.
#[test]
fn a_client_keeps_its_connection_from_flush_to_sync() {
    let scene = Scene::new("gone_flushed");
    let builder = Pgweir::builder().cluster(cluster(), &[]).user(scene.role.name, scene.role.name);
    let pgweir = builder.set("pool.min", 1).set("pool.max", 1).set("pool.acquire_timeout", "200ms").start();
    scene.role.wait_for(1);
    let mut client = Raw::connect(pgweir.port(), scene.role.name);
    let mut other = Raw::connect(pgweir.port(), scene.role.name);
    client.execute(&scene.insert()).frame(b'H', b"").flush().until(b'C');
    assert_eq!(other.query("SELECT 1").flush().until_error(), "53300");
    other.until_ready();
    client.execute("SELECT 1/0").frame(b'H', b"").flush();
    assert_eq!(client.until_error(), "22012");
    assert_eq!(other.query("SELECT 1").flush().until_error(), "53300");
    other.until_ready();
    assert_eq!(client.frame(b'S', b"").flush().until_ready(), b'I');
    other.run("SELECT 1");
    scene.assert_clean();
}

/// After an error the server skips all but a Sync: a rollback by Query would be skipped as well.
#[test]
fn between_an_error_and_its_sync() {
    let scene = Scene::new("gone_failed");
    for _ in 0..3 {
        let mut client = scene.client();
        client.execute(&scene.insert()).execute("SELECT 1/0").frame(b'H', b"").flush();
        assert_eq!(client.until_error(), "22012");
    }
    scene.assert_clean();
}

#[test]
fn within_a_frame() {
    let scene = Scene::new("gone_frame");
    let insert = scene.insert();
    // A Query of which half has come, alone and in a transaction.
    scene.client().bytes(b"Q\0\0\x01\0").bytes(insert.as_bytes()).flush();
    let mut client = scene.client();
    client.run("BEGIN");
    client.run(&insert);
    client.bytes(b"Q\0\0\x01\0").bytes(insert.as_bytes()).flush();
    drop(client);
    // A Bind so large that it is passed on as it comes.
    let mut client = scene.client();
    client.run("BEGIN");
    client.frame(b'P', format!("\0{insert}\0\0\0").as_bytes());
    client.bytes(b"B\0\x10\0\0").bytes(&[0; 8]).bytes(&vec![b'x'; 100_000]).flush();
    drop(client);
    scene.assert_clean();
}

#[test]
fn while_waiting_for_a_connection() {
    let scene = Scene::new("gone_waiting");
    let mut holders = [scene.client(), scene.client()];
    holders.iter_mut().for_each(|holder| assert_eq!(holder.run("BEGIN; SELECT 1"), b'T'));
    let mut waiting: Vec<_> = (0..4).map(|_| scene.client()).collect();
    for (at, client) in waiting.iter_mut().enumerate() {
        match at {
            0 => client.query("SELECT 'last'"),
            _ => client.query(&scene.insert()),
        };
        client.flush();
        wait_for_waiting(&scene.pgweir, &scene.role, at as u64 + 1);
    }
    let mut last = scene.client();
    last.query("SELECT 'behind the dead'").flush();
    wait_for_waiting(&scene.pgweir, &scene.role, 5);
    waiting.truncate(1);
    wait_for_waiting(&scene.pgweir, &scene.role, 2);
    drop(holders);
    waiting[0].until_ready();
    last.until_ready();
    scene.assert_clean();
}

/// A login that needs a server connection waits for one like a statement, and is watched as well.
#[test]
fn while_its_login_waits_for_a_connection() {
    let scene = Scene::new("gone_login");
    let mut holders = [scene.client(), scene.client()];
    holders.iter_mut().for_each(|holder| assert_eq!(holder.run("BEGIN; SELECT 1"), b'T'));
    let parameters = [("application_name", "dead before its login")];
    let mut dead = Raw::proven(scene.pgweir.port(), scene.role.name, &parameters);
    // Closed at once, and not told that acquire_timeout has passed.
    assert_eq!(dead.hang_up().until_closed(), None);
    drop(holders);
    scene.assert_clean();
}

/// With a Terminate behind its last statement a client has left in order: that statement is not cancelled.
#[test]
fn in_order_behind_its_last_statement() {
    let scene = Scene::new("gone_in_order");
    let table = scene.role.name;
    let mut client = scene.client();
    client.query(&format!("INSERT INTO {table} SELECT 1 FROM pg_sleep(0.3)")).frame(b'X', b"").flush();
    drop(client);
    wait_until(LIMIT, "the row", || scene.role.directly(&format!("DELETE FROM {table} RETURNING n")) == "1");
    scene.assert_clean();
}
