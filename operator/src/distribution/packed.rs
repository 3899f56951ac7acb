//! Parts in memory, packed: 100,000 tenants are some 130 MB of JSON, nearly all of it the same defaults. One tenant's part is the dictionary of the
//! others, which leaves about a tenth. What does not become smaller stays plain.

use std::sync::Arc;

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};

/// zstd's level: the fastest; the dictionary does the work.
const LEVEL: i32 = 1;
/// A dictionary has at least so many bytes, or it is not worth one.
const DICTIONARY_BYTES_MIN: usize = 256;
/// A part with more bytes is no dictionary: it is not like the others.
const DICTIONARY_BYTES_MAX: usize = 16 << 10;

/// One part.
#[derive(Clone, Debug)]
pub(super) struct Packed {
    bytes: Arc<[u8]>,
    /// Bytes of the JSON. 0: `bytes` are the JSON.
    length: u32,
}

/// Packs the parts of one fleet. It has one dictionary for ever: the first part that is fit to be one.
#[derive(Default)]
pub(super) struct Packer {
    dictionary: Option<Arc<[u8]>>,
    compressor: Option<Compressor<'static>>,
}

/// Unpacks what the [`Packer`] with the same dictionary packed.
#[derive(Clone, Debug, Default)]
pub(super) struct Unpacker {
    dictionary: Option<Arc<[u8]>>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("dictionary_bytes", &self.dictionary.as_ref().map(|bytes| bytes.len())).finish_non_exhaustive()
    }
}

impl Packer {
    /// Packs a part. `typical`: the others are like it, so it may be the dictionary.
    pub(super) fn pack(&mut self, json: &[u8], typical: bool) -> Packed {
        if typical && self.dictionary.is_none() && (DICTIONARY_BYTES_MIN..=DICTIONARY_BYTES_MAX).contains(&json.len()) {
            self.compressor = Compressor::with_dictionary(LEVEL, json).ok();
            self.dictionary = Some(json.into());
        }
        let small = self.compressor.as_mut().and_then(|compressor| compressor.compress(json).ok()).filter(|small| small.len() < json.len());
        match (small, u32::try_from(json.len())) {
            (Some(small), Ok(length)) => Packed { bytes: small.into(), length },
            _ => Packed { bytes: json.into(), length: 0 },
        }
    }

    /// What unpacks it.
    pub(super) fn unpacker(&self) -> Unpacker {
        Unpacker { dictionary: self.dictionary.clone() }
    }
}

impl Unpacker {
    /// Ready to unpack several.
    pub(super) fn open(&self) -> Opened {
        Opened(
            Decompressor::with_dictionary(self.dictionary.as_deref().unwrap_or_default()).expect("memory for a decompressor, as for everything else"),
        )
    }
}

/// See [`Unpacker::open`].
pub(super) struct Opened(Decompressor<'static>);

impl Opened {
    /// The JSON.
    pub(super) fn json(&mut self, packed: &Packed) -> Bytes {
        if packed.length == 0 {
            return Bytes::copy_from_slice(&packed.bytes);
        }
        self.0.decompress(&packed.bytes, packed.length as usize).expect("it was packed in this process with this dictionary").into()
    }
}

impl Packed {
    /// Bytes of the JSON.
    pub(super) fn json_bytes(&self) -> usize {
        if self.length == 0 { self.bytes.len() } else { self.length as usize }
    }

    /// Bytes in memory.
    pub(super) fn packed_bytes(&self) -> usize {
        self.bytes.len()
    }
}
