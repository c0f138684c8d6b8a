//! What clients do, drawn from a seed.

use annals_testkit::clock::pick;
use annals_testkit::expected::BADGE;
use annals_testkit::expected::{Attributes, Command, Edit, Expected, badge_attribute};
use annals_testkit::scim::ENTERPRISE;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// In every personal value: what no dump of the journal's database may hold.
pub(crate) const MARK: &str = "zq7-personal";
/// So few names that they are taken, given up and taken again.
const NAMES: usize = 12;
const USERS_MAX: usize = 10;
const GROUPS_MAX: usize = 5;
const DEPARTMENTS: usize = 3;

/// Draws commands; every value has a number of its own.
pub(crate) struct Draw<'a> {
    pub(crate) rng: &'a mut ChaCha8Rng,
    pub(crate) count: &'a mut usize,
    pub(crate) expected: &'a Expected,
    /// Users may take each other's names. Where an application follows that knows names as unique, two who
    /// exchange theirs could wait for each other for ever, so there they take new ones.
    pub(crate) names_change_hands: bool,
}

pub(crate) fn user_name(number: usize) -> String {
    format!("{MARK}-user-{number:02}@example.test")
}

pub(crate) fn department(number: usize) -> String {
    format!("{MARK}-department-{number}")
}

impl Draw<'_> {
    fn value(&mut self, what: &str) -> String {
        *self.count += 1;
        format!("{MARK}-{what}-{:05}", self.count)
    }

    fn name(&mut self) -> String {
        let name = user_name(self.rng.random_range(0..NAMES));
        // `userName` is compared without case.
        if self.rng.random_bool(0.2) { name.to_uppercase() } else { name }
    }

    fn other_name(&mut self) -> String {
        match self.names_change_hands {
            true => self.name(),
            false => format!("{}@example.test", self.value("user-new")),
        }
    }

    pub(crate) fn user(&mut self) -> Option<String> {
        let ids: Vec<&String> = self.expected.users.keys().collect();
        (!ids.is_empty()).then(|| (*pick(self.rng, &ids)).clone())
    }

    pub(crate) fn group(&mut self) -> Option<String> {
        let ids: Vec<&String> = self.expected.groups.keys().collect();
        (!ids.is_empty()).then(|| (*pick(self.rng, &ids)).clone())
    }

    /// A user or a group, but not this one.
    fn member(&mut self, of: &str) -> Option<String> {
        let groups = self.expected.groups.keys().filter(|id| *id != of);
        let nested = self.rng.random_bool(0.15);
        let ids: Vec<&String> = if nested { groups.collect() } else { self.expected.users.keys().collect() };
        (!ids.is_empty()).then(|| (*pick(self.rng, &ids)).clone())
    }

    fn members(&mut self, of: &str, max: usize) -> Vec<String> {
        let count = self.rng.random_range(0..=max);
        let mut members: Vec<String> = (0..count).filter_map(|_| self.member(of)).collect();
        members.sort();
        members.dedup();
        members
    }

    fn attributes(&mut self) -> Attributes {
        let mut user = Attributes::new();
        user.insert("userName".into(), json!(self.name()));
        user.insert("active".into(), json!(self.rng.random_bool(0.8)));
        user.insert("displayName".into(), json!(self.value("display")));
        if self.rng.random_bool(0.6) {
            user.insert("title".into(), json!(self.value("title")));
        }
        if self.rng.random_bool(0.5) {
            let (given, family) = (self.value("given"), self.value("family"));
            user.insert("name".into(), json!({"givenName": given, "familyName": family}));
        }
        let mut emails = Vec::new();
        for kind in ["work", "home"] {
            if self.rng.random_bool(0.5) {
                emails.push(json!({"type": kind, "value": format!("{}@example.test", self.value("mail"))}));
            }
        }
        if !emails.is_empty() {
            user.insert("emails".into(), Value::Array(emails));
        }
        let mut enterprise = Attributes::new();
        if self.rng.random_bool(0.6) {
            let department = department(self.rng.random_range(0..DEPARTMENTS));
            enterprise.insert("department".into(), json!(department));
        }
        if self.rng.random_bool(0.3)
            && let Some(manager) = self.user()
        {
            enterprise.insert("manager".into(), json!({"value": manager}));
        }
        if !enterprise.is_empty() {
            user.insert(ENTERPRISE.into(), Value::Object(enterprise));
        }
        if self.expected.badges > 0 && self.rng.random_bool(0.3) {
            let attribute = badge_attribute(self.rng.random_range(0..self.expected.badges));
            user.insert(BADGE.into(), json!({attribute: self.value("badge")}));
        }
        user
    }

    fn emails_of(&self, id: &str, kind: &str) -> usize {
        let user = self.expected.users.get(id);
        let emails = user.and_then(|user| user.attributes.get("emails")).and_then(Value::as_array);
        emails.map_or(0, |list| list.iter().filter(|email| email["type"] == json!(kind)).count())
    }

    fn edit(&mut self, id: &str) -> Edit {
        loop {
            match self.rng.random_range(0..18) {
                0..3 => return Edit::Set("title", json!(self.value("title"))),
                3..5 => return Edit::Set("active", json!(self.rng.random_bool(0.5))),
                5 => return Edit::Set("displayName", json!(self.value("display"))),
                6 => return Edit::Clear("title"),
                7 => {
                    let part = if self.rng.random_bool(0.5) { "givenName" } else { "familyName" };
                    return Edit::Name(part, self.value("name"));
                }
                8 => return Edit::Set("userName", json!(self.other_name())),
                9 => return Edit::AddEmail("other", format!("{}@example.test", self.value("mail"))),
                10 => {
                    let kind = if self.rng.random_bool(0.5) { "work" } else { "home" };
                    if self.emails_of(id, kind) < 2 {
                        return Edit::ChangeEmail(kind, format!("{}@example.test", self.value("mail")));
                    }
                }
                11 => {
                    let kind = *pick(self.rng, &["work", "home", "other"]);
                    if self.emails_of(id, kind) > 0 {
                        return Edit::RemoveEmail(kind);
                    }
                }
                12 => {
                    let list =
                        ["work", "home"].map(|kind| (kind, format!("{}@example.test", self.value("mail"))));
                    return Edit::Emails(list.to_vec());
                }
                13 => {
                    let department = department(self.rng.random_range(0..DEPARTMENTS));
                    return Edit::Enterprise("department", department);
                }
                14 => return Edit::ClearEnterprise("department"),
                15 => {
                    if let Some(manager) = self.user() {
                        return Edit::Manager(manager);
                    }
                }
                16 if self.expected.badges > 0 => {
                    let number = self.rng.random_range(0..self.expected.badges);
                    return Edit::Badge(number, self.value("badge"));
                }
                _ => return Edit::ClearEnterprise("manager"),
            }
        }
    }

    fn replacement(&mut self, id: String) -> Command {
        let mut attributes = self.attributes();
        if !self.names_change_hands {
            attributes.insert("userName".into(), json!(self.other_name()));
        }
        Command::ReplaceUser(id, attributes)
    }

    fn edits(&mut self, id: &str) -> Vec<Edit> {
        let mut edits = vec![self.edit(id)];
        // Two edits of the addresses would depend on each other.
        if self.rng.random_bool(0.4) {
            edits.push(Edit::Set("title", json!(self.value("title"))));
        }
        edits
    }

    fn group_name(&mut self) -> String {
        *self.count += 1;
        format!("team-{:05}", self.count)
    }

    /// Some write.
    pub(crate) fn command(&mut self) -> Command {
        let (users, groups) = (self.expected.users.len(), self.expected.groups.len());
        loop {
            match self.rng.random_range(0..100) {
                0..20 if users < USERS_MAX => return Command::CreateUser(self.attributes()),
                20..55 => {
                    if let Some(id) = self.user() {
                        let edits = self.edits(&id);
                        return Command::PatchUser(id, edits);
                    }
                }
                55..60 => {
                    if let Some(id) = self.user() {
                        return self.replacement(id);
                    }
                }
                60..66 => {
                    if let Some(id) = self.user() {
                        return Command::DeleteUser(id);
                    }
                }
                66..70 if groups < GROUPS_MAX => {
                    let name = self.group_name();
                    return Command::CreateGroup(name, self.members("", 4));
                }
                70..84 => {
                    if let Some(id) = self.group() {
                        let (added, removed) = (self.members(&id, 5), self.members(&id, 2));
                        let removed: Vec<String> =
                            removed.into_iter().filter(|member| !added.contains(member)).collect();
                        if !added.is_empty() || !removed.is_empty() {
                            return Command::Members(id, added, removed);
                        }
                    }
                }
                84..89 => {
                    if let Some(id) = self.group() {
                        let name = self.group_name();
                        let members = self.members(&id, 6);
                        return Command::ReplaceGroup(id, name, members);
                    }
                }
                89..91 => {
                    if let Some(id) = self.group() {
                        return Command::RenameGroup(id, self.group_name());
                    }
                }
                91..93 => {
                    if let Some(id) = self.group() {
                        return Command::DeleteGroup(id);
                    }
                }
                93..97 => return self.bulk(),
                // What is gone already, or never was.
                97 => {
                    let gone: Vec<&String> = self.expected.gone.iter().collect();
                    if !gone.is_empty() {
                        let id = (*pick(self.rng, &gone)).clone();
                        return Command::DeleteUser(id);
                    }
                }
                _ if users > 0 => {}
                _ => return Command::CreateUser(self.attributes()),
            }
        }
    }

    fn bulk(&mut self) -> Command {
        let mut commands = vec![Command::CreateUser(self.attributes())];
        let taken = {
            let mut after = self.expected.clone();
            after.apply(&commands[0], &[]).status != 201
        };
        let patched = self.user();
        if let Some(id) = patched.clone() {
            let title = Edit::Set("title", json!(self.value("title")));
            commands.push(Command::PatchUser(id, vec![title]));
        }
        // A reference to what is not created fails together with it, in ways of its own.
        if !taken {
            let name = self.group_name();
            let mut members = self.members("", 2);
            members.push("bulkId:0".to_owned());
            commands.push(Command::CreateGroup(name, members));
        }
        // Repeated, a change of what the same request deleted is answered 404: it cannot be shown any more.
        if self.rng.random_bool(0.5)
            && let Some(id) = self.user().filter(|id| patched.as_ref() != Some(id))
        {
            commands.push(Command::DeleteUser(id));
        }
        Command::Bulk(commands)
    }

    /// Two writes about the same thing.
    pub(crate) fn race(&mut self) -> Option<(Command, Command)> {
        let about = self.rng.random_range(0..6);
        Some(match about {
            0 => {
                let (mut one, other) = (self.attributes(), self.attributes());
                one.insert("userName".into(), other["userName"].clone());
                (Command::CreateUser(one), Command::CreateUser(other))
            }
            1 => {
                let id = self.user()?;
                let other = self.user()?;
                let name = self.expected.users[&id].attributes["userName"].clone();
                let first = if self.rng.random_bool(0.5) {
                    Command::DeleteUser(id)
                } else {
                    Command::PatchUser(id, vec![Edit::Set("userName", json!(self.other_name()))])
                };
                if !self.names_change_hands || self.rng.random_bool(0.5) {
                    let mut attributes = self.attributes();
                    attributes.insert("userName".into(), name);
                    (first, Command::CreateUser(attributes))
                } else {
                    (first, Command::PatchUser(other, vec![Edit::Set("userName", name)]))
                }
            }
            2 => {
                let (id, group) = (self.user()?, self.group()?);
                (Command::DeleteUser(id.clone()), Command::Members(group, vec![id], Vec::new()))
            }
            3 => {
                let id = self.user()?;
                (self.of_user(&id), self.of_user(&id))
            }
            _ => {
                let id = self.group()?;
                (self.of_group(&id), self.of_group(&id))
            }
        })
    }

    fn of_user(&mut self, id: &str) -> Command {
        let id = id.to_owned();
        match self.rng.random_range(0..7) {
            0 => Command::DeleteUser(id),
            1 => self.replacement(id),
            2 => Command::PatchUser(id, vec![Edit::Set("active", json!(self.rng.random_bool(0.5)))]),
            3 => Command::PatchUser(id, vec![Edit::Set("displayName", json!(self.value("display")))]),
            4 => {
                let mail = format!("{}@example.test", self.value("mail"));
                Command::PatchUser(id, vec![Edit::AddEmail("other", mail)])
            }
            _ => Command::PatchUser(id, vec![Edit::Set("title", json!(self.value("title")))]),
        }
    }

    fn of_group(&mut self, id: &str) -> Command {
        let group = id.to_owned();
        match self.rng.random_range(0..7) {
            0 => Command::DeleteGroup(group),
            1 => Command::RenameGroup(group, self.group_name()),
            2 => {
                let name = self.group_name();
                let members = self.members(id, 4);
                Command::ReplaceGroup(group, name, members)
            }
            3 => {
                let gone: Vec<String> = self.expected.groups[id].members.iter().take(2).cloned().collect();
                let added = if gone.is_empty() { self.members(id, 1) } else { Vec::new() };
                match gone.is_empty() && added.is_empty() {
                    true => Command::RenameGroup(group, self.group_name()),
                    false => Command::Members(group, added, gone),
                }
            }
            _ => match self.members(id, 2) {
                added if added.is_empty() => Command::RenameGroup(group, self.group_name()),
                added => Command::Members(group, added, Vec::new()),
            },
        }
    }
}
