//! `FolderReader` and `FolderWriter`: a folder that is read and left as it is, and one that is made from counters.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pycounter_engine::checkpoint::ROOT_KEY;
use pycounter_engine::folder::FolderError;
use pycounter_engine::folder::reader::{self, Damage};
use pycounter_engine::folder::writer;
use pycounter_engine::journal::JournalError;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::errors;

/// Keys and rows for a store.
type Rows<'py> = Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)>;
/// What is wrong: a sentence, the file, and the range of its bytes.
type DamageRow = (String, Option<PathBuf>, Option<(u64, u64)>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rows<'py>(py: Python<'py>, rows: &[(Vec<u8>, Vec<u8>)]) -> Rows<'py> {
    rows.iter().map(|(key, row)| (PyBytes::new(py, key), PyBytes::new(py, row))).collect()
}

/// A shard's folder, or a backup, that is read and not changed. For one thread.
#[pyclass(frozen, module = "pycounter._native")]
pub struct FolderReader {
    directory: PathBuf,
    reader: Mutex<Option<reader::FolderReader>>,
}

impl FolderReader {
    fn with<R>(&self, run: impl FnOnce(&mut reader::FolderReader) -> R) -> PyResult<R> {
        lock(&self.reader).as_mut().map(run).ok_or_else(|| PyRuntimeError::new_err("the reader is closed"))
    }

    fn failed(&self, py: Python<'_>, error: impl Into<FolderError>) -> PyErr {
        errors::folder(py, &self.directory, &error.into())
    }
}

#[pymethods]
impl FolderReader {
    #[new]
    #[pyo3(signature = (directory, *, backup_of = None))]
    fn new(py: Python<'_>, directory: PathBuf, backup_of: Option<&str>) -> PyResult<Self> {
        let reader = match backup_of {
            Some(identity) => {
                let identity = identity.parse().map_err(PyValueError::new_err)?;
                reader::FolderReader::of_backup(identity)
            }
            None => {
                let reader = py.detach(|| reader::FolderReader::open(&directory));
                reader.map_err(|error| errors::folder(py, &directory, &error))?
            }
        };
        Ok(Self { directory, reader: Mutex::new(Some(reader)) })
    }

    /// What the manifest says: `name`, `epoch`, `created_at`. None where it can't be read.
    #[getter]
    fn manifest<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let found = self.with(|reader| reader.manifest().map(|it| (it.name.clone(), it.epoch, it.created_at)))?;
        let Some((name, epoch, created_at)) = found else { return Ok(None) };
        let facts = PyDict::new(py);
        facts.set_item("name", name)?;
        facts.set_item("epoch", epoch)?;
        facts.set_item("created_at", created_at)?;
        Ok(Some(facts))
    }

    /// Whose folder it is.
    #[getter]
    fn identity(&self) -> PyResult<String> {
        self.with(|reader| reader.identity().to_string())
    }

    /// Takes the root's row, or None. Gives the keys of the pages to load.
    fn load_root<'py>(&self, py: Python<'py>, root: Option<&[u8]>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let keys = self.with(|reader| reader.load_root(root))?.map_err(|error| self.failed(py, error))?;
        Ok(keys.iter().map(|key| PyBytes::new(py, key)).collect())
    }

    /// Takes one page's row, or None.
    fn load_page(&self, key: &[u8], page: Option<&[u8]>) -> PyResult<()> {
        self.with(|reader| reader.load_page(key, page))
    }

    /// Nothing of the checkpoint can be read.
    fn lose_checkpoint(&self) -> PyResult<()> {
        self.with(reader::FolderReader::lose_checkpoint)
    }

    /// Reads the log. `on_bytes` is told now and then how many bytes were read; what it raises ends the reading.
    fn read_log(&self, py: Python<'_>, on_bytes: &Bound<'_, PyAny>) -> PyResult<()> {
        let on_bytes = on_bytes.clone().unbind();
        let mut raised = None;
        let read = py.detach(|| {
            self.with(|reader| {
                reader.read_log(&mut |bytes| {
                    raised = Python::attach(|py| on_bytes.call1(py, (bytes,)).err());
                    raised.is_none()
                })
            })
        })?;
        match (read, raised) {
            (Err(FolderError::Journal(JournalError::Stopped)), Some(raised)) => Err(raised),
            (read, _) => read.map_err(|error| self.failed(py, error)),
        }
    }

    /// What is wrong: a sentence, the file, and its bytes from and to.
    #[getter]
    fn damage(&self) -> PyResult<Vec<DamageRow>> {
        let row = |damage: Damage<'_>| match damage {
            Damage::Log(error) => {
                let (path, range) = error.place().map_or((None, None), |(path, range)| (Some(path), range));
                (error.to_string(), path.map(Path::to_path_buf), range.map(|range| (range.start, range.end)))
            }
            Damage::Folder(error) => (error.to_string(), None, None),
        };
        self.with(|reader| reader.damage().map(row).collect())
    }

    /// Figures, after everything was read.
    #[getter]
    fn figures<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let figures = self.with(|reader| {
            let ((pages, lost_pages), (sessions, ids)) = (reader.pages(), reader.promises());
            [
                ("checkpoint_commit", reader.checkpoint_commit()),
                ("first_commit", reader.log.first_commit),
                ("last_commit", reader.log.last_commit),
                ("commits", reader.log.commits),
                ("commits_behind_damage", reader.log.commits_behind_damage),
                ("pages", pages as u64),
                ("lost_pages", lost_pages as u64),
                ("sessions", sessions as u64),
                ("ids", ids as u64),
                ("uptime_ms", reader.uptime_ms()),
            ]
        })?;
        let facts = PyDict::new(py);
        figures.iter().try_for_each(|&(name, value)| facts.set_item(name, value))?;
        Ok(facts)
    }

    /// Bytes of the log's files.
    #[getter]
    fn log_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(|reader| reader.log_bytes())?.map_err(|error| self.failed(py, error))
    }

    /// Commits that were there and can't be read: first and last of each run.
    #[getter]
    fn lost(&self) -> PyResult<Vec<(u64, u64)>> {
        self.with(|reader| reader.log.lost.iter().map(|run| (*run.start(), *run.end())).collect())
    }

    /// The torn end of the log: file, bytes to keep, bytes to cut.
    #[getter]
    fn torn(&self) -> PyResult<Option<(PathBuf, u64, u64)>> {
        self.with(|reader| reader.log.torn.as_ref().map(|torn| (torn.path.clone(), torn.keep_bytes, torn.cut_bytes)))
    }

    /// Files in the log's folder that no journal made; None if anything else is wrong.
    #[getter]
    fn only_foreign_files(&self) -> PyResult<Option<Vec<PathBuf>>> {
        self.with(|reader| reader.only_foreign_files())
    }

    /// How many parts the counters come in.
    #[getter]
    fn parts(&self) -> PyResult<usize> {
        self.with(|reader| reader.contents().parts())
    }

    /// The key of the row that a part needs; None: no row.
    fn part_key<'py>(&self, py: Python<'py>, part: usize) -> PyResult<Option<Bound<'py, PyBytes>>> {
        Ok(self.with(|reader| reader.contents().key(part))?.map(|key| PyBytes::new(py, &key)))
    }

    /// The counters of a part.
    fn read_part<'py>(
        &self,
        py: Python<'py>,
        part: usize,
        row: Option<&[u8]>,
    ) -> PyResult<Vec<(Bound<'py, PyBytes>, i64)>> {
        let mut counters = Vec::new();
        let mut take = |key: &[u8], value| counters.push((PyBytes::new(py, key), value));
        self.with(|reader| reader.contents().read(part, row, &mut take))?.map_err(|error| self.failed(py, error))?;
        Ok(counters)
    }

    /// How many counters a part has.
    fn count_part(&self, py: Python<'_>, part: usize, row: Option<&[u8]>) -> PyResult<u64> {
        let mut count = 0;
        let mut take = |_: &[u8], _| count += 1;
        self.with(|reader| reader.contents().read(part, row, &mut take))?.map_err(|error| self.failed(py, error))?;
        Ok(count)
    }

    /// Unlocks the folder. Idempotent.
    fn close(&self) {
        lock(&self.reader).take();
    }
}

/// A shard's folder that is made from counters. For one thread.
#[pyclass(frozen, module = "pycounter._native")]
pub struct FolderWriter {
    directory: PathBuf,
    writer: Mutex<writer::FolderWriter>,
}

#[pymethods]
impl FolderWriter {
    #[new]
    fn new(py: Python<'_>, directory: PathBuf, name: &str, uptime_ms: u64) -> PyResult<Self> {
        let writer = writer::FolderWriter::new(&directory, name, uptime_ms);
        let writer = Mutex::new(writer.map_err(|error| errors::folder(py, &directory, &error))?);
        Ok(Self { directory, writer })
    }

    /// The new shard's.
    #[getter]
    fn identity(&self) -> String {
        lock(&self.writer).identity().to_string()
    }

    /// Takes a part's counters, in order. Gives rows to put.
    fn copy<'py>(
        &self,
        py: Python<'py>,
        reader: &FolderReader,
        part: usize,
        row: Option<&[u8]>,
    ) -> PyResult<Rows<'py>> {
        let copied = py.detach(|| reader.with(|reader| lock(&self.writer).copy(reader.contents(), part, row)))?;
        Ok(rows(py, &copied.map_err(|error| reader.failed(py, error))?))
    }

    /// All parts were copied: the last rows to put, and then the root's key and row.
    fn finish_rows<'py>(&self, py: Python<'py>) -> (Rows<'py>, Bound<'py, PyBytes>, Bound<'py, PyBytes>) {
        let (last, root) = lock(&self.writer).finish_rows();
        (rows(py, &last), PyBytes::new(py, ROOT_KEY), PyBytes::new(py, &root))
    }

    /// The rows are in their store, which is closed: makes all of it durable and writes the manifest.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let finished = py.detach(|| lock(&self.writer).finish());
        finished.map_err(|error| errors::folder(py, &self.directory, &error))
    }
}
