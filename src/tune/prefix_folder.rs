//! Prefixes on disk: what the base has read once need not be read again, in a later epoch, after a resumption, or by another run over the
//! same data (another rate, another rank).
//!
//! A file for each prefix, named after the base, the form of its weights and the tokens. It ends with a SHA-256 of what is before, so that a
//! file that a crash or a full disk left half written is read as none. Nothing here decides anything: without the folder a run has the same
//! result.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use half::f16;
use half::slice::HalfFloatSliceExt as _;
use sha2::{Digest as _, Sha256};

use super::batch::{Numbers, Prefix};
use crate::model::fingerprint;

/// Begins each file; another number for another form, or where the base is computed in another way.
const MAGIC: &[u8; 8] = b"prefix 1";
/// Digits of a file's name.
const NAME: usize = 64;
/// Bytes of the hash at the end.
const HASH: usize = 32;
/// Bytes of a file besides keys and values.
const OVERHEAD: usize = MAGIC.len() + 3 * 8 + HASH;
/// Half-written files of runs that were killed are thrown away when they are older.
const STALE: Duration = Duration::from_secs(3600);

/// A folder of prefixes.
#[derive(Debug)]
pub struct PrefixFolder {
    folder: PathBuf,
    /// What the prefixes are of, besides their tokens.
    base: String,
    bytes: u64,
    budget: u64,
}

impl PrefixFolder {
    /// Opens it, or makes it. It grows up to `budget` bytes; what another run writes meanwhile is not counted. `base` tells prefixes of one
    /// base from those of another.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(folder: &Path, base: &str, budget: u64) -> std::io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut bytes = 0;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            let own = name.len() >= NAME && name.bytes().take(NAME).all(|byte| byte.is_ascii_hexdigit());
            // Another run may be at work in the folder, and whoever named it may have other files there.
            let (true, Ok(about)) = (own, entry.metadata()) else { continue };
            let part = name.ends_with(".part");
            let age = about.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            if part && age.is_some_and(|age| age > STALE) {
                let _ = fs::remove_file(entry.path());
            } else {
                bytes += about.len();
            }
        }
        Ok(Self { folder: folder.to_owned(), base: base.to_owned(), bytes, budget })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Bytes that are there.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn file(&self, tokens: &[u32]) -> PathBuf {
        let numbers: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        self.folder.join(fingerprint([MAGIC, self.base.as_bytes(), &numbers]))
    }

    /// The prefix of tokens; none where there is none, or only a damaged one.
    #[must_use]
    pub fn read(&self, tokens: &[u32]) -> Option<Prefix> {
        let bytes = fs::read(self.file(tokens)).ok()?;
        decode(&bytes).filter(|prefix| prefix.tokens() == tokens.len())
    }

    /// Keeps a prefix. `Ok(false)`: there is no room.
    ///
    /// # Errors
    /// When the disk refuses; what was there stays.
    pub fn write(&mut self, tokens: &[u32], prefix: &Prefix) -> std::io::Result<bool> {
        if self.bytes + (prefix.bytes() + OVERHEAD) as u64 > self.budget {
            return Ok(false);
        }
        let bytes = encode(prefix);
        let path = self.file(tokens);
        // A damaged one, which goes.
        let old = fs::metadata(&path).map_or(0, |about| about.len());
        // Not synced to the disk: a file that a crash spoils is noticed by its hash.
        let part = path.with_extension(format!("{}.part", std::process::id()));
        let written = fs::File::create(&part)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&part, &path));
        if let Err(error) = written {
            let _ = fs::remove_file(&part);
            return Err(error);
        }
        self.bytes = (self.bytes + bytes.len() as u64).saturating_sub(old);
        Ok(true)
    }
}

/// Magic, tokens, layers, numbers of a half of a layer; then keys and values of each layer, of two bytes or of four; then the hash of all that. Little-endian.
fn encode(prefix: &Prefix) -> Vec<u8> {
    let layers = prefix.layers();
    let numbers = layers.first().map_or(0, |[keys, _]| keys.len());
    let mut to = Vec::with_capacity(prefix.bytes() + OVERHEAD);
    to.extend_from_slice(MAGIC);
    for count in [prefix.tokens(), layers.len(), numbers] {
        to.extend_from_slice(&(count as u64).to_le_bytes());
    }
    for one in layers.iter().flatten() {
        match one {
            Numbers::Half(numbers) => {
                to.extend(numbers.reinterpret_cast().iter().flat_map(|bits: &u16| bits.to_le_bytes()));
            }
            Numbers::Full(numbers) => to.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
        }
    }
    let hash = Sha256::digest(&to);
    to.extend_from_slice(&hash);
    to
}

/// What [`encode`] wrote; `None` for anything else.
fn decode(bytes: &[u8]) -> Option<Prefix> {
    let (content, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH)?)?;
    if Sha256::digest(content).as_slice() != hash {
        return None;
    }
    let mut rest = content.strip_prefix(MAGIC)?;
    let mut count = || {
        let (own, after) = rest.split_first_chunk::<8>()?;
        rest = after;
        usize::try_from(u64::from_le_bytes(*own)).ok()
    };
    let (tokens, layers, numbers) = (count()?, count()?, count()?);
    let all = layers.checked_mul(numbers)?.checked_mul(2)?;
    // Nothing else says whether they are halves.
    let width = [size_of::<f16>(), size_of::<f32>()]
        .into_iter()
        .find(|width| all.checked_mul(*width) == Some(rest.len()))?;
    if numbers == 0 {
        return None;
    }
    let mut each = rest.chunks_exact(numbers * width).map(|one| {
        if width == size_of::<f16>() {
            Numbers::Half(one.as_chunks().0.iter().map(|own| f16::from_le_bytes(*own)).collect())
        } else {
            Numbers::Full(one.as_chunks().0.iter().map(|own| f32::from_le_bytes(*own)).collect())
        }
    });
    let mut pairs = Vec::with_capacity(layers);
    for _ in 0..layers {
        pairs.push([each.next()?, each.next()?]);
    }
    Some(Prefix::of(tokens, pairs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights::WeightForm;
    use proptest::prelude::*;

    fn prefix(tokens: usize, layers: usize) -> Prefix {
        of_form(tokens, layers, WeightForm::Stored)
    }

    fn of_form(tokens: usize, layers: usize, form: WeightForm) -> Prefix {
        // Each is a half, and whole numbers and a third are not.
        let third = if form == WeightForm::F32 { 1.0 / 3.0 } else { 0.0 };
        let own = |n: usize| (0..tokens * 3).map(|i| (n * 100 + i) as f32 + third).collect::<Vec<_>>();
        let all: Vec<_> = (0..layers).map(|n| [own(2 * n), own(2 * n + 1)]).collect();
        Prefix::new(tokens, all.iter().map(|[keys, values]| [&keys[..], &values[..]]), form)
    }

    #[test]
    fn numbers_of_either_width_come_back() {
        let halves = prefix(2, 3);
        let full = of_form(2, 3, WeightForm::F32);
        assert_eq!(full.bytes(), 2 * halves.bytes());
        for one in [halves, full.clone()] {
            assert_eq!(decode(&encode(&one)).unwrap(), one);
            assert_eq!(
                [WeightForm::Stored, WeightForm::F32].map(|form| one.is_of(form)),
                [one != full, one == full]
            );
        }
    }

    #[test]
    fn a_prefix_comes_back_for_its_tokens_and_its_base_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = PrefixFolder::open(dir.path(), "a", 10_000).unwrap();
        let (tokens, kept) = ([1, 2], prefix(2, 3));
        assert_eq!(folder.read(&tokens), None);
        assert!(folder.write(&tokens, &kept).unwrap());
        assert_eq!(folder.read(&tokens), Some(kept.clone()));
        assert_eq!(folder.read(&[2, 1]), None);
        let again = PrefixFolder::open(dir.path(), "a", 10_000).unwrap();
        assert_eq!((again.read(&tokens), again.bytes()), (Some(kept), folder.bytes()));
        assert_eq!(PrefixFolder::open(dir.path(), "b", 10_000).unwrap().read(&tokens), None);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let one = encode(&prefix(2, 3)).len() as u64;
        let mut folder = PrefixFolder::open(dir.path(), "a", 2 * one).unwrap();
        let mut kept = |token| folder.write(&[token], &prefix(2, 3)).unwrap();
        assert_eq!([kept(1), kept(2), kept(3)], [true, true, false]);
        let mut again = PrefixFolder::open(dir.path(), "a", 2 * one).unwrap();
        assert!(!again.write(&[4], &prefix(2, 3)).unwrap(), "what is there counts");
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - 2 * STALE;
        let own = "0".repeat(NAME) + ".1.part";
        for name in ["film.part", "notes", &own] {
            fs::write(dir.path().join(name), "x").unwrap();
            fs::File::options().append(true).open(dir.path().join(name)).unwrap().set_modified(old).unwrap();
        }
        assert_eq!(PrefixFolder::open(dir.path(), "a", 10_000).unwrap().bytes(), 0);
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["film.part", "notes"]);
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = PrefixFolder::open(dir.path(), "a", 10_000).unwrap();
        // A folder stands where the file would.
        fs::create_dir(folder.file(&[7])).unwrap();
        fs::write(folder.file(&[7]).join("x"), "x").unwrap();
        assert!(folder.write(&[7], &prefix(1, 1)).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(folder.read(&[7]), None);
    }

    proptest! {
        /// Whatever happens to a file, it is read as it was written or not at all.
        #[test]
        fn a_damaged_file_is_none(cut in 0usize..200, at in 0usize..200, with in any::<u8>()) {
            let whole = encode(&prefix(2, 3));
            prop_assert_eq!(decode(&whole[..cut.min(whole.len() - 1)]), None);
            let mut changed = whole.clone();
            let at = at % whole.len();
            changed[at] = with;
            prop_assert_eq!(decode(&changed).is_some(), changed == whole);
        }
    }
}
