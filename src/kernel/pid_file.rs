//! Files with the number of a process, read with the rights of the user who is to have written them.

use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};
use rustix::io::Errno;

use super::error::{KernelError, Result};
use super::user::Credentials;

/// How much of a file is read, in bytes: more than any number has.
const LENGTH_MAX: usize = 64;

/// Gives the calling thread the file rights of a user, for as long as it lives: what root may beyond them is gone.
///
/// # Errors
/// EPERM: this process may not.
///
/// # Kernel
/// setfsuid(2), setfsgid(2), credentials(7): each thread has its own. libc's `setgroups` would change all threads.
#[allow(unsafe_code)]
pub fn become_reader(user: &Credentials) -> Result<()> {
    let failed = |operation| KernelError::new(operation, user.uid.to_string(), Errno::PERM);
    // SAFETY: the list is as long as is said, and outlives the call.
    if unsafe { libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) } != 0 {
        return Err(failed("set groups of"));
    }
    // A second call tells whether the first one was obeyed: these two report no error.
    let set = |call: libc::c_long, id: u32| {
        // SAFETY: it takes a number and touches no memory.
        let set = || unsafe { libc::syscall(call, id) };
        set();
        set() == libc::c_long::from(id)
    };
    if !set(libc::SYS_setfsgid, user.gid) || !set(libc::SYS_setfsuid, user.uid) {
        return Err(failed("take the file rights of"));
    }
    Ok(())
}

/// Reads the number of a process from a regular file; `None` if there is none in it yet.
///
/// # Errors
/// Those of opening and reading it. EPERM, ELOOP: it is on procfs, or a link of procfs leads to it,
/// which would show the agent's user something of this process.
pub fn read(path: &Path) -> Result<Option<i32>> {
    let failed = |errno| KernelError::new("read", path.display().to_string(), errno);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS).map_err(failed)?;
    if rustix::fs::fstatfs(&file).map_err(failed)?.f_type == PROC_SUPER_MAGIC {
        return Err(failed(Errno::PERM));
    }
    let about = rustix::fs::fstat(&file).map_err(failed)?;
    if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
        return Err(failed(Errno::INVAL));
    }
    let mut text = [0; LENGTH_MAX];
    let length = rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut text, 0)).map_err(failed)?;
    let text = std::str::from_utf8(&text[..length]).ok();
    Ok(text.and_then(|text| text.trim().parse().ok()).filter(|pid| *pid > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_and_nothing_else_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        for (text, pid) in [("17\n", Some(17)), ("  4 ", Some(4)), ("", None), ("-3", None), ("0", None), ("x", None)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap(), pid, "{text:?}");
        }
        std::fs::write(&path, "9".repeat(1000)).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        assert_eq!(read(dir.path()).unwrap_err().errno, Errno::INVAL);
        assert_eq!(read(Path::new("/dev/null")).unwrap_err().errno, Errno::INVAL);
        assert_eq!(read(Path::new("/proc/self/oom_score")).unwrap_err().errno, Errno::PERM);
        assert_eq!(read(Path::new("/proc/self/exe")).unwrap_err().errno, Errno::LOOP);
    }

    #[test]
    fn a_reader_has_the_users_rights_and_only_in_its_thread() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        std::fs::write(&path, "17").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let other = path.clone();
        let nobody = super::super::user::lookup(Some("65534"), Some("65534")).unwrap();
        let refused = std::thread::spawn(move || {
            become_reader(&nobody).unwrap();
            read(&other).unwrap_err().errno
        });
        assert_eq!(refused.join().unwrap(), Errno::ACCESS);
        assert_eq!(read(&path).unwrap(), Some(17));
    }
}
