//! What deletes leave behind, a bounded piece at a time (D4): memberships beyond those a delete removed in
//! its own commit, references such as `manager`, links of deleted groups, and old receipts.
//!
//! It takes no input: it reads what is to do, so the path after a crash is the everyday path.

use annals_domain::event::{Actor, Cause};
use annals_domain::ids::{ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::dialect::{Dialect, Profile};
use annals_domain::scim::patch::parse_request;
use annals_domain::view::link_name;
use serde_json::{Value, json};

use super::append::{MEMBERS, tenant_id};
use crate::Store;
use crate::backend::{Area, sql};
use crate::error::{Result, StoreError};
use crate::execute::{IfMatch, Request};

/// Links handled for one deleted entity in one step.
const LINKS_PER_STEP: usize = 500;
/// Links from a deleted group removed in one step; they need no event, the group's end was one.
const DEAD_LINKS_PER_STEP: usize = 5_000;
/// How long an idempotency key is remembered.
const RECEIPTS_KEPT_MS: i64 = 24 * 60 * 60 * 1_000;
const RECEIPTS_PER_STEP: usize = 5_000;

impl Store {
    /// Does at most `deletes_max` deleted entities' worth of work; returns how many things it did, 0 when
    /// nothing is left.
    pub async fn janitor_step(&self, deletes_max: usize) -> Result<usize> {
        let select =
            sql("SELECT p.tenant, p.id FROM journal.pending_removal p ORDER BY p.tenant, p.id LIMIT $1")
                .bind(deletes_max);
        let mut done = 0;
        for row in self.backend().fetch_all(Area::Journal, select).await? {
            let tenant = tenant_id(&row.text(0)?)?;
            done += self.clean_up_after(&tenant, &ResourceId::from_text(&row.text(1)?)).await?;
        }
        if done == 0 {
            done += self.forget_receipts().await?;
        }
        Ok(done)
    }

    async fn clean_up_after(&self, tenant: &TenantId, deleted: &ResourceId) -> Result<usize> {
        let select = sql("SELECT l.attribute, l.from_id FROM journal.link l \
             WHERE l.tenant = $1 AND l.to_id = $2 ORDER BY l.attribute, l.from_id LIMIT $3")
        .bind(tenant)
        .bind(deleted)
        .bind(LINKS_PER_STEP);
        let mut links = Vec::new();
        for row in self.backend().fetch_all(Area::Journal, select).await? {
            links.push((row.text(0)?, ResourceId::from_text(&row.text(1)?)));
        }
        for (attribute, from) in &links {
            self.unlink(tenant, from, attribute, deleted).await?;
        }
        let delete = sql("DELETE FROM journal.link WHERE (tenant, attribute, from_id, to_id) IN \
             (SELECT l.tenant, l.attribute, l.from_id, l.to_id FROM journal.link l \
             WHERE l.tenant = $1 AND l.attribute = 'members' AND l.from_id = $2 LIMIT $3)")
        .bind(tenant)
        .bind(deleted)
        .bind(DEAD_LINKS_PER_STEP);
        let dead = usize::try_from(self.backend().execute(Area::Journal, delete).await?).unwrap_or(0);
        if links.len() < LINKS_PER_STEP && dead < DEAD_LINKS_PER_STEP {
            let forget = sql("DELETE FROM journal.pending_removal WHERE tenant = $1 AND id = $2")
                .bind(tenant)
                .bind(deleted);
            self.backend().execute(Area::Journal, forget).await?;
        }
        Ok(links.len() + dead + 1)
    }

    /// Removes one reference to what was deleted, as an ordinary change with its own event.
    async fn unlink(
        &self,
        tenant: &TenantId,
        from: &ResourceId,
        attribute: &str,
        deleted: &ResourceId,
    ) -> Result<()> {
        let Some(state) = self.state(tenant, from).await? else {
            return self.drop_link(tenant, from, attribute, deleted).await;
        };
        let resource_type = self.registry_of(tenant).await?.resource_type(&state.resource_type).cloned();
        let (Some(document), Some(resource_type)) = (state.document(), resource_type) else {
            return self.drop_link(tenant, from, attribute, deleted).await;
        };
        let path = if attribute == MEMBERS {
            format!("members[value eq \"{deleted}\"]")
        } else {
            let found = resource_type.attributes().find(|a| a.resource_ref && link_name(a) == attribute);
            // The document may have moved on since the link was read.
            let is_deleted = |v: &Value| v.get("value").and_then(Value::as_str) == Some(deleted.as_str());
            let held = found.and_then(|a| document.get(a)).is_some_and(|value| match value {
                Value::Array(list) => list.iter().any(is_deleted),
                one => is_deleted(one),
            });
            match found {
                Some(attribute) if held && attribute.multi_valued => {
                    format!("{}[value eq \"{deleted}\"]", attribute.path)
                }
                Some(attribute) if held => attribute.path.clone(),
                _ => return self.drop_link(tenant, from, attribute, deleted).await,
            }
        };
        let body = json!({
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
            "Operations": [{ "op": "remove", "path": path }],
        });
        let operations = parse_request(&body, &mut Dialect::new(Profile::Strict))?;
        let command = Command::Patch { id: from.clone(), operations, client: Profile::Strict.into() };
        let request = Request {
            tenant: tenant.clone(),
            resource_type,
            id: from.clone(),
            command,
            if_match: IfMatch::Absent,
            actor: Actor::system("janitor"),
            cause: Cause { operation: "referenceRemoved".to_owned(), ..Cause::default() },
            connection: None,
            settings: self.tenant(tenant).await?.map(|t| t.settings.clone()).unwrap_or_default(),
            group_name_unique: false,
            idempotency: None,
            deadline: None,
        };
        match self.execute(request).await {
            Ok(_) => Ok(()),
            // Deleted in the meantime: its own clean-up follows. Or a schema wants the reference to stay
            // (required, immutable): then it dangles, and only the link goes.
            Err(StoreError::Refused(error)) if error.status == 404 || error.status == 400 => {
                self.drop_link(tenant, from, attribute, deleted).await
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a link whose other end is dead as well, or that no document has any more.
    async fn drop_link(
        &self,
        tenant: &TenantId,
        from: &ResourceId,
        attribute: &str,
        to: &ResourceId,
    ) -> Result<()> {
        let delete = sql("DELETE FROM journal.link WHERE tenant = $1 AND attribute = $2 AND from_id = $3 \
             AND to_id = $4")
        .bind(tenant)
        .bind(attribute)
        .bind(from)
        .bind(to);
        self.backend().execute(Area::Journal, delete).await.map(drop)
    }

    async fn forget_receipts(&self) -> Result<usize> {
        let before = self.now().plus_ms(-RECEIPTS_KEPT_MS);
        let delete = sql("DELETE FROM journal.commit_log WHERE commit_id IN \
             (SELECT c.commit_id FROM journal.commit_log c WHERE c.at < $1 ORDER BY c.at LIMIT $2)")
        .bind(before)
        .bind(RECEIPTS_PER_STEP);
        Ok(usize::try_from(self.backend().execute(Area::Journal, delete).await?).unwrap_or(0))
    }
}
