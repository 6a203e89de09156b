//! The manifest: what a shard's folder must hold, so that a lost file is never taken for an empty shard.
//!
//! `manifest.json` is `{"format": 1, "checksum": "<xxh3-64 of content, as it stands>", "content": {...}}`. It is replaced
//! whole: written under another name, fsynced, renamed, the folder fsynced. Two threads change it, the commit thread
//! (a new segment) and the checkpointer (position, trim), both through one `ManifestFile`, which writes one change at
//! a time. Readers never wait for a write: they get the last durable content.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use crate::journal::error::JournalError;
use crate::journal::files::{FileSystem, read_small};
use crate::journal::record::{Position, ShardIdentity};

/// The newest format that this version reads, and the one it writes.
pub const MANIFEST_FORMAT: u64 = 1;
/// The manifest's name in the shard's folder.
pub const MANIFEST_NAME: &str = "manifest.json";
/// Its name while it is written.
pub(crate) const MANIFEST_NEW_NAME: &str = "manifest.json.new";

/// A manifest has 21 bytes for each segment: this is room for three million.
const MANIFEST_BYTES_MAX: usize = 64 << 20;

/// What a checkpoint covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The commit that it holds the state of, all those before it included.
    #[serde(with = "position")]
    pub position: Position,
    /// A hash over the checkpoint's pages, which its reader compares.
    #[serde(with = "hex")]
    pub root_hash: u64,
    /// The number of the fold that made it.
    pub fold: u64,
}

/// The content of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the shard.
    #[serde(with = "identity")]
    pub identity: ShardIdentity,
    /// What people call the shard.
    pub name: String,
    /// The seed of the shard's key hashes, which order its pages.
    #[serde(with = "hex")]
    pub hash_seed: u64,
    /// The fencing number of the newest opening.
    pub epoch: u64,
    /// The writer id of the newest opening: stands in every record of the last file.
    #[serde(with = "hex")]
    pub writer_id: u64,
    /// The first commit of each file of the log, rising. Only the last file is ever written to.
    pub segments: Vec<u64>,
    /// The newest checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// Where the log ended when its writer last stopped in good order; none while one is open.
    #[serde(with = "optional_position")]
    pub clean_end: Option<Position>,
    /// Seconds since 1970 by the wall clock. For people; nothing depends on it.
    pub created_at: u64,
}

impl Manifest {
    /// What the types don't say.
    fn validate(&self) -> Result<(), &'static str> {
        if !self.segments.is_sorted_by(|a, b| a < b) || self.segments.first() == Some(&0) {
            return Err("its segments are not in order");
        }
        Ok(())
    }

    /// The first commit of the file after the one that begins with `first`.
    pub(crate) fn successor(&self, first: u64) -> Option<u64> {
        self.segments.iter().copied().find(|&other| other > first)
    }

    /// The first commit of the file that commit `number` is in, or would be.
    pub(crate) fn segment_of(&self, number: u64) -> Option<u64> {
        self.segments.iter().copied().rfind(|&first| first <= number)
    }
}

/// The envelope, as far as it can be read without knowing its format.
#[derive(Deserialize)]
struct FormatOnly {
    format: u64,
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    format: u64,
    checksum: String,
    #[serde(borrow)]
    content: &'a RawValue,
}

fn encode(manifest: &Manifest) -> Result<Vec<u8>, serde_json::Error> {
    let content = serde_json::to_string_pretty(manifest)?;
    let checksum = format!("{:016x}", xxh3_64(content.as_bytes()));
    let content = RawValue::from_string(content)?;
    let mut bytes = serde_json::to_vec(&Envelope { format: MANIFEST_FORMAT, checksum, content: &content })?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Manifest, JournalError> {
    let damaged = |reason: String| JournalError::ManifestDamaged { path: path.to_path_buf(), reason };
    let unreadable = |error: serde_json::Error| damaged(error.to_string());
    let FormatOnly { format } = serde_json::from_slice(bytes).map_err(unreadable)?;
    if format > MANIFEST_FORMAT {
        return Err(JournalError::NewerFormat {
            path: path.to_path_buf(),
            offset: 0,
            found: format,
            known: MANIFEST_FORMAT,
        });
    }
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(unreadable)?;
    let content = envelope.content.get();
    if envelope.checksum != format!("{:016x}", xxh3_64(content.as_bytes())) {
        return Err(damaged("its checksum is wrong".into()));
    }
    let manifest: Manifest = serde_json::from_str(content).map_err(unreadable)?;
    manifest.validate().map_err(|reason| damaged(reason.into()))?;
    Ok(manifest)
}

/// The one owner of a shard's manifest.
pub(crate) struct ManifestFile {
    files: Arc<dyn FileSystem>,
    folder: PathBuf,
    /// Held while a change is written, so that changes don't overwrite one another.
    writing: Mutex<()>,
    /// The last content known to be durable. Held for a copy only.
    current: Mutex<Arc<Manifest>>,
}

impl ManifestFile {
    /// Reads the manifest of `folder`; `None` if there is none.
    pub(crate) fn load(files: Arc<dyn FileSystem>, folder: &Path) -> Result<Option<Self>, JournalError> {
        let manifest = read(&*files, &folder.join(MANIFEST_NAME))?;
        Ok(manifest.map(|manifest| Self::holding(files, folder, manifest)))
    }

    /// A manifest as it is or would be on disk. Nothing is written.
    pub(crate) fn holding(files: Arc<dyn FileSystem>, folder: &Path, manifest: Manifest) -> Self {
        let (writing, current) = (Mutex::new(()), Mutex::new(Arc::new(manifest)));
        Self { files, folder: folder.to_path_buf(), writing, current }
    }

    /// Writes the first manifest of `folder`.
    pub(crate) fn create(files: Arc<dyn FileSystem>, folder: &Path, manifest: Manifest) -> Result<Self, JournalError> {
        write(&*files, folder, &manifest)?;
        Ok(Self::holding(files, folder, manifest))
    }

    /// The last content known to be durable.
    pub(crate) fn current(&self) -> Arc<Manifest> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a change durable.
    ///
    /// After an error the change may or may not be on disk, and the content kept here is the one from before it. Both
    /// are consistent with the folder, because callers only let a manifest name what is there already, and remove only
    /// what it no longer names; the next change is made to the content from before.
    pub(crate) fn update(
        &self,
        change: impl FnOnce(&mut Manifest) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current();
        self.check_epoch(before.epoch)?;
        let mut manifest = Manifest::clone(&before);
        change(&mut manifest)?;
        if manifest != *before {
            write(&*self.files, &self.folder, &manifest)?;
            *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(manifest);
        }
        Ok(())
    }

    /// The folder's lock keeps other writers out. Should somebody have removed the lock file under a running shard, or put
    /// a copy of the folder in its place, and opened that again, the epoch tells: the older writer stops instead of undoing
    /// what the newer one did.
    pub(crate) fn check_epoch(&self, ours: u64) -> Result<(), JournalError> {
        let path = self.folder.join(MANIFEST_NAME);
        match read(&*self.files, &path)? {
            Some(found) if found.epoch == ours => Ok(()),
            Some(found) => Err(JournalError::Fenced { path, ours, theirs: found.epoch }),
            None => Err(JournalError::io("read", path)(io::ErrorKind::NotFound.into())),
        }
    }
}

fn read(files: &dyn FileSystem, path: &Path) -> Result<Option<Manifest>, JournalError> {
    let file = match files.open_read(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(JournalError::io("open", path)(error)),
    };
    let bytes = read_small(&*file, MANIFEST_BYTES_MAX).map_err(JournalError::io("read", path))?;
    decode(path, &bytes).map(Some)
}

fn write(files: &dyn FileSystem, folder: &Path, manifest: &Manifest) -> Result<(), JournalError> {
    let (new, path) = (folder.join(MANIFEST_NEW_NAME), folder.join(MANIFEST_NAME));
    let bytes = encode(manifest).map_err(|error| JournalError::io("encode", &path)(error.into()))?;
    let mut file = files.create(&new).map_err(JournalError::io("create", &new))?;
    file.write_all_at(&bytes, 0).map_err(JournalError::io("write", &new))?;
    file.sync_data().map_err(JournalError::io("fsync", &new))?;
    drop(file);
    files.rename(&new, &path).map_err(JournalError::io("rename to", &path))?;
    files.sync_folder(folder).map_err(JournalError::io("fsync", folder))
}

/// Hashes and seeds as hexadecimal text: many readers of JSON round numbers of more than 53 bits.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(de::Error::custom)
    }
}

mod identity {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::ShardIdentity;

    pub(super) fn serialize<S: Serializer>(value: &ShardIdentity, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ShardIdentity, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A position, with its hash as text.
#[derive(Serialize, Deserialize)]
struct PositionText {
    commit: u64,
    #[serde(with = "hex")]
    hash: u64,
}

mod position {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Position, PositionText};

    pub(super) fn serialize<S: Serializer>(value: &Position, serializer: S) -> Result<S::Ok, S::Error> {
        PositionText { commit: value.commit, hash: value.hash }.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Position, D::Error> {
        PositionText::deserialize(deserializer).map(|PositionText { commit, hash }| Position { commit, hash })
    }
}

mod optional_position {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Position, PositionText};

    pub(super) fn serialize<S: Serializer>(value: &Option<Position>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(|Position { commit, hash }| PositionText { commit, hash }).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Position>, D::Error> {
        let text = Option::<PositionText>::deserialize(deserializer)?;
        Ok(text.map(|PositionText { commit, hash }| Position { commit, hash }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::files::DiskFiles;

    fn manifest() -> Manifest {
        Manifest {
            identity: ShardIdentity([0xab; 16]),
            name: "a \"shard\"".into(),
            hash_seed: u64::MAX,
            epoch: 4,
            writer_id: 77,
            segments: vec![1, 10],
            checkpoint: Some(Checkpoint {
                position: Position { commit: 9, hash: u64::MAX - 1 },
                root_hash: 3,
                fold: 2,
            }),
            clean_end: Some(Position { commit: 12, hash: 5 }),
            created_at: 1_800_000_000,
        }
    }

    #[test]
    fn what_is_written_is_read_and_any_change_of_a_byte_is_refused() {
        let path = Path::new("manifest.json");
        let bytes = encode(&manifest()).unwrap();
        assert_eq!(decode(path, &bytes).unwrap(), manifest());
        for at in 0..bytes.len() - 1 {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            if let Ok(read) = decode(path, &changed) {
                // The envelope may lose or gain white space, and a format that is older than this one is read as this one.
                assert_eq!(read, manifest(), "byte {at}");
            }
            assert!(decode(path, &bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_as_such_whatever_else_it_holds() {
        let error = decode(Path::new("m"), b"{\"format\": 2, \"other\": []}").unwrap_err();
        assert!(matches!(error, JournalError::NewerFormat { found: 2, known: 1, .. }), "{error}");
    }

    #[test]
    fn segments_out_of_order_are_refused() {
        for segments in [vec![2, 1], vec![1, 1], vec![0, 1]] {
            let bytes = encode(&Manifest { segments, ..manifest() }).unwrap();
            assert!(matches!(decode(Path::new("m"), &bytes), Err(JournalError::ManifestDamaged { .. })));
        }
    }

    #[test]
    fn a_newer_epoch_on_disk_fences_the_older_writer() {
        let folder = tempfile::tempdir().unwrap();
        let files: Arc<dyn FileSystem> = Arc::new(DiskFiles);
        let older = ManifestFile::create(Arc::clone(&files), folder.path(), manifest()).unwrap();
        let newer = ManifestFile::load(files, folder.path()).unwrap().unwrap();
        let raise = |manifest: &mut Manifest| -> Result<(), JournalError> {
            manifest.epoch += 1;
            Ok(())
        };
        newer.update(raise).unwrap();
        assert!(matches!(older.update(raise), Err(JournalError::Fenced { ours: 4, theirs: 5, .. })));
        assert_eq!(older.current().epoch, 4);
    }
}
