//! The questions that a snapshot of a database's definitions is made of. Asked under an empty search_path, so that names
//! are those of pg_catalog.
//!
//! Each row begins with a letter that tells what it is. Stored expressions are not fetched: the server picks the
//! references out of their node trees (`nodes/outfuncs.c`), which hold OIDs and so survive renaming.

use crate::backend::connection::Row;

/// Said once on a connection: of roles that have a search_path of their own the server's is hidden behind it.
pub(super) const ORIGIN: &str = "SELECT source FROM pg_catalog.pg_settings WHERE name = 'search_path'";

/// Said once on a connection, behind [`ORIGIN`].
pub(super) const SETTLE: &str = "SET search_path TO ''; SET client_encoding TO 'UTF8'; SET statement_timeout TO '60s'; \
                                 SET default_transaction_read_only TO on; SET jit TO off";

/// What has happened at all: equal answers mean that nothing was committed in between. A transaction that writes has
/// an id, and its end moves `xmax` or leaves the list. The server's own search_path changes without one, when its configuration is
/// loaded anew.
pub(super) const MOMENT: &str = "SELECT txid_current_snapshot()::text, pg_conf_load_time()::text";

/// When the configuration was loaded, of a [`MOMENT`].
pub(super) fn loaded(moment: Option<&Row>) -> Option<&str> {
    moment?.get(1)?.as_deref()
}

/// A sum over what identifies the rows of the catalogs: it changes with every row made, changed or dropped, and with
/// nothing else. Names of columns, labels of enums, collations, text search and rights are of no concern to a node, but to
/// results that are kept; the server's own text search can be altered too. What a role may by itself stands in a catalog that
/// only superusers read, and so without its rows' `xmin`. Temporary tables are left out.
///
/// What comes and goes again between two looks leaves no row; where it would matter to a read in between that names nothing
/// new (a membership, a policy, an attribute of a role), the server's counts of changes of the catalog show it.
pub(super) const DIGEST: &str = "\
    SELECT sum(hashtextextended(kind || id || '.' || xmin::text, 0)), count(*) FROM (\
    SELECT 'f' AS kind, oid::text AS id, xmin FROM pg_proc WHERE oid >= 16384 \
    UNION ALL SELECT 'r', oid::text, xmin FROM pg_class \
        WHERE oid >= 16384 AND relpersistence <> 't' AND relkind IN ('r', 'v', 'm', 'f', 'p', 'S', 'c') \
    UNION ALL SELECT 'k', attrelid::text || '.' || attnum, a.xmin FROM pg_attribute AS a \
        JOIN pg_class AS r ON r.oid = attrelid \
        WHERE attrelid >= 16384 AND attnum > 0 AND relpersistence <> 't' AND relkind IN ('r', 'v', 'm', 'f', 'p', 'c') \
    UNION ALL SELECT 'm', roleid::text || '.' || member, xmin FROM pg_auth_members \
    UNION ALL SELECT 'i', inhrelid::text || '.' || inhparent, xmin FROM pg_inherits \
    UNION ALL SELECT 'w', oid::text, xmin FROM pg_rewrite WHERE oid >= 16384 \
    UNION ALL SELECT 'p', oid::text, xmin FROM pg_policy \
    UNION ALL SELECT 't', oid::text, xmin FROM pg_type WHERE oid >= 16384 AND typtype IN ('b', 'd', 'e', 'r', 'm') \
        AND typinput <> 'array_in'::regproc \
    UNION ALL SELECT 'd', c.oid::text, c.xmin FROM pg_constraint AS c LEFT JOIN pg_class AS r ON r.oid = conrelid \
        WHERE c.oid >= 16384 AND (contypid <> 0 OR conbin IS NOT NULL) AND relpersistence IS DISTINCT FROM 't' \
    UNION ALL SELECT 'g', t.oid::text, t.xmin FROM pg_trigger AS t JOIN pg_class AS r ON r.oid = tgrelid \
        WHERE relpersistence <> 't' \
    UNION ALL SELECT 'e', d.oid::text, d.xmin FROM pg_attrdef AS d JOIN pg_class AS r ON r.oid = adrelid \
        WHERE relpersistence <> 't' \
    UNION ALL SELECT 'x', indexrelid::text, x.xmin FROM pg_index AS x JOIN pg_class AS r ON r.oid = indrelid \
        WHERE (indexprs IS NOT NULL OR indpred IS NOT NULL) AND relpersistence <> 't' \
    UNION ALL SELECT 'o', oid::text, xmin FROM pg_operator WHERE oid >= 16384 \
    UNION ALL SELECT 'q', oid::text, xmin FROM pg_amproc WHERE oid >= 16384 \
    UNION ALL SELECT 'c', oid::text, xmin FROM pg_cast WHERE oid >= 16384 \
    UNION ALL SELECT 'l', oid::text, xmin FROM pg_enum \
    UNION ALL SELECT 'y', oid::text, xmin FROM pg_collation WHERE oid >= 16384 \
    UNION ALL SELECT 'z', oid::text, xmin FROM pg_ts_config \
    UNION ALL SELECT 'u', mapcfg::text || '.' || maptokentype || '.' || mapseqno, xmin FROM pg_ts_config_map \
    UNION ALL SELECT 'v', oid::text, xmin FROM pg_ts_dict \
    UNION ALL SELECT 'n', oid::text, xmin FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_' \
    UNION ALL SELECT 'h', n.oid::text || '.' || r.oid, n.xmin FROM pg_namespace AS n \
        JOIN pg_roles AS r ON rolname = nspname \
    UNION ALL SELECT 'a', concat_ws('.', oid, rolname, rolsuper, rolinherit, rolbypassrls), '0'::xid FROM pg_roles \
    UNION ALL SELECT 'b', concat_ws('.', oid, pg_stat_get_tuples_inserted(oid), pg_stat_get_tuples_updated(oid), \
        pg_stat_get_tuples_deleted(oid)), '0'::xid FROM pg_class \
        WHERE oid IN ('pg_authid'::regclass, 'pg_auth_members'::regclass, 'pg_policy'::regclass, 'pg_cast'::regclass) \
    UNION ALL SELECT 's', setdatabase::text || '.' || setrole, xmin FROM pg_db_role_setting) AS rows";

/// The keys of node trees behind which an OID stands that matters, and flags. System columns that show locks are counted
/// downwards from -3 (`access/sysattr.h`): cmin, xmax, cmax.
const KEYS: &str = "[:{](funcid|aggfnoid|winfnoid|opno|opnos|eqop|sortop|relid|resulttype|seqid|hasForUpdate|commandType|\
                    SQLVALUEFUNCTION|TABLESAMPLECLAUSE|varattno -[345] :vartype) \
                    (?:\\(o |:op |:tsmhandler )?([0-9 ]*[0-9]|true)";

/// current_setting: the parameter's name decides, which stands in the tree as bytes.
const ASKS_SETTING: &str = ":funcid (2077|3294) ";

/// Words that a conversion takes for a moment (`datetktbl`); as constants of text they stand in a tree as bytes.
const MOMENTS: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];

/// Matches a tree with a constant that has one of [`MOMENTS`].
fn moments() -> String {
    const LETTER: &str = "(?:6[5-9]|[78][0-9]|90|9[7-9]|1[01][0-9]|12[0-2])";
    let byte = |byte: u8| format!("(?:{byte}|{})", byte.to_ascii_uppercase());
    let word = |word: &str| word.bytes().map(byte).collect::<Vec<_>>().join(" ");
    format!("(?<! {LETTER}) (?:{}) (?!{LETTER} )", MOMENTS.map(word).join("|"))
}

/// The references of a node tree, as `key oids` with commas between.
fn refs(tree: &str) -> String {
    format!(
        "concat_ws(',', (SELECT string_agg(DISTINCT m[1] || ' ' || m[2], ',') \
         FROM regexp_matches({tree}::text, '{KEYS}', 'g') AS m), CASE WHEN {tree}::text ~ '{}' THEN 'MOMENT 1' END)",
        moments()
    )
}

/// The types themselves, the element's for an array.
const ELEMENT: &str = "CASE WHEN e.typinput = 'array_in'::regproc THEN e.typelem ELSE e.oid END";

/// Everything, in one snapshot. `version` is the server's major version; `server_path`: its own search_path shows.
pub(super) fn everything(version: u32, server_path: bool) -> String {
    let mut sql = String::from("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;");
    let parts = [
        "SELECT 'n', oid, nspname FROM pg_namespace WHERE nspname !~ '^pg_(toast|temp|toast_temp)'".to_owned(),
        "SELECT 'b', oid, proname, provolatile FROM pg_proc \
         WHERE oid < 16384 AND pronamespace = 'pg_catalog'::regnamespace"
            .to_owned(),
        "SELECT 'v', oid, relname, reltype FROM pg_class WHERE oid < 16384 AND relkind IN ('r', 'v')".to_owned(),
        functions(version),
        "SELECT 'a', aggfnoid::oid, concat_ws(' ', aggtransfn::oid, aggfinalfn::oid, aggcombinefn::oid, \
         aggserialfn::oid, aggdeserialfn::oid, aggmtransfn::oid, aggminvtransfn::oid, aggmfinalfn::oid) \
         FROM pg_aggregate WHERE aggfnoid >= 16384"
            .to_owned(),
        "SELECT 'o', o.oid, oprname, oprnamespace, oprcode::oid, oprleft, oprright, EXISTS (SELECT FROM pg_operator AS b \
         WHERE b.oprname = o.oprname AND b.oprleft = o.oprleft AND b.oprright = o.oprright \
         AND b.oprnamespace = 'pg_catalog'::regnamespace AND b.oid <> o.oid) FROM pg_operator AS o \
         WHERE o.oid >= 16384 AND oprcode <> 0"
            .to_owned(),
        "SELECT 'c', castsource, casttarget, castfunc::oid FROM pg_cast WHERE oid >= 16384 AND castfunc <> 0".to_owned(),
        types(),
        format!(
            "SELECT 'd', contypid, {} FROM pg_constraint WHERE contypid <> 0 AND oid >= 16384 AND conbin IS NOT NULL",
            refs("conbin")
        ),
        "SELECT 'r', oid, relname, relnamespace, relkind, relpersistence, reltype, relrowsecurity, relispartition \
         FROM pg_class \
         WHERE oid >= 16384 AND relpersistence <> 't' AND relkind IN ('r', 'v', 'm', 'f', 'p', 'S', 'c')"
            .to_owned(),
        format!(
            "SELECT 'k', a.attrelid, string_agg(DISTINCT ({ELEMENT})::text, ' ') FROM pg_attribute AS a \
             JOIN pg_type AS e ON e.oid = a.atttypid \
             WHERE a.atttypid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped GROUP BY 2"
        ),
        "SELECT 'i', inhparent, inhrelid FROM pg_inherits".to_owned(),
        format!(
            "SELECT 'l', c.oid FROM pg_class AS c WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p') \
             AND c.relpersistence <> 't' AND ({})",
            leads_on()
        ),
        format!(
            "SELECT 'w', r.ev_class, {}, CASE WHEN r.ev_action::text ~ '{ASKS_SETTING}' THEN pg_get_viewdef(r.ev_class) END \
             FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class \
             WHERE r.ev_type = '1' AND r.oid >= 16384 AND c.relkind = 'v'",
            refs("r.ev_action")
        ),
        format!(
            "SELECT 'p', polrelid, {}, CASE WHEN polqual::text ~ '{ASKS_SETTING}' \
             THEN 'SELECT ' || pg_get_expr(polqual, polrelid) END \
             FROM pg_policy WHERE polcmd IN ('r', '*') AND polqual IS NOT NULL",
            refs("polqual")
        ),
        "SELECT 's', r.rolname, s.setdatabase <> 0, substr(c, 13) FROM pg_db_role_setting AS s \
         LEFT JOIN pg_roles AS r ON r.oid = s.setrole CROSS JOIN unnest(s.setconfig) AS c \
         WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) \
         AND c LIKE 'search\\_path=%'"
            .to_owned(),
    ];
    for part in parts {
        sql.push_str(&part);
        sql.push(';');
    }
    if server_path {
        sql.push_str("SELECT 's', NULL, false, reset_val FROM pg_settings WHERE name = 'search_path';");
    }
    sql.push_str("COMMIT");
    sql
}

/// Whether what is written to a table may change others, or runs code of users: by triggers, but for those that only check
/// a foreign key, by rules, and by expressions over what users made, which have OIDs of five digits and more.
fn leads_on() -> String {
    let of_users = |tree: &str| format!("{tree}::text ~ ':(funcid|opfuncid|opno) \\d{{5,}}'");
    format!(
        "EXISTS (SELECT FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid WHERE t.tgrelid = c.oid \
          AND NOT (p.oid < 16384 AND p.proname ~ '^(RI_FKey_(check|noaction|restrict)_|unique_key_recheck$)')) \
         OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid) \
         OR EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid) \
         OR EXISTS (SELECT FROM pg_attrdef WHERE adrelid = c.oid AND {}) \
         OR EXISTS (SELECT FROM pg_constraint WHERE conrelid = c.oid AND {}) \
         OR EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND ({} OR {})) \
         OR EXISTS (SELECT FROM pg_attribute AS a JOIN pg_type AS e ON e.oid = a.atttypid \
          WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND e.oid >= 16384 AND e.typtype <> 'e')",
        of_users("adbin"),
        of_users("conbin"),
        of_users("indexprs"),
        of_users("indpred"),
    )
}

/// Bodies of those labelled volatile are not asked for: they go to the primary whatever they do.
fn functions(version: u32) -> String {
    // SQL functions of `BEGIN ATOMIC` came with 14
    let (bound, unbound) = match version {
        ..14 => ("NULL, NULL".to_owned(), "true"),
        _ => (
            format!(
                "CASE WHEN p.provolatile <> 'v' AND p.prosqlbody IS NOT NULL THEN {} END, \
                 CASE WHEN p.prosqlbody::text ~ '{ASKS_SETTING}' THEN pg_get_function_sqlbody(p.oid) END",
                refs("p.prosqlbody")
            ),
            "p.prosqlbody IS NULL",
        ),
    };
    let defaults = refs("p.proargdefaults");
    format!(
        "SELECT 'f', p.oid, p.proname, p.pronamespace, p.provolatile, p.prokind, l.lanname, \
         greatest(p.pronargs - p.pronargdefaults - (p.provariadic <> 0)::int, 0), coalesce(p.proargtypes[0], 0), \
         (SELECT string_agg(DISTINCT ({ELEMENT})::text, ' ') FROM pg_type AS e WHERE e.oid >= 16384 \
          AND e.oid = ANY (p.proargtypes::oid[] || coalesce(p.proallargtypes, '{{}}') || p.prorettype)), \
         (SELECT substr(c, 13) FROM unnest(p.proconfig) AS c WHERE c LIKE 'search\\_path=%'), \
         EXISTS (SELECT FROM pg_proc AS b WHERE b.proname = p.proname AND b.proargtypes = p.proargtypes \
          AND b.pronamespace = 'pg_catalog'::regnamespace AND b.oid <> p.oid), \
         CASE WHEN p.proargdefaults IS NOT NULL THEN {defaults} END, \
         CASE WHEN p.provolatile <> 'v' AND l.lanname IN ('sql', 'plpgsql') AND {unbound} THEN p.prosrc END, {bound}, \
         CASE WHEN l.lanname = 'internal' THEN (SELECT string_agg(b.oid::text, ' ') FROM pg_proc AS b \
          WHERE b.oid < 16384 AND b.prosrc = p.prosrc AND b.prolang = p.prolang) END, \
         CASE WHEN p.provariadic = 0 THEN p.pronargs END, \
         CASE WHEN p.prosecdef OR p.proconfig IS NOT NULL THEN (SELECT string_agg(n.oid::text, ' ') FROM pg_namespace AS n \
          JOIN pg_roles AS r ON r.rolname = n.nspname WHERE (p.prosecdef AND r.oid = p.proowner) \
          OR EXISTS (SELECT FROM unnest(p.proconfig) AS c WHERE c IN ('role=' || r.rolname, 'session_authorization=' || r.rolname))) END \
         FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang WHERE p.oid >= 16384 AND p.prokind <> 'p'"
    )
}

fn types() -> String {
    format!(
        "SELECT 't', t.oid, t.typname, t.typnamespace, \
         array_to_string(ARRAY (SELECT f FROM unnest(ARRAY[t.typinput::oid, t.typoutput::oid, t.typreceive::oid, \
          t.typsend::oid, r.rngcanonical::oid, r.rngsubdiff::oid]) AS f WHERE f >= 16384 UNION \
          SELECT a.amproc::oid FROM pg_opclass AS o JOIN pg_amproc AS a ON a.amprocfamily = o.opcfamily \
          WHERE o.oid >= 16384 AND o.opcintype = t.oid AND a.amproc >= 16384), ' '), \
         (SELECT string_agg(DISTINCT ({ELEMENT})::text, ' ') FROM pg_type AS e \
          WHERE e.oid >= 16384 AND e.oid IN (t.typbasetype, r.rngsubtype)) \
         FROM pg_type AS t LEFT JOIN pg_range AS r ON r.rngtypid = t.oid \
         WHERE t.oid >= 16384 AND t.typinput <> 'array_in'::regproc AND (t.typtype IN ('b', 'd', 'e', 'r', 'm') \
          OR EXISTS (SELECT FROM pg_opclass AS o WHERE o.oid >= 16384 AND o.opcintype = t.oid))"
    )
}
