//! Frames as they lie on the volume: compressed, sealed under the fleet's key, checksummed, each bound to its place in its file.

use std::io::{self, Read, Write};
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{self, HKDF_SHA256, KeyType, Salt};

/// Octets of the key file, at least: it is made of randomness, and 32 of them are 256 bits.
pub(super) const KEY_BYTES_MIN: usize = 32;
/// Octets of the key file, at most.
const KEY_BYTES_MAX: u64 = 4096;
/// Octets of one frame before compression, at most. A part is at most as large as a message of the stream.
pub(super) const FRAME_BYTES_MAX: usize = 40 << 20;
/// Octets of one frame on disk: zstd adds little to what does not shrink.
const STORED_BYTES_MAX: usize = FRAME_BYTES_MAX + (1 << 20);
/// Fast: a base of 100,000 tenants is some 200 MiB before.
const COMPRESSION_LEVEL: i32 = 1;
const NONCE_BYTES: usize = 12;
const VERSION: u16 = 1;
const SEALED: u16 = 1;
/// Magic, version, flags, id, key check, checksum.
pub(super) const HEADER_BYTES: usize = 8 + 2 + 2 + 16 + 16 + 4;

/// The key that frames are sealed with.
pub(super) struct Key {
    key: RandomizedNonceKey,
    /// Tells keys apart without telling anything of them.
    check: [u8; 16],
}

struct Octets(usize);

impl KeyType for Octets {
    fn len(&self) -> usize {
        self.0
    }
}

fn derive<const N: usize>(secret: &hkdf::Prk, label: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    let info = [label];
    secret.expand(&info, Octets(N)).and_then(|okm| okm.fill(&mut out)).expect("a few octets can always be derived");
    out
}

impl Key {
    pub(super) const fn check(&self) -> [u8; 16] {
        self.check
    }

    /// Reads the key file. `Err`: why not, for people; never its content.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let mut secret = vec![];
        let file = std::fs::File::open(path).map_err(|error| format!("the snapshot key {}: {error}", path.display()))?;
        file.take(KEY_BYTES_MAX).read_to_end(&mut secret).map_err(|error| format!("the snapshot key {}: {error}", path.display()))?;
        if secret.len() < KEY_BYTES_MIN {
            return Err(format!("the snapshot key {} has {} octets, at least {KEY_BYTES_MIN} are needed", path.display(), secret.len()));
        }
        let secret = Salt::new(HKDF_SHA256, b"sekimori last good configuration").extract(&secret);
        let key = RandomizedNonceKey::new(&AES_256_GCM, &derive::<32>(&secret, b"seal")).map_err(|_| "the snapshot key cannot be used".to_owned())?;
        Ok(Self { key, check: derive(&secret, b"check") })
    }
}

/// What stands at the beginning of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Base or journal.
    pub magic: [u8; 8],
    /// A base's own; a journal has its base's.
    pub id: [u8; 16],
    /// Of the key that it is sealed with; `None`: it is in clear.
    pub key_check: Option<[u8; 16]>,
}

impl Header {
    pub(super) fn new(magic: [u8; 8], id: [u8; 16], key: Option<&Key>) -> Self {
        Self { magic, id, key_check: key.map(|key| key.check) }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&self.magic);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&if self.key_check.is_some() { SEALED } else { 0 }.to_le_bytes());
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.key_check.unwrap_or_default());
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out
    }

    pub(super) fn read(reader: &mut impl Read, magic: [u8; 8]) -> Result<Self, String> {
        let mut bytes = [0; HEADER_BYTES];
        reader.read_exact(&mut bytes).map_err(|error| format!("its header: {error}"))?;
        let (head, sum) = bytes.split_at(HEADER_BYTES - 4);
        let field = |from: usize, to: usize| head.get(from..to).unwrap_or_default();
        if field(0, 8) != magic || sum != crc32c::crc32c(head).to_le_bytes() {
            return Err("its header is damaged".into());
        }
        if field(8, 10) != VERSION.to_le_bytes() {
            return Err("another version of the gateway wrote it".into());
        }
        let sixteen = |from: usize| <[u8; 16]>::try_from(field(from, from + 16)).unwrap_or_default();
        let sealed = field(10, 12) == SEALED.to_le_bytes();
        Ok(Self { magic, id: sixteen(12), key_check: sealed.then(|| sixteen(28)) })
    }

    /// Whether frames under this header can be read with what there is.
    pub(super) fn opens_with(&self, key: Option<&Key>) -> Result<(), String> {
        match (self.key_check, key) {
            (None, _) => Ok(()),
            (Some(_), None) => Err("it is sealed, and there is no key".into()),
            (Some(check), Some(key)) if check == key.check => Ok(()),
            (Some(_), Some(_)) => Err("it was sealed with another key than the one that is there now".into()),
        }
    }

    /// What binds a frame to its file and place.
    fn context(&self, index: u64) -> Vec<u8> {
        [&self.magic[..], &self.id, &index.to_le_bytes()].concat()
    }

    /// Writes a frame; its octets.
    pub(super) fn write(&self, writer: &mut impl Write, index: u64, content: &[u8], key: Option<&Key>) -> io::Result<u64> {
        if content.len() > FRAME_BYTES_MAX {
            return Err(io::Error::other(format!("a frame of {} octets, at most {FRAME_BYTES_MAX}", content.len())));
        }
        let mut stored = (content.len() as u32).to_le_bytes().to_vec();
        stored.extend(zstd::bulk::compress(content, COMPRESSION_LEVEL)?);
        let context = self.context(index);
        if self.key_check.is_some() {
            let key = key.ok_or_else(|| io::Error::other("there is no key to seal with"))?;
            let nonce = key.key.seal_in_place_append_tag(Aad::from(&context), &mut stored).map_err(|_| io::Error::other("sealing failed"))?;
            stored.extend_from_slice(nonce.as_ref());
        }
        let sum = crc32c::crc32c_append(crc32c::crc32c(&context), &stored);
        let mut head = (stored.len() as u32).to_le_bytes().to_vec();
        head.extend_from_slice(&sum.to_le_bytes());
        head.extend_from_slice(&stored);
        writer.write_all(&head)?;
        Ok(head.len() as u64)
    }

    /// Reads the next frame and how many octets it takes. `None`: nothing follows that is whole.
    pub(super) fn next(&self, reader: &mut impl Read, index: u64, key: Option<&Key>) -> Option<(Vec<u8>, u64)> {
        let mut head = [0; 8];
        reader.read_exact(&mut head).ok()?;
        let (length, sum) = head.split_at(4);
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        if length > STORED_BYTES_MAX {
            return None;
        }
        let mut stored = vec![];
        reader.take(length as u64).read_to_end(&mut stored).ok()?;
        let context = self.context(index);
        if stored.len() < length || sum != crc32c::crc32c_append(crc32c::crc32c(&context), &stored).to_le_bytes() {
            return None;
        }
        if self.key_check.is_some() {
            let nonce = stored.split_off(stored.len().checked_sub(NONCE_BYTES)?);
            let nonce = Nonce::assume_unique_for_key(nonce.try_into().ok()?);
            let opened = key?.key.open_in_place(nonce, Aad::from(&context), &mut stored).ok()?.len();
            stored.truncate(opened);
        }
        let (raw, compressed) = stored.split_at_checked(4)?;
        let raw = u32::from_le_bytes(raw.try_into().ok()?) as usize;
        if raw > FRAME_BYTES_MAX {
            return None;
        }
        let content = zstd::bulk::decompress(compressed, raw).ok()?;
        Some((content, 8 + length as u64))
    }
}
