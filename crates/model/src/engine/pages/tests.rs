//! Pages by number: those that are used again, kept, shared and given away.

use std::collections::{HashMap, HashSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const BASE: Root = Root { adapter: None };
const KEEPS: PrefixLimits = PrefixLimits {
    kept: usize::MAX,
    pages: 4,
};

/// A prompt whose pages have these tokens each.
fn prompt(pages: &[u32]) -> Vec<u32> {
    pages.iter().flat_map(|&id| [id; PAGE]).collect()
}

/// Begins a sequence with all of a prompt that is kept; returns it and the tokens that were found.
fn begin(pool: &PagePool, root: Root, ids: &[u32]) -> (PageTable, usize) {
    let mut table = pool.table();
    table.adopt(root, ids, ids.len() / PAGE);
    let found = table.pages().len() * PAGE;
    (table, found)
}

/// Reads a whole prompt as a sequence of its own.
fn read(pool: &PagePool, root: Root, ids: &[u32]) -> PageTable {
    let mut table = pool.table();
    table.reserve(ids.len());
    table.share(root, ids);
    table
}

#[test]
fn pages_are_used_again() {
    let pool = PagePool::new();
    let (mut one, mut two) = (pool.table(), pool.table());
    one.reserve(PAGE + 1);
    two.reserve(1);
    assert_eq!((one.pages(), two.pages()), (&[0, 1][..], &[2][..]));
    two.reserve(PAGE);
    assert_eq!((two.pages(), pool.used()), (&[2][..], 3));
    drop(one);
    assert_eq!(pool.used(), 1);
    two.reserve(3 * PAGE);
    assert_eq!((two.pages().len(), pool.made()), (3, 3));
    assert!(!pool.forget_unused());
    drop(two);
    assert_eq!(pool.used(), 0);
    assert!(pool.forget_unused());
    assert_eq!(pool.made(), 0);
}

#[test]
fn pages_that_the_device_has_no_memory_for_are_forgotten() {
    let pool = PagePool::new();
    let (mut kept, mut grown) = (pool.table(), pool.table());
    kept.reserve(PAGE);
    grown.reserve(PAGE);
    let made = pool.made();
    grown.reserve(4 * PAGE);
    grown.truncate(1);
    pool.forget_above(made);
    assert_eq!((pool.made(), pool.used()), (2, 2));
    drop(kept);
    grown.reserve(3 * PAGE);
    assert_eq!((grown.pages(), pool.made()), (&[1, 0, 2][..], 3));
}

#[test]
fn a_table_of_another_pool_is_known() {
    let (ours, theirs) = (PagePool::new(), PagePool::new());
    assert!(ours.owns(&ours.table()) && !ours.owns(&theirs.table()));
}

#[test]
fn full_pages_of_a_prompt_are_found_by_their_tokens_and_their_root() {
    let pool = PagePool::new();
    pool.limit(KEEPS);
    let ids = [prompt(&[1, 2, 3]), vec![9; 5]].concat();
    let first = read(&pool, BASE, &ids);
    // While it runs, and after its end.
    let (second, found) = begin(&pool, BASE, &ids);
    assert_eq!((second.pages(), found), (&first.pages()[..3], 3 * PAGE));
    drop((first, second));
    assert_eq!((pool.used(), pool.kept(), pool.made()), (0, 3, 4));
    let found = |root, ids: &[u32]| begin(&pool, root, ids).1 / PAGE;
    assert_eq!(found(BASE, &prompt(&[1, 2, 3, 4])), 3);
    assert_eq!(found(BASE, &prompt(&[1, 2, 4])), 2);
    assert_eq!(found(BASE, &prompt(&[2, 2, 3])), 0);
    let mut late = prompt(&[1, 2]);
    late[PAGE - 1] = 2;
    assert_eq!(found(BASE, &late), 0);
    let adapter = Some([0; 32]);
    assert_eq!(found(Root { adapter }, &ids), 0);
    // No more than asked for.
    let mut table = pool.table();
    table.adopt(BASE, &ids, 1);
    assert_eq!(table.pages().len(), 1);
    drop(table);
    // One that has read a part goes on where its pages are shared.
    let mut late = begin(&pool, BASE, &prompt(&[1])).0;
    late.adopt(BASE, &ids, 3);
    assert_eq!(late.pages().len(), 3);
    late.reserve(4 * PAGE);
    late.adopt(BASE, &ids, 4);
    assert_eq!(late.pages().len(), 4);
}

#[test]
fn kept_pages_are_given_away_by_last_use_and_leaves_first() {
    let pool = PagePool::new();
    pool.limit(KEEPS);
    drop(read(&pool, BASE, &prompt(&[1, 2])));
    drop(read(&pool, BASE, &prompt(&[1, 3])));
    drop(read(&pool, BASE, &prompt(&[4])));
    assert_eq!((pool.made(), pool.kept()), (4, 4));
    let found = |pages: &[u32]| begin(&pool, BASE, &prompt(pages)).1 / PAGE;
    // A use of [1, 2] leaves [1, 3] as the oldest leaf.
    assert_eq!(found(&[1, 2]), 2);
    let mut own = pool.table();
    own.reserve(PAGE);
    assert_eq!((found(&[1, 3]), found(&[1, 2]), found(&[4])), (1, 2, 1));
    own.reserve(4 * PAGE);
    assert_eq!((pool.made(), pool.kept(), found(&[1])), (4, 0, 0));
    // A page that is used is never given away: there are more than the limit then.
    own.reserve(5 * PAGE);
    assert_eq!((pool.made(), pool.used()), (5, 5));
}

#[test]
fn no_more_pages_are_kept_than_the_limit() {
    let pool = PagePool::new();
    let kept = |kept| PrefixLimits { kept, pages: 100 };
    drop(read(&pool, BASE, &prompt(&[1])));
    assert_eq!((pool.kept(), pool.used()), (0, 0));
    pool.limit(kept(2));
    drop(read(&pool, BASE, &prompt(&[1, 2, 3])));
    drop(read(&pool, BASE, &prompt(&[5])));
    assert_eq!((pool.kept(), pool.used()), (2, 0));
    assert_eq!(begin(&pool, BASE, &prompt(&[1, 2])).1, PAGE);
    pool.limit(kept(0));
    assert_eq!(pool.kept(), 0);
    assert!(pool.forget_unused());
}

#[test]
fn kept_pages_are_given_away_where_the_device_makes_no_more() {
    let pool = PagePool::new();
    let limits = PrefixLimits {
        kept: 9,
        pages: 100,
    };
    pool.limit(limits);
    assert!(!pool.limit_to_made());
    pool.limit(limits);
    drop(read(&pool, BASE, &prompt(&[1, 2])));
    let mut own = pool.table();
    own.reserve(PAGE);
    assert_eq!((pool.made(), pool.kept()), (3, 2));
    assert!(pool.limit_to_made());
    own.reserve(3 * PAGE);
    assert_eq!((pool.made(), pool.kept()), (3, 0));
    assert!(!pool.limit_to_made());
}

#[test]
fn equal_pages_that_were_read_at_once_become_one() {
    let pool = PagePool::new();
    pool.limit(KEEPS);
    let ids = prompt(&[1, 2]);
    let mut tables = [pool.table(), pool.table()];
    for table in &mut tables {
        table.reserve(ids.len() + 1);
    }
    assert_eq!(pool.used(), 6);
    for table in &mut tables {
        table.share(BASE, &ids);
    }
    assert_eq!(pool.used(), 4);
    assert_eq!(tables[0].pages()[..2], tables[1].pages()[..2]);
    assert_ne!(tables[0].pages()[2], tables[1].pages()[2]);
}

#[test]
fn a_fork_has_the_same_full_pages_and_its_own_last_one() {
    let pool = PagePool::new();
    let mut first = pool.table();
    first.reserve(2 * PAGE + 1);
    let (fork, copied) = first.fork(2 * PAGE + 1);
    assert_eq!(copied, Some(Copied { from: 2, to: 3 }));
    assert_eq!((fork.pages(), pool.used()), (&[0, 1, 3][..], 4));
    let (full, copied) = first.fork(2 * PAGE);
    assert_eq!((full.pages(), copied), (&[0, 1][..], None));
    drop(first);
    assert_eq!(pool.used(), 3);
    drop((fork, full));
    assert_eq!(pool.used(), 0);
}

/// What a sequence does.
#[derive(Debug, Clone)]
enum Step {
    /// One begins with this prompt, by these tokens of a page each, and a partial page or none.
    Begin(Vec<u32>, usize, bool),
    /// One reads or writes more tokens.
    Read(usize, usize),
    Fork(usize),
    End(usize),
}

/// A sequence, the pages that are reserved for it, and the tokens that it will have.
struct Sequence {
    table: PageTable,
    root: Root,
    ids: Vec<u32>,
    prompt: usize,
    len: usize,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let begin = (vec(0_u32..3, 1..5), 0..PAGE, any::<bool>());
    let step = prop_oneof![
        3 => begin.prop_map(|(pages, rest, adapted)| Step::Begin(pages, rest, adapted)),
        4 => (any::<usize>(), 1..3 * PAGE).prop_map(|(which, tokens)| Step::Read(which, tokens)),
        1 => any::<usize>().prop_map(Step::Fork),
        2 => any::<usize>().prop_map(Step::End),
    ];
    vec(step, 1..80)
}

/// Most pages of the pool.
const PAGES: usize = 24;

/// Checks that each page is free, used or kept, as often as sequences have it.
fn check(pool: &PagePool, sequences: &[Sequence], kept: usize) -> Result<(), TestCaseError> {
    let state = pool.state.lock();
    let mut users = vec![0; state.users.len()];
    for sequence in sequences {
        for &page in sequence.table.pages() {
            users[page as usize] += 1;
        }
    }
    prop_assert_eq!(&users, &state.users);
    let used = users.iter().filter(|&&users| users > 0).count();
    prop_assert_eq!(used, state.used);
    let free: HashSet<u32> = state.free.iter().copied().collect();
    prop_assert_eq!(free.len(), state.free.len());
    for (page, users) in users.iter().enumerate() {
        let (is_free, is_kept) = (
            free.contains(&(page as u32)),
            state.prefixes.contains(page as u32),
        );
        prop_assert!(!is_free || (*users == 0 && !is_kept));
        prop_assert!(is_free || is_kept || *users > 0);
    }
    prop_assert_eq!(free.len() + used + state.prefixes.idle(), users.len());
    prop_assert!(state.prefixes.idle() <= kept);
    // Sequences reserve at most all pages, so that kept ones always give way.
    prop_assert!(users.len() <= PAGES);
    Ok(())
}

proptest! {
    #[test]
    fn counts_hold_and_pages_have_the_tokens_that_they_are_found_by(
        steps in steps(),
        kept in prop_oneof![Just(PAGES), 0..PAGES],
    ) {
        let pool = PagePool::new();
        pool.limit(PrefixLimits { kept, pages: PAGES });
        let mut sequences: Vec<Sequence> = Vec::new();
        // What was written to each page: the root and all tokens to its end.
        let mut written: HashMap<u32, (Root, Vec<u32>)> = HashMap::new();
        // Each sequence may have this many pages.
        const EACH: usize = 6;
        for step in steps {
            let count = sequences.len();
            match step {
                Step::Begin(pages, rest, adapted) if (count + 1) * EACH <= PAGES => {
                    let root = Root { adapter: adapted.then_some([7; 32]) };
                    let mut ids = [prompt(&pages), vec![9; rest]].concat();
                    let (mut table, prompt) = (pool.table(), ids.len());
                    table.adopt(root, &ids, (prompt - 1) / PAGE);
                    ids.extend(200..(200 + EACH * PAGE - prompt) as u32);
                    let len = table.pages().len() * PAGE;
                    prop_assert!(len < prompt);
                    sequences.push(Sequence { table, root, ids, prompt, len });
                }
                Step::Read(which, tokens) if count > 0 => {
                    let Sequence { table, root, ids, prompt, len } = &mut sequences[which % count];
                    if *len == table.pages().len() * PAGE && *len < *prompt {
                        table.adopt(*root, ids, (*prompt - 1) / PAGE);
                        *len = table.pages().len() * PAGE;
                    }
                    let end = (*len + tokens).min(EACH * PAGE);
                    table.reserve(end);
                    for place in *len / PAGE..end.div_ceil(PAGE) {
                        let until = ids[..end.min((place + 1) * PAGE)].to_vec();
                        written.insert(table.pages()[place], (*root, until));
                    }
                    *len = end;
                    table.share(*root, &ids[..end.min(*prompt)]);
                }
                Step::Fork(which) if count > 0 && (count + 1) * EACH <= PAGES => {
                    let Sequence { table, root, ids, prompt, len } = &sequences[which % count];
                    let (table, copied) = table.fork(*len);
                    if let Some(Copied { from, to }) = copied {
                        written.insert(to, written[&from].clone());
                    }
                    let (root, ids, prompt, len) = (*root, ids.clone(), *prompt, *len);
                    sequences.push(Sequence { table, root, ids, prompt, len });
                }
                Step::End(which) if count > 0 => drop(sequences.swap_remove(which % count)),
                _ => {}
            }
            check(&pool, &sequences, kept)?;
            for Sequence { table, root, ids, len, .. } in &sequences {
                for (place, page) in table.pages().iter().enumerate() {
                    let until = &ids[..(*len).min((place + 1) * PAGE)];
                    prop_assert_eq!(&written[page], &(*root, until.to_vec()));
                }
            }
        }
        sequences.clear();
        check(&pool, &sequences, kept)?;
        prop_assert!(pool.forget_unused());
        prop_assert_eq!((pool.made(), pool.kept()), (0, 0));
    }
}
