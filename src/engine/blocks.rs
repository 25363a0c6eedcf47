//! Who holds which block of the key-value cache: leases of running requests, and the prefix cache.
//!
//! No keys or values live here, only block ids; whoever owns the memory writes it as a [`Lease`] says. A
//! request leases all its blocks before its first step, so that it never runs out halfway. Blocks whose
//! tokens are known are published into a trie, from which later requests (also while this one runs) share
//! them whole or copy the beginning of one; what no lease uses is evicted when blocks are needed, the least
//! recently used first. The engine's thread owns the ledger, so nothing here locks or waits.

pub use super::prefix::{BLOCK_TOKENS, BlockId, Identity};
use super::prefix::{Found, Place, Trie};

/// The books: each block is free, leased, cached, or both leased and in the prefix cache.
#[derive(Debug)]
pub struct KvLedger {
    capacity: usize,
    free: Vec<BlockId>,
    trie: Trie,
}

/// The blocks of one request. It must go back by [`KvLedger::release`] or [`KvLedger::discard`]: dropped, its
/// blocks are lost until the ledger is made anew.
#[derive(Debug)]
#[must_use = "a dropped lease takes its blocks along"]
pub struct Lease {
    blocks: Vec<BlockId>,
    shared: usize,
    cached: usize,
    copy: Option<(BlockId, BlockId)>,
    /// The pinned end of the trie's path along this lease's tokens, `shared` blocks long.
    place: Place,
    /// Own blocks among the first `shared`, where another lease published the same tokens first.
    duplicates: Vec<BlockId>,
}

impl KvLedger {
    /// Books for the blocks `0..capacity`, all free.
    pub fn new(capacity: usize) -> Self {
        let ids = BlockId::try_from(capacity).unwrap_or(BlockId::MAX);
        // The last one is handed out first.
        Self { capacity: ids as usize, free: (0..ids).rev().collect(), trie: Trie::new(ids as usize) }
    }

    /// Blocks in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Blocks neither leased nor cached.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that only the prefix cache holds. They make way when a lease needs them.
    pub fn cached(&self) -> usize {
        self.trie.idle()
    }

    /// Reserves blocks for `positions` positions, prompt and answer together (never fewer than the prompt
    /// has), and reuses the longest cached beginning of `prompt`. The prompt's last token is always left to
    /// run, because its logits choose the first token of the answer. `None`: there are not enough blocks
    /// even if all that can be evicted were; then nothing has changed.
    pub fn lease(&mut self, identity: Identity, prompt: &[u32], positions: usize) -> Option<Lease> {
        let reusable = &prompt[..prompt.len().saturating_sub(1)];
        let Found { path, partial } = self.trie.find(identity, reusable);
        let needed = positions.max(prompt.len()).div_ceil(BLOCK_TOKENS) - path.len();
        let pinned_now = path.iter().filter(|&&block| self.trie.is_idle(block)).count();
        let available = self.free.len() + self.trie.idle() - pinned_now;
        if available < needed {
            return None;
        }
        // Keeping the block to copy from must not cost a request its place, or one that needs every block
        // would wait for ever: better to compute a few positions again.
        let partial =
            partial.filter(|&(source, _)| available - usize::from(self.trie.is_idle(source)) >= needed);

        let place = path.last().map_or(Place::Root(identity), |&block| Place::After(block));
        self.trie.pin(place);
        if let Some((source, _)) = partial {
            self.trie.pin(Place::After(source));
        }
        while self.free.len() < needed
            && let Some(block) = self.trie.evict()
        {
            self.free.push(block);
        }
        let shared = path.len();
        let mut blocks = path;
        blocks.extend(self.free.drain(self.free.len() - needed..).rev());
        Some(Lease {
            shared,
            cached: shared * BLOCK_TOKENS + partial.map_or(0, |(_, length)| length),
            copy: partial.map(|(source, _)| (source, blocks[shared])),
            blocks,
            place,
            duplicates: Vec::new(),
        })
    }

    /// Says that [`Lease::copy`] has been carried out, so that its source may be evicted.
    pub fn copied(&mut self, lease: &mut Lease) {
        if let Some((source, _)) = lease.copy.take() {
            self.trie.unpin(Place::After(source));
        }
    }

    /// Lets others share the whole blocks of `tokens[..written]`, whose keys and values have been computed.
    /// `tokens` are the prompt that the lease was taken for and what was generated since. Where another
    /// lease was first with the same block, this one goes on with its own. Nothing is published before
    /// [`copied`](Self::copied): the block that the copy fills would have a gap.
    pub fn publish(&mut self, lease: &mut Lease, tokens: &[u32], written: usize) {
        for tokens in lease.unpublished(tokens, written).chunks_exact(BLOCK_TOKENS) {
            let own = lease.blocks[lease.shared];
            let there = self.trie.insert(lease.place, tokens, own);
            self.trie.pin_one(there);
            if there != own {
                lease.duplicates.push(own);
            }
            lease.place = Place::After(there);
            lease.shared += 1;
        }
    }

    /// Gives a lease back and publishes what it computed, as [`publish`](Self::publish) does, and the last
    /// block also where it is not whole: the next turn of a conversation begins within it.
    pub fn release(&mut self, mut lease: Lease, tokens: &[u32], written: usize) {
        self.publish(&mut lease, tokens, written);
        let rest = lease.unpublished(tokens, written);
        if !rest.is_empty() {
            let own = lease.blocks[lease.shared];
            if self.trie.insert(lease.place, rest, own) == own {
                lease.blocks.remove(lease.shared);
            }
        }
        self.discard(lease);
    }

    /// Gives a lease back without publishing anything more, because its last keys and values may be
    /// incomplete. What it published while it ran stays cached.
    pub fn discard(&mut self, mut lease: Lease) {
        self.copied(&mut lease);
        self.trie.unpin(lease.place);
        self.free.extend(lease.duplicates);
        self.free.extend(lease.blocks.drain(lease.shared..));
    }

    /// Forgets all that is cached and not leased.
    pub fn clear(&mut self) {
        while let Some(block) = self.trie.evict() {
            self.free.push(block);
        }
    }
}

impl Lease {
    /// The block table: one block for every [`BLOCK_TOKENS`] positions, answer included.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Leading positions of the prompt that need no computing, once [`copy`](Self::copy) is carried out.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// What to copy, whole and before the first step: from the first block into the second. The first is
    /// kept until [`KvLedger::copied`], after which this is `None`.
    pub fn copy(&self) -> Option<(BlockId, BlockId)> {
        self.copy
    }

    /// Leading blocks that this lease must not write: others read them, or may at any time. Grows with
    /// [`KvLedger::publish`].
    pub fn shared(&self) -> usize {
        self.shared
    }

    /// The computed tokens after the shared blocks, as far as they may be published.
    fn unpublished<'t>(&self, tokens: &'t [u32], written: usize) -> &'t [u32] {
        if self.copy.is_some() {
            return &[];
        }
        let end = written.min(tokens.len()).min(self.blocks.len() * BLOCK_TOKENS);
        tokens.get(self.shared * BLOCK_TOKENS..end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const A: Identity = Identity([1; 32]);
    const B: Identity = Identity([2; 32]);

    fn text(length: u32) -> Vec<u32> {
        (0..length).collect()
    }

    /// Computes all of `tokens` and gives the blocks back.
    fn remember(ledger: &mut KvLedger, identity: Identity, tokens: &[u32]) -> Vec<BlockId> {
        let mut lease = ledger.lease(identity, tokens, tokens.len()).unwrap();
        ledger.copied(&mut lease);
        let blocks = lease.blocks().to_vec();
        ledger.release(lease, tokens, tokens.len());
        blocks
    }

    /// How many positions of `tokens` a lease would find.
    fn hit(ledger: &mut KvLedger, identity: Identity, tokens: &[u32]) -> usize {
        let lease = ledger.lease(identity, tokens, tokens.len()).unwrap();
        let cached = lease.cached();
        ledger.discard(lease);
        cached
    }

    fn counts(ledger: &KvLedger) -> (usize, usize) {
        (ledger.free(), ledger.cached())
    }

    #[test]
    fn a_second_request_shares_whole_blocks() {
        let mut ledger = KvLedger::new(8);
        let first = remember(&mut ledger, A, &text(40));
        assert_eq!(counts(&ledger), (5, 3));
        let prompt = [text(32), vec![99; 10]].concat();
        let lease = ledger.lease(A, &prompt, 60).unwrap();
        assert_eq!((lease.cached(), lease.shared(), lease.copy()), (32, 2, None));
        assert_eq!((&lease.blocks()[..2], lease.blocks().len()), (&first[..2], 4));
        assert_eq!(counts(&ledger), (3, 1));
        ledger.discard(lease);
        assert_eq!(counts(&ledger), (5, 3));
    }

    #[test]
    fn a_block_that_agrees_in_part_is_copied() {
        let mut ledger = KvLedger::new(8);
        let first = remember(&mut ledger, A, &text(40));
        // The token that differs sorts after or before the cached one.
        for (agreeing, other, source) in
            [(20, 99, first[1]), (31, 99, first[1]), (31, 0, first[1]), (36, 0, first[2])]
        {
            let prompt = [text(agreeing), vec![other; 10]].concat();
            let lease = ledger.lease(A, &prompt, prompt.len()).unwrap();
            let shared = agreeing as usize / BLOCK_TOKENS;
            assert_eq!((lease.cached(), lease.shared()), (agreeing as usize, shared));
            assert_eq!(lease.copy(), Some((source, lease.blocks()[shared])));
            ledger.discard(lease);
        }
    }

    #[test]
    fn the_last_token_of_a_prompt_is_always_run() {
        let mut ledger = KvLedger::new(8);
        remember(&mut ledger, A, &text(32));
        assert_eq!(hit(&mut ledger, A, &text(32)), 31);
        assert_eq!(hit(&mut ledger, A, &text(33)), 32);
        assert_eq!(hit(&mut ledger, A, &text(17)), 16);
        assert_eq!(hit(&mut ledger, A, &text(16)), 15);
        assert_eq!(hit(&mut ledger, A, &text(1)), 0);
        assert_eq!(hit(&mut ledger, A, &[]), 0);
    }

    #[test]
    fn the_next_turn_begins_in_the_last_block_of_the_answer() {
        let mut ledger = KvLedger::new(8);
        let lease = ledger.lease(A, &text(20), 40).unwrap();
        ledger.release(lease, &text(29), 28);
        assert_eq!(hit(&mut ledger, A, &text(35)), 28);
        // The longer block takes the place of the shorter one, which goes first although it is younger than
        // the other identity's.
        remember(&mut ledger, B, &text(16));
        remember(&mut ledger, A, &text(35));
        assert_eq!(counts(&ledger), (3, 5));
        let lease = ledger.lease(A, &[99], 4 * BLOCK_TOKENS).unwrap();
        ledger.discard(lease);
        assert_eq!((hit(&mut ledger, A, &text(36)), hit(&mut ledger, B, &text(17))), (35, 16));
    }

    #[test]
    fn the_least_recently_used_goes_first_and_leaves_before_what_leads_to_them() {
        let mut ledger = KvLedger::new(4);
        remember(&mut ledger, A, &text(32));
        remember(&mut ledger, B, &text(32));
        assert_eq!(hit(&mut ledger, A, &text(33)), 32);
        let one = ledger.lease(A, &[99], 1).unwrap();
        assert_eq!(counts(&ledger), (0, 3));
        ledger.discard(one);
        let probe = |ledger: &KvLedger, identity| ledger.trie.find(identity, &text(32)).path.len();
        assert_eq!((probe(&ledger, A), probe(&ledger, B)), (2, 1));
        let three = ledger.lease(A, &[99], 3 * BLOCK_TOKENS).unwrap();
        ledger.discard(three);
        assert_eq!((probe(&ledger, A), probe(&ledger, B)), (1, 0));
    }

    #[test]
    fn a_lease_that_cannot_be_had_changes_nothing() {
        let mut ledger = KvLedger::new(6);
        remember(&mut ledger, A, &text(40));
        let running = ledger.lease(B, &text(20), 20).unwrap();
        let before = format!("{ledger:?}");
        // Two of the three cached blocks would be shared, so five of four would be needed.
        assert!(ledger.lease(A, &[text(32), vec![99]].concat(), 7 * BLOCK_TOKENS).is_none());
        assert!(ledger.lease(A, &[99], 5 * BLOCK_TOKENS).is_none());
        assert!(ledger.lease(A, &[99], usize::MAX).is_none());
        assert_eq!(format!("{ledger:?}"), before);
        ledger.discard(running);
    }

    #[test]
    fn a_request_that_needs_every_block_computes_again_what_it_cannot_copy() {
        let mut ledger = KvLedger::new(2);
        remember(&mut ledger, A, &text(32));
        let prompt = [text(20), vec![99]].concat();
        let lease = ledger.lease(A, &prompt, 32).unwrap();
        assert_eq!((lease.cached(), lease.copy()), (16, None));
        ledger.discard(lease);
    }

    #[test]
    fn the_source_of_a_copy_stays_until_the_copy_is_done() {
        let mut ledger = KvLedger::new(3);
        let source = remember(&mut ledger, A, &text(16))[0];
        let mut lease = ledger.lease(A, &[text(8), vec![99]].concat(), 16).unwrap();
        assert_eq!(lease.copy(), Some((source, lease.blocks()[0])));
        assert!(ledger.lease(B, &[1], 32).is_none());
        ledger.publish(&mut lease, &[99; 16], 16);
        assert_eq!(lease.shared(), 0);
        ledger.copied(&mut lease);
        assert_eq!((lease.copy(), lease.cached()), (None, 8));
        let other = ledger.lease(B, &[1], 32).unwrap();
        assert!(other.blocks().contains(&source));
        ledger.discard(other);
        ledger.discard(lease);
    }

    #[test]
    fn identities_share_nothing() {
        let mut ledger = KvLedger::new(8);
        remember(&mut ledger, A, &text(40));
        assert_eq!(hit(&mut ledger, B, &text(40)), 0);
        assert_eq!(hit(&mut ledger, A, &text(40)), 39);
    }

    #[test]
    fn what_a_running_request_published_is_shared_and_outlives_it() {
        let mut ledger = KvLedger::new(8);
        let mut first = ledger.lease(A, &text(40), 60).unwrap();
        ledger.publish(&mut first, &text(40), 20);
        assert_eq!(first.shared(), 1);
        ledger.publish(&mut first, &text(40), 40);
        let second = ledger.lease(A, &text(40), 40).unwrap();
        assert_eq!((second.cached(), &second.blocks()[..2]), (32, &first.blocks()[..2]));
        ledger.discard(first);
        assert_eq!(counts(&ledger), (5, 0));
        ledger.clear();
        assert_eq!(counts(&ledger), (5, 0));
        ledger.release(second, &text(40), 40);
        assert_eq!(counts(&ledger), (5, 3));
        ledger.clear();
        assert_eq!(counts(&ledger), (8, 0));
    }

    #[test]
    fn two_leases_that_compute_the_same_keep_their_own_blocks() {
        let mut ledger = KvLedger::new(8);
        let mut first = ledger.lease(A, &text(40), 48).unwrap();
        let mut second = ledger.lease(A, &text(40), 48).unwrap();
        let own = second.blocks().to_vec();
        ledger.publish(&mut first, &text(40), 16);
        ledger.publish(&mut second, &text(40), 32);
        ledger.publish(&mut first, &text(40), 32);
        assert_eq!(second.blocks(), own);
        let third = ledger.trie.find(A, &text(40)).path;
        assert_eq!(third, [first.blocks()[0], own[1]]);
        ledger.discard(first);
        // The first block of `first` stays for the second of `second`.
        assert_eq!(counts(&ledger), (4, 0));
        ledger.release(second, &text(40), 40);
        assert_eq!(counts(&ledger), (5, 3));
        assert_eq!(hit(&mut ledger, A, &text(40)), 39);
    }

    /// One step of a random history. `usize`s choose among the running requests.
    #[derive(Debug, Clone)]
    enum Step {
        Lease { identity: u8, prompt: Vec<u32>, answer: usize },
        Copy(usize),
        Compute(usize, Vec<u32>),
        Publish(usize),
        Release(usize),
        Discard(usize),
        Clear,
    }

    /// Prompts of a few long runs of two tokens: they often agree for a while and then part.
    fn runs() -> impl Strategy<Value = Vec<u32>> {
        vec((0u32..2, prop::sample::select(vec![1usize, 7, 15, 16, 17, 32])), 0..5)
            .prop_map(|runs| runs.into_iter().flat_map(|(token, length)| vec![token; length]).collect())
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u8..3, runs(), 0usize..20)
                .prop_map(|(identity, prompt, answer)| Step::Lease { identity, prompt, answer }),
            2 => any::<usize>().prop_map(Step::Copy),
            12 => (any::<usize>(), runs()).prop_map(|(which, tokens)| Step::Compute(which, tokens)),
            4 => any::<usize>().prop_map(Step::Publish),
            6 => any::<usize>().prop_map(Step::Release),
            1 => any::<usize>().prop_map(Step::Discard),
            1 => Just(Step::Clear),
        ]
    }

    /// What a position's keys and values depend on: whose they are, and all tokens up to it.
    type Content = Option<(Identity, Vec<u32>)>;

    struct Running {
        identity: Identity,
        tokens: Vec<u32>,
        written: usize,
        lease: Lease,
    }

    impl Running {
        fn content(&self, position: usize) -> Content {
            Some((self.identity, self.tokens[..=position].to_vec()))
        }

        fn own(&self) -> impl Iterator<Item = BlockId> {
            self.lease.duplicates.iter().chain(&self.lease.blocks[self.lease.shared..]).copied()
        }
    }

    /// A ledger with a memory behind it that knows what was written where.
    struct Simulation {
        ledger: KvLedger,
        memory: Vec<[Content; BLOCK_TOKENS]>,
        running: Vec<Running>,
    }

    impl Simulation {
        fn new(capacity: usize) -> Self {
            let memory = (0..capacity).map(|_| Default::default()).collect();
            Self { ledger: KvLedger::new(capacity), memory, running: Vec::new() }
        }

        fn step(&mut self, step: Step) {
            let count = self.running.len();
            match step {
                Step::Lease { identity, prompt, answer } => {
                    self.lease(Identity([identity; 32]), prompt, answer);
                }
                Step::Clear => {
                    self.ledger.clear();
                    assert_eq!(self.ledger.cached(), 0);
                }
                _ if count == 0 => {}
                Step::Copy(which) => self.copy(which % count),
                Step::Compute(which, tokens) => self.compute(which % count, &tokens),
                Step::Publish(which) => {
                    let request = &mut self.running[which % count];
                    self.ledger.publish(&mut request.lease, &request.tokens, request.written);
                }
                Step::Release(which) => {
                    let request = self.running.swap_remove(which % count);
                    self.ledger.release(request.lease, &request.tokens, request.written);
                }
                Step::Discard(which) => self.ledger.discard(self.running.swap_remove(which % count).lease),
            }
            self.check();
        }

        fn lease(&mut self, identity: Identity, prompt: Vec<u32>, answer: usize) {
            let positions = prompt.len() + answer;
            let before = format!("{:?}", self.ledger);
            let Some(lease) = self.ledger.lease(identity, &prompt, positions) else {
                assert_eq!(format!("{:?}", self.ledger), before);
                assert!(positions.div_ceil(BLOCK_TOKENS) > self.ledger.free() + self.ledger.cached());
                return;
            };
            assert_eq!(lease.blocks().len(), positions.div_ceil(BLOCK_TOKENS));
            assert!(lease.cached() <= prompt.len().saturating_sub(1));
            assert_eq!(lease.copy().is_some(), lease.cached() > lease.shared() * BLOCK_TOKENS);
            let request = Running { identity, tokens: prompt, written: lease.cached(), lease };
            self.check_readable(&request);
            self.running.push(request);
        }

        /// That all positions that the request takes for written hold what it would have computed.
        fn check_readable(&self, request: &Running) {
            for position in 0..request.written {
                let index = position / BLOCK_TOKENS;
                let block = match request.lease.copy() {
                    Some((source, target)) if target == request.lease.blocks()[index] => source,
                    _ => request.lease.blocks()[index],
                };
                let content = &self.memory[block as usize][position % BLOCK_TOKENS];
                assert_eq!(*content, request.content(position), "position {position} in block {block}");
            }
        }

        fn copy(&mut self, which: usize) {
            let request = &mut self.running[which];
            if let Some((source, target)) = request.lease.copy() {
                self.memory[target as usize] = self.memory[source as usize].clone();
                self.ledger.copied(&mut request.lease);
            }
        }

        /// Runs what is left of the prompt, or goes on with `answer`, two blocks' length at a time.
        fn compute(&mut self, which: usize, answer: &[u32]) {
            self.copy(which);
            let request = &mut self.running[which];
            let room = request.lease.blocks().len() * BLOCK_TOKENS;
            if request.written == request.tokens.len() {
                request.tokens.extend(answer);
                request.tokens.truncate(room);
            }
            for _ in 0..(2 * BLOCK_TOKENS).min(request.tokens.len() - request.written) {
                let (index, slot) = (request.written / BLOCK_TOKENS, request.written % BLOCK_TOKENS);
                assert!(index >= request.lease.shared(), "a shared block would be written");
                let block = request.lease.blocks()[index];
                self.memory[block as usize][slot] = request.content(request.written);
                request.written += 1;
            }
        }

        fn check(&self) {
            let (mut own, mut pinned) = (HashSet::new(), HashSet::new());
            for request in &self.running {
                self.check_readable(request);
                for block in request.own() {
                    assert!(own.insert(block), "block {block} has two owners");
                }
                pinned.extend(self.ledger.trie.path(request.lease.place));
                let source = request.lease.copy().map(|(source, _)| Place::After(source));
                pinned.extend(source.into_iter().flat_map(|source| self.ledger.trie.path(source)));
            }
            assert!(own.is_disjoint(&pinned));
            assert!(self.ledger.free.iter().all(|block| !own.contains(block) && !pinned.contains(block)));
            let leased = own.len() + pinned.len();
            assert_eq!(self.ledger.free() + self.ledger.cached() + leased, self.ledger.capacity());
            assert!(!self.ledger.trie.has_empty_roots());
        }
    }

    proptest! {
        #[test]
        fn no_request_reads_what_is_not_its_own(
            capacity in 1usize..20, steps in vec(step(), 1..200), publish in any::<bool>()
        ) {
            let mut simulation = Simulation::new(capacity);
            for step in steps {
                simulation.step(step);
            }
            while !simulation.running.is_empty() {
                simulation.step(if publish { Step::Release(0) } else { Step::Discard(0) });
            }
            prop_assert_eq!(simulation.ledger.free() + simulation.ledger.cached(), capacity);
            simulation.step(Step::Clear);
            let free: HashSet<BlockId> = simulation.ledger.free.iter().copied().collect();
            prop_assert_eq!((free.len(), simulation.ledger.free()), (capacity, capacity));
        }
    }
}
