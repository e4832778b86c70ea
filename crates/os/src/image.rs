//! The program and its libraries as they lie in this process's memory.
//!
//! Starting touches far more of a program than waiting does: arguments, configuration, certificates, and every place that
//! the loader writes an address to. With it the kernel maps what lies around, so that most of the program counts as resident
//! from then on. [`give_back`] takes it out of the process again; what is needed comes back at the first touch, 64 KiB at a
//! time, from the kernel's cache of the file.
//!
//! Holds: only segments that nobody may write to are given back, so nothing is lost that this process has made; data and
//! pointers that the loader has filled in are in others. (What a debugger has changed in code is undone.) Does not: free
//! memory of the host by itself: a file's pages are kept once for all who run it, and the kernel takes them back sooner
//! while nobody has them mapped.

use std::ffi::c_void;

/// Takes whatever of the program and its libraries cannot be written out of this process, and says how many bytes of address
/// space that was. Costs about a microsecond for each 64 KiB that is needed again, on the thread that needs it.
pub fn give_back() -> usize {
    let mut given: usize = 0;
    // SAFETY: the callback is called before this returns, with the pointer that is given here and in no other way, and
    // nothing else uses `given` meanwhile.
    #[allow(unsafe_code)]
    unsafe {
        libc::dl_iterate_phdr(Some(give_back_object), std::ptr::from_mut(&mut given).cast());
    }
    given
}

/// Called for each loaded object; 0 asks for the next one.
#[allow(unsafe_code)]
unsafe extern "C" fn give_back_object(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    given: *mut c_void,
) -> libc::c_int {
    // SAFETY: the C library passes a description that is valid during the call, with as many headers as it says, and the
    // pointer that `give_back` gave it, which is to a `usize` that nobody else uses.
    let (base, headers, given) = unsafe {
        let object = &*object;
        if object.dlpi_phdr.is_null() {
            return 0;
        }
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum));
        (object.dlpi_addr, headers, &mut *given.cast::<usize>())
    };
    let page = rustix::param::page_size();
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // Of 32 bits on some targets.
        #[allow(clippy::unnecessary_cast)]
        let (start, size) = (base.wrapping_add(header.p_vaddr) as usize, header.p_memsz as usize);
        let first = start - start % page;
        let length = (start - first + size).next_multiple_of(page);
        // SAFETY: these pages are a segment of a loaded object, which stays loaded while the list is walked. It was mapped
        // privately from a file and without the right to write, and objects of this program have no relocations in such
        // segments, so its pages are the file's: whoever touches one again finds the same bytes.
        let outcome = unsafe { libc::madvise(first as *mut c_void, length, libc::MADV_DONTNEED) };
        // It can be refused, for memory that is locked; then it stays.
        if outcome == 0 {
            *given += length;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB that are resident of those mappings of this program's file that match, by `/proc/self/smaps` (proc(5)).
    fn resident_kib(wanted: impl Fn(&str) -> bool) -> u64 {
        let program = std::env::current_exe().unwrap().display().to_string();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut ours, mut sum) = (false, 0);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            match (words.next().unwrap_or_default(), words.next().unwrap_or_default()) {
                ("Rss:", kib) if ours => sum += kib.parse::<u64>().unwrap(),
                (head, permissions) if !head.ends_with(':') => {
                    ours = line.ends_with(&program) && wanted(permissions);
                }
                _ => {}
            }
        }
        sum
    }

    /// Has a pointer that the loader fills in for every text.
    static TEXTS: [&str; 3] = ["neither code", "nor constants", "nor pointers to them"];

    #[test]
    fn a_program_goes_on_without_what_it_gave_back_and_keeps_what_it_has_written() {
        static WRITTEN: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
        WRITTEN.lock().unwrap().extend(TEXTS.iter().map(ToString::to_string));
        let code = |permissions: &str| permissions == "r-xp";
        let others = |permissions: &str| permissions.starts_with("rw");
        // Whatever has been run by now and all that is around it.
        let (before, kept) = (resident_kib(code), resident_kib(others));
        let given = give_back();
        let after = resident_kib(code);
        assert!(given >= 1 << 20, "{given} bytes");
        assert!(after < before, "{before} KiB of code, then {after}");
        assert!(resident_kib(others) >= kept);
        assert_eq!(*WRITTEN.lock().unwrap(), TEXTS);
        assert_eq!(std::thread::spawn(|| TEXTS.concat().len()).join().unwrap(), 45);
    }
}
