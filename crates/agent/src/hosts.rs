//! The names of one instance: a hosts file that changes under a reader without ever being torn.
//!
//! An application sees this file as its `/etc/hosts` through a bind mount, so the inode must stay the same and
//! a rename is out of the question. Holds: a line appears by one append and disappears by one byte (its first
//! becomes `#`; bringing it back restores that byte), so every reader sees whole lines only. Lines are never
//! moved; a name that comes and goes costs no growth. A name of ours wins over the same name in the host's own
//! lines: there it is overwritten with spaces in this copy (or its line put out of force, if it has no other), for
//! good. `localhost` alone is left as it is. Does not: decide addresses.
//!
//! ```text
//! 127.0.0.1 localhost                       the host's own file, as it was when the instance attached
//! # names managed by outrider
//! 127.64.0.7 inventory inventory.shop       in force
//! #27.64.0.9 ledger ledger.finance          not in force
//! ```

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const MARKER: &str = "# names managed by outrider\n";

/// Most bytes taken over from the host's own file.
const MAX_BASE: u64 = 1 << 20;

/// A hosts file in use.
#[derive(Debug)]
pub struct HostsFile {
    file: File,
    end: u64,
    lines: Vec<Line>,
    /// The host's own lines, as they are now.
    base: Vec<(u64, String)>,
}

#[derive(Debug)]
struct Line {
    offset: u64,
    address: Ipv4Addr,
    names: Vec<String>,
    in_force: bool,
}

impl HostsFile {
    /// Makes the file at `path` from the host's own `base`, or takes up the one that is there: the same inode,
    /// with the lines it has.
    ///
    /// # Errors
    /// What the file system says. A missing `base` is an empty one.
    pub fn open(path: &Path, base: &Path) -> io::Result<Self> {
        if path.exists() {
            return Self::resume(path);
        }
        let mut text = String::new();
        if let Ok(file) = File::open(base) {
            let mut bytes = Vec::new();
            file.take(MAX_BASE).read_to_end(&mut bytes)?;
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(MARKER);
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path)?;
        file.write_all(text.as_bytes())?;
        Ok(Self { file, end: text.len() as u64, lines: Vec::new(), base: lines_of(&text) })
    }

    fn resume(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut text = String::new();
        (&mut file).take(2 * MAX_BASE).read_to_string(&mut text)?;
        let mut lines = Vec::new();
        let base = lines_of(text.split(MARKER).next().unwrap_or_default());
        let mut offset = match text.find(MARKER) {
            Some(at) => at + MARKER.len(),
            None => return Err(io::Error::other("not a hosts file of ours: its marker line is missing")),
        };
        for line in text[offset..].split_inclusive('\n') {
            let restored = line.strip_prefix('#').map(|rest| format!("1{rest}"));
            let mut words = restored.as_deref().unwrap_or(line).split_ascii_whitespace();
            if let Some(address) = words.next().and_then(|word| word.parse().ok()) {
                let names = words.map(str::to_owned).collect();
                lines.push(Line { offset: offset as u64, address, names, in_force: restored.is_none() });
            }
            offset += line.len();
        }
        Ok(Self { file, end: text.len() as u64, lines, base })
    }

    /// The address that stands, or last stood, beside exactly these names.
    pub fn address_of(&self, names: &[String]) -> Option<Ipv4Addr> {
        self.lines.iter().rev().find(|line| line.names == names).map(|line| line.address)
    }

    /// Makes exactly `wanted` hold: address → names. Entries without names get no line.
    ///
    /// # Errors
    /// What the file system says; lines changed before the error stay changed, and calling again goes on.
    pub fn set(&mut self, wanted: &BTreeMap<Ipv4Addr, Vec<String>>) -> io::Result<()> {
        // Additions first: a service that changes its address is never without one.
        for (address, names) in wanted.iter().filter(|(_, names)| !names.is_empty()) {
            let at = self.lines.iter().position(|line| line.address == *address && line.names == *names);
            match at {
                Some(at) if self.lines[at].in_force => {}
                Some(at) => self.flip(at, b"1", true)?,
                None => self.append(*address, names)?,
            }
            self.mask(names)?;
        }
        for at in 0..self.lines.len() {
            let line = &self.lines[at];
            if line.in_force && wanted.get(&line.address) != Some(&line.names) {
                self.flip(at, b"#", false)?;
            }
        }
        Ok(())
    }

    /// Takes `names` out of the host's own lines.
    fn mask(&mut self, names: &[String]) -> io::Result<()> {
        let ours =
            |word: &str| word != "localhost" && names.iter().any(|name| name.eq_ignore_ascii_case(word));
        for (offset, line) in &mut self.base {
            let content = line.split('#').next().unwrap_or_default();
            let mut words = words(content).skip(1).peekable();
            if words.peek().is_none() {
                continue;
            }
            let (clashing, others): (Vec<_>, Vec<_>) = words.partition(|(_, word)| ours(word));
            if clashing.is_empty() {
                continue;
            }
            let mut changed = line.clone();
            if others.is_empty() {
                // The first character may have several bytes: a mark of the encoding, for example.
                let width = line.chars().next().map_or(1, char::len_utf8);
                let hash = format!("{:<width$}", "#");
                self.file.write_all_at(hash.as_bytes(), *offset)?;
                changed.replace_range(..width, &hash);
            } else {
                for (at, word) in clashing {
                    let blank = " ".repeat(word.len());
                    self.file.write_all_at(blank.as_bytes(), *offset + at as u64)?;
                    changed.replace_range(at..at + word.len(), &blank);
                }
            }
            *line = changed;
        }
        Ok(())
    }

    fn flip(&mut self, at: usize, first: &[u8; 1], in_force: bool) -> io::Result<()> {
        self.file.write_all_at(first, self.lines[at].offset)?;
        self.lines[at].in_force = in_force;
        Ok(())
    }

    fn append(&mut self, address: Ipv4Addr, names: &[String]) -> io::Result<()> {
        let text = format!("{address} {}\n", names.join(" "));
        let offset = self.end;
        // One call; a short write (a full disk) is taken back so that no half line stays.
        match self.file.write_at(text.as_bytes(), offset) {
            Ok(n) if n == text.len() => {}
            outcome => {
                self.file.set_len(offset)?;
                return Err(outcome.err().unwrap_or_else(|| io::ErrorKind::StorageFull.into()));
            }
        }
        self.end += text.len() as u64;
        self.lines.push(Line { offset, address, names: names.to_vec(), in_force: true });
        Ok(())
    }
}

/// Lines with their offsets, of the part before the names of ours.
fn lines_of(text: &str) -> Vec<(u64, String)> {
    let mut offset = 0;
    let mut lines = Vec::new();
    for line in text.trim_end_matches(MARKER).split_inclusive('\n') {
        if !line.starts_with('#') {
            lines.push((offset, line.to_owned()));
        }
        offset += line.len() as u64;
    }
    lines
}

/// Words with their offsets.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let start = line.as_ptr() as usize;
    line.split_ascii_whitespace().map(move |word| (word.as_ptr() as usize - start, word))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, 64, 0, last)
    }

    fn names(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn in_force(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn lines_come_go_and_come_back_in_the_same_inode_without_growth() {
        let dir = tempfile::tempdir().unwrap();
        let (base, path) = (dir.path().join("base"), dir.path().join("hosts"));
        std::fs::write(&base, "127.0.0.1 localhost").unwrap();
        let mut hosts = HostsFile::open(&path, &base).unwrap();
        let inode = std::fs::metadata(&path).unwrap().ino();
        let one = BTreeMap::from([(ip(7), names("inventory inventory.shop"))]);
        let two = BTreeMap::from([(ip(7), names("inventory inventory.shop")), (ip(9), names("ledger"))]);
        let read = || std::fs::read_to_string(&path).unwrap();

        hosts.set(&two).unwrap();
        assert_eq!(
            in_force(&read()),
            ["127.0.0.1 localhost", "127.64.0.7 inventory inventory.shop", "127.64.0.9 ledger"]
        );
        let length = read().len();
        for _ in 0..50 {
            hosts.set(&one).unwrap();
            assert_eq!(in_force(&read()), ["127.0.0.1 localhost", "127.64.0.7 inventory inventory.shop"]);
            hosts.set(&two).unwrap();
            assert_eq!(in_force(&read()).len(), 3);
        }
        assert_eq!(read().len(), length);
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);

        hosts.set(&one).unwrap();
        let mut resumed = HostsFile::open(&path, &base).unwrap();
        assert_eq!(resumed.address_of(&names("ledger")), Some(ip(9)), "remembered although not in force");
        assert_eq!(resumed.address_of(&names("unknown")), None);
        resumed.set(&two).unwrap();
        assert_eq!((read().len(), in_force(&read()).len()), (length, 3));
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    }

    #[test]
    fn names_of_ours_win_over_the_hosts_own_and_its_other_names_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (base, path) = (dir.path().join("base"), dir.path().join("hosts"));
        std::fs::write(
            &base,
            "127.0.0.1 localhost\n10.0.0.9 inventory\n  ::1 Inventory # v6\n10.0.0.8 a inventory inventory2 # inventory\n\
             10.0.0.7\tledger ledger.finance\n",
        )
        .unwrap();
        let mut hosts = HostsFile::open(&path, &base).unwrap();
        let wanted = BTreeMap::from([
            (ip(7), names("inventory inventory.shop")),
            (ip(8), names("ledger.finance")),
            (ip(9), names("localhost localhost.shop")),
        ]);
        hosts.set(&wanted).unwrap();
        let expected = [
            "127.0.0.1 localhost",
            "10.0.0.8 a           inventory2 # inventory",
            "10.0.0.7\tledger               ",
            "127.64.0.7 inventory inventory.shop",
            "127.64.0.8 ledger.finance",
            "127.64.0.9 localhost localhost.shop",
        ];
        assert_eq!(in_force(&std::fs::read_to_string(&path).unwrap()), expected);
        // The same after a new agent has taken the file up.
        let mut resumed = HostsFile::open(&path, &base).unwrap();
        resumed.set(&wanted).unwrap();
        assert_eq!(in_force(&std::fs::read_to_string(&path).unwrap()), expected);
        assert_eq!(std::fs::read_to_string(&base).unwrap().matches("nventory").count(), 5, "untouched");
    }

    #[test]
    fn a_line_of_the_host_that_begins_with_a_mark_of_the_encoding_is_put_out_of_force_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (base, path) = (dir.path().join("base"), dir.path().join("hosts"));
        std::fs::write(&base, "\u{feff}10.0.0.9 inventory\n").unwrap();
        let mut hosts = HostsFile::open(&path, &base).unwrap();
        let wanted = BTreeMap::from([(ip(7), names("inventory"))]);
        hosts.set(&wanted).unwrap();
        HostsFile::open(&path, &base).unwrap().set(&wanted).unwrap();
        assert_eq!(in_force(&std::fs::read_to_string(&path).unwrap()), ["127.64.0.7 inventory"]);
    }

    #[test]
    fn a_concurrent_reader_sees_whole_lines_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let mut hosts = HostsFile::open(&path, Path::new("/no/such/file")).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0_u32;
                while !done.load(Ordering::Relaxed) || reads == 0 {
                    for line in std::fs::read_to_string(&path).unwrap().split_inclusive('\n') {
                        assert!(line.ends_with('\n'), "torn: {line:?}");
                        if !line.starts_with('#') {
                            let (address, names) = line.split_once(' ').unwrap();
                            let last = address.parse::<Ipv4Addr>().unwrap().octets()[3];
                            assert_eq!(names, format!("svc{last} svc{last}.shop\n"));
                        }
                    }
                    reads += 1;
                }
            });
            for round in 0..2_000_u32 {
                let wanted = (1..=8_u8)
                    .filter(|n| (round >> (n % 8)) & 1 == 1)
                    .map(|n| (ip(n), vec![format!("svc{n}"), format!("svc{n}.shop")]))
                    .collect();
                hosts.set(&wanted).unwrap();
            }
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
    }
}
