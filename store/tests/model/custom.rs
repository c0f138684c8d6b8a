//! Attributes of a tenant's own schema at random: SQL must agree with the evaluation in memory, and both with
//! what the values mean. The last is computed from the JSON that was sent, by numbers and moments, without
//! the encoding that index rows and filter literals share.

use std::cmp::Ordering as Order;
use std::sync::LazyLock;

use annals_domain::definition::{ResourceTypeDefinition, SchemaDefinition};
use annals_domain::scim::fold::{fold, parse_datetime};
use annals_domain::scim::resource;

use super::*;

const THING: &str = "urn:example:schemas:2.0:Thing";
const EXTRA: &str = "urn:example:schemas:extension:2.0:Extra";
/// Things of a tenant.
const THINGS: usize = 7;
/// Filters and orders asked about them.
const ASKS: usize = 24;

/// What a simple attribute holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Integer,
    Decimal,
    DateTime,
    Boolean,
    /// Compared without case.
    Text,
    /// Compared exactly: case-exact strings, references, binary values.
    Exact,
    Reference,
    Binary,
}

const KINDS: [(&str, Kind); 8] = [
    ("integer", Kind::Integer),
    ("decimal", Kind::Decimal),
    ("dateTime", Kind::DateTime),
    ("boolean", Kind::Boolean),
    ("text", Kind::Text),
    ("exact", Kind::Exact),
    ("reference", Kind::Reference),
    ("binary", Kind::Binary),
];

impl Kind {
    fn definition(self, name: &str) -> Value {
        let kind = match self {
            Kind::Integer => "integer",
            Kind::Decimal => "decimal",
            Kind::DateTime => "dateTime",
            Kind::Boolean => "boolean",
            Kind::Text | Kind::Exact => "string",
            Kind::Reference => "reference",
            Kind::Binary => "binary",
        };
        let mut definition = json!({"name": name, "type": kind});
        match self {
            Kind::Exact | Kind::Binary => definition["caseExact"] = json!(true),
            Kind::Reference => definition["referenceTypes"] = json!(["external"]),
            _ => {}
        }
        definition
    }

    /// Values whose order as text, as numbers and as moments differs.
    fn values(self) -> Vec<Value> {
        let x = "x".repeat(256);
        match self {
            Kind::Integer => [i64::MIN, -10, -9, -1, 0, 1, 2, 9, 10, 100, (1 << 53) + 1, i64::MAX]
                .map(Value::from)
                .to_vec(),
            Kind::Decimal => {
                let mut values = [-1e300, -10.5, -1.5, -0.0, 0.0, 5e-324, 0.1, 1.5, 9.5, 10.25, 1e300]
                    .map(Value::from)
                    .to_vec();
                values.extend([-2, 0, 1, 10].map(Value::from));
                values
            }
            Kind::DateTime => [
                "2026-02-01T00:00:00Z",
                "2026-02-01T01:00:00+01:00",
                "2026-01-31T23:59:59.999Z",
                "2026-02-01T00:00:00.1239Z",
                "2026-02-01T00:00:00.123",
                "2026-01-31T24:00:00Z",
                "0001-01-01T00:00:00Z",
                "9999-12-31T23:59:59-00:00",
                "1969-12-31T23:59:59.001Z",
            ]
            .map(Value::from)
            .to_vec(),
            Kind::Boolean => vec![json!(true), json!(false)],
            Kind::Text | Kind::Exact => {
                vec![
                    json!("a"),
                    json!("A"),
                    json!("ab"),
                    json!("É"),
                    json!("e\u{301}"),
                    json!(""),
                    json!("10"),
                    json!("9"),
                    json!(x),
                    json!(format!("{x}y")),
                    json!(format!("{x}Z")),
                ]
            }
            Kind::Reference => {
                ["https://a.example/x", "https://a.example/X", "urn:example:a", "https://a.example/%C3%A9"]
                    .map(Value::from)
                    .to_vec()
            }
            Kind::Binary => ["AAEC", "aaec", "/+8=", "AA==", "QUJDRA=="].map(Value::from).to_vec(),
        }
    }

    fn value(self) -> impl Strategy<Value = Value> {
        prop::sample::select(self.values())
    }

    fn operators(self) -> &'static [&'static str] {
        match self {
            Kind::Boolean | Kind::Binary => &["eq", "ne"],
            Kind::Integer | Kind::Decimal | Kind::DateTime => &["eq", "ne", "gt", "ge", "lt", "le"],
            Kind::Text | Kind::Exact | Kind::Reference => {
                &["eq", "ne", "gt", "ge", "lt", "le", "co", "sw", "ew"]
            }
        }
    }

    /// What a value means.
    fn meaning(self, value: &Value) -> Meaning {
        match self {
            Kind::Integer => Meaning::Integer(value.as_i64().unwrap()),
            Kind::Decimal => Meaning::Decimal(value.as_f64().unwrap()),
            Kind::DateTime => Meaning::Moment(parse_datetime(value.as_str().unwrap()).unwrap().0),
            Kind::Boolean => Meaning::Flag(value.as_bool().unwrap()),
            Kind::Text => Meaning::Text(fold(value.as_str().unwrap())),
            Kind::Exact | Kind::Reference | Kind::Binary => Meaning::Text(value.as_str().unwrap().to_owned()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, PartialOrd)]
enum Meaning {
    Integer(i64),
    Decimal(f64),
    Moment(i64),
    Flag(bool),
    Text(String),
}

impl Meaning {
    fn text(&self) -> &str {
        let Meaning::Text(text) = self else { panic!("{self:?} is no text") };
        text
    }

    fn fits(&self, op: &str, operand: &Meaning) -> bool {
        match op {
            "eq" => self == operand,
            "ne" => self != operand,
            "gt" => self > operand,
            "ge" => self >= operand,
            "lt" => self < operand,
            "le" => self <= operand,
            "co" => self.text().contains(operand.text()),
            "sw" => self.text().starts_with(operand.text()),
            "ew" => self.text().ends_with(operand.text()),
            other => panic!("{other}"),
        }
    }
}

/// Where a value stands in a thing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Where {
    /// An attribute of the schema.
    Single,
    /// A list.
    List,
    /// An attribute of the extension, of the same name.
    Extension,
    /// A part of a complex attribute.
    Part,
    /// A part of the elements of a list.
    Element,
}

/// An attribute that can be compared.
#[derive(Clone, Copy, Debug)]
struct Named {
    place: Where,
    name: &'static str,
    kind: Kind,
}

impl Named {
    fn path(&self) -> String {
        match self.place {
            Where::Single => self.name.to_owned(),
            Where::List => format!("{}s", self.name),
            Where::Extension => format!("{EXTRA}:{}", self.name),
            Where::Part => format!("spot.{}", self.name),
            Where::Element => format!("parts.{}", self.name),
        }
    }

    /// Its values in the JSON of a thing, an element's primary first.
    fn values<'a>(&self, thing: &'a Value) -> Vec<&'a Value> {
        let name = self.name;
        match self.place {
            Where::Single => thing.get(name).into_iter().collect(),
            Where::List => {
                thing.get(format!("{name}s")).and_then(Value::as_array).into_iter().flatten().collect()
            }
            Where::Extension => thing.get(EXTRA).and_then(|extra| extra.get(name)).into_iter().collect(),
            Where::Part => thing.get("spot").and_then(|spot| spot.get(name)).into_iter().collect(),
            Where::Element => elements(thing).iter().filter_map(|element| element.get(name)).collect(),
        }
    }

    fn meanings(&self, thing: &Value) -> Vec<Meaning> {
        self.values(thing).into_iter().map(|value| self.kind.meaning(value)).collect()
    }
}

fn elements(thing: &Value) -> &[Value] {
    thing.get("parts").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn named(places: &'static [Where]) -> impl Strategy<Value = Named> {
    (prop::sample::select(places), prop::sample::select(&KINDS[..])).prop_map(|(place, (name, kind))| Named {
        place,
        name,
        kind,
    })
}

/// A filter, and what it means.
#[derive(Clone, Debug)]
enum Ask {
    Compare(Named, &'static str, Value),
    /// `eq null`, or `ne null`.
    Null(Named, bool),
    Present(Named),
    /// Of the list of complex values, or of the single one.
    WholePresent(bool),
    Primary(bool),
    Some(Box<Ask>),
    And(Vec<Ask>),
    Or(Vec<Ask>),
    Not(Box<Ask>),
}

fn leaf(places: &'static [Where]) -> impl Strategy<Value = Ask> {
    let compare = named(places).prop_flat_map(|named| {
        (Just(named), prop::sample::select(named.kind.operators()), named.kind.value())
            .prop_map(|(named, op, value)| Ask::Compare(named, op, value))
    });
    prop_oneof![
        8 => compare,
        1 => (named(places), any::<bool>()).prop_map(|(named, equal)| Ask::Null(named, equal)),
        1 => named(places).prop_map(Ask::Present),
    ]
}

fn joined(leaf: impl Strategy<Value = Ask> + 'static, depth: u32) -> impl Strategy<Value = Ask> {
    leaf.prop_recursive(depth, 10, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Ask::And),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Ask::Or),
            inner.prop_map(|ask| Ask::Not(Box::new(ask))),
        ]
    })
}

fn ask() -> impl Strategy<Value = Ask> {
    const ALL: &[Where] = &[Where::Single, Where::List, Where::Extension, Where::Part, Where::Element];
    let inner = prop_oneof![5 => leaf(&[Where::Element]), 1 => any::<bool>().prop_map(Ask::Primary)];
    joined(
        prop_oneof![
            8 => leaf(ALL),
            3 => joined(inner, 2).prop_map(|ask| Ask::Some(Box::new(ask))),
            1 => any::<bool>().prop_map(Ask::WholePresent),
        ],
        3,
    )
}

impl Ask {
    /// The filter's text; inside brackets the parts have their plain names.
    fn text(&self, inside: bool) -> String {
        let path = |named: &Named| if inside { named.name.to_owned() } else { named.path() };
        let all = |asks: &[Ask], word: &str| {
            let texts: Vec<String> = asks.iter().map(|ask| ask.text(inside)).collect();
            format!("({})", texts.join(word))
        };
        match self {
            Ask::Compare(named, op, value) => format!("{} {op} {value}", path(named)),
            Ask::Null(named, true) => format!("{} eq null", path(named)),
            Ask::Null(named, false) => format!("{} ne null", path(named)),
            Ask::Present(named) => format!("{} pr", path(named)),
            Ask::WholePresent(list) => format!("{} pr", if *list { "parts" } else { "spot" }),
            Ask::Primary(primary) => format!("primary eq {primary}"),
            Ask::Some(ask) => format!("parts[{}]", ask.text(true)),
            Ask::And(asks) => all(asks, " and "),
            Ask::Or(asks) => all(asks, " or "),
            Ask::Not(ask) => format!("not ({})", ask.text(inside)),
        }
    }

    /// Whether it holds for a thing as it was sent.
    fn holds(&self, thing: &Value) -> bool {
        let not_empty = |value: &Value| value.as_str() != Some("");
        match self {
            Ask::Compare(named, op, value) => {
                let (values, operand) = (named.meanings(thing), named.kind.meaning(value));
                let without = values.is_empty() && *op == "ne";
                without || values.iter().any(|value| value.fits(op, &operand))
            }
            Ask::Null(named, equal) => named.values(thing).is_empty() == *equal,
            Ask::Present(named) => named.values(thing).into_iter().any(not_empty),
            Ask::WholePresent(true) => elements(thing).iter().any(|element| {
                let parts = element.as_object().unwrap();
                parts.iter().any(|(name, value)| name != "primary" && not_empty(value))
            }),
            Ask::WholePresent(false) => thing
                .get("spot")
                .and_then(Value::as_object)
                .is_some_and(|parts| parts.values().any(not_empty)),
            Ask::Primary(primary) => elements(thing)
                .iter()
                .any(|element| (element.get("primary") == Some(&json!(true))) == *primary),
            Ask::Some(ask) => elements(thing).iter().any(|element| ask.holds(&json!({"parts": [element]}))),
            Ask::And(asks) => asks.iter().all(|ask| ask.holds(thing)),
            Ask::Or(asks) => asks.iter().any(|ask| ask.holds(thing)),
            Ask::Not(ask) => !ask.holds(thing),
        }
    }
}

/// An object with some of the simple attributes.
fn some_of(probability: f64) -> impl Strategy<Value = Value> {
    let one = |(name, kind): (&'static str, Kind)| {
        prop::option::weighted(probability, kind.value()).prop_map(move |value| (name, value))
    };
    Vec::from(KINDS.map(one)).prop_map(|values| {
        let present = values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(present.collect())
    })
}

fn thing() -> impl Strategy<Value = Value> {
    let list = |(name, kind): (&'static str, Kind)| {
        prop::collection::vec(kind.value(), 0..3).prop_map(move |values| (name, values))
    };
    let lists = Vec::from(KINDS.map(list));
    let parts = prop::collection::vec(some_of(0.4), 0..4);
    (some_of(0.7), lists, some_of(0.5), some_of(0.5), parts, prop::option::of(0..4usize)).prop_map(
        |(mut thing, lists, extra, spot, mut parts, primary)| {
            for (name, values) in lists.into_iter().filter(|(_, values)| !values.is_empty()) {
                thing[format!("{name}s")] = json!(values);
            }
            if let Some(part) = primary.and_then(|at| parts.get_mut(at)) {
                part["primary"] = json!(true);
            }
            parts.retain(|part| *part != json!({}));
            for (name, value) in [(EXTRA, extra), ("spot", spot), ("parts", json!(parts))] {
                if value != json!({}) && value != json!([]) {
                    thing[name] = value;
                }
            }
            thing
        },
    )
}

/// By what to sort, whether descending, and how many on a page.
type Ordered = (Option<Named>, bool, usize);

fn ordered() -> impl Strategy<Value = Ordered> {
    const BY: &[Where] = &[Where::Single, Where::List, Where::Extension, Where::Part, Where::Element];
    (prop::option::weighted(0.8, named(BY)), any::<bool>(), 1..4usize)
}

/// The value a thing is sorted by (SO-002); without one it comes last.
fn sorted_by(by: &Named, thing: &Value) -> Option<Meaning> {
    let value = match by.place {
        Where::Element => {
            let elements = elements(thing);
            let lead = elements.iter().find(|element| element.get("primary") == Some(&json!(true)));
            lead.or(elements.first())?.get(by.name)?
        }
        _ => by.values(thing).first().copied()?,
    };
    Some(match by.kind.meaning(value) {
        Meaning::Text(text) => Meaning::Text(text.chars().take(256).collect()),
        other => other,
    })
}

fn order(by: Option<&Named>, descending: bool, things: &[Value]) -> Vec<usize> {
    let mut all: Vec<usize> = (0..things.len()).collect();
    if let Some(by) = by {
        let key = |at: &usize| sorted_by(by, &things[*at]);
        all.sort_by(|x, y| {
            let (a, b) = (key(x), key(y));
            let values = a.partial_cmp(&b).unwrap_or(Order::Equal);
            // `None` is less than anything, but comes last.
            a.is_none().cmp(&b.is_none()).then(values).then(x.cmp(y))
        });
    }
    // The order of creation has a reverse only if it was asked for by an attribute.
    if descending && by.is_some() {
        all.reverse();
    }
    all
}

static DEFINITIONS: LazyLock<[SchemaDefinition; 2]> = LazyLock::new(|| {
    let simple = || KINDS.iter().map(|(name, kind)| kind.definition(name));
    let lists = KINDS.iter().map(|(name, kind)| {
        let mut list = kind.definition(&format!("{name}s"));
        list["multiValued"] = json!(true);
        list
    });
    let parts: Vec<Value> = simple().chain([json!({"name": "primary", "type": "boolean"})]).collect();
    let spot = json!({"name": "spot", "type": "complex", "subAttributes": simple().collect::<Vec<_>>()});
    let parts = json!({"name": "parts", "type": "complex", "multiValued": true, "subAttributes": parts});
    let base: Vec<Value> = simple().chain(lists).chain([spot, parts]).collect();
    let read = |urn: &str, attributes: Vec<Value>| {
        SchemaDefinition::read(&json!({"id": urn, "attributes": attributes})).unwrap()
    };
    [read(THING, base), read(EXTRA, simple().collect())]
});

async fn define(store: &Store, tenant: &TenantId) -> Arc<Registry> {
    let actor = || Actor::system("test");
    store.create_tenant(tenant, TenantSettings::default(), actor()).await.unwrap();
    for schema in &*DEFINITIONS {
        store.put_schema(tenant, schema.clone(), actor()).await.unwrap();
    }
    let things = json!({"name": "Thing", "endpoint": "/Things", "schema": THING,
                        "schemaExtensions": [{"schema": EXTRA}]});
    store.put_resource_type(tenant, ResourceTypeDefinition::read(&things).unwrap(), actor()).await.unwrap();
    store.registry_of(tenant).await.unwrap()
}

/// FI-009 to FI-013, SO-004: every type of a run-time schema, alone, in lists, in parts and in extensions.
pub(super) async fn custom_lists_agree_with_what_the_values_mean(f: Fixture) {
    let cases = if f.store.is_postgres() { 8 } else { 16 };
    let store = f.store.clone();
    let handle = tokio::runtime::Handle::current();
    let tenants = AtomicU64::new(0);
    let asked = AtomicU64::new(0);
    let input = (prop::collection::vec(thing(), THINGS), prop::collection::vec((ask(), ordered()), ASKS));
    tokio::task::block_in_place(|| {
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
        let result = TestRunner::new(config).run(&input, |(things, asks)| {
            let tenant = TenantId::new(&format!("c{}", tenants.fetch_add(1, Ordering::SeqCst))).unwrap();
            handle.block_on(agree(&store, &tenant, &things, &asks, &asked))
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    });
    assert_eq!(asked.load(Ordering::SeqCst), u64::from(cases) * ASKS as u64, "all filters can be bound");
}

async fn agree(
    store: &Store,
    tenant: &TenantId,
    things: &[Value],
    asks: &[(Ask, Ordered)],
    asked: &AtomicU64,
) -> Result<(), TestCaseError> {
    let registry = define(store, tenant).await;
    let rt = registry.resource_type("Thing").unwrap();
    // The model goes on from where it is; what was defined is asked of the journal.
    let mut script = Script::new(tenant.clone(), store.model_checkpoint().await.unwrap());
    script.user("filler", json!({"userName": "filler"}));
    while script.position < store.head().await.unwrap().position {
        script.event("User", "filler", Event::PasswordSet);
    }
    let mut subjects = Vec::new();
    for (n, thing) in things.iter().enumerate() {
        let mut dialect = Dialect::new(Profile::Strict);
        let mut body = thing.clone();
        body["schemas"] = match body.get(EXTRA) {
            Some(_) => json!([THING, EXTRA]),
            None => json!([THING]),
        };
        let parsed = resource::parse(&registry, rt, &body, &mut dialect);
        let document = parsed.map_err(|error| TestCaseError::fail(format!("{body}: {error:?}")))?.document;
        let rows = index_rows(rt, &document);
        let entity = format!("t{n}");
        script.event("Thing", &entity, Event::Created { document });
        let created = script.events[script.events.len() - 1].clone();
        subjects.push((id(&entity), created, rows));
    }
    script.apply(store).await;

    for (ask, (by, descending, count)) in asks {
        let text = ask.text(false);
        let bind = |text: &str| {
            let parsed = parse(text, Budget::default())?;
            bind(&parsed, &registry, rt, Context::GET, &mut Dialect::new(Profile::Strict))
        };
        let filter = bind(&text).map_err(|error| TestCaseError::fail(format!("{text}: {error:?}")))?;
        asked.fetch_add(1, Ordering::SeqCst);
        let sort_order = if *descending { "descending" } else { "ascending" };
        let sort = match by {
            None => None,
            Some(by) => Some(
                Sort::bind(
                    &by.path(),
                    Some(sort_order),
                    &registry,
                    &[rt],
                    &mut Dialect::new(Profile::Strict),
                )
                .map_err(|error| TestCaseError::fail(format!("{by:?}: {error:?}")))?,
            ),
        };
        let what = format!("{text}, by {by:?} {sort_order}");
        let order = order(by.as_ref(), *descending, things);
        let expected: Vec<String> =
            order.into_iter().filter(|at| ask.holds(&things[*at])).map(|at| format!("t{at}")).collect();

        // In memory.
        let holding = subjects.iter().filter(|(entity, created, rows)| {
            let subject = Subject {
                id: entity,
                created: created.at,
                last_modified: created.at,
                version: 1,
                resource_type: "Thing",
                rows,
            };
            matches(&filter, &subject)
        });
        let holding: BTreeSet<&str> = holding.map(|(entity, ..)| entity.as_str()).collect();
        let wanted: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
        prop_assert_eq!(holding, wanted, "in memory: {} of {}", what, json!(things));

        // By the database, at once and page by page.
        let query = Search {
            resource_types: vec![rt.clone()],
            filter: Some(filter),
            sort,
            ..search(tenant, "User", None)
        };
        let ask = async |query: &Search| {
            store.search(query).await.map_err(|e| TestCaseError::fail(format!("{what}: {e:?}")))
        };
        let whole = ask(&query).await?;
        prop_assert_eq!(ids(&whole), expected.clone(), "by the database: {} of {}", what, json!(things));
        prop_assert_eq!(whole.total as usize, expected.len(), "{}", what);
        let (mut walked, mut page) = (Vec::new(), Search { count: *count, ..query.clone() });
        loop {
            let part = ask(&page).await?;
            walked.extend(part.found.iter().map(|found| found.id.as_str().to_owned()));
            page.after = part.next;
            if page.after.is_none() || walked.len() > expected.len() {
                break;
            }
        }
        prop_assert_eq!(&walked, &expected, "page by page: {}", what);
    }
    Ok(())
}
