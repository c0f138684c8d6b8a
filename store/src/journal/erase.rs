//! Erasing a person (D9): what is sealed with their key can never be opened again, in the journal, in
//! sealed messages on the bus and in every backup. The chain stays whole, as it covers the sealed bytes.

use annals_domain::event::{Actor, Cause, Event, StreamId};
use annals_domain::ids::{ResourceId, TenantId};
use annals_domain::resource::Command;
use annals_domain::scim::error::ScimError;

use super::{Commit, Expect, NewEvent, StateWrite, StreamWrite};
use crate::Store;
use crate::error::{Result, StoreError};
use crate::execute::{Header, IfMatch, Request};

impl Store {
    /// Erases a person: deletes the resource if it is still there, records that it was erased, and
    /// destroys the key. May be repeated after a crash.
    ///
    /// # Errors
    /// Refused with 404 if there never was such a resource, with 400 if its type holds nothing personal.
    pub async fn erase(&self, tenant: &TenantId, id: &ResourceId, actor: Actor) -> Result<()> {
        let missing = || StoreError::Refused(ScimError::not_found(format!("{id} not found")));
        let state = self.state(tenant, id).await?.ok_or_else(missing)?;
        let registry = self.registry_of(tenant).await?;
        let resource_type = registry.resource_type(&state.resource_type).cloned().ok_or_else(missing)?;
        let Some(key) = state.key_id.clone() else {
            let detail = format!("{} {id} holds nothing personal", resource_type.name);
            return Err(StoreError::Refused(ScimError::invalid_value(detail)));
        };
        let cause = Cause { operation: "erase".to_owned(), ..Cause::default() };
        if !state.deleted {
            let request = Request {
                tenant: tenant.clone(),
                resource_type: resource_type.clone(),
                id: id.clone(),
                command: Command::Delete,
                if_match: IfMatch::Absent,
                actor: actor.clone(),
                cause: cause.clone(),
                connection: None,
                settings: self.tenant(tenant).await?.map(|t| t.settings.clone()).unwrap_or_default(),
                group_name_unique: false,
                idempotency: None,
                deadline: None,
            };
            match self.execute(request).await {
                // Somebody else has deleted it since it was looked at: it is still to be erased.
                Err(StoreError::Refused(refusal)) if refusal.status == 404 => {}
                done => drop(done?),
            }
        }
        let version = self.state(tenant, id).await?.map_or(0, |state| state.version);
        let last = self.read_stream(tenant, id, version - 1, 1).await?;
        let kind = Event::Erased.kind(&resource_type.name);
        if last.last().is_none_or(|event| event.kind != kind) {
            self.record_erasure(tenant, id, &resource_type.name, &Header::of(&actor, &cause)?).await?;
        }
        self.keys().destroy(tenant, &key).await
    }

    async fn record_erasure(
        &self,
        tenant: &TenantId,
        id: &ResourceId,
        resource_type: &str,
        header: &Header,
    ) -> Result<()> {
        let stream = StreamId { resource_type: resource_type.to_owned(), id: id.clone() };
        let event_id = self.entropy().uuid_v7(self.now());
        let event = NewEvent::plain(event_id, tenant, &stream, &Event::Erased, header);
        let write = StreamWrite {
            cause: None,
            stream,
            expect: Expect::Deleted,
            events: vec![event],
            state: StateWrite::Keep,
            lookups_add: Vec::new(),
            lookups_remove: Vec::new(),
            members: None,
            references_add: Vec::new(),
            references_remove: Vec::new(),
        };
        let commit = Commit {
            id: self.entropy().uuid_v7(self.now()),
            tenant: tenant.clone(),
            actor: header.actor.clone(),
            cause: header.cause.clone(),
            writes: vec![write],
            secrets: Vec::new(),
            tokens: Vec::new(),
            fingerprint: None,
            definition: None,
            head: None,
        };
        match self.inner.writer.append(commit).await {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "recording an erasure failed");
                Err(StoreError::Busy { what: "the journal cannot be written", retry_after_s: 2 })
            }
        }
    }
}
