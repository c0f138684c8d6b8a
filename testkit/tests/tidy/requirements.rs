//! `docs/conformance/requirements.md` and `cases.md` against the tests: every requirement and every case is
//! named by a test, or does not apply for a reason; no test names one that does not exist.
//!
//! A test names an id in its doc comment, in its body (a table's row) or at the start of its name
//! (`x29_a_known_version…`, `f61_to_f65_…`). The heads of files (`//!`) name nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{assert_none, files, read, root, rust_files};

const DOCUMENTS: [&str; 2] = ["docs/conformance/requirements.md", "docs/conformance/cases.md"];
/// Instead of tests; a reason follows.
const EXEMPT: &str = "not applicable: ";
/// Writes the tests that name each id into the documents, instead of comparing.
const BLESS: &str = "ANNALS_BLESS";
/// Tests that the documents list for one id.
const LISTED_MAX: usize = 6;

/// A row of a document: what its last cell says of an id.
struct Row {
    id: String,
    last_cell: String,
    place: String,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for document in DOCUMENTS {
        for (number, line) in read(Path::new(document)).lines().enumerate() {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let id = cells.first().copied().unwrap_or_default();
            let (Some(last), true) = (cells.last(), line.starts_with('|')) else { continue };
            if is_requirement(id) || is_case(id) {
                let place = format!("{document}:{}", number + 1);
                rows.push(Row { id: id.to_owned(), last_cell: (*last).to_owned(), place });
            }
        }
    }
    rows
}

/// `CS-001`
fn is_requirement(word: &str) -> bool {
    let Some((prefix, number)) = word.split_once('-') else { return false };
    (2..=3).contains(&prefix.len())
        && prefix.bytes().all(|b| b.is_ascii_uppercase())
        && number.len() == 3
        && number.bytes().all(|b| b.is_ascii_digit())
}

/// `F01`; the letters are those of the tables of cases.
fn is_case(word: &str) -> bool {
    word.len() == 3 && word.starts_with(['F', 'P', 'G', 'X']) && word[1..].bytes().all(|b| b.is_ascii_digit())
}

fn without_variant(word: &str) -> &str {
    word.strip_suffix(|c: char| c.is_ascii_lowercase()).unwrap_or(word)
}

/// What a line of text names: `BU-001`, `F08b` (a variant of F08), `CU-001 to CU-004`.
fn named(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').filter(|word| !word.is_empty());
    let mut ids: Vec<String> = Vec::new();
    let (mut last, mut open) = (None::<String>, false);
    for word in words {
        let word = word.trim_matches('-');
        let id = without_variant(word);
        if is_requirement(id) || is_case(id) {
            if let (true, Some(first)) = (open, &last) {
                ids.extend(between(first, id));
            }
            ids.push(id.to_owned());
            (last, open) = (Some(id.to_owned()), false);
        } else {
            open = word == "to" && last.is_some();
            if !open {
                last = None;
            }
        }
    }
    ids
}

/// The ids from one to another, if they are of one kind.
fn between(first: &str, to: &str) -> Vec<String> {
    let split = |id: &str| {
        let digits = id.len() - id.bytes().rev().take_while(u8::is_ascii_digit).count();
        (id[..digits].to_owned(), id[digits..].parse::<u32>().unwrap_or(0), id.len() - digits)
    };
    let ((prefix, low, width), (other, high, _)) = (split(first), split(to));
    if prefix != other {
        return Vec::new();
    }
    (low..=high).map(|number| format!("{prefix}{number:0width$}")).collect()
}

/// The ids at the start of a test's name: `x02_x03_…`, `f61_to_f65_…`, `so_005_…`, `vb002_…`.
fn named_by_name(name: &str) -> Vec<String> {
    let mut text = String::new();
    let words: Vec<&str> = name.split('_').collect();
    let mut at = 0;
    while at < words.len() {
        let word = words[at].to_uppercase();
        let next = words.get(at + 1).copied().unwrap_or_default();
        let letters = word.bytes().take_while(u8::is_ascii_uppercase).count();
        let joined = format!("{}-{}", &word[..letters], &word[letters..]);
        let split = format!("{word}-{next}");
        match () {
            () if is_case(&word) => text += &word,
            () if is_requirement(&joined) => text += &joined,
            () if is_requirement(&split) => {
                text += &split;
                at += 1;
            }
            () if word == "TO" && at > 0 => text += "to",
            () => break,
        }
        text.push(' ');
        at += 1;
    }
    named(&text)
}

/// The tests that name each id, as `file::function`.
fn tests() -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in rust_files() {
        let text = read(&file);
        let is_test = file.components().any(|part| part.as_os_str() == "tests");
        let text = match text.find("#[cfg(test)]") {
            _ if file.starts_with("testkit/tests/tidy") || file.ends_with("testkit/tests/tidy.rs") => {
                continue;
            }
            _ if is_test => &text[..],
            Some(from) => &text[from..],
            None => continue,
        };
        let mut function: Option<String> = None;
        let mut announced: Vec<String> = Vec::new();
        for line in text.lines() {
            let code = line.trim_start();
            if code.starts_with("//!") {
                continue;
            }
            if code.starts_with("///") {
                announced.extend(named(code));
                continue;
            }
            let name = function_of(code);
            // Of helpers inside a test, only the test counts.
            let indented = line.len() - code.len();
            if let Some(name) = name.filter(|_| indented <= 4) {
                announced.extend(named_by_name(&name));
                function = Some(format!("{}::{name}", file.display()));
            } else if code.is_empty() || code.starts_with("#[") {
                continue;
            }
            let ids = announced.drain(..).chain(named(code));
            for id in ids.collect::<Vec<_>>() {
                let Some(function) = &function else { continue };
                found.entry(id).or_default().insert(function.clone());
            }
            if line == "}" {
                function = None;
            }
        }
    }
    found
}

/// The name of the function, or of the table, that a line begins.
fn function_of(code: &str) -> Option<String> {
    let code = code.strip_prefix("pub(crate) ").unwrap_or(code);
    let code = code.strip_prefix("async ").unwrap_or(code);
    let rest = ["fn ", "const ", "static "].into_iter().find_map(|word| code.strip_prefix(word))?;
    let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    Some(name)
}

/// The tests that a cell lists.
fn listed(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_requirement_has_its_test() {
    let tests = tests();
    if std::env::var_os(BLESS).is_some() {
        bless(&tests);
    }
    let mut found = Vec::new();
    let mut known = BTreeSet::new();
    let none = BTreeSet::new();
    for Row { id, last_cell: cell, place } in rows() {
        let naming = tests.get(&id).unwrap_or(&none);
        if !known.insert(id.clone()) {
            found.push(format!("{place}: {id} stands twice"));
        }
        match cell.strip_prefix(EXEMPT) {
            Some(reason) if reason.len() < 20 => found.push(format!("{place}: {id} has no reason")),
            Some(_) if !naming.is_empty() => {
                found.push(format!("{place}: {id} does not apply, yet it is tested: {naming:?}"));
            }
            Some(_) => {}
            None if listed(&cell).is_empty() => {
                found.push(format!("{place}: no test for {id}; those that name it: {naming:?}"));
            }
            None => {
                let stale = listed(&cell).into_iter().filter(|test| !naming.contains(*test));
                found.extend(stale.map(|test| format!("{place}: {test} does not name {id}, or is gone")));
            }
        }
    }
    assert_none(&format!("requirements and their tests ({BLESS}=1 writes the tests that there are)"), &found);
    // What a test names must be in the documents. Other prefixes are those of other lists.
    let prefixes: BTreeSet<&str> = known.iter().filter_map(|id| Some(id.split_once('-')?.0)).collect();
    let ours = |id: &str| id.split_once('-').is_none_or(|(prefix, _)| prefixes.contains(prefix));
    let strangers: Vec<String> = tests
        .iter()
        .filter(|(id, _)| ours(id) && !known.contains(*id))
        .map(|(id, tests)| format!("{id}: {tests:?}"))
        .collect();
    assert_none("tests that name a requirement that does not exist", &strangers);
    let cases = known.iter().filter(|id| is_case(id)).count();
    assert_eq!((known.len() - cases, cases), (233, 202), "requirements and cases");
}

/// Writes the tests that name each id into its row.
fn bless(tests: &BTreeMap<String, BTreeSet<String>>) {
    for document in DOCUMENTS {
        let text: String = read(Path::new(document))
            .lines()
            .map(|line| {
                let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
                let id = cells.first().copied().unwrap_or_default();
                let naming = tests.get(id).filter(|_| line.starts_with('|') && !line.contains(EXEMPT));
                let Some(naming) = naming else { return format!("{line}\n") };
                let kept: Vec<&str> = cells[..cells.len() - 1].to_vec();
                let listed: Vec<String> =
                    naming.iter().take(LISTED_MAX).map(|test| format!("`{test}`")).collect();
                format!("| {} | {} |\n", kept.join(" | "), listed.join(", "))
            })
            .collect();
        std::fs::write(root().join(document), text).expect("a document");
    }
    assert!(!files().is_empty());
}

#[test]
fn names_are_read() {
    assert_eq!(
        named("/// BU-001, CU-002 to CU-004; X21b."),
        ["BU-001", "CU-002", "CU-002", "CU-003", "CU-004", "CU-004", "X21"]
    );
    assert_eq!(named("X509 F1 to F2 UTF-8 A-001 x01"), Vec::<String>::new());
    assert_eq!(named_by_name("f61_to_f62_groups"), ["F61", "F61", "F62", "F62"]);
    assert_eq!(named_by_name("so_005_x35_the_f64_order"), ["SO-005", "X35"]);
    assert_eq!(named_by_name("to_f64"), Vec::<String>::new());
    assert_eq!(named_by_name("gr001_groups"), ["GR-001"]);
}
