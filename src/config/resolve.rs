//! From the raw file to the final values: every table read, every rule between keys checked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::diagnostic::{Diagnostic, Severity};
use super::file::{Expect, NamedFile, Walk};
use super::number::Zero;
use super::section::Section;
use super::{
    Alerts, Cache, Config, Container, Database, Freshness, Invalidation, LoadBalancing, Memory, Pool, PrimaryReads,
    Routing, ScalingRule, Secret, Shared, SlowLog, Statements,
};
use super::{auth, databases, defaults, effect, listen, pool, rules};

/// What [`Config::parse`] gives.
pub(super) type Parsed = Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>>;

/// Reads and checks `text`; the paths that it names are for the caller to try.
pub(super) fn resolve(
    text: &str,
    file: &str,
    env: &dyn Fn(&str) -> Option<String>,
    container: &Container,
) -> (Parsed, Vec<NamedFile>) {
    let (table, walk) = Walk::parse(text, file, env);
    let config = config(&walk.root(table.get_ref()), container);
    effect::note(&walk, table.get_ref(), effect::NOT_IN_EFFECT);
    let findings = walk.finish();
    let refused = findings.diagnostics.iter().any(|d| d.severity == Severity::Error);
    let parsed = if refused { Err(findings.diagnostics) } else { Ok((config, findings.diagnostics)) };
    (parsed, findings.named)
}

/// Every key that the parser knows, dotted.
#[must_use]
pub fn known_keys() -> BTreeSet<String> {
    // the least that makes the parser ask for everything
    const TEXT: &str = "auth.rules = [{}]\ncache.rules = [{}]\nscaling.rules = [{}]\nusers = [{}]\ndatabases = [{ pool = {}, nodes = [{}] }]\n";
    let (table, walk) = Walk::parse(TEXT, "", &|_| None);
    config(&walk.root(table.get_ref()), &Container::SMALLEST);
    walk.finish().known
}

/// What a file with nothing in it would mean, if it were allowed.
#[must_use]
pub fn empty() -> Config {
    let (table, walk) = Walk::parse("", "", &|_| None);
    config(&walk.root(table.get_ref()), &Container::SMALLEST)
}

pub(super) fn config(root: &Section<'_, '_>, container: &Container) -> Config {
    let base = Arc::new(pool::pool(&root.section("pool"), &Pool::default()));
    let listen_section = root.section("listen");
    let listen = listen::listen(&listen_section, container);
    let admin_section = root.section("admin");
    let admin = listen::admin(&admin_section);
    if let Some(http) = admin.http.filter(|http| http.port() != 0)
        && listen.address == http.to_string()
    {
        admin_section.error("http", "is the address that [listen] has", "give it another port");
    }
    let routing = routing(&root.section("routing"));
    let databases = databases::databases(root, &base, &routing);
    let users = databases::users(root);
    let auth = auth::auth(&root.section("auth"), &users);
    if users.is_empty() && auth.query.is_none() {
        root.warning("users", "names nobody", "only users named there can log in");
    }
    for name in admin.users.iter().filter(|name| users.iter().all(|user| &user.name != *name)) {
        let complaint = format_args!("names {name:?}, who is not among [[users]]");
        admin_section.warning("users", complaint, "without a password there, nobody can log in so");
    }
    let is_asked = |name: &str| users.iter().any(|user| user.name == name && user.password.is_none());
    for name in admin.users.iter().filter(|name| auth.rules.is_empty() && is_asked(name)) {
        let complaint = format_args!("names {name:?}, who has no password among [[users]]");
        admin_section.warning(
            "users",
            complaint,
            "no server stands behind the admin console to check one: refused there",
        );
    }
    Config {
        auth,
        listen,
        admin,
        routing,
        cache: cache(&root.section("cache"), &databases),
        statements: statements(&root.section("statements")),
        memory: memory(&root.section("memory"), container),
        alerts: alerts(&root.section("alerts")),
        scaling: scaling(&root.section("scaling")),
        pool: base,
        databases,
        users,
    }
}

fn routing(s: &Section<'_, '_>) -> Routing {
    let d = Routing::default();
    let load_balancing = [
        ("weighted", LoadBalancing::Weighted),
        ("least-busy", LoadBalancing::LeastBusy),
        ("latency", LoadBalancing::Latency),
    ];
    let freshness = [("eventual", Freshness::Eventual), ("session", Freshness::Session), ("table", Freshness::Table)];
    let primary_reads =
        [("fallback", PrimaryReads::Fallback), ("always", PrimaryReads::Always), ("never", PrimaryReads::Never)];
    Routing {
        load_balancing: s.choice("load_balancing", d.load_balancing, &load_balancing),
        failover: s.boolean("failover", d.failover),
        freshness: s.choice("freshness", d.freshness, &freshness),
        max_lag: s.duration("max_lag", d.max_lag, Zero::Refused),
        primary_reads: s.choice("primary_reads", d.primary_reads, &primary_reads),
        probe_interval: s.duration("probe_interval", d.probe_interval, Zero::Refused),
    }
}

fn cache(s: &Section<'_, '_>, databases: &[Database]) -> Cache {
    let d = Cache::default();
    let invalidation = [
        ("auto", Invalidation::Auto),
        ("wal", Invalidation::Wal),
        ("writes", Invalidation::Writes),
        ("ttl", Invalidation::Ttl),
    ];
    let mut cache = Cache {
        enabled: s.boolean("enabled", d.enabled),
        max_entries: s.count("max_entries", d.max_entries, 1),
        max_bytes: s.size("max_bytes", d.max_bytes),
        max_entry_bytes: s.size("max_entry_bytes", d.max_entry_bytes),
        ttl: s.duration("ttl", d.ttl, Zero::Refused),
        invalidation: s.choice("invalidation", d.invalidation, &invalidation),
        publication: s.text_or_none("publication"),
        verify: s.number("verify", d.verify, 0.0..=1.0),
        fleet: s.boolean("fleet", d.fleet),
        shared: shared(s),
        rules: Vec::new(),
    };
    cache.rules = rules::rules(s, cache.ttl, databases);
    if cache.max_entry_bytes > cache.max_bytes {
        let key = if s.has("max_entry_bytes") { "max_entry_bytes" } else { "max_bytes" };
        let hint = "one entry may not be larger than the whole cache: \"max_entry_bytes\" is at most \"max_bytes\"";
        s.error(key, "does not fit the other", hint);
    }
    if matches!(cache.invalidation, Invalidation::Writes | Invalidation::Ttl) {
        for (key, is_set) in
            [("publication", cache.publication.is_some()), ("fleet", cache.fleet), ("shared", cache.shared.is_some())]
        {
            if is_set {
                s.warning(key, "is used with invalidation \"wal\" or \"auto\" only", "");
            }
        }
    }
    cache
}

/// The URL is not repeated: it may have a password.
fn shared(s: &Section<'_, '_>) -> Option<Shared> {
    let timeout = s.duration("shared_timeout", Duration::from_millis(20), Zero::Refused);
    let secret = s.text_or_none("shared_secret").map(Secret);
    let url = s.text_or_none("shared")?;
    let why = match redis::Client::open(url.as_str()) {
        Ok(_) if url.contains('#') => "has a fragment".to_owned(),
        Ok(_) => return Some(Shared { url: Secret(url), timeout, secret }),
        Err(error) => format!("is no URL of a Redis or Valkey: {error}"),
    };
    s.error("shared", &why, "redis://[[user]:password@]host[:port][/database], and rediss:// with TLS");
    None
}

fn statements(s: &Section<'_, '_>) -> Statements {
    let d = Statements::default();
    let slow_log = match s.text("slow_log", "stderr").as_str() {
        "" => SlowLog::Off,
        "stderr" => SlowLog::Stderr,
        path => {
            s.expect_at("slow_log", path.into(), Expect::ParentDirectory);
            SlowLog::File(path.into())
        }
    };
    Statements {
        max: s.count("max", d.max, 1),
        slow_threshold: s.duration("slow_threshold", d.slow_threshold, Zero::Allowed),
        slow_log,
        slow_log_parameters: s.boolean("slow_log_parameters", d.slow_log_parameters),
        capture_plans: s.boolean("capture_plans", d.capture_plans),
    }
}

fn memory(s: &Section<'_, '_>, container: &Container) -> Memory {
    let limit = if s.is_auto("limit") { container.memory } else { s.size("limit", container.memory) };
    let threshold = s.number("threshold", defaults::MEMORY_THRESHOLD, 0.0..=1.0);
    if threshold == 0.0 {
        s.error("threshold", "must be more than zero", "0.8 is four fifths of the limit");
    }
    Memory { limit, threshold }
}

fn alerts(s: &Section<'_, '_>) -> Alerts {
    let d = Alerts::default();
    let webhook = s.text_or_none("webhook");
    if let Some(url) = &webhook
        && !["http://", "https://"].iter().any(|p| url.len() > p.len() && url.starts_with(p))
    {
        s.error("webhook", "is no URL", "it begins with http:// or https://");
    }
    Alerts {
        response_time: s.duration("response_time", d.response_time, Zero::Refused),
        error_rate: s.number("error_rate", d.error_rate, 0.0..=100.0),
        cpu_usage: s.number("cpu_usage", d.cpu_usage, 0.0..=100.0),
        memory_usage: s.number("memory_usage", d.memory_usage, 0.0..=100.0),
        window: s.duration("window", d.window, Zero::Refused),
        webhook,
    }
}

/// The rules of the file, or the default one where it names none; `rules = []` is none.
fn scaling(s: &Section<'_, '_>) -> Vec<ScalingRule> {
    let given = s.has("rules");
    let mut names = BTreeSet::new();
    let rules = s.sections("rules").into_iter().filter_map(|s| {
        let name = s.required_text("name", "it is how the recommendation is told apart");
        let condition = s.required_text("condition", "write it like \"cpu_usage > 80\"");
        let action = s.required_text("action", "write it like \"scale_up\"");
        let cooldown = s.duration("cooldown", ScalingRule::default().cooldown, Zero::Allowed);
        if let Some(condition) = &condition
            && !is_comparison(condition)
        {
            let complaint = format_args!("is no comparison: {condition:?}");
            s.error("condition", complaint, "write it like \"cpu_usage > 80\"");
        }
        if let Some(name) = &name
            && !names.insert(name.clone())
        {
            s.error("name", format_args!("is used twice: {name:?}"), "each rule needs its own");
        }
        Some(ScalingRule { name: name?, condition: condition?, action: action?, cooldown })
    });
    if given { rules.collect() } else { vec![ScalingRule::default()] }
}

/// `<metric> <operator> <number>`; which metrics there are is the rules' own business.
fn is_comparison(condition: &str) -> bool {
    let metric = condition.trim_start_matches(|c: char| c.is_ascii_lowercase() || c == '_');
    let rest = metric.trim_start();
    let operator = [">=", "<=", ">", "<"].into_iter().find(|op| rest.starts_with(op));
    metric.len() < condition.len()
        && operator.is_some_and(|op| rest[op.len()..].trim().parse::<f64>().is_ok_and(f64::is_finite))
}
