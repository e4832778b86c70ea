//! Settings of jemalloc for processes of which there is one per workload.
//!
//! Holds: they are in the program, so no build setting or environment is needed; the environment variable
//! `_RJEM_MALLOC_CONF` is read after them and wins. A program that does not link jemalloc carries one unused
//! string. Does not: choose the allocator; that is `#[global_allocator]` in the program.

/// Few arenas, because workers share nothing and there are few of them; free memory goes back to the kernel
/// after a second; no huge pages, which cost an idle process 2 MiB for each.
const SETTINGS: &[u8; 104] = b"narenas:2,tcache_max:4096,background_thread:true,max_background_threads:1,dirty_decay_ms:1000,thp:never\0";

// Safety: the name is jemalloc's own, declared by it as a weak `const char *`; this is a thin pointer to bytes that
// end with NUL and live as long as the program.
#[allow(unsafe_code)]
#[used]
#[unsafe(export_name = "_rjem_malloc_conf")]
static MALLOC_CONF: &[u8; SETTINGS.len()] = SETTINGS;

/// The settings, as jemalloc reads them. A program that calls this has them: the call is what makes the
/// linker take this part of the crate.
pub fn settings() -> &'static str {
    let text = std::hint::black_box(&MALLOC_CONF).strip_suffix(b"\0").unwrap_or_default();
    std::str::from_utf8(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_pairs() {
        assert!(!settings().is_empty());
        for pair in settings().split(',') {
            let (name, value) = pair.split_once(':').unwrap();
            assert!(!name.is_empty() && !value.is_empty(), "{pair}");
        }
    }
}
