//! `[pool]`, and the `pool` table of a database laid over it.

use super::number::Zero;
use super::section::Section;
use super::{PinPolicy, Pool, PoolMode, Reset, UnnamedStatements};

pub(super) const MODES: [(&str, PoolMode); 3] =
    [("transaction", PoolMode::Transaction), ("session", PoolMode::Session), ("statement", PoolMode::Statement)];

pub(super) const PINS: [(&str, PinPolicy); 2] = [("allow", PinPolicy::Allow), ("refuse", PinPolicy::Refuse)];

const RESETS: [(&str, Reset); 2] = [("discard", Reset::Discard), ("close", Reset::Close)];

const UNNAMED: [(&str, UnnamedStatements); 2] =
    [("named", UnnamedStatements::Named), ("forward", UnnamedStatements::Forward)];

/// Reads a pool table; what it leaves out is as in `base`.
pub(super) fn pool(section: &Section<'_, '_>, base: &Pool) -> Pool {
    let s = section;
    let pool = Pool {
        mode: s.choice("mode", base.mode, &MODES),
        pin: s.choice("pin", base.pin, &PINS),
        reset: s.choice("reset", base.reset, &RESETS),
        min: s.count("min", base.min, 0),
        max: s.count("max", base.max, 1),
        idle_timeout: s.duration("idle_timeout", base.idle_timeout, Zero::Allowed),
        connection_timeout: s.duration("connection_timeout", base.connection_timeout, Zero::Refused),
        acquire_timeout: s.duration("acquire_timeout", base.acquire_timeout, Zero::Refused),
        create_timeout: s.duration("create_timeout", base.create_timeout, Zero::Refused),
        destroy_timeout: s.duration("destroy_timeout", base.destroy_timeout, Zero::Allowed),
        reap_interval: s.duration("reap_interval", base.reap_interval, Zero::Refused),
        create_retry_interval: s.duration("create_retry_interval", base.create_retry_interval, Zero::Refused),
        max_lifetime: s.duration("max_lifetime", base.max_lifetime, Zero::Refused),
        unnamed_statements: s.choice("unnamed_statements", base.unnamed_statements, &UNNAMED),
        prepared_statements: s.count("prepared_statements", base.prepared_statements, 1),
        statement_timeout: s.duration("statement_timeout", base.statement_timeout, Zero::Allowed),
        idle_transaction_timeout: s.duration("idle_transaction_timeout", base.idle_transaction_timeout, Zero::Allowed),
    };
    check_limits(s, &pool);
    pool
}

/// Faults of two keys together; each is told only where the table at hand has a part in it.
fn check_limits(section: &Section<'_, '_>, pool: &Pool) {
    let (min, max) = (pool.min, pool.max);
    if min > max && section.has("min") {
        let hint = format!("lower \"min\" to {max} or less, or raise \"max\"");
        section.error("min", format_args!("is {min}, more than \"max\", which is {max}"), hint);
    } else if min > max && section.has("max") {
        let hint = format!("raise \"max\" to {min} or more, or lower \"min\"");
        section.error("max", format_args!("is {max}, less than \"min\", which is {min}"), hint);
    }
    let both = ["connection_timeout", "create_timeout"];
    if pool.connection_timeout > pool.create_timeout
        && let Some(key) = both.into_iter().find(|key| section.has(key))
    {
        section.warning(
            key,
            "lets one connect last longer than all of making a connection",
            "\"connection_timeout\" should be less than \"create_timeout\"",
        );
    }
}
