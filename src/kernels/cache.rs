//! The memory of the paged key-value cache: pages of 16 positions of all layers, in half precision.
//!
//! Which page belongs to whom is not decided here. Keys are kept transposed, so that a vector holds one
//! element of 16 positions and a score needs no sum across lanes.

use memmap2::MmapMut;

use super::attend::PAGE;
use super::memory;
use super::simd::LANES;

/// The shape of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Blocks of the model.
    pub layers: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
}

impl CacheShape {
    pub(super) fn padded(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Numbers of one head of one layer in a page: keys (head_dim, 16), then values (16, padded head_dim).
    fn head_len(self) -> usize {
        PAGE * (self.head_dim + self.padded())
    }

    /// Numbers of a page.
    pub(super) fn page_len(self) -> usize {
        self.layers * self.kv_heads * self.head_len()
    }

    /// Bytes of a page of 16 positions.
    pub fn page_bytes(self) -> usize {
        self.page_len() * size_of::<u16>()
    }

    /// From a page's start to the keys of a head, and from there to its values.
    pub(super) fn places(self, layer: usize, head: usize) -> (usize, usize) {
        ((layer * self.kv_heads + head) * self.head_len(), PAGE * self.head_dim)
    }
}

/// Keys and values.
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    pages: usize,
    map: MmapMut,
}

impl KvCache {
    /// Positions of a page.
    pub const PAGE: usize = PAGE;

    /// A cache of `pages` pages. The system gives the memory when it is first written.
    pub fn new(shape: CacheShape, pages: usize) -> Self {
        Self { shape, pages, map: memory::map(shape.page_bytes() * pages) }
    }

    /// Its shape.
    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Copies all of a page.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn copy_page(&mut self, from: u32, to: u32) {
        let bytes = self.shape.page_bytes();
        self.map.copy_within(from as usize * bytes..(from as usize + 1) * bytes, to as usize * bytes);
    }

    /// All numbers, for kernels that read them.
    pub(super) fn as_ptr(&self) -> *const u16 {
        self.map.as_ptr().cast()
    }

    /// All numbers, for kernels that write them.
    pub(super) fn as_mut_ptr(&mut self) -> *mut u16 {
        self.map.as_mut_ptr().cast()
    }
}
