//! The dependencies between the steps of a pipeline, by step position.

use std::collections::{BTreeSet, HashMap};

use super::{Pipeline, Step};

/// The steps of a pipeline as an acyclic graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    needs: Vec<Vec<usize>>,
    images: Vec<Vec<usize>>,
    begins_on: Vec<Option<usize>>,
}

impl Graph {
    /// Builds the graph. Unknown names in `needs` are ignored, and steps on a cycle get no image.
    #[must_use]
    pub fn of(steps: &[Step]) -> Self {
        let position: HashMap<&str, usize> =
            steps.iter().enumerate().map(|(at, step)| (step.name.as_str(), at)).collect();
        let at = |name: &crate::id::StepName| position.get(name.as_str()).copied();
        let needs: Vec<Vec<usize>> = steps
            .iter()
            .enumerate()
            .map(|(own, step)| match &step.needs {
                Some(names) => {
                    let known: BTreeSet<usize> = names.iter().filter_map(at).collect();
                    known.into_iter().collect()
                }
                None => own.checked_sub(1).into_iter().collect(),
            })
            .collect();
        let mut images: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); steps.len()];
        for own in in_order(&needs) {
            let mut found = BTreeSet::new();
            for needed in &needs[own] {
                if steps[*needed].is_on_image() {
                    found.insert(*needed);
                } else {
                    found.extend(images[*needed].iter().copied());
                }
            }
            images[own] = found;
        }
        // An image that another image was built on is already contained in it.
        let behind = |own: usize, images: &[BTreeSet<usize>]| {
            let mut all = BTreeSet::new();
            let mut look: Vec<usize> = images[own].iter().copied().collect();
            while let Some(next) = look.pop() {
                if all.insert(next) {
                    look.extend(images[next].iter().copied());
                }
            }
            all
        };
        let nearest: Vec<Vec<usize>> = images
            .iter()
            .map(|found| {
                let hidden: BTreeSet<usize> =
                    found.iter().flat_map(|other| behind(*other, &images)).collect();
                found.iter().copied().filter(|one| !hidden.contains(one)).collect()
            })
            .collect();
        let begins_on = steps
            .iter()
            .zip(&nearest)
            .map(|(step, nearest)| match (&step.from, nearest.as_slice()) {
                (Some(from), _) => at(from),
                (None, [only]) => Some(*only),
                (None, _) => None,
            })
            .collect();
        Self { needs, images: nearest, begins_on }
    }

    /// The steps that the one at `position` waits for.
    #[must_use]
    pub fn needs(&self, position: usize) -> &[usize] {
        self.needs.get(position).map_or(&[], Vec::as_slice)
    }

    /// The images that a step can start on: the nearest ones before it. If there are several, the
    /// step must select one with `from`.
    #[must_use]
    pub fn images_before(&self, position: usize) -> &[usize] {
        self.images.get(position).map_or(&[], Vec::as_slice)
    }

    /// The step whose image this step starts on; `None` for the base image.
    #[must_use]
    pub fn begins_on(&self, position: usize) -> Option<usize> {
        self.begins_on.get(position).copied().flatten()
    }

    /// The positions in topological order.
    #[must_use]
    pub fn in_order(&self) -> Vec<usize> {
        in_order(&self.needs)
    }

    /// The number of steps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.needs.len()
    }

    /// Whether the pipeline has no steps.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.needs.is_empty()
    }
}

impl Pipeline {
    /// The dependencies between the steps.
    #[must_use]
    pub fn graph(&self) -> Graph {
        Graph::of(&self.steps)
    }
}

/// The length of the longest path before each step. `needs[i]` are the steps that `i` waits for.
/// `None` for a step on a cycle or behind one.
pub(crate) fn depths(needs: &[Vec<usize>]) -> Vec<Option<usize>> {
    let mut missing: Vec<usize> = needs.iter().map(Vec::len).collect();
    let mut followers: Vec<Vec<usize>> = vec![Vec::new(); needs.len()];
    for (own, before) in needs.iter().enumerate() {
        for needed in before {
            followers[*needed].push(own);
        }
    }
    let mut depths = vec![None; needs.len()];
    let mut ready: Vec<usize> = (0..needs.len()).filter(|own| missing[*own] == 0).collect();
    while let Some(own) = ready.pop() {
        let before = needs[own].iter().filter_map(|needed| depths[*needed]).max();
        depths[own] = Some(before.map_or(0, |depth: usize| depth + 1));
        for follower in &followers[own] {
            missing[*follower] -= 1;
            if missing[*follower] == 0 {
                ready.push(*follower);
            }
        }
    }
    depths
}

/// The positions in topological order, without steps on a cycle or behind one.
fn in_order(needs: &[Vec<usize>]) -> Vec<usize> {
    let depths = depths(needs);
    let mut order: Vec<usize> = (0..needs.len()).filter(|own| depths[*own].is_some()).collect();
    order.sort_by_key(|own| depths[*own]);
    order
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn graph(steps: serde_json::Value) -> Graph {
        Graph::of(&serde_json::from_value::<Vec<Step>>(steps).unwrap())
    }

    #[test]
    fn without_needs_each_step_waits_for_the_one_before_and_goes_on_from_it() {
        let chain = graph(serde_json::json!([
            {"name": "a", "cmd": "x"}, {"name": "b", "cmd": "x"}, {"name": "c", "cmd": "x"},
        ]));
        assert_eq!((chain.needs(0), chain.needs(2)), (&[][..], &[1][..]));
        assert_eq!((chain.begins_on(0), chain.begins_on(2)), (None, Some(1)));
        assert_eq!((chain.len(), chain.is_empty()), (3, false));
    }

    #[test]
    fn two_steps_fork_from_one_and_a_third_says_which_of_them_it_goes_on_from() {
        let fork = graph(serde_json::json!([
            {"name": "end", "cmd": "x", "needs": ["left", "right", "top"], "from": "right"},
            {"name": "right", "cmd": "x", "needs": ["top"]},
            {"name": "left", "cmd": "x", "needs": ["top"]},
            {"name": "top", "cmd": "x", "needs": []},
        ]));
        assert_eq!((fork.begins_on(1), fork.begins_on(2)), (Some(3), Some(3)));
        // The image of `top` is contained in both.
        assert_eq!(fork.images_before(0), [1, 2]);
        assert_eq!(fork.begins_on(0), Some(1));
    }

    #[test]
    fn a_step_without_an_image_hands_on_the_one_before_it() {
        let through = graph(serde_json::json!([
            {"name": "a", "cmd": "x"},
            {"name": "b", "cmd": "x", "executor": "local"},
            {"name": "join"},
            {"name": "c", "cmd": "x"},
        ]));
        assert_eq!(through.images_before(3), [0]);
        assert_eq!(through.begins_on(3), Some(0));
    }

    #[test]
    fn a_docker_step_with_an_image_of_its_own_is_not_on_the_chain() {
        let chain = graph(serde_json::json!([
            {"name": "a", "cmd": "x", "executor": "docker"},
            {"name": "b", "cmd": "x", "executor": "docker", "with": {"image": "i"}},
            {"name": "c", "executor": "proxmox", "with": {"command": "kvm_start"}},
            {"name": "d", "cmd": "x", "executor": "docker"},
        ]));
        assert_eq!(chain.begins_on(3), Some(0));
        assert_eq!(chain.images_before(3), [0]);
    }

    #[test]
    fn names_that_are_not_there_and_circles_are_left_out() {
        let bad = graph(serde_json::json!([
            {"name": "a", "cmd": "x", "needs": ["b", "nobody"]},
            {"name": "b", "cmd": "x", "needs": ["a"]},
        ]));
        assert_eq!(bad.needs(0), [1]);
        assert_eq!((bad.begins_on(0), bad.begins_on(1)), (None, None));
    }
}
