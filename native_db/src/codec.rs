//! Texts packed by Zstandard, alone or as what differs from an earlier one.
//!
//! A delta is a frame that was compressed with the earlier text as its prefix (Zstandard's
//! `--patch-from`): whatever the two have in common is a reference, wherever it stands.

use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, compress_bound, get_error_name};

use crate::engine::{DbError, Result};

/// Higher levels cost more than the disk space is worth: writers wait for it.
const LEVEL: i32 = 1;
/// log₂ of the farthest reference, in bytes; and the farthest that every reader must accept.
const SMALLEST_WINDOW: u32 = 10;
const LARGEST_WINDOW: u32 = 27;
/// log₂ of the most entries, of four bytes each, in the table that finds references.
const LARGEST_TABLE: u32 = 20;

/// Packs `text`; with `prefix`, as what differs from it.
pub fn pack(text: &[u8], prefix: Option<&[u8]>) -> Result<Vec<u8>> {
    let mut packed = Vec::with_capacity(compress_bound(text.len()));
    let mut context = CCtx::create();
    let done = context
        .set_parameter(CParameter::CompressionLevel(LEVEL))
        .and_then(|_| match prefix {
            Some(prefix) => context
                .set_parameter(CParameter::WindowLog(window(text, prefix)))
                // By default the table is as small as suits a text without a prefix.
                .and_then(|_| {
                    let size = window(text, prefix).min(LARGEST_TABLE);
                    context.set_parameter(CParameter::HashLog(size))
                })
                .and_then(|_| context.ref_prefix(prefix)),
            None => Ok(0),
        })
        .and_then(|_| context.compress2(&mut packed, text));
    done.map_err(|code| {
        DbError::InvalidArgument(format!("cannot be compressed: {}", get_error_name(code)))
    })?;
    packed.shrink_to_fit();
    Ok(packed)
}

/// Unpacks what [`pack`] made of a text of `size` bytes, given the same `prefix`.
pub fn unpack(packed: &[u8], size: usize, prefix: Option<&[u8]>) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    text.try_reserve_exact(size)
        .map_err(|_| DbError::Unreadable(format!("a packed text claims to have {size} bytes")))?;
    let mut context = DCtx::create();
    let done = context
        .set_parameter(DParameter::WindowLogMax(LARGEST_WINDOW))
        .and_then(|_| match prefix {
            Some(prefix) => context.ref_prefix(prefix),
            None => Ok(0),
        })
        .and_then(|_| context.decompress(&mut text, packed));
    match done {
        Ok(length) if length == size => Ok(text),
        Ok(length) => Err(DbError::Unreadable(format!(
            "a packed text has {length} bytes and should have {size}"
        ))),
        Err(code) => Err(DbError::Unreadable(format!(
            "a packed text cannot be unpacked: {}",
            get_error_name(code)
        ))),
    }
}

/// Wide enough that the end of the text can refer to the beginning of the prefix.
fn window(text: &[u8], prefix: &[u8]) -> u32 {
    let reach = text.len().saturating_add(prefix.len()).max(1);
    (reach.ilog2() + 1).clamp(SMALLEST_WINDOW, LARGEST_WINDOW)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_comes_back(text: Vec<u8>, prefix: Option<Vec<u8>>) {
            let packed = pack(&text, prefix.as_deref()).unwrap();
            prop_assert_eq!(unpack(&packed, text.len(), prefix.as_deref()).unwrap(), text);
        }

        #[test]
        fn damage_is_an_error_or_another_text_and_never_a_panic(
            text: Vec<u8>, packed: Vec<u8>, size in 0_usize..1000,
        ) {
            // A checksum above this layer tells another text.
            let _ = unpack(&packed, size, Some(&text));
            let mut cut = pack(&text, None).unwrap();
            cut.pop();
            prop_assert!(unpack(&cut, text.len(), None).is_err());
        }
    }

    #[test]
    fn a_delta_is_as_small_as_the_difference_even_far_apart() {
        let mut noise = 1_u32;
        let mut random = || {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        };
        let old: Vec<u8> = (0..1_000_000).map(|_| random()).collect();
        let mut new = old.clone();
        new.splice(500_000..500_010, *b"inserted in the middle");
        let packed = pack(&new, Some(&old)).unwrap();
        assert!(packed.len() < 2_000, "{}", packed.len());
        assert_eq!(unpack(&packed, new.len(), Some(&old)).unwrap(), new);
    }
}
