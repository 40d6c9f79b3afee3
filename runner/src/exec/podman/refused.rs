//! Turns the engine's failure to prepare or start a step's container into an error of the step.

use super::Podman;
use super::call::{Fault, no_space};
use crate::exec::beginning::NotExecuted;
use crate::exec::exhausted::no_keys;
use crate::exec::unexecutable::Head;
use crate::exec::work_dir::is_about_work_dir;
use crate::ports::{ExecError, RunScope, StepSpec, Workspace};

/// Whether a container is half created. An engine killed during its preparation does not know about
/// it. It can neither attach to it nor start it, because its OCI runtime already has it.
pub(super) fn is_half_made(said: &str) -> bool {
    said.contains("already exists") && said.contains("OCI runtime")
}

/// The program of a step, for messages.
fn program(step: &StepSpec) -> String {
    match &step.script {
        Some(script) => script.shell.program().to_owned(),
        None => step.words.join(" "),
    }
}

/// The error of a step whose working directory cannot be used.
pub(super) fn not_entered(step: &StepSpec, cause: String) -> ExecError {
    ExecError::Start { step: step.name.clone(), cause, code: 126 }
}

impl Podman {
    /// The error of a step whose command the engine's init or runtime could not execute.
    pub(super) async fn not_executed(
        &self,
        run: &RunScope,
        step: &StepSpec,
        (id, program): (&str, &str),
        report: &NotExecuted,
    ) -> ExecError {
        let left = Workspace::Container { id: id.to_owned(), depth: 0 };
        let head = if program.contains('/') {
            Head::of_archive(self.pack(run, &left, program).await).await
        } else {
            Head::Unknown
        };
        let cause = report.cause(program, &head);
        ExecError::Start { step: step.name.clone(), cause, code: report.code }
    }

    /// The error of a step whose container could not be prepared or started.
    pub(super) fn not_started(&self, step: &StepSpec, fault: Fault) -> ExecError {
        let said = fault.refusal().to_owned();
        let program = program(step);
        let start = |cause: String, code| ExecError::Start { step: step.name.clone(), cause, code };
        if said.is_empty() || no_space(&said) || no_keys(&said) {
            return fault.at("starting a step", &self.http);
        }
        if is_about_work_dir(&said) {
            let dir = step.work_dir.as_deref().unwrap_or("of its image");
            return start(format!("its working directory {dir} cannot be entered: {said}"), 126);
        }
        if said.contains("passwd file") || said.contains("unable to find user") {
            return start(format!("its image has no such user: {said}"), 126);
        }
        if said.to_ascii_lowercase().contains("argument list too long") {
            let cause = "its command and variables together are longer than the kernel takes";
            return start(cause.to_owned(), 126);
        }
        if said.contains("not found in $PATH") || said.contains("No such file or directory") {
            return start(format!("there is no program for `{program}` in its image"), 127);
        }
        if said.contains("Permission denied") || said.contains("permission denied") {
            return start(format!("`{program}` may not be executed in its image"), 126);
        }
        if said.contains("max depth exceeded") {
            let cause = "its image has more layers than the engine can mount: build it with fewer";
            return ExecError::Engine { doing: "starting a step".into(), cause: cause.into() };
        }
        fault.at("starting a step", &self.http)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Message of podman 4.3 whose service was killed while it attached.
    #[test]
    fn a_container_that_the_engine_was_killed_over_is_told_from_one_that_cannot_start() {
        let said = "preparing container 6937a5 for attach: crun: container `6937a5` already exists: OCI runtime error";
        assert!(is_half_made(said));
        assert!(!is_half_made(
            "crun: executable file `nosuch` not found in $PATH: OCI runtime error"
        ));
        assert!(!is_half_made("container name \"x\" already exists"));
    }
}
