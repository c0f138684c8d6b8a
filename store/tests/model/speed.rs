//! How fast pages are applied, and what filters cost: measurements, not tests.

use super::*;

/// A user as an identity provider creates one: about twenty index rows.
pub(super) fn typical_user(n: usize) -> Value {
    json!({
        "userName": format!("given{n}.family{}@example.com", n % 977), "externalId": format!("00u{n:010}"),
        "name": { "givenName": format!("Given{n}"), "familyName": format!("Family{}", n % 977) },
        "displayName": format!("Given{n} Family{}", n % 977), "title": format!("Title {}", n % 50),
        "active": true,
        "emails": [{ "value": format!("given{n}@example.com"), "type": "work", "primary": true }],
        "phoneNumbers": [{ "value": format!("+49 30 {n}"), "type": "work" }],
        ENTERPRISE_USER: { "employeeNumber": n.to_string(), "department": format!("D{}", n % 40) },
    })
}

async fn measure(f: Fixture) {
    const PAGES: usize = 30;
    let mut script = Script::new(acme(), 0);
    let (mut create, mut change) = (Duration::ZERO, Duration::ZERO);
    let mut rows = 0;
    // As where queries have asked for every attribute.
    let user = Registry::standard().resource_type("User").unwrap().clone();
    let keys = index_rows(&user, &document(typical_user(0))).into_iter().map(|row| row.key).collect();
    f.store.model_index(&acme(), &keys).await.unwrap();
    let name = |n: usize| f.store.entropy().uuid_v7(Timestamp(1_767_225_600_000 + n as i64)).to_string();
    let names: Vec<String> = (0..PAGES * 1_000).map(name).collect();
    for page in names.chunks(1_000) {
        for (n, name) in page.iter().enumerate() {
            let at = script.position as usize + n;
            script.user(name, typical_user(at));
        }
        let rt = &Registry::standard().resource_type("User").unwrap().clone();
        rows += index_rows(rt, &document(typical_user(0))).len() * page.len();
        let begun = std::time::Instant::now();
        script.apply(&f.store).await;
        create += begun.elapsed();
    }
    for page in names.chunks(1_000) {
        for name in page {
            script.set(name, "title", json!("Changed"));
        }
        let begun = std::time::Instant::now();
        script.apply(&f.store).await;
        change += begun.elapsed();
    }
    let per_second = |n: usize, took: Duration| (n as f64 / took.as_secs_f64()) as u64;
    let n = names.len();
    println!(
        "{n} users of {} rows: {} creates/s ({} rows/s), {} changes/s",
        rows / n,
        per_second(n, create),
        per_second(rows, create),
        per_second(n, change)
    );
    for filter in [
        r#"userName eq "given5.family5@example.com""#,
        r#"userName sw "given77""#,
        r#"title eq "changed" and userName co "9999""#,
        r#"emails[type eq "work" and value eq "given5@example.com"]"#,
        r#"displayName co "nothing like that""#,
        r#"not (active eq true)"#,
        r#"active eq true"#,
        r#"title eq "x" or externalId eq "00u0000000007""#,
    ] {
        let bound = bound("User", filter, Profile::Generic).unwrap();
        let query = search(&acme(), "User", Some(bound));
        f.store.search(&query).await.unwrap();
        let begun = std::time::Instant::now();
        let total = f.store.search(&query).await.unwrap().total;
        println!("{:>8.2} ms  {total:>6}  {filter}", begun.elapsed().as_secs_f64() * 1_000.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a test: run with --release --nocapture"]
async fn measured_on_sqlite() {
    measure(Fixture::sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a test: run with --release --nocapture"]
async fn measured_on_postgres() {
    measure(Fixture::postgres().await).await;
}
