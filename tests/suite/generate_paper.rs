//! The numbers of the paper (arXiv 2402.13064, sections 2 and 3.1) in the defaults and in `configs/paper.toml`.

use std::fs;

use glan::config::{self, GenerateConfig};

use super::support::root;

#[test]
fn the_defaults_are_the_papers_where_it_speaks() {
    let paper = config::load(Some(&root().join("configs/paper.toml")), &[]).unwrap();
    assert_eq!(paper.generate.num_questions, 10_000_000);
    for generate in [GenerateConfig::default(), paper.generate] {
        assert_eq!(generate.samples_per_discipline, 10);
        assert_eq!((generate.min_class_sessions, generate.max_class_sessions), (10, 30));
        assert_eq!((generate.min_key_concepts + generate.max_key_concepts) / 2, 5);
        assert_eq!(generate.syllabi_per_subject, 1);
        assert!(generate.two_step);
        for creative in [&generate.subjects, &generate.syllabus, &generate.question] {
            assert_eq!((creative.temperature, creative.top_p), (1.0, 0.95));
        }
        assert_eq!((generate.answer.temperature, generate.answer.top_p), (0.7, 0.95));
        // Questions are asked by one setting and answered by another.
        assert_ne!(generate.question, generate.answer);
    }
}

#[test]
fn every_test_that_the_table_of_fidelity_names_exists() {
    let page = fs::read_to_string(root().join("docs/glan.md")).unwrap();
    let mut module = String::new();
    let mut named = 0;
    for (number, line) in page.lines().enumerate().filter(|(_, line)| line.starts_with("| ")) {
        // The last column; a name without a path is in the module named before it.
        let last = line.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        for name in last.split('`').skip(1).step_by(2) {
            let parts: Vec<&str> =
                name.split("::").filter(|part| *part != "tests" || name.starts_with("generate::tests")).collect();
            if let [_, file, _] = parts.as_slice() {
                module = if name.starts_with("suite::") {
                    format!("tests/suite/{file}.rs")
                } else {
                    format!("src/generate/{file}.rs")
                };
            }
            let code = fs::read_to_string(root().join(&module))
                .unwrap_or_else(|error| panic!("line {}: {module}: {error}", number + 1));
            let function = format!("fn {}", parts.last().unwrap().trim_end_matches('*'));
            assert!(code.contains(&function), "docs/glan.md line {}: {module} has no `{function}`", number + 1);
            named += 1;
        }
    }
    assert!(named > 25, "only {named} tests are named");
}
