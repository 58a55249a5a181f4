//! Syllabi to homework questions (section 2.4): one request per drawn combination of class sessions and key concepts.
//!
//! Where asked for, a share of a syllabus' questions joins it with a session of another one (`cross.rs`), and questions are
//! varied by sampled attributes (`vary.rs`).
//!
//! `generate.num_questions` is spread over the disciplines by their weights (evenly, where the taxonomy gives none) and then evenly over their syllabi. The questions of one
//! syllabus follow each other, as their prompts begin alike.

use std::ops::Range;

use anyhow::Result;
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    combos::Combinations,
    cross,
    plan::{plan, plan_round},
    prompts::{PromptKind, Prompts},
    step::{Split, Step, Work, WorkList, sampling_params},
    syllabus::{ClassSession, Syllabus},
    taxonomy::Discipline,
    text::{Rejection, clean_question, distinct, is_other_script, is_refusal},
    vary::{Attributes, Variety},
    weak::Round,
};
use crate::{
    config::Config,
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
    /// 1: one class session. 2: two. 3: one of each of two subjects.
    pub strategy: usize,
    /// Titles of the class sessions that it is about.
    pub class_sessions: Vec<String>,
    /// Key concepts that it was to use.
    pub key_concepts: Vec<String>,
    /// Where it joins two subjects: the other one.
    #[serde(flatten)]
    pub other: Other,
    /// What it was varied by.
    #[serde(flatten)]
    pub attributes: Attributes,
    /// What is asked.
    pub question: String,
}

/// The second subject of a question that joins two; empty where it does not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Other {
    /// Its discipline.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub other_discipline: String,
    /// Its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub other_subject: String,
}

/// The sub-step.
pub struct Questions<'a> {
    config: &'a Config,
    prompts: &'a Prompts,
    variety: &'a Variety,
    syllabi: Vec<&'a Syllabus>,
    /// Questions to ask of each syllabus.
    shares: Vec<usize>,
    /// Whom each syllabus may be joined with: those of one round are in one range.
    rounds: Vec<Range<usize>>,
    /// Key concepts of the class sessions of each syllabus.
    sizes: Vec<Vec<usize>>,
}

/// What one question is made from.
pub struct QuestionItem<'a> {
    syllabus: &'a Syllabus,
    /// One or two class sessions with the key concepts drawn from each. The second one may be of another syllabus.
    parts: Vec<SessionPart<'a>>,
    strategy: usize,
    attributes: Attributes,
}

/// A class session by its index, and concepts in it by theirs.
struct SessionPart<'a> {
    of: &'a Syllabus,
    session: usize,
    key_concepts: Vec<usize>,
}

impl<'a> Questions<'a> {
    /// Plans how many questions each syllabus gets. `syllabi` are those of the plain stage and of each of `rounds`.
    pub fn new(
        config: &'a Config,
        (prompts, variety): (&'a Prompts, &'a Variety),
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
        let mut end = 0;
        let rounds = syllabi.iter().map(|of_round| {
            end += of_round.len();
            end - of_round.len()..end
        });
        let rounds = rounds.collect();
        let syllabi: Vec<&Syllabus> = syllabi.iter().flatten().collect();
        let sizes = syllabi.iter().map(|syllabus| sizes(syllabus)).collect();
        Self { config, prompts, variety, syllabi, shares, rounds, sizes }
    }

    fn syllabus_work(&self, index: usize) -> Vec<Work<QuestionItem<'a>>> {
        let (syllabus, share) = (self.syllabi[index], self.shares[index]);
        let crossed = self.crossed(index);
        let mut rng = stream(self.config.seed, self.name(), &syllabus.id);
        let own = combinations(syllabus).draw(share - crossed.len(), self.config.generate.two_session_ratio, &mut rng);
        let own = own.into_iter().map(|combination| {
            let chosen = json!([combination.class_sessions, combination.key_concepts]).to_string();
            let parts = combination.class_sessions.iter().map(|&session| {
                let concepts = combination.key_concepts.iter().filter(|(of, _)| *of == session);
                SessionPart { of: syllabus, session, key_concepts: concepts.map(|&(_, concept)| concept).collect() }
            });
            self.work_of(syllabus, &[&chosen], parts.collect(), combination.strategy())
        });
        own.chain(crossed).collect()
    }

    /// One entry of the work list; `chosen` says in words what tells it from the others of its syllabus.
    fn work_of(
        &self,
        syllabus: &'a Syllabus,
        chosen: &[&str],
        parts: Vec<SessionPart<'a>>,
        strategy: usize,
    ) -> Work<QuestionItem<'a>> {
        let run_seed = self.config.seed.to_string();
        let text = content(syllabus);
        let id = record_id(&[&[self.name(), &run_seed, &syllabus.id, &text], chosen].concat());
        let attributes = self.variety.draw(self.config.seed, &id);
        let id = if attributes.is_empty() { id } else { record_id(&[&id, &json!(attributes).to_string()]) };
        let item = QuestionItem { syllabus, parts, strategy, attributes };
        Work { id, parent: syllabus.id.clone(), item }
    }

    /// The questions that join a syllabus with another one. Each share is rounded at random, so that it holds on average
    /// even for one question per syllabus.
    fn crossed(&self, index: usize) -> Vec<Work<QuestionItem<'a>>> {
        let generate = &self.config.generate;
        let mut crossed = Vec::new();
        for (name, ratio) in
            [("cross subject", generate.cross_subject_ratio), ("cross discipline", generate.cross_discipline_ratio)]
        {
            if ratio == 0.0 {
                continue;
            }
            let (syllabus, share) = (self.syllabi[index], self.shares[index]);
            let mut rng = stream(self.config.seed, name, &syllabus.id);
            let wanted = share as f64 * ratio;
            let wanted = wanted.floor() as usize + usize::from(rng.random::<f64>() < wanted.fract());
            let wanted = wanted.min(share - crossed.len());
            let same_discipline = name == "cross subject";
            let round = self.rounds.iter().find(|round| round.contains(&index)).cloned().unwrap_or_default();
            let is_partner = |other: &Syllabus| {
                other.parent != syllabus.parent && (other.discipline == syllabus.discipline) == same_discipline
            };
            let partners: Vec<usize> = round.filter(|&other| is_partner(self.syllabi[other])).collect();
            let partner = |place: usize| {
                let other = partners[place];
                (self.sizes[other].as_slice(), syllabus.id < self.syllabi[other].id)
            };
            for drawn in cross::draw(&self.sizes[index], partners.len(), partner, wanted, &mut rng) {
                let other = self.syllabi[partners[drawn.partner]];
                let chosen = json!([drawn.sessions, drawn.key_concepts]).to_string();
                let parts = [
                    SessionPart { of: syllabus, session: drawn.sessions.0, key_concepts: drawn.key_concepts.0 },
                    SessionPart { of: other, session: drawn.sessions.1, key_concepts: drawn.key_concepts.1 },
                ];
                let chosen = ["cross", &other.id, &content(other), &chosen];
                crossed.push(self.work_of(syllabus, &chosen, parts.into(), 3));
            }
        }
        crossed
    }
}

/// What a question prompt shows of a syllabus.
fn content(syllabus: &Syllabus) -> String {
    json!([syllabus.introduction, syllabus.class_sessions]).to_string()
}

/// Numbers of key concepts of the class sessions.
fn sizes(syllabus: &Syllabus) -> Vec<usize> {
    syllabus.class_sessions.iter().map(|session| session.key_concepts.len()).collect()
}

/// The combinations of a syllabus with itself.
pub fn combinations(syllabus: &Syllabus) -> Combinations {
    Combinations::new(sizes(syllabus))
}

impl QuestionItem<'_> {
    fn sessions(&self) -> impl Iterator<Item = &ClassSession> {
        self.parts.iter().map(|part| &part.of.class_sessions[part.session])
    }

    fn titles(&self) -> Vec<String> {
        self.sessions().map(|session| session.title.clone()).collect()
    }

    fn key_concepts(&self) -> Vec<String> {
        let concepts = self
            .sessions()
            .zip(&self.parts)
            .flat_map(|(session, part)| part.key_concepts.iter().map(|&concept| session.key_concepts[concept].clone()));
        // Two sessions may share a concept; a prompt names it once.
        distinct(concepts, usize::MAX)
    }

    /// The second subject.
    fn other(&self) -> Option<&Syllabus> {
        self.parts.last().map(|part| part.of).filter(|_| self.strategy == 3)
    }

    fn variables(&self) -> Value {
        let shown = |syllabus: &Syllabus| json!({"introduction": syllabus.introduction, "class_sessions": syllabus.class_sessions});
        let syllabus = self.syllabus;
        let mut variables = json!({
            "discipline": syllabus.discipline,
            "subject": syllabus.subject,
            "level": syllabus.level,
            "syllabus": shown(syllabus),
            "class_sessions": self.sessions().collect::<Vec<_>>(),
            "key_concepts": self.key_concepts(),
        });
        if let Some(other) = self.other() {
            variables["other"] = json!({
                "discipline": other.discipline, "subject": other.subject, "level": other.level, "syllabus": shown(other),
            });
        }
        variables
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
        Ok(Box::new((0..self.syllabi.len()).flat_map(|index| self.syllabus_work(index)).map(Ok)))
    }

    /// Syllabi before the range are passed over as a whole: their combinations need not be drawn.
    fn work_in(&self, range: Range<usize>) -> Result<WorkList<'_, QuestionItem<'a>>> {
        let (mut first, mut skipped) = (0, 0);
        while first < self.shares.len() && skipped + self.shares[first] <= range.start {
            skipped += self.shares[first];
            first += 1;
        }
        let work = (first..self.syllabi.len()).flat_map(|index| self.syllabus_work(index)).map(Ok);
        Ok(Box::new(work.skip(range.start - skipped).take(range.len())))
    }

    fn split(&self) -> Split {
        Split::Apart
    }

    fn messages(&self, item: &QuestionItem) -> Result<Vec<Message>> {
        let kind = if item.strategy == 3 { PromptKind::CrossQuestion } else { PromptKind::Question };
        let variables = item.variables();
        if item.attributes.is_empty() {
            return self.prompts.messages(kind, &variables);
        }
        let attributes = self.variety.variables(&item.attributes);
        self.prompts.messages_with((kind, &variables), (PromptKind::Attributes, &attributes))
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
            strategy: item.strategy,
            class_sessions: item.titles(),
            key_concepts: item.key_concepts(),
            other: item.other().map_or_else(Other::default, |other| Other {
                other_discipline: other.discipline.clone(),
                other_subject: other.subject.clone(),
            }),
            attributes: item.attributes.clone(),
            question: question.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GenerateConfig;

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
        let (prompts, variety) = (Prompts::load(&config)?, Variety::load(&config.generate.vary)?);
        let ids = |config: &Config| -> Result<Vec<String>> {
            let step = Questions::new(config, (&prompts, &variety), &[], &syllabi, &[]);
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
            let (prompts, variety) = (Prompts::load(&config)?, Variety::load(&config.generate.vary)?);
            let step = Questions::new(&config, (&prompts, &variety), &[], &syllabi, &[]);
            let work: Vec<_> = step.work()?.collect::<Result<_>>()?;
            assert_eq!((work.len(), step.total()), (count, count));
            assert!(work.iter().all(|work| work.item.strategy == strategy));
        }
        Ok(())
    }

    #[test]
    fn crossed_questions_have_their_share_and_join_two_subjects() -> Result<()> {
        let subject = |discipline: &str, name: &str| Syllabus {
            parent: format!("{discipline} {name}"),
            ..syllabus(discipline, name, &[4, 4, 4])
        };
        let syllabi = [vec![subject("A", "1"), subject("A", "2"), subject("A", "3"), subject("B", "4")]];
        let mut config = Config::default();
        config.generate.num_questions = 400;
        let work = |config: &Config| -> Result<Vec<(String, usize, String, String)>> {
            let (prompts, variety) = (Prompts::load(config)?, Variety::load(&config.generate.vary)?);
            let step = Questions::new(config, (&prompts, &variety), &[], &syllabi, &[]);
            let described = |work: Result<Work<QuestionItem>>| {
                let Work { id, item, .. } = work?;
                let prompt = &step.messages(&item)?[0].content;
                assert_eq!(item.strategy == 3, prompt.contains("Second course"));
                assert!(item.titles().iter().all(|title| prompt.contains(title)));
                let other =
                    item.other().map_or(String::new(), |other| format!("{} {}", other.discipline, other.subject));
                Ok((id, item.strategy, item.syllabus.id.clone(), other))
            };
            step.work()?.map(described).collect()
        };
        let plain = work(&config)?;
        config.generate.cross_subject_ratio = 0.3;
        config.generate.cross_discipline_ratio = 0.1;
        let crossed = work(&config)?;
        assert_eq!((plain.len(), crossed.len()), (400, 400));
        let ids: std::collections::HashSet<_> = crossed.iter().map(|(id, ..)| id).collect();
        assert_eq!(ids.len(), 400);
        let of = |own: &str, other: &str| {
            crossed.iter().filter(|(_, _, id, with)| id.starts_with(own) && with.starts_with(other)).count()
        };
        // 200 questions a discipline; B has one subject, so nothing to join inside of it.
        assert!((of("A", "A") as i64 - 60).abs() <= 3 && of("B", "B") == 0, "{} {}", of("A", "A"), of("B", "B"));
        assert!((of("A", "B") as i64 - 20).abs() <= 3 && of("B", "A") == 20, "{} {}", of("A", "B"), of("B", "A"));
        assert!(crossed.iter().all(|(_, strategy, own, other)| (*strategy == 3) != other.is_empty() && own != other));
        Ok(())
    }
}
