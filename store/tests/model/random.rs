//! Lists at random: SQL must agree with the evaluation in memory.

use super::*;

/// What the generator may put into a tenant: users and groups with links.
#[derive(Clone, Debug)]
struct Population {
    users: Vec<Value>,
    /// Display name, and members by number: users first, then groups.
    groups: Vec<(Option<String>, Vec<usize>)>,
    deleted: BTreeSet<usize>,
}

fn text() -> impl Strategy<Value = String> {
    let x = "x".repeat(255);
    let fixed: Vec<String> =
        ["", "a", "A", "ab", "b", "é", "É", "true", "direct", "User", "u0", "g1", "\u{10FFFF}", "a%_\\'"]
            .iter()
            .map(|s| s.to_string())
            .chain([x.clone(), format!("{x}x"), format!("{x}xa"), format!("{x}xb"), format!("{x}é{x}")])
            .collect();
    prop::sample::select(fixed)
}

fn user_content() -> impl Strategy<Value = Value> {
    let email = (prop::option::of(text()), prop::option::of(text()), prop::option::of(any::<bool>()))
        .prop_map(|(value, kind, primary)| {
            let mut email = serde_json::Map::new();
            value.map(|v| email.insert("value".into(), json!(v)));
            kind.map(|v| email.insert("type".into(), json!(v)));
            primary.map(|v| email.insert("primary".into(), json!(v)));
            Value::Object(email)
        });
    let options = (
        prop::option::of(text()),
        prop::option::of(text()),
        prop::option::of(text()),
        prop::option::of(any::<bool>()),
        prop::option::of(text()),
        prop::option::of(text()),
        prop::collection::vec(email, 0..3),
    );
    options.prop_map(|(title, external, given, active, number, display, emails)| {
        let mut content = serde_json::Map::new();
        content.insert("userName".into(), json!("same"));
        title.map(|v| content.insert("title".into(), json!(v)));
        external.map(|v| content.insert("externalId".into(), json!(v)));
        given.map(|v| content.insert("name".into(), json!({ "givenName": v })));
        active.map(|v| content.insert("active".into(), json!(v)));
        number.map(|v| content.insert(ENTERPRISE_USER.into(), json!({ "employeeNumber": v })));
        display.map(|v| content.insert("displayName".into(), json!(v)));
        let emails: Vec<Value> = emails.into_iter().filter(|e| *e != json!({})).collect();
        if !emails.is_empty() {
            content.insert("emails".into(), json!(emails));
        }
        Value::Object(content)
    })
}

const USERS: usize = 6;
const GROUPS: usize = 4;

fn population() -> impl Strategy<Value = Population> {
    let member = prop_oneof![1 => 0..3usize, 1 => 0..USERS, 2 => USERS..USERS + GROUPS];
    let group = (prop::option::of(text()), prop::collection::vec(member, 0..5));
    (
        prop::collection::vec(user_content(), USERS),
        prop::collection::vec(group, GROUPS),
        prop::collection::btree_set(0..USERS + GROUPS, 0..3),
    )
        .prop_map(|(users, groups, deleted)| Population { users, groups, deleted })
}

/// What parts of links are compared with.
fn link_text() -> impl Strategy<Value = String> {
    const FIXED: &[&str] = &["u0", "u1", "g0", "g1", "g2", "g3", "direct", "indirect", "User", "group", "in"];
    prop_oneof![3 => prop::sample::select(FIXED).prop_map(str::to_owned), 1 => text()]
}

fn link(paths: &'static [&'static str]) -> impl Strategy<Value = String> {
    compared(paths, link_text())
}

fn comparison(paths: &'static [&'static str]) -> impl Strategy<Value = String> {
    compared(paths, text())
}

fn compared(
    paths: &'static [&'static str],
    literal: impl Strategy<Value = String>,
) -> impl Strategy<Value = String> {
    let op = prop::sample::select(&["eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le"][..]);
    let path = prop::sample::select(paths);
    prop_oneof![
        8 => (path.clone(), op, literal).prop_map(|(path, op, literal)| format!("{path} {op} {}", json!(literal))),
        1 => path.clone().prop_map(|path| format!("{path} pr")),
        1 => path.clone().prop_map(|path| format!("{path} eq null")),
        1 => path.prop_map(|path| format!("{path} ne null")),
    ]
}

fn combined(leaf: impl Strategy<Value = String> + 'static, depth: u32) -> impl Strategy<Value = String> {
    leaf.prop_recursive(depth, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(|all| format!("({})", all.join(" and "))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(|all| format!("({})", all.join(" or "))),
            inner.prop_map(|f| format!("not ({f})")),
        ]
    })
}

fn user_filter() -> impl Strategy<Value = String> {
    const PLAIN: &[&str] = &[
        "title",
        "externalId",
        "name.givenName",
        "displayName",
        "id",
        "emails.type",
        "emails",
        "schemas",
        "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:employeeNumber",
        "nickName",
        "meta.version",
        "meta.resourceType",
    ];
    let flag = prop::sample::select(&["active", "emails.primary"][..]);
    let flag = (flag, prop::sample::select(&["eq true", "eq false", "ne true", "pr", "eq null"][..]));
    let inner_flag = prop::sample::select(
        &["primary eq true", "primary eq false", "primary pr", "not (primary eq true)"][..],
    );
    let emails = prop_oneof![
        3 => comparison(&["value", "type", "display"]),
        1 => inner_flag.prop_map(str::to_owned),
    ];
    let leaf = prop_oneof![
        6 => comparison(PLAIN),
        1 => flag.prop_map(|(path, op)| format!("{path} {op}")),
        3 => combined(emails, 2).prop_map(|f| format!("emails[{f}]")),
        2 => combined(link(&["value", "type", "display"]), 2).prop_map(|f| format!("groups[{f}]")),
        2 => link(&["groups.value", "groups.type", "groups.display", "groups"]),
        1 => Just("name pr".to_owned()),
        1 => Just("emails pr".to_owned()),
        1 => Just("name eq null".to_owned()),
        1 => Just("emails ne null".to_owned()),
        1 => Just(r#"meta.created ge "2026-01-01T00:00:00.005Z""#.to_owned()),
        1 => Just(r#"meta.lastModified lt "2026-01-01T00:00:00.009Z""#.to_owned()),
    ];
    combined(leaf, 3)
}

fn group_filter() -> impl Strategy<Value = String> {
    const PLAIN: &[&str] =
        &["displayName", "id", "members.value", "members", "members.type", "members.display"];
    let leaf = prop_oneof![
        3 => comparison(PLAIN),
        2 => combined(comparison(&["value", "type", "display"]), 2).prop_map(|f| format!("members[{f}]")),
    ];
    combined(leaf, 3)
}

/// `sortBy`, whether descending, and how many on a page.
type Ordered = (Option<&'static str>, bool, usize);

fn ordered() -> impl Strategy<Value = Ordered> {
    const BY: &[Option<&str>] = &[
        None,
        Some("userName"),
        Some("title"),
        Some("externalId"),
        Some("name.givenName"),
        Some("displayName"),
        Some("id"),
        Some("emails"),
        Some("emails.type"),
        Some("emails.primary"),
        Some("active"),
        Some("schemas"),
        Some("urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:employeeNumber"),
        Some("nickName"),
        Some("meta.version"),
        Some("meta.resourceType"),
        Some("meta.created"),
        Some("meta.lastModified"),
    ];
    (prop::sample::select(BY), any::<bool>(), 1..5usize)
}

/// The rows that a resource's links stand for, computed without SQL.
fn link_rows(p: &Population, number: usize) -> Vec<IndexRow> {
    let name = |n: usize| if n < USERS { format!("u{n}") } else { format!("g{}", n - USERS) };
    let display = |n: usize| -> Option<String> {
        if n < USERS {
            p.users[n]["displayName"].as_str().map(str::to_owned)
        } else {
            p.groups[n - USERS].0.clone()
        }
    };
    let alive = |n: &usize| !p.deleted.contains(n);
    let mut rows = Vec::new();
    let mut add = |attribute: &str, element: usize, n: usize, kind: &str| {
        let mut row = |sub: &str, value: String| {
            rows.push(IndexRow { key: format!("{attribute}.{sub}"), element: element as i32, value });
        };
        row("value", name(n));
        row("type", kind.to_owned());
        if let Some(display) = display(n) {
            row("display", annals_domain::scim::fold::fold(&display));
        }
    };
    if number >= USERS {
        let members: BTreeSet<usize> = p.groups[number - USERS].1.iter().copied().filter(alive).collect();
        for (element, n) in members.into_iter().enumerate() {
            add("members", element, n, if n < USERS { "user" } else { "group" });
        }
        return rows;
    }
    let mut depths: BTreeMap<usize, usize> = BTreeMap::new();
    let mut front = BTreeSet::from([number]);
    for depth in 1..=10 {
        let holds = |g: &usize| p.groups[*g - USERS].1.iter().any(|m| front.contains(m));
        front = (USERS..USERS + GROUPS).filter(alive).filter(holds).collect();
        for group in &front {
            depths.entry(*group).or_insert(depth);
        }
    }
    for (element, (n, depth)) in depths.into_iter().enumerate() {
        add("groups", element, n, if depth == 1 { "direct" } else { "indirect" });
    }
    rows
}

/// SO-002 to SO-005, CU-004, CU-009, PG-003: filters, orders, pages by index and by place.
pub(super) async fn lists_agree_with_their_evaluation_in_memory(f: Fixture) {
    let cases = if f.store.is_postgres() { 10 } else { 32 };
    let store = f.store.clone();
    let handle = tokio::runtime::Handle::current();
    let tenants = AtomicU64::new(0);
    let asked = AtomicU64::new(0);
    let filters = (
        population(),
        prop::collection::vec((user_filter(), ordered()), 24),
        prop::collection::vec((group_filter(), ordered()), 12),
    );
    tokio::task::block_in_place(|| {
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
        let mut runner = TestRunner::new(config);
        let result = runner.run(&filters, |(population, users, groups)| {
            let tenant = TenantId::new(&format!("t{}", tenants.fetch_add(1, Ordering::SeqCst))).unwrap();
            handle.block_on(agree(&store, &tenant, &population, &users, &groups, &asked))
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    });
    assert!(asked.load(Ordering::SeqCst) > u64::from(cases) * 20, "most filters can be bound");
}

async fn agree(
    store: &Store,
    tenant: &TenantId,
    p: &Population,
    users: &[(String, Ordered)],
    groups: &[(String, Ordered)],
    asked: &AtomicU64,
) -> Result<(), TestCaseError> {
    let mut script = Script::new(tenant.clone(), store.model_checkpoint().await.unwrap());
    let base = script.position;
    for (n, content) in p.users.iter().enumerate() {
        script.user(&format!("u{n}"), content.clone());
    }
    for (n, (name, members)) in p.groups.iter().enumerate() {
        let content = name.as_ref().map_or(json!({}), |name| json!({ "displayName": name }));
        script.event("Group", &format!("g{n}"), Event::Created { document: document(content) });
        let members: BTreeSet<usize> = members.iter().copied().collect();
        let name = |n: usize| if n < USERS { format!("u{n}") } else { format!("g{}", n - USERS) };
        let members = members.into_iter().map(|m| id(&name(m))).collect();
        script.event("Group", &format!("g{n}"), Event::MembersAdded { members });
    }
    for &n in &p.deleted {
        if n < USERS {
            script.event("User", &format!("u{n}"), Event::Deleted);
        } else {
            script.event("Group", &format!("g{}", n - USERS), Event::Deleted);
        }
    }
    // Times that do not depend on how many cases ran before.
    for event in &mut script.events {
        event.at = Timestamp(1_767_225_600_000 + event.position - base);
    }
    let events = script.events.clone();
    script.apply(store).await;

    let mut subjects = Vec::new();
    for n in (0..USERS + GROUPS).filter(|n| !p.deleted.contains(n)) {
        let (rt, entity) =
            if n < USERS { ("User", format!("u{n}")) } else { ("Group", format!("g{}", n - USERS)) };
        let own: Vec<&Recorded> = events.iter().filter(|e| e.stream.id.as_str() == entity).collect();
        let Body::Open(Event::Created { document }) = &own[0].body else { unreachable!() };
        let mut rows = index_rows(Registry::standard().resource_type(rt).unwrap(), document);
        rows.extend(link_rows(p, n));
        subjects.push((rt, id(&entity), own[0], own[own.len() - 1].at, own.len() as i64, rows));
    }
    let cases = users.iter().map(|(filter, sort)| (&["User"][..], Some(filter), sort));
    let cases = cases.chain(groups.iter().map(|(filter, sort)| (&["Group"][..], Some(filter), sort)));
    let both = users.iter().chain(groups).map(|(_, sort)| (&["User", "Group"][..], None, sort));
    for (types, filter, (sort_by, descending, count)) in cases.chain(both.step_by(3)) {
        let filter = match filter.map(|filter| bound(types[0], filter, Profile::Generic)) {
            None => None,
            Some(Ok(bound)) => Some(bound),
            Some(Err(_)) => continue,
        };
        asked.fetch_add(1, Ordering::SeqCst);
        let resource_types: Vec<_> =
            types.iter().map(|rt| Registry::standard().resource_type(rt).unwrap().clone()).collect();
        let refs: Vec<_> = resource_types.iter().map(|rt| &**rt).collect();
        let order = if *descending { "descending" } else { "ascending" };
        let mut dialect = Dialect::new(Profile::Generic);
        // Not every type has every attribute.
        let sort = sort_by
            .and_then(|by| Sort::bind(by, Some(order), &Registry::standard(), &refs, &mut dialect).ok());
        let mut expected = Vec::new();
        for (rt, entity, created, modified, version, rows) in &subjects {
            let subject = Subject {
                id: entity,
                created: created.at,
                last_modified: *modified,
                version: *version,
                resource_type: rt,
                rows,
            };
            let Some(at) = types.iter().position(|t| t == rt) else { continue };
            if filter.as_ref().is_none_or(|filter| matches(filter, &subject)) {
                let key = sort.as_ref().and_then(|sort| sort.keys[at].as_ref());
                expected.push((Place::of(sort.as_ref(), key, &subject, created.position), entity.as_str()));
            }
        }
        let descending = sort.as_ref().is_some_and(|sort| sort.descending);
        expected.sort_by(|(a, _), (b, _)| a.compare(b, descending));
        let expected: Vec<&str> = expected.into_iter().map(|(_, entity)| entity).collect();
        let what = format!("{types:?} {filter:?} {sort:?}");
        let query = Search { resource_types, filter, sort, ..search(tenant, types[0], None) };
        let ask = async |query: &Search| {
            store.search(query).await.map_err(|e| TestCaseError::fail(format!("{what}: {e:?}")))
        };
        let whole = ask(&query).await?;
        prop_assert_eq!(ids(&whole), expected.clone(), "{}", what);
        prop_assert_eq!(whole.total as usize, expected.len(), "{}", what);
        // Counted without a page, and then from memory.
        for _ in 0..2 {
            let counted = ask(&Search { count: 0, ..query.clone() }).await?;
            prop_assert_eq!(counted.total as usize, expected.len(), "counted: {}", what);
        }
        // Page by page, with few matches in mind and with too many for that.
        for total in [None, Some(1_000_000)] {
            let (mut walked, mut page) = (Vec::new(), Search { count: *count, total, ..query.clone() });
            loop {
                let part = ask(&page).await?;
                prop_assert!(part.found.len() == *count || part.next.is_none(), "{}", what);
                if total.is_none() && page.after.is_none() {
                    prop_assert_eq!(part.total as usize, expected.len(), "{}", what);
                }
                walked.extend(part.found.iter().map(|found| found.id.as_str().to_owned()));
                page.after = part.next;
                if page.after.is_none() || walked.len() > expected.len() {
                    break;
                }
            }
            prop_assert_eq!(&walked, &expected, "cursors, total {:?}: {}", total, what);
            let start_index = 1 + *count;
            let part = ask(&Search { start_index, count: *count, total, ..query.clone() }).await?;
            let wanted: Vec<&str> = expected.iter().skip(*count).take(*count).copied().collect();
            prop_assert_eq!(ids(&part), wanted, "from {}, total {:?}: {}", start_index, total, what);
            if total.is_none() {
                prop_assert_eq!(part.total as usize, expected.len(), "from {}: {}", start_index, what);
            }
        }
    }
    Ok(())
}
