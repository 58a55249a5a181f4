//! Properties of the schedule: bounds kept, blocks accounted for, everyone served in turn.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    block_pool::BlockPool,
    scheduler::{Scheduled, Scheduler, SchedulerLimits},
    sequence::Sequence,
};

/// A made-up load.
#[derive(Debug)]
struct Case {
    limits: SchedulerLimits,
    num_blocks: usize,
    block_size: usize,
    /// Per sequence: prompt, output tokens, and whether the logits of its whole second half are wanted.
    work: Vec<(Vec<u32>, usize, bool)>,
    /// Steps between arrivals.
    gaps: Vec<usize>,
    /// After which steps which of the sequences is cancelled.
    cancelled: Vec<(usize, usize)>,
}

fn case() -> impl Strategy<Value = Case> {
    let limits = (1usize..6, 1usize..24, 1usize..8, any::<bool>()).prop_map(
        |(max_num_seqs, max_num_batched_tokens, max_logit_rows, enable_prefix_caching)| SchedulerLimits {
            max_num_seqs,
            max_num_batched_tokens,
            max_logit_rows,
            enable_prefix_caching,
        },
    );
    // Two letters, mostly one: prompts often have their beginnings, or all, in common.
    let letter = prop_oneof![9 => Just(0u32), 1 => Just(1)];
    let work = prop::collection::vec((prop::collection::vec(letter, 1..20), 1usize..14, any::<bool>()), 1..14);
    let cancelled = prop::collection::vec((0usize..40, 0usize..14), 0..4);
    (limits, 1usize..5, 0usize..8, work, prop::collection::vec(0usize..4, 14), cancelled).prop_map(
        |(limits, block_size, spare_blocks, work, gaps, cancelled)| {
            let longest = work.iter().map(|(prompt, output, _)| prompt.len() + output - 1).max().unwrap_or(1);
            let num_blocks = longest.div_ceil(block_size) + spare_blocks;
            Case { limits, num_blocks, block_size, work, gaps, cancelled }
        },
    )
}

/// Checks what must hold after every `schedule`.
fn check_step(case: &Case, scheduler: &Scheduler<usize>, scheduled: &[Scheduled]) -> Result<(), TestCaseError> {
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
    let mut written = BTreeSet::new();
    for share in scheduled {
        let sequence = &running[share.index];
        prop_assert!(share.query_len >= 1 && share.query_len <= sequence.num_uncomputed_tokens());
        let end = sequence.num_computed_tokens + share.query_len;
        prop_assert!(sequence.block_table.len() * case.block_size >= end);
        for position in sequence.num_computed_tokens..end {
            let block = position / case.block_size;
            let slot = (sequence.block_table[block], position % case.block_size);
            prop_assert!(written.insert(slot), "two sequences write to one slot");
            // A block that this step fills may already have other owners: they read what is written.
            let is_filled = end >= (block + 1) * case.block_size;
            prop_assert!(is_filled || scheduler.pool().num_owners(slot.0) == 1, "a shared block is written to");
        }
    }
    let mut owners = BTreeMap::<u32, u32>::new();
    running.iter().flat_map(|sequence| &sequence.block_table).for_each(|&block| *owners.entry(block).or_default() += 1);
    prop_assert!(owners.iter().all(|(&block, &num_owners)| scheduler.pool().num_owners(block) == num_owners));
    prop_assert!(case.limits.enable_prefix_caching || owners.values().all(|&num_owners| num_owners == 1));
    prop_assert_eq!(owners.len() + scheduler.pool().num_free(), case.num_blocks, "a block is lost");
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
            .take(case.work.len())
            .zip(0..)
            .collect();
        let mut first_seen: Vec<u64> = Vec::new();
        let mut num_gone = 0;
        for step in 0.. {
            prop_assert!(step < 10_000, "the schedule does not end");
            while arrivals.front().is_some_and(|&(when, _)| when <= step) {
                let (_, which) = arrivals.pop_front().unwrap();
                let (prompt, num_output, is_scored) = &case.work[which];
                let logits_from = if *is_scored { prompt.len() / 2 } else { prompt.len() - 1 };
                scheduler.add(Sequence::new(which as u64, prompt.clone(), logits_from, *num_output));
            }
            for (_, id) in case.cancelled.iter().filter(|(when, _)| *when == step) {
                num_gone += usize::from(scheduler.cancel(*id as u64));
            }
            if scheduler.is_idle() {
                if arrivals.is_empty() { break; }
                continue;
            }
            let scheduled = scheduler.schedule();
            check_step(&case, &scheduler, &scheduled)?;
            for sequence in scheduler.running() {
                if !first_seen.contains(&sequence.id) {
                    first_seen.push(sequence.id);
                }
            }
            let num_rows: usize =
                scheduled.iter().map(|it| scheduler.running()[it.index].logit_positions(it.query_len).len()).sum();
            for advance in scheduler.advance(&scheduled) {
                prop_assert!(!advance.rows.is_empty() && advance.rows.end <= num_rows);
                let sequence = &mut scheduler.running_mut()[advance.index];
                sequence.logits_from += advance.rows.len();
                if sequence.logits_from == sequence.token_ids.len() {
                    sequence.push(1);
                    sequence.is_finished = sequence.output_token_ids().len() == sequence.task;
                }
            }
            for sequence in scheduler.take_finished() {
                prop_assert!(sequence.block_table.is_empty());
                prop_assert_eq!(sequence.output_token_ids().len(), case.work[sequence.id as usize].1);
                num_gone += 1;
            }
        }
        prop_assert_eq!(num_gone, case.work.len());
        prop_assert!(first_seen.is_sorted(), "served out of turn: {:?}", first_seen);
        prop_assert_eq!(scheduler.pool().num_free(), case.num_blocks);
    }
}

fn limits(max_num_seqs: usize, max_num_batched_tokens: usize) -> SchedulerLimits {
    SchedulerLimits { max_num_seqs, max_num_batched_tokens, max_logit_rows: 100, enable_prefix_caching: false }
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
        for advance in scheduler.advance(&scheduled) {
            scheduler.running_mut()[advance.index].push(1);
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
    assert_eq!(scheduler.counters().preemptions, 1);
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

/// Computes one step and gives every row-taking sequence the token 1; returns the tokens computed per sequence id.
fn step(scheduler: &mut Scheduler<()>) -> Vec<(u64, usize)> {
    let scheduled = scheduler.schedule();
    let shares = scheduled.iter().map(|share| (scheduler.running()[share.index].id, share.query_len)).collect();
    for advance in scheduler.advance(&scheduled) {
        scheduler.running_mut()[advance.index].push(1);
    }
    shares
}

fn caching(max_num_seqs: usize, max_num_batched_tokens: usize) -> SchedulerLimits {
    SchedulerLimits { enable_prefix_caching: true, ..limits(max_num_seqs, max_num_batched_tokens) }
}

#[test]
fn a_common_beginning_is_computed_once_also_by_sequences_that_come_together() {
    for max_num_batched_tokens in [100, 7] {
        let mut scheduler = Scheduler::new(caching(8, max_num_batched_tokens), BlockPool::new(40, 4));
        for id in 0..4 {
            scheduler.add(Sequence::new(id, [vec![7; 9], vec![id as u32; 3]].concat(), 11, ()));
        }
        while scheduler.running().iter().filter(|sequence| !sequence.output_token_ids().is_empty()).count() < 4 {
            step(&mut scheduler);
        }
        // Two full blocks of the nine common tokens are shared, and one token of a third.
        let counters = scheduler.counters();
        assert_eq!((counters.computed_prompt_tokens, counters.prefix_cache_hit_tokens), (12 + 3 * 3, 3 * 9));
    }
}

#[test]
fn who_parts_within_a_block_copies_it_once_it_is_filled_and_holds_nobody_up_meanwhile() {
    let prompt = |id: u32| [vec![7; 21], vec![id; 12]].concat();
    // Sixteen tokens are two blocks; five of the third are the same.
    let mut scheduler = Scheduler::new(caching(8, 100), BlockPool::new(40, 8));
    (0..3).for_each(|id| scheduler.add(Sequence::new(id.into(), prompt(id), 32, ())));
    assert_eq!(step(&mut scheduler), [(0, 33)], "the others wait for the third block");
    assert_eq!(scheduler.copies(), []);
    let source = scheduler.running()[0].block_table[2];
    assert_eq!(step(&mut scheduler), [(0, 1), (1, 12), (2, 12)]);
    let targets: Vec<u32> = scheduler.running()[1..].iter().map(|sequence| sequence.block_table[2]).collect();
    assert_eq!(scheduler.copies(), [(source, targets[0]), (source, targets[1])]);
    assert_eq!(scheduler.counters().prefix_cache_hit_tokens, 2 * 21);
    // The logits of the 19th token are wanted: it is computed though it is the same.
    scheduler.add(Sequence::new(3, prompt(3), 18, ()));
    assert_eq!(step(&mut scheduler), [(0, 1), (1, 1), (2, 1), (3, 33 - 18)]);
    // Who comes behind those that wait works at once.
    let mut scheduler = Scheduler::new(caching(8, 1000), BlockPool::new(40, 8));
    (0..3).for_each(|id| scheduler.add(Sequence::new(id.into(), prompt(id), 32, ())));
    scheduler.add(Sequence::new(3, vec![9; 10], 9, ()));
    assert_eq!(step(&mut scheduler), [(0, 33), (3, 10)]);
    assert_eq!(step(&mut scheduler), [(0, 1), (1, 12), (2, 12), (3, 1)]);
}

#[test]
fn forks_wait_for_one_row_and_the_half_full_block_is_copied_by_all_but_the_last() {
    let mut scheduler = Scheduler::new(caching(8, 6), BlockPool::new(40, 4));
    for id in 0..3 {
        scheduler.add(Sequence::new(id, vec![7; 10], 9, ()));
    }
    scheduler.add(Sequence::new(3, vec![8; 3], 2, ()));
    assert_eq!(step(&mut scheduler), [(0, 6)], "and the forks hold their seats");
    assert_eq!(step(&mut scheduler), [(0, 4), (3, 2)]);
    let tables: Vec<_> = scheduler.running()[..3].iter().map(|fork| fork.block_table.clone()).collect();
    assert!(tables.iter().all(|table| *table == tables[0] && table.len() == 3));
    assert!(scheduler.running()[..3].iter().all(|fork| fork.output_token_ids() == [1]));
    assert_eq!(step(&mut scheduler), [(0, 1), (1, 1), (2, 1), (3, 1)]);
    let (shared, copies) = (tables[0][2], scheduler.copies().to_vec());
    assert_eq!(copies.iter().map(|(from, _)| *from).collect::<Vec<_>>(), [shared; 2]);
    let last: Vec<u32> = scheduler.running()[..3].iter().map(|fork| fork.block_table[2]).collect();
    assert_eq!(last, [copies[0].1, copies[1].1, shared]);
    assert_eq!(scheduler.counters().computed_prompt_tokens, 10 + 3);
}

#[test]
fn the_forks_of_a_cancelled_leader_go_on_without_it() {
    let mut scheduler = Scheduler::new(caching(3, 6), BlockPool::new(40, 4));
    for id in 0..4 {
        scheduler.add(Sequence::new(id, vec![7; 10], 9, ()));
    }
    step(&mut scheduler);
    assert!(scheduler.cancel(0));
    assert_eq!(step(&mut scheduler), [(1, 6)], "what the leader had computed is cached");
    assert!(scheduler.running().iter().all(|fork| fork.output_token_ids() == [1]));
    assert_eq!(scheduler.running().len(), 3, "the last one found a seat and followed too");
    assert_eq!(scheduler.counters().computed_prompt_tokens, 6 + 6);
}

#[test]
fn a_preempted_sequence_finds_its_blocks_again_while_they_are_cached() {
    let mut scheduler = Scheduler::new(caching(2, 100), BlockPool::new(6, 2));
    scheduler.add(Sequence::new(0, vec![5; 4], 3, ()));
    scheduler.add(Sequence::new(1, vec![6; 6], 5, ()));
    assert_eq!(step(&mut scheduler), [(0, 4), (1, 6)]);
    // Five blocks are taken, both need one more.
    assert_eq!(step(&mut scheduler), [(0, 1)]);
    assert_eq!(scheduler.counters().preemptions, 1);
    assert!(scheduler.cancel(0));
    assert_eq!(step(&mut scheduler), [(1, 1)], "of its seven tokens six were cached");
    assert_eq!(scheduler.counters().prefix_cache_hit_tokens, 6);
}
