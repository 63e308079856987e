//! The operators, types and catalogs that every server has.

/// True for an operator name of pg_catalog, and for `=>` and `!=`, which the grammar reads.
pub(crate) fn is_operator(name: &str) -> bool {
    OPERATORS.binary_search(&name).is_ok()
}

/// True for a type of pg_catalog, or the first word of the SQL standard's spelling of one, or the array of one.
pub(crate) fn is_type(name: &str) -> bool {
    let element = name.strip_prefix('_').unwrap_or(name);
    TYPES.binary_search(&element).is_ok()
}

/// True for a system view or table whose rows are one node's or one session's own.
pub(crate) fn is_node_local(name: &str) -> bool {
    let statistics = ["pg_stat_", "pg_statio_", "pg_replication_"];
    statistics.iter().any(|prefix| name.starts_with(prefix)) || NODE_LOCAL.binary_search(&name).is_ok()
}

/// True for the schema of a session's temporary objects, by its alias or its own name.
pub(crate) fn is_temporary_schema(name: &str) -> bool {
    name.strip_prefix("pg_temp").is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// True for names that only a sequence has as columns; a table that has one goes to the primary too.
pub(crate) fn is_sequence_column(name: &str) -> bool {
    matches!(name, "last_value" | "is_called" | "log_cnt")
}

#[rustfmt::skip]
static OPERATORS: &[&str] = &[
    "!!", "!=", "!~", "!~*", "!~~", "!~~*", "#", "##", "#-", "#>", "#>>", "%", "&", "&&", "&<", "&<|", "&>", "*",
    "*<", "*<=", "*<>", "*=", "*>", "*>=", "+", "-", "->", "->>", "-|-", "/", "<", "<->", "<<", "<<=", "<<|", "<=",
    "<>", "<@", "<^", "=", "=>", ">", ">=", ">>", ">>=", ">^", "?", "?#", "?&", "?-", "?-|", "?|", "?||", "@",
    "@-@", "@>", "@?", "@@", "@@@", "^", "^@", "|", "|&>", "|/", "|>>", "||", "||/", "~", "~*", "~<=~", "~<~", "~=",
    "~>=~", "~>~", "~~", "~~*",
];

#[rustfmt::skip]
static TYPES: &[&str] = &[
    "aclitem", "bigint", "bit", "bool", "boolean", "box", "bpchar", "bytea", "char", "character", "cid", "cidr",
    "circle", "cstring", "date", "datemultirange", "daterange", "dec", "decimal", "double", "float", "float4",
    "float8", "gtsvector", "inet", "int", "int2", "int2vector", "int4", "int4multirange", "int4range", "int8",
    "int8multirange", "int8range", "integer", "interval", "json", "jsonb", "jsonpath", "line", "lseg", "macaddr",
    "macaddr8", "money", "name", "national", "nchar", "numeric", "nummultirange", "numrange", "oid", "oidvector",
    "path", "pg_lsn", "pg_snapshot", "point", "polygon", "real", "record", "refcursor", "regclass", "regcollation",
    "regconfig", "regdictionary", "regnamespace", "regoper", "regoperator", "regproc", "regprocedure", "regrole",
    "regtype", "smallint", "text", "tid", "time", "timestamp", "timestamptz", "timetz", "tsmultirange", "tsquery",
    "tsrange", "tstzmultirange", "tstzrange", "tsvector", "txid_snapshot", "unknown", "uuid", "varbit", "varchar",
    "void", "xid", "xid8", "xml",
];

#[rustfmt::skip]
static NODE_LOCAL: &[&str] = &[
    "pg_aios", "pg_backend_memory_contexts", "pg_cursors", "pg_file_settings", "pg_hba_file_rules",
    "pg_ident_file_mappings", "pg_largeobject", "pg_largeobject_metadata", "pg_locks", "pg_prepared_statements",
    "pg_prepared_xacts", "pg_sequences", "pg_settings", "pg_shmem_allocations", "pg_shmem_allocations_numa",
    "pg_wait_events",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        for table in [OPERATORS, TYPES, NODE_LOCAL] {
            assert!(table.is_sorted_by(|a, b| a < b));
        }
    }

    #[test]
    fn knows_names() {
        assert!(is_operator("->>") && is_operator("!~~*") && !is_operator("<=>") && !is_operator("==="));
        assert!(is_type("jsonb") && is_type("integer") && is_type("regclass") && !is_type("mood"));
        assert!(is_node_local("pg_stat_activity") && is_node_local("pg_locks") && !is_node_local("pg_class"));
        assert!(!is_node_local("pg_stats") && !is_node_local("pg_statistic"));
        assert!(
            is_temporary_schema("pg_temp") && is_temporary_schema("pg_temp_3") && !is_temporary_schema("pg_temporal")
        );
    }
}
