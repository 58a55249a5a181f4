//! Users' own tasks, from file to score.

use super::*;
use crate::evaluate::{
    plan::{PlanOptions, PlannedTask},
    prompt::{Context, PromptStyle},
    task::Task,
    tasks,
};

const GENERATIVE: &str = r#"
task = "sums"
dataset_file = "sums.jsonl"
doc_to_text = "Q: {{ question.strip() }}\nA:"
doc_to_target = "answer"
description = "Sums of {{ kind }}.\n\n"
num_fewshot = 1
fewshot_config = { sampler = "first_n" }
generation_kwargs = { until = ["\n"], max_gen_toks = 8 }
metadata = { version = 2.0 }

[[filter_list]]
name = "number"
filter = [{ function = "regex", regex_pattern = "(-?[0-9]+)$", group_select = -1 }, { function = "take_first" }]

[[metric_list]]
metric = "exact_match"
ignore_case = true
"#;

const ROWS: &str = "{\"question\": \" 1+1?\", \"answer\": \"2\", \"kind\": \"two\"}\n\
                    {\"question\": \"2+3? \", \"answer\": \"5\", \"kind\": \"two\"}\n";

fn folder(text: &str, rows: &str) -> Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("sums.toml");
    fs::write(&path, text)?;
    fs::write(folder.path().join("sums.jsonl"), rows)?;
    Ok((folder, path))
}

fn planned(path: &Path) -> Result<PlannedTask> {
    let task = tasks::find(&path.display().to_string())?;
    let options = PlanOptions { data_dir: "".into(), limit: 0, num_fewshot: None, style: PromptStyle::plain() };
    PlannedTask::new(task, &options)
}

#[test]
fn a_file_makes_prompts_and_scores() -> Result<()> {
    let (_folder, path) = folder(GENERATIVE, ROWS)?;
    let planned = planned(&path)?;
    let expected = "Sums of two.\n\nQ: 2+3?\nA: 5\n\nQ: 1+1?\nA:";
    assert_eq!(planned.contexts(0), [Context::Text(expected.into())]);
    assert_eq!(planned.spec().version, 2.0);
    let answers = planned.task.answers("number", &["It is 2\n".to_owned()], &planned.document(0));
    assert_eq!(answers, ["2"]);
    assert_eq!(planned.task.score_answers(&answers, &planned.document(0))?[0].1.number(), Some(1.0));
    Ok(())
}

#[test]
fn choices_may_be_an_expression_and_targets_an_index_or_a_choice() -> Result<()> {
    let text = "task = \"pairs\"\ndataset_file = \"sums.jsonl\"\noutput_type = \"multiple_choice\"\n\
                doc_to_text = \"{{a}} or {{b}}?\"\ndoc_to_choice = \"{{ [a, b] }}\"\ndoc_to_target = \"right\"\n";
    let rows = "{\"a\": \"x\", \"b\": \"y\", \"right\": 1}\n{\"a\": \"x\", \"b\": \"y\", \"right\": \"x\"}\n";
    let (_folder, path) = folder(text, rows)?;
    let planned = planned(&path)?;
    let targets: Vec<_> = planned.documents.iter().map(|document| document.target).collect();
    assert_eq!(targets, [Target::Choice(1), Target::Choice(0)]);
    assert_eq!(planned.document(0).choices, ["x", "y"]);
    Ok(())
}

#[test]
fn what_is_wrong_is_named_with_its_file_and_line() -> Result<()> {
    let refused = |text: &str| -> Result<String> {
        let (_folder, path) = folder(text, ROWS)?;
        let error = read(&path).err().context("the file is wrong")?;
        assert_eq!(crate::error::exit_code(&error), 2);
        Ok(format!("{error:#}"))
    };
    assert!(refused(&GENERATIVE.replace("doc_to_text", "doc_to_txt"))?.contains("doc_to_txt"));
    assert!(refused(&GENERATIVE.replace("\"exact_match\"", "\"bleu\""))?.contains("no metric `bleu`"));
    assert!(refused(&GENERATIVE.replace("(-?[0-9]+)$", "(-?["))?.contains("no regular expression"));
    assert!(refused(&GENERATIVE.replace("{{ kind }}", "{{ kind"))?.contains("`description` is no template"));
    let (_folder, path) = folder(&GENERATIVE.replace("{{ kind }}", "{{ sort }}"), ROWS)?;
    let error = read(&path)?.load(Path::new(""), false).err().context("there is no field `sort`")?;
    assert!(format!("{error:#}").contains("line 1"), "{error:#}");
    Ok(())
}
