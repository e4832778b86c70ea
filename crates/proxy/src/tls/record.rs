//! Records of TLS 1.3 (RFC 8446, 5.2): what goes into one, and what comes out of it.
//!
//! Holds: a nonce is used once for a key; bytes are opened where they are wanted and sealed from where they are,
//! so that none is copied on its way; what was not proved by its tag is never told; nothing is allocated. Does
//! not: know what messages mean, or when keys change (that is [`session`](super::session)).

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::{ConnectionTrafficSecrets, ContentType, Error, InvalidMessage, PeerMisbehaved};

/// Bytes before what a record carries.
pub const HEADER: usize = 5;
/// Most bytes that a record carries.
pub const FRAGMENT: usize = 1 << 14;
/// Bytes of the proof behind it.
const TAG: usize = 16;
/// What a record has beside its content: header, inner type and tag.
pub const OVERHEAD: usize = HEADER + 1 + TAG;
/// Most bytes behind a header (RFC 8446, 5.2).
const LONGEST: usize = FRAGMENT + 256;
/// Records for one key of AES-GCM: a quarter of the least of what RFC 8446 (5.5) and other implementations allow.
const RECORDS: u64 = 1 << 22;

/// What came out of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Of which kind it is.
    pub content: ContentType,
    /// How many bytes.
    pub len: usize,
}

/// The keys of one direction and how often they were used.
pub struct Keys {
    key: LessSafeKey,
    iv: [u8; 12],
    used: u64,
}

impl Keys {
    /// Of what a handshake or an update of keys gave.
    ///
    /// # Errors
    /// They are for a cipher that is not known here.
    pub fn new((used, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher that is not known to the record layer".into())),
        };
        let unusable = || Error::General("keys that do not fit their cipher".into());
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| unusable())?;
        let iv = iv.as_ref().try_into().map_err(|_| unusable())?;
        Ok(Self { key: LessSafeKey::new(key), iv, used })
    }

    /// Whether it is time for other keys.
    pub fn are_worn(&self) -> bool {
        self.used >= RECORDS
    }

    /// The nonce for the next record. A number that wrapped around would be one used before: 2^64 records are never
    /// reached, and would be refused.
    fn nonce(&mut self) -> Result<Nonce, Error> {
        let mut nonce = self.iv;
        for (byte, of_number) in nonce[4..].iter_mut().zip(self.used.to_be_bytes()) {
            *byte ^= of_number;
        }
        self.used = self.used.checked_add(1).ok_or(Error::EncryptError)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Makes a record of `bytes`, at most [`FRAGMENT`] of them, at the beginning of `out`, which has room for them and
    /// [`OVERHEAD`]. How long it is.
    ///
    /// # Errors
    /// No room, or the library refuses.
    pub fn seal(&mut self, content: ContentType, bytes: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let behind = bytes.len() + 1 + TAG;
        let (header, out) = out.split_at_mut_checked(HEADER).ok_or(Error::EncryptError)?;
        let (sealed, end) = out
            .get_mut(..behind)
            .filter(|_| bytes.len() <= FRAGMENT)
            .and_then(|out| out.split_at_mut_checked(bytes.len()))
            .ok_or(Error::EncryptError)?;
        let [high, low] = (behind as u16).to_be_bytes();
        header.copy_from_slice(&[u8::from(ContentType::ApplicationData), 3, 3, high, low]);
        let nonce = self.nonce()?;
        self.key
            .seal_out_of_place_scatter(nonce, Aad::from(&*header), bytes, sealed, &[content.into()], end)
            .map_err(|_| Error::EncryptError)?;
        Ok(HEADER + behind)
    }

    /// Opens a whole record, as [`whole`] tells it, into the beginning of `out`, which has room for
    /// [`room`] bytes.
    ///
    /// # Errors
    /// It was not sealed by the peer with these keys, or carries what no record may.
    pub fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<Opened, Error> {
        let (header, behind) = record.split_at_checked(HEADER).ok_or(Error::DecryptError)?;
        let (sealed, tag) = behind.split_at_checked(room(record.len())).ok_or(Error::DecryptError)?;
        let out = out.get_mut(..sealed.len()).ok_or(Error::DecryptError)?;
        let nonce = self.nonce()?;
        self.key
            .open_separate_gather(nonce, Aad::from(header), sealed, tag, out)
            .map_err(|_| Error::DecryptError)?;
        content(out)
    }

    /// Opens it where it is: what it carries is behind its header then.
    ///
    /// # Errors
    /// The same.
    pub fn open_in_place(&mut self, record: &mut [u8]) -> Result<Opened, Error> {
        let (header, behind) = record.split_at_mut_checked(HEADER).ok_or(Error::DecryptError)?;
        let nonce = self.nonce()?;
        let opened =
            self.key.open_in_place(nonce, Aad::from(&*header), behind).map_err(|_| Error::DecryptError)?;
        content(opened)
    }
}

/// Bytes that are needed to open a record of `len` bytes.
pub fn room(len: usize) -> usize {
    len.saturating_sub(HEADER + TAG)
}

/// How long the record at the beginning of `bytes` is, once its header is there.
///
/// # Errors
/// It is none that may come after a handshake.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some(&[content, major, _, high, low]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let content = ContentType::from(content);
    if content != ContentType::ApplicationData {
        let expect_types = vec![ContentType::ApplicationData];
        return Err(Error::InappropriateMessage { expect_types, got_type: content });
    }
    if major != 3 {
        return Err(InvalidMessage::UnknownProtocolVersion.into());
    }
    let behind = usize::from(u16::from_be_bytes([high, low]));
    match behind {
        0..=TAG => Err(Error::DecryptError),
        _ if behind > LONGEST => Err(Error::PeerSentOversizedRecord),
        _ => Ok(Some(HEADER + behind)),
    }
}

/// Finds the kind of what was opened, which is the last byte that is not zero.
fn content(opened: &[u8]) -> Result<Opened, Error> {
    // Padding is in it (RFC 8446, 5.4).
    if opened.len() > FRAGMENT + 1 {
        return Err(Error::PeerSentOversizedRecord);
    }
    let len = opened.iter().rposition(|byte| *byte != 0).ok_or(PeerMisbehaved::IllegalTlsInnerPlaintext)?;
    let content = opened.get(len).copied().ok_or(PeerMisbehaved::IllegalTlsInnerPlaintext)?;
    Ok(Opened { content: content.into(), len })
}

#[cfg(test)]
pub(super) mod tests {
    use aws_lc_rs::aead::Algorithm;

    use super::*;

    const ALGORITHMS: [&Algorithm; 3] = [&AES_128_GCM, &AES_256_GCM, &CHACHA20_POLY1305];

    fn keys(algorithm: &'static Algorithm, used: u64) -> Keys {
        let bytes: Vec<u8> = (0..algorithm.key_len()).map(|n| n as u8).collect();
        let key = LessSafeKey::new(UnboundKey::new(algorithm, &bytes).unwrap());
        Keys { key, iv: [7; 12], used }
    }

    impl Keys {
        /// As if they had been used for all but `left` of their records.
        pub fn wear(&mut self, left: u64) {
            self.used = RECORDS - left;
        }

        /// As if a record had been opened.
        pub fn skip(&mut self) {
            self.used += 1;
        }

        /// Whether they were used for nothing yet.
        pub fn are_new(&self) -> bool {
            self.used == 0
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(pair).collect()
    }

    /// The first record of a client's data in RFC 8448, 3.
    #[test]
    fn records_are_those_of_the_standard() {
        let bytes = hex("17 42 2d da 59 6e d5 d9 ac d8 90 e3 c6 3f 50 51");
        let iv = hex("5b 78 92 3d ee 08 57 90 33 e5 23 d9").try_into().unwrap();
        let key = || LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &bytes).unwrap());
        let record = hex(
            "17 03 03 00 43 a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab
             3f 2b 98 19 a8 a5 b4 6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d
             ea e6 3a ee bb 21 69 49 15 e4",
        );
        let data: Vec<u8> = (0..50).collect();
        let mut sealed = vec![0; data.len() + OVERHEAD];
        let mut sealing = Keys { key: key(), iv, used: 0 };
        assert_eq!(sealing.seal(ContentType::ApplicationData, &data, &mut sealed), Ok(record.len()));
        assert_eq!(sealed, record);
        let mut opened = vec![0; room(record.len())];
        let mut opening = Keys { key: key(), iv, used: 0 };
        let what = opening.open(&record, &mut opened).unwrap();
        assert_eq!((what.content, &opened[..what.len]), (ContentType::ApplicationData, &*data));
    }

    #[test]
    fn what_was_sealed_is_opened_into_other_memory_and_where_it_is() {
        for algorithm in ALGORITHMS {
            let [mut sealing, mut opening, mut in_place] = [(); 3].map(|()| keys(algorithm, 9));
            for len in [0, 1, 2, 15, 16, 17, 255, 4096, FRAGMENT - 1, FRAGMENT] {
                for content in [ContentType::ApplicationData, ContentType::Handshake, ContentType::Alert] {
                    // Of zeros, which are no padding before the kind.
                    let data = vec![0; len];
                    let mut record = vec![1; len + OVERHEAD + 3];
                    let length = sealing.seal(content, &data, &mut record).unwrap();
                    assert_eq!(length, len + OVERHEAD);
                    assert_eq!(record[length..], [1; 3]);
                    record.truncate(length);
                    assert_eq!(super::length(&record), Ok(Some(length)));
                    let mut out = vec![1; room(length) + 2];
                    assert_eq!(opening.open(&record, &mut out), Ok(Opened { content, len }));
                    assert_eq!(out[..len], data);
                    assert_eq!(out[room(length)..], [1; 2]);
                    assert_eq!(in_place.open_in_place(&mut record), Ok(Opened { content, len }));
                    assert_eq!(record[HEADER..HEADER + len], data);
                }
            }
        }
    }

    #[test]
    fn nothing_that_was_changed_is_opened() {
        for algorithm in ALGORITHMS {
            let mut record = [0; 20 + OVERHEAD];
            keys(algorithm, 3).seal(ContentType::ApplicationData, &[9; 20], &mut record).unwrap();
            let mut out = [0; 64];
            assert!(keys(algorithm, 3).open(&record, &mut out).is_ok());
            // Another number: it was left out, doubled or moved.
            for used in [2, 4] {
                assert_eq!(keys(algorithm, used).open(&record, &mut out), Err(Error::DecryptError));
            }
            for at in 0..record.len() {
                for bit in 0..8 {
                    let mut changed = record;
                    changed[at] ^= 1 << bit;
                    assert_eq!(keys(algorithm, 3).open(&changed, &mut out), Err(Error::DecryptError), "{at}");
                    let opened = keys(algorithm, 3).open_in_place(&mut changed);
                    assert_eq!(opened, Err(Error::DecryptError), "{at}");
                }
            }
            for len in 0..record.len() {
                let cut = keys(algorithm, 3).open(&record[..len], &mut out);
                assert_eq!(cut, Err(Error::DecryptError), "{len}");
                assert_eq!(
                    keys(algorithm, 3).open_in_place(&mut { record }[..len]),
                    Err(Error::DecryptError)
                );
            }
        }
    }

    #[test]
    fn padding_is_no_content_and_content_has_a_limit() {
        // As `seal` would if it padded: the kind is within the bytes, and what it adds is the padding.
        let padded = |data: &[u8]| {
            let mut record = vec![0; data.len() + OVERHEAD];
            let mut sealing = keys(&AES_128_GCM, 0);
            let behind = data.len() + 1 + TAG;
            let [high, low] = (behind as u16).to_be_bytes();
            let header = [23, 3, 3, high, low];
            let nonce = sealing.nonce().unwrap();
            let (head, rest) = record.split_at_mut(HEADER);
            head.copy_from_slice(&header);
            let (sealed, end) = rest.split_at_mut(data.len());
            sealing.key.seal_out_of_place_scatter(nonce, Aad::from(header), data, sealed, &[0], end).unwrap();
            let mut out = vec![0; room(record.len())];
            let length = length(&record);
            (length, keys(&AES_128_GCM, 0).open(&record, &mut out))
        };
        let data = |len| Ok(Opened { content: ContentType::ApplicationData, len });
        assert_eq!(padded(&[5, 23, 0, 0, 0]).1, data(1));
        assert_eq!(padded(&[23]).1, data(0));
        let none = Err(PeerMisbehaved::IllegalTlsInnerPlaintext.into());
        assert_eq!(padded(&[]).1, none);
        assert_eq!(padded(&[0; 200]).1, none);
        let of = |len: usize| [vec![9; len], vec![23]].concat();
        assert_eq!(padded(&of(FRAGMENT - 1)).1, data(FRAGMENT - 1));
        // With it, all of what is inside is longer than it may be.
        assert_eq!(padded(&of(FRAGMENT)).1, Err(Error::PeerSentOversizedRecord));
        assert_eq!(padded(&[of(9), vec![0; FRAGMENT]].concat()).1, Err(Error::PeerSentOversizedRecord));
        assert_eq!(padded(&[of(9), vec![0; FRAGMENT - 10]].concat()).1, data(9));
        assert_eq!(padded(&[of(9), vec![0; FRAGMENT + 300]].concat()).0, Err(Error::PeerSentOversizedRecord));
    }

    #[test]
    fn headers_that_may_come_are_known_by_their_first_bytes() {
        let not_now = |got_type| {
            Err(Error::InappropriateMessage { expect_types: vec![ContentType::ApplicationData], got_type })
        };
        for (bytes, wanted) in [
            (&[][..], Ok(None)),
            (&[23, 3, 3, 0], Ok(None)),
            (&[23, 3, 3, 0, 17], Ok(Some(22))),
            (&[23, 3, 1, 0x41, 0, 9, 9], Ok(Some(HEADER + LONGEST))),
            (&[23, 3, 3, 0x41, 1], Err(Error::PeerSentOversizedRecord)),
            (&[23, 3, 3, 0, 16], Err(Error::DecryptError)),
            (&[23, 2, 0, 0, 17], Err(InvalidMessage::UnknownProtocolVersion.into())),
            (&[22, 3, 3, 0, 17], not_now(ContentType::Handshake)),
            (&[21, 3, 3, 0, 2], not_now(ContentType::Alert)),
            (&[20, 3, 3, 0, 1], not_now(ContentType::ChangeCipherSpec)),
            (b"GET / HTTP", not_now(ContentType::Unknown(b'G'))),
        ] {
            assert_eq!(length(bytes), wanted, "{bytes:?}");
        }
    }

    #[test]
    fn a_number_of_a_record_is_used_once() {
        let mut last = keys(&AES_128_GCM, u64::MAX);
        assert_eq!(last.seal(ContentType::Alert, &[1, 0], &mut [0; 64]), Err(Error::EncryptError));
        assert_eq!(last.open(&[0; 64], &mut [0; 64]), Err(Error::EncryptError));
    }

    #[test]
    fn without_room_nothing_is_sealed_and_no_number_used_up() {
        let mut sealing = keys(&AES_128_GCM, 0);
        for len in 0..OVERHEAD + 4 {
            assert!(sealing.seal(ContentType::ApplicationData, &[1; 4], &mut vec![0; len]).is_err(), "{len}");
        }
        let mut much = vec![0; FRAGMENT + 100];
        assert!(sealing.seal(ContentType::ApplicationData, &[1; FRAGMENT + 1], &mut much).is_err());
        assert_eq!(sealing.used, 0);
    }
}
