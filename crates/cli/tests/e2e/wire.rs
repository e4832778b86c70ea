//! Raw HTTP/1.1 and raw bytes, for what no library would send or show.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use crate::mesh::LIMIT;

/// Reads one head, up to and including the empty line.
pub(crate) fn read_head(stream: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).unwrap_or(0) == 0 {
            break;
        }
    }
    head
}

/// A server on `port` that hands the head of every request to the test and answers with `answer`.
pub(crate) fn recording_server(port: u16, answer: &'static str) -> mpsc::Receiver<String> {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (heads, received) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let heads = heads.clone();
            thread::spawn(move || serve(&stream, answer, &heads));
        }
    });
    received
}

fn serve(stream: &TcpStream, answer: &str, heads: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(stream);
    loop {
        let head = read_head(&mut reader);
        // The agent's readiness probe connects and says nothing.
        if head.is_empty() || heads.send(head).is_err() {
            return;
        }
        let mut writer = stream;
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Sends bytes and reads until the other side closes or pauses for good.
pub(crate) fn exchange(address: &str, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is an end as well.
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// Largest resident memory a process ever had, in KiB.
pub(crate) fn peak_memory_kib(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}
