//! Prepared statements and definitions that change: what was prepared before is refused where its result is another
//! now, and planned anew where it is not, on whichever connection, whoever changed it.

mod support;

use pgweir::demo::cluster::Cluster;
use pgweir::demo::sample;
use support::differential::{Arena, Step, step};
use support::wire::{Frame, Frames, Wire};
use support::{Pgweir, wait_until};

fn frames() -> Frames {
    Frames::new()
}

fn run(name: &str, values: &[&str]) -> Frames {
    frames().bind("", name, values).execute("", 0).sync()
}

fn parse(name: &str, text: &str) -> Frames {
    frames().close(b'S', name).parse(name, text)
}

/// On the primary itself, as the application: pgweir does not see it.
fn directly(sql: &str) {
    support::cluster().primary().psql_in(sample::DATABASE, &format!("SET ROLE app; {sql}")).unwrap();
}

/// DDL of the client's own.
fn ddl(sql: &str) -> Step {
    step(frames().query(sql), "CZ")
}

#[test]
fn a_result_that_has_changed_is_refused() {
    let arena = Arena::new();
    arena.setup("SET ROLE app; CREATE TABLE changed (a int)");
    let reset = "DROP TABLE changed; CREATE TABLE changed (a int); INSERT INTO changed VALUES (1); \
                 GRANT ALL ON changed TO app; ALTER TABLE changed OWNER TO app";
    let text = "SELECT * FROM changed";
    arena.same_but_tables_after(
        reset,
        &[
            step(frames().parse("s1", text).parse("s2", text).parse("", text).sync(), "111Z"),
            step(run("s1", &[]), "2DCZ"),
            ddl("ALTER TABLE changed ADD b text DEFAULT 'new'"),
            step(run("s1", &[]), "EZ"),
            step(run("s2", &[]), "EZ"),
            step(frames().describe(b'S', "s1").sync(), "tEZ"),
            step(run("", &[]), "EZ"),
            step(frames().parse("", text).sync(), "1Z"),
            step(run("", &[]), "2DCZ"),
            step(run("s1", &[]), "EZ"),
            step(parse("s1", text).sync(), "31Z"),
            step(frames().describe(b'S', "s1").sync().then(&run("s1", &[])), "tTZ2DCZ"),
            // In a transaction it ends that.
            step(frames().query("BEGIN"), "CZ"),
            step(run("s2", &[]), "EZ"),
            step(run("s1", &[]), "EZ"),
            step(frames().query("ROLLBACK"), "CZ"),
            step(run("s1", &[]), "2DCZ"),
            // It is what it was again.
            ddl("ALTER TABLE changed DROP b"),
            step(run("s2", &[]), "2DCZ"),
            step(frames().describe(b'S', "s2").sync(), "tTZ"),
            step(run("s1", &[]), "EZ"),
        ],
    );
}

#[test]
fn a_result_that_stays_is_planned_anew() {
    let arena = Arena::new();
    arena.setup("SET ROLE app; CREATE TABLE stays (a int)");
    let reset = "DROP TABLE IF EXISTS stays; CREATE TABLE stays (a int, gone int); ALTER TABLE stays OWNER TO app; \
                 INSERT INTO stays VALUES (1, 2)";
    arena.same_but_tables_after(
        reset,
        &[
            step(frames().parse("s1", "SELECT a FROM stays WHERE a = $1").sync(), "1Z"),
            step(frames().parse("s2", "INSERT INTO stays (a) VALUES ($1)").sync(), "1Z"),
            step(run("s1", &["1"]), "2DCZ"),
            ddl("CREATE INDEX ON stays (a)"),
            step(run("s1", &["1"]), "2DCZ"),
            // The type of the parameter stays what it was inferred to be.
            ddl("ALTER TABLE stays ALTER gone TYPE text"),
            ddl("ALTER TABLE stays DROP gone"),
            step(frames().describe(b'S', "s1").sync(), "tTZ"),
            step(run("s1", &["1"]).then(&run("s2", &["2"])), "2DCZ2CZ"),
            // Another table of the same name.
            step(frames().query("ALTER TABLE stays RENAME TO old"), "CZ"),
            step(run("s1", &["1"]), "EZ"),
            step(frames().describe(b'S', "s1").sync(), "tEZ"),
            step(frames().describe(b'S', "s2").sync(), "tnZ"),
            step(run("s2", &["2"]), "EZ"),
            ddl("CREATE TABLE stays (a int)"),
            step(run("s1", &["1"]).then(&run("s2", &["1"])).then(&run("s1", &["1"])), "2CZ2CZ2DCZ"),
            ddl("DROP TABLE old"),
        ],
    );
}

#[test]
fn parameters_stay_what_they_were_inferred_to_be() {
    let arena = Arena::new();
    arena.setup("SET ROLE app; CREATE TABLE inferred (a int)");
    let reset = "DROP TABLE inferred; CREATE TABLE inferred (a int); ALTER TABLE inferred OWNER TO app; \
                 INSERT INTO inferred VALUES (1)";
    let one = 1i32.to_be_bytes();
    let binary = |name: &str| {
        let values: [Option<&[u8]>; 1] = [Some(&one)];
        frames().bind_formats("", name, &[1], &values, &[1]).execute("", 0).sync()
    };
    arena.same_but_tables_after(
        reset,
        &[
            step(frames().parse("s1", "SELECT 'x' FROM inferred WHERE a = $1").describe(b'S', "s1").sync(), "1tTZ"),
            step(binary("s1"), "2DCZ"),
            ddl("ALTER TABLE inferred ALTER a TYPE bigint"),
            step(binary("s1"), "2DCZ"),
            step(frames().describe(b'S', "s1").sync(), "tTZ"),
            step(binary("s1"), "2DCZ"),
            step(parse("s1", "SELECT 'x' FROM inferred WHERE a = $1").describe(b'S', "s1").sync(), "31tTZ"),
            step(binary("s1"), "EZ"),
        ],
    );
}

/// What only one transaction sees, nobody else is given.
#[test]
fn definitions_within_a_transaction() {
    let arena = Arena::new();
    arena.setup("SET ROLE app; CREATE TABLE within (a int)");
    let reset = "DROP TABLE within; CREATE TABLE within (a int); ALTER TABLE within OWNER TO app; \
                 INSERT INTO within VALUES (1)";
    let text = "SELECT * FROM within";
    arena.same_but_tables_after(
        reset,
        &[
            step(frames().parse("s1", text).sync().then(&run("s1", &[])), "1Z2DCZ"),
            step(frames().query("BEGIN").query("ALTER TABLE within ADD b int"), "CZCZ"),
            step(frames().run(text, &[]).describe(b'P', "").sync(), "12DCTZ"),
            step(parse("s2", text).describe(b'S', "s2").sync().then(&run("s2", &[])), "31tTZ2DCZ"),
            step(frames().query("SAVEPOINT a").query("ALTER TABLE within ADD c int"), "CZCZ"),
            step(run("s2", &[]), "EZ"),
            step(frames().query("ROLLBACK TO a").then(&run("s2", &[])), "CZ2DCZ"),
            step(frames().query("ROLLBACK"), "CZ"),
            step(run("s2", &[]), "EZ"),
            step(run("s1", &[]), "2DCZ"),
            step(frames().run(text, &[]).describe(b'P', "").sync(), "12DCTZ"),
            step(parse("s2", text).sync().then(&run("s2", &[])), "31Z2DCZ"),
            // All in flight.
            step(
                frames().query("ALTER TABLE within ADD b int").then(&run("s1", &[])).run(text, &[]).sync(),
                "CZEZ12DCZ",
            ),
            step(frames().parse("s3", text).sync().query("ALTER TABLE within DROP b").then(&run("s3", &[])), "1ZCZEZ"),
            step(run("s1", &[]), "2DCZ"),
        ],
    );
}

#[test]
fn a_statement_follows_the_search_path() {
    let arena = Arena::new();
    let schemas = "CREATE SCHEMA one; CREATE SCHEMA two; CREATE TABLE one.pathed (a int); \
                   CREATE TABLE two.pathed (a int, b int); CREATE TABLE two.alike (a int); CREATE TABLE one.alike (a int); \
                   INSERT INTO one.pathed VALUES (1); INSERT INTO two.pathed VALUES (2, 2); \
                   INSERT INTO one.alike VALUES (1); INSERT INTO two.alike VALUES (2)";
    arena.setup(&format!("{schemas}; GRANT USAGE ON SCHEMA one, two TO app"));
    arena.setup("GRANT ALL ON one.pathed, two.pathed, one.alike, two.alike TO app");
    arena.same(&[
        step(frames().query("SET search_path = one"), "CZ"),
        step(frames().parse("s1", "SELECT * FROM pathed").parse("s2", "SELECT a FROM alike").sync(), "11Z"),
        step(run("s1", &[]).then(&run("s2", &[])), "2DCZ2DCZ"),
        step(frames().query("SET search_path = two"), "CZ"),
        step(run("s1", &[]).then(&run("s2", &[])), "EZ2DCZ"),
        step(parse("s3", "SELECT * FROM pathed").sync().then(&run("s3", &[])), "31Z2DCZ"),
        step(frames().describe(b'S', "s1").sync(), "tEZ"),
        step(frames().query("SET search_path = one"), "CZ"),
        step(run("s1", &[]).then(&run("s2", &[])).then(&run("s3", &[])), "2DCZ2DCZEZ"),
        step(frames().query("SET search_path = two"), "CZ"),
        step(run("s3", &[]).then(&run("s2", &[])), "2DCZ2DCZ"),
        // A text without a meaning there.
        step(frames().query("SET search_path = public"), "CZ"),
        step(run("s1", &[]), "EZ"),
        step(frames().describe(b'S', "s2").sync(), "tEZ"),
        step(frames().query("RESET search_path"), "CZ"),
    ]);
}

/// With another role in force, its own rights count; the statement stays.
#[test]
fn a_statement_follows_the_role() {
    let arena = Arena::new();
    arena.setup(
        "CREATE ROLE stranger; GRANT stranger TO app; CREATE TABLE guarded (a int); GRANT ALL ON guarded TO app",
    );
    arena.same(&[
        step(frames().parse("s1", "SELECT a FROM guarded").sync().then(&run("s1", &[])), "1Z2CZ"),
        step(frames().query("SET ROLE stranger"), "CZ"),
        step(run("s1", &[]), "EZ"),
        step(frames().query("RESET ROLE"), "CZ"),
        step(run("s1", &[]), "2CZ"),
    ]);
}

#[test]
fn temporary_tables_hide_and_show_others() {
    let arena = Arena::new();
    arena.setup("CREATE TABLE hidden (a int); INSERT INTO hidden VALUES (1); GRANT ALL ON hidden TO app");
    let text = "SELECT * FROM hidden";
    arena.same_but_tables_pinned(&[
        step(frames().parse("s1", text).sync().then(&run("s1", &[])), "1Z2DCZ"),
        step(frames().query("CREATE TEMP TABLE hidden (a int, b int)"), "CZ"),
        step(run("s1", &[]), "EZ"),
        step(frames().parse("s2", text).describe(b'S', "s2").sync().then(&run("s2", &[])), "1tTZ2CZ"),
        step(frames().run(text, &[]).sync(), "12CZ"),
        step(frames().query("BEGIN").then(&run("s2", &[])).query("COMMIT"), "CZ2CZCZ"),
        step(run("s2", &[]), "2CZ"),
        step(frames().query("DROP TABLE hidden"), "CZ"),
        step(run("s1", &[]), "2DCZ"),
        step(run("s2", &[]), "EZ"),
        step(frames().run(text, &[]).sync(), "12DCZ"),
        step(run("s1", &[]), "2DCZ"),
    ]);
}

/// A server plans anew when a session has its first temporary object, which one that had other clients' before does not.
#[test]
fn a_temporary_table_hides_another_though_the_connection_has_had_some() {
    directly("CREATE TABLE shadowed (n int); INSERT INTO shadowed VALUES (1)");
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).set("pool.max", 1).start();
    let mut before = Wire::connect(pgweir.port());
    before.query("CREATE TEMP TABLE others (n int)");
    before.query("DROP TABLE others");
    let mut client = Wire::connect(pgweir.port());
    client.ask(&frames().parse("s1", "UPDATE shadowed SET n = n + 1").sync().then(&run("s1", &[])), "1Z2CZ");
    client.query("CREATE TEMP TABLE shadowed (n int)");
    client.ask(&run("s1", &[]), "2CZ");
    client.query("DROP TABLE shadowed");
    drop(client);
    assert_eq!(before.value("SELECT n FROM shadowed"), "2", "the one of all is as it was");
}

/// … nor one whose session had its first in an earlier transaction, though that one is gone.
#[test]
fn a_second_temporary_table_hides_nothing_from_what_was_prepared_before() {
    directly("CREATE TABLE shown (n int); INSERT INTO shown VALUES (1)");
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).set("pool.max", 1).start();
    for port in [support::cluster().primary().port(), pgweir.port()] {
        let mut client = Wire::connect(port);
        let hide = "CREATE TEMP TABLE shown (a int, b int) ON COMMIT DROP";
        let other = "CREATE TEMP TABLE other (a int) ON COMMIT DROP";
        client.ask(&frames().parse("s1", "SELECT * FROM shown").sync().then(&run("s1", &[])), "1Z2DCZ");
        let mut block = |texts: &[&str], s1: &str, end: &str| {
            texts.iter().for_each(|text| drop(client.ask(&frames().query(text), "CZ")));
            client.ask(&run("s1", &[]), s1);
            client.ask(&frames().query(end), "CZ");
        };
        // Undone, it is as if there had been none: the first is still to come.
        block(&["BEGIN", hide], "EZ", "ROLLBACK");
        block(&["BEGIN", "SAVEPOINT a", other, "ROLLBACK TO a"], "2DCZ", "COMMIT");
        block(&["BEGIN", other], "2DCZ", "ROLLBACK");
        block(&["BEGIN", hide], "EZ", "ROLLBACK");
        block(&["BEGIN", other], "2DCZ", "COMMIT");
        block(&["BEGIN"], "2DCZ", "COMMIT");
        block(&["BEGIN", hide], "2DCZ", "COMMIT");
        block(&["BEGIN", other, hide], "2DCZ", "COMMIT");
    }
}

/// Whoever parses behind a change has its columns, in each of these ways and at once; whoever parsed before is refused.
#[test]
fn definitions_that_others_change() {
    let arena = Arena::new();
    arena.setup("SET ROLE app; CREATE TABLE reshaped (n int); INSERT INTO reshaped VALUES (1)");
    let text = "SELECT * FROM reshaped";
    let unnamed = frames().run(text, &[]).sync();
    let anew = parse("s", text).then(&run("s", &[]));
    let described = parse("s", text).describe(b'S', "s").sync().then(&run("s", &[]));
    for (name, _, proxy) in arena.proxies() {
        let mut clients: Vec<_> = (0..3).map(|_| Wire::connect(proxy.port())).collect();
        for client in &mut clients {
            client.ask(&frames().parse("old", text).sync().then(&run("old", &[])), "1Z2DCZ");
            client.ask(&unnamed.clone().then(&anew).then(&described), "12DCZ312DCZ31tTZ2DCZ");
        }
        arena.setup("ALTER TABLE reshaped ADD COLUMN added text DEFAULT 'new'");
        for (client, (ask, expected)) in
            clients.iter_mut().zip([(&unnamed, "12DCZ"), (&anew, "312DCZ"), (&described, "31tTZ2DCZ")])
        {
            for _ in 0..3 {
                let replies = client.ask(ask, expected);
                let row = replies.iter().find(|frame| frame.tag == b'D').unwrap();
                assert!(row.body.starts_with(b"\0\x02"), "with {name}: {replies:?}");
            }
        }
        for client in &mut clients {
            assert_eq!(client.ask(&run("old", &[]), "EZ")[0].sqlstate(), "0A000", "with {name}");
        }
        arena.setup("ALTER TABLE reshaped DROP COLUMN added");
        for client in &mut clients {
            client.ask(&run("old", &[]), "2DCZ");
        }
    }
}

/// What stands in a pipeline ahead of a statement that is prepared anew is run again with it, unless it may be committed.
#[test]
fn what_may_be_committed_is_not_run_again() {
    let primary = support::cluster().primary();
    directly(
        "CREATE TABLE twice (n int); CREATE TABLE grown (n int);\
         CREATE PROCEDURE adds() LANGUAGE plpgsql AS 'BEGIN INSERT INTO twice VALUES (1); COMMIT; END'",
    );
    let text = "SELECT * FROM grown";
    let block = frames().run("BEGIN", &[]).run("INSERT INTO twice VALUES (1)", &[]).run("COMMIT", &[]);
    for (n, writes) in [block, frames().run("CALL adds()", &[])].into_iter().enumerate() {
        let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).set("pool.max", 1).start();
        let mut client = Wire::connect(pgweir.port());
        client.ask(&frames().run(text, &[]).sync(), "12CZ");
        directly(&format!("ALTER TABLE grown ADD COLUMN n{n} int"));
        client.send(&writes.then(&frames().run(text, &[]).sync()));
        client.until(b'Z');
        assert_eq!(
            primary.psql_in(sample::DATABASE, "SELECT count(*) FROM twice").unwrap().trim(),
            (n + 1).to_string()
        );
        client.ask(&frames().run(text, &[]).sync(), "12CZ");
    }
    directly("DROP TABLE twice, grown; DROP PROCEDURE adds");
}

/// In a transaction an error cannot be hidden: the first client that meets the change is told, as one would be that had
/// prepared a moment earlier, and nobody behind it.
#[test]
fn a_change_met_in_a_transaction_is_told_once() {
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).set("pool.max", 2).start();
    directly("CREATE TABLE met (n int); INSERT INTO met VALUES (1)");
    let text = "SELECT * FROM met";
    let mut clients = [Wire::connect(pgweir.port()), Wire::connect(pgweir.port())];
    let both = |clients: &mut [Wire; 2], expected: [&str; 2]| {
        clients.iter_mut().for_each(|client| drop(client.query("BEGIN; SELECT 1")));
        for (client, expected) in clients.iter_mut().zip(expected) {
            client.ask(&frames().run(text, &[]).sync(), expected);
        }
        clients.iter_mut().for_each(|client| drop(client.query("ROLLBACK")));
    };
    both(&mut clients, ["12DCZ", "12DCZ"]);
    directly("ALTER TABLE met ADD m int");
    both(&mut clients, ["1EZ", "12DCZ"]);
    both(&mut clients, ["12DCZ", "12DCZ"]);
    directly("DROP TABLE met");
}

/// A client that goes on using what has changed gets its errors, and costs the others nothing.
#[test]
fn a_stubborn_client_troubles_nobody() {
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).set("pool.max", 1).operator().start();
    directly("CREATE TABLE stubborn (n int)");
    let (mut stubborn, mut other) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    stubborn.ask(&frames().parse("s", "SELECT * FROM stubborn").sync().then(&run("s", &[])), "1Z2CZ");
    directly("ALTER TABLE stubborn ADD m int");
    stubborn.ask(&run("s", &[]), "EZ");
    other.ask(&frames().run("SELECT 1", &[]).sync(), "12DCZ");
    let prepared = |pgweir: &Pgweir| pgweir.console("SHOW STATS").rows[0]["total_server_parse_count"].clone();
    let before = prepared(&pgweir);
    for _ in 0..5 {
        stubborn.ask(&run("s", &[]), "EZ");
        other.ask(&frames().run("SELECT 1", &[]).sync(), "12DCZ");
    }
    assert_eq!(prepared(&pgweir), before);
    directly("DROP TABLE stubborn");
}

/// What a server has prepared before is answered while others hold all connections, and prepared where it is used: a
/// fault that it has come to have since shows there.
#[test]
fn a_known_statement_is_parsed_without_a_connection() {
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).set("pool.max", 1).start();
    directly("CREATE TABLE known (n int); INSERT INTO known VALUES (1)");
    let (mut client, mut other) = (Wire::connect(pgweir.port()), Wire::connect(pgweir.port()));
    let text = "SELECT n FROM known WHERE n = $1";
    other.ask(&frames().parse("s", text).sync(), "1Z");
    other.query("BEGIN; SELECT 1");
    client.ask(&frames().parse("s", text).sync(), "1Z");
    client.ask(&parse("s", text).parse("", text).parse("t", text).sync().flush().close(b'S', "t").sync(), "3111Z3Z");
    other.query("COMMIT");
    // A name that is taken is the server's to refuse.
    assert_eq!(client.ask(&frames().parse("s", text).sync(), "EZ")[0].sqlstate(), "42P05");
    assert_eq!(client.ask(&parse("s", text).parse("s", text).sync(), "31EZ")[2].sqlstate(), "42P05");
    client.ask(&run("s", &["1"]).then(&run("", &["1"])).then(&frames().describe(b'S', "s").sync()), "2DCZ2DCZtTZ");
    directly("ALTER TABLE known ADD m int; ALTER TABLE known DROP n");
    client.ask(&parse("s", text).sync(), "31Z");
    assert_eq!(client.ask(&run("s", &["1"]), "EZ")[0].sqlstate(), "42703");
    assert_eq!(client.ask(&parse("s", text).sync(), "3EZ")[1].sqlstate(), "42703");
    // Not parsed before the change, for all that is known: what it is now counts.
    directly("ALTER TABLE known ADD n bigint DEFAULT 1");
    client.ask(&parse("s", text).sync(), "31Z");
    client.ask(&run("s", &["1"]), "2DCZ");
    directly("ALTER TABLE known ALTER n TYPE int");
    client.ask(&parse("s", text).sync(), "31Z");
    client.ask(&run("s", &["1"]), "2DCZ");
    directly("DROP TABLE known");
}

/// As docs/compatibility.md says: the text is prepared for the EXECUTE.
#[test]
fn execute_by_sql_shows_the_columns_of_now() {
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[]).set("pool.max", 1).start();
    directly("CREATE TABLE executed (n int); INSERT INTO executed VALUES (1)");
    let mut client = Wire::connect(pgweir.port());
    client.ask(&frames().parse("s", "SELECT * FROM executed").sync(), "1Z");
    client.query("ALTER TABLE executed ADD m int");
    let row = client.ask(&frames().query("EXECUTE s"), "TDCZ").swap_remove(1);
    assert!(row.body.starts_with(b"\0\x02"));
    client.ask(&run("s", &[]), "EZ");
    directly("DROP TABLE executed");
}

/// The type of the only column, as the RowDescription among these says it.
fn column_type(frames: &[Frame]) -> u32 {
    let row = frames.iter().find(|frame| frame.tag == b'T').unwrap_or_else(|| panic!("no columns in {frames:?}"));
    let end = row.body[2..].iter().position(|&byte| byte == 0).unwrap() + 3;
    u32::from_be_bytes(row.body[end + 6..end + 10].try_into().unwrap())
}

/// A replica that has yet to replay a change describes by what was before. That is true of what it answers; and nobody
/// else is told it, above all not the one who has made the change.
#[test]
fn a_lagging_replica_describes_for_its_readers_alone() {
    const INT4: u32 = 23;
    const INT8: u32 = 20;
    let cluster = Cluster::builder().replicas(1).start().unwrap();
    sample::install(cluster.primary()).unwrap();
    let replica = &cluster.replicas()[0];
    let setup = "SET ROLE app; CREATE TABLE lagging (n int); INSERT INTO lagging VALUES (1)";
    cluster.primary().psql_in(sample::DATABASE, setup).unwrap();
    cluster.wait_replayed(support::LIMIT).unwrap();
    let pgweir = Pgweir::builder().cluster(&cluster, &[1]).set("pool.max", 4).start();
    let text = "SELECT n FROM lagging WHERE n < $1";
    let once = || frames().parse("s", text).describe(b'S', "s").bind("", "s", &["5"]).execute("", 0).sync();
    let mut author = Wire::connect(pgweir.port());
    // One that begins behind the author's change, and need not see it.
    let newcomer = || {
        let mut newcomer = Wire::connect(pgweir.port());
        newcomer.ask(&frames().query("SET pgweir.freshness = 'eventual'"), "CZ");
        newcomer
    };
    // Prepared by all before.
    let mut early = Wire::connect(pgweir.port());
    assert_eq!(column_type(&early.ask(&once(), "1tT2DCZ")), INT4);
    replica.psql("SELECT pg_wal_replay_pause()").unwrap();
    wait_until(support::LIMIT, "replay to stop", || {
        replica.psql("SELECT pg_get_wal_replay_pause_state()").unwrap() == "paused"
    });
    author.ask(&frames().query("ALTER TABLE lagging ALTER n TYPE bigint"), "CZ");
    for round in 0..3 {
        // Until the definitions are read again, all go to the primary.
        let mut late = newcomer();
        wait_until(support::LIMIT, "a session on the replica", || {
            late = newcomer();
            column_type(&late.ask(&once(), "1tT2DCZ")) == INT4
        });
        // Whoever made the change prepares behind it: in a transaction, and at once what is known.
        let named = format!("of_{round}");
        let block = frames().query("BEGIN").parse(&named, text).describe(b'S', &named).sync();
        let block = block.bind("", &named, &["5"]).execute("", 0).sync().query("COMMIT");
        assert_eq!(column_type(&author.ask(&block, "CZ1tTZ2DCZCZ")), INT8);
        author.ask(&run(&named, &["5"]), "2DCZ");
        let named = format!("apart_{round}");
        author.ask(&frames().parse(&named, text).sync(), "1Z");
        assert_eq!(column_type(&author.ask(&frames().describe(b'S', &named).sync(), "tTZ")), INT8);
        author.ask(&run(&named, &["5"]), "2DCZ");
        // A reader's own is what it was told, wherever it runs; on the primary that is no more.
        late.ask(&run("s", &["5"]), "2DCZ");
        let refused = late.ask(&frames().query("BEGIN").then(&run("s", &["5"])).query("ROLLBACK"), "CZEZCZ");
        assert_eq!(refused[2].sqlstate(), "0A000", "{refused:?}");
        late.ask(&run("s", &["5"]), "2DCZ");
        // It has read on the primary since, and prepares anew what it is to run there.
        let anew = frames().close(b'S', "s").then(&once());
        late.send(&anew);
        let anew = late.expect("31tT2DCZ");
        assert!([INT4, INT8].contains(&column_type(&anew)));
        late.ask(&run("s", &["5"]), "2DCZ");
    }
    replica.psql("SELECT pg_wal_replay_resume()").unwrap();
    cluster.wait_replayed(support::LIMIT).unwrap();
    let mut last = newcomer();
    wait_until(support::LIMIT, "the change on all", || {
        last = newcomer();
        column_type(&last.ask(&once(), "1tT2DCZ")) == INT8
    });
    last.ask(&frames().query("BEGIN").then(&run("s", &["5"])).query("COMMIT"), "CZ2DCZCZ");
}
