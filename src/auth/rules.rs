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
            && names(&rule.databases, login.database, login.user)
            && names(&rule.users, login.user, login.user)
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
fn names(listed: &[String], name: &str, user: &str) -> bool {
    listed.iter().any(|entry| match entry.as_str() {
        "all" => true,
        "sameuser" => name == user,
        entry => entry == name,
    })
}

fn contains(network: Network, address: IpAddr) -> bool {
    // A client that came by IPv4 to an IPv6 socket is meant by its IPv4 address.
    let bits = |address: IpAddr| match address.to_canonical() {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    };
    let ((of, width), (is, same)) = (bits(network.address), bits(address));
    let mask = u128::MAX.checked_shl(128 - u32::from(network.prefix)).unwrap_or(0);
    width == same && of & mask == is & mask
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
    }
}
