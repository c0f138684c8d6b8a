//! The switch `reactivate-on-create` (idp-quirks §1): a POST of a `userName` that an inactive user has means
//! that user, who comes back as the body says, with the same id and the same groups.

use annals_domain::ids::Version;
use annals_domain::resource::Command;
use annals_domain::scim::dialect::Quirk;
use annals_domain::scim::fold::prepare_username;
use annals_domain::view::LookupKind;
use serde_json::{Value, json};

use crate::Store;
use crate::error::Result;
use crate::execute::{IfMatch, Request};

impl Request {
    /// Whether it is a create that may mean somebody who is there.
    pub(crate) fn may_reactivate(&self) -> bool {
        matches!(&self.command, Command::Create { client, .. } if client.has(Quirk::ReactivateOnCreate))
    }
}

impl Store {
    /// What a refused create is to be instead: the replacement of an inactive user, at the version it has
    /// now. `None`: the refusal stands.
    pub(crate) async fn reactivation(&self, request: &Request) -> Result<Option<Request>> {
        let Command::Create { body, client, .. } = &request.command else { return Ok(None) };
        let (Some(body), true) = (body.as_object(), request.may_reactivate()) else {
            return Ok(None);
        };
        let sent = |name: &str| body.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        let Some((_, Value::String(name))) = sent("userName") else { return Ok(None) };
        // A client that wants an inactive user has one already; that is a conflict like any other.
        let active = sent("active").map(|(key, value)| (key.clone(), value.clone()));
        let wanted = match &active {
            None | Some((_, Value::Null)) => true,
            Some((_, value)) => {
                *value == json!(true) || value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("true"))
            }
        };
        if !wanted {
            return Ok(None);
        }
        let (kind, value) = (LookupKind::UserName, prepare_username(name));
        let owners = self.find_by_lookup(&request.tenant, &request.resource_type.name, kind, &value).await?;
        let Some(owner) = owners.first() else { return Ok(None) };
        let Some(state) = self.state(&request.tenant, owner).await? else { return Ok(None) };
        let inactive =
            state.document().is_some_and(|document| document.0.get("active") == Some(&json!(false)));
        if !inactive {
            return Ok(None);
        }
        let mut body = body.clone();
        if let Some((key, _)) = active {
            body.remove(&key);
        }
        body.insert("active".to_owned(), json!(true));
        let version: Version = state.version;
        let mut instead = request.clone();
        instead.id = state.id.clone();
        instead.if_match = IfMatch::Versions(vec![version]);
        instead.command =
            Command::Replace { id: state.id, body: Value::Object(body), client: client.clone() };
        instead.cause.quirks.push(Quirk::ReactivateOnCreate.to_string());
        Ok(Some(instead))
    }
}
