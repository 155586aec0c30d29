//! Queues are streams: one of our own, or the caller's.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaStream};
use natten_core::{Error, Pending, Queue, Result, Timer, ready};

use crate::device::Device;
use crate::{error, probe};

/// The driver, as it counts its versions, that has the call which the bindings time events by: 12.8.
const EVENT_CLOCK: i32 = 12_080;

/// An order of work on a device.
#[derive(Debug)]
pub struct CudaQueue {
    device: Arc<Device>,
    stream: Arc<CudaStream>,
}

impl CudaQueue {
    pub(crate) const fn new(device: Arc<Device>, stream: Arc<CudaStream>) -> Self {
        Self { device, stream }
    }

    /// The stream that work runs on.
    pub const fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Waits until everything submitted so far is done.
    pub(crate) fn wait(&self) -> Result<()> {
        self.device.bind()?;
        self.stream.synchronize().map_err(|e| error::driver("waiting for the device", e))
    }

    /// Begins to measure the device's own time; `None` where the driver is older than the call that reads it.
    pub(crate) fn clock(&self) -> Result<Option<EventTimer>> {
        self.device.bind()?;
        if probe::driver_version() < EVENT_CLOCK {
            return Ok(None);
        }
        let stream = Arc::clone(&self.stream);
        Ok(Some(EventTimer { start: event(&stream)?, device: Arc::clone(&self.device), stream }))
    }

    /// The queue as this backend's, if it is of this device.
    pub(crate) fn of<'a>(device: &Device, queue: &'a dyn Queue) -> Result<&'a Self> {
        queue.as_any().downcast_ref::<Self>().filter(|queue| queue.device.name() == device.name()).ok_or_else(
            || {
                Error::invalid(
                    "queue",
                    "of another device",
                    format!("it must be of {}", device.name()),
                    "ask the backend that runs for a queue",
                )
            },
        )
    }
}

impl Queue for CudaQueue {
    fn finish(&self) -> Pending<'_, ()> {
        ready(self.wait())
    }

    fn timer(&self) -> Result<Option<Box<dyn Timer>>> {
        Ok(self.clock()?.map(|timer| Box::new(timer) as Box<dyn Timer>))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn event(stream: &CudaStream) -> Result<CudaEvent> {
    stream
        .record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
        .map_err(|e| error::driver("recording an event", e))
}

/// The device's own clock, between two events on a stream.
#[derive(Debug)]
pub(crate) struct EventTimer {
    device: Arc<Device>,
    stream: Arc<CudaStream>,
    start: CudaEvent,
}

impl EventTimer {
    /// Ends the measurement, and waits for the work in it.
    pub(crate) fn read(&self) -> Result<Duration> {
        self.device.bind()?;
        let end = event(&self.stream)?;
        let milliseconds = end
            .synchronize()
            .and_then(|()| self.start.elapsed_ms(&end))
            .map_err(|e| error::driver("timing work", e))?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) * 1e-3))
    }
}

impl Timer for EventTimer {
    fn stop(self: Box<Self>) -> Pending<'static, Duration> {
        ready(self.read())
    }
}
