//! Bodies of authentication messages (protocol documentation, "Message Formats").

use super::error::AuthError;

pub(super) const OK: i32 = 0;
pub(super) const CLEARTEXT: i32 = 3;
pub(super) const MD5: i32 = 5;
pub(super) const SASL: i32 = 10;
pub(super) const SASL_CONTINUE: i32 = 11;
pub(super) const SASL_FINAL: i32 = 12;

/// The body of an Authentication message.
pub(super) fn request(code: i32, data: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), data].concat()
}

/// AuthenticationSASL: the names, each closed by NUL, and one more NUL.
pub(super) fn mechanisms(names: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    for name in names {
        data.extend_from_slice(name.as_bytes());
        data.push(0);
    }
    data.push(0);
    request(SASL, &data)
}

/// Splits an Authentication message into its code and its data.
pub(super) fn split_request(body: &[u8]) -> Option<(i32, &[u8])> {
    body.split_first_chunk().map(|(code, data)| (i32::from_be_bytes(*code), data))
}

/// PasswordMessage: one string and its NUL, nothing else (`recv_password_packet`).
pub(super) fn password(body: &[u8]) -> Result<&[u8], AuthError> {
    match body.split_last() {
        Some((0, [])) => Err(AuthError::EmptyPassword),
        Some((0, text)) if !text.contains(&0) => Ok(text),
        _ => Err(AuthError::protocol("invalid password packet size")),
    }
}

/// SASLInitialResponse: the mechanism, and the data where there is any (`CheckSASLAuth`).
pub(super) fn sasl_initial(body: &[u8]) -> Result<(&[u8], Option<&[u8]>), AuthError> {
    let malformed = || AuthError::protocol("invalid message format");
    let end = memchr::memchr(0, body).ok_or_else(malformed)?;
    let (len, data) = body[end + 1..].split_first_chunk().ok_or_else(malformed)?;
    match i32::from_be_bytes(*len) {
        -1 if data.is_empty() => Ok((&body[..end], None)),
        len if usize::try_from(len) == Ok(data.len()) => Ok((&body[..end], Some(data))),
        _ => Err(malformed()),
    }
}
