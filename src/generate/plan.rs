//! How many questions each syllabus gets: a share by its weight for every discipline, and of it an even share for each of its
//! syllabi.

use std::collections::HashMap;

use super::{
    combos::{spread_evenly, spread_weighted},
    questions::combinations,
    syllabus::Syllabus,
    taxonomy::Discipline,
    weak::Round,
};
use crate::config::GenerateConfig;

/// A share by its weight for every discipline that has a syllabus, and of it an even share for each of its syllabi; nobody
/// gets more than it has combinations.
pub fn plan(config: &GenerateConfig, disciplines: &[Discipline], syllabi: &[Syllabus]) -> Vec<usize> {
    let capacities = capacities(config, syllabi);
    let mut members: Vec<Vec<usize>> = Vec::new();
    let mut place: HashMap<&str, usize> = HashMap::new();
    for (index, syllabus) in syllabi.iter().enumerate() {
        let group = *place.entry(&syllabus.discipline).or_insert_with(|| {
            members.push(Vec::new());
            members.len() - 1
        });
        members[group].push(index);
    }
    let group_capacities: Vec<u128> =
        members.iter().map(|group| group.iter().map(|&index| capacities[index]).sum()).collect();
    let weight_of = |name: &str| disciplines.iter().find(|discipline| discipline.name == name);
    let weights: Vec<f64> = members
        .iter()
        .map(|group| weight_of(&syllabi[group[0]].discipline).map_or(1.0, |discipline| discipline.weight))
        .collect();
    let mut shares = vec![0; syllabi.len()];
    for (group, share) in members.iter().zip(spread_weighted(config.num_questions, &group_capacities, &weights)) {
        spread_over(group, share, &capacities, &mut shares);
    }
    shares
}

/// What a round asks for each discipline, spread evenly over the discipline's syllabi of that round.
pub fn plan_round(config: &GenerateConfig, syllabi: &[Syllabus], round: &Round) -> Vec<usize> {
    let capacities = capacities(config, syllabi);
    let mut shares = vec![0; syllabi.len()];
    for node in &round.nodes {
        let group: Vec<usize> =
            (0..syllabi.len()).filter(|&index| syllabi[index].discipline == node.discipline).collect();
        let planned = spread_over(&group, node.extra_questions, &capacities, &mut shares);
        if planned < node.extra_questions {
            tracing::warn!(
                "{}: the new syllabi have {planned} combinations of class sessions and key concepts, fewer than the {} \
                 extra questions asked for",
                node.discipline,
                node.extra_questions
            );
        }
    }
    shares
}

/// Spreads `share` evenly over the syllabi of a group; returns how much found room.
fn spread_over(group: &[usize], share: usize, capacities: &[u128], shares: &mut [usize]) -> usize {
    let of_group: Vec<u128> = group.iter().map(|&index| capacities[index]).collect();
    let spread = spread_evenly(share, &of_group);
    for (&index, share) in group.iter().zip(&spread) {
        shares[index] = *share;
    }
    spread.iter().sum()
}

/// How many combinations each syllabus has.
fn capacities(config: &GenerateConfig, syllabi: &[Syllabus]) -> Vec<u128> {
    let capacity = |syllabus: &Syllabus| {
        let combinations = combinations(syllabus);
        // A ratio of 0 or 1 switches a strategy off; in between the other one fills up.
        let single = if config.two_session_ratio < 1.0 { combinations.count(1) } else { 0 };
        let two = if config.two_session_ratio > 0.0 { combinations.count(2) } else { 0 };
        single + two
    };
    syllabi.iter().map(capacity).collect()
}
