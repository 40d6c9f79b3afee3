//! The nodes of the fleet.

use axum::Json;
use axum::extract::State;
use protocol::id::NodeId;
use protocol::run::NodeEntry;
use schemars::JsonSchema;
use serde::Serialize;

use crate::http::api::Api;
use crate::http::problem::Problem;

/// The running workers, the oldest first.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct NodeList {
    /// The nodes.
    nodes: Vec<NodeShown>,
}

/// A running worker.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct NodeShown {
    /// The id of the node.
    node: NodeId,
    #[serde(flatten)]
    entry: NodeEntry,
}

pub(super) async fn list(State(api): State<Api>) -> Result<Json<NodeList>, Problem> {
    let nodes = api.projection.nodes()?.into_iter();
    let nodes = nodes.map(|(node, entry)| NodeShown { node, entry: NodeEntry::clone(&entry) });
    Ok(Json(NodeList { nodes: nodes.collect() }))
}
