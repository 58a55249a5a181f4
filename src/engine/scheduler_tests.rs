//! Properties of the scheduler, driven without a model: sequences of given lengths run to their ends.

use proptest::prelude::*;

use super::{
    block_pool::BlockPool,
    scheduler::{Scheduler, SchedulerLimits},
    sequence::Sequence,
};

/// A sequence's life: tokens of its prompt and how many it will generate.
type Lengths = (usize, usize);

struct Case {
    limits: SchedulerLimits,
    num_blocks: usize,
    block_size: usize,
    lengths: Vec<Lengths>,
    /// Steps between arrivals, one per sequence.
    gaps: Vec<usize>,
}

fn case() -> impl Strategy<Value = Case> {
    let limits =
        (1usize..6, 1usize..24, 1usize..8).prop_map(|(max_num_seqs, max_num_batched_tokens, max_logit_rows)| {
            SchedulerLimits { max_num_seqs, max_num_batched_tokens, max_logit_rows }
        });
    let lengths = prop::collection::vec((1usize..20, 1usize..14), 1..14);
    (limits, 1usize..5, 0usize..8, lengths, prop::collection::vec(0usize..4, 14)).prop_map(
        |(limits, block_size, spare_blocks, lengths, gaps)| {
            let longest = lengths.iter().map(|(prompt, output)| prompt + output - 1).max().unwrap_or(1);
            Case { limits, num_blocks: longest.div_ceil(block_size) + spare_blocks, block_size, lengths, gaps }
        },
    )
}

impl std::fmt::Debug for Case {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { limits, num_blocks, block_size, lengths, gaps } = self;
        write!(formatter, "{limits:?}, {num_blocks} blocks of {block_size}, {lengths:?}, gaps {gaps:?}")
    }
}

/// Checks what must hold after every `schedule`.
fn check_step(
    case: &Case,
    scheduler: &Scheduler<usize>,
    scheduled: &[super::scheduler::Scheduled],
) -> Result<(), TestCaseError> {
    let running = scheduler.running();
    prop_assert!(!scheduled.is_empty(), "a step without work");
    prop_assert!(running.len() <= case.limits.max_num_seqs);
    prop_assert!(scheduled.windows(2).all(|pair| pair[0].index < pair[1].index));
    prop_assert!(running.windows(2).all(|pair| pair[0].id < pair[1].id), "oldest first");
    prop_assert_eq!(scheduled[0].index, 0, "the oldest always moves");
    let tokens: usize = scheduled.iter().map(|share| share.query_len).sum();
    prop_assert!(tokens <= case.limits.max_num_batched_tokens);
    let rows: usize = scheduled.iter().map(|share| running[share.index].logit_positions(share.query_len).len()).sum();
    prop_assert!(rows <= case.limits.max_logit_rows);
    for share in scheduled {
        let sequence = &running[share.index];
        prop_assert!(share.query_len >= 1 && share.query_len <= sequence.num_uncomputed_tokens());
        prop_assert!(sequence.block_table.len() * case.block_size >= sequence.num_computed_tokens + share.query_len);
    }
    let mut owned: Vec<u32> = running.iter().flat_map(|sequence| sequence.block_table.clone()).collect();
    let num_owned = owned.len();
    owned.sort_unstable();
    owned.dedup();
    prop_assert_eq!(owned.len(), num_owned, "a block has two owners");
    prop_assert_eq!(num_owned + scheduler.pool().num_free(), case.num_blocks, "a block is lost");
    Ok(())
}

proptest! {
    #[test]
    fn every_sequence_finishes_in_fifo_order_of_admission_and_all_blocks_come_home(case in case()) {
        let mut scheduler = Scheduler::new(case.limits, BlockPool::new(case.num_blocks, case.block_size));
        let mut arrivals: std::collections::VecDeque<(usize, usize)> = case
            .gaps
            .iter()
            .scan(0, |step, gap| { *step += gap; Some(*step) })
            .take(case.lengths.len())
            .zip(0..)
            .collect();
        let mut first_seen: Vec<u64> = Vec::new();
        let mut num_finished = 0;
        for step in 0.. {
            prop_assert!(step < 10_000, "the schedule does not end");
            while arrivals.front().is_some_and(|&(when, _)| when <= step) {
                let (_, which) = arrivals.pop_front().unwrap();
                let (prompt, num_output) = case.lengths[which];
                scheduler.add(Sequence::new(which as u64, vec![0; prompt], prompt - 1, num_output));
            }
            if scheduler.is_idle() {
                if arrivals.is_empty() { break; }
                continue;
            }
            let scheduled = scheduler.schedule();
            check_step(&case, &scheduler, &scheduled)?;
            for share in &scheduled {
                let sequence = &mut scheduler.running_mut()[share.index];
                if !first_seen.contains(&sequence.id) {
                    first_seen.push(sequence.id);
                }
                let has_logits = !sequence.logit_positions(share.query_len).is_empty();
                sequence.num_computed_tokens += share.query_len;
                if has_logits {
                    sequence.push(1);
                    sequence.is_finished = sequence.output_token_ids().len() == sequence.task;
                }
            }
            for sequence in scheduler.take_finished() {
                prop_assert!(sequence.block_table.is_empty());
                prop_assert_eq!(sequence.output_token_ids().len(), case.lengths[sequence.id as usize].1);
                num_finished += 1;
            }
        }
        prop_assert_eq!(num_finished, case.lengths.len());
        prop_assert!(first_seen.is_sorted(), "served out of turn: {:?}", first_seen);
        prop_assert_eq!(scheduler.pool().num_free(), case.num_blocks);
    }
}

fn limits(max_num_seqs: usize, max_num_batched_tokens: usize) -> SchedulerLimits {
    SchedulerLimits { max_num_seqs, max_num_batched_tokens, max_logit_rows: 100 }
}

#[test]
fn a_long_prompt_is_prefilled_in_chunks_beside_decodes() {
    let mut scheduler = Scheduler::new(limits(4, 5), BlockPool::new(100, 4));
    scheduler.add(Sequence::new(0, vec![0; 2], 1, ()));
    scheduler.add(Sequence::new(1, vec![0; 9], 8, ()));
    let mut shapes = Vec::new();
    for _ in 0..3 {
        let scheduled = scheduler.schedule();
        shapes.push(scheduled.iter().map(|share| share.query_len).collect::<Vec<_>>());
        for share in scheduled {
            let sequence = &mut scheduler.running_mut()[share.index];
            sequence.num_computed_tokens += share.query_len;
            if sequence.num_uncomputed_tokens() == 0 {
                sequence.push(1);
            }
        }
    }
    assert_eq!(shapes, [vec![2, 3], vec![1, 4], vec![1, 2]]);
}

#[test]
fn the_youngest_is_preempted_and_comes_back_first() {
    let mut scheduler = Scheduler::new(limits(3, 100), BlockPool::new(4, 2));
    for id in 0..3 {
        scheduler.add(Sequence::new(id, vec![0; 2], 1, ()));
    }
    assert_eq!(scheduler.schedule().len(), 3);
    for sequence in scheduler.running_mut() {
        sequence.num_computed_tokens = 2;
        sequence.push(1);
    }
    // Every sequence now needs a second block, and one is free.
    let scheduled = scheduler.schedule();
    assert_eq!(scheduled.len(), 2, "the third gave its block to the second");
    assert_eq!(scheduler.num_preemptions(), 1);
    scheduler.add(Sequence::new(3, vec![0; 1], 0, ()));
    for sequence in scheduler.running_mut() {
        sequence.num_computed_tokens = 3;
        sequence.is_finished = true;
    }
    assert_eq!(scheduler.take_finished().len(), 2);
    scheduler.schedule();
    assert_eq!(scheduler.running().iter().map(|sequence| sequence.id).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(scheduler.running()[0].token_ids.len(), 3, "the token generated before is kept");
}

#[test]
fn a_cancelled_sequence_gives_its_seat_and_its_blocks_back() {
    let mut scheduler = Scheduler::new(limits(2, 100), BlockPool::new(4, 2));
    for id in 0..3 {
        scheduler.add(Sequence::new(id, vec![0; 3], 2, ()));
    }
    assert_eq!(scheduler.schedule().len(), 2);
    assert!(scheduler.cancel(0), "a running one");
    assert!(scheduler.cancel(2), "a waiting one");
    assert!(!scheduler.cancel(2) && !scheduler.cancel(7), "unknown ones");
    assert_eq!((scheduler.running().len(), scheduler.pool().num_free()), (1, 2));
    assert!(scheduler.cancel(1) && scheduler.is_idle());
    assert_eq!(scheduler.pool().num_free(), 4);
}
