//! A map from characters to small numbers. It has pages, because text uses few of Unicode's
//! characters: a look-up is two loads, which are mostly cached.

const PAGE: usize = 256;
const PAGES: usize = 0x11_0000 / PAGE;

/// A number for each character; 0 unless it was set.
#[derive(Debug, Clone)]
pub(crate) struct CharTable {
    /// The index of each page; page 0 is all zero and shared.
    index: Vec<u16>,
    pages: Vec<[u32; PAGE]>,
}

impl CharTable {
    pub(crate) fn new() -> Self {
        Self {
            index: vec![0; PAGES],
            pages: vec![[0; PAGE]],
        }
    }

    #[inline]
    pub(crate) fn get(&self, c: char) -> u32 {
        let c = c as usize;
        self.pages[usize::from(self.index[c / PAGE])][c % PAGE]
    }

    /// Returns a character's number for changing it.
    pub(crate) fn entry(&mut self, c: char) -> &mut u32 {
        let c = c as usize;
        let page = &mut self.index[c / PAGE];
        if *page == 0 {
            *page = self.pages.len() as u16; // At most PAGES + 1, which is 4,353.
            self.pages.push([0; PAGE]);
        }
        &mut self.pages[usize::from(*page)][c % PAGE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_its_own_number() {
        let mut table = CharTable::new();
        let all = (0..=u32::from(char::MAX)).filter_map(char::from_u32);
        for c in all.clone() {
            *table.entry(c) = u32::from(c) + 1;
        }
        assert!(all.clone().all(|c| table.get(c) == u32::from(c) + 1));
        assert_eq!(CharTable::new().get('あ'), 0);
    }
}
