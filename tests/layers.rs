//! The rules of the house that a compiler does not check.
//!
//! `src/lib.rs` lists the modules in the order of their layers, each layer under a comment such as `// L1 decisions`. A module
//! imports only from modules listed above it; layers 0 and 1 know nothing of tokio; no file grows beyond
//! [`MAX_LINES`] outside its tests. Not looked at: paths that climb to the crate's root by `super`.

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// The longest file, without its `#[cfg(test)]` items.
const MAX_LINES: usize = 600;
/// The highest layer without sockets, timers and tasks.
const LAST_PURE_LAYER: u32 = 1;

#[test]
fn the_source_keeps_to_its_layers() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    read_into(&mut files, &source, "");
    let lib = files.iter().find(|file| file.path == "lib.rs").expect("lib.rs");
    let complaints = check(&lib.text, &files);
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

struct File {
    /// Below `src`, with `/`.
    path: String,
    text: String,
}

fn read_into(files: &mut Vec<File>, directory: &Path, prefix: &str) {
    for entry in fs::read_dir(directory).expect("a readable directory") {
        let entry = entry.expect("a readable entry");
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            read_into(files, &entry.path(), &format!("{path}/"));
        } else if path.ends_with(".rs") {
            let text = fs::read_to_string(entry.path()).expect("a readable file");
            files.push(File { path, text });
        }
    }
}

/// Everything that is wrong with these files, a line for each.
fn check(lib: &str, files: &[File]) -> Vec<String> {
    let (modules, mut complaints) = modules(lib);
    let tests = test_files(files);
    for file in files {
        let code = code_only(&file.text);
        let production = without_tests(&code);
        let mut complain = |what: String| complaints.push(format!("src/{}: {what}", file.path));

        let lines = production.lines().count();
        if lines > MAX_LINES && !tests.contains(&file.path) {
            complain(format!("{lines} lines, where {MAX_LINES} are the most"));
        }
        if file.path == "lib.rs" || file.path == "main.rs" || file.path.starts_with("bin/") {
            continue;
        }
        let module = file.path.split('/').next().unwrap_or_default();
        let module = module.trim_end_matches(".rs");
        let Some(place) = modules.iter().position(|known| known.name == module) else {
            complain("its module is not listed in src/lib.rs".to_owned());
            continue;
        };
        let pure = modules[place].layer <= LAST_PURE_LAYER && !tests.contains(&file.path);
        if pure && production.contains("tokio") {
            complain(format!("layer {} and yet it knows tokio", modules[place].layer));
        }
        for imported in imports(&code) {
            match modules.iter().position(|known| known.name == imported) {
                Some(other) if other <= place => {}
                Some(other) if modules[other].layer == modules[place].layer => {
                    complain(format!("imports {imported}, listed below it in its own layer"));
                }
                Some(_) => complain(format!("imports {imported} from a higher layer")),
                None => complain(format!("imports {imported}, not a module in src/lib.rs")),
            }
        }
    }
    complaints
}

struct Module {
    name: String,
    layer: u32,
}

/// The modules of `lib.rs` in their order, and what is wrong with the list.
fn modules(lib: &str) -> (Vec<Module>, Vec<String>) {
    let mut modules: Vec<Module> = Vec::new();
    let mut complaints = Vec::new();
    let mut layer = None;
    for line in lib.lines().map(str::trim) {
        let heading = line.strip_prefix("// L").and_then(|rest| rest.split(' ').next());
        if let Some(number) = heading.and_then(|number| number.parse::<u32>().ok()) {
            if layer.is_some_and(|last| number <= last) {
                complaints.push(format!("src/lib.rs: layer {number} is out of order"));
            }
            layer = Some(number);
        }
        let declared = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ");
        if let Some(name) = declared.and_then(|rest| rest.strip_suffix(';')) {
            if layer.is_none() {
                complaints.push(format!("src/lib.rs: {name} stands above the first layer"));
            }
            let (name, layer) = (name.to_owned(), layer.unwrap_or_default());
            modules.push(Module { name, layer });
        }
    }
    (modules, complaints)
}

/// The files of modules declared as `#[cfg(test)] mod name;`.
fn test_files(files: &[File]) -> HashSet<String> {
    let mut found = HashSet::new();
    for file in files {
        let code = code_only(&file.text);
        let directory = match file.path.strip_suffix("mod.rs") {
            Some(directory) => directory.to_owned(),
            None if file.path == "lib.rs" => String::new(),
            None => format!("{}/", file.path.trim_end_matches(".rs")),
        };
        for item in test_items(&code) {
            let words: Vec<&str> = code[item].split_whitespace().collect();
            if let [.., "mod", name] = words[..] {
                let name = name.trim_end_matches(';');
                found.insert(format!("{directory}{name}.rs"));
                found.insert(format!("{directory}{name}/mod.rs"));
            }
        }
    }
    found
}

/// The first name of each path that starts at `crate::`, in imports (with their braces) and elsewhere.
fn imports(code: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        if code[..at].ends_with(is_name) {
            continue;
        }
        let rest = code[at + prefix.len()..].trim_start();
        let Some(group) = rest.strip_prefix('{') else {
            names.push(first_name(rest));
            continue;
        };
        let mut depth = 0;
        let mut expected = true;
        for (at, c) in group.char_indices() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => expected = true,
                _ if expected && !c.is_whitespace() => {
                    names.push(first_name(&group[at..]));
                    expected = false;
                }
                _ => {}
            }
        }
    }
    names
}

fn first_name(path: &str) -> &str {
    let end = path.find(|c| !is_name(c)).unwrap_or(path.len());
    if end == 0 { &path[..path.len().min(1)] } else { &path[..end] }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The code without its `#[cfg(test)]` items.
fn without_tests(code: &str) -> String {
    let mut rest = String::with_capacity(code.len());
    let mut from = 0;
    for item in test_items(code) {
        rest.push_str(&code[from..item.start]);
        from = item.end;
    }
    rest + &code[from..]
}

/// Where the `#[cfg(test)]` items are, each up to its semicolon or closing brace.
fn test_items(code: &str) -> Vec<Range<usize>> {
    let mut items: Vec<Range<usize>> = Vec::new();
    for (start, _) in code.match_indices("#[cfg(test)]") {
        if items.last().is_some_and(|last| start < last.end) {
            continue;
        }
        let mut depth = 0usize;
        let end = code[start..].char_indices().find(|&(_, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && matches!(c, ';' | '}')
        });
        let length = end.map_or(code.len() - start, |(at, c)| at + c.len_utf8());
        items.push(start..start + length);
    }
    items
}

/// The text with its comments and the contents of its literals left out; the lines stay as they are.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if c == '"' {
            quoted(rest)
        } else if let Some(length) = raw_string(rest).filter(|_| !code.ends_with(is_name)) {
            length
        } else if c == '\'' {
            char_literal(rest)
        } else {
            0
        };
        if skipped == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().filter(|&c| c == '\n'));
            rest = &rest[skipped..];
        }
    }
    code
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a literal in plain quotes, escapes included.
fn quoted(text: &str) -> usize {
    let quote = text.as_bytes()[0];
    let mut escaped = true;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if byte == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_string(text: &str) -> Option<usize> {
    let after = ["br", "cr", "r"].iter().find_map(|prefix| text.strip_prefix(prefix))?;
    let body = after.trim_start_matches('#');
    let body = body.strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(after.len() - body.len() - 1));
    let end = body.find(&closing).map_or(body.len(), |at| at + closing.len());
    Some(text.len() - body.len() + end)
}

/// The length of a character literal, 0 where the quote begins a lifetime.
fn char_literal(text: &str) -> usize {
    let mut chars = text.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => quoted(text),
        _ => 0,
    }
}

const LIB: &str = "\
//! Text.
// L0 values
pub mod error;
pub mod wire;

// L1 decisions
pub mod route;
pub mod cache;

// L2 sockets
pub mod net;
";

fn complaints(path: &str, text: &str) -> Vec<String> {
    let file = File { path: path.to_owned(), text: text.to_owned() };
    check(LIB, &[file])
}

#[test]
fn imports_from_above_are_fine() {
    let text = "use crate::error::Error;\nuse crate::{error, wire::{self, read::Reader}};\nuse tokio::net;";
    assert_eq!(complaints("net/mod.rs", text), [""; 0]);
    assert_eq!(complaints("wire.rs", "use super::x; use crate::wire::tag::Tag;"), [""; 0]);
}

#[test]
fn imports_from_below_are_found_in_every_form() {
    for text in [
        "use crate::net::Stream;",
        "use crate::{error::Error, net};",
        "use crate::{\n    error::{A, B},\n    net::{self, tls::{Tls}},\n};",
        "fn f() { crate::net::listen() }",
        "pub(in crate::net) fn f() {}",
        "#[cfg(test)]\nmod tests { use crate::net; }",
        "const QUOTE: char = '\"'; use crate::net; const OTHER: char = '\"';",
        "fn f<'a>(x: &'a str) -> &'a str { crate::net::g(x) }",
    ] {
        let expected = "src/route/mod.rs: imports net from a higher layer";
        assert_eq!(complaints("route/mod.rs", text), [expected], "{text}");
    }
    let expected = "src/wire/read.rs: imports route from a higher layer";
    assert_eq!(complaints("wire/read.rs", "use crate::route;"), [expected]);
}

#[test]
fn imports_from_a_later_line_of_the_same_layer_are_found() {
    let expected = "src/route/freshness.rs: imports cache, listed below it in its own layer";
    assert_eq!(complaints("route/freshness.rs", "use crate::cache;"), [expected]);
    assert_eq!(complaints("cache.rs", "use crate::route;"), [""; 0]);
}

#[test]
fn unlisted_modules_are_found() {
    let expected = "src/route.rs: imports *, not a module in src/lib.rs";
    assert_eq!(complaints("route.rs", "use crate::*;"), [expected]);
    let expected = "src/stray/a.rs: its module is not listed in src/lib.rs";
    assert_eq!(complaints("stray/a.rs", ""), [expected]);
}

#[test]
fn tokio_is_found_in_pure_layers_alone() {
    let expected = "src/route.rs: layer 1 and yet it knows tokio";
    assert_eq!(complaints("route.rs", "use tokio::time::Instant;"), [expected]);
    for text in [
        "// no tokio here",
        "/* nor /* tokio */ tokio */",
        "const NAME: &str = \"tokio\";",
        "const NAME: &str = r#\"a \"tokio\" quoted\"#;",
        "#[cfg(test)]\nmod tests {\n    fn f() { { tokio::spawn() } }\n}",
    ] {
        assert_eq!(complaints("route.rs", text), [""; 0], "{text}");
    }
    let after = "#[cfg(test)]\nmod tests { fn f() {} }\nuse tokio::spawn;";
    assert_eq!(complaints("route.rs", after), [expected]);
    assert_eq!(complaints("net.rs", "use tokio::spawn;"), [""; 0]);
}

#[test]
fn long_files_are_found_but_their_tests_do_not_count() {
    let long = "fn f() {}\n".repeat(MAX_LINES);
    assert_eq!(complaints("route.rs", &long), [""; 0]);
    let tested = format!("{long}#[cfg(test)] mod tests {{\n{long}}}");
    assert_eq!(complaints("route.rs", &tested), [""; 0]);
    let longer = format!("{long}// one more\n");
    let expected = "src/route.rs: 601 lines, where 600 are the most";
    assert_eq!(complaints("route.rs", &longer), [expected]);
}

#[test]
fn files_of_tests_alone_are_known_by_their_declaration() {
    let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
    let long = "use tokio::spawn;\n".repeat(MAX_LINES + 1);
    let parent = "#[cfg(test)]\nmod model;\nmod real;";
    let files =
        [file("route/balance.rs", parent), file("route/balance/model.rs", &long), file("route/balance/real.rs", &long)];
    let complaints = check(LIB, &files);
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(complaints.iter().all(|line| line.starts_with("src/route/balance/real.rs")));
}

#[test]
fn a_list_out_of_order_is_found() {
    let (_, complaints) = modules("pub mod a;\n// L1 x\npub mod b;\n// L0 y\npub mod c;");
    let expected = ["src/lib.rs: a stands above the first layer", "src/lib.rs: layer 0 is out of order"];
    assert_eq!(complaints, expected);
}
