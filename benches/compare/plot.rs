//! The proxies' CPU time for each transaction as bars, in SVG.

use std::fmt::Write;

use crate::load::LOADS;
use crate::report::Report;

const WIDTH: f64 = 900.0;
/// Room for the names on the left and the figures on the right.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 90.0;
const BAR: f64 = 16.0;
const HEADING: f64 = 34.0;
const COLOURS: [&str; 9] =
    ["#888888", "#4e79a7", "#9c755f", "#76b7b2", "#e15759", "#f28e2b", "#59a14f", "#b07aa1", "#edc948"];

/// A group of bars for each load, each scaled to its longest bar; the thin line of a bar is its spread.
pub fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = 30.0;
    for load in &LOADS {
        let targets = report.targets.iter().enumerate();
        let bars: Vec<_> = targets
            .filter_map(|(at, name)| Some((at, name, report.spread(load.name, name, |run| run.proxy_cpu)?)))
            .collect();
        let longest = bars.iter().map(|(_, _, spread)| spread.high).fold(f64::MIN_POSITIVE, f64::max);
        if bars.is_empty() {
            continue;
        }
        let _ = writeln!(body, "<text x='8' y='{:.0}' font-weight='bold'>{}</text>", y + 22.0, load.name);
        y += HEADING;
        let length = |value: f64| value / longest * (WIDTH - LEFT - RIGHT);
        for (at, name, spread) in bars {
            let (middle, colour) = (y + BAR / 2.0, COLOURS[at % COLOURS.len()]);
            let _ = writeln!(
                body,
                "<text x='{:.0}' y='{:.0}' text-anchor='end'>{name}</text>\
                 <rect x='{LEFT}' y='{y:.0}' width='{:.1}' height='{:.0}' fill='{colour}'/>\
                 <line x1='{:.1}' x2='{:.1}' y1='{middle:.0}' y2='{middle:.0}' stroke='black'/>\
                 <text x='{:.1}' y='{:.0}'>{:.1} µs</text>",
                LEFT - 6.0,
                y + 12.0,
                length(spread.median),
                BAR - 3.0,
                LEFT + length(spread.low),
                LEFT + length(spread.high),
                LEFT + length(spread.high) + 6.0,
                y + 12.0,
                spread.median,
            );
            y += BAR;
        }
    }
    let height = y + 20.0;
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0}' font-family='sans-serif' \
         font-size='12'>\n<rect width='100%' height='100%' fill='white'/>\n\
         <text x='8' y='20' font-size='15'>CPU of the proxy for each transaction (median, lowest to highest round)</text>\n\
         {body}</svg>\n"
    )
}
