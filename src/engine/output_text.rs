//! The text of a growing output: stop strings that may lie across token borders, and what may already be shown.

use crate::tokenizer::StreamDecoder;

/// Text decoded so far, watched for stop strings.
pub struct OutputText {
    stop: Vec<String>,
    text: String,
    /// Bytes already handed out by [`OutputText::take_shown`]; always on a character border.
    num_shown_bytes: usize,
    decoder: StreamDecoder,
}

impl OutputText {
    /// Empty text.
    pub fn new(stop: Vec<String>, decoder: StreamDecoder) -> Self {
        Self { stop, text: String::new(), num_shown_bytes: 0, decoder }
    }

    /// Adds a token; returns whether a stop string is now complete.
    pub fn push(&mut self, token_id: u32) -> bool {
        let Some(piece) = self.decoder.push(token_id) else { return false };
        // A stop string may have begun in the text before.
        let longest = self.stop.iter().map(String::len).max().unwrap_or(0);
        let from = floor_char_boundary(&self.text, self.text.len().saturating_sub(longest));
        self.text.push_str(&piece);
        match first_stop(&self.text[from..], &self.stop) {
            Some(place) => {
                self.text.truncate(from + place);
                true
            }
            None => false,
        }
    }

    /// New text that no stop string can take back any more.
    pub fn take_shown(&mut self) -> &str {
        let held_back = self.stop.iter().map(|stop| longest_begun(&self.text, stop)).max().unwrap_or(0);
        let from = self.num_shown_bytes;
        self.num_shown_bytes = from.max(self.text.len() - held_back);
        &self.text[from..self.num_shown_bytes]
    }
}

/// The text before the first stop string.
pub fn cut_at_stop(mut text: String, stop: &[String]) -> String {
    if let Some(place) = first_stop(&text, stop) {
        text.truncate(place);
    }
    text
}

fn first_stop(text: &str, stop: &[String]) -> Option<usize> {
    stop.iter().filter_map(|stop| text.find(stop.as_str())).min()
}

/// Bytes at the end of `text` that are a beginning (not the whole) of `stop`.
fn longest_begun(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .filter(|&length| text.is_char_boundary(text.len() - length))
        .find(|&length| stop.as_bytes().starts_with(&text.as_bytes()[text.len() - length..]))
        .unwrap_or(0)
}

fn floor_char_boundary(text: &str, mut place: usize) -> usize {
    while !text.is_char_boundary(place) {
        place -= 1;
    }
    place
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::toy::byte_level;

    fn stops(stop: &[&str]) -> Vec<String> {
        stop.iter().map(|&stop| stop.to_owned()).collect()
    }

    #[test]
    fn a_stop_string_across_tokens_is_found_and_cut() {
        let tokenizer = byte_level(None, "<|endoftext|>");
        let mut text = OutputText::new(stops(&["END", "zzz"]), tokenizer.stream_decoder());
        let ids = tokenizer.encode("abEND", false).unwrap();
        let found: Vec<bool> = ids.iter().map(|&id| text.push(id)).collect();
        assert_eq!(found, [false, false, false, false, true]);
        assert_eq!(text.take_shown(), "ab");
        assert_eq!(cut_at_stop("a zzz END".into(), &stops(&["END", "zzz"])), "a ");
    }

    #[test]
    fn text_that_may_become_a_stop_string_is_held_back() {
        let tokenizer = byte_level(None, "<|endoftext|>");
        let mut text = OutputText::new(stops(&["\n\nQ"]), tokenizer.stream_decoder());
        let mut shown = Vec::new();
        for id in tokenizer.encode("a\n\nb\n", false).unwrap() {
            assert!(!text.push(id));
            shown.push(text.take_shown().to_owned());
        }
        assert_eq!(shown, ["a", "", "", "\n\nb", ""]);
    }

    #[test]
    fn a_character_of_several_tokens_comes_out_whole() {
        let tokenizer = byte_level(None, "<|endoftext|>");
        let mut text = OutputText::new(Vec::new(), tokenizer.stream_decoder());
        let ids = tokenizer.encode("é€😀", false).unwrap();
        assert_eq!(ids.len(), 9, "one token per byte");
        for id in ids {
            text.push(id);
            assert!(!text.text.contains('\u{fffd}'), "{:?}", text.text);
        }
        assert_eq!(text.take_shown(), "é€😀");
    }

    proptest! {
        #[test]
        fn decoding_piece_by_piece_equals_decoding_at_once(whole in "[a-c é€😀\n]{0,40}") {
            let tokenizer = byte_level(None, "<|endoftext|>");
            let mut text = OutputText::new(Vec::new(), tokenizer.stream_decoder());
            let mut shown = String::new();
            for id in tokenizer.encode(&whole, false).unwrap() {
                text.push(id);
                shown.push_str(text.take_shown());
            }
            prop_assert_eq!(shown, whole);
        }

        #[test]
        fn stop_strings_are_found_wherever_they_lie(whole in "[ab]{0,30}", stop in "[ab]{1,4}") {
            let tokenizer = byte_level(None, "<|endoftext|>");
            let mut text = OutputText::new(vec![stop.clone()], tokenizer.stream_decoder());
            let mut shown = String::new();
            let mut found = false;
            for id in tokenizer.encode(&whole, false).unwrap() {
                found = text.push(id);
                shown.push_str(text.take_shown());
                if found {
                    break;
                }
            }
            prop_assert_eq!(found, whole.contains(&stop));
            if found {
                prop_assert_eq!(shown, cut_at_stop(whole, &[stop]));
            } else {
                prop_assert!(whole.starts_with(&shown));
            }
        }
    }
}
