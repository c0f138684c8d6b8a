//! A model of one tenant, in memory: what every command must be answered with, and what every acknowledged
//! one must have led to.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use axum::http::Method;
use serde_json::{Map, Value, json};

use crate::scim::{ENTERPRISE, PATCH_OP, values};

const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";
const BULK: &str = "urn:ietf:params:scim:api:messages:2.0:BulkRequest";
/// An extension of users that tenants define while the service runs.
pub const BADGE: &str = "urn:example:schemas:extension:badge:2.0:User";

/// A resource's attributes, without what the service adds.
pub type Attributes = Map<String, Value>;

/// One change of a user.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// A simple attribute, or `active`, or `userName`.
    Set(&'static str, Value),
    /// A simple attribute goes.
    Clear(&'static str),
    /// A part of `name`.
    Name(&'static str, String),
    /// An e-mail address of this type more.
    AddEmail(&'static str, String),
    /// The addresses of this type have another value; there must be one.
    ChangeEmail(&'static str, String),
    /// The addresses of this type go; there must be one.
    RemoveEmail(&'static str),
    /// All addresses are these.
    Emails(Vec<(&'static str, String)>),
    /// An attribute of the enterprise extension.
    Enterprise(&'static str, String),
    /// It goes.
    ClearEnterprise(&'static str),
    /// The manager.
    Manager(String),
    /// An attribute of [`BADGE`], by number.
    Badge(usize, String),
    /// The password.
    Password(String),
}

fn email((kind, value): (&str, &str)) -> Value {
    json!({"type": kind, "value": value})
}

/// The name of an attribute of [`BADGE`].
pub fn badge_attribute(number: usize) -> String {
    format!("mark{number}")
}

impl Edit {
    /// As an operation of PATCH.
    fn operation(&self) -> Value {
        let set = |path: String, value: Value| json!({"op": "replace", "path": path, "value": value});
        let remove = |path: String| json!({"op": "remove", "path": path});
        match self {
            Edit::Set(name, value) => set((*name).to_owned(), value.clone()),
            Edit::Clear(name) => remove((*name).to_owned()),
            Edit::Name(part, value) => set(format!("name.{part}"), json!(value)),
            Edit::AddEmail(kind, value) => {
                json!({"op": "add", "path": "emails", "value": [email((kind, value))]})
            }
            Edit::ChangeEmail(kind, value) => set(format!("emails[type eq \"{kind}\"].value"), json!(value)),
            Edit::RemoveEmail(kind) => remove(format!("emails[type eq \"{kind}\"]")),
            Edit::Emails(list) => {
                set("emails".to_owned(), list.iter().map(|(kind, value)| email((kind, value))).collect())
            }
            Edit::Enterprise(name, value) => set(format!("{ENTERPRISE}:{name}"), json!(value)),
            Edit::ClearEnterprise(name) => remove(format!("{ENTERPRISE}:{name}")),
            Edit::Manager(id) => set(format!("{ENTERPRISE}:manager"), json!({"value": id})),
            Edit::Badge(number, value) => set(format!("{BADGE}:{}", badge_attribute(*number)), json!(value)),
            Edit::Password(value) => set("password".to_owned(), json!(value)),
        }
    }

    fn apply(&self, attributes: &mut Attributes) {
        let mut inner = |extension: &str, name: &str, value: Option<Value>| {
            let entry = attributes.entry(extension.to_owned()).or_insert_with(|| json!({}));
            if let Value::Object(map) = entry {
                match value {
                    Some(value) => map.insert(name.to_owned(), value),
                    None => map.remove(name),
                };
            }
        };
        match self {
            Edit::Enterprise(name, value) => inner(ENTERPRISE, name, Some(json!(value))),
            Edit::ClearEnterprise(name) => inner(ENTERPRISE, name, None),
            Edit::Manager(id) => inner(ENTERPRISE, "manager", Some(json!({"value": id}))),
            Edit::Badge(number, value) => inner(BADGE, &badge_attribute(*number), Some(json!(value))),
            Edit::Name(part, value) => inner("name", part, Some(json!(value))),
            Edit::Set(name, value) => drop(attributes.insert((*name).to_owned(), value.clone())),
            Edit::Clear(name) => drop(attributes.remove(*name)),
            Edit::AddEmail(kind, value) => {
                let list = attributes.entry("emails").or_insert_with(|| json!([]));
                let new = email((kind, value));
                if let Value::Array(list) = list
                    && !list.contains(&new)
                {
                    list.push(new);
                }
            }
            Edit::ChangeEmail(kind, value) => {
                for address in emails_of(attributes).filter(|address| address["type"] == json!(kind)) {
                    address["value"] = json!(value);
                }
            }
            Edit::RemoveEmail(kind) => {
                if let Some(Value::Array(list)) = attributes.get_mut("emails") {
                    list.retain(|address| address["type"] != json!(kind));
                }
            }
            Edit::Emails(list) => {
                let list: Value = list.iter().map(|(kind, value)| email((kind, value))).collect();
                attributes.insert("emails".to_owned(), list);
            }
            Edit::Password(_) => {}
        }
        *attributes = normal(attributes);
    }
}

fn emails_of(attributes: &mut Attributes) -> impl Iterator<Item = &mut Value> {
    attributes.get_mut("emails").and_then(Value::as_array_mut).into_iter().flatten()
}

/// A write.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `POST /Users`
    CreateUser(Attributes),
    /// `PUT /Users/{id}`
    ReplaceUser(String, Attributes),
    /// `PATCH /Users/{id}`
    PatchUser(String, Vec<Edit>),
    /// `DELETE /Users/{id}`
    DeleteUser(String),
    /// `POST /Groups`, with members
    CreateGroup(String, Vec<String>),
    /// `PUT /Groups/{id}`, with name and members
    ReplaceGroup(String, String, Vec<String>),
    /// `PATCH /Groups/{id}`: another name
    RenameGroup(String, String),
    /// `PATCH /Groups/{id}`: members added and removed
    Members(String, Vec<String>, Vec<String>),
    /// `DELETE /Groups/{id}`
    DeleteGroup(String),
    /// `POST /Bulk`; a member `bulkId:n` is what the operation `n` creates.
    Bulk(Vec<Command>),
}

/// What a command must come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The status.
    pub status: u16,
    /// Whether it changed anything, so that there are events.
    pub changed: bool,
    /// It may have changed what this model does not know: whether a reference to what is gone was still there.
    pub unsure: bool,
    /// The same of each operation of a bulk request.
    pub operations: Vec<(u16, bool)>,
}

fn outcome(status: u16, changed: bool) -> Outcome {
    Outcome { status, changed, unsure: false, operations: Vec::new() }
}

fn members_body(members: &[String]) -> Value {
    members.iter().map(|id| json!({"value": id})).collect()
}

fn user_body(attributes: &Attributes) -> Value {
    let mut body = attributes.clone();
    let extensions = [ENTERPRISE, BADGE].into_iter().filter(|urn| attributes.contains_key(*urn));
    let schemas: Vec<&str> = std::iter::once(USER).chain(extensions).collect();
    body.insert("schemas".to_owned(), json!(schemas));
    Value::Object(body)
}

impl Command {
    /// Method, path and body.
    pub fn request(&self) -> (Method, String, Value) {
        let patch = |operations: Value| json!({"schemas": [PATCH_OP], "Operations": operations});
        let group = |name: &str, members: &[String]| json!({"schemas": [GROUP], "displayName": name, "members": members_body(members)});
        match self {
            Command::CreateUser(attributes) => (Method::POST, "/Users".to_owned(), user_body(attributes)),
            Command::ReplaceUser(id, attributes) => {
                (Method::PUT, format!("/Users/{id}"), user_body(attributes))
            }
            Command::PatchUser(id, edits) => {
                let operations = edits.iter().map(Edit::operation).collect();
                (Method::PATCH, format!("/Users/{id}"), patch(operations))
            }
            Command::DeleteUser(id) => (Method::DELETE, format!("/Users/{id}"), Value::Null),
            Command::CreateGroup(name, members) => (Method::POST, "/Groups".to_owned(), group(name, members)),
            Command::ReplaceGroup(id, name, members) => {
                (Method::PUT, format!("/Groups/{id}"), group(name, members))
            }
            Command::RenameGroup(id, name) => {
                let operations = json!([{"op": "replace", "path": "displayName", "value": name}]);
                (Method::PATCH, format!("/Groups/{id}"), patch(operations))
            }
            Command::Members(id, added, removed) => {
                let mut operations = Vec::new();
                if !added.is_empty() {
                    operations.push(json!({"op": "add", "path": "members", "value": members_body(added)}));
                }
                if let [one] = &removed[..] {
                    operations.push(json!({"op": "remove", "path": format!("members[value eq \"{one}\"]")}));
                } else if !removed.is_empty() {
                    operations
                        .push(json!({"op": "remove", "path": "members", "value": members_body(removed)}));
                }
                (Method::PATCH, format!("/Groups/{id}"), patch(operations.into()))
            }
            Command::DeleteGroup(id) => (Method::DELETE, format!("/Groups/{id}"), Value::Null),
            Command::Bulk(commands) => {
                let operations: Vec<Value> = commands
                    .iter()
                    .enumerate()
                    .map(|(number, command)| {
                        let (method, path, data) = command.request();
                        let mut operation = json!({"method": method.as_str(), "path": path});
                        if method == Method::POST {
                            operation["bulkId"] = json!(number.to_string());
                        }
                        if !data.is_null() {
                            operation["data"] = data;
                        }
                        operation
                    })
                    .collect();
                (Method::POST, "/Bulk".to_owned(), json!({"schemas": [BULK], "Operations": operations}))
            }
        }
    }
}

/// A user that exists.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// What a GET shows.
    pub attributes: Attributes,
    /// The password, if there is one.
    pub password: Option<String>,
}

/// A group that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its `displayName`.
    pub name: String,
    /// Ids of its members: users and groups.
    pub members: BTreeSet<String>,
}

/// What a tenant must have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// Its users by id.
    pub users: BTreeMap<String, User>,
    /// Its groups by id.
    pub groups: BTreeMap<String, Group>,
    /// Ids that were, and are no more.
    pub gone: BTreeSet<String>,
    /// How many attributes [`BADGE`] has.
    pub badges: usize,
    /// Users that had a manager who is gone: the reference goes in the janitor's own time, and stays if it
    /// came after the janitor.
    pub dangling: BTreeSet<String>,
}

fn folded(name: &str) -> String {
    name.to_lowercase()
}

impl Expected {
    fn name_is_free(&self, name: Option<&Value>, but: Option<&str>) -> bool {
        let wanted = name.and_then(Value::as_str).map(folded);
        !self.users.iter().any(|(id, user)| {
            Some(id.as_str()) != but
                && user.attributes.get("userName").and_then(Value::as_str).map(folded) == wanted
        })
    }

    fn exists(&self, id: &str) -> bool {
        self.users.contains_key(id) || self.groups.contains_key(id)
    }

    /// Carries a command out. `created` are the ids that the service gave, in order; placeholders take the
    /// place of those it did not.
    pub fn apply(&mut self, command: &Command, created: &[String]) -> Outcome {
        let mut created = created.iter().cloned();
        self.carry_out(command, &mut created)
    }

    fn carry_out(&mut self, command: &Command, created: &mut dyn Iterator<Item = String>) -> Outcome {
        match command {
            Command::CreateUser(attributes) => {
                if !self.name_is_free(attributes.get("userName"), None) {
                    return outcome(409, false);
                }
                let id = created.next().unwrap_or_else(|| "new-user".to_owned());
                self.users.insert(id, User { attributes: normal(attributes), password: None });
                outcome(201, true)
            }
            Command::ReplaceUser(id, attributes) => {
                if !self.users.contains_key(id) {
                    return outcome(404, false);
                }
                if !self.name_is_free(attributes.get("userName"), Some(id)) {
                    return outcome(409, false);
                }
                self.set_attributes(id, normal(attributes))
            }
            Command::PatchUser(id, edits) => {
                let Some(user) = self.users.get_mut(id) else { return outcome(404, false) };
                let mut after = user.attributes.clone();
                let mut changed = false;
                for edit in edits {
                    let has = |kind: &str, attributes: &mut Attributes| {
                        emails_of(attributes).any(|address| address["type"] == json!(kind))
                    };
                    match edit {
                        Edit::ChangeEmail(kind, _) | Edit::RemoveEmail(kind) if !has(kind, &mut after) => {
                            return outcome(400, false);
                        }
                        _ => edit.apply(&mut after),
                    }
                }
                for edit in edits {
                    if let Edit::Password(password) = edit
                        && user.password.as_ref() != Some(password)
                    {
                        changed = true;
                    }
                }
                if !self.name_is_free(after.get("userName"), Some(id)) {
                    return outcome(409, false);
                }
                let mut passwords = edits.iter().filter_map(|edit| match edit {
                    Edit::Password(password) => Some(password.clone()),
                    _ => None,
                });
                if let (Some(password), Some(user)) = (passwords.next_back(), self.users.get_mut(id)) {
                    user.password = Some(password);
                }
                let done = self.set_attributes(id, after);
                Outcome { changed: done.changed || changed, ..done }
            }
            Command::DeleteUser(id) => match self.users.remove(id) {
                Some(_) => {
                    self.forget(id);
                    outcome(204, true)
                }
                None => outcome(404, false),
            },
            Command::CreateGroup(name, members) => {
                if members.iter().any(|id| !self.exists(id)) {
                    return outcome(400, false);
                }
                let id = created.next().unwrap_or_else(|| "new-group".to_owned());
                let members = members.iter().cloned().collect();
                self.groups.insert(id, Group { name: name.clone(), members });
                outcome(201, true)
            }
            Command::ReplaceGroup(id, name, members) => {
                if !self.groups.contains_key(id) {
                    return outcome(404, false);
                }
                if members.iter().any(|member| !self.exists(member) || member == id) {
                    return outcome(400, false);
                }
                let members = members.iter().cloned().collect();
                let after = Group { name: name.clone(), members };
                let before = self.groups.insert(id.clone(), after.clone());
                outcome(200, before != Some(after))
            }
            Command::RenameGroup(id, name) => match self.groups.get_mut(id) {
                Some(group) => {
                    let before = std::mem::replace(&mut group.name, name.clone());
                    outcome(204, before != *name)
                }
                None => outcome(404, false),
            },
            Command::Members(id, added, removed) => {
                if !self.groups.contains_key(id) {
                    return outcome(404, false);
                }
                if added.iter().any(|member| !self.exists(member) || member == id) {
                    return outcome(400, false);
                }
                let Some(group) = self.groups.get_mut(id) else { return outcome(404, false) };
                let before = group.members.clone();
                group.members.extend(added.iter().cloned());
                group.members.retain(|member| !removed.contains(member));
                outcome(204, before != group.members)
            }
            Command::DeleteGroup(id) => match self.groups.remove(id) {
                Some(_) => {
                    self.forget(id);
                    outcome(204, true)
                }
                None => outcome(404, false),
            },
            Command::Bulk(commands) => {
                let mut operations = Vec::new();
                let mut changed = false;
                let mut ids: BTreeMap<String, String> = BTreeMap::new();
                for (number, command) in commands.iter().enumerate() {
                    let mut command = command.clone();
                    if let Command::CreateGroup(_, members) | Command::ReplaceGroup(_, _, members) =
                        &mut command
                    {
                        for member in members.iter_mut() {
                            if let Some(id) = ids.get(member) {
                                member.clone_from(id);
                            }
                        }
                    }
                    let mut given = None;
                    let mut next = std::iter::from_fn(|| {
                        given = created.next().or_else(|| Some(format!("new-{number}")));
                        given.clone()
                    });
                    let done = self.carry_out(&command, &mut next);
                    if let Some(id) = given {
                        ids.insert(format!("bulkId:{number}"), id);
                    }
                    changed |= done.changed;
                    operations.push((done.status, done.changed));
                }
                Outcome { status: 200, changed, unsure: false, operations }
            }
        }
    }

    fn set_attributes(&mut self, id: &str, after: Attributes) -> Outcome {
        let Some(user) = self.users.get_mut(id) else { return outcome(404, false) };
        let changed = user.attributes != after;
        user.attributes = after;
        Outcome { unsure: self.dangling.contains(id), ..outcome(200, changed) }
    }

    /// Takes references to an entity away that is no more.
    fn forget(&mut self, id: &str) {
        self.gone.insert(id.to_owned());
        for group in self.groups.values_mut() {
            group.members.remove(id);
        }
        for (user_id, user) in &mut self.users {
            if manager_of(&user.attributes) == Some(id) {
                self.dangling.insert(user_id.clone());
                user.attributes = without_manager(&user.attributes);
            }
        }
    }

    /// A person is erased.
    pub fn erase(&mut self, id: &str) {
        self.users.remove(id);
        self.forget(id);
    }

    /// The groups that have this member, directly or not, with whether it is directly.
    pub fn groups_of(&self, member: &str) -> BTreeMap<String, bool> {
        let mut found: BTreeMap<String, bool> = BTreeMap::new();
        let mut open = vec![(member.to_owned(), true)];
        while let Some((below, direct)) = open.pop() {
            for (id, group) in &self.groups {
                if group.members.contains(&below) {
                    let known = found.insert(id.clone(), direct || found.get(id) == Some(&true));
                    if known.is_none() {
                        open.push((id.clone(), false));
                    }
                }
            }
        }
        found
    }

    /// Whether a user as the service shows it is this one. A reference to what is gone may still be there, if
    /// it was: the janitor takes it away in its own time.
    ///
    /// # Errors
    /// Shows both.
    pub fn check_user(&self, id: &str, shown: &Value) -> Result<()> {
        let user = self.users.get(id).with_context(|| format!("there is no user {id}, but: {shown}"))?;
        let body = shown.as_object().with_context(|| format!("{id} is no object: {shown}"))?;
        let mut found = normal(body);
        let mut wanted = user.attributes.clone();
        let is_gone = |attributes: &Attributes| {
            manager_of(attributes).is_some_and(|manager| self.gone.contains(manager))
        };
        if is_gone(&found) && self.dangling.contains(id) {
            found = without_manager(&found);
        }
        if is_gone(&wanted) {
            (found, wanted) = (without_manager(&found), without_manager(&wanted));
        }
        ensure!(
            found == wanted,
            "user {id} is {}\nand must be {}",
            Value::Object(found),
            Value::Object(wanted)
        );
        let shown: BTreeMap<String, bool> = body
            .get("groups")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|group| {
                (group["value"].as_str().unwrap_or_default().to_owned(), group["type"] == json!("direct"))
            })
            .collect();
        let wanted = self.groups_of(id);
        ensure!(shown == wanted, "the groups of user {id} are {shown:?}\nand must be {wanted:?}");
        Ok(())
    }

    /// Whether a group as the service shows it is this one.
    ///
    /// # Errors
    /// Shows both.
    pub fn check_group(&self, id: &str, shown: &Value) -> Result<()> {
        let group = self.groups.get(id).with_context(|| format!("there is no group {id}, but: {shown}"))?;
        ensure!(shown["displayName"] == json!(group.name), "group {id} is {shown} and must be {group:?}");
        let members = values(&shown["members"]);
        let wanted: Vec<String> = group.members.iter().cloned().collect();
        ensure!(members == wanted, "the members of {id} are {members:?}\nand must be {wanted:?}");
        Ok(())
    }
}

fn manager_of(attributes: &Attributes) -> Option<&str> {
    attributes.get(ENTERPRISE)?.get("manager")?.get("value")?.as_str()
}

fn without_manager(attributes: &Attributes) -> Attributes {
    let mut attributes = attributes.clone();
    if let Some(Value::Object(enterprise)) = attributes.get_mut(ENTERPRISE) {
        enterprise.remove("manager");
    }
    normal(&attributes)
}

/// Attributes as they are compared: without what the service adds, addresses in order, nothing empty.
fn normal(attributes: &Attributes) -> Attributes {
    let mut out = Attributes::new();
    for (name, value) in attributes {
        let value = match (name.as_str(), value) {
            ("id" | "meta" | "schemas" | "groups", _) => continue,
            ("emails", Value::Array(list)) => {
                let mut list = list.clone();
                list.sort_by_key(ToString::to_string);
                Value::Array(list)
            }
            (ENTERPRISE, Value::Object(extension)) => {
                let mut extension = extension.clone();
                if let Some(manager) = extension.get_mut("manager") {
                    *manager = json!({"value": manager["value"]});
                }
                Value::Object(extension)
            }
            (_, value) => value.clone(),
        };
        let is_empty = match &value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !is_empty {
            out.insert(name.clone(), value);
        }
    }
    out
}
