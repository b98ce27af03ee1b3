//! What an executable file needs in order to run, by its first bytes.
//!
//! `execve` answers ENOENT for a script whose interpreter is missing and for a program whose loader is, and ENOEXEC for one of another
//! machine: errors that name nothing of it. The child reads the first bytes of the file that it could not execute, with the rights
//! that it has; here they are understood.

/// How many bytes are read: an ELF header, as many program headers as linkers make, and the loader's path behind them.
pub(super) const HEAD_MAX: usize = 2048;

/// What a file needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// The program of its first line: `#!/bin/sh`.
    Interpreter(Vec<u8>),
    /// The loader that links it with its libraries.
    Loader(Vec<u8>),
    /// Another machine than this one, called like this.
    Machine(String),
    /// It has no bytes.
    Content,
    /// Nothing that can be said.
    Unknown,
}

/// Names of machines; elf.h.
const MACHINES: [(u16, &str); 8] = [
    (3, "x86 (32 bits)"),
    (8, "MIPS"),
    (21, "ppc64"),
    (22, "s390x"),
    (40, "arm (32 bits)"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "RISC-V"),
];

/// The number of this machine, and of the one whose 32-bit programs it may run.
const OWN: [u16; 2] = if cfg!(target_arch = "aarch64") { [183, 40] } else { [62, 3] };

/// Says what a file with these first bytes needs.
///
/// # Kernel
/// `fs/binfmt_script.c`, `fs/binfmt_elf.c`; elf(5).
pub(super) fn needs(head: &[u8]) -> Needs {
    if head.is_empty() {
        return Needs::Content;
    }
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let mut words = line.split(is_blank).filter(|word| !word.is_empty());
        return words.next().map_or(Needs::Unknown, |word| Needs::Interpreter(word.to_vec()));
    }
    elf(head).unwrap_or(Needs::Unknown)
}

fn elf(head: &[u8]) -> Option<Needs> {
    const PT_INTERP: u64 = 3;
    let rest = head.strip_prefix(b"\x7fELF")?;
    let (is_wide, is_little) = (*rest.first()? == 2, *rest.get(1)? == 1);
    let number = |at: usize, size: usize| {
        let bytes = head.get(at..at.checked_add(size)?)?;
        let digit = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if is_little { bytes.iter().rev().fold(0, digit) } else { bytes.iter().fold(0, digit) })
    };
    let machine = u16::try_from(number(18, 2)?).ok()?;
    if !OWN.contains(&machine) || !is_little {
        let known = MACHINES.iter().find(|(of, _)| *of == machine).map(|(_, name)| (*name).to_owned());
        return Some(Needs::Machine(known.unwrap_or_else(|| format!("ELF machine {machine}"))));
    }
    // The fields of a program header: offset and size in the file.
    let (place, size) = if is_wide { ((8, 8), (32, 8)) } else { ((4, 4), (16, 4)) };
    let table = if is_wide { number(32, 8)? } else { number(28, 4)? };
    let (each, count) = if is_wide { (number(54, 2)?, number(56, 2)?) } else { (number(42, 2)?, number(44, 2)?) };
    for index in 0..count {
        let at = usize::try_from(index.checked_mul(each)?.checked_add(table)?).ok()?;
        if number(at, 4)? == PT_INTERP {
            let from = usize::try_from(number(at + place.0, place.1)?).ok()?;
            let length = usize::try_from(number(at + size.0, size.1)?).ok()?;
            let path = head.get(from..from.checked_add(length)?)?;
            return Some(Needs::Loader(path.split(|byte| *byte == 0).next()?.to_vec()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_needs_the_program_of_its_first_line() {
        let interpreter = |head: &[u8]| match needs(head) {
            Needs::Interpreter(path) => String::from_utf8(path).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(interpreter(b"#!/bin/sh\necho"), "/bin/sh");
        assert_eq!(interpreter(b"#! \t/usr/bin/env python3\n"), "/usr/bin/env");
        assert_eq!(interpreter(b"#!/bin/sh\r\n"), "/bin/sh\r");
        assert_eq!(needs(b"#!\n"), Needs::Unknown);
        assert_eq!(needs(b""), Needs::Content);
        assert_eq!(needs(b"echo hello"), Needs::Unknown);
    }

    #[test]
    fn this_test_needs_a_loader_and_no_torn_header_harms() {
        let mut head = std::fs::read("/proc/self/exe").unwrap();
        head.truncate(HEAD_MAX);
        let Needs::Loader(path) = needs(&head) else { return };
        assert!(path.starts_with(b"/lib"), "{path:?}");
        for length in 0..head.len() {
            needs(&head[..length]);
        }
        for at in 0..64 {
            let mut torn = head.clone();
            torn[at] = 0xff;
            needs(&torn);
        }
        head[18..20].copy_from_slice(&243u16.to_le_bytes());
        assert_eq!(needs(&head), Needs::Machine("RISC-V".to_owned()));
    }
}
