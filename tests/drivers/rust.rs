//! tokio-postgres: the same program at Postgres itself and through pgweir.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt, future};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Kind, Type};
use tokio_postgres::{AsyncMessage, Client, IsolationLevel, NoTls, SimpleQueryMessage};

use crate::interleaved::Interleaved;
use crate::support::client::{connect, spawn, wait};
use crate::support::{LIMIT, wait_until};
use crate::{direct, session_mode, transaction_mode};

fn everywhere(program: impl Fn(&str)) {
    program(&direct());
    program(&session_mode().url());
    let pgweir = transaction_mode();
    let _other = Interleaved::with(&pgweir);
    program(&pgweir.url());
}

async fn code(client: &Client, sql: &str) -> SqlState {
    client.query(sql, &[]).await.unwrap_err().code().unwrap().clone()
}

/// The driver pipelines whatever is polled together.
#[test]
fn pipelines_keep_their_order() {
    everywhere(|url| {
        let client = connect(url);
        wait(async {
            let numbers = (0..300_i32).map(|n| {
                let client = &client;
                async move {
                    let row = client.query_one("SELECT $1::int4 + 1, $2::text", &[&n, &n.to_string()]).await.unwrap();
                    (row.get::<_, i32>(0), row.get::<_, String>(1))
                }
            });
            let wanted: Vec<_> = (0..300).map(|n| (n + 1, n.to_string())).collect();
            assert_eq!(future::join_all(numbers).await, wanted);

            let mixed = ["SELECT 1/1", "SELECT 1/0", "SELECT 2/1", "SELEC", "SELECT 3/1"];
            let told = future::join_all(mixed.map(|sql| client.query_one(sql, &[]))).await;
            let told = told.into_iter().map(|row| match row {
                Ok(row) => row.get::<_, i32>(0).to_string(),
                Err(error) => error.code().unwrap().code().to_owned(),
            });
            assert_eq!(told.collect::<Vec<_>>(), ["1", "22012", "2", "42601", "3"]);
        });
    });
}

#[test]
fn types_are_looked_up_and_statements_last() {
    everywhere(|url| {
        let client = connect(url);
        wait(async {
            let make = "DROP DOMAIN IF EXISTS rust_even; DROP TYPE IF EXISTS rust_pair, rust_mood;
                        CREATE TYPE rust_mood AS ENUM ('glad', 'sad');
                        CREATE TYPE rust_pair AS (a int, b rust_mood);
                        CREATE DOMAIN rust_even AS int CHECK (value % 2 = 0)";
            client.batch_execute(make).await.unwrap();
            let text = "SELECT $1::rust_mood, $2::rust_pair[], $3::rust_even, $4::int4range";
            let statement = client.prepare(text).await.unwrap();
            let kinds: Vec<_> = statement.params().iter().map(Type::kind).collect();
            assert!(matches!(kinds[0], Kind::Enum(words) if words == &["glad", "sad"]), "{kinds:?}");
            assert!(matches!(kinds[1], Kind::Array(pair) if matches!(pair.kind(), Kind::Composite(_))), "{kinds:?}");

            let typed = client.prepare_typed("SELECT $1, $2", &[Type::INT8, Type::TEXT_ARRAY]).await.unwrap();
            for n in 0..50_i64 {
                let row = client.query_one(&typed, &[&n, &vec!["x", "y"]]).await.unwrap();
                assert_eq!((row.get::<_, i64>(0), row.get::<_, Vec<String>>(1)), (n, vec!["x".into(), "y".into()]));
            }
            // Each is closed when it is dropped.
            for n in 0..100 {
                let statement = client.prepare(&format!("SELECT {n}")).await.unwrap();
                assert_eq!(client.query_one(&statement, &[]).await.unwrap().get::<_, i32>(0), n);
            }
            client.batch_execute("DROP DOMAIN rust_even; DROP TYPE rust_pair, rust_mood").await.unwrap();
        });
    });
}

#[test]
fn transactions_portals_and_copies() {
    everywhere(|url| {
        let mut client = connect(url);
        wait(async {
            client
                .batch_execute(
                    "DROP TABLE IF EXISTS rust_kept; CREATE TABLE rust_kept (id int4 PRIMARY KEY, note text)",
                )
                .await
                .unwrap();
            let sink = client.copy_in("COPY rust_kept FROM STDIN").await.unwrap();
            let mut sink = pin!(sink);
            for n in 0..5_000 {
                sink.send(Bytes::from(format!("{n}\tnote {n}\n"))).await.unwrap();
            }
            assert_eq!(sink.finish().await.unwrap(), 5_000);
            // One that is dropped ends with CopyFail.
            let mut given_up = Box::pin(client.copy_in("COPY rust_kept FROM STDIN").await.unwrap());
            given_up.send(Bytes::from_static(b"9999\tgiven up\n")).await.unwrap();
            drop(given_up);
            let out = client.copy_out("COPY (SELECT * FROM rust_kept ORDER BY id) TO STDOUT").await.unwrap();
            let out: Vec<Bytes> = out.try_collect().await.unwrap();
            assert_eq!((out.len(), &out[1][..]), (5_000, &b"1\tnote 1\n"[..]));

            let mut transaction =
                client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start().await.unwrap();
            let savepoint = transaction.savepoint("s").await.unwrap();
            savepoint.execute("DELETE FROM rust_kept", &[]).await.unwrap();
            savepoint.rollback().await.unwrap();
            // Two portals in turns, in parts.
            let odd = transaction.bind("SELECT id FROM rust_kept WHERE id % 2 = 1 ORDER BY id", &[]).await.unwrap();
            let even = transaction.bind("SELECT id FROM rust_kept WHERE id % 2 = $1 ORDER BY id", &[&0]).await.unwrap();
            for part in 0..3 {
                let (odd, even) =
                    future::try_join(transaction.query_portal(&odd, 10), transaction.query_portal(&even, 7))
                        .await
                        .unwrap();
                assert_eq!((odd.len(), odd[0].get::<_, i32>(0)), (10, part * 20 + 1));
                assert_eq!((even.len(), even[6].get::<_, i32>(0)), (7, part * 14 + 12));
            }
            transaction.commit().await.unwrap();
            let rows = client.query_raw("SELECT id FROM rust_kept", &[] as &[i32]).await.unwrap();
            assert_eq!(rows.count().await, 5_000);

            let transaction = client.build_transaction().read_only(true).start().await.unwrap();
            let refused = transaction.execute("DELETE FROM rust_kept", &[]).await.unwrap_err();
            assert_eq!(refused.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
            drop(transaction);
            let said =
                client.simple_query("SELECT 1; DELETE FROM rust_kept WHERE id < 3; SELECT 'a', NULL").await.unwrap();
            let said: Vec<_> = said
                .iter()
                .map(|message| match message {
                    SimpleQueryMessage::Row(row) => {
                        (0..row.len()).map(|at| row.get(at).unwrap_or("null")).collect::<Vec<_>>().join("|")
                    }
                    SimpleQueryMessage::CommandComplete(count) => format!("#{count}"),
                    _ => "-".into(),
                })
                .collect();
            assert_eq!(said, ["-", "1", "#1", "#3", "-", "a|null", "#1"]);
            assert_eq!(code(&client, "INSERT INTO rust_kept VALUES (7, 'again')").await, SqlState::UNIQUE_VIOLATION);
            assert_eq!(code(&client, "SELECT * FROM no_such_table").await, SqlState::UNDEFINED_TABLE);
            client.batch_execute("DROP TABLE rust_kept").await.unwrap();
        });
    });
}

#[test]
fn notifications_notices_and_cancels() {
    everywhere(|url| {
        let (heard, mut hearing) = tokio::sync::mpsc::unbounded_channel();
        let (client, mut connection) = wait(tokio_postgres::connect(url, NoTls)).unwrap();
        spawn(async move {
            while let Some(Ok(message)) = future::poll_fn(|context| connection.poll_message(context)).await {
                let told = match message {
                    AsyncMessage::Notification(told) => format!("{}: {}", told.channel(), told.payload()),
                    AsyncMessage::Notice(told) => told.message().to_owned(),
                    _ => continue,
                };
                // Nobody listens at the test's end.
                let _ = heard.send(told);
            }
        });
        let other = connect(url);
        wait(async {
            client.batch_execute("LISTEN \"Rust's\"").await.unwrap();
            for n in 0..3 {
                other.execute("SELECT pg_notify('Rust''s', $1)", &[&n.to_string()]).await.unwrap();
                let told = tokio::time::timeout(LIMIT, hearing.recv()).await.unwrap().unwrap();
                assert_eq!(told, format!("Rust's: {n}"));
            }
            client.batch_execute("UNLISTEN *; DO $$ BEGIN RAISE NOTICE 'ahoj'; END $$").await.unwrap();
            assert_eq!(tokio::time::timeout(LIMIT, hearing.recv()).await.unwrap().unwrap(), "ahoj");
        });

        let token = client.cancel_token();
        let sleeping = spawn(async move {
            let ended = client.batch_execute("SELECT pg_sleep(60) /* of rust */").await.unwrap_err();
            let next: i32 = client.query_one("SELECT 1", &[]).await.unwrap().get(0);
            (ended.code().cloned(), next)
        });
        let server = crate::support::cluster().primary();
        wait_until(LIMIT, "the statement runs", || {
            let running =
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%/* of rust */'";
            server.psql(running).unwrap() == "1"
        });
        wait(token.cancel_query(NoTls)).unwrap();
        let ended = wait(async { tokio::time::timeout(LIMIT + Duration::from_secs(1), sleeping).await });
        assert_eq!(ended.unwrap().unwrap(), (Some(SqlState::QUERY_CANCELED), 1));
    });
}
