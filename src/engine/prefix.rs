//! Which blocks hold which tokens: a trie whose nodes are blocks, for [`KvLedger`](super::blocks::KvLedger).
//!
//! Every identity has a root of its own, and a step down compares the tokens themselves, so neither another
//! identity's keys and values nor those of another prefix can be found, whatever collides. A node holds one
//! block and a block at most one node, so a node goes by its block's id and the arena needs no free list
//! but the ledger's.

use std::collections::{BTreeSet, HashMap};

/// Positions in a block, for all layers.
pub const BLOCK_TOKENS: usize = 16;

/// A block, from 0 to the capacity.
pub type BlockId = u32;

/// Whose keys and values: a digest of all that they depend on besides the tokens (base, adapter), and of
/// whatever else must keep two callers apart. Never a name: the same name can come to mean other weights.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity(pub [u8; 32]);

/// Where a node hangs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// At the beginning of this identity's text.
    Root(Identity),
    /// After the tokens of this block.
    After(BlockId),
}

/// The longest cached prefix of some tokens.
#[derive(Debug)]
pub(super) struct Found {
    /// The whole blocks of it, from the beginning on.
    pub(super) path: Vec<BlockId>,
    /// A block that goes on with the next tokens, and for how many.
    pub(super) partial: Option<(BlockId, usize)>,
}

#[derive(Debug, Clone)]
struct Node {
    place: Place,
    /// [`BLOCK_TOKENS`] of them, or fewer in a leaf that is only copied from. Empty: not in the trie.
    tokens: Box<[u32]>,
    /// In the order of their tokens, so that the best match stands beside the place of a search.
    children: Vec<BlockId>,
    /// Pins of this node or of nodes after it.
    pins: usize,
    /// When the last pin went.
    last_use: u64,
}

#[derive(Debug)]
pub(super) struct Trie {
    /// By block id.
    nodes: Vec<Node>,
    roots: HashMap<Identity, Vec<BlockId>>,
    /// Leaves without a pin, the least recently used first.
    evictable: BTreeSet<(u64, BlockId)>,
    /// Grows with each unpinning; ages are compared, not measured.
    clock: u64,
    size: usize,
    pinned: usize,
}

impl Trie {
    pub(super) fn new(capacity: usize) -> Self {
        let vacant = Node {
            place: Place::Root(Identity([0; 32])),
            tokens: Box::default(),
            children: Vec::new(),
            pins: 0,
            last_use: 0,
        };
        Self {
            nodes: vec![vacant; capacity],
            roots: HashMap::new(),
            evictable: BTreeSet::new(),
            clock: 0,
            size: 0,
            pinned: 0,
        }
    }

    /// Nodes without a pin. All of them can be evicted, one after the other, because what comes after a
    /// node without a pin has none either.
    pub(super) fn idle(&self) -> usize {
        self.size - self.pinned
    }

    pub(super) fn is_idle(&self, block: BlockId) -> bool {
        self.node(block).pins == 0
    }

    /// Changes nothing: whether the find counts as a use, the caller says by pinning it.
    pub(super) fn find(&self, identity: Identity, tokens: &[u32]) -> Found {
        let mut place = Place::Root(identity);
        let mut path = Vec::new();
        for wanted in tokens.chunks(BLOCK_TOKENS) {
            let children = self.children(place);
            let at = self.position(children, wanted);
            match children.get(at) {
                Some(&child) if wanted.len() == BLOCK_TOKENS && *self.node(child).tokens == *wanted => {
                    path.push(child);
                    place = Place::After(child);
                }
                next => {
                    // In a sorted list the longest common beginning is that of a neighbour.
                    let before = at.checked_sub(1).and_then(|before| children.get(before));
                    let neighbours = before.into_iter().chain(next);
                    let partial = neighbours
                        .map(|&block| (block, common(&self.node(block).tokens, wanted)))
                        .max_by_key(|(_, length)| *length)
                        .filter(|(_, length)| *length > 0);
                    return Found { path, partial };
                }
            }
        }
        Found { path, partial: None }
    }

    /// Hangs `block` at `place`, which must be a root or pinned, and returns it; or returns the block that
    /// is there already and begins with these tokens, and then `block` stays the caller's.
    pub(super) fn insert(&mut self, place: Place, tokens: &[u32], block: BlockId) -> BlockId {
        let children = self.children(place);
        let at = self.position(children, tokens);
        if let Some(&there) = children.get(at)
            && self.node(there).tokens.starts_with(tokens)
        {
            return there;
        }
        let before = at.checked_sub(1).and_then(|before| children.get(before)).copied();
        if let Some(before) = before.filter(|&before| tokens.starts_with(&self.node(before).tokens)) {
            self.supersede(before);
        }
        let last_use = self.clock;
        *self.node_mut(block) =
            Node { place, tokens: tokens.into(), children: Vec::new(), pins: 0, last_use };
        self.evictable.insert((last_use, block));
        self.size += 1;
        match place {
            Place::Root(identity) => self.roots.entry(identity).or_default().insert(at, block),
            Place::After(parent) => self.node_mut(parent).children.insert(at, block),
        }
        block
    }

    /// Lets a leaf that another block now continues be the next to go. A conversation leaves one behind
    /// with every turn.
    fn supersede(&mut self, leaf: BlockId) {
        let last_use = self.node(leaf).last_use;
        if self.evictable.remove(&(last_use, leaf)) {
            self.node_mut(leaf).last_use = 0;
            self.evictable.insert((0, leaf));
        }
    }

    /// Keeps a node whose predecessors are pinned already.
    pub(super) fn pin_one(&mut self, block: BlockId) {
        let node = &mut self.nodes[block as usize];
        if node.pins == 0 {
            self.pinned += 1;
            self.evictable.remove(&(node.last_use, block));
        }
        node.pins += 1;
    }

    /// Keeps all nodes from the beginning to `place`.
    pub(super) fn pin(&mut self, mut place: Place) {
        while let Place::After(block) = place {
            self.pin_one(block);
            place = self.node(block).place;
        }
    }

    /// Takes a pin back from all nodes from the beginning to `place`. Those without another are as recently
    /// used as can be.
    pub(super) fn unpin(&mut self, mut place: Place) {
        self.clock += 1;
        while let Place::After(block) = place {
            let node = &mut self.nodes[block as usize];
            node.pins -= 1;
            if node.pins == 0 {
                self.pinned -= 1;
                node.last_use = self.clock;
                if node.children.is_empty() {
                    self.evictable.insert((node.last_use, block));
                }
            }
            place = node.place;
        }
    }

    /// Forgets the least recently used leaf without a pin and returns its block. What came before it may
    /// be a leaf then, and keeps its age.
    pub(super) fn evict(&mut self) -> Option<BlockId> {
        let (_, block) = self.evictable.pop_first()?;
        let Node { place, tokens, .. } = self.node(block);
        let (place, at) = (*place, self.position(self.children(*place), tokens));
        self.node_mut(block).tokens = Box::default();
        self.size -= 1;
        match place {
            Place::Root(identity) => {
                if let Some(children) = self.roots.get_mut(&identity) {
                    children.remove(at);
                    if children.is_empty() {
                        self.roots.remove(&identity);
                    }
                }
            }
            Place::After(parent) => {
                let node = &mut self.nodes[parent as usize];
                node.children.remove(at);
                if node.children.is_empty() && node.pins == 0 {
                    self.evictable.insert((node.last_use, parent));
                }
            }
        }
        Some(block)
    }

    fn children(&self, place: Place) -> &[BlockId] {
        match place {
            Place::Root(identity) => self.roots.get(&identity).map_or(&[], Vec::as_slice),
            Place::After(block) => &self.node(block).children,
        }
    }

    /// Where `tokens` stand, or would stand, among `children`.
    fn position(&self, children: &[BlockId], tokens: &[u32]) -> usize {
        children.partition_point(|&child| *self.node(child).tokens < *tokens)
    }

    fn node(&self, block: BlockId) -> &Node {
        &self.nodes[block as usize]
    }

    fn node_mut(&mut self, block: BlockId) -> &mut Node {
        &mut self.nodes[block as usize]
    }

    /// The blocks from `place` back to the beginning.
    #[cfg(test)]
    pub(super) fn path(&self, mut place: Place) -> Vec<BlockId> {
        let mut path = Vec::new();
        while let Place::After(block) = place {
            path.push(block);
            place = self.node(block).place;
        }
        path
    }

    /// That no identity is left without blocks, whose name would stay for ever.
    #[cfg(test)]
    pub(super) fn has_empty_roots(&self) -> bool {
        self.roots.values().any(Vec::is_empty)
    }
}

/// For how many tokens two texts begin alike.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_neighbours_of_a_search_hold_the_longest_match(
            texts in vec(vec(0u32..3, 1..6), 0..20), wanted in vec(0u32..3, 1..6)
        ) {
            let root = Identity([7; 32]);
            let mut trie = Trie::new(texts.len());
            for (block, text) in (0..).zip(&texts) {
                trie.insert(Place::Root(root), text, block);
            }
            let longest = texts.iter().map(|text| common(text, &wanted)).max().unwrap_or(0);
            let found = trie.find(root, &wanted);
            prop_assert_eq!(found.partial.map_or(0, |(_, length)| length), longest);
            prop_assert!(found.path.is_empty());
        }
    }
}
