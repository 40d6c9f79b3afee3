//! Secrets of steps in real containers: where they are during the step, and where they must not be.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use integration_tests::engine::{Api, Bench, shell};
use runner::ports::{
    ExecError, Images as _, Search, Secret, SecretMatcher, StepSecret, StepSecrets, StepSpec,
    Steps as _, Workspace,
};
use runner::rules::mask::{Mask, SecretSearch};

const TOKEN: &str = "t0p/s3cret+value";

#[derive(Debug)]
struct Masked(Arc<Mask>);

struct Finding(SecretSearch);

impl SecretMatcher for Masked {
    fn search(&self) -> Box<dyn Search> {
        Box::new(Finding(SecretSearch::new(Arc::clone(&self.0))))
    }
}

impl Search for Finding {
    fn finds(&mut self, bytes: &[u8]) -> bool {
        self.0.finds(bytes)
    }

    fn pending(&self) -> usize {
        self.0.pending()
    }
}

/// A step with the token as a file and as a variable.
fn with_token(position: usize, line: &str) -> StepSpec {
    let mask = Mask::new([TOKEN.as_bytes()].into_iter()).unwrap();
    let given = StepSecret {
        name: "token".into(),
        env: Some("TOKEN".into()),
        value: Secret::new(TOKEN.as_bytes()),
    };
    StepSpec {
        secrets: StepSecrets {
            given: vec![given],
            forbidden: Some(Arc::new(Masked(Arc::new(mask)))),
        },
        ..shell(position, line)
    }
}

#[tokio::test]
async fn a_secret_is_kept_in_memory_and_not_in_container_or_image_metadata() {
    let Some(bench) = Bench::of_environment() else { return };
    let base = bench.prepare().await;
    let line = "cat /run/secrets/token; echo \" $TOKEN $BOB_SECRETS\"; \
                grep ' /run/secrets ' /proc/self/mounts | cut -d' ' -f3; echo made > /made";
    let step = with_token(0, line);
    let (ran, kept) = bench.step(&base, &step).await;
    assert_eq!(kept.text(), format!("{TOKEN} {TOKEN} /run/secrets\ntmpfs\n"));
    let api = Api::of(&bench.url);
    let said = api.described(&format!("bob-{}-0", bench.run.run)).await;
    assert!(said.contains("/run/secrets") && !said.contains(TOKEN), "{said}");
    let left = bench.podman.checkpoint(&bench.run, ran.left, &step).await.unwrap();
    let said = api.described_image(left.image().unwrap()).await;
    assert!(!said.contains(TOKEN), "{said}");
    let next = shell(1, "ls -A /run/secrets 2>/dev/null; cat /made; echo ${TOKEN-none}");
    let (_, kept) = bench.pass(&left, &next).await;
    assert_eq!(kept.text(), "made\nnone\n");
    bench.destroy().await;
    assert_eq!(api.volumes_of(&bench.run.run).await, [""; 0]);
}

#[tokio::test]
async fn only_the_user_of_the_image_can_read_the_secrets() {
    let Some(bench) = Bench::of_environment() else { return };
    let base = bench.prepare().await;
    let users =
        "echo 'app:x:1234:1234::/:/bin/sh' >> /etc/passwd; echo 'app:x:1234:' >> /etc/group";
    let (ran, _) = bench.step(&base, &shell(0, users)).await;
    let runner::ports::Workspace::Container { id, .. } = &ran.left else { unreachable!() };
    let api = Api::of(&bench.url);
    for user in ["app", "1234:1234"] {
        let name = format!("localhost/t-{}", uuid::Uuid::new_v4());
        api.commit(id, Some(&name), &[&format!("USER {user}")]).await;
        let mut other = bench.another_run();
        other.run.image = format!("{name}:latest");
        let base = other.prepare().await;
        let line = "id -u; cat /run/secrets/token; stat -c ' %u %a' /run/secrets/token";
        let (_, kept) = other.pass(&base, &with_token(0, line)).await;
        assert_eq!(kept.text(), format!("1234\n{TOKEN} 1234 400\n"), "user {user}");
        other.destroy().await;
        api.remove_image(&format!("{name}:latest")).await;
    }
    bench.podman.discard(&bench.run, ran.left).await;
    bench.destroy().await;
}

#[tokio::test]
async fn a_step_that_writes_a_secret_to_a_file_is_not_committed() {
    let Some(bench) = Bench::of_environment() else { return };
    let base = bench.prepare().await;
    let many = "i=0; while [ $i -lt 60 ]; do echo $i > /tmp/$i; i=$((i+1)); done";
    for (line, path) in [
        ("mkdir -p /a/b; cp /run/secrets/token /a/b/c".to_owned(), "/a/b/c"),
        ("echo \"x$TOKEN\" | base64 > /tmp/encoded".to_owned(), "/tmp/encoded"),
        ("echo \"# $TOKEN\" >> /etc/profile".to_owned(), "/etc/profile"),
        (format!("{many}; echo $TOKEN > /tmp/x"), "/tmp/x"),
        ("mkdir /l; ln -s \"$(printf %s $TOKEN | base64)\" /l/link".to_owned(), "/l/link"),
        // The engine follows a link, and describes it by the place it leads to.
        ("ln -s \"$TOKEN\" /etc/link".to_owned(), "/etc/link"),
        ("ln -s \"$TOKEN/../up\" /tmp/link".to_owned(), "/tmp/link"),
        ("ln -s \"$TOKEN\" /link; ln -s /bin/sh /other".to_owned(), "/link"),
        ("ln -s \"$TOKEN\" /tmp/link; ln -s link /tmp/other".to_owned(), "/tmp/link"),
        ("ln -s /loop /loop; echo $TOKEN > /x".to_owned(), "/x"),
        (format!("{many}; ln -s \"$TOKEN\" /tmp/link"), "/tmp/link"),
    ] {
        let step = with_token(0, &line);
        let (ran, _) = bench.step(&base, &step).await;
        assert_eq!(ran.exit.code, 0, "{line}");
        let kept = bench.podman.checkpoint(&bench.run, ran.left.clone(), &step).await;
        match kept {
            Err(ExecError::SecretLeak { path: found, .. }) => assert_eq!(found, path, "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
    // A step that only uses the secret can be committed.
    let step = with_token(0, &format!("{many}; cat /run/secrets/token > /dev/null; rm /tmp/1"));
    let (left, _) = bench.pass(&base, &step).await;
    let (_, kept) = bench.pass(&left, &shell(1, "ls /tmp | wc -l")).await;
    assert_eq!(kept.text().trim(), "59");
    bench.destroy().await;
}

#[tokio::test]
async fn extended_attributes_are_searched_for_secrets() {
    let Some(bench) = Bench::of_environment() else { return };
    let base = bench.prepare().await;
    let many = "i=0; while [ $i -lt 60 ]; do echo $i > /tmp/$i; i=$((i+1)); done";
    for (line, file) in [("echo x > /srv-x", "srv-x"), (&*format!("{many}; echo x > /y"), "y")] {
        let step = with_token(0, line);
        let (ran, _) = bench.step(&base, &step).await;
        let Workspace::Container { id, .. } = &ran.left else { panic!("{:?}", ran.left) };
        // The base image has no program that sets one. The value has a new line, which an archive
        // must not take for the end of the attribute.
        let dir = Api::of(&bench.url).changed_dir(id).await;
        let value = format!("a\n{TOKEN}");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(dir.join(file), "user.note", value.as_bytes(), flags).unwrap();
        match bench.podman.checkpoint(&bench.run, ran.left.clone(), &step).await {
            Err(ExecError::SecretLeak { path, .. }) => assert_eq!(path, format!("/{file}")),
            other => panic!("{line}: {other:?}"),
        }
    }
    bench.destroy().await;
}

#[tokio::test]
async fn a_step_with_too_many_changes_to_search_fails_with_a_clear_message() {
    let Some(bench) = Bench::of_environment() else { return };
    let base = bench.prepare().await;
    // 24,000 paths of 3,000 bytes are 72 MB.
    let line = "d=$(printf x%.0s $(seq 200)); cd /tmp; \
                for i in $(seq 15); do mkdir $d; cd $d; done; \
                for i in $(seq 24000); do : > $i; done";
    let step = with_token(0, line);
    let (ran, _) = bench.step(&base, &step).await;
    assert_eq!(ran.exit.code, 0);
    let error = bench.podman.checkpoint(&bench.run, ran.left, &step).await.unwrap_err();
    assert!(matches!(error, ExecError::Unsupported(_)), "{error:?}");
    assert!(error.to_string().contains("too many files"), "{error}");
    bench.destroy().await;
}

#[tokio::test]
async fn a_step_that_is_killed_with_its_worker_leaves_no_secret_on_the_engine() {
    let Some(bench) = Bench::of_environment() else { return };
    let base = bench.prepare().await;
    let step = with_token(0, "echo ready; exec sleep 1000");
    let running = bench.try_step(&base, &step);
    let api = Api::of(&bench.url);
    let runs = integration_tests::engine::until("a step that runs", || api.runs(&bench.run.run));
    tokio::select! {
        ended = running => panic!("the step ended: {ended:?}"),
        () = runs => {}
    }
    let other = bench.another_process();
    assert!(other.is_left(&bench.run.run).await);
    other.destroy().await;
    assert!(!other.is_left(&bench.run.run).await);
    assert_eq!(api.volumes_of(&bench.run.run).await, [""; 0]);
}
