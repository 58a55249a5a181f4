//! The numbers of the paper (arXiv 2402.13064, sections 2 and 3.1) in the defaults and in `configs/paper.toml`.

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
