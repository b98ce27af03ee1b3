//! The smallest program: notes the time and its pid in a file or a fifo as its very first act, and stays; with two arguments it
//! notes them and ends, with three it only stays. It has no linker that would run for half a millisecond after `exec`, on a CPU
//! that the measured ones want.
#![allow(unsafe_code)]

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

// Three arguments: pause for ever. Else clock_gettime(MONOTONIC) in nanoseconds; getpid; openat(the path that follows, O_WRONLY);
// write(16 bytes); and with two arguments exit(0). The code runs where it is put, and not here: here it is only text.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".pushsection .rodata",
    "bench_tiny_begin:",
    "mov r12, [rsp]",
    "cmp r12, 4",
    "jae 3f",
    "sub rsp, 16",
    "mov eax, 228",
    "mov edi, 1",
    "mov rsi, rsp",
    "syscall",
    "imul rax, [rsp], 1000000000",
    "add [rsp + 8], rax",
    // Behind the time: where the number of arguments was.
    "mov eax, 39",
    "syscall",
    "mov [rsp + 16], rax",
    "mov eax, 257",
    "mov edi, -100",
    "lea rsi, [rip + 2f]",
    "mov edx, 1",
    "syscall",
    "mov edi, eax",
    "mov eax, 1",
    "lea rsi, [rsp + 8]",
    "mov edx, 16",
    "syscall",
    "cmp r12, 3",
    "jb 3f",
    "mov eax, 60",
    "xor edi, edi",
    "syscall",
    "3:",
    "mov eax, 34",
    "syscall",
    "jmp 3b",
    "2:",
    "bench_tiny_end:",
    ".popsection",
);
#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".pushsection .rodata",
    ".balign 4",
    "bench_tiny_begin:",
    "ldr x9, [sp]",
    "cmp x9, #4",
    "b.hs 3f",
    "sub sp, sp, #16",
    "mov x8, #113",
    "mov x0, #1",
    "mov x1, sp",
    "svc 0",
    "ldp x0, x1, [sp]",
    "mov w2, #0xca00",
    "movk w2, #0x3b9a, lsl #16",
    "madd x0, x0, x2, x1",
    "str x0, [sp]",
    "mov x8, #172",
    "svc 0",
    "str x0, [sp, #8]",
    "mov x8, #56",
    "mov x0, #-100",
    "adr x1, 2f",
    "mov x2, #1",
    "svc 0",
    "mov x8, #64",
    "mov x1, sp",
    "mov x2, #16",
    "svc 0",
    "cmp x9, #3",
    "b.lo 3f",
    "mov x8, #93",
    "mov x0, #0",
    "svc 0",
    // ppoll on nothing, without an end.
    "3:",
    "mov x8, #73",
    "mov x0, #0",
    "mov x1, #0",
    "mov x2, #0",
    "mov x3, #0",
    "svc 0",
    "b 3b",
    "2:",
    "bench_tiny_end:",
    ".popsection",
);

unsafe extern "C" {
    static bench_tiny_begin: u8;
    static bench_tiny_end: u8;
}

fn code() -> &'static [u8] {
    let (begin, end) = (&raw const bench_tiny_begin, &raw const bench_tiny_end);
    // SAFETY: both labels are in the same piece of constant data, above, the second behind the first.
    unsafe { std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) }
}

/// Writes the program into a directory and returns its path. What it notes goes into the file `stamp`, which must be there.
pub fn write(dir: &Path, stamp: &Path) -> String {
    const MACHINE: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let body = [code(), stamp.as_os_str().as_bytes(), b"\0"].concat();
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut put = |bytes: &[u8]| elf.extend_from_slice(bytes);
    // The header: an executable whose one program header follows.
    put(&2u16.to_le_bytes());
    put(&MACHINE.to_le_bytes());
    put(&1u32.to_le_bytes());
    [BASE + HEADERS, 64, 0].iter().for_each(|field| put(&field.to_le_bytes()));
    put(&0u32.to_le_bytes());
    [64u16, 56, 1, 0, 0, 0].iter().for_each(|field| put(&field.to_le_bytes()));
    // The program header: all of the file, readable and executable.
    put(&1u32.to_le_bytes());
    put(&5u32.to_le_bytes());
    let size = HEADERS + body.len() as u64;
    [0, BASE, BASE, size, size, 0x1_0000].iter().for_each(|field| put(&field.to_le_bytes()));
    put(&body);
    let path = dir.join("tiny");
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o755).open(&path).unwrap();
    file.write_all(&elf).unwrap();
    path.to_str().unwrap().to_owned()
}
