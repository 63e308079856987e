//! In whose history positions in the WAL are.

use crate::backend::connection::{BackendError, Connection};

/// The cluster, its timeline, the server's start and the database. Positions of one origin compare: a promotion is another timeline,
/// and a copy of the cluster that goes its own way on the same timeline, or one that was put back to an earlier state, had to be
/// started for that.
const ORIGIN: &str = "SELECT concat_ws('.', (pg_catalog.pg_control_system()).system_identifier, \
    substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8), \
    (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint, \
    (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))";

/// `None`: the server will not say.
///
/// # Errors
/// The connection is of no use any more.
pub(super) async fn origin(connection: &mut Connection) -> Result<Option<Box<str>>, BackendError> {
    match connection.query(ORIGIN).await {
        Ok(rows) => Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()?).map(Into::into)),
        Err(BackendError::Server(error)) if !error.fatal => Ok(None),
        Err(error) => Err(error),
    }
}
