//! Making a used connection clean for the next client.

use crate::backend::connection::{BackendError, Connection};
use crate::session::parameters::Settings;

/// Ends whatever a session can leave behind, save the statements that pgweir prepared: what DISCARD ALL does without
/// DEALLOCATE ALL. Rolled back first, for a client that vanished in a transaction.
const RESET: &str = "ROLLBACK;CLOSE ALL;SET SESSION AUTHORIZATION DEFAULT;RESET ALL;UNLISTEN *;\
                     SELECT pg_catalog.pg_advisory_unlock_all();DISCARD SEQUENCES;DISCARD TEMP";

/// SQL-level PREPARE may have left names: everything goes, and pgweir's own statements with it.
const RESET_ALL: [&str; 2] = ["ROLLBACK", "DISCARD ALL"];

/// Ends a transaction that has done nothing. On an error the connection must be closed.
pub async fn roll_back(connection: &mut Connection) -> Result<(), BackendError> {
    connection.query("ROLLBACK").await?;
    connection.unnamed = None;
    Ok(())
}

/// Resets a connection on which no statement is running. On an error it must be closed.
pub async fn reset(connection: &mut Connection, prepared: bool) -> Result<(), BackendError> {
    if prepared {
        for sql in RESET_ALL {
            connection.query(sql).await?;
        }
        connection.held.clear();
    } else {
        connection.query(RESET).await?;
    }
    connection.unnamed = None;
    connection.settings = Settings::default();
    connection.suspect = false;
    Ok(())
}
