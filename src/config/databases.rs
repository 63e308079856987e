//! `[[databases]]` with their nodes, and `[[users]]`.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::file::Expect;
use super::listen::TLS_MODES;
use super::pool;
use super::section::Section;
use super::{Database, Node, NodeRole, Pool, PrimaryReads, Routing, TlsMode, User, defaults};

/// Names under which the admin console answers.
const CONSOLE_NAMES: [&str; 2] = ["pgweir", "pgbouncer"];

const ROLES: [(&str, NodeRole); 3] =
    [("primary", NodeRole::Primary), ("replica", NodeRole::Replica), ("auto", NodeRole::Auto)];

pub(super) fn databases(root: &Section<'_, '_>, base: &Arc<Pool>, routing: &Routing) -> Vec<Database> {
    let hint = "begin one with [[databases]] and give it a name and a node";
    let sections = root.required_sections("databases", hint);
    let mut names = BTreeSet::new();
    sections.into_iter().filter_map(|s| database(&s, base, routing, &mut names)).collect()
}

fn database(
    s: &Section<'_, '_>,
    base: &Arc<Pool>,
    routing: &Routing,
    names: &mut BTreeSet<String>,
) -> Option<Database> {
    let name = s.required_text("name", "it is what clients ask for; \"*\" is any other name");
    if let Some(name) = &name {
        if CONSOLE_NAMES.contains(&name.as_str()) {
            let complaint = format_args!("cannot be {name:?}, which is the admin console");
            s.error("name", complaint, "clients may ask for another name: \"dbname\" is the server's");
        } else if !names.insert(name.clone()) {
            let complaint = format_args!("is used twice: {name:?}");
            s.error("name", complaint, "give the nodes of both to one of them");
        }
    }
    let dbname = s.text_or_none("dbname");
    let tls = s.choice("tls", TlsMode::Prefer, &server_tls_modes());
    let ca = s.path("ca", Expect::ReadableFile);
    if ca.is_some() && tls < TlsMode::VerifyCa {
        let hint = "nothing is verified below tls = \"verify-ca\" and \"verify-full\"";
        s.warning("ca", "is not used", hint);
    }
    let own = s.section("pool");
    let pool = if s.has("pool") { Arc::new(pool::pool(&own, base)) } else { Arc::clone(base) };
    let nodes = nodes(s, routing);
    Some(Database { name: name?, dbname, tls, ca, pool, nodes })
}

/// `allow` (plain text first, TLS when refused) is for listening only.
fn server_tls_modes() -> Vec<(&'static str, TlsMode)> {
    TLS_MODES.into_iter().filter(|(_, mode)| *mode != TlsMode::Allow).collect()
}

fn nodes(database: &Section<'_, '_>, routing: &Routing) -> Vec<Node> {
    let hint = "begin one with [[databases.nodes]] and give it a host and a role";
    let sections = database.required_sections("nodes", hint);
    if sections.is_empty() {
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut primary_at = None;
    let mut complete = true;
    let mut nodes: Vec<Node> = Vec::new();
    for s in &sections {
        let Some(node) = node(s, routing) else {
            complete = false;
            continue;
        };
        if !seen.insert((node.host.to_ascii_lowercase(), node.port)) {
            let complaint = format_args!("is given twice: {} port {}", node.host, node.port);
            s.error("host", complaint, "give a node once; \"weight\" is its share");
        }
        if node.role == NodeRole::Primary {
            if let Some(line) = primary_at {
                let complaint = format_args!("makes a second primary; one is in line {line}");
                s.error("role", complaint, "role = \"auto\" asks the server which it is");
            }
            primary_at.get_or_insert(s.line_of("role"));
        }
        nodes.push(node);
    }
    // a faulty node may be what is missing here
    if complete {
        check_roles(database, &nodes, routing);
    }
    nodes
}

fn node(s: &Section<'_, '_>, routing: &Routing) -> Option<Node> {
    let host = s.required_text("host", "the server's name or address, or its socket's directory");
    let host = host.filter(|host| match check_host(host) {
        Ok(()) => true,
        Err((complaint, hint)) => {
            s.error("host", complaint, hint);
            false
        }
    });
    let port = s.integer("port", u64::from(defaults::NODE_PORT), 1..=u64::from(u16::MAX));
    let weight = s.integer("weight", u64::from(defaults::NODE_WEIGHT), 0..=1_000_000);
    let role = s.choice("role", NodeRole::Auto, &ROLES);
    if !s.has("role") {
        s.missing("role", "it may be primary, replica, auto (the server is asked)");
        return None;
    }
    if role == NodeRole::Primary && s.has("weight") && routing.primary_reads != PrimaryReads::Always {
        let hint = "routing.primary_reads = \"always\" gives the primary a share of the reads";
        s.warning("weight", "is not used for a primary", hint);
    }
    Some(Node {
        host: host?,
        port: u16::try_from(port).unwrap_or(defaults::NODE_PORT),
        role,
        weight: u32::try_from(weight).unwrap_or(defaults::NODE_WEIGHT),
    })
}

fn check_roles(database: &Section<'_, '_>, nodes: &[Node], routing: &Routing) {
    if nodes.iter().all(|node| node.role == NodeRole::Replica) {
        let hint = "writes need one: role = \"primary\", or \"auto\" for nodes that take turns";
        database.error("nodes", "has no primary", hint);
    }
    let readers = || nodes.iter().filter(|node| node.role != NodeRole::Primary);
    if readers().next().is_some() && readers().all(|node| node.weight == 0) {
        let hint = "give one a weight of 1 or more";
        database.warning("nodes", "has no replica that takes reads: each has weight 0", hint);
    }
    if readers().next().is_none() && routing.primary_reads == PrimaryReads::Never {
        let hint = "routing.primary_reads = \"never\" keeps reads off the primary";
        database.warning("nodes", "has no replica, so no node may serve plain reads", hint);
    }
}

/// A socket's directory, a name, or an address without brackets and port.
fn check_host(host: &str) -> Result<(), (&'static str, &'static str)> {
    if host.starts_with('/') || host.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    if host.contains("://") {
        return Err(("is a URL", "write the server's name alone, without scheme, user and database"));
    }
    if host.starts_with('[') {
        return Err(("has brackets", "write an IPv6 address without them, and the port as \"port\""));
    }
    if host.contains(':') {
        return Err(("has a colon in it", "write the port as \"port\""));
    }
    check_host_name(host).map_err(|why| (why, "write a name, an address, or a path that begins with /"))
}

/// A host name as RFC 1123 has it, and underscores, which container networks allow.
pub(super) fn check_host_name(host: &str) -> Result<(), &'static str> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if host.is_empty() {
        return Err("has no host");
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if host.len() > 253 || !name.split('.').all(is_label) {
        return Err("has a host that is no name or address");
    }
    // "10.0.0.256" and "1234" would be asked of the resolver, and never found
    if name.bytes().all(|b| b.is_ascii_digit() || b == b'.') && name.parse::<std::net::Ipv4Addr>().is_err() {
        return Err("has a host that is no IPv4 address");
    }
    Ok(())
}

pub(super) fn users(root: &Section<'_, '_>) -> Vec<User> {
    let mut names = BTreeSet::new();
    let sections = root.sections("users");
    let users = sections.into_iter().filter_map(|s| {
        let name = s.required_text("name", "the role's name on the servers");
        if let Some(name) = &name
            && !names.insert(name.clone())
        {
            s.error("name", format_args!("is used twice: {name:?}"), "give each user once");
        }
        let password = s.secret("password");
        if let Some(secret) = &password
            && is_broken_verifier(&secret.0)
        {
            let hint = "it is SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>";
            s.error("password", "begins like a SCRAM verifier and is none", hint);
        }
        let pool_mode = s.choice("pool_mode", None, &of_user(&pool::MODES));
        let pool_pin = s.choice("pool_pin", None, &of_user(&pool::PINS));
        let replication = s.boolean("replication", false);
        Some(User { name: name?, password, pool_mode, pool_pin, replication })
    });
    users.collect()
}

/// The words of a key of `[pool]` for one user; nothing at all is the database's own.
fn of_user<T: Copy>(words: &[(&'static str, T)]) -> Vec<(&'static str, Option<T>)> {
    let own = words.iter().map(|(word, value)| (*word, Some(*value)));
    own.chain([("", None)]).collect()
}

/// The shape that Postgres's `parse_scram_secret` asks for; it takes anything else for a plain password, which a
/// text that begins so never is.
fn is_broken_verifier(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("SCRAM-SHA-256$") else {
        return false;
    };
    let well_formed = rest.split_once('$').and_then(|(salted, keys)| {
        let (iterations, salt) = salted.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let iterations = iterations.parse::<u32>().ok().filter(|&n| n > 0);
        iterations.filter(|_| is_base64(salt, None) && is_base64(stored, Some(32)) && is_base64(server, Some(32)))
    });
    well_formed.is_none()
}

fn is_base64(text: &str, length: Option<usize>) -> bool {
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    decoded.is_ok_and(|bytes| length.is_none_or(|length| bytes.len() == length))
}
