//! Task types, difficulty levels, personas, regions and names, sampled per question for variety (`generate.vary`; not in the
//! paper). Off by default.
//!
//! Each attribute has a random stream of its own that depends on the question alone, so that switching one on changes no
//! other, and no question depends on its neighbours. What is drawn is part of the question's id, prompt and record.

use std::path::Path;

use anyhow::Result;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{config::VaryConfig, error::usage, seed::stream};

/// The lists that the program brings along.
const BUILT_IN: &str = include_str!("../../configs/lexicons/variety.toml");

/// What a question was varied by; empty where it was not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Attributes {
    /// Name of the task type.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub task_type: String,
    /// Name of the difficulty level.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub difficulty: String,
    /// For whom it is written.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub persona: String,
    /// The place.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// The person.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

impl Attributes {
    /// Whether nothing was drawn.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The lists, and how often each is drawn from.
pub struct Variety {
    config: VaryConfig,
    lists: Lists,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lists {
    task_types: Vec<Described>,
    difficulty: Vec<Described>,
    personas: Vec<String>,
    regions: Vec<Region>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    /// For the record.
    name: String,
    /// For the prompt.
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Region {
    name: String,
    places: Vec<String>,
    female: Vec<String>,
    male: Vec<String>,
}

impl Variety {
    /// Reads the lists, where anything is switched on.
    ///
    /// **Errors**: usage: the file is missing, not such lists, or one of them is empty.
    pub fn load(config: &VaryConfig) -> Result<Self> {
        let path = &config.lists;
        let (shown, text) = if path == Path::new("") {
            ("the built-in lists".to_owned(), BUILT_IN.to_owned())
        } else {
            let text = std::fs::read_to_string(path).map_err(|error| {
                usage(format!("cannot read the lists `{}` (`generate.vary.lists`): {error}", path.display()))
            })?;
            (format!("`{}`", path.display()), text)
        };
        let lists: Lists = toml::from_str(&text)
            .map_err(|error| usage(format!("{shown}: not lists as in configs/lexicons/variety.toml: {error}")))?;
        let is_empty = |region: &Region| region.places.is_empty() || region.female.is_empty() || region.male.is_empty();
        if lists.task_types.is_empty()
            || lists.difficulty.is_empty()
            || lists.personas.is_empty()
            || lists.regions.is_empty()
        {
            return Err(usage(format!("{shown}: a list is empty; give each at least one entry")));
        }
        if let Some(region) = lists.regions.iter().find(|region| is_empty(region)) {
            return Err(usage(format!("{shown}: the region `{}` lacks places or names", region.name)));
        }
        Ok(Self { config: config.clone(), lists })
    }

    /// Draws the attributes of a question.
    pub fn draw(&self, run_seed: u64, id: &str) -> Attributes {
        let drawn = |what: &str, ratio: f64| {
            let mut rng = stream(run_seed, &format!("vary {what}"), id);
            (rng.random::<f64>() < ratio).then_some(rng)
        };
        let of = |list: &[Described], rng: &mut ChaCha8Rng| pick(list, rng).name.clone();
        let (config, lists) = (&self.config, &self.lists);
        let mut attributes = Attributes::default();
        if let Some(mut rng) = drawn("task type", config.task_type_ratio) {
            attributes.task_type = of(&lists.task_types, &mut rng);
        }
        if let Some(mut rng) = drawn("difficulty", config.difficulty_ratio) {
            attributes.difficulty = of(&lists.difficulty, &mut rng);
        }
        if let Some(mut rng) = drawn("persona", config.persona_ratio) {
            attributes.persona.clone_from(pick(&lists.personas, &mut rng));
        }
        let mut home = None;
        if let Some(mut rng) = drawn("region", config.region_ratio) {
            let region = pick(&lists.regions, &mut rng);
            attributes.region.clone_from(pick(&region.places, &mut rng));
            home = Some(region);
        }
        if let Some(mut rng) = drawn("name", config.name_ratio) {
            // A person of the question's region, where it has one.
            let anywhere = pick(&lists.regions, &mut rng);
            let region = home.unwrap_or(anywhere);
            let names = if rng.random::<bool>() { &region.female } else { &region.male };
            attributes.name.clone_from(pick(names, &mut rng));
        }
        attributes
    }

    /// What the template is given: descriptions for names.
    pub fn variables(&self, attributes: &Attributes) -> Value {
        let text = |list: &[Described], name: &str| {
            list.iter().find(|entry| entry.name == name).map_or_else(|| name.to_owned(), |entry| entry.text.clone())
        };
        json!({
            "task_type": text(&self.lists.task_types, &attributes.task_type),
            "difficulty": text(&self.lists.difficulty, &attributes.difficulty),
            "persona": attributes.persona, "region": attributes.region, "name": attributes.name,
        })
    }
}

fn pick<'a, T>(list: &'a [T], rng: &mut impl Rng) -> &'a T {
    &list[rng.random_range(0..list.len())]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn variety(edit: impl Fn(&mut VaryConfig)) -> Variety {
        let mut config = VaryConfig::default();
        edit(&mut config);
        Variety::load(&config).expect("the built-in lists are well-formed")
    }

    fn all_on(config: &mut VaryConfig) {
        (config.task_type_ratio, config.difficulty_ratio, config.persona_ratio) = (1.0, 1.0, 1.0);
        (config.region_ratio, config.name_ratio) = (1.0, 1.0);
    }

    #[test]
    fn nothing_is_drawn_by_default_and_each_attribute_is_independent_of_the_others() {
        assert!(variety(|_| {}).draw(0, "x").is_empty());
        let (all, some) = (variety(all_on), variety(|config| config.persona_ratio = 0.3));
        let personas = (0..1000).filter(|i| {
            let (all, some) = (all.draw(5, &i.to_string()), some.draw(5, &i.to_string()));
            assert!(some.persona.is_empty() || some.persona == all.persona);
            assert!(some.region.is_empty() && !all.region.is_empty() && !all.name.is_empty());
            !some.persona.is_empty()
        });
        // Standard deviation sqrt(1000 * 0.3 * 0.7) = 14.5.
        let personas = personas.count();
        assert!((personas as i64 - 300).abs() < 58, "{personas}");
    }

    #[test]
    fn regions_and_genders_are_balanced_whatever_the_length_of_their_lists() {
        let all = variety(all_on);
        let (mut regions, mut female): (BTreeMap<&str, f64>, f64) = (BTreeMap::new(), 0.0);
        let draws = 10_000;
        for i in 0..draws {
            let drawn = all.draw(9, &i.to_string());
            let region =
                all.lists.regions.iter().find(|region| region.places.contains(&drawn.region)).expect("a region");
            assert!(region.female.contains(&drawn.name) != region.male.contains(&drawn.name), "a name of the region");
            female += f64::from(u8::from(region.female.contains(&drawn.name)));
            *regions.entry(&region.name).or_default() += 1.0;
        }
        let expected = f64::from(draws) / all.lists.regions.len() as f64;
        let chi_square: f64 = regions.values().map(|seen| (seen - expected).powi(2) / expected).sum();
        // Nine degrees of freedom: 27.9 at p = 0.001.
        assert!(regions.len() == 10 && chi_square < 27.9, "{chi_square}: {regions:?}");
        assert!((female - 5000.0).abs() < 4.0 * 50.0, "{female}");
    }
}
