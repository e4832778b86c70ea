//! A load that keeps its pace: so many requests a second on connections that stay open, however long answers take.
//!
//! Holds: when a request is due is decided before the run, and its time counts from then, so that a pause is in the time
//! of everything that was due in it; a connection has one request at a time. Each connection is a thread on the core of
//! the load. Does not: follow a proxy that cannot keep up; what was not sent in time is late, and shows as such.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::exchange::pause_for;
use crate::measure::Load;

/// Load before anything is counted.
const WARMING: Duration = Duration::from_millis(300);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many requests a second on so many connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pace {
    pub(crate) rate: f64,
    pub(crate) connections: u16,
    /// Bytes of each answer.
    pub(crate) body: u32,
}

impl Pace {
    /// When the request `turn` of a connection is due.
    fn due(&self, connection: u16, turn: u32) -> Duration {
        let number = f64::from(turn) * f64::from(self.connections) + f64::from(connection);
        Duration::from_secs_f64(number / self.rate)
    }

    /// Puts the load on `entry` for so long. `spent` is read at both edges of what is counted.
    ///
    /// # Errors
    /// A connection cannot be opened or breaks, or an answer is not what was asked for.
    pub(crate) fn run(
        &self,
        entry: SocketAddr,
        length: Duration,
        spent: impl Fn() -> Result<u64>,
    ) -> Result<(u64, Load)> {
        let open = |_| -> Result<TcpStream> {
            let stream = TcpStream::connect(entry)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let mut streams = (0..self.connections).map(open).collect::<Result<Vec<_>>>()?;
        // A pair shakes hands with the first request.
        for stream in &mut streams {
            ask(stream, self.body)?;
        }
        let begun = Instant::now();
        let counted = (begun + WARMING, begun + WARMING + length);
        let (cost, times) = std::thread::scope(|scope| -> Result<_> {
            let load: Vec<_> = (0..self.connections)
                .zip(streams)
                .map(|(number, stream)| scope.spawn(move || self.repeat(number, stream, begun, counted)))
                .collect();
            pause_for(WARMING);
            let before = spent()?;
            pause_for(counted.1.saturating_duration_since(Instant::now()));
            let after = spent()?;
            let mut times = Vec::new();
            for one in load {
                times.extend(one.join().map_err(|_panic| anyhow::anyhow!("the load broke off"))??);
            }
            Ok((after - before, times))
        })?;
        Ok((cost, Load { requests: times.len() as u64, errors: 0, p99_us: p99(times) }))
    }

    /// The requests of one connection. Gives the microseconds of those that count.
    fn repeat(
        &self,
        connection: u16,
        mut stream: TcpStream,
        begun: Instant,
        counted: (Instant, Instant),
    ) -> Result<Vec<u64>> {
        let mut times = Vec::new();
        for turn in 0.. {
            let due = begun + self.due(connection, turn);
            if due >= counted.1 {
                break;
            }
            pause_for(due.saturating_duration_since(Instant::now()));
            ask(&mut stream, self.body)?;
            if due >= counted.0 {
                times.push(u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX));
            }
        }
        Ok(times)
    }
}

fn p99(mut times: Vec<u64>) -> f64 {
    times.sort_unstable();
    times.get((times.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0) as f64
}

/// One request and its whole answer.
fn ask(stream: &mut TcpStream, body: u32) -> Result<()> {
    stream.write_all(format!("GET /{body} HTTP/1.1\r\nHost: server\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut block = [0; 16 << 10];
    loop {
        let n = stream.read(&mut block).context("waiting for an answer")?;
        if n == 0 {
            bail!("the connection ended: {}", String::from_utf8_lossy(&answer));
        }
        answer.extend_from_slice(&block[..n]);
        let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..head]));
        if answer.len() >= head + 4 + body as usize {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_spread_over_connections_and_time() {
        let pace = Pace { rate: 1000.0, connections: 4, body: 1 };
        let due = |connection, turn| pace.due(connection, turn).as_micros();
        assert_eq!([due(0, 0), due(1, 0), due(3, 0), due(0, 1), due(3, 2)], [0, 1000, 3000, 4000, 11_000]);
    }

    #[test]
    fn of_a_hundred_the_second_slowest_counts() {
        assert_eq!(p99((1..=100).collect()), 99.0);
        assert_eq!(p99((1..=1000).rev().collect()), 990.0);
        assert_eq!((p99(vec![7]), p99(Vec::new())), (7.0, 0.0));
    }

    /// An origin that answers each request, and stands still once, for half a second.
    fn origin() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut asked = [0; 512];
                    let mut turn = 0;
                    while let Ok(1..) = stream.read(&mut asked) {
                        if (number, turn) == (0, 30) {
                            pause_for(Duration::from_millis(500));
                        }
                        turn += 1;
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nxx").unwrap();
                    }
                });
            }
        });
        address
    }

    #[test]
    fn a_pause_is_in_the_time_of_all_that_was_due_in_it() {
        let pace = Pace { rate: 200.0, connections: 2, body: 2 };
        let (spent, load) = pace.run(origin(), Duration::from_secs(1), || Ok(7)).unwrap();
        assert_eq!((spent, load.errors), (0, 0));
        assert_eq!(load.requests, 200, "as many as were due, although one connection stood still");
        assert!(load.p99_us > 400_000.0, "{load:?}");
    }

    #[test]
    fn an_answer_that_is_none_is_an_error() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let _ = stream.read(&mut [0; 512]);
            stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap();
        });
        let pace = Pace { rate: 100.0, connections: 1, body: 1 };
        let error = pace.run(address, Duration::from_millis(10), || Ok(0)).unwrap_err().to_string();
        assert!(error.contains("503"), "{error}");
    }
}
