//! The bob-runner program.

use std::process::ExitCode;

use runner::cli;
use runner::config::Environment;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            cli::complain(&format!("cannot start the runtime: {cause}"));
            return ExitCode::FAILURE;
        }
    };
    let exit = runtime.block_on(cli::main(std::env::args_os(), Environment::of_process()));
    // What still waits, such as a read from a terminal, does not keep the program from ending.
    runtime.shutdown_background();
    exit.into()
}
