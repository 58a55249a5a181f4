//! Ranges, checked once. Code behind this may rely on them.

use anyhow::{Result, bail};

use super::{
    Config, CurateConfig, EvaluateConfig, GenerateConfig, ImproveConfig, SamplingConfig, Threshold, TrainConfig,
    TrainInit, TrainMethod,
};

impl Config {
    /// Checks every range.
    ///
    /// **Errors**: one message with every wrong key, its value and its bounds.
    pub fn validate(&self) -> Result<()> {
        let mut ranges = Ranges::default();
        // TOML's integers are signed; a larger seed could not be saved in `run.toml`.
        ranges.check("seed", self.seed, self.seed <= i64::MAX as u64, "at most 2^63 - 1");
        ranges.at_least("engine.max_num_seqs", self.engine.max_num_seqs, 1);
        ranges.at_least("engine.max_num_batched_tokens", self.engine.max_num_batched_tokens, 1);
        ranges.at_least("engine.block_size", self.engine.block_size, 1);
        check_generate(&self.generate, &mut ranges);
        for (table, model) in [("teacher", &self.teacher), ("answerer", &self.answerer), ("judge", &self.judge)] {
            let endpoint = model.endpoint.as_str();
            let is_address = ["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme));
            let expected = "an address that begins with http:// or https://, or empty";
            ranges.check(&format!("{table}.endpoint"), endpoint, endpoint.is_empty() || is_address, expected);
        }
        let endpoint = self.student.endpoint.as_str();
        ranges.check("student.endpoint", endpoint, endpoint.is_empty(), "empty: a student is trained on this machine");
        check_curate(&self.curate, &mut ranges);
        check_train(&self.train, &mut ranges);
        check_evaluate(&self.evaluate, &mut ranges);
        check_improve(&self.improve, &mut ranges);
        if !ranges.complaints.is_empty() {
            bail!("{}", ranges.complaints.join("; "));
        }
        Ok(())
    }
}

fn check_generate(generate: &GenerateConfig, ranges: &mut Ranges) {
    ranges.at_least("generate.num_questions", generate.num_questions, 1);
    ranges.at_least("generate.samples_per_discipline", generate.samples_per_discipline, 1);
    ranges.at_least("generate.syllabi_per_subject", generate.syllabi_per_subject, 1);
    ranges.at_least("generate.subjects_per_sample", generate.subjects_per_sample, 1);
    ranges.at_least("generate.max_attempts", generate.max_attempts, 1);
    ranges.min_max(
        ("generate.min_class_sessions", generate.min_class_sessions),
        ("generate.max_class_sessions", generate.max_class_sessions),
    );
    ranges.min_max(
        ("generate.min_key_concepts", generate.min_key_concepts),
        ("generate.max_key_concepts", generate.max_key_concepts),
    );
    ranges.fraction("generate.two_session_ratio", generate.two_session_ratio);
    ranges.fraction("generate.min_yield", generate.min_yield);
    ranges.fraction("generate.cross_subject_ratio", generate.cross_subject_ratio);
    ranges.fraction("generate.cross_discipline_ratio", generate.cross_discipline_ratio);
    ranges.check(
        "generate.cross_discipline_ratio",
        generate.cross_discipline_ratio,
        generate.cross_subject_ratio + generate.cross_discipline_ratio <= 1.0,
        "at most 1 together with `generate.cross_subject_ratio`",
    );
    ranges.within("generate.answers_per_question", generate.answers_per_question as u64, 1, 64);
    ranges.within("generate.follow_up_turns", generate.follow_up_turns as u64, 0, 3);
    ranges.check(
        "generate.answers_per_question",
        generate.answers_per_question,
        generate.answers_per_question == 1 || generate.answer.temperature > 0.0,
        "1 where `generate.answer.temperature` is 0: greedy answers are all the same",
    );
    let vary = &generate.vary;
    for (key, ratio) in [
        ("task_type", vary.task_type_ratio),
        ("difficulty", vary.difficulty_ratio),
        ("persona", vary.persona_ratio),
        ("region", vary.region_ratio),
        ("name", vary.name_ratio),
    ] {
        ranges.fraction(&format!("generate.vary.{key}_ratio"), ratio);
    }
    let build = &generate.build_taxonomy;
    ranges.at_least("generate.build_taxonomy.samples", build.samples, 1);
    ranges.at_least("generate.build_taxonomy.names_per_sample", build.names_per_sample, 1);
    ranges.min_max(
        ("generate.build_taxonomy.min_samples", build.min_samples),
        ("generate.build_taxonomy.samples", build.samples),
    );
    for (name, sampling) in [
        ("subjects", &generate.subjects),
        ("syllabus", &generate.syllabus),
        ("question", &generate.question),
        ("answer", &generate.answer),
        ("critique", &generate.critique),
        ("judgement", &generate.judgement),
    ] {
        check_sampling(&format!("generate.{name}"), sampling, ranges);
    }
}

fn check_sampling(table: &str, sampling: &SamplingConfig, ranges: &mut Ranges) {
    let key = |key: &str| format!("{table}.{key}");
    ranges.not_negative(&key("temperature"), sampling.temperature.into());
    // Not 0: the smallest set of tokens with a probability of 0 is empty.
    ranges.check(
        &key("top_p"),
        sampling.top_p,
        sampling.top_p > 0.0 && sampling.top_p <= 1.0,
        "above 0 and at most 1 (1 is off)",
    );
    ranges.fraction(&key("min_p"), sampling.min_p.into());
    ranges.above_zero(&key("repetition_penalty"), sampling.repetition_penalty.into());
    ranges.at_least(&key("max_new_tokens"), sampling.max_new_tokens, 1);
}

fn check_curate(curate: &CurateConfig, ranges: &mut Ranges) {
    ranges.at_most(
        ("curate.min_question_chars", curate.min_question_chars),
        ("curate.max_question_chars", curate.max_question_chars),
    );
    ranges.at_most(
        ("curate.min_answer_chars", curate.min_answer_chars),
        ("curate.max_answer_chars", curate.max_answer_chars),
    );
    let threshold = curate.near_duplicate_threshold;
    ranges.check(
        "curate.near_duplicate_threshold",
        threshold,
        threshold > 0.0 && threshold <= 1.0,
        "above 0 and at most 1 (1 is off)",
    );
    ranges.at_least("curate.decontaminate_ngram", curate.decontaminate_ngram, 1);
    if let Err(error) = regex::Regex::new(&curate.answer_pattern) {
        ranges.complaints.push(format!("`curate.answer_pattern` is not a regular expression: {error}"));
    }
    for threshold in &curate.thresholds {
        if let Err(what) = Threshold::parse(threshold) {
            ranges.complaints.push(format!("`curate.thresholds`: {what}"));
        }
    }
    ranges.fraction("curate.counterfactual_fraction", curate.counterfactual_fraction);
    ranges.fraction("curate.valid_fraction", curate.valid_fraction);
    ranges.fraction("curate.test_fraction", curate.test_fraction);
    if curate.valid_fraction + curate.test_fraction >= 1.0 {
        ranges.complaints.push(format!(
            "`curate.valid_fraction` is {} and `curate.test_fraction` is {}: nothing is left to train on",
            curate.valid_fraction, curate.test_fraction
        ));
    }
}

fn check_train(train: &TrainConfig, ranges: &mut Ranges) {
    ranges.above_zero("train.learning_rate", train.learning_rate);
    ranges.fraction("train.min_lr_ratio", train.min_lr_ratio);
    ranges.fraction("train.warmup_ratio", train.warmup_ratio);
    ranges.above_zero("train.num_train_epochs", train.num_train_epochs);
    ranges.at_least("train.lora_r", train.lora_r, 1);
    ranges.above_zero("train.lora_alpha", train.lora_alpha);
    let dropout = train.lora_dropout;
    ranges.check("train.lora_dropout", dropout, (0.0..1.0).contains(&dropout), "at least 0 and below 1");
    ranges.not_negative("train.neftune_noise_alpha", train.neftune_noise_alpha);
    let quantised = train.method == TrainMethod::QLora;
    ranges.check(
        "train.init",
        format!("{:?}", train.init).to_lowercase(),
        !quantised || train.init == TrainInit::Checkpoint,
        "\"checkpoint\" with `train.method = \"qlora\"`",
    );
    let spike = train.loss_spike_factor;
    ranges.check(
        "train.loss_spike_factor",
        spike,
        spike == 0.0 || spike > 1.0 && spike.is_finite(),
        "0 (off) or above 1",
    );
    let patience = train.early_stopping_patience;
    ranges.check(
        "train.early_stopping_patience",
        patience,
        patience == 0 || train.eval_steps > 0,
        "0 (off), or `train.eval_steps` above 0",
    );
    let best = train.load_best_model_at_end;
    ranges.check(
        "train.load_best_model_at_end",
        best,
        !best || train.eval_steps > 0,
        "false, or `train.eval_steps` above 0",
    );
    ranges.at_least("train.train_batch_size", train.train_batch_size, 1);
    ranges.at_least("train.max_tokens_per_micro_batch", train.max_tokens_per_micro_batch, 1);
    ranges.at_least("train.activation_checkpointing_n", train.activation_checkpointing_n, 1);
    ranges.not_negative("train.weight_decay", train.weight_decay);
    for (key, beta) in [("train.adam_beta1", train.adam_beta1), ("train.adam_beta2", train.adam_beta2)] {
        // At 1 the bias correction divides by zero.
        ranges.check(key, beta, (0.0..1.0).contains(&beta), "at least 0 and below 1");
    }
    ranges.above_zero("train.adam_epsilon", train.adam_epsilon);
    ranges.not_negative("train.max_grad_norm", train.max_grad_norm);
    ranges.at_least("train.logging_steps", train.logging_steps, 1);
    ranges.at_least("train.sample_max_new_tokens", train.sample_max_new_tokens, 1);
    let (samples, prompts) = (train.num_samples, train.sample_prompts.len());
    ranges.check(
        "train.num_samples",
        samples,
        samples == 0 || samples >= prompts,
        "0 (off), or room for every one of `train.sample_prompts`",
    );
    ranges.at_least("train.save_total_limit", train.save_total_limit, 1);
    ranges.at_least("train.max_shard_bytes", train.max_shard_bytes, 1);
}

fn check_evaluate(evaluate: &EvaluateConfig, ranges: &mut Ranges) {
    if evaluate.tasks.iter().all(String::is_empty) {
        ranges.complaints.push("`evaluate.tasks` names no task".to_owned());
    }
    let shots = evaluate.num_fewshot;
    ranges.check("evaluate.num_fewshot", shots, shots >= -1, "at least 0, or -1 for the task's own number");
    ranges.at_least("evaluate.bootstrap_iters", evaluate.bootstrap_iters, 1);
    let code = &evaluate.code;
    if code.python.is_empty() {
        ranges.complaints.push("`evaluate.code.python` names no interpreter".to_owned());
    }
    // Bounds within which the kernel's own arithmetic on limits is safe; Python does not start in less than 64 MiB.
    ranges.within("evaluate.code.cpu_seconds", code.cpu_seconds, 1, 86_400);
    ranges.within("evaluate.code.wall_seconds", code.wall_seconds, code.cpu_seconds, 86_400);
    ranges.within("evaluate.code.memory_mib", code.memory_mib, 64, 1 << 20);
    let judge = &evaluate.judge;
    ranges.not_negative("evaluate.judge.temperature", judge.temperature);
    ranges.at_least("evaluate.judge.max_tokens", judge.max_tokens, 1);
    ranges.at_least("evaluate.judge.max_answer_tokens", judge.max_answer_tokens, 1);
}

fn check_improve(improve: &ImproveConfig, ranges: &mut Ranges) {
    let fraction = improve.selection_fraction;
    // Something must be left to choose by, and something to measure by.
    ranges.check("improve.selection_fraction", fraction, fraction > 0.0 && fraction < 1.0, "above 0 and below 1");
    ranges.fraction("improve.margin", improve.margin);
    ranges.at_least("improve.min_items", improve.min_items, 1);
    ranges.fraction("improve.max_false_discovery", improve.max_false_discovery);
    ranges.above_zero("improve.growth", improve.growth);
}

/// Collects what is out of range. NaN is outside of every range.
#[derive(Default)]
struct Ranges {
    complaints: Vec<String>,
}

impl Ranges {
    fn check(&mut self, key: &str, value: impl std::fmt::Display, holds: bool, bounds: &str) {
        if !holds {
            self.complaints.push(format!("`{key}` is {value}, but must be {bounds}"));
        }
    }

    fn at_least(&mut self, key: &str, value: usize, least: usize) {
        self.check(key, value, value >= least, &format!("at least {least}"));
    }

    fn within(&mut self, key: &str, value: u64, least: u64, most: u64) {
        self.check(key, value, (least..=most).contains(&value), &format!("between {least} and {most}"));
    }

    fn fraction(&mut self, key: &str, value: f64) {
        self.check(key, value, (0.0..=1.0).contains(&value), "between 0 and 1");
    }

    fn above_zero(&mut self, key: &str, value: f64) {
        self.check(key, value, value > 0.0 && value.is_finite(), "above 0");
    }

    fn not_negative(&mut self, key: &str, value: f64) {
        self.check(key, value, value >= 0.0 && value.is_finite(), "at least 0");
    }

    fn at_most(&mut self, (min_key, min): (&str, usize), (max_key, max): (&str, usize)) {
        self.check(min_key, min, min <= max, &format!("at most `{max_key}`, which is {max}"));
    }

    fn min_max(&mut self, min: (&str, usize), max: (&str, usize)) {
        self.at_least(min.0, min.1, 1);
        self.at_most(min, max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    #[test]
    fn the_default_configuration_is_within_its_ranges() -> Result<()> {
        Config::default().validate()
    }

    #[test]
    fn each_value_out_of_range_is_refused_by_name() {
        for (key, values) in [
            ("seed", vec!["-1"]),
            ("engine.max_num_seqs", vec!["0"]),
            ("teacher.endpoint", vec!["ftp://x", "127.0.0.1:8000"]),
            ("student.endpoint", vec!["http://x/v1"]),
            ("engine.max_num_batched_tokens", vec!["0"]),
            ("engine.block_size", vec!["0"]),
            ("generate.num_questions", vec!["0"]),
            ("generate.samples_per_discipline", vec!["0"]),
            ("generate.cross_subject_ratio", vec!["-0.1", "1.1", "nan"]),
            ("generate.cross_discipline_ratio", vec!["-0.1", "1.1", "nan"]),
            ("generate.answers_per_question", vec!["0", "65"]),
            ("generate.follow_up_turns", vec!["4"]),
            ("generate.vary.task_type_ratio", vec!["-0.1", "1.1", "nan"]),
            ("generate.vary.difficulty_ratio", vec!["-0.1", "1.1"]),
            ("generate.vary.persona_ratio", vec!["-0.1", "1.1"]),
            ("generate.vary.region_ratio", vec!["-0.1", "1.1"]),
            ("generate.vary.name_ratio", vec!["-0.1", "1.1"]),
            ("generate.judgement.top_p", vec!["0", "1.1"]),
            ("generate.critique.max_new_tokens", vec!["0"]),
            ("generate.build_taxonomy.samples", vec!["0"]),
            ("generate.build_taxonomy.names_per_sample", vec!["0"]),
            ("generate.build_taxonomy.min_samples", vec!["0", "6"]),
            ("generate.subjects_per_sample", vec!["0"]),
            ("generate.min_class_sessions", vec!["0", "31"]),
            ("generate.min_key_concepts", vec!["0", "8"]),
            ("generate.two_session_ratio", vec!["-0.1", "1.1", "nan"]),
            ("generate.min_yield", vec!["-0.1", "1.1", "nan"]),
            ("generate.subjects.temperature", vec!["-0.1", "nan", "inf"]),
            ("generate.syllabus.top_p", vec!["0", "1.01", "nan"]),
            ("generate.question.min_p", vec!["-0.1", "1.1"]),
            ("generate.answer.repetition_penalty", vec!["0", "-1", "nan"]),
            ("generate.answer.max_new_tokens", vec!["0"]),
            ("curate.min_question_chars", vec!["8001"]),
            ("curate.min_answer_chars", vec!["32001"]),
            ("curate.near_duplicate_threshold", vec!["0", "1.5", "nan"]),
            ("curate.decontaminate_ngram", vec!["0"]),
            ("curate.answer_pattern", vec!["(", "[a"]),
            ("curate.thresholds", vec!["[\"nonsense < 3\"]", "[\"ifd 3\"]", "[\"ifd < nan\"]"]),
            ("curate.counterfactual_fraction", vec!["-0.1", "1.5", "nan"]),
            ("curate.valid_fraction", vec!["-0.1", "0.98", "2", "nan"]),
            ("curate.test_fraction", vec!["-0.1", "0.98", "2", "nan"]),
            ("train.learning_rate", vec!["0", "-1e-3", "nan", "inf"]),
            ("train.min_lr_ratio", vec!["-0.1", "1.1"]),
            ("train.warmup_ratio", vec!["-0.1", "1.1"]),
            ("train.num_train_epochs", vec!["0", "nan"]),
            ("train.lora_r", vec!["0"]),
            ("train.lora_alpha", vec!["0", "nan"]),
            ("train.lora_dropout", vec!["-0.1", "1", "nan"]),
            ("train.neftune_noise_alpha", vec!["-1", "inf"]),
            ("train.loss_spike_factor", vec!["-1", "1", "nan"]),
            ("train.early_stopping_patience", vec!["2"]),
            ("train.load_best_model_at_end", vec!["true"]),
            ("train.train_batch_size", vec!["0"]),
            ("train.max_tokens_per_micro_batch", vec!["0"]),
            ("train.activation_checkpointing_n", vec!["0"]),
            ("train.weight_decay", vec!["-0.1"]),
            ("train.adam_beta1", vec!["-0.1", "1"]),
            ("train.adam_beta2", vec!["-0.1", "1"]),
            ("train.adam_epsilon", vec!["0"]),
            ("train.max_grad_norm", vec!["-1"]),
            ("train.logging_steps", vec!["0"]),
            ("train.save_total_limit", vec!["0"]),
            ("evaluate.tasks", vec!["[]"]),
            ("evaluate.num_fewshot", vec!["-2"]),
            ("evaluate.bootstrap_iters", vec!["0"]),
            ("improve.selection_fraction", vec!["0", "1", "nan"]),
            ("improve.margin", vec!["-0.1", "1.1"]),
            ("improve.min_items", vec!["0"]),
            ("improve.max_false_discovery", vec!["-0.1", "1.1", "nan"]),
            ("improve.growth", vec!["0", "-1", "nan", "inf"]),
            ("evaluate.code.python", vec!["''"]),
            ("evaluate.code.cpu_seconds", vec!["0", "86401"]),
            ("evaluate.code.wall_seconds", vec!["2", "86401"]),
            ("evaluate.code.memory_mib", vec!["63", "1048577"]),
            ("evaluate.code.allow_missing_layers", vec!["['chroot']"]),
            ("evaluate.judge.temperature", vec!["-0.1", "nan", "inf"]),
            ("evaluate.judge.max_tokens", vec!["0"]),
            ("evaluate.judge.max_answer_tokens", vec!["0"]),
        ] {
            for value in values {
                let error = load(None, &[format!("{key}={value}")])
                    .map(|_| ())
                    .expect_err(&format!("{key} = {value} is out of range"));
                assert!(format!("{error:#}").contains(key), "{key} = {value}: {error:#}");
                assert_eq!(crate::error::exit_code(&error), 2, "{key} = {value}: {error:#}");
            }
        }
    }

    #[test]
    fn every_wrong_key_is_named_at_once() {
        let error = load(None, &["train.learning_rate=0".into(), "generate.num_questions=0".into()])
            .expect_err("both are out of range");
        let message = format!("{error:#}");
        assert!(message.contains("`train.learning_rate` is 0, but must be above 0"), "{message}");
        assert!(message.contains("`generate.num_questions` is 0, but must be at least 1"), "{message}");
    }
}
