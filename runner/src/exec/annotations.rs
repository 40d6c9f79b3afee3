//! Annotations of images, which podman passes to the OCI runtime.

use std::collections::HashMap;

use crate::ports::ExecError;

/// Prefixes of annotations that only describe an image, or that the tools that build and publish
/// images set.
const DESCRIPTIVE: [&str; 4] =
    ["org.opencontainers.", "io.buildah.version", "com.docker.", "vnd.docker."];

/// Prefixes of annotations that podman itself sets on a container.
const OF_PODMAN: [&str; 3] = ["io.podman.annotations.", "io.kubernetes.cri-o.", "io.container."];

/// The longest part of an annotation's name that a message shows, in characters.
const SHOWN: usize = 100;

/// Checks the annotations of an image.
///
/// podman copies them to the container's configuration, and its OCI runtime takes some of them as
/// options. `run.oci.seccomp_bpf_data` replaces the system call filter, and
/// `run.oci.seccomp.receiver` names a socket of the host that crun connects to.
///
/// # Errors
/// [`ExecError::Image`] if an annotation is not on the list of descriptive ones.
pub(super) fn check_image(
    image: &str,
    annotations: Option<&HashMap<String, String>>,
) -> Result<(), ExecError> {
    check(image, annotations, |name| is_below(name, &DESCRIPTIVE))
}

/// Checks the annotations of a container before it is initialised. Pulling another image with the
/// same configuration replaces the annotations of an image, so those that were checked can differ
/// from those that the container got. `own` are the annotations that the request set.
///
/// # Errors
/// As for [`check_image`].
pub(super) fn check_container(
    image: &str,
    annotations: Option<&HashMap<String, String>>,
    own: &[&str],
) -> Result<(), ExecError> {
    check(image, annotations, |name| {
        is_below(name, &DESCRIPTIVE) || is_below(name, &OF_PODMAN) || own.contains(&name)
    })
}

fn is_below(name: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}

fn check(
    image: &str,
    annotations: Option<&HashMap<String, String>>,
    is_allowed: impl Fn(&str) -> bool,
) -> Result<(), ExecError> {
    let names = annotations.into_iter().flat_map(HashMap::keys).map(String::as_str);
    // The smallest name, so that the message does not depend on the order of the map.
    let Some(name) = names.filter(|name| !is_allowed(name)).min() else { return Ok(()) };
    let name: String = name.chars().take(SHOWN).collect();
    Err(ExecError::Image {
        image: image.to_owned(),
        cause: format!(
            "its manifest has the annotation {name:?}, which the engine would pass to its OCI \
             runtime: only annotations that describe an image are allowed, such as \
             org.opencontainers.image.title"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(names: &[&str]) -> HashMap<String, String> {
        names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect()
    }

    #[test]
    fn only_annotations_that_describe_an_image_are_allowed() {
        let check = |names: &[&str]| check_image("evil:1", Some(&annotations(names)));
        assert!(check_image("i", None).is_ok());
        let usual = [
            "org.opencontainers.image.title",
            "io.buildah.version",
            "com.docker.official-images.bashbrew.arch",
        ];
        assert!(check(&usual).is_ok());
        for name in [
            "run.oci.seccomp_bpf_data",
            "run.oci.seccomp.receiver",
            "run.oci.pidfd_receiver",
            "org.systemd.property.ExecStopPost",
            "io.podman.annotations.privileged",
            "io.kubernetes.cri-o.userns-mode",
            "krun.ram_mib",
            "bob.worker",
            "",
        ] {
            let why = check(&[usual[0], name]).unwrap_err().to_string();
            assert!(why.contains("evil:1") && why.contains(&format!("{name:?}")), "{why}");
        }
    }

    #[test]
    fn a_container_also_has_the_annotations_of_podman_and_its_own() {
        let set = ["io.podman.annotations.init", "io.container.manager", "bob.worker"];
        assert!(check_container("i", Some(&annotations(&set)), &["bob.worker"]).is_ok());
        assert!(check_container("i", Some(&annotations(&set)), &[]).is_err());
        let bad = annotations(&["run.oci.hooks.stdout"]);
        assert!(check_container("i", Some(&bad), &["bob.worker"]).is_err());
    }
}
