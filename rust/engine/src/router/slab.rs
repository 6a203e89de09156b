//! Things that are waited for by place. A place that is used again gets another generation, so whoever comes late, for
//! what was there before, finds nothing.

/// Where something is, or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    slot: u32,
    generation: u32,
}

impl Place {
    /// Where nothing ever is.
    pub(super) const NOWHERE: Self = Self { slot: u32::MAX, generation: 0 };

    /// Its number: below the most that there ever were at a time.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.slot as usize
    }
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// Values by place.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> Place {
        if let Some(slot) = self.free.pop() {
            let entry = &mut self.entries[slot as usize];
            entry.value = Some(value);
            return Place { slot, generation: entry.generation };
        }
        // All bounds are far below 2^32 entries.
        let slot = self.entries.len() as u32;
        self.entries.push(Entry { generation: 0, value: Some(value) });
        Place { slot, generation: 0 }
    }

    #[inline]
    pub(super) fn get(&self, place: Place) -> Option<&T> {
        let entry = self.entries.get(place.slot())?;
        if entry.generation == place.generation { entry.value.as_ref() } else { None }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        let entry = self.entries.get_mut(place.slot())?;
        if entry.generation == place.generation { entry.value.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, place: Place) -> Option<T> {
        let value = self.take(place)?;
        let entry = &mut self.entries[place.slot()];
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(place.slot);
        Some(value)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|entry| entry.value.as_ref())
    }

    /// All of them with their places.
    pub(super) fn places(&self) -> impl Iterator<Item = (Place, &T)> {
        (0_u32..).zip(&self.entries).filter_map(|(slot, entry)| {
            entry.value.as_ref().map(|value| (Place { slot, generation: entry.generation }, value))
        })
    }

    /// All of them, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().filter_map(|entry| entry.value.as_mut())
    }

    /// Takes it out for the length of a call; the place stays its own.
    pub(super) fn take(&mut self, place: Place) -> Option<T> {
        let entry = self.entries.get_mut(place.slot())?;
        if entry.generation == place.generation { entry.value.take() } else { None }
    }

    pub(super) fn put_back(&mut self, place: Place, value: T) {
        if let Some(entry) = self.entries.get_mut(place.slot()) {
            entry.value = Some(value);
        }
    }
}

#[cfg(all(test, not(pycounter_loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_comes_late_finds_nothing() {
        let mut slab = Slab::default();
        let (first, second) = (slab.insert("a"), slab.insert("b"));
        assert_eq!((slab.remove(first), slab.remove(first), slab.len()), (Some("a"), None, 1));
        let third = slab.insert("c");
        assert_eq!(third.slot(), first.slot());
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.take(first), None);
        assert_eq!((slab.get(second), slab.get(third)), (Some(&"b"), Some(&"c")));
        assert_eq!(slab.get(Place::NOWHERE), None);
        let value = slab.take(third).unwrap();
        assert_eq!(slab.get(third), None);
        slab.put_back(third, value);
        assert_eq!(slab.get(third), Some(&"c"));
    }
}
