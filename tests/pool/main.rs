//! The pool, at a real Postgres: its knobs, who is served when, and what clients and servers that die leave behind.

mod control;
mod gone;
mod knobs;
mod servers;
mod share;
mod state;
#[path = "../support/mod.rs"]
mod support;

use support::{LIMIT, Pgweir, Role, wait_until};

/// Waits until so many clients of the role wait for a server connection.
fn wait_for_waiting(pgweir: &Pgweir, role: &Role<'_>, count: u64) {
    wait_until(LIMIT, &format!("{count} waiting clients"), || {
        let pools = pgweir.json("/pools");
        let of_role = pools.as_array().unwrap().iter().filter(|pool| pool["user"] == role.name);
        of_role.map(|pool| pool["cl_waiting"].as_u64().unwrap()).sum::<u64>() == count
    });
}
