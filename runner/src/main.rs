//! The bob-runner program.

use std::process::ExitCode;

use runner::cli;
use runner::config::Environment;

fn main() -> ExitCode {
    let typed: Vec<_> = std::env::args_os().collect();
    if cli::is_supervisor(&typed) {
        return cli::supervise().into();
    }
    if cli::is_lifeline(&typed) {
        return cli::lifeline(&typed);
    }
    if cli::is_renderer(&typed) {
        return cli::render().into();
    }
    let mut builder = match cli::is_guard(&typed) {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            cli::complain(&format!("cannot start the runtime: {cause}"));
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(cli::main(typed, Environment::of_process()));
    // A pending task, such as a read from a terminal, must not keep the program running.
    runtime.shutdown_background();
    exit.into()
}
