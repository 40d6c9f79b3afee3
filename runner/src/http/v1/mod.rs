//! The handlers of `/api/v1`, and the table of its routes.
//!
//! | module | resource |
//! |---|---|
//! | `runs` | runs: list, show, stop |
//! | `start` | starts and reruns |
//! | `pipelines` | stored pipelines |
//! | `services` | resource providers, artifact stores, loggers |
//! | `nodes` | nodes |
//! | `events` | the event stream |
//! | `logs` | logs of runs |
//! | `about` | health, version, and the `OpenAPI` document |
//! | `table` | the routes |

pub(in crate::http) mod about;
mod events;
mod logs;
mod nodes;
mod pipelines;
mod runs;
mod services;
mod start;
mod table;

pub use table::routes;
