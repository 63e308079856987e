//! The packets that open a connection (protocol documentation, "Start-up", and `ProcessStartupPacket`).

use crate::error::{Fault, sqlstate};
use crate::wire::read::Reader;

pub const SSL_REQUEST: u32 = (1234 << 16) | 5679;
pub const GSSENC_REQUEST: u32 = (1234 << 16) | 5680;
pub const CANCEL_REQUEST: u32 = (1234 << 16) | 5678;

/// `MAX_STARTUP_PACKET_LENGTH` of Postgres.
pub const MAX_PACKET: usize = 10_000;

/// The newest minor version of protocol 3 that pgweir speaks with clients.
pub const NEWEST_MINOR: u16 = 2;

/// One opening packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    Ssl,
    GssEnc,
    Cancel { pid: i32, secret: Vec<u8> },
    Startup(Startup),
}

/// A StartupMessage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    pub minor: u16,
    pub user: String,
    /// The user's name where the client named none.
    pub database: String,
    /// `replication`, where it is asked for and not "off".
    pub replication: Option<String>,
    /// `options`, as sent.
    pub options: Option<String>,
    /// All other parameters, in the order sent: settings for the session.
    pub parameters: Vec<(String, String)>,
    /// `_pq_.` protocol options: none is known.
    pub protocol_options: Vec<String>,
}

impl Startup {
    /// The minor version both sides speak. 3.1 was never given out (Postgres 18 answers it with 3.0).
    pub fn agreed_minor(&self) -> u16 {
        if self.minor >= NEWEST_MINOR { NEWEST_MINOR } else { 0 }
    }

    /// NegotiateProtocolVersion is owed.
    pub fn must_negotiate(&self) -> bool {
        self.minor != self.agreed_minor() || !self.protocol_options.is_empty()
    }
}

/// The packet at the start of `buf` and its length; `Ok(None)` while it is not all there.
pub fn packet(buf: &[u8]) -> Result<Option<(Packet, usize)>, Fault> {
    let mut r = Reader::new(buf);
    let Ok(length) = r.i32() else { return Ok(None) };
    let length = usize::try_from(length).unwrap_or(0);
    if !(8..=MAX_PACKET).contains(&length) {
        return Err(Fault::protocol("invalid length of startup packet"));
    }
    let Some(body) = buf.get(4..length) else { return Ok(None) };
    let mut r = Reader::new(body);
    let code = r.i32()? as u32;
    let packet = match (code, code >> 16) {
        (SSL_REQUEST, _) if r.is_empty() => Packet::Ssl,
        (GSSENC_REQUEST, _) if r.is_empty() => Packet::GssEnc,
        (CANCEL_REQUEST, _) => Packet::Cancel { pid: r.i32()?, secret: r.rest().to_vec() },
        (_, 3) => Packet::Startup(startup((code & 0xffff) as u16, r)?),
        _ => return Err(unsupported(code)),
    };
    Ok(Some((packet, length)))
}

/// The refusal of a packet with this code, as a version that is not spoken.
pub fn unsupported(code: u32) -> Fault {
    let (major, minor) = (code >> 16, code & 0xffff);
    let message = format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{NEWEST_MINOR}");
    Fault::fatal(sqlstate::FEATURE_NOT_SUPPORTED, message)
}

fn startup(minor: u16, mut r: Reader<'_>) -> Result<Startup, Fault> {
    let layout = |_| Fault::protocol("invalid startup packet layout: expected terminator as last byte");
    let mut startup = Startup {
        minor,
        user: String::new(),
        database: String::new(),
        replication: None,
        options: None,
        parameters: Vec::new(),
        protocol_options: Vec::new(),
    };
    loop {
        let name = r.str().map_err(layout)?;
        if name.is_empty() {
            break;
        }
        let value = r.cstr().map_err(layout)?;
        let value = match std::str::from_utf8(value) {
            Ok(value) => value.to_owned(),
            Err(_) => other_bytes(name, value)?,
        };
        match name {
            "user" => startup.user = cut(value),
            "database" => startup.database = cut(value),
            "replication" => startup.replication = asks_for_replication(&value),
            "options" => startup.options = Some(value),
            _ if name.starts_with("_pq_.") => startup.protocol_options.push(name.to_owned()),
            _ => startup.parameters.push((name.to_owned(), value)),
        }
    }
    if !r.is_empty() {
        return Err(Fault::protocol("invalid startup packet layout: expected terminator as last byte"));
    }
    if startup.user.is_empty() {
        let message = "no PostgreSQL user name specified in startup packet";
        return Err(Fault::fatal(sqlstate::INVALID_AUTHORIZATION, message));
    }
    if startup.database.is_empty() {
        startup.database.clone_from(&startup.user);
    }
    Ok(startup)
}

/// A value in another encoding. Names of users and databases are then of none that there is; an application's name is
/// written in ASCII by servers anyway (`pg_clean_ascii`).
fn other_bytes(name: &str, value: &[u8]) -> Result<String, Fault> {
    match name {
        "user" | "database" => Ok(String::from_utf8_lossy(value).into_owned()),
        "application_name" => Ok(value
            .iter()
            .map(|&byte| match byte {
                b' '..=b'~' => char::from(byte).to_string(),
                byte => format!("\\x{byte:02x}"),
            })
            .collect()),
        _ => {
            let message = format!("invalid byte sequence for encoding \"UTF8\" in the startup parameter \"{name}\"");
            Err(Fault::fatal(sqlstate::CHARACTER_NOT_IN_REPERTOIRE, message))
        }
    }
}

/// Longer names than `NAMEDATALEN - 1` are cut without a word.
fn cut(mut name: String) -> String {
    const LONGEST: usize = 63;
    if name.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
        name.truncate(end);
    }
    name
}

fn asks_for_replication(value: &str) -> Option<String> {
    let off = ["", "0", "f", "false", "n", "no", "off"];
    (!off.contains(&value.to_ascii_lowercase().as_str())).then(|| value.to_owned())
}

/// The settings in a startup packet's `options`: the switches of `postgres` (`process_postgres_switches`), split at white
/// space, where a backslash keeps the next byte (`pg_split_opts`). In a name `-` stands for `_`.
///
/// # Errors
/// As Postgres gives them.
pub fn options(text: &str) -> Result<Vec<(String, String)>, Fault> {
    let words = words(text);
    let mut settings = Vec::new();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        at += 1;
        if word == "--" {
            break;
        }
        let Some(mut flags) = word.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            return Err(invalid(word));
        };
        while let Some(flag) = flags.chars().next() {
            flags = &flags[flag.len_utf8()..];
            // getopt stays at a word of which more is to come, and the word before it is blamed.
            let blamed = match flags.is_empty() {
                true => word,
                false => at.checked_sub(2).map_or("postgres", |before| &words[before]),
            };
            if !takes_argument(flag) {
                switch(flag, "", &mut settings).ok_or_else(|| invalid(blamed))??;
                continue;
            }
            let argument = match flags {
                "" => {
                    at += 1;
                    words.get(at - 1).ok_or_else(|| invalid(word))?
                }
                rest => rest,
            };
            switch(flag, argument, &mut settings).ok_or_else(|| invalid(&words[at - 1]))??;
            break;
        }
    }
    match words.get(at) {
        Some(stray) => Err(invalid(stray)),
        None => Ok(settings),
    }
}

fn takes_argument(flag: char) -> bool {
    "BCcDdfhkNprStvW-".contains(flag)
}

fn invalid(word: &str) -> Fault {
    let message = format!("invalid command-line argument for server process: {word}");
    Fault::fatal(sqlstate::SYNTAX_ERROR, message).with_hint("Try \"postgres --help\" for more information.")
}

/// What one switch sets; `None` where there is none such.
fn switch(flag: char, argument: &str, settings: &mut Vec<(String, String)>) -> Option<Result<(), Fault>> {
    let mut set = |name: &str, value: &str| settings.push((name.to_owned(), value.to_owned()));
    match flag {
        'c' | '-' => {
            let Some((name, value)) = argument.split_once('=') else {
                let spelt = if flag == 'c' { "-c " } else { "--" };
                let message = format!("{spelt}{argument} requires a value");
                return Some(Err(Fault::fatal(sqlstate::SYNTAX_ERROR, message)));
            };
            set(&name.replace('-', "_"), value);
        }
        'd' => debug(argument, set),
        'e' => set("datestyle", "euro"),
        'f' => set(plan_switch(argument)?, "false"),
        't' => set(stats_switch(argument)?, "true"),
        'S' => set("work_mem", argument),
        's' => set("log_statement_stats", "true"),
        'O' => set("allow_system_table_mods", "true"),
        'P' => set("ignore_system_indexes", "true"),
        'W' => set("post_auth_delay", argument),
        // These the server refuses.
        'B' => set("shared_buffers", argument),
        'F' => set("fsync", "false"),
        'h' => set("listen_addresses", argument),
        'i' => set("listen_addresses", "*"),
        'k' => set("unix_socket_directories", argument),
        'l' => set("ssl", "true"),
        'N' => set("max_connections", argument),
        'p' => set("port", argument),
        // Of no effect in a connection.
        'b' | 'C' | 'D' | 'E' | 'j' | 'n' | 'r' | 'T' | 'v' => {}
        _ => return None,
    }
    Some(Ok(()))
}

/// `set_debug_options`
fn debug(level: &str, mut set: impl FnMut(&str, &str)) {
    let digits = level.len() - level.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let level: u32 = level[..digits].parse().unwrap_or(0);
    match level {
        0 => set("log_min_messages", "notice"),
        level => set("log_min_messages", &format!("debug{level}")),
    }
    let more = [
        ("log_statement", "all"),
        ("debug_print_parse", "true"),
        ("debug_print_plan", "true"),
        ("debug_print_rewritten", "true"),
    ];
    more.iter().take((level as usize).saturating_sub(1)).for_each(|(name, value)| set(name, value));
}

/// `set_plan_disabling_options`
fn plan_switch(argument: &str) -> Option<&'static str> {
    Some(match argument.chars().next()? {
        's' => "enable_seqscan",
        'i' => "enable_indexscan",
        'o' => "enable_indexonlyscan",
        'b' => "enable_bitmapscan",
        't' => "enable_tidscan",
        'n' => "enable_nestloop",
        'm' => "enable_mergejoin",
        'h' => "enable_hashjoin",
        _ => return None,
    })
}

/// `get_stats_option_name`
fn stats_switch(argument: &str) -> Option<&'static str> {
    let mut letters = argument.chars();
    match (letters.next()?, letters.next()) {
        ('p', Some('a')) => Some("log_parser_stats"),
        ('p', Some('l')) => Some("log_planner_stats"),
        ('e', _) => Some("log_executor_stats"),
        _ => None,
    }
}

fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut chars) = (Vec::new(), None::<String>, text.chars());
    while let Some(c) = chars.next() {
        match c {
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use proptest::prelude::*;

    fn bytes(minor: u16, parameters: &[(&str, &str)]) -> BytesMut {
        let mut out = BytesMut::new();
        crate::wire::write::startup(&mut out, minor, parameters.iter().copied());
        out
    }

    #[test]
    fn reads_a_startup_message() {
        let b = bytes(0, &[("user", "u"), ("options", "-c a=b"), ("application_name", "x"), ("replication", "off")]);
        let Ok(Some((Packet::Startup(s), length))) = packet(&b) else { panic!("no startup") };
        assert_eq!((s.user.as_str(), s.database.as_str(), s.replication, length), ("u", "u", None, b.len()));
        assert_eq!(s.parameters, [("application_name".to_owned(), "x".to_owned())]);
        assert_eq!(packet(&b[..b.len() - 1]), Ok(None));
    }

    #[test]
    fn negotiates_minor_versions() {
        for (asked, agreed, says) in [(0, 0, false), (1, 0, true), (2, 2, false), (9999, 2, true)] {
            let b = bytes(asked, &[("user", "u")]);
            let Ok(Some((Packet::Startup(s), _))) = packet(&b) else { panic!("no startup") };
            assert_eq!((s.agreed_minor(), s.must_negotiate()), (agreed, says), "3.{asked}");
        }
    }

    #[test]
    fn refuses_as_postgres_does() {
        let code = |b: &[u8]| packet(b).unwrap_err().code;
        assert_eq!(code(&[0, 0, 0, 7]), "08P01");
        assert_eq!(code(&[0x7f, 0, 0, 0]), "08P01");
        assert_eq!(code(&[0, 0, 0, 8, 0, 2, 0, 0]), "0A000");
        assert_eq!(code(&bytes(0, &[("database", "d")])), "28000");
        let mut cut = bytes(0, &[("user", "u")]);
        let last = cut.len() - 1;
        cut[last] = b'x';
        assert_eq!(code(&cut), "08P01");
    }

    #[test]
    fn values_in_other_encodings_and_long_names() {
        let of = |name: &str, value: &[u8]| {
            let mut body = b"user\0u\0".to_vec();
            body.extend([name.as_bytes(), b"\0", value, b"\0\0"].concat());
            startup(0, Reader::new(&body))
        };
        let name = of("application_name", b"caf\xe9\n").unwrap();
        assert_eq!(name.parameters, [("application_name".to_owned(), "caf\\xe9\\x0a".to_owned())]);
        assert_eq!(of("search_path", b"\xff").unwrap_err().code, "22021");
        assert_eq!(of("database", b"\xff").unwrap().database, "\u{fffd}");
        assert_eq!(of("database", "\u{e9}".repeat(40).as_bytes()).unwrap().database, "\u{e9}".repeat(31));
    }

    #[test]
    fn splits_options() {
        let got = options(r"-c search_path=a\ b --work-mem=4MB -cgeqo=off").unwrap();
        let want = [("search_path", "a b"), ("work_mem", "4MB"), ("geqo", "off")];
        assert_eq!(got, want.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert!(options("-x").is_err() && options("-c").is_err() && options("-c a").is_err());
    }

    #[test]
    fn reads_switches_as_getopt_does() {
        let got = options("-Eec a-b=1 -S5000 -f h -tpl -d 3x --").unwrap();
        let want = [
            ("datestyle", "euro"),
            ("a_b", "1"),
            ("work_mem", "5000"),
            ("enable_hashjoin", "false"),
            ("log_planner_stats", "true"),
            ("log_min_messages", "debug3"),
            ("log_statement", "all"),
            ("debug_print_parse", "true"),
        ];
        assert_eq!(got, want.map(|(n, v)| (n.to_owned(), v.to_owned())));
        for bad in ["-f x", "-tp", "-S", "-", "-- x", "a", "-\u{e9}"] {
            assert!(options(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_packet_panics(body in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = packet(&body);
            let mut whole = (body.len() as u32 + 8).to_be_bytes().to_vec();
            whole.extend(196_608u32.to_be_bytes());
            whole.extend(&body);
            let _ = packet(&whole);
        }

        #[test]
        fn no_options_panic(text in ".{0,60}") {
            let _ = options(&text);
        }
    }
}
