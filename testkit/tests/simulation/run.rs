//! One run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use annals_domain::definition::{ResourceTypeDefinition, SchemaDefinition};
use annals_domain::event::Actor;
use annals_domain::ids::{AppId, ResourceId};
use annals_domain::tenant::{Driver, TenantSettings};
use annals_store::Account;
use annals_testkit::clock::{pick, rng};
use annals_testkit::downstream::{Action, Downstream};
use annals_testkit::expected::{BADGE, Command, Edit, Expected, Outcome, User, badge_attribute};
use annals_testkit::scim::{Answer, ENTERPRISE, encode};
use annals_testkit::world::{NODES, PARTS, Part, REQUEST_TIMEOUT, SavedModel, World, cut};
use anyhow::{Context as _, Result, bail, ensure};
use axum::http::Method;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::commands::{Draw, MARK, department, user_name};

/// Three tenants, with the same names in each.
pub(crate) const TENANTS: [&str; 3] = ["acme", "globex", "initech"];

const APP_TOKEN: &str = "app-token";
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ACTIONS: usize = 300;
/// Longest that a request is repeated while its outcome is unknown.
const TRIES_MAX: usize = 40;
/// Most waits after which a step or a request is dropped.
const WAITS_MAX: usize = 30;
/// Longest that one action may take: none waits for anything that does not come.
const ACTION_TIMEOUT: Duration = Duration::from_secs(120);
/// Argon2 costs its time.
const PASSWORDS_MAX: usize = 3;
/// Stopping and starting everything costs its time.
const REWINDS_MAX: usize = 2;

/// A tenant, its applications, and what must be.
struct Tenant {
    expected: Expected,
    app: Option<Downstream>,
    hook: Downstream,
    /// Values of erased persons.
    erased: BTreeSet<String>,
}

/// A request that was answered.
struct Written {
    request: String,
    outcome: Outcome,
    /// Two raced: which of them changed something is not known.
    raced: bool,
}

struct Run {
    world: World,
    rng: ChaCha8Rng,
    tenants: Vec<Tenant>,
    written: Vec<Written>,
    count: usize,
    passwords: usize,
    rewinds: usize,
    saved: Option<SavedModel>,
    bus: Option<tempfile::TempDir>,
}

/// Runs one seed.
pub(crate) async fn simulate(mut world: World, seed: u64) -> Result<()> {
    let mut tenants = Vec::new();
    for (number, name) in TENANTS.into_iter().enumerate() {
        let hook = Downstream::webhook(SECRET).await?;
        world.add_app(number, "hook", Driver::Webhook { url: hook.url() }, SECRET).await?;
        let app = if number < 2 {
            let app = Downstream::scim(APP_TOKEN).await?;
            let driver = Driver::Scim { base_url: app.url(), members_per_request_max: 3 };
            world.add_app(number, "app", driver, APP_TOKEN).await?;
            Some(app)
        } else {
            None
        };
        if name == "globex" {
            let settings = TenantSettings { sealed_bus: true, ..TenantSettings::default() };
            let id = &world.tenants[number].id;
            world.store(0).set_tenant_settings(id, settings, Actor::operator("test")).await?;
        }
        tenants.push(Tenant { expected: Expected::default(), app, hook, erased: BTreeSet::new() });
    }
    world.restart().await?;
    let mut run = Run {
        world,
        rng: rng(seed),
        tenants,
        written: Vec::new(),
        count: 0,
        passwords: 0,
        rewinds: 0,
        saved: None,
        bus: None,
    };
    for action in 0..ACTIONS {
        let done = tokio::time::timeout(ACTION_TIMEOUT, run.act()).await;
        done.context("it hangs").flatten().with_context(|| format!("action {action}"))?;
    }
    run.rest().await
}

impl Run {
    async fn act(&mut self) -> Result<()> {
        let what = self.rng.random_range(0..1_000);
        tracing::debug!(what, "an action");
        match what {
            0..330 => self.write().await,
            330..380 => self.race().await,
            380..480 => self.read().await,
            480..780 => self.step().await,
            780..850 => {
                let (node, part) = self.part();
                let waits = self.rng.random_range(0..WAITS_MAX);
                self.world.crash_step(node, part, waits).await.map(drop)
            }
            850..865 => {
                let node = self.node();
                self.world.crash(node).await.context("a crash")
            }
            865..870 => self.world.restart().await.context("a restart"),
            870..905 => {
                let ms = self.rng.random_range(1..60_000);
                self.world.clock.advance(Duration::from_millis(ms));
                Ok(())
            }
            905..910 => {
                // Somebody sets the clock right.
                let now = annals_domain::clock::Clock::now(&*self.world.clock);
                self.world.clock.set(now.plus_ms(-self.rng.random_range(1..3_000)));
                Ok(())
            }
            910..950 => {
                self.misbehave();
                Ok(())
            }
            950..962 => {
                let node = self.node();
                self.world.begin_rebuild(node);
                Ok(())
            }
            962..965 => {
                let node = self.node();
                self.world.cancel_rebuild(node).await
            }
            965..975 => self.define().await.context("a schema"),
            975..983 => self.erase().await.context("an erasure"),
            983..988 => self.replay().await.context("a replay"),
            988..994 => self.lose().await.context("a loss"),
            _ => self.password().await.context("a password"),
        }
    }

    fn node(&mut self) -> usize {
        self.rng.random_range(0..NODES)
    }

    fn part(&mut self) -> (usize, Part) {
        (self.node(), *pick(&mut self.rng, &PARTS))
    }

    fn tenant(&mut self) -> usize {
        // The first one has most of the work.
        *pick(&mut self.rng, &[0, 0, 0, 1, 1, 2])
    }

    fn draw<T>(&mut self, tenant: usize, draw: impl FnOnce(&mut Draw<'_>) -> T) -> T {
        let Tenant { expected, app, .. } = &self.tenants[tenant];
        let names_change_hands = app.is_none();
        draw(&mut Draw { rng: &mut self.rng, count: &mut self.count, expected, names_change_hands })
    }

    async fn step(&mut self) -> Result<()> {
        let (node, part) = self.part();
        // A step may fail while applications or the bus misbehave; it must not stop the next one. But a
        // rebuild must not differ.
        let results = match self.rng.random_bool(0.15) {
            true => self.world.step_everywhere(part).await,
            false => vec![self.world.step(node, part).await],
        };
        for result in results {
            match result {
                Err(error) if error.is::<annals_testkit::world::Differs>() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends a command until its outcome is known, each time to another node if the answer was lost.
    async fn send(
        world: &World,
        rng: &mut ChaCha8Rng,
        (mut node, tenant): (usize, usize),
        command: &Command,
        request: &str,
        lose_answer: bool,
    ) -> Result<Answer> {
        let (method, path, body) = command.request();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let headers = [("idempotency-key", request), ("x-request-id", request)];
        for attempt in 0..TRIES_MAX {
            let api = world.api(node, tenant);
            let sent = api.send(method.clone(), &path, &headers, body.clone());
            let answer = match lose_answer && attempt == 0 {
                true => cut(sent, rng.random_range(0..WAITS_MAX)).await,
                false => Some(sent.await),
            };
            if let Some(answer) = answer {
                let answer = answer?;
                if answer.status < 500 && answer.status != 429 {
                    return Ok(answer);
                }
            }
            node = (node + 1) % NODES;
        }
        bail!("{method} {path} stays undecided")
    }

    fn request_id(&mut self) -> String {
        self.count += 1;
        format!("request-{:05}", self.count)
    }

    async fn write(&mut self) -> Result<()> {
        let tenant = self.tenant();
        let command = self.draw(tenant, |draw| draw.command());
        let (node, lose_answer) = (self.node(), self.rng.random_bool(0.2));
        let request = self.request_id();
        let sent =
            Self::send(&self.world, &mut self.rng, (node, tenant), &command, &request, lose_answer).await?;
        let outcome = self.tenants[tenant].expected.apply(&command, &created(&sent));
        check_answer(&command, &sent, &outcome)?;
        self.written.push(Written { request, outcome, raced: false });
        if self.rng.random_bool(0.3) {
            let node = self.node();
            for id in touched(&command, &sent) {
                self.read_by_id(node, tenant, &id).await.with_context(|| format!("after {command:?}"))?;
            }
        }
        Ok(())
    }

    /// Two commands at once, each on its own node: the outcome is that of one order or of the other.
    async fn race(&mut self) -> Result<()> {
        let tenant = self.tenant();
        let Some((one, other)) = self.draw(tenant, |draw| draw.race()) else { return Ok(()) };
        let (first, second) = (self.request_id(), self.request_id());
        let mut rngs = (rng(self.rng.random()), rng(self.rng.random()));
        let (a, b) = tokio::join!(
            Self::send(&self.world, &mut rngs.0, (0, tenant), &one, &first, false),
            Self::send(&self.world, &mut rngs.1, (1, tenant), &other, &second, false),
        );
        let (a, b) = (a?, b?);
        let before = self.tenants[tenant].expected.clone();
        let mut reasons = Vec::new();
        for order in [[(&one, &a), (&other, &b)], [(&other, &b), (&one, &a)]] {
            let mut expected = before.clone();
            let mut outcomes = Vec::new();
            let mut fits = Ok(());
            for (command, answer) in order {
                let outcome = expected.apply(command, &created(answer));
                fits = fits.and(check_answer(command, answer, &outcome));
                outcomes.push(outcome);
            }
            if let Err(reason) = fits {
                reasons.push(reason);
                continue;
            }
            self.tenants[tenant].expected = expected;
            let mut ids = touched(&one, &a);
            ids.extend(touched(&other, &b));
            let mut shown = Ok(());
            for id in ids {
                shown = shown.and(self.read_by_id(0, tenant, &id).await);
            }
            match shown {
                Ok(()) => {
                    if order[0].0 == &other {
                        outcomes.reverse();
                    }
                    for (request, outcome) in [first, second].into_iter().zip(outcomes) {
                        self.written.push(Written { request, outcome, raced: true });
                    }
                    return Ok(());
                }
                Err(reason) => reasons.push(reason),
            }
        }
        bail!("{one:?} and {other:?} came to what neither order explains: {reasons:#?}")
    }

    async fn read_by_id(&mut self, node: usize, tenant: usize, id: &str) -> Result<()> {
        let expected = &self.tenants[tenant].expected;
        let kind = if expected.groups.contains_key(id) { "Groups" } else { "Users" };
        let answer = self.world.api(node, tenant).get(&format!("/{kind}/{id}")).await?;
        if kind == "Groups" {
            return expected.check_group(id, &answer.expect(200)?.json());
        }
        match expected.users.contains_key(id) {
            true => expected.check_user(id, &answer.expect(200)?.json()),
            false => {
                answer.expect(404)?;
                self.world.api(node, tenant).get(&format!("/Groups/{id}")).await?.expect(404).map(drop)
            }
        }
    }

    async fn read(&mut self) -> Result<()> {
        let (node, tenant) = (self.node(), self.tenant());
        match self.rng.random_range(0..12) {
            0..2 => match self.draw(tenant, |draw| draw.user()) {
                Some(id) => self.read_by_id(node, tenant, &id).await,
                None => Ok(()),
            },
            2 => match self.draw(tenant, |draw| draw.group()) {
                Some(id) => self.read_by_id(node, tenant, &id).await,
                None => Ok(()),
            },
            // What is another tenant's is nobody's here.
            3 => {
                let other = (tenant + 1) % TENANTS.len();
                let Some(id) = self.draw(other, |draw| draw.user()) else { return Ok(()) };
                self.world.api(node, tenant).get(&format!("/Users/{id}")).await?.expect(404).map(drop)
            }
            4..6 => {
                let name = user_name(self.rng.random_range(0..12));
                let asked = if self.rng.random_bool(0.3) { name.to_uppercase() } else { name.clone() };
                let filter = format!("userName eq {}", json!(asked));
                self.find_users(node, tenant, &filter, |_, user| {
                    user.attributes["userName"].as_str().unwrap_or_default().to_lowercase() == name
                })
                .await
            }
            6 => {
                let department = department(self.rng.random_range(0..3));
                let filter = format!("{ENTERPRISE}:department eq {}", json!(department));
                self.find_users(node, tenant, &filter, |_, user| {
                    user.attributes.get(ENTERPRISE).is_some_and(|e| e["department"] == json!(department))
                })
                .await
            }
            7 => {
                let filter = "active eq false and displayName pr";
                self.find_users(node, tenant, filter, |_, user| user.attributes["active"] == json!(false))
                    .await
            }
            8 => {
                let Some(id) = self.draw(tenant, |draw| draw.user()) else { return Ok(()) };
                let user = &self.tenants[tenant].expected.users[&id];
                let Some(title) = user.attributes.get("title").cloned() else { return Ok(()) };
                let filter = format!("title eq {title}");
                self.find_users(node, tenant, &filter, |_, user| user.attributes.get("title") == Some(&title))
                    .await
            }
            9 => {
                let Some(id) = self.draw(tenant, |draw| draw.group()) else { return Ok(()) };
                let filter = format!("groups.value eq {}", json!(id));
                let expected = self.tenants[tenant].expected.clone();
                self.find_users(node, tenant, &filter, |user, _| expected.groups_of(user).contains_key(&id))
                    .await
            }
            10 => {
                let Some(id) = self.draw(tenant, |draw| draw.user()) else { return Ok(()) };
                let filter = format!("members.value eq {}", json!(id));
                self.find_groups(node, tenant, &filter, |members| members.contains(&id)).await
            }
            _ => {
                let filter = "emails[type eq \"work\"]";
                self.find_users(node, tenant, filter, |_, user| {
                    let emails = user.attributes.get("emails").and_then(Value::as_array);
                    emails.into_iter().flatten().any(|email| email["type"] == json!("work"))
                })
                .await
            }
        }
    }

    /// What a query answers, while the projector does its work.
    async fn query(&mut self, node: usize, tenant: usize, path: &str) -> Result<BTreeMap<String, Value>> {
        let api = self.world.api(node, tenant);
        let stepped = self.node();
        for _ in 0..TRIES_MAX {
            let (api, asked) = (api.clone(), path.to_owned());
            let request = async move { api.get(&asked).await };
            let answer = self.world.with_projector(stepped, request).await??;
            if answer.status == 503 {
                continue;
            }
            let list = answer.expect(200)?.json();
            let found = list["Resources"].as_array().cloned().unwrap_or_default();
            ensure!(list["totalResults"] == json!(found.len()), "{path}: {list}");
            let by_id =
                found.iter().map(|one| (one["id"].as_str().unwrap_or_default().to_owned(), one.clone()));
            let by_id: BTreeMap<String, Value> = by_id.collect();
            ensure!(by_id.len() == found.len(), "{path} shows something twice: {list}");
            return Ok(by_id);
        }
        bail!("{path} stays without an answer")
    }

    async fn find_users(
        &mut self,
        node: usize,
        tenant: usize,
        filter: &str,
        fits: impl Fn(&String, &User) -> bool,
    ) -> Result<()> {
        let found = self.query(node, tenant, &format!("/Users?count=200&filter={}", encode(filter))).await?;
        let expected = &self.tenants[tenant].expected;
        let wanted: BTreeSet<&String> =
            expected.users.iter().filter(|(id, user)| fits(id, user)).map(|(id, _)| id).collect();
        let ids: BTreeSet<&String> = found.keys().collect();
        ensure!(ids == wanted, "{filter} finds {ids:?}\nand must find {wanted:?}");
        for (id, shown) in &found {
            expected.check_user(id, shown).with_context(|| filter.to_owned())?;
        }
        Ok(())
    }

    async fn find_groups(
        &mut self,
        node: usize,
        tenant: usize,
        filter: &str,
        fits: impl Fn(&BTreeSet<String>) -> bool,
    ) -> Result<()> {
        let found = self.query(node, tenant, &format!("/Groups?count=200&filter={}", encode(filter))).await?;
        let expected = &self.tenants[tenant].expected;
        let wanted: BTreeSet<&String> =
            expected.groups.iter().filter(|(_, group)| fits(&group.members)).map(|(id, _)| id).collect();
        let ids: BTreeSet<&String> = found.keys().collect();
        ensure!(ids == wanted, "{filter} finds {ids:?}\nand must find {wanted:?}");
        for (id, shown) in &found {
            expected.check_group(id, shown).with_context(|| filter.to_owned())?;
        }
        Ok(())
    }

    /// What applications do to those who deliver to them.
    fn misbehave(&mut self) {
        let tenant = self.tenant();
        let action = match self.rng.random_range(0..8) {
            0 => Action::status(500),
            1 => Action::retry_after(429, "7"),
            2 => Action::retry_after(503, "1"),
            3 => Action::DropBefore,
            4 => Action::DropAfter,
            5 => Action::Lie(500),
            6 => Action::Late(REQUEST_TIMEOUT + Duration::from_millis(100)),
            _ => Action::status(502),
        };
        let methods = [None, Some(Method::POST), Some(Method::PATCH), Some(Method::DELETE)];
        let method = pick(&mut self.rng, &methods).clone();
        let times = self.rng.random_range(1..4);
        let tenant = &self.tenants[tenant];
        match &tenant.app {
            Some(app) if self.rng.random_bool(0.6) => app.script(method, "", times, action),
            _ => tenant.hook.script(method, "", times, action),
        };
    }

    /// One attribute more in the tenant's extension of users, while somebody writes.
    async fn define(&mut self) -> Result<()> {
        let (tenant, node) = (self.tenant(), self.node());
        let id = self.world.tenants[tenant].id.clone();
        let badges = self.tenants[tenant].expected.badges + 1;
        let attributes: Vec<Value> =
            (0..badges).map(|number| json!({"name": badge_attribute(number), "x-personal": true})).collect();
        let schema = SchemaDefinition::read(&json!({"id": BADGE, "attributes": attributes}))?;
        let kind = json!({"name": "User", "schemaExtensions": [{"schema": BADGE, "required": false}]});
        let kind = ResourceTypeDefinition::read(&kind)?;
        let actor = || Actor::operator("test");
        // The first may be cut off; put again, it changes nothing.
        let waits = self.rng.random_range(0..WAITS_MAX);
        let put = self.world.store(node).put_schema(&id, schema.clone(), actor());
        drop(cut(put, waits).await);
        let command = self.draw(tenant, |draw| draw.command());
        let request = self.request_id();
        let mut rng = rng(self.rng.random());
        let other = (node + 1) % NODES;
        let store = self.world.store(node);
        let (put, sent) = tokio::join!(
            async {
                store.put_schema(&id, schema, actor()).await?;
                store.put_resource_type(&id, kind, actor()).await
            },
            Self::send(&self.world, &mut rng, (other, tenant), &command, &request, false),
        );
        put.context("putting it")?;
        let (expected, sent) = (&mut self.tenants[tenant].expected, sent?);
        let outcome = expected.apply(&command, &created(&sent));
        check_answer(&command, &sent, &outcome)?;
        self.written.push(Written { request, outcome, raced: false });
        self.tenants[tenant].expected.badges = badges;
        // In force at once, everywhere.
        let Some(user) = self.draw(tenant, |draw| draw.user()) else { return Ok(()) };
        self.count += 1;
        let edit = Edit::Badge(badges - 1, format!("{MARK}-badge-{:05}", self.count));
        let command = Command::PatchUser(user.clone(), vec![edit]);
        let request = self.request_id();
        let sent = Self::send(&self.world, &mut self.rng, (other, tenant), &command, &request, false).await?;
        let outcome = self.tenants[tenant].expected.apply(&command, &[]);
        check_answer(&command, &sent, &outcome)?;
        self.written.push(Written { request, outcome, raced: false });
        self.read_by_id(node, tenant, &user).await
    }

    /// A person is erased, while somebody changes them.
    async fn erase(&mut self) -> Result<()> {
        let (tenant, node) = (self.tenant(), self.node());
        let Some(user) = self.draw(tenant, |draw| draw.user()) else { return Ok(()) };
        self.count += 1;
        let title = format!("{MARK}-title-{:05}", self.count);
        let mut values = BTreeSet::from([title.clone()]);
        personal(&Value::Object(self.tenants[tenant].expected.users[&user].attributes.clone()), &mut values);
        let (tenant_id, id) = (self.world.tenants[tenant].id.clone(), ResourceId::from_text(&user));
        let waits = self.rng.random_range(0..WAITS_MAX);
        let command = Command::PatchUser(user.clone(), vec![Edit::Set("title", json!(title))]);
        let request = self.request_id();
        let mut rng = rng(self.rng.random());
        let other = (node + 1) % NODES;
        let (_, sent) = tokio::join!(
            cut(self.world.store(node).erase(&tenant_id, &id, Actor::operator("test")), waits),
            Self::send(&self.world, &mut rng, (other, tenant), &command, &request, false),
        );
        let sent = sent?;
        ensure!([200, 404].contains(&sent.status), "{}: {} {}", sent.asked, sent.status, sent.json());
        let changed = sent.status == 200;
        let outcome = Outcome { status: sent.status, changed, unsure: false, operations: Vec::new() };
        self.written.push(Written { request, outcome, raced: false });
        let erased = self.world.store(other).erase(&tenant_id, &id, Actor::operator("test")).await;
        erased.context("repeating it")?;
        let tenant_state = &mut self.tenants[tenant];
        tenant_state.expected.erase(&user);
        tenant_state.erased.extend(values);
        self.read_by_id(node, tenant, &user).await
    }

    async fn replay(&mut self) -> Result<()> {
        let (tenant, node) = (self.tenant(), self.node());
        if self.tenants[tenant].app.is_none() {
            return Ok(());
        }
        let force = self.rng.random_bool(0.5);
        let id = &self.world.tenants[tenant].id;
        self.world.store(node).replay_app(id, &AppId::new("app")?, force).await?;
        Ok(())
    }

    /// Something that was written is gone, as disks and operators have it.
    async fn lose(&mut self) -> Result<()> {
        if self.world.nats.is_some() && self.rng.random_bool(0.6) {
            return self.lose_stream().await;
        }
        match self.saved.take() {
            Some(saved) => self.world.restore_model(&saved).await.context("rewinding the read model"),
            None if self.rewinds < REWINDS_MAX => {
                self.rewinds += 1;
                self.saved = Some(self.world.save_model().await.context("saving the read model")?);
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn lose_stream(&mut self) -> Result<()> {
        if self.rng.random_bool(0.4) {
            // It may not be there yet.
            drop(self.world.checkers.delete_stream().await);
            return Ok(());
        }
        let Some(server) = &mut self.world.nats else { return Ok(()) };
        server.kill_9();
        let folder = server.store_folder();
        match self.bus.take() {
            // What was published since is lost.
            Some(saved) => {
                server.lose_data()?;
                copy_folder(saved.path(), &folder)?;
            }
            None => {
                let saved = tempfile::tempdir()?;
                copy_folder(&folder, saved.path())?;
                self.bus = Some(saved);
            }
        }
        server.restart().await
    }

    async fn password(&mut self) -> Result<()> {
        let (tenant, node) = (self.tenant(), self.node());
        let Some(user) = self.draw(tenant, |draw| draw.user()) else { return Ok(()) };
        if self.passwords >= PASSWORDS_MAX {
            return Ok(());
        }
        self.passwords += 1;
        self.count += 1;
        let password = format!("{MARK}-password-{:05}", self.count);
        let command = Command::PatchUser(user.clone(), vec![Edit::Password(password.clone())]);
        let request = self.request_id();
        let lose_answer = self.rng.random_bool(0.5);
        let sent =
            Self::send(&self.world, &mut self.rng, (node, tenant), &command, &request, lose_answer).await?;
        let outcome = self.tenants[tenant].expected.apply(&command, &[]);
        check_answer(&command, &sent, &outcome)?;
        self.written.push(Written { request, outcome, raced: false });
        let store = self.world.store((node + 1) % NODES);
        let id = &self.world.tenants[tenant].id;
        let account = store.find_account(id, &Account::Id(ResourceId::from_text(&user))).await?;
        let is = store.verify_password(id, account.as_ref(), &SecretString::from(password)).await?;
        let active = self.tenants[tenant].expected.users[&user].attributes["active"] == json!(true);
        ensure!(is == active, "the password of {user}: {is}, active: {active}");
        Ok(())
    }

    /// Heals everything, drives it to rest, and checks all that must hold.
    async fn rest(mut self) -> Result<()> {
        for tenant in &self.tenants {
            tenant.hook.behave();
            if let Some(app) = &tenant.app {
                app.behave();
            }
        }
        self.world.settle().await?;
        // What a process remembers for a few seconds may be older.
        self.world.restart().await?;
        let checkers = &self.world.checkers;
        checkers.all().await?;
        self.journal_has_each_write_once().await?;
        for (number, name) in TENANTS.into_iter().enumerate() {
            self.shows_all(number).await.with_context(|| format!("tenant {name}"))?;
        }
        let checkers = &self.world.checkers;
        for (tenant, number) in self.tenants.iter().zip(0..) {
            let id = &self.world.tenants[number].id;
            checkers.webhook_with_repeats(id, &tenant.hook).await?;
            if let Some(app) = &tenant.app {
                checkers.converged(id, &app.users(), &app.groups()).await?;
            }
            let erased: Vec<&str> = tenant.erased.iter().map(String::as_str).collect();
            checkers.forgotten(id, &erased).await?;
        }
        checkers.dump_is_sealed(&[MARK]).await
    }

    async fn journal_has_each_write_once(&self) -> Result<()> {
        // Per request and operation: commits, and events.
        let mut found: BTreeMap<(String, Option<u32>), BTreeSet<String>> = BTreeMap::new();
        for event in self.world.checkers.events().await? {
            let key = (event.cause.request_id.clone(), event.cause.bulk_index);
            found.entry(key).or_default().insert(event.commit_id.to_string());
        }
        for Written { request, outcome, raced } in &self.written {
            let times = |at: Option<u32>| found.get(&(request.clone(), at)).map_or(0, BTreeSet::len);
            if outcome.operations.is_empty() {
                let times = times(None);
                let fits = match *raced || (outcome.unsure && !outcome.changed) {
                    true => times <= 1,
                    false => times == usize::from(outcome.changed),
                };
                ensure!(fits, "{request} came to {outcome:?} and is in {times} commits");
            }
            for ((_, changed), at) in outcome.operations.iter().zip(0..) {
                let times = times(Some(at));
                ensure!(
                    times == usize::from(*changed),
                    "operation {at} of {request} came to {outcome:?} and is in {times} commits"
                );
            }
        }
        Ok(())
    }

    async fn shows_all(&mut self, tenant: usize) -> Result<()> {
        let users = self.query(0, tenant, "/Users?count=200").await?;
        let groups = self.query(1, tenant, "/Groups?count=200").await?;
        let expected = &self.tenants[tenant].expected;
        ensure!(users.keys().eq(expected.users.keys()), "the users are {:?}", users.keys());
        ensure!(groups.keys().eq(expected.groups.keys()), "the groups are {:?}", groups.keys());
        for (id, shown) in &users {
            expected.check_user(id, shown)?;
            let shown = self.world.api(1, tenant).get(&format!("/Users/{id}")).await?.expect(200)?.json();
            expected.check_user(id, &shown)?;
        }
        for (id, shown) in &groups {
            expected.check_group(id, shown)?;
        }
        for id in expected.gone.clone() {
            self.read_by_id(0, tenant, &id).await?;
        }
        Ok(())
    }
}

/// The ids that an answer gave, in the order of operations.
fn created(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    let id_of = |operation: &Value| {
        let location = operation["location"].as_str().filter(|_| operation["status"] == json!("201"))?;
        location.rsplit('/').next().map(str::to_owned)
    };
    match body["Operations"].as_array() {
        Some(operations) => operations.iter().filter_map(id_of).collect(),
        None if answer.status == 201 => vec![answer.id()],
        None => Vec::new(),
    }
}

fn check_answer(command: &Command, answer: &Answer, outcome: &Outcome) -> Result<()> {
    let differs = || format!("{command:?} was answered {}: {}", answer.status, answer.json());
    ensure!(answer.status == outcome.status, "{} and must be {outcome:?}", differs());
    let body = answer.json();
    let statuses = body["Operations"].as_array().into_iter().flatten().map(|o| o["status"].as_str());
    let wanted: Vec<String> = outcome.operations.iter().map(|(status, _)| status.to_string()).collect();
    ensure!(statuses.eq(wanted.iter().map(|s| Some(s.as_str()))), "{} and must be {outcome:?}", differs());
    Ok(())
}

/// The entities that a command is about.
fn touched(command: &Command, answer: &Answer) -> BTreeSet<String> {
    let mut ids: BTreeSet<String> = created(answer).into_iter().collect();
    match command {
        Command::ReplaceUser(id, _)
        | Command::PatchUser(id, _)
        | Command::DeleteUser(id)
        | Command::ReplaceGroup(id, ..)
        | Command::RenameGroup(id, _)
        | Command::Members(id, ..)
        | Command::DeleteGroup(id) => drop(ids.insert(id.clone())),
        Command::Bulk(commands) => {
            let nothing = Answer { body: Default::default(), status: 0, ..answer.clone() };
            ids.extend(commands.iter().flat_map(|command| touched(command, &nothing)));
        }
        Command::CreateUser(_) | Command::CreateGroup(..) => {}
    }
    ids
}

/// The values in a document that only this person has.
fn personal(value: &Value, found: &mut BTreeSet<String>) {
    let shared = ["-user-", "-USER-", "-department-"];
    match value {
        Value::String(text) if text.contains(MARK) && !shared.iter().any(|part| text.contains(part)) => {
            found.insert(text.clone());
        }
        Value::Array(list) => list.iter().for_each(|element| personal(element, found)),
        Value::Object(map) => map.values().for_each(|value| personal(value, found)),
        _ => {}
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &target)?;
        } else {
            std::fs::copy(&path, &target).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
