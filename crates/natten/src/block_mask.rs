//! Block masks: which key blocks each query block sees, from lists.

use natten_core::{Error, Result};
use ndarray::{Array2, ArrayView2};

/// Which blocks of keys each block of queries sees: a list of key blocks for every query block, made a table that a
/// program's mask reads.
///
/// ```
/// use natten::BlockMask;
/// use ndarray::Array4;
/// # fn main() -> natten::Result<()> {
/// // Queries 0..2 see keys 0..2, queries 2..4 see keys 0..2 and 4..6.
/// let blocks = BlockMask::from_lists(&[vec![0], vec![0, 2]], 3, [2, 2])?;
/// assert_eq!(blocks.text("blocks"), "blocks[q // 2, k // 2] != 0");
/// let (query, key) = (Array4::<f64>::zeros((1, 4, 1, 2)), Array4::<f64>::zeros((1, 6, 1, 2)));
/// let call = natten::attention(&query, &key, &key)
///     .block_mask("blocks", &blocks)
///     .device(&natten::Registry::probe().device("reference")?);
/// let seen: Vec<f64> = call.forward()?.logsumexp()?.to_f64().iter().map(|l| l.exp().round()).collect();
/// assert_eq!(seen, [2.0, 2.0, 4.0, 4.0]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMask {
    blocks: Array2<i32>,
    block: [usize; 2],
}

impl BlockMask {
    /// A mask from one list of key blocks for every query block. `key_blocks` is how many blocks the keys have, `block`
    /// the tokens of a query block and of a key block; the last block of either may reach beyond the tokens. Tokens
    /// count in row-major order.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no list or no key block, where a list names a block that is not there, and for
    /// blocks of no token or of more than an `i32` counts.
    pub fn from_lists(lists: &[Vec<usize>], key_blocks: usize, block: [usize; 2]) -> Result<Self> {
        for (name, value) in [("lists", lists.len()), ("key_blocks", key_blocks)] {
            if value == 0 {
                return Err(Error::invalid(name, 0, "there must be at least one block", "check the lengths"));
            }
        }
        if let Some(tokens) = block.into_iter().find(|&tokens| i32::try_from(tokens).map_or(true, |t| t == 0)) {
            return Err(Error::invalid(
                "block",
                tokens,
                "a block has between 1 and 2^31 - 1 tokens",
                "128 is usual",
            ));
        }
        let mut blocks = Array2::zeros((lists.len(), key_blocks));
        for (query, list) in lists.iter().enumerate() {
            for &key in list {
                *blocks.get_mut((query, key)).ok_or_else(|| {
                    Error::invalid(
                        format!("lists[{query}]"),
                        key,
                        format!("there are {key_blocks} key blocks, counted from 0"),
                        "check the list, or the number of key blocks",
                    )
                })? = 1;
            }
        }
        Ok(Self { blocks, block })
    }

    /// `[query blocks, key blocks]`: 1 where a block is seen, else 0.
    pub fn array(&self) -> ArrayView2<'_, i32> {
        self.blocks.view()
    }

    /// The mask as text, where the table is captured as `name`.
    pub fn text(&self, name: &str) -> String {
        let [query, key] = self.block;
        format!("{name}[q // {query}, k // {key}] != 0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_checked() {
        let refused = |lists: &[Vec<usize>], key_blocks, block| {
            BlockMask::from_lists(lists, key_blocks, block).unwrap_err().to_string()
        };
        assert!(refused(&[vec![0], vec![3]], 3, [2, 2]).contains("lists[1] is 3"));
        assert!(refused(&[], 3, [2, 2]).contains("lists is 0"));
        assert!(refused(&[vec![]], 0, [2, 2]).contains("key_blocks is 0"));
        assert!(refused(&[vec![]], 1, [2, 0]).contains("block is 0"));
    }
}
