//! Where everything lies in the arena.

use std::collections::BTreeMap;

use crate::template::Fill;

/// Where the walks find what they read and write, by the names of their templates.
#[derive(Clone, Debug, Default)]
pub(super) struct Regions(BTreeMap<&'static str, u64>);

/// Where captured tensors lie, by number: numbers and their tangents in the arena, integers among the integers.
#[derive(Clone, Debug, Default)]
pub(super) struct Captures {
    pub(super) numbers: Vec<Option<u64>>,
    pub(super) tangents: Vec<Option<u64>>,
    pub(super) integers: Vec<Option<u64>>,
}

impl Regions {
    pub(super) fn put(&mut self, name: &'static str, at: u64) {
        self.0.insert(name, at);
    }

    pub(super) fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// Declarations of the places.
    pub(super) fn declarations(&self) -> String {
        self.0.iter().map(|(name, at)| format!("const {name}: u32 = {at}u;\n")).collect()
    }

    /// The names as conditions of templates.
    pub(super) fn flags(&self, fill: Fill) -> Fill {
        self.0.keys().fold(fill, |fill, name| fill.flag(name, true))
    }
}
