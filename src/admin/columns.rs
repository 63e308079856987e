//! The columns of SHOW: PgBouncer's names, types and order (`admin.c`, `stats.c` of 1.26).
//!
//! A name is of type text unless it ends in `/i` (int4), `/q` (int8), `/n` (numeric) or `/b` (bytea).

/// Name and type oid.
pub type Column = (&'static str, u32);

/// `pg_type` oids.
pub(super) const TEXT: u32 = 25;
pub(super) const INT4: u32 = 23;
const INT8: u32 = 20;
const NUMERIC: u32 = 1700;
const BYTEA: u32 = 17;

/// The columns of several lists in turn.
pub(super) fn columns(lists: &[&'static str]) -> Vec<Column> {
    lists.iter().flat_map(|list| list.split_whitespace()).map(column).collect()
}

fn column(word: &'static str) -> Column {
    match word.split_once('/') {
        None => (word, TEXT),
        Some((name, "i")) => (name, INT4),
        Some((name, "q")) => (name, INT8),
        Some((name, "n")) => (name, NUMERIC),
        Some((name, _)) => (name, BYTEA),
    }
}

pub(super) const DATABASES: &str = "\
    name host port/i database force_user pool_size/i min_pool_size/i reserve_pool_size/i \
    server_lifetime/i pool_mode load_balance_hosts max_connections/i \
    current_connections/i max_client_connections/i current_client_connections/i paused/i \
    disabled/i";

pub(super) const POOLS: &str = "\
    database user cl_active/i cl_waiting/i cl_active_cancel_req/i \
    cl_waiting_cancel_req/i sv_active/i sv_active_cancel/i sv_being_canceled/i sv_idle/i \
    sv_used/i sv_tested/i sv_login/i maxwait/i maxwait_us/i pool_mode load_balance_hosts";

// PgBouncer gives `id` as int4; ours outgrows that on a busy server within weeks
pub(super) const SOCKETS: &str = "\
    type user database replication state addr port/i local_addr local_port/i \
    connect_time request_time wait/i wait_us/i close_needed/i ptr link remote_pid/i tls \
    application_name prepared_statements/i id/q";

pub(super) const SOCKET_BUFFERS: &str =
    "recv_pos/i pkt_pos/i pkt_remain/i send_pos/i send_remain/i pkt_avail/i send_avail/i";

pub(super) const USERS: &str = "\
    name pool_size reserve_pool_size pool_mode max_user_connections/i \
    current_connections/i max_user_client_connections/i current_client_connections/i";

pub(super) const CONFIG: &str = "key value default changeable";

pub(super) const FDS: &str = "\
    fd/i task user database addr port/i cancel/q link/i client_encoding std_strings \
    datestyle timezone password scram_client_key/b scram_server_key/b";

pub(super) const PEER_POOLS: &str = "\
    peer_id/i cl_active_cancel_req/i cl_waiting_cancel_req/i sv_active_cancel/i \
    sv_login/i";

pub(super) const NODES: &str = "\
    database node role status weight/i share/n lag_ms/n lag_bytes/q lsn connections/i \
    active/i queries/q errors/q probe_ms/n reason";

/// Times in milliseconds.
pub(super) const STATEMENTS: &str = "\
    fingerprint database calls/q errors/q rows/q bytes/q cache_hits/q slow/q \
    total_time/n mean/n p50/n p95/n p99/n max/n wait_mean/n wait_p95/n nodes cache_misses/q cache_refused statement";

/// Counts by cause and by reason: `name=count`, without those of none.
pub(super) const CACHE: &str = "\
    database mode reason entries/q bytes/q max_entries/q max_bytes/q hits/q misses/q hit_rate/n \
    shared/q stored/q evicted/q expired/q invalidated refused verified/q differences/q \
    definitions/q definitions_bytes/q plans/q \
    fleet leader takeovers/q \
    store store_reason store_hits/q store_misses/q store_failed/q store_refused store_stored/q store_dropped/q \
    store_bytes_read/q store_bytes_written/q stale/q rules_missing";

pub(super) const SLOW: &str = "\
    ts database user application_name client fingerprint duration_ms/n wait_ms/n \
    execute_ms/n rows/q bytes/q node role cached route_reason transaction error \
    traceparent statement";

pub(super) const TOTALS: &str = "\
    total_server_assignment_count/n total_xact_count/n total_query_count/n \
    total_received/n total_sent/n total_xact_time/n total_query_time/n total_wait_time/n \
    total_client_parse_count/n total_server_parse_count/n total_bind_count/n \
    total_client_login_count/n";

pub(super) const AVERAGES: &str = "\
    avg_server_assignment_count/n avg_xact_count/n avg_query_count/n avg_recv/n \
    avg_sent/n avg_xact_time/n avg_query_time/n avg_wait_time/n avg_client_parse_count/n \
    avg_server_parse_count/n avg_bind_count/n avg_client_login_count/n";

pub(super) const STATS_TOTALS: &str = "\
    server_assignment_count/n xact_count/n query_count/n bytes_received/n bytes_sent/n \
    xact_time/n query_time/n wait_time/n client_parse_count/n server_parse_count/n \
    bind_count/n client_login_count/n";

// three of them have a prefix there, and only there
pub(super) const STATS_AVERAGES: &str = "\
    server_assignment_count/n xact_count/n query_count/n bytes_received/n bytes_sent/n \
    xact_time/n query_time/n wait_time/n avg_client_parse_count/n \
    avg_server_parse_count/n avg_bind_count/n client_login_count/n";

/// The rows of SHOW TOTALS, which PgBouncer names after its fields.
pub(super) const TOTALS_NAMES: &str = "\
    server_assignment_count xact_count query_count client_bytes server_bytes xact_time \
    query_time wait_time ps_client_parse_count ps_server_parse_count ps_bind_count \
    client_login_count";

pub(super) const LISTS: &str = "list items/i";

pub(super) const MEM: &str = "name size/i used/i free/i memtotal/i";

pub(super) const DNS_HOSTS: &str = "hostname ttl/q addrs";

pub(super) const DNS_ZONES: &str = "zonename serial/q count/i";

pub(super) const PEERS: &str = "peer_id/i host port/i pool_size/i";

pub(super) const SHOW_TOTALS: &str = "name value/n";

pub(super) const STATE: &str = "key value";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_from_the_names() {
        let all = columns(&["a b/i", "c/q d/n e/b"]);
        assert_eq!(all, [("a", 25), ("b", 23), ("c", 20), ("d", 1700), ("e", 17)]);
    }
}
