//! The guarded HTTP client: what leaves the house goes to public addresses only, follows no redirect,
//! uses no proxy, and reads bounded answers in bounded time (OC-13, OC-18, OC-19).

use std::error::Error as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, Url};

/// Most bytes of an answer that are read.
pub const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Most bytes of a refusal that are kept.
pub const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// What the client may do.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Plain HTTP and any address. For tests and closed networks.
    pub allow_private: bool,
    /// Networks that are allowed although they are not public.
    pub allow_networks: Vec<IpNet>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Whole time of a request, from the name to the last byte.
    pub request_timeout: Duration,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The method.
    pub method: Method,
    /// Where to.
    pub url: Url,
    /// The headers, without `User-Agent`.
    pub headers: HeaderMap,
    /// The body.
    pub body: Option<Vec<u8>>,
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, cut to [`ANSWER_BYTES_MAX`], or [`REFUSAL_BYTES_MAX`] unless the status is 2xx.
    pub body: Vec<u8>,
    /// Whether the body was longer.
    pub is_cut: bool,
}

impl Answer {
    /// Whether the status is 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Why there is no answer. No variant holds an address, a header or a body.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is none we send to.
    #[error("the address is not allowed: {0}")]
    Blocked(String),
    /// No connection came about: name, route, port, TLS.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// The time was over; the request may have had its effect.
    #[error("no answer within {0} s")]
    Timeout(u64),
    /// The connection broke; the request may have had its effect.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The client could not be built.
    #[error("the HTTP client cannot be built: {0}")]
    Build(String),
}

/// The client.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    options: HttpOptions,
}

impl Http {
    /// Builds the client. Certificates are checked by the system's roots.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(options: HttpOptions) -> Result<Http, HttpError> {
        // reqwest is built without a TLS provider of its own choosing. Someone may have installed one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .user_agent(concat!("annals/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .https_only(!options.allow_private)
            .connect_timeout(options.connect_timeout)
            .timeout(options.request_timeout)
            .pool_max_idle_per_host(16)
            .tcp_nodelay(true)
            .dns_resolver(Arc::new(Guard(options.clone())))
            .build()
            .map_err(|error| HttpError::Build(chain(&error)))?;
        Ok(Http { client, options })
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// There is no answer; an answer of any status is none.
    pub async fn send(&self, request: Outgoing) -> Result<Answer, HttpError> {
        check_url(&self.options, &request.url)?;
        let mut builder = self.client.request(request.method, request.url).headers(request.headers);
        if let Some(body) = request.body {
            builder = builder.body(body);
        }
        let mut response = builder.send().await.map_err(|error| self.failure(error))?;
        let status = response.status().as_u16();
        let max = if response.status().is_success() { ANSWER_BYTES_MAX } else { REFUSAL_BYTES_MAX };
        let mut answer =
            Answer { status, headers: response.headers().clone(), body: Vec::new(), is_cut: false };
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    let room = max - answer.body.len();
                    answer.body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                    if chunk.len() > room {
                        answer.is_cut = true;
                        break;
                    }
                }
                Ok(None) => break,
                // The status is known, which is what counts for a refusal.
                Err(_) if !answer.is_success() => break,
                Err(error) => return Err(self.failure(error)),
            }
        }
        Ok(answer)
    }

    fn failure(&self, error: reqwest::Error) -> HttpError {
        // The address may hold a name in a filter.
        let error = error.without_url();
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(NotAllowed(reason)) = cause.downcast_ref::<NotAllowed>() {
                return HttpError::Blocked(reason.clone());
            }
            source = cause.source();
        }
        if error.is_connect() {
            HttpError::Unreachable(chain(&error))
        } else if error.is_timeout() {
            HttpError::Timeout(self.options.request_timeout.as_secs())
        } else if error.is_builder() {
            HttpError::Blocked(chain(&error))
        } else {
            HttpError::Broken(chain(&error))
        }
    }
}

/// The innermost cause, which says most.
fn chain(error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// What the resolver answers for a name that leads where nothing may go.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotAllowed(String);

/// Resolves names to allowed addresses only. The connection is made to what is returned here, so a name
/// that means something else a moment later gains nothing.
#[derive(Debug)]
struct Guard(HttpOptions);

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let options = self.0.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let some = !found.is_empty();
            let allowed: Vec<SocketAddr> =
                found.into_iter().filter(|address| is_allowed(&options, address.ip())).collect();
            if allowed.is_empty() && some {
                return Err(NotAllowed("the name leads to no public address".to_owned()).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Checks what the resolver never sees: the scheme, and addresses written as numbers.
fn check_url(options: &HttpOptions, url: &Url) -> Result<(), HttpError> {
    let blocked = |reason: &str| Err(HttpError::Blocked(reason.to_owned()));
    match url.scheme() {
        "https" => {}
        "http" if options.allow_private => {}
        _ => return blocked("only https is"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return blocked("it holds a user name or a password");
    }
    let Some(host) = url.host_str() else { return blocked("it names no host") };
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match literal.parse::<IpAddr>() {
        Ok(ip) if !is_allowed(options, ip) => blocked("it is no public address"),
        _ => Ok(()),
    }
}

fn is_allowed(options: &HttpOptions, ip: IpAddr) -> bool {
    options.allow_private || is_public(ip) || options.allow_networks.iter().any(|net| net.contains(&ip))
}

/// Whether an address is one of the public Internet, by the IANA registries of special-purpose addresses.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    const SPECIAL: [(u32, u32); 15] = [
        (0x0000_0000, 8),  // this network
        (0x0a00_0000, 8),  // private
        (0x6440_0000, 10), // shared by carriers
        (0x7f00_0000, 8),  // loopback
        (0xa9fe_0000, 16), // link-local, and the clouds' metadata
        (0xac10_0000, 12), // private
        (0xc000_0000, 24), // protocol assignments
        (0xc000_0200, 24), // documentation
        (0xc058_6300, 24), // 6to4 relays
        (0xc0a8_0000, 16), // private
        (0xc612_0000, 15), // benchmarks
        (0xc633_6400, 24), // documentation
        (0xcb00_7100, 24), // documentation
        (0xe000_0000, 4),  // multicast
        (0xf000_0000, 4),  // reserved, and broadcast
    ];
    let bits = u32::from(ip);
    !SPECIAL.iter().any(|(net, length)| (bits ^ net) >> (32 - length) == 0)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let parts = ip.segments();
    let embedded = || Ipv4Addr::from((u32::from(parts[6]) << 16) | u32::from(parts[7]));
    match parts {
        // Mapped, and NAT64: as public as the address inside.
        [0, 0, 0, 0, 0, 0xffff, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => is_public_v4(embedded()),
        // Protocol assignments with Teredo, documentation, 6to4: tunnels lead anywhere.
        [0x2001, second, ..] if second < 0x0200 || second == 0x0db8 => false,
        [0x2002, ..] => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // Global unicast; everything else is loopback, local, multicast or not assigned.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// A header value that is not shown when headers are printed.
pub(crate) fn secret_header(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}
