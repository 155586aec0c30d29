//! Places tensors in SBUF and PSUM: first fit over lifetimes. A tensor lives from the first instruction that names it to
//! the last, a loop counting as a whole where it does not live inside one trip alone; tensors that live at the same time
//! share no byte. PSUM tensors start at a bank.

use crate::error::NeuronError;
use crate::ir::{Instr, Kernel, Space, Stmt, TensorId};
use crate::target::Target;

/// Where every tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// The first byte in each partition, by tensor; None of HBM tensors and of those that nothing names.
    pub address: Vec<Option<usize>>,
    /// The most bytes of SBUF a partition that are in use at one time.
    pub sbuf_peak: usize,
    /// The most bytes of PSUM a partition that are in use at one time.
    pub psum_peak: usize,
}

#[derive(Clone, Copy)]
struct Placed {
    tensor: TensorId,
    lifetime: (usize, usize),
    bytes: (usize, usize),
}

/// Bytes that addresses are multiples of.
pub(crate) const ALIGNMENT: usize = 32;

/// Places every tensor of a kernel.
///
/// # Errors
/// `GCA035` with the block that AWS's compiler prints where SBUF is too small, `GCA046` where PSUM is.
pub fn allocate(kernel: &Kernel, target: &Target) -> Result<Allocation, NeuronError> {
    let mut lifetimes: Vec<Option<(usize, usize)>> = vec![None; kernel.tensors.len()];
    let mut clock = 0;
    live(&kernel.body, &mut clock, &mut lifetimes);
    let mut order: Vec<(usize, (usize, usize))> =
        lifetimes.iter().enumerate().filter_map(|(at, life)| life.map(|life| (at, life))).collect();
    order.sort_by_key(|&(at, (start, _))| (start, at));

    let mut allocation = Allocation { address: vec![None; kernel.tensors.len()], sbuf_peak: 0, psum_peak: 0 };
    let mut placed: [Vec<Placed>; 2] = [Vec::new(), Vec::new()];
    for (at, lifetime) in order {
        let tensor = &kernel.tensors[at];
        let (memory, limit, alignment) = match tensor.space {
            Space::Sbuf => (0, target.sbuf_bytes, ALIGNMENT),
            Space::Psum => (1, target.psum_bytes(), target.psum_bank_bytes),
            _ => continue,
        };
        let bytes = tensor.free_bytes().next_multiple_of(alignment);
        let address = first_fit(&placed[memory], lifetime, bytes);
        if address + bytes > limit {
            return Err(overflow(kernel, target, TensorId(at), lifetime, &placed[memory]));
        }
        allocation.address[at] = Some(address);
        placed[memory].push(Placed { tensor: TensorId(at), lifetime, bytes: (address, address + bytes) });
        let peak = if memory == 0 { &mut allocation.sbuf_peak } else { &mut allocation.psum_peak };
        *peak = (*peak).max(address + bytes);
    }
    Ok(allocation)
}

/// The lowest address where no living tensor is.
fn first_fit(placed: &[Placed], (start, end): (usize, usize), bytes: usize) -> usize {
    let mut taken: Vec<(usize, usize)> = placed
        .iter()
        .filter(|other| other.lifetime.0 <= end && start <= other.lifetime.1)
        .map(|other| other.bytes)
        .collect();
    taken.sort_unstable();
    let mut address = 0;
    for (from, to) in taken {
        if address + bytes <= from {
            break;
        }
        address = address.max(to);
    }
    address
}

/// The first and the last time of every tensor. What a loop names lives through the whole loop.
fn live(body: &[Stmt], clock: &mut usize, lifetimes: &mut [Option<(usize, usize)>]) {
    for stmt in body {
        match stmt {
            Stmt::Instr(Instr { op, .. }) => {
                for (_, view) in op.views() {
                    let life = lifetimes[view.tensor.0].get_or_insert((*clock, *clock));
                    life.1 = *clock;
                }
                *clock += 1;
            }
            Stmt::For { body, .. } => {
                let start = *clock;
                let mut inside = vec![None; lifetimes.len()];
                live(body, clock, &mut inside);
                for (life, inside) in lifetimes.iter_mut().zip(inside) {
                    if inside.is_some() {
                        let life = life.get_or_insert((start, start));
                        life.1 = *clock;
                    }
                }
            }
        }
    }
}

fn overflow(
    kernel: &Kernel,
    target: &Target,
    tensor: TensorId,
    lifetime: (usize, usize),
    placed: &[Placed],
) -> NeuronError {
    let culprit = kernel.tensor(tensor);
    if culprit.space == Space::Psum {
        let message = format!(
            "Some infinite-cost nodes remain: '{}' needs {} bytes of PSUM a partition, which has {} banks of {} bytes",
            culprit.name,
            culprit.free_bytes(),
            target.psum_banks,
            target.psum_bank_bytes
        );
        return NeuronError::new("GCA046", message).of(&culprit.name);
    }
    let (_, at) = lifetime;
    let living = placed
        .iter()
        .filter(|other| other.lifetime.0 <= at && lifetime.0 <= other.lifetime.1)
        .map(|other| other.tensor)
        .chain([tensor]);
    let mut total = 0;
    let mut message = format!(
        "Instruction: I-{}-0 with opcode: {} couldn't be allocated in SB\nMemory Location Accessed:",
        lifetime.0,
        opcode(kernel, lifetime.0)
    );
    for id in living {
        let tensor = kernel.tensor(id);
        let bytes = tensor.free_bytes();
        total += bytes;
        message += &format!(
            "\n{}: {bytes} Bytes per Partition and total of: {} Bytes in SB",
            tensor.name,
            bytes * tensor.shape[0]
        );
    }
    message += &format!(
        "\nTotal Accessed Bytes per partition by instruction: {total}\nTotal SB Partition Size: {}",
        target.sbuf_bytes
    );
    NeuronError::new("GCA035", message).at(lifetime.0).of(&culprit.name)
}

/// The name of the instruction at a time.
fn opcode(kernel: &Kernel, time: usize) -> &'static str {
    fn find(body: &[Stmt], left: &mut usize) -> Option<&'static str> {
        for stmt in body {
            match stmt {
                Stmt::Instr(_) if *left > 0 => *left -= 1,
                Stmt::Instr(instr) => return Some(instr.op.name()),
                Stmt::For { body, .. } => {
                    if let Some(name) = find(body, left) {
                        return Some(name);
                    }
                }
            }
        }
        None
    }
    find(&kernel.body, &mut { time }).unwrap_or("nop")
}
