//! Syllabi to homework questions (section 2.4): one request per drawn combination of class sessions and key concepts.
//!
//! `generate.num_questions` is spread over the disciplines by their weights (evenly, where the taxonomy gives none) and then evenly over their syllabi. The questions of one
//! syllabus follow each other, as their prompts begin alike.

use std::{collections::HashMap, ops::Range};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    combos::{Combination, Combinations, spread_evenly, spread_weighted},
    prompts::{PromptKind, Prompts},
    step::{Split, Step, Work, WorkList, sampling_params},
    syllabus::Syllabus,
    taxonomy::Discipline,
    text::{Rejection, clean_question, distinct, is_other_script, is_refusal},
    weak::Round,
};
use crate::{
    config::{Config, GenerateConfig},
    language_model::{Message, SamplingParams},
    seed::{record_id, stream},
};

/// A line of `questions.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// Hash of what made it.
    pub id: String,
    /// Id of the syllabus.
    pub parent: String,
    /// Name of the discipline.
    pub discipline: String,
    /// Name of the subject.
    pub subject: String,
    /// Level of the subject; may be empty.
    pub level: String,
    /// 1: one class session. 2: two.
    pub strategy: usize,
    /// Titles of the class sessions that it is about.
    pub class_sessions: Vec<String>,
    /// Key concepts that it was to use.
    pub key_concepts: Vec<String>,
    /// What is asked.
    pub question: String,
}

/// The sub-step.
pub struct Questions<'a> {
    config: &'a Config,
    prompts: &'a Prompts,
    syllabi: Vec<&'a Syllabus>,
    /// Questions to ask of each syllabus.
    shares: Vec<usize>,
}

/// What one question is made from.
pub struct QuestionItem<'a> {
    syllabus: &'a Syllabus,
    combination: Combination,
}

impl<'a> Questions<'a> {
    /// Plans how many questions each syllabus gets. `syllabi` are those of the plain stage and of each of `rounds`.
    pub fn new(
        config: &'a Config,
        prompts: &'a Prompts,
        disciplines: &[Discipline],
        syllabi: &'a [Vec<Syllabus>],
        rounds: &[Round],
    ) -> Self {
        let mut shares = plan(&config.generate, disciplines, &syllabi[0]);
        let (planned, wanted) = (shares.iter().sum::<usize>(), config.generate.num_questions);
        if planned < wanted {
            tracing::warn!(
                "the syllabi have only {planned} combinations of class sessions and key concepts, fewer than \
                 `generate.num_questions` = {wanted}; each is used once"
            );
        }
        for (round, syllabi) in rounds.iter().zip(&syllabi[1..]) {
            shares.extend(plan_round(&config.generate, syllabi, round));
        }
        Self { config, prompts, syllabi: syllabi.iter().flatten().collect(), shares }
    }

    fn syllabus_work(&self, syllabus: &'a Syllabus, share: usize) -> Vec<Work<QuestionItem<'a>>> {
        let mut rng = stream(self.config.seed, self.name(), &syllabus.id);
        let combinations = combinations(syllabus).draw(share, self.config.generate.two_session_ratio, &mut rng);
        let text = json!([syllabus.introduction, syllabus.class_sessions]).to_string();
        let run_seed = self.config.seed.to_string();
        combinations
            .into_iter()
            .map(|combination| {
                let chosen = json!([combination.class_sessions, combination.key_concepts]).to_string();
                Work {
                    id: record_id(&[self.name(), &run_seed, &syllabus.id, &text, &chosen]),
                    parent: syllabus.id.clone(),
                    item: QuestionItem { syllabus, combination },
                }
            })
            .collect()
    }
}

/// A share by its weight for every discipline that has a syllabus, and of it an even share for each of its syllabi; nobody
/// gets more than it has combinations.
fn plan(config: &GenerateConfig, disciplines: &[Discipline], syllabi: &[Syllabus]) -> Vec<usize> {
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
fn plan_round(config: &GenerateConfig, syllabi: &[Syllabus], round: &Round) -> Vec<usize> {
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

fn combinations(syllabus: &Syllabus) -> Combinations {
    Combinations::new(syllabus.class_sessions.iter().map(|session| session.key_concepts.len()).collect())
}

impl QuestionItem<'_> {
    fn titles(&self) -> Vec<String> {
        let sessions = &self.syllabus.class_sessions;
        self.combination.class_sessions.iter().map(|&index| sessions[index].title.clone()).collect()
    }

    fn key_concepts(&self) -> Vec<String> {
        let concepts = self
            .combination
            .key_concepts
            .iter()
            .map(|&(session, concept)| self.syllabus.class_sessions[session].key_concepts[concept].clone());
        // Two sessions may share a concept; a prompt names it once.
        distinct(concepts, usize::MAX)
    }

    fn variables(&self) -> Value {
        let syllabus = self.syllabus;
        let sampled: Vec<_> =
            self.combination.class_sessions.iter().map(|&index| &syllabus.class_sessions[index]).collect();
        json!({
            "discipline": syllabus.discipline,
            "subject": syllabus.subject,
            "level": syllabus.level,
            "syllabus": {"introduction": syllabus.introduction, "class_sessions": syllabus.class_sessions},
            "class_sessions": sampled,
            "key_concepts": self.key_concepts(),
        })
    }
}

impl<'a> Step for Questions<'a> {
    type Item = QuestionItem<'a>;
    type Record = Question;

    fn name(&self) -> &'static str {
        "questions"
    }

    fn file(&self) -> &'static str {
        "questions.jsonl"
    }

    fn total(&self) -> usize {
        self.shares.iter().sum()
    }

    fn work(&self) -> Result<WorkList<'_, QuestionItem<'a>>> {
        let shares = self.syllabi.iter().zip(&self.shares);
        Ok(Box::new(shares.flat_map(|(&syllabus, &share)| self.syllabus_work(syllabus, share)).map(Ok)))
    }

    /// Syllabi before the range are passed over as a whole: their combinations need not be drawn.
    fn work_in(&self, range: Range<usize>) -> Result<WorkList<'_, QuestionItem<'a>>> {
        let (mut first, mut skipped) = (0, 0);
        while first < self.shares.len() && skipped + self.shares[first] <= range.start {
            skipped += self.shares[first];
            first += 1;
        }
        let shares = self.syllabi[first..].iter().zip(&self.shares[first..]);
        let work = shares.flat_map(|(&syllabus, &share)| self.syllabus_work(syllabus, share)).map(Ok);
        Ok(Box::new(work.skip(range.start - skipped).take(range.len())))
    }

    fn split(&self) -> Split {
        Split::Apart
    }

    fn messages(&self, item: &QuestionItem) -> Result<Vec<Message>> {
        self.prompts.messages(PromptKind::Question, &item.variables())
    }

    fn sampling(&self) -> SamplingParams {
        sampling_params(&self.config.generate.question, None)
    }

    fn record(&self, work: &Work<QuestionItem>, text: &str) -> Result<Question, Rejection> {
        let question = clean_question(text);
        if question.is_empty() {
            return Err(Rejection::new("empty", text));
        }
        if is_refusal(question) {
            return Err(Rejection::new("refused", question));
        }
        let item = &work.item;
        let syllabus = item.syllabus;
        let like =
            [&syllabus.subject, &syllabus.introduction, &item.titles().join(" "), &item.key_concepts().join(" ")];
        if is_other_script(question, &like.map(String::as_str).join(" ")) {
            return Err(Rejection::new("wrong_language", question));
        }
        Ok(Question {
            id: work.id.clone(),
            parent: work.parent.clone(),
            discipline: item.syllabus.discipline.clone(),
            subject: item.syllabus.subject.clone(),
            level: item.syllabus.level.clone(),
            strategy: item.combination.strategy(),
            class_sessions: item.titles(),
            key_concepts: item.key_concepts(),
            question: question.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::syllabus::ClassSession;

    fn syllabus(discipline: &str, subject: &str, concepts: &[usize]) -> Syllabus {
        let sessions = concepts.iter().enumerate().map(|(index, &m)| ClassSession {
            title: format!("Session {index}"),
            description: String::new(),
            key_concepts: (0..m).map(|concept| format!("concept {index} {concept}")).collect(),
        });
        Syllabus {
            id: format!("{discipline} {subject}"),
            parent: String::new(),
            discipline: discipline.into(),
            subject: subject.into(),
            level: String::new(),
            introduction: String::new(),
            class_sessions: sessions.collect(),
        }
    }

    #[test]
    fn questions_are_spread_over_disciplines_first_and_subjects_next() {
        let syllabi = [
            syllabus("A", "1", &[5, 5]),
            syllabus("B", "1", &[5, 5]),
            syllabus("A", "2", &[5, 5]),
            syllabus("B", "2", &[1]),
        ];
        let plan_for =
            |num_questions| plan(&GenerateConfig { num_questions, ..GenerateConfig::default() }, &[], &syllabi);
        assert_eq!(plan_for(41), [11, 19, 10, 1]);
        assert_eq!(plan_for(1_000_000), [637, 637, 637, 1]);
        let config = GenerateConfig { num_questions: 1000, two_session_ratio: 0.0, ..GenerateConfig::default() };
        assert_eq!(plan(&config, &[], &syllabi), [62, 62, 62, 1]);
        let leaf = |name: &str, weight| Discipline {
            id: String::new(),
            field: String::new(),
            subfield: String::new(),
            name: name.into(),
            weight,
        };
        // A quarter of B's: 8 and 32 questions.
        let config = GenerateConfig { num_questions: 40, ..GenerateConfig::default() };
        assert_eq!(plan(&config, &[leaf("A", 0.5), leaf("B", 2.0)], &syllabi), [4, 31, 4, 1]);
    }

    #[test]
    fn the_work_list_repeats_and_follows_the_seed() -> Result<()> {
        let syllabi = [vec![syllabus("A", "1", &[4, 4, 4]), syllabus("B", "1", &[4, 4])]];
        let mut config = Config::default();
        config.generate.num_questions = 30;
        let prompts = Prompts::load(&config.generate)?;
        let ids = |config: &Config| -> Result<Vec<String>> {
            let step = Questions::new(config, &prompts, &[], &syllabi, &[]);
            let ids: Result<Vec<_>> = step.work()?.map(|work| work.map(|work| work.id)).collect();
            ids
        };
        let first = ids(&config)?;
        assert_eq!(first.len(), 30);
        assert_eq!(first, ids(&config)?);
        let distinct: std::collections::HashSet<_> = first.iter().collect();
        assert_eq!(distinct.len(), 30);
        config.seed = 1;
        assert_ne!(first, ids(&config)?);
        Ok(())
    }

    #[test]
    fn a_ratio_of_zero_or_one_leaves_a_strategy_out() -> Result<()> {
        let syllabi = [vec![syllabus("A", "1", &[3, 3])]];
        for (ratio, strategy, count) in [(0.0, 1, 14), (1.0, 2, 48)] {
            let mut config = Config::default();
            config.generate.num_questions = 1000;
            config.generate.two_session_ratio = ratio;
            let prompts = Prompts::load(&config.generate)?;
            let step = Questions::new(&config, &prompts, &[], &syllabi, &[]);
            let work: Vec<_> = step.work()?.collect::<Result<_>>()?;
            assert_eq!((work.len(), step.total()), (count, count));
            assert!(work.iter().all(|work| work.item.combination.strategy() == strategy));
        }
        Ok(())
    }
}
