//! Memory that direct I/O accepts.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Direct I/O never asks for more: no file system or device aligns to more than a page here.
pub(crate) const BUFFER_ALIGN: usize = 4096;

/// A zeroed, page-aligned buffer. It is only touched through raw pointers, because the kernel writes to it.
pub(crate) struct AlignedBuffer {
    pointer: NonNull<u8>,
    layout: Layout,
}

impl AlignedBuffer {
    /// Allocates `length` bytes, at least one.
    pub fn new(length: usize) -> AlignedBuffer {
        let layout = Layout::from_size_align(length.max(1), BUFFER_ALIGN).expect("buffers are far smaller than isize::MAX");
        // SAFETY: the layout's size is not zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(pointer) = NonNull::new(pointer) else { handle_alloc_error(layout) };
        AlignedBuffer { pointer, layout }
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    pub fn len(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { dealloc(self.pointer.as_ptr(), self.layout) }
    }
}
