//! The interface of one API.

use async_trait::async_trait;
use serde_json::Value;

use super::access::Access;
use super::options::Options;
use super::request::{Call, Halt};
use super::with::StepArguments;
use crate::ports::ExecError;

/// An API that steps call.
#[async_trait]
pub(super) trait Api: Send + Sync + 'static {
    /// A step of this API, checked and ready to be sent.
    type Request: Send + 'static;

    /// Reads a step without sending anything. Reports every error in the step's definition.
    fn read(
        &self,
        with: StepArguments<'_>,
        options: &Options,
    ) -> Result<(Self::Request, Access), ExecError>;

    /// Performs the call and returns the data of the step's result.
    async fn act(&self, asked: Self::Request, call: &mut Call) -> Result<Value, Halt>;
}
