//! A snapshot from its parts: indexes by name and by type, and what the server's own functions mean.

use std::collections::{HashMap, HashSet};

use super::judge::reason_of;
use super::{Cast, Catalog, FIRST_USER_OID, Function, Oid, Operator, Refs, Relation, Size, Type, Volatility, path};
use crate::sql::{Reason, builtins, functions};

/// The parts as a server told them, in any order.
#[derive(Debug, Default)]
pub struct Parts {
    pub schemas: Vec<(Box<str>, Oid)>,
    /// Of pg_catalog.
    pub own_functions: Vec<(Oid, Box<str>, Volatility)>,
    /// With their row types.
    pub own_relations: Vec<(Oid, Box<str>, Oid)>,
    pub functions: Vec<(Oid, Function)>,
    /// Aggregates with the functions they are made of.
    pub aggregates: Vec<(Oid, Vec<Oid>)>,
    pub operators: Vec<(Oid, Operator)>,
    pub casts: Vec<Cast>,
    pub types: Vec<(Oid, Type)>,
    /// Domains, with what a check of theirs does.
    pub checks: Vec<(Oid, Refs)>,
    pub relations: Vec<(Oid, Relation)>,
    /// Relations with the user types of their columns.
    pub columns: Vec<(Oid, Vec<Oid>)>,
    /// Parent and child.
    pub inherits: Vec<(Oid, Oid)>,
    /// Tables whose triggers, rules or expressions may change others, or run what users made.
    pub leading_on: Vec<Oid>,
    /// Views with what they do.
    pub rules: Vec<(Oid, Refs)>,
    /// Tables with what a policy of theirs does.
    pub policies: Vec<(Oid, Refs)>,
    pub defaults: Vec<path::Default>,
}

impl Parts {
    /// `bytes`: what the server sent.
    pub fn finish(mut self, generation: u64, bytes: usize) -> Catalog {
        self.assemble();
        let entries = self.functions.len()
            + self.operators.len()
            + self.casts.len()
            + self.types.len()
            + self.relations.len()
            + self.schemas.len();
        let shadows = |(_, found): &&(Oid, Type)| builtins::is_type(&found.name);
        let shadowing_types = self.types.iter().filter(shadows).map(|(oid, _)| *oid).collect();
        let mut catalog = Catalog {
            generation,
            size: Size { entries, bytes },
            schemas: self.schemas.into_iter().collect(),
            functions_by_name: by_name(self.functions.iter().map(|(oid, f)| (&f.name, *oid))),
            operators_by_name: by_name(self.operators.iter().map(|(oid, o)| (&o.name, *oid))),
            types_by_name: by_name(self.types.iter().map(|(oid, t)| (&t.name, *oid))),
            relations_by_name: by_name(self.relations.iter().map(|(oid, r)| (&r.name, *oid))),
            row_types: row_types(&self.relations, &self.own_relations),
            functions: self.functions.into_iter().collect(),
            operators: self.operators.into_iter().collect(),
            types: self.types.into_iter().collect(),
            relations: self.relations.into_iter().collect(),
            leading_on: self.leading_on.into_iter().collect(),
            casts: self.casts,
            shadowing_types,
            node_local: own_node_local(&self.own_relations),
            defaults: self.defaults,
            ..Catalog::default()
        };
        catalog.know_own_functions(&self.own_functions);
        catalog.index_types();
        catalog
    }

    /// Puts together what came in different rows.
    fn assemble(&mut self) {
        let mut aggregates: HashMap<Oid, Vec<Oid>> = self.aggregates.drain(..).collect();
        for (oid, function) in &mut self.functions {
            if let Some(parts) = aggregates.remove(oid) {
                function.body = super::Body::Parts(parts);
            }
        }
        let types: HashMap<Oid, usize> = self.types.iter().enumerate().map(|(at, (oid, _))| (*oid, at)).collect();
        for (oid, check) in self.checks.drain(..) {
            if let Some(at) = types.get(&oid) {
                self.types[*at].1.checks.add(check);
            }
        }
        let relations: HashMap<Oid, usize> =
            self.relations.iter().enumerate().map(|(at, (oid, _))| (*oid, at)).collect();
        let mut with = |oid: Oid, f: &mut dyn FnMut(&mut Relation)| {
            if let Some(at) = relations.get(&oid) {
                f(&mut self.relations[*at].1);
            }
        };
        for (oid, types) in self.columns.drain(..) {
            with(oid, &mut |relation| relation.types.clone_from(&types));
        }
        for (parent, child) in self.inherits.drain(..) {
            with(parent, &mut |relation| relation.children.push(child));
        }
        for (oid, rule) in self.rules.drain(..) {
            with(oid, &mut |relation| relation.rule.get_or_insert_default().add(rule.clone()));
        }
        for (oid, policy) in self.policies.drain(..) {
            with(oid, &mut |relation| relation.policies.add(policy.clone()));
        }
    }
}

impl Refs {
    /// Both of them.
    fn add(&mut self, other: Refs) {
        self.functions.extend(other.functions);
        self.operators.extend(other.operators);
        self.relations.extend(other.relations);
        self.types.extend(other.types);
        self.reason = self.reason.or(other.reason);
        self.transient |= other.transient;
    }
}

fn by_name<'a>(objects: impl Iterator<Item = (&'a Box<str>, Oid)>) -> HashMap<Box<str>, Vec<Oid>> {
    let mut by_name = HashMap::<Box<str>, Vec<Oid>>::new();
    for (name, oid) in objects {
        by_name.entry(name.clone()).or_default().push(oid);
    }
    by_name
}

fn row_types(relations: &[(Oid, Relation)], own: &[(Oid, Box<str>, Oid)]) -> HashMap<Oid, Oid> {
    let made = relations.iter().map(|(oid, relation)| (relation.row_type, *oid));
    made.chain(own.iter().map(|(oid, _, row_type)| (*row_type, *oid))).filter(|(row_type, _)| *row_type != 0).collect()
}

fn own_node_local(relations: &[(Oid, Box<str>, Oid)]) -> HashSet<Oid> {
    relations.iter().filter(|(_, name, _)| builtins::is_node_local(name)).map(|(oid, ..)| *oid).collect()
}

impl Catalog {
    /// By name where that is known, else by label: what no list names is what operators, types and estimates are made of.
    fn know_own_functions(&mut self, own: &[(Oid, Box<str>, Volatility)]) {
        let mut volatile = HashSet::new();
        for (oid, name, volatility) in own {
            let class = functions::class(name);
            if !class.map_or(*volatility == Volatility::Immutable, functions::Class::is_cacheable) {
                self.transient.insert(*oid);
            }
            let reason = match class {
                Some(class) => reason_of(class),
                None if *volatility != Volatility::Volatile => None,
                None => Some(Reason::UnknownFunction),
            };
            match reason {
                Some(reason) => {
                    volatile.insert(name.clone());
                    self.hazards.insert(*oid, (name.clone(), reason));
                }
                None => {
                    self.harmless.insert(name.clone());
                }
            }
        }
        self.harmless.retain(|name| !volatile.contains(name));
    }

    fn index_types(&mut self) {
        for cast in &self.casts {
            let mut free = true;
            for oid in [cast.source, cast.target].into_iter().filter(|oid| *oid >= FIRST_USER_OID) {
                free = false;
                self.casts_by_type.entry(oid).or_default().push(cast.function);
            }
            if free {
                self.free_casts.push(cast.function);
            }
        }
        for (oid, operator) in self.operators.iter().filter(|(_, operator)| builtins::is_operator(&operator.name)) {
            let mut free = true;
            for operand in [operator.left, operator.right].into_iter().filter(|oid| *oid >= FIRST_USER_OID) {
                free = false;
                self.operators_by_type.entry(operand).or_default().push(*oid);
            }
            if free {
                self.free_operators.push(*oid);
            }
        }
    }
}
