//! A file system that does not answer, in a mount namespace of the calling thread's own: nothing of it can be left behind.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Where connections can be aborted.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// How the server of a file system fails to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It reads nothing: whoever waits for it can be killed.
    Unread,
    /// It reads what it is asked and does not answer: whoever waits for it cannot even be killed.
    Read,
}

/// A mounted file system. Once dropped, all who wait for it are told that it is gone.
pub struct Fuse {
    device: Option<File>,
    abort: PathBuf,
    at: PathBuf,
    asked: Option<Receiver<()>>,
}

/// Gives the calling thread, and what it starts from now on, mounts of its own.
#[allow(unsafe_code)]
pub fn unshare_mounts() {
    // SAFETY: neither call takes memory of ours but a text, and both change what this thread sees alone.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "{}", std::io::Error::last_os_error());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let none = std::ptr::null();
        assert_eq!(libc::mount(none, c"/".as_ptr(), none, private, none.cast()), 0);
    }
}

impl Fuse {
    /// Mounts one; `None` where the host has no FUSE.
    #[allow(unsafe_code)]
    pub fn mount(at: &Path, silence: Silence) -> Option<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        std::fs::create_dir(at).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other\0", device.as_raw_fd());
        let target = std::ffi::CString::new(at.to_str().unwrap()).unwrap();
        let kind = c"fuse".as_ptr();
        // SAFETY: all texts end in a zero byte and outlive the call.
        let mounted = unsafe { libc::mount(kind, target.as_ptr(), kind, libc::MS_NOSUID, options.as_ptr().cast()) };
        if mounted != 0 {
            return None;
        }
        let connections = std::ffi::CString::new(CONNECTIONS).unwrap();
        // SAFETY: as above. It may be mounted already.
        unsafe { libc::mount(kind, connections.as_ptr(), c"fusectl".as_ptr(), 0, std::ptr::null()) };
        let asked = (silence == Silence::Read).then(|| serve(device.try_clone().unwrap()));
        let abort = format!("{CONNECTIONS}/{}/abort", minor_of(at)).into();
        Some(Self { device: Some(device), abort, at: at.to_owned(), asked })
    }

    /// Waits until somebody has asked for something, and hangs.
    pub fn await_request(&self) {
        self.asked.as_ref().unwrap().recv_timeout(Duration::from_secs(30)).unwrap();
    }
}

/// Returns the number of the connection, as `/proc/self/mountinfo` has it: to ask the file system itself would hang.
fn minor_of(at: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(4) == at.to_str()).unwrap();
    line.split(' ').nth(2).unwrap().rsplit_once(':').unwrap().1.to_owned()
}

/// Answers the first request, which is FUSE_INIT, and reads all others.
fn serve(mut device: File) -> Receiver<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut request = vec![0; 1 << 17];
        let length = device.read(&mut request).unwrap();
        assert!(length >= 40 && request[4..8] == 26u32.to_ne_bytes(), "FUSE_INIT");
        // `struct fuse_out_header`, then `struct fuse_init_out` of version 7.31.
        let mut answer = Vec::new();
        answer.extend(80u32.to_ne_bytes());
        answer.extend(0u32.to_ne_bytes());
        answer.extend(&request[8..16]);
        answer.extend([7u32.to_ne_bytes(), 31u32.to_ne_bytes()].concat());
        answer.resize(80, 0);
        answer[36..40].copy_from_slice(&4096u32.to_ne_bytes());
        assert_eq!(device.write(&answer).unwrap(), 80);
        while device.read(&mut request).is_ok() {
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Drop for Fuse {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // The thread that reads has the device open as well.
        drop(std::fs::write(&self.abort, "1"));
        drop(self.device.take());
        let at = std::ffi::CString::new(self.at.to_str().unwrap()).unwrap();
        // SAFETY: the text ends in a zero byte and outlives the call.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    }
}
