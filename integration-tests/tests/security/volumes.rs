//! The volume with a step's secrets. Anyone who knows a volume's name can mount it.

use runner::ports::{Secret, StepSecret, StepSecrets, StepSpec, Steps as _};
use test_support::engine::{Api, Bench, shell, until};

#[tokio::test]
async fn the_name_of_a_volume_with_secrets_cannot_be_guessed() {
    let Some(bench) = Bench::from_env() else { return };
    let base = bench.prepare().await;
    let given = StepSecret {
        name: "token".into(),
        env: None,
        value: Secret::new(b"t0p-s3cret".as_slice()),
    };
    let secrets = StepSecrets { granted: vec![given], forbidden: None };
    let step = StepSpec { secrets, ..shell(0, "exec sleep 1000") };
    let (running, api) = (bench.try_step(&base, &step), Api::of(&bench.url));
    let run = &bench.run.run;
    tokio::select! {
        ended = running => panic!("the step ended: {ended:?}"),
        () = until("a step that runs", || api.runs(run)) => {}
    }
    let volumes = api.volumes_of(run).await;
    let [volume] = &volumes[..] else { panic!("{volumes:?}") };
    assert!(!volume.contains(run.as_str()), "{volume}");
    // Every part of this name is in the run's events.
    let guess = format!("bob-{run}-0-1-1");
    assert!(!api.volumes().await.contains(&guess), "{guess}");
    let random = volume.strip_prefix("bob-").unwrap();
    assert!(random.len() == 32 && random.bytes().all(|it| it.is_ascii_hexdigit()), "{volume}");
    bench.podman.destroy(run).await.unwrap();
    assert_eq!(api.volumes_of(run).await, [""; 0]);
}
