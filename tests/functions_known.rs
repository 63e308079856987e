//! What `sql::functions` says of the built-in functions, held against what a server's catalog says of them.

use std::collections::HashMap;

use pgweir::sql::functions::{self, Class};

mod support;

#[test]
fn the_tables_promise_no_more_than_the_catalog() {
    let rows = support::cluster().primary().psql(
        "SELECT proname || '|' || string_agg(DISTINCT provolatile::text, '') FROM pg_proc \
         WHERE pronamespace = 'pg_catalog'::regnamespace GROUP BY proname",
    );
    let rows = rows.unwrap();
    let catalog: HashMap<_, _> = rows.lines().map(|line| line.split_once('|').unwrap()).collect();
    assert!(catalog.len() > 2000, "{} functions", catalog.len());

    let mut known = 0;
    for (name, class) in functions::tables() {
        // Names of other versions' functions are not here to compare.
        let Some(volatility) = catalog.get(name) else { continue };
        known += 1;
        let allowed = match class {
            Class::Immutable => "i",
            Class::Stable | Class::Transient => "is",
            _ => "isv",
        };
        assert!(volatility.chars().all(|v| allowed.contains(v)), "{name} is {class:?} here and {volatility} there");
    }
    assert!(known > 500, "{known} of the names exist");
}

/// But those that a statement cannot call: of triggers, of languages and access methods, with internal arguments.
#[test]
fn no_volatile_function_is_in_no_table() {
    let rows = support::cluster().primary().psql(
        "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND oid < 16384 \
         AND provolatile = 'v' AND prorettype NOT IN (SELECT oid FROM pg_type WHERE typtype = 'p' \
         AND typname ~ '(trigger|_handler|internal)$') AND NOT 'internal'::regtype = ANY (proargtypes)",
    );
    let rows = rows.unwrap();
    let (all, unknown) = (rows.lines().count(), rows.lines().filter(|name| functions::class(name).is_none()));
    assert!(all > 100, "{all} functions");
    let unknown: Vec<_> = unknown.collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
