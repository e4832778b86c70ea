//! Whether the application answers on its ports.
//!
//! Holds: it has answered when a TCP connection to every port at 127.0.0.1 was taken, which is where the proxy sends
//! to. Nothing is sent. Does not: check again later.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::net::TcpStream;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
const ATTEMPT: Duration = Duration::from_secs(1);

/// Returns when all of `ports` have taken a connection. Asks for ever.
pub(crate) async fn all_answer(ports: &[u16]) {
    for port in ports {
        let mut pause = FIRST_PAUSE;
        while !answers(*port).await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

async fn answers(port: u16) -> bool {
    let connect = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    matches!(tokio::time::timeout(ATTEMPT, connect).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn waits_for_the_last_port() {
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Bound but not listening: connections are refused, and nobody else gets the number.
        let second = tokio::net::TcpSocket::new_v4().unwrap();
        second.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let ports = [first.local_addr().unwrap().port(), second.local_addr().unwrap().port()];
        let mut waiting = tokio::spawn(async move { all_answer(&ports).await });
        // It has come as far as the first port, and stays at the second.
        first.accept().await.unwrap();
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("the second port does not answer"),
            () = tokio::task::yield_now() => {}
        }
        let _second = second.listen(8).unwrap();
        waiting.await.unwrap();
    }
}
