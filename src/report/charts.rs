//! Small charts as inline SVG. Colours are the page's CSS classes, so that they follow the reader's light or dark mode.
//!
//! Every text that goes in is escaped here; every number is finite and rounded, so that the same data gives the same
//! bytes.

use std::fmt::Write as _;

/// A bar with an error bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Left of the bar.
    pub label: String,
    /// From 0 to 1.
    pub value: f64,
    /// Half the length of the error bar.
    pub error: f64,
    /// CSS class that colours it.
    pub class: &'static str,
}

/// A line through points.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// In the legend.
    pub label: String,
    /// CSS class that colours it.
    pub class: &'static str,
    /// x ascending; at least one.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 720.0;
/// Room for labels on the left, numbers on the right.
const LEFT: f64 = 150.0;
const RIGHT: f64 = 96.0;
const BAR_HEIGHT: f64 = 26.0;
const BAR_STEP: f64 = 38.0;

/// Horizontal bars on a scale from 0 to 100 %, with error bars and the numbers beside them.
pub fn percent_bars(bars: &[Bar]) -> String {
    let height = BAR_STEP * bars.len() as f64 + 26.0;
    let scale = WIDTH - LEFT - RIGHT;
    let mut svg = open_svg(height, "accuracies in percent");
    for percent in [0, 25, 50, 75, 100] {
        let x = LEFT + scale * f64::from(percent) / 100.0;
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{x:.1}" y1="0" x2="{x:.1}" y2="{:.1}"/><text class="tick" x="{x:.1}" y="{:.1}" text-anchor="middle">{percent} %</text>"#,
            height - 20.0,
            height - 4.0
        );
    }
    for (place, bar) in bars.iter().enumerate() {
        let (top, middle) = (BAR_STEP * place as f64 + 4.0, BAR_STEP * place as f64 + 4.0 + BAR_HEIGHT / 2.0);
        let value = bar.value.clamp(0.0, 1.0);
        let at = |value: f64| LEFT + scale * value.clamp(0.0, 1.0);
        let _ = write!(
            svg,
            r#"<text class="label" x="{:.1}" y="{:.1}" text-anchor="end">{}</text><rect class="{}" x="{LEFT:.1}" y="{top:.1}" width="{:.1}" height="{BAR_HEIGHT:.1}" rx="3"/>"#,
            LEFT - 10.0,
            middle + 5.0,
            escape(&bar.label),
            bar.class,
            scale * value
        );
        if bar.error > 0.0 {
            let (low, high) = (at(value - bar.error), at(value + bar.error));
            let _ = write!(
                svg,
                r#"<path class="whisker" d="M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v10M{high:.1} {:.1}v10"/>"#,
                middle - 5.0,
                middle - 5.0
            );
        }
        let _ = write!(
            svg,
            r#"<text class="number" x="{:.1}" y="{:.1}">{:.1} %</text>"#,
            at(value + bar.error) + 8.0,
            middle + 5.0,
            100.0 * value
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Horizontal bars of counts, longest full width.
pub fn count_bars(rows: &[(String, usize)]) -> String {
    let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1) as f64;
    let scale = WIDTH - LEFT - RIGHT;
    let mut svg = open_svg(BAR_STEP * rows.len() as f64, "number of rows");
    for (place, (label, count)) in rows.iter().enumerate() {
        let (top, middle) = (BAR_STEP * place as f64 + 4.0, BAR_STEP * place as f64 + 4.0 + BAR_HEIGHT / 2.0);
        // A bar of one row in a million is still seen.
        let width = if *count == 0 { 0.0 } else { (scale * *count as f64 / most).max(1.5) };
        let _ = write!(
            svg,
            r#"<text class="label" x="{:.1}" y="{:.1}" text-anchor="end">{}</text><rect class="count" x="{LEFT:.1}" y="{top:.1}" width="{width:.1}" height="{BAR_HEIGHT:.1}" rx="3"/><text class="number" x="{:.1}" y="{:.1}">{}</text>"#,
            LEFT - 10.0,
            middle + 5.0,
            escape(label),
            LEFT + width + 8.0,
            middle + 5.0,
            grouped(*count)
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Pairs of horizontal bars, before above after, on a scale from 0 to the greatest value; numbers in percent.
pub fn paired_bars(rows: &[(String, f64, f64)]) -> String {
    const STEP: f64 = 34.0;
    const THIN: f64 = 12.0;
    let most = rows.iter().map(|(_, before, after)| before.max(*after)).fold(1e-9, f64::max);
    let scale = WIDTH - LEFT - RIGHT;
    let mut svg = open_svg(STEP * rows.len() as f64, "shares in percent, before above after");
    for (place, (label, before, after)) in rows.iter().enumerate() {
        let top = STEP * place as f64 + 3.0;
        let _ = write!(
            svg,
            r#"<text class="label" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            LEFT - 10.0,
            top + THIN + 5.0,
            escape(label)
        );
        for (class, value, top) in [("base", before, top), ("tuned", after, top + THIN + 2.0)] {
            let width = scale * value.clamp(0.0, most) / most;
            let _ = write!(
                svg,
                r#"<rect class="{class}" x="{LEFT:.1}" y="{top:.1}" width="{width:.1}" height="{THIN:.1}" rx="2"/><text class="tick" x="{:.1}" y="{:.1}">{:.1} %</text>"#,
                LEFT + width + 6.0,
                top + THIN - 2.0,
                100.0 * value
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

/// Lines over a common x axis; a legend names them when there are several.
pub fn lines(lines: &[Line], x_label: &str, height: f64) -> String {
    let all = || lines.iter().flat_map(|line| line.points.iter().copied());
    let (x_low, x_high) = span(all().map(|point| point.0));
    let (y_low, y_high) = span(all().map(|point| point.1));
    // A little air, and never a range of nothing.
    let air = ((y_high - y_low) * 0.06).max(y_high.abs() * 1e-3).max(1e-12);
    let (y_low, y_high) = (if y_low >= 0.0 { (y_low - air).max(0.0) } else { y_low - air }, y_high + air);
    let (left, right, top, bottom) = (64.0, WIDTH - 16.0, 26.0, height - 40.0);
    let x_at = |x: f64| left + (right - left) * (x - x_low) / (x_high - x_low).max(1e-12);
    let y_at = |y: f64| bottom - (bottom - top) * (y - y_low) / (y_high - y_low);
    let mut svg = open_svg(height, "a curve over training steps");
    for tick in ticks(y_low, y_high, 5) {
        let y = y_at(tick);
        let _ = write!(
            svg,
            r#"<line class="grid" x1="{left:.1}" y1="{y:.1}" x2="{right:.1}" y2="{y:.1}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            left - 8.0,
            y + 4.0,
            short(tick)
        );
    }
    for tick in ticks(x_low, x_high, 8) {
        let _ = write!(
            svg,
            r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            x_at(tick),
            bottom + 17.0,
            short(tick)
        );
    }
    let _ = write!(
        svg,
        r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
        (left + right) / 2.0,
        height - 4.0,
        escape(x_label)
    );
    for (place, line) in lines.iter().enumerate() {
        let mut path = String::new();
        for (number, &(x, y)) in thinned(&line.points).iter().enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if number == 0 { 'M' } else { 'L' }, x_at(x), y_at(y));
        }
        let _ = write!(svg, r#"<path class="line {}" d="{path}"/>"#, line.class);
        // Few points are measurements worth seeing one by one.
        if line.points.len() <= 40 {
            for &(x, y) in &line.points {
                let _ =
                    write!(svg, r#"<circle class="{}" cx="{:.1}" cy="{:.1}" r="3"/>"#, line.class, x_at(x), y_at(y));
            }
        }
        let x = left + 150.0 * place as f64;
        let _ = write!(
            svg,
            r#"<rect class="{}" x="{x:.1}" y="6" width="12" height="12" rx="2"/><text class="tick" x="{:.1}" y="16">{}</text>"#,
            line.class,
            x + 18.0,
            escape(&line.label)
        );
    }
    svg.push_str("</svg>");
    svg
}

fn open_svg(height: f64, title: &str) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH:.0} {height:.0}" role="img" aria-label="{}">"#, escape(title))
}

/// At most about a thousand points, each the mean of its neighbours: more than that no screen shows.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = points.len().div_ceil(1000).max(1);
    let mean = |values: &[(f64, f64)]| {
        let sum = values.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / values.len() as f64, sum.1 / values.len() as f64)
    };
    points.chunks(group).map(mean).collect()
}

fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high { (0.0, 1.0) } else { (low, high) }
}

/// Round numbers inside a range: 1, 2 or 5 times a power of ten apart.
fn ticks(low: f64, high: f64, about: usize) -> Vec<f64> {
    let raw = (high - low) / about as f64;
    if !(raw.is_finite() && raw > 0.0) {
        return vec![low];
    }
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|&step| step >= raw).unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    (first..).map(|number| number as f64 * step).take_while(|&tick| tick <= high + step * 1e-9).collect()
}

/// A number as an axis shows it.
fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    match value.abs() {
        size if size < 1e-3 => format!("{value:.0e}"),
        size if size >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        size if size >= 1e4 => format!("{}k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `12345` as `12,345`.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Text as HTML and SVG show it, in contents and in quoted attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 100.0, 5), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(0.13, 0.41, 3).len(), 3);
        assert_eq!(ticks(5.0, 5.0, 4), [5.0]);
    }

    #[test]
    fn numbers_are_short_and_grouped() {
        assert_eq!(["0", "0.25", "3e-6", "20k", "1.5M"].map(str::to_owned), [0.0, 0.25, 3e-6, 2e4, 1.5e6].map(short));
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn labels_are_escaped_and_no_coordinate_is_broken() {
        let bar = Bar { label: "<b>&\"".into(), value: 1.7, error: 0.1, class: "base" };
        let point = Line { label: "'x'".into(), class: "base", points: vec![(3.0, 2.0)] };
        for svg in [percent_bars(&[bar]), lines(&[point], "step", 200.0), count_bars(&[("a<b".into(), 0)])] {
            assert!(!svg.contains("<b") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
        }
    }

    #[test]
    fn long_curves_are_thinned_and_keep_their_mean() {
        let points: Vec<(f64, f64)> = (0..5000).map(|step| (f64::from(step), 2.0)).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= 1000 && thin.iter().all(|point| (point.1 - 2.0).abs() < 1e-12));
    }
}
