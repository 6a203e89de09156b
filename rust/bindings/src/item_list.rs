//! Pairs of key and delta from Python, copied, each with its error if it can't be sent.

use pycounter_engine::error_code::ErrorCode;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::delta::Delta;
use crate::key::Key;

/// Items of one call.
#[derive(Default)]
pub(crate) struct ItemList {
    keys: Vec<u8>,
    /// Where its key ends, and its delta. A wrong one has an empty key.
    items: Vec<(usize, i64)>,
    errors: Vec<(u32, ErrorCode, String)>,
}

impl ItemList {
    /// Copies a list, a tuple or any other iterable of pairs, or a dict.
    ///
    /// # Errors
    /// It can't be iterated over.
    pub(crate) fn parse(items: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut parsed = Self::default();
        if let Ok(list) = items.cast::<PyList>() {
            parsed.items.reserve(list.len());
            list.iter().for_each(|item| parsed.push(&item));
        } else if let Ok(tuple) = items.cast::<PyTuple>() {
            parsed.items.reserve(tuple.len());
            tuple.iter_borrowed().for_each(|item| parsed.push(&item));
        } else if let Ok(dict) = items.cast::<PyDict>() {
            // A copy of its pairs: what a delta's `__index__` does might change the dict.
            parsed.items.reserve(dict.len());
            dict.items().iter().for_each(|item| parsed.push(&item));
        } else {
            for item in items.try_iter()? {
                parsed.push(&item?);
            }
        }
        Ok(parsed)
    }

    fn push(&mut self, item: &Bound<'_, PyAny>) {
        let delta = self.push_pair(item).unwrap_or_else(|(code, message)| {
            self.keys.truncate(self.items.last().map_or(0, |&(end, _)| end));
            self.errors.push((self.items.len() as u32, code, message));
            0
        });
        self.items.push((self.keys.len(), delta));
    }

    /// Appends its key; gives its delta.
    fn push_pair(&mut self, item: &Bound<'_, PyAny>) -> Result<i64, (ErrorCode, String)> {
        if let Ok(pair) = item.cast::<PyTuple>()
            && let [key, delta] = pair.as_slice()
        {
            return self.push_key_and_delta(key, delta);
        }
        let no_pair = || {
            let shown = item.repr().map(|text| text.to_string()).unwrap_or_default();
            let shown: String = shown.chars().take(100).collect();
            (ErrorCode::BadRequest, format!("an item is a key and a delta, not {shown}: nothing was applied"))
        };
        if item.is_instance_of::<PyString>() || item.is_instance_of::<PyBytes>() {
            return Err(no_pair());
        }
        match item.len() {
            Ok(2) => {
                let key = item.get_item(0).map_err(|_| no_pair())?;
                let delta = item.get_item(1).map_err(|_| no_pair())?;
                self.push_key_and_delta(&key, &delta)
            }
            _ => Err(no_pair()),
        }
    }

    #[inline]
    fn push_key_and_delta(
        &mut self,
        key: &Bound<'_, PyAny>,
        delta: &Bound<'_, PyAny>,
    ) -> Result<i64, (ErrorCode, String)> {
        let delta = delta_of(delta)?;
        self.keys.extend_from_slice(key_of(key)?);
        Ok(delta)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// How many can be sent.
    pub(crate) fn good(&self) -> usize {
        self.items.len() - self.errors.len()
    }

    /// Can none of them be sent?
    pub(crate) fn is_none_good(&self) -> bool {
        self.good() == 0
    }

    /// Place, code and message of those that can't.
    pub(crate) fn errors(&self) -> &[(u32, ErrorCode, String)] {
        &self.errors
    }

    /// Key and delta of the item at a place, if it can be sent.
    pub(crate) fn get(&self, place: u32) -> Option<(&[u8], i64)> {
        let place = place as usize;
        let start = place.checked_sub(1).map_or(Some(0), |before| self.items.get(before).map(|&(end, _)| end))?;
        let &(end, delta) = self.items.get(place)?;
        self.keys.get(start..end).filter(|key| !key.is_empty()).map(|key| (key, delta))
    }

    /// Place, key and delta of those that can.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &[u8], i64)> {
        let mut start = 0;
        self.items.iter().enumerate().filter_map(move |(place, &(end, delta))| {
            let key = self.keys.get(start..end)?;
            start = end;
            (!key.is_empty()).then_some((place as u32, key, delta))
        })
    }
}

/// A delta, by the rule of [`Delta`].
pub(crate) fn delta_of(delta: &Bound<'_, PyAny>) -> Result<i64, (ErrorCode, String)> {
    let wrong = |error: PyErr| (ErrorCode::BadDelta, format!("{}: nothing was applied", error.value(delta.py())));
    delta.extract::<Delta>().map(|delta| delta.0).map_err(wrong)
}

/// The bytes of a key, by the rule of [`Key`].
pub(crate) fn key_of<'a>(key: &'a Bound<'_, PyAny>) -> Result<&'a [u8], (ErrorCode, String)> {
    let wrong = |error: PyErr| (ErrorCode::BadKey, format!("{}: nothing was sent", error.value(key.py())));
    key.extract::<Key<'_>>().map(Key::bytes).map_err(wrong)
}
