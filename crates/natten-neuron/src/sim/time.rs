//! When each instruction runs: one in-order queue an engine, the DMA engines behind them, dependencies by the bytes that
//! instructions share, and the ports that engines of v2 share.
//!
//! An instruction starts when its engine is free, everything that it depends on is visible, and nobody holds its port.
//! What it writes is visible `latency_cycles` after its end; what it only read may be overwritten at its end.

use crate::allocate::Allocation;
use crate::ir::{Engine, Instr, Kernel, Op, Space, View};
use crate::sim::cost::{Transfer, cycles};
use crate::sim::report::{Lane, Report, Stall};
use crate::target::Target;

/// The bytes that dependencies are told apart by.
const GRANULE: usize = 4;
/// Partitions that dependencies are told apart by: accesses start at their multiples.
const QUADRANT: usize = 32;

/// An instruction of the unrolled kernel.
struct Work {
    engine: usize,
    /// On its engine.
    nanoseconds: f64,
    /// Until others see what it wrote.
    latency: f64,
    transfer: Option<Transfer>,
    touches_psum: bool,
    touches_sbuf: bool,
    name: &'static str,
    needs: Vec<Need>,
}

/// What an instruction waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Need {
    work: u32,
    /// Whether it reads what the other wrote, and so waits for that to be visible.
    reads: bool,
}

/// Who last touched a granule.
#[derive(Clone, Copy)]
struct Touched {
    writer: u32,
    readers: [u32; Engine::ALL.len()],
}

const NOBODY: u32 = u32::MAX;

/// Simulates a kernel's time.
pub fn time(kernel: &Kernel, target: &Target, allocation: &Allocation) -> Report {
    let works = works(kernel, target, allocation);
    let mut report = Report::new(target, allocation);
    for transfer in works.iter().filter_map(|work| work.transfer) {
        report.hbm_bytes += transfer.bytes;
    }
    let mut queues: Vec<Vec<u32>> = vec![Vec::new(); Engine::ALL.len()];
    for (at, work) in works.iter().enumerate() {
        queues[work.engine].push(at as u32);
    }
    let mut machine = Machine {
        target,
        works: &works,
        ends: vec![None; works.len()],
        free: [0.0; Engine::ALL.len()],
        psum_held: [0.0; Engine::ALL.len()],
        sbuf_held: [0.0; Engine::ALL.len()],
        dma_free: 0.0,
    };
    let mut heads = [0; Engine::ALL.len()];
    loop {
        let next = (0..heads.len())
            .filter_map(|engine| {
                let &work = queues[engine].get(heads[engine])?;
                machine.start_of(work).map(|start| (start, engine, work))
            })
            .min_by(|a, b| a.0.at.total_cmp(&b.0.at));
        let Some((start, engine, work)) = next else { break };
        heads[engine] += 1;
        machine.run(work, start, &mut report);
    }
    report
}

/// When an instruction can start, and what it waited for last.
#[derive(Clone, Copy)]
struct Start {
    at: f64,
    stall: Stall,
}

struct Machine<'a> {
    target: &'a Target,
    works: &'a [Work],
    /// When it is done, and when others see it.
    ends: Vec<Option<(f64, f64)>>,
    free: [f64; Engine::ALL.len()],
    psum_held: [f64; Engine::ALL.len()],
    sbuf_held: [f64; Engine::ALL.len()],
    dma_free: f64,
}

impl Machine<'_> {
    /// None while something that it needs has not been scheduled.
    fn start_of(&self, number: u32) -> Option<Start> {
        let work = &self.works[number as usize];
        let mut start = Start { at: self.free[work.engine], stall: Stall::None };
        for need in &work.needs {
            let (done, visible) = self.ends[need.work as usize]?;
            let other = &self.works[need.work as usize];
            let at = if need.reads { visible } else { done };
            if at > start.at {
                let stall = if other.transfer.is_some() { Stall::Dma } else { Stall::Dependency };
                start = Start { at, stall };
            }
        }
        let held = self.port_free(work);
        if held > start.at {
            start = Start { at: held, stall: Stall::Port };
        }
        Some(start)
    }

    /// When the ports that an instruction shares with another engine are free.
    fn port_free(&self, work: &Work) -> f64 {
        if !self.target.shares_ports {
            return 0.0;
        }
        let [vector, scalar, gpsimd] = [Engine::Vector, Engine::Scalar, Engine::GpSimd].map(|e| e as usize);
        let mut free = 0.0_f64;
        if work.touches_psum && work.engine == vector {
            free = free.max(self.psum_held[scalar]);
        }
        if work.touches_psum && work.engine == scalar {
            free = free.max(self.psum_held[vector]);
        }
        if work.touches_sbuf && work.engine == vector {
            free = free.max(self.sbuf_held[gpsimd]);
        }
        if work.touches_sbuf && work.engine == gpsimd {
            free = free.max(self.sbuf_held[vector]);
        }
        free
    }

    fn run(&mut self, number: u32, start: Start, report: &mut Report) {
        let work = &self.works[number as usize];
        let end = start.at + work.nanoseconds;
        let engine = Engine::ALL[work.engine];
        report.stalled(engine, start.stall, start.at - self.free[work.engine]);
        report.ran(Lane::Engine(engine), start.at, end, work.name, number as usize);
        self.free[work.engine] = end;
        if work.touches_psum {
            self.psum_held[work.engine] = end;
        }
        if work.touches_sbuf {
            self.sbuf_held[work.engine] = end;
        }
        self.ends[number as usize] = Some(match work.transfer {
            None => (end, end + work.latency),
            Some(transfer) => {
                let begins = (end + self.target.dma_latency_ns).max(self.dma_free);
                let nanoseconds = transfer.nanoseconds(self.target);
                // A few descriptors keep a few engines busy; the others go on with what comes next.
                let share =
                    transfer.descriptors.min(self.target.dma_queues) as f64 / self.target.dma_queues as f64;
                self.dma_free = begins + nanoseconds * share;
                let done = begins + nanoseconds;
                report.ran(Lane::Dma, begins, self.dma_free, work.name, number as usize);
                (done, done)
            }
        });
    }
}

/// The unrolled kernel, each instruction with what it needs.
fn works(kernel: &Kernel, target: &Target, allocation: &Allocation) -> Vec<Work> {
    let mut sbuf = Memory::new(allocation.sbuf_peak);
    let mut psum = Memory::new(allocation.psum_peak);
    let mut works: Vec<Work> = Vec::new();
    let gather = |instr: &Instr, vars: &[usize]| -> Result<(), std::convert::Infallible> {
        let number = works.len() as u32;
        let engine = instr.engine as usize;
        let mut needs = Vec::new();
        let (mut touches_psum, mut touches_sbuf) = (false, false);
        let views = instr.op.views();
        let written = instr.op.written();
        for (is_write, range) in [(false, written..views.len()), (true, 0..written)] {
            for (_, view) in &views[range] {
                let tensor = kernel.tensor(view.tensor);
                let memory = match tensor.space {
                    Space::Sbuf => &mut sbuf,
                    Space::Psum => &mut psum,
                    _ => continue,
                };
                touches_psum |= tensor.space == Space::Psum;
                touches_sbuf |= tensor.space == Space::Sbuf;
                let base = allocation.address[view.tensor.0].unwrap_or(0);
                let access = Access { number, engine, is_write };
                memory.touch(view, vars, base, tensor.dtype.size(), access, &mut needs);
            }
        }
        // A later need of the same work with `reads` covers the one without.
        needs.sort_unstable_by(|a: &Need, b| b.cmp(a));
        needs.dedup_by_key(|need| need.work);
        let transfer = match &instr.op {
            Op::DmaCopy { dst, src } => Some(Transfer::of(kernel, dst, src)),
            _ => None,
        };
        // It is the DMA engines that move the bytes, by ports of their own.
        touches_psum &= transfer.is_none();
        touches_sbuf &= transfer.is_none();
        let ghz = target.ghz(instr.engine);
        works.push(Work {
            engine,
            nanoseconds: cycles(kernel, target, instr) / ghz,
            latency: target.latency_cycles / ghz,
            transfer,
            touches_psum,
            touches_sbuf,
            name: instr.op.name(),
            needs,
        });
        Ok(())
    };
    match kernel.for_each(gather) {
        Ok(()) => works,
        Err(never) => match never {},
    }
}

#[derive(Clone, Copy)]
struct Access {
    number: u32,
    engine: usize,
    is_write: bool,
}

/// Who touched which granule last, quadrant by quadrant.
struct Memory {
    granules: usize,
    touched: Vec<Touched>,
}

impl Memory {
    fn new(bytes: usize) -> Self {
        let granules = bytes.div_ceil(GRANULE);
        let nobody = Touched { writer: NOBODY, readers: [NOBODY; Engine::ALL.len()] };
        Self { granules, touched: vec![nobody; granules * 4] }
    }

    fn touch(
        &mut self,
        view: &View,
        vars: &[usize],
        base: usize,
        size: usize,
        access: Access,
        needs: &mut Vec<Need>,
    ) {
        let granules = self.granules;
        let quadrants = view.part / QUADRANT..(view.part + view.parts).div_ceil(QUADRANT);
        view.runs(vars, |start, stride, count| {
            let first = (base + start * size) / GRANULE;
            let last = (base + (start + stride * (count - 1)) * size + size - 1) / GRANULE;
            // A stride finer than a granule, or coarser: the whole span, or element by element.
            let step = (stride * size / GRANULE).max(1);
            let wide = size.div_ceil(GRANULE);
            for quadrant in quadrants.clone() {
                let mut at = first;
                while at <= last {
                    for granule in at..(at + wide).min(last + 1) {
                        self.granule(quadrant * granules + granule, access, needs);
                    }
                    at += step;
                }
            }
        });
    }

    fn granule(&mut self, at: usize, access: Access, needs: &mut Vec<Need>) {
        let touched = &mut self.touched[at];
        let need = |needs: &mut Vec<Need>, work: u32, reads: bool| {
            if work != NOBODY && work != access.number && needs.last() != Some(&Need { work, reads }) {
                needs.push(Need { work, reads });
            }
        };
        need(needs, touched.writer, !access.is_write);
        if access.is_write {
            for reader in touched.readers {
                need(needs, reader, false);
            }
            touched.writer = access.number;
            touched.readers = [NOBODY; Engine::ALL.len()];
        } else {
            touched.readers[access.engine] = access.number;
        }
    }
}
