//! The HTTP client of the tests.

use std::sync::Once;
use std::time::Duration;

/// A client for loopback servers: no proxy, no redirects, a time-out on everything.
///
/// # Panics
/// The client cannot be built, which no test can work without.
pub fn client() -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    // reqwest is built without a TLS provider of its own choosing.
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(60));
    match builder.build() {
        Ok(client) => client,
        Err(error) => panic!("building the tests' HTTP client: {error}"),
    }
}
