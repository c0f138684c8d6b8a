//! A small SCIM client for tests, over HTTP or straight into a router.

use anyhow::{Context as _, Result, bail, ensure};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use serde_json::{Value, json};
use tower::ServiceExt as _;

const BODY_BYTES_MAX: usize = 256 * 1024 * 1024;

/// `PatchOp`'s URN.
pub const PATCH_OP: &str = "urn:ietf:params:scim:api:messages:2.0:PatchOp";
/// The enterprise extension's URN.
pub const ENTERPRISE: &str = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User";

/// A client with a base URL and a token.
#[derive(Clone, Debug)]
pub struct Scim {
    base: String,
    token: String,
    transport: Transport,
}

#[derive(Clone, Debug)]
enum Transport {
    Http(reqwest::Client),
    Router(Router),
}

/// An answer, with what was asked, so that a failing test says both.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Method and path asked.
    pub asked: String,
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null if there is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The resource's id; empty if there is none.
    pub fn id(&self) -> String {
        self.json()["id"].as_str().unwrap_or_default().to_owned()
    }

    /// The version in `ETag`, as sent.
    pub fn etag(&self) -> String {
        let tag = self.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok());
        tag.unwrap_or_default().to_owned()
    }

    /// Itself, if the status is the expected one.
    ///
    /// # Errors
    /// It is another; the error shows what was asked and answered.
    pub fn expect(self, status: u16) -> Result<Answer> {
        if self.status == status {
            return Ok(self);
        }
        bail!("{}: {} instead of {status}: {}", self.asked, self.status, String::from_utf8_lossy(&self.body))
    }

    /// Whether the change was acknowledged.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl Scim {
    /// Over HTTP. `base` is such as `http://127.0.0.1:8080/scim/v2`.
    pub fn http(base: &str, token: &str) -> Scim {
        let transport = Transport::Http(crate::http::client());
        Scim { base: base.to_owned(), token: token.to_owned(), transport }
    }

    /// Straight into a router, without a socket.
    pub fn router(router: Router, token: &str) -> Scim {
        Scim { base: "/scim/v2".into(), token: token.to_owned(), transport: Transport::Router(router) }
    }

    /// The same client at another base URL, with the same connections.
    pub fn at(&self, base: &str) -> Scim {
        Scim { base: base.to_owned(), ..self.clone() }
    }

    /// The same client with another token.
    pub fn with_token(&self, token: &str) -> Scim {
        Scim { token: token.to_owned(), ..self.clone() }
    }

    /// Its token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Sends any request. `path` follows the base and begins with `/`. A header given here replaces the
    /// client's own; an empty value leaves it away.
    ///
    /// # Errors
    /// No answer came.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        let body: Bytes = body.into();
        let asked = format!("{method} {path}");
        let mut map = HeaderMap::new();
        let bearer = format!("Bearer {}", self.token);
        map.insert(header::AUTHORIZATION, HeaderValue::from_str(&bearer).context("the token")?);
        map.insert(header::HOST, HeaderValue::from_static("scim.test"));
        if !body.is_empty() {
            map.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/scim+json"));
        }
        for (name, value) in headers {
            let name: HeaderName = name.parse().with_context(|| format!("header {name}"))?;
            if value.is_empty() {
                map.remove(name);
            } else {
                map.insert(name, HeaderValue::from_str(value).context("a header's value")?);
            }
        }
        let url = format!("{}{path}", self.base);
        match &self.transport {
            Transport::Http(client) => {
                if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
                    map.remove(header::HOST);
                }
                let request = client.request(method, &url).headers(map).body(body);
                let response = request.send().await.with_context(|| asked.clone())?;
                let (status, headers) = (response.status().as_u16(), response.headers().clone());
                let body =
                    response.bytes().await.with_context(|| format!("reading the answer of {asked}"))?;
                Ok(Answer { asked, status, headers, body })
            }
            Transport::Router(router) => {
                let mut request = Request::builder().method(method).uri(&url).body(Body::from(body))?;
                *request.headers_mut() = map;
                let response = router.clone().oneshot(request).await.context("the router")?;
                let (status, headers) = (response.status().as_u16(), response.headers().clone());
                let body =
                    to_bytes(response.into_body(), BODY_BYTES_MAX).await.context("reading the answer")?;
                Ok(Answer { asked, status, headers, body })
            }
        }
    }

    /// GET.
    ///
    /// # Errors
    /// No answer came; the same for all that follow.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// POST.
    ///
    /// # Errors
    /// No answer came.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(Method::POST, path, &[], body.to_string()).await
    }

    /// PUT.
    ///
    /// # Errors
    /// No answer came.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(Method::PUT, path, &[], body.to_string()).await
    }

    /// PATCH with these operations.
    ///
    /// # Errors
    /// No answer came.
    pub async fn patch(&self, path: &str, operations: Value) -> Result<Answer> {
        let body = json!({"schemas": [PATCH_OP], "Operations": operations});
        self.send(Method::PATCH, path, &[], body.to_string()).await
    }

    /// DELETE.
    ///
    /// # Errors
    /// No answer came.
    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.send(Method::DELETE, path, &[], Bytes::new()).await
    }

    /// The resources that a filter finds, at most a page of them; `more` is further query parameters such
    /// as `&attributes=id`.
    ///
    /// # Errors
    /// The answer is not 200 with a list.
    pub async fn find(&self, endpoint: &str, filter: &str, more: &str) -> Result<Vec<Value>> {
        let answer = self.get(&format!("{endpoint}?filter={}{more}", encode(filter))).await?.expect(200)?;
        let list = answer.json();
        ensure!(list["totalResults"].is_u64(), "{} answered no list: {list}", answer.asked);
        Ok(list["Resources"].as_array().cloned().unwrap_or_default())
    }

    /// A user with that name, created.
    ///
    /// # Errors
    /// The answer is not 201.
    pub async fn create_user(&self, user_name: &str) -> Result<String> {
        Ok(self.post("/Users", &user(user_name)).await?.expect(201)?.id())
    }

    /// An empty group with that name, created.
    ///
    /// # Errors
    /// The answer is not 201.
    pub async fn create_group(&self, display_name: &str) -> Result<String> {
        Ok(self.post("/Groups", &group(display_name)).await?.expect(201)?.id())
    }

    /// The ids of a group's members, sorted.
    ///
    /// # Errors
    /// The answer is not 200.
    pub async fn member_ids(&self, group: &str) -> Result<Vec<String>> {
        let body = self.get(&format!("/Groups/{group}")).await?.expect(200)?.json();
        Ok(values(&body["members"]))
    }
}

/// The `value` of each element, sorted.
pub fn values(list: &Value) -> Vec<String> {
    let elements = list.as_array().map_or(&[][..], Vec::as_slice);
    let mut values: Vec<String> =
        elements.iter().filter_map(|element| element["value"].as_str().map(str::to_owned)).collect();
    values.sort();
    values
}

/// A user's body with a name and nothing else.
pub fn user(user_name: &str) -> Value {
    json!({"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "userName": user_name})
}

/// A group's body with a name and nothing else.
pub fn group(display_name: &str) -> Value {
    json!({"schemas": ["urn:ietf:params:scim:schemas:core:2.0:Group"], "displayName": display_name})
}

/// The operation that adds a member.
pub fn add_member(id: &str) -> Value {
    json!([{"op": "add", "path": "members", "value": [{"value": id}]}])
}

/// The operation that removes a member.
pub fn remove_member(id: &str) -> Value {
    json!([{"op": "remove", "path": format!("members[value eq \"{id}\"]")}])
}

/// Percent-encodes everything but unreserved characters.
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len() * 3), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
        out
    })
}
