//! The relations of a statement by its syntax tree: exact, with the names of common tables left out by their scope.
//!
//! sqlparser recurses: in a debug build a JOIN without ON takes up to 8 KiB of stack, a term of a chain under 512
//! bytes, in parsing, visiting and dropping together. So the tree is built, read and dropped on a stack that is sized
//! well above that by the number of tokens, and is never cloned.

use super::Name;
use super::view::View;
use sqlparser::ast::{Ident, ObjectName, ObjectNamePart, Query, SetExpr, Statement, TableFactor, Visit, Visitor};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use std::ops::ControlFlow;

/// Texts longer than this are not parsed.
pub(super) const TEXT_LENGTH: usize = 32 * 1024;
/// Brackets, brackets inside brackets and CASE deeper than this are not parsed.
const DEPTH: usize = 48;
/// More JOINs than this are not parsed.
const JOINS: usize = 128;
const STACK_BASE: usize = 512 * 1024;
const STACK_PER_TOKEN: usize = 4 * 1024;
const STACK_PER_JOIN: usize = 64 * 1024;

/// What the tree of one statement says.
#[derive(Default)]
pub(super) struct Relations {
    /// Sorted, without the common tables.
    pub(super) names: Vec<Name>,
    /// Sorted names of common tables, wherever they are known.
    pub(super) common_tables: Vec<String>,
    scopes: Vec<Scope>,
    /// The next relation visited is the name of a function in FROM.
    function: bool,
}

/// The relations that the statement names; `None` where it does not parse or is too long or too deep to try.
pub(super) fn relations(view: View) -> Option<Relations> {
    let text = view.source();
    let joins = shape(view)?;
    if text.len() > TEXT_LENGTH {
        return None;
    }
    let stack = STACK_BASE + view.tokens.len() * STACK_PER_TOKEN + joins * STACK_PER_JOIN;
    // a fault of the parser costs the tree, not the client
    stacker::maybe_grow(stack, stack, || std::panic::catch_unwind(|| parse(text)).ok().flatten())
}

/// The number of JOINs; `None` beyond the bounds.
fn shape(view: View) -> Option<usize> {
    let (mut joins, mut depth, mut deepest) = (0, 0usize, 0);
    for at in 0..view.tokens.len() {
        if view.punct(at, b'(') || view.punct(at, b'[') || view.is(at, "case") {
            depth += 1;
            deepest = deepest.max(depth);
        } else if view.punct(at, b')') || view.punct(at, b']') || view.is(at, "end") {
            depth = depth.saturating_sub(1);
        } else if view.is(at, "join") {
            joins += 1;
        }
    }
    (joins <= JOINS && deepest <= DEPTH).then_some(joins)
}

fn parse(text: &str) -> Option<Relations> {
    let statements = Parser::parse_sql(&PostgreSqlDialect {}, text).ok()?;
    let [statement] = statements.as_slice() else { return None };
    if !is_query_or_change(statement) {
        return None;
    }
    let mut relations = Relations::default();
    if statement.visit(&mut relations).is_break() {
        return None;
    }
    relations.names.sort_unstable();
    relations.names.dedup();
    relations.common_tables.sort_unstable();
    Some(relations)
}

fn is_query_or_change(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Query(_) | Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) | Statement::Merge(_)
    )
}

/// The common tables of one WITH. Queries are told apart by their address, which is only compared.
struct Scope {
    tables: Vec<(String, usize)>,
    /// How many of them can be named here.
    visible: usize,
    query: usize,
}

fn address(query: &Query) -> usize {
    std::ptr::from_ref(query).addr()
}

fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

fn name_of(relation: &ObjectName) -> Option<Name> {
    let mut parts = Vec::with_capacity(relation.0.len());
    for part in &relation.0 {
        match part {
            ObjectNamePart::Identifier(ident) => parts.push(folded(ident)),
            ObjectNamePart::Function(_) => return None,
        }
    }
    let name = parts.pop()?;
    Some(Name { schema: parts.pop(), name })
}

impl Relations {
    fn is_common_table(&self, name: &Name) -> bool {
        let named = |scope: &Scope| scope.tables.iter().take(scope.visible).any(|(table, _)| *table == name.name);
        name.schema.is_none() && self.scopes.iter().any(named)
    }
}

impl Visitor for Relations {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let here = address(query);
        if let Some(with) = &query.with {
            let tables: Vec<_> =
                with.cte_tables.iter().map(|table| (folded(&table.alias.name), address(&table.query))).collect();
            self.common_tables.extend(tables.iter().map(|(name, _)| name.clone()));
            // without RECURSIVE, one is known from the next on
            let visible = if with.recursive { tables.len() } else { 0 };
            self.scopes.push(Scope { tables, visible, query: here });
        }
        match *query.body {
            // its name comes without its quotes, so its case is lost
            SetExpr::Table(_) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let here = address(query);
        self.scopes.pop_if(|scope| scope.query == here);
        for scope in &mut self.scopes {
            if let Some(at) = scope.tables.iter().position(|(_, query)| *query == here) {
                scope.visible = scope.visible.max(at + 1);
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { args, .. } => self.function = args.is_some(),
            TableFactor::Derived { .. }
            | TableFactor::Function { .. }
            | TableFactor::UNNEST { .. }
            | TableFactor::NestedJoin { .. } => {}
            // other dialects', or read otherwise than by Postgres
            _ => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        if std::mem::take(&mut self.function) {
            return ControlFlow::Continue(());
        }
        let Some(name) = name_of(relation) else { return ControlFlow::Break(()) };
        if !self.is_common_table(&name) {
            self.names.push(name);
        }
        ControlFlow::Continue(())
    }
}
