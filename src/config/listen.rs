//! `[listen]` and `[admin]`: where pgweir itself is reached.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::file::Expect;
use super::number::Zero;
use super::section::Section;
use super::{Admin, Container, Listen, ListenTls, Peer, Secret, TlsMode, databases, defaults};

pub(super) fn listen(s: &Section<'_, '_>, container: &Container) -> Listen {
    let address = s.text("address", defaults::LISTEN_ADDRESS);
    if let Err(why) = check_host_and_port(&address) {
        s.error("address", why, "write it like \"127.0.0.1:6432\", or \"0.0.0.0:6432\" for all");
    }
    let workers = if s.is_auto("workers") {
        container.cpus
    } else {
        usize::try_from(s.integer("workers", 1, 1..=1024)).unwrap_or(1)
    };
    let peer_id = id(s.integer("peer_id", 0, 0..=127));
    Listen {
        address,
        unix_socket_dir: s.path("unix_socket_dir", Expect::Directory),
        max_clients: s.count("max_clients", defaults::MAX_CLIENTS, 1),
        login_timeout: s.duration("login_timeout", defaults::LOGIN_TIMEOUT, Zero::Refused),
        shutdown_grace: s.duration("shutdown_grace", defaults::SHUTDOWN_GRACE, Zero::Allowed),
        workers,
        peer_id,
        peers: peers(s, peer_id),
        tls: listen_tls(&s.section("tls")),
    }
}

/// Ids are checked to fit.
fn id(number: u64) -> u8 {
    u8::try_from(number).unwrap_or(0)
}

fn peers(s: &Section<'_, '_>, own: u8) -> Vec<Peer> {
    let mut seen = BTreeSet::new();
    let sections = s.sections("peers");
    if !sections.is_empty() && own == 0 {
        s.missing("peer_id", "1 to 127: the id by which the peers know this pgweir");
    }
    sections.iter().filter_map(|s| peer(s, &mut seen)).collect()
}

fn peer(s: &Section<'_, '_>, seen: &mut BTreeSet<u8>) -> Option<Peer> {
    let number = id(s.integer("id", 0, 1..=127));
    let address = s.required_text("address", "host:port, where that pgweir listens");
    if !s.has("id") {
        s.missing("id", "1 to 127: that pgweir's listen.peer_id");
    } else if number > 0 && !seen.insert(number) {
        s.error("id", format_args!("is used twice: {number}"), "");
    }
    let address = address?;
    if let Err(why) = check_host_and_port(&address) {
        s.error("address", why, "write it like \"10.0.0.2:6432\"");
    }
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Some(Peer { id: number, host, port: port.parse().ok()? })
}

/// A name or address, a colon, and a port; an IPv6 address stands in brackets.
fn check_host_and_port(address: &str) -> Result<(), &'static str> {
    if address.parse::<SocketAddr>().is_ok() {
        return Ok(());
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err("has no port");
    };
    if port.parse::<u16>().is_err() {
        return Err("has no port from 0 to 65535 after its last colon");
    }
    databases::check_host_name(host)
}

fn listen_tls(s: &Section<'_, '_>) -> ListenTls {
    let tls = ListenTls {
        mode: s.choice("mode", ListenTls::default().mode, &TLS_MODES),
        certificate: s.path("certificate", Expect::ReadableFile),
        private_key: s.path("private_key", Expect::ReadableFile),
        client_ca: s.path("client_ca", Expect::ReadableFile),
    };
    let mode = TLS_MODES.iter().find(|(_, mode)| *mode == tls.mode).map_or("", |(name, _)| name);
    let present = [
        ("certificate", tls.certificate.is_some(), tls.mode != TlsMode::Disable),
        ("private_key", tls.private_key.is_some(), tls.mode != TlsMode::Disable),
        ("client_ca", tls.client_ca.is_some(), tls.mode >= TlsMode::VerifyCa),
    ];
    for (key, given, needed) in present {
        if needed && !given {
            let hint = format!("mode = {mode:?} needs the path of a PEM file there");
            // an empty text or a faulty one is there, but gives no path
            if s.has(key) { s.error(key, "names no file", hint) } else { s.missing(key, hint) }
        } else if given && !needed {
            s.warning(key, format_args!("is not used with mode = {mode:?}"), "");
        }
    }
    tls
}

pub(super) const TLS_MODES: [(&str, TlsMode); 6] = [
    ("disable", TlsMode::Disable),
    ("allow", TlsMode::Allow),
    ("prefer", TlsMode::Prefer),
    ("require", TlsMode::Require),
    ("verify-ca", TlsMode::VerifyCa),
    ("verify-full", TlsMode::VerifyFull),
];

pub(super) fn admin(s: &Section<'_, '_>) -> Admin {
    let users = s.texts("users");
    let mut seen = BTreeSet::new();
    for name in &users {
        if name.is_empty() {
            s.error("users", "has an empty name", "");
        } else if !seen.insert(name) {
            s.warning("users", format_args!("names {name:?} twice"), "");
        }
    }
    let token = s.text_or_none("token").map(Secret);
    Admin { http: admin_http(s), users, token }
}

/// `admin.http` alone.
pub(super) fn admin_http(s: &Section<'_, '_>) -> Option<SocketAddr> {
    let default = Admin::default().http;
    let Some(text) = s.text_if_set("http") else {
        return default;
    };
    if text.is_empty() {
        return None;
    }
    text.parse().map_or_else(
        |_| {
            let hint = "write it like \"127.0.0.1:9432\", or \"0.0.0.0:9432\" for all; \"\" is off";
            s.error("http", "is no IP address with a port", hint);
            default
        },
        Some,
    )
}
