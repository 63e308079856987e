//! Statements and portals of the extended protocol: byte for byte what Postgres answers, wherever each message runs.

mod support;

use pgweir::demo::sample;
use support::differential::{Arena, step};
use support::wire::Frames;
use support::{LIMIT, Pgweir, Raw, wait_until};

fn frames() -> Frames {
    Frames::new()
}

#[test]
fn named_statements_follow_their_client() {
    let arena = Arena::new();
    arena.same(&[
        step(frames().parse("s1", "SELECT $1::int + 1").sync(), "1Z"),
        step(frames().describe(b'S', "s1").sync(), "tTZ"),
        step(frames().bind("", "s1", &["1"]).describe(b'P', "").execute("", 0).sync(), "2TDCZ"),
        step(frames().bind("", "s1", &["2"]).execute("", 0).bind("", "s1", &["3"]).execute("", 0).sync(), "2DC2DCZ"),
        step(frames().close(b'S', "s1").sync(), "3Z"),
        step(frames().bind("", "s1", &["1"]).execute("", 0).sync(), "EZ"),
    ]);
}

#[test]
fn names_are_taken_until_they_are_closed() {
    let arena = Arena::new();
    arena.same(&[
        step(frames().parse("s1", "SELECT 1").sync(), "1Z"),
        step(frames().parse("s1", "SELECT 2").sync(), "EZ"),
        step(frames().bind("", "s1", &[]).execute("", 0).sync(), "2DCZ"),
        step(frames().close(b'S', "s1").parse("s1", "SELECT 3").sync(), "31Z"),
        step(frames().bind("", "s1", &[]).execute("", 0).sync(), "2DCZ"),
        // A Parse that fails leaves the name free, in the same segment or a later one.
        step(frames().parse("s2", "SELEC 1").sync(), "EZ"),
        step(frames().bind("", "s2", &[]).sync(), "EZ"),
        step(frames().parse("s2", "SELECT 4").bind("", "s2", &[]).execute("", 0).sync(), "12DCZ"),
        step(frames().parse("s2", "SELECT 5").sync(), "EZ"),
    ]);
}

/// A Close behind an error is skipped, whoever made the name.
#[test]
fn a_name_of_sql_is_not_closed_by_what_is_skipped() {
    let arena = Arena::new();
    let close = || frames().parse("bad", "SELEC 1").close(b'S', "by_sql").parse("by_sql", "SELECT 2").sync();
    arena.same_pinned(&[
        step(frames().query("PREPARE by_sql AS SELECT 1"), "CZ"),
        step(close().query("BEGIN"), "EZCZ"),
        step(frames().parse("by_sql", "SELECT 3").sync(), "EZ"),
        step(frames().query("ROLLBACK"), "CZ"),
        step(frames().query("BEGIN").then(&frames().bind("", "by_sql", &[]).execute("", 0).sync()), "CZ2DCZ"),
        step(close().query("ROLLBACK"), "EZCZ"),
        step(frames().close(b'S', "by_sql").parse("by_sql", "SELECT 4").sync(), "31Z"),
        step(frames().bind("", "by_sql", &[]).execute("", 0).sync(), "2DCZ"),
    ]);
}

/// Nor does SQL in the next segment find what the Parse of a name there would have made.
#[test]
fn what_is_skipped_is_not_there_for_sql_behind_it() {
    let arena = Arena::new();
    let skipped = |name: &str| frames().bind("", "nothing", &[]).parse(name, "SELECT 'skipped'").sync();
    arena.same(&[
        step(skipped("skipped").query("EXECUTE skipped"), "EZEZ"),
        step(skipped("skipped").run("EXECUTE skipped", &[]).sync(), "EZ12EZ"),
        step(skipped("skipped").query("DEALLOCATE skipped"), "EZEZ"),
        step(frames().parse("there", "SELECT 'there'").parse("by_name", "EXECUTE there").sync(), "11Z"),
        step(skipped("skipped").then(&frames().bind("", "by_name", &[]).execute("", 0).sync()), "EZ2DCZ"),
        step(frames().parse("late", "SELECT 'late'").sync().query("EXECUTE late"), "1ZTDCZ"),
    ]);
}

/// Though a server has prepared them before.
#[test]
fn a_failed_transaction_takes_nothing_but_its_end() {
    let arena = Arena::new();
    let texts =
        ["BEGIN", "SAVEPOINT a", "RELEASE a", "SET TRANSACTION READ ONLY", "SELECT 1", "ROLLBACK TO a", "COMMIT"];
    let known = texts.iter().fold(frames(), |frames, text| frames.parse("", text));
    let mut script = vec![step(known.sync(), "1111111Z"), step(frames().query("BEGIN").query("SELECT 1 / 0"), "CZEZ")];
    script.extend(texts.iter().map(|text| {
        let taken = matches!(*text, "ROLLBACK TO a" | "COMMIT");
        step(frames().parse("", text).sync(), if taken { "1Z" } else { "EZ" })
    }));
    script.push(step(frames().query("ROLLBACK"), "CZ"));
    arena.same_pinned(&script);
}

#[test]
fn what_is_missing_is_missing() {
    let arena = Arena::new();
    arena.same(&[
        step(frames().describe(b'S', "nothing").sync(), "EZ"),
        step(frames().describe(b'P', "nothing").sync(), "EZ"),
        step(frames().bind("", "nothing", &[]).sync(), "EZ"),
        step(frames().execute("nothing", 0).sync(), "EZ"),
        step(frames().bind("", "", &[]).sync(), "EZ"),
        step(frames().describe(b'S', "").sync(), "EZ"),
        step(frames().close(b'S', "nothing").close(b'P', "nothing").sync(), "33Z"),
        step(frames().close(b'S', "").close(b'P', "").sync(), "33Z"),
        step(frames().parse("pgweir:0", "SELECT 1").sync(), "1Z"),
        step(frames().bind("", "pgweir:0", &[]).execute("", 0).sync(), "2DCZ"),
    ]);
}

#[test]
fn parameter_types_are_part_of_a_statement() {
    let (int4, text, unknown) = (23, 25, 705);
    let arena = Arena::new();
    let by_type = |oid| frames().parse_typed("s", "SELECT pg_typeof($1)", &[oid]).describe(b'S', "s");
    let used = frames().bind("", "s", &["1"]).execute("", 0).close(b'S', "s");
    arena.same(&[
        step(by_type(int4).then(&used).sync(), "1tT2DC3Z"),
        step(by_type(text).then(&used).sync(), "1tT2DC3Z"),
        step(by_type(0).sync(), "EZ"),
        // Inferred as text, which cannot be cast so.
        step(frames().parse("s", "SELECT CAST($1 AS unknown), $2::int").describe(b'S', "s").sync(), "1tTZ"),
        step(frames().bind("", "s", &["1", "2"]).execute("", 0).sync(), "2DCZ"),
        step(frames().describe(b'S', "s").bind("", "s", &["1", "2"]).execute("", 0).close(b'S', "s").sync(), "tT2DC3Z"),
        step(frames().parse_typed("s", "SELECT $1::Unknown, $2", &[unknown, text]).sync(), "1Z"),
        step(frames().bind("", "s", &["1", "2"]).execute("", 0).describe(b'S', "s").sync(), "2DCtTZ"),
    ]);
}

#[test]
fn the_unnamed_statement_lives_until_the_next() {
    let arena = Arena::new();
    arena.same(&[
        step(frames().parse("", "SELECT 'mine', $1::int").sync(), "1Z"),
        step(frames().bind("", "", &["1"]).execute("", 0).sync(), "2DCZ"),
        step(frames().describe(b'S', "").sync(), "tTZ"),
        step(frames().parse("s", "SELECT 'other'").sync(), "1Z"),
        step(frames().bind("", "", &["2"]).execute("", 0).sync(), "2DCZ"),
        step(frames().parse("", "SELECT 'second'").bind("", "", &[]).execute("", 0).sync(), "12DCZ"),
        step(frames().query("SELECT 1"), "TDCZ"),
        step(frames().bind("", "", &[]).sync(), "EZ"),
        step(frames().parse("", "SELECT 'third'").sync(), "1Z"),
        step(frames().parse("", "SELEC").sync(), "EZ"),
        step(frames().bind("", "", &[]).sync(), "EZ"),
        step(frames().parse("", "SELECT 'fourth'").sync(), "1Z"),
        step(frames().close(b'S', "").sync(), "3Z"),
        step(frames().bind("", "", &[]).sync(), "EZ"),
    ]);
}

/// An error takes back what the skipped messages would have done, and nothing that came after the Sync.
#[test]
fn names_after_an_error_in_a_pipeline() {
    let arena = Arena::new();
    let use_it = |name: &str| frames().bind("", name, &[]).execute("", 0).sync();
    // Planned, and so divided, in the Bind.
    let fails = || frames().run("SELECT 1/0", &[]);
    arena.same(&[
        // Skipped: a new name, a Close, the unnamed statement.
        step(frames().parse("", "SELECT 'unnamed'").sync(), "1Z"),
        step(frames().bind("", "nothing", &[]).parse("", "SELECT 'skipped'").sync(), "EZ"),
        step(use_it(""), "2DCZ"),
    ]);
    arena.same(&[
        step(frames().parse("s1", "SELECT 'one'").sync(), "1Z"),
        step(fails().close(b'S', "s1").parse("s2", "SELECT 'two'").sync(), "1EZ"),
        step(use_it("s1"), "2DCZ"),
        step(use_it("s2"), "EZ"),
        // All in flight at once: the second segment stands.
        step(fails().parse("s2", "SELECT 'no'").sync().parse("s2", "SELECT 'yes'").sync(), "1EZ1Z"),
        step(use_it("s2"), "2DCZ"),
        step(fails().parse("", "SELECT 'no'").sync().parse("", "SELECT 'yes'").sync(), "1EZ1Z"),
        step(use_it(""), "2DCZ"),
        step(fails().close(b'S', "s1").sync().close(b'S', "s1").parse("s1", "SELECT 'new'").sync(), "1EZ31Z"),
        step(use_it("s1"), "2DCZ"),
        // A segment that relies on what an earlier one was to prepare.
        step(fails().parse("s", "SELECT 'one'").sync().then(&use_it("s")), "1EZEZ"),
        step(
            fails().parse("s", "SELECT 'new'").sync().parse("s", "SELECT 'yes'").sync().then(&use_it("s")),
            "1EZ1Z2DCZ",
        ),
    ]);
}

/// DEALLOCATE holds for what follows it in its segment, and stands whatever becomes of that.
#[test]
fn names_deallocated_within_a_segment() {
    let arena = Arena::new();
    let sql = |text: &str| frames().run(text, &[]);
    let parse = |text: &str| frames().parse("s1", text);
    let use_it = || frames().bind("", "s1", &[]).execute("", 0);
    let fails = || sql("SELECT 1/0");
    arena.same(&[
        step(parse("SELECT 'one'").parse("s2", "SELECT 'two'").sync(), "11Z"),
        step(sql("DEALLOCATE ALL").describe(b'S', "s1").sync(), "12CEZ"),
        step(frames().bind("", "s2", &[]).sync(), "EZ"),
        // The same text is prepared again, behind the DEALLOCATE that has ended it on the server.
        step(sql("DEALLOCATE ALL").then(&parse("SELECT 'one'")).then(&use_it()).sync(), "12C12DCZ"),
        step(use_it().sync(), "2DCZ"),
        step(sql("DEALLOCATE s1").then(&parse("SELECT 'new'")).then(&use_it()).sync(), "12C12DCZ"),
        step(use_it().sync(), "2DCZ"),
        step(sql("DEALLOCATE s1").then(&use_it()).sync(), "12CEZ"),
        step(parse("SELECT 'again'").sync(), "1Z"),
        // Skipped, or failed.
        step(fails().then(&sql("DEALLOCATE ALL")).sync().then(&use_it()).sync(), "1EZ2DCZ"),
        step(sql("DEALLOCATE nothing").close(b'S', "s1").sync().then(&use_it()).sync(), "12EZ2DCZ"),
        step(parse("SELECT 'taken'").sync(), "EZ"),
        // Done, and not undone by the error behind it.
        step(sql("DEALLOCATE ALL").then(&fails()).sync().then(&use_it()).sync(), "12C1EZEZ"),
        // The unnamed statement stays.
        step(sql("DEALLOCATE ALL").bind("", "", &[]).execute("", 0).sync(), "12C2CZ"),
    ]);
}

/// One namespace, whichever way a statement was made, wherever it is used.
#[test]
fn sql_and_protocol_share_the_names_of_statements() {
    let arena = Arena::new();
    let use_it = || frames().bind("", "s1", &[]).execute("", 0).sync();
    let one = || frames().parse("s1", "SELECT 'one'").sync();
    arena.same(&[
        step(one().query("EXECUTE s1").then(&use_it()), "1ZTDCZ2DCZ"),
        step(frames().query("EXECUTE s1"), "TDCZ"),
        step(frames().run("EXECUTE s1", &[]).sync(), "12DCZ"),
        step(frames().query("PREPARE s1 AS SELECT 2"), "EZ"),
        step(frames().query("DEALLOCATE s1").then(&use_it()), "CZEZ"),
        step(frames().query("DEALLOCATE s1"), "EZ"),
        step(frames().query("EXECUTE s1"), "EZ"),
        step(one().parse("s2", "SELECT 'two'").parse("", "SELECT 'unnamed'").sync(), "1Z11Z"),
        // The unnamed statement stays where it is not a Query that ends the names.
        step(frames().parse("end", "DEALLOCATE ALL").bind("", "end", &[]).execute("", 0).sync(), "12CZ"),
        step(frames().bind("", "", &[]).execute("", 0).sync().then(&use_it()), "2DCZEZ"),
        step(one().query("DISCARD PLANS").then(&use_it()), "1ZCZ2DCZ"),
        step(frames().query("DISCARD ALL").then(&use_it()), "CZEZ"),
        step(frames().describe(b'S', "s2").sync(), "EZ"),
        step(one().query("DEALLOCATE PREPARE ALL").then(&use_it()), "1ZCZEZ"),
        step(one().query("BEGIN").query("DEALLOCATE s1").query("ROLLBACK").then(&use_it()), "1ZCZCZCZEZ"),
    ]);
    // Of SQL's own, which keep their connection.
    arena.same_pinned(&[
        step(frames().query("PREPARE s1 (int) AS SELECT $1 + 1"), "CZ"),
        step(frames().query("EXECUTE s1 (1)").bind("", "s1", &["2"]).execute("", 0).sync(), "TDCZ2DCZ"),
        step(frames().parse("s1", "SELECT 1").sync(), "EZ"),
        step(frames().close(b'S', "s1").sync().query("EXECUTE s1 (1)"), "3ZEZ"),
        step(one().query("EXECUTE s1").query("DEALLOCATE ALL"), "1ZTDCZCZ"),
    ]);
}

/// What one text means is each client's own: it is described as it was when it was parsed.
#[test]
fn execute_is_described_by_what_its_name_stands_for() {
    let arena = Arena::new();
    let described = |name: &str| frames().parse(name, "EXECUTE s1").describe(b'S', name);
    let as_one = || frames().close(b'S', "s1").parse("s1", "SELECT 1 AS one");
    let as_two = || frames().close(b'S', "s1").parse("s1", "SELECT 'x' AS two, 3 AS three");
    let run = |name: &str| frames().bind("", name, &[]).describe(b'P', "").execute("", 0);
    arena.same(&[
        step(described("").sync(), "1tnZ"),
        step(as_one().then(&described("")).then(&run("")).sync(), "311tT2TDCZ"),
        step(as_two().sync().then(&described("")).sync().then(&run("")).sync(), "31Z1tTZ2TDCZ"),
        step(as_one().sync(), "31Z"),
        step(described("e").sync(), "1tTZ"),
        step(frames().describe(b'S', "e").sync().then(&run("e")).sync(), "tTZ2TDCZ"),
    ]);
}

/// A Parse of a name that is taken leaves nothing behind once the name is closed.
#[test]
fn a_closed_name_is_gone_whatever_it_met() {
    let arena = Arena::new();
    arena.same(&[
        step(frames().parse("s1", "SELECT 1").sync(), "1Z"),
        step(frames().query("BEGIN"), "CZ"),
        step(frames().parse("s1", "SELECT 2").sync(), "EZ"),
        step(frames().close(b'S', "s1").sync(), "3Z"),
        step(frames().describe(b'S', "s1").sync(), "EZ"),
        step(frames().query("ROLLBACK"), "CZ"),
        step(frames().bind("", "s1", &[]).sync(), "EZ"),
    ]);
}

/// With two statements kept on each connection, every pipeline here evicts.
#[test]
fn eviction_never_breaks_a_pipeline() {
    let arena = Arena::new();
    let name = |n: usize| format!("e{n}");
    let mut prepare = frames();
    for n in 0..6 {
        prepare = prepare.parse(&name(n), &format!("SELECT {n}"));
    }
    let mut all = frames();
    for n in [0, 5, 1, 4, 2, 3, 0, 5] {
        all = all.bind("", &name(n), &[]).execute("", 0);
    }
    let round = "2DC2DC2DC2DC2DC2DC2DC2DCZ";
    // An error skips the Close of what was evicted: it is still there, and must be known to be.
    let evicting = frames().bind("", "nothing", &[]).bind("", "e0", &[]).bind("", "e1", &[]).bind("", "e2", &[]);
    arena.same(&[
        step(frames().parse("end", "ROLLBACK").sync(), "1Z"),
        step(prepare.sync(), "111111Z"),
        step(all.clone().sync(), round),
        step(evicting.clone().sync(), "EZ"),
        step(all.clone().sync(), round),
        step(evicting.sync().then(&all.clone().sync()), "EZ2DC2DC2DC2DC2DC2DC2DC2DCZ"),
        step(frames().query("BEGIN"), "CZ"),
        step(all.clone().sync(), round),
        step(frames().query("SELECT 1/0"), "EZ"),
        step(frames().bind("", "e0", &[]).sync(), "EZ"),
        step(frames().bind("", "e1", &[]).sync(), "EZ"),
        // Prepared again in a failed transaction, for it ends it.
        step(frames().bind("", "end", &[]).execute("", 0).sync(), "2CZ"),
        step(all.sync(), round),
    ]);
}

#[test]
fn portals_live_as_long_as_their_transaction() {
    let arena = Arena::new();
    let rows = "SELECT n, repeat('x', n) FROM generate_series(1, 7) n";
    let open = frames().parse("", rows).bind("p", "", &[]);
    arena.same(&[
        // By pieces, within one segment.
        step(open.clone().execute("p", 3).execute("p", 3).execute("p", 3).execute("p", 3).sync(), "12DsDsDCCZ"),
        step(frames().execute("p", 0).sync(), "EZ"),
        step(open.clone().describe(b'P', "p").close(b'P', "p").execute("p", 0).sync(), "12T3EZ"),
        // Over several segments of a transaction, two portals at once.
        step(frames().query("BEGIN"), "CZ"),
        step(open.clone().bind("q", "", &[]).execute("p", 2).execute("q", 1).sync(), "122DsDsZ"),
        step(frames().execute("q", 2).execute("p", 2).sync(), "DsDsZ"),
        step(frames().describe(b'P', "q").execute("q", 0).close(b'P', "q").sync(), "TDC3Z"),
        step(open.clone().sync(), "1EZ"),
        step(frames().query("ROLLBACK"), "CZ"),
        step(frames().execute("p", 0).sync(), "EZ"),
        // The unnamed portal goes with the next Bind, and with a Query.
        step(
            frames().parse("", rows).bind("", "", &[]).execute("", 1).bind("", "", &[]).execute("", 9).sync(),
            "12Ds2DCZ",
        ),
        step(frames().query("BEGIN; DECLARE c CURSOR FOR SELECT generate_series(1, 5)"), "CCZ"),
        step(frames().query("FETCH 2 FROM c"), "TDCZ"),
        // A cursor is a portal.
        step(frames().describe(b'P', "c").execute("c", 2).sync(), "TDsZ"),
        step(frames().run("FETCH ALL FROM c", &[]).sync(), "12DCZ"),
        step(frames().query("COMMIT"), "CZ"),
        step(frames().query("FETCH 1 FROM c"), "EZ"),
    ]);
}

#[test]
fn values_in_every_form() {
    let arena = Arena::new();
    let one = 1i32.to_be_bytes();
    let forms = |formats: &[i16], values: &[Option<&[u8]>], results: &[i16]| {
        let text = "SELECT $1::int, $2::text, $3::bytea, NULL::int";
        frames().parse("", text).bind_formats("", "", formats, values, results).describe(b'P', "").execute("", 0).sync()
    };
    arena.same(&[
        step(forms(&[], &[Some(b"1"), Some(b""), Some(b"\\xff00")], &[]), "12TDCZ"),
        step(forms(&[1], &[Some(&one), Some(b"t\xc3\xa9"), Some(b"\xff\0")], &[1]), "12TDCZ"),
        step(forms(&[1, 0, 1], &[Some(&one), None, Some(b"")], &[0, 1, 1, 0]), "12TDCZ"),
        step(forms(&[1], &[None, None, None], &[1]), "12TDCZ"),
        // Wrong counts and contents are for the server to refuse.
        step(forms(&[0, 1], &[None, None, None], &[]), "1EZ"),
        step(forms(&[], &[None, None], &[]), "1EZ"),
        step(forms(&[], &[None, None, None], &[1, 1]), "1EZ"),
        step(forms(&[7], &[None, None, None], &[]), "1EZ"),
        step(forms(&[1], &[Some(b"123"), None, None], &[]), "1EZ"),
        step(forms(&[0], &[None, Some(b"\xff"), None], &[]), "1EZ"),
    ]);
}

#[test]
fn large_values_and_many_parameters() {
    let arena = Arena::new();
    let large = "v".repeat(5_000_000);
    let names: Vec<_> = (1..=65_535).map(|n| format!("${n}")).collect();
    let many = format!("SELECT cardinality(ARRAY[{}]::text[])", names.join(","));
    let values: Vec<_> = (0..65_535).map(|_| "p").collect();
    arena.same(&[
        step(frames().parse("", "SELECT $1, length($1)").bind("", "", &[&large]).execute("", 0).sync(), "12DCZ"),
        step(frames().query(&format!("SELECT '{large}'")), "TDCZ"),
        step(frames().parse("many", &many).sync().bind("", "many", &values).execute("", 0).sync(), "1Z2DCZ"),
        step(frames().bind("", "many", &values[1..]).execute("", 0).sync(), "EZ"),
        step(frames().parse("large", &format!("SELECT length('{large}')")).sync(), "1Z"),
        step(frames().bind("", "large", &[]).execute("", 0).describe(b'S', "large").sync(), "2DCtTZ"),
        step(frames().query("BEGIN"), "CZ"),
        step(frames().run("SELECT $1 || $2", &[&large, "end"]).sync(), "12DCZ"),
        step(frames().query("COMMIT"), "CZ"),
    ]);
}

#[test]
fn function_calls_and_large_objects() {
    let arena = Arena::new();
    let (abs_int4, lo_creat, lo_open, lowrite) = (1397, 957, 952, 955);
    let number = |n: i32| n.to_be_bytes();
    arena.same(&[
        step(frames().call(abs_int4, &[&number(-42)]), "VZ"),
        step(frames().call(1, &[]), "EZ"),
        step(frames().query("BEGIN"), "CZ"),
        step(frames().query("SELECT lo_create(777777)"), "TDCZ"),
        step(frames().call(lo_open, &[&number(777_777), &number(0x20000)]), "VZ"),
        step(frames().call(lowrite, &[&number(0), &vec![7; 300_000]]), "VZ"),
        step(frames().query("SELECT length(lo_get(777777))"), "TDCZ"),
        step(frames().query("ROLLBACK"), "CZ"),
        step(frames().call(lowrite, &[&number(0), b"x"]), "EZ"),
        step(frames().query("SELECT lo_get(777777)"), "TEZ"),
    ]);
    // Its result is another number each time, so by its kind alone.
    for (_, _, proxy) in arena.proxies() {
        let mut client = support::wire::Wire::connect(proxy.port());
        client.query("BEGIN");
        client.ask(&frames().call(lo_creat, &[&number(-1)]), "VZ");
        client.query("ROLLBACK");
    }
}

/// Each field, also those of other languages and of statements within functions.
#[test]
fn errors_and_notices_arrive_whole() {
    let arena = Arena::new();
    let raise = |level: &str| {
        let using =
            "DETAIL = 'd', HINT = 'h', COLUMN = 'c', CONSTRAINT = 'k', DATATYPE = 't', TABLE = 'u', SCHEMA = 's'";
        format!("DO $$ BEGIN RAISE {level} 'žluť %', repeat('m', 9000) USING {using}; END $$")
    };
    arena.same(&[
        step(frames().query(&raise("NOTICE")), "NCZ"),
        step(frames().query(&raise("EXCEPTION")), "EZ"),
        step(
            frames().run(&raise("WARNING"), &[]).run(&raise("EXCEPTION"), &[]).run("SELECT 1", &[]).sync(),
            "12NC12EZ",
        ),
        step(frames().query("SELECT 1; SELECT nothing; SELECT 2"), "TDCEZ"),
        step(frames().run("SELECT $1::int", &["x"]).sync(), "1EZ"),
        step(frames().query("ROLLBACK"), "NCZ"),
        step(frames().query("BEGIN"), "CZ"),
        step(frames().query("BEGIN"), "NCZ"),
        step(frames().query("SELECT 1/0"), "EZ"),
        step(frames().query("SELECT 1"), "EZ"),
        step(frames().run("SELECT 1", &[]).sync(), "EZ"),
        step(frames().query("COMMIT"), "CZ"),
    ]);
}

/// pgweir answers the second Parse itself: at the Flush, however long the server then keeps silent.
#[test]
fn a_flush_behind_a_known_statement_is_answered_before_what_follows_it() {
    let pgweir = Pgweir::builder().cluster(support::cluster(), &[1, 2]).start();
    let mut client = Raw::connect(pgweir.port(), sample::USER);
    let parse = b"\0SELECT pg_sleep(600)\0\0\0";
    client.query("BEGIN").flush().until_ready();
    client.frame(b'P', parse).frame(b'S', b"").flush().until_ready();
    client.frame(b'P', parse).frame(b'H', b"").frame(b'B', b"\0\0\0\0\0\0\0\0").frame(b'E', b"\0\0\0\0\0");
    client.frame(b'S', b"").flush();
    assert_eq!(client.receive().map(|(tag, _)| tag), Some(b'1'));
    let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(600)'";
    wait_until(LIMIT, "the statement", || support::cluster().primary().psql(running).unwrap() == "1");
    client.cancel();
    let tags: Vec<_> = std::iter::from_fn(|| client.receive()).map(|(tag, _)| tag).take(3).collect();
    assert_eq!(tags, b"2EZ");
}
