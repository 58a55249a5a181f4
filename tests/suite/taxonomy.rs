//! `glan taxonomy`: voted on, extended and looked at from outside.

use std::fs;

use serde_json::Value;

use crate::support::glan;

const SMALL: &str = r#"
[[fields]]
name = "Science"
[[fields.subfields]]
name = "Formal"
disciplines = ["Mathematics", "Logic", "Astrology"]
[[fields.subfields]]
name = "Natural"
disciplines = ["Physics"]
"#;

#[test]
fn a_majority_removes_a_discipline_and_the_agreement_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("tax.toml"), SMALL).unwrap();
    let run = |arguments: &[&str]| {
        glan(folder.path(), &[&["taxonomy", "review", "--taxonomy", "tax.toml"], arguments].concat())
    };
    run(&["--ballot", "ballot"]).expect_code(0);
    let kept = fs::read_to_string(at("ballot")).unwrap().replace("\n?", "\nkeep");
    for (voter, removed) in [("a", "Astrology"), ("b", "Astrology"), ("c", "nothing")] {
        let vote = |line: &str| if line.ends_with(removed) { line.replace("keep", "remove") } else { line.to_owned() };
        fs::write(at(voter), kept.lines().map(|line| vote(line) + "\n").collect::<String>()).unwrap();
    }
    let votes = ["--votes", "a", "--votes", "b", "--votes", "c"];
    let said = run(&[&votes[..], &["--output", "out.toml", "--json"]].concat()).expect_code(0);
    let said: Value = serde_json::from_str(&said.stdout).unwrap();
    // Fleiss (1971): six of seven nodes are unanimous, one is agreed on by one pair of three.
    let (agreement, by_chance) = ((6.0 + 1.0 / 3.0) / 7.0, (19.0f64 / 21.0).powi(2) + (2.0f64 / 21.0).powi(2));
    let kappa = said["review"]["fleiss_kappa"].as_f64().unwrap();
    assert!((kappa - (agreement - by_chance) / (1.0 - by_chance)).abs() < 1e-12, "{kappa}");
    let report = glan(folder.path(), &["taxonomy", "report", "--taxonomy", "out.toml", "--json"]).expect_code(0);
    serde_json::from_str::<Value>(&report.stdout).unwrap();
    let out = fs::read_to_string(at("out.toml")).unwrap();
    assert!(out.contains("\"Logic\"") && !out.contains("\"Astrology\""), "{out}");
    let nobody = run(&["--votes", "ballot", "--output", "none.toml"]);
    assert_ne!(nobody.code, 0, "an empty ballot decides nothing");
    assert!(!at("none.toml").exists());
}

#[test]
fn a_branch_of_the_user_s_own_is_added() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tax.toml"), SMALL).unwrap();
    let branch =
        "[[fields]]\nname = \"Company\"\n[[fields.subfields]]\nname = \"Products\"\ndisciplines = [\"Pumps\"]\n";
    fs::write(folder.path().join("more.toml"), branch).unwrap();
    let extend = ["taxonomy", "extend", "--taxonomy", "tax.toml", "--with", "more.toml", "--output", "sum.toml"];
    glan(folder.path(), &extend).expect_code(0);
    let sum = fs::read_to_string(folder.path().join("sum.toml")).unwrap();
    assert!(sum.contains("\"Pumps\"") && sum.contains("\"Physics\""), "{sum}");
    fs::write(folder.path().join("more.toml"), "[[fields]]\nname = 7\n").unwrap();
    let refused = glan(folder.path(), &extend);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("more.toml"), "{}", refused.stderr);
}
