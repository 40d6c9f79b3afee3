//! The dependencies between the steps of a pipeline, by step position.

use std::collections::{BTreeSet, HashMap};

use fixedbitset::FixedBitSet;

use super::{Pipeline, Step};
use crate::id::StepPosition;

/// The steps of a pipeline as an acyclic graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    needs: Vec<Vec<StepPosition>>,
    order: Vec<StepPosition>,
    images: Vec<FixedBitSet>,
    begins_on: Vec<Option<StepPosition>>,
}

impl Graph {
    /// Builds the graph. Unknown names in `needs` are ignored, and steps on a cycle get no image.
    ///
    /// Takes at most two unions of bit sets for each entry of `needs`.
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
        let order = in_order(&needs);
        let images = nearest_images(steps, &needs, &order);
        let begins_on = steps
            .iter()
            .zip(&images)
            .map(|(step, images)| match &step.from {
                Some(from) => at(from),
                None => images.minimum().filter(|first| images.maximum() == Some(*first)),
            })
            .map(|index| index.map(StepPosition::new))
            .collect();
        let needs = needs.into_iter().map(positions).collect();
        Self { needs, order: positions(order), images, begins_on }
    }

    /// The steps that the one at `position` waits for.
    #[must_use]
    pub fn needs(&self, position: StepPosition) -> &[StepPosition] {
        self.needs.get(position.index()).map_or(&[], Vec::as_slice)
    }

    /// The images that a step can start on, by position: the nearest ones before it. If there are
    /// several, the step must select one with `from`.
    pub fn images_before(&self, position: StepPosition) -> impl Iterator<Item = StepPosition> + '_ {
        let images = self.images.get(position.index()).into_iter();
        images.flat_map(FixedBitSet::ones).map(StepPosition::new)
    }

    /// Whether a step can start on the image of `other`.
    #[must_use]
    pub fn is_image_before(&self, position: StepPosition, other: StepPosition) -> bool {
        self.images.get(position.index()).is_some_and(|images| images.contains(other.index()))
    }

    /// The step whose image this step starts on; `None` for the base image.
    #[must_use]
    pub fn begins_on(&self, position: StepPosition) -> Option<StepPosition> {
        self.begins_on.get(position.index()).copied().flatten()
    }

    /// The positions in topological order, without steps on a cycle or behind one.
    #[must_use]
    pub fn in_order(&self) -> &[StepPosition] {
        &self.order
    }

    /// The positions of the steps in the order of the pipeline.
    pub fn positions(&self) -> impl Iterator<Item = StepPosition> + use<> {
        (0..self.len()).map(StepPosition::new)
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

fn positions(indices: Vec<usize>) -> Vec<StepPosition> {
    indices.into_iter().map(StepPosition::new).collect()
}

impl Pipeline {
    /// The dependencies between the steps.
    #[must_use]
    pub fn graph(&self) -> Graph {
        Graph::of(&self.steps)
    }
}

/// The images that each step can start on. An image that another one was built on is contained in
/// it and is left out.
fn nearest_images(steps: &[Step], needs: &[Vec<usize>], order: &[usize]) -> Vec<FixedBitSet> {
    // The images that a step can reach without passing another image, and those behind them.
    let mut reached = vec![FixedBitSet::new(); steps.len()];
    let mut contained = reached.clone();
    for own in order.iter().copied() {
        let (mut own_reached, mut own_contained) = (FixedBitSet::new(), FixedBitSet::new());
        for needed in needs[own].iter().copied() {
            if steps[needed].is_on_image() {
                own_reached.grow_and_insert(needed);
                union_with(&mut own_contained, &reached[needed]);
            } else {
                union_with(&mut own_reached, &reached[needed]);
            }
            union_with(&mut own_contained, &contained[needed]);
        }
        (reached[own], contained[own]) = (own_reached, own_contained);
    }
    for (reached, contained) in reached.iter_mut().zip(&contained) {
        reached.difference_with(contained);
    }
    reached
}

fn union_with(into: &mut FixedBitSet, other: &FixedBitSet) {
    #[cfg(test)]
    tests::UNIONS.with(|unions| unions.set(unions.get() + 1));
    into.union_with(other);
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

    use std::cell::Cell;
    use std::fmt::Write as _;

    use super::*;
    use crate::command::{self, Command, Target};

    thread_local! {
        /// The unions of bit sets on this thread, as a measure of the work for a graph.
        pub(super) static UNIONS: Cell<usize> = const { Cell::new(0) };
    }

    /// The body of a start with `layers` of `width` steps. Each step needs the join of the layer
    /// before it, and selects one of that layer's images. Also returns the number of `needs`.
    fn layered(layers: usize, width: usize) -> (String, usize) {
        let (mut steps, mut needs) = (String::new(), 0);
        for layer in 0..layers {
            let step = |at: usize| format!("s{layer}x{at}");
            for at in 0..width {
                write!(steps, r#"{{"name":"{}","cmd":"x","#, step(at)).unwrap();
                match layer.checked_sub(1) {
                    None => steps.push_str(r#""needs":[]},"#),
                    Some(before) => {
                        needs += 1;
                        write!(steps, r#""needs":["j{before}"],"from":"s{before}x0"}},"#).unwrap();
                    }
                }
            }
            let names: Vec<String> = (0..width).map(|at| format!("{:?}", step(at))).collect();
            needs += width;
            write!(steps, r#"{{"name":"j{layer}","needs":[{}]}},"#, names.join(",")).unwrap();
        }
        steps.pop();
        let pipeline = format!(r#"{{"group":"g","name":"n","image":"i","steps":[{steps}]}}"#);
        (format!(r#"{{"run-id":"r-1","pipeline":{pipeline}}}"#), needs)
    }

    /// The unions for decoding a start, and its graph.
    fn decoded(body: &str) -> (usize, Graph) {
        let before = UNIONS.get();
        let command = command::decode(Some(command::START), None, body.as_bytes()).unwrap();
        let unions = UNIONS.get() - before;
        let Command::Start(start) = command else { unreachable!("{body} is a start") };
        let Target::Inline(pipeline) = start.target else { unreachable!("{body} is inline") };
        (unions, pipeline.graph())
    }

    #[test]
    fn decoding_layers_of_steps_takes_time_linear_in_their_needs() {
        for (layers, width) in [(4, 100), (8, 100), (8, 200)] {
            let (body, needs) = layered(layers, width);
            let (unions, graph) = decoded(&body);
            assert!(unions <= 2 * needs, "{layers} x {width}: {unions} unions, {needs} needs");
            let last = graph.len() - 1;
            let of_last_layer: Vec<StepPosition> = (last - width..last).map(at).collect();
            assert_eq!(graph.images_before(at(last)).collect::<Vec<_>>(), of_last_layer);
        }
    }

    fn at(index: usize) -> StepPosition {
        StepPosition::new(index)
    }

    fn graph(steps: serde_json::Value) -> Graph {
        Graph::of(&serde_json::from_value::<Vec<Step>>(steps).unwrap())
    }

    #[test]
    fn without_needs_each_step_waits_for_and_continues_from_its_predecessor() {
        let chain = graph(serde_json::json!([
            {"name": "a", "cmd": "x"}, {"name": "b", "cmd": "x"}, {"name": "c", "cmd": "x"},
        ]));
        assert_eq!((chain.needs(at(0)), chain.needs(at(2))), (&[][..], &[at(1)][..]));
        assert_eq!((chain.begins_on(at(0)), chain.begins_on(at(2))), (None, Some(at(1))));
        assert_eq!((chain.len(), chain.is_empty()), (3, false));
    }

    #[test]
    fn two_steps_can_fork_from_one_and_a_third_names_the_one_it_continues_from() {
        let fork = graph(serde_json::json!([
            {"name": "end", "cmd": "x", "needs": ["left", "right", "top"], "from": "right"},
            {"name": "right", "cmd": "x", "needs": ["top"]},
            {"name": "left", "cmd": "x", "needs": ["top"]},
            {"name": "top", "cmd": "x", "needs": []},
        ]));
        assert_eq!((fork.begins_on(at(1)), fork.begins_on(at(2))), (Some(at(3)), Some(at(3))));
        // The image of `top` is contained in both.
        assert_eq!(fork.images_before(at(0)).collect::<Vec<_>>(), [at(1), at(2)]);
        assert!(fork.is_image_before(at(0), at(2)) && !fork.is_image_before(at(0), at(3)));
        assert_eq!(fork.begins_on(at(0)), Some(at(1)));
    }

    #[test]
    fn a_step_without_an_image_passes_on_that_of_its_predecessor() {
        let through = graph(serde_json::json!([
            {"name": "a", "cmd": "x"},
            {"name": "b", "cmd": "x", "executor": "local"},
            {"name": "join"},
            {"name": "c", "cmd": "x"},
        ]));
        assert_eq!(through.images_before(at(3)).collect::<Vec<_>>(), [at(0)]);
        assert_eq!(through.begins_on(at(3)), Some(at(0)));
    }

    #[test]
    fn a_docker_step_with_its_own_image_is_not_part_of_the_chain() {
        let chain = graph(serde_json::json!([
            {"name": "a", "cmd": "x", "executor": "docker"},
            {"name": "b", "cmd": "x", "executor": "docker", "with": {"image": "i"}},
            {"name": "c", "executor": "proxmox", "with": {"command": "kvm_start"}},
            {"name": "d", "cmd": "x", "executor": "docker"},
        ]));
        assert_eq!(chain.begins_on(at(3)), Some(at(0)));
        assert_eq!(chain.images_before(at(3)).collect::<Vec<_>>(), [at(0)]);
    }

    #[test]
    fn unknown_names_and_cycles_are_omitted() {
        let bad = graph(serde_json::json!([
            {"name": "a", "cmd": "x", "needs": ["b", "nobody"]},
            {"name": "b", "cmd": "x", "needs": ["a"]},
        ]));
        assert_eq!(bad.needs(at(0)), [at(1)]);
        assert_eq!((bad.begins_on(at(0)), bad.begins_on(at(1))), (None, None));
    }
}
