//! DateStyle is two settings in one: a SET may name the style of the output, the order of day, month and year, or both,
//! and what it does not name stays as it was (documentation of `DateStyle`; `check_datestyle` in
//! `src/backend/commands/variable.c`). To be said again elsewhere, it has to name all that the session has named.

use crate::session::parameters::Value;

pub const NAME: &str = "datestyle";

/// What DateStyle is after a SET where it was `before` (`None`: the server's own). `None` where the texts do not tell.
pub fn after(set: Value, before: Option<&Value>) -> Option<Value> {
    let Some(before) = before.filter(|_| !set.keyword().contains("default")) else { return Some(set) };
    let ((style, order), (style_before, order_before)) = (parts(&set)?, parts(before)?);
    let named = [style.or(style_before), order.or(order_before)].into_iter().flatten();
    Some(Value::Flat(named.collect::<Vec<_>>().join(", ")))
}

/// The style and the order that it names.
fn parts(value: &Value) -> Option<(Option<&'static str>, Option<&'static str>)> {
    let (mut style, mut order) = (None, None);
    let text = value.keyword();
    for word in text.split([',', ' ', '\'', '"']).filter(|word| !word.is_empty()) {
        let (part, named) = match word {
            "iso" => (&mut style, "ISO"),
            "sql" => (&mut style, "SQL"),
            "german" => (&mut style, "German"),
            "ymd" => (&mut order, "YMD"),
            "dmy" => (&mut order, "DMY"),
            "mdy" | "us" => (&mut order, "MDY"),
            _ if word.starts_with("postgres") => (&mut style, "Postgres"),
            _ if word.starts_with("euro") => (&mut order, "DMY"),
            _ if word.starts_with("noneuro") => (&mut order, "MDY"),
            _ => return None,
        };
        // Two of a kind are refused.
        if part.replace(named).is_some_and(|other| other != named) {
            return None;
        }
    }
    if style == Some("German") {
        order = order.or(Some("DMY"));
    }
    Some((style, order))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays() {
        let flat = |text: &str| Value::Flat(text.to_owned());
        for (set, before, expected) in [
            ("ymd", "ISO", Some("ISO, YMD")),
            ("'sql'", "ISO, YMD", Some("SQL, YMD")),
            ("iso, \"DMY\"", "SQL, YMD", Some("ISO, DMY")),
            ("German", "ISO, YMD", Some("German, DMY")),
            ("'ymd, german'", "us", Some("German, YMD")),
            ("Postgres_Verbose", "european", Some("Postgres, DMY")),
            ("noneuro", "German", Some("German, MDY")),
            ("E'\\x69so'", "YMD", None),
            ("sql", "iso, german", None),
        ] {
            let found = after(Value::Sql(set.to_owned()), Some(&flat(before)));
            assert_eq!(found, expected.map(flat), "{set} after {before}");
        }
        for (set, before) in [("ymd", None), ("'iso, sql'", None), ("'default'", Some(flat("ISO, YMD")))] {
            let set = Value::Sql(set.to_owned());
            assert_eq!(after(set.clone(), before.as_ref()), Some(set));
        }
    }
}
