//! What really went over a wire, by tcpdump.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::peers;
use crate::process::Proc;
use crate::wait::{LONG, until};

/// A running capture of one TCP port.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Proc,
    file: PathBuf,
    port: u16,
}

/// Both directions of one connection.
#[derive(Debug, Default)]
pub struct Flow {
    /// From the side that called.
    pub caller: Vec<u8>,
    /// From the side that listens on the port.
    pub listener: Vec<u8>,
}

impl Capture {
    /// Begins; `None` with a message if tcpdump is not installed or may not capture here (not root).
    /// `prefix` is put before the command, to capture inside of a host, say.
    pub fn start(
        folder: &std::path::Path,
        prefix: &[String],
        interface: &str,
        port: u16,
    ) -> Result<Option<Self>> {
        let Some(tcpdump) = peers::find("tcpdump")? else { return Ok(None) };
        if !rustix::process::geteuid().is_root() {
            peers::skipped("capturing needs root");
            return Ok(None);
        }
        let file = folder.join(format!("{port}.pcap"));
        let mut line: Vec<String> = prefix.to_vec();
        line.push(tcpdump.display().to_string());
        line.extend(
            ["--immediate-mode", "-U", "-n", "-s", "0", "-B", "16384", "-Z", "root", "-i"].map(String::from),
        );
        line.extend([interface.into(), "-w".into(), file.display().to_string(), format!("tcp port {port}")]);
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        let tcpdump = Proc::start("tcpdump", command, &folder.join(format!("{port}.tcpdump.log")))?;
        until("tcpdump to listen", LONG, || {
            let output = tcpdump.output();
            if output.contains("listening on") { Ok(()) } else { Err(output) }
        })?;
        Ok(Some(Self { tcpdump, file, port }))
    }

    /// Ends it and gives the connections that carried bytes.
    pub fn finish(self) -> Result<Vec<Flow>> {
        // tcpdump stops at once when told to, whatever it has not read yet; so wait until it has nothing to read.
        let (mut size, mut since) = (0, Instant::now());
        until("tcpdump to have written everything", LONG, || {
            let now = std::fs::metadata(&self.file).map(|file| file.len()).unwrap_or_default();
            if now != size {
                (size, since) = (now, Instant::now());
            }
            if since.elapsed() > Duration::from_millis(500) { Ok(()) } else { Err(format!("{size} bytes")) }
        })?;
        self.tcpdump.signal(Signal::INT)?;
        self.tcpdump.wait(LONG)?;
        let output = self.tcpdump.output();
        ensure!(output.contains("\n0 packets dropped by kernel"), "an incomplete capture: {output}");
        flows(&std::fs::read(&self.file)?, self.port)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        drop(self.tcpdump.kill());
    }
}

type Segments = BTreeMap<u32, Vec<u8>>;

/// Puts the TCP payload in a classic pcap file of Ethernet frames together again.
fn flows(pcap: &[u8], port: u16) -> Result<Vec<Flow>> {
    let (header, mut rest) = pcap.split_at_checked(24).context("no pcap file")?;
    ensure!(header[..4] == [0xd4, 0xc3, 0xb2, 0xa1] && header[20] == 1, "not little endian Ethernet");
    // By the caller's address: segments by distance from the first sequence number, per direction.
    let mut connections: BTreeMap<Vec<u8>, [(Option<u32>, Segments); 2]> = BTreeMap::new();
    while let Some((header, after)) = rest.split_at_checked(16) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let (packet, after) = after.split_at_checked(length).context("a packet is cut off")?;
        rest = after;
        let Some(ip) = packet.get(14..).filter(|ip| ip.len() >= 20 && ip[0] >> 4 == 4) else { continue };
        let size = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let tcp = &ip[usize::from(ip[0] & 15) * 4..size.max(40).min(ip.len())];
        let number = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let from_caller = number(2) == port;
        let caller = if from_caller { [&ip[12..16], &tcp[..2]] } else { [&ip[16..20], &tcp[2..4]] }.concat();
        let (first, segments) = &mut connections.entry(caller).or_default()[usize::from(!from_caller)];
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let syn = tcp[13] & 2 != 0;
        let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
        let first = *first.get_or_insert(if syn { sequence.wrapping_add(1) } else { sequence });
        if !payload.is_empty() {
            segments.insert(sequence.wrapping_sub(first), payload.to_vec());
        }
    }
    let join = |(_, segments): &(Option<u32>, Segments)| {
        let mut bytes = Vec::new();
        for (offset, payload) in segments {
            // Overlap is a retransmission.
            let known = bytes.len().saturating_sub(*offset as usize).min(payload.len());
            ensure!(*offset as usize <= bytes.len(), "a hole after {} bytes", bytes.len());
            bytes.extend_from_slice(&payload[known..]);
        }
        Ok(bytes)
    };
    let mut flows = Vec::new();
    for directions in connections.values() {
        let flow = Flow { caller: join(&directions[0])?, listener: join(&directions[1])? };
        if !flow.caller.is_empty() || !flow.listener.is_empty() {
            flows.push(flow);
        }
    }
    Ok(flows)
}
