//! Which part of a rendered conversation the model learns to write.
//!
//! Most templates are append-only: the conversation up to a turn, rendered with the generation prompt, is a prefix of
//! the whole, so what the model must write begins where that prefix ends. Templates that rewrite earlier turns (such as
//! those that drop the reasoning of past answers) are read by looking for the content itself.

use std::ops::Range;

use anyhow::{Context, Result, bail};

use super::ChatTemplate;
use crate::language_model::Message;

/// See [`ChatTemplate::render_for_training`].
pub(super) fn render(template: &ChatTemplate, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
    let full = template.render(messages, false)?;
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (index, message) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
        let written = ranges.last().map_or(0, |range| range.end);
        let range = turn_range(template, messages, index, &full, written).with_context(|| {
            format!(
                "the chat template leaves out or rewrites the assistant's turn {} ({:.40?})",
                index + 1,
                message.content
            )
        })?;
        ranges.push(range);
    }
    Ok((full, ranges))
}

/// The range of assistant turn `index`, at or after byte `written` of `full`.
fn turn_range(
    template: &ChatTemplate,
    messages: &[Message],
    index: usize,
    full: &str,
    written: usize,
) -> Result<Range<usize>> {
    let before = &messages[..index];
    // A template may refuse a conversation that is cut here; then only the search below is left.
    let prompt = template.render(before, true).ok().filter(|prompt| full.starts_with(prompt.as_str()));
    let (start, content_end) = match &prompt {
        Some(prompt) if prompt.len() >= written => {
            let Some(content) = find_content(template, full, prompt.len(), &messages[index].content) else {
                bail!("its text is not in the rendered conversation");
            };
            (prompt.len(), content.end)
        }
        _ => {
            let turn = template.render(before, false).map_or(0, |before| common_prefix(full, &before));
            match find_content(template, full, turn.max(written), &messages[index].content) {
                Some(content) => (content.start, content.end),
                None => bail!("its text is not in the rendered conversation"),
            }
        }
    };
    let end = match template.turn_end(full, content_end) {
        Some((_, end)) => end,
        None => content_end + plain_turn_end(template, &messages[..=index], &full[content_end..]),
    };
    Ok(start..end)
}

/// Where a turn's content stands, at or after `from`; templates may trim it or drop its reasoning.
fn find_content(template: &ChatTemplate, full: &str, from: usize, content: &str) -> Option<Range<usize>> {
    let answer = content.rsplit_once("</think>").map_or(content, |(_, answer)| answer);
    let variants = [content, content.trim(), answer.trim()];
    let rest = &full[from..];
    for variant in variants {
        for start in [from, full.len() - rest.trim_start().len()] {
            if full[start..].starts_with(variant) {
                return Some(start..start + variant.len());
            }
        }
    }
    // Further on, a content such as `user` may also be part of a header: the one that ends a turn is meant.
    let matches = |variant: &str| -> Vec<Range<usize>> {
        rest.match_indices(variant).map(|(at, _)| from + at..from + at + variant.len()).collect()
    };
    let ends_turn = |range: &Range<usize>| range.end == full.len() || template.turn_end(full, range.end).is_some();
    variants
        .iter()
        .find_map(|variant| matches(variant).into_iter().find(ends_turn))
        .or_else(|| variants.iter().find_map(|variant| matches(variant).into_iter().next()))
}

/// Bytes of an end-of-turn mark that is not a special token (`###`, `<|im_end|>` as plain text), at the start of `rest`:
/// whatever the template writes after the last turn of a conversation.
fn plain_turn_end(template: &ChatTemplate, messages: &[Message], rest: &str) -> usize {
    let last = messages.last().map_or("", |message| message.content.trim());
    let Ok(text) = template.render(messages, false) else { return 0 };
    let Some(at) = text.rfind(last) else { return 0 };
    let mark = text[at + last.len()..].trim_end();
    if rest.starts_with(mark) { mark.len() } else { 0 }
}

fn common_prefix(left: &str, right: &str) -> usize {
    left.char_indices()
        .zip(right.chars())
        .find(|((_, a), b)| a != b)
        .map_or(left.len().min(right.len()), |((at, _), _)| at)
}
