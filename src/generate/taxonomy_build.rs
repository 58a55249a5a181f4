//! `--stage taxonomy`: a taxonomy from the teacher (section 2.1), in three passes: fields, the sub-fields of each, the
//! disciplines of each of those.
//!
//! Each list is asked for several times and merged by name; a name that came up under several parents stays where most
//! samples have it. The result is `generate/taxonomy.toml`, for people to edit; from then on the run goes by it. What was
//! asked lies in `generate/taxonomy/`, with rejects, usage and table, and is taken up after a kill as in every other sub-step.

use std::collections::{HashMap, HashSet};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    ModelLoader, Stage,
    prompts::{PromptKind, Prompts},
    step::{Step, Work, WorkList, run_step, sampling_params},
    taxonomy::Taxonomy,
    text::{Rejection, normalized_name, one_line, parse_json, without_thoughts},
    two_step::Topic,
};
use crate::{
    config::Config,
    language_model::{Constraint, Message, SamplingParams},
    records::write_atomic,
    run_dir::RunDir,
};

/// The result, in the stage's folder.
pub const FILE: &str = "taxonomy.toml";

/// Longer names are prose. Characters.
const MAX_NAME_CHARS: usize = 100;

/// A line of `fields_raw.jsonl`, `subfields_raw.jsonl` or `disciplines_raw.jsonl`: one reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Proposal {
    /// Hash of what made it.
    id: String,
    /// The names above, from the field down; empty for fields.
    parent: String,
    /// Which of several samples of the same prompt this is.
    sample: usize,
    /// What it lists.
    names: Vec<String>,
}

/// A name with the number of samples that have it.
#[derive(Debug, Clone, PartialEq)]
struct Named {
    name: String,
    samples: usize,
}

/// Builds the taxonomy; returns it and whether the file was written (`false`: one is there, and stays as it is).
///
/// **Errors**: those of the sub-steps; nothing usable came.
pub fn run(config: &Config, run_dir: &RunDir, load_model: &mut ModelLoader) -> Result<(Taxonomy, bool)> {
    let folder = run_dir.stage("generate").join("taxonomy");
    std::fs::create_dir_all(&folder)?;
    let kinds = [PromptKind::TaxonomyFields, PromptKind::TaxonomySubfields, PromptKind::TaxonomyDisciplines];
    let prompts = Prompts::of(&config.generate.prompts, &kinds)?;
    prompts.save(&folder.join("prompts.json"))?;
    let mut stage = Stage::new(config, run_dir, folder, None, load_model);
    let taxonomy = propose(&mut stage, &prompts)?;
    let head = format!(
        "Built by `glan generate --stage taxonomy`: {} samples of each list, merged by name. Edit it as you like: the\n\
         later steps of this run read it as it is when they begin. A node may get a weight, a quota or a cap.",
        config.generate.build_taxonomy.samples
    );
    let text = taxonomy.to_toml(&head);
    let path = run_dir.stage_file("generate", FILE);
    if path.exists() {
        if std::fs::read_to_string(&path).is_ok_and(|there| there != text) {
            tracing::warn!("`{}` was edited and stays as it is; remove it to have it written anew", path.display());
        }
        return Ok((taxonomy, false));
    }
    write_atomic(&path, text.as_bytes())?;
    Ok((taxonomy, true))
}

fn propose(stage: &mut Stage, prompts: &Prompts) -> Result<Taxonomy> {
    let build = stage.config.generate.build_taxonomy.clone();
    let num_names = build.names_per_sample;
    let ask = |stage: &mut Stage, kind, parents: Vec<(String, Value)>, most: usize| {
        let names: Vec<String> = parents.iter().map(|(parent, _)| parent.clone()).collect();
        let topics = parents.into_iter().flat_map(|(parent, variables)| {
            (0..build.samples).map(move |sample| Topic {
                parent: parent.clone(),
                sample,
                edition: 0,
                variables: variables.clone(),
                draft: None,
            })
        });
        let step = Proposals { config: stage.config, prompts, kind, topics: topics.collect() };
        run_step(stage, &step)?;
        let lists = merge(&names, &stage.read(&step)?);
        Ok::<_, anyhow::Error>(thin(lists, build.min_samples, most))
    };
    let fields = ask(
        stage,
        PromptKind::TaxonomyFields,
        vec![(String::new(), json!({"num_names": num_names}))],
        build.max_fields,
    )?;
    let fields = fields.into_iter().next().unwrap_or_default();
    let of_field = |field: &String| (field.clone(), json!({"field": field, "fields": fields, "num_names": num_names}));
    let subfields =
        ask(stage, PromptKind::TaxonomySubfields, fields.iter().map(of_field).collect(), build.max_subfields)?;
    let mut parents = Vec::new();
    for (field, subfields) in fields.iter().zip(&subfields) {
        parents.extend(subfields.iter().map(|subfield| {
            let variables =
                json!({"field": field, "subfield": subfield, "subfields": subfields, "num_names": num_names});
            (format!("{field} > {subfield}"), variables)
        }));
    }
    let mut disciplines = ask(stage, PromptKind::TaxonomyDisciplines, parents, build.max_disciplines)?.into_iter();
    let mut tree = Vec::new();
    for (field, subfields) in fields.into_iter().zip(subfields) {
        let with_leaves = subfields.into_iter().filter_map(|name| {
            let leaves = disciplines.next()?;
            (!leaves.is_empty()).then_some((name, leaves))
        });
        let with_leaves: Vec<_> = with_leaves.collect();
        if with_leaves.is_empty() {
            tracing::warn!("the field `{field}` has no usable sub-fields and is left out");
        } else {
            tree.push((field, with_leaves));
        }
    }
    if tree.is_empty() {
        bail!(
            "no taxonomy was made; see `{}` for what the teacher wrote",
            stage.folder.join("rejected.jsonl").display()
        );
    }
    Taxonomy::from_names(tree).map_err(|what| anyhow::anyhow!("the taxonomy that was built is faulty: {what}"))
}

/// The names of every parent, first spelling and order of appearance, with the number of samples that have each.
fn merge(parents: &[String], samples: &[Proposal]) -> Vec<Vec<Named>> {
    let mut lists = vec![Vec::<Named>::new(); parents.len()];
    let places: HashMap<&str, usize> = parents.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
    let mut known: HashMap<(usize, String), usize> = HashMap::new();
    for sample in samples {
        let Some(&place) = places.get(sample.parent.as_str()) else { continue };
        let mut named_here = HashSet::new();
        for name in &sample.names {
            let list = &mut lists[place];
            let index = *known.entry((place, normalized_name(name))).or_insert_with(|| {
                list.push(Named { name: name.clone(), samples: 0 });
                list.len() - 1
            });
            list[index].samples += usize::from(named_here.insert(index));
        }
    }
    lists
}

/// Drops what too few samples have, and each name everywhere but where most samples have it (the first of several);
/// of the rest those that most samples have stay, in order.
fn thin(mut lists: Vec<Vec<Named>>, min_samples: usize, most: usize) -> Vec<Vec<String>> {
    let mut best: HashMap<String, (usize, usize)> = HashMap::new();
    for (place, list) in lists.iter().enumerate() {
        for named in list {
            let home = best.entry(normalized_name(&named.name)).or_insert((place, named.samples));
            if named.samples > home.1 {
                *home = (place, named.samples);
            }
        }
    }
    for (place, list) in lists.iter_mut().enumerate() {
        list.retain(|named| named.samples >= min_samples && best[&normalized_name(&named.name)].0 == place);
        if most > 0 && list.len() > most {
            let mut order: Vec<usize> = (0..list.len()).collect();
            // The sort is stable, so ties stay in order of appearance.
            order.sort_by_key(|&index| std::cmp::Reverse(list[index].samples));
            order.truncate(most);
            order.sort_unstable();
            *list = order.into_iter().map(|index| list[index].clone()).collect();
        }
    }
    lists.into_iter().map(|list| list.into_iter().map(|named| named.name).collect()).collect()
}

/// The sub-step of one level.
struct Proposals<'a> {
    config: &'a Config,
    prompts: &'a Prompts,
    kind: PromptKind,
    topics: Vec<Topic>,
}

impl Step for Proposals<'_> {
    type Item = Topic;
    type Record = Proposal;

    fn name(&self) -> &'static str {
        match self.kind {
            PromptKind::TaxonomyFields => "taxonomy_fields",
            PromptKind::TaxonomySubfields => "taxonomy_subfields",
            _ => "taxonomy_disciplines",
        }
    }

    fn file(&self) -> &'static str {
        match self.kind {
            PromptKind::TaxonomyFields => "fields_raw.jsonl",
            PromptKind::TaxonomySubfields => "subfields_raw.jsonl",
            _ => "disciplines_raw.jsonl",
        }
    }

    fn total(&self) -> usize {
        self.topics.len()
    }

    fn work(&self) -> Result<WorkList<'_, Topic>> {
        Ok(Box::new(self.topics.iter().map(|topic| {
            let id = topic.id(self.name(), self.config.seed);
            Ok(Work { id, parent: topic.parent.clone(), item: topic.clone() })
        })))
    }

    fn messages(&self, topic: &Topic) -> Result<Vec<Message>> {
        self.prompts.messages(self.kind, &topic.variables)
    }

    fn sampling(&self) -> SamplingParams {
        let most = self.config.generate.build_taxonomy.names_per_sample;
        let name = json!({"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARS});
        let schema = json!({
            "type": "object",
            "properties": {"names": {"type": "array", "minItems": 1, "maxItems": most, "items": name}},
            "required": ["names"],
            "additionalProperties": false,
        });
        sampling_params(&self.config.generate.subjects, Some(Constraint::JsonSchema(schema)))
    }

    fn record(&self, work: &Work<Topic>, text: &str) -> Result<Proposal, Rejection> {
        let text = without_thoughts(text);
        if text.is_empty() {
            return Err(Rejection::new("empty", ""));
        }
        let value = parse_json(text).map_err(|error| Rejection::new("malformed_json", format!("{error}: {text}")))?;
        let list = value.get("names").unwrap_or(&value).as_array();
        let names = list.into_iter().flatten().filter_map(Value::as_str).map(one_line);
        let is_usable = |name: &String| !normalized_name(name).is_empty() && name.chars().count() <= MAX_NAME_CHARS;
        let names: Vec<String> =
            names.filter(is_usable).take(self.config.generate.build_taxonomy.names_per_sample).collect();
        if names.is_empty() {
            return Err(Rejection::new("no_names", text));
        }
        Ok(Proposal { id: work.id.clone(), parent: work.parent.clone(), sample: work.item.sample, names })
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::generate::scripted::Scripted;
    use crate::{
        generate::{
            scripted::{Reply, last_turn},
            tests::{Bench, good},
        },
        language_model::{LanguageModel, Request},
    };

    fn proposal(parent: &str, sample: usize, names: &[&str]) -> Proposal {
        Proposal {
            id: format!("{parent} {sample}"),
            parent: parent.into(),
            sample,
            names: names.iter().map(|&name| name.into()).collect(),
        }
    }

    #[test]
    fn samples_merge_by_name_and_a_name_stays_where_most_have_it() {
        let parents = ["A".to_owned(), "B".to_owned()];
        let samples = [
            proposal("A", 0, &["Logic", "Algebra", "logic"]),
            proposal("A", 1, &["algebra.", "Optics"]),
            proposal("B", 0, &["Optics", "LOGIC"]),
            proposal("B", 1, &["Logic"]),
        ];
        let merged = merge(&parents, &samples);
        assert_eq!(merged[0][0], Named { name: "Logic".into(), samples: 1 });
        assert_eq!(thin(merged.clone(), 1, 0), [vec!["Algebra", "Optics"], vec!["LOGIC"]]);
        assert_eq!(thin(merged.clone(), 2, 0), [vec!["Algebra"], vec!["LOGIC"]]);
        assert_eq!(thin(merged, 1, 1), [vec!["Algebra"], vec!["LOGIC"]]);
    }

    /// Names that depend on the request; a fifth of all replies is spoilt.
    fn script(request: &Request) -> Reply {
        let (text, seed) = (last_turn(request), request.sampling.seed);
        let level = ["fields of its top", "sub-fields of the field", "disciplines of the sub-field"];
        let level = level.iter().position(|words| text.contains(words)).expect("a prompt of the taxonomy");
        if seed % 5 == 0 {
            return Reply::Text("no list".into());
        }
        let name = |number: u64| format!("\"L{level} {}\"", number % 7);
        Reply::Text(format!("{{\"names\":[{},{},\" \"]}}", name(seed >> 8), name(seed >> 16)))
    }

    fn build(bench: &Bench, max_num_seqs: usize, lives: usize) -> Result<(Taxonomy, bool)> {
        let run_dir = RunDir::open(&bench.run_dir(), &bench.config)?;
        run(&bench.config, &run_dir, &mut |_| {
            Ok(Box::new(Scripted::new(Rc::new(script), max_num_seqs).killed_after(lives)) as Box<dyn LanguageModel>)
        })
    }

    #[test]
    fn a_built_taxonomy_is_the_same_after_any_kill_and_the_later_steps_go_by_it() -> Result<()> {
        let whole = Bench::new()?;
        let (taxonomy, is_new) = build(&whole, 3, usize::MAX)?;
        assert!(is_new && taxonomy.fields.len() > 1);
        let text = std::fs::read_to_string(whole.file(FILE))?;
        for lives in [0, 1, 4, 9, 20] {
            let killed = Bench::new()?;
            build(&killed, 2, lives).expect_err("killed");
            build(&killed, 5, usize::MAX)?;
            assert_eq!(std::fs::read_to_string(killed.file(FILE))?, text, "killed after {lives}");
            for file in
                ["fields_raw.jsonl", "subfields_raw.jsonl", "disciplines_raw.jsonl", "rejected.jsonl", "stats.json"]
            {
                let read = |bench: &Bench| std::fs::read(bench.file("taxonomy").join(file));
                assert_eq!(read(&killed)?, read(&whole)?, "{file}");
            }
        }
        // An edited file stays, and is what the questions are made from.
        std::fs::write(
            whole.file(FILE),
            "[[fields]]\nname = \"Mine\"\n[[fields.subfields]]\nname = \"Own\"\ndisciplines = [\"Edited\"]\n",
        )?;
        assert!(!build(&whole, 1, 0)?.1, "nothing is asked again");
        whole.run(|| good(4)).1?;
        let answers = crate::generate::tests::rows(&whole.file("answers.jsonl"))?;
        assert!(!answers.is_empty() && answers.iter().all(|row| row["discipline"] == "Edited"));
        Ok(())
    }
}
