//! Secrets of steps in real containers: a step can read them, but container metadata and committed
//! images must not contain them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use runner::ports::{
    ExecError, Images as _, Search, Secret, SecretMatcher, StepSecret, StepSecrets, StepSpec,
    Steps as _, Workspace,
};
use runner::rules::mask::{Mask, SecretSearch};
use test_support::engine::{Api, Bench, shell};

const TOKEN: &str = "t0p/s3cret+value";

#[derive(Debug)]
struct MaskMatcher(Arc<Mask>);

struct MaskSearch(SecretSearch);

impl SecretMatcher for MaskMatcher {
    fn search(&self) -> Box<dyn Search> {
        Box::new(MaskSearch(SecretSearch::new(Arc::clone(&self.0))))
    }
}

impl Search for MaskSearch {
    fn finds(&mut self, bytes: &[u8]) -> bool {
        self.0.finds(bytes)
    }

    fn pending(&self) -> usize {
        self.0.pending()
    }
}

/// A step that receives the token as a file and as an environment variable.
fn with_token(position: usize, line: &str) -> StepSpec {
    let mask = Mask::new([TOKEN.as_bytes()].into_iter()).unwrap();
    let secret = StepSecret {
        name: "token".into(),
        env: Some("TOKEN".into()),
        value: Secret::new(TOKEN.as_bytes()),
    };
    StepSpec {
        secrets: StepSecrets {
            granted: vec![secret],
            forbidden: Some(Arc::new(MaskMatcher(Arc::new(mask)))),
        },
        ..shell(position, line)
    }
}

#[tokio::test]
async fn a_secret_is_kept_in_memory_and_not_in_container_or_image_metadata() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let line = "cat /run/secrets/token; echo \" $TOKEN $BOB_SECRETS\"; \
                grep ' /run/secrets ' /proc/self/mounts | cut -d' ' -f3; echo made > /made";
    let step = with_token(0, line);
    let (outcome, output) = bench.step(&base, &step).await;
    assert_eq!(output.text(), format!("{TOKEN} {TOKEN} /run/secrets\ntmpfs\n"));
    let api = Api::of(&bench.url);
    let description = api.described(&format!("bob-{}-0", bench.run.run)).await;
    assert!(description.contains("/run/secrets"), "{description}");
    assert!(!description.contains(TOKEN), "{description}");
    let workspace = bench.podman.checkpoint(&bench.run, outcome.workspace, &step).await.unwrap();
    let description = api.described_image(workspace.image().unwrap()).await;
    assert!(!description.contains(TOKEN), "{description}");
    let next = shell(1, "ls -A /run/secrets 2>/dev/null; cat /made; echo ${TOKEN-none}");
    let (_, output) = bench.pass(&workspace, &next).await;
    assert_eq!(output.text(), "made\nnone\n");
    bench.destroy().await;
    assert_eq!(api.volumes_of(&bench.run.run).await, [""; 0]);
}

#[tokio::test]
async fn only_the_user_of_the_image_can_read_the_secrets() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let users =
        "echo 'app:x:1234:1234::/:/bin/sh' >> /etc/passwd; echo 'app:x:1234:' >> /etc/group";
    let (outcome, _) = bench.step(&base, &shell(0, users)).await;
    let runner::ports::Workspace::Container { id, .. } = &outcome.workspace else { unreachable!() };
    let api = Api::of(&bench.url);
    for user in ["app", "1234:1234"] {
        let name = format!("localhost/t-{}", uuid::Uuid::new_v4());
        api.commit(id, Some(&name), &[&format!("USER {user}")]).await;
        let mut other = bench.another_run();
        other.run.image = format!("{name}:latest");
        let base = other.prepare().await;
        let line = "id -u; cat /run/secrets/token; stat -c ' %u %a' /run/secrets/token";
        let (_, output) = other.pass(&base, &with_token(0, line)).await;
        assert_eq!(output.text(), format!("1234\n{TOKEN} 1234 400\n"), "user {user}");
        other.destroy().await;
        api.remove_image(&format!("{name}:latest")).await;
    }
    bench.podman.discard(&bench.run, outcome.workspace).await;
    bench.destroy().await;
}

#[tokio::test]
async fn a_step_that_writes_a_secret_to_a_file_is_not_committed() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let many_files = "i=0; while [ $i -lt 60 ]; do echo $i > /tmp/$i; i=$((i+1)); done";
    for (line, path) in [
        ("mkdir -p /a/b; cp /run/secrets/token /a/b/c".to_owned(), "/a/b/c"),
        ("echo \"x$TOKEN\" | base64 > /tmp/encoded".to_owned(), "/tmp/encoded"),
        ("echo \"# $TOKEN\" >> /etc/profile".to_owned(), "/etc/profile"),
        (format!("{many_files}; echo $TOKEN > /tmp/x"), "/tmp/x"),
        ("mkdir /l; ln -s \"$(printf %s $TOKEN | base64)\" /l/link".to_owned(), "/l/link"),
        // The engine follows a link and describes its target.
        ("ln -s \"$TOKEN\" /etc/link".to_owned(), "/etc/link"),
        ("ln -s \"$TOKEN/../up\" /tmp/link".to_owned(), "/tmp/link"),
        ("ln -s \"$TOKEN\" /link; ln -s /bin/sh /other".to_owned(), "/link"),
        ("ln -s \"$TOKEN\" /tmp/link; ln -s link /tmp/other".to_owned(), "/tmp/link"),
        ("ln -s /loop /loop; echo $TOKEN > /x".to_owned(), "/x"),
        (format!("{many_files}; ln -s \"$TOKEN\" /tmp/link"), "/tmp/link"),
    ] {
        let step = with_token(0, &line);
        let (outcome, _) = bench.step(&base, &step).await;
        assert_eq!(outcome.exit.code, 0, "{line}");
        let result = bench.podman.checkpoint(&bench.run, outcome.workspace.clone(), &step).await;
        match result {
            Err(ExecError::SecretLeak { path: leak, .. }) => assert_eq!(leak, path, "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
    // A step that only uses the secret can be committed.
    let step =
        with_token(0, &format!("{many_files}; cat /run/secrets/token > /dev/null; rm /tmp/1"));
    let (workspace, _) = bench.pass(&base, &step).await;
    let (_, output) = bench.pass(&workspace, &shell(1, "ls /tmp | wc -l")).await;
    assert_eq!(output.text().trim(), "59");
    bench.destroy().await;
}

#[tokio::test]
async fn extended_attributes_are_searched_for_secrets() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let many_files = "i=0; while [ $i -lt 60 ]; do echo $i > /tmp/$i; i=$((i+1)); done";
    for (line, file) in
        [("echo x > /srv-x", "srv-x"), (&*format!("{many_files}; echo x > /y"), "y")]
    {
        let step = with_token(0, line);
        let (outcome, _) = bench.step(&base, &step).await;
        let Workspace::Container { id, .. } = &outcome.workspace else {
            panic!("{:?}", outcome.workspace)
        };
        // Set the attribute from the host, because the base image has no program for that. The
        // value contains a newline, which must not be parsed as the end of the attribute.
        let dir = Api::of(&bench.url).changed_dir(id).await;
        let value = format!("a\n{TOKEN}");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(dir.join(file), "user.note", value.as_bytes(), flags).unwrap();
        match bench.podman.checkpoint(&bench.run, outcome.workspace.clone(), &step).await {
            Err(ExecError::SecretLeak { path, .. }) => assert_eq!(path, format!("/{file}")),
            other => panic!("{line}: {other:?}"),
        }
    }
    bench.destroy().await;
}

#[tokio::test]
async fn a_step_with_too_many_changes_to_search_fails_with_a_clear_message() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    // 24,000 paths of 3,000 bytes each are 72 MB.
    let line = "d=$(printf x%.0s $(seq 200)); cd /tmp; \
                for i in $(seq 15); do mkdir $d; cd $d; done; \
                for i in $(seq 24000); do : > $i; done";
    let step = with_token(0, line);
    let (outcome, _) = bench.step(&base, &step).await;
    assert_eq!(outcome.exit.code, 0);
    let error = bench.podman.checkpoint(&bench.run, outcome.workspace, &step).await.unwrap_err();
    assert!(matches!(error, ExecError::Unsupported(_)), "{error:?}");
    assert!(error.to_string().contains("too many files"), "{error}");
    bench.destroy().await;
}

#[tokio::test]
async fn a_step_that_is_killed_with_its_worker_leaves_no_secret_on_the_engine() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let step = with_token(0, "echo ready; exec sleep 1000");
    let execution = bench.try_step(&base, &step);
    let api = Api::of(&bench.url);
    let start = test_support::engine::until("the step runs", || api.runs(&bench.run.run));
    tokio::select! {
        result = execution => panic!("the step ended early: {result:?}"),
        () = start => {}
    }
    let other = bench.another_process();
    assert!(other.is_left(&bench.run.run).await);
    other.destroy().await;
    assert!(!other.is_left(&bench.run.run).await);
    assert_eq!(api.volumes_of(&bench.run.run).await, [""; 0]);
}
