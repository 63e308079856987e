//! Making a used connection clean for the next client.

use crate::backend::connection::{BackendError, Connection};
use crate::error::Malformed;
use crate::session::parameters::Settings;

/// Ends whatever a session can leave behind, save the statements that pgweir prepared: what DISCARD ALL does without
/// DEALLOCATE ALL.
const RESET: &str = "CLOSE ALL;SET SESSION AUTHORIZATION DEFAULT;RESET ALL;UNLISTEN *;\
                     SELECT pg_catalog.pg_advisory_unlock_all();DISCARD SEQUENCES;DISCARD TEMP";

/// SQL-level PREPARE may have left names: everything goes, and pgweir's own statements with it.
const RESET_ALL: &str = "DISCARD ALL";

/// Ends a transaction. Where there is none, the server would log a warning. On an error the connection must be closed.
pub async fn roll_back(connection: &mut Connection) -> Result<(), BackendError> {
    connection.query("ROLLBACK").await?;
    connection.unnamed = None;
    Ok(())
}

/// Resets a connection on which no statement is running, outside of a transaction. On an error it must be closed.
pub async fn reset(connection: &mut Connection, prepared: bool) -> Result<(), BackendError> {
    if prepared {
        connection.query(RESET_ALL).await?;
        connection.held.clear();
    } else {
        connection.query(RESET).await?;
    }
    if connection.in_transaction {
        return Err(BackendError::Malformed(Malformed("a transaction is open behind a reset")));
    }
    connection.unnamed = None;
    connection.settings = Settings::default();
    connection.suspect = false;
    Ok(())
}
