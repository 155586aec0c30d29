//! Tables that the plan knows: masks and identities. Equal tables are stored once, whatever tile or head uses them.

use std::collections::HashMap;
use std::sync::Arc;

use super::builder::Builder;
use crate::dtype::Dtype;
use crate::ir::{Space, TensorId, View};

/// Tables of one type, one behind the other in one input of the kernel.
#[derive(Debug)]
pub struct Constants {
    tensor: TensorId,
    numbers: Vec<f32>,
    known: HashMap<Vec<u32>, usize>,
}

impl Constants {
    /// No tables yet.
    pub fn new(builder: &mut Builder, name: &str, dtype: Dtype) -> Self {
        let tensor = builder.tensor(name, Space::Input, &[0], dtype);
        Self { tensor, numbers: Vec::new(), known: HashMap::new() }
    }

    /// The place of a table.
    pub fn add(&mut self, table: &[f32]) -> usize {
        let bits = table.iter().map(|x| x.to_bits()).collect();
        *self.known.entry(bits).or_insert_with(|| {
            let at = self.numbers.len();
            self.numbers.extend_from_slice(table);
            at
        })
    }

    /// The view of a table of `rows` rows at a place.
    pub fn view(&self, builder: &Builder, at: usize, rows: usize, columns: usize) -> View {
        builder.pattern(self.tensor, 1, at, vec![(columns, rows), (1, columns)])
    }

    /// The input's numbers. The input has its size from here on, and one unused number where there are no tables.
    pub fn finish(mut self, builder: &mut Builder) -> Arc<Vec<f32>> {
        if self.numbers.is_empty() {
            self.numbers.push(0.0);
        }
        builder.resize(self.tensor, &[self.numbers.len()]);
        Arc::new(self.numbers)
    }
}

/// Slots of a buffer in SBUF that hold what was loaded last: a key is loaded again only after it was pushed out.
#[derive(Debug)]
pub struct Cache<K> {
    slots: Vec<Option<K>>,
    known: HashMap<K, usize>,
    next: usize,
}

impl<K: Clone + Eq + std::hash::Hash> Cache<K> {
    /// Empty slots.
    pub fn new(slots: usize) -> Self {
        Self { slots: vec![None; slots.max(1)], known: HashMap::new(), next: 0 }
    }

    /// The slot of a key, and whether it has to be filled.
    pub fn slot(&mut self, key: &K) -> (usize, bool) {
        if let Some(&slot) = self.known.get(key) {
            return (slot, false);
        }
        let slot = self.next;
        self.next = (self.next + 1) % self.slots.len();
        if let Some(old) = self.slots[slot].replace(key.clone()) {
            self.known.remove(&old);
        }
        self.known.insert(key.clone(), slot);
        (slot, true)
    }
}
