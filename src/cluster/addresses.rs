//! The addresses of a node's name, as lookups have shown them, and which of them it leads to no more.

use std::net::IpAddr;

/// An address is gone that so many lookups in a row have not shown: some names lead to a few of many in turn.
const MISSES: u64 = 2;

/// Addresses remembered.
const KEPT: usize = 64;

/// Of one name.
#[derive(Debug, Default)]
pub struct Addresses {
    /// Each with the lookup that has shown it last.
    known: Vec<(IpAddr, u64)>,
    lookups: u64,
}

impl Addresses {
    /// A lookup has shown these; whether an address is gone since.
    pub fn note_lookup(&mut self, found: &[IpAddr]) -> bool {
        self.lookups += 1;
        found.iter().for_each(|address| self.note(*address));
        self.known.iter().any(|(_, last)| self.lookups - last == MISSES)
    }

    /// The name has led there just now.
    pub fn note(&mut self, address: IpAddr) {
        if let Some((_, last)) = self.known.iter_mut().find(|(known, _)| *known == address) {
            *last = self.lookups;
            return;
        }
        let oldest = (0..self.known.len()).min_by_key(|at| self.known[*at].1);
        if let Some(oldest) = oldest.filter(|_| self.known.len() == KEPT) {
            self.known.swap_remove(oldest);
        }
        self.known.push((address, self.lookups));
    }

    /// Those that are not gone.
    pub fn current(&self) -> Vec<IpAddr> {
        let there = self.known.iter().filter(|(_, last)| self.lookups - last < MISSES);
        there.map(|(address, _)| *address).collect()
    }

    pub fn is_gone(&self, address: IpAddr) -> bool {
        self.known.iter().any(|(known, last)| *known == address && self.lookups - last >= MISSES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    #[test]
    fn an_address_is_gone_once_lookups_in_a_row_lack_it() {
        let mut addresses = Addresses::default();
        assert!(!addresses.is_gone(address(1)));
        assert!(!addresses.note_lookup(&[address(1)]));
        assert!(!addresses.note_lookup(&[address(2)]) && !addresses.is_gone(address(1)));
        assert!(addresses.note_lookup(&[address(2)]) && addresses.is_gone(address(1)));
        // Told once.
        assert!(!addresses.note_lookup(&[address(2)]) && addresses.is_gone(address(1)));
        assert_eq!(addresses.current(), [address(2)]);
        assert!(!addresses.note_lookup(&[address(1), address(2)]) && !addresses.is_gone(address(1)));
        assert_eq!(addresses.current(), [address(1), address(2)]);
    }

    #[test]
    fn a_name_that_leads_to_many_in_turn_has_lost_none() {
        let mut addresses = Addresses::default();
        for round in 0..20u8 {
            assert!(!addresses.note_lookup(&[address(round % 2)]));
        }
        assert!(!addresses.is_gone(address(0)) && !addresses.is_gone(address(1)));
    }

    #[test]
    fn one_that_no_lookup_has_shown_goes_too() {
        let mut addresses = Addresses::default();
        addresses.note(address(9));
        addresses.note_lookup(&[address(1)]);
        assert!(addresses.note_lookup(&[address(1)]) && addresses.is_gone(address(9)));
    }

    #[test]
    fn few_are_remembered() {
        let mut addresses = Addresses::default();
        for last in 0..=255 {
            addresses.note_lookup(&[address(last)]);
        }
        assert!(addresses.known.len() <= KEPT && !addresses.is_gone(address(255)));
    }
}
