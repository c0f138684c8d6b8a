//! Accepts connections and speaks HTTP/1.1 on them, with a bound on everything a client could use up by
//! being slow: how many connections there are, how long a request's head may take to come, and how long an
//! answer may wait to be read. Bodies are bounded in time by the API itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use annals_api::Peer;
use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Largest head of a request, in bytes: a filter has at most 8 KiB, a token 4 KiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Pause after the system could not give us a connection, as when all file descriptors are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What connections may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Most connections at once. More wait in the system's queue until one ends.
    pub(crate) connections_max: usize,
    /// Longest wait for the whole head of a request, the pause before it on a kept connection included.
    pub(crate) head_timeout: Duration,
    /// Longest wait for a client that reads nothing of its answer.
    pub(crate) write_timeout: Duration,
}

/// Serves until `stop`, then finishes what is in work. `stopping` is called as soon as no connection is
/// accepted any more.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    bounds: Bounds,
    stop: CancellationToken,
    stopping: impl FnOnce(),
) {
    let slots = Arc::new(Semaphore::new(bounds.connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let connections = GracefulShutdown::new();
    loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            slot = slot(&slots) => slot,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let peer = Peer(peer.ip());
                match connection(stream, peer, &router, bounds) {
                    Ok(connection) => {
                        let served = connections.watch(connection);
                        tokio::spawn(async move {
                            metrics::gauge!("annals_http_connections").increment(1.0);
                            if let Err(error) = served.await {
                                // A client that was too slow, or has gone.
                                tracing::debug!(%error, "a connection ended early");
                            }
                            metrics::gauge!("annals_http_connections").decrement(1.0);
                            drop(slot);
                        });
                    }
                    Err(error) => tracing::debug!(%error, "a connection was gone at once"),
                }
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted at present");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
    }
    drop(listener);
    stopping();
    connections.shutdown().await;
}

/// A place for one more connection.
async fn slot(slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    if let Ok(slot) = slots.clone().try_acquire_owned() {
        return Some(slot);
    }
    metrics::counter!("annals_http_connections_full_total").increment(1);
    tracing::warn!("every connection is in use: new ones wait (http.connections_max)");
    // The semaphore is never closed.
    slots.clone().acquire_owned().await.ok()
}

type Served = http1::Connection<
    TokioIo<std::pin::Pin<Box<TimeoutStream<TcpStream>>>>,
    TowerToHyperService<
        tower::util::BoxCloneSyncService<
            Request<Incoming>,
            axum::response::Response,
            std::convert::Infallible,
        >,
    >,
>;

fn connection(stream: TcpStream, peer: Peer, router: &Router, bounds: Bounds) -> io::Result<Served> {
    // An answer is written in few pieces; none of them is to wait for the other side's acknowledgement.
    stream.set_nodelay(true)?;
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(bounds.write_timeout));
    let service = router.clone().map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        request
    });
    let service = TowerToHyperService::new(tower::util::BoxCloneSyncService::new(service));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.head_timeout).max_buf_size(HEAD_BYTES_MAX);
    Ok(http.serve_connection(TokioIo::new(Box::pin(stream)), service))
}

/// Whether a connection failed by itself, before we had it.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
