//! What a simulation found: time, the share of each engine, what it waited for, memory traffic and memory peaks.

use std::fmt;

use crate::allocate::Allocation;
use crate::ir::Engine;
use crate::target::Target;

/// What an instruction waited for last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// Nothing but its own engine.
    None,
    /// The result of another instruction, or a buffer that one still used.
    Dependency,
    /// A DMA.
    Dma,
    /// A port that another engine held.
    Port,
}

/// A row of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// An engine's queue.
    Engine(Engine),
    /// The DMA engines.
    Dma,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Self; 6] = [
        Self::Engine(Engine::Tensor),
        Self::Engine(Engine::Vector),
        Self::Engine(Engine::Scalar),
        Self::Engine(Engine::GpSimd),
        Self::Engine(Engine::Sync),
        Self::Dma,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Engine(engine) => engine.name(),
            Self::Dma => "dma",
        }
    }
}

/// An instruction on its lane.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// Where.
    pub lane: Lane,
    /// From, in nanoseconds.
    pub start: f64,
    /// Until, in nanoseconds.
    pub end: f64,
    /// The name of the instruction.
    pub name: &'static str,
    /// Its number in the unrolled kernel.
    pub instruction: usize,
}

/// What one lane did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Nanoseconds at work.
    pub busy: f64,
    /// Nanoseconds that it waited for results and buffers.
    pub dependency: f64,
    /// Nanoseconds that it waited for DMAs.
    pub dma: f64,
    /// Nanoseconds that it waited for ports.
    pub port: f64,
    /// Instructions.
    pub instructions: usize,
}

/// What a simulation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The machine.
    pub target: Target,
    /// Nanoseconds from the first instruction to the last byte.
    pub nanoseconds: f64,
    /// What each lane did, in the order of [`Lane::ALL`].
    pub usage: [Usage; Lane::ALL.len()],
    /// Bytes to and from HBM.
    pub hbm_bytes: usize,
    /// The most bytes of SBUF in use at one time, a partition.
    pub sbuf_peak: usize,
    /// The most bytes of PSUM in use at one time, a partition.
    pub psum_peak: usize,
    /// Every instruction on its lane.
    pub events: Vec<Event>,
}

impl Report {
    pub(crate) fn new(target: &Target, allocation: &Allocation) -> Self {
        Self {
            target: target.clone(),
            nanoseconds: 0.0,
            usage: Default::default(),
            hbm_bytes: 0,
            sbuf_peak: allocation.sbuf_peak,
            psum_peak: allocation.psum_peak,
            events: Vec::new(),
        }
    }

    /// The report of this kernel and of another that runs behind it.
    #[must_use]
    pub fn followed_by(mut self, next: &Self) -> Self {
        let shift = self.nanoseconds;
        let events = next.events.iter();
        self.events.extend(events.map(|event| Event {
            start: event.start + shift,
            end: event.end + shift,
            ..*event
        }));
        for (all, usage) in self.usage.iter_mut().zip(&next.usage) {
            all.busy += usage.busy;
            all.dependency += usage.dependency;
            all.dma += usage.dma;
            all.port += usage.port;
            all.instructions += usage.instructions;
        }
        self.nanoseconds += next.nanoseconds;
        self.hbm_bytes += next.hbm_bytes;
        self.sbuf_peak = self.sbuf_peak.max(next.sbuf_peak);
        self.psum_peak = self.psum_peak.max(next.psum_peak);
        self
    }

    fn at(lane: Lane) -> usize {
        match lane {
            Lane::Engine(engine) => engine as usize,
            Lane::Dma => Lane::ALL.len() - 1,
        }
    }

    pub(crate) fn stalled(&mut self, engine: Engine, stall: Stall, nanoseconds: f64) {
        let usage = &mut self.usage[engine as usize];
        match stall {
            Stall::None => {}
            Stall::Dependency => usage.dependency += nanoseconds,
            Stall::Dma => usage.dma += nanoseconds,
            Stall::Port => usage.port += nanoseconds,
        }
    }

    pub(crate) fn ran(&mut self, lane: Lane, start: f64, end: f64, name: &'static str, instruction: usize) {
        let usage = &mut self.usage[Self::at(lane)];
        usage.busy += end - start;
        usage.instructions += 1;
        self.nanoseconds = self.nanoseconds.max(end);
        self.events.push(Event { lane, start, end, name, instruction });
    }

    /// What a lane did.
    pub fn usage(&self, lane: Lane) -> &Usage {
        &self.usage[Self::at(lane)]
    }

    /// Microseconds.
    pub fn microseconds(&self) -> f64 {
        self.nanoseconds / 1e3
    }

    /// The busiest lane and its share of the time.
    pub fn busiest(&self) -> (Lane, f64) {
        let share = |lane: Lane| self.usage(lane).busy / self.nanoseconds.max(1.0);
        let busiest = Lane::ALL.into_iter().max_by(|&a, &b| share(a).total_cmp(&share(b)));
        busiest.map_or((Lane::Dma, 0.0), |lane| (lane, share(lane)))
    }

    /// The share of the tensor engine's peak in 16-bit numbers that `flops` useful ones make.
    pub fn model_flops_utilisation(&self, flops: f64) -> f64 {
        flops / (self.nanoseconds.max(1.0) * 1e-9) / self.target.peak_flops()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {:.1} us simulated", self.target.name, self.microseconds())?;
        writeln!(
            f,
            "{:<8} {:>9} {:>6} {:>12} {:>9} {:>9} {:>9}",
            "engine", "busy us", "share", "instructions", "wait us", "dma us", "port us"
        )?;
        for lane in Lane::ALL {
            let usage = self.usage(lane);
            writeln!(
                f,
                "{:<8} {:>9.1} {:>5.1}% {:>12} {:>9.1} {:>9.1} {:>9.1}",
                lane.name(),
                usage.busy / 1e3,
                100.0 * usage.busy / self.nanoseconds.max(1.0),
                usage.instructions,
                usage.dependency / 1e3,
                usage.dma / 1e3,
                usage.port / 1e3
            )?;
        }
        write!(
            f,
            "HBM {:.2} MB, SBUF peak {} B of {} a partition, PSUM peak {} B of {}",
            self.hbm_bytes as f64 / 1e6,
            self.sbuf_peak,
            self.target.sbuf_bytes,
            self.psum_peak,
            self.target.psum_bytes()
        )
    }
}
