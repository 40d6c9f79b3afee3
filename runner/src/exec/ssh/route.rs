//! The address that `ssh` connects to. The settings of the worker's user can rename a host or route
//! it through others. `ssh -G` reports the result.

use std::process::Stdio;

use super::Ssh;
use super::target::Target;
use crate::egress::refusal;

/// The ssh settings of a host that determine the address of its connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    host: String,
    port: u16,
    /// Whether another host or program makes the connection.
    is_indirect: bool,
    key_alias: Option<String>,
}

impl Settings {
    fn read(text: &str) -> Self {
        let mut settings = Self { port: 22, ..Self::default() };
        for line in text.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            match key {
                "hostname" => value.clone_into(&mut settings.host),
                "port" => settings.port = value.parse().unwrap_or(22),
                "proxycommand" | "proxyjump" => settings.is_indirect |= value != "none",
                "hostkeyalias" if value != "none" => settings.key_alias = Some(value.to_owned()),
                _ => {}
            }
        }
        settings
    }

    /// The name of the host's key in the known hosts file.
    fn known_as(&self) -> String {
        match (&self.key_alias, self.port) {
            (Some(alias), _) => alias.clone(),
            (None, 22) => self.host.clone(),
            (None, port) => format!("[{}]:{port}", self.host),
        }
    }
}

impl Ssh {
    /// Options that pin `ssh` to an address that the step may connect to. The address is resolved
    /// here, so that `ssh` does not resolve it again. Empty if all addresses are allowed.
    pub(super) async fn route(&self, target: &Target) -> Result<Vec<String>, String> {
        let policy = &self.options.policy;
        if policy.is_unrestricted() {
            return Ok(Vec::new());
        }
        let settings = self.settings(target).await?;
        let found = policy.addresses(&settings.host, settings.port).await;
        let address = match found {
            // Only the intermediate hosts can resolve this name.
            Err(cause) if settings.is_indirect && refusal(&cause).is_none() => None,
            Err(cause) => return Err(format!("`host` {:?}: {cause}", settings.host)),
            Ok(found) => found.first().copied(),
        };
        match address {
            _ if settings.is_indirect => Ok(Vec::new()),
            None => Err(format!("`host` {:?} has no address", settings.host)),
            Some(address) => Ok(vec![
                format!("HostName={}", address.ip()),
                format!("HostKeyAlias={}", settings.known_as()),
            ]),
        }
    }

    async fn settings(&self, target: &Target) -> Result<Settings, String> {
        let said = self
            .command()
            .arg("-G")
            .args(target.to_host())
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|cause| self.cannot_start(&cause))?;
        if !said.status.success() {
            let cause = String::from_utf8_lossy(&said.stderr);
            let cause = cause.trim();
            return Err(format!("the settings of ssh for {} cannot be read: {cause}", target.at()));
        }
        Ok(Settings::read(&String::from_utf8_lossy(&said.stdout)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_ssh_say_where_a_connection_goes() {
        let direct =
            Settings::read("user root\nhostname build.example.org\nport 22\nproxyjump none");
        assert_eq!((direct.host.as_str(), direct.port), ("build.example.org", 22));
        assert!(!direct.is_indirect);
        assert_eq!(direct.known_as(), "build.example.org");
        let other = Settings::read("hostname ::1\nport 2222\n");
        assert_eq!(other.known_as(), "[::1]:2222");
        let alias = Settings::read("hostname h\nport 2222\nhostkeyalias x\nproxyjump bastion");
        assert_eq!((alias.known_as().as_str(), alias.is_indirect), ("x", true));
        assert!(Settings::read("hostname h\nproxycommand nc %h %p").is_indirect);
    }
}
