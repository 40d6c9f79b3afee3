//! Go durations, as in prunner's files.

/// Units in nanoseconds. A unit precedes any other that is a prefix of it.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
];
/// Maximum number of significant fractional digits. A nanosecond in hours has 13.
const FRACTION: usize = 15;

/// Parses a duration such as `1h30m` or `1.5s` to nanoseconds. A bare whole number is in
/// nanoseconds.
pub(super) fn duration(text: &str) -> Result<u128, &'static str> {
    const FORM: &str = "expected a duration such as 500ms, 10s or 1h30m";
    if text.starts_with('-') {
        return Err("which must not be negative");
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    if text.is_empty() || text.len() > 64 {
        return Err(FORM);
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().ok_or(FORM);
    }
    let (mut total, mut rest) = (0_u128, text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(FORM)?;
        let (number, after) = rest.split_at(end);
        let (unit, nanos) = UNITS.iter().find(|(unit, _)| after.starts_with(unit)).ok_or(FORM)?;
        // `ms` is matched before its prefix `m`.
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(FORM);
        }
        let fraction = fraction.get(..FRACTION).unwrap_or(fraction);
        let part = |digits: &str| -> Result<u128, &'static str> {
            if digits.is_empty() { Ok(0) } else { digits.parse().ok().ok_or(FORM) }
        };
        let scale = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        let whole = part(whole)?.checked_mul(*nanos).ok_or(FORM)?;
        let fraction = part(fraction)? * nanos / scale;
        total = total.checked_add(whole + fraction).ok_or(FORM)?;
        rest = &after[unit.len()..];
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_parsed_like_in_go() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("1500", 1_500),
            ("500ms", 500_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("+2m", 120_000_000_000),
            ("3us4ns", 3_004),
            ("2µs", 2_000),
            ("0.000000001h", 3_600),
        ] {
            assert_eq!(duration(text), Ok(nanos), "{text}");
        }
    }

    #[test]
    fn an_invalid_duration_is_refused() {
        for bad in ["", "s", ".s", "1", "-1s", "1x", "1.2.3s", "1s2", "1 s", "1d", "∞"] {
            let is_bare = bad == "1";
            assert_eq!(duration(bad).is_ok(), is_bare, "{bad}");
        }
        assert!(duration(&"9".repeat(64)).is_err());
        assert!(duration(&format!("{}h", "9".repeat(38))).is_err());
    }
}
