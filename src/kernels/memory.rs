//! Large memory for weights and caches: anonymous maps, in huge pages where the system gives them.
//!
//! A matrix of some megabytes read front to back on every token costs a page-table walk every 4 kB;
//! with pages of 2 MB it costs hardly any.

use std::ops::Deref;
use std::sync::Arc;

use memmap2::MmapMut;

/// What a region's start is a multiple of.
const ALIGNMENT: usize = 64;
/// The least that is asked of the system at a time.
const CHUNK: usize = 1 << 25;

/// A map that is written only through the one who made it, before it is shared.
#[derive(Debug)]
pub(super) struct Chunk {
    map: MmapMut,
}

/// Memory asked of the system.
///
/// # Panics
/// When there is none: as with every other allocation, nothing can go on then.
pub(super) fn map(bytes: usize) -> MmapMut {
    let map = MmapMut::map_anon(bytes.max(1)).unwrap_or_else(|error| {
        panic!("the system gives no {bytes} bytes of memory: {error}");
    });
    #[cfg(target_os = "linux")]
    {
        // Only advice: without it everything works, with smaller pages.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    map
}

/// Gives out regions of memory that is asked of the system in large chunks.
#[derive(Debug, Default)]
pub struct Pages {
    chunk: Option<Arc<Chunk>>,
    used: usize,
    reserve: usize,
}

impl Pages {
    /// Will ask for `bytes` at the first use, so that all of it is one piece.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { reserve: bytes, ..Self::default() }
    }

    /// A region of `len` bytes that `write` has filled. It starts as zeros.
    pub(super) fn fill(&mut self, len: usize, write: impl FnOnce(&mut [u8])) -> Region {
        let start = self.used.next_multiple_of(ALIGNMENT);
        let (chunk, start) = match &self.chunk {
            Some(chunk) if start + len <= chunk.map.len() => (Arc::clone(chunk), start),
            _ => {
                let chunk = Arc::new(Chunk { map: map(len.max(self.reserve).max(CHUNK)) });
                self.reserve = 0;
                (Arc::clone(self.chunk.insert(chunk)), 0)
            }
        };
        self.used = start + len;
        let at = chunk.map.as_ptr().wrapping_add(start).cast_mut();
        // SAFETY: the bytes lie within the map, which is writable, and no region has been given out over
        // them: `used` only grows while a chunk is current, and `self` is borrowed for the whole call.
        write(unsafe { std::slice::from_raw_parts_mut(at, len) });
        Region { chunk, start, len }
    }
}

/// Read-only bytes, aligned to 64.
#[derive(Debug, Clone)]
pub(super) struct Region {
    chunk: Arc<Chunk>,
    start: usize,
    len: usize,
}

impl Region {
    pub(super) fn owner(&self) -> &Arc<Chunk> {
        &self.chunk
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: within the map, which lives as long as `chunk`; nobody writes these bytes any more.
        unsafe { std::slice::from_raw_parts(self.chunk.map.as_ptr().add(self.start), self.len) }
    }
}

/// The first `len` items, made if they are not there yet.
pub(super) fn at_least<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}
