//! RabbitMQ and etcd behind the ports: commands, events and state of a cluster.
//!
//! | module | duty |
//! |---|---|
//! | [`store`] | state, in etcd |
//! | [`queue`] | commands, over RabbitMQ |
//! | [`stream`] | events, on a RabbitMQ stream |
//! | `amqp` | the connection with automatic reconnects, and the topology |

mod amqp;
pub mod queue;
mod retry;
pub mod store;
pub mod stream;
mod tls;

pub use amqp::AmqpOptions;
pub use queue::AmqpQueue;
pub use store::{Etcd, EtcdOptions, Health};
pub use stream::AmqpEvents;
pub use tls::TlsFiles;
