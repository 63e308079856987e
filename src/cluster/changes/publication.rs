//! What a publication tells of, and whether that is still so.
//!
//! That it is altered, no stream tells, and nobody who writes waits for it. So its rows in the catalog are looked at whenever
//! the primary is asked how far it is: each with its `xmin`, and with its `xmax`, which shows that a transaction is about to
//! change or remove it, before that is committed. While they are the same, nothing has been taken back of what was
//! published when the stream began. What is added counts with the next stream: who makes its slot waits for all
//! transactions that may have written before, of which it would never be told.

use crate::backend::connection::{Connection, Row};
use crate::catalog::publication::Publication;
use crate::cluster::changes::Cause;
use crate::cluster::changes::stream::cause;
use crate::cluster::changes::task::{SILENCE, silence};
use crate::error::Malformed;
use crate::session::parameters::literal;

/// Of the rows `p`; NULL where there are none.
const STATE: &str = "SELECT pg_catalog.hashtextextended(pg_catalog.string_agg(\
    pg_catalog.concat_ws(' ', kind, id, what, born, gone), ',' ORDER BY kind, id, born), 0) FROM p";

/// The prepared statement by which the primary is asked again and again.
const QUESTION: &str = "pgweir_question";

/// The publication of this name on the connection's server.
///
/// # Errors
/// There is none, it does not tell of all kinds of changes, or the connection is of no use any more.
pub async fn read(connection: &mut Connection, name: &str) -> Result<Publication, Cause> {
    let sql = format!("WITH p AS ({}) SELECT kind, id, what, ({STATE}) FROM p", rows(name, version(connection)));
    let rows = asked(connection, &sql).await?;
    if rows.is_empty() {
        return Err(Cause::Publication(format!("publication {name:?} does not exist")));
    }
    let (publication, tells_all) = publication(&rows).ok_or_else(|| cause(Malformed("a publication").into()))?;
    if !tells_all {
        let why = format!("publication {name:?} does not publish all of insert, update, delete and truncate");
        return Err(Cause::Publication(why));
    }
    Ok(publication)
}

/// How to ask for `columns`, and where there is a publication for its state in one more column.
///
/// # Errors
/// The connection is of no use any more.
pub(super) async fn question(
    connection: &mut Connection,
    (columns, from): (&str, &str),
    publication: Option<&str>,
) -> Result<String, Cause> {
    let Some(name) = publication else { return Ok(format!("SELECT {columns}{from}")) };
    // To plan it takes ten times as long as to run it.
    let state = format!("WITH p AS ({}) {STATE}", rows(name, version(connection)));
    asked(connection, &format!("PREPARE {QUESTION} AS SELECT {columns}, ({state}){from}")).await?;
    Ok(format!("EXECUTE {QUESTION}"))
}

async fn asked(connection: &mut Connection, sql: &str) -> Result<Vec<Row>, Cause> {
    let asked = tokio::time::timeout(SILENCE, connection.query(sql)).await;
    asked.unwrap_or_else(|_| Err(silence())).map_err(cause)
}

/// A state as it comes in that column; `None`: the publication is gone.
pub(super) fn state(text: &str) -> Option<u64> {
    text.parse::<i64>().ok().map(|state| state as u64)
}

/// 0 where it is not told: that lacks what newer ones have.
fn version(connection: &Connection) -> u32 {
    let told = connection.statuses.iter().find(|(name, _)| **name == *"server_version");
    told.and_then(|(_, text)| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).unwrap_or(0)
}

/// One row for itself, and one for each table, schema and partition that it names.
fn rows(name: &str, version: u32) -> String {
    let number = format!("(SELECT oid FROM pg_catalog.pg_publication WHERE pubname = {})", literal(name));
    // Row filters and schemas came with 15, partitions that are on their way out with 14.
    let filter = if version >= 15 { "prqual IS NOT NULL" } else { "false" };
    let leaves = if version >= 14 { "i.inhdetachpending" } else { "false" };
    let schemas = match version {
        ..15 => String::new(),
        _ => format!(
            " UNION ALL SELECT 's', pnnspid, '', xmin::text, xmax::text \
             FROM pg_catalog.pg_publication_namespace WHERE pnpubid = {number}"
        ),
    };
    let partition =
        format!("SELECT i.inhrelid AS id, ({leaves})::text AS what, i.xmin::text AS born, i.xmax::text AS gone");
    format!(
        "SELECT 'p' AS kind, oid AS id, pg_catalog.concat(puballtables, pubviaroot, \
         pubinsert AND pubupdate AND pubdelete AND pubtruncate) AS what, xmin::text AS born, xmax::text AS gone \
         FROM pg_catalog.pg_publication WHERE oid = {number} \
         UNION ALL SELECT 'r', prrelid, ({filter})::text, xmin::text, xmax::text \
         FROM pg_catalog.pg_publication_rel WHERE prpubid = {number}{schemas} \
         UNION ALL SELECT 'i', id, what, born, gone FROM (WITH RECURSIVE heirs AS (\
          {partition} FROM pg_catalog.pg_publication_rel \
          JOIN pg_catalog.pg_class AS c ON c.oid = prrelid AND c.relkind = 'p' \
          JOIN pg_catalog.pg_inherits AS i ON i.inhparent = prrelid WHERE prpubid = {number} \
          UNION {partition} FROM heirs AS h JOIN pg_catalog.pg_inherits AS i ON i.inhparent = h.id) \
         SELECT * FROM heirs) AS h"
    )
}

/// By its rows, and whether it tells of all kinds of changes.
fn publication(rows: &[Row]) -> Option<(Publication, bool)> {
    let (mut publication, mut tells_all) = (Publication::default(), false);
    for row in rows {
        let text = |n: usize| row.get(n).and_then(|value| value.as_deref());
        let (oid, what) = (text(1)?.parse().ok()?, text(2)?);
        publication.state = state(text(3)?)?;
        match (text(0)?, what) {
            ("p", what) => {
                let mut flags = what.bytes().map(|flag| flag == b't');
                publication.all = flags.next()?;
                publication.via_root = flags.next()?;
                tells_all = flags.next()?;
            }
            ("r" | "i", "false") => drop(publication.tables.insert(oid)),
            ("r", _) => drop(publication.partial.insert(oid)),
            ("s", _) => drop(publication.schemas.insert(oid)),
            ("i", _) => {}
            _ => return None,
        }
    }
    if publication.all {
        // By name it can but leave some out.
        publication.partial.extend(publication.tables.drain());
    }
    Some((publication, tells_all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rows: &[[&str; 3]]) -> Option<(Publication, bool)> {
        let row = |row: &[&str; 3]| row.iter().chain(&["-3"]).map(|value| Some((*value).to_owned())).collect();
        publication(&rows.iter().map(row).collect::<Vec<Row>>())
    }

    #[test]
    fn a_publication_by_its_rows() {
        let rows = [
            ["p", "1", "ftt"],
            ["r", "10", "false"],
            ["r", "11", "true"],
            ["s", "2200", ""],
            ["i", "12", "false"],
            ["i", "13", "true"],
        ];
        let expected = Publication {
            state: -3i64 as u64,
            all: false,
            via_root: true,
            tables: [10, 12].into(),
            partial: [11].into(),
            schemas: [2200].into(),
        };
        assert_eq!(read(&rows), Some((expected, true)));
        let (left_out, tells_all) = read(&[["p", "1", "tff"], ["r", "10", "false"]]).unwrap();
        assert!(left_out.partial.contains(&10) && left_out.tables.is_empty() && !tells_all);
        for bad in [["p", "1", "t"], ["p", "x", "ttt"], ["z", "1", ""]] {
            assert_eq!(read(&[bad]), None, "{bad:?}");
        }
    }
}
