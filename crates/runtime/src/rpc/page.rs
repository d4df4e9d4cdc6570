//! The size of a page in a request, alike in all listings.

use crate::error::{Error, Result};

const DEFAULT: usize = 100;
const MOST: usize = 1000;

/// Returns the most entries of the page that a request asks for; 0 stands for the default.
///
/// # Errors
/// `InvalidArgument` with the field `page_size`.
pub fn size(page_size: i32) -> Result<usize> {
    match usize::try_from(page_size) {
        Ok(0) => Ok(DEFAULT),
        Ok(size) if size <= MOST => Ok(size),
        _ => {
            let message = format!("page_size is {page_size}; it must be within 1 and {MOST}");
            Err(Error::invalid("page_size", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_bounded() {
        assert_eq!(size(0).unwrap(), 100);
        assert_eq!(size(1000).unwrap(), 1000);
        for bad in [-1, 1001, i32::MIN] {
            assert_eq!(size(bad).unwrap_err().field(), Some("page_size"));
        }
    }
}
