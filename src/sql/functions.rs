//! What is known of the functions of pg_catalog, by name: the worst of all that share the name, from Postgres 12 to 18.
//!
//! Checked against pg_proc: nothing volatile there stands in a harmless table but [`Class::VolatileHarmless`]. A user's
//! function of the same name earlier in search_path is not seen here; the catalog snapshot must rule that out.

/// What calling a function means for routing, caching and the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Any node, cacheable.
    Immutable,
    /// Any node; cacheable with the parameters that shape results in the key.
    Stable,
    /// Any node, never cached: looks at the clock, the session or the catalogs.
    Transient,
    /// Any node, never cached: volatile by label, harmless by decision.
    VolatileHarmless,
    /// nextval, currval, lastval, setval and kin.
    Sequence,
    /// An advisory lock of the session.
    SessionLock,
    /// A lock that ends with the transaction, or the release of one lock.
    Lock,
    /// pg_advisory_unlock_all.
    UnlockAll,
    /// set_config.
    SetConfig,
    /// Runs what only the server sees, or leaves something behind in the session.
    Opaque,
    /// Changes something outside the session, or answers for its own session, transaction or node.
    SideEffect,
}

impl Class {
    /// May a standby run it?
    pub fn is_harmless(self) -> bool {
        matches!(self, Class::Immutable | Class::Stable | Class::Transient | Class::VolatileHarmless)
    }

    /// May its result be kept?
    pub fn is_cacheable(self) -> bool {
        matches!(self, Class::Immutable | Class::Stable)
    }
}

/// The class of a function of pg_catalog, named in lower case; `None`: nothing is known.
pub fn class(name: &str) -> Option<Class> {
    let tables = [
        (IMMUTABLE, Class::Immutable),
        (STABLE, Class::Stable),
        (TRANSIENT, Class::Transient),
        (VOLATILE_HARMLESS, Class::VolatileHarmless),
        (SEQUENCE, Class::Sequence),
        (SESSION_LOCK, Class::SessionLock),
        (LOCK, Class::Lock),
        (OPAQUE, Class::Opaque),
        (SIDE_EFFECT, Class::SideEffect),
    ];
    match name {
        "set_config" => return Some(Class::SetConfig),
        "pg_advisory_unlock_all" => return Some(Class::UnlockAll),
        // each node counts for itself
        _ if name.starts_with("pg_stat_get_") => return Some(Class::SideEffect),
        // a server being upgraded alone runs them
        _ if name.starts_with("binary_upgrade_") => return Some(Class::SideEffect),
        _ => {}
    }
    tables.into_iter().find(|(table, _)| table.binary_search(&name).is_ok()).map(|(_, class)| class)
}

/// Every table with its class, for tests against a server's pg_proc.
pub fn tables() -> impl Iterator<Item = (&'static str, Class)> {
    let harmless = [
        (IMMUTABLE, Class::Immutable),
        (STABLE, Class::Stable),
        (TRANSIENT, Class::Transient),
        (VOLATILE_HARMLESS, Class::VolatileHarmless),
    ];
    harmless.into_iter().flat_map(|(table, class)| table.iter().map(move |&name| (name, class)))
}

/// Their result follows from their arguments.
#[rustfmt::skip]
static IMMUTABLE: &[&str] = &[
    "abbrev", "abs", "acldefault", "acos", "acosd", "acosh", "any_value", "area", "array_agg", "array_append",
    "array_cat", "array_dims", "array_fill", "array_length", "array_lower", "array_ndims", "array_position",
    "array_positions", "array_prepend", "array_remove", "array_replace", "array_reverse", "array_sort",
    "array_to_tsvector", "array_upper", "arraycontained", "arraycontains", "arrayoverlap", "ascii", "asin", "asind",
    "asinh", "atan", "atan2", "atan2d", "atand", "atanh", "avg", "bit", "bit_and", "bit_count", "bit_length",
    "bit_or", "bit_xor", "bool", "bool_and", "bool_or", "bound_box", "box", "bpchar", "broadcast", "bytea",
    "cardinality", "casefold", "cash_words", "cbrt", "ceil", "ceiling", "center", "char", "char_length",
    "character_length", "chr", "cidr", "circle", "corr", "cos", "cosd", "cosh", "cot", "cotd", "count", "covar_pop",
    "covar_samp", "crc32", "crc32c", "cume_dist", "date_bin", "date_cmp_timestamp", "datemultirange", "daterange",
    "decode", "degrees", "dense_rank", "dexp", "diagonal", "diameter", "div", "dlog1", "dlog10", "dround", "dtrunc",
    "encode", "erf", "erfc", "every", "exp", "factorial", "family", "first_value", "float4", "float8", "floor",
    "gamma", "gcd", "generate_subscripts", "get_bit", "get_byte", "hashtext", "hashtextextended", "height", "host",
    "hostmask", "icu_unicode_version", "inet_merge", "inet_same_family", "initcap", "int2", "int4",
    "int4multirange", "int4range", "int8", "int8multirange", "int8range", "interval", "interval_hash",
    "interval_hash_extended", "is_normalized", "isclosed", "isempty", "isfinite", "ishorizontal", "isopen",
    "isparallel", "isperp", "isvertical", "json_array_elements", "json_array_elements_text", "json_array_length",
    "json_each", "json_each_text", "json_extract_path", "json_extract_path_text", "json_object",
    "json_object_field", "json_object_field_text", "json_object_keys", "json_strip_nulls", "json_typeof",
    "jsonb_array_elements", "jsonb_array_elements_text", "jsonb_array_length", "jsonb_concat", "jsonb_contained",
    "jsonb_contains", "jsonb_delete", "jsonb_delete_path", "jsonb_each", "jsonb_each_text", "jsonb_exists",
    "jsonb_exists_all", "jsonb_exists_any", "jsonb_extract_path", "jsonb_extract_path_text", "jsonb_hash",
    "jsonb_hash_extended", "jsonb_insert", "jsonb_object", "jsonb_object_agg", "jsonb_object_field",
    "jsonb_object_field_text", "jsonb_object_keys", "jsonb_path_exists", "jsonb_path_match", "jsonb_path_query",
    "jsonb_path_query_array", "jsonb_path_query_first", "jsonb_pretty", "jsonb_set", "jsonb_set_lax",
    "jsonb_strip_nulls", "jsonb_typeof", "justify_days", "justify_hours", "justify_interval", "lag", "last_value",
    "lcm", "lead", "left", "lgamma", "like", "like_escape", "line", "ln", "log", "log10", "lower", "lower_inc",
    "lower_inf", "lpad", "lseg", "ltrim", "macaddr", "macaddr8", "macaddr8_set7bit", "make_date", "make_interval",
    "make_time", "make_timestamp", "makeaclitem", "masklen", "max", "md5", "min", "min_scale", "mod", "mode",
    "multirange", "name", "nameconcatoid", "netmask", "network", "normalize", "notlike", "npoints", "nth_value",
    "ntile", "num_nonnulls", "num_nulls", "numeric_div_trunc", "numeric_exp", "numeric_ln", "numeric_log",
    "numeric_sqrt", "nummultirange", "numnode", "numrange", "octet_length", "oid", "overlay", "parse_ident", "path",
    "pclose", "percent_rank", "percentile_cont", "percentile_disc", "pg_encoding_max_length", "pg_lsn",
    "pg_lsn_hash", "pg_lsn_hash_extended", "pg_size_bytes", "pg_size_pretty", "pg_snapshot_xip", "pg_snapshot_xmax",
    "pg_snapshot_xmin", "pg_visible_in_snapshot", "pg_wal_lsn_diff", "pi", "point", "polygon", "popen", "position",
    "pow", "power", "querytree", "quote_ident", "radians", "radius", "range_agg", "range_intersect_agg",
    "range_merge", "rank", "regexp_count", "regexp_instr", "regexp_like", "regexp_match", "regexp_matches",
    "regexp_replace", "regexp_split_to_array", "regexp_split_to_table", "regexp_substr", "regr_avgx", "regr_avgy",
    "regr_count", "regr_intercept", "regr_r2", "regr_slope", "regr_sxx", "regr_sxy", "regr_syy", "repeat",
    "replace", "reverse", "right", "round", "row_number", "rpad", "rtrim", "satisfies_hash_partition", "scale",
    "set_bit", "set_byte", "set_masklen", "setweight", "sha224", "sha256", "sha384", "sha512", "sign",
    "similar_escape", "similar_to_escape", "sin", "sind", "sinh", "slope", "split_part", "sqrt", "starts_with",
    "stddev", "stddev_pop", "stddev_samp", "string_agg", "string_to_array", "string_to_table", "strip", "strpos",
    "substr", "substring", "sum", "tan", "tand", "tanh", "text", "textlen", "time_hash", "time_hash_extended",
    "timestamp_cmp_date", "timestamp_hash", "timestamp_hash_extended", "timetz_hash", "timetz_hash_extended",
    "to_ascii", "to_bin", "to_hex", "to_oct", "translate", "trim_array", "trim_scale", "trunc", "ts_delete",
    "ts_filter", "ts_rank", "ts_rank_cd", "tsmultirange", "tsquery_phrase", "tsrange", "tstzmultirange",
    "tstzrange", "tsvector_to_array", "txid_snapshot_xip", "txid_snapshot_xmax", "txid_snapshot_xmin",
    "txid_visible_in_snapshot", "unicode_assigned", "unicode_version", "unistr", "unnest", "upper", "upper_inc",
    "upper_inf", "uuid_extract_timestamp", "uuid_extract_version", "uuid_hash", "uuid_hash_extended", "var_pop",
    "var_samp", "varbit", "varchar", "variance", "width", "width_bucket", "xid", "xml_is_well_formed_content",
    "xml_is_well_formed_document", "xmlagg", "xmlcomment", "xmlconcat2", "xmlexists", "xmltext", "xmlvalidate",
    "xpath", "xpath_exists",
];

/// Their result follows from their arguments, the rows and parameters that shape a result (TimeZone, DateStyle,
/// default_text_search_config, extra_float_digits…).
#[rustfmt::skip]
static STABLE: &[&str] = &[
    "aclexplode", "array_to_json", "array_to_string", "concat", "concat_ws", "convert", "convert_from", "convert_to",
    "date", "date_add", "date_part", "date_subtract", "date_trunc", "enum_first", "enum_last", "enum_range", "extract",
    "format", "generate_series", "getdatabaseencoding", "json_agg", "json_agg_strict", "json_array", "json_arrayagg",
    "json_build_array", "json_build_object", "json_exists", "json_object_agg", "json_object_agg_strict",
    "json_object_agg_unique", "json_object_agg_unique_strict", "json_objectagg", "json_populate_record",
    "json_populate_recordset", "json_query", "json_scalar", "json_serialize", "json_table", "json_to_record",
    "json_to_recordset", "json_to_tsvector", "json_value", "jsonb_agg", "jsonb_agg_strict", "jsonb_build_array",
    "jsonb_build_object", "jsonb_object_agg_strict", "jsonb_object_agg_unique", "jsonb_object_agg_unique_strict",
    "jsonb_path_exists_tz", "jsonb_path_match_tz", "jsonb_path_query_array_tz", "jsonb_path_query_first_tz",
    "jsonb_path_query_tz", "jsonb_populate_record", "jsonb_populate_record_valid", "jsonb_populate_recordset",
    "jsonb_to_record", "jsonb_to_recordset", "jsonb_to_tsvector", "length", "make_timestamptz", "money", "numeric",
    "oidvectortypes", "overlaps", "pg_basetype", "pg_char_to_encoding", "pg_collation_for", "pg_column_size",
    "pg_encoding_to_char", "pg_mcv_list_items", "pg_typeof", "phraseto_tsquery", "plainto_tsquery", "quote_literal",
    "quote_nullable", "row_to_json", "time", "timestamp", "timestamptz", "timezone", "to_char", "to_date",
    "to_json", "to_jsonb", "to_number", "to_timestamp", "to_tsquery", "to_tsvector", "ts_debug", "ts_headline",
    "ts_lexize", "ts_parse", "ts_token_type", "websearch_to_tsquery", "xml", "xml_is_well_formed",
];

/// They look at the clock, the session or the catalogs: any node answers right, now.
#[rustfmt::skip]
static TRANSIENT: &[&str] = &[
    "age", "col_description", "current_database", "current_schema", "current_schemas", "current_setting",
    "current_user", "format_type", "get_current_ts_config", "getpgusername", "has_any_column_privilege",
    "has_column_privilege", "has_database_privilege", "has_foreign_data_wrapper_privilege",
    "has_function_privilege", "has_language_privilege", "has_largeobject_privilege", "has_parameter_privilege",
    "has_schema_privilege", "has_sequence_privilege", "has_server_privilege", "has_table_privilege",
    "has_tablespace_privilege", "has_type_privilege", "inet_client_addr", "inet_client_port", "mxid_age", "now",
    "obj_description", "pg_available_extension_versions", "pg_available_extensions", "pg_client_encoding",
    "pg_collation_is_visible", "pg_column_compression", "pg_column_is_updatable", "pg_column_toast_chunk_id",
    "pg_config", "pg_conversion_is_visible", "pg_describe_object", "pg_extension_update_paths",
    "pg_filenode_relation", "pg_function_is_visible", "pg_get_acl", "pg_get_catalog_foreign_keys",
    "pg_get_constraintdef", "pg_get_expr", "pg_get_function_arg_default", "pg_get_function_arguments",
    "pg_get_function_identity_arguments", "pg_get_function_result", "pg_get_function_sqlbody", "pg_get_functiondef",
    "pg_get_indexdef", "pg_get_keywords", "pg_get_object_address", "pg_get_partition_constraintdef",
    "pg_get_partkeydef", "pg_get_publication_tables", "pg_get_replica_identity_index", "pg_get_ruledef",
    "pg_get_serial_sequence", "pg_get_statisticsobjdef", "pg_get_statisticsobjdef_columns",
    "pg_get_statisticsobjdef_expressions", "pg_get_triggerdef", "pg_get_userbyid", "pg_get_viewdef", "pg_has_role",
    "pg_identify_object", "pg_identify_object_as_address", "pg_index_column_has_property", "pg_index_has_property",
    "pg_indexam_has_property", "pg_opclass_is_visible", "pg_operator_is_visible", "pg_opfamily_is_visible",
    "pg_options_to_table", "pg_partition_root", "pg_relation_filenode", "pg_relation_filepath",
    "pg_relation_is_publishable", "pg_relation_is_updatable", "pg_sequence_parameters", "pg_settings_get_flags",
    "pg_statistics_obj_is_visible", "pg_table_is_visible", "pg_tablespace_databases", "pg_tablespace_location",
    "pg_timezone_abbrevs", "pg_timezone_names", "pg_trigger_depth", "pg_ts_config_is_visible",
    "pg_ts_dict_is_visible", "pg_ts_parser_is_visible", "pg_ts_template_is_visible", "pg_type_is_visible",
    "regclass", "row_security_active", "session_user", "shobj_description", "statement_timestamp", "timetz", "to_regclass",
    "to_regcollation", "to_regnamespace", "to_regoper", "to_regoperator", "to_regproc", "to_regprocedure",
    "to_regrole", "to_regtype", "to_regtypemod", "transaction_timestamp", "version",
];

/// Volatile in pg_proc, yet any node may run them: chance, clock, sizes.
#[rustfmt::skip]
static VOLATILE_HARMLESS: &[&str] = &[
    "array_sample", "array_shuffle", "bernoulli", "clock_timestamp", "current_query", "gen_random_uuid",
    "pg_collation_actual_version", "pg_database_collation_actual_version", "pg_database_size", "pg_indexes_size",
    "pg_jit_available", "pg_partition_ancestors", "pg_partition_tree", "pg_relation_size", "pg_sleep",
    "pg_sleep_for", "pg_sleep_until", "pg_table_size", "pg_tablespace_size", "pg_total_relation_size", "random",
    "random_normal", "system", "timeofday", "uuidv4", "uuidv7",
];

/// State of sequences; a standby runs ahead of the primary's own `last_value`.
#[rustfmt::skip]
static SEQUENCE: &[&str] = &[
    "currval", "lastval", "nextval", "pg_get_sequence_data", "pg_sequence_last_value", "setval",
];

/// Locks that outlive the transaction.
#[rustfmt::skip]
static SESSION_LOCK: &[&str] = &[
    "pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock", "pg_try_advisory_lock_shared",
];

/// Locks of the transaction, and the end of one.
#[rustfmt::skip]
static LOCK: &[&str] = &[
    "pg_advisory_unlock", "pg_advisory_unlock_shared", "pg_advisory_xact_lock", "pg_advisory_xact_lock_shared",
    "pg_try_advisory_xact_lock", "pg_try_advisory_xact_lock_shared",
];

/// They run a text, a cursor, a plugin or the checks of a type named as a value, or leave something that DISCARD ALL does
/// not undo.
#[rustfmt::skip]
static OPAQUE: &[&str] = &[
    "array_in", "cursor_to_xml", "cursor_to_xmlschema", "domain_in", "multirange_in", "pg_backup_start",
    "pg_copy_logical_replication_slot", "pg_copy_physical_replication_slot", "pg_create_logical_replication_slot",
    "pg_create_physical_replication_slot", "pg_input_error_info", "pg_input_is_valid",
    "pg_logical_slot_get_binary_changes", "pg_logical_slot_get_changes", "pg_logical_slot_peek_binary_changes",
    "pg_logical_slot_peek_changes", "pg_replication_origin_session_reset", "pg_replication_origin_session_setup",
    "pg_replication_origin_xact_reset", "pg_replication_origin_xact_setup", "pg_start_backup", "query_to_xml",
    "query_to_xml_and_xmlschema", "query_to_xmlschema", "range_in", "record_in", "setseed", "ts_rewrite", "ts_stat",
];

/// They change something, or answer for their own session, transaction or node.
#[rustfmt::skip]
static SIDE_EFFECT: &[&str] = &[
    "amvalidate", "brin_desummarize_range", "brin_summarize_new_values", "brin_summarize_range", "currtid2",
    "database_to_xml", "database_to_xml_and_xmlschema", "database_to_xmlschema", "gin_clean_pending_list",
    "inet_server_addr", "inet_server_port", "lo_close", "lo_creat", "lo_create", "lo_export", "lo_from_bytea",
    "lo_get", "lo_import", "lo_lseek", "lo_lseek64", "lo_open", "lo_put", "lo_tell", "lo_tell64", "lo_truncate",
    "lo_truncate64", "lo_unlink", "loread", "lowrite", "pg_available_wal_summaries", "pg_backend_pid",
    "pg_backup_stop", "pg_blocking_pids", "pg_cancel_backend", "pg_clear_attribute_stats", "pg_clear_relation_stats",
    "pg_conf_load_time", "pg_control_checkpoint", "pg_control_init", "pg_control_recovery", "pg_control_system",
    "pg_create_restore_point", "pg_current_logfile", "pg_current_snapshot", "pg_current_wal_flush_lsn",
    "pg_current_wal_insert_lsn", "pg_current_wal_lsn", "pg_current_xact_id", "pg_current_xact_id_if_assigned",
    "pg_cursor", "pg_drop_replication_slot", "pg_export_snapshot", "pg_extension_config_dump", "pg_get_aios",
    "pg_get_backend_memory_contexts", "pg_get_loaded_modules", "pg_get_multixact_members", "pg_get_replication_slots",
    "pg_get_shmem_allocations", "pg_get_shmem_allocations_numa", "pg_get_wait_events", "pg_get_wal_replay_pause_state",
    "pg_get_wal_resource_managers", "pg_get_wal_summarizer_state", "pg_hba_file_rules", "pg_ident_file_mappings",
    "pg_import_system_collations", "pg_is_in_recovery", "pg_is_other_temp_schema", "pg_is_wal_replay_paused",
    "pg_isolation_test_session_is_blocked", "pg_last_committed_xact", "pg_last_wal_receive_lsn",
    "pg_last_wal_replay_lsn", "pg_last_xact_replay_timestamp", "pg_listening_channels", "pg_lock_status",
    "pg_log_backend_memory_contexts", "pg_log_standby_snapshot", "pg_logical_emit_message", "pg_ls_archive_statusdir",
    "pg_ls_dir", "pg_ls_logdir", "pg_ls_logicalmapdir", "pg_ls_logicalsnapdir", "pg_ls_replslotdir",
    "pg_ls_summariesdir", "pg_ls_tmpdir", "pg_ls_waldir", "pg_my_temp_schema", "pg_nextoid",
    "pg_notification_queue_usage", "pg_notify", "pg_postmaster_start_time", "pg_prepared_statement",
    "pg_prepared_xact", "pg_promote", "pg_read_binary_file", "pg_read_file", "pg_read_file_old", "pg_reload_conf",
    "pg_replication_origin_advance", "pg_replication_origin_create", "pg_replication_origin_drop",
    "pg_replication_origin_oid", "pg_replication_origin_progress", "pg_replication_origin_session_is_setup",
    "pg_replication_origin_session_progress", "pg_replication_slot_advance", "pg_restore_attribute_stats",
    "pg_restore_relation_stats", "pg_rotate_logfile", "pg_rotate_logfile_old", "pg_safe_snapshot_blocking_pids",
    "pg_show_all_file_settings", "pg_show_all_settings", "pg_show_replication_origin_status", "pg_stat_clear_snapshot",
    "pg_stat_file", "pg_stat_force_next_flush", "pg_stat_have_stats", "pg_stat_reset", "pg_stat_reset_backend_stats",
    "pg_stat_reset_replication_slot", "pg_stat_reset_shared", "pg_stat_reset_single_function_counters",
    "pg_stat_reset_single_table_counters", "pg_stat_reset_slru", "pg_stat_reset_subscription_stats", "pg_stop_backup",
    "pg_stop_making_pinned_objects", "pg_switch_wal", "pg_sync_replication_slots", "pg_terminate_backend",
    "pg_wal_replay_pause", "pg_wal_replay_resume", "pg_wal_summary_contents", "pg_walfile_name",
    "pg_walfile_name_offset", "pg_xact_commit_timestamp", "pg_xact_commit_timestamp_origin", "pg_xact_status",
    "plpgsql_validator", "schema_to_xml", "schema_to_xml_and_xmlschema", "schema_to_xmlschema", "table_to_xml",
    "table_to_xml_and_xmlschema", "table_to_xmlschema", "txid_current", "txid_current_if_assigned",
    "txid_current_snapshot", "txid_status",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_apart() {
        let tables =
            [IMMUTABLE, STABLE, TRANSIENT, VOLATILE_HARMLESS, SEQUENCE, SESSION_LOCK, LOCK, OPAQUE, SIDE_EFFECT];
        for table in tables {
            assert!(table.is_sorted_by(|a, b| a < b), "{table:?}");
        }
        let mut all = tables.concat();
        all.sort_unstable();
        assert!(all.is_sorted_by(|a, b| a < b), "a name stands in two tables");
    }

    #[test]
    fn classes_of_well_known_names() {
        let cases = [
            ("lower", Some(Class::Immutable)),
            ("to_char", Some(Class::Stable)),
            ("now", Some(Class::Transient)),
            ("random", Some(Class::VolatileHarmless)),
            ("nextval", Some(Class::Sequence)),
            ("pg_try_advisory_lock", Some(Class::SessionLock)),
            ("pg_advisory_xact_lock", Some(Class::Lock)),
            ("pg_advisory_unlock_all", Some(Class::UnlockAll)),
            ("set_config", Some(Class::SetConfig)),
            ("query_to_xml", Some(Class::Opaque)),
            ("pg_stat_get_numscans", Some(Class::SideEffect)),
            ("lo_import", Some(Class::SideEffect)),
            ("dblink", None),
            ("Lower", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(class(name), expected, "{name}");
        }
    }
}
