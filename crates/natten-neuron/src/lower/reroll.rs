//! Makes loops of what repeats: neighbouring groups of statements that differ in nothing but the places of their views,
//! and in those by the same steps, become one loop. Lowerings write straight lines; this is why kernels stay short.

use crate::ir::{Affine, Instr, Op, Stmt};

/// The statements of `groups`, one behind the other, where runs of like groups are loops at `depth`. A period of
/// `periods` groups may make a trip: buffers in turn repeat every second or fourth group. Loops inside the groups are
/// of depth `depth + 1`.
pub fn reroll(groups: Vec<Vec<Stmt>>, depth: usize, periods: &[usize]) -> Vec<Stmt> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < groups.len() {
        let best = periods.iter().map(|&period| (period, trips(&groups[at..], period, depth))).max_by_key(
            |&(period, trips)| (if trips >= 2 { trips * period } else { 0 }, usize::MAX - period),
        );
        match best {
            Some((period, count)) if count >= 2 => {
                let body = groups[at..at + period].concat();
                let next = groups[at + period..at + 2 * period].concat();
                let merged = merge(&body, &next, depth).unwrap_or(body);
                out.push(Stmt::For { count, body: merged });
                at += count * period;
            }
            _ => {
                out.extend(groups[at].iter().map(|stmt| outside(stmt, depth)));
                at += 1;
            }
        }
    }
    out
}

/// A statement that no loop of this depth came around: the loops in it are one less deep.
fn outside(stmt: &Stmt, depth: usize) -> Stmt {
    match stmt {
        Stmt::For { count, body } => {
            Stmt::For { count: *count, body: body.iter().map(|stmt| outside(stmt, depth)).collect() }
        }
        Stmt::Instr(instr) => {
            let mut instr = instr.clone();
            for view in instr.op.views_mut() {
                for (var, _) in view.offset.terms.iter_mut().filter(|(var, _)| *var > depth) {
                    *var -= 1;
                }
            }
            Stmt::Instr(instr)
        }
    }
}

/// How many periods from the start are trips of one loop.
fn trips(groups: &[Vec<Stmt>], period: usize, depth: usize) -> usize {
    let periods = groups.len() / period;
    if periods < 2 {
        return periods;
    }
    let body = |trip: usize| groups[trip * period..(trip + 1) * period].iter().flatten();
    let first: Vec<Stmt> = body(0).cloned().collect();
    let second: Vec<Stmt> = body(1).cloned().collect();
    let Some(merged) = merge(&first, &second, depth) else { return 1 };
    let mut count = 2;
    while count < periods && matches(&merged, body(count), depth, count) {
        count += 1;
    }
    count
}

/// Whether statements are the trip number `trip` of a loop's body.
fn matches<'a>(body: &[Stmt], mut stmts: impl Iterator<Item = &'a Stmt>, depth: usize, trip: usize) -> bool {
    body.iter().all(|stmt| stmts.next().is_some_and(|other| at_trip(stmt, depth, trip) == *other))
        && stmts.next().is_none()
}

/// A loop's body at a trip, the variable replaced by its value.
fn at_trip(stmt: &Stmt, depth: usize, trip: usize) -> Stmt {
    match stmt {
        Stmt::For { count, body } => {
            Stmt::For { count: *count, body: body.iter().map(|stmt| at_trip(stmt, depth, trip)).collect() }
        }
        Stmt::Instr(instr) => {
            let mut instr = instr.clone();
            for view in instr.op.views_mut() {
                let Affine { base, terms } = &mut view.offset;
                if let Some(at) = terms.iter().position(|&(var, _)| var == depth) {
                    *base += terms.remove(at).1 * trip;
                }
            }
            Stmt::Instr(instr)
        }
    }
}

/// One body for two trips; None where they differ in more than places, or a place goes down.
fn merge(first: &[Stmt], second: &[Stmt], depth: usize) -> Option<Vec<Stmt>> {
    if first.len() != second.len() {
        return None;
    }
    first.iter().zip(second).map(|(a, b)| merge_stmt(a, b, depth)).collect()
}

fn merge_stmt(a: &Stmt, b: &Stmt, depth: usize) -> Option<Stmt> {
    match (a, b) {
        (Stmt::For { count, body }, Stmt::For { count: other_count, body: other })
            if count == other_count =>
        {
            Some(Stmt::For { count: *count, body: merge(body, other, depth)? })
        }
        (Stmt::Instr(a), Stmt::Instr(b)) if a.engine == b.engine => {
            let op = merge_op(&a.op, &b.op, depth)?;
            Some(Stmt::Instr(Instr { engine: a.engine, op }))
        }
        _ => None,
    }
}

fn merge_op(a: &Op, b: &Op, depth: usize) -> Option<Op> {
    if std::mem::discriminant(a) != std::mem::discriminant(b) {
        return None;
    }
    let mut merged = a.clone();
    let mut other = b.clone();
    {
        let (ours, theirs) = (merged.views_mut(), other.views_mut());
        if ours.len() != theirs.len() {
            return None;
        }
        for (ours, theirs) in ours.into_iter().zip(theirs) {
            let step = theirs.offset.base.checked_sub(ours.offset.base)?;
            theirs.offset.base = ours.offset.base;
            if ours != theirs {
                return None;
            }
            if step > 0 {
                ours.offset.terms.push((depth, step));
                ours.offset.terms.sort_unstable();
                theirs.offset = ours.offset.clone();
            }
        }
    }
    (merged == other).then_some(merged)
}
