//! Material and measurements of curation, for `scripts/bench_curation.sh`:
//!
//! `curation_bench pairs ROWS [SEED]`: writes synthetic conversations to stdout, one per line, some 180 words each; every
//! 20th repeats an earlier question with two words added, every 50th repeats one in other case, every 100th holds an
//! item of the built-in benchmark
//! `curation_bench minhash FILE [FUNCTIONS]`: word 5-grams and signatures of the texts in a file (JSON lines with
//! `text`), megabytes per processor second on one core, best of five
//!
//! Results go to stdout, one JSON line each. Times depend on the machine; what is promised are the ratios.
#![allow(clippy::print_stdout, reason = "the results")]

use std::{
    io::{BufRead, BufReader, BufWriter, Write},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use glan::{
    curate::{built_in_benchmarks, minhash},
    seed,
};
use rand::Rng;
use serde_json::{Value, json};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: usize| match arguments.get(place) {
        Some(text) => text.parse().with_context(|| format!("`{text}` is not a number")),
        None => Ok(default),
    };
    match arguments.first().map(String::as_str) {
        Some("pairs") => pairs(number(1, 1_000_000)?, number(2, 0)? as u64),
        Some("minhash") => minhash_rates(arguments.get(1).context("which file?")?, number(2, 128)?),
        _ => bail!("usage: curation_bench pairs ROWS [SEED] | minhash FILE [FUNCTIONS]"),
    }
}

/// Words whose frequencies fall as in language (Zipf), with a number among every ten.
fn text(random: &mut impl Rng, words: usize) -> String {
    const SYLLABLES: [&str; 24] = [
        "ka", "lo", "mi", "ne", "ru", "sa", "te", "vo", "wi", "xu", "ya", "zo", "bra", "cle", "dri", "flo", "gru",
        "pha", "que", "sti", "tho", "tra", "wen", "zim",
    ];
    let mut text = String::new();
    for word in 0..words {
        if word > 0 {
            text.push(' ');
        }
        if random.random_range(0..10) == 0 {
            text += &random.random_range(2..1000).to_string();
            continue;
        }
        // The rank of a word: log-uniform over 40,000.
        let mut rank = 40_000f64.powf(random.random::<f64>()) as usize;
        while rank > 0 {
            text += SYLLABLES[rank % SYLLABLES.len()];
            rank /= SYLLABLES.len();
        }
    }
    text
}

fn pairs(rows: usize, seed: u64) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
    let benchmark = built_in_benchmarks();
    let question = |row: usize| {
        let mut random = seed::stream(seed, "pairs.question", &row.to_string());
        let words = random.random_range(20..60);
        text(&mut random, words)
    };
    for row in 0..rows {
        let mut random = seed::stream(seed, "pairs.answer", &row.to_string());
        let words = random.random_range(80..200);
        let answer = text(&mut random, words);
        let earlier = |random: &mut _| question(Rng::random_range(random, 0..row.max(1)));
        let question = match row {
            _ if row % 100 == 99 => format!("Please solve this: {}", benchmark[row / 100 % benchmark.len()].question),
            _ if row % 50 == 49 => earlier(&mut random).to_uppercase(),
            _ if row % 20 == 19 => format!("please {} now", earlier(&mut random)),
            _ => question(row),
        };
        let messages = json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
        serde_json::to_writer(&mut out, &json!({"id": format!("r{row}"), "messages": messages}))?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

fn minhash_rates(file: &str, functions: usize) -> Result<()> {
    let mut texts = Vec::new();
    for line in BufReader::new(std::fs::File::open(file).with_context(|| format!("cannot open `{file}`"))?).lines() {
        let row: Value = serde_json::from_str(&line?)?;
        texts.push(row["text"].as_str().context("a line without `text`")?.to_owned());
    }
    let megabytes = texts.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    let best = |work: &dyn Fn() -> usize| -> Result<(f64, usize)> {
        let (mut least, mut sum) = (f64::INFINITY, 0);
        for _ in 0..5 {
            let start = processor_time()?;
            sum = work();
            least = least.min((processor_time()? - start).as_secs_f64());
        }
        Ok((least, sum))
    };
    let (shingling, shingles) = best(&|| texts.iter().map(|text| minhash::word_shingles(text, 5).len()).sum())?;
    let sets: Vec<Vec<u32>> = texts.iter().map(|text| minhash::word_shingles(text, 5)).collect();
    let (signing, _) = best(&|| sets.iter().map(|set| minhash::signature(set, functions)[0] as usize).sum())?;
    let (both, _) = best(&|| {
        texts.iter().map(|text| minhash::signature(&minhash::word_shingles(text, 5), functions)[0] as usize).sum()
    })?;
    for (what, seconds) in [("shingles", shingling), ("signatures", signing), ("shingles and signatures", both)] {
        let line = json!({
            "peer": format!("glan {what}"), "functions": functions, "docs_s": texts.len() as f64 / seconds,
            "mb_s": megabytes / seconds, "mshingles_s": shingles as f64 / seconds / 1e6,
        });
        println!("{line}");
    }
    Ok(())
}

/// Processor time of this process so far.
fn processor_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/schedstat").context("processor time is read from /proc (Linux)")?;
    let nanoseconds = stat.split_whitespace().next().context("an empty schedstat")?.parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}
