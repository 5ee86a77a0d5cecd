//! Measures what a gRPC message will take once decoded, while its bytes arrive: its length and the number of
//! its parts.

mod scan;
mod shapes;

pub use scan::{Rules, Scan, Wrong};
pub use shapes::{DELTA_REQUEST, DELTA_RESPONSE, PLAIN, REPORT, SLICE, SOTW_REQUEST, Shape};

/// Checks that a complete message takes at most `most` bytes once decoded.
///
/// # Errors
/// It takes more, or is not valid protobuf.
pub fn fits(message: &[u8], shape: &'static Shape, most: u64) -> Result<(), Wrong> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut scan = Scan::new(Rules { shape, longest: u32::MAX.into(), most });
    scan.feed(&[0])?;
    scan.feed(&length.to_be_bytes())?;
    scan.feed(message)
}
