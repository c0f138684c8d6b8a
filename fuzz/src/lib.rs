//! What the SCIM engine promises for any input. Each function takes arbitrary bytes and panics if a promise
//! is broken. `fuzz_targets` gives them to libFuzzer, `domain/tests/fuzz.rs` to a bounded run with stable Rust.
//!
//! Bytes that begin with a control character are read as choices from a dictionary, all others as the text
//! itself, so that seeds are plain text.

use std::sync::{Arc, LazyLock};

use annals_domain::clock::Timestamp;
use annals_domain::definition::{Definitions, ResourceTypeDefinition, SchemaDefinition};
use annals_domain::ids::ResourceId;
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::error::ScimError;
use annals_domain::scim::filter::{
    Bound, Budget, Context, Filter, LookupTermKind, Subject, bind, lookup_terms, matches,
    parse as parse_filter, uses_links,
};
use annals_domain::scim::patch::{Op, Operation, Patched, apply, parse_request};
use annals_domain::scim::path::{Named, PatchPath, resolve};
use annals_domain::scim::project::Projection;
use annals_domain::scim::resource::{Document, Meta, apply_changes, diff, parse, parse_replacement, render};
use annals_domain::scim::schema::{ENTERPRISE_USER, Registry, ResourceType};
use annals_domain::view::{LookupSettings, index_rows, lookups, references};
use serde_json::{Map, Value, json};

/// Deepest nesting that is made of choices; the API refuses what is deeper than 64 before it is parsed.
const DEPTH_MAX: usize = 4;

/// For what was printed from a filter within the default bounds.
const ROOMY: Budget = Budget { bytes_max: usize::MAX, terms_max: 1_000, depth_max: 100 };

/// Words of filters and paths. Blanks are words too, so that they can be missing.
const WORDS: &[&str] = &[
    " ",
    " ",
    " ",
    "userName",
    "title",
    "active",
    "emails",
    "emails.type",
    "value",
    "type",
    "primary",
    "name",
    "name.givenName",
    "members",
    "groups",
    "id",
    "meta.created",
    "meta.version",
    "externalId",
    "schemas",
    "manager",
    "password",
    "x509Certificates",
    "urn:ietf:params:scim:schemas:core:2.0:User:",
    "department",
    ".value",
    ".",
    "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:",
    ":",
    "[",
    "]",
    "(",
    ")",
    "not",
    "and",
    "or",
    "pr",
    "eq",
    "ne",
    "co",
    "sw",
    "ew",
    "gt",
    "ge",
    "lt",
    "le",
    "true",
    "false",
    "null",
    "TRUE",
    "1",
    "-1.5e3",
    "\"",
    "\"work\"",
    "\"u1\"",
    "\"2026-01-10T08:00:00.000Z\"",
    "\"\"",
    "\"\\\"\"",
    "\"]\"",
    "\\",
    "ß",
    "\u{0}",
    ",",
    "'x'",
    "$ref",
    "display",
    "nosuch",
    "\t",
    "size",
    "made",
    "parts",
    "sizes",
    "keepers",
    "urn:xx:More:",
    "1e21",
];

/// Names of members in bodies and PATCH messages.
const NAMES: &[&str] = &[
    "schemas",
    "id",
    "externalId",
    "userName",
    "name",
    "displayName",
    "title",
    "active",
    "emails",
    "roles",
    "groups",
    "members",
    "password",
    "meta",
    "value",
    "type",
    "primary",
    "display",
    "$ref",
    "givenName",
    "familyName",
    "manager",
    "department",
    "managerId",
    "addresses",
    "country",
    "x509Certificates",
    "name.givenName",
    "emails.value",
    "emails[type eq \"work\"].value",
    "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User",
    "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department",
    "USERNAME",
    "nosuch",
    "",
    "urn:ietf:params:scim:schemas:core:2.0:User:title",
    "size",
    "count",
    "made",
    "code",
    "batch",
    "site",
    "blob",
    "page",
    "sizes",
    "dates",
    "spot",
    "parts",
    "keeper",
    "keepers",
    "urn:xx:More",
];

/// Texts of values.
const TEXTS: &[&str] = &[
    "",
    "a",
    "A",
    "work",
    "home",
    "true",
    "False",
    "u1",
    "u2",
    "u3",
    "g1",
    "../Users/u3",
    "AAEC",
    "%",
    "2026-02-01T01:00:00+01:00",
    "1",
    "anna@work.test",
    "anna@home.test",
    "ß",
    "ＢＯ",
    "a b",
    "a\u{0}b",
    "urn:ietf:params:scim:schemas:core:2.0:User",
    "urn:ietf:params:scim:schemas:core:2.0:Group",
    "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User",
    "{\"value\":\"Admin\",\"displayName\":\"Admin\"}",
];

/// Paths of PATCH operations.
const PATHS: &[&str] = &[
    "emails",
    "emails[type eq \"work\"]",
    "emails[type eq \"work\"].value",
    "emails[type eq \"other\"].value",
    "emails[value eq \"anna@home.test\"].primary",
    "emails.type",
    "emails[primary eq true]",
    "emails[not (type pr)]",
    "emails[type eq \"a\" and display eq \"b\"].value",
    "emails[type ne \"work\"]",
    "name",
    "name.givenName",
    "title",
    "active",
    "userName",
    "schemas",
    "schemas[value eq \"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User\"]",
    "roles",
    "roles[primary eq \"True\"].value",
    "addresses[type eq \"work\"].country",
    "members",
    "members[value eq \"u1\"]",
    "members[value eq \"u1\" or value eq \"u2\"]",
    "groups",
    "id",
    "password",
    "manager",
    "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User",
    "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager",
    "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager.value",
    "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department",
    "x509Certificates.value",
    "displayName",
    "externalId",
    "meta.version",
    "nosuch",
    "",
    "photos",
    "ims.type",
    "size",
    "made",
    "batch",
    "sizes",
    "sizes[value gt 0]",
    "dates",
    "spot",
    "spot.size",
    "parts",
    "parts[size gt 1].size",
    "parts[value eq \"b\"]",
    "parts[type eq \"other\"].size",
    "parts.made",
    "keeper",
    "keeper.value",
    "keeper.made",
    "keepers",
    "keepers[value eq \"u2\"].type",
    "keepers[type eq \"work\"].value",
    "urn:xx:More:size",
    "urn:xx:More",
];

/// Choices, made of bytes; when they have run out, the first of everything.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl<'a> Choices<'a> {
    /// The choices in bytes that are not the text itself.
    fn of(data: &'a [u8]) -> Option<Self> {
        data.first().is_some_and(|byte| *byte < 0x20).then(|| Choices(data[1..].iter()))
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or_default()) % bound
    }

    fn one<'b>(&mut self, of: &[&'b str]) -> &'b str {
        of[self.below(of.len())]
    }

    fn words(mut self) -> String {
        let mut text = String::new();
        while self.0.len() > 0 {
            text += self.one(WORDS);
        }
        text
    }

    fn json(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 5 } else { 8 }) {
            0 | 1 => json!(self.one(TEXTS)),
            2 => json!(self.below(2) == 1),
            3 => [json!(0), json!(-7), json!(1.5), json!(u64::MAX), json!(-0.0), json!(1e21)][self.below(6)]
                .clone(),
            4 => Value::Null,
            5 => (0..self.below(4)).map(|_| self.json(depth - 1)).collect(),
            _ => self.object(depth - 1),
        }
    }

    fn object(&mut self, depth: usize) -> Value {
        let members = (0..self.below(5)).map(|_| (self.one(NAMES).to_owned(), self.json(depth)));
        Value::Object(members.collect())
    }

    fn operations(&mut self) -> Value {
        let operation = |choices: &mut Self| {
            let mut operation = json!({"op": choices.one(&["add", "remove", "replace", "Replace"])});
            if choices.below(4) > 0 {
                operation["path"] = json!(choices.one(PATHS));
            }
            if choices.below(4) > 0 {
                operation["value"] = choices.json(DEPTH_MAX);
            }
            operation
        };
        (0..=self.below(4)).map(|_| operation(self)).collect()
    }
}

/// A tenant's own schema, with every type of attribute alone, in lists and in parts.
const THING: &str = "urn:xx:Thing";
/// An extension of it, with a name that the schema has too.
const MORE: &str = "urn:xx:More";

fn registry() -> Arc<Registry> {
    static REGISTRY: LazyLock<Arc<Registry>> = LazyLock::new(|| {
        let size = json!({"name": "size", "type": "decimal"});
        let thing = json!({"id": THING, "attributes": [
            size,
            {"name": "count", "type": "integer"},
            {"name": "made", "type": "dateTime"},
            {"name": "flag", "type": "boolean"},
            {"name": "page", "type": "reference", "referenceTypes": ["external"]},
            {"name": "blob", "type": "binary", "caseExact": true},
            {"name": "code", "caseExact": true, "uniqueness": "server"},
            {"name": "site", "canonicalValues": ["work", "home"], "x-closed": true},
            {"name": "batch", "mutability": "immutable"},
            {"name": "sizes", "type": "decimal", "multiValued": true},
            {"name": "dates", "type": "dateTime", "multiValued": true},
            {"name": "spot", "type": "complex", "subAttributes": [size, {"name": "made", "type": "dateTime"}]},
            {"name": "parts", "type": "complex", "multiValued": true, "subAttributes": [
                {"name": "value"}, {"name": "type"}, {"name": "primary", "type": "boolean"}, size,
                {"name": "made", "type": "dateTime"}, {"name": "batch", "mutability": "immutable"}]},
            {"name": "keeper", "type": "complex", "subAttributes": [
                {"name": "value"}, {"name": "$ref", "type": "reference", "referenceTypes": ["User"]},
                {"name": "made", "type": "dateTime"}]},
            {"name": "keepers", "type": "complex", "multiValued": true, "subAttributes": [
                {"name": "value"}, {"name": "$ref", "type": "reference", "referenceTypes": ["User", "Group"]},
                {"name": "type"}]},
        ]});
        let more = json!({"id": MORE, "attributes": [{"name": "size", "type": "integer"}, {"name": "note"}]});
        let rt = json!({"name": "Thing", "endpoint": "/Things", "schema": THING,
                        "schemaExtensions": [{"schema": MORE}]});
        let schema = |json: &Value| SchemaDefinition::read(json).expect("a good schema");
        let definitions = Definitions::default()
            .with_schema(schema(&thing))
            .with_schema(schema(&more))
            .with_resource_type(ResourceTypeDefinition::read(&rt).expect("a good type"));
        definitions.check().expect("they fit together")
    });
    REGISTRY.clone()
}

/// A resource to start from.
struct Fixture {
    id: ResourceId,
    resource_type: Arc<ResourceType>,
    document: Document,
}

fn fixture(id: &str, name: &str, body: &Value) -> Fixture {
    let registry = registry();
    let resource_type = registry.resource_type(name).expect("a standard type").clone();
    let parsed = parse(&registry, &resource_type, body, &mut Dialect::new(Profile::Generic));
    Fixture { id: ResourceId::from_text(id), resource_type, document: parsed.expect("a good body").document }
}

static FIXTURES: LazyLock<Vec<Fixture>> = LazyLock::new(|| {
    let anna = json!({
        "externalId": "E-1", "userName": "Anna.Berg@Example.com", "name": {"givenName": "Anna", "familyName": "Berg"},
        "displayName": "Anna Berg", "title": "Engineer", "active": true,
        "emails": [{"value": "anna@work.test", "type": "work", "primary": true},
                   {"value": "anna@home.test", "type": "home"}],
        ENTERPRISE_USER: {"employeeNumber": "42", "department": "R&D", "manager": {"value": "u2"}},
    });
    let thing = json!({
        "size": 1.5, "count": 7, "made": "2026-02-01T00:00:00Z", "code": "C", "batch": "B", "sizes": [0.1, -7],
        "spot": {"size": -0.0}, "keeper": {"value": "u1", "made": "2026-02-01T01:00:00+01:00"},
        "keepers": [{"value": "u2", "type": "work"}],
        "parts": [{"value": "a", "type": "work", "size": 1.5}, {"value": "b", "primary": true, "batch": "B"}],
        MORE: {"size": 3},
    });
    vec![
        fixture("u1", "User", &anna),
        fixture("u3", "User", &json!({"userName": "celik", "title": "", "active": null})),
        fixture("g1", "Group", &json!({"displayName": "Ops"})),
        fixture("t1", "Thing", &thing),
    ]
});

/// The profiles that differ most; each of the others is between them.
const PROFILES: [Profile; 3] = [Profile::Strict, Profile::Generic, Profile::Entra];

/// An error names a status that fits and says something.
fn is_good(error: &ScimError) {
    assert!((400..500).contains(&error.status), "{error:?}");
    assert!(!error.detail.is_empty() && error.detail.len() < 20_000, "{error:?}");
}

fn is_canonical(value: &Value, top: bool) {
    match value {
        Value::Null => panic!("null"),
        Value::Array(list) => {
            assert!(!list.is_empty(), "an empty list");
            list.iter().for_each(|element| is_canonical(element, false));
        }
        Value::Object(object) => {
            assert!(top || !object.is_empty(), "an empty object");
            object.values().for_each(|member| is_canonical(member, false));
        }
        Value::String(text) => assert!(!text.contains('\0'), "U+0000"),
        Value::Bool(_) | Value::Number(_) => {}
    }
}

fn shown(fixture: &Fixture, document: &Document) -> Value {
    let meta = Meta {
        created: Timestamp(0),
        last_modified: Timestamp(1),
        version: 3,
        location: "https://h/x".into(),
    };
    Value::Object(render(&fixture.resource_type, &fixture.id, document, &meta))
}

/// FI-001 to FI-024. A filter that can be read prints as itself; the opposite of a filter is true exactly
/// where it is not; a look-up finds whatever the filter would.
pub fn filter(data: &[u8]) {
    let text = Choices::of(data).map_or_else(|| String::from_utf8_lossy(data).into_owned(), Choices::words);
    let parsed = match parse_filter(&text, Budget::default()) {
        Ok(parsed) => parsed,
        Err(error) => return is_good(&error),
    };
    let printed = parsed.to_string();
    assert_eq!(parse_filter(&printed, ROOMY).as_ref(), Ok(&parsed), "{text:?} prints as {printed:?}");
    let opposite = Filter::Not(Box::new(parsed.clone()));
    for fixture in FIXTURES.iter() {
        for (context, profile) in
            [(Context::GET, PROFILES[0]), (Context::BODY, PROFILES[1]), (Context::GET.root(), PROFILES[2])]
        {
            let bound = |filter: &Filter| {
                bind(filter, &registry(), &fixture.resource_type, context, &mut Dialect::new(profile))
            };
            match (bound(&parsed), bound(&opposite)) {
                (Ok(straight), Ok(opposite)) => {
                    let holds = holds(fixture, &straight);
                    assert_ne!(holds, self::holds(fixture, &opposite), "{text:?} {profile}");
                    if holds {
                        is_found(fixture, &straight);
                    }
                }
                (Err(error), Err(_)) => is_good(&error),
                (one, other) => panic!("{text:?} {profile}: {one:?}, but its opposite {other:?}"),
            }
        }
    }
}

fn holds(fixture: &Fixture, bound: &Bound) -> bool {
    let rows = index_rows(&fixture.resource_type, &fixture.document);
    let subject = Subject {
        id: &fixture.id,
        created: Timestamp(0),
        last_modified: Timestamp(1),
        version: 3,
        resource_type: &fixture.resource_type.name,
        rows: &rows,
    };
    let _ = uses_links(bound);
    matches(bound, &subject)
}

fn is_found(fixture: &Fixture, bound: &Bound) {
    let Some(term) = lookup_terms(bound, &fixture.resource_type) else { return };
    let found = match &term.kind {
        LookupTermKind::Id => term.value == fixture.id.to_string(),
        LookupTermKind::Lookup(kind) => {
            let all = lookups(&fixture.resource_type, &fixture.document, &LookupSettings::default());
            all.iter().any(|lookup| lookup.kind == *kind && lookup.value == term.value)
        }
    };
    assert!(found, "{bound:?} holds, but the look-up {term:?} finds another");
}

/// PA-003, FI-004, CS-021. A path that can be split is the same when put together; what it names is named by
/// its full path in every profile.
pub fn path(data: &[u8]) {
    let text = Choices::of(data).map_or_else(|| String::from_utf8_lossy(data).into_owned(), Choices::words);
    let whole = match PatchPath::parse(&text) {
        Ok(path) => {
            let filter = path.filter.as_ref().map(|f| format!("[{f}]")).unwrap_or_default();
            let sub = path.sub.as_ref().map(|s| format!(".{s}")).unwrap_or_default();
            let printed = format!("{}{filter}{sub}", path.attribute);
            // An empty name in front of a filter cannot be told from none.
            assert_eq!(PatchPath::parse(&printed).as_ref(), Ok(&path), "{text:?} prints as {printed:?}");
            path.attribute
        }
        Err(_) => text,
    };
    let registry = registry();
    for fixture in FIXTURES.iter() {
        for &profile in Profile::ALL {
            let strict = |path: &str, wanted: Named<'_>| {
                let again =
                    resolve(&registry, &fixture.resource_type, path, &mut Dialect::new(Profile::Strict));
                assert_eq!(again, Ok(wanted), "{whole:?} {profile}");
            };
            match resolve(&registry, &fixture.resource_type, &whole, &mut Dialect::new(profile)) {
                Ok(named @ Named::Extension(urn)) => strict(urn, named),
                Ok(named @ Named::Attribute { attribute, sub }) => {
                    strict(&sub.map_or(attribute, |sub| sub).path, named);
                }
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
    }
}

/// PA-001 to PA-013. What a PATCH leaves is a valid resource: a PUT of it changes nothing, nor does a PATCH
/// that replaces everything by what is there; removing twice is removing once; the recorded changes lead
/// from the old document to the new one.
pub fn patch(data: &[u8]) {
    let operations = match Choices::of(data) {
        Some(mut choices) => choices.operations(),
        None => match serde_json::from_slice(data) {
            Ok(value @ Value::Array(_)) => value,
            Ok(value) => json!([value]),
            Err(_) => return,
        },
    };
    let body =
        json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": operations});
    for fixture in FIXTURES.iter() {
        for profile in PROFILES {
            let parsed = match parse_request(&body, &mut Dialect::new(profile)) {
                Ok(parsed) => parsed,
                Err(error) => {
                    is_good(&error);
                    continue;
                }
            };
            let context = || format!("{} {profile}: {operations}", fixture.id);
            match patched(fixture, &fixture.document, &parsed, profile) {
                Ok(patched) => {
                    is_valid(fixture, &patched.document, profile, &context);
                    assert!(patched.members.add.is_disjoint(&patched.members.remove), "{}", context());
                    if let [Operation { op: Op::Remove, .. }] = parsed.as_slice() {
                        let again = self::patched(fixture, &patched.document, &parsed, profile);
                        assert_eq!(again.ok().map(|p| p.document), Some(patched.document), "{}", context());
                    }
                }
                Err(error) => is_good(&error),
            }
        }
    }
}

fn patched(
    fixture: &Fixture,
    document: &Document,
    operations: &[Operation],
    profile: Profile,
) -> Result<Patched, ScimError> {
    let (registry, mut dialect) = (registry(), Dialect::new(profile));
    apply(&registry, &fixture.resource_type, &fixture.id, document, operations, &mut dialect)
}

fn is_valid(fixture: &Fixture, document: &Document, profile: Profile, context: &dyn Fn() -> String) {
    let registry = registry();
    is_canonical(&Value::Object(document.0.clone()), true);
    let shown = shown(fixture, document);
    let mut dialect = Dialect::new(profile);
    let put = parse_replacement(&registry, &fixture.resource_type, document, &shown, &mut dialect);
    let put = put.unwrap_or_else(|error| panic!("a PUT of {shown} is {error:?}; {}", context()));
    assert_eq!(&put.document, document, "a PUT of what is there; {}", context());
    let everything = [Operation { op: Op::Replace, path: None, value: Some(shown.clone()) }];
    let patched = patched(fixture, document, &everything, profile);
    let patched = patched.unwrap_or_else(|error| panic!("a PATCH with {shown} is {error:?}; {}", context()));
    assert_eq!(&patched.document, document, "a PATCH with what is there; {}", context());
    assert!(patched.members.is_empty() && patched.password.is_none(), "{}", context());
    let changes = diff(&fixture.document, document);
    let mut there = fixture.document.clone();
    apply_changes(&mut there, &changes);
    assert_eq!(&there, document, "{changes:?}; {}", context());
    let rows = index_rows(&fixture.resource_type, document);
    assert!(rows.iter().all(|row| !row.value.contains('\0') && !row.key.is_empty()), "{}", context());
    let _ = references(&fixture.resource_type, document);
}

/// CS-001 to CS-037, CR-001 to CR-008, AT-001 to AT-008. A body that can be read is a valid resource, shows no
/// password, and every projection of it has `schemas` and `id` and nothing that the whole has not.
pub fn resource(data: &[u8]) {
    let body = match Choices::of(data) {
        Some(mut choices) => {
            let mut body = choices.object(DEPTH_MAX);
            if choices.below(4) > 0 {
                body["userName"] = json!("a");
                body["displayName"] = json!("a");
            }
            body
        }
        None => match serde_json::from_slice(data) {
            Ok(body) => body,
            Err(_) => return,
        },
    };
    let registry = registry();
    for fixture in FIXTURES.iter() {
        for &profile in Profile::ALL {
            let context = || format!("{} {profile}: {body}", fixture.resource_type.name);
            match parse(&registry, &fixture.resource_type, &body, &mut Dialect::new(profile)) {
                Ok(parsed) => {
                    is_valid(fixture, &parsed.document, profile, &context);
                    projects(fixture, &parsed.document, &body, profile, &context);
                }
                Err(error) => is_good(&error),
            }
            let mut dialect = Dialect::new(profile);
            match parse_replacement(&registry, &fixture.resource_type, &fixture.document, &body, &mut dialect)
            {
                Ok(parsed) => is_valid(fixture, &parsed.document, profile, &context),
                Err(error) => is_good(&error),
            }
        }
    }
}

fn projects(
    fixture: &Fixture,
    document: &Document,
    body: &Value,
    profile: Profile,
    context: &dyn Fn() -> String,
) {
    let Value::Object(whole) = shown(fixture, document) else { panic!("no object") };
    assert!(!whole.contains_key("password"), "{}", context());
    // The body's own names choose, as they are both known and unknown ones.
    let names: Vec<&str> = body.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let names = names.join(",");
    for (attributes, excluded) in [(Some(names.as_str()), None), (None, Some(names.as_str()))] {
        let mut dialect = Dialect::new(profile);
        let registry = registry();
        let projection =
            Projection::new(&registry, &fixture.resource_type, attributes, excluded, &mut dialect);
        let part: Map<String, Value> = projection.expect("one of the two").apply(whole.clone());
        assert!(part.contains_key("id") && part.contains_key("schemas"), "{}", context());
        for (name, value) in &part {
            let same = match (value, &whole[name]) {
                (Value::Object(part), Value::Object(whole)) => part.keys().all(|key| whole.contains_key(key)),
                (Value::Array(part), Value::Array(whole)) => part.len() <= whole.len(),
                (part, whole) => part == whole,
            };
            assert!(same, "{name}; {}", context());
        }
    }
}
