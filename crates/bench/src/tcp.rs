//! Bytes over TCP: an origin that answers with as many as it is asked for, a reader of one long answer, many exchanges
//! of short ones, and an origin that says nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::exchange::{Driver, Turn};

/// Bytes of one bulk transfer.
pub(crate) const BULK: u32 = 1 << 30;
/// Bytes that are written at once.
const BLOCK: usize = 1 << 18;

/// An origin that answers each eight bytes (a number, big endian) with as many bytes.
pub(crate) struct Source {
    pub(crate) address: SocketAddr,
}

impl Source {
    /// Runs on a thread of this process until that ends.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("source".into()).spawn(move || {
            let block: Arc<[u8]> = vec![0x5a; BLOCK].into();
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                while let Ok((stream, _)) = listener.accept().await {
                    let block = Arc::clone(&block);
                    // A caller that leaves is no news here.
                    tokio::spawn(async move { drop(answer(stream, &block).await) });
                }
            });
        })?;
        Ok(Self { address })
    }
}

async fn answer(mut stream: tokio::net::TcpStream, block: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut left = stream.read_u64().await?;
        while left > 0 {
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
            stream.write_all(&block[..take]).await?;
            left -= take as u64;
        }
    }
}

/// Reads `bytes` bytes through `address`.
pub(crate) fn fetch(address: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(&bytes.to_be_bytes())?;
    let mut buffer = vec![0; BLOCK];
    let mut got = 0_u64;
    while got < bytes {
        match stream.read(&mut buffer)? {
            0 => bail!("connection ended after {got} of {bytes} bytes"),
            n => got += n as u64,
        }
    }
    Ok(())
}

/// Load of exchanges: each connection asks for `body` bytes, reads them, and asks again.
pub(crate) fn exchanges(entry: SocketAddr, connections: u16, body: u32) -> Result<Driver> {
    Driver::start(connections, 1, move |turn| async move {
        if talk(entry, body, turn.clone()).await.is_err() {
            turn.broke(1);
        }
    })
}

async fn talk(entry: SocketAddr, body: u32, turn: Turn) -> Result<()> {
    let mut stream = tokio::net::TcpStream::connect(entry).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; (body as usize).min(BLOCK)];
    turn.repeat(async || {
        stream.write_all(&u64::from(body).to_be_bytes()).await?;
        let mut left = body as usize;
        while left > 0 {
            let take = left.min(buffer.len());
            left -= stream.read_exact(&mut buffer[..take]).await?;
        }
        Ok(())
    })
    .await
}

/// An origin that accepts, keeps, and says nothing. What it keeps is closed when it is dropped.
pub(crate) struct Holder {
    pub(crate) address: SocketAddr,
    held: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Holder {
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (held, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, is_over) = (Arc::clone(&held), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            let mut kept = Vec::new();
            loop {
                match listener.accept() {
                    Ok(_) if is_over.load(Ordering::Acquire) => return,
                    Ok((stream, _)) => kept.push(stream),
                    Err(error) => return eprintln!("the origin takes no more connections: {error}"),
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { address, held, ended, thread: Some(thread) })
    }

    /// Connections taken so far.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // This one wakes the thread.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
