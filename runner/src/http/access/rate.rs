//! Limits the requests of one client per time.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};

/// After this many requests, clients that have used nothing lately are forgotten.
const FORGET_AFTER: u32 = 4096;

/// The client that requests count for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Client {
    /// The user that a token names.
    Subject(String),
    /// The network of a client without a name.
    Network(IpAddr),
    /// A client without name and address, as in a test.
    Unknown,
}

impl Client {
    /// The client at an address. One host usually has 2^64 addresses of IPv6.
    pub(super) fn at(address: Option<IpAddr>) -> Self {
        match address {
            Some(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
                Some(address) => Self::Network(address.into()),
                None => {
                    let network = address.to_bits() & !u128::from(u64::MAX);
                    Self::Network(Ipv6Addr::from_bits(network).into())
                }
            },
            Some(address) => Self::Network(address),
            None => Self::Unknown,
        }
    }
}

/// Limits the requests of each client.
#[derive(Debug)]
pub(super) struct Rate<C: Clock = DefaultClock> {
    limiter: RateLimiter<Client, DefaultKeyedStateStore<Client>, C, NoOpMiddleware<C::Instant>>,
    clock: C,
    requests: AtomicU32,
}

impl Rate {
    pub(super) fn new(per_second: NonZeroU32) -> Self {
        Self::with_clock(per_second, DefaultClock::default())
    }
}

impl<C: Clock + Clone> Rate<C> {
    fn with_clock(per_second: NonZeroU32, clock: C) -> Self {
        let burst = per_second.saturating_mul(NonZeroU32::MIN.saturating_add(1));
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let limiter = RateLimiter::new(quota, DefaultKeyedStateStore::default(), clock.clone());
        Self { limiter, clock, requests: AtomicU32::new(0) }
    }

    /// Counts a request. If it is one too many, returns the time until the next one is allowed.
    pub(super) fn count(&self, client: &Client) -> Result<(), Duration> {
        if self.requests.fetch_add(1, Ordering::Relaxed) % FORGET_AFTER == FORGET_AFTER - 1 {
            self.limiter.retain_recent();
        }
        self.limiter.check_key(client).map_err(|until| until.wait_time_from(self.clock.now()))
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn subject(name: &str) -> Client {
        Client::Subject(name.to_owned())
    }

    #[test]
    fn a_client_has_its_own_rate_and_is_told_when_to_come_back() {
        let clock = FakeRelativeClock::default();
        let rate = Rate::with_clock(NonZeroU32::new(2).unwrap(), clock.clone());
        for _request in 0..4 {
            assert_eq!(rate.count(&subject("a")), Ok(()));
        }
        assert_eq!(rate.count(&subject("a")), Err(Duration::from_millis(500)));
        assert_eq!(rate.count(&subject("b")), Ok(()));
        clock.advance(Duration::from_millis(500));
        assert_eq!(rate.count(&subject("a")), Ok(()));
        assert!(rate.count(&subject("a")).is_err());
    }

    #[test]
    fn clients_that_have_used_nothing_lately_are_forgotten() {
        let clock = FakeRelativeClock::default();
        let rate = Rate::with_clock(NonZeroU32::MIN, clock.clone());
        for name in 0..FORGET_AFTER - 1 {
            rate.count(&subject(&name.to_string())).unwrap();
        }
        clock.advance(Duration::from_secs(60));
        rate.count(&subject("last")).unwrap();
        assert!(rate.limiter.len() <= 1, "{} clients are remembered", rate.limiter.len());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let at = |text: &str| Client::at(Some(text.parse().unwrap()));
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_ne!(at("192.0.2.1"), at("192.0.2.2"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
    }
}
