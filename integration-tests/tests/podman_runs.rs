//! Whole runs: long ones, many at once, and their removal.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use protocol::id::Epoch;
use runner::ports::{ExecError, Exit, StepOutcome, Steps as _, Workspace};
use test_support::engine::{Api, Bench, shell, until};

#[tokio::test]
async fn a_run_can_have_two_hundred_steps() {
    let Some(bench) = Bench::from_env() else { return };
    let mut on = bench.prepare().await;
    let mut deepest = 0;
    for position in 0..200 {
        (on, _) = bench.pass(&on, &shell(position, "echo x >> /count")).await;
        let Workspace::Image { depth, .. } = &on else { panic!("{on:?}") };
        deepest = deepest.max(*depth);
    }
    let (_, kept) = bench.pass(&on, &shell(200, "wc -l < /count")).await;
    assert_eq!(kept.text(), "200\n");
    assert!(deepest < 100, "{deepest} layers were stacked");
    bench.destroy().await;
}

#[tokio::test]
async fn runs_that_commit_the_same_files_do_not_affect_each_other() {
    let Some(first) = Bench::from_env() else { return };
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let bench = first.another_run();
        runs.spawn(async move {
            let mut on = bench.prepare().await;
            for position in 0..4 {
                (on, _) = bench.pass(&on, &shell(position, "echo same >> /same")).await;
            }
            // Others still commit layers with the same content.
            bench.podman.destroy(&bench.run.run).await.unwrap();
            bench
        });
    }
    for bench in runs.join_all().await {
        bench.destroy().await;
    }
}

#[tokio::test]
async fn destroying_a_run_is_idempotent_for_any_owner() {
    let Some(bench) = Bench::from_env() else { return };
    bench.podman.destroy(&bench.run.run).await.unwrap();
    let base = bench.prepare().await;
    let (left, _) = bench.pass(&base, &shell(0, "echo 1 > /a")).await;
    let (_, _) = bench.pass(&left, &shell(1, "echo 2 > /a")).await;
    // A branch on an older image, and a container that was not committed.
    let (_, _) = bench.pass(&left, &shell(2, "echo 3 > /a")).await;
    let (_, _) = bench.step(&left, &shell(3, "true")).await;
    let other = bench.another_process();
    assert!(other.is_left(&bench.run.run).await);
    other.destroy().await;
    bench.destroy().await;
    assert!(!other.is_left(&bench.run.run).await);
    assert!(Api::of(&bench.url).has_image(&bench.run.image).await, "the base image was removed");
}

#[tokio::test]
async fn a_run_id_of_the_maximum_length_works() {
    let Some(mut bench) = Bench::from_env() else { return };
    let unique = uuid::Uuid::new_v4().to_string();
    bench.run.run = format!("r-{}.{}_{unique}", "X".repeat(80), "y-".repeat(4)).parse().unwrap();
    let longest = format!("{:z<128}", bench.run.run);
    bench.run.run = longest.parse().unwrap();
    let base = bench.prepare().await;
    let (left, _) = bench.pass(&base, &shell(0, "echo 1 > /a")).await;
    bench.pass(&left, &shell(1, "cat /a")).await;
    bench.destroy().await;
}

#[tokio::test]
async fn an_image_that_a_user_tagged_is_kept() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let (left, _) = bench.pass(&base, &shell(0, "echo kept > /a")).await;
    let (_, _) = bench.pass(&left, &shell(1, "echo gone > /b")).await;
    let api = Api::of(&bench.url);
    let name = format!("localhost/kept-{}", uuid::Uuid::new_v4());
    api.tag(left.image().unwrap(), &name).await;
    bench.podman.destroy(&bench.run.run).await.unwrap();
    assert!(api.has_image(&name).await, "the image was removed");
    assert_eq!(api.labelled("images", &bench.run.run).await, 1);
    assert!(!bench.is_left(&bench.run.run).await);
    // It can be used as a base image.
    let next = Bench::new(&runner::exec::podman::Options::new(&bench.url), &name);
    let base = next.prepare().await;
    let (_, kept) = next.pass(&base, &shell(0, "cat /a; test ! -e /b")).await;
    assert_eq!(kept.text(), "kept\n");
    next.destroy().await;
    api.remove_image(&name).await;
}

#[tokio::test]
async fn the_container_of_an_older_owner_is_replaced_by_the_new_owners() {
    let Some(old) = Bench::from_env() else { return };
    let mut new = old.another_process();
    new.run.epoch = Epoch(2);
    let base = old.prepare().await;
    let endless = shell(0, "echo ready; exec sleep 1000");
    let taking_over = async {
        until("the step of the old owner is created", || async {
            Api::of(&old.url).labelled("containers", &old.run.run).await == 1
        })
        .await;
        let base = new.prepare().await;
        new.pass(&base, &shell(0, "echo new")).await
    };
    let (old_ran, (_, kept)) = tokio::join!(old.try_step(&base, &endless), taking_over);
    // The container is killed and then removed. The old owner can see either, and its result is
    // never recorded. It must not see a success.
    match old_ran {
        Err(ExecError::Engine { .. } | ExecError::Start { .. }) => {}
        Ok((StepOutcome { exit: Exit { code: 137, .. }, .. }, _)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(kept.text(), "new\n");
    new.destroy().await;
}

#[tokio::test]
async fn another_process_continues_from_a_recorded_image() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let mut spec = shell(0, "echo one > /a");
    spec.env.insert("LEAK".into(), "x".into());
    let (left, _) = bench.pass(&base, &spec).await;
    let other = bench.another_process();
    let recorded = Workspace::Image { id: left.image().unwrap().to_owned(), depth: 0 };
    let (left, kept) = other.pass(&recorded, &shell(1, "cat /a; echo ${LEAK-none} $PATH")).await;
    assert_eq!(kept.text(), "one\nnone /usr/local/bin:/usr/bin:/bin\n");
    assert!(matches!(left, Workspace::Image { depth: 2, .. }), "{left:?}");
    other.destroy().await;
}
