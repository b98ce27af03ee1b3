//! What a child reports about its way to `exec`, in a page that it shares with its parent even
//! where it shares no other memory.

use std::cell::UnsafeCell;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicUsize, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::needs::HEAD_MAX;
use crate::model::stage::Stage;

/// What one child reports.
pub(super) struct Report {
    /// The step that the child is at, as an index into [`Stage::ALL`].
    pub stage: AtomicU8,
    /// The error number of the step that failed, 0 if none did.
    pub errno: AtomicI32,
    /// Which one of several the step failed at: the index of a descriptor, a limit, a path.
    pub which: AtomicUsize,
    /// The first bytes of the file that could not be executed.
    pub head: UnsafeCell<[u8; HEAD_MAX]>,
    /// How many of them were read; none if that is `usize::MAX`.
    pub head_length: AtomicUsize,
}

impl Report {
    fn new() -> Self {
        Self {
            stage: AtomicU8::new(Stage::Clone as u8),
            errno: AtomicI32::new(0),
            which: AtomicUsize::new(0),
            head: UnsafeCell::new([0; HEAD_MAX]),
            head_length: AtomicUsize::new(usize::MAX),
        }
    }

    /// Returns what the child has read, if it has. Only for its parent, once the child has ended.
    pub fn head(&self) -> Option<&[u8]> {
        // SAFETY: the child, the only one that writes there, has ended when its parent goes on
        // (CLONE_VFORK).
        #[allow(unsafe_code)]
        let bytes = unsafe { &*self.head.get() };
        bytes.get(..self.head_length.load(Ordering::Relaxed))
    }
}

/// The page of the reports of one thread's children, one after the other.
pub(super) struct Page(NonNull<Report>);

impl Page {
    /// Maps a page.
    #[allow(unsafe_code)]
    pub fn new() -> rustix::io::Result<Self> {
        let (size, access) = (size_of::<Report>(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice takes the place of nothing.
        let at = unsafe { mmap_anonymous(std::ptr::null_mut(), size, access, MapFlags::SHARED) }?;
        let page = Self(NonNull::new(at.cast()).ok_or(rustix::io::Errno::NOMEM)?);
        page.clear();
        Ok(page)
    }

    /// Forgets what the child before has reported.
    pub fn clear(&self) {
        // SAFETY: the mapping is this thread's, large enough and aligned to a page; no child that
        // writes to it is left.
        #[allow(unsafe_code)]
        unsafe {
            self.0.write(Report::new());
        }
    }
}

impl Deref for Page {
    type Target = Report;

    fn deref(&self) -> &Report {
        // SAFETY: `new` has written a report there, and it is mapped for as long as this lives.
        #[allow(unsafe_code)]
        unsafe {
            self.0.as_ref()
        }
    }
}

impl Drop for Page {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; no child uses it any more when its thread ends.
        match unsafe { munmap(self.0.as_ptr().cast(), size_of::<Report>()) } {
            Ok(()) | Err(_) => {}
        }
    }
}
