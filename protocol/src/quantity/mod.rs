//! Amounts as people write them: memory, CPU shares and time spans.
//!
//! `Display` and `FromStr` are inverse, so a parsed value survives a round trip.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Why an amount is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadQuantity {
    /// Not digits followed by a unit.
    #[error("memory {given:?} must be digits and one of K M G T P E (or Ki Mi ..., the same)")]
    Memory {
        /// The text as given.
        given: String,
    },
    /// More bytes than fit into 64 bits.
    #[error("memory {given:?} is more than a computer can address")]
    MemoryTooLarge {
        /// The text as given.
        given: String,
    },
    /// Not a number between 0 and 1.
    #[error("cpu share {given} must be a number from 0.0 to 1.0, the share of all cores")]
    Cpu {
        /// The number as given.
        given: String,
    },
    /// Not a sequence of numbers and units.
    #[error(
        "time span {given:?} must be whole numbers with d, h, m, s or ms, the largest first, or whole seconds"
    )]
    Span {
        /// The text as given.
        given: String,
    },
    /// Zero, or more than a year.
    #[error("time span {given:?} must be more than 0 and at most 365d")]
    SpanOutOfRange {
        /// The text as given.
        given: String,
    },
}

const MEMORY_UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];

/// An amount of memory: digits and a unit. `K` and `Ki` both mean 1024 bytes, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Memory {
    // A multiple of 1024, because every unit is one. Therefore `Display` is exact.
    bytes: u64,
}

impl Memory {
    /// The amount in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.bytes
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut amount, mut unit) = (self.bytes / 1024, 0);
        while amount != 0 && amount.is_multiple_of(1024) && unit + 1 < MEMORY_UNITS.len() {
            amount /= 1024;
            unit += 1;
        }
        write!(f, "{amount}{}i", MEMORY_UNITS[unit])
    }
}

impl FromStr for Memory {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let malformed = || BadQuantity::Memory { given: text.to_owned() };
        let short = text.strip_suffix('i').unwrap_or(text);
        let unit = short.chars().next_back().ok_or_else(malformed)?;
        let power = MEMORY_UNITS.iter().position(|known| *known == unit).ok_or_else(malformed)?;
        let digits = &short[..short.len() - unit.len_utf8()];
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        // The digits are valid, so only an overflow can fail here.
        let amount = digits.parse::<u64>().ok();
        let scale = 1_u64 << (10 * (power + 1));
        amount
            .and_then(|amount| amount.checked_mul(scale))
            .map(|bytes| Self { bytes })
            .ok_or_else(|| BadQuantity::MemoryTooLarge { given: text.to_owned() })
    }
}

/// Formats a number of bytes for people: `23.54 GiB`, `512 MiB`, `17 bytes`.
#[must_use]
pub fn readable(bytes: u64) -> String {
    let power = bytes.checked_ilog2().map_or(0, |log| log as usize / 10);
    let Some(unit) = power.checked_sub(1).and_then(|at| MEMORY_UNITS.get(at)) else {
        return format!("{bytes} bytes");
    };
    // Two decimals, rounded down: the text never exceeds the real amount.
    let hundredths = (u128::from(bytes) * 100) >> (10 * power);
    let (whole, part) = (hundredths / 100, hundredths % 100);
    let text = format!("{whole}.{part:02}");
    format!("{} {unit}iB", text.trim_end_matches('0').trim_end_matches('.'))
}

impl Serialize for Memory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Memory {
    fn schema_name() -> Cow<'static, str> {
        "Memory".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Digits and a unit; K and Ki both mean 1024.",
            "type": "string",
            "pattern": "^[0-9]+[KMGTPE]i?$",
        })
    }
}

/// A share of all processor cores, from 0.0 to 1.0.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Cpu {
    share: f64,
}

impl Cpu {
    /// Makes a share, checking its bounds.
    ///
    /// # Errors
    /// [`BadQuantity::Cpu`] if the share is not a number from 0.0 to 1.0.
    pub fn new(share: f64) -> Result<Self, BadQuantity> {
        if (0.0..=1.0).contains(&share) {
            // Adding 0.0 turns negative zero into zero.
            Ok(Self { share: share + 0.0 })
        } else {
            Err(BadQuantity::Cpu { given: share.to_string() })
        }
    }

    /// The share, from 0.0 to 1.0.
    #[must_use]
    pub fn share(self) -> f64 {
        self.share
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `{:?}` keeps the decimal point of 1.0.
        write!(f, "{:?}", self.share)
    }
}

impl FromStr for Cpu {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        // Text that is not a number and a number out of bounds are the same error.
        text.parse()
            .ok()
            .and_then(|share| Self::new(share).ok())
            .ok_or_else(|| BadQuantity::Cpu { given: text.to_owned() })
    }
}

impl Serialize for Cpu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.share)
    }
}

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl JsonSchema for Cpu {
    fn schema_name() -> Cow<'static, str> {
        "Cpu".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A share of all cores.",
            "type": "number",
            "minimum": 0,
            "maximum": 1,
        })
    }
}

/// Units of a span in milliseconds, in descending order.
const SPAN_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A time span: `90s`, `10m`, `1h30m`, `500ms`, or a bare number of seconds. More than 0, and at
/// most 365 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    millis: u64,
}

impl Span {
    /// The maximum, in milliseconds.
    pub const MAX_MILLIS: u64 = 365 * 86_400_000;

    /// Makes a span, checking its bounds.
    ///
    /// # Errors
    /// [`BadQuantity::SpanOutOfRange`] for 0 and for more than [`Self::MAX_MILLIS`].
    pub fn from_millis(millis: u64) -> Result<Self, BadQuantity> {
        Self::bounded(Some(millis), &format!("{millis}ms"))
    }

    /// The span in milliseconds.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        self.millis
    }

    /// The span as a [`Duration`].
    #[must_use]
    pub fn as_duration(self) -> Duration {
        Duration::from_millis(self.millis)
    }

    /// Checks the bounds. `None` stands for a number that overflows 64 bits.
    fn bounded(millis: Option<u64>, given: &str) -> Result<Self, BadQuantity> {
        millis
            .filter(|millis| (1..=Self::MAX_MILLIS).contains(millis))
            .map(|millis| Self { millis })
            .ok_or_else(|| BadQuantity::SpanOutOfRange { given: given.to_owned() })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.millis;
        for (unit, millis) in SPAN_UNITS {
            if rest >= millis {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

impl FromStr for Span {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let malformed = || BadQuantity::Span { given: text.to_owned() };
        let mut total = Some(0_u64);
        let mut units = SPAN_UNITS.iter();
        let mut rest = text;
        if rest.is_empty() {
            return Err(malformed());
        }
        while !rest.is_empty() {
            let (digits, after) =
                rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
            let (unit, after) =
                after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
            let unit = if unit.is_empty() && digits.len() == text.len() { "s" } else { unit };
            // Each unit is searched only after the previous one. This enforces descending order
            // without repeats.
            let millis = units.find(|(known, _)| *known == unit).ok_or_else(malformed)?.1;
            if digits.is_empty() {
                return Err(malformed());
            }
            total = digits
                .parse::<u64>()
                .ok()
                .and_then(|amount| amount.checked_mul(millis))
                .and_then(|part| total?.checked_add(part));
            rest = after;
        }
        Self::bounded(total, text)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrSeconds;
        impl de::Visitor<'_> for TextOrSeconds {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time span such as \"1h30m\", or whole seconds")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Span, E> {
                Span::bounded(seconds.checked_mul(1000), &seconds.to_string()).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Span, E> {
                let given = seconds.to_string();
                // A negative number is out of range, like one that is too large.
                let seconds = u64::try_from(seconds).ok();
                Span::bounded(seconds.and_then(|s| s.checked_mul(1000)), &given).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(TextOrSeconds)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A span of time such as 90s, 10m, 1h30m or 500ms; a bare number is seconds.",
            "anyOf": [
                {
                    "type": "string",
                    "pattern": "^([0-9]+|([0-9]+(d|h|m|s|ms))+)$",
                },
                { "type": "integer", "minimum": 1, "maximum": Span::MAX_MILLIS / 1000 },
            ],
        })
    }
}
