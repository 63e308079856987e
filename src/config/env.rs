//! `${NAME}` in a string of the file is the environment variable NAME; `$${` stands for `${` itself.

use std::fmt;

/// Why a `${…}` has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvError {
    Unset(String),
    /// Not a name that a shell could set.
    BadName(String),
    Unclosed,
}

impl fmt::Display for EnvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnvError::Unset(name) => write!(f, "the environment variable {name} is not set"),
            EnvError::BadName(name) => {
                write!(f, "${{{name}}} does not name an environment variable")
            }
            EnvError::Unclosed => f.write_str("\"${\" has no closing \"}\""),
        }
    }
}

/// Replaces each `${NAME}`; values are taken as they are, and never expanded again.
///
/// # Errors
/// Every faulty `${…}` of the text, in its order.
pub fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Vec<EnvError>> {
    let mut expanded = String::with_capacity(text.len());
    let mut errors = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from_dollar) = rest.split_at(at);
        let after = &from_dollar[2..];
        if let Some(kept) = before.strip_suffix('$') {
            expanded.push_str(kept);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        expanded.push_str(before);
        let Some(end) = after.find('}') else {
            errors.push(EnvError::Unclosed);
            rest = "";
            break;
        };
        let name = &after[..end];
        if !is_name(name) {
            errors.push(EnvError::BadName(name.to_owned()));
        } else if let Some(value) = env(name) {
            expanded.push_str(&value);
        } else {
            errors.push(EnvError::Unset(name.to_owned()));
        }
        rest = &after[end + 1..];
    }
    expanded.push_str(rest);
    if errors.is_empty() { Ok(expanded) } else { Err(errors) }
}

/// Whether [`expand`] would look at the environment for this text, or unescape it.
pub fn is_expandable(text: &str) -> bool {
    text.contains("${")
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "USER_1" => Some("ada".into()),
            "NESTED" => Some("${USER_1}".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn replaces_names_with_their_values() {
        for (text, expected) in [
            ("plain", "plain"),
            ("${USER_1}", "ada"),
            ("a${USER_1}b${USER_1}", "aadabada"),
            ("${EMPTY}", ""),
            ("${NESTED}", "${USER_1}"),
            ("$${USER_1}", "${USER_1}"),
            ("$5 and $USER_1 }", "$5 and $USER_1 }"),
            ("é${USER_1}é", "éadaé"),
        ] {
            assert_eq!(expand(text, &env).as_deref(), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn reports_every_fault() {
        assert_eq!(
            expand("${A}${USER_1}${B}", &env),
            Err(vec![EnvError::Unset("A".into()), EnvError::Unset("B".into())])
        );
        assert_eq!(expand("${}", &env), Err(vec![EnvError::BadName(String::new())]));
        assert_eq!(expand("${A:-x}", &env), Err(vec![EnvError::BadName("A:-x".into())]));
        assert_eq!(expand("x${A", &env), Err(vec![EnvError::Unclosed]));
    }
}
