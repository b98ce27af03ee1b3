//! A variable of the environment that the child itself fills in: its process id, which nobody knows before it is born.

use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicU8, Ordering};

/// The digits of the largest process id, and then some.
const DIGITS: usize = 20;

/// `NAME=`, room for a number, and the zero at the end. Atomic, since parent and child share the memory.
pub(super) struct PidEntry {
    bytes: Box<[AtomicU8]>,
    /// Where the number begins.
    start: usize,
}

impl PidEntry {
    pub fn new(name: &CStr) -> Self {
        let text = name.to_bytes().iter().copied().chain([b'=']);
        let bytes: Box<[AtomicU8]> = text.chain([0; DIGITS + 1]).map(AtomicU8::new).collect();
        Self { start: bytes.len() - DIGITS - 1, bytes }
    }

    /// Returns what `execve` reads.
    pub fn pointer(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }

    /// Writes the number. Called in the child: no allocation, no panic.
    pub fn set(&self, number: usize) {
        let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
        let mut rest = number;
        for byte in self.bytes.iter().skip(self.start).take(digits).rev() {
            byte.store(b'0' + u8::try_from(rest % 10).unwrap_or(0), Ordering::Relaxed);
            rest /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_stands_behind_the_name() {
        for number in [0, 7, 10, 4_194_304, usize::MAX] {
            let entry = PidEntry::new(c"WATCHDOG_PID");
            entry.set(number);
            let text: Vec<u8> = entry.bytes.iter().map(|byte| byte.load(Ordering::Relaxed)).collect();
            let text = CStr::from_bytes_until_nul(&text).unwrap();
            assert_eq!(text.to_str().unwrap(), format!("WATCHDOG_PID={number}"));
        }
    }
}
