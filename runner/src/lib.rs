//! The bob-runner worker, and its command line.
//!
//! | room | duty |
//! |---|---|
//! | [`ports`] | what a worker needs of the world: traits only |
//! | [`cluster`] | RabbitMQ and etcd behind the ports |

pub mod cluster;
pub mod ports;
