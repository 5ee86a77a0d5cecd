//! Renders charts: bars with their spread, and latency by quantile. They are narrow enough for a phone;
//! colours are CSS classes, defined for light and dark by the page or the file.

use std::ops::RangeInclusive;

use maud::{Markup, PreEscaped, html};

use super::digest::{heading, short, spread};
use super::{CaseReport, DIRECT, FigureReport, Point, Row, US};

/// Style sheet of the charts, for the page and for standalone files.
pub(super) const STYLE: &str = include_str!("chart.css");

const WIDTH: f64 = 360.0;
/// Number of line styles; more systems than this share them.
const LINES: usize = 7;
/// Plausible latencies in microseconds: a nanosecond to twelve days. Others come from a broken file.
const LATENCIES: RangeInclusive<f64> = 1e-3..=1e12;

/// A chart, to be placed inline or in a file.
pub(super) struct Chart {
    title: String,
    /// Text alternative.
    words: String,
    height: f64,
    body: Markup,
}

impl Chart {
    /// Renders the chart for a page with the style sheet.
    pub(super) fn inline(&self) -> Markup {
        self.svg(&html! {})
    }

    /// Renders the chart for a file of its own.
    pub(super) fn standalone(&self) -> String {
        self.svg(&html! { style { (PreEscaped(STYLE)) } rect.ground width="100%" height="100%" {} })
            .into_string()
    }

    fn svg(&self, before: &Markup) -> Markup {
        html! {
            svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img"
                viewBox={ "0 0 " (WIDTH) " " (self.height) } {
                title { (self.title) }
                desc { (self.words) }
                (before)
                (self.body)
            }
        }
    }
}

/// Bars of one figure of all systems; `None` if no system has it.
pub(super) fn bars(case: &CaseReport, key: &str) -> Option<Chart> {
    const ROW: f64 = 34.0;
    const TOP: f64 = 24.0;
    let figures: Vec<(&Row, &FigureReport)> = case
        .systems
        .iter()
        .filter_map(|row| Some((row, row.figure(key)?)))
        .filter(|(_, figure)| is_drawable(figure))
        .collect();
    let (_, first) = figures.first()?;
    let most = figures.iter().map(|(_, figure)| figure.summary.max).fold(f64::MIN_POSITIVE, f64::max);
    let length = |value: f64| value / most * (WIDTH - 2.0);
    let better = if first.more_is_better { "more is better" } else { "less is better" };
    let title = format!("{} ({better})", heading(first));
    let body = html! {
        text.caption x="0" y="13" { (title) }
        @for (place, (row, figure)) in (0_u32..).zip(&figures) {
            @let y = TOP + ROW * f64::from(place);
            @let (min, max) = (length(figure.summary.min), length(figure.summary.max));
            g.ours[row.system == US].direct[row.system == DIRECT] {
                text x="0" y=(y + 11.0) { (row.system) @if row.bounded_by_generator { " ≈" } }
                text.value x=(WIDTH) y=(y + 11.0) { (value(figure)) }
                rect.bar x="1" y=(y + 16.0) width=(px(length(figure.summary.median))) height="10" {}
                @if max > min {
                    path.whisker d={ "M" (px(min)) " " (y + 21.0) "H" (px(max))
                        "M" (px(min)) " " (y + 18.0) "v6M" (px(max)) " " (y + 18.0) "v6" } {}
                }
            }
        }
    };
    let rows = u32::try_from(figures.len()).unwrap_or(u32::MAX);
    let words = figures.iter().map(|(row, figure)| format!("{}: {}. ", row.system, value(figure))).collect();
    let title = format!("{}: {title}", case.title);
    Some(Chart { title, words, height: TOP + ROW * f64::from(rows), body })
}

fn is_drawable(figure: &FigureReport) -> bool {
    let summary = figure.summary;
    let in_order = summary.min <= summary.median && summary.median <= summary.max;
    in_order && summary.min >= 0.0 && summary.max.is_finite()
}

fn value(figure: &FigureReport) -> String {
    let ratio = figure.ratio_to_isthmus.map_or_else(String::new, |ratio| format!(" ×{ratio:.2}"));
    format!("{}{ratio}", spread(figure.summary))
}

/// Latency of all systems by quantile; `None` if no system has any.
pub(super) fn curves(case: &CaseReport) -> Option<Chart> {
    let systems: Vec<(usize, &Row, Vec<Point>)> = case
        .systems
        .iter()
        .enumerate()
        .map(|(index, row)| (index, row, row.latency.iter().copied().filter(can_stand).collect::<Vec<_>>()))
        .filter(|(_, _, points)| points.len() > 1)
        .collect();
    let all = || systems.iter().flat_map(|(_, _, points)| points);
    let least = all().map(|point| point.microseconds).fold(f64::INFINITY, f64::min);
    let most = all().map(|point| point.microseconds).fold(0.0, f64::max);
    if !least.is_finite() {
        return None;
    }
    let plane = Plane::new(least, most);
    let legend = f64::from(u32::try_from(systems.len().div_ceil(3)).unwrap_or(u32::MAX));
    let body = html! {
        text.caption x="0" y="13" { "latency by quantile, all rounds together (less is better)" }
        (plane.grid())
        @for (index, row, points) in &systems {
            path.curve.{ "s" (index % LINES) }.ours[row.system == US] d=(plane.path(points)) {}
        }
        @for (place, (index, row, _)) in (0_u32..).zip(&systems) {
            @let x = f64::from(place % 3) * WIDTH / 3.0;
            @let y = Plane::BOTTOM + 36.0 + f64::from(place / 3) * 16.0;
            path.curve.{ "s" (index % LINES) }.ours[row.system == US] d={ "M" (x + 2.0) " " (y - 4.0) "h26" } {}
            text x=(x + 34.0) y=(y) { (row.system) }
        }
    };
    let title = format!("{}: latency by quantile", case.title);
    let last = |(_, row, points): &(usize, &Row, Vec<Point>)| {
        let Point { quantile, microseconds } = points.last()?;
        Some(format!("{}: {:.2} % within {} µs. ", row.system, quantile * 100.0, short(*microseconds)))
    };
    let words = systems.iter().filter_map(last).collect();
    Some(Chart { title, words, height: Plane::BOTTOM + 28.0 + legend * 16.0, body })
}

fn can_stand(point: &Point) -> bool {
    // Points beyond the last tick, within rounding, would climb along the edge.
    let shown = (0.0..1.0).contains(&point.quantile) && Plane::nines(point.quantile) < Plane::NINES + 0.01;
    shown && LATENCIES.contains(&point.microseconds)
}

/// Coordinates: quantiles to the right, times upwards, both on logarithmic scales.
struct Plane {
    /// Lower bound, as a power of ten of microseconds.
    low: f64,
    high: f64,
}

impl Plane {
    const LEFT: f64 = 52.0;
    const TOP: f64 = 24.0;
    const BOTTOM: f64 = 220.0;
    /// Number of nines on the quantile axis.
    const NINES: f64 = 4.0;

    fn new(least: f64, most: f64) -> Self {
        let low = least.log10().floor();
        Self { low, high: most.log10().ceil().max(low + 1.0) }
    }

    fn nines(quantile: f64) -> f64 {
        -(1.0 - quantile).log10()
    }

    fn x(nines: f64) -> f64 {
        Self::LEFT + nines.min(Self::NINES) / Self::NINES * (WIDTH - Self::LEFT - 4.0)
    }

    fn y(&self, microseconds: f64) -> f64 {
        let part = (microseconds.log10() - self.low) / (self.high - self.low);
        Self::BOTTOM - part * (Self::BOTTOM - Self::TOP)
    }

    fn path(&self, points: &[Point]) -> String {
        let place = |point: &Point| {
            let x = Self::x(Self::nines(point.quantile));
            format!("{} {}", px(x), px(self.y(point.microseconds)))
        };
        format!("M{}", points.iter().map(place).collect::<Vec<_>>().join("L"))
    }

    fn grid(&self) -> Markup {
        let quantiles = [(0.0, "0 %"), (1.0, "90 %"), (2.0, "99 %"), (3.0, "99.9 %"), (4.0, "99.99 %")];
        let mut decades = Vec::new();
        let mut power = self.low;
        while power <= self.high {
            decades.push(10_f64.powf(power));
            power += 1.0;
        }
        html! {
            @for (nines, label) in quantiles {
                @let x = Self::x(nines);
                path.grid d={ "M" (px(x)) " " (Self::TOP) "V" (Self::BOTTOM) } {}
                text.tick.first[nines <= 0.0].last[nines >= Self::NINES] x=(px(x)) y=(Self::BOTTOM + 14.0) { (label) }
            }
            @for decade in decades {
                @let y = self.y(decade);
                path.grid d={ "M" (Self::LEFT) " " (px(y)) "H" (WIDTH - 4.0) } {}
                text.value x=(Self::LEFT - 5.0) y=(px(y + 4.0)) { (time(decade)) }
            }
        }
    }
}

/// Label of a tick: microseconds in a suitable unit.
fn time(microseconds: f64) -> String {
    match microseconds {
        seconds if seconds >= 1e6 => format!("{:.0} s", seconds / 1e6),
        milliseconds if milliseconds >= 1e3 => format!("{:.0} ms", milliseconds / 1e3),
        microseconds if microseconds >= 1.0 => format!("{microseconds:.0} µs"),
        small => format!("{} µs", short(small)),
    }
}

/// Formats pixels with one decimal.
fn px(value: f64) -> String {
    format!("{value:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::digest::tests::case;

    /// The values of an attribute, in order.
    fn attributes(svg: &str, element: &str, name: &str) -> Vec<f64> {
        let elements = svg.split('<').filter(|part| part.starts_with(element));
        let values = elements.filter_map(|part| part.split_once(&format!(" {name}=\""))?.1.split('"').next());
        values.filter_map(|value| value.parse().ok()).collect()
    }

    #[test]
    fn bar_length_is_median_and_whisker_spans_rounds() {
        let case = case(true, &[("isthmus", [10.0, 5.0, 20.0]), ("nginx", [5.0, 5.0, 5.0])]);
        let svg = bars(&case, "rate").unwrap().standalone();
        let full = WIDTH - 2.0;
        assert_eq!(attributes(&svg, "rect class=\"bar\"", "width"), [full / 2.0, full / 4.0]);
        let whiskers: Vec<_> = svg.split("class=\"whisker\" d=\"").skip(1).collect();
        assert_eq!(whiskers.len(), 1, "one round has no spread: {svg}");
        assert!(whiskers[0].starts_with(&format!("M{:.1} ", full / 4.0)));
        assert!(whiskers[0].contains(&format!("H{full:.1}")));
        assert!(bars(&case, "no such figure").is_none());
    }

    #[test]
    fn curve_rises_to_the_right() {
        let mut case = case(true, &[("isthmus", [10.0; 3])]);
        case.systems[0].latency = [(0.0, 10.0), (0.9, 100.0), (0.99, 100.0), (0.999, 5000.0)]
            .map(|(quantile, microseconds)| Point { quantile, microseconds })
            .into();
        let svg = curves(&case).unwrap().standalone();
        let path = svg.split("class=\"curve s0 ours\" d=\"M").nth(1).unwrap().split('"').next().unwrap();
        let points: Vec<Vec<f64>> =
            path.split('L').map(|point| point.split(' ').map(|n| n.parse().unwrap()).collect()).collect();
        assert_eq!(points.len(), 4);
        assert!(points.windows(2).all(|pair| pair[0][0] < pair[1][0]), "to the right: {points:?}");
        assert!(points.windows(2).all(|pair| pair[0][1] >= pair[1][1]), "never down: {points:?}");
        assert!((points[1][0] - Plane::x(1.0)).abs() < 0.1, "90 % is at its tick");
    }

    #[test]
    fn curve_ends_at_last_tick_with_one_line_per_system() {
        let names: Vec<String> = (0..9).map(|number| format!("peer{number}")).collect();
        let systems: Vec<_> = names.iter().map(|name| (name.as_str(), [1.0, 1.0, 2.0])).collect();
        let mut case = case(true, &systems);
        case.systems[0].latency = [(0.5, 1.0), (0.9999, 10.0), (0.99999, 900.0)]
            .map(|(quantile, microseconds)| Point { quantile, microseconds })
            .into();
        let svg = curves(&case).unwrap().standalone();
        let path = svg.split("class=\"curve s0\" d=\"M").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(path.split('L').count(), 2, "points beyond the last tick are omitted: {path}");
        assert!(!svg.contains("1 ms"), "they do not stretch the scale");
        assert!(!svg.contains(&format!("s{LINES}")), "no such line style");
        assert!(
            STYLE.contains(&format!(".chart .s{} ", LINES - 1)) && !STYLE.contains(&format!(".s{LINES} "))
        );
        assert!(svg.contains("peer0: 99.99 % within 10.0 µs"), "text alternative");
    }

    #[test]
    fn chart_omits_non_finite_numbers() {
        let unordered = case(true, &[("isthmus", [1e308, 0.0, 0.0])]);
        assert!(bars(&unordered, "rate").is_none(), "inconsistent summary is not drawn");
        let hostile = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0];
        for value in hostile {
            let mut case = case(true, &[("isthmus", [1.0; 3]), ("nginx", [value; 3])]);
            case.systems[0].latency = vec![Point { quantile: value, microseconds: value }; 3];
            let svg = bars(&case, "rate").unwrap().standalone();
            assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("nginx"), "{svg}");
            assert!(curves(&case).is_none_or(|chart| !chart.standalone().contains("NaN")));
        }
        let mut absurd = case(true, &[("isthmus", [1.0; 3])]);
        absurd.systems[0].latency =
            [5e-324, 1e308].map(|microseconds| Point { quantile: 0.5, microseconds }).into();
        assert!(curves(&absurd).is_none());
        let zero = case(true, &[("isthmus", [0.0; 3]), ("nginx", [0.0; 3])]);
        let svg = bars(&zero, "rate").unwrap().standalone();
        assert_eq!(attributes(&svg, "rect class=\"bar\"", "width"), [0.0, 0.0]);
    }
}
