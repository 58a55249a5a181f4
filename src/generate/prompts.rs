//! The prompts: minijinja templates from a folder of the user's, or the built-in set for real instruct models.
//!
//! A template is rendered with blocks trimmed as Hugging Face chat templates are, loses its trailing white space, and
//! becomes one user turn. A variable that does not exist is an error, found before the teacher is loaded: every
//! template is rendered once with made-up values. The sources are kept in `generate/prompts.json`, as they are part of
//! what made the data.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde_json::{Value, json};

use crate::{config::Config, error::usage, language_model::Message, records};

/// The templates of a run.
pub struct Prompts {
    environment: Environment<'static>,
    /// File name and source; also what error messages call the template.
    sources: BTreeMap<String, String>,
    folder: String,
}

/// The templates, by the request that they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptKind {
    /// A list of subjects of a discipline.
    Subjects,
    /// Its JSON, as a second turn.
    SubjectsJson,
    /// A syllabus of a subject.
    Syllabus,
    /// Its JSON, as a second turn.
    SyllabusJson,
    /// A homework question.
    Question,
    /// Its answer.
    Answer,
    /// What a question is varied by; added to its prompt.
    Attributes,
    /// A homework question that joins two subjects.
    CrossQuestion,
    /// What has to be changed in an answer.
    Critique,
    /// The answer written anew.
    Rewrite,
    /// What the student asks next.
    FollowUp,
    /// A score.
    Judgement,
    /// All fields of knowledge.
    TaxonomyFields,
    /// The sub-fields of one.
    TaxonomySubfields,
    /// The disciplines of a sub-field.
    TaxonomyDisciplines,
    /// Whether a node of the taxonomy is kept.
    TaxonomyReview,
}

impl PromptKind {
    const ALL: [Self; 16] = [
        Self::Subjects,
        Self::SubjectsJson,
        Self::Syllabus,
        Self::SyllabusJson,
        Self::Question,
        Self::Answer,
        Self::Attributes,
        Self::CrossQuestion,
        Self::Critique,
        Self::Rewrite,
        Self::FollowUp,
        Self::Judgement,
        Self::TaxonomyFields,
        Self::TaxonomySubfields,
        Self::TaxonomyDisciplines,
        Self::TaxonomyReview,
    ];

    fn file(self) -> &'static str {
        match self {
            PromptKind::Subjects => "subjects.jinja",
            PromptKind::SubjectsJson => "subjects_json.jinja",
            PromptKind::Syllabus => "syllabus.jinja",
            PromptKind::SyllabusJson => "syllabus_json.jinja",
            PromptKind::Question => "question.jinja",
            PromptKind::Answer => "answer.jinja",
            PromptKind::Attributes => "question_attributes.jinja",
            PromptKind::CrossQuestion => "question_cross.jinja",
            PromptKind::Critique => "critique.jinja",
            PromptKind::Rewrite => "rewrite.jinja",
            PromptKind::FollowUp => "follow_up.jinja",
            PromptKind::Judgement => "judge.jinja",
            PromptKind::TaxonomyFields => "taxonomy_fields.jinja",
            PromptKind::TaxonomySubfields => "taxonomy_subfields.jinja",
            PromptKind::TaxonomyDisciplines => "taxonomy_disciplines.jinja",
            PromptKind::TaxonomyReview => "taxonomy_review.jinja",
        }
    }

    /// Values of the right shape, to try a template with. They are also the list of its variables.
    fn example(self) -> Value {
        let session = json!({"title": "t", "description": "d", "key_concepts": ["a", "b"]});
        match self {
            PromptKind::Subjects => json!({"discipline": "d", "field": "f", "subfield": "s", "num_subjects": 2}),
            PromptKind::SubjectsJson => json!({"discipline": "d", "field": "f", "subfield": "s", "num_subjects": 2}),
            PromptKind::Syllabus | PromptKind::SyllabusJson => json!({
                "discipline": "d", "subject": "s", "level": "l", "subtopics": ["a", "b"],
                "min_class_sessions": 1, "max_class_sessions": 2, "min_key_concepts": 1, "max_key_concepts": 2,
            }),
            PromptKind::Question => json!({
                "discipline": "d", "subject": "s", "level": "l",
                "syllabus": {"introduction": "i", "class_sessions": [session, session]},
                "class_sessions": [session], "key_concepts": ["a", "b"],
            }),
            PromptKind::Answer => json!({"question": "q"}),
            PromptKind::Attributes => {
                json!({"task_type": "t", "difficulty": "d", "persona": "p", "region": "r", "name": "n"})
            }
            PromptKind::CrossQuestion => json!({
                "discipline": "d", "subject": "s", "level": "l",
                "syllabus": {"introduction": "i", "class_sessions": [session, session]},
                "other": {"discipline": "d", "subject": "s", "level": "l", "syllabus":
                    {"introduction": "i", "class_sessions": [session]}},
                "class_sessions": [session, session], "key_concepts": ["a", "b"],
            }),
            PromptKind::Critique => json!({"question": "q", "answer": "a"}),
            PromptKind::Rewrite => json!({"question": "q", "answer": "a", "critique": "c"}),
            PromptKind::FollowUp => json!({
                "discipline": "d", "subject": "s", "level": "l", "turns": [{"question": "q", "answer": "a"}],
            }),
            PromptKind::Judgement => json!({"turns": [{"question": "q", "answer": "a"}]}),
            PromptKind::TaxonomyFields => json!({"num_names": 2}),
            PromptKind::TaxonomySubfields => json!({"field": "f", "fields": ["f", "g"], "num_names": 2}),
            PromptKind::TaxonomyDisciplines => {
                json!({"field": "f", "subfield": "s", "subfields": ["s", "t"], "num_names": 2})
            }
            PromptKind::TaxonomyReview => {
                json!({"kind": "discipline", "name": "d", "above": ["f", "s"], "below": ["a", "b"], "siblings": ["e"]})
            }
        }
    }
}

/// The one template that a folder may leave out: a system turn before every request, a fixed text.
const SYSTEM: &str = "system.jinja";

/// The templates of the paper's own steps, which a folder must hold. Where it lacks another one, the built-in one serves.
const REQUIRED: [&str; 6] = [
    "subjects.jinja",
    "subjects_json.jinja",
    "syllabus.jinja",
    "syllabus_json.jinja",
    "question.jinja",
    "answer.jinja",
];

const BUILT_IN: [(&str, &str); 16] = [
    ("subjects.jinja", include_str!("../../configs/prompts/default/subjects.jinja")),
    ("subjects_json.jinja", include_str!("../../configs/prompts/default/subjects_json.jinja")),
    ("syllabus.jinja", include_str!("../../configs/prompts/default/syllabus.jinja")),
    ("syllabus_json.jinja", include_str!("../../configs/prompts/default/syllabus_json.jinja")),
    ("question.jinja", include_str!("../../configs/prompts/default/question.jinja")),
    ("answer.jinja", include_str!("../../configs/prompts/default/answer.jinja")),
    ("question_attributes.jinja", include_str!("../../configs/prompts/default/question_attributes.jinja")),
    ("question_cross.jinja", include_str!("../../configs/prompts/default/question_cross.jinja")),
    ("critique.jinja", include_str!("../../configs/prompts/default/critique.jinja")),
    ("rewrite.jinja", include_str!("../../configs/prompts/default/rewrite.jinja")),
    ("follow_up.jinja", include_str!("../../configs/prompts/default/follow_up.jinja")),
    ("judge.jinja", include_str!("../../configs/prompts/default/judge.jinja")),
    ("taxonomy_fields.jinja", include_str!("../../configs/prompts/default/taxonomy_fields.jinja")),
    ("taxonomy_subfields.jinja", include_str!("../../configs/prompts/default/taxonomy_subfields.jinja")),
    ("taxonomy_disciplines.jinja", include_str!("../../configs/prompts/default/taxonomy_disciplines.jinja")),
    ("taxonomy_review.jinja", include_str!("../../configs/prompts/default/taxonomy_review.jinja")),
];

impl Prompts {
    /// Reads the templates that the configuration needs and tries each.
    ///
    /// **Errors**: usage: a missing file, a fault in a template or an unknown variable, with file and line.
    pub fn load(config: &Config) -> Result<Self> {
        let generate = &config.generate;
        let mut kinds = vec![PromptKind::Subjects, PromptKind::Syllabus, PromptKind::Question, PromptKind::Answer];
        let vary = &generate.vary;
        let varied =
            [vary.task_type_ratio, vary.difficulty_ratio, vary.persona_ratio, vary.region_ratio, vary.name_ratio];
        for (is_needed, more) in [
            (generate.two_step, &[PromptKind::SubjectsJson, PromptKind::SyllabusJson][..]),
            (varied.iter().any(|&ratio| ratio > 0.0), &[PromptKind::Attributes]),
            (generate.cross_subject_ratio + generate.cross_discipline_ratio > 0.0, &[PromptKind::CrossQuestion]),
            (generate.critique_and_rewrite, &[PromptKind::Critique, PromptKind::Rewrite]),
            (generate.follow_up_turns > 0, &[PromptKind::FollowUp]),
            (!config.judge.model.is_empty(), &[PromptKind::Judgement]),
        ] {
            kinds.extend(more.iter().filter(|_| is_needed));
        }
        Self::of(&generate.prompts, &kinds)
    }

    /// Reads some templates and tries each; an empty `path` takes the built-in ones.
    ///
    /// **Errors**: those of [`Prompts::load`].
    pub fn of(path: &Path, kinds: &[PromptKind]) -> Result<Self> {
        let built_in = path.as_os_str().is_empty();
        let folder = if built_in { "built-in prompts".to_owned() } else { path.display().to_string() };
        let mut sources = BTreeMap::new();
        for kind in kinds {
            let is_own = !built_in && (REQUIRED.contains(&kind.file()) || path.join(kind.file()).exists());
            let source = if is_own {
                read_template(path, kind.file())?
            } else {
                let (_, source) =
                    BUILT_IN.iter().find(|(name, _)| *name == kind.file()).expect("every kind has a built-in template");
                (*source).to_owned()
            };
            sources.insert(kind.file().to_owned(), source);
        }
        if !built_in && path.join(SYSTEM).exists() {
            sources.insert(SYSTEM.to_owned(), read_template(path, SYSTEM)?);
        }
        let prompts = Self { environment: environment(&sources, &folder)?, sources, folder };
        for &kind in kinds {
            prompts.messages(kind, &kind.example())?;
        }
        Ok(prompts)
    }

    /// The conversation of a request: the system turn, if there is one, and the rendered template as the user's turn.
    pub fn messages(&self, kind: PromptKind, variables: &Value) -> Result<Vec<Message>> {
        let mut messages = Vec::with_capacity(2);
        if self.sources.contains_key(SYSTEM) {
            messages.push(Message::system(self.render(SYSTEM, &json!({}))?));
        }
        messages.push(Message::user(self.render(kind.file(), variables)?));
        Ok(messages)
    }

    /// [`Prompts::messages`] with a second template behind the first.
    pub fn messages_with(
        &self,
        (kind, variables): (PromptKind, &Value),
        (more, more_variables): (PromptKind, &Value),
    ) -> Result<Vec<Message>> {
        let mut messages = self.messages(kind, variables)?;
        let last = messages.last_mut().expect("a request has a user's turn");
        last.content += &format!("\n\n{}", self.render(more.file(), more_variables)?);
        Ok(messages)
    }

    /// A conversation that goes on: turns of question and answer, and a last question. Every question is rendered as the first
    /// one is.
    pub fn conversation(&self, turns: &[(String, String)], question: &str) -> Result<Vec<Message>> {
        let mut messages = Vec::new();
        for (asked, answer) in turns {
            let of_turn = self.messages(PromptKind::Answer, &json!({"question": asked}))?;
            let is_first = messages.is_empty();
            messages.extend(of_turn.into_iter().filter(|message| is_first || message.role != "system"));
            messages.push(Message::assistant(answer));
        }
        messages.push(Message::user(self.render(PromptKind::Answer.file(), &json!({"question": question}))?));
        Ok(messages)
    }

    /// The second turn of a two-step request: what was asked, what came back, and the request for its JSON.
    pub fn second_turn(
        &self,
        (first, first_variables): (PromptKind, &Value),
        reply: &str,
        (second, second_variables): (PromptKind, &Value),
    ) -> Result<Vec<Message>> {
        let mut messages = self.messages(first, first_variables)?;
        messages.push(Message::assistant(reply));
        messages.push(Message::user(self.render(second.file(), second_variables)?));
        Ok(messages)
    }

    fn render(&self, file: &str, variables: &Value) -> Result<String> {
        let template = self.environment.get_template(file).expect("every source became a template");
        let text = template.render(variables).map_err(|error| template_error(&self.folder, file, &error))?;
        Ok(text.trim_end().to_owned())
    }

    /// Writes `prompts.json`, or checks that the one there is this one.
    ///
    /// **Errors**: usage, when the run directory was begun with other prompts.
    pub fn save(&self, path: &Path) -> Result<()> {
        if !path.exists() {
            return records::write_json(path, &self.sources);
        }
        let begun_with: BTreeMap<String, String> = records::read_json(path)?;
        for (name, source) in &self.sources {
            if begun_with.get(name) != Some(source) {
                return Err(usage(format!(
                    "the prompt `{name}` of {} differs from the one that this run was begun with (`{}`); \
                     take another --run-dir, or undo the change",
                    self.folder,
                    path.display()
                )));
            }
        }
        Ok(())
    }
}

fn read_template(folder: &Path, name: &str) -> Result<String> {
    let path = folder.join(name);
    std::fs::read_to_string(&path).map_err(|error| {
        usage(format!(
            "cannot read the prompt `{}`: {error}; leave `generate.prompts` empty for the built-in ones",
            path.display()
        ))
    })
}

fn environment(sources: &BTreeMap<String, String>, folder: &str) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    for (name, source) in sources {
        environment
            .add_template_owned(name.clone(), source.clone())
            .map_err(|error| template_error(folder, name, &error))?;
    }
    Ok(environment)
}

fn template_error(folder: &str, file: &str, error: &minijinja::Error) -> anyhow::Error {
    let line = error.line().map_or(String::new(), |line| format!(" line {line}"));
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    let variables = PromptKind::ALL
        .into_iter()
        .find(|kind| kind.file() == file)
        .and_then(|kind| kind.example().as_object().map(|object| object.keys().cloned().collect::<Vec<_>>().join(", ")))
        .unwrap_or_else(|| "none".into());
    usage(format!("prompt `{folder}/{file}`{line}: {what} (its variables are: {variables})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    fn folder_with(changed: &str, source: &str) -> Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        for (name, source) in BUILT_IN {
            std::fs::write(folder.path().join(name), source)?;
        }
        std::fs::write(folder.path().join(changed), source)?;
        Ok(folder)
    }

    fn load(folder: &tempfile::TempDir) -> Result<Prompts> {
        let mut config = Config::default();
        config.generate.prompts = folder.path().to_owned();
        Prompts::load(&config)
    }

    #[test]
    fn the_built_in_prompts_render_with_their_variables_and_leave_none_out() -> Result<()> {
        let prompts = Prompts::load(&Config::default())?;
        let question = prompts.messages(
            PromptKind::Question,
            &json!({
                "discipline": "DISC", "subject": "SUBJ", "level": "LEV",
                "syllabus": {"introduction": "INTRO", "class_sessions": [
                    {"title": "T1", "description": "D1", "key_concepts": ["K1", "K2"]},
                    {"title": "T2", "description": "D2", "key_concepts": ["K3"]},
                ]},
                "class_sessions": [{"title": "T2", "description": "D2", "key_concepts": ["K3"]}],
                "key_concepts": ["K3"],
            }),
        )?;
        for part in ["DISC", "SUBJ", "LEV", "INTRO", "T1", "D1", "K1", "K2", "T2", "K3"] {
            assert!(question[0].content.contains(part), "{part}: {}", question[0].content);
        }
        // The syllabus comes first, so that all questions of one share a prefix.
        assert!(question[0].content.find("T1") < question[0].content.rfind("T2"));
        let answer = prompts.messages(PromptKind::Answer, &json!({"question": "Why?"}))?;
        assert_eq!(answer, [Message::user("Why?")]);
        Ok(())
    }

    /// The built-in teacher has seen its prompts as the script that trained it renders them.
    #[test]
    fn the_primer_prompts_render_as_the_primer_teacher_was_trained() -> Result<()> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut config = Config::default();
        config.generate.prompts = root.join("configs/prompts/primer");
        config.generate.two_step = false;
        let prompts = Prompts::load(&config)?;
        let rows: Vec<Value> = records::read_json(&root.join("tests/fixtures/primer_prompts.json"))?;
        assert!(!rows.is_empty());
        for row in rows {
            let kind = match row["template"].as_str() {
                Some("subjects") => PromptKind::Subjects,
                Some("syllabus") => PromptKind::Syllabus,
                Some("question") => PromptKind::Question,
                Some("answer") => PromptKind::Answer,
                other => anyhow::bail!("unknown template {other:?}"),
            };
            let messages = prompts.messages(kind, &row["variables"])?;
            assert_eq!(messages, [Message::user(row["rendered"].as_str().expect("a string"))]);
        }
        Ok(())
    }

    #[test]
    fn an_unknown_variable_is_a_usage_error_with_file_and_line_before_anything_runs() -> Result<()> {
        for (source, line) in [("A\n{{ disciplin }}\n", "line 2"), ("A\n\n{% for x in y %}\n", "line 3")] {
            let error = load(&folder_with("subjects.jinja", source)?).err().expect("a faulty template");
            let message = format!("{error:#}");
            assert_eq!(exit_code(&error), 2);
            assert!(message.contains("subjects.jinja` ") && message.contains(line), "{message}");
        }
        let folder = folder_with("answer.jinja", "{{ question.text }}")?;
        assert!(load(&folder).is_err(), "an attribute that does not exist");
        std::fs::remove_file(folder.path().join("answer.jinja"))?;
        let error = load(&folder).err().expect("a missing file");
        assert_eq!(exit_code(&error), 2);
        Ok(())
    }

    #[test]
    fn a_system_prompt_stands_before_every_request() -> Result<()> {
        let prompts = load(&folder_with("system.jinja", "Be exact.\n")?)?;
        let messages = prompts.messages(PromptKind::Answer, &json!({"question": "Why?"}))?;
        assert_eq!(messages, [Message::system("Be exact."), Message::user("Why?")]);
        let variables = PromptKind::Subjects.example();
        let turns =
            prompts.second_turn((PromptKind::Subjects, &variables), "1. X", (PromptKind::SubjectsJson, &variables))?;
        let roles: Vec<_> = turns.iter().map(|turn| turn.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        Ok(())
    }

    #[test]
    fn a_run_begun_with_other_prompts_is_refused() -> Result<()> {
        let folder = folder_with("answer.jinja", "{{ question }}")?;
        let path = folder.path().join("prompts.json");
        load(&folder)?.save(&path)?;
        load(&folder)?.save(&path)?;
        std::fs::write(folder.path().join("answer.jinja"), "Answer: {{ question }}")?;
        let error = load(&folder)?.save(&path).expect_err("another prompt");
        assert!(exit_code(&error) == 2 && format!("{error:#}").contains("answer.jinja"));
        Ok(())
    }
}
