//! Where a thread is, as numbers that mean the same in every process of a build.
//!
//! Holds: nothing is read from disk and no symbol is looked up. Does not: name functions; `addr2line -e PROGRAM OFFSET`
//! does.

/// Most frames.
#[cfg(target_env = "gnu")]
const MAX_FRAMES: usize = 64;

/// The return addresses of the calling thread that lie in this program, innermost first, as offsets from where its file
/// is loaded; at most 64. Frames of libraries are left out. Empty where the C library is not GNU's.
pub fn offsets() -> Vec<usize> {
    #[cfg(target_env = "gnu")]
    {
        let base = base_of(offsets as *const () as usize);
        let frames = addresses();
        frames
            .into_iter()
            .filter(|frame| base_of(*frame) == base)
            .map(|frame| frame - base.unwrap_or(0))
            .collect()
    }
    #[cfg(not(target_env = "gnu"))]
    Vec::new()
}

#[cfg(target_env = "gnu")]
fn addresses() -> Vec<usize> {
    let mut frames = [std::ptr::null_mut(); MAX_FRAMES];
    // SAFETY: the function writes no more pointers than it is told there is room for, and reads none of them.
    #[allow(unsafe_code)]
    let number = unsafe { libc::backtrace(frames.as_mut_ptr(), MAX_FRAMES as libc::c_int) };
    let number = usize::try_from(number).unwrap_or(0).min(MAX_FRAMES);
    frames[..number].iter().map(|frame| *frame as usize).collect()
}

/// Where the file that this address is of is loaded.
#[cfg(target_env = "gnu")]
fn base_of(address: usize) -> Option<usize> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked about, and all-zero is a valid value of the structure, which is read only after
    // the call; its strings are not.
    #[allow(unsafe_code)]
    let (found, info) = unsafe {
        let found = libc::dladdr(address as *const libc::c_void, info.as_mut_ptr());
        (found, info.assume_init())
    };
    (found != 0).then_some(info.dli_fbase as usize)
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[inline(never)]
    fn here() -> Vec<usize> {
        offsets()
    }

    #[test]
    fn the_same_way_gives_the_same_offsets_and_another_one_does_not() {
        let mut same = Vec::new();
        for _ in 0..2 {
            same.push(here());
        }
        let other = here();
        assert!(same[0].len() > 2, "{same:?}");
        assert_eq!(same[0], same[1]);
        assert_ne!(same[0], other);
        let size = std::fs::metadata(std::env::current_exe().unwrap()).unwrap().len();
        assert!(same[0].iter().all(|offset| (*offset as u64) < size), "{same:?}, {size}");
    }
}
