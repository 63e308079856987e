//! The known name nearest to a mistyped one.

/// The candidate nearest to `name`, when near enough to be what was meant: at most a third of it, and at least
/// one letter, may differ. Case and the choice of `-` or `_` do not count.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let name = plain(name);
    let allowed = (name.len() / 3).max(1);
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let other = plain(candidate);
            // also keeps the table small, whatever the length of `name`
            let near = name.len().abs_diff(other.len()) <= allowed;
            let distance = if near { distance(&name, &other) } else { usize::MAX };
            (distance <= allowed).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn plain(name: &str) -> Vec<char> {
    name.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// Optimal string alignment: insertions, deletions, substitutions and swaps of neighbours.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &from) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, &to) in b.iter().enumerate() {
            let substituted = last[j] + usize::from(from != to);
            let mut best = substituted.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && from == b[j - 1] && a[i - 1] == to {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 5] = ["idle_timeout", "acquire_timeout", "min", "max", "mode"];

    #[test]
    fn finds_what_was_meant() {
        assert_eq!(nearest("idle_timout", KEYS), Some("idle_timeout"));
        assert_eq!(nearest("idel_timeout", KEYS), Some("idle_timeout"));
        assert_eq!(nearest("Idle-Timeout", KEYS), Some("idle_timeout"));
        assert_eq!(nearest("mxa", KEYS), Some("max"));
        assert_eq!(nearest("aquire_timeout", KEYS), Some("acquire_timeout"));
    }

    #[test]
    fn is_silent_when_nothing_is_near() {
        assert_eq!(nearest("fetch_size", KEYS), None);
        assert_eq!(nearest("", KEYS), None);
        assert_eq!(nearest(&"x".repeat(100_000), KEYS), None);
    }

    #[test]
    fn distances() {
        let of = |a: &str, b: &str| distance(&plain(a), &plain(b));
        assert_eq!(of("", "abc"), 3);
        assert_eq!(of("kitten", "sitting"), 3);
        assert_eq!(of("ab", "ba"), 1);
        assert_eq!(of("max", "max"), 0);
    }
}
