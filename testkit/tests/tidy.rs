//! The house rules that no compiler checks: who may know whom, what may not be called, what must be
//! written down.

#[path = "tidy/requirements.rs"]
mod requirements;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use annals_domain::event::Event;
use annals_domain::ids::ResourceId;
use annals_domain::scim::resource::Document;
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Longest Rust file, in lines. A file that hits it hides more than one thing.
const FILE_LINES_MAX: usize = 1_500;

/// Who may know whom (design: "The house"); `annals` may know all, everyone may use `testkit` in tests.
const ARROWS: [(&str, &[&str]); 8] = [
    ("annals-domain", &[]),
    ("annals-store", &["annals-domain"]),
    ("annals-bus", &["annals-store", "annals-domain"]),
    ("annals-api", &["annals-store", "annals-domain"]),
    ("annals-projector", &["annals-store", "annals-bus", "annals-domain"]),
    ("annals-workers", &["annals-store", "annals-bus", "annals-domain"]),
    (
        "annals",
        &["annals-api", "annals-bus", "annals-domain", "annals-projector", "annals-store", "annals-workers"],
    ),
    (
        "annals-testkit",
        &["annals-api", "annals-bus", "annals-domain", "annals-projector", "annals-store", "annals-workers"],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(
            ["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"].map(str::to_owned).to_vec(),
        )
        .exec()
        .expect("cargo metadata")
}

/// Every file that is, or would be, committed.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root())
        .output()
        .expect("git ls-files");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).expect("file names are UTF-8");
    let mut files: Vec<PathBuf> =
        list.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect();
    files.retain(|file| root().join(file).is_file());
    files.sort();
    files
}

fn read(file: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(root().join(file)).unwrap_or_default()).into_owned()
}

fn rust_files() -> Vec<PathBuf> {
    files().into_iter().filter(|file| file.extension().is_some_and(|e| e == "rs")).collect()
}

/// The lines of a source file that run in production: no comments, nothing from `#[cfg(test)]` on. Test
/// modules stand at the end of their file.
fn production_lines(file: &Path) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    for (number, line) in read(file).lines().enumerate() {
        if line.trim_start().starts_with("#[cfg(test)]") {
            break;
        }
        if !line.trim_start().starts_with("//") {
            lines.push((number + 1, line.to_owned()));
        }
    }
    lines
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn crates_know_only_whom_they_may() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let members: BTreeSet<&str> =
        metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    assert_eq!(members, allowed.keys().copied().collect(), "the crates and the table of arrows differ");
    let mut found = Vec::new();
    for package in metadata.workspace_packages() {
        let may = allowed[package.name.as_str()];
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            let inside = members.contains(name) && name != package.name.as_str();
            if inside && dependency.kind != DependencyKind::Development && !may.contains(&name) {
                found.push(format!("{} depends on {name}", package.name));
            }
            if inside && dependency.kind == DependencyKind::Development && name == "annals" {
                found.push(format!("{} depends on the binary in tests", package.name));
            }
        }
    }
    assert_none("arrows that the house does not have", &found);
}

#[test]
fn crates_use_only_the_libraries_of_their_job() {
    // What a crate must not be able to do, it does not link.
    let banned: [(&str, &[&str]); 6] = [
        ("annals-domain", &["tokio", "sqlx", "axum", "reqwest", "async-nats", "rand", "tracing", "metrics"]),
        ("annals-store", &["axum", "reqwest", "async-nats"]),
        ("annals-bus", &["sqlx", "axum", "reqwest"]),
        ("annals-projector", &["sqlx", "axum", "reqwest"]),
        ("annals-workers", &["sqlx", "axum", "async-nats"]),
        ("annals-api", &["sqlx", "reqwest", "async-nats"]),
    ];
    let metadata = metadata();
    let mut found = Vec::new();
    for (name, banned) in banned {
        let package = metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == name);
        for dependency in &package.expect("a member").dependencies {
            if dependency.kind == DependencyKind::Normal && banned.contains(&dependency.name.as_str()) {
                found.push(format!("{name} links {}", dependency.name));
            }
        }
    }
    assert_none("libraries where they do not belong", &found);
}

#[test]
fn dependencies_have_licences_and_sources_we_accept() {
    let deny: toml::Value = read(Path::new("deny.toml")).parse::<toml::Table>().expect("deny.toml").into();
    let strings = |value: &toml::Value| -> BTreeSet<String> {
        let list = value.as_array().expect("a list").iter();
        list.map(|v| v.as_str().or_else(|| v["crate"].as_str()).expect("a name").to_owned()).collect()
    };
    let allowed = strings(&deny["licenses"]["allow"]);
    let banned = strings(&deny["bans"]["deny"]);
    let metadata = metadata();
    let mut found = Vec::new();
    for package in &metadata.packages {
        let Some(source) = &package.source else { continue };
        if !source.is_crates_io() {
            found.push(format!("{} comes from {source}", package.name));
        }
        if banned.contains(package.name.as_str()) {
            found.push(format!("{} is banned", package.name));
        }
        let licence = package.license.clone().unwrap_or_default().replace('/', " OR ");
        if !accepts(&licence, &allowed) {
            found.push(format!("{} has the licence {licence:?}", package.name));
        }
    }
    assert_none("dependencies that deny.toml refuses", &found);
}

/// Whether an SPDX expression can be satisfied with the allowed licences. Parentheses are rare and only
/// ever group alternatives inside conjunctions, so the expression is read as AND of ORs when it has them.
fn accepts(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let one = |licence: &str| allowed.contains(licence.trim().trim_matches(['(', ')']).trim());
    if expression.contains('(') {
        return expression.split(" AND ").all(|part| part.split(" OR ").any(one));
    }
    expression.split(" OR ").any(|part| part.split(" AND ").all(one))
}

#[test]
fn the_domain_has_no_clock_no_chance_no_io() {
    let banned = [
        "SystemTime::now",
        "Instant::now",
        "now_utc",
        "now_local",
        "rand::",
        "Uuid::new_v4",
        "Uuid::now_v7",
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "std::thread",
        "tokio::",
        "println!",
        "eprintln!",
    ];
    let mut found = Vec::new();
    for file in rust_files().iter().filter(|file| file.starts_with("domain/src")) {
        for (number, line) in production_lines(file) {
            for call in banned.iter().filter(|call| line.contains(**call)) {
                found.push(format!("{}:{number}: {call}", file.display()));
            }
        }
    }
    assert_none("calls that make the domain impure", &found);
}

#[test]
fn nothing_unfinished_and_nothing_that_panics_in_production() {
    let everywhere = ["todo!(", "unimplemented!(", "dbg!(", "#[allow(", "FIXME", "XXX"];
    let production = [".unwrap()", ".unwrap_err()", ".expect(", ".expect_err(", "panic!("];
    let mut found = Vec::new();
    for file in rust_files() {
        let text = read(&file);
        let own = file.ends_with("testkit/tests/tidy.rs");
        for (number, line) in text.lines().enumerate().filter(|_| !own) {
            for mark in everywhere.iter().filter(|mark| line.contains(**mark)) {
                found.push(format!("{}:{}: {mark}", file.display(), number + 1));
            }
        }
        let is_production = file.components().nth(1).is_some_and(|part| part.as_os_str() == "src")
            && !file.starts_with("testkit")
            && !file.starts_with("fuzz");
        for (number, line) in production_lines(&file).into_iter().filter(|_| is_production) {
            // What is compiled in cannot be bad data.
            if line.contains("part of the program") {
                continue;
            }
            for call in production.iter().filter(|call| line.contains(**call)) {
                found.push(format!("{}:{number}: {call}", file.display()));
            }
        }
    }
    assert_none("unfinished code, or code that panics on bad data", &found);
}

#[test]
fn steps_do_not_sleep() {
    let mut found = Vec::new();
    for file in rust_files() {
        if !["projector/src", "workers/src", "domain/src"].iter().any(|folder| file.starts_with(folder)) {
            continue;
        }
        for (number, line) in production_lines(&file) {
            if line.contains("sleep(") || line.contains("sleep_until(") {
                found.push(format!("{}:{number}: {}", file.display(), line.trim()));
            }
        }
    }
    assert_none("only the lifecycle module sleeps", &found);
}

#[test]
fn files_are_short_enough_to_read() {
    let mut found = Vec::new();
    for file in rust_files() {
        let lines = read(&file).lines().count();
        if lines > FILE_LINES_MAX {
            found.push(format!("{}: {lines} lines", file.display()));
        }
    }
    assert_none("files that hide more than one thing", &found);
}

#[test]
fn every_event_kind_is_documented() {
    let document = || Document::default();
    let member = || vec![ResourceId::from_text("m")];
    let all = [
        Event::Created { document: document() },
        Event::Changed { changes: vec![] },
        Event::Activated { changes: vec![] },
        Event::Deactivated { changes: vec![] },
        Event::RolesChanged { changes: vec![] },
        Event::PasswordSet,
        Event::MembersAdded { members: member() },
        Event::MembersRemoved { members: member() },
        Event::Deleted,
        Event::Erased,
    ];
    let text = read(Path::new("docs/events.md"));
    let missing: Vec<String> =
        all.iter().map(|event| event.what().to_owned()).filter(|what| !text.contains(what)).collect();
    assert_none("event kinds that docs/events.md does not explain", &missing);
    // A new variant must be added above: this stops compiling then.
    for event in all {
        match event {
            Event::Created { .. }
            | Event::Changed { .. }
            | Event::Activated { .. }
            | Event::Deactivated { .. }
            | Event::RolesChanged { .. }
            | Event::PasswordSet
            | Event::MembersAdded { .. }
            | Event::MembersRemoved { .. }
            | Event::Deleted
            | Event::Erased => {}
        }
    }
}

#[test]
fn every_migration_exists_for_both_databases() {
    let names = |folder: &str| -> Vec<String> {
        let folder = Path::new(folder);
        files()
            .iter()
            .filter(|file| file.parent() == Some(folder) && file.extension().is_some_and(|e| e == "sql"))
            .filter_map(|file| Some(file.file_stem()?.to_str()?.split_once('_')?.1.to_owned()))
            .collect()
    };
    let postgres = names("store/migrations/postgres");
    let mut sqlite = Vec::new();
    for area in ["journal", "keys", "model", "lanes"] {
        sqlite.extend(names(&format!("store/migrations/sqlite/{area}")));
    }
    assert!(!postgres.is_empty());
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    assert_eq!(sorted(postgres), sorted(sqlite), "migrations by name: PostgreSQL, then SQLite");
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut found = Vec::new();
    for file in files().iter().filter(|file| file.extension().is_some_and(|e| e == "md")) {
        let folder = file.parent().unwrap_or(Path::new(""));
        let text = without_code(&read(file));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(link, _)| link)) {
            let link = link.split_whitespace().next().unwrap_or_default();
            if link.is_empty() || link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { folder.join(path) };
            if !root().join(&target).exists() {
                found.push(format!("{}: {link}", file.display()));
            } else if !anchor.is_empty() && !headings(&read(&target)).contains(anchor) {
                found.push(format!("{}: {link} (no such heading)", file.display()));
            }
        }
    }
    // Comments and messages name documents by path.
    for file in files().iter().filter(|file| !file.ends_with("testkit/tests/tidy.rs")) {
        let text = read(file);
        for rest in text.split("docs/").skip(1) {
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_'))
                .collect();
            let name = name.trim_end_matches('.');
            if name.ends_with(".md") && !root().join("docs").join(name).exists() {
                found.push(format!("{}: docs/{name}", file.display()));
            }
        }
    }
    assert_none("links to nowhere", &found);
}

fn without_code(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The anchors of a document's headings, as GitHub makes them.
fn headings(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| line.starts_with('#'));
    lines
        .map(|line| {
            let kept = line.trim_start_matches('#').trim().to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn nothing_committed_knows_the_machine_it_was_written_on() {
    let machine = ["/work/", "/root/", "/opt/annals-test", "/tmp/contract", "/tmp/dl"];
    let mut found = Vec::new();
    for file in files().iter().filter(|file| !file.ends_with("testkit/tests/tidy.rs")) {
        for (number, line) in read(file).lines().enumerate() {
            for path in machine.iter().filter(|path| line.contains(**path)) {
                found.push(format!("{}:{}: {path}", file.display(), number + 1));
            }
        }
    }
    assert_none("paths of one machine", &found);
}

#[test]
fn scripts_can_be_run() {
    use std::os::unix::fs::PermissionsExt as _;
    for script in ["test", ".ci/run"] {
        let mode = std::fs::metadata(root().join(script)).expect(script).permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} is not executable");
    }
}

#[test]
fn alerts_ask_for_metrics_that_exist() {
    let alerts = read(Path::new("deploy/prometheus/alerts.yml"));
    let sources: String =
        rust_files().iter().filter(|file| !file.starts_with("testkit")).map(|f| read(f)).collect();
    let mut found = Vec::new();
    for rest in alerts.split("annals_").skip(1) {
        let name: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        if !sources.contains(&format!("\"annals_{name}\"")) {
            found.push(format!("annals_{name}"));
        }
    }
    assert_none("alerts on metrics that nobody counts", &found);
}
