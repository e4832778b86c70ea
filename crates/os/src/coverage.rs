//! Counters that the compiler puts at every branch of instrumented code, for whoever looks for inputs that reach new code.
//!
//! LLVM's SanitizerCoverage (`inline-8bit-counters`) has each object file announce its counters at the start of the process.
//! Holds: without instrumented code there are none, and nothing here does anything. Does not: say where a counter is.

use std::slice;
use std::sync::Mutex;

/// Where counters are: first and one behind the last.
static RANGES: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Called by instrumented code before `main`.
///
/// # Safety
/// The range is memory of bytes that lives as long as the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, end: *mut u8) {
    let range = (start as usize, end as usize);
    if let Ok(mut ranges) = RANGES.lock()
        && range.0 < range.1
        && !ranges.contains(&range)
    {
        ranges.push(range);
    }
}

/// Gives every counter to `look`, in an order that stays, and begins them anew. Only sensible while no other thread runs
/// instrumented code.
pub fn take(mut look: impl FnMut(usize, u8)) {
    let Ok(ranges) = RANGES.lock() else { return };
    let mut number = 0;
    for (start, end) in ranges.iter() {
        // SAFETY: the range was announced by the code whose counters they are, and is there as long as the process.
        // Counters are plain bytes, for which every value is good; another thread could at most lose a count.
        let counters = unsafe { slice::from_raw_parts_mut(*start as *mut u8, end - start) };
        for counter in counters {
            if *counter != 0 {
                look(number, *counter);
                *counter = 0;
            }
            number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_given_once() {
        let counters = Box::leak(Box::new([0u8, 3, 0, 255]));
        let range = counters.as_mut_ptr_range();
        // SAFETY: they were leaked.
        unsafe { __sanitizer_cov_8bit_counters_init(range.start, range.end) };
        let mut seen = Vec::new();
        take(|number, count| seen.push((number, count)));
        assert_eq!(seen, [(1, 3), (3, 255)]);
        take(|_, _| panic!("they were taken"));
    }
}
