//! What an agent reads of the files of the one before it, for whoever wants to know that nothing in them harms it: each
//! function says whether a file in a folder was taken, and that it is written again as it was read.
//!
//! Does not: keep anything, or belong to an agent that runs.

use std::path::Path;

use crate::instance::saved;
use crate::sizes::Sizes;

/// `instance.json`. `None` if it was not taken; then whether it is the same when it is written and read again.
pub fn instance(folder: &Path) -> Option<bool> {
    let read = || saved::Saved::read(folder).ok().flatten();
    let first = read()?;
    let again = first.write(folder).ok().and_then(|()| read());
    Some(again.as_ref() == Some(&first))
}

/// `retired`: how many resources it holds, and whether they are the same when they are written and read again.
pub fn retired(folder: &Path) -> (usize, bool) {
    let read = saved::read_retired(folder);
    let again = saved::write_retired(folder, read.iter()).map(|()| saved::read_retired(folder));
    (read.len(), again.is_ok_and(|again| again == read))
}

/// `sizes.json`: what it says of `shop/web` under the engine `native`.
pub fn size(folder: &Path) -> u64 {
    Sizes::open(folder.join("sizes.json")).of("shop/web", "native")
}
