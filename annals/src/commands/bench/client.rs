//! A small HTTP/1.1 client over one keep-alive connection: cheap enough not to be what is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection.
pub(crate) struct Connection {
    stream: TcpStream,
    head: String,
    answer: Vec<u8>,
}

impl Connection {
    /// Connects; every request carries the token.
    pub(crate) async fn open(address: SocketAddr, token: &str) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(address).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let head = format!("HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n");
        Ok(Connection { stream, head, answer: Vec::with_capacity(8 * 1024) })
    }

    /// Sends a request and reads its answer; returns the status and how long it took.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        target: &str,
        body: &str,
    ) -> anyhow::Result<(u16, Duration)> {
        let request = format!(
            "{method} {target} {}Content-Type: application/scim+json\r\nContent-Length: {}\r\n\r\n{body}",
            self.head,
            body.len()
        );
        let begun = Instant::now();
        self.stream.write_all(request.as_bytes()).await?;
        let status = self.read_answer().await?;
        Ok((status, begun.elapsed()))
    }

    /// The last answer's body.
    pub(crate) fn body(&self) -> &[u8] {
        let end = self.answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(0, |end| end + 4);
        &self.answer[end..]
    }

    async fn read_answer(&mut self) -> anyhow::Result<u16> {
        self.answer.clear();
        loop {
            if let Some(end) = self.answer.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = std::str::from_utf8(&self.answer[..end]).context("the answer's head")?;
                let head = head.to_ascii_lowercase();
                let status = head.get(9..12).and_then(|s| s.parse().ok()).context("the answer's status")?;
                let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
                let length: usize =
                    length.map_or(Ok(0), |l| l.trim().parse()).context("the answer's length")?;
                if head.contains("transfer-encoding") {
                    bail!("a chunked answer: the benchmark asks for none");
                }
                while self.answer.len() < end + 4 + length {
                    if self.stream.read_buf(&mut self.answer).await? == 0 {
                        bail!("the connection ended within an answer");
                    }
                }
                return Ok(status);
            }
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                bail!("the connection ended");
            }
        }
    }
}

/// The `p`-quantile of some durations, in milliseconds. Sorts them.
pub(crate) fn quantile_ms(durations: &mut [Duration], p: f64) -> f64 {
    durations.sort_unstable();
    let last = durations.len().saturating_sub(1);
    let at = (last as f64 * p).round() as usize;
    durations.get(at).map_or(0.0, |d| d.as_secs_f64() * 1_000.0)
}
