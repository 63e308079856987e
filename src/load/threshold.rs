//! Thresholds: `p95<500ms`, `error_rate<1%`, `throughput>1000`.

use std::fmt;

use super::record::Totals;

/// Where none is given: the guide's own.
pub const USUAL: [&str; 2] = ["p95<500ms", "error_rate<1%"];

/// A figure of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Figure {
    Mean,
    Max,
    /// 0.0 .. 1.0
    Quantile(f64),
    /// Failed turns among all.
    ErrorRate,
    /// Turns a second.
    Throughput,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Relation {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A bound that a run keeps or breaks.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    text: String,
    figure: Figure,
    relation: Relation,
    /// In milliseconds, as a share, or for each second.
    bound: f64,
}

/// A threshold held against a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    pub text: String,
    pub kept: bool,
    /// In the threshold's own terms; `None`: there was nothing to measure, which keeps no threshold.
    pub measured: Option<f64>,
    figure: Figure,
}

impl Threshold {
    /// Reads a threshold: a figure, `<`, `<=`, `>` or `>=`, and a bound.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn parse(text: &str) -> Result<Threshold, String> {
        let wrong = |why: &str| {
            format!(
                "--threshold {text}: {why}; expected one of mean, max, p50, p95, p99 … with a time (p95<500ms), \
                 error_rate with a share (error_rate<1%), throughput for each second (throughput>1000)"
            )
        };
        let at = text.find(['<', '>']).ok_or_else(|| wrong("no < or >"))?;
        let (name, rest) = (text[..at].trim(), &text[at + 1..]);
        let (or_equal, bound) = rest.strip_prefix('=').map_or((false, rest), |bound| (true, bound));
        let relation = match (&text[at..=at], or_equal) {
            ("<", false) => Relation::Less,
            ("<", true) => Relation::LessOrEqual,
            (_, false) => Relation::Greater,
            (_, true) => Relation::GreaterOrEqual,
        };
        let figure = Figure::parse(name).ok_or_else(|| wrong("an unknown figure"))?;
        let bound = figure.bound(bound.trim()).map_err(wrong)?;
        Ok(Threshold { text: text.split_whitespace().collect(), figure, relation, bound })
    }

    /// Of a run of `seconds`.
    pub fn judge(&self, totals: &Totals, seconds: f64) -> Verdict {
        let measured = self.figure.of(totals, seconds);
        let kept = measured.is_some_and(|measured| match self.relation {
            Relation::Less => measured < self.bound,
            Relation::LessOrEqual => measured <= self.bound,
            Relation::Greater => measured > self.bound,
            Relation::GreaterOrEqual => measured >= self.bound,
        });
        Verdict { text: self.text.clone(), kept, measured, figure: self.figure }
    }
}

impl Figure {
    fn parse(name: &str) -> Option<Figure> {
        Some(match name {
            "mean" | "avg" => Figure::Mean,
            "max" => Figure::Max,
            "error_rate" => Figure::ErrorRate,
            "throughput" => Figure::Throughput,
            _ => {
                let digits = name.strip_prefix('p').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))?;
                let percent: f64 = digits.parse().ok()?;
                return (percent > 0.0 && percent < 100.0).then_some(Figure::Quantile(percent / 100.0));
            }
        })
    }

    fn bound(self, text: &str) -> Result<f64, &'static str> {
        let digits = text.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, unit) = text.split_at(digits);
        let number: f64 = number.parse().map_err(|_| "the bound does not begin with a number")?;
        let per_unit = match (self, unit.trim()) {
            (Figure::ErrorRate, "%") => 0.01,
            (Figure::ErrorRate, "") if number <= 1.0 => 1.0,
            (Figure::ErrorRate, _) => return Err("a share is a percentage (1%) or a number up to 1 (0.01)"),
            (Figure::Throughput, "" | "/s") => 1.0,
            (Figure::Throughput, _) => return Err("throughput is a number, with or without /s"),
            (_, "us" | "µs") => 0.001,
            (_, "ms") => 1.0,
            (_, "s") => 1000.0,
            (_, "m" | "min") => 60_000.0,
            _ => return Err("a time needs its unit: us, ms, s or m"),
        };
        Ok(number * per_unit)
    }

    fn of(self, totals: &Totals, seconds: f64) -> Option<f64> {
        let millis = |micros: f64| (totals.latency.count() > 0).then_some(micros / 1000.0);
        match self {
            Figure::Mean => millis(totals.latency.mean()),
            Figure::Max => millis(totals.latency.summary().max as f64),
            Figure::Quantile(quantile) => millis(totals.latency.quantile(quantile) as f64),
            Figure::ErrorRate => totals.error_rate(),
            Figure::Throughput => (seconds > 0.0).then(|| totals.done as f64 / seconds),
        }
    }
}

/// `p95<500ms: 12.3 ms, kept`
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.text)?;
        match (self.measured, self.figure) {
            (None, _) => f.write_str("nothing measured")?,
            (Some(share), Figure::ErrorRate) => write!(f, "{:.2} %", share * 100.0)?,
            (Some(rate), Figure::Throughput) => write!(f, "{rate:.1} turns/s")?,
            (Some(millis), _) => write!(f, "{millis:.3} ms")?,
        }
        f.write_str(if self.kept { ", kept" } else { ", BROKEN" })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn totals(millis: &[u64], failed: u64) -> Totals {
        let mut totals = Totals::default();
        for &time in millis {
            totals.finished(Duration::from_millis(time), 1);
        }
        (0..failed).for_each(|_| totals.failed("53300", "full", None));
        totals
    }

    fn kept(text: &str, totals: &Totals) -> bool {
        Threshold::parse(text).unwrap().judge(totals, 10.0).kept
    }

    #[test]
    fn bounds_are_held_against_what_was_measured() {
        let totals = totals(&[10, 20, 30, 400], 1);
        for (text, expected) in [
            ("p95<500ms", true),
            ("p95<0.1s", false),
            ("p50 <= 21ms", true),
            ("p99.9>100ms", true),
            ("mean<115ms", false),
            ("mean>=115ms", true),
            ("max<401ms", true),
            ("max<400000us", false),
            ("error_rate<21%", true),
            ("error_rate<20%", false),
            ("error_rate<=0.2", true),
            ("throughput>0.3", true),
            ("throughput>0.5/s", false),
        ] {
            assert_eq!(kept(text, &totals), expected, "{text}");
        }
    }

    #[test]
    fn nothing_measured_keeps_nothing() {
        for text in ["p95<500ms", "mean>0ms", "error_rate<1%"] {
            let verdict = Threshold::parse(text).unwrap().judge(&Totals::default(), 1.0);
            assert!(!verdict.kept && verdict.measured.is_none(), "{text}");
        }
    }

    #[test]
    fn the_usual_ones_parse() {
        USUAL.iter().for_each(|text| drop(Threshold::parse(text).unwrap()));
    }

    #[test]
    fn what_is_no_threshold_is_said() {
        for text in [
            "",
            "p95",
            "p95=500ms",
            "p95<",
            "p95<500",
            "p95<fast",
            "p0<1ms",
            "p100<1ms",
            "p<1ms",
            "pinf<1ms",
            "q95<1ms",
            "error_rate<2",
            "error_rate<1ms",
            "throughput>10ms",
            "<5ms",
            "p95<-1ms",
        ] {
            let error = Threshold::parse(text).unwrap_err();
            assert!(error.starts_with(&format!("--threshold {text}: ")), "{error}");
        }
    }
}
