//! What `SELECT set_config($1, $2, $3)` sets, from the values that a Bind gives it.

use std::borrow::Cow;

use crate::error::Malformed;
use crate::session::parameters::literal;
use crate::sql::settings::truth;
use crate::sql::{Argument, Effect, Facts, SetValue};
use crate::wire::read::Reader;

/// Types whose values are their own text, and of those that a server finds for itself here: unspecified, text,
/// unknown, varchar.
const TEXTS: [u32; 4] = [0, 25, 705, 1043];
const BOOL: u32 = 16;

/// The facts with the values of a Bind in their place: `types` as in the Parse, `bound` what stands in the Bind behind the
/// names. `None` where nothing depends on them. What cannot be read stays as it is.
pub fn settled(facts: &Facts, types: &[u8], bound: &[u8]) -> Option<Facts> {
    if !facts.effects.iter().any(|effect| matches!(effect, Effect::Configure { .. })) {
        return None;
    }
    let bound = Bound::read(types, bound).ok()?;
    let mut facts = facts.clone();
    for effect in &mut facts.effects {
        if let Some(settled) = bound.settle(effect) {
            *effect = settled;
        }
    }
    Some(facts)
}

#[derive(Debug, Clone, Copy)]
struct Parameter<'a> {
    oid: u32,
    binary: bool,
    /// `None`: NULL.
    value: Option<&'a [u8]>,
}

struct Bound<'a>(Vec<Parameter<'a>>);

impl<'a> Bound<'a> {
    fn read(types: &[u8], bound: &'a [u8]) -> Result<Bound<'a>, Malformed> {
        let mut types = Reader::new(types);
        let oids = (0..types.i16()? as u16).map(|_| types.i32()).collect::<Result<Vec<_>, _>>()?;
        let mut r = Reader::new(bound);
        let formats = (0..r.i16()? as u16).map(|_| r.i16()).collect::<Result<Vec<_>, _>>()?;
        // One format stands for all; none for text.
        let format = |n: usize| formats.get(n).or_else(|| formats.first().filter(|_| formats.len() == 1));
        let count = usize::from(r.i16()? as u16);
        let read = |n: usize| {
            let value = usize::try_from(r.i32()?).ok().map(|length| r.bytes(length)).transpose()?;
            let oid = oids.get(n).map_or(0, |oid| *oid as u32);
            Ok(Parameter { oid, binary: format(n) == Some(&1), value })
        };
        (0..count).map(read).collect::<Result<Vec<_>, _>>().map(Bound)
    }

    fn settle(&self, effect: &Effect) -> Option<Effect> {
        let Effect::Configure { name, value, local } = effect else { return None };
        let name = self.text(name)??.to_ascii_lowercase();
        let local = self.truth(local)?;
        let value = match self.text(value)? {
            Some(text) => SetValue::Flat(text.into_owned()),
            None => SetValue::Default,
        };
        let session_authorization = name == "session_authorization";
        if !session_authorization && name != "role" {
            return Some(Effect::Set { name, value, local });
        }
        let value = match value {
            SetValue::Flat(role) if session_authorization || role != "none" => Some(literal(&role)),
            _ => None,
        };
        Some(Effect::Role { session_authorization, value, local })
    }

    fn parameter(&self, number: u16) -> Option<Parameter<'a>> {
        self.0.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// The outer `None`: not known; the inner one: NULL.
    fn text<'b>(&'b self, argument: &'b Argument) -> Option<Option<Cow<'b, str>>> {
        let parameter = match argument {
            Argument::Text(text) => return Some(Some(text.into())),
            Argument::Null => return Some(None),
            Argument::Parameter(number) => self.parameter(*number).filter(|p| TEXTS.contains(&p.oid))?,
        };
        parameter.value.map(|value| std::str::from_utf8(value).map(Cow::Borrowed)).transpose().ok()
    }

    /// NULL is false (`set_config_by_name`).
    fn truth(&self, argument: &Argument) -> Option<bool> {
        let parameter = match argument {
            Argument::Text(text) => return truth(text.as_bytes()),
            Argument::Null => return Some(false),
            Argument::Parameter(number) => self.parameter(*number).filter(|p| p.oid == 0 || p.oid == BOOL)?,
        };
        match (parameter.binary, parameter.value) {
            (_, None) => Some(false),
            (true, Some([byte])) => Some(*byte != 0),
            (true, Some(_)) => None,
            (false, Some(text)) => truth(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::classify::classify;

    fn types(oids: &[i32]) -> Vec<u8> {
        let mut out = (oids.len() as i16).to_be_bytes().to_vec();
        oids.iter().for_each(|oid| out.extend(oid.to_be_bytes()));
        out
    }

    fn bound(formats: &[i16], values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut out = (formats.len() as i16).to_be_bytes().to_vec();
        formats.iter().for_each(|format| out.extend(format.to_be_bytes()));
        out.extend((values.len() as i16).to_be_bytes());
        for value in values {
            out.extend(value.map_or(-1, |v| v.len() as i32).to_be_bytes());
            out.extend(value.unwrap_or_default());
        }
        out
    }

    fn effects(sql: &str, oids: &[i32], formats: &[i16], values: &[Option<&[u8]>]) -> Vec<Effect> {
        settled(&classify(sql), &types(oids), &bound(formats, values)).unwrap().effects
    }

    fn set(name: &str, value: &str, local: bool) -> Effect {
        Effect::Set { name: name.into(), value: SetValue::Flat(value.into()), local }
    }

    #[test]
    fn values_take_the_place_of_parameters() {
        let all = "SELECT set_config($1, $2, $3)";
        let given: [Option<&[u8]>; 3] = [Some(b"My.Own"), Some(b"it's"), Some(b"f")];
        assert_eq!(effects(all, &[], &[], &given), [set("my.own", "it's", false)]);
        let given: [Option<&[u8]>; 3] = [Some(b"my.own"), Some(b""), Some(b"\x01")];
        assert_eq!(effects(all, &[25, 1043, 16], &[1], &given), [set("my.own", "", true)]);
        let cast = "SELECT set_config($1::VARCHAR, $2::text, $3::BOOLEAN) AS set_config_1";
        assert_eq!(effects(cast, &[], &[0, 0, 1], &given), [set("my.own", "", true)]);
        let two = "SELECT set_config('a.b', $1, false), set_config('c.d', $1, true)";
        assert_eq!(effects(two, &[], &[], &[Some(b"x")]), [set("a.b", "x", false), set("c.d", "x", true)]);
        let null = "SELECT set_config('work_mem', $1, false)";
        let default = Effect::Set { name: "work_mem".into(), value: SetValue::Default, local: false };
        assert_eq!(effects(null, &[], &[], &[None]), [default]);
        let role = |value: Option<&str>| {
            [Effect::Role { session_authorization: false, value: value.map(Into::into), local: false }]
        };
        let sql = "SELECT set_config('role', $1, false)";
        assert_eq!(effects(sql, &[], &[], &[Some(b"o'r")]), role(Some("'o''r'")));
        assert_eq!(effects(sql, &[], &[], &[Some(b"none")]), role(None));
    }

    #[test]
    fn what_cannot_be_read_stays() {
        let sql = "SELECT set_config('a.b', $1, false)";
        let before = classify(sql).effects;
        for (oids, values) in [
            (&[23][..], &[Some(&b"\0\0\0\x01"[..])][..]),
            (&[], &[Some(b"\xff")]),
            (&[], &[]),
            // Blanks at its end would be cut off (bpchar).
            (&[1042], &[Some(b"a ")]),
        ] {
            assert_eq!(effects(sql, oids, &[], values), before);
        }
        let facts = classify(sql);
        let whole = bound(&[1], &[Some(b"x")]);
        for end in 0..whole.len() {
            assert_eq!(settled(&facts, &types(&[]), &whole[..end]), None);
        }
        assert_eq!(settled(&classify("SELECT $1"), &types(&[]), &whole), None);
    }
}
