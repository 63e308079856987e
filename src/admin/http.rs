//! The HTTP server: a bounded number of connections, each of bounded cost and age.
//!
//! Figures are free for whoever reaches the port; POST needs the token, and so does SQL text where there is one. Without a
//! token in the configuration statements are shown without their literals, also where the slow-query log has them.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::command::{Command, CommandError};
use super::documents::{self, StatsDocument};
use super::{Admin, metrics};
use crate::stats::slow::SlowEntry;
use crate::stats::slow_log;
use crate::stats::statements::Order;

/// The page at `/`; it loads nothing from elsewhere.
const DASHBOARD: &str = include_str!("dashboard.html");

/// What a page of pgweir may do in a browser.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Bytes of a POST's body.
const MAX_BODY: usize = 64 * 1024;

/// Rows of `/statements` and `/slow` where no limit is asked for.
const DEFAULT_LIMIT: usize = 100;

/// Minutes of `/history`: asked for by default, and at most.
const HISTORY_MINUTES: (usize, usize) = (60, 24 * 60);

/// Bounds of the server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// One connection more is told 503 and closed. Above half of them none is kept open for a next request.
    pub connections: usize,
    /// The last so many of these are for `/livez` and `/readyz`: no number of readers makes a container look dead.
    pub probes: usize,
    /// For the head of a request, also the first byte of the next one on a kept connection.
    pub header_timeout: Duration,
    /// Then the connection is closed after its running request, however slowly its answer is read.
    pub max_age: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { connections: 32, probes: 4, header_timeout: Duration::from_secs(5), max_age: Duration::from_secs(60) }
    }
}

/// After `max_age`, and at shutdown: for running requests.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until `shutdown` is ready, then lets running requests end within two seconds.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>, limits: Limits, shutdown: impl Future<Output = ()>) {
    let mut connections = JoinSet::new();
    let open = Arc::new(AtomicUsize::new(0));
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < limits.connections => {
                    let place = Place::take(&open, limits);
                    connections.spawn(connection(stream, admin.clone(), limits, place));
                }
                Ok((stream, _)) => refuse(&stream),
                Err(error) => {
                    // out of file descriptors, most likely: give others the time to close some
                    tracing::warn!(%error, "cannot accept an admin connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    let _ = timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

/// Without waiting: what does not fit into the socket's empty buffer is not sent.
fn refuse(stream: &TcpStream) {
    let _ = stream.try_write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
}

/// One of the connections, given up when this is dropped.
struct Place {
    open: Arc<AtomicUsize>,
    limits: Limits,
    /// It was among the last ones that were free.
    for_probes: bool,
}

impl Place {
    fn take(open: &Arc<AtomicUsize>, limits: Limits) -> Place {
        let others = open.fetch_add(1, Ordering::Relaxed);
        let for_probes = others >= limits.connections.saturating_sub(limits.probes);
        Place { open: open.clone(), limits, for_probes }
    }

    fn refuses(&self, path: &str) -> bool {
        self.for_probes && !matches!(path, "/livez" | "/readyz")
    }

    fn is_kept(&self) -> bool {
        !self.for_probes && self.open.load(Ordering::Relaxed) <= self.limits.connections.div_ceil(2)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(stream: TcpStream, admin: Arc<Admin>, limits: Limits, place: Place) {
    let place = &place;
    let service = service_fn(move |request: Request<Incoming>| {
        let admin = admin.clone();
        async move {
            let mut reply = match place.refuses(request.uri().path()) {
                true => error(StatusCode::SERVICE_UNAVAILABLE, "too many connections"),
                false => respond(&admin, request).await,
            };
            if !place.is_kept() {
                reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(reply)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // a peer's fault, and of no interest to us
        _ = connection.as_mut() => {}
        () = sleep(limits.max_age) => {
            connection.as_mut().graceful_shutdown();
            let _ = timeout(GRACE, connection).await;
        }
    }
}

type Reply = Response<Full<Bytes>>;

/// A request that is not done.
struct Refusal {
    status: StatusCode,
    message: String,
    /// WWW-Authenticate.
    challenge: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), challenge: None }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Reply {
        let mut reply = error(refusal.status, &refusal.message);
        if let Some(challenge) = refusal.challenge {
            let challenge = HeaderValue::from_static(challenge);
            reply.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        reply
    }
}

async fn respond<B>(admin: &Admin, request: Request<B>) -> Reply
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = request.uri().path().to_owned();
    let mut reply = match post_command(&path) {
        Some(command) if request.method() == Method::POST => match authorized(admin, &request) {
            Ok(()) => post(admin, command, request).await,
            Err(refusal) => refusal.into(),
        },
        Some(_) => not_allowed("POST"),
        None => match get(admin, &path, &request) {
            Some(reply) if matches!(*request.method(), Method::GET | Method::HEAD) => reply,
            Some(_) => not_allowed("GET, HEAD"),
            None => error(StatusCode::NOT_FOUND, &format!("no such path: {path}")),
        },
    };
    let headers = reply.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    reply
}

/// `None`: no path that is known.
fn get<B>(admin: &Admin, path: &str, request: &Request<B>) -> Option<Reply> {
    let query = Query(request.uri().query().unwrap_or(""));
    Some(match path {
        "/" => typed("text/html; charset=utf-8", DASHBOARD),
        "/stats" => json_reply(StatusCode::OK, &StatsDocument::collect(admin, Instant::now())),
        "/statements" => statements(admin, query, request).unwrap_or_else(Reply::from),
        "/slow" => slow(admin, query, request).unwrap_or_else(Reply::from),
        "/nodes" => json_reply(StatusCode::OK, &documents::nodes(admin)),
        "/pools" => json_reply(StatusCode::OK, &documents::pools(admin)),
        "/history" => history(admin, query).unwrap_or_else(Reply::from),
        "/metrics" => {
            let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
            let format = metrics::Format::accepted(accept);
            typed(format.content_type(), metrics::exposition(admin, format, Instant::now()))
        }
        "/livez" => json_reply(StatusCode::OK, &json!({"status": "live"})),
        "/readyz" => match (admin.sources.ready)() {
            Ok(()) => json_reply(StatusCode::OK, &json!({"status": "ready"})),
            Err(reason) => {
                json_reply(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "not ready", "reason": reason}))
            }
        },
        "/cache" => json_reply(StatusCode::OK, &(admin.sources.cache)()),
        "/alerts" | "/scaling" | "/advice" | "/events" => error(StatusCode::NOT_FOUND, "not built yet"),
        _ => return None,
    })
}

/// What of the SQL a request is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sql {
    /// As it was recorded: it has the token.
    Recorded,
    /// Without its literals: there is no token that could be given.
    Normalized,
    /// Nothing: there is one, and it is not given.
    Hidden,
}

/// # Errors
/// A wrong token is said to be wrong.
fn shown<B>(admin: &Admin, request: &Request<B>) -> Result<Sql, Refusal> {
    match authorized(admin, request) {
        Ok(()) => Ok(Sql::Recorded),
        Err(_) if admin.settings.load().token.is_none() => Ok(Sql::Normalized),
        Err(_) if bearer(request).is_none() => Ok(Sql::Hidden),
        Err(refusal) => Err(refusal),
    }
}

fn statements<B>(admin: &Admin, query: Query<'_>, request: &Request<B>) -> Result<Reply, Refusal> {
    let order = Order::parse(query.value("order").unwrap_or("total_time"))
        .ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "order is one of total_time, calls, p95, mean, rows"))?;
    // all of them fit, and "other"
    let limit = query.number("limit", DEFAULT_LIMIT, admin.stats.statements.max().saturating_add(1))?;
    let mut statements = documents::statements(admin, order, limit);
    if shown(admin, request)? == Sql::Hidden {
        statements.iter_mut().for_each(|statement| statement.text = None);
    }
    Ok(json_reply(StatusCode::OK, &statements))
}

fn slow<B>(admin: &Admin, query: Query<'_>, request: &Request<B>) -> Result<Reply, Refusal> {
    let entries = admin.stats.slow.last(query.number("limit", DEFAULT_LIMIT, slow_log::KEPT)?);
    let entries = entries.iter().map(|entry| &**entry);
    Ok(match shown(admin, request)? {
        Sql::Recorded => json_reply(StatusCode::OK, &entries.collect::<Vec<_>>()),
        Sql::Normalized => json_reply(StatusCode::OK, &entries.map(SlowEntry::without_literals).collect::<Vec<_>>()),
        Sql::Hidden => json_reply(StatusCode::OK, &entries.map(documents::slow_without_sql).collect::<Vec<_>>()),
    })
}

fn history(admin: &Admin, query: Query<'_>) -> Result<Reply, Refusal> {
    let (default, most) = HISTORY_MINUTES;
    let minutes = query.number("minutes", default, most)?;
    Ok(json_reply(StatusCode::OK, &admin.history.last(minutes)))
}

fn post_command(path: &str) -> Option<Command> {
    Some(match path {
        "/reload" => Command::Reload,
        "/drain" => Command::Drain,
        "/quitquitquit" => Command::Quit,
        "/cache/evict" => Command::EvictCache(None),
        _ => return None,
    })
}

/// RFC 6750: a bearer token in the Authorization header.
fn bearer<B>(request: &Request<B>) -> Option<&[u8]> {
    let (scheme, given) = request.headers().get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| given.trim_ascii())
}

/// The token is given.
fn authorized<B>(admin: &Admin, request: &Request<B>) -> Result<(), Refusal> {
    let settings = admin.settings.load();
    let Some(token) = &settings.token else {
        let message = "admin.token is not configured, so this is not to be had over HTTP";
        return Err(Refusal::new(StatusCode::FORBIDDEN, message));
    };
    let (challenge, message) = match bearer(request) {
        Some(given) if verify_slices_are_equal(given, token.0.as_bytes()).is_ok() => return Ok(()),
        Some(_) => ("Bearer error=\"invalid_token\"", "the token is wrong"),
        None => ("Bearer", "a token is needed: Authorization: Bearer …"),
    };
    let refusal = Refusal::new(StatusCode::UNAUTHORIZED, message);
    Err(Refusal { challenge: Some(challenge), ..refusal })
}

async fn post<B>(admin: &Admin, command: Command, request: Request<B>) -> Reply
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let query = request.uri().query().unwrap_or("").to_owned();
    // the body says nothing yet, but must be taken off the connection
    match timeout(Duration::from_secs(5), Limited::new(request.into_body(), MAX_BODY).collect()).await {
        Err(_) => return error(StatusCode::REQUEST_TIMEOUT, "the body took too long"),
        Ok(Err(_)) => {
            return error(StatusCode::PAYLOAD_TOO_LARGE, "the body is cut off or too long");
        }
        Ok(Ok(_)) => {}
    }
    let command = match command {
        Command::EvictCache(_) => Command::EvictCache(Query(&query).value("table").map(decoded)),
        command => command,
    };
    match admin.command(command).await {
        Ok(tag) => json_reply(StatusCode::OK, &json!({"done": tag})),
        Err(failed) => json_reply(status_of(&failed), &json!({"error": failed.message, "sqlstate": failed.sqlstate})),
    }
}

fn status_of(error: &CommandError) -> StatusCode {
    match error.sqlstate {
        "0A000" => StatusCode::NOT_IMPLEMENTED,
        state if state.starts_with("42") || state.starts_with("22") => StatusCode::BAD_REQUEST,
        state if state.starts_with("55") => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A value of a query string as it was meant (`application/x-www-form-urlencoded`); what is badly encoded stands for itself.
fn decoded(value: &str) -> String {
    let (mut out, mut rest) = (Vec::with_capacity(value.len()), value.as_bytes());
    while let Some((&byte, behind)) = rest.split_first() {
        let code = behind.get(..2).and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        rest = if byte == b'%' && code.is_some() { &behind[2..] } else { behind };
        out.push(match (byte, code) {
            (b'%', Some(code)) => code,
            (b'+', _) => b' ',
            _ => byte,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A query string whose values mostly need no decoding: numbers and plain names.
#[derive(Clone, Copy)]
struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    fn value(self, name: &str) -> Option<&'a str> {
        self.0.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    fn number(self, name: &str, default: usize, most: usize) -> Result<usize, Refusal> {
        let number = match self.value(name) {
            None => default,
            Some(value) => value
                .parse::<usize>()
                .map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, format!("{name} is a whole number")))?,
        };
        Ok(number.min(most))
    }
}

fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

fn json_reply(status: StatusCode, body: &impl Serialize) -> Reply {
    let (status, body) = match serde_json::to_vec(body) {
        Ok(body) => (status, body),
        Err(error) => {
            tracing::error!(%error, "an endpoint's answer has no JSON form");
            (StatusCode::INTERNAL_SERVER_ERROR, br#"{"error":"no JSON form"}"#.to_vec())
        }
    };
    let mut reply = typed("application/json", body);
    *reply.status_mut() = status;
    reply
}

fn error(status: StatusCode, message: &str) -> Reply {
    json_reply(status, &json!({"error": message}))
}

fn not_allowed(allow: &'static str) -> Reply {
    let mut reply = error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    reply
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
