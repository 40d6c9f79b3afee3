use proptest::prelude::*;

use super::*;

#[test]
fn memory_units_are_powers_of_1024_with_and_without_the_i() {
    for (text, bytes) in [
        ("1K", 1024),
        ("1Ki", 1024),
        ("512M", 512 << 20),
        ("2Gi", 2 << 30),
        ("15E", 15 << 60),
        ("0K", 0),
    ] {
        assert_eq!(text.parse::<Memory>().unwrap().bytes(), bytes, "{text}");
    }
}

#[test]
fn bytes_are_shown_readably_and_never_rounded_up() {
    for (bytes, text) in [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (512 << 20, "512 MiB"),
        (25_276_063_744, "23.54 GiB"),
        ((1 << 30) - 1, "1023.99 MiB"),
        (1000 << 30, "1000 GiB"),
        (100 << 30, "100 GiB"),
        (u64::MAX, "15.99 EiB"),
    ] {
        assert_eq!(readable(bytes), text);
    }
}

#[test]
fn memory_without_digits_or_unit_or_beyond_64_bits_is_refused() {
    for bad in
        ["", "1", "K", "i", "1i", "1k", "1KB", "1.5G", "-1K", "+1K", " 1K", "1K ", "1Kii", "1é"]
    {
        let fault = bad.parse::<Memory>().unwrap_err();
        assert!(matches!(fault, BadQuantity::Memory { .. }), "{bad:?}: {fault}");
    }
    for bad in ["16E", "99999999999999999999K"] {
        let fault = bad.parse::<Memory>().unwrap_err();
        assert!(matches!(fault, BadQuantity::MemoryTooLarge { .. }), "{bad:?}: {fault}");
    }
}

#[test]
fn a_cpu_share_can_be_an_integer_and_is_bounded() {
    assert_eq!(serde_json::from_str::<Cpu>("1").unwrap(), Cpu::new(1.0).unwrap());
    assert_eq!(serde_json::from_str::<Cpu>("0.25").unwrap().share(), 0.25);
    assert_eq!(serde_json::to_string(&Cpu::new(1.0).unwrap()).unwrap(), "1.0");
    for bad in ["1.01", "-0.1", "2", "\"1\"", "null"] {
        assert!(serde_json::from_str::<Cpu>(bad).is_err(), "{bad} was taken");
    }
    for bad in ["NaN", "inf", "", "half"] {
        assert!(bad.parse::<Cpu>().is_err(), "{bad} was taken");
    }
}

#[test]
fn a_span_is_parsed_with_units_or_as_seconds() {
    for (text, millis) in [
        ("90s", 90_000),
        ("10m", 600_000),
        ("1h30m", 5_400_000),
        ("500ms", 500),
        ("30", 30_000),
        ("1d2h3m4s5ms", 93_784_005),
        ("1m5ms", 60_005),
        ("90m", 5_400_000),
    ] {
        assert_eq!(text.parse::<Span>().unwrap().as_millis(), millis, "{text}");
    }
    assert_eq!(serde_json::from_str::<Span>("90").unwrap().as_millis(), 90_000);
    assert_eq!(serde_json::from_str::<Span>("\"90\"").unwrap().as_millis(), 90_000);
    assert_eq!(Span::from_millis(1500).unwrap().as_duration(), Duration::from_millis(1500));
}

#[test]
fn an_invalid_or_too_long_span_is_refused() {
    for bad in ["", "s", "1x", "1s2", "1m1h", "1s1s", "1.5s", "-1s", " 1s", "1 s", "ms5", "1é"] {
        let fault = bad.parse::<Span>().unwrap_err();
        assert!(matches!(fault, BadQuantity::Span { .. }), "{bad:?}: {fault}");
    }
    for bad in ["0", "0s", "0h0m", "366d", "99999999999999999999h", "9999999999999999d"] {
        let fault = bad.parse::<Span>().unwrap_err();
        assert!(matches!(fault, BadQuantity::SpanOutOfRange { .. }), "{bad:?}: {fault}");
    }
    for bad in ["0", "-5", "1.5", "1e30", "18446744073709551615", "true", "null", "[]"] {
        assert!(serde_json::from_str::<Span>(bad).is_err(), "{bad} was taken");
    }
}

proptest! {
    #[test]
    fn memory_round_trips_through_text(amount in 0_u64..=u64::MAX >> 10) {
        let memory = Memory { bytes: amount << 10 };
        prop_assert_eq!(memory.to_string().parse::<Memory>().unwrap(), memory);
    }

    #[test]
    fn a_cpu_share_round_trips_through_text(share in 0.0..=1.0_f64) {
        let cpu = Cpu::new(share).unwrap();
        prop_assert_eq!(cpu.to_string().parse::<Cpu>().unwrap(), cpu);
    }

    #[test]
    fn a_span_round_trips_through_text(millis in 1..=Span::MAX_MILLIS) {
        let span = Span::from_millis(millis).unwrap();
        prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        let json = serde_json::to_string(&span).unwrap();
        prop_assert_eq!(serde_json::from_str::<Span>(&json).unwrap(), span);
    }

    #[test]
    fn parsing_a_quantity_never_panics(text in "\\PC{0,12}|[0-9]{0,22}[KMGTPEidhms]{0,3}") {
        drop(text.parse::<Memory>());
        drop(text.parse::<Cpu>());
        drop(text.parse::<Span>());
    }
}
