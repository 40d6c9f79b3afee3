//! Figures and their floors, as a table and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

/// The target of a ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Goal {
    /// At most this multiple of the floor.
    AtMost(f64),
    /// At least this fraction of the floor.
    AtLeast(f64),
}

impl Goal {
    fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
        }
    }

    fn words(self) -> String {
        match self {
            Self::AtMost(most) => format!("<= {most}"),
            Self::AtLeast(least) => format!(">= {least}"),
        }
    }
}

/// The floor of a figure, from the same run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Floor {
    pub(crate) what: String,
    pub(crate) value: f64,
    pub(crate) goal: Option<Goal>,
}

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    pub(crate) part: &'static str,
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
    pub(crate) floor: Option<Floor>,
}

impl Figure {
    /// The value divided by its floor.
    pub(crate) fn ratio(&self) -> Option<f64> {
        self.floor.as_ref().map(|floor| self.value / floor.value)
    }

    fn is_met(&self) -> Option<bool> {
        Some(self.floor.as_ref()?.goal?.is_met(self.ratio()?))
    }

    fn json(&self) -> Value {
        let floor = self.floor.as_ref().map(|floor| {
            json!({
                "what": floor.what,
                "value": floor.value,
                "goal": floor.goal.map(Goal::words),
            })
        });
        json!({
            "part": self.part, "what": self.what, "unit": self.unit, "value": self.value,
            "floor": floor, "ratio": self.ratio(), "met": self.is_met(),
        })
    }
}

/// All figures.
#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: Vec<Figure>,
    details: serde_json::Map<String, Value>,
}

impl Report {
    /// Adds a figure without a floor.
    pub(crate) fn plain(
        &mut self,
        part: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        value: f64,
    ) {
        self.figures.push(Figure { part, what: what.into(), unit, value, floor: None });
    }

    /// Adds a figure with a floor.
    pub(crate) fn beside(
        &mut self,
        part: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        value: f64,
        floor: Floor,
    ) {
        self.figures.push(Figure { part, what: what.into(), unit, value, floor: Some(floor) });
    }

    /// Adds details that appear only in the JSON.
    pub(crate) fn detail(&mut self, name: &str, value: Value) {
        self.details.insert(name.to_owned(), value);
    }

    /// The report as JSON.
    pub(crate) fn json(&self, about: &Value) -> Value {
        json!({
            "about": about,
            "figures": self.figures.iter().map(Figure::json).collect::<Vec<_>>(),
            "details": self.details,
        })
    }

    /// The report as a table.
    pub(crate) fn table(&self) -> String {
        let head = ["", "figure", "value", "floor", "ratio", "goal", ""].map(str::to_owned);
        let mut rows = vec![head];
        for figure in &self.figures {
            let (mut floor, mut goal) = (String::new(), String::new());
            if let Some(beside) = &figure.floor {
                floor = format!("{} ({})", number(beside.value), beside.what);
                goal = beside.goal.map(Goal::words).unwrap_or_default();
            }
            let met = match figure.is_met() {
                Some(true) => "ok",
                Some(false) => "MISSED",
                None => "",
            };
            rows.push([
                figure.part.to_owned(),
                figure.what.clone(),
                format!("{} {}", number(figure.value), figure.unit),
                floor,
                figure.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
                goal,
                met.to_owned(),
            ]);
        }
        aligned(&rows)
    }
}

fn aligned(rows: &[[String; 7]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut table = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a `String` cannot fail.
            write!(line, "{cell:width$}  ").unwrap_or_default();
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

/// A number with about three significant digits.
fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// The percentile of values.
pub(crate) fn percentile(of: &[f64], percent: usize) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// The median of values.
pub(crate) fn median(of: &[f64]) -> f64 {
    percentile(of, 50)
}

/// A duration in milliseconds.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A count as a floating-point number.
#[expect(clippy::cast_precision_loss, reason = "counts of some millions")]
pub(crate) fn to_f64(count: usize) -> f64 {
    count as f64
}
