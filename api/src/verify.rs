//! `POST /auth/v1/verify-password`: an application asks whether a password is a user's.
//!
//! Not SCIM, which has no such thing, and so not below its base. The token's scope is one of its own, so
//! that no provisioning client can guess passwords. Body and answer are in no log.

use std::time::Duration;

use annals_domain::ids::{ResourceId, TenantId};
use annals_domain::scim::error::{ScimError, ScimType};
use annals_domain::scim::fold::prepare_username;
use annals_domain::scim::resource::PASSWORD_BYTES_MAX;
use annals_store::Account;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::app::{ApiOptions, App};
use crate::auth::Verifier;
use crate::error::{ApiError, Result};
use crate::extract::ScimBody;
use crate::rates::Buckets;
use crate::respond::PLAIN_JSON;

/// Accounts and tokens whose attempts are remembered at once.
const ACCOUNTS_MAX: u64 = 100_000;
const TOKENS_MAX: u64 = 10_000;
/// Longest `userName` that is looked for, in bytes.
const NAME_BYTES_MAX: usize = 1_024;

/// How often passwords may be tried.
pub(crate) struct Attempts {
    /// Wrong ones, by tenant and account. Right ones are given back.
    accounts: Buckets<(TenantId, String)>,
    tokens: Buckets<(TenantId, String)>,
}

impl Attempts {
    pub(crate) fn new(options: &ApiOptions) -> Attempts {
        let window = options.password_failures_window;
        Attempts {
            accounts: Buckets::new(options.password_failures_max, window, ACCOUNTS_MAX),
            tokens: Buckets::new(options.password_checks_per_second_max, Duration::from_secs(1), TOKENS_MAX),
        }
    }
}

/// 200 with `{"verified":true,"id":"…"}`, or with `{"verified":false}` whether the password is wrong, the
/// user is not active, has no password, or does not exist. All of these take the same time.
pub(crate) async fn verify_password(
    State(app): State<App>,
    caller: Verifier,
    body: ScimBody,
) -> Result<Response> {
    let (account, password) = read(&body.json)?;
    let tenant = caller.tenant();
    let now = app.store.now();
    let token = (tenant.clone(), caller.principal.token_id.clone());
    app.attempts.tokens.take(token, now).map_err(|s| too_many(s, "this token checks too many passwords"))?;
    let user = app.store.find_account(tenant, &account).await?;
    // Both names of one user are one account; a name that nobody has is one too, so that it looks the same.
    let name = match (&user, account) {
        (Some(user), _) => user.id.to_string(),
        (None, Account::Id(id)) => id.to_string(),
        (None, Account::UserName(name)) => prepare_username(&name),
    };
    let key = (tenant.clone(), name);
    let detail = "too many wrong passwords for this account";
    app.attempts.accounts.take(key.clone(), now).map_err(|s| too_many(s, detail))?;
    let verified = app.store.verify_password(tenant, user.as_ref(), &password).await?;
    let outcome = if verified { "right" } else { "wrong" };
    metrics::counter!("annals_password_checks_total", "outcome" => outcome).increment(1);
    let answer = match user {
        Some(user) if verified => {
            app.attempts.accounts.give_back(&key);
            json!({"verified": true, "id": user.id})
        }
        _ => json!({"verified": false}),
    };
    let mut response = Response::new(Body::from(answer.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PLAIN_JSON));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn too_many(retry_after_s: u64, detail: &'static str) -> ApiError {
    ApiError::Later { status: StatusCode::TOO_MANY_REQUESTS, retry_after_s, detail }
}

/// `{"userName":"…","password":"…"}` or `{"id":"…","password":"…"}`, and nothing else.
fn read(body: &Value) -> Result<(Account, SecretString)> {
    let wrong = |detail: String| ApiError::bad(ScimType::InvalidValue, detail);
    let Some(object) = body.as_object() else {
        return Err(ScimError::invalid_syntax("the body is no JSON object").into());
    };
    if object.keys().any(|key| !["id", "userName", "password"].contains(&key.as_str())) {
        return Err(
            ScimError::invalid_syntax("the body has userName or id, and password; nothing else").into()
        );
    }
    let text = |name: &str, bytes_max: usize| match object.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() && text.len() <= bytes_max && !text.contains('\0') => {
            Ok(Some(text.clone()))
        }
        Some(_) => Err(wrong(format!("{name} must be a string of 1 to {bytes_max} bytes without U+0000"))),
    };
    let password =
        text("password", PASSWORD_BYTES_MAX)?.ok_or_else(|| wrong("password is required".into()))?;
    let account = match (text("id", ResourceId::LEN_BYTES_MAX)?, text("userName", NAME_BYTES_MAX)?) {
        (Some(id), None) => Account::Id(ResourceId::from_text(&id)),
        (None, Some(name)) => Account::UserName(name),
        _ => return Err(wrong("exactly one of userName and id is required".into())),
    };
    Ok((account, SecretString::from(password)))
}
