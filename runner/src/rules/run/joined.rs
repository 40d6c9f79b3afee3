//! Joins the orders of simultaneous facts, so that one write of the record covers all of them.

use super::facts::Effect;

/// Joins the orders for several facts. Each list was computed after those before it.
///
/// Orders before a write stay before the single write, and orders after it stay after it. The last
/// list's record is written, because it includes the changes of all. A list that writes twice or
/// that ends the run is not joined, and follows the others.
#[must_use]
pub fn joined(lists: Vec<Vec<Effect>>) -> Vec<Effect> {
    let (mut before, mut save, mut after) = (Vec::new(), None, Vec::new());
    for list in lists {
        if !may_be_joined(&list) {
            before.extend(save.take());
            before.append(&mut after);
            before.extend(list);
            continue;
        }
        // Events stay in order: a list without a write follows the pending one.
        let mut is_behind = save.is_some() && !list.iter().any(is_save);
        for effect in list {
            if is_save(&effect) {
                save = Some(effect);
                is_behind = true;
            } else if is_behind {
                after.push(effect);
            } else {
                before.push(effect);
            }
        }
    }
    before.extend(save);
    before.extend(after);
    before
}

/// Returns true if the orders of another fact may be joined to these.
#[must_use]
pub fn may_be_joined(list: &[Effect]) -> bool {
    let saves = list.iter().filter(|effect| is_save(effect)).count();
    let is_last = |effect: &Effect| matches!(effect, Effect::Finish | Effect::Release);
    saves <= 1 && !list.iter().any(is_last)
}

fn is_save(effect: &Effect) -> bool {
    matches!(effect, Effect::Save(_))
}

#[cfg(test)]
mod tests {
    use protocol::id::StepPosition;

    use super::*;
    use crate::rules::run::Timer;
    use crate::rules::run::tests::record;

    fn at(index: usize) -> StepPosition {
        StepPosition::new(index)
    }

    fn save(message: &str) -> Effect {
        let mut record = record("[]");
        record.message = Some(message.to_owned());
        Effect::Save(Box::new(record))
    }

    #[test]
    fn one_write_covers_facts_that_arrive_together() {
        let first = vec![Effect::Start(at(3)), save("first"), Effect::OpenGate(at(3))];
        let second = vec![
            Effect::Discard(at(1)),
            Effect::Start(at(4)),
            save("both"),
            Effect::OpenGate(at(4)),
        ];
        let expected = [
            Effect::Start(at(3)),
            Effect::Discard(at(1)),
            Effect::Start(at(4)),
            save("both"),
            Effect::OpenGate(at(3)),
            Effect::OpenGate(at(4)),
        ];
        assert_eq!(joined(vec![first, second]), expected);
    }

    #[test]
    fn orders_without_a_write_keep_their_order() {
        let commit =
            |index| vec![Effect::CancelTimer(Timer::Step(at(index))), Effect::Commit(at(index))];
        let end = vec![save("end"), Effect::Push(at(2))];
        let joined = joined(vec![commit(0), end, commit(1)]);
        let expected =
            commit(0).into_iter().chain([save("end"), Effect::Push(at(2))]).chain(commit(1));
        assert_eq!(joined, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_list_that_ends_the_run_or_writes_twice_is_last() {
        let first = vec![save("first"), Effect::OpenGate(at(0))];
        for last in [vec![save("last"), Effect::Finish], vec![save("a"), save("b")]] {
            assert!(!may_be_joined(&last));
            let joined = joined(vec![first.clone(), last.clone()]);
            assert_eq!(joined, [first.clone(), last].concat());
        }
    }
}
