//! Flattens a step into the arrays that the model reads.

use super::{scheduler::Scheduled, sequence::Sequence};
use crate::model::{PagedBatch, PagedSequence};

/// The batch of one step: the rows of all scheduled sequences one after the other, no padding.
///
/// The blocks must already be there: [`super::scheduler::Scheduler::schedule`] has seen to it.
pub fn build<T>(scheduled: &[Scheduled], running: &[Sequence<T>], block_size: usize) -> PagedBatch {
    let num_rows = scheduled.iter().map(|share| share.query_len).sum();
    let mut batch = PagedBatch {
        token_ids: Vec::with_capacity(num_rows),
        positions: Vec::with_capacity(num_rows),
        slot_mapping: Vec::with_capacity(num_rows),
        sequences: Vec::with_capacity(scheduled.len()),
        logit_rows: Vec::new(),
    };
    for share in scheduled {
        let sequence = &running[share.index];
        let start = sequence.num_computed_tokens;
        let end = start + share.query_len;
        let first_row = batch.token_ids.len();
        batch.token_ids.extend_from_slice(&sequence.token_ids[start..end]);
        for position in start..end {
            let block = sequence.block_table[position / block_size];
            batch.positions.push(position as u32);
            batch.slot_mapping.push(block * block_size as u32 + (position % block_size) as u32);
        }
        let wanted = sequence.logit_positions(share.query_len);
        batch.logit_rows.extend(wanted.map(|position| (first_row + position - start) as u32));
        batch.sequences.push(PagedSequence {
            query_len: share.query_len,
            context_len: end,
            block_table: sequence.block_table[..end.div_ceil(block_size)].to_vec(),
        });
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefill_chunk_and_a_decode_lie_side_by_side() {
        let mut decode = Sequence::new(0, vec![1, 2, 3], 2, ());
        decode.block_table = vec![4, 0];
        decode.num_computed_tokens = 3;
        decode.push(9);
        let mut prefill = Sequence::new(1, vec![5, 6, 7, 8, 9], 4, ());
        prefill.block_table = vec![2, 7];
        prefill.num_computed_tokens = 1;
        let scheduled = [Scheduled { index: 0, query_len: 1 }, Scheduled { index: 1, query_len: 3 }];
        let batch = build(&scheduled, &[decode, prefill], 2);
        assert_eq!(batch.token_ids, [9, 6, 7, 8]);
        assert_eq!(batch.positions, [3, 1, 2, 3]);
        assert_eq!(batch.slot_mapping, [1, 5, 14, 15]);
        assert_eq!(batch.logit_rows, [0], "the prompt's last token is not in this chunk");
        assert_eq!(batch.sequences[0].context_len, 4);
        assert_eq!(batch.sequences[1].block_table, [2, 7]);
    }
}
