//! The rules of `docs/architecture.md` that text alone can check. A rule that is in the way is changed there and here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::support::{files, root, shown};

/// Longest source file, in lines. Past it, ask what second thing the file has become.
const MAX_LINES: usize = 500;

const GROUND: [&str; 15] = [
    "chat_template",
    "config",
    "device",
    "error",
    "gguf",
    "interrupt",
    "language_model",
    "model_dir",
    "records",
    "requests",
    "row_source",
    "run_dir",
    "seed",
    "telemetry",
    "tokenizer",
];
const VERBS: [&str; 5] = ["generate", "curate", "train", "evaluate", "report"];

/// Where `unsafe` may stand outside `kernels/`: the GPU's context, the memory maps of the weights (safetensors belong
/// to the model, GGUF files to tokenizers and templates too), the allocator's options.
const UNSAFE_ALLOWED: [&str; 4] = ["src/device.rs", "src/gguf/file.rs", "src/main.rs", "src/model/loader.rs"];
/// Files of `kernels/src/` that are no operation.
const NO_OPERATIONS: [&str; 3] = ["lib", "host", "simd"];
/// Where `cfg(feature = …)` may stand outside `kernels/`.
const FEATURES_ALLOWED: [&str; 1] = ["src/device.rs"];
/// Where sockets are opened: two places that ask (downloads, and a teacher whose endpoint the configuration names), one that
/// listens (its command only resolves an address).
const NETWORK_ALLOWED: [&str; 5] = [
    "src/serve/",
    "src/commands/serve.rs",
    "src/commands/fetch.rs",
    "src/commands/fetch/benchmarks.rs",
    "src/commands/remote.rs",
];
/// What opens a socket or starts a runtime.
const NETWORK_WORDS: [&str; 9] =
    ["std::net", "net::", "tokio", "use hyper", "hyper::", "hyper_util", "http_body", "hf_hub", "ureq"];

#[test]
fn modules_import_only_what_lies_below_them() {
    let modules = source_modules();
    let mut wrong = Vec::new();
    for (path, text) in rust_sources("src") {
        let module = top_module(&path);
        let allowed = allowed_imports(&module);
        for import in imports(&path, &text) {
            let known = modules.contains(&import);
            if known && import != module && allowed.as_ref().is_some_and(|allowed| !allowed.contains(&import.as_str()))
            {
                wrong.push(format!("{}: `{module}` must not import `{import}`", shown(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_has_a_place_in_the_layers() {
    for module in source_modules() {
        let placed = GROUND.contains(&module.as_str())
            || VERBS.contains(&module.as_str())
            || ["engine", "model", "cli", "commands", "main", "lib", "serve"].contains(&module.as_str());
        assert!(
            placed,
            "`{module}` is in no layer; give it one in tests/suite/architecture.rs and docs/architecture.md"
        );
    }
}

#[test]
fn unsafe_code_and_features_stay_behind_their_fences() {
    let mut wrong = Vec::new();
    for (path, text) in rust_sources("src") {
        let name = shown(&path);
        for (number, line) in code_lines(&text) {
            let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe_code"].iter().any(|it| line.contains(it));
            if is_unsafe && !UNSAFE_ALLOWED.contains(&name.as_str()) {
                wrong.push(format!("{name}:{number}: unsafe code belongs in kernels/"));
            }
            let feature = line.contains("feature =")
                && (line.contains("cfg(") || line.contains("cfg!(") || line.contains("cfg_attr("));
            if feature && !FEATURES_ALLOWED.contains(&name.as_str()) {
                wrong.push(format!("{name}:{number}: features belong in kernels/ and src/device.rs"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_fetch_and_serve_know_of_the_network() {
    let mut wrong = Vec::new();
    for (path, text) in rust_sources("src").into_iter().chain(rust_sources("kernels/src")) {
        let name = shown(&path);
        if NETWORK_ALLOWED.iter().any(|allowed| name.starts_with(allowed)) {
            continue;
        }
        for (number, line) in code_lines(production_code(&text)) {
            if NETWORK_WORDS.iter().any(|word| line.contains(word)) {
                wrong.push(format!(
                    "{name}:{number}: sockets and runtimes belong in src/serve/ and src/commands/fetch.rs"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_unwraps_or_prints_outside_tests() {
    let mut wrong = Vec::new();
    for (path, text) in rust_sources("src").into_iter().chain(rust_sources("kernels/src")) {
        for (number, line) in code_lines(production_code(&text)) {
            if line.contains(".unwrap()") {
                wrong.push(format!(
                    "{}:{number}: use `expect(\"why this cannot happen\")` or return an error",
                    shown(&path)
                ));
            }
            if ["println!(", "eprintln!(", "dbg!("].iter().any(|it| line.contains(it))
                && !path.ends_with("src/telemetry.rs")
            {
                wrong.push(format!(
                    "{}:{number}: results go through `telemetry::print_result`, the rest is logged",
                    shown(&path)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_source_file_says_what_it_is_for_and_stays_short() {
    let mut wrong = Vec::new();
    for folder in ["src", "kernels/src", "kernels/tests", "tests"] {
        for path in files(folder, &["rs"]) {
            let text = fs::read_to_string(&path).unwrap();
            if !text.starts_with("//! ") {
                wrong.push(format!("{}: must open with `//!`: what it is for and where it sits", shown(&path)));
            }
            let lines = text.lines().count();
            if lines > MAX_LINES {
                wrong.push(format!("{}: {lines} lines, at most {MAX_LINES}", shown(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_readme_tree_equals_the_disk() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (folders, sources) = readme_tree(&readme);

    let ignored = fs::read_to_string(root().join(".gitignore")).unwrap();
    let on_disk: BTreeSet<String> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && !ignored.lines().any(|line| line.trim_matches('/') == name))
        .collect();
    assert_eq!(folders, on_disk, "README's tree (left) and the repository's folders (right)");
    assert_eq!(sources, source_modules(), "README's src/ (left) and the modules on disk (right)");
}

#[test]
fn no_file_names_a_place_of_somebodys_machine() {
    // Put together here, so that this file does not find itself.
    let places =
        [["/ho", "me/"], ["/Us", "ers/"], ["/ro", "ot/"], ["/wo", "rk/"], ["C:", "\\"]].map(|parts| parts.concat());
    let extensions = ["rs", "toml", "md", "sh", "jinja", "py", "cu", "metal", "h", "lock"];
    let mut paths: Vec<PathBuf> =
        ["src", "kernels", "tests", "configs", "docs", "scripts", "benchmarks", "models", ".ci"]
            .iter()
            .flat_map(|folder| files(folder, &extensions))
            .collect();
    // `.git` is a file in a linked checkout and names the place of the main one.
    paths.extend(
        fs::read_dir(root())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file() && !path.ends_with(".git")),
    );
    assert!(paths.len() > 20, "the walk found only {paths:?}");

    let mut wrong = Vec::new();
    for path in paths {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            // Only where a path begins: not inside of a longer one or of an address.
            let begins = |at: usize| {
                !line[..at].ends_with(|before: char| before.is_alphanumeric() || "/.-_~$}".contains(before))
            };
            if places.iter().any(|place| line.match_indices(place.as_str()).any(|(at, _)| begins(at))) {
                wrong.push(format!("{}:{}: {line}", shown(&path), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_kernel_has_a_row_in_the_table_of_measurements() {
    let operations: Vec<String> = files("kernels/src", &["rs"])
        .iter()
        .filter(|path| path.parent().is_some_and(|folder| folder.ends_with("kernels/src")))
        .map(|path| stem(path))
        .filter(|stem| !NO_OPERATIONS.contains(&stem.as_str()))
        .collect();
    let table = fs::read_to_string(root().join("kernels/README.md")).unwrap_or_default();
    for operation in operations {
        let row = format!("`{operation}`");
        let found = table.lines().any(|line| line.starts_with('|') && line.contains(&row));
        assert!(found, "kernels/README.md has no table row with {row} for kernels/src/{operation}.rs");
    }
}

#[test]
fn the_integration_tests_are_one_binary() {
    let stray: Vec<_> = files("tests", &["rs"])
        .into_iter()
        .filter(|path| path.parent().is_some_and(|folder| folder.ends_with("tests")))
        .collect();
    assert!(stray.is_empty(), "move {stray:?} to tests/suite/ and name it in main.rs");
}

#[test]
fn the_checks_read_rust_as_they_claim() {
    let path = root().join("src/engine/example.rs");
    let text = "use crate::{\n    config::{A, B},\n    model::{self, x::{y, z}}, seed,\n};\nuse crate::records;\n\
                // use crate::report;\nfn f() { crate::telemetry::x(); let _ = \"a // b\"; }\nuse super::device;\n";
    let expected = ["config", "device", "model", "records", "seed", "telemetry"];
    assert_eq!(imports(&path, text).iter().map(String::as_str).collect::<Vec<_>>(), expected);

    let text = "fn f() {}\n#[cfg(test)]\nmod tests {\n    x.unwrap();\n}\n";
    assert_eq!(production_code(text), "fn f() {}\n");
    let text = "#[cfg(test)]\nmod scripted;\nfn f() {}\n";
    assert_eq!(production_code(text), text);

    let tree =
        "# X\n\n## The tree\n\n```text\nsrc/\n  a.rs b/      two\n  c.rs         one\n  (prose)\ndocs/   pages\n```\n";
    let (folders, sources) = readme_tree(tree);
    assert_eq!(folders.into_iter().collect::<Vec<_>>(), ["docs", "src"]);
    assert_eq!(sources.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
}

/// The modules that a module may import besides itself; `None` is everything.
fn allowed_imports(module: &str) -> Option<Vec<&'static str>> {
    let mut allowed = GROUND.to_vec();
    match module {
        // Thin: they tie the others together.
        "lib" | "main" | "cli" | "commands" => return None,
        "engine" => allowed.push("model"),
        "serve" => allowed.push("engine"),
        // Stages take their arguments from `cli`; of the machinery, only training works on the model itself.
        "train" => allowed.extend(["model", "cli"]),
        "generate" | "curate" | "evaluate" | "report" => allowed.push("cli"),
        _ => {}
    }
    Some(allowed)
}

/// The top-level modules of the library, by the names of their files and folders.
fn source_modules() -> BTreeSet<String> {
    fs::read_dir(root().join("src")).unwrap().map(|entry| stem(&entry.unwrap().path())).collect()
}

/// Which top-level module a file of `src/` belongs to.
fn top_module(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    stem(Path::new(inside.iter().next().unwrap()))
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

/// Every Rust file of a folder that is not test code as a whole, with its text.
fn rust_sources(folder: &str) -> Vec<(PathBuf, String)> {
    let texts: BTreeMap<PathBuf, String> =
        files(folder, &["rs"]).into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect();
    // `#[cfg(test)] mod NAME;` makes NAME.rs, next to mod.rs or under the module's own folder, test code.
    let mut tests = BTreeSet::new();
    for (path, text) in &texts {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for pair in lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]") {
            if let Some(name) =
                pair[1].strip_suffix(';').and_then(|line| line.rsplit_once("mod ")).map(|(_, name)| name)
            {
                tests.insert(path.with_file_name(format!("{name}.rs")));
                tests.insert(path.with_extension("").join(format!("{name}.rs")));
            }
        }
    }
    texts.into_iter().filter(|(path, _)| !tests.contains(path)).collect()
}

/// The text before the first inline test module.
fn production_code(text: &str) -> &str {
    text.match_indices("#[cfg(test)]")
        .find(|(at, found)| text[at + found.len()..].lines().nth(1).is_some_and(|line| line.trim_end().ends_with('{')))
        .map_or(text, |(at, _)| &text[..at])
}

/// Lines without comments, numbered from 1.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| {
        let comment = line.match_indices("//").map(|(at, _)| at).find(|&at| line[..at].matches('"').count() % 2 == 0);
        (index + 1, &line[..comment.unwrap_or(line.len())])
    })
}

/// The top-level modules that a file names in code: `use crate::…`, `crate::x::`, and `super::x` one level below.
fn imports(path: &Path, text: &str) -> BTreeSet<String> {
    let depth = path.strip_prefix(root().join("src")).unwrap().iter().count();
    let code: String = code_lines(production_code(text)).flat_map(|(_, line)| [line, "\n"]).collect();
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        // `glan_crate::` and the like are other names.
        if !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            first_segments(&code[at + "crate::".len()..], &mut found);
        }
    }
    if depth <= 2 {
        for (at, _) in code.match_indices("use super::") {
            first_segments(&code[at + "use super::".len()..], &mut found);
        }
    }
    found
}

/// The first name of a path, or of every branch of a `{…}` that opens it.
fn first_segments(rest: &str, found: &mut BTreeSet<String>) {
    let name = |text: &str| text.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect::<String>();
    let Some(branches) = rest.strip_prefix('{') else {
        found.insert(name(rest));
        return;
    };
    let mut depth = 0;
    let mut at_branch = true;
    for (at, character) in branches.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => return,
            '}' => depth -= 1,
            ',' if depth == 0 => at_branch = true,
            _ if at_branch && !character.is_whitespace() => {
                found.insert(name(&branches[at..]));
                at_branch = false;
            }
            _ => {}
        }
    }
}

/// The folders and the modules of `src/` that README's tree names.
fn readme_tree(readme: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let section = readme.split("\n## The tree\n").nth(1).expect("README has a section `## The tree`");
    let block = section.split("```").nth(1).expect("the section holds a fenced block");
    let (mut folders, mut sources, mut inside) = (BTreeSet::new(), BTreeSet::new(), String::new());
    for line in block.lines().skip(1) {
        let names: Vec<&str> = line.trim_start().split("  ").next().unwrap_or_default().split(' ').collect();
        if !line.starts_with(' ') {
            inside = names[0].trim_end_matches('/').to_owned();
            if names[0].ends_with('/') {
                folders.insert(inside.clone());
            }
        } else if inside == "src" {
            let is_source = |name: &&str| name.ends_with(".rs") || name.ends_with('/');
            sources.extend(names.into_iter().filter(is_source).map(|name| stem(Path::new(name))));
        }
    }
    (folders, sources)
}
