//! Bulk bytes over one TCP connection: a source that writes and a reader that counts.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

/// An origin that answers every connection with as many bytes as its first eight ask for (big endian).
pub(crate) struct Source {
    pub(crate) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Source {
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let block = vec![0x5a_u8; 1 << 18];
            while let Ok((mut stream, _)) = listener.accept() {
                if flag.load(Ordering::Relaxed) {
                    return;
                }
                let _ = serve(&mut stream, &block);
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

fn serve(stream: &mut TcpStream, block: &[u8]) -> std::io::Result<()> {
    let mut ask = [0; 8];
    stream.read_exact(&mut ask)?;
    let mut left = u64::from_be_bytes(ask);
    while left > 0 {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        stream.write_all(&block[..take])?;
        left -= take as u64;
    }
    Ok(())
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads `bytes` bytes through `address`.
pub(crate) fn fetch(address: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(&bytes.to_be_bytes())?;
    let mut buffer = vec![0; 1 << 18];
    let mut got = 0_u64;
    while got < bytes {
        match stream.read(&mut buffer)? {
            0 => bail!("connection ended after {got} of {bytes} bytes"),
            n => got += n as u64,
        }
    }
    Ok(())
}

/// An origin that accepts, keeps, and says nothing.
pub(crate) struct Holder {
    pub(crate) address: SocketAddr,
    held: Arc<AtomicUsize>,
}

impl Holder {
    /// Runs until the process ends.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let held = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&held);
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                kept.push(stream);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { address, held })
    }

    /// Connections taken so far.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}
