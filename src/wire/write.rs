//! Messages that pgweir itself says: replies to clients and its own statements to servers.
//!
//! The structured ones are encoded by `pgwire`; the rest are a header and a few bytes.

use bytes::{BufMut, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::data::{DataRow, FieldDescription, RowDescription};
use pgwire::messages::response::{ErrorResponse, NoticeResponse};
use pgwire::messages::startup::{BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey};

use crate::error::{Fault, sqlstate};
use crate::wire::tag::{backend, frontend};

/// A frame of `tag` whose body `fill` writes; the length is set afterwards.
pub fn frame(out: &mut BytesMut, tag: u8, fill: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    length_prefixed(out, fill);
}

/// The header of a frame whose body follows; `length` is what it says of itself, the tag left out.
pub fn header(out: &mut BytesMut, tag: u8, length: usize) {
    let [a, b, c, d] = (length as u32).to_be_bytes();
    out.put_slice(&[tag, a, b, c, d]);
}

/// Length and body without a tag, as in startup packets.
pub fn length_prefixed(out: &mut BytesMut, fill: impl FnOnce(&mut BytesMut)) {
    let at = out.len();
    out.put_u32(0);
    fill(out);
    let length = (out.len() - at) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn cstr(out: &mut BytesMut, bytes: &[u8]) {
    out.put_slice(bytes);
    out.put_u8(0);
}

fn message(out: &mut BytesMut, message: impl Message) {
    // Encoding into memory has no error of its own; one would leave the frame out, not half in.
    let at = out.len();
    if message.encode(out).is_err() {
        out.truncate(at);
    }
}

// --- to clients ---------------------------------------------------------------------------------------------

pub fn error(out: &mut BytesMut, fault: &Fault) {
    message(out, ErrorResponse::new(fields(fault.severity.as_str(), fault)));
}

/// The error that Postgres has for a prepared statement whose result has changed, down to the place in its source: by
/// that drivers know that it is to be prepared again.
pub fn changed_result(out: &mut BytesMut) {
    let message = "cached plan must not change result type";
    let mut fields = fields("ERROR", &Fault::error(sqlstate::FEATURE_NOT_SUPPORTED, message));
    fields.push((b'F', "plancache.c".to_owned()));
    fields.push((b'R', "RevalidateCachedQuery".to_owned()));
    self::message(out, ErrorResponse::new(fields));
}

/// A ParameterDescription with this body: Int16 count and Int32 each.
pub fn parameter_description(out: &mut BytesMut, types: &[u8]) {
    frame(out, backend::PARAMETER_DESCRIPTION, |b| b.put_slice(types));
}

pub fn no_data(out: &mut BytesMut) {
    frame(out, backend::NO_DATA, |_| {});
}

/// A NoticeResponse of severity WARNING or NOTICE.
pub fn notice(out: &mut BytesMut, severity: &str, fault: &Fault) {
    message(out, NoticeResponse::new(fields(severity, fault)));
}

fn fields(severity: &str, fault: &Fault) -> Vec<(u8, String)> {
    let clean = |s: &str| s.replace('\0', "");
    let mut fields = vec![
        (b'S', severity.to_owned()),
        (b'V', severity.to_owned()),
        (b'C', fault.code.to_string()),
        (b'M', clean(&fault.message)),
    ];
    fields.extend(fault.detail.as_deref().map(|d| (b'D', clean(d))));
    fields.extend(fault.hint.as_deref().map(|h| (b'H', clean(h))));
    fields
}

/// AuthenticationRequest with the body that `auth` made: Int32 kind and its data.
pub fn authentication(out: &mut BytesMut, body: &[u8]) {
    frame(out, backend::AUTHENTICATION, |b| b.put_slice(body));
}

pub fn parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    message(out, ParameterStatus::new(name.to_owned(), value.to_owned()));
}

/// The client's cancel key: 4 bytes of secret in protocol 3.0, up to 256 in 3.2.
pub fn backend_key_data(out: &mut BytesMut, pid: i32, secret: &[u8]) {
    let key = SecretKey::Bytes(bytes::Bytes::copy_from_slice(secret));
    message(out, BackendKeyData::new(pid, key));
}

/// The newest minor protocol pgweir speaks (as a full version number, as servers send it) and the `_pq_.` options it
/// does not know.
pub fn negotiate_protocol(out: &mut BytesMut, minor: u16, options: Vec<String>) {
    message(out, NegotiateProtocolVersion::new((3 << 16) | i32::from(minor), options));
}

/// `status`: `I`, `T` or `E`.
pub fn ready(out: &mut BytesMut, status: u8) {
    frame(out, backend::READY, |b| b.put_u8(status));
}

pub fn command_complete(out: &mut BytesMut, tag: &str) {
    frame(out, backend::COMMAND_COMPLETE, |b| cstr(b, tag.as_bytes()));
}

pub fn empty_query(out: &mut BytesMut) {
    frame(out, backend::EMPTY_QUERY, |_| {});
}

pub fn parse_complete(out: &mut BytesMut) {
    frame(out, backend::PARSE_COMPLETE, |_| {});
}

pub fn close_complete(out: &mut BytesMut) {
    frame(out, backend::CLOSE_COMPLETE, |_| {});
}

/// Columns in text format: name and type OID each.
pub fn row_description<'a>(out: &mut BytesMut, columns: impl IntoIterator<Item = (&'a str, u32)>) {
    let field = |(name, oid): (&str, u32)| FieldDescription::new(name.to_owned(), 0, 0, oid, type_size(oid), -1, 0);
    message(out, RowDescription::new(columns.into_iter().map(field).collect()));
}

fn type_size(oid: u32) -> i16 {
    match oid {
        16 => 1,
        20 | 701 => 8,
        23 => 4,
        _ => -1,
    }
}

/// One row of text values; `None` is NULL.
pub fn data_row<'a>(out: &mut BytesMut, values: impl IntoIterator<Item = Option<&'a str>>) {
    let (mut data, mut count) = (BytesMut::new(), 0);
    for value in values {
        count += 1;
        match value {
            Some(v) => {
                data.put_i32(v.len() as i32);
                data.put_slice(v.as_bytes());
            }
            None => data.put_i32(-1),
        }
    }
    message(out, DataRow::new(data, count));
}

// --- to servers ---------------------------------------------------------------------------------------------

/// StartupMessage of protocol 3.`minor`.
pub fn startup<'a>(out: &mut BytesMut, minor: u16, parameters: impl IntoIterator<Item = (&'a str, &'a str)>) {
    length_prefixed(out, |b| {
        b.put_u16(3);
        b.put_u16(minor);
        for (name, value) in parameters {
            cstr(b, name.as_bytes());
            cstr(b, value.as_bytes());
        }
        b.put_u8(0);
    });
}

pub fn ssl_request(out: &mut BytesMut) {
    length_prefixed(out, |b| b.put_u32(super::startup::SSL_REQUEST));
}

pub fn cancel_request(out: &mut BytesMut, pid: i32, secret: &[u8]) {
    length_prefixed(out, |b| {
        b.put_u32(super::startup::CANCEL_REQUEST);
        b.put_i32(pid);
        b.put_slice(secret);
    });
}

/// PasswordMessage, SASLInitialResponse or SASLResponse, by the body that `auth` made.
pub fn password(out: &mut BytesMut, body: &[u8]) {
    frame(out, frontend::PASSWORD, |b| b.put_slice(body));
}

pub fn query(out: &mut BytesMut, text: &str) {
    frame(out, frontend::QUERY, |b| cstr(b, text.as_bytes()));
}

/// `types` as it stands in a Parse: Int16 count and Int32 each.
pub fn parse(out: &mut BytesMut, name: &[u8], text: &[u8], types: &[u8]) {
    frame(out, frontend::PARSE, |b| {
        cstr(b, name);
        cstr(b, text);
        b.put_slice(types);
    });
}

/// Parse, Bind and Execute of a statement without parameters and rows; its end is no Sync.
pub fn execute(out: &mut BytesMut, text: &str) {
    parse(out, b"", text.as_bytes(), &[0, 0]);
    // The unnamed portal and statement; no formats, no values, no formats of results.
    frame(out, frontend::BIND, |b| b.put_slice(&[0; 8]));
    // The unnamed portal; all rows.
    frame(out, frontend::EXECUTE, |b| b.put_slice(&[0; 5]));
}

/// Close of the unnamed portal and of the unnamed statement.
pub fn close_unnamed(out: &mut BytesMut) {
    frame(out, frontend::CLOSE, |b| b.put_slice(b"P\0"));
    frame(out, frontend::CLOSE, |b| b.put_slice(b"S\0"));
}

/// Describe or Close of a statement.
pub fn of_statement(out: &mut BytesMut, tag: u8, name: &[u8]) {
    frame(out, tag, |b| {
        b.put_u8(b'S');
        cstr(b, name);
    });
}

pub fn flush(out: &mut BytesMut) {
    frame(out, frontend::FLUSH, |_| {});
}

pub fn sync(out: &mut BytesMut) {
    frame(out, frontend::SYNC, |_| {});
}

pub fn terminate(out: &mut BytesMut) {
    frame(out, frontend::TERMINATE, |_| {});
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{read, scan};

    fn one(fill: impl FnOnce(&mut BytesMut)) -> (u8, Vec<u8>) {
        let mut out = BytesMut::new();
        fill(&mut out);
        let (head, body) = scan::frame(&out).unwrap().unwrap();
        assert_eq!(head.total, out.len(), "one whole frame");
        (head.tag, body.to_vec())
    }

    #[test]
    fn frames_are_whole() {
        assert_eq!(one(|o| ready(o, b'I')), (b'Z', b"I".to_vec()));
        assert_eq!(one(|o| parse(o, b"s", b"select 1", b"\0\0")), (b'P', b"s\0select 1\0\0\0".to_vec()));
        assert_eq!(one(|o| backend_key_data(o, 7, b"abcd")), (b'K', b"\0\0\0\x07abcd".to_vec()));
        assert_eq!(one(|o| parameter_status(o, "a", "b")), (b'S', b"a\0b\0".to_vec()));
        assert_eq!(one(|o| negotiate_protocol(o, 2, vec![])), (b'v', b"\0\x03\0\x02\0\0\0\0".to_vec()));
        assert_eq!(one(|o| data_row(o, [Some("x"), None])).1, b"\0\x02\0\0\0\x01x\xff\xff\xff\xff");
        assert_eq!(one(|o| row_description(o, [("n", 23)])).0, b'T');
    }

    #[test]
    fn errors_carry_every_field() {
        let fault = Fault::error(sqlstate::SYNTAX_ERROR, "a\0b").with_hint("try").with_detail("it");
        let (tag, body) = one(|o| error(o, &fault));
        let fields = read::ErrorFields::read(&body).unwrap();
        assert_eq!((tag, fields.code, fields.message), (b'E', &b"42601"[..], &b"ab"[..]));
        assert!(body.windows(5).any(|w| w == b"Htry\0") && body.windows(4).any(|w| w == b"Dit\0"));
        let (_, body) = one(changed_result);
        assert!(read::ErrorFields::read(&body).unwrap().is_changed_result());
    }
}
