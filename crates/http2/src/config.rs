//! What one side decides, and what it learns of the other.

use crate::budget::Rate;
use crate::code::Violation;
use crate::frame::{self, MAX_FRAME, MIN_FRAME};
use crate::hpack::DEFAULT_TABLE;

/// Largest flow-control window.
pub(crate) const MAX_WINDOW: u32 = (1 << 31) - 1;
/// Window of everything before anything is agreed on.
pub(crate) const DEFAULT_WINDOW: u32 = 65_535;

pub(crate) const HEADER_TABLE_SIZE: u16 = 0x1;
pub(crate) const ENABLE_PUSH: u16 = 0x2;
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 0x3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 0x4;
pub(crate) const MAX_FRAME_SIZE: u16 = 0x5;
pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 0x6;
pub(crate) const ENABLE_CONNECT_PROTOCOL: u16 = 0x8;
pub(crate) const NO_RFC7540_PRIORITIES: u16 = 0x9;

/// Which side of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Answers requests.
    Server,
    /// Makes requests.
    Client,
}

/// What this side allows. Values outside of what HTTP/2 can say are taken as the nearest that it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes of one body that the peer may send before any is released; at most 2^31-1.
    pub stream_window: u32,
    /// The same of all bodies together, at least 65,535. Larger than one stream's, or one that stalls stalls all.
    pub connection_window: u32,
    /// Largest frame payload that is accepted, 16,384 to 2^24-1 bytes.
    pub max_frame: u32,
    /// Streams that a client may have open at once.
    pub max_streams: u32,
    /// Largest head or trailers: names, values and 32 bytes for each field. At most 16 MiB.
    pub max_head: u32,
    /// Most fields of a head or trailers, pseudo-header fields not counted.
    pub max_fields: u32,
    /// Largest table for decoding, in bytes; at most 64 KiB. Twice that is held.
    pub decoder_table: u32,
    /// Largest table for encoding, whatever the peer allows, in bytes; at most 64 KiB. Twice that is held.
    pub encoder_table: u32,
    /// Whether strings are sent in HPACK's own coding where that is shorter, by about a fifth: it costs both sides some
    /// five instructions and ten for each byte, which is worth it on a wire and not within a machine.
    pub huffman: bool,
    /// Whether a server takes extended CONNECT (RFC 8441).
    pub connect_protocol: bool,
    /// Requests that a client may cancel before they are answered.
    pub resets: Rate,
    /// Streams that the peer may make this side reset by breaking a rule.
    pub faults: Rate,
    /// Frames that bring nothing: PING, SETTINGS, PRIORITY, empty DATA, needless WINDOW_UPDATE, unknown ones,
    /// interim responses, and what is for streams that are over. Frames that bring something give some back.
    pub idle_frames: Rate,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            stream_window: DEFAULT_WINDOW,
            connection_window: 1 << 20,
            max_frame: MIN_FRAME,
            max_streams: 100,
            max_head: 96 * 1024,
            max_fields: 200,
            decoder_table: DEFAULT_TABLE,
            encoder_table: DEFAULT_TABLE,
            huffman: true,
            connect_protocol: false,
            // Clients that hedge cancel two hundred requests a second and mean no harm; attacks are ten times that.
            resets: Rate { burst: 1000, per_second: 400 },
            faults: Rate { burst: 200, per_second: 50 },
            idle_frames: Rate { burst: 2000, per_second: 300 },
        }
    }
}

impl Config {
    /// The same with every value possible.
    pub(crate) fn clamped(self) -> Self {
        Self {
            stream_window: self.stream_window.min(MAX_WINDOW),
            connection_window: self.connection_window.clamp(DEFAULT_WINDOW, MAX_WINDOW),
            max_frame: self.max_frame.clamp(MIN_FRAME, MAX_FRAME),
            max_head: self.max_head.min(16 << 20),
            decoder_table: self.decoder_table.min(64 << 10),
            encoder_table: self.encoder_table.min(64 << 10),
            ..self
        }
    }

    /// Appends the first SETTINGS of this side.
    pub(crate) fn write(&self, role: Role, out: &mut Vec<u8>) {
        let mut settings = [(0u16, 0u32); 7];
        let mut count = 0;
        let mut add = |wanted: bool, id: u16, value: u32| {
            if wanted {
                settings[count] = (id, value);
                count += 1;
            }
        };
        add(self.decoder_table != DEFAULT_TABLE, HEADER_TABLE_SIZE, self.decoder_table);
        add(role == Role::Client, ENABLE_PUSH, 0);
        add(role == Role::Server, MAX_CONCURRENT_STREAMS, self.max_streams);
        add(self.stream_window != DEFAULT_WINDOW, INITIAL_WINDOW_SIZE, self.stream_window);
        add(self.max_frame != MIN_FRAME, MAX_FRAME_SIZE, self.max_frame);
        add(true, MAX_HEADER_LIST_SIZE, self.max_head);
        add(role == Role::Server && self.connect_protocol, ENABLE_CONNECT_PROTOCOL, 1);
        frame::header(6 * count, frame::SETTINGS, 0, 0, out);
        for (id, value) in &settings[..count] {
            out.extend_from_slice(&id.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

/// What the peer's SETTINGS say, or what holds without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// Largest table that this side may encode with, in bytes.
    pub header_table: u32,
    /// Streams that this side may have open at once. 100 until the first SETTINGS.
    pub max_streams: u32,
    /// Window of a new stream, in bytes.
    pub initial_window: u32,
    /// Largest frame payload, in bytes.
    pub max_frame: u32,
    /// Largest head that the peer takes: names, values and 32 bytes for each field.
    pub max_head: u32,
    /// Whether it takes extended CONNECT.
    pub connect_protocol: bool,
}

impl Default for PeerSettings {
    fn default() -> Self {
        Self {
            header_table: DEFAULT_TABLE,
            max_streams: 100,
            initial_window: DEFAULT_WINDOW,
            max_frame: MIN_FRAME,
            max_head: u32::MAX,
            connect_protocol: false,
        }
    }
}

impl PeerSettings {
    /// Takes over one setting that a peer in the role `of` sent.
    pub(crate) fn apply(&mut self, of: Role, id: u16, value: u32) -> Result<(), Violation> {
        let valid = match id {
            HEADER_TABLE_SIZE => {
                self.header_table = value;
                true
            }
            // Nothing is ever pushed by us, so a client's wish is of no consequence.
            ENABLE_PUSH => value == 0 || (value == 1 && of == Role::Client),
            MAX_CONCURRENT_STREAMS => {
                self.max_streams = value;
                true
            }
            INITIAL_WINDOW_SIZE if value > MAX_WINDOW => return Err(Violation::InitialWindow),
            INITIAL_WINDOW_SIZE => {
                self.initial_window = value;
                true
            }
            MAX_FRAME_SIZE => {
                self.max_frame = value;
                (MIN_FRAME..=MAX_FRAME).contains(&value)
            }
            MAX_HEADER_LIST_SIZE => {
                self.max_head = value;
                true
            }
            ENABLE_CONNECT_PROTOCOL => {
                let taken_back = self.connect_protocol && value == 0;
                self.connect_protocol = value == 1;
                value <= 1 && !taken_back
            }
            NO_RFC7540_PRIORITIES => value <= 1,
            _ => true,
        };
        if valid { Ok(()) } else { Err(Violation::Setting) }
    }
}
