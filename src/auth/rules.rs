//! Which rule a client falls under, as Postgres reads pg_hba.conf: the first that fits decides, and none is a refusal.

use std::net::IpAddr;

use crate::config::{AuthRule, Network, RuleConnection};

/// What a rule is asked of.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// `None`: a unix socket.
    pub address: Option<IpAddr>,
    pub tls: bool,
    pub database: &'a str,
    pub user: &'a str,
}

/// The first rule that fits.
pub fn find<'r>(rules: &'r [AuthRule], login: &Login<'_>) -> Option<&'r AuthRule> {
    rules.iter().find(|rule| {
        fits(rule.connection, login)
            && rule.databases.iter().any(|entry| is_database(entry, login))
            && rule.users.iter().any(|entry| entry == "all" || entry == login.user)
            && rule.network.is_none_or(|network| login.address.is_some_and(|address| contains(network, address)))
    })
}

fn fits(connection: RuleConnection, login: &Login<'_>) -> bool {
    match connection {
        RuleConnection::Any => true,
        RuleConnection::Local => login.address.is_none(),
        RuleConnection::Host => login.address.is_some(),
        RuleConnection::HostSsl => login.address.is_some() && login.tls,
        RuleConnection::HostNoSsl => login.address.is_some() && !login.tls,
    }
}

/// `all`, `sameuser`, or the name itself.
fn is_database(entry: &str, login: &Login<'_>) -> bool {
    match entry {
        "all" => true,
        "sameuser" => login.database == login.user,
        entry => entry == login.database,
    }
}

fn contains(network: Network, address: IpAddr) -> bool {
    let network = canonical(network);
    let mask = |width: u32| u128::MAX.checked_shl(width - u32::from(network.prefix)).unwrap_or(0);
    // A client that came by IPv4 to an IPv6 socket is meant by its IPv4 address.
    match (network.address, address.to_canonical()) {
        (IpAddr::V4(of), IpAddr::V4(is)) => u128::from(u32::from(of) ^ u32::from(is)) & mask(32) == 0,
        (IpAddr::V6(of), IpAddr::V6(is)) => (u128::from(of) ^ u128::from(is)) & mask(128) == 0,
        _ => false,
    }
}

/// Of IPv4 where all its addresses are mapped ones (`::ffff:0:0/96`).
fn canonical(network: Network) -> Network {
    match (network.address.to_canonical(), network.prefix.checked_sub(96)) {
        (address @ IpAddr::V4(_), Some(prefix)) if network.address.is_ipv6() => Network { address, prefix },
        _ => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AuthMethod;

    fn rule(connection: RuleConnection, network: Option<(&str, u8)>, users: &[&str]) -> AuthRule {
        AuthRule {
            connection,
            databases: vec!["all".into()],
            users: users.iter().map(|u| (*u).to_owned()).collect(),
            network: network.map(|(address, prefix)| Network { address: address.parse().unwrap(), prefix }),
            method: AuthMethod::Default,
            map: Vec::new(),
        }
    }

    fn found(rules: &[AuthRule], address: Option<&str>, tls: bool, user: &str) -> Option<usize> {
        let login = Login { address: address.map(|a| a.parse().unwrap()), tls, database: "app", user };
        let rule = find(rules, &login)?;
        rules.iter().position(|r| std::ptr::eq(r, rule))
    }

    #[test]
    fn the_first_that_fits_decides() {
        let rules = [
            rule(RuleConnection::Local, None, &["all"]),
            rule(RuleConnection::HostSsl, None, &["admin"]),
            rule(RuleConnection::Host, Some(("10.1.0.0", 16)), &["all"]),
            rule(RuleConnection::Any, Some(("::1", 128)), &["all"]),
        ];
        assert_eq!(found(&rules, None, false, "x"), Some(0));
        assert_eq!(found(&rules, Some("192.0.2.1"), true, "admin"), Some(1));
        assert_eq!(found(&rules, Some("192.0.2.1"), false, "admin"), None);
        assert_eq!(found(&rules, Some("10.1.255.3"), false, "x"), Some(2));
        assert_eq!(found(&rules, Some("::ffff:10.1.255.3"), false, "x"), Some(2));
        assert_eq!(found(&rules, Some("10.2.0.0"), false, "x"), None);
        assert_eq!(found(&rules, Some("::1"), false, "x"), Some(3));
    }

    #[test]
    fn a_prefix_of_nothing_is_everything_of_its_family() {
        let rules = [rule(RuleConnection::Any, Some(("0.0.0.0", 0)), &["all"])];
        assert_eq!(found(&rules, Some("203.0.113.9"), false, "x"), Some(0));
        assert_eq!(found(&rules, Some("2001:db8::1"), false, "x"), None);
        assert_eq!(found(&rules, None, false, "x"), None);
    }

    #[test]
    fn sameuser_is_the_database_of_ones_own_name() {
        let mut of_own = rule(RuleConnection::Any, None, &["all"]);
        of_own.databases = vec!["sameuser".into()];
        let rules = [of_own];
        assert_eq!(found(&rules, None, false, "app"), Some(0));
        assert_eq!(found(&rules, None, false, "other"), None);
        // Among users it is a name like any other.
        let rules = [rule(RuleConnection::Any, None, &["sameuser"])];
        assert_eq!(found(&rules, None, false, "app"), None);
        assert_eq!(found(&rules, None, false, "sameuser"), Some(0));
    }

    #[test]
    fn a_network_of_mapped_addresses_is_one_of_ipv4() {
        let of = |address, prefix| [rule(RuleConnection::Any, Some((address, prefix)), &["all"])];
        let mapped = of("::ffff:10.0.0.0", 104);
        assert_eq!(found(&mapped, Some("10.255.0.1"), false, "x"), Some(0));
        assert_eq!(found(&mapped, Some("11.0.0.0"), false, "x"), None);
        assert_eq!(found(&of("::ffff:0:0", 96), Some("203.0.113.9"), false, "x"), Some(0));
        // A shorter prefix leaves the mapped ones: it is of IPv6.
        let wide = of("::ffff:0:0", 80);
        assert_eq!(found(&wide, Some("203.0.113.9"), false, "x"), None);
        assert_eq!(found(&wide, Some("::1"), false, "x"), Some(0));
    }
}
