//! The rows of a snapshot's questions to its parts.

use crate::backend::connection::Row;
use crate::catalog::build::Parts;
use crate::catalog::{
    Body, Cast, Function, Oid, Operator, Persistence, Refs, Relation, RelationKind, Type, Volatility, path,
};
use crate::sql::{Facts, Reason, classify, procedural};

/// `current_setting(text)` and `current_setting(text, boolean)` (`pg_proc.dat`).
const CURRENT_SETTING: [Oid; 2] = [2077, 3294];

/// Reads the rows; `None` where one is not as asked for.
pub(super) fn parts(rows: &[Row]) -> Option<Parts> {
    let mut parts = Parts::default();
    for row in rows {
        let row = Columns(row);
        let oid = |at: usize| row.number::<Oid>(at);
        match row.text(0)? {
            "n" => parts.schemas.push((row.boxed(2)?, oid(1)?)),
            "b" => parts.own_functions.push((oid(1)?, row.boxed(2)?, row.volatility(3)?)),
            "v" => parts.own_relations.push((oid(1)?, row.boxed(2)?, oid(3)?)),
            "f" => parts.functions.push((oid(1)?, row.function()?)),
            "a" => parts.aggregates.push((oid(1)?, row.oids(2))),
            "o" => parts.operators.push((oid(1)?, row.operator()?)),
            "c" => parts.casts.push(Cast { source: oid(1)?, target: oid(2)?, function: oid(3)? }),
            "t" => parts.types.push((oid(1)?, row.type_()?)),
            "d" => parts.checks.push((oid(1)?, row.refs(2))),
            "r" => parts.relations.push((oid(1)?, row.relation()?)),
            "k" => parts.columns.push((oid(1)?, row.oids(2))),
            "l" => parts.leading_on.push(oid(1)?),
            "i" => parts.inherits.push((oid(1)?, oid(2)?)),
            "w" => parts.rules.push((oid(1)?, row.refs_and_text(2, classify::classify))),
            "p" => parts.policies.push((oid(1)?, row.refs_and_text(2, classify::classify))),
            "s" => parts.defaults.push(path::Default {
                role: row.text(1).map(Into::into),
                here: row.text(2)? == "t",
                value: row.boxed(3)?,
            }),
            _ => return None,
        }
    }
    Some(parts)
}

/// How much the rows hold.
pub(super) fn bytes(rows: &[Row]) -> usize {
    rows.iter().flatten().flatten().map(String::len).sum()
}

struct Columns<'a>(&'a Row);

impl Columns<'_> {
    fn text(&self, at: usize) -> Option<&str> {
        self.0.get(at)?.as_deref()
    }

    fn boxed(&self, at: usize) -> Option<Box<str>> {
        self.text(at).map(Into::into)
    }

    fn number<T: std::str::FromStr>(&self, at: usize) -> Option<T> {
        self.text(at)?.parse().ok()
    }

    fn oids(&self, at: usize) -> Vec<Oid> {
        let text = self.text(at).unwrap_or_default();
        // 0 stands for none
        text.split_whitespace().filter_map(|oid| oid.parse().ok()).filter(|oid| *oid != 0).collect()
    }

    fn volatility(&self, at: usize) -> Option<Volatility> {
        Some(match self.text(at)? {
            "i" => Volatility::Immutable,
            "s" => Volatility::Stable,
            _ => Volatility::Volatile,
        })
    }

    fn function(&self) -> Option<Function> {
        let body = match (self.text(5)?, self.text(6)?, self.text(13), self.text(14)) {
            // the functions it is made of come in rows of their own
            ("a", ..) => Body::Opaque,
            (_, "c", ..) => Body::Trusted,
            // another name for one of the server's own
            (_, "internal", ..) if self.text(16).is_some() => Body::Parts(self.oids(16)),
            (_, "sql", Some(text), _) => Body::Text(Box::new(classify::body(text))),
            (_, "plpgsql", Some(text), _) => Body::Text(Box::new(procedural::body(text))),
            (_, "sql", None, Some(_)) => Body::Bound(self.refs_and_text(14, procedural::body)),
            _ => Body::Opaque,
        };
        Some(Function {
            name: self.boxed(2)?,
            schema: self.number(3)?,
            volatility: self.volatility(4)?,
            body,
            required: self.number(7)?,
            most: self.number(17),
            first: self.number(8)?,
            types: self.oids(9),
            path: self.boxed(10),
            hidden: self.text(11)? == "t",
            defaults: self.refs(12),
            user_schemas: self.oids(18),
        })
    }

    fn operator(&self) -> Option<Operator> {
        Some(Operator {
            name: self.boxed(2)?,
            schema: self.number(3)?,
            function: self.number(4)?,
            left: self.number(5)?,
            right: self.number(6)?,
            hidden: self.text(7)? == "t",
        })
    }

    fn type_(&self) -> Option<Type> {
        Some(Type {
            name: self.boxed(2)?,
            schema: self.number(3)?,
            functions: self.oids(4),
            types: self.oids(5),
            checks: Refs::default(),
        })
    }

    fn relation(&self) -> Option<Relation> {
        let kind = match self.text(4)? {
            "r" | "p" => RelationKind::Table,
            "m" => RelationKind::Materialized,
            "v" => RelationKind::View,
            "S" => RelationKind::Sequence,
            "f" => RelationKind::Foreign,
            _ => RelationKind::Composite,
        };
        let persistence = match self.text(5)? {
            "p" => Persistence::Permanent,
            "u" => Persistence::Unlogged,
            _ => Persistence::Temporary,
        };
        Some(Relation {
            name: self.boxed(2)?,
            schema: self.number(3)?,
            kind,
            persistence,
            partitioned: self.text(4)? == "p",
            partition: self.text(8)? == "t",
            row_type: self.number(6)?,
            types: Vec::new(),
            children: Vec::new(),
            rule: None,
            secured: self.text(7)? == "t",
            policies: Refs::default(),
        })
    }

    /// `key oids` with commas between. Without its text, a parameter asked for may be the node's own.
    fn refs(&self, at: usize) -> Refs {
        let mut refs = self.references(at);
        if refs.functions.iter().any(|oid| CURRENT_SETTING.contains(oid)) {
            refs.reason = refs.reason.or(Some(Reason::SideEffect));
        }
        refs
    }

    fn references(&self, at: usize) -> Refs {
        let mut refs = Refs::default();
        for entry in self.text(at).unwrap_or_default().split(',') {
            let Some((key, value)) = entry.split_once(' ') else { continue };
            let oids = value.split_whitespace().filter_map(|oid| oid.parse::<Oid>().ok()).filter(|oid| *oid != 0);
            match key {
                "funcid" | "aggfnoid" | "winfnoid" => refs.functions.extend(oids),
                "opno" | "opnos" | "eqop" | "sortop" => refs.operators.extend(oids),
                "relid" => refs.relations.extend(oids),
                "resulttype" => refs.types.extend(oids),
                "hasForUpdate" if value == "true" => refs.reason = Some(Reason::Locking),
                "SQLVALUEFUNCTION" | "TABLESAMPLECLAUSE" | "MOMENT" | "varattno" => refs.transient = true,
                "seqid" => refs.reason = Some(Reason::Sequence),
                // CMD_SELECT is 1; all that follow change something
                "commandType" if value != "1" => refs.reason = Some(Reason::Write),
                _ => {}
            }
        }
        refs
    }

    /// The text behind them tells which parameter current_setting asks for; its names are those of the references.
    fn refs_and_text(&self, at: usize, read: impl Fn(&str) -> Facts) -> Refs {
        let Some(text) = self.text(at + 1) else { return self.refs(at) };
        let mut refs = self.references(at);
        let reason = read(text).primary;
        let counts = |reason: &Reason| matches!(reason, Reason::SideEffect | Reason::NodeLocal | Reason::Sequence);
        refs.reason = refs.reason.or(reason.filter(counts));
        refs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[&str]) -> Row {
        values.iter().map(|value| (*value != "-").then(|| (*value).to_owned())).collect()
    }

    #[test]
    fn references_by_their_keys() {
        let row = row(&["d", "1", "funcid 1574,opno 96,opnos 97 16400,relid 16401,hasForUpdate false,commandType 1"]);
        let refs = Columns(&row).refs(2);
        assert_eq!(refs.functions, [1574]);
        assert_eq!((refs.operators, refs.relations, refs.reason), (vec![96, 97, 16400], vec![16401], None));
        let of = |text: &str| Columns(&vec![Some(text.to_owned())]).refs(0).reason;
        assert_eq!(of("relid 5,hasForUpdate true"), Some(Reason::Locking));
        assert_eq!((of("commandType 3"), of("")), (Some(Reason::Write), None));
        let transient = |text: &str| Columns(&vec![Some(text.to_owned())]).refs(0).transient;
        assert!(transient("relid 5,MOMENT 1") && transient("varattno -4 :vartype 28"));
        assert!(transient("relid 5,SQLVALUEFUNCTION 0") && !transient("relid 5,funcid 6"));
    }

    #[test]
    fn a_row_that_is_none_voids_the_whole() {
        assert!(parts(&[row(&["n", "2200", "public"])]).is_some());
        for bad in [row(&["x"]), row(&["n", "x", "public"]), row(&["n", "2200"]), row(&["-"]), row(&[])] {
            assert!(parts(std::slice::from_ref(&bad)).is_none(), "{bad:?}");
        }
    }
}
