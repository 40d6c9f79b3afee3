//! The resources of a pipeline.

use indexmap::IndexMap;

use super::rules;
use crate::dialect::reader::{Field, Fields, Keys, Reader};
use crate::dialect::tree::{Position, quoted};
use crate::id::RunId;
use crate::pipeline::{Resource, ResourceKind, Vars};

const RESOURCE: Keys = Keys {
    known: &["name", "type", "provider", "params"],
    instead: &[
        ("kind", "did you mean `type`?"),
        ("parameters", "did you mean `params`?"),
        ("store", "did you mean `provider`?"),
    ],
};

/// The resources that a pipeline declares.
pub(super) struct Resources {
    /// Those without errors.
    pub(super) valid: Vec<Resource>,
    /// Every valid name, with its last position, even if the resource has other errors. `None` if
    /// `resources` is not a list.
    pub(super) declared: Option<IndexMap<String, Position>>,
}

impl Reader {
    pub(super) fn resources(&mut self, field: &Field<'_>) -> Resources {
        let mut resources = Resources { valid: Vec::new(), declared: None };
        let Some(items) = self.list(field) else {
            return resources;
        };
        let mut declared: IndexMap<String, Position> = IndexMap::new();
        for item in items {
            let Some(fields) = self.map(&item, &RESOURCE) else {
                continue;
            };
            let hint = "steps refer to the resource by its name";
            let name = self.required(&fields, "name", hint).and_then(|field| {
                self.checked_text(&field, rules::file_name).map(|name| (field, name))
            });
            if let Some((field, name)) = &name
                && let Some(first) = declared.insert(name.clone(), field.node.at)
            {
                let message = format!("there is a resource {} already", quoted(name));
                self.fault(field, message, Some(&first.in_line("give each a name of its own")));
            }
            resources.valid.extend(self.resource(&fields, name.map(|(_, name)| name)));
        }
        resources.declared = Some(declared);
        resources
    }

    fn resource(&mut self, fields: &Fields<'_>, name: Option<String>) -> Option<Resource> {
        let types = [("external", ResourceKind::External), ("internal", ResourceKind::Internal)];
        let kind = self
            .required(fields, "type", "`external` or `internal`")
            .and_then(|field| self.word(&field, &types));
        let provider = self
            .required(fields, "provider", "a registered resource provider or artifact store")
            .and_then(|field| self.parsed(&field));
        let params = fields.get("params");
        let values = match &params {
            Some(field) => self.scalars(field, rules::parameter),
            None => Some(Vars::new()),
        };
        if let (Some(ResourceKind::Internal), Some(values)) = (kind, &values) {
            self.check_internal_params(fields, params.as_ref(), values);
        }
        Some(Resource { name: name?, kind: kind?, provider: provider?, params: values? })
    }

    /// Checks the parameters of an internal resource: they identify an artifact by the run that
    /// produced it.
    fn check_internal_params(
        &mut self,
        fields: &Fields<'_>,
        params: Option<&Field<'_>>,
        values: &Vars,
    ) {
        let hint = "the group, the name and the run-id of the run that made the artifact";
        let Some(params) = params else {
            drop(self.required(fields, "params", hint));
            return;
        };
        for key in ["group", "name"] {
            if !values.contains_key(key) {
                self.fault(params, format!("`{key}` is missing in `params`"), Some(hint));
            }
        }
        match values.get("run-id").or_else(|| values.get("run_id")) {
            None => self.fault(params, "`run-id` is missing in `params`".to_owned(), Some(hint)),
            Some(run) => drop(self.checked(params, run.parse::<RunId>())),
        }
    }
}
