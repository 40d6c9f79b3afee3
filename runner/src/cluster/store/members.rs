//! The members of the etcd cluster. One of them is used until it fails, then the next.
//!
//! etcd-client would distribute calls over all members at random, including one that hangs.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, GetOptions, GetResponse, Identity, TlsOptions,
};
use parking_lot::Mutex;
use protocol::names;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::errors::Fault;
use super::options::EtcdOptions;

/// The timeout of a call.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// The silence before a keep-alive. etcd treats more than one in five seconds as an attack.
const SILENCE: Duration = Duration::from_secs(10);

/// Whether a call may be repeated if it is unknown whether the first one was processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// The call is idempotent.
    May,
    /// The call is not idempotent: repeat it only if it was not sent.
    Unsent,
}

pub(super) struct Members {
    clients: Vec<Client>,
    /// The index of the member in use.
    current: AtomicUsize,
    user: Mutex<Option<(String, String)>>,
}

impl Members {
    /// Creates a client for each address without sending anything.
    pub(super) async fn new(options: &EtcdOptions) -> Result<Self, Fault> {
        let with = connect_options(options).map_err(Fault::Denied)?;
        let mut clients = Vec::with_capacity(options.urls.len());
        for url in &options.urls {
            clients.push(Client::connect([url], Some(with.clone())).await.map_err(Fault::from)?);
        }
        if clients.is_empty() {
            return Err(Fault::Refused("it has no address".to_owned()));
        }
        let user = options.user.clone().map(|user| {
            let password = options.password.clone().unwrap_or_default();
            (user, password)
        });
        Ok(Self { clients, current: AtomicUsize::new(0), user: Mutex::new(user) })
    }

    /// Makes a small read to detect errors at the start, and returns the cluster's ID.
    pub(super) async fn greet(&self) -> Result<Option<u64>, Fault> {
        let answer = self.call(DEADLINE, Repeat::May, probe_read).await?;
        Ok(answer.header().map(etcd_client::ResponseHeader::cluster_id))
    }

    /// Logs in to a member if necessary. On a watch, etcd reports a missing token as a missing
    /// permission.
    pub(super) async fn log_in(&self, client: &Client) -> Result<(), Fault> {
        if self.user.lock().is_none() {
            return Ok(());
        }
        in_time(DEADLINE, self.logged_in(client, &probe_read)).await.map(drop)
    }

    /// Makes a call to the current member and, if it fails, to the next.
    pub(super) async fn call<T, F, W>(
        &self,
        deadline: Duration,
        again: Repeat,
        work: W,
    ) -> Result<T, Fault>
    where
        W: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let end = Instant::now() + deadline;
        // Twice for a single member, because a failure is often due to an old connection.
        let mut left = u32::try_from(self.clients.len().max(2)).unwrap_or(u32::MAX);
        loop {
            let (index, client) = self.current();
            let remaining = end.saturating_duration_since(Instant::now());
            // Leave time for the other members if this one hangs.
            let share = if again == Repeat::May { remaining / left } else { remaining };
            let fault = match in_time(share, self.logged_in(&client, &work)).await {
                Err(fault @ (Fault::Unreachable(_) | Fault::Unsent(_))) => fault,
                other => return other,
            };
            self.switch_from(index);
            left -= 1;
            let may = again == Repeat::May || matches!(fault, Fault::Unsent(_));
            if left == 0 || !may || Instant::now() >= end {
                return Err(fault);
            }
            debug!(?fault, "the next member of the store is asked");
        }
    }

    /// Returns the current member.
    pub(super) fn current(&self) -> (usize, Client) {
        let index = self.current.load(Ordering::Relaxed) % self.clients.len();
        (index, self.clients[index].clone())
    }

    /// Switches to the next member, unless that has happened already.
    pub(super) fn switch_from(&self, index: usize) {
        let next = (index + 1) % self.clients.len();
        // Another call may have switched before, which serves the same purpose.
        let _before =
            self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Makes a call. If the token is missing or expired, logs in and repeats it.
    async fn logged_in<T, F, W>(&self, client: &Client, work: &W) -> Result<T, Fault>
    where
        W: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        // Boxed, because a future of etcd-client has the size of a memory page.
        match Box::pin(work(client.clone())).await.map_err(Fault::from) {
            Err(fault @ (Fault::StaleToken(_) | Fault::NoUser)) => {
                if !self.login(client).await? {
                    return Err(fault);
                }
                Box::pin(work(client.clone())).await.map_err(Fault::from)
            }
            other => other,
        }
    }

    /// Requests a token for the user. Returns false if no user is configured.
    async fn login(&self, client: &Client) -> Result<bool, Fault> {
        let user = self.user.lock().clone();
        if user.is_none() {
            return Ok(false);
        }
        Box::pin(client.clone().update_user(user)).await.map_err(Fault::from)?;
        Ok(true)
    }

    /// Checks the user. If authentication is disabled, logs a warning and drops the user.
    pub(super) async fn try_user(&self, at: &str) -> Result<(), Fault> {
        let (_, client) = self.current();
        match in_time(DEADLINE, self.login(&client)).await {
            Err(Fault::NoAuthentication) => {
                warn!(
                    store = at,
                    "the store has no authentication enabled, so its user is not used"
                );
                *self.user.lock() = None;
                Ok(())
            }
            Err(Fault::Unreachable(_) | Fault::Unsent(_)) | Ok(_) => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}

/// Makes a small read that every worker has the permission for.
async fn probe_read(client: Client) -> Result<GetResponse, etcd_client::Error> {
    let one = GetOptions::new().with_prefix().with_limit(1).with_keys_only();
    client.kv_client().get(names::NODES, Some(one)).await
}

/// Limits the time of a call.
pub(super) async fn in_time<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_elapsed| {
        let seconds = deadline.as_secs_f32();
        Err(Fault::Unreachable(format!("it did not answer within {seconds:.1} s")))
    })
}

fn connect_options(options: &EtcdOptions) -> Result<ConnectOptions, String> {
    let mut with = ConnectOptions::new()
        .with_connect_timeout(CONNECT_DEADLINE)
        .with_keep_alive(SILENCE, DEADLINE)
        // etcd closes connections that send keep-alives without an open stream.
        .with_keep_alive_while_idle(false)
        .with_tcp_keepalive(SILENCE)
        // Makes a member that is cut off from the others report that instead of hanging.
        .with_require_leader(true);
    if options.urls.iter().any(|url| url.starts_with("https://")) {
        let pems = options.tls.read().map_err(|fault| fault.to_string())?;
        let mut tls = TlsOptions::new();
        tls = match pems.ca {
            Some(ca) => tls.ca_certificate(Certificate::from_pem(ca)),
            None => tls.with_webpki_roots(),
        };
        if let Some((cert, key)) = pems.identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        with = with.with_tls(tls);
    } else if !options.tls.is_empty() {
        return Err(
            "certificates are given, but its address does not begin with https://".to_owned()
        );
    }
    Ok(with)
}
