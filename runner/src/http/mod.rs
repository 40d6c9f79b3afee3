//! The HTTP API of a node: `/api/v1`, health, and the documents that describe them. It runs nothing:
//! commands go through the same queue as those of the command line.
//!
//! | module | duty |
//! |---|---|
//! | [`access`] | who can use the API, and the limits of requests |
//! | `problem` | error responses |
//! | [`projection`] | the state of the fleet in memory |
//! | [`logs`] | the logs of runs, line by line |
//! | `hub` | shares one reading of the event stream among its followers |
//! | `api` | what all handlers share |
//! | `extract` | reads parts of requests; each fault is a problem |
//! | `route` | one row of the table of routes |
//! | [`v1`] | the handlers of `/api/v1`, and the table of its routes |
//! | `openapi` | describes the table of routes as `OpenAPI` 3.1 |
//! | `router` | mounts the table of routes |

pub mod access;
mod api;
mod extract;
mod hub;
pub mod logs;
mod openapi;
mod problem;
pub mod projection;
mod route;
mod router;
pub mod v1;

pub use api::{Api, Build};
pub use extract::{JsonBody, PathOf, QueryOf, Subject};
pub use hub::Hub;
pub use openapi::document;
pub use problem::{Fault, PROBLEM_JSON, Problem};
pub use route::{Answer, Form, RequestHeader, Route, SchemaOf};
pub use router::{router, routes};
