//! Arrays of keys: NumPy's `S` (bytes) and `U` (text) arrays, read through the buffer protocol.
//!
//! Their elements have one length and are filled up with zeros, which aren't part of a key; so a key that ends in
//! zeros can't come from an array.

use std::marker::PhantomData;

use pycounter_engine::limits::KEY_BYTES_MAX;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::prelude::*;

use crate::errors;
use crate::key::{self, KeyColumn};

/// How elements hold keys.
#[derive(Clone, Copy)]
enum Element {
    Bytes,
    /// Code points of four bytes, the least significant first.
    Text,
}

/// An array of keys, one behind the other.
pub(crate) struct KeyArray<'py> {
    buffer: PyUntypedBuffer,
    element: Element,
    attached: PhantomData<Python<'py>>,
}

impl<'py> KeyArray<'py> {
    /// The object as such an array. None: it is none, or one whose elements are better asked for one by one.
    pub(crate) fn of(object: &Bound<'py, PyAny>) -> Option<Self> {
        let buffer = PyUntypedBuffer::get(object).ok()?;
        let format = buffer.format().to_bytes();
        let format = format.strip_prefix(b"<").or(format.strip_prefix(b"=")).unwrap_or(format);
        let (kind, length) = format.split_last()?;
        let element = match kind {
            b's' => Element::Bytes,
            b'w' if cfg!(target_endian = "little") => Element::Text,
            _ => return None,
        };
        let is_row = buffer.dimensions() == 1 && buffer.is_c_contiguous() && buffer.item_size() > 0;
        let is_plain = length.iter().all(u8::is_ascii_digit);
        (is_row && is_plain).then_some(Self { buffer, element, attached: PhantomData })
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.item_count()
    }

    /// Puts `count` keys into an empty column. After an error it holds those before the bad one.
    pub(crate) fn read(&self, py: Python<'py>, from: usize, count: usize, keys: &mut KeyColumn) -> PyResult<()> {
        keys.clear();
        let mut item = Vec::with_capacity(self.buffer.item_size());
        let mut text = String::new();
        for number in from..self.len().min(from.saturating_add(count)) {
            self.copy_item(number, &mut item);
            let key = match self.element {
                Element::Bytes => item.as_slice(),
                Element::Text => {
                    text.clear();
                    decode(py, &item, &mut text)?;
                    text.as_bytes()
                }
            };
            let zeros = key.iter().rev().take_while(|&&byte| byte == 0).count();
            let key = &key[..key.len() - zeros];
            if key.is_empty() || key.len() > KEY_BYTES_MAX {
                return Err(key::bad_length(py, key.len()));
            }
            keys.push(key);
        }
        Ok(())
    }

    /// Copies an element's bytes.
    #[allow(unsafe_code, reason = "the buffer protocol gives a pointer")]
    fn copy_item(&self, number: usize, item: &mut Vec<u8>) {
        assert!(number < self.len(), "only elements of the array are asked for");
        let size = self.buffer.item_size();
        item.clear();
        // SAFETY: the buffer is held, C-contiguous and has more than `number` elements of `size` bytes; `item` has room
        // for one. We are attached to the interpreter; a program that writes to the array from code that isn't, while
        // it is read here, races with every other reader of it too.
        unsafe {
            let from = self.buffer.buf_ptr().cast::<u8>().add(number * size);
            item.reserve(size);
            std::ptr::copy_nonoverlapping(from, item.as_mut_ptr(), size);
            item.set_len(size);
        }
    }
}

fn decode(py: Python<'_>, item: &[u8], text: &mut String) -> PyResult<()> {
    for point in item.chunks_exact(4) {
        let point = point.first_chunk().map_or(0, |&point| u32::from_le_bytes(point));
        let character = char::from_u32(point);
        text.push(
            character.ok_or_else(|| {
                errors::named(py, "BadKey", (format!("a key can't hold {point:#x}: it has no UTF-8"),))
            })?,
        );
    }
    Ok(())
}
